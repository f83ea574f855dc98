//! `memcube chat`: a conversation in the terminal, with a model that remembers.

mod input;
mod interrupt;
mod reply;

use std::io::IsTerminal;

use anyhow::Result;
use clap::Args;
use memcube_schemas::{
    CubeId,
    api::openai::{ChatCompletionBody, ChatMemory, ChatMessageBody, MemoryOptions, StreamOptions},
};
use serde_json::Value;

use self::{
    input::{Input, Line},
    interrupt::Interrupts,
    reply::{Answer, Outcome, ask},
};
use super::{
    Client,
    connect::connect_with,
    memories::statement,
    options::{Options, ServerArgs},
    output,
};
use crate::{
    environment,
    settings::{InferenceKind, Settings},
};

const EXAMPLES: &str = "\
Examples:
  memcube chat                                    talk; `/help` lists what else can be typed
  memcube chat --cube project-x
  memcube chat \"what do you know about Ann\"       one answer
  git diff | memcube chat -
  memcube chat --json \"where does Ann live\" | jq -r .text

Without a server, it runs the language model itself: `make language-model` fetches one.";

const HELP: &str = "\
/memories  shows the memories behind the last answer
/new       begins a new conversation; what was said stays remembered
/help      shows this
/quit      ends; so does Ctrl-D
Ctrl-C stops an answer; nothing of that turn is remembered.";

const INSTRUCTIONS: &str =
    "You are a helpful assistant. Answer briefly. Use what you remember about the user.";
/// Messages that are sent along at the most: more than the window of most models holds. The cube
/// remembers what came before them.
const MESSAGES_MAX: usize = 400;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// Cube that remembers; it is made if it is missing.
    #[arg(long, value_name = "ID", default_value = "me")]
    cube: CubeId,
    /// Instructions for the model.
    #[arg(long, value_name = "TEXT", default_value = INSTRUCTIONS)]
    system: String,
    /// How much chance there is in an answer, from 0 to 2.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Tokens of an answer at the most.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Remember nothing of what is said.
    #[arg(long)]
    no_remember: bool,
    /// What to say, for one answer; `-` reads it from standard input.
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(options: &Options, args: ChatArgs) -> Result<()> {
    let text = if args.text.is_empty() { None } else { Some(statement(&args.text)?) };
    let wants_none = options.language_model.is_some();
    let connection = connect_with(options, &args.server, |settings: &mut Settings| {
        // Whoever wants to chat wants a model; which one, only the command line may say.
        if settings.inference.kind == InferenceKind::None && !wants_none {
            settings.inference.kind = InferenceKind::Local;
        }
    })?;
    let mut chat = Chat {
        client: connection.client,
        interrupts: Interrupts::start()?,
        is_json: options.json,
        conversation: new_conversation(),
        messages: Vec::new(),
        last: None,
        args,
    };
    match text {
        Some(text) => chat.say(text).map(|_| ()),
        None => chat.talk(),
    }
}

/// A conversation.
struct Chat {
    client: Client,
    interrupts: Interrupts,
    is_json: bool,
    args: ChatArgs,
    conversation: String,
    /// What was said and answered.
    messages: Vec<Value>,
    /// The memories behind the last answer.
    last: Option<ChatMemory>,
}

fn new_conversation() -> String {
    format!("cli-{:032x}", environment::system().random_u128())
}

impl Chat {
    /// Reads and answers until there is nothing more to read.
    fn talk(&mut self) -> Result<()> {
        let mut input = Input::new()?;
        if input.is_terminal() {
            output::note(format_args!(
                "talking to `{}`; `/help` lists what else can be typed, Ctrl-D ends",
                self.args.cube
            ));
        }
        loop {
            let text = match input.read()? {
                Line::Text(text) => text,
                Line::Interrupted => {
                    output::note("Ctrl-D, or `/quit`, ends");
                    continue;
                }
                Line::End => return Ok(()),
            };
            match text.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/help" => output::note(HELP),
                "/new" => {
                    self.conversation = new_conversation();
                    self.messages.clear();
                    self.last = None;
                    output::note("a new conversation; what was said stays remembered");
                }
                "/memories" => self.show_memories()?,
                command if command.starts_with('/') => {
                    output::note(format_args!(
                        "there is no `{command}`; `/help` shows what there is"
                    ));
                }
                text => match self.say(text.to_owned()) {
                    // A conversation goes on after a failure that a person can do something about.
                    Err(error) if input.is_terminal() && !error.is::<output::StdoutClosed>() => {
                        output::note(format_args!("error: {}", output::in_one_sentence(&error)));
                    }
                    said => said?,
                },
            }
        }
    }

    /// Says something, and prints the answer as it comes.
    fn say(&mut self, text: String) -> Result<()> {
        self.messages.push(message("user", text));
        let is_json = self.is_json;
        let print = |piece: &str| if is_json { Ok(()) } else { output::part(piece) };
        let outcome = ask(&self.client, &self.body(), &self.interrupts, print);
        let outcome = outcome.inspect_err(|_| {
            // What was not answered is not part of the conversation.
            self.messages.pop();
        })?;
        match outcome {
            Outcome::Stopped => {
                self.messages.pop();
                if !is_json {
                    output::line("")?;
                }
                output::note("stopped; nothing of it is remembered");
            }
            Outcome::Answered(answer) => {
                if is_json {
                    output::json(&answer)?;
                } else {
                    output::line("")?;
                    output::note(dimmed(&told(&answer)));
                }
                self.messages.push(message("assistant", answer.text));
                self.last = Some(answer.memcube);
                self.forget_oldest();
            }
        }
        Ok(())
    }

    /// Lets many old messages go at once: what is sent has to begin alike from turn to turn, so
    /// that what was computed for it can be used again.
    fn forget_oldest(&mut self) {
        if self.messages.len() > MESSAGES_MAX {
            self.messages.drain(..MESSAGES_MAX / 2);
        }
    }

    fn body(&self) -> ChatCompletionBody {
        let system = message("system", self.args.system.clone());
        let remember = !self.args.no_remember;
        ChatCompletionBody {
            messages: [system].into_iter().chain(self.messages.iter().cloned()).collect(),
            stream: Some(true),
            stream_options: Some(StreamOptions { include_usage: true }),
            temperature: Some(self.args.temperature),
            max_completion_tokens: self.args.max_tokens,
            // The cube of a user is made at the first use.
            user: Some(self.args.cube.to_string()),
            conversation: Some(self.conversation.clone()),
            memcube: Some(MemoryOptions { remember, ..MemoryOptions::default() }),
            ..ChatCompletionBody::default()
        }
    }

    fn show_memories(&self) -> Result<()> {
        let used = self.last.as_ref().and_then(|last| last.memories.as_ref());
        let used = used.map_or(&[][..], Vec::as_slice);
        if used.is_empty() {
            output::note("there were no memories behind the last answer");
        }
        for memory in used {
            match self.client.memory(self.args.cube.as_str(), memory.id) {
                Ok(item) => {
                    let text = output::one_line(&item.text);
                    output::line(format_args!("{}  {text}", item.id))?;
                }
                Err(error) if error.is_not_found() => {
                    output::line(format_args!("{}  deleted since", memory.id))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn message(role: &str, text: String) -> Value {
    let content = Some(Value::from(text));
    let body = ChatMessageBody { role: role.to_owned(), content, ..ChatMessageBody::default() };
    serde_json::to_value(body).unwrap_or_default()
}

/// What an answer rests on, and what it took.
fn told(answer: &Answer) -> String {
    let ChatMemory { memories, left_out, timings, .. } = &answer.memcube;
    let used = memories.as_ref().map_or(0, Vec::len) as u64;
    let mut told = output::count(used, "memory", "memories");
    let left_out = left_out.as_ref().map_or(0, Vec::len) as u64;
    if left_out > 0 {
        told = format!("{told} ({left_out} more found no room)");
    }
    if let Some(timings) = timings {
        told = format!(
            "{told}, {} tokens from the cache and {} computed, first token after {:.2} s",
            timings.tokens_from_cache,
            timings.tokens_computed,
            timings.ttft_ms / 1_000.0
        );
        if !timings.is_exact {
            told.push_str("; not exact");
        }
    }
    if answer.finish_reason.as_deref() == Some("length") {
        told = format!("{told}; cut off");
    }
    told
}

/// For a terminal: less bright than the answer.
fn dimmed(text: &str) -> String {
    let wants_colour = std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    if wants_colour && std::io::stderr().is_terminal() {
        format!("\u{1b}[2m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::api::openai::ChatTimings;

    use super::*;

    #[test]
    fn what_an_answer_took_is_told_in_one_line() {
        let timings = ChatTimings {
            recall_ms: 1.0,
            tokens_from_cache: 120,
            tokens_from_segments: 0,
            tokens_computed: 30,
            is_exact: true,
            ttft_ms: 456.0,
            total_ms: 900.0,
        };
        let memcube = ChatMemory {
            memories: Some(Vec::new()),
            timings: Some(timings),
            ..ChatMemory::default()
        };
        let finish_reason = Some("length".to_owned());
        let answer = Answer { text: "x".to_owned(), finish_reason, usage: None, memcube };
        assert_eq!(
            told(&answer),
            "0 memories, 120 tokens from the cache and 30 computed, first token after 0.46 s; cut \
             off"
        );
    }
}
