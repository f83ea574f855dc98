//! With the real language model: what is said does not depend on where the context came from.

use std::{path::PathBuf, sync::Arc};

use memcube::{
    Node, Settings, TenantContext,
    inference::candle::{engine::CandleEngine, language::KvCache},
    schemas::{ConversationId, CubeId, MemoryId, TenantId},
    settings::StoreKind,
};
use memcube_actors::{
    cube::{AddRequest, ChatRequest, CubeHandle, PreloadRequest},
    inference::{
        ChatMessage, Engine, Finished, InferenceParts,
        activation_cache::{CacheSettings, Tier},
    },
};
use memcube_schemas::conversation::Role;

use crate::support::{TENANT, in_memory};

/// Tokens that are said to each prompt.
const REPLY_TOKENS: usize = 24;
const SUBJECTS: [&str; 5] = ["Ann", "Bruno", "Chloe", "Dmitri", "Esra"];
const QUESTIONS: [&str; 10] = [
    "What does {} do for a living?",
    "Which animal lives with {}?",
    "Where did {} spend the last summer?",
    "What should nobody cook for {}?",
    "Write a short birthday wish for {}.",
    "Name one thing that {} is afraid of, and say why it matters.",
    "If {} had a free afternoon, what would be a good plan?",
    "Tell me in one sentence who {} is.",
    "How old is {}, as far as is known?",
    "Is there anything about {} that you do not know?",
];

fn engine() -> CandleEngine {
    let dir: PathBuf = in_memory().embedder.model_dir.with_file_name("smollm2-135m-instruct");
    CandleEngine::open_smollm2(&dir, 2).unwrap_or_else(|error| panic!("{error}"))
}

fn facts(subject: &str, number: usize) -> Vec<String> {
    let job = ["baker", "surgeon", "bus driver", "carpenter", "translator"][number];
    let animal = ["greyhound", "parrot", "tortoise", "cat", "rabbit"][number];
    let place = ["Porto", "Tromso", "Kyoto", "Dakar", "Quito"][number];
    vec![
        format!("{subject} works as a {job} and gets up at {} in the morning.", number + 4),
        format!("{subject} lives with a {animal} that came from a shelter two years ago."),
        format!("{subject} spent last July in {place} and wants to go back there."),
        format!("{subject} is allergic to peanuts and does not eat shellfish either."),
        format!("{subject} turned {} in March, and does not like surprise parties.", 30 + number),
        format!("{subject} is afraid of heights since a fall from a ladder at school."),
    ]
}

/// A node whose blocks lie in RAM and in a directory, or nowhere.
async fn node(engine: &CandleEngine, settings: Settings, cache: CacheSettings) -> Node {
    let node = Box::pin(Node::builder().with_settings(settings).start()).await.expect("starts");
    let model = Arc::new(engine.clone()) as Arc<dyn Engine>;
    let parts = InferenceParts { cache, objects_are_local: true, ..InferenceParts::new(model) };
    node.cubes().serve_model(parts).await.expect("serves");
    node
}

async fn cube(node: &Node, subject: &str, facts: Vec<String>) -> (CubeHandle, Vec<MemoryId>) {
    let tenant = TenantId::new(TENANT).expect("valid");
    let context = TenantContext::authenticated(tenant, "test");
    let id = CubeId::new(subject.to_lowercase()).expect("valid");
    let cube = node.cubes().ensure(&context, id).await.expect("made");
    let added = cube.add(AddRequest { facts, ..AddRequest::default() }).await.expect("added");
    (cube, added.memories.iter().map(|memory| memory.id).collect())
}

async fn preload(cube: &CubeHandle, memories: Vec<MemoryId>) {
    let request = PreloadRequest {
        conversation: ConversationId::new("talk").expect("valid"),
        preamble: "You are a helpful assistant that knows people well.".to_owned(),
        turns: Vec::new(),
        memories,
        ms_max: 600_000,
    };
    cube.preload(request).await.expect("preloaded");
}

async fn say(cube: &CubeHandle, question: &str) -> (String, Finished) {
    let conversation = ConversationId::new("talk").expect("valid");
    let request = ChatRequest {
        preamble: "You are a helpful assistant that knows people well.".to_owned(),
        recall: None,
        tokens_max: REPLY_TOKENS,
        ms_max: 600_000,
        ..ChatRequest::new(conversation, question)
    };
    let mut stream = cube.chat(request).await.expect("begun");
    let said = stream.collect().await.expect("said");
    if let Some(kept) = stream.kept().await {
        kept.expect("kept");
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_prompts_are_answered_alike_cold_from_ram_and_from_disk() {
    let engine = engine();
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = in_memory();
    settings.blobs.url = Some("none".to_owned());
    let nothing = CacheSettings {
        ram_bytes_max: 0,
        tenant_ram_bytes_max: 0,
        device_bytes_max: 0,
        tenant_device_bytes_max: 0,
        cold_in_8_bits: false,
    };
    let bare = node(&engine, settings, nothing).await;
    let mut settings = in_memory();
    settings.store.kind = StoreKind::Embedded;
    settings.store.data_dir = dir.path().to_owned();
    let warm = node(&engine, settings, CacheSettings::default()).await;
    let tenant = TenantId::new(TENANT).expect("valid");
    let mut prompts = 0;
    for (number, subject) in SUBJECTS.into_iter().enumerate() {
        let facts = facts(subject, number);
        let (cold, memories) = cube(&bare, subject, facts.clone()).await;
        preload(&cold, memories).await;
        let (cached, memories) = cube(&warm, subject, facts).await;
        preload(&cached, memories).await;
        let cache = warm.cubes().inference().expect("a model").cache();
        for question in QUESTIONS {
            let question = question.replace("{}", subject);
            let (expected, finished) = say(&cold, &question).await;
            assert_eq!(finished.reuse.reused(), 0);
            assert!(!expected.is_empty());
            for tier in [Tier::Ram, Tier::Disk] {
                if tier == Tier::Ram {
                    cache.free_device();
                } else {
                    cache.forget_cube(&tenant, cached.id(), &[]);
                }
                let (said, finished) = say(&cached, &question).await;
                assert_eq!(said, expected, "{question} {tier:?}");
                let found = finished.reuse.reused_tokens.keys().copied().collect::<Vec<_>>();
                assert_eq!(found, [tier], "{question}: {:?}", finished.reuse);
            }
            prompts += 1;
        }
    }
    assert_eq!(prompts, 50);
    bare.shut_down().await;
    warm.shut_down().await;
}

/// Pseudorandom numbers, the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

#[test]
fn logits_behind_an_injected_cache_are_those_of_a_full_computation() {
    let engine = engine();
    let model = engine.local().model();
    let text = SUBJECTS.iter().enumerate().flat_map(|(n, subject)| facts(subject, n));
    let asked = QUESTIONS.iter().map(|question| (*question).to_owned());
    let pieces: Vec<String> = text.chain(asked).collect();
    let message = ChatMessage { role: Role::System, pieces };
    let tokens = engine.render(&message, true).expect("rendered").tokens;
    assert!(tokens.len() > 520, "more than two pages: {}", tokens.len());
    let forward = |tokens: &[u32], cache: &mut KvCache| {
        let hidden = model.forward(tokens, cache, &|| false).expect("computed");
        model.logits(&hidden).expect("finite")
    };
    let mut whole = model.new_cache();
    let expected = forward(&tokens, &mut whole);
    let mut numbers = Numbers(7);
    for round in 0..8 {
        // Some splits are where pages end, where nothing is copied.
        let split = match round {
            0..2 => 256 * (round + 1),
            _ => 1 + numbers.below(tokens.len() - 1),
        };
        let (prefix, suffix) = tokens.split_at(split);
        let mut injected = model.new_cache();
        let cut = (split / 256 * 256).min(256 * numbers.below(3));
        for span in [0..cut, cut..split].into_iter().filter(|span| !span.is_empty()) {
            let layers = 0..injected.shape().layers;
            let layers = layers.map(|layer| whole.export_layer(layer, span.clone()));
            let layers = layers.collect::<Result<Vec<_>, _>>().expect("inside");
            injected.import(span.len(), &layers).expect("it fits");
        }
        assert_eq!(injected.len_tokens(), prefix.len());
        let found = forward(suffix, &mut injected);
        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "split at {split} of {}", tokens.len());
    }
}
