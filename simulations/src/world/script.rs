//! Plays the scripts of a plan: one caller each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use memcube_actors::cube::{AddRequest, ChatTurn};
use memcube_schemas::{
    CubeId, MemoryId,
    conversation::{Message, Role},
    memory::MemoryStatus,
};

use super::{
    CallError, Cube, Inner,
    chat::{Said, conversation, instructions},
};
use crate::{
    marker::{marker, marker_of, shared_text, text},
    plan::{Action, Script, Step},
};

/// How often making a cube is tried, half a minute each, before the run counts as broken.
const MAKE_TRIES: usize = 4;

/// An item that a caller knows of.
pub(super) struct Known {
    pub(super) id: MemoryId,
    pub(super) marker: String,
    pub(super) revision: u32,
    pub(super) is_frozen: bool,
}

pub(super) struct Player {
    pub(super) world: Arc<Inner>,
    pub(super) cube: Cube,
    pub(super) client: u32,
    pub(super) tenant: String,
    /// Under which number it says what does not tell whose it is.
    pub(super) voice: Option<u32>,
    pub(super) known: Vec<Known>,
    /// What was said in its conversations.
    pub(super) talks: BTreeMap<u32, Vec<ChatTurn>>,
}

/// Plays all scripts at the same time, until the last one ends.
pub(super) async fn play_all(world: Arc<Inner>) -> anyhow::Result<()> {
    let scripts = world.plan.scripts.clone();
    for script in &scripts {
        // Made before anybody works, so that no script depends on another one's first step.
        let maker = world.client(u32::MAX - 1, &script.tenant)?;
        let mut made = maker.make_cube(&script.cube).await;
        for _ in 1..MAKE_TRIES {
            match made {
                Ok(_) | Err(CallError::Refused(_)) => break,
                // Whether it was made or not: making it again does no harm.
                Err(CallError::Unreachable(_) | CallError::Unknown(_)) => {
                    made = maker.make_cube(&script.cube).await;
                }
            }
        }
        made?;
    }
    let played = scripts.into_iter().enumerate().map(|(number, script)| {
        let world = Arc::clone(&world);
        async move { play(world, u32::try_from(number).unwrap_or(u32::MAX), script).await }
    });
    futures_util::future::try_join_all(played).await.map(|_| ())
}

async fn play(world: Arc<Inner>, client: u32, script: Script) -> anyhow::Result<()> {
    let Script { tenant, cube, voice, steps } = script;
    let cube = world.client(client, &tenant)?.cube(CubeId::new(cube)?);
    let mut player = Player {
        world: Arc::clone(&world),
        cube,
        client,
        tenant,
        voice,
        known: Vec::new(),
        talks: BTreeMap::new(),
    };
    let end_ms = u64::from(world.plan.seconds) * 1_000;
    for step in steps {
        tokio::time::sleep(Duration::from_millis(step.think_ms)).await;
        if world.conditions.now_ms() >= end_ms {
            break;
        }
        player.step(step).await;
    }
    Ok(())
}

impl Player {
    async fn step(&mut self, step: Step) {
        // The operation's number holds for all messages that it causes; no two clients share one.
        let operation = u64::from(self.client) << 24 | step.id;
        match step.action {
            Action::Add { topic, scene } => self.add(operation, step.id, topic, scene).await,
            Action::Search { pick } => {
                let marker = self.picked(pick).map(|known| known.marker.clone());
                let query = marker.unwrap_or_else(|| "anything".to_owned());
                // What a search says is judged by the checkers, here as below.
                let _ = self.cube.search_as(&query, operation).await;
            }
            Action::SearchTenant { pick } => {
                let marker = self.picked(pick).map(|known| known.marker.clone());
                let query = marker.unwrap_or_else(|| "anything".to_owned());
                let _ = self.cube.search_tenant_as(&query, operation).await;
            }
            Action::Get { pick } => {
                if let Some(id) = self.picked(pick).map(|known| known.id) {
                    let _ = self.cube.get_as(id, operation).await;
                }
            }
            Action::Update { pick } => self.update(operation, step.id, pick).await,
            Action::Delete { pick, purge } => {
                if let Some(id) = self.picked(pick).map(|known| known.id) {
                    let _ = self.cube.delete_as(id, purge, operation).await;
                    self.known.retain(|known| known.id != id);
                }
            }
            Action::List => {
                if let Ok(items) = self.cube.list_as(operation).await {
                    let known = items.iter().map(|item| Known {
                        id: item.id,
                        marker: marker_of(&item.text).unwrap_or_default(),
                        revision: item.revision,
                        is_frozen: item.status == MemoryStatus::Frozen,
                    });
                    self.known = known.collect();
                }
            }
            Action::HandOver { to } => {
                // One that fails leaves the cube where it was, or there already.
                let _ = self.cube.hand_over_as(to, operation).await;
            }
            Action::Burst { count } => self.cube.burst(count, operation).await,
            Action::Chat { scene, topic, preamble, recalls, leaves_after } => {
                let question = format!("what about topic{topic}?");
                let said =
                    Said { preamble: instructions(preamble), question, recalls, leaves_after };
                self.chat(operation, step.id, scene, said).await;
            }
            Action::Converse { scene, topic, leaves_after } => {
                let question = format!("what about topic{topic}?");
                let preamble = instructions(scene % 3);
                let said = Said { preamble, question, recalls: true, leaves_after };
                self.converse(step.id, scene, said).await;
            }
            Action::Type { scene, topic } => self.type_on(operation, scene, topic).await,
            Action::Note { scene, topic, what } => {
                self.note(operation, scene, topic, what).await;
            }
            Action::Flood { count } => self.flood(operation, count).await,
            Action::Preload { scene, pick } => self.preload(operation, scene, pick).await,
            Action::Freeze { pick } => self.freeze(operation, pick).await,
            Action::Erase => self.erase(operation).await,
        }
    }

    pub(super) fn picked(&self, pick: u64) -> Option<&Known> {
        let count = self.known.len() as u64;
        let place = usize::try_from(pick.checked_rem(count)?).ok()?;
        self.known.get(place)
    }

    fn text(&self, marker: &str, topic: u32) -> String {
        match self.voice {
            Some(_) => shared_text(marker, topic),
            None => text(&self.tenant, marker, topic),
        }
    }

    async fn add(&mut self, operation: u64, number: u64, topic: u32, scene: u32) {
        let marker = marker(self.voice.unwrap_or(self.client), number);
        let text = self.text(&marker, topic);
        let message = Message {
            role: Role::User,
            speaker: None,
            content: text.clone(),
            chat_time: None,
            message_id: None,
        };
        let request = AddRequest {
            messages: vec![message],
            conversation: conversation(scene),
            ..AddRequest::default()
        };
        if let Ok(id) = self.cube.add_as(request, operation, &text).await {
            self.known.push(Known { id, marker, revision: 1, is_frozen: false });
        }
    }

    async fn update(&mut self, operation: u64, number: u64, pick: u64) {
        let Some(known) = self.picked(pick) else { return };
        let (id, revision) = (known.id, known.revision);
        let marker = marker(self.voice.unwrap_or(self.client), number);
        let text = self.text(&marker, 0);
        // Two of three callers care what they overwrite.
        let expected = (!pick.is_multiple_of(3)).then_some(revision);
        match self.cube.update_as(id, &text, expected, operation).await {
            Ok(item) => {
                self.known.retain(|known| known.id != id);
                let is_frozen = item.status == MemoryStatus::Frozen;
                self.known.push(Known { id, marker, revision: item.revision, is_frozen });
            }
            Err(CallError::Refused(_)) => self.known.retain(|known| known.id != id),
            Err(CallError::Unreachable(_) | CallError::Unknown(_)) => {}
        }
    }
}
