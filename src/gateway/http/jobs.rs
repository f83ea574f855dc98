//! `/v1/jobs`
//!
//! A key speaks for its tenant, so a caller sees and pauses the jobs of that tenant. Whoever runs
//! the whole node pauses all of them through [`JobsHandle::pause`] of the library.
//!
//! [`JobsHandle::pause`]: memcube_actors::scheduler::jobs::JobsHandle::pause

use std::collections::BTreeMap;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{Response, StatusCode},
    routing::{get, post},
};
use memcube_actors::{
    Error, TenantContext,
    scheduler::jobs::{JobCounts, JobId, JobKind, JobState, JobView, JobsStatus},
};
use memcube_schemas::api::v1::{
    JobBody, JobCondition, JobCountsBody, JobsResponse, PauseJobsRequest, Problem,
};

use super::{respond, rfc3339};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId, read_json},
};

pub(crate) fn routes() -> Router<Gateway> {
    Router::new()
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(read))
        .route("/v1/jobs/pause", post(pause))
        .route("/v1/jobs/resume", post(resume))
}

/// Tells of the caller's background jobs on the node that answers, and how many the node has of its
/// own.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    responses((status = 200, body = JobsResponse)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
) -> Response<Body> {
    respond(&id, StatusCode::OK, Ok(jobs(&gateway, &caller)))
}

/// Tells of one background job of the caller on the node that answers.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = u64, Path)),
    responses((status = 200, body = JobBody),
        (status = 404, body = Problem, description = "it is not known, or no longer"),
        (status = 422, body = Problem)))]
pub(crate) async fn read(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    Path(job): Path<String>,
) -> Response<Body> {
    let result = job.parse::<JobId>().map_err(Failure::from).and_then(|job| {
        let found = gateway.node.cubes().jobs().job(Some(caller.tenant()), job);
        let missing = || {
            let detail = format!("there is no job `{job}` here, or it is no longer remembered");
            Failure::from(Error::not_found(detail))
        };
        found.map(body).ok_or_else(missing)
    });
    respond(&id, StatusCode::OK, result)
}

/// Lets no background job of the caller begin on the node that answers, or none of a kind, until
/// they are resumed or the node stops. What runs goes on.
#[utoipa::path(post, path = "/v1/jobs/pause", tag = "jobs", request_body = PauseJobsRequest,
    responses((status = 200, body = JobsResponse),
        (status = 422, body = Problem, description = "there is no such kind"),
        (status = 429, body = Problem, description = "too many tenants have jobs")))]
pub(crate) async fn pause(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    let result = async {
        let kind = kind(request).await?;
        gateway.node.cubes().jobs().pause_tenant(caller.tenant(), kind)?;
        Ok(jobs(&gateway, &caller))
    };
    respond(&id, StatusCode::OK, result.await)
}

/// Lets background jobs of the caller begin again, all or those of a kind.
#[utoipa::path(post, path = "/v1/jobs/resume", tag = "jobs", request_body = PauseJobsRequest,
    responses((status = 200, body = JobsResponse),
        (status = 422, body = Problem, description = "there is no such kind")))]
pub(crate) async fn resume(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    request: Request,
) -> Response<Body> {
    let result = async {
        let kind = kind(request).await?;
        gateway.node.cubes().jobs().resume_tenant(caller.tenant(), kind);
        Ok(jobs(&gateway, &caller))
    };
    respond(&id, StatusCode::OK, result.await)
}

async fn kind(request: Request) -> Result<Option<JobKind>, Failure> {
    let PauseJobsRequest { kind } = read_json(request).await?;
    let kind = kind.map(|kind| kind.parse::<JobKind>()).transpose();
    kind.map_err(|error| Failure::from(error).about("kind"))
}

fn jobs(gateway: &Gateway, caller: &TenantContext) -> JobsResponse {
    let jobs = gateway.node.cubes().jobs();
    let status = jobs.status(Some(caller.tenant()));
    let counts = counts(status.total());
    let kinds = by_kind(&status);
    let JobsStatus { paused, recent, .. } = status;
    JobsResponse {
        counts,
        kinds,
        paused: paused.into_iter().map(|kind| kind.as_str().to_owned()).collect(),
        recent: recent.into_iter().map(body).collect(),
        node: by_kind(&jobs.status(None)),
    }
}

fn by_kind(status: &JobsStatus) -> BTreeMap<String, JobCountsBody> {
    let kinds = status.kinds.iter();
    kinds.map(|(kind, of)| (kind.as_str().to_owned(), counts(*of))).collect()
}

const fn counts(counts: JobCounts) -> JobCountsBody {
    let JobCounts { waiting, running, done, failed, cancelled } = counts;
    JobCountsBody { waiting, running, done, failed, cancelled }
}

fn body(view: JobView) -> JobBody {
    let condition = match view.state {
        JobState::Waiting => JobCondition::Waiting,
        JobState::Running => JobCondition::Running,
        JobState::Done => JobCondition::Done,
        JobState::Failed => JobCondition::Failed,
        JobState::Cancelled => JobCondition::Cancelled,
    };
    JobBody {
        id: view.id.number(),
        kind: view.kind.as_str().to_owned(),
        name: view.name,
        cube: view.cube,
        condition,
        submitted_at: rfc3339(view.submitted_at_ms),
        waited_ms: view.waited_ms,
        ran_ms: view.ran_ms,
        error: view.error,
    }
}
