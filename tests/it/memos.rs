//! MemOS's wire, with the payloads that its clients and its evaluations send.

use std::sync::Arc;

use memcube::Node;
use memcube_actors::{
    inference::scripted::{ScriptedCosts, ScriptedEngine},
    scheduler::jobs::{JobId, JobState},
};
use memcube_schemas::TenantId;
use serde_json::{Value, json};

use crate::{
    http::jobs::held,
    support::{Client, TestNode, assert_says, eventually, in_memory, text_of},
};

const UNKNOWN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// Sends, and checks the envelope of a success; returns `data`.
async fn send(client: &Client, path: &str, body: Value, message: &str) -> Value {
    let answer = client.post(path, body).await.expect(200);
    assert_eq!(answer["code"], 200, "{answer}");
    assert_eq!(answer["message"], message, "{answer}");
    answer["data"].clone()
}

async fn add(client: &Client, body: Value) -> Vec<Value> {
    let data = send(client, "/product/add", body, "Memory added successfully").await;
    data.as_array().expect("`data` is a list, which clients concatenate").clone()
}

async fn search(client: &Client, body: Value) -> Value {
    send(client, "/product/search", body, "Search completed successfully").await
}

/// What the evaluation of LoCoMo sends as a search, key for key.
fn locomo_search(user: &str, query: &str) -> Value {
    json!({
        "query": query, "user_id": user, "mem_cube_id": user, "conversation_id": "", "top_k": 20,
        "mode": "fast", "include_preference": true, "pref_top_k": 6,
    })
}

/// Reads an answer as the evaluation's clients do.
fn memories(data: &Value) -> Vec<String> {
    let bucket = &data["text_mem"].as_array().expect("a list")[0];
    assert!(data["pref_string"].is_string(), "it is pasted into the prompt");
    let memories = bucket["memories"].as_array().expect("a list").iter();
    let memories: Vec<String> =
        memories.map(|memory| memory["memory"].as_str().expect("a text").to_owned()).collect();
    assert_eq!(bucket["total_nodes"], memories.len());
    memories
}

/// The names in which the answer to an add speaks of a memory.
fn check_added(entries: &[Value], cube: &str) {
    for entry in entries {
        assert!(entry["memory"].is_string() && entry["memory_type"].is_string(), "{entry}");
        assert_eq!(entry["memory_id"].as_str().map(str::len), Some(36), "{entry}");
        assert_eq!(entry["cube_id"], cube);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_two_calls_of_the_locomo_evaluation() {
    let node = TestNode::start().await;
    let user = "locomo_exp_user_0_speaker_a_default";
    let body = json!({
        "messages": [
            {"role": "user", "content": "Ingrid: I glazed two bowls at the pottery class yesterday.",
             "chat_time": "2023-05-08T13:56:00+00:00"},
            {"role": "assistant", "content": "Tomas: Lovely! I am training for the harbour swim.",
             "chat_time": "2023-05-08T13:56:00+00:00"},
        ],
        "user_id": user, "mem_cube_id": user, "conversation_id": "locomo_exp_user_0_session_1",
    });
    let added = add(&node.client, body).await;
    assert_eq!(added.len(), 2, "{added:?}");
    check_added(&added, user);
    // The last batch of a session may be a single message.
    let body = json!({
        "messages": [{"role": "user", "content": "Ingrid: The kiln opens on Friday.",
            "chat_time": "2023-05-08T13:58:00+00:00"}],
        "user_id": user, "mem_cube_id": user, "conversation_id": "locomo_exp_user_0_session_1",
    });
    assert_eq!(add(&node.client, body).await.len(), 1);
    let query = "What did Ingrid make at the pottery class?";
    let data = search(&node.client, locomo_search(user, query)).await;
    let found = memories(&data);
    assert_eq!(found.len(), 3, "all of them, best first");
    assert!(found[0].contains("glazed two bowls"), "{found:?}");
    assert!(found[0].starts_with("[8 May 2023] Ingrid: "), "date and speaker: {}", found[0]);
    assert!(found[0].contains("7 May 2023"), "`yesterday` is absolute: {}", found[0]);
    assert!(found.iter().any(|text| text.starts_with("[8 May 2023] Tomas: ")), "{found:?}");
    let second = "locomo_exp_user_0_speaker_b_default";
    let other = search(&node.client, locomo_search(second, query)).await;
    assert_eq!(memories(&other), Vec::<String>::new(), "each speaker has a cube of their own");
}

/// Its client reads `text_mem[0]`, and dies of an empty list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_mem_is_never_empty() {
    let node = TestNode::start().await;
    let buckets = |data: &Value| {
        let buckets = data["text_mem"].as_array().expect("a list").clone();
        buckets.iter().map(|bucket| bucket["cube_id"].clone()).collect::<Vec<_>>()
    };
    let data = search(&node.client, locomo_search("never wrote", "anything")).await;
    assert_eq!(buckets(&data), ["never wrote"]);
    assert_eq!(memories(&data), Vec::<String>::new());
    assert_eq!(
        node.client.get("/v1/cubes/never%20wrote").await.status,
        404,
        "asking makes nothing"
    );
    add(&node.client, json!({"user_id": "wrote", "messages": "I keep bees on the roof"})).await;
    let none = json!({"query": "bees", "user_id": "wrote", "relativity": 1.0});
    let data = search(&node.client, none).await;
    assert_eq!((buckets(&data), memories(&data)), (vec![json!("wrote")], vec![]));
    for cubes in [["never wrote", "wrote"], ["wrote", "never wrote"]] {
        let body = json!({"query": "bees", "user_id": "wrote", "readable_cube_ids": cubes});
        let data = search(&node.client, body).await;
        assert_eq!(buckets(&data), cubes, "in the order asked");
        for name in ["pref_mem", "tool_mem", "skill_mem"] {
            assert_eq!(data[name].as_array().map(Vec::len), Some(2), "{name}");
        }
    }
    let data =
        search(&node.client, json!({"query": "zebra", "user_id": "wrote", "top_k": 3})).await;
    assert_eq!(buckets(&data), ["wrote"]);
    node.client.delete("/v1/cubes/wrote").await.expect(200);
    let data = search(&node.client, locomo_search("wrote", "bees")).await;
    assert_eq!((buckets(&data), memories(&data)), (vec![json!("wrote")], vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_search_has_every_field_of_memos() {
    let node = TestNode::start().await;
    let body = json!({
        "user_id": "u", "session_id": "s", "custom_tags": ["t"], "info": {"k": "v"},
        "messages": [{"role": "user", "content": "My cousin plays the oboe", "message_id": "m7",
            "chat_time": "2024-01-02T03:04:05Z"}],
    });
    add(&node.client, body).await;
    let data = search(&node.client, json!({"query": "oboe", "user_id": "u"})).await;
    for (name, value) in [
        ("act_mem", json!([])),
        ("para_mem", json!([])),
        ("pref_note", json!("")),
        ("pref_string", json!("")),
        ("pref_mem", json!([{"cube_id": "u", "memories": [], "total_nodes": 0}])),
        ("tool_mem", json!([{"cube_id": "u", "memories": [], "total_nodes": 0}])),
        ("skill_mem", json!([{"cube_id": "u", "memories": [], "total_nodes": 0}])),
    ] {
        assert_eq!(data[name], value, "{name}");
    }
    let memory = &data["text_mem"][0]["memories"][0];
    let metadata = &memory["metadata"];
    for name in [
        "user_id",
        "session_id",
        "status",
        "is_fast",
        "evolve_to",
        "version",
        "history",
        "working_binding",
        "type",
        "key",
        "confidence",
        "source",
        "tags",
        "visibility",
        "updated_at",
        "info",
        "internal_info",
        "covered_history",
        "memory_type",
        "sources",
        "embedding",
        "created_at",
        "usage",
        "background",
        "file_ids",
        "relativity",
        "ref_id",
        "id",
        "memory",
    ] {
        assert!(metadata.get(name).is_some(), "metadata lacks {name}: {metadata}");
    }
    for name in ["id", "memory", "ref_id"] {
        assert_eq!(memory[name], metadata[name], "{name}");
    }
    assert_eq!(memory["ref_id"], format!("[{}]", &memory["id"].as_str().expect("an id")[..8]));
    assert_eq!(metadata["session_id"], "s");
    assert_eq!(metadata["tags"], json!(["t"]));
    assert_eq!(metadata["info"], json!({"k": "v"}));
    assert_eq!(metadata["embedding"], json!([]), "vectors are not sent");
    let source = &metadata["sources"][0];
    assert_eq!(source["role"], "user");
    assert_eq!(source["content"], "My cousin plays the oboe");
    assert_eq!((&source["message_id"], &source["type"]), (&json!("m7"), &json!("chat")));
    let relativity = metadata["relativity"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&relativity), "{relativity}");
}

/// PersonaMem sends batches of ten, with system messages and without times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn personamem_sends_system_messages() {
    let node = TestNode::start().await;
    let mut messages =
        vec![json!({"role": "system", "content": "You are talking to a beekeeper."})];
    for number in 0..9 {
        let role = if number % 2 == 0 { "user" } else { "assistant" };
        messages.push(json!({"role": role, "content": format!("Remark {number} about hives")}));
    }
    let body = json!({"messages": messages, "user_id": "persona_1", "mem_cube_id": "persona_1",
        "conversation_id": "persona_1_0"});
    let added = add(&node.client, body).await;
    assert_eq!(added.len(), 9, "what the system says is no memory");
    assert!(added.iter().all(|entry| !entry.to_string().contains("beekeeper")), "{added:?}");
    let only_system = json!({"messages": [{"role": "system", "content": "Be brief."}],
        "user_id": "persona_2", "mem_cube_id": "persona_2", "conversation_id": "persona_2_0"});
    assert_eq!(add(&node.client, only_system).await, Vec::<Value>::new(), "a list, not null");
    let data = search(&node.client, locomo_search("persona_2", "anything")).await;
    assert_eq!(memories(&data), Vec::<String>::new());
}

/// PrefEval sends pairs without a conversation and without times, and asks for ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefeval_sends_no_conversation() {
    let node = TestNode::start().await;
    let user = "memos-api_user_pref_eval_0_v1";
    for number in 0..12 {
        let body = json!({
            "messages": [
                {"role": "user", "content": format!("I never eat dish {number} with coriander")},
                {"role": "assistant", "content": format!("Noted, dish {number} without it")},
            ],
            "user_id": user, "mem_cube_id": user, "conversation_id": null,
        });
        assert_eq!(add(&node.client, body).await.len(), 2);
    }
    let body = json!({"query": "coriander", "user_id": user, "mem_cube_id": user,
        "conversation_id": "", "top_k": 10, "mode": "fast", "include_preference": true,
        "pref_top_k": 6});
    let found = memories(&search(&node.client, body).await);
    assert_eq!(found.len(), 10);
    assert!(found[0].contains("coriander"), "{found:?}");
}

/// OmniMemEval names cubes in lists, and deletes its users by their id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omnimemeval_names_cubes_in_lists_and_deletes_users() {
    let node = TestNode::start().await;
    let user = "omni_7";
    let body = json!({
        "messages": [
            {"role": "user", "content": "We moved the piano into the attic",
             "chat_time": "2024-02-01 10:00:00"},
            {"role": "assistant", "content": "That sounds heavy"},
        ],
        "user_id": user, "mem_cube_id": user, "writable_cube_ids": [user], "async_mode": "sync",
        "session_id": "s1", "conversation_id": "s1", "mode": "fast",
    });
    assert_eq!(add(&node.client, body).await.len(), 2);
    let asked = json!({
        "query": "Where is the piano?", "user_id": user, "mem_cube_id": user,
        "readable_cube_ids": [user], "top_k": 20, "mode": "fast", "include_preference": true,
        "pref_top_k": 6, "context_format": "memory", "search_tool_memory": false,
        "tool_mem_top_k": 0, "include_skill_memory": false, "skill_mem_top_k": 0,
        "relativity": 0, "dedup": "no", "rerank": true,
    });
    assert!(memories(&search(&node.client, asked.clone()).await)[0].contains("attic"));
    let goodbye = json!({"user_id": user, "writable_cube_ids": [user]});
    for _ in 0..2 {
        // The second time there is nothing left, which is no failure.
        let path = "/product/delete_memory";
        let data = send(&node.client, path, goodbye.clone(), "Memories deleted successfully").await;
        assert_eq!(data["status"], "success");
    }
    assert_eq!(memories(&search(&node.client, asked).await), Vec::<String>::new());
    let never = json!({"user_id": "omni_8", "writable_cube_ids": ["omni_8"]});
    let answer = node.client.post("/product/delete_memory", never).await.expect(200);
    assert_eq!(answer["data"]["status"], "success", "a user who never wrote: {answer}");
}

/// LongBench sends a file as raw text and then asks until nothing is under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longbench_sends_files_and_asks_for_the_status() {
    let node = TestNode::start().await;
    let text: String = (0..400).map(|n| format!("Paragraph {n} tells of lantern{n}. ")).collect();
    let body = json!({
        "messages": [{"type": "file", "file": {"file_data": text, "file_id": "0"}}],
        "user_id": "bench", "mem_cube_id": "bench", "conversation_id": "bench_0",
    });
    let added = add(&node.client, body).await;
    assert!(added.len() > 5, "{}", added.len());
    let answer = node.client.get("/product/scheduler/status?user_id=bench").await.expect(200);
    assert_eq!((&answer["code"], &answer["data"]), (&json!(200), &json!([])), "nothing waits");
    let found = memories(&search(&node.client, locomo_search("bench", "lantern321")).await);
    assert!(found[0].contains("lantern321."), "{}", found[0]);
    for (query, expected) in [
        ("?user_id=bench&task_id=7", "404 envelope: there is no task `7`"),
        ("", "422 envelope: `user_id` is missing"),
    ] {
        let answer = node.client.get(&format!("/product/scheduler/status{query}")).await;
        assert_says(&answer.summary(), expected, query);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_come_in_every_shape() {
    let node = TestNode::start().await;
    for (user, messages, expected) in [
        ("string", json!("I sleep in a hammock"), vec!["user: I sleep in a hammock"]),
        ("part", json!([{"type": "text", "text": "a bare part"}]), vec!["user: a bare part"]),
        (
            "parts",
            json!([{"role": "user", "content": [{"type": "text", "text": "one"},
                {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
                {"type": "text", "text": "two"}]}]),
            vec!["user: one\ntwo"],
        ),
        ("developer", json!([{"role": "developer", "content": "Be brief."}]), vec![]),
        ("null", json!([{"role": "assistant", "content": null}]), vec![]),
        ("link", json!([{"type": "file", "file": {"file_data": "http://x/y.pdf"}}]), vec![]),
    ] {
        let added = add(&node.client, json!({"user_id": user, "messages": messages})).await;
        check_added(&added, user);
        let texts: Vec<String> = added
            .iter()
            .map(|entry| entry["memory"].as_str().expect("a text").to_owned())
            .collect();
        assert_eq!(texts, expected, "{user}");
        assert_eq!(node.client.texts(user).await, expected, "{user}");
    }
    let body = json!({"user_id": "old", "memory_content": "A statement of old clients"});
    assert_eq!(add(&node.client, body).await[0]["memory"], "A statement of old clients");
    let body = json!({"user_id": "u", "writable_cube_ids": ["a", "b", "a"], "messages": "both"});
    let added = add(&node.client, body).await;
    let cubes: Vec<&Value> = added.iter().map(|entry| &entry["cube_id"]).collect();
    assert_eq!(cubes, ["a", "b"], "each cube once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memories_are_read_by_pages_by_id_and_as_a_graph() {
    let node = TestNode::start().await;
    for number in 0..5 {
        add(&node.client, json!({"user_id": "u", "messages": format!("note {number}")})).await;
    }
    let message = "Memories retrieved successfully";
    let get = |body: Value| send(&node.client, "/product/get_memory", body, message);
    for (page, expected) in [(1, vec!["0", "1"]), (2, vec!["2", "3"]), (3, vec!["4"]), (4, vec![])]
    {
        let data = get(json!({"mem_cube_id": "u", "page": page, "page_size": 2})).await;
        let bucket = &data["text_mem"][0];
        assert_eq!((&bucket["cube_id"], &bucket["total_nodes"]), (&json!("u"), &json!(5)));
        let texts: Vec<&Value> = bucket["memories"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|memory| &memory["memory"])
            .collect();
        let expected: Vec<String> = expected.iter().map(|n| format!("user: note {n}")).collect();
        assert_eq!(texts, expected.iter().collect::<Vec<_>>(), "page {page}");
    }
    let data = get(json!({"mem_cube_id": "u"})).await;
    let all = data["text_mem"][0]["memories"].as_array().expect("a list").clone();
    assert_eq!(all.len(), 5);
    let id = all[2]["id"].as_str().expect("an id");
    for name in ["mem_cube_id", "user_id"] {
        let answer =
            node.client.get(&format!("/product/get_memory/{id}?{name}=u")).await.expect(200);
        assert_eq!(answer["data"]["memory"], "user: note 2", "{answer}");
    }
    // MemOS's clients name no cube; ids are found in any.
    add(&node.client, json!({"user_id": "v", "messages": "elsewhere"})).await;
    let answer = node.client.get(&format!("/product/get_memory/{id}")).await.expect(200);
    assert_eq!(answer["data"]["memory"], "user: note 2", "{answer}");
    assert_eq!(answer["message"], "Memory retrieved successfully");
    for missing in [UNKNOWN.to_owned(), format!("{UNKNOWN}?user_id=u"), format!("{id}?user_id=v")] {
        let path = format!("/product/get_memory/{missing}");
        let answer = node.client.get(&path).await.expect(200);
        let unknown = missing.split('?').next().expect("an id");
        assert_eq!(answer["message"], format!("Memory with ID {unknown} not found"), "{path}");
        assert_eq!((&answer["code"], &answer["data"]), (&json!(200), &json!(null)), "{path}");
    }
    let get_all = |body: Value| send(&node.client, "/product/get_all", body, message);
    let data = get_all(json!({"user_id": "u", "memory_type": "text_mem"})).await;
    assert_eq!(data[0]["cube_id"], "u");
    assert_eq!(data[0]["memories"][0]["nodes"].as_array().map(Vec::len), Some(5));
    assert_eq!(data[0]["memory_statistics"]["total"], 5);
    let asked = json!({"user_id": "u", "mem_cube_ids": ["u"], "search_query": "note 3"});
    let data = get_all(asked).await;
    assert_eq!(data[0]["memories"][0]["nodes"][0]["memory"], "user: note 3");
    let data = get_all(json!({"user_id": "u", "memory_type": "act_mem"})).await;
    assert_eq!(data[0]["memories"][0]["nodes"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memories_are_deleted_in_these_ways() {
    let node = TestNode::start().await;
    let client = &node.client;
    let say = |session: &str, text: &str| {
        add(client, json!({"user_id": "u", "session_id": session, "messages": text})).map_into_id()
    };
    let (one, two) = (say("s1", "one").await, say("s1", "two").await);
    say("s2", "three").await;
    say("s3", "four").await;
    let delete = |body: Value| client.post("/product/delete_memory", body);
    for (body, reason) in [
        (json!({"memory_ids": [UNKNOWN], "user_id": "u"}), "there is no memory"),
        (json!({"memory_ids": ["seven"], "user_id": "u"}), "expected a UUID"),
        (json!({"memory_ids": [one], "session_id": "s1", "user_id": "u"}), "exactly one of"),
        (json!({"file_ids": ["f"], "user_id": "u"}), "not supported"),
        (json!({"filter": {"and": []}, "user_id": "u"}), "not supported"),
        (json!({"writable_cube_ids": ["u"]}), "exactly one of"),
        (json!({}), "exactly one of"),
    ] {
        let answer = delete(body.clone()).await.expect(200);
        assert_eq!(answer["message"], "Memories deletion failed", "{body}");
        assert_eq!(answer["data"]["status"], "failure", "{body}");
        let said = answer["data"]["reason"].as_str().expect("a reason");
        assert!(said.contains(reason), "{body}: {said}");
    }
    assert_eq!(client.texts("u").await.len(), 4, "nothing was deleted by mistake");
    let steps = [
        (json!({"memory_ids": [one, two], "user_id": "u"}), 2, 2),
        (json!({"session_id": "s2", "writable_cube_ids": ["u"]}), 1, 1),
        (json!({"conversation_id": "s3", "mem_cube_id": "u"}), 1, 0),
    ];
    for (body, deleted, left) in steps {
        let answer = delete(body.clone()).await.expect(200);
        assert_eq!(answer["message"], "Memories deleted successfully", "{body}: {answer}");
        assert_eq!(answer["data"], json!({"status": "success", "deleted": deleted}), "{body}");
        assert_eq!(client.texts("u").await.len(), left, "{body}");
    }
}

trait IntoId {
    async fn map_into_id(self) -> String;
}

impl<F: Future<Output = Vec<Value>>> IntoId for F {
    async fn map_into_id(self) -> String {
        self.await[0]["memory_id"].as_str().expect("an id").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_are_made_and_errors_come_in_the_envelope() {
    let node = TestNode::start().await;
    let body = json!({"cube_name": "Ann's", "owner_id": "ann", "cube_id": "a1", "cube_path": "x"});
    let data = send(&node.client, "/product/create_cube", body, "Cube created successfully").await;
    assert_eq!(data, json!({"cube_id": "a1", "cube_name": "Ann's", "owner_id": "ann"}));
    let made = node.client.get("/v1/cubes/a1").await.expect(200);
    assert_eq!((&made["name"], &made["owner"]), (&json!("Ann's"), &json!("ann")));
    let long = "x".repeat(257);
    for (path, body, expected) in [
        (
            "create_cube",
            json!({"cube_name": "a1", "owner_id": "u"}),
            "409 envelope: there is a cube `a1` already",
        ),
        (
            "create_cube",
            json!({"cube_name": "b"}),
            "422 envelope: body at `.`: missing field `owner_id` …",
        ),
        (
            "add",
            json!({"messages": "whose?"}),
            "422 envelope: give `user_id` or the cubes to work on",
        ),
        (
            "add",
            json!({"user_id": "", "messages": "a"}),
            "422 envelope: invalid cube id: it is empty",
        ),
        (
            "add",
            json!({"user_id": long, "messages": "a"}),
            "422 envelope: invalid cube id: it has 257 bytes …",
        ),
        ("add", json!({"user_id": "u"}), "422 envelope: nothing to remember: give …"),
        (
            "add",
            json!({"user_id": "u", "messages": 7}),
            "422 envelope: `messages` is a number; send …",
        ),
        (
            "add",
            json!({"user_id": "u", "messages": [{"role": "boss"}]}),
            "422 envelope: `messages[0]`: `role` …",
        ),
        (
            "add",
            json!({"user_id": 7, "messages": "a"}),
            "422 envelope: body at `user_id`: invalid type …",
        ),
        ("search", json!({"user_id": "u"}), "422 envelope: body at `.`: missing field `query` …"),
        ("search", json!({"query": "a"}), "422 envelope: give `user_id` or the cubes to work on"),
        (
            "search",
            json!({"query": " ", "user_id": "a1"}),
            "422 envelope: `query` is empty; ask for something",
        ),
        ("get_memory", json!({}), "422 envelope: body at `.`: missing field `mem_cube_id` …"),
        ("get_memory", json!({"mem_cube_id": "nobody"}), "404 envelope: there is no cube `nobody`"),
        ("get_all", json!({"user_id": "nobody"}), "404 envelope: there is no cube `nobody`"),
        (
            "get_all",
            json!({"user_id": "a1", "memory_type": "tea"}),
            "422 envelope: `memory_type` is `tea`; …",
        ),
        ("register_cube", json!({}), "404 envelope: there is no route …"),
    ] {
        let answer = node.client.post(&format!("/product/{path}"), body.clone()).await;
        assert_says(&answer.summary(), expected, &format!("{path} {body}"));
        assert_eq!(answer.body["data"], json!(null), "{path} {body}");
    }
    for (path, expected) in [
        ("get_memory/seven?user_id=u", "422 envelope: invalid memory id: expected a UUID …"),
        ("add", "405 envelope: `/product/add` does not take GET"),
    ] {
        let answer = node.client.get(&format!("/product/{path}")).await;
        assert_says(&answer.summary(), expected, path);
    }
    let stranger = node.client.with_authorization(Some("Token mpg-unknown"));
    let refused = stranger.post("/product/search", locomo_search("u", "a")).await;
    assert_says(&refused.summary(), "401 envelope: this API key is not known here; send …", "key");
    assert!(refused.body["data"].is_null());
}

/// A date that cannot be read is shown as it came: clients see nothing but the text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memories_carry_their_date_in_the_text() {
    let node = TestNode::start().await;
    for (number, (time, prefix)) in [
        ("2023-05-08T13:56:00+00:00", "[8 May 2023] user: "),
        ("2023-05-08 13:56:00", "[8 May 2023] user: "),
        ("1:56 pm on 8 May, 2023", "[8 May 2023] user: "),
        ("in the long winter", "[in the long winter] user: "),
        ("", "user: "),
    ]
    .into_iter()
    .enumerate()
    {
        let content = format!("remark {number}");
        let message = json!({"role": "user", "content": content, "chat_time": time});
        let added = add(&node.client, json!({"user_id": "u", "messages": [message]})).await;
        assert_eq!(added[0]["memory"], format!("{prefix}{content}"), "{time}");
        let data = search(&node.client, json!({"query": content, "user_id": "u"})).await;
        assert!(memories(&data).contains(&format!("{prefix}{content}")), "{time}");
    }
    let listed = node.client.get("/v1/cubes/u/memories").await.expect(200);
    assert_eq!(text_of(&listed["memories"][0]), "[8 May 2023] user: remark 0");
}

async fn chatting() -> TestNode {
    let costs = ScriptedCosts { prefill_us: 0, look_back_ns: 0, step_us: 0, copy_ns: 0 };
    let engine = Arc::new(ScriptedEngine::new(8_192, 1 << 30, costs));
    TestNode::build(Node::builder().with_settings(in_memory()).with_engine(engine)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_answered_and_remembered() {
    let node = chatting().await;
    let ask = |remember: bool| {
        json!({
            "user_id": "u", "query": "tell me about my heron", "session_id": "s",
            "system_prompt": "be kind", "top_k": 10, "mode": "fast", "max_tokens": 40,
            "history": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
            "add_message_on_answer": remember, "internet_search": false,
        })
    };
    let chat = "/product/chat/complete";
    let data = send(&node.client, chat, ask(false), "Chat completed successfully").await;
    assert!(data["response"].as_str().is_some_and(|text| !text.is_empty()), "{data}");
    assert!(data["reasoning"].is_null());
    assert!(node.client.texts("u").await.is_empty(), "made, and nothing in it");

    let answer = node.client.post("/product/chat/stream", ask(true)).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{}", answer.text);
    let events = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.map(|data| serde_json::from_str(data).expect("JSON")).collect();
    let (end, pieces) = events.split_last().expect("events");
    assert_eq!(*end, json!({"type": "end", "data": null}));
    let text: String = (pieces.iter())
        .inspect(|piece| assert_eq!(piece["type"], "text"))
        .map(|piece| piece["data"].as_str().expect("a text"))
        .collect();
    assert_eq!(data["response"], text, "the same, piece by piece");
    let texts = node.client.texts("u").await;
    assert!(texts[0].ends_with("user: tell me about my heron"), "{texts:?}");
    assert_eq!(texts.len(), 2, "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_that_cannot_be_answered_are_told_in_the_envelope() {
    let (node, without) = (chatting().await, TestNode::start().await);
    for (node, body, expected) in [
        (
            &without,
            json!({"user_id": "u", "query": "a"}),
            "503 envelope: this server has no \
            language model; …",
        ),
        (&node, json!({"user_id": "u"}), "422 envelope: body at `.`: missing field `query` …"),
        (&node, json!({"query": "a"}), "422 envelope: give `user_id` …"),
        (&node, json!({"user_id": "u", "query": " "}), "422 envelope: `query` is empty; …"),
        (
            &node,
            json!({"user_id": "u", "query": "a", "filter": {"and": []}}),
            "422 envelope: \
            `filter` is not supported here; …",
        ),
        (
            &node,
            json!({"user_id": "u", "query": "a", "readable_cube_ids": ["a", "b"]}),
            "422 envelope: a chat reads and writes one cube, and 2 are named; …",
        ),
        (
            &node,
            json!({"query": "a", "readable_cube_ids": ["a"], "writable_cube_ids": ["b"]}),
            "422 envelope: a chat reads and writes one cube, and 2 are named; …",
        ),
        (
            &node,
            json!({"user_id": "u", "query": "a", "temperature": 3}),
            "422 envelope: `temperature` must be between 0 and 2, …",
        ),
    ] {
        for path in ["/product/chat/complete", "/product/chat/stream"] {
            let answer = node.client.post(path, body.clone()).await;
            assert_says(&answer.summary(), expected, &format!("{path} {body}"));
        }
    }
}

/// Calls a route of the scheduler, and checks the envelope of a success; returns `data`.
async fn scheduler(client: &Client, method: &str, path: &str, message: &str) -> Value {
    let answer = client.call(method, &format!("/product/scheduler/{path}")).send().await;
    let answer = answer.expect(200);
    assert_eq!((&answer["code"], &answer["message"]), (&json!(200), &json!(message)), "{answer}");
    answer["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_add_is_a_completed_task() {
    let node = TestNode::start().await;
    let body = json!({"user_id": "u", "messages": "I keep bees", "task_id": "add-1"});
    let added = add(&node.client, body).await;
    add(&node.client, json!({"user_id": "v", "messages": "I keep ants", "task_id": "add-2"})).await;
    let memory = added[0]["memory_id"].as_str().expect("an id");
    let told = "Memory get status successfully";
    for task in ["add-1", memory] {
        let path = format!("status?user_id=u&task_id={task}");
        let data = scheduler(&node.client, "GET", &path, told).await;
        assert_eq!(data, json!([{"task_id": task, "status": "completed"}]));
    }
    let data = scheduler(&node.client, "GET", "status?user_id=u", told).await;
    assert_eq!(data, json!([{"task_id": "add-1", "status": "completed"}]), "of this user only");
    for (query, task) in [
        ("user_id=u&task_id=add-2", "add-2"),
        ("user_id=u&task_id=add-3", "add-3"),
        (&format!("user_id=v&task_id={memory}"), memory),
        (&format!("user_id=nobody&task_id={memory}"), memory),
        ("user_id=u&task_id=1", "1"),
    ] {
        let answer = node.client.get(&format!("/product/scheduler/status?{query}")).await;
        assert_eq!(answer.summary(), format!("404 envelope: there is no task `{task}`"));
    }
    let refused = json!({"user_id": "u", "messages": {"role": "boss"}, "task_id": "add-4"});
    assert_eq!(node.client.post("/product/add", refused).await.status, 422);
    let path = "/product/scheduler/status?user_id=u&task_id=add-4";
    assert_eq!(node.client.get(path).await.status, 404, "what was refused was not done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scheduler_tells_of_the_jobs_that_there_are() {
    let node = TestNode::start().await;
    let jobs = node.node.cubes().jobs();
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for (tenant, cube, name) in [
        ("default", "ann", "one"),
        ("default", "ann", "two"),
        ("default", "ann", "three"),
        ("other", "ann", "four"),
    ] {
        let (job, end) = held(Some(tenant), cube, name);
        ids.push(jobs.submit(job).expect("taken").to_string());
        ends.push(end);
    }
    let call = |method: &'static str, path: &'static str, message: &'static str| {
        scheduler(&node.client, method, path, message)
    };
    let queue = "Scheduler task queue status retrieved successfully";
    let status = "Memory get status successfully";
    eventually("two run", || async {
        call("GET", "task_queue_status?user_id=ann", queue).await["pending_tasks_count"] == 2
    })
    .await;
    let data = call("GET", "task_queue_status?user_id=ann", queue).await;
    let expected = json!({
        "user_id": "ann", "user_name": "ann", "mem_cube_id": "ann", "users_count": 1,
        "stream_keys": ["ann:ann:blocks"],
        "pending_tasks_count": 2, "pending_tasks_detail": ["ann:ann:blocks:2"],
        "remaining_tasks_count": 1, "remaining_tasks_detail": ["ann:ann:blocks:1"],
    });
    assert_eq!(data, expected);
    let data = call("GET", "task_queue_status?user_id=bo", queue).await;
    assert_eq!((&data["pending_tasks_count"], &data["stream_keys"]), (&json!(0), &json!([])));
    let data = call("GET", "status?user_id=ann", status).await;
    let of = |place: usize, status: &str| json!({"task_id": ids[place], "status": status});
    assert_eq!(data, json!([of(1, "in_progress"), of(0, "in_progress"), of(2, "waiting")]));

    let data = call("POST", "wait?user_name=ann&timeout_seconds=0.05", "timeout").await;
    assert_eq!((&data["running_tasks"], &data["timed_out"]), (&json!(3), &json!(true)));
    assert_eq!(data["user_name"], "ann");
    assert!(data["waited_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.05), "{data}");
    let data = call("POST", "wait?user_name=bo", "idle").await;
    assert_eq!((&data["running_tasks"], &data["timed_out"]), (&json!(0), &json!(false)));
    let late = events(&node.client, "user_name=ann&timeout_seconds=0.1&poll_interval=0.05").await;
    let (last, before) = late.split_last().expect("events");
    assert!(!before.is_empty() && before.iter().all(|event| event["status"] == "running"));
    assert_eq!((&last["status"], &last["timed_out"]), (&json!("timeout"), &json!(true)));
    assert_eq!((&last["active_tasks"], &last["user_name"]), (&json!(3), &json!("ann")));
    assert!(last["elapsed_seconds"].is_f64() && last["instance_id"].is_string(), "{last}");

    // Whoever waits hears of the end; another tenant's job is none of theirs.
    let waiting = call("POST", "wait?user_name=ann&timeout_seconds=60", "idle");
    let following = events(&node.client, "user_name=ann&timeout_seconds=60&poll_interval=0.05");
    let ending = async {
        for (place, end) in ends.drain(..3).enumerate() {
            let id: JobId = ids[place].parse().expect("an id");
            let default = TenantId::new("default").expect("valid");
            let state = || jobs.job(Some(&default), id).map(|job| job.state);
            eventually("it runs", || async { state() == Some(JobState::Running) }).await;
            end.send(Ok(())).expect("it runs");
        }
    };
    let (waited, followed, ()) = tokio::join!(waiting, following, ending);
    assert_eq!((&waited["running_tasks"], &waited["timed_out"]), (&json!(0), &json!(false)));
    let last = followed.last().expect("events");
    assert_eq!((&last["status"], &last["active_tasks"]), (&json!("idle"), &json!(0)));
    let data = call("GET", "status?user_id=ann", status).await;
    assert!(data.as_array().is_some_and(|all| all.iter().all(|t| t["status"] == "completed")));
    let summary = "Scheduler status summary retrieved successfully";
    let data = call("GET", "allstatus", summary).await;
    let own = json!({
        "waiting": 0, "in_progress": 0, "pending": 0, "completed": 3, "failed": 0, "cancelled": 0,
        "total": 3,
    });
    assert_eq!(data["scheduler_summary"], own);
    assert!(data["all_tasks_summary"]["total"].as_u64().is_some_and(|total| total >= 3), "{data}");
}

/// The events of `wait/stream`, until it ends.
async fn events(client: &Client, query: &str) -> Vec<Value> {
    let answer = client.get(&format!("/product/scheduler/wait/stream?{query}")).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{}", answer.text);
    let events = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
    events.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_questions_to_the_scheduler_are_told_in_the_envelope() {
    let node = TestNode::start().await;
    for (method, path, expected) in [
        ("GET", "status", "422 envelope: `user_id` is missing"),
        ("GET", "task_queue_status", "422 envelope: Failed to deserialize query string: missing …"),
        ("GET", "task_queue_status?user_id=", "422 envelope: invalid cube id: it is empty"),
        ("POST", "wait", "422 envelope: Failed to deserialize query string: missing field …"),
        ("POST", "wait?user_name=", "422 envelope: invalid cube id: it is empty"),
        (
            "POST",
            "wait?user_name=u&timeout_seconds=-1",
            "422 envelope: `timeout_seconds` must be between 0 and 3600",
        ),
        (
            "POST",
            "wait?user_name=u&timeout_seconds=1e9",
            "422 envelope: `timeout_seconds` must be between 0 and 3600",
        ),
        (
            "GET",
            "wait/stream?user_name=u&poll_interval=-1",
            "422 envelope: `poll_interval` must be between 0 and 60",
        ),
        ("GET", "wait", "405 envelope: `/product/scheduler/wait` does not take GET"),
    ] {
        let answer = node.client.call(method, &format!("/product/scheduler/{path}")).send().await;
        assert_says(&answer.summary(), expected, path);
    }
    let stranger = node.client.with_authorization(None);
    assert_eq!(stranger.get("/product/scheduler/allstatus").await.status, 401);
}
