//! memeval JSONL: one cube per file, one conversation per session.

use memcube_schemas::conversation::Message;
use serde::Deserialize;

use super::{
    ImportError, ImportedConversation, cube_id, records::Record, role_of_speaker, with_caption,
};

#[derive(Deserialize)]
struct Kind {
    t: String,
}

#[derive(Deserialize)]
struct Conv {
    id: String,
}

#[derive(Deserialize)]
struct Turn {
    id: String,
    s: u64,
    #[serde(default)]
    ts: Option<String>,
    speaker: String,
    text: String,
    #[serde(default)]
    caption: Option<String>,
}

/// The session that is being read.
#[derive(Debug, Default)]
pub(super) struct Session {
    cube: Option<String>,
    number: u64,
    messages: Vec<Message>,
}

impl Session {
    /// Takes one line; hands out the session before it when the line begins another one.
    pub(super) fn take(
        &mut self,
        record: &Record,
    ) -> Result<Option<ImportedConversation>, ImportError> {
        let kind: Kind = record.read("a memeval line with the kind `t`")?;
        match kind.t.as_str() {
            "conv" => {
                let conv: Conv = record.read("a `conv` line with an `id`")?;
                let done = self.finish();
                self.cube = Some(cube_id(&conv.id, ""));
                Ok(done)
            }
            "turn" => self.take_turn(record),
            // Questions, gold for other tests, and whatever later versions add.
            _ => Ok(None),
        }
    }

    fn take_turn(&mut self, record: &Record) -> Result<Option<ImportedConversation>, ImportError> {
        let expected = "a `turn` line with `id`, `s`, `speaker` and `text`";
        let turn: Turn = record.read(expected)?;
        if self.cube.is_none() {
            return Err(record.unexpected("a `conv` line before the first turn", "a `turn` line"));
        }
        let done = if turn.s == self.number { None } else { self.finish() };
        let (role, speaker) = role_of_speaker(&turn.speaker);
        self.number = turn.s;
        self.messages.push(Message {
            role,
            speaker,
            content: with_caption(&turn.text, turn.caption.as_deref()),
            chat_time: turn.ts.filter(|ts| !ts.trim().is_empty()),
            message_id: Some(turn.id),
        });
        Ok(done)
    }

    /// The session as far as it was read.
    pub(super) fn finish(&mut self) -> Option<ImportedConversation> {
        let messages = std::mem::take(&mut self.messages);
        let cube = self.cube.clone().filter(|_| !messages.is_empty())?;
        let conversation = cube_id(&format!("session-{} of {cube}", self.number), "");
        Some(ImportedConversation { cube, conversation, messages })
    }
}
