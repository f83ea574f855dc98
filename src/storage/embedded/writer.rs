//! The thread that commits: takes what waits, resolves it, writes and syncs once, then answers.
//!
//! Invariant: an answer leaves only after the version it names is durable and published.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Instant,
};

use memcube_actors::{
    metrics::{STORE_COMMIT_SECONDS, STORE_GROUP_COMMITS},
    storage::{Commit, CommitToken, StoreError},
};
use memcube_schemas::{Version, limits::STORE_GROUP_MAX};
use tokio::sync::oneshot;

use super::{
    super::count,
    Published, Shared,
    commit_log::CommitLog,
    engine::{GroupRows, WriteFailure},
    resolve::{Resolved, Resolver},
};

/// Bytes of keys and values in a group before it takes no further commit.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// What the thread is asked.
pub(super) enum Request {
    /// Applies a commit.
    Commit {
        /// What to apply.
        commit: Commit,
        /// When it was handed in.
        since: Instant,
        /// Where its version goes.
        reply: oneshot::Sender<Result<Version, StoreError>>,
    },
    /// Looks a token up. It goes through the queue so that it sees every commit handed in before.
    Outcome {
        /// The token.
        token: CommitToken,
        /// Where its version goes.
        reply: oneshot::Sender<Result<Option<Version>, StoreError>>,
    },
}

/// An answer that waits until its group is durable.
enum Answer {
    Commit {
        result: Result<Version, StoreError>,
        /// Whether the commit is part of this group's write.
        is_new: bool,
        since: Instant,
        reply: oneshot::Sender<Result<Version, StoreError>>,
    },
    Outcome {
        result: Option<Version>,
        reply: oneshot::Sender<Result<Option<Version>, StoreError>>,
    },
}

/// Why the store takes no more commits.
struct Poison {
    reason: String,
    /// Commits that only a restart can decide.
    undecided: BTreeSet<CommitToken>,
}

/// State of the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    log: CommitLog,
    poison: Option<Poison>,
}

impl Writer {
    /// A thread's state at the start; `log` must be as it is on the disk.
    pub(super) fn new(shared: Arc<Shared>, log: CommitLog) -> Self {
        Self { shared, log, poison: None }
    }

    /// Serves requests until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, requests: &mpsc::Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let group = gather(first, requests);
            if self.poison.is_some() {
                group.into_iter().for_each(|request| self.refuse(request));
            } else {
                self.serve(group);
            }
        }
        if let Err(error) = self.shared.directory.sync() {
            tracing::warn!(%error, "the acknowledgement mark may not be on the disk");
        }
        tracing::debug!(version = %self.log.last(), "state store closed");
    }

    fn serve(&mut self, group: Vec<Request>) {
        let published = self.shared.published();
        let mut resolver =
            Resolver::new(&self.shared.engine, &published.snapshot, published.version);
        let answers: Vec<Answer> =
            group.into_iter().map(|request| self.resolve(&mut resolver, request)).collect();
        let resolved = resolver.finish();
        if resolved.tokens.is_empty() {
            answers.into_iter().for_each(Answer::send);
            return;
        }
        metrics::histogram!(STORE_GROUP_COMMITS).record(resolved.tokens.len() as f64);
        match self.write(&resolved) {
            Ok(()) => {
                self.publish(resolved.tokens);
                self.shared.doorbells.ring(resolved.changes.keys().map(Vec::as_slice));
                answers.into_iter().for_each(Answer::send);
            }
            Err(failure) => self.fail(failure, resolved.tokens, answers),
        }
    }

    fn resolve(&self, resolver: &mut Resolver<'_>, request: Request) -> Answer {
        let known =
            |resolver: &Resolver<'_>, token| self.log.find(token).or_else(|| resolver.find(token));
        match request {
            Request::Commit { commit, since, reply } => match known(resolver, commit.token) {
                Some(version) => {
                    Answer::Commit { result: Ok(version), is_new: false, since, reply }
                }
                None => {
                    let result = resolver.add(commit);
                    Answer::Commit { is_new: result.is_ok(), result, since, reply }
                }
            },
            Request::Outcome { token, reply } => {
                Answer::Outcome { result: known(resolver, token), reply }
            }
        }
    }

    fn write(&self, resolved: &Resolved) -> Result<(), WriteFailure> {
        self.shared.engine.write(&GroupRows {
            state: resolved
                .changes
                .iter()
                .map(|(key, stored)| (key.as_slice(), stored.as_ref()))
                .collect(),
            log_row: (self.log.last().next(), CommitLog::row(&resolved.tokens)),
            expired_log_rows: self.log.expired(resolved.tokens.len()),
        })
    }

    fn publish(&mut self, tokens: Vec<CommitToken>) {
        self.log.append(tokens);
        let version = self.log.last();
        // A mark that stays behind only makes the check at the next start weaker.
        if let Err(error) = self.shared.directory.mark(version) {
            tracing::warn!(%error, "the acknowledgement mark could not be written");
        }
        self.shared.publish(Published { version, snapshot: self.shared.engine.snapshot() });
    }

    /// Stops taking commits: after a failed write or sync nobody knows what the disk holds.
    fn fail(&mut self, failure: WriteFailure, tokens: Vec<CommitToken>, answers: Vec<Answer>) {
        let (cause, undecided) = match failure {
            WriteFailure::NotWritten(cause) => (cause, BTreeSet::new()),
            WriteFailure::Undecided(cause) => (cause, tokens.into_iter().collect()),
        };
        let reason = format!("{cause}; restart memcube after freeing space or repairing the disk");
        tracing::error!(reason, "the state store takes no more commits");
        self.shared.is_writable.store(false, Ordering::Release);
        let is_undecided = !undecided.is_empty();
        self.poison = Some(Poison { reason: reason.clone(), undecided });
        for answer in answers {
            let unavailable = StoreError::Unavailable { reason: reason.clone() };
            match answer {
                Answer::Commit { is_new: true, since, reply, .. } if is_undecided => {
                    send_commit(Err(StoreError::Unknown), since, reply);
                }
                Answer::Commit { since, reply, .. } => send_commit(Err(unavailable), since, reply),
                Answer::Outcome { reply, .. } => drop(reply.send(Err(unavailable))),
            }
        }
    }

    fn refuse(&self, request: Request) {
        let poison = self.poison.as_ref().expect("invariant: only a poisoned store refuses");
        let unavailable = Err(StoreError::Unavailable { reason: poison.reason.clone() });
        match request {
            Request::Commit { since, reply, .. } => send_commit(unavailable, since, reply),
            Request::Outcome { token, reply } if poison.undecided.contains(&token) => {
                drop(reply.send(unavailable.map(Some)));
            }
            Request::Outcome { token, reply } => drop(reply.send(Ok(self.log.find(token)))),
        }
    }
}

/// Takes everything that waits, up to the bounds of a group.
fn gather(first: Request, requests: &mpsc::Receiver<Request>) -> Vec<Request> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while group.len() < STORE_GROUP_MAX && bytes < GROUP_BYTES_MAX {
        let Ok(request) = requests.try_recv() else { break };
        bytes += request.bytes();
        group.push(request);
    }
    group
}

impl Request {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit { commit, .. } => commit.mutations.iter().map(mutation_bytes).sum(),
            Self::Outcome { .. } => 0,
        }
    }
}

fn mutation_bytes(mutation: &memcube_actors::storage::Mutation) -> usize {
    use memcube_actors::storage::Mutation;
    match mutation {
        Mutation::Set { key, value } | Mutation::SetVersionstamped { prefix: key, value } => {
            key.len() + value.len()
        }
        Mutation::Clear { key } | Mutation::Add { key, .. } => key.len(),
        Mutation::ClearRange { range } => range.start.len() + range.end.len(),
    }
}

impl Answer {
    fn send(self) {
        match self {
            Self::Commit { result, since, reply, .. } => send_commit(result, since, reply),
            // Whoever asked may have stopped waiting.
            Self::Outcome { result, reply } => drop(reply.send(Ok(result))),
        }
    }
}

fn send_commit(
    result: Result<Version, StoreError>,
    since: Instant,
    reply: oneshot::Sender<Result<Version, StoreError>>,
) {
    metrics::histogram!(STORE_COMMIT_SECONDS).record(since.elapsed().as_secs_f64());
    count(&result);
    // Whoever asked may have stopped waiting: the commit stands all the same.
    drop(reply.send(result));
}
