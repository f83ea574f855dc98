//! A server that speaks OpenAI's chat completions as a script says: well, badly, or not at all.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Response, header},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What it does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Says some words, and what it counted.
    Says,
    /// Answers with a status, perhaps with a time to wait.
    Refuses(u16, Option<&'static str>, &'static str),
    /// Accepts, and answers nothing.
    Ignores,
    /// Says so many words, and then nothing any more.
    StallsAfter(usize),
    /// Says so many words, and closes the connection.
    CutsAfter(usize),
    /// Closes the stream in order after so many words, without an end.
    LeavesAfter(usize),
    /// Answers with these bytes under a content type.
    Raw(&'static str, &'static str),
    /// Says words without an end.
    TalksForEver,
    /// Sends an event that does not end.
    SendsForEver,
    /// Calls a tool.
    CallsTool,
}

#[derive(Default)]
struct Seen {
    script: Mutex<VecDeque<Does>>,
    asked: Mutex<Vec<(HeaderMap, Value)>>,
    open: AtomicUsize,
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct ModelServer {
    pub(crate) url: String,
    seen: Arc<Seen>,
}

/// Counts an answer as open until its connection is closed.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ModelServer {
    pub(crate) async fn start(script: impl IntoIterator<Item = Does>) -> Self {
        let seen = Arc::new(Seen::default());
        seen.script.lock().expect("whole").extend(script);
        let models = || async { axum::Json(json!({"data": [{"id": "m"}, {"id": "other"}]})) };
        let routes = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&seen));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url: format!("http://{address}/v1"), seen }
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<(HeaderMap, Value)> {
        self.seen.asked.lock().expect("whole").clone()
    }

    /// The messages of every request so far, each list as one text.
    pub(crate) fn prompts(&self) -> Vec<String> {
        let write = |body: &Value| -> String {
            let messages = body["messages"].as_array().expect("a list").iter();
            let write = |message: &Value| format!("<{}>{}", message["role"], text(message));
            messages.map(write).collect()
        };
        self.asked().iter().map(|(_, body)| write(body)).collect()
    }

    /// Answers that are not over.
    pub(crate) fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }
}

fn text(message: &Value) -> String {
    message["content"].as_str().map_or_else(|| message.to_string(), str::to_owned)
}

async fn answer(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    seen.asked.lock().expect("whole").push((headers, body.clone()));
    let does = seen.script.lock().expect("whole").pop_front().unwrap_or(Does::Says);
    let open = Open::new(&seen);
    let words = |count: usize| -> Vec<String> { (0..count).map(word).collect() };
    match does {
        Does::Says => events(open, [words(4), ending(&body)].concat(), End::Closed),
        Does::Refuses(status, retry_after, body) => {
            let mut response = Response::builder().status(status);
            if let Some(retry_after) = retry_after {
                response = response.header(header::RETRY_AFTER, retry_after);
            }
            response.body(Body::from(body)).expect("a response")
        }
        Does::Ignores => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            drop(open);
            Response::new(Body::empty())
        }
        Does::StallsAfter(count) => events(open, words(count), End::Never),
        Does::CutsAfter(count) => events(open, words(count), End::Cut),
        Does::LeavesAfter(count) => events(open, words(count), End::Closed),
        Does::Raw(kind, body) => {
            let response = Response::builder().header(header::CONTENT_TYPE, kind);
            response.body(Body::from(body)).expect("a response")
        }
        Does::TalksForEver => endless(open, piece(&json!({"content": "x".repeat(20_000)}), None)),
        Does::SendsForEver => endless(open, "x".repeat(20_000)),
        Does::CallsTool => {
            let call = json!([{"index": 0, "id": "a", "function": {"name": "clock"}}]);
            let call = piece(&json!({ "tool_calls": call }), Some("tool_calls"));
            events(open, vec![call, "data: [DONE]\n\n".to_owned()], End::Closed)
        }
    }
}

enum End {
    Closed,
    Cut,
    Never,
}

fn word(at: usize) -> String {
    piece(&json!({ "content": format!("word{at} ") }), None)
}

fn piece(delta: &Value, finish_reason: Option<&str>) -> String {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    format!("data: {}\n\n", json!({"object": "chat.completion.chunk", "choices": [choice]}))
}

/// The end of a reply, with four bytes counted as a token, and none as known.
fn ending(body: &Value) -> Vec<String> {
    let tokens = body["messages"].to_string().len() / 4;
    let usage = json!({"prompt_tokens": tokens, "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": tokens / 2}});
    vec![
        piece(&json!({}), Some("stop")),
        format!("data: {}\n\n", json!({"choices": [], "usage": usage})),
        "data: [DONE]\n\n".to_owned(),
    ]
}

fn events(open: Open, events: Vec<String>, end: End) -> Response<Body> {
    let said = stream::iter(events.into_iter().map(Ok::<_, std::io::Error>));
    let said = match end {
        End::Closed => said.boxed(),
        // What was said has left by then: an error at once would take it along.
        End::Cut => {
            let cut = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("cut"))
            });
            said.chain(cut).boxed()
        }
        End::Never => said.chain(stream::pending()).boxed(),
    };
    let said = said.map(move |event| {
        let _ = &open;
        event
    });
    stream_of(Body::from_stream(said))
}

fn endless(open: Open, event: String) -> Response<Body> {
    let said = stream::repeat_with(move || {
        let _ = &open;
        Ok::<_, Infallible>(event.clone())
    });
    stream_of(Body::from_stream(said))
}

fn stream_of(body: Body) -> Response<Body> {
    let response = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
    response.body(body).expect("a response")
}
