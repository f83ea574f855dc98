//! Wakes whoever waits for a key to change, for stores that see every commit of their state.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::oneshot;

/// Who waits for which key. A wait that was given up leaves at the next wait for the same key, or
/// when the key changes.
#[derive(Debug, Default)]
pub struct Doorbells {
    waiting: Mutex<BTreeMap<Vec<u8>, Vec<oneshot::Sender<()>>>>,
}

impl Doorbells {
    /// Begins to wait. What is rung from now on is heard, so ask before looking at the key.
    pub fn listen(&self, key: Vec<u8>) -> oneshot::Receiver<()> {
        let (bell, heard) = oneshot::channel();
        let mut waiting = self.waiting();
        let bells = waiting.entry(key).or_default();
        bells.retain(|bell| !bell.is_closed());
        bells.push(bell);
        heard
    }

    /// Wakes whoever waits for one of these keys.
    pub fn ring<'a>(&self, changed: impl IntoIterator<Item = &'a [u8]>) {
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            return;
        }
        for key in changed {
            for bell in waiting.remove(key).unwrap_or_default() {
                // Whoever listened may have stopped.
                let _ = bell.send(());
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<oneshot::Sender<()>>>> {
        self.waiting.lock().expect("invariant: nothing panics while it holds the doorbells")
    }
}
