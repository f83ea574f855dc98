//! Whose turn it is to ask a model elsewhere.
//!
//! Receives: requests for a turn, and the ends of turns.
//! Sends: turns to whoever asked, or why there is none.
//! Owns: the queues and the budget of tokens. So many requests are with the server at a time;
//! whoever waits for an answer goes first. What is sent ahead of an answer goes one at a time, when
//! nobody waits, and leaves half of the budget to answers.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use memcube_schemas::{
    TenantId,
    limits::{INFERENCE_REQUESTS_MAX, REMOTE_REQUESTS_MAX},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::{RemoteSettings, budget::Budget};
use crate::{
    cube::seconds,
    directory::QueueDepth,
    environment::Environment,
    error::{Error, Result},
    inference::Urgency,
    metrics as names,
};

/// Somebody wants to ask.
pub(super) struct Ask {
    pub(super) tenant: TenantId,
    pub(super) urgency: Urgency,
    /// Tokens that prompt and reply will take, as far as that is known.
    pub(super) tokens: u64,
    /// On this node's monotonic clock.
    pub(super) deadline_us: u64,
}

pub(super) struct Waiting {
    ask: Ask,
    since_us: u64,
    reply: oneshot::Sender<Result<Turn>>,
}

/// What a turn took.
pub(super) struct Done {
    tenant: TenantId,
    urgency: Urgency,
    /// Tokens to give back; negative if it took more than was estimated.
    unspent: i64,
}

pub(super) enum TurnMessage {
    Ask(Box<Waiting>),
    Done(Done),
    /// The budget may suffice by now.
    Look,
}

/// The right to have one request with the server, until it is dropped.
pub(super) struct Turn {
    actor: ActorRef<TurnMessage>,
    tenant: TenantId,
    urgency: Urgency,
    estimated: u64,
    spent: Option<u64>,
}

impl Turn {
    /// So many tokens were spent. Without this, what was estimated counts.
    pub(super) const fn settle(&mut self, tokens: u64) {
        self.spent = Some(tokens);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let spent = self.spent.unwrap_or(self.estimated);
        let unspent = i64::try_from(i128::from(self.estimated) - i128::from(spent));
        let done = Done {
            tenant: self.tenant.clone(),
            urgency: self.urgency,
            unspent: unspent.unwrap_or(0),
        };
        // If the actor has ended, nobody counts any more.
        let _ = self.actor.cast(TurnMessage::Done(done));
    }
}

/// The front door of the queues. Cheap to clone.
#[derive(Clone)]
pub(super) struct TurnsHandle {
    actor: ActorRef<TurnMessage>,
    waiting: Arc<AtomicUsize>,
}

impl TurnsHandle {
    pub(super) async fn spawn(settings: RemoteSettings, environment: Environment) -> Result<Self> {
        let (actor, _) = TurnsActor::spawn(None, TurnsActor, (settings, environment))
            .await
            .map_err(|error| Error::internal(format!("the queue did not start: {error}")))?;
        Ok(Self { actor, waiting: Arc::default() })
    }

    /// Waits for a turn. Whoever drops this gives its place up.
    ///
    /// # Errors
    /// `Overloaded` when the deadline comes first, `Unavailable` when the actor has ended.
    pub(super) async fn take(&self, ask: Ask, since_us: u64) -> Result<Turn> {
        let gone = || Error::unavailable("the queue of the language model has ended; see the log");
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _place = Place(Arc::clone(&self.waiting));
        let wait = Duration::from_micros(ask.deadline_us.saturating_sub(since_us));
        let (reply, answer) = oneshot::channel();
        let message = TurnMessage::Ask(Box::new(Waiting { ask, since_us, reply }));
        self.actor.cast(message).map_err(|_| gone())?;
        match tokio::time::timeout(wait, answer).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(late(1_000)),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(
            self.actor.get_status(),
            ractor::ActorStatus::Starting | ractor::ActorStatus::Running
        )
    }

    pub(super) fn queue(&self) -> QueueDepth {
        let depth = self.waiting.load(Ordering::Acquire);
        QueueDepth { name: "turns with the language model", depth, bound: INFERENCE_REQUESTS_MAX }
    }

    pub(super) fn kill(&self) {
        self.actor.kill();
    }

    pub(super) async fn stop(&self) {
        // One that is gone already has nothing left to end.
        let _ = self.actor.stop_and_wait(None, None).await;
    }
}

/// Gives a place in the queue back, also when whoever waits is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn late(retry_after_ms: u64) -> Error {
    Error::overloaded("the language model's queue", retry_after_ms)
        .with_note("the request's deadline would have passed first")
}

struct TurnsActor;

struct Turns {
    environment: Environment,
    budget: Budget,
    answers: VecDeque<Waiting>,
    preloads: VecDeque<Waiting>,
    asking: usize,
    preloading: usize,
    /// When it looks again without being asked.
    looks_at_us: Option<u64>,
}

impl Actor for TurnsActor {
    type Msg = TurnMessage;
    type State = Turns;
    type Arguments = (RemoteSettings, Environment);

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (settings, environment): Self::Arguments,
    ) -> std::result::Result<Turns, ActorProcessingErr> {
        let RemoteSettings { tokens_per_minute, tenant_tokens_per_minute, .. } = settings;
        let now_us = environment.monotonic_us();
        Ok(Turns {
            budget: Budget::new(tokens_per_minute, tenant_tokens_per_minute, now_us),
            environment,
            answers: VecDeque::new(),
            preloads: VecDeque::new(),
            asking: 0,
            preloading: 0,
            looks_at_us: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: TurnMessage,
        turns: &mut Turns,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            TurnMessage::Ask(waiting) => match waiting.ask.urgency {
                Urgency::Foreground => turns.answers.push_back(*waiting),
                Urgency::Preload => turns.preloads.push_back(*waiting),
            },
            TurnMessage::Done(Done { tenant, urgency, unspent }) => {
                turns.asking -= 1;
                turns.preloading -= usize::from(urgency == Urgency::Preload);
                let now_us = turns.environment.monotonic_us();
                turns.budget.spend(&tenant, -unspent, now_us);
            }
            TurnMessage::Look => turns.looks_at_us = None,
        }
        turns.give(&myself);
        Ok(())
    }
}

impl Turns {
    /// Gives turns to whoever may have one now.
    fn give(&mut self, myself: &ActorRef<TurnMessage>) {
        let now_us = self.environment.monotonic_us();
        for queue in [&mut self.answers, &mut self.preloads] {
            queue.retain(|waiting| !waiting.reply.is_closed());
        }
        let mut waits_us = None;
        while self.asking < REMOTE_REQUESTS_MAX {
            let (next, wait_us) = self.next(now_us);
            let Some(waiting) = next else {
                waits_us = wait_us;
                break;
            };
            self.grant(myself, waiting, now_us);
        }
        if let Some(wait_us) = waits_us {
            self.look_after(myself, now_us.saturating_add(wait_us), now_us);
        }
    }

    /// The first that has its budget, or else how long it takes until one has it. One tenant
    /// without a budget does not hold up the others.
    fn next(&mut self, now_us: u64) -> (Option<Waiting>, Option<u64>) {
        let is_quiet = self.answers.is_empty() && self.preloading == 0;
        let (queue, is_urgent) = match is_quiet {
            true => (&mut self.preloads, false),
            false => (&mut self.answers, true),
        };
        let mut soonest_us: Option<u64> = None;
        let mut at = 0;
        while let Some(waiting) = queue.get(at) {
            let Ask { tenant, tokens, deadline_us, .. } = &waiting.ask;
            let wait_us = self.budget.wait_us(tenant, *tokens, is_urgent, now_us);
            let is_late = now_us.saturating_add(wait_us) >= *deadline_us;
            if wait_us > 0 && !is_late {
                soonest_us = Some(soonest_us.map_or(wait_us, |soonest| soonest.min(wait_us)));
                at += 1;
                continue;
            }
            let Some(waiting) = queue.remove(at) else { break };
            if !is_late {
                return (Some(waiting), None);
            }
            let _ = waiting.reply.send(Err(late(wait_us.div_ceil(1_000).max(1_000))));
        }
        (None, soonest_us)
    }

    fn grant(&mut self, myself: &ActorRef<TurnMessage>, waiting: Waiting, now_us: u64) {
        let Waiting { ask: Ask { tenant, urgency, tokens, .. }, since_us, reply } = waiting;
        self.asking += 1;
        self.preloading += usize::from(urgency == Urgency::Preload);
        self.budget.spend(&tenant, i64::try_from(tokens).unwrap_or(i64::MAX), now_us);
        metrics::histogram!(names::REMOTE_WAIT_SECONDS, "urgency" => urgency.as_str())
            .record(seconds(now_us.saturating_sub(since_us)));
        let actor = myself.clone();
        let turn = Turn { actor, tenant, urgency, estimated: tokens, spent: None };
        if let Err(Ok(mut turn)) = reply.send(Ok(turn)) {
            // Whoever asked has gone. Dropped, it gives everything back.
            turn.settle(0);
        }
    }

    fn look_after(&mut self, myself: &ActorRef<TurnMessage>, at_us: u64, now_us: u64) {
        if self.looks_at_us.is_some_and(|looks_at_us| looks_at_us <= at_us) {
            return;
        }
        self.looks_at_us = Some(at_us);
        let wait = Duration::from_micros(at_us.saturating_sub(now_us));
        drop(myself.send_after(wait, || TurnMessage::Look));
    }
}
