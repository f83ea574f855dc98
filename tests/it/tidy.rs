//! Keeps the tree tidy: what reviewers would otherwise have to say again and again.
//!
//! Every complaint names the file, the line, and what to do. A rule that makes some code worse is a
//! rule to change here, with the reason in the commit.

mod crates;
mod documents;
mod source;

use source::{RustFile, files, read, root, rust_files, words};

const PRODUCTION_LINES_MAX: usize = 500;
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
/// Tests are tables, and a table may be long.
const TEST_FUNCTION_LINES_MAX: usize = 120;
const LINE_CHARACTERS_MAX: usize = 100;
/// For lines that hold a literal or an address, which `rustfmt` does not break.
const LITERAL_LINE_CHARACTERS_MAX: usize = 120;
const FILE_BYTES_MAX: u64 = 200 * 1000;

/// Fails with all complaints at once.
#[track_caller]
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n\n{}\n", complaints.join("\n"));
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for file in rust_files().iter().filter(|file| !file.is_test()) {
        let (path, all, production) =
            (&file.path, file.text.lines().count(), file.production_lines());
        if production > PRODUCTION_LINES_MAX {
            found.push(format!(
                "{path}:{production}: {production} lines before the tests, \
                 {PRODUCTION_LINES_MAX} are allowed: split the file by what it does"
            ));
        } else if all > FILE_LINES_MAX {
            found.push(format!(
                "{path}:{all}: {all} lines, {FILE_LINES_MAX} are allowed: move the tests to \
                 `tests.rs` beside it"
            ));
        }
    }
    report(found);
}

#[test]
fn lines_are_short() {
    let mut found = Vec::new();
    for file in rust_files() {
        let layers = file.text.lines().zip(file.literals.lines()).zip(file.code.lines());
        for (at, ((text, literal), code)) in layers.enumerate() {
            let is_literal = !literal.trim().is_empty();
            // A line wholly inside a literal is data.
            if is_literal && literal.trim() == text.trim() && code.trim().is_empty() {
                continue;
            }
            let bound = if is_literal || text.contains("://") {
                LITERAL_LINE_CHARACTERS_MAX
            } else {
                LINE_CHARACTERS_MAX
            };
            let characters = text.chars().count();
            if characters > bound {
                found.push(format!(
                    "{}:{}: {characters} characters, {bound} are allowed: break the line",
                    file.path,
                    at + 1
                ));
            }
        }
    }
    report(found);
}

#[test]
fn functions_are_short() {
    let mut found = Vec::new();
    for file in rust_files() {
        let production = file.production_lines();
        for at in words(&file.code, "fn") {
            let Some((name, lines)) = function(&file.code[at..]) else { continue };
            let line = file.line_of(&file.code, at);
            let bound =
                if line > production { TEST_FUNCTION_LINES_MAX } else { FUNCTION_LINES_MAX };
            if lines > bound {
                found.push(format!(
                    "{}:{line}: `{name}` has {lines} lines, {bound} are allowed: give a part of \
                     it a name",
                    file.path
                ));
            }
        }
    }
    report(found);
}

/// The name and the number of lines of the function that opens a piece of code, if it has a body.
fn function(code: &str) -> Option<(&str, usize)> {
    let after = code.strip_prefix("fn ")?.trim_start();
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    let (mut braces, mut brackets) = (0, 0);
    for (at, character) in code.char_indices() {
        match character {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && brackets == 0 {
                    return Some((name, code[..at].lines().count()));
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn select_is_biased() {
    let mut found = Vec::new();
    for file in rust_files() {
        for at in words(&file.code, "select").filter(|&at| file.code[at..].starts_with("select!")) {
            let body = file.code[at + "select!".len()..].trim_start_matches(['{', '(', ' ', '\n']);
            if !body.starts_with("biased;") {
                found.push(format!(
                    "{}:{}: `select!` without `biased;`: an unbiased one draws its branch at \
                     random, and a run no longer replays from its seed; add `biased;` first",
                    file.path,
                    file.line_of(&file.code, at)
                ));
            }
        }
    }
    report(found);
}

#[test]
fn nothing_is_left_over() {
    let in_code = [
        ("dbg!", "use `tracing`, or remove it"),
        ("todo!", "write it, or return an `Error` that says so"),
        ("unimplemented!", "write it, or return an `Error` that says so"),
        ("#[ignore", "repair the test, or remove it"),
    ];
    let mut found = Vec::new();
    for file in rust_files() {
        for (pattern, advice) in in_code {
            for (at, _) in file.code.match_indices(pattern) {
                let line = file.line_of(&file.code, at);
                found.push(format!("{}:{line}: `{pattern}`: {advice}", file.path));
            }
        }
        for at in words(&file.comments, concat!("FIX", "ME")) {
            let line = file.line_of(&file.comments, at);
            found.push(format!("{}:{line}: mend it now, or open an issue", file.path));
        }
    }
    report(found);
}

/// Files and folders with unsafe code. Whoever reviews it looks here first.
const UNSAFE: [&str; 12] = [
    "actors/src/cube/recall/simd.rs",
    "simulations/fdb_c/src/api/",
    "simulations/fdb_c/tests/",
    "simulations/interpose/",
    "simulations/src/storage/foundationdb.rs",
    "src/inference/candle/aligned.rs",
    "src/inference/candle/language/attention_kernels.rs",
    "src/inference/candle/language/kernels.rs",
    "src/inference/candle/simd.rs",
    "src/inference/candle/vector.rs",
    "src/storage/foundationdb/client.rs",
    "tests/it/foundationdb/mod.rs",
];

#[test]
fn unsafe_code_is_where_it_is_known() {
    let mut found = Vec::new();
    for file in rust_files() {
        if UNSAFE.iter().any(|known| file.path.starts_with(known)) {
            continue;
        }
        for at in words(&file.code, "unsafe") {
            found.push(format!(
                "{}:{}: unsafe code: do without, or name the file in `tests/it/tidy.rs` and say \
                 there why",
                file.path,
                file.line_of(&file.code, at)
            ));
        }
    }
    report(found);
}

#[test]
fn actors_say_what_they_do() {
    let mut found = Vec::new();
    for file in rust_files().iter().filter(|file| !file.is_test()) {
        let Some(at) = file.code.find("impl Actor for ") else { continue };
        let line = file.line_of(&file.code, at);
        let docs: String = file.text.lines().filter(|line| line.starts_with("//!")).collect();
        let missing: Vec<&str> = ["Receives:", "Sends:", "Owns:"]
            .into_iter()
            .filter(|word| !docs.contains(word))
            .collect();
        if line <= file.production_lines() && !missing.is_empty() {
            found.push(format!(
                "{}:{line}: an actor whose `//!` header lacks {missing:?}: open the file with \
                 `//! Receives: ... Sends: ... Owns: ...`",
                file.path
            ));
        }
    }
    report(found);
}

#[test]
fn schemas_never_await() {
    let mut found = Vec::new();
    for file in rust_files().iter().filter(|file| file.path.starts_with("schemas/src/")) {
        for at in words(&file.code, "async").chain(words(&file.code, "await")) {
            found.push(format!(
                "{}:{}: schemas are plain data: move what waits to `actors`",
                file.path,
                file.line_of(&file.code, at)
            ));
        }
    }
    report(found);
}

#[test]
fn metrics_are_named_in_one_place() {
    let prefix = "memcube_";
    let crates = ["memcube_schemas", "memcube_actors", "memcube_simulations"];
    let is_metric = |rest: &str| {
        let name = rest[prefix.len()..].starts_with(|c: char| c.is_ascii_lowercase());
        name && !crates.iter().any(|name| rest.starts_with(name))
    };
    let ours = |file: &RustFile| {
        file.path == "actors/src/metrics.rs" || file.path.starts_with("tests/it/tidy")
    };
    let mut found = Vec::new();
    for file in rust_files().iter().filter(|file| !ours(file)) {
        for (at, _) in file.literals.match_indices(prefix) {
            if is_metric(&file.literals[at..]) {
                found.push(format!(
                    "{}:{}: a metric's name: use its constant from `actors/src/metrics.rs`",
                    file.path,
                    file.line_of(&file.literals, at)
                ));
            }
        }
    }
    report(found);
}

#[test]
fn files_are_small() {
    let mut found = Vec::new();
    for path in files().iter().filter(|path| *path != "Cargo.lock") {
        let bytes = std::fs::metadata(root().join(path)).map_or(0, |file| file.len());
        if bytes > FILE_BYTES_MAX {
            found.push(format!(
                "{path}:1: {bytes} bytes, {FILE_BYTES_MAX} are allowed in git: make it smaller, \
                 or fetch it when it is needed, as `deploy/fetch-model.sh` does"
            ));
        }
    }
    report(found);
}

/// What people copy has to work.
#[test]
fn example_settings_are_valid() {
    let mut found = Vec::new();
    let is_settings =
        |path: &&String| path.starts_with("deploy/config/") && path.ends_with(".toml");
    let files = files();
    let examples: Vec<&String> = files.iter().filter(is_settings).collect();
    assert!(!examples.is_empty(), "`deploy/config` has no settings");
    for path in examples {
        if let Err(error) = memcube::Settings::load(Some(&root().join(path))) {
            found.push(format!("{path}:1: {error}"));
        }
    }
    report(found);
}

/// Nothing depends on one machine's folders, nor speaks to a registry past its client.
#[test]
fn no_machine_is_named() {
    // In pieces, so that this file passes its own test.
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let hosts = [
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("crates", ".io"),
        concat!("registry.", "npmjs.org"),
        concat!("proxy.", "golang.org"),
        concat!("deb.", "debian.org"),
        concat!("archive.", "ubuntu.com"),
    ];
    let mut found = Vec::new();
    for path in files().iter().filter(|path| *path != "Cargo.lock") {
        let Some(text) = read(path) else { continue };
        for (at, line) in text.lines().enumerate() {
            let names_folder = paths.iter().any(|folder| {
                line.match_indices(folder).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}".contains(c))
                })
            });
            if names_folder {
                found.push(format!(
                    "{path}:{}: a folder of one machine: take it from a setting",
                    at + 1
                ));
            }
            if hosts.iter().any(|host| line.contains(host)) {
                found.push(format!(
                    "{path}:{}: a registry's host: name the client instead (`pip`, `cargo`, \
                     `apt-get`)",
                    at + 1
                ));
            }
        }
    }
    report(found);
}
