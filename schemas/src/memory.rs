//! Memory items: what one cube remembers in plain text.

use rkyv::{Archive, Deserialize, Serialize};

use crate::{
    codec::Stored,
    conversation::Role,
    ids::{ConversationId, MemoryId, Version},
};

/// What sort of memory an item is.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// A statement that was given as such.
    Fact,
    /// Something that was said or happened, at its time.
    Episode,
    /// What somebody likes, wants or avoids.
    Preference,
}

/// Where an item stands in its life (MemOS, arXiv 2507.03724, section 4: memory lifecycle).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum MemoryStatus {
    /// Made, not yet in use.
    Generated,
    /// In use: recall finds it.
    Activated,
    /// Replaced by an item that contains it.
    Merged,
    /// Kept, but recall leaves it out.
    Archived,
    /// In use, and protected against change.
    Frozen,
    /// At its end: only deletion is left.
    Expired,
}

impl MemoryStatus {
    /// Whether the lifecycle allows this move.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        use MemoryStatus::{Activated, Archived, Expired, Frozen, Generated, Merged};
        matches!(
            (self, next),
            (Generated, Activated | Archived | Expired)
                | (Activated, Merged | Archived | Frozen | Expired)
                | (Merged, Archived | Expired)
                | (Archived, Activated | Expired)
                | (Frozen, Activated)
        )
    }

    /// Whether recall looks at items of this status.
    #[must_use]
    pub const fn is_recalled(self) -> bool {
        matches!(self, Self::Activated | Self::Frozen)
    }

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Activated => "activated",
            Self::Merged => "merged",
            Self::Archived => "archived",
            Self::Frozen => "frozen",
            Self::Expired => "expired",
        }
    }
}

/// The message that an item came from, unchanged.
#[derive(
    Debug,
    Clone,
    PartialEq,
    Eq,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SourceTurn {
    /// Who spoke.
    pub role: Role,
    /// The speaker's name, if known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub speaker: Option<String>,
    /// The time as the caller wrote it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chat_time: Option<String>,
    /// The caller's own id of the message.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_id: Option<String>,
    /// The part of the message that became this item, as it was said.
    pub content: String,
}

/// One memory. Stored under `keys::item`; its vector lies beside it under `keys::vector`.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct MemoryItem {
    /// Its identifier; identifiers of one cube sort by creation.
    pub id: MemoryId,
    /// What sort of memory it is.
    pub kind: MemoryKind,
    /// Where it stands in its life.
    pub status: MemoryStatus,
    /// The memory as a model should read it: date, speaker, words, with dates made absolute.
    pub text: String,
    /// The speaker's name, if known.
    pub speaker: Option<String>,
    /// Who spoke, in the sense of chat APIs.
    pub role: Role,
    /// When it was said or true: Unix milliseconds; a time without an offset counts as UTC.
    pub said_at_ms: Option<i64>,
    /// When this cube learned it: Unix milliseconds.
    pub learned_at_ms: i64,
    /// When it was last changed: Unix milliseconds.
    pub updated_at_ms: i64,
    /// The conversation it was said in.
    pub conversation: Option<ConversationId>,
    /// The item said just before it in the same conversation.
    pub previous: Option<MemoryId>,
    /// Position and number of parts, when a long message became several items.
    pub part: Option<(u32, u32)>,
    /// Labels given by the caller.
    pub tags: Vec<String>,
    /// Free-form data given by the caller, as one JSON object in text form; empty if none.
    pub info: String,
    /// The messages it came from: one, or several when exact repetitions were folded.
    pub sources: Vec<SourceTurn>,
    /// How often it was said.
    pub occurrences: u32,
    /// Word pieces of `text`, to cut a result to a token budget.
    pub tokens: u32,
    /// Starts at 1 and grows with every change of this item.
    pub revision: u32,
    /// The cube's version at its last change.
    pub version: Version,
}

impl Stored for MemoryItem {
    const NAME: &'static str = "memory item";
    const KIND: u8 = 1;
    const FORMAT: u8 = 1;
}

/// Why an item was changed.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ChangeReason {
    /// The caller changed it.
    Updated,
    /// The caller deleted it.
    Deleted,
}

/// A former version of an item, kept when it was changed. Stored under `keys::history`.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct MemoryRevision {
    /// The item as it was.
    pub former: MemoryItem,
    /// When the change was made: Unix milliseconds.
    pub changed_at_ms: i64,
    /// Who made it: the name of the API key, or a role of the node.
    pub changed_by: String,
    /// Why.
    pub reason: ChangeReason,
    /// The cube's version after the change.
    pub version: Version,
}

impl Stored for MemoryRevision {
    const NAME: &'static str = "memory revision";
    const KIND: u8 = 2;
    const FORMAT: u8 = 1;
}

/// The vector of one item under one model. Derived: it can be computed again from the text.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct MemoryVector {
    /// Unit length; one value a dimension.
    pub values: Vec<f32>,
}

impl Stored for MemoryVector {
    const NAME: &'static str = "memory vector";
    const KIND: u8 = 3;
    const FORMAT: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::MemoryStatus::{self, *};

    #[test]
    fn the_lifecycle_allows_these_moves_and_no_others() {
        let all = [Generated, Activated, Merged, Archived, Frozen, Expired];
        let allowed: Vec<(MemoryStatus, MemoryStatus)> = all
            .iter()
            .flat_map(|from| all.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| from.may_become(*to))
            .collect();
        assert_eq!(allowed.len(), 12);
        assert!(all.iter().all(|next| !Expired.may_become(*next)), "expired is final");
        assert!(!Frozen.may_become(Expired), "a frozen item is thawed first");
        assert!(all.iter().all(|status| !status.may_become(*status)));
    }
}
