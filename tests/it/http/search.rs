//! `/v1/cubes/{cube}/search`

use serde_json::{Value, json};

use crate::support::{Client, TestNode, embedded, text_of};

const SEARCH: &str = "/v1/cubes/c/search";
const MEMORIES: &str = "/v1/cubes/c/memories";

/// Who says what, when, in which conversation, with which label.
const TURNS: [(&str, &str, &str, &str, &str); 8] = [
    ("Ingrid", "I repaired the old kayak and painted it green", "2024-03-09", "s1", "boat"),
    ("Tomas", "My daughter adopted two ginger kittens", "2024-03-09", "s1", "pets"),
    ("Ingrid", "The choir rehearses Brahms in the town hall", "2024-04-20", "s2", "music"),
    ("Tomas", "I burned the lasagne, so we ordered dumplings", "2024-04-20", "s2", "food"),
    ("Ingrid", "My passport expires in November", "2024-05-02", "s3", "travel"),
    ("Tomas", "We crossed the lake in the kayak at sunrise", "2024-05-02", "s3", "boat"),
    ("Ingrid", "The kittens scratched the green sofa", "2024-06-11", "s4", "pets"),
    ("Tomas", "The lasagne recipe needs more nutmeg", "2024-06-11", "s4", "food"),
];

async fn fill(client: &Client) {
    client.cube("c").await;
    for (name, content, day, conversation, tag) in TURNS {
        let message = json!({"name": name, "content": content, "chat_time": day});
        let body = json!({"messages": [message], "conversation": conversation, "tags": [tag]});
        client.post(MEMORIES, body).await.expect(201);
    }
    client.fact("c", "Kayaks are stored in the boathouse by the pier").await;
}

async fn filled() -> TestNode {
    let node = TestNode::start().await;
    fill(&node.client).await;
    node
}

async fn hits(client: &Client, body: Value) -> Vec<Value> {
    let found = client.post(SEARCH, body).await.expect(200);
    let hits = found["hits"].as_array().expect("a list").clone();
    let tokens: u64 =
        hits.iter().map(|hit| hit["memory"]["tokens"].as_u64().expect("tokens")).sum();
    assert_eq!(found["tokens"], tokens, "the sum of the hits");
    hits
}

fn texts(hits: &[Value]) -> Vec<String> {
    hits.iter().map(|hit| text_of(&hit["memory"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_that_answers_is_first() {
    let node = filled().await;
    for (query, words) in [
        ("who painted the kayak green", "painted it green"),
        ("which composer does the choir rehearse", "Brahms"),
        ("when does the passport expire", "expires in November"),
        ("what was ordered instead of lasagne", "dumplings"),
        ("where are kayaks stored", "boathouse"),
    ] {
        let found = node.client.search("c", query).await;
        assert!(found[0].contains(words), "{query}: {found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_carry_their_scores_and_sources_in_order() {
    let node = filled().await;
    let hits = hits(&node.client, json!({"query": "what did Tomas say about the kayak"})).await;
    assert_eq!(hits.len(), 9, "everything, best first");
    let names = ["dense", "dense_z", "lexical", "lexical_z", "speaker", "date", "form", "fused"];
    for hit in &hits {
        let scores = hit["scores"].as_object().expect("scores");
        let mut found: Vec<&String> = scores.keys().collect();
        found.sort();
        let mut expected = names.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(scores.values().all(Value::is_number), "{scores:?}");
        let relativity = hit["relativity"].as_f64().expect("a number");
        assert!((0.0..=1.0).contains(&relativity), "{relativity}");
        assert!(!hit["memory"]["sources"].as_array().expect("a list").is_empty());
    }
    let fused: Vec<f64> =
        hits.iter().map(|hit| hit["scores"]["fused"].as_f64().expect("a number")).collect();
    assert!(fused.windows(2).all(|pair| pair[0] >= pair[1]), "{fused:?}");
    let scores_of = |word: &str| {
        let hit = hits.iter().find(|hit| text_of(&hit["memory"]).contains(word)).expect("a hit");
        let score = |name: &str| hit["scores"][name].as_f64().expect("a number");
        (score("speaker"), score("lexical"), score("dense"))
    };
    let (speaker, lexical, dense) = scores_of("crossed the lake");
    assert!(speaker > 0.0, "Tomas is named");
    assert!(lexical > 0.0 && dense > 0.0, "{lexical} {dense}");
    let (speaker, ..) = scores_of("choir");
    assert!(speaker.abs() < f64::EPSILON, "Ingrid is not named");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_cut_as_asked() {
    let node = filled().await;
    let query = "kayak kittens lasagne";
    let all = hits(&node.client, json!({"query": query, "top_k": 1000})).await;
    for top_k in 1..=10 {
        let cut = hits(&node.client, json!({"query": query, "top_k": top_k})).await;
        assert_eq!(texts(&cut), texts(&all[..top_k.min(all.len())]), "top_k {top_k}");
    }
    let tokens = |hits: &[Value]| {
        hits.iter().map(|hit| hit["memory"]["tokens"].as_u64().expect("tokens")).sum::<u64>()
    };
    for budget in [0, 1, 10, 25, 50, 1_000] {
        let body = json!({"query": query, "top_k": 1000, "token_budget": budget});
        let cut = hits(&node.client, body).await;
        assert!(tokens(&cut) <= budget, "{} of {budget}", tokens(&cut));
        assert_eq!(texts(&cut), texts(&all[..cut.len()]), "the best of them, within {budget}");
        let next = all.get(cut.len()).map(|hit| hit["memory"]["tokens"].as_u64().expect("tokens"));
        assert!(next.is_none_or(|next| tokens(&cut) + next > budget), "room for one more");
    }
    for hit in &all {
        let least = &hit["relativity"];
        let body = json!({"query": query, "top_k": 1000, "relativity_min": least});
        let cut = hits(&node.client, body).await;
        let expected: Vec<Value> = all
            .iter()
            .filter(|other| other["relativity"].as_f64() >= least.as_f64())
            .cloned()
            .collect();
        assert_eq!(texts(&cut), texts(&expected), "relativity_min {least}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_let_through_what_they_say() {
    let node = filled().await;
    let names = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (filter, expected) in [
        (
            json!({}),
            names(&[
                "boathouse",
                "green",
                "ginger",
                "Brahms",
                "burned",
                "passport",
                "lake",
                "sofa",
                "nutmeg",
            ]),
        ),
        (json!({"tags": ["boat"]}), names(&["green", "lake"])),
        (json!({"tags": ["boat", "pets"]}), names(&[])),
        (json!({"tags": ["unheard-of"]}), names(&[])),
        (json!({"conversation": "s2"}), names(&["Brahms", "burned"])),
        (json!({"conversation": "s2", "tags": ["food"]}), names(&["burned"])),
        (json!({"kinds": ["fact"]}), names(&["boathouse"])),
        (json!({"kinds": ["fact", "episode"], "tags": ["music"]}), names(&["Brahms"])),
        (json!({"kinds": ["preference"]}), names(&[])),
        (json!({"said_from": "2024-05-02"}), names(&["passport", "lake", "sofa", "nutmeg"])),
        (json!({"said_before": "2024-04-20T00:00:00Z"}), names(&["green", "ginger"])),
        (
            json!({"said_from": "2024-04-20T00:00:00Z", "said_before": "2024-05-02"}),
            names(&["Brahms", "burned"]),
        ),
    ] {
        let body = json!({"query": "kayak and kittens", "top_k": 1000, "filter": filter});
        let found = texts(&hits(&node.client, body).await);
        assert_eq!(found.len(), expected.len(), "{filter}: {found:#?}");
        for word in &expected {
            assert!(found.iter().any(|text| text.contains(word)), "{filter}: {word} in {found:#?}");
        }
    }
}

/// The same question at the same version gives the same list, also after the cube was read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_question_gives_the_same_list() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = TestNode::with_settings(embedded(directory.path())).await;
    fill(&node.client).await;
    let queries = ["kayak", "what did Ingrid do in March 2024", "green", "zebra", "the"];
    let mut first = Vec::new();
    for query in queries {
        let body = json!({ "query": query });
        let found = node.client.post(SEARCH, body.clone()).await.expect(200);
        let again = (0..8).map(|_| node.client.post(SEARCH, body.clone()));
        for answer in futures_util::future::join_all(again).await {
            assert_eq!(answer.expect(200), found, "{query}");
        }
        first.push(found);
    }
    node.stop().await;
    let node = TestNode::with_settings(embedded(directory.path())).await;
    for (query, before) in queries.iter().zip(first) {
        let after = node.client.post(SEARCH, json!({ "query": query })).await.expect(200);
        assert_eq!(after, before, "{query}, after a restart");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_added_is_found_at_once() {
    let node = filled().await;
    for number in 0..30 {
        let text = format!("the password of door {number} is word{}", number * 7919);
        node.client.fact("c", &text).await;
        let found = node.client.search("c", &format!("word{}", number * 7919)).await;
        assert_eq!(found[0], text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_is_never_found() {
    let node = filled().await;
    let id = node.client.fact("c", "the vault combination is quetzal").await;
    assert!(node.client.search("c", "quetzal").await[0].contains("quetzal"));
    node.client.delete(&format!("{MEMORIES}/{id}")).await.expect(200);
    let contains = |found: &[String]| found.iter().any(|text| text.contains("quetzal"));
    assert!(!contains(&node.client.search("c", "quetzal").await));
    assert!(!contains(&node.client.search("c", "the vault combination").await));
    node.client.delete(&format!("{MEMORIES}?conversation=s1")).await.expect(200);
    let rest = hits(&node.client, json!({"query": "painted kayak kittens", "top_k": 1000})).await;
    assert!(rest.iter().all(|hit| hit["memory"]["conversation"] != "s1"), "{rest:#?}");
    node.client.delete(&format!("{MEMORIES}?all=true")).await.expect(200);
    assert_eq!(node.client.search("c", "kayak").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_is_found_by_its_new_words_only() {
    let node = filled().await;
    let id = node.client.fact("c", "the spare key hangs behind the wardrobe").await;
    let path = format!("{MEMORIES}/{id}");
    let moved = "it lies under the flowerpot";
    node.client.patch(&path, json!({ "text": moved })).await.expect(200);
    let by_new = hits(&node.client, json!({"query": "flowerpot"})).await;
    assert_eq!(text_of(&by_new[0]["memory"]), moved);
    let by_old = hits(&node.client, json!({"query": "wardrobe", "top_k": 1000})).await;
    assert!(by_old.iter().all(|hit| !text_of(&hit["memory"]).contains("wardrobe")));
    let changed =
        by_old.iter().find(|hit| hit["memory"]["id"] == id.as_str()).expect("all are hits");
    assert_eq!(changed["scores"]["lexical"].as_f64(), Some(0.0), "the old word has no hold on it");
    for (status, is_found) in [
        ("archived", false),
        ("activated", true),
        ("frozen", true),
        ("activated", true),
        ("expired", false),
    ] {
        node.client.patch(&path, json!({ "status": status })).await.expect(200);
        let found = node.client.search("c", "flowerpot").await;
        assert_eq!(found.iter().any(|text| text == moved), is_found, "{status}: {found:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_do_not_see_each_other() {
    let node = filled().await;
    node.client.cube("other").await;
    assert_eq!(node.client.search("other", "kayak").await, Vec::<String>::new());
    node.client.fact("other", "this cube has its own kayak").await;
    assert_eq!(node.client.search("other", "kayak").await, ["this cube has its own kayak"]);
    assert!(
        !node.client.search("c", "kayak").await.contains(&"this cube has its own kayak".to_owned())
    );
}
