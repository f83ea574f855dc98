//! The bodies of OpenAI's chat completions, as far as they are needed here. Pure.

use memcube_actors::inference::{
    FinishReason,
    remote::{RemoteRequest, RemoteTurn, RemoteUsage},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Words to stop at that OpenAI takes. The others are found here.
const STOPS_MAX: usize = 4;
/// Fields that are memcube's, whatever is passed through.
const OURS: [&str; 11] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
];

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Value>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<usize>,
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A request as bytes. What stands first in it is the same from turn to turn.
pub(super) fn body(
    model: &str,
    request: &RemoteRequest,
    says_completion_tokens: bool,
    counts: bool,
) -> serde_json::Result<Vec<u8>> {
    let RemoteRequest { messages, sampling, seed, tokens_max, stops, extra } = request;
    let mut extra: Map<String, Value> = match extra {
        Some(extra) => serde_json::from_str(extra)?,
        None => Map::new(),
    };
    extra.retain(|name, _| !OURS.contains(&name.as_str()));
    serde_json::to_vec(&Body {
        model,
        messages: messages.iter().map(message).collect::<serde_json::Result<_>>()?,
        stream: true,
        stream_options: counts.then(|| json!({ "include_usage": true })),
        max_tokens: (!says_completion_tokens).then_some(*tokens_max),
        max_completion_tokens: says_completion_tokens.then_some(*tokens_max),
        temperature: sampling.temperature,
        top_p: (sampling.top_p < 1.0).then_some(sampling.top_p),
        // Without chance there is nothing to seed. Servers take 63 bits.
        seed: (sampling.temperature > 0.0).then_some(*seed >> 1),
        stop: &stops[..stops.len().min(STOPS_MAX)],
        extra,
    })
}

/// One message: as its caller wrote it, with memories above what it says.
fn message(turn: &RemoteTurn) -> serde_json::Result<Value> {
    let Some(wire) = &turn.wire else {
        return Ok(json!({ "role": turn.role.as_str(), "content": turn.content() }));
    };
    let mut message: Map<String, Value> = serde_json::from_str(wire)?;
    if turn.memories.is_empty() {
        return Ok(Value::Object(message));
    }
    let memories = &turn.memories;
    let content = match message.remove("content") {
        Some(Value::String(text)) => json!(format!("{memories}\n{text}")),
        Some(Value::Array(mut parts)) => {
            parts.insert(0, json!({ "type": "text", "text": memories }));
            Value::Array(parts)
        }
        None | Some(_) => json!(memories),
    };
    message.insert("content".to_owned(), content);
    Ok(Value::Object(message))
}

/// A piece of a reply, or all of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Vec<Choice>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    /// What llama.cpp tells about its cache.
    #[serde(default)]
    timings: Option<LlamaTimings>,
    #[serde(default)]
    pub(super) error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Choice {
    #[serde(default, alias = "message")]
    pub(super) delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Delta {
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default, alias = "reasoning")]
    reasoning_content: Option<Value>,
    #[serde(default)]
    pub(super) tool_calls: Option<Vec<Value>>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
    #[serde(default)]
    prompt_tokens_details: Option<UsageDetails>,
    /// `DeepSeek`'s name for cached tokens.
    #[serde(default)]
    prompt_cache_hit_tokens: Option<usize>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
struct UsageDetails {
    #[serde(default)]
    cached_tokens: Option<usize>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
struct LlamaTimings {
    #[serde(default)]
    cache_n: Option<usize>,
}

impl Chunk {
    /// What the server counted, if it says so here.
    pub(super) fn counted(&self) -> Option<RemoteUsage> {
        let usage = self.usage.filter(|usage| usage.prompt_tokens > 0)?;
        let details = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let llama = self.timings.and_then(|timings| timings.cache_n);
        let cached = details.or(usage.prompt_cache_hit_tokens).or(llama);
        Some(RemoteUsage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: cached.unwrap_or(0),
            reply_tokens: usage.completion_tokens,
        })
    }
}

impl Choice {
    pub(super) fn reason(&self) -> Option<FinishReason> {
        match self.finish_reason.as_deref()? {
            "" => None,
            "length" | "max_tokens" => Some(FinishReason::Length),
            "tool_calls" | "function_call" => Some(FinishReason::ToolCalls),
            _ => Some(FinishReason::Stop),
        }
    }
}

impl Delta {
    /// More text; empty while the model thinks to itself, so that it does not seem silent.
    pub(super) fn text(&self) -> Option<String> {
        let text = match &self.content {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
            }
            None | Some(_) => String::new(),
        };
        let text = if text.is_empty() { self.refusal.clone().unwrap_or_default() } else { text };
        let thinks = self.reasoning_content.as_ref().is_some_and(|thought| !thought.is_null());
        (thinks || !text.is_empty()).then_some(text)
    }
}

/// Why a server refuses, in its words.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) code: Option<String>,
    pub(super) param: Option<String>,
}

/// Reads a refusal in any of the forms that servers give it.
pub(super) fn refusal(answer: &[u8]) -> Refusal {
    match serde_json::from_slice::<Value>(answer) {
        Ok(value) => refusal_in(value.get("error").unwrap_or(&value)),
        Err(_) => Refusal { message: String::from_utf8_lossy(answer).into(), ..Refusal::default() },
    }
}

/// The same, from inside of an answer.
pub(super) fn refusal_in(error: &Value) -> Refusal {
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let bare = error.as_str().map(str::to_owned);
    let message =
        bare.or_else(|| text("message")).or_else(|| error.get("detail").map(Value::to_string));
    let message = message.unwrap_or_else(|| error.to_string());
    Refusal { message, code: text("code"), param: text("param") }
}

/// The names of the models in a list of them.
pub(super) fn models(answer: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: List = serde_json::from_slice(answer)
        .map_err(|error| format!("its list of models cannot be read ({error})"))?;
    Ok(list.data.into_iter().map(|model| model.id).collect())
}
