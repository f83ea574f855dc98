//! Brings a prompt into a session: what is cached is brought in, what is on its way races against
//! computing it, and the rest is computed.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};

use futures_util::future::join;
use memcube_schemas::{BlockKey, activation::KvBlock};

use super::{
    activation_cache::{ActivationCache, Lease, Segment, Tier, chain::Chain, stored::LoadedBlock},
    device::{DeviceHandle, Until, Urgency},
    engine::{Cancel, EngineError, EngineResult, KvBytes, Sampling, Session, Token},
    loading::Loading,
};
use crate::{environment::Environment, error::Error};

/// Blocks that are brought in at once: between two such runs others have their turn.
const RUN_MAX: usize = 32;

/// Why a prompt could not be brought into a session.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The engine says so.
    Engine(EngineError),
    /// The device cannot be used, or not in time.
    Device(Error),
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Device(error)
    }
}

/// Where the tokens of a prompt came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reuse {
    /// Tokens that were computed.
    pub computed_tokens: usize,
    /// Tokens by the tier that they were reused from.
    pub reused_tokens: BTreeMap<Tier, usize>,
    /// Tokens whose numbers were stored in 8 bits, and are not exact.
    pub inexact_tokens: usize,
    /// Tokens that came from memories computed each by itself, which is not exact either.
    pub segment_tokens: usize,
    /// Blocks that were damaged, and computed again.
    pub corrupt_blocks: usize,
}

impl Reuse {
    /// Tokens that were not computed.
    #[must_use]
    pub fn reused(&self) -> usize {
        self.reused_tokens.values().sum::<usize>() + self.segment_tokens
    }

    /// Whether the text is the one that would have come with nothing cached.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.inexact_tokens == 0 && self.segment_tokens == 0
    }

    fn add(&mut self, tier: Tier, tokens: usize) {
        if tokens == 0 {
            return;
        }
        *self.reused_tokens.entry(tier).or_default() += tokens;
    }
}

/// A session that holds a prompt.
pub(super) struct Filled {
    pub(super) session: Box<dyn Session>,
    /// The first token after it, if one was asked for.
    pub(super) first: Option<Token>,
    pub(super) reuse: Reuse,
    /// Which blocks were computed here, and are exact.
    pub(super) computed: Vec<usize>,
    /// The memories that may come from segments.
    pub(super) segments: Vec<Segment>,
    /// Numbers of those that were needed, and of which there is no segment.
    pub(super) missing: BTreeSet<usize>,
    /// The first block that was put together from segments.
    pub(super) composed_from: Option<usize>,
}

/// What is needed to fill a session.
pub(super) struct Filling<'a> {
    pub(super) device: &'a DeviceHandle,
    pub(super) cache: &'a ActivationCache,
    pub(super) environment: &'a Environment,
    pub(super) lease: &'a Lease,
    pub(super) chain: &'a Arc<Chain>,
    pub(super) stored: &'a BTreeMap<BlockKey, KvBlock>,
    /// Set when what is computed ahead is not wanted any more.
    pub(super) stop: &'a Cancel,
    pub(super) until: Until,
    /// How to choose the token after the prompt.
    pub(super) sampling: Option<(Sampling, u64)>,
    /// Whether memories may come from segments, and how many of the first tokens of each are
    /// computed where they stand.
    pub(super) repair_tokens: Option<usize>,
}

/// Tells a computation to stop when nobody waits for it any more.
pub(super) struct CancelOnDrop(pub(super) Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

type Computed = (Box<dyn Session>, EngineResult<Option<Token>>);

impl Filling<'_> {
    /// Fills a session, with or without what is cached.
    pub(super) async fn fill(&self, with_cache: bool) -> Result<Filled, Trouble> {
        // The last block is computed in any case: what follows the prompt depends on it. A preload
        // has nothing that follows.
        let last = usize::from(self.sampling.is_some());
        let usable = if with_cache { self.chain.blocks.len().saturating_sub(last) } else { 0 };
        let mut filled = self.begin(usable).await?;
        if with_cache {
            filled.segments = self.segments();
        }
        let mut at = self.blocks_until(filled.session.tokens());
        let missing = (at..usable).filter(|at| self.in_ram(*at).is_none());
        let (key, chain) = (&self.lease.key, self.chain);
        let mut loading =
            Loading::start(self.cache, self.environment, key, chain, self.stored, missing);
        while at < chain.blocks.len() && !self.is_stopped() {
            let brought = if at < usable {
                self.bring_in(&mut filled, &mut loading, at, usable).await?
            } else {
                0
            };
            if brought == 0 {
                match self.compute_or_load(&mut filled, &mut loading, at).await {
                    // The session is as it was before the pass.
                    Err(Trouble::Engine(EngineError::Cancelled)) if self.is_stopped() => break,
                    computed => computed?,
                }
            }
            at += brought.max(1);
        }
        filled.reuse.corrupt_blocks += loading.corrupt;
        Ok(filled)
    }

    /// Whether this is computed ahead, and nobody wants it any more.
    fn is_stopped(&self) -> bool {
        self.until.urgency == Urgency::Preload && self.stop.is_set()
    }

    /// The session to go on with, or a new one.
    async fn begin(&self, usable: usize) -> Result<Filled, Trouble> {
        let mut reuse = Reuse::default();
        let session = match self.cache.take_session(self.lease, self.chain, usable) {
            Some((session, _)) => {
                reuse.add(Tier::Device, session.tokens());
                session
            }
            None => self.device.run(self.until.clone(), |engine| (engine.open(), 0)).await??,
        };
        Ok(Filled {
            session,
            first: None,
            reuse,
            computed: Vec::new(),
            segments: Vec::new(),
            missing: BTreeSet::new(),
            composed_from: None,
        })
    }

    fn blocks_until(&self, tokens: usize) -> usize {
        self.chain.blocks.iter().take_while(|block| block.span.end <= tokens).count()
    }

    fn in_ram(&self, at: usize) -> Option<Arc<KvBytes>> {
        self.cache.in_ram(self.lease, self.chain, at)
    }

    /// Brings in what is in RAM from a block on, or one block that comes soon; returns how many.
    async fn bring_in(
        &self,
        filled: &mut Filled,
        loading: &mut Loading,
        at: usize,
        usable: usize,
    ) -> Result<usize, Trouble> {
        let in_ram: Vec<Arc<KvBytes>> =
            (at..usable).take(RUN_MAX).map_while(|at| self.in_ram(at)).collect();
        if !in_ram.is_empty() {
            return self.import_from_ram(filled, at, in_ram).await;
        }
        if !loading.may_come(at) {
            return Ok(0);
        }
        match loading.patient_arrival(at).await {
            Some(loaded) => Ok(usize::from(self.import_loaded(filled, at, loaded).await?)),
            None => Ok(0),
        }
    }

    /// Brings a run of blocks in, as far as they are what they were.
    async fn import_from_ram(
        &self,
        filled: &mut Filled,
        at: usize,
        mut blocks: Vec<Arc<KvBytes>>,
    ) -> Result<usize, Trouble> {
        let intact = self.intact(&blocks).await;
        if intact < blocks.len() {
            self.environment.reach("inference.damaged-in-ram", "");
            let key = self.chain.blocks[at + intact].key;
            self.cache.drop_damaged(&self.lease.key.tenant, key, Tier::Ram);
            filled.reuse.corrupt_blocks += 1;
            blocks.truncate(intact);
        }
        if blocks.is_empty() {
            return Ok(0);
        }
        self.import(filled, blocks, Tier::Ram).await
    }

    /// How many of the first blocks are what they were. Reading all of a long context takes a
    /// while, so that the halves are looked at side by side.
    async fn intact(&self, blocks: &[Arc<KvBytes>]) -> usize {
        let look = |blocks: &[Arc<KvBytes>]| {
            let blocks = blocks.to_vec();
            let count = move || blocks.iter().take_while(|block| block.is_intact()).count();
            self.environment.compute(count)
        };
        let (front, back) = blocks.split_at(blocks.len() / 2);
        let (in_front, in_back) = join(look(front), look(back)).await;
        match in_front.unwrap_or(0) {
            count if count == front.len() => count + in_back.unwrap_or(0),
            count => count,
        }
    }

    async fn import_loaded(
        &self,
        filled: &mut Filled,
        at: usize,
        loaded: LoadedBlock,
    ) -> Result<bool, Trouble> {
        // It was compared with its checksums when it came.
        let LoadedBlock { block, tier, is_exact } = loaded;
        let tokens = block.tokens;
        let is_in = self.import(filled, vec![Arc::clone(&block)], tier).await? > 0;
        if is_in && !is_exact {
            filled.reuse.inexact_tokens += tokens;
        }
        if is_in && is_exact {
            self.cache.admit(self.lease, self.chain, at, block);
        }
        Ok(is_in)
    }

    /// Brings the numbers of blocks into the session, up to one that does not fit; returns how
    /// many.
    async fn import(
        &self,
        filled: &mut Filled,
        blocks: Vec<Arc<KvBytes>>,
        tier: Tier,
    ) -> Result<usize, Trouble> {
        let mut session = take(&mut filled.session);
        let before = session.tokens();
        let work = move |_: &dyn super::engine::Engine| {
            let mut count = 0;
            let result = blocks.iter().try_for_each(|block| {
                session.import(block)?;
                count += 1;
                Ok(())
            });
            let owed_us = session.owed_us();
            ((session, count, result), owed_us)
        };
        let (session, count, result) = self.device.run(self.until.clone(), work).await?;
        filled.session = session;
        filled.reuse.add(tier, filled.session.tokens().saturating_sub(before));
        metrics::counter!(crate::metrics::ACTIVATION_HITS_TOTAL, "tier" => tier.as_str())
            .increment(count as u64);
        match result {
            Ok(()) => Ok(count),
            Err(error @ (EngineError::Unsuitable { .. } | EngineError::Failed { .. })) => {
                tracing::warn!(%error, "a block could not be brought in and is computed again");
                Ok(count)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Computes a block, or puts it together from segments; if it arrives before that is done, it
    /// is brought in instead.
    async fn compute_or_load(
        &self,
        filled: &mut Filled,
        loading: &mut Loading,
        at: usize,
    ) -> Result<(), Trouble> {
        // Not the last one, which is computed in any case, nor one that is on its way.
        let may_compose = at + 1 < self.chain.blocks.len() && !loading.may_come(at);
        if may_compose && !filled.segments.is_empty() && self.compose(filled, at).await? {
            return Ok(());
        }
        let before = filled.session.tokens();
        let cancel = Cancel::default();
        let start = self.environment.monotonic_us();
        let computing = self.compute(take(&mut filled.session), at, cancel.clone());
        let mut computing = std::pin::pin!(computing);
        let raced = loop {
            if !loading.may_come(at) {
                break None;
            }
            tokio::select! {
                biased;
                arrived = loading.arrival(at) => if let Some(loaded) = arrived {
                    break Some(Ok(loaded));
                },
                done = &mut computing => break Some(Err(done?)),
            }
        };
        let (session, result) = match raced {
            Some(Ok(loaded)) => {
                self.environment.reach("inference.load-won", "");
                cancel.set();
                let (session, result) = computing.await?;
                filled.session = session;
                match result {
                    // Whatever it had computed by then is cut off again.
                    Ok(_) | Err(EngineError::Cancelled | EngineError::OutOfMemory) => {}
                    // The session is of no use any more: nothing may be brought into it.
                    Err(error) => return Err(error.into()),
                }
                filled.session.truncate(before);
                if self.import_loaded(filled, at, loaded).await? {
                    return Ok(());
                }
                self.compute(take(&mut filled.session), at, Cancel::default()).await?
            }
            Some(Err(done)) => done,
            None => computing.await?,
        };
        filled.session = session;
        filled.first = result?.or(filled.first);
        let took_us = self.environment.monotonic_us().saturating_sub(start);
        let tokens = self.chain.blocks[at].span.len();
        self.cache.computed(before, tokens, took_us);
        filled.reuse.computed_tokens += tokens;
        // What is computed after numbers that are not exact is not exact either.
        if filled.reuse.is_exact() && filled.composed_from.is_none() {
            filled.computed.push(at);
        }
        Ok(())
    }

    /// Computes a block, and after the last one chooses a token. Ahead of time, a pass makes way
    /// for somebody who wants an answer, and is begun again when nobody does.
    async fn compute(
        &self,
        mut session: Box<dyn Session>,
        at: usize,
        cancel: Cancel,
    ) -> Result<Computed, Error> {
        let _guard = CancelOnDrop(cancel.clone());
        if self.until.urgency == Urgency::Foreground {
            return self.pass(session, at, Until { cancel, ..self.until.clone() }).await;
        }
        loop {
            let pass = Cancel::default();
            let _guard = CancelOnDrop(pass.clone());
            let until = Until { cancel: pass.clone(), yields: true, ..self.until.clone() };
            let mut computing = pin!(self.pass(session, at, until));
            let computed = tokio::select! {
                biased;
                computed = &mut computing => computed?,
                () = cancel.cancelled() => {
                    pass.set();
                    computing.await?
                }
                () = self.stop.cancelled() => {
                    pass.set();
                    computing.await?
                }
            };
            let is_over = cancel.is_set() || self.stop.is_set();
            if is_over || !matches!(computed.1, Err(EngineError::Cancelled)) {
                return Ok(computed);
            }
            self.environment.reach("inference.made-way", "");
            session = computed.0;
        }
    }

    async fn pass(
        &self,
        mut session: Box<dyn Session>,
        at: usize,
        until: Until,
    ) -> Result<Computed, Error> {
        let (chain, sampling) = (Arc::clone(self.chain), self.sampling);
        let (cancel, is_last) = (until.cancel.clone(), at + 1 == chain.blocks.len());
        let work = move |_: &dyn super::engine::Engine| {
            let mut result = session.prefill(chain.tokens_of(at), &cancel).map(|()| None);
            if let (Ok(first), true, Some((sampling, draw))) = (&mut result, is_last, sampling) {
                match session.sample(sampling, draw) {
                    Ok(token) => *first = Some(token),
                    Err(error) => result = Err(error),
                }
            }
            let owed_us = session.owed_us();
            ((session, result), owed_us)
        };
        self.device.run(until, work).await
    }
}

/// Takes a session out to hand it over; an empty one stands in its place until it comes back.
pub(super) fn take(session: &mut Box<dyn Session>) -> Box<dyn Session> {
    std::mem::replace(session, Box::new(super::engine::NoSession))
}
