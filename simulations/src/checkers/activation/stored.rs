//! Stored blocks at the end: the object of each holds what its model computes for the tokens in it,
//! after those of the blocks before; and its row names every memory that some of it is of.

use std::collections::BTreeMap;

use memcube_actors::inference::{
    KvBytes, KvLayer, Token,
    scripted::{Slot, recompute, slots_of},
};
use memcube_schemas::{
    BlockKey,
    activation::{KvBlock, KvBlockBytes, KvDtype},
    codec::decode,
};

use super::{
    super::{
        case::{Case, CubeName},
        findings::Findings,
        title,
    },
    Held, HeldTexts,
    prompt::Prompt,
};

/// Random bytes at the end of every object.
const SALT_BYTES: usize = 16;

/// A block and all before it.
#[derive(Clone, Default)]
struct Chain {
    tokens: Vec<Token>,
    ends: Vec<usize>,
}

/// Reads every block that a row names.
pub(super) fn check(case: &Case<'_>, held: &Held, findings: &mut Findings) {
    let nothing = HeldTexts::default();
    for (name, rows) in &case.cubes {
        let texts = held.0.get(name).unwrap_or(&nothing);
        let mut in_order: Vec<&KvBlock> = rows.blocks.values().collect();
        in_order.sort_by_key(|block| block.start);
        let mut chains: BTreeMap<BlockKey, Chain> = BTreeMap::new();
        for block in in_order {
            let before = match block.parent {
                None => Some(Chain::default()),
                Some(parent) => chains.get(&parent).cloned(),
            };
            let Some(slots) = read(case, name, block) else { continue };
            let Some(before) = before else { continue };
            let cube = title(name);
            let chain = check_block(&cube, block, before, &slots, findings);
            check_sources(&cube, block, &chain, texts, findings);
            chains.insert(block.key, chain);
        }
    }
}

/// What the object of a block holds. One that is missing is seen by the checker of blobs; 8 bits
/// are not read.
fn read(case: &Case<'_>, (tenant, _): &CubeName, block: &KvBlock) -> Option<Vec<Slot>> {
    if block.dtype != KvDtype::F32 {
        return None;
    }
    let id = block.blob.to_string();
    let path = format!("blobs/{tenant}/{}/{id}", &id[..2]);
    let object = case.evidence.contents.get(&path)?;
    let bytes = object.get(..object.len().checked_sub(SALT_BYTES)?)?;
    let read: KvBlockBytes = decode(bytes).ok()?;
    let numbers = KvBytes {
        start: usize::try_from(read.start).ok()?,
        tokens: usize::try_from(read.tokens).ok()?,
        dtype: read.dtype,
        layers: read.layers.into_iter().map(|layer| KvLayer::new(layer.into())).collect(),
    };
    slots_of(&numbers)
}

fn check_block(
    cube: &str,
    block: &KvBlock,
    mut chain: Chain,
    slots: &[Slot],
    findings: &mut Findings,
) -> Chain {
    let start = chain.tokens.len();
    let is_there = usize::try_from(block.start) == Ok(start);
    let is_long = usize::try_from(block.tokens) == Ok(slots.len());
    findings.expect(is_there && is_long, || {
        let (key, tokens) = (block.key, slots.len());
        format!(
            "{cube}: block {key} is {tokens} tokens from {start} on, and its row says otherwise"
        )
    });
    chain.tokens.extend(slots.iter().map(|slot| slot.token));
    chain.ends.push(chain.tokens.len());
    let expected = recompute(&block.model, &chain.tokens, &chain.ends);
    let found = slots.iter().map(|slot| slot.digest);
    findings.expect(found.eq(expected[start..].iter().copied()), || {
        let (key, model) = (block.key, &block.model.model);
        format!("{cube}: block {key} does not hold what `{model}` computes")
    });
    chain
}

/// Every memory that some tokens of the block are of is in its row, and so is the conversation.
fn check_sources(
    cube: &str,
    block: &KvBlock,
    chain: &Chain,
    texts: &HeldTexts,
    findings: &mut Findings,
) {
    let end = chain.tokens.len();
    let start = end - chain.tokens.len().min(usize::try_from(block.tokens).unwrap_or(0));
    let prompt = match Prompt::read(&chain.tokens) {
        Ok(prompt) => prompt,
        Err(what) => return findings.report(format!("{cube}: block {}: {what}", block.key)),
    };
    let is_said = prompt.turns().next().is_some();
    findings.expect(!is_said || block.conversation.is_some(), || {
        format!("{cube}: block {} stands behind a turn of no conversation", block.key)
    });
    let lines = prompt.lines();
    for line in lines.iter().filter(|line| line.span.end > start && line.span.start < end) {
        let is_named = |text: &str| {
            texts.lives_of(text).any(|life| {
                block
                    .sources
                    .iter()
                    .any(|source| (source.id, source.revision) == (life.id, life.revision))
            })
        };
        let is_source = if line.is_whole {
            is_named(&line.text)
        } else {
            let mut known = texts.by_text.keys();
            line.text.is_empty() || known.any(|text| text.starts_with(&line.text) && is_named(text))
        };
        findings.expect(is_source, || {
            format!(
                "{cube}: block {} holds `{}`, and its row does not say so",
                block.key, line.text
            )
        });
    }
}
