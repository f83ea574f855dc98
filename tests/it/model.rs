//! With the real model: recall finds meanings, not only words.

use memcube::{Node, settings::EmbedderKind};

use crate::support::{TestNode, in_memory};

const FACTS: [&str; 8] = [
    "My sister gave birth to twins last spring.",
    "The car would not start, so I called a tow truck.",
    "Our physician told me to cut down on salt.",
    "He resigned from the bank and opened a bakery.",
    "We spent the holidays hiking through snowy mountains.",
    "The landlord raised the rent by ten percent.",
    "I cannot eat peanuts, they make my throat swell.",
    "They adopted a puppy from the animal shelter.",
];

/// Questions without a word in common with what answers them.
const QUESTIONS: [(&str, usize); 5] = [
    ("Which foods trigger an allergic reaction?", 6),
    ("What medical advice did someone receive?", 2),
    ("Who became an aunt to newborn babies?", 0),
    ("Which new pet joined that family?", 7),
    ("How much more expensive did housing get?", 5),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paraphrases_are_found_first() {
    let mut settings = in_memory();
    settings.embedder.kind = EmbedderKind::Minilm;
    let dir = settings.embedder.model_dir.clone();
    let has_model = dir.join("model.safetensors").is_file();
    assert!(has_model, "there is no model in {}; run `make model`", dir.display());
    let node = Node::builder().with_settings(settings);
    let node = TestNode::serve(Box::pin(node.start()).await.expect("the node starts")).await;
    node.client.cube("c").await;
    for fact in FACTS {
        node.client.fact("c", fact).await;
    }
    let described = node.client.get("/v1/cubes/c").await.expect(200);
    assert_eq!(described["embedder"], "minilm-l6-v2@53aa5117");
    for (question, answer) in QUESTIONS {
        let words = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
            words.map(str::to_lowercase).collect()
        };
        let shared = words(question).into_iter().find(|word| words(FACTS[answer]).contains(word));
        assert_eq!(shared, None, "{question} gives its answer away");
        let found = node.client.search("c", question).await;
        assert_eq!(found[0], FACTS[answer], "{question}: {found:#?}");
    }
}
