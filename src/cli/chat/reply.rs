//! One answer, piece by piece.

use std::{
    io::{BufRead, BufReader, Read},
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memcube_schemas::api::{
    openai::{ChatCompletion, ChatCompletionBody, ChatMemory, ChatUsage},
    v1::Problem,
};
use serde::Serialize;

use super::{super::events::Message, interrupt::Interrupts};
use crate::cli::Client;

/// Pieces that wait to be printed.
const PIECES_MAX: usize = 64;
/// How soon Ctrl-C is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What follows the last piece.
const DONE: &str = "[DONE]";

/// An answer.
#[derive(Debug, Default, Serialize)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) usage: Option<ChatUsage>,
    pub(super) memcube: ChatMemory,
}

/// What became of a question.
pub(super) enum Outcome {
    Answered(Box<Answer>),
    /// By Ctrl-C.
    Stopped,
}

/// Asks, and hands on the text as it comes.
pub(super) fn ask(
    client: &Client,
    body: &ChatCompletionBody,
    interrupts: &Interrupts,
    mut print: impl FnMut(&str) -> Result<()>,
) -> Result<Outcome> {
    let (sender, pieces) = sync_channel(PIECES_MAX);
    let (client, body) = (client.clone(), body.clone());
    interrupts.begin();
    // Reading blocks, so another thread does it. It ends at the next sign of life once nobody
    // takes its pieces any more, and with it the connection, by which the model is stopped.
    thread::spawn(move || {
        match client.chat(&body) {
            Ok(stream) => read(stream, &sender),
            // Nobody takes it after Ctrl-C.
            Err(error) => drop(sender.send(Err(error.into()))),
        }
    });
    let mut answer = Answer::default();
    let outcome = loop {
        match pieces.recv_timeout(LOOK_EVERY) {
            Ok(Ok(Piece::Part(piece))) => answer.take(*piece, &mut print)?,
            Ok(Ok(Piece::End)) => break Outcome::Answered(Box::new(answer)),
            Ok(Ok(Piece::SignOfLife)) => {}
            Ok(Err(error)) => {
                interrupts.end();
                return Err(error);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                interrupts.end();
                bail!("the answer broke off; nothing of it is remembered");
            }
        }
        if interrupts.is_stopped() {
            break Outcome::Stopped;
        }
    };
    interrupts.end();
    Ok(outcome)
}

/// What a stream brings.
#[derive(Debug)]
enum Piece {
    Part(Box<ChatCompletion>),
    /// A comment. Whoever does not take it any more does not want the rest.
    SignOfLife,
    End,
}

/// Reads the pieces of a stream. Without an end it broke off.
fn read(stream: impl Read, sender: &SyncSender<Result<Piece>>) {
    let mut lines = BufReader::new(stream).lines();
    while let Some(message) = Message::read(&mut lines) {
        let is_end = message.data == DONE;
        let piece = match message.data.as_str() {
            "" => Ok(Piece::SignOfLife),
            DONE => Ok(Piece::End),
            data => parse(data).map(|piece| Piece::Part(Box::new(piece))),
        };
        if sender.send(piece).is_err() || is_end {
            break;
        }
    }
}

fn parse(data: &str) -> Result<ChatCompletion> {
    if let Ok(Problem { detail, code, request_id, .. }) = serde_json::from_str(data) {
        bail!("{detail} ({code}, request {request_id})");
    }
    serde_json::from_str(data).context("the answer cannot be read; check `--server`")
}

impl Answer {
    fn take(
        &mut self,
        piece: ChatCompletion,
        print: &mut impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        for choice in piece.choices {
            if let Some(text) = choice.delta.and_then(|delta| delta.content) {
                print(&text)?;
                self.text.push_str(&text);
            }
            self.finish_reason = choice.finish_reason.or_else(|| self.finish_reason.take());
        }
        self.usage = piece.usage.or(self.usage);
        if let Some(more) = piece.memcube {
            let known = std::mem::take(&mut self.memcube);
            // The first piece tells the memories, the last one what became of the turn.
            self.memcube = if more.timings.is_some() {
                ChatMemory { remembered: more.remembered, timings: more.timings, ..known }
            } else {
                more
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<Result<Piece>> {
        let (sender, pieces) = sync_channel(PIECES_MAX);
        read(text.as_bytes(), &sender);
        drop(sender);
        pieces.into_iter().collect()
    }

    fn piece(rest: &str) -> String {
        format!("data: {{\"id\":\"1\",\"object\":\"o\",\"created\":0,\"model\":\"m\",{rest}}}\n\n")
    }

    #[test]
    fn pieces_make_an_answer() {
        let delta = |text: &str| {
            piece(&format!(
                "\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\
                 \"finish_reason\":null,\"logprobs\":null}}]"
            ))
        };
        let first = piece("\"choices\":[],\"memcube\":{\"cube\":\"me\",\"turns_left_out\":2}");
        let last = piece(
            "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\",\"logprobs\":null}],\
             \"memcube\":{\"timings\":{\"recall_ms\":1,\"tokens_from_cache\":2,\
             \"tokens_from_segments\":0,\"is_exact\":true,\
             \"tokens_computed\":3,\"ttft_ms\":4,\"total_ms\":5}}",
        );
        let text = format!(
            "{first}: keep-alive\n\n{}{}{last}data: [DONE]\n\ndata: nothing\n\n",
            delta("Hel"),
            delta("lo")
        );
        let (mut answer, mut printed) = (Answer::default(), String::new());
        let pieces = pieces(&text);
        let (end, rest) = pieces.split_last().expect("pieces");
        assert!(matches!(end, Ok(Piece::End)), "{end:?}");
        for piece in rest {
            let Piece::Part(piece) = piece.as_ref().expect("a piece") else { continue };
            let print = &mut |text: &str| {
                printed.push_str(text);
                Ok(())
            };
            answer.take(ChatCompletion::clone(piece), print).expect("taken");
        }
        assert_eq!((answer.text.as_str(), printed.as_str()), ("Hello", "Hello"));
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        let memcube = answer.memcube;
        assert_eq!(
            (memcube.turns_left_out, memcube.cube.expect("a cube").as_str()),
            (Some(2), "me")
        );
        assert_eq!(memcube.timings.map(|timings| timings.tokens_computed), Some(3));
    }

    #[test]
    fn an_error_in_the_middle_and_a_stream_that_breaks_off_are_told() {
        let problem = "data: {\"type\":\"t\",\"title\":\"\",\"status\":503,\
                       \"code\":\"unavailable\",\
                       \"detail\":\"it fails\",\"request_id\":\"7\",\"error\":{\"message\":\"m\",\
                       \"type\":\"server_error\",\"code\":\"c\",\"param\":null}}\n\n";
        let told = pieces(problem).pop().expect("a piece").expect_err("an error");
        assert_eq!(told.to_string(), "it fails (unavailable, request 7)");
        assert!(pieces("data: {\"id\":").is_empty(), "no end is told");
        assert!(pieces("data: x\n\n").pop().expect("a piece").is_err());
    }
}
