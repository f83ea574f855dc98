//! Handles to a cluster: which store a cluster file names, partitions, and the count of watches.

use std::path::PathBuf;

use crate::errors::{
    CLIENT_INVALID_OPERATION, CONNECTION_STRING_INVALID, Code, FILE_NOT_READABLE,
    NO_CLUSTER_FILE_FOUND,
};
use crate::options::DatabaseOptions;
use crate::persist::CommitLog;
use crate::store::Store;
use crate::transaction::Transaction;
use crate::world::{Event, World};

/// One `FDBDatabase`.
#[derive(Default)]
pub(crate) struct Database {
    pub(crate) store: String,
    pub(crate) label: String,
    pub(crate) options: DatabaseOptions,
    /// Nothing arrives and nothing returns.
    pub(crate) is_cut: bool,
    /// What wanted to pass while it was cut.
    pub(crate) parked: Vec<Event>,
    /// Watches that have not fired.
    pub(crate) watches: u64,
    /// Why no transaction of this handle can do anything.
    pub(crate) broken: Option<Code>,
    /// Transactions that are not destroyed: they may be used after their handle was closed.
    pub(crate) transactions: u64,
    pub(crate) is_closed: bool,
}

/// What a cluster file says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    store: String,
    label: String,
    log: Option<PathBuf>,
}

/// The name of the store of those who name none.
pub(crate) const DEFAULT_STORE: &str = "default";

impl Address {
    /// `sim:<name>[#<label>]`, `sim@file:<path>`, or a real cluster's `description:id@addresses`,
    /// which names a store of its own.
    fn parse(text: &str) -> Result<Address, Code> {
        let lines = text.lines().map(str::trim);
        let line = lines.into_iter().find(|line| !line.is_empty() && !line.starts_with('#'));
        let line = line.ok_or(CONNECTION_STRING_INVALID)?;
        if let Some(path) = line.strip_prefix("sim@file:") {
            let log = Some(PathBuf::from(path));
            return Ok(Address { store: line.to_owned(), label: String::new(), log });
        }
        if let Some(name) = line.strip_prefix("sim:") {
            let (store, label) = name.split_once('#').unwrap_or((name, ""));
            return Ok(Address { store: store.to_owned(), label: label.to_owned(), log: None });
        }
        let is_word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let (name, addresses) = line.split_once('@').ok_or(CONNECTION_STRING_INVALID)?;
        let (description, id) = name.split_once(':').ok_or(CONNECTION_STRING_INVALID)?;
        if !is_word(description) || !is_word(id) || addresses.is_empty() {
            return Err(CONNECTION_STRING_INVALID);
        }
        Ok(Address { store: line.to_owned(), label: String::new(), log: None })
    }

    /// From the argument of `fdb_create_database`: a path, or what would be in the file.
    fn find(path: &str) -> Result<Address, Code> {
        if path.is_empty() {
            return Address::parse(&format!("sim:{DEFAULT_STORE}"));
        }
        if path.starts_with("sim:") || path.starts_with("sim@") {
            return Address::parse(path);
        }
        match std::fs::read_to_string(path) {
            Ok(text) => Address::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(NO_CLUSTER_FILE_FOUND)
            }
            Err(_) => Err(FILE_NOT_READABLE),
        }
    }
}

impl World {
    /// Opens a handle. A cluster file that cannot be used is only told of by the transactions, as
    /// by the real client, which reads the file on its own thread.
    pub(crate) fn open_database(&mut self, path: &str) -> u64 {
        let id = self.new_id();
        let mut database = Database::default();
        match Address::find(path) {
            Ok(address) => {
                database.broken = self.open_store(&address).err();
                database.store = address.store;
                database.label = address.label;
            }
            Err(code) => database.broken = Some(code),
        }
        self.databases.insert(id, database);
        id
    }

    fn open_store(&mut self, address: &Address) -> Result<(), Code> {
        if let Some(store) = self.stores.get(&address.store) {
            return store.broken.map_or(Ok(()), Err);
        }
        let mut store = Store::default();
        store.records_applied = self.is_simulated;
        if let Some(path) = &address.log {
            store.disk = Some(CommitLog::open(path, &mut store)?);
        }
        self.stores.insert(address.store.clone(), store);
        if !self.is_simulated {
            self.keep_time(address.store.clone());
        }
        Ok(())
    }

    pub(crate) fn close_database(&mut self, id: u64) {
        if let Some(database) = self.databases.get_mut(&id) {
            database.is_closed = true;
        }
        self.drop_database(id);
    }

    /// Forgets a transaction of a handle.
    pub(crate) fn leave_database(&mut self, id: u64) {
        if let Some(database) = self.databases.get_mut(&id) {
            database.transactions = database.transactions.saturating_sub(1);
        }
        self.drop_database(id);
    }

    /// Drops a handle that nobody can use any more.
    fn drop_database(&mut self, id: u64) {
        let is_over = |one: &Database| one.is_closed && one.transactions == 0;
        if !self.databases.get(&id).is_some_and(is_over) {
            return;
        }
        let Some(database) = self.databases.remove(&id) else { return };
        // What was on its way when its process ended arrives or does not.
        for event in database.parked {
            if self.random.chance(500) {
                let delay_us = self.latency_us();
                self.schedule(delay_us, event);
            }
        }
    }

    pub(crate) fn set_database_option(
        &mut self,
        id: u64,
        code: u32,
        value: &[u8],
    ) -> Result<(), Code> {
        let database = self.databases.get_mut(&id).ok_or(CLIENT_INVALID_OPERATION)?;
        database.options.set(code, value)
    }

    /// Cuts the connection of a handle, or heals it.
    pub(crate) fn partition(&mut self, id: u64, is_cut: bool) {
        let Some(database) = self.databases.get_mut(&id) else { return };
        database.is_cut = is_cut;
        if is_cut {
            return;
        }
        for event in std::mem::take(&mut database.parked) {
            self.travel(id, event);
        }
    }

    pub(crate) fn new_transaction(&mut self, database: u64) -> Result<u64, Code> {
        let id = self.new_id();
        let handle = self.databases.get_mut(&database).ok_or(CLIENT_INVALID_OPERATION)?;
        handle.transactions += 1;
        let options = handle.options.transactions.clone();
        let backoff_us = self.config.backoff_us_first;
        let transaction = Transaction::new(database, options, self.now_us, backoff_us);
        self.transactions.insert(id, transaction);
        self.arm_timeout(id);
        Ok(id)
    }

    pub(crate) fn store_of(&mut self, database: u64) -> Option<&mut Store> {
        let name = &self.databases.get(&database)?.store;
        self.stores.get_mut(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_files() {
        let sim = |store: &str, label: &str| {
            Ok(Address { store: store.to_owned(), label: label.to_owned(), log: None })
        };
        for (text, expected) in [
            ("sim:one", sim("one", "")),
            ("# a comment\n\n sim:one#node2 \n", sim("one", "node2")),
            ("docker:docker@127.0.0.1:4500", sim("docker:docker@127.0.0.1:4500", "")),
            ("", Err(CONNECTION_STRING_INVALID)),
            ("hello", Err(CONNECTION_STRING_INVALID)),
            ("a:b@", Err(CONNECTION_STRING_INVALID)),
            ("a b:c@1.2.3.4:5", Err(CONNECTION_STRING_INVALID)),
        ] {
            assert_eq!(Address::parse(text), expected, "{text:?}");
        }
        let log = Address::parse("sim@file:/tmp/log").expect("a log");
        assert_eq!(log.log, Some(PathBuf::from("/tmp/log")));
        assert_eq!(Address::find("/no/such/file"), Err(NO_CLUSTER_FILE_FOUND));
        assert_eq!(Address::find(""), sim(DEFAULT_STORE, ""));
        assert_eq!(Address::find("sim:x"), sim("x", ""));
    }
}
