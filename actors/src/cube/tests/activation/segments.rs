//! Chats over cubes whose memories may be put together from segments.

use memcube_schemas::activation::BlockSource;

use super::*;

impl Chatting {
    async fn approximate(seed: u64, segment_repair_tokens: Option<usize>) -> Self {
        let objects = Objects::new();
        let parts = BlobParts {
            objects: Arc::new(objects.clone()),
            seal: Arc::new(Plain),
            grace_ms: 3_600_000,
            snapshot_items_min: 1_000,
        };
        let (store, environment) =
            (Arc::new(InMemoryStore::default()), Environment::scripted(seed));
        let world = World::with_blobs(store, environment, 100, Some(parts)).await;
        let engine = Arc::new(ScriptedEngine::new(8_192, 1 << 30, ScriptedCosts::default()));
        let model = InferenceParts {
            segment_repair_tokens,
            ..InferenceParts::new(Arc::clone(&engine) as Arc<dyn Engine>)
        };
        world.cubes.serve_model(model).await.expect("started");
        Self { world, objects, engine }
    }

    /// Until whatever is done when nobody waits has been done.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

/// Memories are repaired so far.
const REPAIR: usize = 4;
const QUESTION: &str = "what is there in the garden, and where is the greyhound?";

/// A first turn with instructions of its own, so that no two prompts have a prefix in common.
async fn ask(cube: &CubeHandle, name: &str) -> (ChatOpening, Finished) {
    let request = request(name);
    let mut stream = cube.chat(request).await.expect("begun");
    let (_, finished) = stream.collect().await.expect("said");
    stream.kept().await.expect("tried").expect("kept");
    (stream.opening().clone(), finished)
}

fn request(name: &str) -> ChatRequest {
    let recall = SearchRequest { top_k: 12, ..SearchRequest::new(QUESTION) };
    ChatRequest {
        preamble: format!("You are called {name}."),
        recall: Some(recall),
        ..Talk::new(name).request(QUESTION)
    }
}

/// Tokens of memories that come from their segments.
async fn saved(cube: &CubeHandle, engine: &ScriptedEngine, used: &[BlockSource]) -> usize {
    let mut tokens = 0;
    for source in used {
        let item = cube.get(source.id).await.expect("there");
        assert_eq!(item.revision, source.revision);
        tokens += engine.tokenize(&format!("- {}\n", item.text)).expect("tokens").len() - REPAIR;
    }
    tokens
}

fn used(opening: &ChatOpening) -> Vec<BlockSource> {
    opening.memories.iter().map(|memory| memory.source).collect()
}

#[tokio::test(start_paused = true)]
async fn first_turns_of_other_conversations_compute_less_and_keep_nothing_inexact() {
    let chatting = Chatting::approximate(1, Some(REPAIR)).await;
    let (cube, _) = chatting.knowing("ann").await;
    let (opening, first) = ask(&cube, "a").await;
    assert_eq!((first.reuse.segment_tokens, first.reuse.is_exact()), (0, true));
    assert!(opening.memories.len() > 3);
    chatting.settle().await;
    let (rows, _) = chatting.rows(&cube).await;
    let (again, second) = ask(&cube, "b").await;
    assert_eq!(used(&again), used(&opening));
    let expected = saved(&cube, &chatting.engine, &used(&again)).await;
    assert_eq!((second.reuse.segment_tokens, second.reuse.is_exact()), (expected, false));
    assert!(second.timings.first_token_us < first.timings.first_token_us / 2);
    let (after, contexts) = chatting.rows(&cube).await;
    assert_eq!(after.len(), rows.len() + 1, "only the instructions are exact");
    assert_eq!(contexts.len(), 2, "the context is known all the same");
    chatting.check_rows(&cube, "after segments").await;
    // Once it is computed ahead, the conversation is exact.
    let mut next = request("b");
    let ahead = PreloadRequest {
        conversation: next.conversation.clone(),
        preamble: next.preamble.clone(),
        turns: vec![next.message.clone()],
        memories: Vec::new(),
        ms_max: 60_000,
    };
    let outcome = cube.preload(ahead).await.expect("preloaded");
    assert!(outcome.finished.reuse.is_exact() && outcome.kept.blocks > 0, "{outcome:?}");
    next.turns = vec![next.message.clone()];
    let (_, third) = cube.chat(next).await.expect("begun").collect().await.expect("said");
    assert!(third.reuse.is_exact(), "{third:?}");
    assert!(third.reuse.reused() >= outcome.tokens, "{third:?}");
    chatting.check_rows(&cube, "after a preload").await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_or_changed_memory_never_comes_from_its_segment() {
    for purge in [false, true] {
        let chatting = Chatting::approximate(1, Some(REPAIR)).await;
        let (cube, _) = chatting.knowing("ann").await;
        let (opening, _) = ask(&cube, "a").await;
        chatting.settle().await;
        let cache = chatting.world.cubes.inference().expect("a model").cache().clone();
        let [deleted, changed] = [0, 1].map(|at| opening.memories[at].source.id);
        let before = cache.counts().1;
        let selection = Selection::Ids(vec![deleted]);
        cube.delete(DeleteRequest { selection, purge }).await.expect("deleted");
        let text = Some("the greyhound sleeps in the garden of the neighbours".into());
        let change = UpdateRequest { text, ..UpdateRequest::default() };
        cube.update(changed, change).await.expect("changed");
        assert!(cache.counts().1 <= before - 2, "their segments, and all blocks with them");
        let (again, finished) = ask(&cube, "b").await;
        let (known, used) = (used(&opening), used(&again));
        assert!(used.iter().all(|source| source.id != deleted));
        // Only what was there before and still is.
        let same: Vec<_> = used.into_iter().filter(|source| known.contains(source)).collect();
        let expected = saved(&cube, &chatting.engine, &same).await;
        assert!(expected > 0);
        assert_eq!(finished.reuse.segment_tokens, expected);
        chatting.check_rows(&cube, "after a deletion").await;
    }
}

#[tokio::test(start_paused = true)]
async fn off_by_default_not_one_token_differs() {
    let (usual, off) = (Chatting::new(1).await, Chatting::approximate(1, None).await);
    let ((cube, _), (other, _)) = (usual.knowing("ann").await, off.knowing("ann").await);
    for name in ["a", "b", "c"] {
        let (mut talk, mut again) = (Talk::new(name), Talk::new(name));
        for message in ["tell me about garden number 3", "and where is the greyhound?"] {
            let (_, finished) = talk.say(&cube, message).await.expect("said");
            let (_, without) = again.say(&other, message).await.expect("said");
            assert_eq!(finished.reuse, without.reuse);
            assert!(finished.reuse.is_exact());
        }
        assert_eq!(talk.turns, again.turns);
    }
    assert_eq!(usual.engine.prefilled_tokens(), off.engine.prefilled_tokens());
}
