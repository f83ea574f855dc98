//! Every bound of the system, as a named constant with its unit and its reason.

/// Bytes of a tenant id: it stands in front of every key.
pub const TENANT_ID_BYTES_MAX: usize = 64;
/// Bytes of a cube id. Applications use user ids here, and the evaluation client of MemOS long
/// ones.
pub const CUBE_ID_BYTES_MAX: usize = 256;
/// Bytes of any other identifier given by the caller.
pub const TEXT_ID_BYTES_MAX: usize = 256;

/// Bytes of an HTTP request body: room for 10,000 ordinary messages in one call.
pub const REQUEST_BODY_BYTES_MAX: usize = 32 << 20;
/// Messages in one add. A larger import is sent in several calls.
pub const MESSAGES_PER_ADD_MAX: usize = 10_000;
/// Memories that one add makes of its messages: the record that makes a retry harmless names them
/// all, and has to fit into one value.
pub const MEMORIES_PER_ADD_MAX: usize = 12_000;
/// Bytes of one message: a long document is cut into items, but has to arrive in one piece.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of the text of one memory item: past this the reader splits.
pub const ITEM_TEXT_BYTES_MAX: usize = 16 << 10;
/// Words of one item before the reader splits it: short enough to be about one thing, and well
/// inside the 256 word pieces that MiniLM sees (chunks of 120 words were found best on long
/// answers).
pub const ITEM_WORDS_MAX: usize = 120;
/// Tags on one item.
pub const TAGS_MAX: usize = 64;
/// Bytes of one tag.
pub const TAG_BYTES_MAX: usize = 256;
/// Bytes of the free-form `info` of one item, as JSON.
pub const INFO_BYTES_MAX: usize = 16 << 10;
/// Source turns kept on one item: exact repetitions beyond this are counted, not listed.
pub const SOURCES_PER_ITEM_MAX: usize = 32;
/// Bytes of the contents of the source turns kept on one item; the first is kept in any case. With
/// text, labels and data, an item stays well below [`VALUE_BYTES_MAX`].
pub const SOURCES_BYTES_MAX: usize = 64 << 10;
/// Bytes of a search query: anything longer is not a question.
pub const QUERY_BYTES_MAX: usize = 64 << 10;
/// Hits that one search returns at the most.
pub const TOP_K_MAX: usize = 1_000;
/// Hits that one search returns when the caller names no number.
pub const TOP_K_DEFAULT: usize = 10;
/// Items in one page of a list.
pub const PAGE_ITEMS_MAX: usize = 1_000;
/// Items in one page of a list when the caller names no number.
pub const PAGE_ITEMS_DEFAULT: usize = 100;
/// Items of one cube: it lives in the RAM of one actor (about 3 KB an item with its vector).
pub const ITEMS_PER_CUBE_MAX: usize = 1_000_000;

/// Requests that wait for one cube before further ones are refused with `Overloaded`.
pub const CUBE_INFLIGHT_MAX: usize = 256;
/// Changes that one cube puts into one commit.
pub const COMMANDS_PER_COMMIT_MAX: usize = 256;
/// Events after which a commit takes no further command, and the most that one command may bring: a
/// larger add or deletion takes several commits.
pub const EVENTS_PER_COMMIT_MAX: usize = 256;
/// Bytes after which a commit takes no further command: FoundationDB takes 10 MB, and advises to
/// stay
/// far below.
pub const COMMIT_BYTES_AIM: usize = 500_000;
/// Mutations of one commit: what the fullest one of a cube writes, several times over, and less
/// than
/// the 65,536 that a versionstamp can number.
pub const MUTATIONS_PER_COMMIT_MAX: usize = 16_384;
/// Bytes of one key in the state store: FoundationDB takes 10,000, and the keys of chunks are up to
/// twice as long as those of their values.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// Bytes of one value in the state store; larger ones become blobs.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Bytes of one value under a versionstamped key: FoundationDB takes 100,000, and such values are
/// not cut into chunks.
pub const STAMPED_VALUE_BYTES_MAX: usize = 64 << 10;
/// Commits that wait in the embedded store before further ones are refused.
pub const STORE_QUEUE_MAX: usize = 4_096;
/// Commits that share one fsync at the most.
pub const STORE_GROUP_MAX: usize = 1_024;
/// Commit tokens that a store remembers, so that an unknown outcome can be looked up.
pub const COMMIT_TOKENS_MAX: usize = 65_536;
/// Idempotency records kept per cube; the oldest leave first.
pub const REQUEST_RECORDS_MAX: usize = 10_000;

/// Texts that wait for the embedder before further ones are refused.
pub const EMBED_QUEUE_TEXTS_MAX: usize = 65_536;
/// Texts that one add hands to the embedder at a time, so that a large one leaves room in the
/// queue.
pub const EMBED_CHUNK_TEXTS: usize = 2_048;
/// Texts in one forward pass of the embedder: beyond 32 the packed batch gets no faster.
pub const EMBED_BATCH_TEXTS_MAX: usize = 32;

/// Cube actors that one node keeps hydrated before the least recently used ones are passivated.
pub const HOT_CUBES_MAX: usize = 10_000;
/// Panics of one cube inside [`CUBE_PANIC_WINDOW_MS`] before it is quarantined.
pub const CUBE_PANICS_MAX: usize = 3;
/// Milliseconds over which panics of a cube are counted together.
pub const CUBE_PANIC_WINDOW_MS: u64 = 60_000;
/// Milliseconds that a caller waits for its cube before it is told `Unavailable`.
pub const CUBE_CALL_MS_MAX: u64 = 30_000;

/// Questions that wait for the cube host before further ones are refused: every caller of a cold
/// cube asks one.
pub const HOST_CALLS_MAX: usize = 16_384;
/// Cubes read ahead of a hand-over that one node keeps; one more forgets the oldest.
pub const STANDBYS_MAX: usize = 16;
/// Milliseconds that a cube read ahead is kept for its hand-over.
pub const STANDBY_KEPT_MS: u64 = 30_000;

/// Calls to other nodes that wait for an answer before further ones are refused.
pub const PEER_CALLS_MAX: usize = 4_096;
/// Calls of other nodes that are executed at a time before further ones are refused.
pub const PEER_SERVING_MAX: usize = 4_096;
/// Milliseconds that a node waits for another's answer to what may be asked again.
pub const PEER_READ_MS_MAX: u64 = 5_000;
/// Milliseconds that a node waits for another's answer to anything else: a change, whose outcome
/// nobody knows afterwards, or a hand-over, which reads a whole cube.
pub const PEER_CHANGE_MS_MAX: u64 = 20_000;
/// Bytes of one frame between nodes: a page of 1,000 memories, each with all that it may hold.
pub const PEER_FRAME_BYTES_MAX: usize = 128 << 20;
/// Bytes of frames on their way to one node before further ones are lost: two of the largest.
pub const PEER_SENDING_BYTES_MAX: usize = 256 << 20;
/// Bytes that a frame counts for at least, so that many small ones have a bound as well.
pub const PEER_FRAME_BYTES_COUNTED_MIN: usize = 32 << 10;
/// Bytes of frames of other nodes that are read at a time before further ones are refused.
pub const PEER_HEARING_BYTES_MAX: usize = 512 << 20;
/// Milliseconds until a frame has left, or is lost: less than [`PEER_WINDOW_KEPT_MS`].
pub const PEER_FRAME_MS_MAX: u64 = 10_000;
/// Nodes that a node knows the address of.
pub const PEERS_MAX: usize = 1_024;
/// Connections of other nodes, and of strangers who are about to be refused.
pub const PEER_CONNECTIONS_MAX: usize = 2_048;
/// Numbers of calls remembered for each sender: more than it can have under way.
pub const PEER_WINDOW_CALLS: usize = 8_192;
/// Milliseconds that the numbers of a sender are kept after it was last seen alive: longer than a
/// transport may hold a frame back.
pub const PEER_WINDOW_KEPT_MS: u64 = 60_000;
/// Routes to cubes on other nodes that are remembered.
pub const ROUTES_MAX: usize = 65_536;

/// Bytes of one blob that are moved at a time; larger blobs go in parts of this size.
pub const BLOB_PART_BYTES: usize = 8 << 20;
/// Parts of one blob that are under way at a time.
pub const BLOB_PARTS_AT_ONCE: usize = 4;
/// Milliseconds that a blob which nothing refers to is kept: longer than writing one takes.
pub const BLOB_GRACE_MS: u64 = 3_600_000;

/// Items from which on a cube gets snapshots: fewer are read from their rows about as fast.
pub const SNAPSHOT_ITEMS_MIN: usize = 2_000;
/// A cube in RAM gets a new snapshot when this share of its items has changed.
pub const SNAPSHOT_TAIL_SHARE: usize = 8;
/// A cube that leaves RAM gets a new snapshot when this share of its items has changed.
pub const SNAPSHOT_LEAVING_SHARE: usize = 64;
/// Milliseconds between two snapshots of a cube in RAM, so that a busy one does not do little else.
pub const SNAPSHOT_PAUSE_MS: u64 = 10_000;
/// Snapshots that one node makes at a time: each needs as much RAM as its cube.
pub const SNAPSHOTS_AT_ONCE: usize = 2;
/// Snapshots that wait on one node; a cube that would be one more goes without.
pub const SNAPSHOTS_WAITING_MAX: usize = 16;
/// Items in one section of a snapshot, so that several processors can read it.
pub const SNAPSHOT_SECTION_ITEMS: usize = 4_096;
/// Vectors in one block of a cube's index and of its snapshots.
pub const VECTOR_BLOCK_SLOTS: usize = 1_024;
/// Changed items in one tail record: 16 bytes each, well inside a value.
pub const TAIL_RECORD_ITEMS_MAX: usize = 8_192;

/// Bytes of one part of a backup: large enough for few requests, small enough to hold two in RAM.
pub const BACKUP_PART_BYTES_MAX: usize = 8 << 20;
/// Bytes of the rows in one commit of a restore: well inside what FoundationDB takes.
pub const RESTORE_COMMIT_BYTES_MAX: usize = 500_000;
/// Rows in one commit of a restore.
pub const RESTORE_COMMIT_ROWS_MAX: usize = 256;
/// Backups that one node hands out at a time: each keeps two parts in RAM.
pub const BACKUPS_RUNNING_MAX: usize = 1;

/// Cubes that one search over several may name.
pub const CUBES_PER_SEARCH_MAX: usize = 1_000;
/// Cubes that a search over several asks one by one, where no vector tier answers for them: each of
/// them is hydrated.
pub const CUBES_ASKED_MAX: usize = 64;
/// Searches over several cubes that one node executes at a time before further ones are refused.
pub const TENANT_SEARCHES_MAX: usize = 64;
/// Memories that a search reads and scores itself because the vector tier has not seen their change
/// yet; further behind, it says so.
pub const UNINDEXED_ITEMS_MAX: usize = 16_384;
/// Candidates that a search takes from one table at the most.
pub const CANDIDATES_MAX: usize = 16_384;
/// Feed records that are read at a time: each may name some thousand memories.
pub const INDEX_PAGE_RECORDS: usize = 256;
/// Rows that the vector tier writes at a time: much fewer make many small files.
pub const INDEX_BATCH_ROWS: usize = 2_048;
/// Shards of tenants that wait to be built before further wishes are dropped; the next search
/// wishes again.
pub const INDEX_WISHES_MAX: usize = 4_096;
/// Shards of tenants whose last news the vector tier remembers; of others it looks again.
pub const INDEX_SHARDS_KNOWN_MAX: usize = 65_536;
/// Rows of one table of the vector tier in RAM: about 2 KB each with a vector of 384 values.
pub const TABLE_IN_RAM_ROWS_MAX: usize = 1_000_000;

/// Records of an event feed that are read at once; a page of a reader has no more.
pub const FEED_PAGE_RECORDS_MAX: usize = 1_000;
/// Records of an event feed in one page when the reader names no number.
pub const FEED_PAGE_RECORDS_DEFAULT: usize = 200;
/// Cubes by which one reader filters a feed: with more, the whole feed is read with less effort.
pub const FEED_FILTER_CUBES_MAX: usize = 256;
/// Streams of events that one node serves before further ones are refused.
pub const FEED_STREAMS_MAX: usize = 4_096;
/// Streams of events that one tenant has on one node, so that it leaves some to the others.
pub const FEED_STREAMS_PER_TENANT_MAX: usize = 1_024;
/// Batches of events that wait for one stream; a reader that falls further behind is cut off, and
/// resumes by its cursor.
pub const FEED_STREAM_BATCHES_MAX: usize = 64;
/// Records of a feed that one commit trims.
pub const FEED_TRIM_RECORDS_MAX: usize = 500;
/// Milliseconds that records of an event feed are kept when the settings name no number: a week.
pub const FEED_KEPT_MS: u64 = 7 * 24 * 3_600_000;
/// Milliseconds for which the row of a node that is dead or has left is kept: a day.
pub const NODE_ROW_KEPT_MS: u64 = 24 * 3_600_000;

/// Requests that wait for one language model or are being answered, before further ones are
/// refused: more than that would wait longer than anybody does.
pub const INFERENCE_REQUESTS_MAX: usize = 64;
/// Sessions whose next tokens are computed together.
pub const DECODE_BATCH_MAX: usize = 16;
/// Pieces of text that wait for a reader who is slow; then the model waits.
pub const REPLY_PIECES_MAX: usize = 64;
/// Tokens of one reply when the caller names no number.
pub const REPLY_TOKENS_DEFAULT: usize = 512;
/// Milliseconds that a request for a reply may take when the caller names no number.
pub const REPLY_MS_DEFAULT: u64 = 120_000;
/// Bytes of one reply of a model elsewhere: far more than anybody reads, so that a server that
/// never ends fills no RAM.
pub const REMOTE_REPLY_BYTES_MAX: usize = 4 << 20;
/// Requests that a model elsewhere answers at the same time; the others wait here, where those who
/// want an answer go first.
pub const REMOTE_REQUESTS_MAX: usize = 16;
/// Prompts that wait to be sent ahead of their answers to a model elsewhere.
pub const REMOTE_PRELOADS_MAX: usize = 8;
/// Tokens of the window of a model elsewhere when the settings name no number.
pub const REMOTE_WINDOW_TOKENS_DEFAULT: usize = 8_192;
/// Milliseconds of silence of a model elsewhere, before its first token or between two.
pub const REMOTE_SILENCE_MS_DEFAULT: u64 = 60_000;
/// Tenants whose budgets of tokens are remembered; past it, those that have spent least go.
pub const REMOTE_TENANT_BUDGETS_MAX: usize = 10_000;
/// Conversations whose further fields, such as tools, are remembered for what is sent ahead.
pub const REMOTE_EXTRAS_MAX: usize = 256;
/// Blocks of keys and values that one cube keeps: a quarter of a million tokens, and few enough
/// that one commit can clear them all.
pub const KV_BLOCKS_PER_CUBE_MAX: usize = 1_024;
/// Bytes of the blocks of keys and values that one cube keeps in the object store.
pub const KV_BYTES_PER_CUBE_MAX: u64 = 1 << 30;
/// Blocks that one commit takes in.
pub const KV_BLOCKS_PER_COMMIT_MAX: usize = 64;
/// Bytes of keys and values in RAM, of all tenants together.
pub const KV_RAM_BYTES_DEFAULT: u64 = 1 << 30;
/// Bytes of sessions that are kept on a device for the next turn.
pub const KV_DEVICE_BYTES_DEFAULT: u64 = 512 << 20;
/// Bytes of keys and values on the local disk.
pub const KV_DISK_BYTES_DEFAULT: u64 = 8 << 30;
/// Blocks that are being copied from the object store to the local disk.
pub const KV_COPIES_AT_ONCE: usize = 8;
/// First tokens of a memory that are computed where it stands when the others come from what was
/// computed for it by itself: most of what brings the text nearer to the exact one.
pub const SEGMENT_REPAIR_TOKENS_DEFAULT: usize = 16;
/// Conversations of one cube whose contexts are kept; past it, the one that was used least recently
/// goes.
pub const CONTEXTS_PER_CUBE_MAX: usize = 64;
/// Memories in one context: with its turns, its record stays well below [`VALUE_BYTES_MAX`].
pub const CONTEXT_MEMORIES_MAX: usize = 1_024;
/// Segments of one context.
pub const CONTEXT_SEGMENTS_MAX: usize = 1_024;

/// Memories that a scene remembers to have been of use: what counts after some twenty turns.
pub const SCENE_ACCESSES_MAX: usize = 256;
/// Bytes of one event of a conversation: more than anybody types between two of them.
pub const EVENT_TEXT_BYTES_MAX: usize = 64 << 10;
/// Events that wait for the scheduler: with texts of usual length, a few MiB.
pub const EVENTS_WAITING_MAX: usize = 4_096;
/// Events of one tenant among them, so that one tenant never takes all places.
pub const EVENTS_WAITING_PER_TENANT_MAX: usize = 512;
/// Actors among which conversations are spread.
pub const SCHEDULER_SHARDS: usize = 4;
/// Conversations that a node follows; past it, the one that was silent longest is forgotten.
pub const SCENES_MAX: usize = 2_048;
/// Bytes of what was said in one conversation that the scheduler keeps, so as to have it computed
/// ahead: more than most windows hold.
pub const SCENE_PROMPT_BYTES_MAX: usize = 1 << 20;
/// The same for all conversations of a node.
pub const SCENES_PROMPT_BYTES_MAX: usize = 256 << 20;
/// Decisions of a conversation that its timeline remembers.
pub const SCENE_ENTRIES_MAX: usize = 64;
/// Names of events of a conversation that are remembered, so that each counts once.
pub const SCENE_EVENT_IDS_MAX: usize = 128;
/// Tenants whose predictor and budget are in RAM.
pub const SCHEDULER_TENANTS_MAX: usize = 1_024;
/// Milliseconds that one preload may take.
pub const PRELOAD_MS_MAX: u64 = 60_000;
/// Tokens of memories that one preload adds to a context.
pub const PRELOAD_TOKENS_DEFAULT: usize = 512;
/// Tokens that are computed ahead for one tenant in a minute.
pub const PRELOAD_TENANT_TOKENS_PER_MINUTE_DEFAULT: u64 = 60_000;
/// Candidates that a cube names for the next turn: several times what fits into a prompt.
pub const SCENE_CANDIDATES_MAX: usize = 512;

/// Background jobs of tenants that wait on one node before further ones are refused.
pub const JOBS_WAITING_MAX: usize = 16_384;
/// Background jobs of one tenant that wait on one node, so that it leaves room to the others; and
/// of the node itself.
pub const JOBS_WAITING_PER_TENANT_MAX: usize = 1_024;
/// Background jobs of one tenant that a node remembers after they have ended.
pub const JOBS_REMEMBERED_PER_TENANT: usize = 64;
/// Tenants whose background jobs a node remembers; past it, those go that had none for longest.
pub const JOB_TENANTS_MAX: usize = 1_024;
/// Bytes of the name of a background job: a cube id and a few words.
pub const JOB_NAME_BYTES_MAX: usize = 512;
/// Adds of MemOS's clients whose names one node remembers, of each tenant: what a client asks for
/// is what it has just added.
pub const MEMOS_TASKS_PER_TENANT_MAX: usize = 4_096;
/// Bytes of such a name.
pub const MEMOS_TASK_BYTES_MAX: usize = 256;

/// Messages of one chat request: more than any window of a model holds.
pub const CHAT_MESSAGES_MAX: usize = 4_096;
/// Texts before which a reply ends.
pub const CHAT_STOPS_MAX: usize = 16;
/// Bytes of one of them.
pub const CHAT_STOP_BYTES_MAX: usize = 1 << 10;
/// Texts that one request embeds, as many as OpenAI takes.
pub const EMBEDDINGS_TEXTS_MAX: usize = 2_048;
