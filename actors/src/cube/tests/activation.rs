//! Chats over cubes: what was computed is used again, also after a restart, and nothing of a memory
//! that is gone is left anywhere.

mod segments;

use std::collections::BTreeMap;

use memcube_schemas::{
    ConversationId,
    activation::{ContextRecord, KvBlock},
};

use super::*;
use crate::{
    BlobParts,
    environment::{Entropy, SeededEntropy},
    error::Result,
    inference::{
        Engine, Finished, InferenceParts,
        activation_cache::{CacheSettings, Tier},
        scripted::{ScriptedCosts, ScriptedEngine},
    },
    storage::blobs::{Plain, tests::Objects},
};

/// Cache settings under which only cold tiers hold anything.
const NOTHING_HOT: CacheSettings = CacheSettings {
    ram_bytes_max: 0,
    tenant_ram_bytes_max: 0,
    device_bytes_max: 0,
    tenant_device_bytes_max: 0,
    cold_in_8_bits: false,
};

pub(super) struct Chatting {
    pub(super) world: World,
    pub(super) objects: Objects,
    pub(super) engine: Arc<ScriptedEngine>,
}

impl Chatting {
    pub(super) async fn new(seed: u64) -> Self {
        let store = Arc::new(InMemoryStore::default());
        Self::over(store, Objects::new(), Environment::scripted(seed)).await
    }

    pub(super) async fn over(
        store: SharedStore,
        objects: Objects,
        environment: Environment,
    ) -> Self {
        Self::with(store, objects, environment, CacheSettings::default()).await
    }

    async fn with(
        store: SharedStore,
        objects: Objects,
        environment: Environment,
        cache: CacheSettings,
    ) -> Self {
        Self::with_disk(store, objects, environment, cache, None).await
    }

    async fn with_disk(
        store: SharedStore,
        objects: Objects,
        environment: Environment,
        cache: CacheSettings,
        disk: Option<Objects>,
    ) -> Self {
        let parts = BlobParts {
            objects: Arc::new(objects.clone()),
            seal: Arc::new(Plain),
            grace_ms: 3_600_000,
            snapshot_items_min: 1_000,
        };
        let world = World::with_blobs(store, environment, 100, Some(parts)).await;
        let engine = Arc::new(ScriptedEngine::new(8_192, 1 << 30, ScriptedCosts::default()));
        let mut model =
            InferenceParts { cache, ..InferenceParts::new(Arc::clone(&engine) as Arc<dyn Engine>) };
        model.disk =
            disk.map(|disk| (Arc::new(disk) as Arc<dyn object_store::ObjectStore>, 1 << 30));
        world.cubes.serve_model(model).await.expect("started");
        Self { world, objects, engine }
    }

    /// Another life of the same node: all RAM is empty.
    async fn restarted(self) -> Self {
        let World { cubes, store, .. } = self.world;
        cubes.shut_down().await;
        Self::over(store, self.objects, Environment::scripted(99)).await
    }

    /// A cube that knows some things, the ids of which come back.
    pub(super) async fn knowing(&self, id: &str) -> (CubeHandle, Vec<MemoryId>) {
        let cube = self.world.cube(id).await;
        let texts: Vec<String> = (0..12)
            .map(|n| format!("turn {n}: {id} walks in garden number {n} with the greyhound"))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let added = cube.add(said(&texts)).await.expect("added");
        (cube, added.memories.iter().map(|memory| memory.id).collect())
    }

    pub(super) async fn rows(&self, cube: &CubeHandle) -> (Vec<KvBlock>, Vec<ContextRecord>) {
        let tenant = context();
        let reads = vec![
            RangeRead::all(keys::kv_blocks(tenant.tenant(), cube.id())),
            RangeRead::all(keys::contexts(tenant.tenant(), cube.id())),
        ];
        let pages = self.world.store.read(reads).await.expect("read").pages;
        let [blocks, contexts] = pages.as_slice() else { panic!("two pages") };
        let block = |entry: &crate::storage::Entry| decode(&entry.value).expect("a block");
        let record = |entry: &crate::storage::Entry| decode(&entry.value).expect("a context");
        (blocks.entries.iter().map(block).collect(), contexts.entries.iter().map(record).collect())
    }

    /// Nothing in the store is of a memory that is gone or was changed, and what is there hangs
    /// together.
    pub(super) async fn check_rows(&self, cube: &CubeHandle, message: &str) {
        let (blocks, contexts) = self.rows(cube).await;
        let items = cube.list(None, 1_000).await.expect("listed").items;
        let revisions: BTreeMap<_, _> = items.iter().map(|item| (item.id, item.revision)).collect();
        let is_current = |id, revision| revisions.get(&id) == Some(&revision);
        let keys: Vec<_> = blocks.iter().map(|block| block.key).collect();
        for block in &blocks {
            assert!(block.parent.is_none_or(|parent| keys.contains(&parent)), "{message}");
            for source in &block.sources {
                assert!(is_current(source.id, source.revision), "{message}: {block:?}");
            }
        }
        for memory in contexts.iter().flat_map(ContextRecord::memories) {
            let source = memory.source;
            assert!(is_current(source.id, source.revision), "{message}: in a context");
        }
        assert_eq!(self.engine.wrong_blocks(), 0, "{message}");
    }
}

/// A conversation as its caller has it.
pub(super) struct Talk {
    pub(super) conversation: ConversationId,
    pub(super) turns: Vec<ChatTurn>,
}

impl Talk {
    pub(super) fn new(name: &str) -> Self {
        Self { conversation: ConversationId::new(name).expect("valid"), turns: Vec::new() }
    }

    pub(super) fn request(&self, message: &str) -> ChatRequest {
        let recall = SearchRequest { top_k: 4, ..SearchRequest::new(message) };
        ChatRequest {
            preamble: "You are a friend who remembers everything that was ever said.".into(),
            turns: self.turns.clone(),
            recall: Some(recall),
            ..ChatRequest::new(self.conversation.clone(), message)
        }
    }

    async fn say(&mut self, cube: &CubeHandle, message: &str) -> Result<(ChatOpening, Finished)> {
        let request = self.request(message);
        let mut stream = cube.chat(request.clone()).await?;
        let (text, finished) = stream.collect().await?;
        if let Some(kept) = stream.kept().await {
            kept?;
        }
        self.turns.push(request.message);
        self.turns.push(ChatTurn::new(Role::Assistant, text));
        Ok((stream.opening().clone(), finished))
    }
}

#[tokio::test(start_paused = true)]
async fn every_turn_uses_what_the_turns_before_computed_and_says_the_same() {
    let chatting = Chatting::new(1).await;
    let store = Arc::new(InMemoryStore::default());
    let objects = Objects::new();
    objects.fail(Some("no object store"));
    let cold = Chatting::with(store, objects, Environment::scripted(1), NOTHING_HOT).await;
    let ((cube, _), (bare, _)) = (chatting.knowing("ann").await, cold.knowing("ann").await);
    let (mut talk, mut again) = (Talk::new("talk"), Talk::new("talk"));
    let mut prompts = Vec::new();
    for n in 0..6 {
        let message = format!("tell me about garden {n} and the greyhound");
        let (opening, finished) = talk.say(&cube, &message).await.expect("said");
        let (_, without) = again.say(&bare, &message).await.expect("said");
        assert_eq!(talk.turns, again.turns, "turn {n}");
        assert_eq!(without.reuse.reused(), 0);
        let known = prompts.last().copied().unwrap_or(0);
        assert_eq!(finished.reuse.reused(), known, "turn {n}: the whole prompt before");
        assert!(opening.memories.iter().any(|memory| memory.was_preloaded) || n == 0);
        prompts.push(opening.prompt_tokens);
        chatting.check_rows(&cube, "after a turn").await;
    }
    assert!(chatting.engine.prefilled_tokens() * 3 < cold.engine.prefilled_tokens());
    let (blocks, contexts) = chatting.rows(&cube).await;
    assert_eq!(contexts.len(), 1);
    assert_eq!(blocks.iter().map(|block| block.tokens as usize).sum::<usize>(), prompts[5]);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_first_answer_uses_stored_blocks() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, cold) = talk.say(&cube, "where is the greyhound").await.expect("said");
    talk.say(&cube, "and garden number 3").await.expect("said");
    let chatting = chatting.restarted().await;
    let cube = chatting.world.cube("ann").await;
    let (_, warm) = talk.say(&cube, "what else").await.expect("said");
    let stored = warm.reuse.reused_tokens.get(&Tier::Objects).copied().unwrap_or(0);
    assert!(stored >= opening.prompt_tokens, "{warm:?}");
    assert!(warm.timings.first_token_us < cold.timings.first_token_us);
    chatting.check_rows(&cube, "after a restart").await;
}

#[tokio::test(start_paused = true)]
async fn before_a_deletion_is_acknowledged_everything_of_the_memory_is_gone() {
    for (purge, name) in [(false, "deleted"), (true, "purged")] {
        let chatting = Chatting::new(1).await;
        let (cube, _) = chatting.knowing("ann").await;
        let mut talk = Talk::new("talk");
        let (opening, _) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
        talk.say(&cube, "go on").await.expect("said");
        let victim = opening.memories[0].source.id;
        let before = chatting.rows(&cube).await.0.len();
        let selection = Selection::Ids(vec![victim]);
        cube.delete(DeleteRequest { selection, purge }).await.expect("deleted");
        chatting.check_rows(&cube, name).await;
        assert!(chatting.rows(&cube).await.0.len() < before, "{name}");
        let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
        assert_eq!(cache.counts().0, 0, "{name}: no session is left");
        let (opening, finished) = talk.say(&cube, "garden number 3 again").await.expect("said");
        assert!(opening.memories.iter().all(|memory| memory.source.id != victim), "{name}");
        assert!(finished.reuse.computed_tokens > 100, "{name}: laid out anew");
        chatting.check_rows(&cube, name).await;
        // What the rows no longer name goes from the object store.
        let blobs = chatting.world.cubes.blobs().expect("blobs").clone();
        blobs.sweep(context().tenant(), 0).await.expect("swept");
        let rows = chatting.rows(&cube).await.0.len();
        assert_eq!(chatting.objects.names().await.len(), rows, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_of_a_conversation_takes_its_turns_along() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talks = [Talk::new("a"), Talk::new("b")];
    let secret = "the number of the safe is 4711";
    for talk in &mut talks {
        talk.say(&cube, secret).await.expect("said");
        talk.say(&cube, "go on").await.expect("said");
    }
    let conversation = Some(talks[0].conversation.clone());
    let remembered = cube.add(AddRequest { conversation, ..said(&[secret]) }).await.expect("added");
    let before = chatting.rows(&cube).await;
    let of = |rows: &[KvBlock], talk: &Talk| {
        let conversations = rows.iter().filter_map(|block| block.conversation.clone());
        conversations.filter(|conversation| *conversation == talk.conversation).count()
    };
    assert!(of(&before.0, &talks[0]) > 0 && before.1.len() == 2);
    let selection = Selection::Ids(vec![remembered.memories[0].id]);
    cube.delete(DeleteRequest { selection, purge: true }).await.expect("deleted");
    let after = chatting.rows(&cube).await;
    assert_eq!((of(&after.0, &talks[0]), after.1.len()), (0, 1));
    assert_eq!(of(&after.0, &talks[1]), of(&before.0, &talks[1]), "the other one stays");
    let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
    assert_eq!(cache.counts().0, 1, "the session of the other one");
    let (_, finished) = talks[0].say(&cube, "hello again").await.expect("said");
    assert!(finished.reuse.reused() < 100, "the preamble at most: {finished:?}");
    chatting.check_rows(&cube, "afterwards").await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_memory_is_shown_as_it_is_now() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, _) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let changed = opening.memories[0].source;
    let change =
        UpdateRequest { text: Some("garden number 3 is a car park".into()), ..Default::default() };
    cube.update(changed.id, change).await.expect("changed");
    chatting.check_rows(&cube, "after a change").await;
    let (opening, _) = talk.say(&cube, "garden number 3 car park").await.expect("said");
    let shown = opening.memories.iter().find(|memory| memory.source.id == changed.id);
    assert_eq!(shown.map(|memory| memory.source.revision), Some(changed.revision + 1));
    let archive =
        UpdateRequest { status: Some(MemoryStatus::Archived), ..UpdateRequest::default() };
    cube.update(changed.id, archive).await.expect("archived");
    chatting.check_rows(&cube, "archived").await;
    let (opening, _) = talk.say(&cube, "garden number 3 car park").await.expect("said");
    assert!(opening.memories.iter().all(|memory| memory.source.id != changed.id));
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_while_it_is_being_said_is_not_kept() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let talk = Talk::new("talk");
    let mut stream = cube.chat(talk.request("tell me about garden number 3")).await.expect("begun");
    let victim = stream.opening().memories[0].source.id;
    let selection = Selection::Ids(vec![victim]);
    cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    let (_, finished) = stream.collect().await.expect("it goes on");
    assert!(finished.unstored.is_empty());
    let kept = stream.kept().await.expect("tried").expect("answered");
    assert_eq!(kept, Kept { blocks: 0, refused: 0, context: false });
    chatting.check_rows(&cube, "afterwards").await;
    let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
    assert_eq!(cache.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_while_its_blocks_are_being_stored_is_not_kept() {
    let chatting = Chatting::new(1).await;
    let (cube, ids) = chatting.knowing("ann").await;
    let talk = Talk::new("talk");
    let preload = |memories: &[MemoryId]| PreloadRequest {
        conversation: talk.conversation.clone(),
        preamble: talk.request("").preamble,
        turns: vec![ChatTurn::new(Role::User, "long ".repeat(400))],
        memories: memories.to_vec(),
        ms_max: 60_000,
    };
    chatting.objects.delay(2_000);
    let (preloading, deleting) = (cube.preload(preload(&ids)), async {
        // The blocks are computed, and on their way.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let selection = Selection::Ids(vec![ids[0]]);
        cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    });
    let (outcome, ()) = tokio::join!(preloading, deleting);
    let kept = outcome.expect("preloaded").kept;
    assert!(kept.refused > 1 && !kept.context, "{kept:?}");
    chatting.check_rows(&cube, "afterwards").await;
    chatting.objects.delay(0);
    let again = cube.preload(preload(&ids[1..])).await.expect("preloaded").kept;
    assert!(again.blocks > 1 && again.refused == 0 && again.context, "{again:?}");
    chatting.check_rows(&cube, "and again").await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_in_whatever_order_nothing_stale_is_left() {
    for seed in 0..12 {
        let chatting = Chatting::new(seed).await;
        let (cube, mut ids) = chatting.knowing("ann").await;
        let entropy = SeededEntropy::new(seed);
        let below = |bound: u64| entropy.next_u64() % bound;
        let mut talks: Vec<Talk> = (0..3).map(|n| Talk::new(&format!("talk {n}"))).collect();
        for step in 0..40 {
            let which = below(3) as usize;
            let any = ids.get(below(ids.len().max(1) as u64) as usize).copied();
            let message = format!("what about garden {} and step {step}", below(12));
            match (below(10), any) {
                (0..=4, _) => drop(talks[which].say(&cube, &message).await.expect("said")),
                (5, Some(id)) => {
                    ids.retain(|known| *known != id);
                    let selection = Selection::Ids(vec![id]);
                    let delete = cube.delete(DeleteRequest { selection, purge: below(2) == 0 });
                    let (said, gone) = tokio::join!(talks[which].say(&cube, &message), delete);
                    drop((said.expect("said"), gone.expect("deleted")));
                }
                (6, Some(id)) => {
                    let text = Some(format!("garden {} was sold at step {step}", below(12)));
                    let update = cube.update(id, UpdateRequest { text, ..Default::default() });
                    let (said, changed) = tokio::join!(talks[which].say(&cube, &message), update);
                    drop((said.expect("said"), changed.expect("changed")));
                }
                (7, _) => drop(talks[which].turns.pop()),
                (8, _) => tokio::time::sleep(Duration::from_secs(70)).await,
                _ => {
                    let request = PreloadRequest {
                        conversation: talks[which].conversation.clone(),
                        preamble: talks[which].request("").preamble,
                        turns: talks[which].turns.clone(),
                        memories: ids.iter().copied().take(below(6) as usize).collect(),
                        ms_max: 60_000,
                    };
                    cube.preload(request).await.expect("preloaded");
                }
            }
            chatting.check_rows(&cube, &format!("seed {seed}, step {step}")).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_preloaded_is_a_prefix_and_a_wrong_guess_is_gone_again() {
    let chatting = Chatting::new(1).await;
    let (cube, ids) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let request = talk.request("tell me about garden number 3");
    let preload = |turns: &[ChatTurn], memories: &[MemoryId]| PreloadRequest {
        conversation: request.conversation.clone(),
        preamble: request.preamble.clone(),
        turns: turns.to_vec(),
        memories: memories.to_vec(),
        ms_max: 60_000,
    };
    let outcome = cube.preload(preload(&[], &ids)).await.expect("preloaded");
    assert!(outcome.kept.context && outcome.kept.blocks > 0);
    let unnamed = cube.preload(preload(&[], &[])).await.expect("preloaded");
    assert_eq!(unnamed.tokens, outcome.tokens, "whoever names none takes none away");
    let (opening, warm) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
    assert!(warm.reuse.computed_tokens < 40, "the message alone: {:?}", warm.reuse);
    assert!(warm.reuse.reused() < outcome.tokens, "not all of it is needed");
    let used = opening.memories.iter().filter(|memory| memory.is_wanted);
    assert!(used.clone().count() > 0 && opening.memories.iter().all(|known| known.was_preloaded));
    assert!(opening.memories.len() < ids.len(), "what nobody wants is gone from the end");
    let in_vain = opening.memories.iter().filter(|memory| !memory.is_wanted).count();
    assert!(in_vain > 0, "wrong guesses before right ones stay while somebody waits");
    // Idle time takes them back, and brings what was said into the cache as well.
    let idle = cube.preload(preload(&talk.turns, &[])).await.expect("preloaded");
    assert!(idle.tokens < opening.prompt_tokens, "{} of {}", idle.tokens, opening.prompt_tokens);
    let again = cube.preload(preload(&talk.turns, &[])).await.expect("preloaded");
    assert_eq!((again.tokens, again.finished.reuse.computed_tokens), (idle.tokens, 0));
    let (_, next) = talk.say(&cube, "tell me more").await.expect("said");
    assert_eq!(next.reuse.reused(), idle.tokens);
}

#[tokio::test(start_paused = true)]
async fn an_erased_cube_leaves_nothing_behind() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    talk.say(&cube, "tell me about garden number 3").await.expect("said");
    assert!(!chatting.objects.names().await.is_empty());
    cube.erase().await.expect("erased");
    let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
    assert_eq!(cache.counts(), (0, 0));
    let blobs = chatting.world.cubes.blobs().expect("blobs").clone();
    let swept = blobs.sweep(context().tenant(), 0).await.expect("swept");
    assert_eq!(swept.references, 0, "they went with the cube");
    assert_eq!(chatting.objects.names().await.len(), 0);
    let tenant = context();
    let ranges = keys::everything_of_cube(tenant.tenant(), cube.id());
    let reads = ranges.into_iter().map(RangeRead::all).collect();
    let pages = chatting.world.store.read(reads).await.expect("read").pages;
    assert!(pages.iter().all(|page| page.entries.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn references_of_a_cube_that_was_erased_unread_are_swept() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    Talk::new("talk").say(&cube, "tell me about garden number 3").await.expect("said");
    let blobs = chatting.world.cubes.blobs().expect("blobs").clone();
    let kept = chatting.objects.names().await.len();
    assert_eq!(blobs.sweep(context().tenant(), 0).await.expect("swept").kept, kept);
    let tenant = context();
    let ranges = keys::everything_of_cube(tenant.tenant(), cube.id());
    let clear = ranges.into_iter().map(|range| Mutation::ClearRange { range }).collect();
    let World { store, environment, .. } = &chatting.world;
    commit(store, environment, Vec::new(), clear).await.expect("cleared");
    let swept = blobs.sweep(context().tenant(), 0).await.expect("swept");
    assert_eq!((swept.references, swept.removed), (kept, kept));
}

#[tokio::test(start_paused = true)]
async fn damaged_blocks_are_computed_again_and_never_used() {
    type Damage = fn(&mut Vec<u8>);
    let table: [(&str, Damage); 3] = [
        ("one bit", |bytes| bytes[900] ^= 1),
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
    ];
    for (name, damage) in table {
        let chatting = Chatting::new(1).await;
        let (cube, _) = chatting.knowing("ann").await;
        let (mut talk, mut twin) = (Talk::new("talk"), Talk::new("talk"));
        talk.say(&cube, "tell me about garden number 3").await.expect("said");
        twin.turns.clone_from(&talk.turns);
        let chatting = chatting.restarted().await;
        let cube = chatting.world.cube("ann").await;
        chatting.objects.damage(damage).await;
        let (_, finished) = talk.say(&cube, "and then").await.expect("said");
        assert_eq!(finished.reuse.reused(), 0, "{name}");
        // One without bytes cannot be read at all.
        assert!(finished.reuse.corrupt_blocks > 0 || name == "empty", "{name}");
        chatting.check_rows(&cube, name).await;
        // The same as if nothing had been damaged.
        let fresh = Chatting::new(1).await;
        let (cube, _) = fresh.knowing("ann").await;
        let mut talk_of_fresh = Talk::new("talk");
        talk_of_fresh.say(&cube, "tell me about garden number 3").await.expect("said");
        talk_of_fresh.say(&cube, "and then").await.expect("said");
        assert_eq!(talk.turns, talk_of_fresh.turns, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_object_store_never_makes_an_answer_later() {
    for delay_ms in [1, 20, 300, 2_000, 60_000] {
        let chatting = Chatting::new(1).await;
        let (cube, ids) = chatting.knowing("ann").await;
        let mut talk = Talk::new("talk");
        let request = PreloadRequest {
            conversation: talk.conversation.clone(),
            preamble: talk.request("").preamble,
            turns: Vec::new(),
            memories: ids,
            ms_max: 60_000,
        };
        let preloaded = cube.preload(request).await.expect("preloaded");
        let chatting = chatting.restarted().await;
        let cube = chatting.world.cube("ann").await;
        cube.describe().await.expect("hydrated");
        chatting.objects.delay(delay_ms);
        let (_, finished) = talk.say(&cube, "garden number 3").await.expect("said");
        // The cost model: what computing all of it takes.
        let tokens = (preloaded.tokens + 100) as u64;
        let direct_us = tokens * 1_000 + tokens * tokens / 2 * 300 / 1_000;
        let first_us = finished.timings.first_token_us;
        assert!(first_us <= direct_us * 21 / 20, "{delay_ms} ms: {first_us} > {direct_us}");
        if delay_ms <= 20 {
            let reuse = &finished.reuse;
            assert!(reuse.computed_tokens < 40, "{delay_ms} ms: worth it, {reuse:?}");
        }
        chatting.check_rows(&cube, "slow").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_disk_stands_in_front_of_the_object_store() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let (objects, disk) = (Objects::new(), Objects::new());
    let life = async |seed| {
        let (store, objects) = (Arc::clone(&store), objects.clone());
        let environment = Environment::scripted(seed);
        Chatting::with_disk(store, objects, environment, NOTHING_HOT, Some(disk.clone())).await
    };
    let chatting = life(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let from = |finished: &Finished, tier| finished.reuse.reused_tokens.get(&tier).copied();
    let (_, first) = talk.say(&cube, "go on").await.expect("said");
    assert!(from(&first, Tier::Objects).is_some() && from(&first, Tier::Disk).is_none());
    let copies = disk.names().await.len();
    assert!(copies > 0 && copies < objects.names().await.len());
    chatting.world.cubes.shut_down().await;

    // Another life finds the copies, and needs the object store for the rest only.
    let chatting = life(2).await;
    let cube = chatting.world.cube("ann").await;
    let (opening, second) = talk.say(&cube, "and then").await.expect("said");
    assert_eq!(from(&second, Tier::Disk), from(&first, Tier::Objects), "{second:?}");
    // A damaged copy is replaced by the original.
    disk.damage(|bytes| bytes[100] ^= 1).await;
    let (_, third) = talk.say(&cube, "and now").await.expect("said");
    assert_eq!(from(&third, Tier::Disk), None, "{third:?}");
    assert!(third.reuse.reused() > second.reuse.reused() && third.reuse.corrupt_blocks == 0);
    assert_eq!(chatting.engine.wrong_blocks(), 0);

    // What is deleted leaves the disk as well, also after a crash in between.
    let victim = opening.memories[0].source.id;
    let left = disk.names().await;
    let selection = Selection::Ids(vec![victim]);
    cube.delete(DeleteRequest { selection, purge: true }).await.expect("deleted");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(disk.names().await.len() < left.len());
    for message in ["what is left", "and what else"] {
        talk.say(&cube, message).await.expect("said");
    }
    let blobs = chatting.world.cubes.blobs().expect("blobs").clone();
    disk.fail(Some("unplugged"));
    let items = cube.list(None, 100).await.expect("listed").items;
    let selection = Selection::Ids(items.iter().map(|item| item.id).collect());
    cube.delete(DeleteRequest { selection, purge: true }).await.expect("deleted");
    tokio::time::sleep(Duration::from_secs(1)).await;
    disk.fail(None);
    assert!(!disk.names().await.is_empty(), "left behind");
    chatting.world.cubes.shut_down().await;
    blobs.sweep(context().tenant(), 0).await.expect("swept");
    let chatting = life(3).await;
    let cube = chatting.world.cube("ann").await;
    talk.say(&cube, "hello").await.expect("said");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (blocks, _) = chatting.rows(&cube).await;
    let names: Vec<String> = blocks.iter().map(|block| block.blob.to_string()).collect();
    assert!(disk.names().await.iter().all(|copy| names.contains(copy)), "swept");
}

#[tokio::test(start_paused = true)]
async fn without_an_object_store_contexts_are_kept_and_blocks_are_not() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    chatting.objects.fail(Some("connection refused"));
    let mut talk = Talk::new("talk");
    talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let (blocks, contexts) = chatting.rows(&cube).await;
    assert_eq!((blocks.len(), contexts.len()), (0, 1));
    chatting.objects.fail(None);
    talk.say(&cube, "go on").await.expect("said");
    let (blocks, _) = chatting.rows(&cube).await;
    assert!(blocks.iter().any(|block| block.parent.is_none()), "it is made up for");
    chatting.check_rows(&cube, "afterwards").await;
}

#[tokio::test(start_paused = true)]
async fn eight_bits_are_smaller_and_said_to_be_inexact() {
    let store: SharedStore = Arc::new(InMemoryStore::default());
    let objects = Objects::new();
    let settings = CacheSettings { cold_in_8_bits: true, ..CacheSettings::default() };
    let environment = Environment::scripted(1);
    let chatting = Chatting::with(Arc::clone(&store), objects, environment, settings).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let (blocks, _) = chatting.rows(&cube).await;
    assert!(blocks.iter().all(|block| block.bytes == u64::from(block.tokens) * 72), "{blocks:?}");
    let chatting = chatting.restarted().await;
    let cube = chatting.world.cube("ann").await;
    let (_, finished) = talk.say(&cube, "go on").await.expect("said");
    assert!(finished.reuse.inexact_tokens > 0);
    assert_eq!(finished.reuse.inexact_tokens, finished.reuse.reused());
    assert!(finished.unstored.is_empty(), "what was computed after it is not kept");
    let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
    assert_eq!(cache.counts(), (0, 0), "neither on the device nor in RAM");
    assert_eq!(chatting.engine.wrong_blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn oldest_memories_leave_first_where_the_window_is_full() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let filler = "and so on and so forth, ".repeat(120);
    let mut dropped = 0;
    for n in 0..12 {
        let message = format!("garden number {n} {filler}");
        let request = ChatRequest {
            recall: Some(SearchRequest { top_k: 4, ..SearchRequest::new(format!("garden {n}")) }),
            ..talk.request(&message)
        };
        let mut stream = cube.chat(request.clone()).await.expect("begun");
        let (text, _) = stream.collect().await.expect("said");
        stream.kept().await.expect("tried").expect("kept");
        let opening = stream.opening();
        assert!(opening.prompt_tokens + 512 < 8_192, "turn {n}: {}", opening.prompt_tokens);
        if opening.turns_left_out > 0 {
            assert!(opening.memories.is_empty(), "turn {n}: turns leave after memories");
        }
        let sorted = opening.left_out.is_sorted();
        assert!(sorted || opening.left_out.len() > 4, "turn {n}");
        dropped += opening.left_out.len();
        talk.turns.push(request.message);
        talk.turns.push(ChatTurn::new(Role::Assistant, text));
        chatting.check_rows(&cube, "full").await;
    }
    assert!(dropped > 0);
}

#[tokio::test(start_paused = true)]
async fn a_keep_of_a_former_owner_is_refused() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut stream = cube.chat(Talk::new("talk").request("garden number 3")).await.expect("begun");
    // Somebody else claims the cube while the answer is on its way.
    let tenant = context();
    let row = keys::ownership(tenant.tenant(), cube.id());
    let read = chatting.world.store.read(vec![RangeRead::key(row.clone())]).await.expect("read");
    let mut owner: Ownership = decode(&read.pages[0].entries[0].value).expect("an owner");
    owner.epoch = owner.epoch.next();
    let set = vec![Mutation::Set { key: row, value: encode(&owner) }];
    let World { store, environment, .. } = &chatting.world;
    commit(store, environment, Vec::new(), set).await.expect("claimed");
    stream.collect().await.expect("said");
    assert!(stream.kept().await.expect("tried").is_err());
    assert_eq!(chatting.rows(&cube).await, (Vec::new(), Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_takes_no_tools_says_so() {
    let chatting = Chatting::new(1).await;
    let (cube, _) = chatting.knowing("ann").await;
    let ask = |extra: &str| ChatRequest {
        extra: Some(extra.into()),
        ..ChatRequest::new(ConversationId::new("talk").expect("valid"), "what time is it?")
    };
    let table = [
        (r#"{"tools": [{"type": "function"}]}"#, Some("takes no tools")),
        (r#"{"functions": [{}]}"#, Some("takes no tools")),
        (r#"{"response_format": {"type": "json_object"}}"#, Some("held to a form")),
        (r#"{"response_format": {"type": "text"}}"#, None),
        ("{", Some("not a JSON object")),
        (r#"{"tools": [], "functions": null, "logit_bias": {}}"#, None),
    ];
    for (extra, expected) in table {
        let asked = cube.chat(ask(extra)).await;
        match (asked, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert_eq!(error.kind(), ErrorKind::Invalid);
                assert!(error.message().contains(expected), "{extra}: {error}");
            }
            (asked, _) => panic!("{extra}: {asked:?}"),
        }
    }
}

#[cfg(feature = "defects")]
#[tokio::test(start_paused = true)]
async fn the_planted_bug_of_a_deleted_memory_in_a_context_shows() {
    let environment =
        Environment::scripted(1).with_defects([crate::defects::Defect::DeletedInContext]);
    let store = Arc::new(InMemoryStore::default());
    let chatting = Chatting::over(store, Objects::new(), environment).await;
    let (cube, _) = chatting.knowing("ann").await;
    let mut talk = Talk::new("talk");
    let (opening, _) = talk.say(&cube, "tell me about garden number 3").await.expect("said");
    let victim = opening.memories[0].source.id;
    let selection = Selection::Ids(vec![victim]);
    cube.delete(DeleteRequest { selection, purge: false }).await.expect("deleted");
    let (opening, _) = talk.say(&cube, "go on").await.expect("said");
    assert!(opening.memories.iter().any(|memory| memory.source.id == victim));
}
