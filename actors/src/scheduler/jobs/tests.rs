use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use memcube_schemas::limits::{
    JOB_NAME_BYTES_MAX, JOB_TENANTS_MAX, JOBS_REMEMBERED_PER_TENANT, JOBS_WAITING_MAX,
    JOBS_WAITING_PER_TENANT_MAX,
};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::{directory::QueueDepth, environment::Environment, error::ErrorKind};

const LONG_MS: u64 = 1_000_000;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("valid")
}

async fn start() -> JobsHandle {
    let environment = Environment::scripted(5);
    JobsHandle::start(environment, JobRules::default()).await.expect("started")
}

fn job(owner: &str, name: &str, work: impl Future<Output = Result<()>> + Send + 'static) -> Job {
    Job {
        tenant: (owner != "house").then(|| tenant(owner)),
        cube: None,
        kind: JobKind::Blocks,
        name: name.to_owned(),
        ms_max: LONG_MS,
        work: Box::new(move || Box::pin(work)),
    }
}

/// A job that takes so long.
fn lasting(owner: &str, name: &str, ms: u64) -> Job {
    job(owner, name, async move {
        sleep(Duration::from_millis(ms)).await;
        Ok(())
    })
}

/// The order in which jobs began.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// The same job, which says when it begins.
    fn of(&self, job: Job) -> Job {
        let (log, name, work) = (Arc::clone(&self.0), job.name.clone(), job.work);
        let work: Work = Box::new(move || {
            log.lock().expect("not poisoned").push(name);
            work()
        });
        Job { work, ..job }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

fn counts(jobs: &JobsHandle, owner: &str) -> (u64, u64, u64, u64, u64) {
    let owner = (owner != "house").then(|| tenant(owner));
    let JobCounts { waiting, running, done, failed, cancelled } =
        jobs.status(owner.as_ref()).total();
    (waiting, running, done, failed, cancelled)
}

#[tokio::test(start_paused = true)]
async fn a_job_is_told_of_from_its_submission_to_its_end() {
    let jobs = start().await;
    let ann = tenant("ann");
    for number in 0..3 {
        jobs.submit(lasting("ann", &format!("job {number}"), 2_000)).expect("taken");
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(counts(&jobs, "ann"), (1, 2, 0, 0, 0));
    let ids: Vec<JobId> = jobs.status(Some(&ann)).recent.iter().map(|view| view.id).collect();
    assert_eq!(ids, [JobId(2), JobId(1), JobId(3)], "what runs, then what waits");
    let told = |id: u64| {
        let view = jobs.job(Some(&ann), JobId(id)).expect("known");
        (view.state, view.waited_ms, view.ran_ms)
    };
    assert_eq!(told(1), (JobState::Running, 0, 500));
    assert_eq!(told(3), (JobState::Waiting, 500, 0));
    assert_eq!(jobs.job(None, JobId(1)), None, "another's");
    assert_eq!(jobs.job(Some(&tenant("bo")), JobId(1)), None, "another's");
    jobs.idle(Some(&ann)).await;
    assert_eq!(told(3), (JobState::Done, 2_000, 2_000));
    assert_eq!(counts(&jobs, "ann"), (0, 0, 3, 0, 0));
    assert_eq!(counts(&jobs, "house"), (0, 0, 0, 0, 0));
    for number in 0..200 {
        jobs.submit(lasting("ann", &number.to_string(), 1)).expect("taken");
    }
    jobs.idle(Some(&ann)).await;
    let recent = jobs.status(Some(&ann)).recent;
    assert_eq!(recent.len(), JOBS_REMEMBERED_PER_TENANT);
    assert_eq!(recent[0].id, JobId(203), "the latest first");
    assert_eq!(counts(&jobs, "ann"), (0, 0, 203, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_panics_or_takes_too_long_frees_its_place() {
    let jobs = start().await;
    let failing = |n: u64| match n % 4 {
        0 => job("ann", &n.to_string(), ready(Err(Error::unavailable("no store")))),
        1 => job("ann", &n.to_string(), async { panic!("as told") }),
        2 => Job { ms_max: 10, ..job("ann", &n.to_string(), pending()) },
        _ => Job {
            work: Box::new(|| panic!("before it begins")),
            ..job("ann", &n.to_string(), pending())
        },
    };
    for number in 0..40 {
        jobs.submit(failing(number)).expect("taken");
    }
    jobs.submit(lasting("ann", "good", 1)).expect("taken");
    timeout(Duration::from_secs(10), jobs.idle(Some(&tenant("ann")))).await.expect("idle");
    assert_eq!(counts(&jobs, "ann"), (0, 0, 1, 40, 0));
    for (id, reason) in [
        (37, "no store"),
        (38, "it panicked; see the log"),
        (39, "it was not done after 10 ms, and was given up"),
        (40, "it panicked; see the log"),
    ] {
        let view = jobs.job(Some(&tenant("ann")), JobId(id)).expect("known");
        assert_eq!((view.state, view.error.as_deref()), (JobState::Failed, Some(reason)));
    }
}

#[tokio::test(start_paused = true)]
async fn of_jobs_with_one_name_one_waits() {
    let jobs = start().await;
    jobs.pause(None);
    let first = jobs.submit(lasting("ann", "a", 10)).expect("taken");
    let held = Arc::new(());
    let second = Arc::clone(&held);
    let same = job("ann", "a", async move {
        drop(second);
        Ok(())
    });
    assert_eq!(jobs.submit(same), Ok(first));
    assert_eq!(Arc::strong_count(&held), 1, "the second is dropped");
    let other_kind = Job { kind: JobKind::Preload, ..lasting("ann", "a", 10) };
    for other in [lasting("ann", "b", 10), lasting("bo", "a", 10), other_kind] {
        assert_ne!(jobs.submit(other), Ok(first));
    }
    jobs.resume(None);
    sleep(Duration::from_millis(1)).await;
    let again = jobs.submit(lasting("ann", "a", 10)).expect("taken");
    assert_ne!(again, first, "one that runs has seen less than is to be done now");
    jobs.idle(Some(&tenant("ann"))).await;
    assert_eq!(counts(&jobs, "ann"), (0, 0, 4, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_waits_and_what_is_remembered_have_bounds() {
    let jobs = start().await;
    jobs.pause(None);
    let refused = |job: Job| {
        let error = jobs.submit(job).expect_err("refused");
        assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Overloaded, Some(1_000)));
        error.message().split(" is full").next().unwrap_or_default().to_owned()
    };
    let mut taken = 0;
    'all: for owner in 0.. {
        for number in 0..JOBS_WAITING_PER_TENANT_MAX {
            if taken == JOBS_WAITING_MAX {
                break 'all;
            }
            let job = lasting(&format!("t{owner}"), &number.to_string(), 1);
            jobs.submit(job).expect("taken");
            taken += 1;
        }
        assert_eq!(refused(lasting(&format!("t{owner}"), "x", 1)), "the tenant's queue of jobs");
    }
    assert_eq!(refused(lasting("another", "x", 1)), "the node's queue of jobs");
    for number in 0..JOBS_WAITING_PER_TENANT_MAX {
        jobs.submit(lasting("house", &number.to_string(), 1)).expect("upkeep is taken");
    }
    assert_eq!(refused(lasting("house", "x", 1)), "the tenant's queue of jobs");
    let QueueDepth { depth, bound, .. } = jobs.queue();
    assert_eq!(depth, bound);
    jobs.resume(None);
    jobs.idle(Some(&tenant("t0"))).await;
    jobs.idle(None).await;
    sleep(Duration::from_secs(100)).await;
    assert_eq!(jobs.queue().depth, 0);
    // Those who have nothing to do are forgotten, but for those whose jobs are paused.
    jobs.pause_tenant(&tenant("t1"), None).expect("paused");
    for number in 0..JOB_TENANTS_MAX * 2 {
        jobs.submit(lasting(&format!("many{number}"), "x", 1)).expect("taken");
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(jobs.status(Some(&tenant("t0"))), JobsStatus::default());
    assert_eq!(jobs.status(Some(&tenant("t1"))).paused.len(), JobKind::ALL.len());
    // Each of these keeps its place, so that at last there is none.
    let paused = (0..).map(|number| jobs.pause_tenant(&tenant(&format!("p{number}")), None));
    assert_eq!(paused.take_while(std::result::Result::is_ok).count(), JOB_TENANTS_MAX - 1);
    assert_eq!(refused(lasting("new", "x", 1)), "the list of tenants with jobs");
    for (job, says) in [
        (lasting("t1", &"x".repeat(JOB_NAME_BYTES_MAX + 1), 1), "has 513 bytes, the limit is 512"),
        (Job { ms_max: 0, ..lasting("t1", "x", 1) }, "at least a millisecond"),
    ] {
        let error = jobs.submit(job).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains(says), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_half_of_the_places_and_the_node_its_own() {
    let jobs = start().await;
    for owner in ["ann", "bo", "cy", "house"] {
        for number in 0..10 {
            jobs.submit(lasting(owner, &number.to_string(), 100)).expect("taken");
        }
        sleep(Duration::from_millis(1)).await;
    }
    let running = |owner: &str| counts(&jobs, owner).1;
    assert_eq!(["ann", "bo", "cy", "house"].map(running), [2, 2, 0, 2]);
    // All of them come round.
    sleep(Duration::from_millis(1_000)).await;
    for owner in ["ann", "bo", "cy", "house"] {
        assert!(counts(&jobs, owner).2 >= 10 / 2, "{owner}: {:?}", counts(&jobs, owner));
    }
}

#[tokio::test(start_paused = true)]
async fn preloads_go_first_and_leave_a_turn_to_what_waits_longer() {
    let rules = JobRules { at_once: 1, ..JobRules::default() };
    let jobs = JobsHandle::start(Environment::scripted(5), rules).await.expect("started");
    let log = Log::default();
    jobs.pause(None);
    for number in 0..3 {
        jobs.submit(log.of(lasting("ann", &format!("b{number}"), 1))).expect("taken");
    }
    for number in 0..6 {
        let preload = Job { kind: JobKind::Preload, ..lasting("ann", &format!("p{number}"), 1) };
        jobs.submit(log.of(preload)).expect("taken");
    }
    jobs.resume(None);
    jobs.idle(Some(&tenant("ann"))).await;
    assert_eq!(log.take(), ["p0", "p1", "p2", "b0", "p3", "p4", "p5", "b1", "b2"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_paused_waits_and_what_runs_goes_on() {
    let jobs = start().await;
    let (ann, bo) = (tenant("ann"), tenant("bo"));
    let submit = |round: u64| {
        for owner in ["ann", "bo"] {
            let preload =
                Job { kind: JobKind::Preload, ..lasting(owner, &format!("p{round}"), 10) };
            jobs.submit(preload).expect("taken");
            jobs.submit(lasting(owner, &format!("b{round}"), 10)).expect("taken");
        }
    };
    let done = || {
        let of = |tenant: &TenantId, kind: JobKind| {
            jobs.status(Some(tenant)).kinds.get(&kind).map_or(0, |counts| counts.done)
        };
        [&ann, &bo].map(|tenant| (of(tenant, JobKind::Preload), of(tenant, JobKind::Blocks)))
    };
    submit(0);
    sleep(Duration::from_millis(5)).await;
    jobs.pause(None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(done(), [(1, 1), (1, 1)], "what ran went on");
    submit(1);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(done(), [(1, 1), (1, 1)], "nothing begins");
    jobs.resume(Some(JobKind::Preload));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(done(), [(2, 1), (2, 1)], "one kind is let go");
    jobs.pause_tenant(&ann, Some(JobKind::Blocks)).expect("paused");
    jobs.resume(None);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(done(), [(2, 1), (2, 2)], "a tenant pauses its own");
    assert_eq!(jobs.status(Some(&ann)).paused, [JobKind::Blocks]);
    assert_eq!(jobs.status(Some(&bo)).paused, []);
    let waits = timeout(Duration::from_secs(1), jobs.idle(Some(&ann))).await;
    assert!(waits.is_err(), "what is paused waits");
    jobs.resume_tenant(&ann, None);
    jobs.idle(Some(&ann)).await;
    assert_eq!(done(), [(2, 2), (2, 2)]);
}

#[tokio::test(start_paused = true)]
async fn the_jobs_of_a_deleted_cube_end() {
    let jobs = start().await;
    let (ann, mine) = (tenant("ann"), CubeId::new("mine").expect("valid"));
    let held = Arc::new(());
    for (owner, cube) in [("ann", "mine"), ("ann", "other"), ("bo", "mine")] {
        for number in 0..3 {
            let held = Arc::clone(&held);
            let work = async move {
                let _held = held;
                pending().await
            };
            let job = job(owner, &format!("{cube} {number}"), work);
            let cube = Some(CubeId::new(cube).expect("valid"));
            jobs.submit(Job { cube, ..job }).expect("taken");
        }
    }
    sleep(Duration::from_millis(1)).await;
    jobs.cancel_of_cube(&ann, &mine);
    timeout(Duration::from_secs(1), jobs.idle_of(Some(&ann), Some(&mine))).await.expect("idle");
    sleep(Duration::from_millis(1)).await;
    assert_eq!(counts(&jobs, "ann"), (1, 2, 0, 0, 3));
    assert_eq!(counts(&jobs, "bo"), (1, 2, 0, 0, 0));
    assert_eq!(Arc::strong_count(&held), 7, "what the others hold, and this");
    jobs.cancel_of_cube(&tenant("nobody"), &mine);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_lets_go_of_its_jobs() {
    for kills in [false, true] {
        let jobs = start().await;
        let held = Arc::new(());
        for number in 0..5 {
            let held = Arc::clone(&held);
            let work = async move {
                let _held = held;
                pending().await
            };
            jobs.submit(job("ann", &number.to_string(), work)).expect("taken");
        }
        sleep(Duration::from_millis(1)).await;
        if kills {
            jobs.kill();
            sleep(Duration::from_millis(1)).await;
        } else {
            jobs.stop().await;
        }
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(counts(&jobs, "ann"), (0, 0, 0, 0, 5));
        timeout(Duration::from_secs(1), jobs.idle(Some(&tenant("ann")))).await.expect("idle");
        let late = jobs.submit(lasting("ann", "late", 1)).expect_err("refused");
        assert_eq!(late.kind(), ErrorKind::Unavailable);
        assert_eq!(jobs.queue().depth, 0);
    }
}

/// The time from submission to end of a tenant that submits a job of 20 ms every 100 ms, next to
/// tenants that submit as fast as they are allowed: the median and p99, in milliseconds.
async fn quiet_next_to(noisy: usize, noisy_ms: u64) -> (u64, u64) {
    const JOBS: usize = 1_000;
    const NOISE: usize = 10_000;
    let jobs = start().await;
    let (is_over, noise_done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for number in 0..noisy {
        let (jobs, is_over, done) = (jobs.clone(), Arc::clone(&is_over), Arc::clone(&noise_done));
        Environment::scripted(number as u64).spawn(async move {
            let owner = format!("noisy{number}");
            let mut submitted = 0;
            while submitted < NOISE && is_over.load(Ordering::Acquire) == 0 {
                let done = Arc::clone(&done);
                let work = async move {
                    sleep(Duration::from_millis(noisy_ms)).await;
                    done.fetch_add(1, Ordering::AcqRel);
                    Ok(())
                };
                match jobs.submit(job(&owner, &submitted.to_string(), work)) {
                    Ok(_) => submitted += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Overloaded);
                        sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        });
    }
    sleep(Duration::from_millis(1)).await;
    let took = Arc::new(Mutex::new(Vec::new()));
    for number in 0..JOBS {
        let (start, took) = (Instant::now(), Arc::clone(&took));
        let work = async move {
            sleep(Duration::from_millis(20)).await;
            took.lock().expect("not poisoned").push(start.elapsed());
            Ok(())
        };
        jobs.submit(job("quiet", &number.to_string(), work)).expect("taken");
        sleep(Duration::from_millis(100)).await;
    }
    jobs.idle(Some(&tenant("quiet"))).await;
    is_over.store(1, Ordering::Release);
    let mut took = took.lock().expect("not poisoned").clone();
    took.sort_unstable();
    assert_eq!(took.len(), JOBS);
    let noise = noise_done.load(Ordering::Acquire);
    assert!(noisy == 0 || noise > 1_000 / noisy_ms as usize, "the noise is none: {noise} jobs");
    jobs.stop().await;
    let at = |share: usize| took[JOBS * share / 100].as_millis() as u64;
    (at(50), at(99))
}

/// On the paused clock: simulated time, not this machine's.
#[tokio::test(start_paused = true)]
async fn a_noisy_tenant_does_not_move_another_ones_p99() {
    let (_, alone) = quiet_next_to(0, 1).await;
    for noisy_ms in [1, 20, 150] {
        let (median, p99) = quiet_next_to(1, noisy_ms).await;
        println!("noise of {noisy_ms} ms: median {median} ms, p99 {p99} ms, alone {alone} ms");
        assert!(p99 * 100 < alone * 110, "{p99} ms next to {noisy_ms} ms, alone {alone} ms");
    }
    // Five of them fill all places. A job waits until those are free whose turn it is already, and
    // no longer, however many more wait.
    for noisy_ms in [20, 150] {
        let (median, p99) = quiet_next_to(5, noisy_ms).await;
        println!("noise of five, {noisy_ms} ms: median {median} ms, p99 {p99} ms");
        assert!(p99 <= alone + 2 * noisy_ms, "{p99} ms next to five");
    }
}

#[test]
fn kinds_and_ids_are_read_as_they_are_written() {
    for kind in JobKind::ALL {
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
    assert!(JobKind::ALL.is_sorted(), "each once, in order");
    let error = "dreams".parse::<JobKind>().expect_err("unknown");
    assert!(error.message().starts_with("there are no jobs of kind `dreams`"), "{error}");
    assert_eq!(JobId(17).to_string().parse(), Ok(JobId(17)));
    for text in ["", "+1", "-1", "1.0", "job", "99999999999999999999"] {
        assert!(text.parse::<JobId>().is_err(), "{text}");
    }
}
