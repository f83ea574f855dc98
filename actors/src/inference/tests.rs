//! Replies over a scripted engine on paused time: the same with and without what is cached, in
//! time, within bounds, and never from a block that is not theirs.

mod segments;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use memcube_schemas::{
    CubeId, MemoryId, TenantId, Version,
    activation::BlockSource,
    limits::{INFERENCE_REQUESTS_MAX, REPLY_MS_DEFAULT},
};

use super::{
    activation_cache::{CacheSettings, Contents, Forgotten, Prompt, Sources, Tier, chain::Chain},
    generate::LocalModel,
    scripted::{ScriptedCosts, ScriptedEngine},
    *,
};
use crate::{ErrorKind, Result, cube::CubeKey, environment::Environment};

const WINDOW: usize = 8_192;
/// Bytes of a token in the scripted engine.
const TOKEN_BYTES: u64 = 256;

struct World {
    engine: Arc<ScriptedEngine>,
    inference: LocalModel,
    environment: Environment,
}

impl World {
    async fn new() -> Self {
        Self::with(1 << 30, CacheSettings::default()).await
    }

    async fn with(device_bytes_max: u64, cache: CacheSettings) -> Self {
        let engine =
            Arc::new(ScriptedEngine::new(WINDOW, device_bytes_max, ScriptedCosts::default()));
        let environment = Environment::scripted(7);
        let parts =
            InferenceParts { cache, ..InferenceParts::new(Arc::clone(&engine) as Arc<dyn Engine>) };
        let inference = LocalModel::start(parts, None, environment.clone()).await.expect("started");
        Self { engine, inference, environment }
    }

    fn request(&self, key: &CubeKey, prompt: Prompt) -> GenerateRequest {
        let fingerprint = &self.inference.facts().fingerprint;
        GenerateRequest {
            chain: Arc::new(Chain::of(prompt, fingerprint, &key.tenant)),
            stored: BTreeMap::new(),
            sampling: Sampling::GREEDY,
            seed: 0,
            tokens_max: 40,
            stops: Vec::new(),
            ms_max: REPLY_MS_DEFAULT,
            is_cached: true,
            stop: Cancel::default(),
        }
    }

    fn begin(&self, key: &CubeKey, request: GenerateRequest) -> Result<ReplyStream> {
        self.inference.reply(self.inference.cache().lease(key.clone()), request)
    }

    async fn reply(&self, key: &CubeKey, tokens: &[Token]) -> (String, Finished) {
        let request = self.request(key, prompt(tokens));
        self.begin(key, request).expect("begun").collect().await.expect("answered")
    }

    async fn preload(&self, key: &CubeKey, tokens: &[Token]) -> Result<Finished> {
        let lease = self.inference.cache().lease(key.clone());
        self.inference.preload(lease, self.request(key, prompt(tokens))).await
    }
}

fn prompt(tokens: &[Token]) -> Prompt {
    Prompt { tokens: tokens.to_vec(), ..Prompt::default() }
}

fn key(tenant: &str, cube: &str) -> CubeKey {
    CubeKey {
        tenant: TenantId::new(tenant).expect("valid"),
        cube: CubeId::new(cube).expect("valid"),
    }
}

/// Tokens that are the same for the same seed, and whose beginnings are.
fn tokens(seed: u32, count: u32) -> Vec<Token> {
    (0..count).map(|n| n.wrapping_mul(2_654_435_761).rotate_left(seed) ^ seed).collect()
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_the_same_with_and_without_what_is_cached() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    for seed in 0..20 {
        let long = tokens(seed, 400 + 97 * seed);
        let short = &long[..long.len() - 50];
        world.preload(&ann, short).await.expect("preloaded");
        let seams = vec![short.len()];
        let seamed = |is_cached| GenerateRequest {
            is_cached,
            ..world.request(&ann, Prompt { seams: seams.clone(), ..prompt(&long) })
        };
        let warm = world.begin(&ann, seamed(true)).expect("begun").collect().await.expect("warm");
        let cold = world.begin(&ann, seamed(false)).expect("begun").collect().await.expect("cold");
        assert_eq!(warm.0, cold.0, "seed {seed}");
        assert_eq!(warm.1.reuse.reused(), short.len(), "seed {seed}: all of the prefix");
        assert_eq!(warm.1.reuse.computed_tokens, 50);
        assert_eq!(cold.1.reuse.reused(), 0);
        assert!(warm.1.timings.first_token_us < cold.1.timings.first_token_us / 4);
    }
    assert_eq!(world.engine.wrong_blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_on_the_device_comes_from_ram() {
    let settings = CacheSettings { device_bytes_max: 0, ..CacheSettings::default() };
    let world = World::with(1 << 30, settings).await;
    let ann = key("acme", "ann");
    let (first, _) = world.reply(&ann, &tokens(1, 700)).await;
    let (again, finished) = world.reply(&ann, &tokens(1, 700)).await;
    assert_eq!(first, again);
    // The last block is computed again in any case.
    assert_eq!(finished.reuse.reused_tokens, BTreeMap::from([(Tier::Ram, 512)]));
    assert_eq!(world.inference.cache().bytes().0, 0);
    assert_eq!(world.engine.bytes_used(), 0, "nothing is left on the device");
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_damaged_in_ram_is_computed_again() {
    let settings = CacheSettings { device_bytes_max: 0, ..CacheSettings::default() };
    let world = World::with(1 << 30, settings).await;
    let ann = key("acme", "ann");
    let (expected, finished) = world.reply(&ann, &tokens(1, 700)).await;
    let cache = world.inference.cache();
    let request = world.request(&ann, prompt(&tokens(1, 700)));
    let mut lease = cache.lease(ann.clone());
    assert!(cache.narrow(&mut lease, Contents::of_chain(&request.chain)));
    let (block, good) = &finished.unstored[1];
    let mut damaged = KvBytes::clone(good);
    let mut bytes = damaged.layers[0].bytes.to_vec();
    bytes[9] ^= 1;
    damaged.layers[0].bytes = bytes.into();
    cache.drop_damaged(&ann.tenant, block.key, Tier::Ram);
    cache.admit(&lease, &request.chain, 1, Arc::new(damaged));
    let (again, finished) = world.reply(&ann, &tokens(1, 700)).await;
    assert_eq!(again, expected);
    assert_eq!((finished.reuse.corrupt_blocks, finished.reuse.reused()), (1, 256));
    let (_, healed) = world.reply(&ann, &tokens(1, 700)).await;
    assert_eq!((healed.reuse.corrupt_blocks, healed.reuse.reused()), (0, 512));
}

#[tokio::test(start_paused = true)]
async fn a_tenant_never_uses_what_another_has_cached_nor_waits_less_for_it() {
    let world = World::new().await;
    let (ann, eve) = (key("acme", "ann"), key("apex", "eve"));
    let (_, fresh) = world.reply(&eve, &tokens(2, 600)).await;
    world.reply(&ann, &tokens(1, 600)).await;
    let (_, known_elsewhere) = world.reply(&eve, &tokens(1, 600)).await;
    assert_eq!(known_elsewhere.reuse.reused(), 0);
    assert_eq!(known_elsewhere.timings.first_token_us, fresh.timings.first_token_us);
    let (_, own) = world.reply(&ann, &tokens(1, 600)).await;
    assert!(own.timings.first_token_us < fresh.timings.first_token_us / 2);
}

#[tokio::test(start_paused = true)]
async fn what_two_memories_share_goes_with_either() {
    let settings = CacheSettings { device_bytes_max: 0, ..CacheSettings::default() };
    let world = World::with(1 << 30, settings).await;
    let ann = key("acme", "ann");
    let of = |id: u64| {
        let source = BlockSource { id: MemoryId::from_parts(1, u128::from(id)), revision: 1 };
        Prompt { memories: vec![(0..600, source)], ..prompt(&tokens(1, 600)) }
    };
    for id in [1, 2] {
        let request = world.request(&ann, of(id));
        world.begin(&ann, request).expect("begun").collect().await.expect("answered");
    }
    let cache = world.inference.cache();
    assert_eq!(cache.counts().1, 3);
    let memories = [MemoryId::from_parts(1, 2)].into();
    let forgotten = Forgotten { memories, ..Forgotten::default() };
    cache.forget(&ann.tenant, &ann.cube, &forgotten, &[]);
    assert_eq!(cache.counts().1, 0, "the second one used what the first one had computed");
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_of_a_cube_stays_if_nobody_else_had_it_meanwhile() {
    let (first, other) = (Version(1), Version(9));
    let table = [
        // Which ownership row it was claimed in place of, and whether what was kept stays.
        (Some(first), true),
        (Some(other), false),
        (None, false),
    ];
    for (former, stays) in table {
        let world = World::new().await;
        let (ann, bo) = (key("acme", "ann"), key("acme", "bo"));
        let cache = world.inference.cache();
        cache.claimed(&ann, None, first);
        world.reply(&ann, &tokens(1, 300)).await;
        world.reply(&bo, &tokens(2, 300)).await;
        let mut lease = cache.lease(ann.clone());
        let before = cache.counts();
        cache.claimed(&ann, former, Version(10));
        let gone = before.0 - cache.counts().0;
        assert_eq!(gone, usize::from(!stays), "{former:?}");
        assert_eq!(cache.narrow(&mut lease, Sources::default()), stays, "{former:?}");
        let held = cache.holdings();
        let is_of = |key: &CubeKey| held.iter().any(|holding| holding.cube == key.cube);
        assert_eq!((is_of(&ann), is_of(&bo)), (stays, true), "{former:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_goes_before_what_is_computed_ahead() {
    let world = World::new().await;
    let (ann, bo) = (key("acme", "ann"), key("acme", "bo"));
    let ahead = tokens(1, 5_000);
    let preload = world.preload(&ann, &ahead);
    let reply = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let answered = world.reply(&bo, &tokens(2, 100)).await;
        (answered.1.timings.first_token_us, world.environment.monotonic_us())
    };
    let start_us = world.environment.monotonic_us();
    let (preloaded, (first_token_us, replied_us)) = tokio::join!(preload, reply);
    let preloaded = preloaded.expect("in the end");
    // It waits for no more than the block that is under way.
    assert!(first_token_us < 100 * 1_100 + 256 * 1_100, "{first_token_us}");
    assert!(replied_us < start_us + preloaded.timings.total_us / 2);
    assert_eq!(preloaded.reuse.computed_tokens, 5_000);
}

#[tokio::test(start_paused = true)]
async fn replies_at_the_same_time_share_steps_and_do_not_change_each_other() {
    let world = World::new().await;
    // So many that the longest of them takes but a part of the time.
    let keys: Vec<CubeKey> = (0..16).map(|n| key("acme", &format!("c{n}"))).collect();
    let mut alone = Vec::new();
    let start_us = world.environment.monotonic_us();
    for (n, key) in keys.iter().enumerate() {
        alone.push(world.reply(key, &tokens(n as u32, 30)).await.0);
    }
    let alone_us = world.environment.monotonic_us() - start_us;
    let world = World::new().await;
    let start_us = world.environment.monotonic_us();
    let replies = keys.iter().enumerate();
    let world = &world;
    let replies =
        replies.map(|(n, key)| async move { world.reply(key, &tokens(n as u32, 30)).await });
    let together = futures_util::future::join_all(replies).await;
    let together_us = world.environment.monotonic_us() - start_us;
    assert_eq!(together.into_iter().map(|(text, _)| text).collect::<Vec<_>>(), alone);
    assert!(together_us * 2 < alone_us, "{together_us} against {alone_us}");
}

#[tokio::test(start_paused = true)]
async fn past_the_bound_requests_are_refused_and_places_come_back() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let begin = |n: usize| {
        let request = world.request(&ann, prompt(&tokens(n as u32, 10)));
        world.begin(&ann, request)
    };
    let streams: Vec<ReplyStream> =
        (0..INFERENCE_REQUESTS_MAX).map(|n| begin(n).expect("a place")).collect();
    let refused = begin(99).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.retry_after().is_some());
    for stream in streams {
        stream.collect().await.expect("answered");
    }
    begin(99).expect("free again").collect().await.expect("answered");
    assert_eq!(world.inference.queues().map(|queue| queue.depth), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_goes_away_stops_the_model() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let request = world.request(&ann, prompt(&tokens(1, 6_000)));
    let stream = world.begin(&ann, request).expect("begun");
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    drop(stream);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let computed = world.engine.prefilled_tokens();
    assert!(computed <= 1_024, "{computed} tokens were computed");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.engine.prefilled_tokens(), computed, "nothing goes on");
    assert_eq!(world.engine.bytes_used(), 0, "its session is gone");
    assert_eq!(world.inference.queues().map(|queue| queue.depth), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_gives_its_place_back() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let mut streams = Vec::new();
    // Hot sampling at this seed talks for long.
    for seed in 0..20 {
        let sampling = Sampling { temperature: 1.0, top_p: 1.0 };
        let base = world.request(&ann, prompt(&tokens(1, 30)));
        let request =
            GenerateRequest { tokens_max: 4_000, seed, ms_max: 100_000, sampling, ..base };
        streams.push(world.begin(&ann, request).expect("begun"));
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(world.inference.queues().map(|queue| queue.depth), [0, 0]);
    assert!(world.engine.bytes_used() <= world.inference.cache().bytes().0 + 31 * TOKEN_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_reply_or_refuses_it() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let with = |count, ms_max| GenerateRequest {
        ms_max,
        ..world.request(&ann, prompt(&tokens(4, count)))
    };
    let refused = world.begin(&ann, with(6_000, 500)).expect("begun").collect().await;
    assert_eq!(refused.expect_err("too late").kind(), ErrorKind::Overloaded);
    let whole = world.begin(&ann, with(41, 60_000)).expect("begun").collect().await.expect("whole");
    assert!(whole.1.timings.reply_tokens > 2, "{whole:?}");
    let first_us = whole.1.timings.first_token_us;
    let cut = world.begin(&ann, with(41, first_us / 1_000 + 30)).expect("begun").collect().await;
    let (text, finished) = cut.expect("what there was time for");
    assert_eq!(finished.reason, FinishReason::Deadline);
    assert!(whole.0.starts_with(&text) && text.len() < whole.0.len());
}

#[tokio::test(start_paused = true)]
async fn stop_words_and_lengths_end_a_reply() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let base = world.request(&ann, prompt(&tokens(3, 30)));
    let say =
        async |request| world.begin(&ann, request).expect("begun").collect().await.expect("said");
    let (whole, _) = say(base.clone()).await;
    let (cut, finished) = say(GenerateRequest { tokens_max: 2, ..base.clone() }).await;
    assert_eq!((finished.reason, finished.timings.reply_tokens), (FinishReason::Length, 2));
    assert!(whole.starts_with(&cut));
    let word = whole.split(' ').nth(2).expect("a third word").to_owned();
    let (stopped, finished) =
        say(GenerateRequest { stops: vec![word.clone()], ..base.clone() }).await;
    assert_eq!(finished.reason, FinishReason::Stop);
    assert!(whole.starts_with(&stopped) && !stopped.contains(&word));
    let hot = Sampling { temperature: 1.0, top_p: 1.0 };
    let seeded = |seed| GenerateRequest { sampling: hot, seed, ..base.clone() };
    let drawn = [say(seeded(1)).await.0, say(seeded(1)).await.0, say(seeded(2)).await.0];
    assert!(drawn[0] == drawn[1] && drawn[0] != drawn[2], "{drawn:?}");
}

#[tokio::test(start_paused = true)]
async fn a_device_without_memory_lets_go_then_refuses() {
    let world = World::with(1_000 * TOKEN_BYTES, CacheSettings::default()).await;
    let (ann, bo) = (key("acme", "ann"), key("acme", "bo"));
    let (expected, _) = world.reply(&ann, &tokens(1, 600)).await;
    let parked = world.inference.cache().bytes().0;
    assert_eq!(parked, 600 * TOKEN_BYTES, "the prompt is parked, what was said is not");
    // There is room for one of them only.
    world.reply(&bo, &tokens(2, 600)).await;
    let (again, finished) = world.reply(&ann, &tokens(1, 600)).await;
    assert_eq!(again, expected);
    assert_eq!(finished.reuse.reused_tokens.get(&Tier::Ram), Some(&512), "RAM has it still");
    world.engine.set_device_bytes_max(100 * TOKEN_BYTES);
    let request = world.request(&ann, prompt(&tokens(5, 600)));
    let refused = world.begin(&ann, request).expect("begun").collect().await;
    assert_eq!(refused.expect_err("no room").kind(), ErrorKind::Overloaded);
    world.engine.set_device_bytes_max(1 << 30);
    assert_eq!(world.reply(&ann, &tokens(1, 600)).await.0, expected, "and recovers");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_does_not_fit_is_refused_at_once() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    for count in [0, WINDOW as u32, WINDOW as u32 + 1] {
        let request = world.request(&ann, prompt(&tokens(1, count)));
        let refused = world.begin(&ann, request).expect_err("it does not fit");
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{count}");
    }
    let request = world.request(&ann, prompt(&tokens(1, WINDOW as u32 - 2)));
    let (_, finished) = world.begin(&ann, request).expect("fits").collect().await.expect("said");
    assert!(finished.timings.reply_tokens <= 2, "{finished:?}");
}

fn remembering(count: u32, ids: &[u64]) -> Prompt {
    let source = |id: &u64| BlockSource { id: MemoryId::from_parts(*id, 0), revision: 1 };
    let memories = ids.iter().enumerate().map(|(n, id)| (n * 300..n * 300 + 20, source(id)));
    Prompt { memories: memories.collect(), ..prompt(&tokens(1, count)) }
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_in_no_tier_and_nothing_keeps_it() {
    let world = World::new().await;
    let ann = key("acme", "ann");
    let cache = world.inference.cache();
    let ids = |ids: &[u64]| Forgotten {
        memories: ids.iter().map(|id| MemoryId::from_parts(*id, 0)).collect(),
        ..Forgotten::default()
    };
    // Memories in the first, the second and the third block.
    let said = |prompt| world.begin(&ann, world.request(&ann, prompt)).expect("begun");
    said(remembering(900, &[1, 2, 3])).collect().await.expect("answered");
    assert_eq!(cache.counts(), (1, 4));
    cache.forget(&ann.tenant, &key("acme", "bo").cube, &ids(&[1, 2, 3]), &[]);
    assert_eq!(cache.counts(), (1, 4), "another cube's memories");
    cache.forget(&ann.tenant, &ann.cube, &ids(&[9]), &[]);
    assert_eq!(cache.counts(), (1, 4), "another memory");
    cache.forget(&ann.tenant, &ann.cube, &ids(&[2]), &[]);
    assert_eq!(cache.counts(), (0, 1), "what stands before it stays");
    assert_eq!(world.engine.bytes_used(), 0);

    // Forgotten while the last block is computed: it goes on, and nothing of it is kept.
    let stream = said(remembering(900, &[1, 2, 3]));
    tokio::time::sleep(Duration::from_millis(700)).await;
    cache.forget(&ann.tenant, &ann.cube, &ids(&[3]), &[]);
    let (_, finished) = stream.collect().await.expect("answered");
    assert!(finished.unstored.is_empty());
    assert_eq!(cache.counts(), (0, 1));

    // Forgotten before the prompt was made, and after its parts were read.
    let lease = cache.lease(ann.clone());
    cache.forget(&ann.tenant, &ann.cube, &ids(&[77]), &[]);
    let late = world.inference.reply(lease, world.request(&ann, remembering(900, &[1])));
    assert_eq!(late.expect_err("made of what may be gone").kind(), ErrorKind::Conflict);
    cache.forget_cube(&ann.tenant, &ann.cube, &[]);
    assert_eq!(cache.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_quota_of_a_tenant_holds_while_it_computes() {
    let settings = CacheSettings {
        ram_bytes_max: 3_000 * TOKEN_BYTES,
        tenant_ram_bytes_max: 1_000 * TOKEN_BYTES,
        device_bytes_max: 2_000 * TOKEN_BYTES,
        tenant_device_bytes_max: 1_000 * TOKEN_BYTES,
        cold_in_8_bits: false,
    };
    let world = World::with(1 << 30, settings).await;
    let (ann, eve) = (key("acme", "ann"), key("apex", "eve"));
    world.reply(&eve, &tokens(1, 600)).await;
    for seed in 2..12 {
        world.reply(&ann, &tokens(seed, 600)).await;
        let (device, ram) = world.inference.cache().bytes();
        assert!(device <= 1_600 * TOKEN_BYTES && ram <= 1_600 * TOKEN_BYTES, "{device} {ram}");
    }
    let (_, finished) = world.reply(&eve, &tokens(1, 600)).await;
    assert_eq!(finished.reuse.reused(), 512, "nobody took it away");
}

#[cfg(feature = "defects")]
#[tokio::test(start_paused = true)]
async fn the_planted_bug_of_a_foreign_block_is_noticed_by_the_engine() {
    let engine = Arc::new(ScriptedEngine::new(WINDOW, 1 << 30, ScriptedCosts::default()));
    let environment = Environment::scripted(7).with_defects([crate::defects::Defect::ForeignBlock]);
    let parts = InferenceParts::new(Arc::clone(&engine) as Arc<dyn Engine>);
    let inference = LocalModel::start(parts, None, environment.clone()).await.expect("started");
    let world = World { engine, inference, environment };
    world.reply(&key("acme", "ann"), &tokens(1, 600)).await;
    let (_, finished) = world.reply(&key("apex", "eve"), &tokens(2, 600)).await;
    assert!(finished.reuse.reused() > 0);
    let right = World::new().await.reply(&key("apex", "eve"), &tokens(2, 600)).await;
    let (wrong, _) = world.reply(&key("apex", "eve"), &tokens(2, 600)).await;
    assert_ne!(wrong, right.0, "it says something else");
}
