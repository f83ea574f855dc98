//! Independent segments: memories that were computed each by itself, put at their places in a
//! prompt. **Not exact**, and off unless somebody turns it on.
//!
//! A block of a prompt that is nowhere to be found is put together: of each memory in it, the first
//! few tokens are computed where they stand, the others come from its segment. Memories without a
//! segment are computed where they stand, as all other tokens are; segments are made of them when
//! the reply has ended and nobody waits.
//!
//! Invariant: what is put together, and what is computed after it, is never kept as a block.

use std::{ops::Range, sync::Arc};

use super::{
    activation_cache::{Segment, Tier},
    device::Until,
    engine::{BLOCK_TOKENS, Cancel, Engine, EngineError, EngineResult, KvBytes, Session},
    fill::{CancelOnDrop, Filled, Filling, Trouble, take},
};
use crate::error::Error;

/// Tokens that a segment has to save: about what one more pass over the model costs.
pub const SEGMENT_SAVED_TOKENS_MIN: usize = 8;

/// A part of a block, or of a whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentPiece {
    /// Tokens of the prompt that are computed.
    Compute(Range<usize>),
    /// Tokens of the segment with this number that are brought in, counted from its first.
    Import(usize, Range<usize>),
}

/// What became of a block.
struct Composed {
    session: Box<dyn Session>,
    result: EngineResult<()>,
    computed_tokens: usize,
    segment_tokens: usize,
    /// Which segments were brought in, and which are damaged.
    imported: Vec<usize>,
    damaged: Vec<usize>,
}

/// The parts of a block: of segments, with their numbers and where they stand in the prompt, those
/// tokens are brought in that come after the first `repair_tokens`.
pub fn segment_pieces<'a>(
    block: &Range<usize>,
    segments: impl Iterator<Item = (usize, &'a Range<usize>)>,
    repair_tokens: usize,
) -> Vec<SegmentPiece> {
    let mut pieces = Vec::new();
    let mut at = block.start;
    for (number, span) in segments {
        let start = (span.start + repair_tokens).max(at);
        let end = span.end.min(block.end);
        if start >= end {
            continue;
        }
        if at < start {
            pieces.push(SegmentPiece::Compute(at..start));
        }
        pieces.push(SegmentPiece::Import(number, start - span.start..end - span.start));
        at = end;
    }
    if at < block.end {
        pieces.push(SegmentPiece::Compute(at..block.end));
    }
    pieces
}

impl Filling<'_> {
    /// The memories of the prompt that may come from segments; none if nobody wants that, or for
    /// what is computed ahead: that is exact.
    pub(super) fn segments(&self) -> Vec<Segment> {
        let is_possible = self.sampling.is_some() && self.device.engine().takes_segments();
        let Some(repair_tokens) = self.repair_tokens.filter(|_| is_possible) else {
            return Vec::new();
        };
        let tokens_min = repair_tokens.saturating_add(SEGMENT_SAVED_TOKENS_MIN);
        let model = &self.device.facts().fingerprint;
        self.chain.segments(tokens_min, model, &self.lease.key.tenant)
    }

    /// Puts a block together, if there are segments for it; returns whether there were.
    pub(super) async fn compose(&self, filled: &mut Filled, at: usize) -> Result<bool, Trouble> {
        let block = self.chain.blocks[at].span.clone();
        let overlaps = |span: &Range<usize>| span.start < block.end && block.start < span.end;
        let here = filled.segments.iter().enumerate().filter(|(_, found)| overlaps(&found.span));
        let found: Vec<(usize, Segment, Option<Arc<KvBytes>>)> = here
            .map(|(number, segment)| {
                (number, segment.clone(), self.cache.segment(self.lease, segment))
            })
            .collect();
        let missing = found.iter().filter(|(_, _, numbers)| numbers.is_none());
        filled.missing.extend(missing.map(|(number, ..)| *number));
        let known: Vec<(usize, Segment, Arc<KvBytes>)> = found
            .into_iter()
            .filter_map(|(number, segment, numbers)| Some((number, segment, numbers?)))
            .collect();
        let spans = known.iter().map(|(_, segment, _)| &segment.span).enumerate();
        let pieces = segment_pieces(&block, spans, self.repair_tokens.unwrap_or(0));
        if !pieces.iter().any(|piece| matches!(piece, SegmentPiece::Import(..))) {
            return Ok(false);
        }
        let numbers = known.iter().map(|(_, _, numbers)| Arc::clone(numbers)).collect();
        let composed = self.put_together(filled, pieces, numbers).await?;
        filled.session = composed.session;
        composed.result?;
        self.environment.reach("inference.composed", "");
        filled.composed_from.get_or_insert(at);
        filled.reuse.computed_tokens += composed.computed_tokens;
        filled.reuse.segment_tokens += composed.segment_tokens;
        filled.reuse.corrupt_blocks += composed.damaged.len();
        let tier = Tier::Ram;
        metrics::counter!(crate::metrics::ACTIVATION_HITS_TOTAL, "tier" => tier.as_str())
            .increment(composed.imported.len() as u64);
        for at in composed.damaged {
            let (number, segment, _) = &known[at];
            filled.missing.insert(*number);
            self.cache.drop_damaged(&self.lease.key.tenant, segment.key, tier);
        }
        Ok(true)
    }

    async fn put_together(
        &self,
        filled: &mut Filled,
        pieces: Vec<SegmentPiece>,
        numbers: Vec<Arc<KvBytes>>,
    ) -> Result<Composed, Error> {
        let cancel = Cancel::default();
        let guard = CancelOnDrop(cancel.clone());
        let until = Until { cancel: cancel.clone(), ..self.until.clone() };
        let chain = Arc::clone(self.chain);
        let mut composed = Composed {
            session: take(&mut filled.session),
            result: Ok(()),
            computed_tokens: 0,
            segment_tokens: 0,
            imported: Vec::new(),
            damaged: Vec::new(),
        };
        let work = move |_: &dyn Engine| {
            composed.result = pieces.into_iter().try_for_each(|piece| {
                let span = match piece {
                    SegmentPiece::Compute(span) => span,
                    SegmentPiece::Import(number, wanted) => {
                        let start = composed.session.tokens();
                        let span = start..start + wanted.len();
                        if composed.import(number, &numbers[number], wanted)? {
                            return Ok(());
                        }
                        span
                    }
                };
                composed.session.prefill(&chain.tokens[span.clone()], &cancel)?;
                composed.computed_tokens += span.len();
                Ok(())
            });
            let owed_us = composed.session.owed_us();
            (composed, owed_us)
        };
        let composed = self.device.run(until, work).await;
        drop(guard);
        composed
    }

    /// Computes memories by themselves, for prompts to come.
    pub(super) async fn make_segments(&self, wanted: &[Segment]) -> Result<(), Trouble> {
        for segment in wanted {
            if self.cache.is_revoked(self.lease) {
                break;
            }
            if self.cache.segment(self.lease, segment).is_none() {
                let numbers = self.compute_segment(segment.span.clone()).await?;
                self.cache.admit_segment(self.lease, segment, Arc::new(numbers));
            }
        }
        Ok(())
    }

    async fn compute_segment(&self, span: Range<usize>) -> Result<KvBytes, Trouble> {
        let mut session =
            self.device.run(self.until.clone(), |engine| (engine.open(), 0)).await??;
        let mut at = span.start;
        // One block at a time, so that whoever waits for an answer has a turn in between.
        while at < span.end {
            let (chain, cancel) = (Arc::clone(self.chain), self.until.cancel.clone());
            let part = at..span.end.min(at + BLOCK_TOKENS);
            at = part.end;
            let work = move |_: &dyn Engine| {
                let result = session.prefill(&chain.tokens[part], &cancel);
                let owed_us = session.owed_us();
                ((session, result), owed_us)
            };
            let (back, result) = self.device.run(self.until.clone(), work).await?;
            session = back;
            result?;
        }
        let tokens = span.len();
        let export = move |_: &dyn Engine| (session.export(0..tokens), session.owed_us());
        Ok(self.device.run(self.until.clone(), export).await??)
    }
}

impl Composed {
    /// Brings tokens of a segment in; `false` if they have to be computed.
    fn import(
        &mut self,
        number: usize,
        numbers: &KvBytes,
        wanted: Range<usize>,
    ) -> EngineResult<bool> {
        if self.damaged.contains(&number) {
            return Ok(false);
        }
        if !numbers.is_intact() {
            self.damaged.push(number);
            return Ok(false);
        }
        let tokens = wanted.len();
        match self.session.import_segment(numbers, wanted) {
            Ok(()) => {
                self.segment_tokens += tokens;
                self.imported.push(number);
                Ok(true)
            }
            Err(error @ (EngineError::Unsuitable { .. } | EngineError::Failed { .. })) => {
                tracing::warn!(%error, "a segment could not be brought in and is computed");
                Ok(false)
            }
            Err(
                error @ (EngineError::Cancelled
                | EngineError::ContextTooLong { .. }
                | EngineError::OutOfMemory
                | EngineError::NotFinite),
            ) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_where_memories_begin_and_end() {
        use SegmentPiece::{Compute, Import};
        let spans = [10..30, 30..34, 40..300, 300..320];
        let table: [(Range<usize>, usize, Vec<SegmentPiece>); 6] = [
            (0..256, 4, vec![Compute(0..14), Import(0, 4..20), Compute(30..44), Import(2, 4..216)]),
            // Nothing is repaired, and nothing is left to compute between two memories.
            (
                10..256,
                0,
                vec![Import(0, 0..20), Import(1, 0..4), Compute(34..40), Import(2, 0..216)],
            ),
            // A memory that began in the block before.
            (
                256..512,
                4,
                vec![Import(2, 216..260), Compute(300..304), Import(3, 4..20), Compute(320..512)],
            ),
            // Longer than any memory, or than the part in this block.
            (0..256, 300, vec![Compute(0..256)]),
            (35..45, 10, vec![Compute(35..45)]),
            (400..410, 0, vec![Compute(400..410)]),
        ];
        for (block, repair_tokens, expected) in table {
            let found = segment_pieces(&block, spans.iter().enumerate(), repair_tokens);
            assert_eq!(found, expected, "{block:?} {repair_tokens}");
            let tokens = |piece: &SegmentPiece| match piece {
                Compute(span) => span.len(),
                Import(_, wanted) => wanted.len(),
            };
            assert_eq!(found.iter().map(tokens).sum::<usize>(), block.len());
        }
    }
}
