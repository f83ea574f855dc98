//! Memories that were computed each by itself, in prompts over a scripted engine.

use super::*;

const REPAIR: usize = 16;
/// Tokens of instructions, and of a new turn.
const PREAMBLE: u32 = 20;
const TURN: u32 = 30;
/// Tokens of memories, by their numbers.
const MEMORIES: [u32; 5] = [40, 70, 300, 20, 55];

async fn world(segment_repair_tokens: Option<usize>) -> World {
    let engine = Arc::new(ScriptedEngine::new(WINDOW, 1 << 30, ScriptedCosts::default()));
    let environment = Environment::scripted(7);
    let parts = InferenceParts {
        segment_repair_tokens,
        ..InferenceParts::new(Arc::clone(&engine) as Arc<dyn Engine>)
    };
    let inference = LocalModel::start(parts, None, environment.clone()).await;
    World { engine, inference: inference.expect("started"), environment }
}

fn source(memory: usize) -> BlockSource {
    BlockSource { id: MemoryId::from_parts(1, memory as u128), revision: 1 }
}

/// Instructions, memories, and a turn.
fn prompt_of(talk: u32, memories: &[usize]) -> Prompt {
    let mut prompt = prompt(&tokens(100 + talk, PREAMBLE));
    prompt.seams.push(prompt.tokens.len());
    for memory in memories {
        let start = prompt.tokens.len();
        prompt.tokens.extend(tokens(*memory as u32, MEMORIES[*memory]));
        prompt.memories.push((start..prompt.tokens.len(), source(*memory)));
    }
    prompt.seams.push(prompt.tokens.len());
    prompt.tokens.extend(tokens(200 + talk, TURN));
    prompt
}

impl World {
    async fn say(&self, key: &CubeKey, prompt: Prompt) -> (String, Finished) {
        let request = self.request(key, prompt);
        self.begin(key, request).expect("begun").collect().await.expect("answered")
    }

    /// Until whatever is done when nobody waits has been done.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }

    fn segments(&self, key: &CubeKey, prompt: Prompt) -> Vec<activation_cache::Segment> {
        let model = &self.inference.facts().fingerprint;
        Chain::of(prompt, model, &key.tenant).segments(1, model, &key.tenant)
    }

    fn in_ram(&self) -> usize {
        self.inference.cache().counts().1
    }
}

/// Tokens that segments save.
fn saved(memories: &[usize]) -> usize {
    let tails = memories.iter().map(|memory| MEMORIES[*memory] as usize - REPAIR);
    // What saves hardly anything is computed.
    tails.filter(|tail| *tail >= 8).sum()
}

#[tokio::test(start_paused = true)]
async fn memories_come_from_what_was_computed_for_each_by_itself() {
    let world = world(Some(REPAIR)).await;
    let ann = key("acme", "ann");
    let (_, first) = world.say(&ann, prompt_of(1, &[0, 1, 2, 3])).await;
    assert_eq!((first.reuse.segment_tokens, first.reuse.is_exact()), (0, true));
    let blocks = world.in_ram();
    world.settle().await;
    assert_eq!(world.in_ram(), blocks + 3, "all but the one that is too short");
    // Another conversation, another order, and one more of which nothing is known yet.
    let computed = world.engine.prefilled_tokens();
    let memories = [2, 4, 1, 3];
    let (_, second) = world.say(&ann, prompt_of(2, &memories)).await;
    let reuse = &second.reuse;
    assert_eq!(reuse.segment_tokens, saved(&[2, 1, 3]), "{reuse:?}");
    assert!(!reuse.is_exact());
    let all = prompt_of(2, &memories).tokens.len();
    assert_eq!(reuse.computed_tokens + reuse.reused(), all);
    assert_eq!(world.engine.prefilled_tokens() - computed, reuse.computed_tokens as u64);
    assert!(second.timings.first_token_us < first.timings.first_token_us / 2);
    let kept: Vec<usize> = second.unstored.iter().map(|(block, _)| block.span.end).collect();
    assert_eq!(kept, [PREAMBLE as usize], "nothing behind what is not exact");
    world.settle().await;
    // The exact prefix is still there, and so is the new memory.
    let (_, third) = world.say(&ann, prompt_of(2, &memories)).await;
    let on_device = third.reuse.reused_tokens.get(&Tier::Device);
    assert_eq!(on_device, Some(&(PREAMBLE as usize)));
    assert_eq!(third.reuse.segment_tokens, saved(&memories));
    assert_eq!(world.engine.wrong_blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_computed_ahead_is_exact_and_goes_before_segments() {
    let (approximate, exact) = (world(Some(REPAIR)).await, world(None).await);
    let ann = key("acme", "ann");
    approximate.say(&ann, prompt_of(1, &[0, 1, 2])).await;
    approximate.settle().await;
    let wanted = prompt_of(2, &[2, 0, 1]);
    let (expected, _) = exact.say(&ann, wanted.clone()).await;
    let (text, finished) = approximate.say(&ann, wanted.clone()).await;
    assert!(!finished.reuse.is_exact() && text != expected, "it is not what it would be: {text}");
    let lease = approximate.inference.cache().lease(ann.clone());
    let request = approximate.request(&ann, wanted.clone());
    let ahead = approximate.inference.preload(lease, request).await.expect("preloaded");
    assert_eq!((ahead.reuse.segment_tokens, ahead.reuse.is_exact()), (0, true));
    let (text, finished) = approximate.say(&ann, wanted).await;
    assert!(finished.reuse.is_exact(), "{finished:?}");
    assert_eq!(text, expected);
}

#[tokio::test(start_paused = true)]
async fn off_or_repaired_to_their_ends_they_change_nothing() {
    let ann = key("acme", "ann");
    let mut all = Vec::new();
    for repair in [None, Some(300), Some(usize::MAX)] {
        let world = world(repair).await;
        let mut said = Vec::new();
        for (talk, memories) in [(1, [0, 1, 2]), (2, [2, 1, 0]), (3, [4, 2, 1])] {
            let (text, finished) = world.say(&ann, prompt_of(talk, &memories)).await;
            assert!(finished.reuse.is_exact(), "{repair:?}");
            world.settle().await;
            said.push((text, finished.reuse, finished.timings));
        }
        all.push((said, world.inference.cache().counts(), world.engine.prefilled_tokens()));
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

#[tokio::test(start_paused = true)]
async fn other_tenants_have_none_and_wait_no_less() {
    let (ann, eve) = (key("acme", "ann"), key("apex", "eve"));
    let mut of_eve = Vec::new();
    for has_neighbour in [false, true] {
        let world = world(Some(REPAIR)).await;
        if has_neighbour {
            world.say(&ann, prompt_of(1, &[0, 4])).await;
            world.settle().await;
            let (_, own) = world.say(&ann, prompt_of(2, &[0, 4])).await;
            assert_eq!(own.reuse.segment_tokens, saved(&[0, 4]));
        }
        let (text, finished) = world.say(&eve, prompt_of(3, &[4, 0])).await;
        assert_eq!(finished.reuse.reused(), 0);
        of_eve.push((text, finished.timings));
    }
    assert_eq!(of_eve[0], of_eve[1]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_memory_has_no_segment_any_more() {
    let world = world(Some(REPAIR)).await;
    let ann = key("acme", "ann");
    world.say(&ann, prompt_of(1, &[0, 1, 2])).await;
    world.settle().await;
    let cache = world.inference.cache();
    let forgotten = |memory| Forgotten {
        memories: [source(memory).id].into(),
        conversations: std::collections::BTreeSet::new(),
    };
    let (tenant, cube) = (&ann.tenant, &ann.cube);
    let lease = cache.lease(ann.clone());
    let has = |memory: usize| {
        let segments = world.segments(&ann, prompt_of(1, &[0, 1, 2]));
        cache.segment(&lease, &segments[memory]).is_some()
    };
    assert_eq!([has(0), has(1), has(2)], [true; 3]);
    cache.forget(tenant, cube, &forgotten(1), &[]);
    assert_eq!([has(0), has(1), has(2)], [true, false, true]);
    let (_, finished) = world.say(&ann, prompt_of(2, &[2, 0])).await;
    assert_eq!(finished.reuse.segment_tokens, saved(&[2, 0]));
    // What is forgotten while its segment is being made is not kept.
    let before = world.in_ram();
    world.say(&ann, prompt_of(3, &[4])).await;
    let blocks = world.in_ram() - before;
    cache.forget(tenant, cube, &forgotten(4), &[]);
    world.settle().await;
    assert!(blocks > 0);
    assert!(cache.segment(&lease, &world.segments(&ann, prompt_of(3, &[4]))[0]).is_none());
    cache.forget_cube(tenant, cube, &[]);
    assert_eq!(cache.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_is_computed_counted_and_made_again() {
    let world = world(Some(REPAIR)).await;
    let ann = key("acme", "ann");
    world.say(&ann, prompt_of(1, &[0, 1])).await;
    world.settle().await;
    let wanted = prompt_of(2, &[1, 0]);
    let segment = world.segments(&ann, wanted.clone()).remove(0);
    let cache = world.inference.cache();
    let chain = world.request(&ann, wanted.clone()).chain;
    let mut lease = cache.lease(ann.clone());
    assert!(cache.narrow(&mut lease, Contents::of_chain(&chain)));
    let mut damaged = KvBytes::clone(&cache.segment(&lease, &segment).expect("made"));
    let mut bytes = damaged.layers[1].bytes.to_vec();
    bytes[77] ^= 1;
    damaged.layers[1].bytes = bytes.into();
    cache.drop_damaged(&ann.tenant, segment.key, Tier::Ram);
    cache.admit_segment(&lease, &segment, Arc::new(damaged));
    let (_, finished) = world.say(&ann, wanted.clone()).await;
    let reuse = finished.reuse;
    assert_eq!((reuse.corrupt_blocks, reuse.segment_tokens), (1, saved(&[0])));
    assert_eq!(reuse.computed_tokens + reuse.reused(), wanted.tokens.len());
    assert!(cache.segment(&lease, &segment).is_none());
    world.settle().await;
    let (_, healed) = world.say(&ann, wanted).await;
    assert_eq!((healed.reuse.corrupt_blocks, healed.reuse.segment_tokens), (0, saved(&[1, 0])));
}

#[tokio::test(start_paused = true)]
async fn a_device_without_memory_for_segments_recovers() {
    let world = world(Some(REPAIR)).await;
    let ann = key("acme", "ann");
    world.say(&ann, prompt_of(1, &[0, 1, 2])).await;
    world.settle().await;
    // Room for the prompt, not for it beside the session that is parked.
    let wanted = prompt_of(2, &[2, 1, 0]);
    let tokens = wanted.tokens.len() as u64 + 45;
    world.engine.set_device_bytes_max(tokens * TOKEN_BYTES);
    let (_, finished) = world.say(&ann, wanted).await;
    assert_eq!(finished.reuse.segment_tokens, saved(&[2, 1, 0]));
    assert!(world.engine.bytes_used() <= tokens * TOKEN_BYTES);
}
