//! Plays the scripts of a plan: one caller each.

use std::{sync::Arc, time::Duration};

use memcube_actors::cube::AddRequest;
use memcube_schemas::{
    ConversationId, CubeId, MemoryId,
    conversation::{Message, Role},
};

use super::{CallError, Cube, Inner};
use crate::{
    marker::{marker, marker_of, text},
    plan::{Action, Script, Step},
};

/// How often making a cube is tried, half a minute each, before the run counts as broken.
const MAKE_TRIES: usize = 4;

/// An item that a caller knows of.
struct Known {
    id: MemoryId,
    marker: String,
    revision: u32,
}

struct Player {
    cube: Cube,
    client: u32,
    tenant: String,
    known: Vec<Known>,
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
    let Script { tenant, cube, steps } = script;
    let cube = world.client(client, &tenant)?.cube(CubeId::new(cube)?);
    let mut player = Player { cube, client, tenant, known: Vec::new() };
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
                    });
                    self.known = known.collect();
                }
            }
            Action::HandOver { to } => {
                // One that fails leaves the cube where it was, or there already.
                let _ = self.cube.hand_over_as(to, operation).await;
            }
            Action::Burst { count } => self.cube.burst(count, operation).await,
        }
    }

    fn picked(&self, pick: u64) -> Option<&Known> {
        let count = self.known.len() as u64;
        let place = usize::try_from(pick.checked_rem(count)?).ok()?;
        self.known.get(place)
    }

    async fn add(&mut self, operation: u64, number: u64, topic: u32, scene: u32) {
        let marker = marker(self.client, number);
        let text = text(&self.tenant, &marker, topic);
        let message = Message {
            role: Role::User,
            speaker: None,
            content: text.clone(),
            chat_time: None,
            message_id: None,
        };
        let request = AddRequest {
            messages: vec![message],
            conversation: ConversationId::new(format!("scene {scene}")).ok(),
            ..AddRequest::default()
        };
        if let Ok(id) = self.cube.add_as(request, operation, &text).await {
            self.known.push(Known { id, marker, revision: 1 });
        }
    }

    async fn update(&mut self, operation: u64, number: u64, pick: u64) {
        let Some(known) = self.picked(pick) else { return };
        let (id, revision) = (known.id, known.revision);
        let marker = marker(self.client, number);
        let text = text(&self.tenant, &marker, 0);
        // Two of three callers care what they overwrite.
        let expected = (!pick.is_multiple_of(3)).then_some(revision);
        match self.cube.update_as(id, &text, expected, operation).await {
            Ok(item) => {
                self.known.retain(|known| known.id != id);
                self.known.push(Known { id, marker, revision: item.revision });
            }
            Err(CallError::Refused(_)) => self.known.retain(|known| known.id != id),
            Err(CallError::Unreachable(_) | CallError::Unknown(_)) => {}
        }
    }
}
