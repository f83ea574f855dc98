//! Keys below `\xff\xff` that the client answers itself, and the rows of the time keeper.

use crate::conflicts::RangeSet;
use crate::errors::{
    Code, SPECIAL_KEYS_CROSS_MODULE_READ, SPECIAL_KEYS_NO_MODULE_FOUND, TRANSACTION_CANCELLED,
};
use crate::future::{Payload, Promise, Reply};
use crate::mapped::pack_number;
use crate::mvcc::Bytes;
use crate::range::{RangeRequest, Row};
use crate::transaction::Transaction;
use crate::world::World;

const CONFLICTING: &[u8] = b"\xff\xff/transaction/conflicting_keys/";
const READ_CONFLICTS: &[u8] = b"\xff\xff/transaction/read_conflict_range/";
const WRITE_CONFLICTS: &[u8] = b"\xff\xff/transaction/write_conflict_range/";
const MODULE: &[u8] = b"\xff\xff/transaction/";
const CONNECTION_STRING: &[u8] = b"\xff\xff/connection_string";
const STATUS: &[u8] = b"\xff\xff/status/json";

const TIME_KEEPER: &[u8] = b"\xff\x02/timeKeeper/map/";
/// How often the time keeper notes the version.
const TIME_KEEPER_US: u64 = 5_000_000;

/// What `fdb_database_get_client_status` says of a client that has what it needs.
pub(crate) const CLIENT_STATUS: &[u8] = br#"{"Healthy":true,"ClusterID":"simulated"}"#;

/// Ranges as boundaries: "1" where one begins, "0" where it ends.
fn boundaries(prefix: &[u8], ranges: &RangeSet) -> Vec<Row> {
    let row = |key: &Bytes, value: &[u8]| (Bytes::from([prefix, key].concat()), value.into());
    ranges.iter().flat_map(|range| [row(&range.begin, b"1"), row(&range.end, b"0")]).collect()
}

impl Transaction {
    /// All special rows of this transaction, in the order of their keys.
    fn special_rows(&self, store: &str) -> Vec<Row> {
        let mut rows = vec![
            (CONNECTION_STRING.into(), store.as_bytes().into()),
            (
                STATUS.into(),
                Bytes::from(&br#"{"client":{"database_status":{"available":true}}}"#[..]),
            ),
        ];
        rows.extend(boundaries(CONFLICTING, &self.conflicting));
        rows.extend(boundaries(READ_CONFLICTS, &self.read_conflicts));
        rows.extend(boundaries(WRITE_CONFLICTS, &self.write_conflicts_so_far()));
        rows.sort();
        rows
    }
}

impl World {
    fn special(&mut self, id: u64) -> Result<Vec<Row>, Code> {
        let transaction = self.transactions.get(&id).ok_or(TRANSACTION_CANCELLED)?;
        if let Some(code) = transaction.deferred.or(transaction.broken) {
            return Err(code);
        }
        let store = self.databases.get(&transaction.database).map_or("", |one| &one.store);
        Ok(transaction.special_rows(store))
    }

    pub(crate) fn special_get(&mut self, id: u64, key: &[u8]) -> Promise {
        let is_known = key.starts_with(MODULE) || key == CONNECTION_STRING || key == STATUS;
        let reply = match self.special(id) {
            Ok(_) if !is_known => Err(SPECIAL_KEYS_NO_MODULE_FOUND),
            Ok(rows) => {
                let found = rows.into_iter().find(|(name, _)| **name == *key);
                Ok(Payload::Value(found.map(|(_, value)| value)))
            }
            Err(code) => Err(code),
        };
        self.soon(id, reply)
    }

    pub(crate) fn special_range(&mut self, id: u64, request: &RangeRequest) -> Promise {
        let (begin, end) = (&request.begin.key, &request.end.key);
        let relaxed =
            self.transactions.get(&id).is_some_and(|one| one.options.special_keys_relaxed);
        let reply = match self.special(id) {
            Err(code) => Err(code),
            Ok(_) if !relaxed && begin.starts_with(MODULE) != end.starts_with(MODULE) => {
                Err(SPECIAL_KEYS_CROSS_MODULE_READ)
            }
            Ok(_) if !relaxed && !begin.starts_with(MODULE) => Err(SPECIAL_KEYS_NO_MODULE_FOUND),
            Ok(mut rows) => {
                rows.retain(|(key, _)| begin <= key && key < end);
                if request.reverse {
                    rows.reverse();
                }
                let most = request.limits.rows.map_or(usize::MAX, |rows| rows as usize);
                let more = rows.len() > most;
                rows.truncate(most);
                Ok(Payload::Rows { rows, more })
            }
        };
        self.soon(id, reply)
    }

    /// Answers without the servers, but not before the caller has the promise.
    fn soon(&mut self, id: u64, reply: Reply) -> Promise {
        let promise = match self.transactions.get_mut(&id) {
            Some(transaction) => transaction.promise(),
            None => Promise::new(),
        };
        let kept = promise.clone();
        self.schedule(0, Box::new(move |world| world.settle(&kept, reply)));
        promise
    }

    /// Notes which version belongs to which second, as a real cluster does.
    pub(crate) fn keep_time(&mut self, store: String) {
        let now_us = self.now_us;
        let Some(kept) = self.stores.get_mut(&store) else { return };
        let version = kept.current(now_us);
        let key = [TIME_KEEPER, &pack_number(now_us / 1_000_000)].concat();
        kept.rows.write(version, &key.into(), Some(pack_number(version).into()));
        self.schedule(TIME_KEEPER_US, Box::new(move |world| world.keep_time(store)));
    }
}
