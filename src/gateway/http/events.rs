//! `/v1/events`: what happens to the caller's cubes, as a stream (server-sent events) or by pages.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use memcube_actors::{
    TenantContext,
    feed::{FeedBatch, FeedHandle, FeedRequest, FeedScope, FeedStart, Subscription},
};
use memcube_schemas::{
    CubeId, Stamp,
    api::v1::{EventsResponse, Problem, StreamClosed},
    limits::{FEED_PAGE_RECORDS_DEFAULT, FEED_PAGE_RECORDS_MAX},
};

use super::{cube_id, respond, views};
use crate::gateway::{
    Gateway,
    errors::Failure,
    request::{Caller, RequestId},
};

/// With which browsers and other clients resume by themselves (WHATWG HTML, section 9.2).
const LAST_EVENT_ID: &str = "last-event-id";
/// How often a comment keeps an idle connection from being taken for dead.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How often a stream whose events are all filtered out tells how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// How long clients that reconnect by themselves wait first.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Pages that are looked through for a filter before an answer says how far it has come.
const PAGES_PER_ANSWER_MAX: usize = 16;

pub(crate) fn routes() -> Router<Gateway> {
    Router::new().route("/v1/events", get(events))
}

/// What a caller asks.
#[derive(Debug, PartialEq)]
struct Asked {
    scope: FeedScope,
    start: FeedStart,
    limit: usize,
    /// Whether one page is wanted, now, and no stream.
    is_page: bool,
}

/// Tells what commits did to cubes, in their order: as a stream, or by pages with `wait=0` or
/// `Accept: application/json`.
///
/// A stream begins with an event `progress`, which names the place where it begins; such events
/// come
/// now and then, when all news are of other cubes. A stream that ends says why in an event
/// `closed`.
/// Whoever resumes with the `id` that came last, by `Last-Event-ID` or `after`, misses nothing and
/// is told nothing twice, also across restarts of the server.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(
        ("cube" = Option<Vec<String>>, Query,
            description = "only events of this cube; may be given several times"),
        ("after" = Option<String>, Query,
            description = "the cursor to resume after: an event's `id`, or `cursor` of a page"),
        ("from" = Option<String>, Query,
            description = "without a cursor: `start` for the oldest event that is kept, `now` (if \
                           left out) for what comes"),
        ("wait" = Option<String>, Query, description = "`0` for one page of JSON"),
        ("limit" = Option<usize>, Query,
            description = "events in a page; 200 if left out, 1,000 at the most"),
        ("last-event-id" = Option<String>, Header,
            description = "the cursor to resume after; goes before `after`"),
    ),
    responses(
        (status = 200, content(
            (String = "text/event-stream"), (EventsResponse = "application/json"))),
        (status = 410, body = Problem, description = "events after the cursor were trimmed"),
        (status = 422, body = Problem),
        (status = 429, body = Problem, description = "too many streams"),
        (status = 503, body = Problem)))]
pub(crate) async fn events(
    State(gateway): State<Gateway>,
    Caller(caller): Caller,
    id: RequestId,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response<Body> {
    let feed = gateway.node.cubes().feed();
    let asked = query
        .map_err(|error| Failure::invalid(error.body_text()))
        .and_then(|Query(pairs)| asked(pairs, &headers));
    let asked = match asked {
        Ok(asked) => asked,
        Err(failure) => return failure.into_problem(&id),
    };
    if asked.is_page {
        return respond(&id, StatusCode::OK, page(feed, &caller, asked).await);
    }
    let Asked { scope, start, limit, .. } = asked;
    let request = FeedRequest { scope, start, page_records: limit };
    match feed.subscribe(&caller, request).await {
        Ok(subscription) => streamed(subscription, &gateway),
        Err(error) => Failure::from(error).into_problem(&id),
    }
}

fn asked(pairs: Vec<(String, String)>, headers: &HeaderMap) -> Result<Asked, Failure> {
    let (mut cubes, mut after, mut from, mut limit) = (Vec::<CubeId>::new(), None, None, None);
    let mut is_page = wants_json(headers);
    for (key, value) in pairs {
        match key.as_str() {
            "cube" => cubes.push(cube_id(&value)?),
            "after" => after = Some(cursor(&value)?),
            "from" => from = Some(start(&value)?),
            "wait" if value == "0" => is_page = true,
            "wait" => return Err(Failure::invalid("`wait` is `0`, for one page, or left out")),
            "limit" => limit = Some(count(&value)?),
            _ => {
                let detail = format!(
                    "there is no parameter `{key}`; there are `cube`, `after`, `from`, `wait` and \
                     `limit`"
                );
                return Err(Failure::invalid(detail));
            }
        }
    }
    // A client that reconnects sends its old query together with the newer header.
    if let Some(last) = last_event_id(headers)? {
        after = Some(last);
    }
    let start = after.map(FeedStart::After).or(from).unwrap_or_default();
    let limit = limit.unwrap_or(FEED_PAGE_RECORDS_DEFAULT);
    Ok(Asked { scope: FeedScope::of_cubes(cubes)?, start, limit, is_page })
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accepted.is_some_and(|accepted| {
        accepted.contains("application/json") && !accepted.contains("text/event-stream")
    })
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Stamp>, Failure> {
    let Some(header) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    match header.to_str().map(str::trim) {
        // What a client sends that has seen no event.
        Ok("") => Ok(None),
        Ok(text) => cursor(text).map(Some),
        Err(_) => cursor("?").map(Some),
    }
}

fn cursor(text: &str) -> Result<Stamp, Failure> {
    text.parse().map_err(|_| {
        Failure::invalid(format!(
            "`{text}` is no cursor; pass the `id` of the last event or the `cursor` of the last \
             page as it was given, or `from=start` to begin with the oldest event"
        ))
    })
}

fn start(text: &str) -> Result<FeedStart, Failure> {
    match text {
        "start" => Ok(FeedStart::Oldest),
        "now" => Ok(FeedStart::Now),
        _ => Err(Failure::invalid(format!("`from` is `start` or `now`, not `{text}`"))),
    }
}

fn count(text: &str) -> Result<usize, Failure> {
    let count = text.parse().ok().filter(|count| (1..=FEED_PAGE_RECORDS_MAX).contains(count));
    count.ok_or_else(|| {
        Failure::invalid(format!("`limit` must be between 1 and {FEED_PAGE_RECORDS_MAX}"))
    })
}

async fn page(
    feed: &FeedHandle,
    caller: &TenantContext,
    asked: Asked,
) -> Result<EventsResponse, Failure> {
    let mut after = match asked.start {
        FeedStart::Now => Some(feed.newest(caller).await?),
        FeedStart::Oldest => None,
        FeedStart::After(stamp) => Some(stamp),
    };
    let mut pages = 0;
    loop {
        pages += 1;
        let page = feed.page(caller, &asked.scope, after, asked.limit).await?;
        // A page of other cubes' events is no answer, unless it takes too long to find one.
        if page.more && page.events.is_empty() && pages < PAGES_PER_ANSWER_MAX {
            after = Some(page.cursor);
            continue;
        }
        return Ok(EventsResponse {
            events: page.events.into_iter().map(views::event).collect(),
            cursor: page.cursor.to_string(),
            more: page.more,
        });
    }
}

fn streamed(subscription: Subscription, gateway: &Gateway) -> Response<Body> {
    let mut stopping = gateway.stopping.clone();
    let stopped = async move {
        // A sender that is gone means the same as one that says stop.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let events = written(subscription).take_until(Box::pin(stopped));
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_EVERY).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Proxies that collect an answer before they pass it on would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A stream on its way to a client.
struct Writing {
    subscription: Subscription,
    waiting: VecDeque<Event>,
    /// When the client was told a cursor last.
    told: Option<Instant>,
    is_over: bool,
}

fn written(subscription: Subscription) -> impl Stream<Item = Result<Event, Infallible>> {
    let writing = Writing { subscription, waiting: VecDeque::new(), told: None, is_over: false };
    stream::unfold(writing, |mut writing| async move {
        let event = writing.next().await?;
        Some((Ok(event), writing))
    })
}

impl Writing {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.subscription.next().await {
                Ok(batch) => self.write(batch),
                Err(error) => {
                    self.is_over = true;
                    let Failure { code, detail, .. } = error.into();
                    let closed = StreamClosed { code: code.to_owned(), detail };
                    self.waiting.extend(event("closed", None, &closed));
                }
            }
        }
    }

    fn write(&mut self, FeedBatch { events, cursor }: FeedBatch) {
        let is_due = self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY);
        if self.told.is_none() {
            self.waiting.push_back(Event::default().retry(RECONNECT_AFTER));
        }
        if events.is_empty() && !is_due {
            return;
        }
        let is_quiet = events.is_empty();
        for told in events {
            let body = views::event(told);
            self.waiting.extend(event(body.event.as_str(), Some(&body.id), &body));
        }
        if is_quiet || self.told.is_none() {
            let cursor = cursor.to_string();
            let progress = serde_json::json!({ "cursor": cursor });
            self.waiting.extend(event("progress", Some(&cursor), &progress));
        }
        self.told = Some(Instant::now());
    }
}

/// An event on the wire. Bodies of ours always have a JSON form.
fn event(name: &str, id: Option<&str>, body: &impl serde::Serialize) -> Option<Event> {
    let event = Event::default().event(name);
    let event = id.map_or_else(|| event.clone(), |id| event.clone().id(id));
    event.json_data(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "0000000000000007ffffffff";

    fn read(query: &str, sent: &[(&'static str, &'static str)]) -> Result<Asked, String> {
        let pairs: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        asked(pairs, &headers).map_err(|failure| failure.detail)
    }

    #[test]
    fn a_header_goes_before_a_cursor_and_a_cursor_before_a_start() {
        let after = |text: &str| FeedStart::After(text.parse().expect("a cursor"));
        let newer = "0000000000000009ffffffff";
        let both = format!("after={CURSOR}&from=start");
        for (query, sent, start) in [
            ("", vec![], FeedStart::Now),
            ("from=now", vec![], FeedStart::Now),
            ("from=start", vec![], FeedStart::Oldest),
            (both.as_str(), vec![], after(CURSOR)),
            (both.as_str(), vec![("last-event-id", newer)], after(newer)),
            ("from=start", vec![("last-event-id", "")], FeedStart::Oldest),
        ] {
            let asked = read(query, &sent).expect("understood");
            assert_eq!(asked.start, start, "{query} {sent:?}");
        }
    }

    #[test]
    fn a_page_is_asked_for_in_two_ways() {
        for (query, accept, is_page) in [
            ("", "*/*", false),
            ("", "text/event-stream", false),
            ("", "application/json", true),
            ("", "text/event-stream, application/json", false),
            ("wait=0", "text/event-stream", true),
        ] {
            let asked = read(query, &[("accept", accept)]).expect("understood");
            assert_eq!(asked.is_page, is_page, "{query} {accept}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (query, why) in [
            ("after=7", "is no cursor"),
            ("after=xxxxxxxxxxxxxxxxxxxxxxxx", "is no cursor"),
            ("from=yesterday", "`start` or `now`"),
            ("wait=5", "`wait` is `0`"),
            ("limit=0", "between 1 and 1000"),
            ("limit=many", "between 1 and 1000"),
            ("cubes=ann", "there is no parameter `cubes`"),
            ("cube=", "invalid cube id"),
        ] {
            let detail = read(query, &[]).expect_err(query);
            assert!(detail.contains(why), "{query}: {detail}");
        }
        let detail = read("", &[("last-event-id", "17")]).expect_err("no cursor");
        assert!(detail.contains("`17` is no cursor"), "{detail}");
    }
}
