//! What goes over the wire, and how servers that differ are read.

use axum::http::HeaderMap;
use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use memcube_actors::inference::{
    FinishReason, Sampling,
    remote::{RemoteFailure, RemotePart, RemoteTurn, RemoteUsage},
};
use memcube_schemas::conversation::Role;
use serde_json::{Value, json};

use super::*;

fn turn(role: Role, memories: &str, text: &str, wire: Option<&str>) -> RemoteTurn {
    let (memories, text) = (memories.to_owned(), text.to_owned());
    RemoteTurn { role, memories, text, wire: wire.map(Into::into) }
}

fn request(messages: Vec<RemoteTurn>) -> RemoteRequest {
    RemoteRequest {
        messages,
        sampling: Sampling::GREEDY,
        seed: 9,
        tokens_max: 50,
        stops: Vec::new(),
        extra: None,
    }
}

fn sent(request: &RemoteRequest) -> Value {
    let body = wire::body("m", request, false, true).expect("a body");
    serde_json::from_slice(&body).expect("JSON")
}

#[test]
fn messages_go_as_they_were_written_with_memories_above_them() {
    let parts = r#"{"role":"user","name":"ann","content":[{"type":"image_url","image_url":{}}]}"#;
    let call = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"a"}]}"#;
    let table = [
        (turn(Role::System, "", "be kind", None), json!({"role": "system", "content": "be kind"})),
        (turn(Role::User, "M\n", "hi", None), json!({"role": "user", "content": "M\n\nhi"})),
        (turn(Role::User, "M\n", "", None), json!({"role": "user", "content": "M\n"})),
        (
            turn(Role::User, "M\n", "x", Some(r#"{"role":"user","name":"ann","content":"hi"}"#)),
            json!({"role": "user", "name": "ann", "content": "M\n\nhi"}),
        ),
        (
            turn(Role::User, "M\n", "x", Some(parts)),
            json!({"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "M\n"}, {"type": "image_url", "image_url": {}}]}),
        ),
        (
            turn(Role::Assistant, "", "", Some(call)),
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]}),
        ),
    ];
    for (turn, expected) in table {
        assert_eq!(sent(&request(vec![turn.clone()]))["messages"], json!([expected]), "{turn:?}");
    }
    assert!(
        wire::body("m", &request(vec![turn(Role::User, "", "", Some("{"))]), false, true).is_err()
    );
}

#[test]
fn what_is_passed_through_never_takes_the_place_of_what_is_asked() {
    let extra = r#"{"tools": [{}], "model": "other", "stream": false, "n": 4, "max_tokens": 9}"#;
    let stops: Vec<String> = (0..6).map(|n| format!("stop{n}")).collect();
    let sampling = Sampling { temperature: 0.7, top_p: 0.9 };
    let asked = RemoteRequest { extra: Some(extra.into()), stops, sampling, ..request(Vec::new()) };
    let expected = json!({
        "model": "m", "messages": [], "stream": true, "stream_options": {"include_usage": true},
        "max_tokens": 50, "temperature": 0.7, "top_p": 0.9, "seed": 4,
        "stop": ["stop0", "stop1", "stop2", "stop3"], "tools": [{}],
    });
    // Compared as text: 0.7 is to be 0.7, whatever its bits are.
    let text: Value = serde_json::from_str(&sent(&asked).to_string()).expect("JSON");
    assert_eq!(text, expected);
    let body = wire::body("m", &asked, true, false).expect("a body");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["max_completion_tokens"], 50);
    assert!(body.get("max_tokens").is_none() && body.get("stream_options").is_none());
}

async fn heard(pieces: Vec<Bytes>) -> Vec<std::result::Result<RemotePart, RemoteFailure>> {
    let bytes = streams::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let parts = stream::parts("http://there", bytes);
    parts.map(|part| part.map_err(|error| error.failure)).collect().await
}

fn said(text: &str) -> std::result::Result<RemotePart, RemoteFailure> {
    Ok(RemotePart::Text(text.to_owned()))
}

fn ended(
    reason: FinishReason,
    usage: Option<[usize; 3]>,
) -> std::result::Result<RemotePart, RemoteFailure> {
    let usage = usage.map(|[prompt_tokens, cached_tokens, reply_tokens]| RemoteUsage {
        prompt_tokens,
        cached_tokens,
        reply_tokens,
    });
    Ok(RemotePart::Finished { reason, usage })
}

#[tokio::test]
async fn streams_of_all_kinds_of_servers_are_read() {
    let call = r#"[{"index":0,"id":"a","function":{"name":"clock"}}]"#;
    let calls = serde_json::from_str::<Value>(call).expect("JSON").to_string();
    let table: Vec<(String, Vec<_>)> = vec![
        (
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"h\u{e4}\"}}]}\r\n\r\n\
             : still there\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\
             \"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\ndata: [DONE]\n\n"
                .to_owned(),
            vec![said("h\u{e4}"), ended(FinishReason::Stop, Some([9, 7, 2]))],
        ),
        (
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"length\"}],\
             \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\
             \"prompt_cache_hit_tokens\":2}}\n\n"
                .to_owned(),
            vec![said(""), said("a"), ended(FinishReason::Length, Some([5, 2, 1]))],
        ),
        (
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}],\
             \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1},\
             \"timings\":{\"cache_n\":3}}\n\n"
                .to_owned(),
            vec![said("a"), ended(FinishReason::Stop, Some([5, 3, 1]))],
        ),
        (
            format!(
                "data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":{call}}}}}]}}\n\n\
                 data: {{\"choices\":[{{\"delta\":{{}},\"finish_reason\":\"tool_calls\"}}]}}\n\n\
                 data: [DONE]\n\n"
            ),
            vec![Ok(RemotePart::ToolCalls(calls.into())), ended(FinishReason::ToolCalls, None)],
        ),
        (
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_owned(),
            vec![said("a"), Err(RemoteFailure::Cut)],
        ),
        (
            "data: {\"error\":{\"message\":\"out of memory\"}}\n\n".to_owned(),
            vec![Err(RemoteFailure::Failed)],
        ),
        ("data: <html>\n\n".to_owned(), vec![Err(RemoteFailure::Garbled)]),
        (format!("data: {}", "x".repeat(3 << 20)), vec![Err(RemoteFailure::Endless)]),
    ];
    for (row, (text, expected)) in table.into_iter().enumerate() {
        // In one piece, and byte by byte where that is not too much.
        let sizes: &[usize] = if text.len() > 10_000 { &[65_536] } else { &[100_000, 1, 7] };
        for size in sizes {
            let pieces = text.as_bytes().chunks(*size).map(Bytes::copy_from_slice).collect();
            assert_eq!(heard(pieces).await, expected, "row {row} in pieces of {size}");
        }
    }
}

#[tokio::test]
async fn an_answer_in_one_piece_is_a_reply_too() {
    let answer = json!({
        "choices": [{"message": {"content": "hi", "tool_calls": [{"id": "a"}]},
            "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    });
    let parts = stream::whole("http://there", answer.to_string().as_bytes()).expect("a reply");
    let parts: Vec<_> = parts.map(|part| part.expect("whole")).collect().await;
    let calls = json!([{"id": "a", "index": 0}]).to_string();
    let usage = Some(RemoteUsage { prompt_tokens: 3, cached_tokens: 0, reply_tokens: 1 });
    assert_eq!(
        parts,
        [
            RemotePart::Text("hi".to_owned()),
            RemotePart::ToolCalls(calls.into()),
            RemotePart::Finished { reason: FinishReason::ToolCalls, usage },
        ]
    );
    for (answer, failure) in [
        ("{}", RemoteFailure::Garbled),
        ("[", RemoteFailure::Garbled),
        (r#"{"error": "no"}"#, RemoteFailure::Failed),
    ] {
        let error = stream::whole("http://there", answer.as_bytes()).err().expect("no reply");
        assert_eq!(error.failure, failure, "{answer}");
    }
}

#[test]
fn refusals_are_read_in_every_form() {
    let table = [
        (r#"{"error":{"message":"no","code":"c","param":"p"}}"#, "no", Some("c"), Some("p")),
        (r#"{"error":"no"}"#, "no", None, None),
        (r#"{"message":"no","code":404}"#, "no", None, None),
        (r#"{"detail":[{"loc":["body"]}]}"#, r#"[{"loc":["body"]}]"#, None, None),
        ("no", "no", None, None),
        ("", "", None, None),
    ];
    for (answer, message, code, param) in table {
        let refusal = wire::refusal(answer.as_bytes());
        assert_eq!(refusal.message, message, "{answer}");
        assert_eq!((refusal.code.as_deref(), refusal.param.as_deref()), (code, param), "{answer}");
    }
}

#[test]
fn times_to_wait_are_read_in_every_form() {
    let table = [
        ("retry-after", "2", Some(2_000)),
        ("retry-after", "0.5", Some(500)),
        ("retry-after-ms", "1234.5", Some(1_235)),
        ("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT", Some(0)),
        ("retry-after", "-1", None),
        ("retry-after", "soon", None),
        ("retry-after", "1e30", Some(86_400_000)),
    ];
    for (name, value, expected) in table {
        let headers: HeaderMap = [(name.parse().expect("a name"), value.parse().expect("a value"))]
            .into_iter()
            .collect();
        assert_eq!(failures::retry_after_ms(&headers), expected, "{name}: {value}");
    }
    assert_eq!(failures::retry_after_ms(&HeaderMap::new()), None);
}

#[test]
fn addresses_that_cannot_work_are_refused_with_the_reason() {
    let table = [
        ("http://127.0.0.1:8000/v1", None),
        ("https://api.example.com/v1", None),
        ("api.example.com/v1", Some("`http://`")),
        ("ftp://there", Some("`http://`")),
        ("http://", Some("no address")),
        ("http://me:secret@there/v1", Some("`inference.api-key`")),
        ("http://there/v1?key=1", Some("`?`")),
        ("http://there/v1/chat/completions", Some("before `/chat/completions`")),
    ];
    for (url, expected) in table {
        let mistake = mistake_of_url(url);
        let fits = match (mistake, expected) {
            (Some(mistake), Some(expected)) => mistake.contains(expected),
            (mistake, expected) => mistake.is_none() && expected.is_none(),
        };
        assert!(fits, "{url}: {mistake:?}");
    }
}
