//! Chooses the next token from logits: the likeliest, or one by chance from a given draw.

/// The likeliest token; the first of several equal ones.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// A token by chance: `draw` are 64 random bits, so that equal arguments give equal tokens.
///
/// Only the likeliest tokens that make up the share `top_p` are considered. A temperature of zero
/// takes the likeliest token.
pub fn sample(logits: &[f32], temperature: f32, top_p: f32, draw: u64) -> u32 {
    if temperature.is_nan() || temperature <= 0.0 || logits.is_empty() {
        return greedy(logits);
    }
    let top = f64::from(logits[greedy(logits) as usize]);
    let weight = |logit: f32| ((f64::from(logit) - top) / f64::from(temperature)).exp();
    let mut tokens: Vec<(f64, u32)> =
        logits.iter().zip(0u32..).map(|(&logit, token)| (weight(logit), token)).collect();
    // Ties in the order of tokens, so that nothing depends on the sort.
    tokens.sort_unstable_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
    let sum: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    let goal = f64::from(top_p.clamp(0.0, 1.0)) * sum;
    let mut kept = 0.0;
    let count = tokens
        .iter()
        .position(|(weight, _)| {
            kept += weight;
            kept >= goal
        })
        .map_or(tokens.len(), |last| last + 1);
    let tokens = &tokens[..count];
    let kept: f64 = tokens.iter().map(|(weight, _)| weight).sum();
    // 53 bits are what a double holds.
    let mut left = (draw >> 11) as f64 / (1u64 << 53) as f64 * kept;
    for (weight, token) in tokens {
        left -= weight;
        if left < 0.0 {
            return *token;
        }
    }
    tokens[count - 1].1
}
