//! Messages as tokens, by the template in the model's file.
//!
//! A prompt is the concatenation of its messages, so that what is appended never changes what came
//! before. What a template puts around a message is found once, by rendering it with a stand-in
//! for the text; a template that puts other things around it depending on what follows is refused.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error as TemplateError, ErrorKind, State, context};

use super::error::ModelError;
use super::tokenizer::Vocabulary;

/// Stands for the text of a message; no template and no text of ours holds it.
const TEXT: &str = "\u{e000}text\u{e000}";
/// Steps a template may take: it comes from a file, and must not run for ever.
const FUEL: u64 = 100_000;
const ROLES: [&str; 4] = ["user", "assistant", "system", "tool"];

/// Who speaks, as templates know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatRole {
    User,
    Assistant,
    System,
    Tool,
}

/// What stands before and after the text of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Tokens before the text.
    pub before: Vec<u32>,
    /// Tokens after it.
    pub after: Vec<u32>,
}

/// The frames of all kinds of messages.
pub struct ChatTemplate {
    /// By role, in the order of [`ChatRole`]: as first message, and as a later one.
    frames: Vec<[Frame; 2]>,
    reply: Vec<u32>,
}

impl ChatTemplate {
    /// Reads a template.
    pub(super) fn new(source: &str, vocabulary: &Vocabulary) -> Result<Self, ModelError> {
        let template = Template { source, bos: vocabulary.bos_text() };
        let frames = (0..ROLES.len())
            .map(|role| {
                Ok([
                    template.frame(role, true, vocabulary)?,
                    template.frame(role, false, vocabulary)?,
                ])
            })
            .collect::<Result<_, ModelError>>()?;
        let asked = [("user", "a")];
        let prompt = template.render(&asked, false)?;
        let reply = template.render(&asked, true)?;
        let reply = vocabulary.encode_marked(added(&prompt, &reply)?)?;
        Ok(Self { frames, reply })
    }

    /// What stands around the text of a message.
    pub fn frame(&self, role: ChatRole, is_first: bool) -> &Frame {
        &self.frames[role as usize][usize::from(!is_first)]
    }

    /// What stands between the last message and what the model says.
    pub fn open_reply(&self) -> &[u32] {
        &self.reply
    }
}

struct Template<'a> {
    source: &'a str,
    bos: &'a str,
}

impl Template<'_> {
    fn frame(
        &self,
        role: usize,
        is_first: bool,
        vocabulary: &Vocabulary,
    ) -> Result<Frame, ModelError> {
        let frame = self.texts(ROLES[role], is_first).or_else(|error| {
            // Models without a role for it get it as something that the user said.
            if role == ChatRole::User as usize { Err(error) } else { self.texts("user", is_first) }
        });
        let (before, after) = frame?;
        let mut before = vocabulary.encode_marked(&before)?;
        if let Some(opening) = vocabulary.opening().filter(|_| is_first)
            && before.first() != Some(&opening)
        {
            before.insert(0, opening);
        }
        Ok(Frame { before, after: vocabulary.encode_marked(&after)? })
    }

    /// What is before and after the text of a message, written out.
    fn texts(&self, role: &str, is_first: bool) -> Result<(String, String), ModelError> {
        // Some templates insist that user and assistant take turns.
        let former: &[(&str, &str)] = match (is_first, role) {
            (true, _) => &[],
            (false, "assistant") => &[("user", "a")],
            (false, _) => &[("user", "a"), ("assistant", "b")],
        };
        let all: Vec<_> = former.iter().copied().chain([(role, TEXT)]).collect();
        let prompt = if former.is_empty() { String::new() } else { self.render(former, false)? };
        let whole = self.render(&all, false)?;
        let (before, after) = added(&prompt, &whole)?.split_once(TEXT).ok_or_else(|| {
            ModelError::Template { message: format!("it leaves out what `{role}` says") }
        })?;
        Ok((before.to_owned(), after.to_owned()))
    }

    fn render(&self, messages: &[(&str, &str)], opens_reply: bool) -> Result<String, ModelError> {
        let message = |&(role, content): &(&str, &str)| context! { role, content };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise);
        environment
            .render_str(
                self.source,
                context! {
                    messages,
                    add_generation_prompt => opens_reply,
                    bos_token => self.bos,
                    eos_token => "",
                },
            )
            .map_err(|error| failed(&error))
    }
}

fn failed(error: &TemplateError) -> ModelError {
    ModelError::Template { message: error.to_string() }
}

/// What a longer prompt adds to a shorter one.
fn added<'a>(shorter: &str, longer: &'a str) -> Result<&'a str, ModelError> {
    longer.strip_prefix(shorter).ok_or_else(|| ModelError::Template {
        message: "what it writes for a message depends on the messages after it".to_owned(),
    })
}

fn raise(message: String) -> Result<Value, TemplateError> {
    Err(TemplateError::new(ErrorKind::InvalidOperation, message))
}

/// Methods of Python's strings that templates like to call.
fn method(
    _state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, TemplateError> {
    let unknown = || TemplateError::from(ErrorKind::UnknownMethod);
    let text = value.as_str().ok_or_else(unknown)?;
    let argument = arguments.first().and_then(Value::as_str);
    Ok(match (name, argument) {
        ("strip", None) => Value::from(text.trim()),
        ("lstrip", None) => Value::from(text.trim_start()),
        ("rstrip", None) => Value::from(text.trim_end()),
        ("upper", None) => Value::from(text.to_uppercase()),
        ("lower", None) => Value::from(text.to_lowercase()),
        ("startswith", Some(start)) => Value::from(text.starts_with(start)),
        ("endswith", Some(end)) => Value::from(text.ends_with(end)),
        _ => return Err(unknown()),
    })
}
