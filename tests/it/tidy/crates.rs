//! The edges between crates: who may depend on whom, and on how much.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use serde_json::Value;

use super::report;
use super::source::root;

/// Engines that only the root package may depend on. Kept equal to `deny.toml`.
const HEAVY: [&str; 8] =
    ["axum", "candle-core", "fjall", "foundationdb", "gemm", "lancedb", "tokenizers", "ureq"];

/// Package, what it may depend on among ours, how many packages it may pull in.
const MEMBERS: [(&str, &[&str], usize); 5] = [
    ("memcube-schemas", &[], 45),
    ("memcube-actors", &["memcube-schemas"], 150),
    ("memcube-interpose", &[], 5),
    ("memcube-fdb-c", &[], 5),
    ("memcube-simulations", &SIMULATED, 200),
];
/// What the simulations stand on: with the feature `fdb` all of memcube, and doubles of what
/// surrounds it.
const SIMULATED: [&str; 5] =
    ["memcube", "memcube-schemas", "memcube-actors", "memcube-interpose", "memcube-fdb-c"];

/// The graph that a build on this machine takes, by package name and version.
struct Graph {
    ours: BTreeSet<String>,
    /// Package to (dependency, only for tests?).
    edges: BTreeMap<String, Vec<(String, bool)>>,
}

#[test]
fn crates_depend_downwards_only() {
    let graph = graph();
    let mut found = Vec::new();
    for (package, allowed, packages_max) in MEMBERS {
        for (dependency, _) in &graph.edges[package] {
            if graph.ours.contains(dependency) && !allowed.contains(&dependency.as_str()) {
                found.push(format!(
                    "{package} depends on {dependency}; it may depend on {allowed:?} of ours: move \
                     the code down, or put a trait in between"
                ));
            }
        }
        let reached = reached(&graph, package);
        let is_above = allowed.contains(&"memcube");
        for engine in HEAVY.iter().filter(|engine| !is_above && reached.contains(**engine)) {
            found.push(format!(
                "{package} pulls in {engine}: heavy engines stay in the root package, behind a \
                 trait of `actors`"
            ));
        }
        if reached.len() > packages_max {
            found.push(format!(
                "{package} pulls in {} packages, {packages_max} are allowed: `cargo tree -p \
                 {package} -e normal,build` shows which",
                reached.len()
            ));
        }
    }
    for package in graph.ours.iter().filter(|package| *package != "memcube") {
        for (dependency, _) in &graph.edges[package] {
            if HEAVY.contains(&dependency.as_str()) {
                found.push(format!(
                    "{package} depends on {dependency}: only `memcube` may; add the code to `src`"
                ));
            }
        }
    }
    report(found);
}

/// The server must hold neither the simulations' clocks and random numbers nor the planted bugs.
#[test]
fn the_server_knows_nothing_of_simulations() {
    let graph = graph();
    let mut found: Vec<String> = ["memcube-simulations", "memcube-interpose", "memcube-fdb-c"]
        .into_iter()
        .filter(|package| {
            let is_linked = reached(&graph, "memcube").contains(*package);
            let is_named =
                || graph.edges["memcube"].iter().any(|(dependency, _)| dependency == package);
            // The tests of the FoundationDB backend run on the double of its client.
            is_linked || (*package != "memcube-fdb-c" && is_named())
        })
        .map(|package| format!("memcube depends on {package}: start `memcube-sim` instead"))
        .collect();
    let manifest = super::source::read("Cargo.toml").unwrap_or_default();
    // A feature that passes the wish of the simulations on is not a wish of its own.
    let manifest = manifest.replace("defects = [\"memcube-actors/defects\"]", "");
    for feature in ["defects\"", "\"test-util\""] {
        if manifest.contains(feature) {
            found.push(format!("Cargo.toml: the root package must not switch {feature} on"));
        }
    }
    report(found);
}

/// What a package pulls in through normal and build edges, itself left out.
fn reached(graph: &Graph, package: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![package];
    while let Some(package) = open.pop() {
        for (dependency, _) in graph.edges[package].iter().filter(|(_, for_tests)| !for_tests) {
            if reached.insert(dependency.clone()) {
                open.push(dependency);
            }
        }
    }
    reached
}

fn graph() -> Graph {
    let metadata = metadata();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // A name that stands for two versions becomes `name 1.2.3` for all but the first.
    let mut names = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for package in list(&metadata["packages"]) {
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let unique = if taken.insert(name.clone()) { name } else { format!("{name} {version}") };
        names.insert(text(&package["id"]), unique);
    }
    let ours =
        list(&metadata["workspace_members"]).iter().map(|id| names[&text(id)].clone()).collect();
    let mut edges = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let dependencies = list(&node["deps"]).into_iter().map(|dependency| {
            let for_tests = list(&dependency["dep_kinds"]).iter().all(|kind| kind["kind"] == "dev");
            (names[&text(&dependency["pkg"])].clone(), for_tests)
        });
        edges.insert(names[&text(&node["id"])].clone(), dependencies.collect::<Vec<_>>());
    }
    Graph { ours, edges }
}

fn metadata() -> Value {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("-vV").output().expect("`rustc -vV` runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();

    let ask = |more: &[&str]| -> Output {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host])
            .args(more)
            .current_dir(root())
            .output()
            .expect("`cargo metadata` runs")
    };
    // Building fetches fewer packages than describing does, so the first answer may be a refusal.
    let mut output = ask(&["--offline"]);
    if !output.status.success() {
        output = ask(&[]);
    }
    assert!(
        output.status.success(),
        "`cargo metadata --locked` failed; if Cargo.lock is out of date, run `cargo update \
         --workspace`:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("`cargo metadata` writes JSON")
}
