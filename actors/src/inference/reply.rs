//! From tokens to the text of a reply: characters that arrive in parts, and words at which it ends.
//! Pure.

/// The text of a reply so far.
#[derive(Debug, Default)]
pub(crate) struct ReplyText {
    stops: Vec<String>,
    /// Bytes that are no whole character yet.
    partial: Vec<u8>,
    /// Text that might be the beginning of a stop word.
    held: String,
    has_stopped: bool,
}

impl ReplyText {
    /// A reply that ends before one of these texts. Empty ones are ignored.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, ..Self::default() }
    }

    /// Whether a stop word came.
    pub(crate) const fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// Takes in the bytes of a token; returns the text that is certain by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.partial.extend_from_slice(bytes);
        let text = take_characters(&mut self.partial);
        self.held.push_str(&text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.has_stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.uncertain_bytes();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text that was held back, once nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        if !self.has_stopped {
            text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)));
        }
        text
    }

    /// Bytes at the end that may be the beginning of a stop word: the most that fit any.
    fn uncertain_bytes(&self) -> usize {
        let of_stop = |stop: &String| {
            let ends = (1..stop.len()).rev().filter(|end| stop.is_char_boundary(*end));
            ends.into_iter().find(|end| self.held.ends_with(&stop[..*end])).unwrap_or(0)
        };
        self.stops.iter().map(of_stop).max().unwrap_or(0)
    }
}

/// Takes whole characters from the front; what can never become one is replaced.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text.push_str(whole);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let (good, _) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(good));
                let Some(bad) = error.error_len() else {
                    bytes.drain(..error.valid_up_to());
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..error.valid_up_to() + bad);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spoken(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut reply = ReplyText::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut texts: Vec<String> = pieces.iter().map(|piece| reply.push(piece)).collect();
        texts.push(reply.finish());
        (texts, reply.has_stopped())
    }

    #[test]
    fn stop_words_end_a_reply_wherever_they_are_cut() {
        type Case = (&'static [&'static str], &'static [&'static [u8]], &'static str, bool);
        let table: [Case; 7] = [
            (&[], &[b"a", b"b"], "ab", false),
            (&["END"], &[b"one EN", b"D two"], "one ", true),
            (&["END"], &[b"one EN", b"TER"], "one ENTER", false),
            (&["END"], &[b"one E", b"N"], "one EN", false),
            (&["bc", "ab"], &[b"xa", b"b", b"c"], "x", true),
            (&["\u{e4}"], &[b"x\xc3", b"\xa4y"], "x", true),
            (&[""], &[b"a"], "a", false),
        ];
        for (stops, pieces, text, has_stopped) in table {
            let (texts, stopped) = spoken(stops, pieces);
            assert_eq!((texts.concat().as_str(), stopped), (text, has_stopped), "{stops:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_what_is_cut_waits() {
        let (texts, _) = spoken(&[], &[b"\xe2\x82", b"\xac!", b"\xff", b"\xc3"]);
        assert_eq!(texts, ["", "\u{20ac}!", "\u{fffd}", "", "\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn texts_come_out_as_they_went_in(text in ".{0,30}", cuts: u64) {
            let mut reply = ReplyText::new(vec!["\u{0}stop".to_owned()]);
            let mut out = String::new();
            let mut rest = text.as_bytes();
            for bit in 0..64 {
                let (now, later) = rest.split_at((1 + (cuts >> bit & 3) as usize).min(rest.len()));
                out.push_str(&reply.push(now));
                rest = later;
            }
            out.push_str(&reply.push(rest));
            out.push_str(&reply.finish());
            prop_assert_eq!(out, text);
        }
    }
}
