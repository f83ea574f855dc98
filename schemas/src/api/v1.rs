//! Bodies of `/v1`.

use serde::{Deserialize, Serialize};

use super::openai::OpenAiError;
use crate::{
    conversation::Role,
    ids::{ConversationId, CubeId, MemoryId, UserId, Version},
    memory::{ChangeReason, MemoryKind, MemoryStatus, SourceTurn},
};

macro_rules! body {
    ($(#[$doc:meta])* request $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
    ($(#[$doc:meta])* response $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

// Below the macro, which it uses.
mod conversations;
mod events;
mod jobs;
mod nodes;
mod tenant_search;

pub use conversations::{
    ConversationEventBody, ConversationEventRequest, ConversationEventResponse, PredictorResponse,
    PredictorWeight,
};
pub use events::{ChangeBody, ChangeKind, EventBody, EventKind, EventsResponse, StreamClosed};
pub use jobs::{JobBody, JobCondition, JobCountsBody, JobsResponse, PauseJobsRequest};
pub use nodes::{HandOverRequest, HandOverResponse, ListNodesResponse, NodeBody, NodeCondition};
pub use tenant_search::{
    CubeHitBody, TenantSearchBody, TenantSearchResponse, VectorShardBody, VectorsResponse,
};

body! {
    /// Makes a cube.
    request CreateCubeRequest {
        /// Its identifier, usually the user's or agent's own.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: CubeId,
        /// A name for people; the id if left out.
        #[serde(default)]
        name: Option<String>,
        /// Whom it belongs to.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        owner: Option<UserId>,
    }
}

body! {
    /// Takes a backup, which the answer streams.
    request BackupBody {
        /// Only these cubes; all of the caller's, and its API keys, if left out.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
        cubes: Option<Vec<CubeId>>,
    }
}

/// Whether a cube takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum CubeCondition {
    /// In RAM.
    Hot,
    /// In the store; the first call brings it into RAM.
    Cold,
    /// It failed repeatedly or cannot be read, and takes no calls until it is released.
    Quarantined,
}

body! {
    /// One cube.
    response CubeBody {
        /// Its identifier.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: CubeId,
        /// A name for people.
        name: String,
        /// Whom it belongs to.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        owner: Option<UserId>,
        /// When it was made (RFC 3339).
        created_at: String,
        /// When it was last changed (RFC 3339).
        updated_at: String,
        /// Grows with every commit.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
        /// Memories it holds.
        items: u64,
        /// The model of its vectors.
        #[serde(skip_serializing_if = "Option::is_none")]
        embedder: Option<String>,
        /// Whether it takes calls.
        condition: CubeCondition,
        /// Why it is in quarantine.
        #[serde(skip_serializing_if = "Option::is_none")]
        quarantine_reason: Option<String>,
    }
}

body! {
    /// A page of cubes.
    response ListCubesResponse {
        /// In the order of their ids.
        cubes: Vec<CubeBody>,
        /// Ask again with this as `cursor` for the next page; absent on the last one.
        #[serde(skip_serializing_if = "Option::is_none")]
        next_cursor: Option<String>,
    }
}

body! {
    /// One message of a conversation.
    request MessageBody {
        /// Who speaks; `user` if left out.
        #[serde(default = "user")]
        role: Role,
        /// What is said.
        content: String,
        /// The speaker's name, if it does not stand in the content.
        #[serde(default)]
        name: Option<String>,
        /// When it was said: ISO 8601 or another common form.
        #[serde(default)]
        chat_time: Option<String>,
        /// The application's own id of the message; hits name it as their source.
        #[serde(default)]
        message_id: Option<String>,
    }
}

fn user() -> Role {
    Role::User
}

body! {
    /// Remembers messages of a conversation, a statement, or both.
    request AddMemoriesRequest {
        /// Messages in the order in which they were said.
        #[serde(default)]
        messages: Vec<MessageBody>,
        /// One statement, remembered as it stands.
        #[serde(default)]
        text: Option<String>,
        /// The conversation that the messages belong to.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        conversation: Option<ConversationId>,
        /// Labels for every memory made of this request.
        #[serde(default)]
        tags: Vec<String>,
        /// Free-form data for every memory made of this request.
        #[serde(default)]
        info: Option<serde_json::Map<String, serde_json::Value>>,
        /// Also remember what the roles `system` and `tool` say.
        #[serde(default)]
        remember_system_and_tool: bool,
    }
}

body! {
    /// A memory that was added.
    response AddedBody {
        /// Its identifier.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: MemoryId,
        /// Its text, with the date and the speaker in front.
        text: String,
        /// What sort of memory it is.
        kind: MemoryKind,
        /// `true` when the cube held exactly this memory already and counted it once more.
        folded: bool,
    }
}

body! {
    /// What was remembered: durable and findable when this is answered.
    response AddMemoriesResponse {
        /// In the order of the request; a long message makes several.
        memories: Vec<AddedBody>,
        /// Messages that made no memory: empty ones, and those of `system` and `tool`.
        ignored_messages: usize,
        /// The cube's version after it.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
    }
}

body! {
    /// One memory.
    response MemoryBody {
        /// Its identifier.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: MemoryId,
        /// The memory as a model should read it.
        text: String,
        /// What sort of memory it is.
        kind: MemoryKind,
        /// Where it stands in its life.
        status: MemoryStatus,
        /// The speaker's name.
        #[serde(skip_serializing_if = "Option::is_none")]
        speaker: Option<String>,
        /// Who spoke, in the sense of chat APIs.
        role: Role,
        /// When it was said (RFC 3339), as far as it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        said_at: Option<String>,
        /// When the cube learned it (RFC 3339).
        learned_at: String,
        /// When it was last changed (RFC 3339).
        updated_at: String,
        /// The conversation it was said in.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        conversation: Option<ConversationId>,
        /// The memory said just before it.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        previous: Option<MemoryId>,
        /// Position and number of parts of a long message.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<u32>>))]
        part: Option<(u32, u32)>,
        /// Labels.
        tags: Vec<String>,
        /// Free-form data.
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<serde_json::Value>,
        /// The messages it came from, as they were said.
        sources: Vec<SourceTurn>,
        /// How often exactly this was said.
        occurrences: u32,
        /// Word pieces of the text.
        tokens: u32,
        /// Grows with every change of this memory.
        revision: u32,
        /// The cube's version at its last change.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
    }
}

body! {
    /// A page of memories.
    response ListMemoriesResponse {
        /// In the order in which they were made.
        memories: Vec<MemoryBody>,
        /// Ask again with this as `cursor` for the next page; absent on the last one.
        #[serde(skip_serializing_if = "Option::is_none")]
        next_cursor: Option<String>,
    }
}

body! {
    /// Changes one memory; its former version is kept.
    request UpdateMemoryRequest {
        /// New text.
        #[serde(default)]
        text: Option<String>,
        /// New status, if the lifecycle allows it.
        #[serde(default)]
        status: Option<MemoryStatus>,
        /// New labels, in place of the former ones.
        #[serde(default)]
        tags: Option<Vec<String>>,
        /// New free-form data, in place of the former.
        #[serde(default)]
        info: Option<serde_json::Map<String, serde_json::Value>>,
        /// Refuse with 409 if the memory has another revision by now.
        #[serde(default)]
        expected_revision: Option<u32>,
    }
}

body! {
    /// What was forgotten.
    response DeleteMemoriesResponse {
        /// The memories that are gone.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        ids: Vec<MemoryId>,
        /// The cube's version after it.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
    }
}

body! {
    /// A former version of a memory.
    response RevisionBody {
        /// The memory as it was.
        former: MemoryBody,
        /// When it was changed (RFC 3339).
        changed_at: String,
        /// By whom.
        changed_by: String,
        /// Why.
        reason: ChangeReason,
        /// The cube's version after the change.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
    }
}

body! {
    /// What became of a memory over time.
    response HistoryResponse {
        /// As it is now; absent when it was deleted.
        #[serde(skip_serializing_if = "Option::is_none")]
        current: Option<MemoryBody>,
        /// Its former versions, oldest first.
        revisions: Vec<RevisionBody>,
    }
}

body! {
    /// Conditions on memories.
    request SearchFilterBody {
        /// It has every one of these labels.
        #[serde(default)]
        tags: Vec<String>,
        /// It is from this conversation.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        conversation: Option<ConversationId>,
        /// It is of one of these kinds; none means any.
        #[serde(default)]
        kinds: Vec<MemoryKind>,
        /// It was said at this time or later (ISO 8601).
        #[serde(default)]
        said_from: Option<String>,
        /// It was said before this time (ISO 8601).
        #[serde(default)]
        said_before: Option<String>,
    }
}

body! {
    /// Asks a cube.
    request SearchBody {
        /// The question.
        query: String,
        /// Hits at the most; 10 if left out.
        #[serde(default)]
        top_k: Option<usize>,
        /// Word pieces that all hits together may have.
        #[serde(default)]
        token_budget: Option<u32>,
        /// Hits below this relativity, from 0 to 1, are left out.
        #[serde(default)]
        relativity_min: Option<f32>,
        /// Which memories count.
        #[serde(default)]
        filter: Option<SearchFilterBody>,
    }
}

body! {
    /// What each arm says about a hit.
    response ScoresBody {
        /// Cosine of the vectors of query and memory.
        dense: f32,
        /// z-score of the dense arm over the cube, neighbours included.
        dense_z: f32,
        /// BM25 over the memory and its neighbours.
        lexical: f32,
        /// z-score of the lexical arm over the cube.
        lexical_z: f32,
        /// Added because the memory is by the speaker whom the query names.
        speaker: f32,
        /// Added because the memory fits the time that the query names.
        date: f32,
        /// Added for its form: who spoke, statement or question, length.
        form: f32,
        /// Everything together; hits are ordered by it.
        fused: f32,
    }
}

body! {
    /// One memory that was found.
    response HitBody {
        /// The memory.
        memory: MemoryBody,
        /// How well it fits, from 0 to 1.
        relativity: f32,
        /// Why it was found.
        scores: ScoresBody,
    }
}

body! {
    /// What was found.
    response SearchResponse {
        /// Best first.
        hits: Vec<HitBody>,
        /// Word pieces of all hits together.
        tokens: u32,
        /// The version of the cube that was searched.
        #[cfg_attr(feature = "openapi", schema(value_type = u64))]
        version: Version,
    }
}

body! {
    /// An error (RFC 9457, `application/problem+json`).
    response Problem {
        /// Names the kind of error: `about:blank#` and the code.
        r#type: String,
        /// The HTTP status in words.
        title: String,
        /// The HTTP status.
        status: u16,
        /// Stable name of the error: `not_found`, `invalid`, `conflict`, `unauthorized`,
        /// `too_large`, `overloaded`, `unavailable`, `fenced`, `gone`, `corrupt`, `internal`.
        code: String,
        /// What is wrong and what to do.
        detail: String,
        /// Names this request in the log.
        request_id: String,
        /// When a retry makes sense, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        /// The same for OpenAI's clients, on the routes that they call.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<OpenAiError>,
    }
}

body! {
    /// Whether the process lives.
    response HealthResponse {
        /// Always `healthy`: a process that answers lives.
        status: String,
        /// Always `memcube`.
        service: String,
        /// The version of memcube.
        version: String,
    }
}

body! {
    /// Whether the node can serve.
    response ReadyResponse {
        /// Everything below is ready.
        ready: bool,
        /// The state store answers.
        store: bool,
        /// The cube host lives.
        cubes: bool,
        /// The embedding model is loaded, or none is configured.
        embedder: bool,
        /// The node stands among the others, or is alone with its store.
        cluster: bool,
    }
}
