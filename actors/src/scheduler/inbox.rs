//! What waits for a shard of the scheduler: bounded, and kept while its actor is started anew.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use memcube_schemas::{
    ConversationId, TenantId,
    conversation::{ConversationEvent, ConversationEventKind},
    limits::{EVENTS_WAITING_MAX, EVENTS_WAITING_PER_TENANT_MAX},
};

use crate::{
    cube::{CubeKey, PromptSoFar, UsedMemory},
    defects::Defect,
    environment::Environment,
    error::{Error, Result},
};

/// How often one that makes the actor panic is tried.
const TRIES_MAX: u32 = 2;
/// Milliseconds after which a caller whose event found no place should try again.
const RETRY_AFTER_MS: u64 = 250;

/// One conversation of one cube.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SceneKey {
    pub(crate) cube: CubeKey,
    pub(crate) conversation: ConversationId,
}

/// A turn that this node's model has answered.
#[derive(Debug, Clone)]
pub(crate) struct AnsweredTurn {
    /// What the next prompt begins with: the last two turns are the message and its reply.
    pub(crate) prompt: PromptSoFar,
    /// The memories in the prompt.
    pub(crate) used: Vec<UsedMemory>,
}

/// Something that a shard is told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// Something happened in a conversation.
    Event(ConversationEvent),
    /// A model begins to answer a turn: what is computed ahead now comes too late.
    Begins,
    /// It has answered.
    Answered(Box<AnsweredTurn>),
    /// The answer broke off, or is not kept.
    BrokeOff,
    /// Something was remembered of a conversation; of no interest unless that is followed.
    Remembered(ConversationEvent),
}

/// What a shard is told, and of which conversation.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) scene: SceneKey,
    pub(crate) told: Told,
}

impl Input {
    fn typed(&self) -> Option<&ConversationEvent> {
        match &self.told {
            Told::Event(event) => {
                matches!(event.kind, ConversationEventKind::Typing { .. }).then_some(event)
            }
            Told::Begins | Told::Answered(_) | Told::BrokeOff | Told::Remembered(_) => None,
        }
    }
}

/// How much waits in the shards of a node, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    all: AtomicUsize,
    tenants: Mutex<BTreeMap<TenantId, usize>>,
}

impl Waiting {
    /// What waits in all shards.
    pub(crate) fn depth(&self) -> usize {
        self.all.load(Ordering::Acquire)
    }

    /// What waits of the tenant of which most waits.
    pub(crate) fn depth_of_busiest(&self) -> usize {
        self.tenants().values().copied().max().unwrap_or(0)
    }

    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantId, usize>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_place(&self, tenant: &TenantId, environment: &Environment) -> Result<()> {
        let mut tenants = self.tenants();
        let of_tenant = tenants.entry(tenant.clone()).or_default();
        let is_full = *of_tenant >= EVENTS_WAITING_PER_TENANT_MAX
            || self.all.load(Ordering::Acquire) >= EVENTS_WAITING_MAX;
        if is_full && !environment.plants(Defect::UnboundedEvents) {
            if *of_tenant == 0 {
                tenants.remove(tenant);
            }
            environment.reach("scheduler.event-refused", tenant.as_str());
            return Err(Error::overloaded("the scheduler's queue", RETRY_AFTER_MS));
        }
        *of_tenant += 1;
        self.all.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn give_place_back(&self, tenant: &TenantId) {
        let mut tenants = self.tenants();
        if let Some(of_tenant) = tenants.get_mut(tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                tenants.remove(tenant);
            }
            self.all.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    inputs: VecDeque<Input>,
    /// What the actor is dealing with, and how often it has begun to.
    in_hand: Option<(Input, u32)>,
}

/// What waits for one shard.
#[derive(Debug)]
pub(crate) struct Inbox {
    waiting: std::sync::Arc<Waiting>,
    environment: Environment,
    queue: Mutex<Queue>,
}

impl Inbox {
    pub(crate) fn new(waiting: std::sync::Arc<Waiting>, environment: Environment) -> Self {
        Self { waiting, environment, queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something behind what waits. What is typed replaces what was typed before, if that
    /// still waits: nobody needs both.
    ///
    /// # Errors
    /// `Overloaded` when too much of the tenant, or of all, waits.
    pub(crate) fn push(&self, input: Input) -> Result<()> {
        let mut queue = self.queue();
        if input.typed().is_some() {
            let of_scene = |waiting: &&mut Input| waiting.scene == input.scene;
            let last = queue.inputs.iter_mut().rev().find(of_scene);
            if let Some(last) = last.filter(|last| last.typed().is_some()) {
                let (former, later) = (last.typed(), input.typed());
                // Events may overtake each other.
                if former.map(|event| event.at_ms) <= later.map(|event| event.at_ms) {
                    *last = input;
                }
                self.environment.reach("scheduler.typing-replaced", "");
                return Ok(());
            }
        }
        self.waiting.take_place(&input.scene.cube.tenant, &self.environment)?;
        queue.inputs.push_back(input);
        Ok(())
    }

    /// What is next. It stays in hand until it is done, so that an actor that was started anew
    /// finds it again; what makes it panic again and again is put aside.
    pub(crate) fn next(&self) -> Option<Input> {
        let mut queue = self.queue();
        if let Some((input, tries)) = queue.in_hand.take() {
            if tries < TRIES_MAX {
                queue.in_hand = Some((input.clone(), tries + 1));
                return Some(input);
            }
            tracing::error!(
                cube = %input.scene.cube.cube, conversation = %input.scene.conversation,
                "the scheduler gives an event up that makes it panic"
            );
            self.waiting.give_place_back(&input.scene.cube.tenant);
        }
        let input = queue.inputs.pop_front()?;
        queue.in_hand = Some((input.clone(), 1));
        Some(input)
    }

    /// What was in hand is done.
    pub(crate) fn done(&self) {
        if let Some((input, _)) = self.queue().in_hand.take() {
            self.waiting.give_place_back(&input.scene.cube.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memcube_schemas::CubeId;

    use super::*;

    fn input(tenant: &str, conversation: &str, at_ms: i64, typed: Option<&str>) -> Input {
        let tenant = TenantId::new(tenant).expect("valid");
        let cube = CubeKey { tenant, cube: CubeId::new("c").expect("valid") };
        let conversation = ConversationId::new(conversation).expect("valid");
        let kind = match typed {
            Some(text) => ConversationEventKind::Typing { text: text.to_owned() },
            None => ConversationEventKind::Paused,
        };
        let event = ConversationEvent { conversation: conversation.clone(), id: None, at_ms, kind };
        Input { scene: SceneKey { cube, conversation }, told: Told::Event(event) }
    }

    fn inbox() -> (Inbox, Arc<Waiting>) {
        let waiting = Arc::new(Waiting::default());
        (Inbox::new(Arc::clone(&waiting), Environment::scripted(1)), waiting)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_typed_replaces_what_was_typed() {
        let (inbox, waiting) = inbox();
        for (at_ms, text) in [(1, "w"), (3, "what"), (2, "wh")] {
            inbox.push(input("acme", "a", at_ms, Some(text))).expect("there is room");
            inbox.push(input("acme", "b", at_ms, Some(text))).expect("there is room");
        }
        inbox.push(input("acme", "a", 4, None)).expect("there is room");
        inbox.push(input("acme", "a", 5, Some("where"))).expect("there is room");
        assert_eq!(waiting.depth(), 4);
        let mut texts = Vec::new();
        while let Some(next) = inbox.next() {
            if let Some(ConversationEventKind::Typing { text }) =
                next.typed().map(|event| &event.kind)
            {
                texts.push((next.scene.conversation.as_str().to_owned(), text.clone()));
            }
            inbox.done();
        }
        let expected = [("a", "what"), ("b", "what"), ("a", "where")];
        assert_eq!(texts, expected.map(|(scene, text)| (scene.to_owned(), text.to_owned())));
        assert_eq!(waiting.depth(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenant_never_takes_all_places() {
        let (inbox, waiting) = inbox();
        let push = |tenant: &str| inbox.push(input(tenant, "a", 1, None));
        for _ in 0..EVENTS_WAITING_PER_TENANT_MAX {
            push("noisy").expect("there is room");
        }
        let refused = push("noisy").expect_err("there is no room");
        assert_eq!(refused.kind(), crate::ErrorKind::Overloaded);
        assert_eq!(refused.retry_after(), Some(RETRY_AFTER_MS));
        push("quiet").expect("there is room");
        for number in 0..EVENTS_WAITING_MAX {
            let _ = push(&format!("t{}", number % 100));
        }
        assert_eq!(waiting.depth(), EVENTS_WAITING_MAX);
        assert!(push("another").is_err());
        inbox.next();
        inbox.done();
        push("another").expect("there is room");
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_an_actor_panic_is_put_aside() {
        let (inbox, waiting) = inbox();
        inbox.push(input("acme", "bad", 1, None)).expect("there is room");
        inbox.push(input("acme", "good", 1, None)).expect("there is room");
        let names: Vec<String> = std::iter::from_fn(|| inbox.next())
            .map(|input| input.scene.conversation.as_str().to_owned())
            .take(3)
            .collect();
        assert_eq!(names, ["bad", "bad", "good"]);
        inbox.done();
        assert_eq!(waiting.depth(), 0);
    }
}
