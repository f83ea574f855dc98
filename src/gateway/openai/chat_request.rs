//! From the body of a chat to what is asked of a cube.

use axum::http::HeaderMap;
use memcube_actors::{
    CubeHandle, ErrorKind, TenantContext,
    cube::{ChatRequest, ConverseRequest},
    environment::Environment,
    inference::Sampling,
};
use memcube_schemas::{
    ConversationId, CubeId, RequestId as IdempotencyKey,
    api::openai::{ChatCompletionBody, MemoryOptions},
    limits::{CHAT_STOP_BYTES_MAX, CHAT_STOPS_MAX, REPLY_TOKENS_DEFAULT, TOP_K_MAX},
};
use serde_json::{Map, Value};

use super::messages::{self, Said};
use crate::gateway::{
    Gateway, conversing,
    errors::Failure,
    http::{cube_id, idempotency_key},
};

/// The header that names a cube, for clients whose bodies cannot.
const CUBE_HEADER: &str = "x-memcube-cube";
const TEMPERATURE_MAX: f32 = 2.0;

/// Which cube is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This one, which exists.
    Cube(CubeId),
    /// That of a user, which is made at the first use.
    User(CubeId),
}

/// What a caller asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) whose: Whose,
    pub(crate) request: ConverseRequest,
    pub(crate) is_stream: bool,
    pub(crate) with_usage: bool,
}

impl Asked {
    pub(crate) fn of(
        body: ChatCompletionBody,
        headers: &HeaderMap,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        refuse_unsupported(&body)?;
        let whose = whose(&body, headers)?;
        let Said { preamble, turns, message } = messages::parse(&body.messages)?;
        let conversation = match &body.conversation {
            Some(name) => ConversationId::new(name.as_str())
                .map_err(|error| Failure::invalid(error.to_string()).about("conversation"))?,
            None => conversing::derived_conversation(&preamble, &turns, &message)?,
        };
        let MemoryOptions { recall, remember, top_k, token_budget } =
            body.memcube.clone().unwrap_or_default();
        let mut search = conversing::search_for(&turns, &message);
        search.token_budget = token_budget;
        search.top_k = top_k.unwrap_or(search.top_k);
        if search.top_k == 0 || search.top_k > TOP_K_MAX {
            let detail = format!("`memcube.top_k` must be between 1 and {TOP_K_MAX}");
            return Err(Failure::invalid(detail).about("memcube.top_k"));
        }
        let sampling = sampling(&body)?;
        let drawn = || conversing::seed(sampling, environment);
        let chat = ChatRequest {
            preamble,
            turns,
            recall: recall.then_some(search),
            sampling,
            seed: body.seed.map_or_else(drawn, i64::cast_unsigned),
            tokens_max: tokens_max(&body)?,
            stops: stops(body.stop.as_ref())?,
            extra: extra(&body),
            ..ChatRequest::new(conversation, "")
        };
        let chat = ChatRequest { message, ..chat };
        let request = idempotency_key(headers)?;
        let request: Option<IdempotencyKey> = request.filter(|_| remember);
        Ok(Self {
            whose,
            request: ConverseRequest { chat, remember, request },
            is_stream: body.stream.unwrap_or(false),
            with_usage: body.stream_options.is_some_and(|options| options.include_usage),
        })
    }

    /// The front door of the cube; that of a user is made if it is missing.
    pub(crate) async fn open(
        whose: &Whose,
        gateway: &Gateway,
        caller: &TenantContext,
    ) -> Result<CubeHandle, Failure> {
        match whose {
            Whose::Cube(cube) => Ok(gateway.node.cubes().cube(caller, cube.clone())),
            Whose::User(user) => Ok(gateway.node.cubes().ensure(caller, user.clone()).await?),
        }
    }
}

/// What went wrong with a cube, and what to do where it does not exist.
pub(crate) fn failed(error: memcube_actors::Error, cube: &CubeId) -> Failure {
    if error.kind() != ErrorKind::NotFound {
        return error.into();
    }
    let error = error.with_note(&format!(
        "make it with `POST /v1/cubes` and `{{\"id\": {}}}`, or send `user` in place of `cube`: \
         the cube of a user is made at the first use",
        Value::from(cube.as_str())
    ));
    Failure::from(error).about("cube")
}

fn whose(body: &ChatCompletionBody, headers: &HeaderMap) -> Result<Whose, Failure> {
    let named =
        |name: &str, param: &'static str| cube_id(name).map_err(|failure| failure.about(param));
    let in_header = match headers.get(CUBE_HEADER) {
        None => None,
        Some(value) => {
            let odd = |_| Failure::invalid(format!("`{CUBE_HEADER}` is not UTF-8"));
            Some(named(std::str::from_utf8(value.as_bytes()).map_err(odd)?, CUBE_HEADER)?)
        }
    };
    let in_body = body.cube.as_deref().map(|cube| named(cube, "cube")).transpose()?;
    match (in_body, in_header, body.user.as_deref()) {
        (Some(body), Some(header), _) if body != header => Err(Failure::invalid(format!(
            "`cube` is `{body}`, and `{CUBE_HEADER}` is `{header}`; send one of them"
        ))
        .about("cube")),
        (Some(cube), _, _) | (None, Some(cube), _) => Ok(Whose::Cube(cube)),
        (None, None, Some(user)) => Ok(Whose::User(named(user, "user")?)),
        (None, None, None) => Err(Failure::invalid(format!(
            "whose memories? send `user` with the name of the user, whose cube is made at the \
             first use, or `cube` (or the header `{CUBE_HEADER}`) with the id of a cube that exists"
        ))
        .about("user")),
    }
}

/// Refuses what would change the form of the reply; what only tunes it is ignored.
fn refuse_unsupported(body: &ChatCompletionBody) -> Result<(), Failure> {
    let is_given = |value: &Option<Value>| match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => true,
    };
    let has_audio = |value: &Value| value.as_array().is_none_or(|list| list.iter().any(is_no_text));
    let table = [
        ("n", body.n.is_some_and(|n| n != 1), "one reply is given; leave it out"),
        ("logprobs", body.logprobs == Some(true), "it is not supported; leave it out"),
        ("logit_bias", is_given(&body.logit_bias), "it is not supported; leave it out"),
        ("functions", is_given(&body.functions), "it is not supported; send `tools`"),
        (
            "modalities",
            body.modalities.as_ref().is_some_and(|value| !value.is_null() && has_audio(value)),
            "replies are text; leave it out",
        ),
    ];
    match table.into_iter().find(|(_, is_asked, _)| *is_asked) {
        Some((param, _, why)) => Err(Failure::invalid(format!("`{param}`: {why}")).about(param)),
        None => Ok(()),
    }
}

fn is_no_text(modality: &Value) -> bool {
    modality.as_str() != Some("text")
}

fn sampling(body: &ChatCompletionBody) -> Result<Sampling, Failure> {
    let temperature = body.temperature.unwrap_or(Sampling::GREEDY.temperature);
    if !(0.0..=TEMPERATURE_MAX).contains(&temperature) {
        let detail = format!("`temperature` must be between 0 and {TEMPERATURE_MAX}");
        return Err(Failure::invalid(detail).about("temperature"));
    }
    let top_p = body.top_p.unwrap_or(Sampling::GREEDY.top_p);
    if !(0.0..=1.0).contains(&top_p) {
        return Err(Failure::invalid("`top_p` must be between 0 and 1").about("top_p"));
    }
    // Nothing but the most likely token is a share of nothing.
    Ok(if top_p > 0.0 { Sampling { temperature, top_p } } else { Sampling::GREEDY })
}

fn tokens_max(body: &ChatCompletionBody) -> Result<usize, Failure> {
    let (param, given) = match body.max_completion_tokens {
        Some(tokens) => ("max_completion_tokens", Some(tokens)),
        None => ("max_tokens", body.max_tokens),
    };
    match given {
        Some(0) => Err(Failure::invalid(format!("`{param}` must be at least 1")).about(param)),
        // The window of the model has the last word.
        Some(tokens) => Ok(usize::try_from(tokens).unwrap_or(usize::MAX)),
        None => Ok(REPLY_TOKENS_DEFAULT),
    }
}

fn stops(stop: Option<&Value>) -> Result<Vec<String>, Failure> {
    let refuse = |why: &str| Err(Failure::invalid(format!("`stop` {why}")).about("stop"));
    let stops: Vec<String> = match stop {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => match texts.iter().map(Value::as_str).collect() {
            Some::<Vec<&str>>(texts) => texts.into_iter().map(str::to_owned).collect(),
            None => return refuse("must be a list of texts"),
        },
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
            return refuse("must be a text or a list of texts");
        }
    };
    if stops.len() > CHAT_STOPS_MAX {
        return refuse(&format!("has {} texts, the limit is {CHAT_STOPS_MAX}", stops.len()));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > CHAT_STOP_BYTES_MAX) {
        return refuse(&format!("must be of texts with 1 to {CHAT_STOP_BYTES_MAX} bytes"));
    }
    Ok(stops)
}

/// What a model elsewhere may understand.
fn extra(body: &ChatCompletionBody) -> Option<std::sync::Arc<str>> {
    let fields = [
        ("tools", &body.tools),
        ("tool_choice", &body.tool_choice),
        ("parallel_tool_calls", &body.parallel_tool_calls),
        ("response_format", &body.response_format),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| {
        let value = value.as_ref().filter(|value| !value.is_null())?;
        Some((name.to_owned(), value.clone()))
    });
    let given: Map<String, Value> = given.collect();
    (!given.is_empty()).then(|| Value::from(given).to_string().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(body: &Value, header: Option<&str>) -> Result<Asked, Failure> {
        let mut body = body.clone();
        if body.get("messages").is_none() {
            body["messages"] = json!([{"role": "user", "content": "hello"}]);
        }
        let body = serde_json::from_value(body).expect("a body");
        let mut headers = HeaderMap::new();
        if let Some(cube) = header {
            headers.insert(CUBE_HEADER, cube.parse().expect("a header"));
        }
        Asked::of(body, &headers, &Environment::scripted(1))
    }

    #[test]
    fn a_cube_goes_before_a_user() {
        let cube = |name: &str| Whose::Cube(CubeId::new(name).expect("valid"));
        let user = Whose::User(CubeId::new("ann").expect("valid"));
        for (body, header, whose) in [
            (json!({"user": "ann"}), None, user),
            (json!({"user": "ann", "cube": "c"}), None, cube("c")),
            (json!({"user": "ann"}), Some("h"), cube("h")),
            (json!({"cube": "c"}), Some("c"), cube("c")),
        ] {
            assert_eq!(asked(&body, header).expect("understood").whose, whose, "{body} {header:?}");
        }
        for (body, header, part) in [
            (json!({}), None, "send `user`"),
            (json!({"cube": "c"}), Some("h"), "send one of them"),
            (json!({"cube": ""}), None, "it is empty"),
            (json!({"user": "a\u{0}"}), None, "is not allowed"),
        ] {
            let failure = asked(&body, header).expect_err("refused");
            assert!(failure.detail.contains(part), "{body}: {}", failure.detail);
        }
    }

    #[test]
    fn what_tunes_a_reply_is_read() {
        let chat = |mut body: Value| {
            body["user"] = json!("ann");
            asked(&body, None).expect("understood").request.chat
        };
        let plain = chat(json!({}));
        assert_eq!((plain.sampling, plain.tokens_max), (Sampling::GREEDY, REPLY_TOKENS_DEFAULT));
        assert_eq!((plain.stops.len(), plain.seed, plain.extra.is_none()), (0, 0, true));
        let tuned = chat(json!({
            "temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["a", "b"], "seed": -1,
            "presence_penalty": 1, "frequency_penalty": 0, "store": true, "metadata": {"a": "b"},
            "tools": [], "response_format": null, "n": 1, "logprobs": false, "logit_bias": {},
        }));
        assert_eq!(tuned.sampling, Sampling { temperature: 0.5, top_p: 0.9 });
        assert_eq!((tuned.tokens_max, tuned.seed), (7, u64::MAX));
        assert_eq!(tuned.stops, ["a", "b"]);
        assert_eq!(tuned.extra.as_deref(), Some(r#"{"tools":[]}"#));
        let both = chat(json!({"max_tokens": 7, "max_completion_tokens": 9, "stop": "a"}));
        assert_eq!((both.tokens_max, both.stops), (9, vec!["a".to_owned()]));
        assert_eq!(chat(json!({"temperature": 1, "top_p": 0})).sampling, Sampling::GREEDY);
        assert_ne!(chat(json!({"temperature": 1})).seed, 0, "a seed is drawn");
        let told = chat(json!({"memcube": {"recall": false}}));
        assert!(told.recall.is_none() && plain.recall.is_some());
        let budget = chat(json!({"memcube": {"token_budget": 5, "top_k": 2}})).recall;
        let budget = budget.expect("memories are looked for");
        assert_eq!((budget.token_budget, budget.top_k), (Some(5), 2));
    }

    #[test]
    fn what_would_change_the_form_of_a_reply_is_refused() {
        for (mut body, param) in [
            (json!({"n": 2}), "n"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"logit_bias": {"50256": -100}}), "logit_bias"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"temperature": 2.1}), "temperature"),
            (json!({"temperature": -0.1}), "temperature"),
            (json!({"top_p": 1.1}), "top_p"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
            (json!({"stop": 3}), "stop"),
            (json!({"stop": ["a", 3]}), "stop"),
            (json!({"stop": [""]}), "stop"),
            (json!({"stop": vec!["a"; 17]}), "stop"),
            (json!({"memcube": {"top_k": 0}}), "memcube.top_k"),
            (json!({"conversation": ""}), "conversation"),
        ] {
            body["user"] = json!("ann");
            let failure = asked(&body, None).expect_err("refused");
            assert_eq!(failure.param.as_deref(), Some(param), "{body}: {}", failure.detail);
        }
    }
}
