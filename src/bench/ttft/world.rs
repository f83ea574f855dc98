//! Nodes that differ in where activations may lie, over one copy of the weights.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use memcube_actors::{
    Error, Result, TenantContext,
    cube::{AddRequest, ChatRequest, CubeHandle, PreloadRequest},
    inference::{
        Engine, Finished, InferenceHandle, InferenceParts, Token,
        activation_cache::{CacheSettings, Tier},
    },
};
use memcube_schemas::{ConversationId, CubeId, MemoryId, TenantId};
use object_store::{
    ObjectStore,
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};

use super::{Samples, What, kernel::Kernel, peer::Peer, rounded, text};
use crate::{
    Node,
    bench::words::Words,
    inference::candle::engine::CandleEngine,
    settings::{EmbedderKind, Settings, StoreKind},
};

/// What stands for the object store: in memory, with the delays of one in the same region.
pub(super) const OBJECT_STORE: &str = "in memory, 15 ms to the first byte, then 100 MB/s a request";
const FIRST_BYTE: Duration = Duration::from_millis(15);
const EACH_BYTE: Duration = Duration::from_nanos(10);
const TENANT: &str = "bench";
const SEED: u64 = 20_261_126;
/// Enough for a direct answer on a slow machine.
const MS_MAX: u64 = 1_800_000;
/// Room for the largest context and all turns that are measured on it.
const RAM_BYTES: u64 = 3 << 30;

/// Nodes over one copy of the weights.
pub(super) struct World {
    /// Nothing is cached.
    bare: Node,
    /// Blocks lie in a local directory.
    local: Node,
    /// Blocks lie in an object store.
    remote: Node,
    engine: Arc<CandleEngine>,
    _scratch: Scratch,
}

/// A directory of its own, which is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("memcube-bench-ttft-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the system's directory for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn node(dir: &Path, objects: Option<Arc<dyn ObjectStore>>, blobs: bool) -> Result<Node> {
    let mut settings = Settings::default();
    settings.store.kind = StoreKind::Embedded;
    settings.store.data_dir = dir.to_owned();
    settings.embedder.kind = EmbedderKind::None;
    if !blobs {
        settings.blobs.url = Some("none".to_owned());
    }
    let builder = Node::builder().with_settings(settings);
    let builder = match objects {
        Some(objects) => builder.with_objects(objects),
        None => builder,
    };
    Box::pin(builder.start()).await
}

fn object_store() -> Arc<dyn ObjectStore> {
    let config = ThrottleConfig {
        wait_get_per_call: FIRST_BYTE,
        wait_get_per_byte: EACH_BYTE,
        ..ThrottleConfig::default()
    };
    Arc::new(ThrottledStore::new(InMemory::new(), config))
}

impl World {
    pub(super) async fn start(engine: &CandleEngine) -> Result<Self> {
        let scratch = Scratch::new();
        let dir = &scratch.0;
        let engine = Arc::new(engine.clone());
        let bare = node(&dir.join("bare"), None, false).await?;
        let local = node(&dir.join("local"), None, true).await?;
        let remote = node(&dir.join("remote"), Some(object_store()), true).await?;
        let room = |bytes| CacheSettings {
            ram_bytes_max: bytes,
            tenant_ram_bytes_max: bytes,
            device_bytes_max: bytes,
            tenant_device_bytes_max: bytes,
            cold_in_8_bits: false,
        };
        for (node, bytes) in [(&bare, 0), (&local, RAM_BYTES), (&remote, RAM_BYTES)] {
            let model: Arc<dyn Engine> = Arc::<CandleEngine>::clone(&engine);
            let parts = InferenceParts { cache: room(bytes), ..InferenceParts::new(model) };
            let objects_are_local = std::ptr::eq(node, &local);
            node.cubes().serve_model(InferenceParts { objects_are_local, ..parts }).await?;
        }
        Ok(Self { bare, local, remote, engine, _scratch: scratch })
    }

    pub(super) async fn shut_down(&self) {
        for node in [&self.bare, &self.local, &self.remote] {
            node.shut_down().await;
        }
    }

    /// Gives every node a cube whose memories make a context of so many tokens, and computes it
    /// ahead.
    pub(super) async fn build<'a>(
        &self,
        kernel: &'a Kernel,
        tokens: usize,
        peer: Option<&mut Peer>,
    ) -> Result<Bench<'a>> {
        let words = Words::new(SEED + tokens as u64);
        let memories = text::memories(&*self.engine, &words, tokens)?;
        let bare = Place::build(&self.bare, &memories, tokens).await?;
        let local = Place::build(&self.local, &memories, tokens).await?;
        let remote = Place::build(&self.remote, &memories, tokens).await?;
        let engine = Arc::clone(&self.engine);
        let alone = kernel.behind(tokens)?;
        if let Some(peer) = peer {
            peer.build(tokens)?;
        }
        let bench = Bench { kernel, bare, local, remote, alone, engine, words, tokens };
        // What loading takes is known from then on, as on a node that runs for a while.
        for what in [What::Disk, What::Objects] {
            bench.reply(what, text::TOKENS_MIN).await?;
        }
        Ok(bench)
    }
}

/// A cube on one of the nodes.
struct Place {
    cube: CubeHandle,
    inference: InferenceHandle,
    tenant: TenantId,
    conversation: ConversationId,
    build_s: f64,
}

impl Place {
    async fn build(node: &Node, memories: &[String], tokens: usize) -> Result<Self> {
        let tenant = TenantId::new(TENANT)?;
        let context = TenantContext::authenticated(tenant.clone(), TENANT);
        let cube = node.cubes().ensure(&context, CubeId::new(format!("of-{tokens}"))?).await?;
        let request = AddRequest { facts: memories.to_vec(), ..AddRequest::default() };
        let added = cube.add(request).await?;
        let memories: Vec<MemoryId> = added.memories.iter().map(|memory| memory.id).collect();
        let conversation = ConversationId::new("measured")?;
        let request = PreloadRequest {
            conversation: conversation.clone(),
            preamble: String::new(),
            turns: Vec::new(),
            memories,
            ms_max: MS_MAX,
        };
        let start = Instant::now();
        let outcome = cube.preload(request).await?;
        let build_s = start.elapsed().as_secs_f64();
        if outcome.tokens != tokens {
            let message = format!("the context has {} tokens, not {tokens}", outcome.tokens);
            return Err(Error::internal(message));
        }
        let inference = node.cubes().inference().cloned();
        let inference = inference.ok_or_else(|| Error::internal("the node has no model"))?;
        Ok(Self { cube, inference, tenant, conversation, build_s })
    }

    /// Lets go of the context as far as a reply is not to find it.
    fn forget(&self, what: What) {
        match what {
            What::Ram => drop(self.inference.cache().free_device()),
            What::Disk | What::Objects => {
                self.inference.cache().forget_cube(&self.tenant, self.cube.id(), &[]);
            }
            What::Direct | What::Device | What::Alone | What::PeerDirect | What::PeerRestored => {}
        }
    }

    /// Seconds from the request to the first token, and how it ended.
    async fn reply(&self, query: String) -> Result<(f64, Finished)> {
        let request = ChatRequest {
            recall: None,
            tokens_max: 1,
            ms_max: MS_MAX,
            ..ChatRequest::new(self.conversation.clone(), query)
        };
        let start = Instant::now();
        let mut stream = self.cube.chat(request).await?;
        // From here on the request is the model's, which says when it had the first token: one
        // that is no text makes no event of its own.
        let before_s = start.elapsed().as_secs_f64();
        let (_, finished) = stream.collect().await?;
        if let Some(kept) = stream.kept().await {
            kept?;
        }
        Ok((before_s + finished.timings.first_token_us as f64 / 1e6, finished))
    }
}

/// One context, ready to be asked on top of.
pub(super) struct Bench<'a> {
    kernel: &'a Kernel,
    bare: Place,
    local: Place,
    remote: Place,
    alone: super::kernel::Behind<'a>,
    engine: Arc<CandleEngine>,
    words: Words,
    tokens: usize,
}

impl Bench<'_> {
    /// Seconds to compute the context ahead and to keep it on the local disk.
    pub(super) const fn build_s(&self) -> f64 {
        self.local.build_s
    }

    /// Measures everything in turns: short times several times, long ones once.
    pub(super) async fn round(
        &mut self,
        query_tokens: usize,
        short_turns: usize,
        mut peer: Option<&mut Peer>,
        samples: &mut Samples,
    ) -> Result<()> {
        for _ in 0..short_turns {
            samples.add(What::Alone, rounded(self.alone.prefill(query_tokens)?));
            for what in [What::Device, What::Ram, What::Disk, What::Objects] {
                samples.add(what, rounded(self.reply(what, query_tokens).await?));
            }
            if let Some(peer) = peer.as_deref_mut() {
                self.kernel.rest();
                samples.add(What::PeerRestored, rounded(peer.restored(query_tokens)?));
            }
        }
        samples.add(What::Direct, rounded(self.reply(What::Direct, query_tokens).await?));
        if let Some(peer) = peer {
            self.kernel.rest();
            samples.add(What::PeerDirect, rounded(peer.direct(query_tokens)?));
        }
        Ok(())
    }

    /// Seconds to the first token, and a look at where the context came from.
    async fn reply(&self, what: What, query_tokens: usize) -> Result<f64> {
        let place = match what {
            What::Objects => &self.remote,
            What::Direct => &self.bare,
            What::Device
            | What::Ram
            | What::Disk
            | What::Alone
            | What::PeerDirect
            | What::PeerRestored => &self.local,
        };
        let query = text::query(&*self.engine, &self.words, query_tokens)?;
        place.forget(what);
        self.kernel.rest();
        let (seconds, finished) = place.reply(query).await?;
        let found: BTreeMap<Tier, usize> = finished.reuse.reused_tokens;
        let expected = tier(what).map(|tier| (tier, self.tokens));
        if what != What::Objects && what != What::Disk && found != expected.into_iter().collect() {
            let message = format!("{}: the context came from {found:?}", what.as_str());
            return Err(Error::internal(message));
        }
        if finished.reuse.corrupt_blocks > 0 {
            return Err(Error::internal("a block was damaged"));
        }
        Ok(seconds)
    }
}

const fn tier(what: What) -> Option<Tier> {
    match what {
        What::Device => Some(Tier::Device),
        What::Ram => Some(Tier::Ram),
        What::Disk => Some(Tier::Disk),
        What::Objects => Some(Tier::Objects),
        What::Direct | What::Alone | What::PeerDirect | What::PeerRestored => None,
    }
}

/// Tokens that no model has a reason to like.
pub(super) fn tokens(count: usize, vocabulary: usize) -> Vec<Token> {
    (0..count).map(|at| (at * 7_919 % vocabulary) as Token).collect()
}
