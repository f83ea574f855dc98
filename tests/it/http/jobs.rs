//! `/v1/jobs`

use memcube_actors::{
    Error,
    scheduler::jobs::{Job, JobKind},
};
use memcube_schemas::{CubeId, TenantId};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::support::{Answer, TestNode, check_table, eventually};

/// A job that ends with what it is sent.
pub(crate) fn held(
    tenant: Option<&str>,
    cube: &str,
    name: &str,
) -> (Job, oneshot::Sender<Result<(), Error>>) {
    let (end, ended) = oneshot::channel();
    let work = async move { ended.await.unwrap_or_else(|_| Err(Error::internal("forgotten"))) };
    let job = Job {
        tenant: tenant.map(|tenant| TenantId::new(tenant).expect("valid")),
        cube: Some(CubeId::new(cube).expect("valid")),
        kind: JobKind::Blocks,
        name: name.to_owned(),
        ms_max: 60_000,
        work: Box::new(move || Box::pin(work)),
    };
    (job, end)
}

fn counts(waiting: u64, running: u64, done: u64, failed: u64, cancelled: u64) -> Value {
    json!({
        "waiting": waiting, "running": running, "done": done, "failed": failed,
        "cancelled": cancelled,
    })
}

/// Waits until a job is in a condition, and returns it.
async fn until(node: &TestNode, id: &str, condition: &str) -> Value {
    let path = format!("/v1/jobs/{id}");
    let is_so = || async { node.client.get(&path).await.expect(200)["condition"] == condition };
    eventually(condition, is_so).await;
    node.client.get(&path).await.expect(200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_sees_its_own_jobs_and_how_many_the_node_has() {
    let node = TestNode::start().await;
    let jobs = node.node.cubes().jobs();
    let none = node.client.get("/v1/jobs").await.expect(200);
    assert_eq!((&none["counts"], &none["recent"]), (&counts(0, 0, 0, 0, 0), &json!([])));

    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for name in ["first", "second", "third"] {
        let (job, end) = held(Some("default"), "ann", name);
        ids.push(jobs.submit(job).expect("taken").to_string());
        ends.push(end);
    }
    let (other, _other_end) = held(Some("other"), "ann", "not yours");
    let other = jobs.submit(other).expect("taken");
    let (of_node, _node_end) = held(None, "ann", "upkeep");
    let of_node = jobs.submit(of_node).expect("taken");
    until(&node, &ids[1], "running").await;
    let answer = node.client.get("/v1/jobs").await.expect(200);
    assert_eq!(answer["counts"], counts(1, 2, 0, 0, 0), "half of the places are its own");
    assert_eq!(answer["kinds"], json!({"blocks": counts(1, 2, 0, 0, 0)}));
    assert_eq!(answer["paused"], json!([]));
    let recent = answer["recent"].as_array().expect("a list");
    let names: Vec<&Value> = recent.iter().map(|job| &job["name"]).collect();
    assert_eq!(names, ["second", "first", "third"], "nothing of others");
    assert_eq!(answer["node"]["blocks"]["running"], 1, "the node's are counted: {answer}");
    for hidden in [other, of_node] {
        let answer = node.client.get(&format!("/v1/jobs/{hidden}")).await;
        let said = format!("404 not_found: there is no job `{hidden}` here, or it is no longer …");
        crate::support::assert_says(&answer.summary(), &said, "another's");
    }

    let mut ends = ends.into_iter();
    let mut end = |outcome| ends.next().expect("an end").send(outcome).expect("it runs");
    end(Ok(()));
    let done = until(&node, &ids[0], "done").await;
    assert_eq!((&done["kind"], &done["cube"]), (&json!("blocks"), &json!("ann")));
    assert!(done["submitted_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{done}");
    assert!(done["waited_ms"].is_u64() && done["ran_ms"].is_u64() && done["error"].is_null());
    end(Err(Error::unavailable("no device is free")));
    let failed = until(&node, &ids[1], "failed").await;
    assert_eq!(failed["error"], "no device is free");
    // The cube is deleted while its last job runs.
    until(&node, &ids[2], "running").await;
    node.client.cube("ann").await;
    assert_eq!(node.client.delete("/v1/cubes/ann").await.status, 200);
    until(&node, &ids[2], "cancelled").await;
    let answer = node.client.get("/v1/jobs").await.expect(200);
    assert_eq!(answer["counts"], counts(0, 0, 1, 1, 1));
    let metrics = node.client.get("/metrics").await.text;
    let failed =
        memcube_actors::metrics::JOBS_TOTAL.to_owned() + "{kind=\"blocks\",outcome=\"failed\"}";
    assert!(metrics.contains(&failed), "no {failed} in\n{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_pauses_and_resumes_its_own_jobs() {
    let node = TestNode::start().await;
    let jobs = node.node.cubes().jobs();
    let paused = node.client.post("/v1/jobs/pause", json!({"kind": "blocks"})).await.expect(200);
    assert_eq!(paused["paused"], json!(["blocks"]));
    let (job, end) = held(Some("default"), "ann", "mine");
    let mine = jobs.submit(job).expect("taken").to_string();
    let (job, other_end) = held(Some("other"), "ann", "another's");
    let other = TenantId::new("other").expect("valid");
    jobs.submit(job).expect("taken");
    other_end.send(Ok(())).expect("it is held");
    jobs.idle(Some(&other)).await;
    assert_eq!(until(&node, &mine, "waiting").await["ran_ms"], 0);
    // Another kind is let go; this one stays.
    let resumed = node.client.post("/v1/jobs/resume", json!({"kind": "preload"})).await;
    assert_eq!(resumed.expect(200)["paused"], json!(["blocks"]));
    let all = node.client.post("/v1/jobs/pause", json!({})).await.expect(200);
    assert!(all["paused"].as_array().is_some_and(|kinds| kinds.len() > 1), "{all}");
    let resumed = node.client.post("/v1/jobs/resume", json!({})).await.expect(200);
    assert_eq!(resumed["paused"], json!([]));
    until(&node, &mine, "running").await;
    end.send(Ok(())).expect("it runs");
    until(&node, &mine, "done").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_about_jobs_are_told() {
    let node = TestNode::start().await;
    let table = r#"
GET /v1/jobs/seven
    422 invalid: the id of a job is a number
GET /v1/jobs/18446744073709551616
    422 invalid: the id of a job is a number
GET /v1/jobs/99
    404 not_found: there is no job `99` here, or it is no longer remembered
POST /v1/jobs/pause {"kind": "dreams"}
    422 invalid: there are no jobs of kind `dreams`; kinds are …
POST /v1/jobs/resume {"kind": 7}
    422 invalid: body at `kind`: invalid type: integer `7`, expected a string …
POST /v1/jobs/pause {"kinds": []}
    422 invalid: body at `kinds`: unknown field `kinds`, expected `kind` …
POST /v1/jobs {}
    405 invalid: `/v1/jobs` does not take POST
"#;
    check_table(&node.client, "", Answer::summary, table).await;
}
