//! Links, decision records and commands that the documents name.

use std::collections::BTreeSet;
use std::path::Path;

use super::report;
use super::source::{files, read, root};

/// A Markdown line, and whether it lies in a fenced block.
struct Line<'a> {
    number: usize,
    text: &'a str,
    fenced: bool,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut inside = false;
    let numbered = text.lines().enumerate().map(|(at, text)| {
        let fence = text.trim_start().starts_with("```") || text.trim_start().starts_with("~~~");
        inside ^= fence;
        Line { number: at + 1, text, fenced: inside || fence }
    });
    numbered.collect()
}

fn documents() -> impl Iterator<Item = (String, String)> {
    let paths = files().into_iter().filter(|path| path.ends_with(".md"));
    paths.filter_map(|path| read(&path).map(|text| (path, text)))
}

#[test]
fn links_lead_somewhere() {
    let mut found = Vec::new();
    for (path, text) in documents() {
        for line in lines(&text).iter().filter(|line| !line.fenced) {
            for target in targets(line.text) {
                if let Some(complaint) = broken(&path, &text, target) {
                    found.push(format!("{path}:{}: link `{target}`: {complaint}", line.number));
                }
            }
        }
    }
    report(found);
}

/// The targets of the links of a line, images and reference definitions included.
fn targets(line: &str) -> Vec<&str> {
    if let Some((_, target)) = line.split_once("]: ").filter(|_| line.starts_with('[')) {
        return vec![target.split_whitespace().next().unwrap_or_default()];
    }
    // An odd number of backticks before it: the link is quoted, and not a link.
    let links = line
        .match_indices("](")
        .filter(|(at, _)| line[..*at].matches('`').count().is_multiple_of(2));
    let targets = links.filter_map(|(at, _)| line[at + 2..].split(')').next());
    targets
        .map(|target| target.split(" \"").next().unwrap_or_default())
        .map(|target| target.trim_matches(['<', '>']))
        .collect()
}

fn broken(document: &str, text: &str, target: &str) -> Option<String> {
    let is_remote = target.contains("://") || target.starts_with("mailto:");
    if is_remote {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let base = Path::new(document).parent().unwrap_or_else(|| Path::new(""));
    let resolved = match file.strip_prefix('/') {
        Some(from_root) => root().join(from_root),
        None if file.is_empty() => root().join(document),
        None => root().join(base).join(file.replace("%20", " ")),
    };
    if !resolved.exists() {
        return Some("no such file; correct the path, or remove the link".into());
    }
    if anchor.is_empty() || resolved.extension().is_none_or(|extension| extension != "md") {
        return None;
    }
    let other = std::fs::read_to_string(&resolved).ok();
    let text = if file.is_empty() { text } else { other.as_deref().unwrap_or_default() };
    (!anchors(text).contains(anchor))
        .then(|| "no heading has this anchor; correct it after the heading's words".into())
}

/// The anchors of a document's headings, made as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in lines(text).iter().filter(|line| !line.fenced && line.text.starts_with('#')) {
        let heading = line.text.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let anchor: String = heading.chars().filter(kept).collect::<String>().replace(' ', "-");
        let mut repeated = 1;
        let mut unique = anchor.clone();
        while !anchors.insert(unique) {
            unique = format!("{anchor}-{repeated}");
            repeated += 1;
        }
    }
    anchors
}

#[test]
fn every_decision_is_listed() {
    let index = read("docs/adr/README.md").unwrap_or_default();
    let records = files().into_iter().filter_map(|path| {
        let name = path.strip_prefix("docs/adr/")?;
        (name.ends_with(".md") && name != "README.md").then(|| name.to_owned())
    });
    let unlisted = records.filter(|name| !index.contains(name.as_str()));
    report(
        unlisted
            .map(|name| format!("docs/adr/{name}:1: not listed; add it to docs/adr/README.md"))
            .collect(),
    );
}

#[test]
fn named_commands_exist() {
    let makefile = read("Makefile").expect("a Makefile at the root");
    let known: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .collect();
    let mut found = Vec::new();
    for (path, text) in documents() {
        for line in lines(&text) {
            let commands: Vec<&str> = if line.fenced {
                vec![line.text.trim_start().trim_start_matches("$ ")]
            } else {
                line.text.split('`').skip(1).step_by(2).collect()
            };
            for name in commands.iter().flat_map(|command| make_targets(command)) {
                if !known.contains(name) {
                    found.push(format!(
                        "{path}:{}: the Makefile has no target `{name}`; correct the name, or add it",
                        line.number
                    ));
                }
            }
        }
    }
    report(found);
}

/// The targets of a `make` command line.
fn make_targets(command: &str) -> Vec<&str> {
    let Some(arguments) = command.strip_prefix("make ") else { return Vec::new() };
    let words = arguments.split_whitespace();
    let words = words.take_while(|word| !word.starts_with(['#', '&', '|', ';', '>']));
    words.filter(|word| !word.contains(['=', '<']) && !word.starts_with('-')).collect()
}
