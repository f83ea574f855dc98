//! Runs jobs.
//!
//! Receives: that there may be something to begin, and the ends of jobs.
//! Sends: jobs to tasks of their own.
//! Owns: the places of jobs that run. Which of them wait stands on the board that it shares with
//! the handles, so that nobody waits for this actor to submit a job or to look.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use memcube_schemas::TenantId;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::{JobId, JobState, Work, handle::Shared, records::Begun};

pub(super) enum JobsMessage {
    /// A job was submitted, or may begin again.
    Look,
    Ended {
        tenant: Option<TenantId>,
        id: JobId,
        outcome: (JobState, Option<String>),
    },
}

pub(super) struct JobsActor;

/// Closes the board when the actor ends, however it does.
pub(super) struct Places {
    shared: Arc<Shared>,
}

impl Drop for Places {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Actor for JobsActor {
    type Msg = JobsMessage;
    type State = Places;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<JobsMessage>,
        shared: Arc<Shared>,
    ) -> Result<Places, ActorProcessingErr> {
        Ok(Places { shared })
    }

    async fn handle(
        &self,
        myself: ActorRef<JobsMessage>,
        message: JobsMessage,
        places: &mut Places,
    ) -> Result<(), ActorProcessingErr> {
        let shared = &places.shared;
        match message {
            JobsMessage::Look => shared.looks(),
            JobsMessage::Ended { tenant, id, outcome } => {
                shared.end(tenant.as_ref(), id, outcome);
            }
        }
        while let Some(begun) = shared.begin_next() {
            begin(shared, &myself, begun);
        }
        Ok(())
    }
}

fn begin(shared: &Arc<Shared>, myself: &ActorRef<JobsMessage>, begun: Begun) {
    let Begun { tenant, id, ms_max, work, stop } = begun;
    let (myself, under) = (myself.clone(), shared.under());
    shared.environment().spawn(async move {
        let _under = under;
        let outcome = run(id, work, ms_max, stop).await;
        // Without the actor there is nobody who counts.
        let _ = myself.cast(JobsMessage::Ended { tenant, id, outcome });
    });
}

/// Does the work, until it is done, takes too long, panics or is cancelled.
async fn run(
    id: JobId,
    work: Work,
    ms_max: u64,
    stop: oneshot::Receiver<()>,
) -> (JobState, Option<String>) {
    let work = AssertUnwindSafe(async move { work().await }).catch_unwind();
    let error = tokio::select! {
        biased;
        _ = stop => return (JobState::Cancelled, None),
        done = work => match done {
            Ok(Ok(())) => return (JobState::Done, None),
            Ok(Err(error)) => {
                // What that means is known to whoever submitted it.
                tracing::debug!(job = %id, %error, "a job failed");
                return (JobState::Failed, Some(error.to_string()));
            }
            Err(_) => "it panicked; see the log".to_owned(),
        },
        () = tokio::time::sleep(Duration::from_millis(ms_max)) => {
            format!("it was not done after {ms_max} ms, and was given up")
        }
    };
    tracing::warn!(job = %id, error, "a job failed");
    (JobState::Failed, Some(error))
}
