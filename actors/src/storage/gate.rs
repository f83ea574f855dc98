//! Keeps releases away from stores that they would misread or damage.
//!
//! The gate is about meanings; formats of single rows take care of themselves. A row carries its
//! format version, reading one of a former version makes today's value of it (`codec.rs`), and the
//! next write of that row is in today's. So an upgrade rewrites nothing: what is used moves on, and
//! what is not used stays readable.

use memcube_schemas::{
    codec::{decode, encode},
    gate::SchemaGate,
    keys,
};

use super::{Check, Commit, Mutation, RangeRead, StateStore, StoreError};
use crate::{
    environment::Environment,
    error::{Error, Result},
};

/// Nodes that start at the same time may write the gate under each other's hands so often.
const ATTEMPTS_MAX: usize = 10;

/// Passes the gate of a store, and leaves this release's mark on it.
///
/// # Errors
/// `Unavailable` when a newer release wrote the store in a way that this one cannot read or must
/// not write, with what to do; otherwise as the store's own.
pub async fn pass(store: &dyn StateStore, environment: &Environment) -> Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let key = keys::schema_gate();
        let mut output = store.read(vec![RangeRead::key(key.clone())]).await?;
        let entry = output.pages.pop().and_then(|page| page.entries.into_iter().next());
        let (check, raised) = match entry {
            None => (Check::Absent { key: key.clone() }, SchemaGate::OURS),
            Some(entry) => {
                let found = decode::<SchemaGate>(&entry.value)?;
                let Some(raised) = raise(found)? else { return Ok(()) };
                (Check::At { key: key.clone(), version: entry.version }, raised)
            }
        };
        let commit = Commit {
            token: environment.commit_token(),
            checks: vec![check],
            mutations: vec![Mutation::Set { key, value: encode(&raised) }],
        };
        match store.commit(commit).await {
            Ok(_) => return Ok(()),
            // Either way the next look tells.
            Err(StoreError::Conflict { .. } | StoreError::Unknown) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::unavailable("other nodes keep changing the schema gate; start this one again"))
}

/// Looks whether this release may use a store, and leaves no mark.
///
/// # Errors
/// As [`pass`].
pub async fn look(store: &dyn StateStore) -> Result<()> {
    let mut output = store.read(vec![RangeRead::key(keys::schema_gate())]).await?;
    match output.pages.pop().and_then(|page| page.entries.into_iter().next()) {
        Some(entry) => raise(decode::<SchemaGate>(&entry.value)?).map(drop),
        None => Ok(()),
    }
}

/// What a gate becomes when this release has passed it; nothing if it stays as it is.
fn raise(found: SchemaGate) -> Result<Option<SchemaGate>> {
    let ours = SchemaGate::OURS;
    let refusal = if found.min_reader > ours.current {
        Some("cannot read")
    } else if found.min_writer > ours.current {
        Some("must not write")
    } else {
        None
    };
    if let Some(what) = refusal {
        return Err(Error::unavailable(format!(
            "a newer memcube wrote this store: it has schema {}, and this memcube, which knows \
             schema {}, {what} it; start the newer release",
            found.current, ours.current
        )));
    }
    let raised = SchemaGate {
        current: found.current.max(ours.current),
        min_reader: found.min_reader.max(ours.min_reader),
        min_writer: found.min_writer.max(ours.min_writer),
    };
    Ok((raised != found).then_some(raised))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::ErrorKind, storage::InMemoryStore};

    async fn gate(store: &InMemoryStore) -> SchemaGate {
        let read = store.read(vec![RangeRead::key(keys::schema_gate())]).await.expect("read");
        decode(&read.pages[0].entries[0].value).expect("a gate")
    }

    async fn put(store: &InMemoryStore, token: u128, gate: SchemaGate) {
        let set = Mutation::Set { key: keys::schema_gate(), value: encode(&gate) };
        let token = crate::storage::CommitToken(token);
        let commit = Commit { token, checks: Vec::new(), mutations: vec![set] };
        store.commit(commit).await.expect("committed");
    }

    #[tokio::test]
    async fn the_first_start_writes_the_gate_and_later_ones_pass_it() {
        let (store, environment) = (InMemoryStore::new(), Environment::scripted(1));
        for _ in 0..2 {
            pass(&store, &environment).await.expect("passed");
            assert_eq!(gate(&store).await, SchemaGate::OURS);
        }
        assert_eq!(store.version(), memcube_schemas::Version(1), "written once");
    }

    #[tokio::test]
    async fn a_newer_store_is_refused_unless_it_allows_us() {
        let ours = SchemaGate::OURS.current;
        // Reader, writer, what the refusal says.
        let table = [
            (ours, ours, None),
            (ours + 1, ours, Some("cannot read")),
            (ours, ours + 1, Some("must not write")),
        ];
        for (token, (min_reader, min_writer, refusal)) in table.into_iter().enumerate() {
            let (store, environment) = (InMemoryStore::new(), Environment::scripted(1));
            let newer = SchemaGate { current: ours + 1, min_reader, min_writer };
            put(&store, token as u128, newer).await;
            let passed = pass(&store, &environment).await;
            match refusal {
                None => passed.expect("passed"),
                Some(what) => {
                    let error = passed.expect_err("refused");
                    assert_eq!(error.kind(), ErrorKind::Unavailable);
                    assert!(error.message().contains(what), "{error}");
                    assert!(error.message().contains("start the newer release"), "{error}");
                }
            }
            assert_eq!(gate(&store).await, newer, "left as it was");
        }
    }

    #[tokio::test]
    async fn an_older_store_is_raised() {
        let (store, environment) = (InMemoryStore::new(), Environment::scripted(1));
        put(&store, 1, SchemaGate { current: 0, min_reader: 0, min_writer: 0 }).await;
        pass(&store, &environment).await.expect("passed");
        assert_eq!(gate(&store).await, SchemaGate::OURS);
    }
}
