//! What a person types, or another program writes: one message a line.

use std::io::{IsTerminal, stdin};

use anyhow::{Context, Result};
use rustyline::{DefaultEditor, error::ReadlineError};

const PROMPT: &str = "> ";

/// One line.
pub(super) enum Line {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    End,
}

/// Where lines come from.
pub(super) enum Input {
    /// A terminal, with a line that can be edited and the lines before it.
    Terminal(Box<DefaultEditor>),
    /// A file or a pipe.
    Plain,
}

impl Input {
    pub(super) fn new() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self::Plain);
        }
        let editor = DefaultEditor::new().context("cannot read from this terminal")?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub(super) const fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line.
    pub(super) fn read(&mut self) -> Result<Line> {
        match self {
            Self::Terminal(editor) => match editor.readline(PROMPT) {
                Ok(text) => {
                    // The lines before are a convenience; without them it works as well.
                    let _ = editor.add_history_entry(&text);
                    Ok(Line::Text(text))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from this terminal"),
            },
            Self::Plain => {
                let mut text = String::new();
                let read = stdin().read_line(&mut text).context("cannot read standard input")?;
                Ok(if read == 0 { Line::End } else { Line::Text(text) })
            }
        }
    }
}
