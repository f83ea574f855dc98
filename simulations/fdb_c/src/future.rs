//! Answers that come later. One is settled once; who waits for it is told once, also if it asks
//! after it was settled.

use std::ffi::CString;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::errors::Code;
use crate::mapped::MappedRow;
use crate::mvcc::Bytes;
use crate::range::Row;

/// What a settled promise holds.
#[derive(Debug)]
pub(crate) enum Payload {
    Nothing,
    Int(i64),
    Key(Bytes),
    Value(Option<Bytes>),
    Rows { rows: Vec<Row>, more: bool },
    Mapped { rows: Vec<MappedRow>, more: bool },
    Keys(Vec<Bytes>),
    Strings(Vec<CString>),
}

pub(crate) type Reply = Result<Payload, Code>;

/// Called when the promise is settled; never under a lock of the engine.
pub(crate) type Waiter = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Cell {
    reply: OnceLock<Reply>,
    waiter: Mutex<Option<Waiter>>,
    settled: Condvar,
    /// The handle on whose count of watches this one stands.
    watch_of: Option<u64>,
}

#[derive(Clone, Default)]
pub(crate) struct Promise(Arc<Cell>);

impl Promise {
    pub(crate) fn new() -> Promise {
        Promise::default()
    }

    pub(crate) fn watch(database: u64) -> Promise {
        Promise(Arc::new(Cell { watch_of: Some(database), ..Cell::default() }))
    }

    pub(crate) fn watch_of(&self) -> Option<u64> {
        self.0.watch_of
    }

    /// Whether both are the same promise.
    pub(crate) fn is(&self, other: &Promise) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn reply(&self) -> Option<&Reply> {
        self.0.reply.get()
    }

    fn waiter(&self) -> MutexGuard<'_, Option<Waiter>> {
        self.0.waiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles it, unless it is. Gives the one to call, and whether this was the first time.
    pub(crate) fn settle(&self, reply: Reply) -> (Option<Waiter>, bool) {
        let mut waiter = self.waiter();
        let is_first = self.0.reply.set(reply).is_ok();
        self.0.settled.notify_all();
        (waiter.take(), is_first)
    }

    /// Keeps `waiter` for later, or gives it back if the promise is settled already.
    pub(crate) fn wait(&self, waiter: Waiter) -> Option<Waiter> {
        let mut kept = self.waiter();
        if self.reply().is_some() {
            return Some(waiter);
        }
        *kept = Some(waiter);
        None
    }

    /// Blocks the thread until it is settled.
    pub(crate) fn block(&self) {
        let mut waiter = self.waiter();
        while self.reply().is_none() {
            waiter = self.0.settled.wait(waiter).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
