//! Reads conversations from files of other programs, to be sent to a node as messages.
//!
//! Every format is read as a stream of records, so that a large file does not have to fit into RAM.

mod chatgpt;
mod error;
mod locomo;
mod memeval;
mod memos;
mod records;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    path::Path,
    str::FromStr,
};

use memcube_schemas::{
    conversation::{Message, Role},
    limits::CUBE_ID_BYTES_MAX,
};
use serde::de::IgnoredAny;

pub use error::ImportError;
use records::{Record, Records, Shape};

/// A format of files that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// memeval JSONL: a `conv` line, then a line for each turn.
    Memeval,
    /// `LoCoMo` JSON: a list of samples with `conversation.session_N`.
    Locomo,
    /// `MemOS` JSONL: each line is the body of a call of `/product/add`.
    Memos,
    /// `conversations.json` of a `ChatGPT` data export.
    ChatGpt,
}

impl Format {
    /// All formats, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Memeval, Self::Locomo, Self::Memos, Self::ChatGpt];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memeval => "memeval",
            Self::Locomo => "locomo",
            Self::Memos => "memos",
            Self::ChatGpt => "chatgpt",
        }
    }

    const fn shape(self) -> Shape {
        match self {
            Self::Memeval | Self::Memos => Shape::Lines,
            Self::Locomo | Self::ChatGpt => Shape::Elements,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = ImportError;

    fn from_str(name: &str) -> Result<Self, ImportError> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == name)
            .ok_or_else(|| ImportError::UnknownFormat { found: format!("the name `{name}`") })
    }
}

/// One conversation, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedConversation {
    /// A cube id that suits it; the caller may choose another.
    pub cube: String,
    /// The conversation's id.
    pub conversation: String,
    /// What was said, in order.
    pub messages: Vec<Message>,
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of the file.
    pub bytes_total: u64,
    /// Conversations handed out.
    pub conversations: u64,
    /// Messages handed out.
    pub messages: u64,
}

/// The conversations of a file, one after the other. It ends after the first error.
#[derive(Debug)]
pub struct Import {
    format: Format,
    records: Records,
    ready: VecDeque<ImportedConversation>,
    open_session: memeval::Session,
    fallback: String,
    progress: Progress,
    is_over: bool,
}

/// Opens a file for import. Without a `format`, it is told from the first record.
///
/// # Errors
/// [`ImportError`] when the file cannot be read, is empty, or has none of the known formats.
pub fn open(path: &Path, format: Option<Format>) -> Result<Import, ImportError> {
    let format = match format {
        Some(format) => format,
        None => detect(path)?,
    };
    let records = Records::open(path, format.shape())?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(Import {
        format,
        progress: Progress { bytes_total: records.bytes_total(), ..Progress::default() },
        records,
        ready: VecDeque::new(),
        open_session: memeval::Session::default(),
        fallback: stem.unwrap_or_default(),
        is_over: false,
    })
}

/// Tells the format of a file from the names of the fields of its first record.
fn detect(path: &Path) -> Result<Format, ImportError> {
    let Some(first) = Records::open(path, Shape::Elements)?.next_record()? else {
        return Err(ImportError::Empty);
    };
    let fields: BTreeMap<String, IgnoredAny> = first.read("an object with fields")?;
    let has = |name: &str| fields.contains_key(name);
    if has("mapping") {
        Ok(Format::ChatGpt)
    } else if has("conversation") || has("session_1") {
        Ok(Format::Locomo)
    } else if has("messages") || has("memory_content") {
        Ok(Format::Memos)
    } else if has("t") {
        Ok(Format::Memeval)
    } else {
        let names: Vec<&str> = fields.keys().take(8).map(String::as_str).collect();
        let found = format!("a first record with the fields `{}`", names.join("`, `"));
        Err(ImportError::UnknownFormat { found })
    }
}

impl Import {
    /// The format that is read.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// How far the import has come.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// Reads records until a conversation is complete.
    fn advance(&mut self) -> Result<Option<ImportedConversation>, ImportError> {
        while self.ready.is_empty() {
            let Some(record) = self.records.next_record()? else {
                let rest = self.open_session.finish();
                if rest.is_none() && self.records.count() == 0 {
                    return Err(ImportError::Empty);
                }
                return Ok(rest);
            };
            self.progress.bytes_read = self.records.bytes_read();
            self.take(&record)?;
        }
        Ok(self.ready.pop_front())
    }

    fn take(&mut self, record: &Record) -> Result<(), ImportError> {
        match self.format {
            Format::Memeval => self.ready.extend(self.open_session.take(record)?),
            Format::Locomo => self.ready.extend(locomo::sessions(record, &self.fallback)?),
            Format::Memos => self.ready.extend(memos::conversation(record, &self.fallback)?),
            Format::ChatGpt => self.ready.extend(chatgpt::conversation(record)?),
        }
        Ok(())
    }
}

impl Iterator for Import {
    type Item = Result<ImportedConversation, ImportError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.advance().transpose();
        match &next {
            Some(Ok(conversation)) => {
                self.progress.conversations += 1;
                self.progress.messages += conversation.messages.len() as u64;
            }
            Some(Err(_)) => self.is_over = true,
            None => {
                self.is_over = true;
                self.progress.bytes_read = self.progress.bytes_total;
            }
        }
        next
    }
}

/// Makes a valid cube id of any text.
fn cube_id(text: &str, fallback: &str) -> String {
    let clean = |text: &str| {
        let plain: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        let end =
            (0..=CUBE_ID_BYTES_MAX.min(plain.len())).rfind(|end| plain.is_char_boundary(*end));
        plain[..end.unwrap_or(0)].to_owned()
    };
    [text, fallback, "imported"]
        .into_iter()
        .map(clean)
        .find(|id| !id.is_empty())
        .unwrap_or_default()
}

/// Role and name of a speaker: programs are known by their names, everyone else is a person.
fn role_of_speaker(speaker: &str) -> (Role, Option<String>) {
    let role = match speaker.trim().to_lowercase().as_str() {
        "user" | "human" | "" => Role::User,
        "assistant" | "ai" | "bot" | "chatbot" | "chatgpt" | "gpt" | "model" => Role::Assistant,
        "system" => Role::System,
        "tool" | "function" => Role::Tool,
        _ => return (Role::User, Some(speaker.trim().to_owned())),
    };
    (role, None)
}

/// The words of a turn, followed by what its picture shows.
fn with_caption(text: &str, caption: Option<&str>) -> String {
    match caption.map(str::trim).filter(|caption| !caption.is_empty()) {
        Some(caption) => format!("{text} [picture: {caption}]").trim().to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
