use memcube_schemas::limits::{ITEM_TEXT_BYTES_MAX, ITEM_WORDS_MAX};
use proptest::prelude::*;

use super::*;

fn message(role: Role, chat_time: Option<&str>, content: &str) -> Message {
    Message {
        role,
        speaker: None,
        content: content.to_owned(),
        chat_time: chat_time.map(str::to_owned),
        message_id: Some("m1".to_owned()),
    }
}

#[test]
fn turns_become_texts_with_date_and_speaker() {
    let check = |role, chat_time, content: &str, want: &[&str]| {
        let drafts = read_messages(&[message(role, chat_time, content)], &ReadOptions::default());
        let texts: Vec<&str> = drafts.iter().map(|draft| draft.text.as_str()).collect();
        assert_eq!(texts, want);
    };
    let at = Some("2023-05-08T13:56:00");
    check(
        Role::User,
        at,
        "Vera: I joined a choir yesterday.",
        &["[8 May 2023] Vera: I joined a choir yesterday (7 May 2023)."],
    );
    check(Role::User, at, " I sing. ", &["[8 May 2023] user: I sing."]);
    check(Role::Assistant, None, "I sang yesterday.", &["assistant: I sang yesterday."]);
    check(Role::User, Some("after lunch"), "Hi", &["[after lunch] user: Hi"]);
    check(Role::User, Some(" \n"), "Hi", &["user: Hi"]);
    check(Role::User, Some("2023-05-08T23:30:00-07:00"), "Hi", &["[8 May 2023] user: Hi"]);
    check(Role::User, at, " \n\u{200b}\u{3000}", &[]);
    check(Role::System, at, "Be kind.", &[]);
    check(Role::Tool, at, "42", &[]);
}

#[test]
fn system_and_tools_are_remembered_on_request() {
    let options = ReadOptions { remember_system_and_tool: true, ..ReadOptions::default() };
    let messages = [message(Role::System, None, "Be kind."), message(Role::Tool, None, "42")];
    let texts: Vec<String> =
        read_messages(&messages, &options).into_iter().map(|draft| draft.text).collect();
    assert_eq!(texts, ["system: Be kind.", "tool: 42"]);
}

#[test]
fn a_draft_keeps_its_source_and_the_options_of_the_call() {
    let options = ReadOptions {
        conversation: ConversationId::new("c1").ok(),
        tags: vec!["blue".to_owned()],
        info: "{}".to_owned(),
        remember_system_and_tool: false,
    };
    let said = message(Role::User, Some("1:56 pm on 8 May, 2023"), "Vera: See you tomorrow");
    let drafts = read_messages(&[said], &options);
    let want = MemoryDraft {
        kind: MemoryKind::Episode,
        text: "[8 May 2023] Vera: See you tomorrow (9 May 2023)".to_owned(),
        speaker: Some("Vera".to_owned()),
        role: Role::User,
        said_at_ms: Some(1_683_554_160_000),
        conversation: options.conversation,
        part: None,
        tags: options.tags,
        info: options.info,
        source: SourceTurn {
            role: Role::User,
            speaker: Some("Vera".to_owned()),
            chat_time: Some("1:56 pm on 8 May, 2023".to_owned()),
            message_id: Some("m1".to_owned()),
            content: "Vera: See you tomorrow".to_owned(),
        },
        vector: None,
        tokens: 0,
    };
    assert_eq!(drafts, [want]);
}

#[test]
fn long_messages_become_parts_with_the_same_beginning() {
    let content = format!("Vera: {}\n\n{}", "one ".repeat(100), "two ".repeat(100));
    let drafts = read_messages(
        &[message(Role::User, Some("8 May 2023"), &content)],
        &ReadOptions::default(),
    );
    let parts: Vec<_> = drafts.iter().map(|draft| draft.part).collect();
    assert_eq!(parts, [Some((1, 2)), Some((2, 2))]);
    assert!(drafts[0].text.starts_with("[8 May 2023] Vera: one one"));
    assert!(drafts[1].text.starts_with("[8 May 2023] Vera: two two"));
    assert!(drafts[0].source.content.starts_with("Vera: one"));
    assert!(drafts[1].source.content.starts_with("two"));
}

#[test]
fn code_stays_code_when_it_is_cut() {
    let line = "today = tomorrow\n";
    let content = format!("Before, yesterday:\n```\n{}```\nAfter, yesterday.", line.repeat(200));
    let drafts = read_messages(
        &[message(Role::User, Some("8 May 2023"), &content)],
        &ReadOptions::default(),
    );
    let texts: String = drafts.iter().map(|draft| draft.text.as_str()).collect();
    assert_eq!(texts.matches("(7 May 2023)").count(), 2);
    assert_eq!(texts.matches("(8 May 2023)").count() + texts.matches("(9 May 2023)").count(), 0);
}

#[test]
fn pages_of_signs_are_left_out() {
    let check = |content: String, want: usize| {
        let drafts = read_messages(&[message(Role::User, None, &content)], &ReadOptions::default());
        assert_eq!(drafts.len(), want);
    };
    check(format!("All is well.\n{}", "/\n".repeat(20_000)), 1);
    check("/\n".repeat(20_000), 1);
    check("?!".to_owned(), 1);
}

#[test]
fn large_input_stays_within_the_limits() {
    let huge = message(Role::User, Some(&"x".repeat(100_000)), &"word yesterday ".repeat(280_000));
    let drafts = read_messages(&[huge], &ReadOptions::default());
    assert!(drafts.len() >= 560_000 / ITEM_WORDS_MAX);
    assert!(drafts.iter().all(|draft| draft.text.len() < 4096), "a long time is cut");
    let many = vec![message(Role::User, None, "hello"); 10_000];
    assert_eq!(read_messages(&many, &ReadOptions::default()).len(), 10_000);
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::User), Just(Role::Assistant), Just(Role::System), Just(Role::Tool)]
}

/// Text with many words of dates, signs and scripts in it.
fn any_content() -> impl Strategy<Value = String> {
    let bit = prop_oneof![
        3 => prop::sample::select(vec![
            "yesterday", "last", "next", "week", "Friday", "ago", "two", "in", "I'll", "a", "few",
            "days", "of", "before", "after", "this", "past", "May", "(", ")", "7 May 2023", "`",
            "\n```\n", "\n\n", "\n- ", "\n# ", ". ", ": ", "Vera: ", "語", "。", "'s", "’", "-",
            "coming", "month", "from now", "couple", "day", "tomorrow", "the", "\u{a0}", "\r\n",
        ]).prop_map(str::to_owned),
        2 => Just(" ".to_owned()),
        1 => any::<String>(),
    ];
    let repeated = (bit, 1_usize..4).prop_map(|(bit, times)| (bit + " ").repeat(times));
    (prop::collection::vec(repeated, 0..60), 1_usize..12)
        .prop_map(|(bits, times)| bits.concat().repeat(times))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_message_is_read(
        role in any_role(),
        speaker in prop::option::of(any::<String>()),
        chat_time in prop::option::of(prop_oneof![Just("2023-05-08".to_owned()), any::<String>()]),
        content in any_content(),
    ) {
        let message = Message { role, speaker, content, chat_time, message_id: None };
        let options = ReadOptions { remember_system_and_tool: true, ..ReadOptions::default() };
        let drafts = read_messages(std::slice::from_ref(&message), &options);
        let kept: String = drafts.iter().map(|draft| draft.source.content.as_str()).collect();
        let solid = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
        if says_something(&message.content) {
            prop_assert_eq!(solid(&kept), solid(&message.content));
            prop_assert!(!drafts.is_empty());
        } else {
            prop_assert!(drafts.is_empty());
        }
        for (number, draft) in (1..).zip(&drafts) {
            prop_assert!(draft.text.len() <= ITEM_TEXT_BYTES_MAX);
            prop_assert!(draft.source.content.split_whitespace().count() <= ITEM_WORDS_MAX + 8);
            let parts = u32::try_from(drafts.len()).unwrap_or(0);
            prop_assert_eq!(draft.part, (parts > 1).then_some((number, parts)));
        }
    }

    #[test]
    fn dates_are_written_once_and_words_are_kept(content in any_content()) {
        let today = jiff::civil::date(2023, 5, 8);
        let once = relative_dates::annotate(&content, today, &mut false);
        let twice = relative_dates::annotate(&once, today, &mut false);
        prop_assert_eq!(&once, &twice);
        let mut rest = once.chars();
        let is_kept = content.chars().all(|wanted| rest.any(|c| c == wanted));
        prop_assert!(is_kept);
    }

    #[test]
    fn any_text_may_be_asked_for_its_time(
        text in any::<String>(),
        digits in "[0-9:/ .TZ+-]{0,40}",
    ) {
        for text in [text, digits] {
            if let Some(time) = parse_chat_time(&text) {
                prop_assert!((1..=9999).contains(&time.civil.year()));
            }
            let _ = parse_plain_date_mentions(&text);
        }
    }
}
