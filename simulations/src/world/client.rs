//! Callers: they reach nodes over the network, and retry on other nodes.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use memcube_actors::{Cubes, Error, ErrorKind, TenantContext};
use memcube_schemas::CubeId;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::{
    evidence::Violation,
    network::{Passage, node_name},
    world::{Cube, Inner},
};

/// How long a caller waits for an answer before it takes the call for lost.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it goes on trying.
const DEADLINE: Duration = Duration::from_secs(30);
/// The first pause between two tries, and the longest.
const PAUSE_MS: (u64, u64) = (40, 1_000);
/// Room for the tries of one call in the ids of its messages.
pub(super) const TRIES_BITS: u32 = 10;

/// Why a call did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// It was refused, and had no effect.
    Refused(Error),
    /// Nobody was reached in time; it had no effect.
    Unreachable(String),
    /// Nobody knows whether it happened.
    Unknown(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Unreachable(reason) => write!(f, "nobody was reached: {reason}"),
            Self::Unknown(reason) => write!(f, "the outcome is unknown: {reason}"),
        }
    }
}

impl std::error::Error for CallError {}

/// What became of one try.
pub(super) enum Attempt<T> {
    Answer(Result<T, Error>),
    /// Nothing happened, for certain.
    NoEffect(String),
    /// Nobody knows.
    Silence(String),
}

/// A program outside the cluster that calls it on behalf of a tenant. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(super) world: Arc<Inner>,
    pub(super) number: u32,
    pub(super) context: TenantContext,
}

impl Client {
    pub(crate) const fn new(world: Arc<Inner>, number: u32, context: TenantContext) -> Self {
        Self { world, number, context }
    }

    /// Makes a cube unless it is there.
    ///
    /// # Errors
    /// When its name is not valid, or no node could be reached.
    pub async fn make_cube(&self, id: &str) -> Result<Cube, CallError> {
        let id = CubeId::new(id).map_err(|error| CallError::Refused(error.into()))?;
        let operation = self.world.next_operation();
        self.retry(operation, true, |cubes, context| {
            let id = id.clone();
            Box::pin(async move { cubes.ensure(&context, id).await.map(|_| ()) })
        })
        .await?;
        Ok(self.cube(id))
    }

    /// A cube that is there already.
    #[must_use]
    pub fn cube(&self, id: CubeId) -> Cube {
        self.world.know_cube(self.context.tenant(), &id);
        Cube { client: self.clone(), id }
    }

    /// Tries on one node after the other until there is an answer, or it is too late.
    pub(super) async fn retry<T: Send + 'static>(
        &self,
        operation: u64,
        may_be_repeated: bool,
        work: impl Fn(Cubes, TenantContext) -> BoxFuture<'static, Result<T, Error>>,
    ) -> Result<T, CallError> {
        let start = Instant::now();
        let mut in_doubt = None;
        let mut last = String::new();
        for tries in 0_u64.. {
            let count = u64::from(self.world.plan.nodes.max(1));
            let node = u32::try_from((u64::from(self.number) + tries) % count).unwrap_or(0);
            let id = operation << TRIES_BITS | tries;
            match self.attempt(node, id, &work).await {
                Attempt::Answer(Ok(value)) => {
                    if in_doubt.is_some() {
                        self.world.reach("client.retry-answered");
                    }
                    return Ok(value);
                }
                Attempt::Answer(Err(error)) => match self.judge(&error) {
                    Judged::Final if in_doubt.is_none() => return Err(CallError::Refused(error)),
                    Judged::Final => in_doubt = Some(error.to_string()),
                    Judged::NoEffect => last = error.to_string(),
                    Judged::InDoubt => in_doubt = Some(error.to_string()),
                },
                Attempt::NoEffect(reason) => last = reason,
                Attempt::Silence(reason) => in_doubt = Some(reason),
            }
            let is_late = start.elapsed() > DEADLINE;
            if let Some(reason) = in_doubt.take_if(|_| !may_be_repeated || is_late) {
                self.world.reach("client.outcome-unknown");
                return Err(CallError::Unknown(reason));
            }
            if is_late {
                self.world.reach("client.all-attempts-failed");
                return Err(CallError::Unreachable(last));
            }
            let (first, longest) = PAUSE_MS;
            sleep(Duration::from_millis(longest.min(first << tries.min(6)))).await;
        }
        Err(CallError::Unreachable(last))
    }

    /// One try on one node.
    pub(super) async fn attempt<T: Send + 'static>(
        &self,
        node: u32,
        id: u64,
        work: &impl Fn(Cubes, TenantContext) -> BoxFuture<'static, Result<T, Error>>,
    ) -> Attempt<T> {
        let network = &self.world.network;
        match network.to_node(self.number, node, id).await {
            Passage::Arrived => {}
            Passage::Refused => {
                return Attempt::NoEffect(format!("{} takes no connection", node_name(node)));
            }
            Passage::Lost => {
                sleep(PATIENCE).await;
                return Attempt::Silence("the request was lost".to_owned());
            }
        }
        let Some(running) = self.world.running(node) else {
            return Attempt::NoEffect(format!("{} is starting", node_name(node)));
        };
        let (sender, receiver) = oneshot::channel();
        let answer = work(running.cubes.clone(), self.context.clone());
        let task = Box::pin(async move {
            // Whoever asked may have given up.
            let _ = sender.send(answer.await);
        });
        memcube_actors::environment::Spawner::spawn(&*running.spawner, task);
        let answer = match timeout(PATIENCE, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Attempt::Silence("the connection broke".to_owned()),
            Err(_) => return Attempt::Silence("no answer in time".to_owned()),
        };
        match network.from_node(self.number, node, running.life, id).await {
            Passage::Arrived => Attempt::Answer(answer),
            Passage::Lost | Passage::Refused => {
                sleep(PATIENCE / 2).await;
                Attempt::Silence("the answer was lost".to_owned())
            }
        }
    }

    /// What an error says about the call.
    pub(super) fn judge(&self, error: &Error) -> Judged {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Gone => {
                Judged::Final
            }
            ErrorKind::Overloaded => {
                self.world.reach("cube.overloaded");
                Judged::NoEffect
            }
            ErrorKind::Fenced => Judged::NoEffect,
            ErrorKind::Unavailable => Judged::InDoubt,
            ErrorKind::Corrupt
                if error.message().contains("is in quarantine: it failed")
                    || error.message().contains("hydrating panicked") =>
            {
                self.world.reach("cube.quarantined");
                Judged::NoEffect
            }
            // No fault that is injected here damages anything, and a defect is never an answer.
            ErrorKind::Corrupt | ErrorKind::Internal => {
                self.world.accuse(Violation::new("errors", error.to_string()));
                Judged::InDoubt
            }
        }
    }
}

pub(super) enum Judged {
    Final,
    NoEffect,
    InDoubt,
}
