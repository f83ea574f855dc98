//! All checkers together: on a long run in which all is well, and on nothing at all.

use super::{builder::Scene, builder::life, *};
use crate::history::Call;

/// A run of some length with every kind of call, in several cubes of several tenants.
fn long_run(rounds: u32) -> Evidence {
    let mut scene = Scene::new();
    let cubes = [("acme", "ann"), ("acme", "bob"), ("apex", "ann"), ("apex", "cy")];
    for round in 0..rounds {
        for (client, (tenant, cube)) in (0..).zip(cubes) {
            scene.enter(tenant, cube);
            let marker = |what: u32| format!("mk{round:04}{what}c{client}");
            let kept = scene.add(client, &marker(1));
            let gone = scene.add(client, &marker(2));
            scene.update(client, kept, &marker(3));
            scene.search(client, &marker(3));
            scene.unknown(client, Call::Add { marker: marker(4) });
            scene.store_add(&marker(4));
            scene.get(client, gone);
            scene.list(9);
            scene.delete(client, gone, round % 2 == 0);
            scene.get(client, gone);
            if round % 5 == 4 {
                scene.hand_over(life("n2", 7));
                scene.claim(life("n3", u64::from(round)));
            }
        }
    }
    scene.finish()
}

#[test]
fn a_run_in_which_all_is_well_passes() {
    let Judgement { violations, undecided } = judge(&long_run(10));
    assert_eq!((violations, undecided), (Vec::new(), 0));
    assert_eq!(check_all(&Evidence::default()), Vec::new());
}

#[test]
fn a_checker_stops_writing_after_some_violations() {
    let mut evidence = long_run(10);
    evidence.rows.clear();
    let violations = check_all(&evidence);
    for name in NAMES {
        let count = violations.iter().filter(|violation| violation.checker == name).count();
        assert!(count <= 40, "{name}: {count}");
    }
    assert!(violations.iter().any(|violation| violation.checker == durability::NAME));
}

#[test]
fn every_checker_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = NAMES.into_iter().collect();
    assert_eq!(names.len(), NAMES.len());
}
