//! `memcube events`

use std::{
    io::{BufRead, BufReader, Read},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use memcube_schemas::{
    CubeId, Stamp,
    api::v1::{EventKind, EventsResponse, StreamClosed},
    limits::FEED_PAGE_RECORDS_MAX,
};

use super::{
    Client, ClientError,
    client::encoded,
    connect::connect,
    options::{Options, ServerArgs},
    output,
};

/// Pauses before a broken connection is opened again: the first, and the longest.
const RECONNECT_MS: (u64, u64) = (200, 5_000);

const EXAMPLES: &str = "\
Examples:
  memcube events                            every event that is kept, one JSON object a line
  memcube events --follow --cube me         what happens from now on, until Ctrl-C
  memcube events --follow --after CURSOR    go on after the `id` of the last line

Lines name memories and tell no texts. `--follow` reconnects after the last line when the connection
breaks; nothing is missing and nothing is printed twice.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EventsArgs {
    /// Only events of this cube; may be given several times.
    #[arg(long = "cube", value_name = "ID")]
    cubes: Vec<CubeId>,
    /// Only events after this one: its `id`.
    #[arg(long, value_name = "CURSOR")]
    after: Option<Stamp>,
    /// Begin with the oldest event that is kept, also with `--follow`.
    #[arg(long, conflicts_with = "after")]
    from_start: bool,
    /// Wait for further events.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(options: &Options, args: EventsArgs) -> Result<()> {
    let connection = connect(options, &args.server)?;
    if args.follow {
        let start = if args.from_start { "from=start" } else { "from=now" };
        let query = query(&args.cubes, start);
        follow(&connection.client, &query, args.after.map(|after| after.to_string()))
    } else {
        all(&connection.client, &args)
    }
}

fn query(cubes: &[CubeId], rest: &str) -> String {
    let cubes = cubes.iter().map(|cube| format!("cube={}&", encoded(cube.as_str())));
    format!("/v1/events?{}{rest}", cubes.collect::<String>())
}

fn all(client: &Client, args: &EventsArgs) -> Result<()> {
    let mut place = match args.after {
        Some(after) => format!("after={after}"),
        None => "from=start".to_owned(),
    };
    loop {
        let rest = format!("wait=0&limit={FEED_PAGE_RECORDS_MAX}&{place}");
        let page: EventsResponse = client.get(&query(&args.cubes, &rest))?;
        page.events.iter().try_for_each(output::json)?;
        if !page.more {
            return Ok(());
        }
        place = format!("after={}", page.cursor);
    }
}

/// Prints what comes, and goes on after the last line when the connection breaks.
fn follow(client: &Client, query: &str, mut cursor: Option<String>) -> Result<()> {
    let (first_ms, longest_ms) = RECONNECT_MS;
    let mut pause_ms = first_ms;
    loop {
        let before = cursor.clone();
        match client.stream(query, cursor.as_deref()) {
            Ok(stream) => listen(stream, &mut cursor)?,
            Err(error) if error.may_pass() => output::note(format_args!("{error}; trying again")),
            Err(error) => return Err(error.into()),
        }
        pause_ms = if cursor == before { longest_ms.min(pause_ms * 2) } else { first_ms };
        thread::sleep(Duration::from_millis(pause_ms));
    }
}

/// Prints the events of one connection until it breaks.
fn listen(stream: impl Read, cursor: &mut Option<String>) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(message) = Message::read(&mut lines) {
        match message.event.as_str() {
            "closed" => {
                let closed: StreamClosed = serde_json::from_str(&message.data)
                    .context("the end of the stream cannot be read")?;
                if closed.code == "gone" {
                    bail!("{} ({})", closed.detail, closed.code);
                }
                output::note(format_args!("{} ({}); resuming", closed.detail, closed.code));
                return Ok(());
            }
            kind if is_event(kind) => output::line(&message.data)?,
            _ => {}
        }
        // After the line is out: whoever reads the output decides what was seen.
        *cursor = message.id.or_else(|| cursor.take());
    }
    Ok(())
}

fn is_event(kind: &str) -> bool {
    [EventKind::Made, EventKind::Changed, EventKind::Erased, EventKind::Restored]
        .iter()
        .any(|known| known.as_str() == kind)
}

/// One server-sent event (WHATWG HTML, section 9.2).
#[derive(Debug, Default, PartialEq)]
pub(super) struct Message {
    id: Option<String>,
    event: String,
    pub(super) data: String,
}

impl Message {
    /// Reads up to the next blank line. A message that breaks off is none.
    pub(super) fn read<E>(
        lines: &mut impl Iterator<Item = std::result::Result<String, E>>,
    ) -> Option<Self> {
        let mut message = Self::default();
        loop {
            let line = lines.next()?.ok()?;
            if line.is_empty() {
                return Some(message);
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => message.id = Some(value.to_owned()),
                "event" => value.clone_into(&mut message.event),
                "data" => message.data.push_str(value),
                // A comment, or a field that says nothing about events.
                _ => {}
            }
        }
    }
}

impl ClientError {
    /// Whether the same request may work later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Problem(problem) => matches!(problem.status, 429 | 500..),
            Self::Unreachable { .. } => true,
            Self::Strange { status, .. } => *status >= 500,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn messages_are_told_apart_and_one_that_breaks_off_is_none() {
        let text = "retry: 1000\n\n: keep-alive\n\nid: 7\nevent: made\ndata: {\"a\": 1}\n\nid: 8\n\
                    data: cut";
        let mut lines = text.lines().map(|line| Ok::<_, Infallible>(line.to_owned()));
        assert_eq!(Message::read(&mut lines), Some(Message::default()));
        assert_eq!(Message::read(&mut lines), Some(Message::default()));
        let made = Message {
            id: Some("7".to_owned()),
            event: "made".to_owned(),
            data: "{\"a\": 1}".to_owned(),
        };
        assert_eq!(Message::read(&mut lines), Some(made));
        assert_eq!(Message::read(&mut lines), None);
    }

    #[test]
    fn a_cursor_stays_where_a_message_names_none() {
        let mut cursor = Some("7".to_owned());
        listen("data: x\n\nevent: progress\nid: 9\ndata: {}\n\n: idle\n\n".as_bytes(), &mut cursor)
            .expect("it ends in order");
        assert_eq!(cursor.as_deref(), Some("9"));
        let gone = "event: closed\ndata: {\"code\":\"gone\",\"detail\":\"trimmed\"}\n\n";
        let error = listen(gone.as_bytes(), &mut cursor).expect_err("no use to try again");
        assert_eq!(error.to_string(), "trimmed (gone)");
    }

    #[test]
    fn cubes_are_named_in_the_query() {
        let cubes = ["ann", "b/o"].map(|cube| CubeId::new(cube).expect("valid"));
        assert_eq!(query(&cubes, "wait=0"), "/v1/events?cube=ann&cube=b%2Fo&wait=0");
    }
}
