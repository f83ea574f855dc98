//! A reply of a chat as it comes: server-sent events in OpenAI's form.

use std::collections::VecDeque;

use axum::{body::Body, http::Response, response::sse::Event};
use futures_util::stream;
use memcube_actors::cube::{ChatOpening, FinishedTurn, TurnEvent};
use memcube_schemas::api::openai::{ChatChoice, ChatCompletion, DeltaBody};
use serde::Serialize;

use super::chat::{Begun, ending, reason, usage};
use crate::gateway::{
    conversing::{ended, streamed},
    errors::Failure,
    request::RequestId,
};

/// What follows the last piece.
const DONE: &str = "[DONE]";

/// Answers with the pieces of a reply. Whoever drops the answer stops the model.
pub(crate) fn respond(begun: Begun, id: RequestId) -> Response<Body> {
    streamed(stream::unfold(Writing::new(begun, id), |mut writing| async move {
        let event = writing.next().await?;
        Some((event, writing))
    }))
}

/// A reply on its way to a client.
struct Writing {
    begun: Begun,
    id: RequestId,
    opening: ChatOpening,
    waiting: VecDeque<Event>,
    is_over: bool,
}

impl Writing {
    fn new(begun: Begun, id: RequestId) -> Self {
        let opening = begun.replying.opening().clone();
        let mut writing = Self { begun, id, opening, waiting: VecDeque::new(), is_over: false };
        let role = Some("assistant".to_owned());
        let delta = DeltaBody { role, content: Some(String::new()), tool_calls: None };
        let memcube = Some(writing.begun.head.opening(&writing.opening));
        let first = ChatCompletion { memcube, ..writing.piece(delta, None) };
        writing.write(&first);
        writing
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.begun.replying.next().await {
                Some(Ok(TurnEvent::Text(text))) => {
                    let delta = DeltaBody { content: Some(text), ..DeltaBody::default() };
                    self.write(&self.piece(delta, None));
                }
                Some(Ok(TurnEvent::ToolCalls(calls))) => {
                    let tool_calls = serde_json::from_str(&calls).ok();
                    let delta = DeltaBody { tool_calls, ..DeltaBody::default() };
                    self.write(&self.piece(delta, None));
                }
                Some(Ok(TurnEvent::Finished(finished))) => self.end(&finished),
                Some(Err(failure)) => self.fail(failure),
                None => self.fail(ended()),
            }
        }
    }

    fn end(&mut self, finished: &FinishedTurn) {
        self.is_over = true;
        let memcube = Some(ending(&self.opening, finished));
        let last = self.piece(DeltaBody::default(), Some(reason(finished.reason)));
        self.write(&ChatCompletion { memcube, ..last });
        if self.begun.with_usage {
            let usage = Some(usage(&self.opening, finished));
            self.write(&ChatCompletion { usage, ..self.begun.head.piece(Vec::new()) });
        }
        self.waiting.push_back(Event::default().data(DONE));
    }

    /// Its clients take a piece with `error` for the end.
    fn fail(&mut self, failure: Failure) {
        self.is_over = true;
        self.write(&failure.on_openai_wire().openai_problem(&self.id));
    }

    fn piece(&self, delta: DeltaBody, finish_reason: Option<&str>) -> ChatCompletion {
        self.begun.head.piece(vec![ChatChoice {
            index: 0,
            message: None,
            delta: Some(delta),
            finish_reason: finish_reason.map(str::to_owned),
            logprobs: None,
        }])
    }

    /// Bodies of ours always have a JSON form.
    fn write(&mut self, body: &impl Serialize) {
        self.waiting.extend(Event::default().json_data(body));
    }
}
