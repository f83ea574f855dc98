//! The reference model: what a cube should hold, kept in a plain map.

use std::collections::BTreeMap;

use memcube_schemas::{MemoryId, memory::MemoryItem};

/// What is known of a memory from the answers alone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// It was acknowledged with this text.
    Present(String),
    /// Its deletion was acknowledged.
    Absent,
    /// A change of it ended without an answer: before or after are both right.
    Unsure,
}

/// A reference for one cube.
#[derive(Debug, Default)]
pub struct Model {
    expected: BTreeMap<MemoryId, Expected>,
    /// Texts whose add ended without an answer.
    maybe_added: Vec<String>,
}

impl Model {
    /// An add was acknowledged.
    pub fn added(&mut self, id: MemoryId, text: &str) {
        self.expected.insert(id, Expected::Present(text.to_owned()));
    }

    /// An add ended without an answer.
    pub fn maybe_added(&mut self, text: &str) {
        self.maybe_added.push(text.to_owned());
    }

    /// A deletion was acknowledged.
    pub fn deleted(&mut self, id: MemoryId) {
        self.expected.insert(id, Expected::Absent);
    }

    /// A deletion ended without an answer.
    pub fn maybe_deleted(&mut self, id: MemoryId) {
        self.expected.insert(id, Expected::Unsure);
    }

    /// Memories that are certainly there.
    #[must_use]
    pub fn present(&self) -> Vec<(MemoryId, String)> {
        let certain = |(id, expected): (&MemoryId, &Expected)| match expected {
            Expected::Present(text) => Some((*id, text.clone())),
            Expected::Absent | Expected::Unsure => None,
        };
        self.expected.iter().filter_map(certain).collect()
    }

    /// Compares the whole cube with what was acknowledged: every acknowledged memory exactly once,
    /// nothing deleted, and nothing that nobody asked for.
    #[must_use]
    pub fn violations(&self, items: &[MemoryItem]) -> Vec<String> {
        let mut violations = Vec::new();
        let held: BTreeMap<MemoryId, &MemoryItem> =
            items.iter().map(|item| (item.id, item)).collect();
        for (id, expected) in &self.expected {
            match (expected, held.get(id)) {
                (Expected::Present(text), Some(item)) if item.text != *text => {
                    violations.push(format!("{id} changed to {:?}", item.text));
                }
                (Expected::Present(text), None) => {
                    violations.push(format!("{id} {text:?} is lost"))
                }
                (Expected::Absent, Some(_)) => violations.push(format!("{id} came back")),
                (Expected::Present(_) | Expected::Unsure, _) | (Expected::Absent, None) => {}
            }
        }
        let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
        for item in items {
            *texts.entry(&item.text).or_default() += 1;
            let is_known =
                self.expected.contains_key(&item.id) || self.maybe_added.contains(&item.text);
            if !is_known {
                violations.push(format!("{} {:?} was never added", item.id, item.text));
            }
        }
        let twice = texts.into_iter().filter(|(_, count)| *count > 1);
        violations.extend(twice.map(|(text, count)| format!("{text:?} is there {count} times")));
        violations
    }
}
