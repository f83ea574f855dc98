//! Answers that need no commit: reads, and changes that are refused or were made before. They come
//! from RAM, in a cluster only after the store has confirmed that this node still owns the cube.
//!
//! Invariant: an answer never shows less than what was acknowledged before the question. A node
//! that is alone with its store cannot lose a cube to another; in a cluster an owner may have been
//! replaced without having heard of it, and only the store knows. One look at the ownership row
//! serves all reads that were waiting when it began.

use std::{ops::Bound, sync::Arc};

use memcube_schemas::{
    MemoryId,
    call::{CubeAnswer, CubeCall, ItemPage, RecallRequest, SearchOutcome},
    keys,
    scene::{Passage, SceneAnswer, SceneQuery},
};
use ractor::ActorRef;

use super::{
    CubeMessage, Reply, Running, STOPPED_FENCED, fenced, passivated, recall::Found, seconds,
};
use crate::{
    defects::Defect,
    error::{Error, Result},
    metrics as names,
    scheduler::scene::{SCENE_TURNS, Scene, SceneTurn},
    storage::{RangeRead, StoreError},
};

/// What waits for the store's word.
enum Unconfirmed {
    /// A question, answered once this is still the owner.
    Read { call: CubeCall, reply: Reply },
    /// An answer, true if this was still the owner when it was found.
    Answer { answer: Result<CubeAnswer>, reply: Reply },
}

/// The answers of a cube that may not be given yet.
#[derive(Default)]
pub(super) struct Reads {
    /// Asked after the look that is under way began.
    waiting: Vec<Unconfirmed>,
    /// Covered by the look that is under way.
    covered: Option<Vec<Unconfirmed>>,
}

impl Unconfirmed {
    fn refuse(self, error: &Error) {
        let (Self::Read { reply, .. } | Self::Answer { reply, .. }) = self;
        reply.answer(Err(error.clone()));
    }
}

impl Reads {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.covered.is_none()
    }
}

impl Running {
    pub(super) fn read(&mut self, myself: &ActorRef<CubeMessage>, call: CubeCall, reply: Reply) {
        if !self.confirms_reads || self.environment.plants(Defect::StaleReadAfterMove) {
            reply.answer(self.answer_read(&call));
        } else if self.is_passivating {
            reply.answer(Err(passivated()));
        } else {
            self.reads.waiting.push(Unconfirmed::Read { call, reply });
            self.start_confirming(myself);
        }
    }

    /// Gives answers that no commit stands behind.
    pub(super) fn answer_uncommitted(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        answers: Vec<(Reply, Result<CubeAnswer>)>,
    ) {
        if !self.confirms_reads || self.environment.plants(Defect::StaleReadAfterMove) {
            for (reply, answer) in answers {
                reply.answer(answer);
            }
            return;
        }
        let answers = answers.into_iter();
        let unconfirmed = answers.map(|(reply, answer)| Unconfirmed::Answer { answer, reply });
        self.reads.waiting.extend(unconfirmed);
        self.start_confirming(myself);
    }

    /// Asks the store whether this node still owns the cube, unless a question is under way.
    fn start_confirming(&mut self, myself: &ActorRef<CubeMessage>) {
        if self.reads.covered.is_some() || self.reads.waiting.is_empty() || self.is_lost {
            return;
        }
        self.reads.covered = Some(std::mem::take(&mut self.reads.waiting));
        let key = keys::ownership(&self.cube.key.tenant, &self.cube.key.cube);
        let (store, claimed) = (Arc::clone(&self.store), self.cube.claim.row);
        let myself = myself.clone();
        self.environment.spawn(async move {
            let outcome = store.read(vec![RangeRead::key(key)]).await.map(|output| {
                let row = output.pages.first().and_then(|page| page.entries.first());
                row.is_some_and(|row| row.version == claimed)
            });
            // The cube may be gone by now; then its callers were told so.
            let _ = myself.cast(CubeMessage::Confirmed { outcome });
        });
    }

    pub(super) fn confirmed(
        &mut self,
        myself: &ActorRef<CubeMessage>,
        outcome: std::result::Result<bool, StoreError>,
    ) {
        let Some(covered) = self.reads.covered.take() else { return };
        match outcome {
            Ok(true) => {
                for unconfirmed in covered {
                    match unconfirmed {
                        Unconfirmed::Read { call, reply } => reply.answer(self.answer_read(&call)),
                        Unconfirmed::Answer { answer, reply } => reply.answer(answer),
                    }
                }
            }
            Ok(false) => {
                self.environment.reach("cube.read-refused-after-move", "");
                self.let_go_of_cached();
                covered
                    .into_iter()
                    .chain(self.reads.waiting.drain(..))
                    .for_each(|unconfirmed| unconfirmed.refuse(&fenced()));
                // A commit under way may have come before the move: its callers are told first.
                self.is_lost = true;
                if self.in_flight.is_none() {
                    myself.stop(Some(STOPPED_FENCED.to_owned()));
                }
                return;
            }
            Err(error) => {
                let error = Error::from(error);
                covered.into_iter().for_each(|unconfirmed| unconfirmed.refuse(&error));
            }
        }
        self.start_confirming(myself);
        self.leave_if_idle(myself);
    }

    fn answer_read(&self, call: &CubeCall) -> Result<CubeAnswer> {
        match call {
            CubeCall::Get(id) => self.get(*id),
            CubeCall::List { after, limit } => Ok(CubeAnswer::Page(self.list(*after, *limit))),
            CubeCall::Search(request) => Ok(CubeAnswer::Found(self.search(request))),
            CubeCall::Describe => Ok(CubeAnswer::Manifest(self.cube.manifest.clone())),
            CubeCall::Context(query) => Ok(CubeAnswer::Context(Box::new(self.cube.context(query)))),
            CubeCall::Scene(query) => Ok(CubeAnswer::Scene(Box::new(self.scene(query)))),
            CubeCall::Change(_) | CubeCall::Erase => {
                Err(Error::internal("a change was taken for a read"))
            }
            CubeCall::Note(_) | CubeCall::Scenes(_) => {
                Err(Error::internal("a question for the scheduler was taken for a read"))
            }
        }
    }

    fn get(&self, id: MemoryId) -> Result<CubeAnswer> {
        let missing = || Error::not_found(format!("there is no memory `{id}` in this cube"));
        self.cube.items.get(&id).cloned().map(CubeAnswer::Item).ok_or_else(missing)
    }

    fn list(&self, after: Option<MemoryId>, limit: usize) -> ItemPage {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut rest = self.cube.items.range(range).map(|(_, item)| Arc::clone(item));
        let items: Vec<_> = rest.by_ref().take(limit).collect();
        ItemPage { items, more: rest.next().is_some(), version: self.cube.manifest.version }
    }

    fn scene(&self, query: &SceneQuery) -> SceneAnswer {
        let start = self.environment.monotonic_us();
        let remembered = query.last.text.is_empty().then(|| self.remembered(query)).flatten();
        let query = remembered.as_ref().unwrap_or(query);
        let candidates = self.cube.recall.scene(query, &self.cube.items);
        let took = self.environment.monotonic_us().saturating_sub(start);
        metrics::histogram!(names::SCENE_SECONDS).record(seconds(took));
        SceneAnswer { candidates, version: self.cube.manifest.version }
    }

    /// The question of a scheduler that knows nothing of a conversation, as after its start, with
    /// what the cube remembers of it.
    fn remembered(&self, query: &SceneQuery) -> Option<SceneQuery> {
        let conversation = query.conversation.as_ref()?;
        let items = self.cube.items.values().rev().filter(|item| {
            item.conversation.as_ref() == Some(conversation) && item.status.is_recalled()
        });
        let said: Vec<_> = items.take(SCENE_TURNS).collect();
        let mut scene = Scene::default();
        for item in said.into_iter().rev() {
            let text = item.sources.first().map_or(&item.text, |source| &source.content).clone();
            let passage = Passage { text, vector: self.cube.recall.vector(item.id) };
            let (role, speaker) = (item.role, item.speaker.clone());
            let at_ms = item.said_at_ms.unwrap_or(item.learned_at_ms);
            scene.turn_finished(SceneTurn { role, speaker, passage, at_ms }, &[]);
        }
        let known = scene.query(Some(conversation.clone()), query.now_ms);
        let SceneQuery { typed, accessed, candidates_max, .. } = query.clone();
        Some(SceneQuery { typed, accessed, candidates_max, ..known })
    }

    fn search(&self, request: &RecallRequest) -> SearchOutcome {
        let start = self.environment.monotonic_us();
        let Found { hits, confidence } = self.cube.recall.search(request, &self.cube.items);
        let took = self.environment.monotonic_us().saturating_sub(start);
        metrics::histogram!(names::RECALL_SECONDS).record(seconds(took));
        let tokens = hits.iter().map(|hit| hit.item.tokens).sum();
        SearchOutcome { hits, version: self.cube.manifest.version, tokens, confidence }
    }
}
