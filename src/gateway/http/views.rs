//! From what actors answer to what `/v1` shows.

use jiff::Timestamp;
use memcube_actors::{CubeDescription, cube::Hit, feed::FeedEvent, vectors::CubeHit};
use memcube_schemas::{
    api::v1::{
        ChangeBody, ChangeKind, CubeBody, CubeCondition, CubeHitBody, EventBody, EventKind,
        HitBody, MemoryBody, RevisionBody, ScoresBody,
    },
    feed::{FeedChange, ItemChange},
    memory::{MemoryItem, MemoryRevision},
};

/// Unix milliseconds as RFC 3339 in UTC.
pub(crate) fn rfc3339(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), |at| at.to_string())
}

pub(crate) fn cube(description: CubeDescription) -> CubeBody {
    let CubeDescription { manifest, is_hot, quarantine } = description;
    let condition = match (&quarantine, is_hot) {
        (Some(_), _) => CubeCondition::Quarantined,
        (None, true) => CubeCondition::Hot,
        (None, false) => CubeCondition::Cold,
    };
    CubeBody {
        id: manifest.id,
        name: manifest.name,
        owner: manifest.owner,
        created_at: rfc3339(manifest.created_at_ms),
        updated_at: rfc3339(manifest.updated_at_ms),
        version: manifest.version,
        items: manifest.items,
        embedder: manifest.embedder.map(|model| model.to_string()),
        condition,
        quarantine_reason: quarantine,
    }
}

pub(crate) fn memory(item: &MemoryItem) -> MemoryBody {
    MemoryBody {
        id: item.id,
        text: item.text.clone(),
        kind: item.kind,
        status: item.status,
        speaker: item.speaker.clone(),
        role: item.role,
        said_at: item.said_at_ms.map(rfc3339),
        learned_at: rfc3339(item.learned_at_ms),
        updated_at: rfc3339(item.updated_at_ms),
        conversation: item.conversation.clone(),
        previous: item.previous,
        part: item.part,
        tags: item.tags.clone(),
        info: serde_json::from_str(&item.info).ok(),
        sources: item.sources.clone(),
        occurrences: item.occurrences,
        tokens: item.tokens,
        revision: item.revision,
        version: item.version,
    }
}

pub(crate) fn revision(revision: &MemoryRevision) -> RevisionBody {
    RevisionBody {
        former: memory(&revision.former),
        changed_at: rfc3339(revision.changed_at_ms),
        changed_by: revision.changed_by.clone(),
        reason: revision.reason,
        version: revision.version,
    }
}

pub(crate) fn hit(hit: &Hit) -> HitBody {
    let scores = hit.scores;
    HitBody {
        memory: memory(&hit.item),
        relativity: hit.relativity,
        scores: ScoresBody {
            dense: scores.dense,
            dense_z: scores.dense_z,
            lexical: scores.lexical,
            lexical_z: scores.lexical_z,
            speaker: scores.speaker,
            date: scores.date,
            form: scores.form,
            fused: scores.fused,
        },
    }
}

pub(crate) fn cube_hit(found: &CubeHit) -> CubeHitBody {
    let HitBody { memory, relativity, scores } = hit(&found.hit);
    CubeHitBody { cube: found.cube.clone(), memory, relativity, scores }
}

pub(crate) fn event(FeedEvent { stamp, record }: FeedEvent) -> EventBody {
    let (event, changes) = match record.change {
        FeedChange::CubeMade => (EventKind::Made, Vec::new()),
        FeedChange::Items(items) => (EventKind::Changed, items),
        FeedChange::CubeErased => (EventKind::Erased, Vec::new()),
        FeedChange::CubeRestored => (EventKind::Restored, Vec::new()),
    };
    let change = |(memory, change, revision)| {
        let change = match change {
            ItemChange::Added => ChangeKind::Added,
            ItemChange::Repeated => ChangeKind::Repeated,
            ItemChange::Updated => ChangeKind::Updated,
            ItemChange::Deleted => ChangeKind::Deleted,
            ItemChange::Purged => ChangeKind::Purged,
        };
        ChangeBody { memory, change, revision }
    };
    EventBody {
        id: stamp.to_string(),
        event,
        cube: record.cube,
        version: record.version,
        at: rfc3339(record.at_ms),
        changes: changes.into_iter().map(change).collect(),
    }
}
