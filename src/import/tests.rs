use std::io::Write;

use super::*;

/// Imports a text and shows each conversation as `cube | conversation` and its messages.
fn import(text: &[u8], format: Option<Format>) -> Result<(Format, Vec<String>), ImportError> {
    let mut file = tempfile::NamedTempFile::new().map_err(ImportError::Io)?;
    file.write_all(text).map_err(ImportError::Io)?;
    let mut import = open(file.path(), format)?;
    let mut lines = Vec::new();
    for conversation in import.by_ref() {
        let conversation = conversation?;
        lines.push(format!("{} | {}", conversation.cube, conversation.conversation));
        for message in conversation.messages {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            lines.push(format!(
                "{} {} @{} #{}: {}",
                message.role.as_str(),
                or_dash(message.speaker),
                or_dash(message.chat_time),
                or_dash(message.message_id),
                message.content
            ));
        }
    }
    assert_eq!(import.progress().bytes_read, text.len() as u64);
    assert!(import.next().is_none(), "the end stays the end");
    Ok((import.format(), lines))
}

#[track_caller]
fn check(text: &str, format: Format, want: &[&str]) {
    let (found, lines) = import(text.as_bytes(), None).unwrap();
    assert_eq!(found, format);
    assert_eq!(lines, want);
    let with_mark = format!("\u{feff}{text}");
    assert_eq!(import(with_mark.as_bytes(), Some(format)).unwrap().1, want);
}

#[track_caller]
fn check_error(text: impl AsRef<[u8]>, format: Option<Format>, want: &str) {
    let error = import(text.as_ref(), format).unwrap_err();
    assert_eq!(error.to_string(), want);
}

const MEMEVAL: &str = r#"{"t":"conv","v":1,"id":"garden/1","speakers":["Vera","Tom"]}
{"t":"turn","id":"D1:1","s":1,"i":1,"ts":"2023-05-08T13:56:00","speaker":"Vera","text":"The roses bloom.","caption":"a red rose"}

{"t":"turn","id":"D1:2","s":1,"i":2,"ts":"2023-05-08T13:56:00","speaker":"Tom","text":"Lovely!"}
{"t":"turn","id":"D2:1","s":2,"i":1,"ts":"","speaker":"assistant","text":"Good morning."}
{"t":"q","id":"garden/1#0","question":"What blooms?"}
{"t":"something-new"}
"#;

#[test]
fn memeval_files() {
    let want = [
        "garden/1 | session-1 of garden/1",
        "user Vera @2023-05-08T13:56:00 #D1:1: The roses bloom. [picture: a red rose]",
        "user Tom @2023-05-08T13:56:00 #D1:2: Lovely!",
        "garden/1 | session-2 of garden/1",
        "assistant - @- #D2:1: Good morning.",
    ];
    check(MEMEVAL, Format::Memeval, &want);
}

#[test]
fn locomo_files() {
    let text = r#"[
  {"sample_id": "conv-1", "qa": [{"question": "x [ { \" ] }"}],
   "conversation": {
     "speaker_a": "Vera", "speaker_b": "Tom",
     "session_10_date_time": "9:00 am on 1 June, 2023",
     "session_10": [{"speaker": "Tom", "dia_id": "D10:1", "text": "Hello again"}],
     "session_2_date_time": "1:56 pm on 8 May, 2023",
     "session_2": [{"speaker": "Vera", "dia_id": "D2:1", "text": "Look!", "blip_caption": "a lake"}],
     "session_3_date_time": "never", "session_4": []}},
  {"sample_id": 7, "conversation": {"session_1": [{"speaker": "Tom", "text": "Hi"}]}}
]
"#;
    let want = [
        "locomo/conv-1 | session-2 of locomo/conv-1",
        "user Vera @1:56 pm on 8 May, 2023 #D2:1: Look! [picture: a lake]",
        "locomo/conv-1 | session-10 of locomo/conv-1",
        "user Tom @9:00 am on 1 June, 2023 #D10:1: Hello again",
        "locomo/7 | session-1 of locomo/7",
        "user Tom @- #-: Hi",
    ];
    check(text, Format::Locomo, &want);
}

#[test]
fn memos_files() {
    let text = r#"{"user_id":"u1","messages":"plain words"}
{"user_id":"u1","mem_cube_id":"c1","conversation_id":"s1","messages":[{"role":"user","content":"Vera: Hi","chat_time":"2023-05-08T13:56:00+00:00"},{"role":"assistant","content":[{"type":"text","text":"Hello"},{"type":"image_url","image_url":{"url":"x"}},{"type":"text","text":"there"}],"message_id":5}]}
{"user_id":"u1","writable_cube_ids":["c2","c3"],"session_id":"s2","messages":[{"type":"text","text":"a"},{"type":"file","file":{"file_data":"some words"}},{"type":"file","file":{"file_data":"https://example.org/a b"}}]}
{"user_id":7,"messages":[{"role":"user","content":null}]}
{"memory_content":"old style","user_id":7}
{"user_id":"u1","messages":[{"role":"tool","name":"clock","content":"12:00"},{"type":"tool_description","content":"x"}]}
"#;
    let want = [
        "u1 | default_session",
        "user - @- #-: plain words",
        "c1 | s1",
        "user - @2023-05-08T13:56:00+00:00 #-: Vera: Hi",
        "assistant - @- #5: Hello\nthere",
        "c2 | s2",
        "user - @- #-: a\nsome words",
        "7 | default_session",
        "user - @- #-: old style",
        "u1 | default_session",
        "tool clock @- #-: 12:00",
        "tool - @- #-: x",
    ];
    check(text, Format::Memos, &want);
}

#[test]
fn chatgpt_exports() {
    let text = r#"[{"title":"Roses","create_time":1683554160.5,"conversation_id":"abc","current_node":"n4","mapping":{
"root":{"id":"root","message":null,"parent":null,"children":["n0"]},
"n0":{"message":{"id":"m0","author":{"role":"system"},"content":{"content_type":"text","parts":[""]}},"parent":"root","children":["n1"]},
"n1":{"message":{"id":"m1","author":{"role":"user","name":null},"create_time":1683554161,"content":{"content_type":"multimodal_text","parts":[{"content_type":"image_asset_pointer"},"What grows here?"]}},"parent":"n0","children":["n2","old"]},
"old":{"message":{"author":{"role":"assistant"},"content":{"content_type":"text","parts":["Weeds."]}},"parent":"n1","children":[]},
"n2":{"message":{"author":{"role":"assistant"},"recipient":"browser","content":{"content_type":"code","text":"search()"}},"parent":"n1","children":["n3"]},
"n3":{"message":{"author":{"role":"tool","name":"browser"},"content":{"content_type":"text","parts":["found"]}},"parent":"n2","children":["n4"]},
"n4":{"message":{"id":"m4","author":{"role":"assistant"},"create_time":1683554170.9,"content":{"content_type":"text","parts":["Roses."]},"recipient":"all","metadata":{"is_visually_hidden_from_user":false}},"parent":"n3","children":[]}}},
{"title":"Loop","mapping":{"a":{"parent":"b","children":["b"],"message":{"author":{"role":"user"},"content":{"content_type":"text","parts":["round"]}}},"b":{"parent":"a","children":[],"message":{"author":{"role":"critic"},"content":{"content_type":"text","parts":["x"]}}}}},
{"title":"Nothing","mapping":{}}]"#;
    let want = [
        "chatgpt | abc",
        "user - @2023-05-08T13:56:01Z #m1: What grows here?",
        "tool - @2023-05-08T13:56:00Z #-: found",
        "assistant - @2023-05-08T13:56:10Z #m4: Roses.",
        "chatgpt | Loop",
        "user - @- #-: round",
    ];
    check(text, Format::ChatGpt, &want);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let formats = "the formats are `memeval`, `locomo`, `memos`, `chatgpt`";
    check_error("", None, "the file holds no record");
    check_error(" \n\n", Some(Format::Memos), "the file holds no record");
    check_error("[]", None, "the file holds no record");
    check_error(
        "{\"a\":1,\"b\":2}",
        None,
        &format!(
            "found a first record with the fields `a`, `b`, which is no known format; {formats}"
        ),
    );
    check_error("hello", None, "line 1: expected a JSON object, or a list of objects, found `h`");
    check_error("\n[1]", None, "line 2: expected a JSON object, or a list of objects, found `1`");
    check_error("[\n{\"mapping\":{", None, "the file ends inside the record that begins on line 2");
    check_error(
        "[{\"mapping\":{}},\n",
        None,
        "the file ends inside the record that begins on line 1",
    );
    check_error(
        "[{\"mapping\":\n\n7}]",
        None,
        "line 3: expected a ChatGPT conversation with a `mapping` of nodes, \
         found invalid type: integer `7`, expected a map",
    );
    check_error(
        "{\"user_id\":\"u\",\"messages\":\"a\"}\n{\"user_id\":\"u\",\"mess",
        None,
        "the file ends inside the record that begins on line 2",
    );
    check_error(
        "{\"user_id\":\"u\",\"messages\":\"a\"}\n{user}",
        None,
        "line 2, column 2: not JSON: key must be a string",
    );
    check_error(
        "{\"messages\":[{\"role\":\"bishop\",\"content\":\"a\"}]}",
        None,
        "line 1: expected a role `user`, `assistant`, `system` or `tool`, found the role `bishop`",
    );
    check_error(
        "{\"messages\":5}",
        None,
        "line 1: expected the body of a MemOS add call, with `messages` as a text or a list of \
         messages, found data did not match any variant of untagged enum Messages",
    );
    check_error(
        "{\"t\":\"turn\",\"id\":\"a\",\"s\":1,\"speaker\":\"x\",\"text\":\"y\"}",
        None,
        "line 1: expected a `conv` line before the first turn, found a `turn` line",
    );
    check_error(
        "{\"t\":\"conv\",\"id\":\"a\"}\n{\"t\":\"turn\",\"id\":\"a\"}",
        None,
        "line 2: expected a `turn` line with `id`, `s`, `speaker` and `text`, \
         found missing field `s`",
    );
    check_error(
        "{\"sample_id\":\"a\",\"conversation\":[]}",
        None,
        "line 1: expected `conversation` to be an object, found a list",
    );
    check_error(
        "{\"sample_id\":\"a\",\"conversation\":{\"session_1\":[{\"text\":\"a\"}]}}",
        None,
        "line 1: expected `session_1` of the sample to be a list of turns, \
         found missing field `speaker`",
    );
    check_error(b"{\"t\":\"conv\",\n\"id\":\"\xff\"}", None, "line 2: the text is not UTF-8");
    assert!(open(Path::new("/nonexistent"), None).is_err());
    assert!("csv".parse::<Format>().is_err());
    assert_eq!("locomo".parse::<Format>().ok(), Some(Format::Locomo));
}

#[test]
fn no_prefix_of_a_file_panics() {
    for end in 0..MEMEVAL.len() {
        for format in [None, Some(Format::ChatGpt), Some(Format::Locomo), Some(Format::Memos)] {
            let _ = import_result(&MEMEVAL.as_bytes()[..end], format);
        }
    }
}

fn import_result(text: &[u8], format: Option<Format>) -> Result<usize, ImportError> {
    let mut file = tempfile::NamedTempFile::new().map_err(ImportError::Io)?;
    file.write_all(text).map_err(ImportError::Io)?;
    open(file.path(), format)?.map(|conversation| conversation.map(|c| c.messages.len())).sum()
}

#[test]
fn any_text_makes_a_valid_cube_id() {
    let check = |text: &str, want: &str| assert_eq!(cube_id(text, ""), want);
    check(" a\nb ", "ab");
    check("\n", "imported");
    check(&"ö".repeat(200), &"ö".repeat(128));
}
