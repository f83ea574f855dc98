//! Backups with damage in them: whatever is wrong is named, and nothing of it gets into a store.

use super::*;

async fn backed_up() -> (Objects, Place) {
    let here = Place::new(1).await;
    for (id, count) in [("ann", 120), ("bob", 8), ("cy", 90)] {
        fill(&here.cube("acme", id).await, count).await;
    }
    admit(&here.store, "acme", 1).await;
    let objects = Objects::new();
    here.back_up(&objects, Selection::default()).await;
    (objects, here)
}

async fn verified(objects: &Objects) -> VerifyOutcome {
    verify(&mut objects.open().await.expect("there"), &|_| {}).await.expect("read")
}

/// What a fresh store holds after a restore: cubes, and what went wrong.
async fn restored(objects: &Objects, here: &Place) -> (u64, RestoreOutcome) {
    let there = Place::new(2).await;
    let outcome = there.restore(objects, RestoreRequest::default()).await;
    for failure in &outcome.failures {
        let rows = rows_of(&there.store, "acme", failure.cube.as_str()).await;
        assert!(rows.is_empty(), "nothing of `{}` is there: {} rows", failure.cube, rows.len());
    }
    let mut whole = 0;
    for id in ["ann", "bob", "cy"] {
        let rows = rows_of(&there.store, "acme", id).await;
        if !rows.is_empty() {
            assert_eq!(rows, rows_of(&here.store, "acme", id).await, "{id}");
            whole += 1;
        }
    }
    assert_eq!(whole, outcome.restored);
    (whole, outcome)
}

#[tokio::test(start_paused = true)]
async fn one_flipped_bit_in_any_part_is_found_named_and_kept_out() {
    let (objects, here) = backed_up().await;
    let names = objects.names().await;
    let parts: Vec<&String> = names.iter().filter(|name| *name != "manifest").collect();
    assert!(parts.len() > 5, "{parts:?}");
    let environment = Environment::scripted(9);
    for name in parts {
        let whole = objects.bytes(name).await;
        for draw in 0..3 {
            let place = match draw {
                0 => 0,
                _ => {
                    usize::try_from(environment.random_u128() % whole.len() as u128).expect("fits")
                }
            };
            let mut bytes = whole.to_vec();
            bytes[place] ^= 1 << (environment.random_u128() % 8);
            objects.put(name, bytes).await;
            let found = verified(&objects).await;
            assert!(!found.is_whole(), "{name} at {place}");
            let told: Vec<&Error> =
                found.failures.iter().map(|failure| &failure.error).chain(&found.damages).collect();
            assert!(told.iter().all(|error| error.to_string().contains(name)), "{told:?}");
            let (whole, outcome) = restored(&objects, &here).await;
            assert!(!outcome.is_whole() && (whole < 3 || name.contains("keys")), "{name}");
        }
        objects.put(name, whole).await;
    }
    assert!(verified(&objects).await.is_whole(), "all is as it was");
    assert_eq!(restored(&objects, &here).await.0, 3);
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_missing_short_or_swapped_are_found() {
    let (objects, here) = backed_up().await;
    let names = objects.names().await;
    let rows: Vec<&String> = names.iter().filter(|name| name.contains("rows")).collect();
    let (first, second) = (objects.bytes(rows[0]).await, objects.bytes(rows[1]).await);

    objects.put(rows[0], second.clone()).await;
    objects.put(rows[1], first.clone()).await;
    assert!(!verified(&objects).await.is_whole());
    objects.put(rows[1], second).await;

    objects.put(rows[0], first.slice(..first.len() - 1)).await;
    assert!(!verified(&objects).await.is_whole());

    let path = parts::object_path(&Objects::prefix(), rows[0]);
    objects.0.delete(&path).await.expect("deleted");
    let found = verified(&objects).await;
    assert!(found.failures[0].error.to_string().contains("missing"), "{found:?}");
    let (_, outcome) = restored(&objects, &here).await;
    assert!(outcome.failures.iter().all(|failure| failure.error.kind() == ErrorKind::Corrupt));
    objects.put(rows[0], first).await;
    assert!(verified(&objects).await.is_whole());
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_damaged_newer_or_missing_says_so() {
    let (objects, _) = backed_up().await;
    let whole = objects.bytes("manifest").await;
    let changed = |place: usize, to: fn(u8) -> u8| {
        let mut bytes = whole.to_vec();
        bytes[place] = to(bytes[place]);
        bytes
    };
    let table = [
        (changed(3, |_| 9), ErrorKind::Invalid, "format version 9"),
        (changed(2, |_| 1), ErrorKind::Corrupt, "is damaged"),
        (changed(40, |byte| byte ^ 1), ErrorKind::Corrupt, "is damaged"),
        (whole[..whole.len() / 2].to_vec(), ErrorKind::Corrupt, "is damaged"),
        (Vec::new(), ErrorKind::Corrupt, "is damaged"),
    ];
    for (bytes, kind, words) in table {
        objects.put("manifest", bytes).await;
        let refused = objects.open().await.expect_err("refused");
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let newer = changed(3, |_| 9);
    objects.put("manifest", newer).await;
    let refused = objects.open().await.expect_err("refused");
    assert!(refused.to_string().contains("use the one that wrote it"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_backup_with_rows_of_a_newer_format_is_refused_and_leaves_nothing() {
    // A store with an item whose envelope names a format that does not exist yet.
    let here = Place::new(1).await;
    fill(&here.cube("acme", "ann").await, 30).await;
    let (key, value) = rows_of(&here.store, "acme", "ann").await.into_iter().nth(3).expect("there");
    let mut newer = value;
    newer[3] = 9;
    let mutations = vec![Mutation::Set { key, value: newer }];
    let commit = Commit { token: CommitToken(1), checks: Vec::new(), mutations };
    here.store.commit(commit).await.expect("committed");
    let objects = Objects::new();
    assert_eq!(here.back_up(&objects, Selection::default()).await.cubes, 1, "bytes are bytes");
    let found = verified(&objects).await;
    assert!(found.failures[0].error.to_string().contains("format version 9"), "{found:?}");
    let there = Place::new(2).await;
    let outcome = there.restore(&objects, RestoreRequest::default()).await;
    assert_eq!(outcome.failures.len(), 1);
    assert!(rows_of(&there.store, "acme", "ann").await.is_empty());
}
