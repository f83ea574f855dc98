//! Seeds that once found something, and are run again for ever.
//!
//! One a line: `SCENARIO SEED  # what it found, in which commit`, with the kind of state store
//! behind the seed if it is not the one in RAM. Where a later change of the workload would draw
//! another plan of the same seed, `plan FILE` keeps the plan itself; the file's path starts at the
//! folder of the list. Blank lines and comments are skipped.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    plan::{Plan, StoreKind},
    process::Verdict,
    workloads,
};

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regression {
    /// Where it stands, counted from one.
    pub line: usize,
    /// What to run.
    pub source: Source,
    /// What it found.
    pub note: String,
}

/// Where a plan comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A scenario and a seed, over a kind of state store.
    Seed(String, u64, StoreKind),
    /// A file.
    File(PathBuf),
}

impl Source {
    /// The plan itself.
    ///
    /// # Errors
    /// When there is no such scenario, or when the file holds no plan.
    pub fn plan(&self) -> Result<Plan> {
        match self {
            Self::Seed(scenario, seed, store) => workloads::plan(scenario, *seed, *store),
            Self::File(path) => read_plan(path),
        }
    }

    /// The command that runs it alone.
    #[must_use]
    pub fn replay(&self) -> String {
        match self {
            Self::Seed(scenario, seed, store) => {
                format!("memcube-sim run {scenario} --seed {seed}{}", store.option())
            }
            Self::File(path) => format!("memcube-sim run --plan {}", path.display()),
        }
    }
}

/// Reads a plan from a file.
///
/// # Errors
/// When the file cannot be read, or holds no plan; the message says where it is wrong.
pub fn read_plan(path: &Path) -> Result<Plan> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the plan `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is no plan", path.display()))
}

/// The number of a seed: decimal, hexadecimal after `0x`, or the first 64 bits of a commit.
///
/// # Errors
/// When it is none of these.
pub fn parse_seed(text: &str) -> Result<u64> {
    const COMMIT_DIGITS: usize = 40;
    const SEED_DIGITS: usize = 16;
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let parsed = if text.len() == COMMIT_DIGITS && is_hex(text) {
        u64::from_str_radix(&text[..SEED_DIGITS], 16).ok()
    } else if let Some(digits) = hex {
        is_hex(digits).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    };
    parsed.with_context(|| {
        format!(
            "`{text}` is no seed: give a whole number below 2^64, in decimal or as `0x1f`, or a \
             commit of {COMMIT_DIGITS} hexadecimal digits"
        )
    })
}

/// Reads the list.
///
/// # Errors
/// When the file cannot be read, or has a line that is not understood; the message names it.
pub fn read(path: &Path) -> Result<Vec<Regression>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the regressions `{}`", path.display()))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    parse(&text, folder).with_context(|| format!("`{}`", path.display()))
}

/// Understands the text of a list that lies in this folder.
///
/// # Errors
/// When a line is not understood; the message names it.
pub fn parse(text: &str, folder: &Path) -> Result<Vec<Regression>> {
    let mut regressions = Vec::new();
    for (at, written) in text.lines().enumerate() {
        let (wanted, note) = written.split_once('#').unwrap_or((written, ""));
        if wanted.trim().is_empty() {
            continue;
        }
        let line = at + 1;
        let source = source(wanted, folder).with_context(|| format!("line {line}"))?;
        regressions.push(Regression { line, source, note: note.trim().to_owned() });
    }
    Ok(regressions)
}

fn source(wanted: &str, folder: &Path) -> Result<Source> {
    let words: Vec<&str> = wanted.split_whitespace().collect();
    match words[..] {
        ["plan", file] => Ok(Source::File(folder.join(file))),
        [scenario, seed] => {
            Ok(Source::Seed(scenario.to_owned(), parse_seed(seed)?, StoreKind::default()))
        }
        [scenario, seed, store] if StoreKind::named(store).is_some() => {
            let store = StoreKind::named(store).unwrap_or_default();
            Ok(Source::Seed(scenario.to_owned(), parse_seed(seed)?, store))
        }
        _ => bail!("`{}` is neither `SCENARIO SEED` nor `plan FILE`", wanted.trim()),
    }
}

impl Regression {
    /// The plan to run.
    ///
    /// # Errors
    /// When there is no such scenario, or when the file holds no plan; the message names the line.
    pub fn plan(&self) -> Result<Plan> {
        self.source.plan().with_context(|| format!("line {}", self.line))
    }
}

/// What a run that failed says first.
#[must_use]
pub fn first_complaint(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Finished(report) => report.violations.first().map_or("", |first| &first.what),
        Verdict::Died { how } => how,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn these_are_seeds() {
        for (text, expected) in [
            ("0", 0),
            ("17", 17),
            ("18446744073709551615", u64::MAX),
            ("0x1f", 31),
            ("0XFF", 255),
            ("00000000000000ff000000000000000000000001", 255),
            ("7a21d87c00000000000000000000000000000000", 0x7a21_d87c_0000_0000),
        ] {
            assert_eq!(parse_seed(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn these_are_none() {
        for text in
            ["", " 1", "-1", "+1", "0x", "0x+1", "ff", "18446744073709551616", "7a21d87", "é"]
        {
            let error = parse_seed(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is no seed: ")), "{error}");
        }
    }

    #[test]
    fn a_list_has_seeds_plans_and_comments() {
        let text = "# all of them\n\nassistant 17  # lost an item, 7a21d87\n  plan a/b.json\n\
                    assistant 18 foundationdb\n";
        let expected = [
            Regression {
                line: 3,
                source: Source::Seed("assistant".to_owned(), 17, StoreKind::InMemory),
                note: "lost an item, 7a21d87".to_owned(),
            },
            Regression {
                line: 4,
                source: Source::File("folder/a/b.json".into()),
                note: String::new(),
            },
            Regression {
                line: 5,
                source: Source::Seed("assistant".to_owned(), 18, StoreKind::Foundationdb),
                note: String::new(),
            },
        ];
        assert_eq!(parse(text, Path::new("folder")).unwrap(), expected);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (line, expected) in [
            ("assistant", "line 2: `assistant` is neither `SCENARIO SEED` nor `plan FILE`"),
            (
                "assistant 1 2 # x",
                "line 2: `assistant 1 2` is neither `SCENARIO SEED` nor `plan FILE`",
            ),
            ("assistant x", "line 2: `x` is no seed: "),
        ] {
            let error = parse(&format!("tenants 1\n{line}\n"), Path::new("")).unwrap_err();
            assert!(format!("{error:#}").starts_with(expected), "{error:#}");
        }
    }

    #[test]
    fn a_bad_plan_says_where_it_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        fs::write(&path, "{\"scenario\": \"assistant\",\n\"sed\": 1}").unwrap();
        let error = format!("{:#}", read_plan(&path).unwrap_err());
        assert!(error.contains("is no plan: unknown field `sed`"), "{error}");
        assert!(error.contains("line 2 column 5"), "{error}");
        let missing = format!("{:#}", read_plan(&folder.path().join("none")).unwrap_err());
        assert!(missing.starts_with("cannot read the plan"), "{missing}");
    }
}
