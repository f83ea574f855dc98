//! Text from tokens as they come: whole characters only, and nothing of a stop word.

/// Collects the bytes of tokens and gives out what is certain.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    pending: Vec<u8>,
    is_stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of the `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, ..Self::default() }
    }

    /// Whether a stop word came.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Takes a token's bytes; returns the text that nothing to come can change.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.is_stopped {
            return String::new();
        }
        self.pending.extend_from_slice(bytes);
        let stop = |stop: &String| find(&self.pending, stop.as_bytes());
        if let Some(at) = self.stops.iter().filter_map(stop).min() {
            self.is_stopped = true;
            self.pending.truncate(at);
            return self.finish();
        }
        let held = self.stops.iter().map(|stop| overlap(&self.pending, stop.as_bytes())).max();
        let end = self.pending.len() - held.unwrap_or(0);
        let end = end - broken_tail(&self.pending[..end]);
        let rest = self.pending.split_off(end);
        let text = std::mem::replace(&mut self.pending, rest);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// What is left when no more tokens come; a broken character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Bytes at the end that may be the start of the pattern.
fn overlap(bytes: &[u8], pattern: &[u8]) -> usize {
    let longest = bytes.len().min(pattern.len() - 1);
    (1..=longest).rev().find(|&len| bytes.ends_with(&pattern[..len])).unwrap_or(0)
}

/// Bytes at the end that are the start of a character whose rest is missing.
fn broken_tail(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => 0,
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        // Broken in the middle; what follows may still be the start of a character.
        Err(error) => {
            let after = error.valid_up_to() + error.error_len().unwrap_or(1);
            broken_tail(&bytes[after..])
        }
    }
}
