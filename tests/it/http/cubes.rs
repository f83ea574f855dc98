//! `/v1/cubes`

use serde_json::{Value, json};

use crate::support::{Answer, TestNode, check_table};

/// The body, with the values that differ from run to run left out.
fn show(answer: &Answer) -> String {
    if answer.status >= 300 {
        return answer.summary();
    }
    let mut body = answer.body.clone();
    for name in ["created_at", "updated_at"] {
        if let Some(time) = body.as_object_mut().and_then(|fields| fields.remove(name)) {
            assert!(time.as_str().is_some_and(|time| time.ends_with('Z')), "{time}");
        }
    }
    format!("{} {body}", answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cube_is_made_described_and_deleted() {
    let node = TestNode::start().await;
    let table = r#"
POST /v1/cubes {"id": "ann", "name": "Ann's", "owner": "u1"}
    201 {"condition":"cold","id":"ann","items":0,"name":"Ann's","owner":"u1","version":0}
POST /v1/cubes {"id": "ann"}
    409 conflict: there is a cube `ann` already
POST /v1/cubes {"id": ""}
    422 invalid: body at `id`: invalid cube id: it is empty …
POST /v1/cubes {"id": "a\nb"}
    422 invalid: body at `id`: invalid cube id: the character '\n' is not allowed …
POST /v1/cubes {"name": "no id"}
    422 invalid: body at `.`: missing field `id` …
GET /v1/cubes/ann
    200 {"condition":"cold","id":"ann","items":0,"name":"Ann's","owner":"u1","version":0}
POST /v1/cubes/ann/memories {"text": "the first memory"}
    201 …
GET /v1/cubes/ann
    200 {"condition":"hot","embedder":"scripted-64","id":"ann","items":1,"name":"Ann's","owner":"u1","version":1}
GET /v1/cubes/nobody
    404 not_found: there is no cube `nobody`
POST /v1/cubes/ann/release
    404 not_found: the cube `ann` is not in quarantine
POST /v1/cubes/nobody/release
    404 not_found: the cube `nobody` is not in quarantine
DELETE /v1/cubes/nobody
    404 not_found: there is no cube `nobody`
DELETE /v1/cubes/ann
    200 {"condition":"hot","embedder":"scripted-64","id":"ann","items":1,"name":"Ann's","owner":"u1","version":1}
GET /v1/cubes/ann
    404 not_found: there is no cube `ann`
GET /v1/cubes/ann/memories
    404 not_found: there is no cube `ann`
DELETE /v1/cubes/ann
    404 not_found: there is no cube `ann`
"#;
    check_table(&node.client, "", show, table).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_cube_leaves_nothing_to_the_next_of_its_name() {
    let node = TestNode::start().await;
    node.client.cube("ann").await;
    let id = node.client.fact("ann", "the umbrella is orange").await;
    node.client.delete("/v1/cubes/ann").await.expect(200);
    node.client.cube("ann").await;
    assert_eq!(node.client.texts("ann").await, Vec::<String>::new());
    assert_eq!(node.client.search("ann", "orange umbrella").await, Vec::<String>::new());
    assert_eq!(node.client.get(&format!("/v1/cubes/ann/memories/{id}")).await.status, 404);
    let history = format!("/v1/cubes/ann/memories/{id}/history");
    assert_eq!(node.client.get(&history).await.status, 404, "histories go as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cubes_are_listed_by_pages() {
    let node = TestNode::start().await;
    let client = &node.client;
    let mut made: Vec<String> = (0..25).map(|number| format!("cube-{number:02}")).collect();
    for id in made.iter().rev() {
        client.cube(id).await;
    }
    for limit in [1, 7, 24, 25, 26, 1000] {
        let (mut listed, mut pages) = (Vec::new(), 0);
        let mut path = format!("/v1/cubes?limit={limit}");
        loop {
            let page = client.get(&path).await.expect(200);
            let cubes = page["cubes"].as_array().expect("a list").clone();
            assert!(cubes.len() <= limit, "{} in a page of {limit}", cubes.len());
            listed.extend(cubes.iter().map(|cube| cube["id"].as_str().expect("id").to_owned()));
            pages += 1;
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("/v1/cubes?limit={limit}&cursor={cursor}");
        }
        assert_eq!(listed, made, "in pages of {limit}");
        assert_eq!(pages, made.len().div_ceil(limit), "in pages of {limit}");
    }
    assert!(client.get("/v1/cubes").await.expect(200).get("next_cursor").is_none());
    client.delete("/v1/cubes/cube-07").await.expect(200);
    made.remove(7);
    let listed = client.get("/v1/cubes").await.expect(200);
    let listed: Vec<&Value> =
        listed["cubes"].as_array().expect("a list").iter().map(|cube| &cube["id"]).collect();
    assert_eq!(listed, made.iter().collect::<Vec<_>>());
}

/// Applications use their own user ids: whatever can be printed is a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cube_ids_may_hold_any_printable_character() {
    let node = TestNode::start().await;
    for (id, in_path) in [
        ("user 7/ö", "user%207%2F%C3%B6"),
        ("a?b#c%d", "a%3Fb%23c%25d"),
        ("..", "%2E%2E"),
        ("{cube}", "%7Bcube%7D"),
        ("🦀", "%F0%9F%A6%80"),
    ] {
        node.client.cube(id).await;
        let read = node.client.get(&format!("/v1/cubes/{in_path}")).await.expect(200);
        assert_eq!(read["id"], id);
        node.client.fact(in_path, &format!("said in {id}")).await;
        assert_eq!(node.client.texts(in_path).await, [format!("said in {id}")]);
        let listed = node.client.get("/v1/cubes?limit=1000").await.expect(200);
        let listed = listed["cubes"].as_array().expect("a list").clone();
        assert!(listed.iter().any(|cube| cube["id"] == id), "{id}");
        let after = node.client.get(&format!("/v1/cubes?cursor={in_path}")).await;
        assert_eq!(after.status, 200, "{id} as cursor: {}", after.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_of_many_creations_wins() {
    let node = TestNode::start().await;
    let calls = (0..16).map(|_| node.client.post("/v1/cubes", json!({"id": "contested"})));
    let answers = futures_util::future::join_all(calls).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[0], 201);
    assert!(statuses[1..].iter().all(|status| *status == 409), "{statuses:?}");
}
