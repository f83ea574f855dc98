//! Without a key there is no way in, whatever the route.

use serde_json::Value;

use crate::support::{KEY, TestNode};

/// The routes that answer anybody.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Every route of the document, as method and path with names filled in.
fn routes(document: &Value) -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for method in METHODS.iter().filter(|method| operations.get(**method).is_some()) {
            let path = path
                .replace("{cube}", "somebody")
                .replace("{conversation}", "some-talk")
                .replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057")
                .replace("{model}", "some-model")
                .replace("{memory}", "01890a5d-ac96-774b-bcce-b302099a8057");
            assert!(!path.contains('{'), "a parameter without a value here: {path}");
            routes.push((method.to_uppercase(), path));
        }
    }
    routes
}

fn document() -> Value {
    serde_json::to_value(memcube::gateway::openapi_document()).expect("it is JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_but_health_needs_a_key() {
    let node = TestNode::start().await;
    let wrong = [
        None,
        Some("Bearer mck_not_the_key_0123456789".to_owned()),
        Some("Token mck_not_the_key_0123456789".to_owned()),
        Some(format!("Bearer {KEY}x")),
        Some(format!("Bearer {}", &KEY[1..])),
        Some(format!("Basic {KEY}")),
        Some(KEY.to_owned()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
    ];
    let routes = routes(&document());
    assert!(routes.len() > 20, "{routes:?}");
    for (method, path) in &routes {
        for authorization in &wrong {
            let stranger = node.client.with_authorization(authorization.as_deref());
            let answer = stranger.call(method, path).send().await;
            if OPEN.contains(&path.as_str()) {
                assert_eq!(answer.status, 200, "{method} {path}");
                continue;
            }
            let what = format!("{method} {path} with {authorization:?}: {}", answer.text);
            assert_eq!(answer.status, 401, "{what}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
            let summary = answer.summary();
            let form =
                if path.starts_with("/product/") { "401 envelope: " } else { "401 unauthorized: " };
            assert!(summary.starts_with(form), "{what}");
            assert!(summary.contains("send `Authorization: Bearer KEY`"), "{what}");
            assert!(!answer.text.contains(&KEY[4..]), "a key is echoed: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_route_exists() {
    let node = TestNode::start().await;
    for (method, path) in routes(&document()) {
        // A stream of events goes on for ever; a page of them does not.
        let asked = if path == "/v1/events" { format!("{path}?wait=0") } else { path.clone() };
        let answer = node.client.call(&method, &asked).send().await;
        let unknown = format!("there is no route `{method}");
        assert!(!answer.text.contains(&unknown), "{method} {path}: {}", answer.text);
        assert_ne!(answer.status, 405, "{method} {path}");
        assert_ne!(answer.status, 401, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_taken_in_these_forms() {
    let node = TestNode::start().await;
    for form in ["Bearer", "Token", "bearer", "TOKEN"] {
        let client = node.client.with_authorization(Some(&format!("{form} {KEY}")));
        assert_eq!(client.get("/v1/cubes").await.status, 200, "{form}");
    }
}

/// A stranger must not learn which routes there are, nor make the server read a body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_learn_nothing() {
    let node = TestNode::start().await;
    let stranger = node.client.with_authorization(None);
    for (method, path) in [("GET", "/v1/nothing"), ("PUT", "/v1/cubes"), ("GET", "/admin")] {
        assert_eq!(stranger.call(method, path).send().await.status, 401, "{method} {path}");
    }
    let nonsense = stranger.call("POST", "/v1/cubes").bytes("{").send().await;
    assert_eq!(nonsense.status, 401, "{}", nonsense.text);
}

/// The keys of a store let in after a restart as well; nothing but their hashes is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_survive_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = crate::support::embedded(directory.path());
    let node = TestNode::with_settings(settings.clone()).await;
    node.stop().await;
    let node = memcube::Node::builder().with_settings(settings);
    let node = Box::pin(node.start()).await.expect("it starts");
    let gate = memcube::gateway::TenantGate::open(node.store()).await.expect("opened");
    assert!(!gate.is_empty());
    assert!(gate.authenticate(&format!("Bearer {KEY}")).is_some());
    assert!(gate.authenticate("Bearer mck_not_the_key_0123456789").is_none());
    let stored = memcube_actors::storage::RangeRead::all(memcube_schemas::keys::api_keys());
    let read = node.store().read(vec![stored]).await.expect("read");
    for entry in read.pages.iter().flat_map(|page| &page.entries) {
        let bytes = [entry.key.as_slice(), entry.value.as_slice()].concat();
        let has_key = bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes());
        assert!(!has_key, "the key itself is stored");
    }
    node.shut_down().await;
}
