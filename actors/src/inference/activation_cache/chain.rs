//! How a prompt is cut into blocks, and what names them. Pure.
//!
//! Invariant: the key of a block depends on everything that its numbers depend on: all tokens up to
//! its end, where they were cut, the model, and the tenant. Equal keys mean equal numbers.

use std::ops::Range;

use memcube_schemas::{
    BlockKey, ConversationId, TenantId,
    activation::{BlockSource, ModelFingerprint},
};
use sha2::{Digest, Sha256};

use super::super::engine::{BLOCK_TOKENS, Token};

/// One block of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainBlock {
    /// Its name.
    pub key: BlockKey,
    /// The block before it.
    pub parent: Option<BlockKey>,
    /// Which tokens.
    pub span: Range<usize>,
    /// The memories that some of its tokens come from.
    pub sources: Vec<BlockSource>,
    /// The conversation whose turns it contains, or stands behind.
    pub conversation: Option<ConversationId>,
}

/// A prompt in blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// All tokens.
    pub tokens: Vec<Token>,
    /// Blocks that cover them, in order.
    pub blocks: Vec<ChainBlock>,
    /// Which tokens come from which memory, in order.
    pub memories: Vec<(Range<usize>, BlockSource)>,
}

/// A memory's tokens, as they are computed by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its name, which no block of a prompt has.
    pub key: BlockKey,
    /// Where it stands in the prompt.
    pub span: Range<usize>,
    /// The memory.
    pub source: BlockSource,
}

/// A prompt before it is cut.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    /// All tokens.
    pub tokens: Vec<Token>,
    /// Where a block has to end, because an earlier or a later prompt ends there.
    pub seams: Vec<usize>,
    /// Which tokens come from which memory.
    pub memories: Vec<(Range<usize>, BlockSource)>,
    /// Where the first turn of a conversation begins, if there is one.
    pub turns: Option<(usize, ConversationId)>,
}

impl Chain {
    /// Cuts a prompt at its seams, and at every multiple of [`BLOCK_TOKENS`]: where engines have
    /// their pages, so that whole ones are moved as they lie.
    #[must_use]
    pub fn of(prompt: Prompt, model: &ModelFingerprint, tenant: &TenantId) -> Self {
        let Prompt { tokens, mut seams, memories, turns } = prompt;
        seams.push(tokens.len());
        seams.sort_unstable();
        let root = root(PREFIXES, model, tenant);
        let mut blocks: Vec<ChainBlock> = Vec::new();
        let mut start = 0;
        for seam in seams {
            while start < seam.min(tokens.len()) {
                let page_end = (start / BLOCK_TOKENS + 1) * BLOCK_TOKENS;
                let span = start..seam.min(tokens.len()).min(page_end);
                let parent = blocks.last().map(|block| block.key);
                let key = key(&root, parent, start, &tokens[span.clone()]);
                let sources = sources_in(&span, &memories);
                start = span.end;
                let conversation = turns.as_ref().filter(|(begin, _)| *begin < span.end);
                let conversation = conversation.map(|(_, conversation)| conversation.clone());
                blocks.push(ChainBlock { key, parent, span, sources, conversation });
            }
        }
        Self { tokens, blocks, memories }
    }

    /// The memories of at least so many tokens, each by itself.
    #[must_use]
    pub fn segments(
        &self,
        tokens_min: usize,
        model: &ModelFingerprint,
        tenant: &TenantId,
    ) -> Vec<Segment> {
        let root = root(SEGMENTS, model, tenant);
        let long = self.memories.iter().filter(|(span, _)| span.len() >= tokens_min.max(1));
        long.filter_map(|(span, source)| {
            let tokens = self.tokens.get(span.clone())?;
            let key = key(&root, None, 0, tokens);
            Some(Segment { key, span: span.clone(), source: *source })
        })
        .collect()
    }

    /// The tokens of a block.
    #[must_use]
    pub fn tokens_of(&self, block: usize) -> &[Token] {
        self.blocks.get(block).map_or(&[], |block| &self.tokens[block.span.clone()])
    }
}

fn sources_in(span: &Range<usize>, memories: &[(Range<usize>, BlockSource)]) -> Vec<BlockSource> {
    let overlaps = |(range, _): &&(Range<usize>, BlockSource)| {
        range.start < span.end && span.start < range.end
    };
    memories.iter().filter(overlaps).map(|(_, source)| *source).collect()
}

/// What keys are hashes of: blocks of prompts, which depend on all that stands before them.
const PREFIXES: &[u8] = b"memcube kv 1";
/// Memories by themselves. A mode of its own, so that no prompt ever finds one as its block.
const SEGMENTS: &[u8] = b"memcube kv segment 1";

/// A hash of mode, model and tenant, with which every key begins.
fn root(mode: &[u8], model: &ModelFingerprint, tenant: &TenantId) -> [u8; 32] {
    let ModelFingerprint { model, tokenizer, adapter, rope, dtype, layout } = model;
    let adapter = adapter.as_ref().map_or(&[][..], |digest| &digest[..]);
    let parts: [&[u8]; 8] = [
        mode,
        tenant.as_str().as_bytes(),
        model.as_str().as_bytes(),
        tokenizer,
        adapter,
        rope.as_bytes(),
        dtype.as_str().as_bytes(),
        layout.as_bytes(),
    ];
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that two parts never run into each other.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn key(root: &[u8; 32], parent: Option<BlockKey>, start: usize, tokens: &[Token]) -> BlockKey {
    let mut hash = Sha256::new();
    hash.update(root);
    hash.update(parent.map_or([0; 32], |parent| parent.0));
    hash.update((start as u64).to_le_bytes());
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    BlockKey(hash.finalize().into())
}

#[cfg(test)]
pub(crate) mod tests {
    use memcube_schemas::{MemoryId, ModelId, activation::KvDtype};
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn model() -> ModelFingerprint {
        ModelFingerprint {
            model: ModelId::new("m@1").expect("valid"),
            tokenizer: [1; 32],
            adapter: None,
            rope: "r".to_owned(),
            dtype: KvDtype::F32,
            layout: "l".to_owned(),
        }
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    fn chain(tokens: &[Token], seams: &[usize]) -> Chain {
        let (tokens, seams) = (tokens.to_vec(), seams.to_vec());
        let prompt = Prompt { tokens, seams, ..Prompt::default() };
        Chain::of(prompt, &model(), &tenant("acme"))
    }

    #[test]
    fn prompts_are_cut_at_seams_and_at_the_ends_of_pages() {
        let table: [(usize, &[usize], &[usize]); 6] = [
            (0, &[], &[]),
            (10, &[], &[10]),
            (600, &[], &[256, 512, 600]),
            (600, &[583], &[256, 512, 583, 600]),
            (600, &[583, 583, 0, 9_999], &[256, 512, 583, 600]),
            (600, &[70], &[70, 256, 512, 600]),
        ];
        for (tokens, seams, ends) in table {
            let blocks = chain(&vec![7; tokens], seams).blocks;
            let found: Vec<usize> = blocks.iter().map(|block| block.span.end).collect();
            assert_eq!(found, ends, "{tokens} {seams:?}");
        }
    }

    #[test]
    fn everything_that_numbers_depend_on_changes_the_key() {
        let prompt = Prompt { tokens: vec![1; 300], ..Prompt::default() };
        let key = |prompt: &Prompt, model: &ModelFingerprint, name| {
            Chain::of(prompt.clone(), model, &tenant(name)).blocks.last().map(|block| block.key)
        };
        let base = model();
        let mut earlier = prompt.clone();
        earlier.tokens[0] = 2;
        let cut = Prompt { seams: vec![256, 280], ..prompt.clone() };
        let other = |change: fn(&mut ModelFingerprint)| {
            let mut model = base.clone();
            change(&mut model);
            model
        };
        let keys = [
            key(&prompt, &base, "acme"),
            key(&prompt, &base, "apex"),
            key(&earlier, &base, "acme"),
            key(&cut, &base, "acme"),
            key(&prompt, &other(|model| model.tokenizer[31] = 0), "acme"),
            key(&prompt, &other(|model| model.adapter = Some([0; 32])), "acme"),
            key(&prompt, &other(|model| model.rope.push('x')), "acme"),
            key(&prompt, &other(|model| model.layout.push('x')), "acme"),
            key(&prompt, &other(|model| model.dtype = KvDtype::F16), "acme"),
            key(&prompt, &other(|model| model.model = ModelId::new("m@2").expect("valid")), "acme"),
        ];
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(key(&prompt, &base, "acme"), keys[0]);
    }

    #[test]
    fn a_memory_by_itself_is_named_by_its_text_model_tenant_and_mode_alone() {
        let source = |n| BlockSource { id: MemoryId::from_parts(1, n), revision: 1 };
        let chain = |tokens: &[Token], start: usize, name| {
            let memories = vec![(0..start, source(0)), (start..tokens.len(), source(1))];
            let prompt = Prompt { tokens: tokens.to_vec(), memories, ..Prompt::default() };
            Chain::of(prompt, &model(), &tenant(name))
        };
        let text: Vec<Token> = (0..40).collect();
        let behind: Vec<Token> = [9; 7].into_iter().chain(text.clone()).collect();
        let key = |chain: &Chain, model: &ModelFingerprint, name| {
            chain.segments(40, model, &tenant(name)).last().map(|segment| segment.key)
        };
        let alone = chain(&text, 0, "acme");
        let known = key(&alone, &model(), "acme");
        assert!(known.is_some());
        assert_eq!(key(&chain(&behind, 7, "acme"), &model(), "acme"), known, "wherever it stands");
        assert_ne!(Some(alone.blocks[0].key), known, "the same tokens as the block of a prompt");
        let other = ModelFingerprint { rope: "x".to_owned(), ..model() };
        let mut changed = text;
        changed[39] += 1;
        let others = [
            key(&alone, &model(), "apex"),
            key(&alone, &other, "acme"),
            key(&chain(&changed, 0, "acme"), &model(), "acme"),
        ];
        for other in others {
            assert!(other.is_some() && other != known);
        }
        assert_eq!(alone.segments(41, &model(), &tenant("acme")), [], "too short");
        let segments = chain(&behind, 7, "acme").segments(1, &model(), &tenant("acme"));
        let spans: Vec<_> = segments.into_iter().map(|found| (found.span, found.source)).collect();
        assert_eq!(spans, [(0..7, source(0)), (7..47, source(1))]);
    }

    proptest! {
        #[test]
        fn equal_prefixes_have_equal_keys_and_others_do_not(
            tokens in prop::collection::vec(0_u32..4, 1..900),
            (at, seam) in (0_usize..900, 0_usize..900),
        ) {
            let at = at % tokens.len();
            let mut other = tokens.clone();
            other[at] += 1;
            let (left, right) = (chain(&tokens, &[seam]), chain(&other, &[seam]));
            for (left, right) in left.blocks.iter().zip(&right.blocks) {
                prop_assert_eq!(left.key == right.key, at >= left.span.end);
            }
            let whole: usize = left.blocks.iter().map(|block| block.span.len()).sum();
            prop_assert_eq!(whole, tokens.len());
        }

        #[test]
        fn a_memory_is_a_source_of_every_block_that_it_reaches_into(
            start in 0_usize..600, length in 1_usize..300,
        ) {
            let source = BlockSource { id: MemoryId::from_parts(1, 1), revision: 1 };
            let range = start..start + length;
            let memories = vec![(range.clone(), source)];
            let conversation = ConversationId::new("talk").expect("valid");
            let turns = Some((start, conversation));
            let prompt = Prompt { tokens: vec![1; 900], seams: vec![], memories, turns };
            for block in Chain::of(prompt, &model(), &tenant("acme")).blocks {
                let inside = range.clone().any(|position| block.span.contains(&position));
                prop_assert_eq!(block.sources == [source], inside);
                prop_assert_eq!(block.conversation.is_some(), start < block.span.end);
            }
        }
    }
}
