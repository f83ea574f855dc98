//! The files of the tree, and what in a Rust file is code, what a literal and what a comment.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root, which is the root package's folder.
pub(super) fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Every file that is in git or would be added by `git add .`, relative to the root, sorted.
pub(super) fn files() -> Vec<String> {
    let mut files = listed_by_git().unwrap_or_else(|| {
        let mut found = Vec::new();
        walk(&root(), "", &mut found);
        found
    });
    files.retain(|path| root().join(path).is_file());
    files.sort();
    files
}

fn listed_by_git() -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()?;
    let listing = String::from_utf8(output.stdout).ok()?;
    let files: Vec<String> =
        listing.split('\0').filter(|path| !path.is_empty()).map(String::from).collect();
    (output.status.success() && !files.is_empty()).then_some(files)
}

/// A source archive has no git: everything but what is built or run there.
fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.path().is_dir() {
            if ![".git", "target", "run"].contains(&path.as_str()) {
                walk(&entry.path(), &format!("{path}/"), found);
            }
        } else {
            found.push(path);
        }
    }
}

/// The text of a file, unless it is not text.
pub(super) fn read(path: &str) -> Option<String> {
    String::from_utf8(std::fs::read(root().join(path)).ok()?).ok()
}

/// A Rust file in three layers of equal shape: what does not belong to a layer is blank there.
pub(super) struct RustFile {
    pub(super) path: String,
    pub(super) text: String,
    pub(super) code: String,
    pub(super) literals: String,
    pub(super) comments: String,
}

/// Every Rust file of the tree.
pub(super) fn rust_files() -> Vec<RustFile> {
    let rust = files().into_iter().filter(|path| path.ends_with(".rs"));
    rust.filter_map(|path| read(&path).map(|text| RustFile::new(path, text))).collect()
}

impl RustFile {
    pub(super) fn new(path: String, text: String) -> Self {
        let layers = layers(&text);
        let only = |wanted: Layer| {
            let kept = text.char_indices().map(|(at, character)| {
                if character == '\n' || layers[at] == wanted { character } else { ' ' }
            });
            kept.collect::<String>()
        };
        let (code, literals, comments) =
            (only(Layer::Code), only(Layer::Literal), only(Layer::Comment));
        Self { path, text, code, literals, comments }
    }

    /// Is the whole file test code?
    pub(super) fn is_test(&self) -> bool {
        let mut parts = self.path.split('/').rev();
        let file = parts.next().unwrap_or_default();
        file.ends_with("tests.rs") || parts.any(|part| part == "tests" || part == "benches")
    }

    /// How many lines come before the test module at the end.
    pub(super) fn production_lines(&self) -> usize {
        if self.is_test() {
            return 0;
        }
        let lines: Vec<&str> = self.code.lines().map(str::trim).collect();
        let opens_tests = |at: usize| {
            let mut rest = lines[at..].iter().filter(|line| !line.starts_with("#["));
            (lines[at].starts_with("#[cfg(test)]") || lines[at].starts_with("#[cfg(all(test"))
                && rest.next().is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
        };
        (0..lines.len()).find(|&at| opens_tests(at)).unwrap_or(lines.len())
    }

    /// The line of a byte offset, counted from one.
    pub(super) fn line_of(&self, layer: &str, at: usize) -> usize {
        layer.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Code,
    Literal,
    Comment,
}

/// The layer of every byte of a Rust text. Small, and right for text that compiles.
fn layers(text: &str) -> Vec<Layer> {
    let bytes = text.as_bytes();
    let mut layers = vec![Layer::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let (layer, length) = if rest.starts_with("//") {
            (Layer::Comment, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (Layer::Comment, block_comment(rest))
        } else if let Some(length) = raw_string(rest).filter(|_| !follows_word(bytes, at)) {
            (Layer::Literal, length)
        } else if rest.starts_with('"') {
            (Layer::Literal, quoted(rest, '"'))
        } else if is_character(rest) {
            (Layer::Literal, quoted(rest, '\''))
        } else {
            (Layer::Code, rest.chars().next().map_or(1, char::len_utf8))
        };
        layers[at..at + length].fill(layer);
        at += length;
    }
    layers
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    for (at, _) in rest.char_indices() {
        if rest[at..].starts_with("/*") {
            depth += 1;
        } else if rest[..at].ends_with("*/") {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|after| after.starts_with(['"', '#']))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let opening = prefix.len() + hashes + 1;
    Some(body.find(&end).map_or(rest.len(), |length| opening + length + end.len()))
}

fn is_character(rest: &str) -> bool {
    let Some(after) = rest.strip_prefix('\'') else { return false };
    let mut characters = after.chars();
    // Anything else that opens with a quote is a lifetime.
    characters.next() == Some('\\') || characters.next() == Some('\'')
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == quote {
            return at + 1;
        }
    }
    rest.len()
}

/// Where a word stands alone in a layer.
pub(super) fn words<'a>(layer: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |character: char| character.is_alphanumeric() || character == '_';
    layer.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !layer[..at].ends_with(in_word) && !layer[at + word.len()..].starts_with(in_word)
    })
}

#[test]
fn layers_are_told_apart() {
    let text =
        "let a = \"x // y\"; // c\nlet b = r#\"\"z\"#; let c: &'a u8 = '\\''; /* d /* e */ */ f";
    let file = RustFile::new("a.rs".into(), text.into());
    let squeezed = |layer: &str| layer.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeezed(&file.code), "let a = ; let b = ; let c: &'a u8 = ; f");
    assert_eq!(squeezed(&file.literals), "\"x // y\" r#\"\"z\"# '\\''");
    assert_eq!(squeezed(&file.comments), "// c /* d /* e */ */");
}
