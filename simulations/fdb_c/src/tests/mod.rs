//! Tests of the engine through its own calls, in simulated time. One file per part of the list in
//! the README.

mod commits;
mod conflicts;
mod faults;
mod own_writes;
mod ranges;
mod retries;
mod watches;

use std::sync::Arc;

use crate::errors::Code;
use crate::future::{Payload, Promise};
use crate::range::{Limits, RangeRequest, Row, Selector};
use crate::sim::SimConfig;
use crate::world::{Host, World};

/// A cluster with one store and one handle.
pub(crate) struct Cluster {
    pub(crate) host: Arc<Host>,
    pub(crate) database: u64,
}

/// A transaction of a cluster.
#[derive(Clone, Copy)]
pub(crate) struct Tr<'a> {
    cluster: &'a Cluster,
    pub(crate) id: u64,
}

pub(crate) const STORE: &str = "test";

impl Cluster {
    pub(crate) fn new(seed: u64) -> Cluster {
        Cluster::with_config(seed, SimConfig::default())
    }

    pub(crate) fn with_config(seed: u64, config: SimConfig) -> Cluster {
        let host = Host::new(World::new(seed, config, true));
        // Far from zero, so that what is relative to the window does not run into it.
        host.run_until(100_000_000);
        let database = host.with(|world| world.open_database(&format!("sim:{STORE}")));
        Cluster { host, database }
    }

    pub(crate) fn with<T>(&self, call: impl FnOnce(&mut World) -> T) -> T {
        self.host.with(call)
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.with(|world| world.now_us)
    }

    pub(crate) fn sleep(&self, us: u64) {
        self.host.run_until(self.now_us() + us);
    }

    pub(crate) fn tr(&self) -> Tr<'_> {
        let id = self.with(|world| world.new_transaction(self.database).expect("a transaction"));
        Tr { cluster: self, id }
    }

    /// Commits these rows.
    pub(crate) fn put(&self, rows: &[(&str, &str)]) -> i64 {
        let tr = self.tr();
        rows.iter().for_each(|(key, value)| tr.set(key, value));
        tr.commit().expect("a commit");
        tr.version()
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.tr().get(key).expect("a value")
    }

    /// Lets time pass until the promise is settled.
    pub(crate) fn run(&self, promise: &Promise) {
        let deadline_us = self.now_us() + 60_000_000;
        while promise.reply().is_none() {
            let next = self.with(|world| world.next_at()).expect("something is to happen");
            assert!(next < deadline_us, "nothing settles the promise");
            self.host.run_until(next);
        }
    }

    pub(crate) fn done(&self, promise: &Promise) -> Result<(), Code> {
        self.run(promise);
        code(promise)
    }
}

/// What a settled promise holds of an error.
pub(crate) fn code(promise: &Promise) -> Result<(), Code> {
    match promise.reply() {
        Some(Ok(_)) => Ok(()),
        Some(Err(code)) => Err(*code),
        None => panic!("the promise is not settled"),
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

pub(crate) fn show(rows: &[Row]) -> String {
    let row = |(key, value): &Row| format!("{}={}", text(key), text(value));
    rows.iter().map(row).collect::<Vec<_>>().join(" ")
}

pub(crate) fn at_or_after(key: &str) -> Selector {
    Selector::new(key.as_bytes(), false, 1)
}

/// All rows of `begin..end`, as many as there are.
pub(crate) fn request(begin: &str, end: &str) -> RangeRequest {
    RangeRequest {
        begin: at_or_after(begin),
        end: at_or_after(end),
        limits: Limits { rows: None, bytes: None },
        reverse: false,
    }
}

impl Tr<'_> {
    pub(crate) fn set(&self, key: &str, value: &str) {
        self.cluster.with(|world| world.set(self.id, key.as_bytes(), value.as_bytes()));
    }

    pub(crate) fn clear(&self, key: &str) {
        self.cluster.with(|world| world.clear(self.id, key.as_bytes()));
    }

    pub(crate) fn clear_range(&self, begin: &str, end: &str) {
        let range = crate::conflicts::KeyRange::new(begin.as_bytes(), end.as_bytes());
        self.cluster.with(|world| world.clear_range(self.id, &range));
    }

    pub(crate) fn atomic(&self, op: u32, key: &[u8], operand: &[u8]) {
        self.cluster.with(|world| world.atomic_op(self.id, key, operand, op));
    }

    pub(crate) fn option(&self, option: u32, value: &[u8]) -> Result<(), Code> {
        self.cluster.with(|world| world.set_transaction_option(self.id, option, value))
    }

    pub(crate) fn number(&self, option: u32, value: i64) {
        self.option(option, &value.to_le_bytes()).expect("an option");
    }

    pub(crate) fn ask_get(&self, key: &[u8], is_snapshot: bool) -> Promise {
        self.cluster.with(|world| world.get(self.id, key, is_snapshot))
    }

    pub(crate) fn value_of(&self, promise: &Promise) -> Result<Option<String>, Code> {
        self.cluster.run(promise);
        match promise.reply() {
            Some(Ok(Payload::Value(value))) => Ok(value.as_deref().map(text)),
            Some(Err(code)) => Err(*code),
            other => panic!("not a value: {other:?}"),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<String>, Code> {
        self.value_of(&self.ask_get(key.as_bytes(), false))
    }

    pub(crate) fn get_snapshot(&self, key: &str) -> Result<Option<String>, Code> {
        self.value_of(&self.ask_get(key.as_bytes(), true))
    }

    pub(crate) fn rows_of(&self, promise: &Promise) -> Result<(Vec<Row>, bool), Code> {
        self.cluster.run(promise);
        match promise.reply() {
            Some(Ok(Payload::Rows { rows, more })) => Ok((rows.clone(), *more)),
            Some(Err(code)) => Err(*code),
            other => panic!("not rows: {other:?}"),
        }
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<(Vec<Row>, bool), Code> {
        let request = request.clone();
        self.rows_of(&self.cluster.with(|world| world.get_range(self.id, request, false)))
    }

    pub(crate) fn get_key(&self, selector: &Selector) -> Result<String, Code> {
        let selector = selector.clone();
        let promise = self.cluster.with(|world| world.get_key(self.id, selector, false));
        self.cluster.run(&promise);
        match promise.reply() {
            Some(Ok(Payload::Key(key))) => Ok(text(key)),
            Some(Err(code)) => Err(*code),
            other => panic!("not a key: {other:?}"),
        }
    }

    pub(crate) fn read_version(&self) -> Result<i64, Code> {
        let promise = self.cluster.with(|world| world.read_version(self.id));
        self.cluster.run(&promise);
        match promise.reply() {
            Some(Ok(Payload::Int(version))) => Ok(*version),
            Some(Err(code)) => Err(*code),
            other => panic!("not a version: {other:?}"),
        }
    }

    pub(crate) fn read_at(&self, version: i64) {
        self.cluster.with(|world| world.set_read_version(self.id, version));
    }

    pub(crate) fn ask_commit(&self) -> Promise {
        self.cluster.with(|world| world.commit(self.id))
    }

    pub(crate) fn commit(&self) -> Result<(), Code> {
        self.cluster.done(&self.ask_commit())
    }

    pub(crate) fn version(&self) -> i64 {
        self.cluster.with(|world| world.committed_version(self.id)).expect("a version")
    }

    pub(crate) fn ask_stamp(&self) -> Promise {
        self.cluster.with(|world| world.versionstamp(self.id))
    }

    pub(crate) fn on_error(&self, code: Code) -> Result<(), Code> {
        self.cluster.done(&self.cluster.with(|world| world.on_error(self.id, code)))
    }

    pub(crate) fn watch(&self, key: &str) -> Promise {
        self.cluster.with(|world| world.watch(self.id, key.as_bytes()))
    }

    pub(crate) fn size(&self) -> u64 {
        self.cluster.with(|world| world.transactions[&self.id].bytes)
    }

    pub(crate) fn reset(&self) {
        self.cluster.with(|world| world.reset(self.id));
    }

    pub(crate) fn cancel(&self) {
        self.cluster.with(|world| world.cancel(self.id));
    }

    pub(crate) fn destroy(self) {
        self.cluster.with(|world| world.destroy(self.id));
    }
}
