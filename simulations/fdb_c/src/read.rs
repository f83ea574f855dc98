//! Reads: the read version, the way to the servers and back, and what an answer depends on.

use std::ffi::CString;
use std::sync::Arc;

use crate::conflicts::KeyRange;
use crate::errors::{
    ACCESSED_UNREADABLE, CLIENT_INVALID_OPERATION, Code, FUTURE_VERSION, INVERTED_RANGE,
    KEY_OUTSIDE_LEGAL_RANGE, MAPPED_READS_YOUR_WRITES, PROCESS_BEHIND, TAG_THROTTLED,
    TRANSACTION_CANCELLED, TRANSACTION_TOO_OLD,
};
use crate::future::{Payload, Promise, Reply};
use crate::limits::FUTURE_VERSION_DELAY_US;
use crate::mapped::{MappedReply, Mapper};
use crate::mvcc::Bytes;
use crate::overlay::{KeyWrites, Look, Overlay};
use crate::range::{RangeReply, RangeRequest, Selector, View, selector_depends_on};
use crate::transaction::{
    METADATA_VERSION_KEY, ReadVersion, Transaction, WithVersion, key_bytes_max,
};
use crate::world::World;

/// A question to the servers.
pub(crate) enum Question {
    Get(Bytes),
    Key(Selector),
    Range(RangeRequest),
    Mapped(RangeRequest, Mapper),
    EstimatedSize(KeyRange),
    SplitPoints(KeyRange, u64),
    Addresses,
}

/// What they say, before it is turned into a payload.
enum Answer {
    Value(Option<Bytes>),
    Key(Bytes),
    Range(RangeReply),
    Mapped(MappedReply),
    Other(Payload),
}

/// A question on its way, with what its answer needs.
struct Read {
    id: u64,
    generation: u64,
    promise: Promise,
    question: Question,
    is_snapshot: bool,
    /// Own writes as of the moment of the question, if the read sees them.
    overlay: Option<Arc<Overlay>>,
    max_key: &'static [u8],
    sees_unreadable: bool,
    version: u64,
}

impl Transaction {
    /// Own writes, if a read of this kind sees them.
    fn own_writes(&self, is_snapshot: bool) -> Option<Arc<Overlay>> {
        let hidden = self.options.ignores_own_writes
            || is_snapshot && self.options.snapshot_sees_own_writes < 0;
        (!hidden).then(|| self.overlay.clone())
    }
}

impl World {
    /// Goes on with the read version, which is asked for if it was not.
    pub(crate) fn with_version(&mut self, id: u64, go_on: WithVersion) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        match &mut transaction.read_version {
            ReadVersion::Known(version) => {
                let version = *version;
                go_on(self, Ok(version));
            }
            ReadVersion::Failed(code) => {
                let code = *code;
                go_on(self, Err(code));
            }
            ReadVersion::Asked(waiting) => waiting.push(go_on),
            ReadVersion::Unasked => {
                transaction.read_version = ReadVersion::Asked(vec![go_on]);
                let (database, generation) = (transaction.database, transaction.generation);
                self.ask_version(id, database, generation);
            }
        }
    }

    fn ask_version(&mut self, id: u64, database: u64, generation: u64) {
        let stall_us = match self.is_hit("stalled_read_version", self.faults.stalled_read_version) {
            true => self.random.between(5_000_000, 8_000_000),
            false => 0,
        };
        let is_throttled = self.is_hit("throttled", self.faults.throttled);
        let answer = move |world: &mut World| {
            let now_us = world.now_us;
            let version = match world.store_of(database) {
                Some(_) if is_throttled => Err(TAG_THROTTLED),
                Some(store) => store.broken.map_or_else(|| Ok(store.current(now_us)), Err),
                None => Err(TRANSACTION_CANCELLED),
            };
            // A stall is on the way back: the version is old when it comes.
            world.schedule(
                stall_us,
                Box::new(move |world| {
                    let tell = move |world: &mut World| world.tell_version(id, generation, version);
                    world.travel(database, Box::new(tell));
                }),
            );
        };
        self.travel(database, Box::new(answer));
    }

    fn tell_version(&mut self, id: u64, generation: u64, version: Result<u64, Code>) {
        let Some(transaction) = self.transactions.get_mut(&id) else { return };
        if transaction.generation != generation {
            return;
        }
        let outcome = match version {
            Ok(version) => ReadVersion::Known(version),
            Err(code) => ReadVersion::Failed(code),
        };
        let before = std::mem::replace(&mut transaction.read_version, outcome);
        if let ReadVersion::Asked(waiting) = before {
            for go_on in waiting {
                go_on(self, version);
            }
        }
    }

    pub(crate) fn read_version(&mut self, id: u64) -> Promise {
        let transaction = match self.enter(id) {
            Ok(transaction) => transaction,
            Err(code) => return self.failed(code),
        };
        let promise = transaction.promise();
        let kept = promise.clone();
        let go_on = move |world: &mut World, version: Result<u64, Code>| {
            let version = version.map(|version| i64::try_from(version).unwrap_or(i64::MAX));
            world.settle(&kept, version.map(Payload::Int));
        };
        self.with_version(id, Box::new(go_on));
        promise
    }

    pub(crate) fn failed(&mut self, code: Code) -> Promise {
        let promise = Promise::new();
        self.fail(&promise, code);
        promise
    }

    pub(crate) fn get(&mut self, id: u64, key: &[u8], is_snapshot: bool) -> Promise {
        if key.starts_with(b"\xff\xff") {
            return self.special_get(id, key);
        }
        let transaction = match self.enter(id) {
            Ok(transaction) => transaction,
            Err(code) => return self.failed(code),
        };
        if key >= transaction.max_read_key() && key != METADATA_VERSION_KEY {
            return self.failed(KEY_OUTSIDE_LEGAL_RANGE);
        }
        transaction.has_read = true;
        // Nobody can have written such a key.
        if key.len() > key_bytes_max(key) {
            return self.answered(Ok(Payload::Value(None)));
        }
        let sees_unreadable = transaction.options.sees_unreadable;
        let own = transaction.own_writes(is_snapshot);
        let look = own.as_ref().map(|own| own.look(key, sees_unreadable));
        match look {
            Some(Look::Unreadable) => return self.failed(ACCESSED_UNREADABLE),
            Some(Look::Known(value)) => return self.answered(Ok(Payload::Value(value))),
            Some(Look::Unmodified | Look::Dependent(_)) | None => {}
        }
        self.ask(id, Question::Get(key.into()), is_snapshot)
    }

    /// Own writes are answered at once, without the servers.
    fn answered(&mut self, reply: Reply) -> Promise {
        let promise = Promise::new();
        self.settle(&promise, reply);
        promise
    }

    pub(crate) fn get_key(&mut self, id: u64, selector: Selector, is_snapshot: bool) -> Promise {
        match self.enter(id) {
            Err(code) => self.failed(code),
            Ok(transaction) if *selector.key > *transaction.max_read_key() => {
                self.failed(KEY_OUTSIDE_LEGAL_RANGE)
            }
            Ok(_) => self.ask(id, Question::Key(selector), is_snapshot),
        }
    }

    pub(crate) fn get_range(
        &mut self,
        id: u64,
        request: RangeRequest,
        is_snapshot: bool,
    ) -> Promise {
        if request.begin.key.starts_with(b"\xff\xff") && request.end.key.starts_with(b"\xff\xff") {
            return self.special_range(id, &request);
        }
        match self.enter(id) {
            Err(code) => self.failed(code),
            Ok(transaction) => {
                let max_key = transaction.max_read_key();
                if *request.begin.key > *max_key || *request.end.key > *max_key {
                    return self.failed(KEY_OUTSIDE_LEGAL_RANGE);
                }
                self.ask(id, Question::Range(request), is_snapshot)
            }
        }
    }

    pub(crate) fn get_mapped_range(
        &mut self,
        id: u64,
        request: RangeRequest,
        mapper: &[u8],
        is_snapshot: bool,
    ) -> Promise {
        let mapper = match (self.enter(id).err(), Mapper::parse(mapper)) {
            (Some(code), _) | (None, Err(code)) => return self.failed(code),
            (None, Ok(mapper)) => mapper,
        };
        self.ask(id, Question::Mapped(request, mapper), is_snapshot)
    }

    /// A question about a range whose answer nothing depends on.
    pub(crate) fn about_range(&mut self, id: u64, range: KeyRange, chunk: Option<i64>) -> Promise {
        let max_key = match self.enter(id) {
            Ok(transaction) => transaction.max_read_key(),
            Err(code) => return self.failed(code),
        };
        if range.begin > range.end {
            return self.failed(INVERTED_RANGE);
        }
        if *range.begin > *max_key || *range.end > *max_key {
            return self.failed(KEY_OUTSIDE_LEGAL_RANGE);
        }
        let question = match chunk.map(u64::try_from) {
            None => Question::EstimatedSize(range),
            Some(Ok(chunk)) if chunk > 0 => Question::SplitPoints(range, chunk),
            Some(_) => return self.failed(CLIENT_INVALID_OPERATION),
        };
        self.ask(id, question, true)
    }

    pub(crate) fn addresses(&mut self, id: u64) -> Promise {
        match self.enter(id) {
            Err(code) => self.failed(code),
            Ok(_) => self.ask(id, Question::Addresses, true),
        }
    }

    pub(crate) fn ask(&mut self, id: u64, question: Question, is_snapshot: bool) -> Promise {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return self.failed(TRANSACTION_CANCELLED);
        };
        let promise = transaction.promise();
        transaction.has_read = true;
        transaction.reading += 1;
        let mut read = Read {
            id,
            generation: transaction.generation,
            promise: promise.clone(),
            overlay: transaction.own_writes(is_snapshot),
            max_key: transaction.max_read_key(),
            sees_unreadable: transaction.options.sees_unreadable,
            question,
            is_snapshot,
            version: 0,
        };
        let go_on = move |world: &mut World, version: Result<u64, Code>| match version {
            Ok(version) => {
                read.version = version;
                world.send(read);
            }
            Err(code) => world.tell(read, Err(code)),
        };
        self.with_version(id, Box::new(go_on));
        promise
    }

    fn send(&mut self, read: Read) {
        let Some(transaction) = self.transactions.get(&read.id) else { return };
        let database = transaction.database;
        self.travel(database, Box::new(move |world| world.serve(database, read)));
    }

    /// On the server.
    fn serve(&mut self, database: u64, read: Read) {
        let faults = self.faults;
        let injected = [
            ("too_old", faults.too_old, TRANSACTION_TOO_OLD),
            ("future_version", faults.future_version, FUTURE_VERSION),
            ("process_behind", faults.process_behind, PROCESS_BEHIND),
        ];
        let injected = injected.into_iter().find(|(kind, often, _)| self.is_hit(kind, *often));
        let now_us = self.now_us;
        let Some(store) = self.store_of(database) else { return };
        let current = store.current(now_us);
        let (answer, delay_us) = if let Some(code) = store.broken {
            (Err(code), 0)
        } else if let Some((_, _, code)) = injected {
            (Err(code), 0)
        } else if read.version < store.oldest() {
            (Err(TRANSACTION_TOO_OLD), 0)
        } else if read.version > current {
            (Err(FUTURE_VERSION), FUTURE_VERSION_DELAY_US)
        } else {
            // A mapped read does not see own writes: it is refused if it meets any.
            let is_mapped = matches!(read.question, Question::Mapped(..));
            let view = View {
                rows: &store.rows,
                version: read.version,
                overlay: read.overlay.as_deref().filter(|_| !is_mapped),
                max_key: read.max_key,
            };
            (read.question.answer(&view), 0)
        };
        let back = move |world: &mut World| {
            world.travel(database, Box::new(move |world| world.tell(read, answer)));
        };
        match delay_us {
            0 => back(self),
            _ => self.schedule(delay_us, Box::new(back)),
        }
    }

    /// Back at the client.
    fn tell(&mut self, read: Read, answer: Result<Answer, Code>) {
        let Some(transaction) = self.transactions.get_mut(&read.id) else { return };
        if transaction.generation != read.generation {
            return;
        }
        transaction.reading = transaction.reading.saturating_sub(1);
        let reply = answer.and_then(|answer| read.finish(transaction, answer));
        if let Err(code) = &reply {
            transaction.reading_failed.get_or_insert(*code);
        }
        self.settle(&read.promise, reply);
        self.compare_own_watches(read.id);
        self.commit_if_read(read.id);
    }
}

impl Question {
    fn answer(&self, view: &View<'_>) -> Result<Answer, Code> {
        Ok(match self {
            Question::Get(key) => Answer::Value(view.get(key)),
            Question::Key(selector) => Answer::Key(view.resolve(selector).key),
            Question::Range(request) => Answer::Range(view.range(request)),
            Question::Mapped(request, mapper) => Answer::Mapped(mapper.map(view, request)?),
            Question::EstimatedSize(range) => {
                let bytes = stored_bytes(view, range).map(|(_, bytes)| bytes).sum::<u64>();
                Answer::Other(Payload::Int(i64::try_from(bytes).unwrap_or(i64::MAX)))
            }
            Question::SplitPoints(range, chunk) => {
                Answer::Other(Payload::Keys(split(view, range, *chunk)))
            }
            Question::Addresses => {
                let address = CString::from(c"127.0.0.1:4500");
                Answer::Other(Payload::Strings(vec![address]))
            }
        })
    }
}

fn stored_bytes(view: &View<'_>, range: &KeyRange) -> impl Iterator<Item = (Bytes, u64)> {
    let stored = View { rows: view.rows, version: view.version, overlay: None, ..*view };
    let rows = stored.scan(&range.begin, &range.end, false);
    rows.map(|(key, value)| {
        let bytes = (key.len() + value.len()) as u64;
        (key, bytes)
    })
}

fn split(view: &View<'_>, range: &KeyRange, chunk: u64) -> Vec<Bytes> {
    let mut points = vec![range.begin.clone()];
    let mut bytes = 0;
    for (key, size) in stored_bytes(view, range) {
        if bytes >= chunk && key > range.begin {
            points.push(key);
            bytes = 0;
        }
        bytes += size;
    }
    points.push(range.end.clone());
    points
}

impl Read {
    /// Turns an answer into what the caller gets, and notes what it depends on.
    fn finish(&self, transaction: &mut Transaction, answer: Answer) -> Result<Payload, Code> {
        let overlay = self.overlay.as_deref();
        let (range, payload) = match (&self.question, answer) {
            (Question::Get(key), Answer::Value(found)) => {
                let writes = self.writes_of(key);
                let value = match &writes {
                    Some(writes) => writes.over(found.as_ref()),
                    None => found,
                };
                (KeyRange::single(key), Payload::Value(value))
            }
            (Question::Key(selector), Answer::Key(found)) => {
                (selector_depends_on(selector, &found), Payload::Key(found))
            }
            (Question::Range(request), Answer::Range(reply)) => {
                let range = reply.depends_on(request, self.max_key);
                (range, Payload::Rows { rows: reply.rows, more: reply.more })
            }
            (Question::Mapped(request, _), Answer::Mapped(reply)) => {
                let index = reply.index.depends_on(request, self.max_key);
                for range in reply.looked_up.iter().chain([&index]) {
                    if overlay.is_some_and(|own| own.touches(range)) {
                        return Err(MAPPED_READS_YOUR_WRITES);
                    }
                    if !self.is_snapshot {
                        transaction.depend_on(range, overlay);
                    }
                }
                (index, Payload::Mapped { rows: reply.rows, more: reply.index.more })
            }
            (_, Answer::Other(payload)) => return Ok(payload),
            _ => return Err(CLIENT_INVALID_OPERATION),
        };
        self.check_readable(&range)?;
        if !self.is_snapshot {
            transaction.depend_on(&range, overlay);
        }
        Ok(payload)
    }

    fn writes_of(&self, key: &[u8]) -> Option<KeyWrites> {
        match self.overlay.as_ref()?.look(key, self.sees_unreadable) {
            Look::Dependent(writes) => Some(writes),
            Look::Unreadable | Look::Known(_) | Look::Unmodified => None,
        }
    }

    fn check_readable(&self, range: &KeyRange) -> Result<(), Code> {
        let overlay = self.overlay.as_ref().filter(|_| !self.sees_unreadable);
        match overlay.is_some_and(|overlay| overlay.is_unreadable(range)) {
            true => Err(ACCESSED_UNREADABLE),
            false => Ok(()),
        }
    }
}
