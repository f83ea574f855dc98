//! Nothing is ever computed from keys and values that are not those of the prompt, of the model and
//! of the tenant; and what is forgotten is in no prompt, no context and no stored block.
//!
//! A scripted engine leaves in its numbers which tokens they are of, what came before them and
//! which pass computed them. So a session can be held against a full recompute of the tokens in
//! it, the tokens against the words that the caller sent and the memories that the cube held, and
//! the passes of one tenant's prompts against those of all others. The rows are followed from
//! commit to commit, and what the rows name at the end is read from the bucket.
//!
//! It cannot see what is held in RAM and never used, nor whether a memory was missing in a prompt
//! that should have been found. It believes a prompt that was asked for before the change of a
//! memory was acknowledged, and what is stored in 8 bits, as far as nobody reads it.

mod prompt;
mod rows;
mod stored;

use std::collections::{BTreeMap, BTreeSet};

use memcube_actors::inference::{
    Token,
    scripted::{Slot, recompute},
};
use memcube_schemas::{MemoryId, TenantId, Version};

use self::prompt::{Line, Prompt, text_of};
use super::{
    case::{Case, Change, CubeName},
    findings::Findings,
    title,
};
use crate::{
    evidence::{ChatRecord, Occasion, Reading, Violation},
    history::{Call, Outcome},
};

pub(super) const NAME: &str = "activation";

/// Looks at every session when it mattered, at every row and at every object.
pub(super) fn check(case: &Case<'_>) -> Vec<Violation> {
    let mut findings = Findings::of(NAME);
    let held = Held::read(case);
    check_readings(case, &held, &mut findings);
    rows::check(case, &mut findings);
    stored::check(case, &held, &mut findings);
    check_residents(case, &mut findings);
    rows::check_holdings(case, &mut findings);
    findings.into_violations()
}

/// One revision of a memory, and how long it was.
#[derive(Debug)]
struct Life {
    id: MemoryId,
    revision: u32,
    /// The commit that ended it.
    until: Option<Version>,
}

/// What one cube held, ever.
#[derive(Debug, Default)]
struct HeldTexts {
    lives: Vec<Life>,
    by_text: BTreeMap<String, Vec<usize>>,
    /// When callers were told that a memory is gone, or at this revision.
    told: Vec<(MemoryId, Option<u32>, u64)>,
    /// When callers were told that the cube is gone: at this version of the store.
    erased: Vec<(Version, u64)>,
}

impl HeldTexts {
    fn lives_of(&self, text: &str) -> impl Iterator<Item = &Life> {
        self.by_text.get(text).into_iter().flatten().filter_map(|at| self.lives.get(*at))
    }

    /// Whether somebody was told, before a moment, that this is no more.
    fn was_gone(&self, life: &Life, before: u64) -> bool {
        let Some(until) = life.until else { return false };
        let is_told = |(id, revision, order): &(MemoryId, Option<u32>, u64)| {
            *id == life.id && *order < before && revision.is_none_or(|new| new > life.revision)
        };
        let is_erased = |(version, order): &(Version, u64)| *order < before && until <= *version;
        self.told.iter().any(is_told) || self.erased.iter().any(is_erased)
    }
}

/// What all cubes held, ever.
#[derive(Debug, Default)]
struct Held(BTreeMap<CubeName, HeldTexts>);

impl Held {
    fn read(case: &Case<'_>) -> Self {
        let mut held = Self::default();
        for commit in &case.commits {
            for effect in &commit.effects {
                let Change::Item(id, item) = &effect.change else { continue };
                let texts = held.0.entry(effect.cube.clone()).or_default();
                let version = commit.record.version;
                let open = texts.lives.iter_mut().rev().find(|life| life.id == *id);
                if let Some(life) = open.filter(|life| life.until.is_none()) {
                    // Said again, it is what it was.
                    if item.as_ref().is_some_and(|item| item.item.revision == life.revision) {
                        continue;
                    }
                    life.until = Some(version);
                }
                if let Some(item) = item {
                    let at = texts.lives.len();
                    let (revision, text) = (item.item.revision, item.item.text.clone());
                    texts.lives.push(Life { id: *id, revision, until: None });
                    texts.by_text.entry(text).or_default().push(at);
                }
            }
        }
        for operation in case.evidence.history.operations() {
            let Some(returned) = operation.returned else { continue };
            let told = match (&operation.call, &operation.outcome) {
                (Call::Delete { id, .. }, Outcome::Deleted { .. }) => (*id, None, returned.order),
                (Call::Update { id, .. }, Outcome::Updated { seen, .. }) => {
                    (*id, Some(seen.revision), returned.order)
                }
                (_, _) => continue,
            };
            let name = (operation.tenant.clone(), operation.cube.clone());
            held.0.entry(name).or_default().told.push(told);
        }
        for (tenant, cube, moment) in &case.evidence.erased {
            let texts = held.0.entry((tenant.clone(), cube.clone())).or_default();
            texts.erased.push((moment.store, moment.order));
        }
        held
    }
}

/// Whose prompts a pass of an engine was used for.
type Owners<'a> = BTreeMap<u32, &'a TenantId>;

fn check_readings(case: &Case<'_>, held: &Held, findings: &mut Findings) {
    let chats = case.evidence.chats.iter();
    let chats: BTreeMap<&str, (usize, &ChatRecord)> =
        chats.enumerate().map(|(at, chat)| (chat.message.text.as_str(), (at, chat))).collect();
    let mut owners = Owners::new();
    let mut said: BTreeMap<usize, &[Token]> = BTreeMap::new();
    for reading in &case.evidence.readings {
        let place = place(reading);
        check_numbers(reading, &place, findings);
        let tokens: Vec<Token> = reading.slots.iter().map(|slot| slot.token).collect();
        let prompt = match Prompt::read(&tokens) {
            Ok(prompt) => prompt,
            Err(what) => {
                findings.report(format!("{place}: {what}"));
                continue;
            }
        };
        let known: Vec<&ChatRecord> = prompt
            .turns()
            .filter_map(|turn| chats.get(turn.text.as_str()).map(|(_, chat)| *chat))
            .collect();
        let tenants: BTreeSet<&TenantId> = known.iter().map(|chat| &chat.tenant).collect();
        findings.expect(tenants.len() <= 1, || {
            format!("{place}: what was said to {tenants:?} stands in one prompt")
        });
        check_owners(reading, tenants.first().copied(), &mut owners, &place, findings);
        match (reading.occasion, prompt.turns().last()) {
            (Occasion::Keep, _) => {
                if let Some(chat) = known.first() {
                    check_ahead(&prompt, chat, held, &place, findings);
                }
            }
            (Occasion::Reply, None) => {
                findings.report(format!("{place}: it answers, and nobody has said anything"));
            }
            (Occasion::Reply, Some(last)) => match chats.get(last.text.as_str()) {
                None => findings
                    .report(format!("{place}: nobody has said `{}`, which it answers", last.text)),
                Some((at, chat)) => {
                    said.insert(*at, &reading.said);
                    let nothing = HeldTexts::default();
                    let name = (chat.tenant.clone(), chat.cube.clone());
                    let texts = held.0.get(&name).unwrap_or(&nothing);
                    check_prompt(&prompt, chat, texts, findings);
                }
            },
        }
    }
    check_replies(&case.evidence.chats, &said, findings);
}

fn place(reading: &Reading) -> String {
    format!("{} at {} ms", reading.node, reading.at_ms)
}

/// A session holds what its engine would compute for the tokens in it.
fn check_numbers(reading: &Reading, place: &str, findings: &mut Findings) {
    let Reading { model, slots, ends, is_useless, .. } = reading;
    findings.expect(!is_useless, || {
        format!("{place}: a session is used that the engine called useless")
    });
    let tokens: Vec<Token> = slots.iter().map(|slot| slot.token).collect();
    let expected = recompute(model, &tokens, ends);
    let wrong = slots.iter().zip(&expected).position(|(slot, digest)| slot.digest != *digest);
    if let Some(at) = wrong {
        findings.report(format!(
            "{place}: what stands for token {at} of {} is not what `{}` computes",
            slots.len(),
            model.model
        ));
    }
}

/// No pass is used for two tenants.
fn check_owners<'a>(
    reading: &'a Reading,
    tenant: Option<&'a TenantId>,
    owners: &mut Owners<'a>,
    place: &str,
    findings: &mut Findings,
) {
    let passes: BTreeSet<u32> = reading.slots.iter().map(|Slot { pass, .. }| *pass).collect();
    let mut whose: BTreeSet<&TenantId> =
        passes.iter().filter_map(|pass| owners.get(pass).copied()).collect();
    whose.extend(tenant);
    findings.expect(whose.len() <= 1, || {
        format!("{place}: what was computed for one of {whose:?} is used for another")
    });
    if let Some(tenant) = whose.first() {
        for pass in passes {
            owners.entry(pass).or_insert(*tenant);
        }
    }
}

/// A prompt says what the caller said and what the cube held, and nothing that was known to be gone
/// when the caller asked.
fn check_prompt(prompt: &Prompt, chat: &ChatRecord, texts: &HeldTexts, findings: &mut Findings) {
    let cube = title(&(chat.tenant.clone(), chat.cube.clone()));
    let asked = &chat.message.text;
    findings.expect(prompt.is_open, || format!("{cube}: `{asked}` is not the end of its prompt"));
    let expected: Vec<&str> =
        Some(chat.preamble.as_str()).filter(|text| !text.is_empty()).into_iter().collect();
    findings.expect(prompt.instructions() == expected, || {
        format!("{cube}: `{asked}` is answered under the instructions {:?}", prompt.instructions())
    });
    let turns: Vec<_> = prompt.turns().map(|turn| (turn.role, turn.text.as_str())).collect();
    let sent = chat.turns.iter().chain([&chat.message]);
    let sent: Vec<_> = sent.map(|turn| (turn.role, turn.text.as_str())).collect();
    let left_out = chat.heard.as_ref().map(|heard| heard.turns_left_out);
    let missing = sent.len().checked_sub(turns.len());
    let is_said = missing.is_some_and(|missing| {
        sent[missing..] == turns[..] && left_out.is_none_or(|told| told == missing)
    });
    findings.expect(is_said, || {
        format!("{cube}: `{asked}` is answered after {turns:?}, and {sent:?} was sent")
    });
    let lines = prompt.lines();
    for line in &lines {
        check_line(line, chat, texts, &cube, findings);
    }
    let Some(heard) = &chat.heard else { return };
    let told: Vec<_> =
        heard.memories.iter().map(|used| (used.source.id, used.source.revision)).collect();
    let is_told = told.len() == lines.len()
        && lines.iter().zip(&told).all(|(line, (id, revision))| {
            texts.lives_of(&line.text).any(|life| (life.id, life.revision) == (*id, *revision))
        });
    findings.expect(is_told, || {
        let lines: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        format!("{cube}: the reply to `{asked}` names {told:?}, and its prompt holds {lines:?}")
    });
}

/// What is computed ahead, or kept, for a conversation holds memories of its own cube alone.
fn check_ahead(
    prompt: &Prompt,
    chat: &ChatRecord,
    held: &Held,
    place: &str,
    findings: &mut Findings,
) {
    let name = (chat.tenant.clone(), chat.cube.clone());
    let texts = held.0.get(&name);
    for line in prompt.lines().iter().filter(|line| line.is_whole) {
        let was_held = texts.is_some_and(|texts| texts.lives_of(&line.text).next().is_some());
        findings.expect(was_held, || {
            let (cube, text) = (title(&name), &line.text);
            format!("{place}: `{text}` is computed for {cube}, which never held it")
        });
    }
}

fn check_line(
    line: &Line,
    chat: &ChatRecord,
    texts: &HeldTexts,
    cube: &str,
    findings: &mut Findings,
) {
    let (asked, text) = (&chat.message.text, &line.text);
    let mut lives = texts.lives_of(text).peekable();
    if lives.peek().is_none() {
        findings.report(format!(
            "{cube}: the prompt of `{asked}` holds `{text}`, which the cube never did"
        ));
    } else if lives.all(|life| texts.was_gone(life, chat.invoked.order)) {
        findings.report(format!(
            "{cube}: the prompt of `{asked}` holds `{text}`, and its end was acknowledged before"
        ));
    }
}

/// Callers hear what was chosen, in full if they were told so.
fn check_replies(chats: &[ChatRecord], said: &BTreeMap<usize, &[Token]>, findings: &mut Findings) {
    for (at, chat) in chats.iter().enumerate() {
        let Some(heard) = &chat.heard else { continue };
        let cube = title(&(chat.tenant.clone(), chat.cube.clone()));
        let asked = &chat.message.text;
        let Some(tokens) = said.get(&at) else {
            findings.report(format!("{cube}: no prompt was read for the reply to `{asked}`"));
            continue;
        };
        let text = text_of(tokens);
        let is_right =
            if heard.is_whole { text == heard.text } else { text.starts_with(&heard.text) };
        findings.expect(is_right, || {
            format!("{cube}: `{text}` was said to `{asked}`, and `{}` was heard", heard.text)
        });
    }
}

/// What is held stays within its bounds; and nobody holds a session once nobody uses one.
fn check_residents(case: &Case<'_>, findings: &mut Findings) {
    for found in &case.evidence.residents {
        let (node, at_ms) = (&found.node, found.at_ms);
        for (what, (bytes, bound)) in [("on the device", found.parked), ("in RAM", found.ram)] {
            findings.expect(bytes <= bound, || {
                format!("{node} at {at_ms} ms: {bytes} bytes are kept {what}, {bound} may be")
            });
        }
        findings.expect(!found.at_rest || found.open == found.parked.0, || {
            let (open, parked) = (found.open, found.parked.0);
            format!("{node} at rest: sessions of {open} bytes are open, of {parked} bytes parked")
        });
    }
}

#[cfg(test)]
mod tests;
