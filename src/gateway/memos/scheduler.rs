//! `/product/scheduler/*`: how far background work is, out of the state of the jobs.
//!
//! An add is no background work here: it is complete when it is answered. What is told are the jobs
//! of this node for the caller's tenant; a user's are those of the cube of the same name.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::Response,
    response::{IntoResponse, sse::Event},
};
use futures_util::{StreamExt, stream};
use memcube_actors::{
    Error, ErrorKind, TenantContext,
    scheduler::jobs::{JobCounts, JobId, JobState, JobView},
};
use memcube_schemas::{CubeId, MemoryId, api::memos::Envelope};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{cube_id, respond};
use crate::gateway::{Gateway, conversing::streamed, errors::Failure, request::Caller};

/// Seconds that a wait may take: longer than any proxy lets a request live.
const WAIT_SECONDS_MAX: f64 = 3_600.0;
/// Seconds between two events of a wait.
const POLL_SECONDS: (f64, f64) = (0.05, 60.0);

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    query.map(|Query(query)| query).map_err(|error| Failure::invalid(error.body_text()))
}

/// Counts background work: in `scheduler_summary` the caller's, in `all_tasks_summary` with that of
/// the node itself.
#[utoipa::path(get, path = "/product/scheduler/allstatus", tag = "memos",
    responses((status = 200, body = Envelope)))]
pub(crate) async fn all_status(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
) -> Response<Body> {
    let jobs = gateway.node.cubes().jobs();
    let own = jobs.status(Some(caller.tenant())).total();
    let all = own.plus(jobs.status(None).total());
    let data = json!({"scheduler_summary": summary(own), "all_tasks_summary": summary(all)});
    respond(Ok(("Scheduler status summary retrieved successfully", data)))
}

fn summary(counts: JobCounts) -> Value {
    let JobCounts { waiting, running, done, failed, cancelled } = counts;
    json!({
        "waiting": waiting,
        "in_progress": running,
        // Taken from a queue and not begun: there is no such state here.
        "pending": 0,
        "completed": done,
        "failed": failed,
        "cancelled": cancelled,
        "total": waiting + running + done + failed + cancelled,
    })
}

const fn status_of(state: JobState) -> &'static str {
    match state {
        JobState::Waiting => "waiting",
        JobState::Running => "in_progress",
        JobState::Done => "completed",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// Which tasks of a user.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct StatusQuery {
    /// The user.
    #[serde(default)]
    user_id: Option<String>,
    /// One task: what an add was given as `task_id`, the id of a memory that it returned, or the
    /// number of a job.
    #[serde(default)]
    task_id: Option<String>,
}

/// Lists the tasks of a user, or tells of one. An add is complete when it is answered.
#[utoipa::path(get, path = "/product/scheduler/status", tag = "memos", params(StatusQuery),
    responses((status = 200, body = Envelope), (status = 404, body = Envelope)))]
pub(crate) async fn status(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    asked: Result<Query<StatusQuery>, QueryRejection>,
) -> Response<Body> {
    let result = async {
        let StatusQuery { user_id, task_id } = query(asked)?;
        let user = user_id.ok_or_else(|| Failure::invalid("`user_id` is missing"))?;
        let tasks = match task_id {
            Some(task) => vec![one(&gateway, &caller, &user, task).await?],
            None => all(&gateway, &caller, &user),
        };
        let told = |(task, status)| json!({"task_id": task, "status": status});
        Ok(("Memory get status successfully", tasks.into_iter().map(told).collect()))
    };
    respond(result.await)
}

type TaskStatus = (String, &'static str);

fn all(gateway: &Gateway, caller: &TenantContext, user: &str) -> Vec<TaskStatus> {
    let jobs = jobs_of(gateway, caller, user).into_iter();
    let jobs = jobs.map(|job| (job.id.to_string(), status_of(job.state)));
    let adds = gateway.tasks.of_user(caller, user).into_iter();
    jobs.chain(adds.map(|task| (task, status_of(JobState::Done)))).collect()
}

async fn one(
    gateway: &Gateway,
    caller: &TenantContext,
    user: &str,
    task: String,
) -> Result<TaskStatus, Failure> {
    let job = task.parse::<JobId>().ok();
    let job = job.and_then(|id| gateway.node.cubes().jobs().job(Some(caller.tenant()), id));
    let job = job.filter(|job| job.cube.as_ref().is_some_and(|cube| cube.as_str() == user));
    let is_done = gateway.tasks.is_completed(caller, user, &task);
    let status = match job {
        _ if is_done => status_of(JobState::Done),
        Some(job) => status_of(job.state),
        None if is_memory(gateway, caller, user, &task).await? => status_of(JobState::Done),
        None => return Err(Error::not_found(format!("there is no task `{task}`")).into()),
    };
    Ok((task, status))
}

/// Whether an add has returned this id.
async fn is_memory(
    gateway: &Gateway,
    caller: &TenantContext,
    user: &str,
    task: &str,
) -> Result<bool, Failure> {
    let (Ok(id), Ok(cube)) = (task.parse::<MemoryId>(), CubeId::new(user)) else {
        return Ok(false);
    };
    match gateway.node.cubes().cube(caller, cube).get(id).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is remembered of the jobs of a user's cube.
fn jobs_of(gateway: &Gateway, caller: &TenantContext, user: &str) -> Vec<JobView> {
    let recent = gateway.node.cubes().jobs().status(Some(caller.tenant())).recent.into_iter();
    let is_theirs = |job: &JobView| job.cube.as_ref().is_some_and(|cube| cube.as_str() == user);
    recent.filter(is_theirs).collect()
}

/// Whose queue.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct QueueQuery {
    /// The user.
    user_id: String,
}

/// Tells what waits and what runs for a user, by cube and kind of work.
#[utoipa::path(get, path = "/product/scheduler/task_queue_status", tag = "memos",
    params(QueueQuery),
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn queue_status(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    asked: Result<Query<QueueQuery>, QueryRejection>,
) -> Response<Body> {
    let result = query(asked).and_then(|QueueQuery { user_id: user }| {
        let cube = cube_id(&user)?;
        let load = gateway.node.cubes().jobs().load(Some(caller.tenant()), Some(&cube));
        // What runs is taken and not finished, which MemOS calls pending.
        let details = |of: fn(&JobCounts) -> u64| {
            let counted = load.iter().map(|(kind, counts)| (kind, of(counts)));
            let counted = counted.filter(|(_, count)| *count > 0);
            counted.map(|(kind, count)| format!("{user}:{cube}:{kind}:{count}")).collect::<Vec<_>>()
        };
        let (pending, remaining) =
            (details(|counts| counts.running), details(|counts| counts.waiting));
        let streams = load.keys().map(|kind| format!("{user}:{cube}:{kind}"));
        let streams: Vec<String> = streams.collect();
        let total = load.values().fold(JobCounts::default(), |sum, counts| sum.plus(*counts));
        let data = json!({
            "user_id": user,
            "user_name": user,
            "mem_cube_id": cube,
            "stream_keys": streams,
            "users_count": 1,
            "pending_tasks_count": total.running,
            "remaining_tasks_count": total.waiting,
            "pending_tasks_detail": pending,
            "remaining_tasks_detail": remaining,
        });
        Ok(("Scheduler task queue status retrieved successfully", data))
    });
    respond(result)
}

/// For whom to wait, and how long.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct WaitQuery {
    /// The user.
    user_name: String,
    /// Seconds to wait at the most.
    #[serde(default = "timeout_seconds")]
    timeout_seconds: f64,
    /// Seconds between two events of a stream.
    #[serde(default = "poll_interval")]
    poll_interval: f64,
}

const fn timeout_seconds() -> f64 {
    120.0
}

const fn poll_interval() -> f64 {
    0.5
}

/// A wait that is valid.
struct Wait {
    user: String,
    cube: CubeId,
    limit: Duration,
    poll: Duration,
    start: Instant,
}

impl Wait {
    fn of(asked: Result<Query<WaitQuery>, QueryRejection>) -> Result<Self, Failure> {
        let WaitQuery { user_name: user, timeout_seconds, poll_interval } = query(asked)?;
        let cube = cube_id(&user)?;
        if !(0.0..=WAIT_SECONDS_MAX).contains(&timeout_seconds) {
            return Err(Failure::invalid(format!(
                "`timeout_seconds` must be between 0 and {WAIT_SECONDS_MAX}"
            )));
        }
        let (least, most) = POLL_SECONDS;
        if !(0.0..=most).contains(&poll_interval) {
            return Err(Failure::invalid(format!("`poll_interval` must be between 0 and {most}")));
        }
        let limit = Duration::from_secs_f64(timeout_seconds);
        let poll = Duration::from_secs_f64(poll_interval.max(least));
        Ok(Self { user, cube, limit, poll, start: Instant::now() })
    }

    /// How many jobs wait or run.
    fn active(&self, gateway: &Gateway, caller: &TenantContext) -> u64 {
        let load = gateway.node.cubes().jobs().load(Some(caller.tenant()), Some(&self.cube));
        load.values().map(|counts| counts.waiting + counts.running).sum()
    }

    fn waited_seconds(&self) -> f64 {
        (self.start.elapsed().as_secs_f64() * 1e3).round() / 1e3
    }
}

/// Answers once there is no background work for a user any more, or the time is over.
#[utoipa::path(post, path = "/product/scheduler/wait", tag = "memos", params(WaitQuery),
    responses((status = 200, body = Envelope), (status = 422, body = Envelope)))]
pub(crate) async fn wait(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    asked: Result<Query<WaitQuery>, QueryRejection>,
) -> Response<Body> {
    let wait = match Wait::of(asked) {
        Ok(wait) => wait,
        Err(failure) => return failure.into_envelope(),
    };
    let mut stopping = gateway.stopping.clone();
    let idle = gateway.node.cubes().jobs().idle_of(Some(caller.tenant()), Some(&wait.cube));
    let is_over = tokio::select! {
        biased;
        ended = timeout(wait.limit, idle) => ended.is_ok(),
        _ = stopping.wait_for(|stop| *stop) => {
            return Failure::from(Error::unavailable("this server is stopping")).into_envelope();
        }
    };
    let data = json!({
        "running_tasks": wait.active(&gateway, &caller),
        "waited_seconds": wait.waited_seconds(),
        "timed_out": !is_over,
        "user_name": wait.user,
    });
    let message = if is_over { "idle" } else { "timeout" };
    Json(Envelope { code: 200, message: message.to_owned(), data }).into_response()
}

/// The same as a stream (server-sent events): how much is to be done still, now and then, until
/// nothing is or the time is over.
#[utoipa::path(get, path = "/product/scheduler/wait/stream", tag = "memos", params(WaitQuery),
    responses((status = 200, body = String, content_type = "text/event-stream"),
        (status = 422, body = Envelope)))]
pub(crate) async fn wait_stream(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    asked: Result<Query<WaitQuery>, QueryRejection>,
) -> Response<Body> {
    let wait = match Wait::of(asked) {
        Ok(wait) => wait,
        Err(failure) => return failure.into_envelope(),
    };
    let mut stopping = gateway.stopping.clone();
    let stopped = async move {
        // A sender that is gone means the same as one that says stop.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let instance = gateway.node.cubes().view().me;
    let events = stream::unfold(Some((wait, Duration::ZERO)), move |wait| {
        let (gateway, caller, instance) = (gateway.clone(), caller.clone(), instance.clone());
        async move {
            let (wait, pause) = wait?;
            sleep(pause).await;
            let active = wait.active(&gateway, &caller);
            let left = wait.limit.saturating_sub(wait.start.elapsed());
            let mut data = json!({
                "user_name": wait.user,
                "active_tasks": active,
                "elapsed_seconds": wait.waited_seconds(),
                "status": "running",
                "instance_id": instance,
            });
            let is_over = active == 0 || left.is_zero();
            if is_over {
                data["status"] = json!(if active == 0 { "idle" } else { "timeout" });
                data["timed_out"] = json!(active > 0);
            }
            let pause = wait.poll.min(left);
            let next = (!is_over).then_some((wait, pause));
            Some((Event::default().data(data.to_string()), next))
        }
    });
    streamed(events.take_until(Box::pin(stopped)))
}
