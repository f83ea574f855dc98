//! Rows of blocks and contexts, after every commit: each names memories as they are then, each
//! block stands on one that is there, and nothing outlives its conversation or its cube.

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::inference::activation_cache::Holding;
use memcube_schemas::{
    BlockKey, ConversationId, MemoryId,
    activation::{BlockSource, ContextRecord, KvBlock},
    cube::Ownership,
};

use super::super::{
    case::{Case, Change, CubeName, ReadCommit},
    findings::Findings,
    title,
};

/// A cube between two commits, as far as it matters here.
#[derive(Default)]
struct Now {
    has_manifest: bool,
    /// Revisions of those that are recalled.
    recalled: BTreeMap<MemoryId, u32>,
    conversations: BTreeMap<MemoryId, ConversationId>,
    blocks: BTreeMap<BlockKey, KvBlock>,
    contexts: BTreeMap<ConversationId, ContextRecord>,
}

/// Follows all cubes.
pub(super) fn check(case: &Case<'_>, findings: &mut Findings) {
    let mut cubes: BTreeMap<&CubeName, Now> = BTreeMap::new();
    for commit in &case.commits {
        let mut touched: BTreeMap<&CubeName, BTreeSet<ConversationId>> = BTreeMap::new();
        for effect in &commit.effects {
            let now = cubes.entry(&effect.cube).or_default();
            let closed = touched.entry(&effect.cube).or_default();
            closed.extend(now.apply(&effect.change));
        }
        for (cube, closed) in touched {
            if let Some(now) = cubes.get(cube) {
                now.check(commit, cube, &closed, findings);
            }
        }
    }
}

/// At rest, the node that owns a cube holds nothing of memories that the cube does not have. What
/// a former owner holds is believed: nobody asks it.
pub(super) fn check_holdings(case: &Case<'_>, findings: &mut Findings) {
    for found in case.evidence.residents.iter().filter(|found| found.at_rest) {
        let mut cubes: BTreeMap<&CubeName, (Now, Option<&Ownership>)> = BTreeMap::new();
        let commits = case.commits.iter();
        for commit in commits.take_while(|commit| commit.record.at_ms <= found.at_ms) {
            for effect in &commit.effects {
                let (now, owner) = cubes.entry(&effect.cube).or_default();
                now.apply(&effect.change);
                if let Change::Ownership(ownership) = &effect.change {
                    *owner = ownership.as_ref();
                }
            }
        }
        for Holding { tenant, cube, memories, .. } in &found.holdings {
            let name = (tenant.clone(), cube.clone());
            let Some((now, Some(owner))) = cubes.get(&name) else { continue };
            if (&owner.node, owner.incarnation) != (&found.node, found.incarnation) {
                continue;
            }
            for id in memories.iter().filter(|id| !now.recalled.contains_key(id)) {
                let (node, cube) = (&found.node, title(&name));
                findings.report(format!(
                    "{node} at rest: it holds something of {id}, which is not in {cube} any more"
                ));
            }
        }
    }
}

impl Now {
    /// Makes a change; returns the conversation something of which is deleted.
    fn apply(&mut self, change: &Change) -> Option<ConversationId> {
        match change {
            Change::Manifest(manifest) => self.has_manifest = manifest.is_some(),
            Change::Item(id, Some(marked)) => {
                self.recalled.remove(id);
                if marked.item.status.is_recalled() {
                    self.recalled.insert(*id, marked.item.revision);
                }
                if let Some(conversation) = &marked.item.conversation {
                    self.conversations.insert(*id, conversation.clone());
                }
            }
            Change::Item(id, None) => {
                self.recalled.remove(id);
                return self.conversations.remove(id);
            }
            Change::KvBlock(key, Some(block)) => {
                self.blocks.insert(*key, KvBlock::clone(block));
            }
            Change::KvBlock(key, None) => drop(self.blocks.remove(key)),
            Change::Context(conversation, Some(record)) => {
                self.contexts.insert(conversation.clone(), ContextRecord::clone(record));
            }
            Change::Context(conversation, None) => drop(self.contexts.remove(conversation)),
            Change::Ownership(_) | Change::History(..) | Change::Other | Change::Feed(_) => {}
        }
        None
    }

    fn is_current(&self, source: &BlockSource) -> bool {
        self.recalled.get(&source.id) == Some(&source.revision)
    }

    fn check(
        &self,
        commit: &ReadCommit<'_>,
        cube: &CubeName,
        closed: &BTreeSet<ConversationId>,
        findings: &mut Findings,
    ) {
        let (cube, version) = (title(cube), commit.record.version);
        let is_left = !self.blocks.is_empty() || !self.contexts.is_empty();
        findings.expect(self.has_manifest || !is_left, || {
            format!("{cube}: blocks or contexts are left after the cube, in commit {version}")
        });
        for block in self.blocks.values() {
            let (key, sources) = (block.key, &block.sources);
            if let Some(source) = sources.iter().find(|source| !self.is_current(source)) {
                let BlockSource { id, revision } = source;
                findings.report(format!(
                    "{cube}: commit {version} leaves block {key}, which contains revision \
                     {revision} of {id}, which is no more"
                ));
            }
            findings.expect(
                block.parent.is_none_or(|parent| self.blocks.contains_key(&parent)),
                || format!("{cube}: commit {version} leaves block {key} without the one before it"),
            );
            let said = block.conversation.as_ref().filter(|said| closed.contains(*said));
            if let Some(said) = said {
                findings.report(format!(
                    "{cube}: commit {version} deletes something of `{said}`, and leaves block {key}"
                ));
            }
        }
        for (conversation, record) in &self.contexts {
            let mut memories = record.memories();
            if let Some(memory) = memories.find(|memory| !self.is_current(&memory.source)) {
                let BlockSource { id, revision } = memory.source;
                findings.report(format!(
                    "{cube}: commit {version} leaves the context of `{conversation}`, which \
                     contains revision {revision} of {id}, which is no more"
                ));
            }
            findings.expect(!closed.contains(conversation), || {
                format!(
                    "{cube}: commit {version} deletes something of `{conversation}`, and leaves \
                     its context"
                )
            });
        }
    }
}
