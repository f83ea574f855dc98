//! Another engine that is measured in turns with ours: a program that reads requests as lines of
//! JSON and answers each with a line. `benches/ttft_llama.py` is one.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use memcube_actors::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Serialize)]
#[serde(tag = "measure", rename_all = "snake_case")]
enum Request {
    /// Its name.
    Name,
    /// Computes a context and keeps its state.
    Build { tokens: usize },
    /// Computes the context and a turn.
    Direct { tokens: usize },
    /// Restores the state, then computes a turn.
    Restored { tokens: usize },
    /// Computes a prompt, then some tokens one by one.
    Speed { tokens: usize, steps: usize },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    name: String,
    seconds: f64,
    prefill_s: f64,
    decode_s: f64,
    error: Option<String>,
}

/// A running program.
pub(super) struct Peer {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    name: String,
}

impl Peer {
    /// Starts a command line.
    pub(super) fn start(command: &str) -> Result<Self> {
        let refused = |error| Error::unavailable(format!("`{command}` does not start: {error}"));
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(refused)?;
        let piped = || Error::internal("a program has no standard input or output");
        let requests = Some(child.stdin.take().ok_or_else(piped)?);
        let answers = BufReader::new(child.stdout.take().ok_or_else(piped)?);
        let mut peer = Self { child, requests, answers, name: String::new() };
        peer.name = peer.ask(&Request::Name)?.name;
        Ok(peer)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn build(&mut self, tokens: usize) -> Result<f64> {
        Ok(self.ask(&Request::Build { tokens })?.seconds)
    }

    pub(super) fn direct(&mut self, tokens: usize) -> Result<f64> {
        Ok(self.ask(&Request::Direct { tokens })?.seconds)
    }

    pub(super) fn restored(&mut self, tokens: usize) -> Result<f64> {
        Ok(self.ask(&Request::Restored { tokens })?.seconds)
    }

    /// Seconds of a prompt, and of the steps after it.
    pub(super) fn speed(&mut self, tokens: usize, steps: usize) -> Result<(f64, f64)> {
        let Answer { prefill_s, decode_s, .. } = self.ask(&Request::Speed { tokens, steps })?;
        Ok((prefill_s, decode_s))
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        let gone = |error: String| {
            Error::unavailable(format!("the other engine does not answer: {error}"))
        };
        let mut line = serde_json::to_string(request).map_err(|error| gone(error.to_string()))?;
        line.push('\n');
        let requests = self.requests.as_mut().ok_or_else(|| gone("it was stopped".to_owned()))?;
        let written = requests.write_all(line.as_bytes()).and_then(|()| requests.flush());
        written.map_err(|error| gone(error.to_string()))?;
        line.clear();
        self.answers.read_line(&mut line).map_err(|error| gone(error.to_string()))?;
        let answer: Answer =
            serde_json::from_str(&line).map_err(|error| gone(format!("{error}: `{line}`")))?;
        match answer.error {
            Some(error) => Err(Error::unavailable(format!("the other engine failed: {error}"))),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends when nothing more can come.
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_lines() {
        let echo = r#"read l; echo '{"name":"other"}'; read l; echo '{"seconds":1.5}';
            read l; echo '{"error":"no"}'"#;
        let mut peer = Peer::start(echo).expect("it starts");
        assert_eq!(peer.name(), "other");
        assert_eq!(peer.direct(10), Ok(1.5));
        assert!(peer.direct(10).is_err_and(|error| error.to_string().contains("failed: no")));
        assert!(peer.direct(10).is_err(), "it has ended");
        assert!(Peer::start("exit 3").is_err());
    }
}
