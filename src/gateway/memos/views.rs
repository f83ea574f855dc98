//! From items to what MemOS's clients read.

use memcube_schemas::{
    CubeId,
    command::AddedMemory,
    memory::{MemoryItem, MemoryKind, SourceTurn},
};
use serde_json::{Value, json};

use crate::gateway::http::rfc3339;

/// One entry of the answer to an add.
pub(crate) fn added(memory: &AddedMemory, cube: &CubeId) -> Value {
    json!({
        "memory": memory.text,
        "memory_id": memory.id,
        "memory_type": "LongTermMemory",
        "cube_id": cube,
    })
}

/// One memory with its metadata.
pub(crate) fn memory(item: &MemoryItem, user: &str, relativity: Option<f32>) -> Value {
    let id = item.id.to_string();
    let reference = format!("[{}]", &id[..8]);
    let info: Value = serde_json::from_str(&item.info).unwrap_or_else(|_| json!({}));
    let sources: Vec<Value> = item.sources.iter().map(source).collect();
    let mut metadata = json!({
        "user_id": user,
        "session_id": item.conversation,
        "status": item.status,
        "is_fast": null,
        "evolve_to": [],
        "version": item.revision,
        "history": [],
        "working_binding": null,
        "type": item.kind,
        "key": null,
        "confidence": 0.99,
        "source": null,
        "tags": item.tags,
        "visibility": null,
        "created_at": rfc3339(item.learned_at_ms),
        "updated_at": rfc3339(item.updated_at_ms),
        "info": info,
        "internal_info": null,
        "covered_history": null,
        "memory_type": memory_type(item),
        "sources": sources,
        "embedding": [],
        "usage": [],
        "background": "",
        "file_ids": [],
        "ref_id": reference,
        "id": id,
        "memory": item.text,
    });
    if let Some(relativity) = relativity {
        metadata["relativity"] = json!(relativity);
    }
    json!({"id": id, "memory": item.text, "ref_id": reference, "metadata": metadata})
}

fn memory_type(item: &MemoryItem) -> &'static str {
    match item.kind {
        MemoryKind::Preference => "PreferenceMemory",
        MemoryKind::Fact | MemoryKind::Episode => "LongTermMemory",
    }
}

fn source(turn: &SourceTurn) -> Value {
    json!({
        "type": "chat",
        "role": turn.role,
        "chat_time": turn.chat_time,
        "message_id": turn.message_id,
        "content": turn.content,
        "doc_path": null,
        "file_info": null,
        "image_info": null,
    })
}

/// The memories of one cube.
pub(crate) fn bucket(cube: &CubeId, memories: Vec<Value>) -> Value {
    json!({"cube_id": cube, "total_nodes": memories.len(), "memories": memories})
}

/// The answer to a search: text memories, and the other kinds, of which there are none yet.
pub(crate) fn found(text_mem: Vec<Value>) -> Value {
    let empty: Vec<Value> = text_mem
        .iter()
        .map(|bucket| json!({"cube_id": bucket["cube_id"], "memories": [], "total_nodes": 0}))
        .collect();
    json!({
        "text_mem": text_mem,
        "act_mem": [],
        "para_mem": [],
        "pref_mem": empty,
        "pref_note": "",
        "pref_string": "",
        "tool_mem": empty,
        "skill_mem": empty,
    })
}

/// The memories of one cube as the nodes of a graph.
pub(crate) fn graph(cube: &CubeId, nodes: Vec<Value>) -> Value {
    let count = nodes.len();
    let edges: Vec<Value> = Vec::new();
    json!({
        "cube_id": cube,
        "memories": [{"nodes": nodes, "edges": edges, "tree_structure": {}}],
        "memory_statistics": {"total": count},
    })
}
