//! Doorbells: whoever waits for a key hears of its change, and misses none.

use std::collections::BTreeMap;

use super::{
    Backend,
    probe::{Probe, add, clear, clear_range, set},
};
use crate::storage::Mutation;

pub(super) async fn a_doorbell_rings_when_its_key_changes<B: Backend>(_: &mut B, probe: Probe) {
    let first = probe.commit([], [set("b", "1")]).await.expect("committed");
    type Change = fn() -> Mutation;
    let changes: [(&str, Change); 6] = [
        ("a", || set("a", "1")),
        ("b", || set("b", "2")),
        ("b", || clear("b")),
        ("c", || add("c", 1)),
        ("a", || clear_range("a", "b")),
        ("a", || set("a", "3")),
    ];
    let mut seen = BTreeMap::from([("b", first)]);
    for (key, change) in changes {
        let heard = probe.store.changed(key.as_bytes().to_vec(), seen.get(key).copied());
        let mut heard = std::pin::pin!(heard);
        probe.commit([], [set("other", "x")]).await.expect("committed");
        let early = futures_util::poll!(heard.as_mut());
        let version = probe.commit([], [change()]).await.expect("committed");
        if early.is_pending() {
            heard.await.expect("heard");
        }
        match probe.get(key).await {
            Some(_) => seen.insert(key, version),
            None => seen.remove(key),
        };
    }
}

pub(super) async fn a_doorbell_does_not_miss_a_change_before_it_listens<B: Backend>(
    _: &mut B,
    probe: Probe,
) {
    let first = probe.commit([], [set("a", "1")]).await.expect("committed");
    probe.store.changed(b"a".to_vec(), None).await.expect("it is there by now");
    let second = probe.commit([], [set("a", "2")]).await.expect("committed");
    probe.store.changed(b"a".to_vec(), Some(first)).await.expect("another value by now");
    probe.commit([], [clear("a")]).await.expect("committed");
    probe.store.changed(b"a".to_vec(), Some(second)).await.expect("gone by now");
}
