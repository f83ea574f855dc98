//! Every metric: its name, unit, labels and meaning. No other file spells a metric's name.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Requests answered, by `route`, `method` and `status`.
pub const HTTP_REQUESTS_TOTAL: &str = "memcube_http_requests_total";
/// Time to answer a request, by `route` and `method`.
pub const HTTP_REQUEST_SECONDS: &str = "memcube_http_request_seconds";
/// Calls of cubes, by `command` and `outcome`.
pub const CUBE_CALLS_TOTAL: &str = "memcube_cube_calls_total";
/// Time of a cube call, queueing and commit included, by `command`.
pub const CUBE_CALL_SECONDS: &str = "memcube_cube_call_seconds";
/// Time of one recall inside a cube, query embedding excluded.
pub const RECALL_SECONDS: &str = "memcube_recall_seconds";
/// Time to hydrate a cube.
pub const CUBE_HYDRATE_SECONDS: &str = "memcube_cube_hydrate_seconds";
/// Cube actors that are hydrated now.
pub const CUBES_HOT: &str = "memcube_cubes_hot";
/// Cubes in quarantine now.
pub const CUBES_QUARANTINED: &str = "memcube_cubes_quarantined";
/// Panics of cube actors.
pub const CUBE_PANICS_TOTAL: &str = "memcube_cube_panics_total";
/// Cubes that ended because another owner had claimed them.
pub const CUBES_FENCED_TOTAL: &str = "memcube_cubes_fenced_total";
/// Cubes handed over to another node, by `outcome`.
pub const HAND_OVERS_TOTAL: &str = "memcube_hand_overs_total";
/// Nodes that are alive, this one included, as it sees them.
pub const NODES_ALIVE: &str = "memcube_nodes_alive";
/// Nodes that this node declared dead.
pub const NODES_DECLARED_DEAD_TOTAL: &str = "memcube_nodes_declared_dead_total";
/// Calls to other nodes, by `outcome`.
pub const PEER_CALLS_TOTAL: &str = "memcube_peer_calls_total";
/// Frames of other nodes that arrived a second time and were dropped.
pub const PEER_FRAMES_REPEATED_TOTAL: &str = "memcube_peer_frames_repeated_total";
/// Frames for other nodes, by `outcome`: `sent`, or why they were lost.
pub const PEER_FRAMES_SENT_TOTAL: &str = "memcube_peer_frames_sent_total";
/// Frames that arrived, by `outcome`: `taken`, or why they were refused.
pub const PEER_FRAMES_HEARD_TOTAL: &str = "memcube_peer_frames_heard_total";
/// Memories added; repetitions that were folded are labelled `folded="true"`.
pub const MEMORIES_ADDED_TOTAL: &str = "memcube_memories_added_total";
/// Texts embedded, by `priority`.
pub const EMBEDDED_TEXTS_TOTAL: &str = "memcube_embedded_texts_total";
/// Time of one forward pass of the embedder.
pub const EMBED_BATCH_SECONDS: &str = "memcube_embed_batch_seconds";
/// Texts in one forward pass of the embedder.
pub const EMBED_BATCH_TEXTS: &str = "memcube_embed_batch_texts";
/// Time of a commit in the state store, fsync included.
pub const STORE_COMMIT_SECONDS: &str = "memcube_store_commit_seconds";
/// Commits of the state store, by `outcome`.
pub const STORE_COMMITS_TOTAL: &str = "memcube_store_commits_total";
/// Commits that shared one fsync.
pub const STORE_GROUP_COMMITS: &str = "memcube_store_group_commits";
/// Snapshots of cubes, by `outcome`.
pub const SNAPSHOTS_TOTAL: &str = "memcube_snapshots_total";
/// Time to make and store a snapshot of a cube.
pub const SNAPSHOT_SECONDS: &str = "memcube_snapshot_seconds";
/// Bytes of one snapshot.
pub const SNAPSHOT_BYTES: &str = "memcube_snapshot_bytes";
/// Cubes that were hydrated from a snapshot.
pub const SNAPSHOTS_LOADED_TOTAL: &str = "memcube_snapshots_loaded_total";
/// Snapshots that could not be used, so that the cube was read from its rows, by `reason`.
pub const SNAPSHOT_FALLBACKS_TOTAL: &str = "memcube_snapshot_fallbacks_total";
/// Objects that nothing referred to and that were removed.
pub const BLOBS_REMOVED_TOTAL: &str = "memcube_blobs_removed_total";
/// Searches over several cubes, by `outcome`.
pub const TENANT_SEARCHES_TOTAL: &str = "memcube_tenant_searches_total";
/// Searches of one large cube that the vector tier answered while the cube was not in RAM.
pub const COLD_SEARCHES_TOTAL: &str = "memcube_cold_searches_total";
/// Time of a search over several cubes, embedding of the question included.
pub const TENANT_SEARCH_SECONDS: &str = "memcube_tenant_search_seconds";
/// Memories that a search read itself because the vector tier had not seen their change yet.
pub const TENANT_SEARCH_UNINDEXED: &str = "memcube_tenant_search_unindexed";
/// Rows that the vector tier took in.
pub const VECTOR_ROWS_APPLIED_TOTAL: &str = "memcube_vector_rows_applied_total";
/// Time to bring one batch into the vector tier.
pub const VECTOR_APPLY_SECONDS: &str = "memcube_vector_apply_seconds";
/// Shards of tenants that were built in the vector tier from their rows.
pub const VECTOR_BUILDS_TOTAL: &str = "memcube_vector_builds_total";
/// Failures of the vector tier, each tried again.
pub const VECTOR_FAILURES_TOTAL: &str = "memcube_vector_failures_total";
/// Streams of events that this node serves now.
pub const FEED_STREAMS: &str = "memcube_feed_streams";
/// Streams of events that were cut off because their readers were too slow.
pub const FEED_STREAMS_CUT_OFF_TOTAL: &str = "memcube_feed_streams_cut_off_total";
/// Events handed to streams, each counted once for all streams of its tenant.
pub const FEED_EVENTS_TOTAL: &str = "memcube_feed_events_total";
/// Records trimmed from event feeds by this node.
pub const FEED_TRIMMED_TOTAL: &str = "memcube_feed_trimmed_total";
/// Time of one run of a chore, by `chore`.
pub const CHORE_SECONDS: &str = "memcube_chore_seconds";
/// Runs of chores that failed, by `chore`.
pub const CHORES_FAILED_TOTAL: &str = "memcube_chores_failed_total";
/// Background jobs that wait now.
pub const JOBS_WAITING: &str = "memcube_jobs_waiting";
/// Background jobs that run now.
pub const JOBS_RUNNING: &str = "memcube_jobs_running";
/// Background jobs that have ended, by `kind` and `outcome`.
pub const JOBS_TOTAL: &str = "memcube_jobs_total";
/// Time that a background job waited for its turn, by `kind`.
pub const JOB_WAIT_SECONDS: &str = "memcube_job_wait_seconds";
/// Time that a background job took, by `kind`.
pub const JOB_SECONDS: &str = "memcube_job_seconds";
/// Time from a request for a reply to its first token, by `warm`: whether any token was reused.
pub const TTFT_SECONDS: &str = "memcube_ttft_seconds";
/// Replies, by `outcome`.
pub const REPLIES_TOTAL: &str = "memcube_replies_total";
/// Tokens of replies.
pub const REPLY_TOKENS_TOTAL: &str = "memcube_reply_tokens_total";
/// Tokens of prompts, by `from`: `computed`, the tier that they were reused from, or `segment`.
pub const PROMPT_TOKENS_TOTAL: &str = "memcube_prompt_tokens_total";
/// Sessions whose tokens were computed together.
pub const DECODE_BATCH_SESSIONS: &str = "memcube_decode_batch_sessions";
/// Time of one pass on a device.
pub const DEVICE_PASS_SECONDS: &str = "memcube_device_pass_seconds";
/// How often a device had no memory left, by what was done `then`.
pub const DEVICE_OUT_OF_MEMORY_TOTAL: &str = "memcube_device_out_of_memory_total";
/// Blocks of keys and values that were found, by `tier`.
pub const ACTIVATION_HITS_TOTAL: &str = "memcube_activation_hits_total";
/// Whether blocks of a tier were loaded or computed again, by `tier` and `decision`.
pub const ACTIVATION_DECISIONS_TOTAL: &str = "memcube_activation_decisions_total";
/// Time to load one block, by `tier`.
pub const ACTIVATION_LOAD_SECONDS: &str = "memcube_activation_load_seconds";
/// Bytes of keys and values, by `tier`.
pub const ACTIVATION_BYTES: &str = "memcube_activation_bytes";
/// Blocks and sessions that left a tier for want of room, by `tier`.
pub const ACTIVATION_EVICTIONS_TOTAL: &str = "memcube_activation_evictions_total";
/// Blocks that were damaged, by `tier`; each was computed again.
pub const ACTIVATION_CORRUPT_TOTAL: &str = "memcube_activation_corrupt_total";
/// Blocks dropped because a memory that they contain was changed or deleted.
pub const ACTIVATION_INVALIDATED_TOTAL: &str = "memcube_activation_invalidated_total";
/// Seconds to find what the next turn of a conversation may need.
pub const SCENE_SECONDS: &str = "memcube_scene_seconds";
/// Relative error of blocks that were stored in 8 bits.
pub const ACTIVATION_QUANTISATION_ERROR: &str = "memcube_activation_quantisation_error";
/// Requests to a model elsewhere that failed, each try counted, by `kind`.
pub const REMOTE_FAILURES_TOTAL: &str = "memcube_remote_failures_total";
/// Requests to a model elsewhere that were tried again, by the `kind` of the failure.
pub const REMOTE_RETRIES_TOTAL: &str = "memcube_remote_retries_total";
/// Time that a request waited before it was sent to a model elsewhere, by `urgency`.
pub const REMOTE_WAIT_SECONDS: &str = "memcube_remote_wait_seconds";
/// Prompts sent ahead of their answers to a model elsewhere, by `outcome`.
pub const REMOTE_PRELOADS_TOTAL: &str = "memcube_remote_preloads_total";

/// Tells the recorder what each metric means. Called once, after a recorder was installed.
pub fn describe() {
    let counter = |name: &'static str, text: &'static str| {
        describe_counter!(name, Unit::Count, text);
    };
    counter(HTTP_REQUESTS_TOTAL, "requests answered");
    counter(CUBE_CALLS_TOTAL, "calls of cubes");
    counter(CUBE_PANICS_TOTAL, "panics of cube actors");
    counter(CUBES_FENCED_TOTAL, "cubes that another owner had claimed");
    counter(HAND_OVERS_TOTAL, "cubes handed over to another node");
    counter(NODES_DECLARED_DEAD_TOTAL, "nodes declared dead");
    counter(PEER_CALLS_TOTAL, "calls to other nodes");
    counter(PEER_FRAMES_REPEATED_TOTAL, "frames that arrived twice");
    counter(PEER_FRAMES_SENT_TOTAL, "frames for other nodes");
    counter(PEER_FRAMES_HEARD_TOTAL, "frames of other nodes");
    describe_gauge!(NODES_ALIVE, Unit::Count, "nodes alive, as this one sees them");
    counter(MEMORIES_ADDED_TOTAL, "memories added");
    counter(EMBEDDED_TEXTS_TOTAL, "texts embedded");
    counter(STORE_COMMITS_TOTAL, "commits of the state store");
    counter(SNAPSHOTS_TOTAL, "snapshots of cubes");
    counter(SNAPSHOTS_LOADED_TOTAL, "cubes hydrated from a snapshot");
    counter(SNAPSHOT_FALLBACKS_TOTAL, "snapshots that could not be used");
    counter(BLOBS_REMOVED_TOTAL, "objects removed that nothing referred to");
    counter(TENANT_SEARCHES_TOTAL, "searches over several cubes");
    counter(COLD_SEARCHES_TOTAL, "searches of cubes that stayed out of RAM");
    counter(VECTOR_ROWS_APPLIED_TOTAL, "rows that the vector tier took in");
    counter(VECTOR_BUILDS_TOTAL, "shards built in the vector tier from their rows");
    counter(VECTOR_FAILURES_TOTAL, "failures of the vector tier");
    describe_histogram!(TENANT_SEARCH_UNINDEXED, Unit::Count, "memories not indexed yet");
    describe_gauge!(CUBES_HOT, Unit::Count, "cube actors hydrated now");
    describe_gauge!(CUBES_QUARANTINED, Unit::Count, "cubes in quarantine now");
    let seconds = |name: &'static str, text: &'static str| {
        describe_histogram!(name, Unit::Seconds, text);
    };
    seconds(HTTP_REQUEST_SECONDS, "time to answer a request");
    seconds(CUBE_CALL_SECONDS, "time of a cube call, commit included");
    seconds(RECALL_SECONDS, "time of one recall, query embedding excluded");
    seconds(CUBE_HYDRATE_SECONDS, "time to hydrate a cube");
    seconds(SNAPSHOT_SECONDS, "time to make and store a snapshot");
    describe_histogram!(SNAPSHOT_BYTES, Unit::Bytes, "bytes of one snapshot");
    seconds(TENANT_SEARCH_SECONDS, "time of a search over several cubes");
    seconds(VECTOR_APPLY_SECONDS, "time to bring one batch into the vector tier");
    seconds(EMBED_BATCH_SECONDS, "time of one forward pass of the embedder");
    seconds(STORE_COMMIT_SECONDS, "time of a commit, fsync included");
    describe_gauge!(FEED_STREAMS, Unit::Count, "streams of events served now");
    counter(FEED_STREAMS_CUT_OFF_TOTAL, "streams of events cut off for being too slow");
    counter(FEED_EVENTS_TOTAL, "events handed to streams");
    counter(FEED_TRIMMED_TOTAL, "records trimmed from event feeds");
    describe_inference();
    describe_jobs();
    seconds(SCENE_SECONDS, "time to find what the next turn may need");
    seconds(CHORE_SECONDS, "time of one run of a chore");
    counter(CHORES_FAILED_TOTAL, "runs of chores that failed");
    describe_histogram!(EMBED_BATCH_TEXTS, Unit::Count, "texts in one forward pass");
    describe_histogram!(STORE_GROUP_COMMITS, Unit::Count, "commits that shared one fsync");
}

fn describe_inference() {
    let counter = |name: &'static str, text: &'static str| {
        describe_counter!(name, Unit::Count, text);
    };
    let seconds = |name: &'static str, text: &'static str| {
        describe_histogram!(name, Unit::Seconds, text);
    };
    seconds(TTFT_SECONDS, "time to the first token");
    counter(REPLIES_TOTAL, "replies");
    counter(REPLY_TOKENS_TOTAL, "tokens of replies");
    counter(PROMPT_TOKENS_TOTAL, "tokens of prompts");
    describe_histogram!(DECODE_BATCH_SESSIONS, Unit::Count, "sessions computed together");
    seconds(DEVICE_PASS_SECONDS, "time of one pass on a device");
    counter(DEVICE_OUT_OF_MEMORY_TOTAL, "times that a device had no memory left");
    counter(ACTIVATION_HITS_TOTAL, "blocks of keys and values found");
    counter(ACTIVATION_DECISIONS_TOTAL, "decisions to load or to compute again");
    seconds(ACTIVATION_LOAD_SECONDS, "time to load one block");
    describe_gauge!(ACTIVATION_BYTES, Unit::Bytes, "bytes of keys and values");
    counter(ACTIVATION_EVICTIONS_TOTAL, "blocks and sessions evicted");
    counter(ACTIVATION_CORRUPT_TOTAL, "damaged blocks, computed again");
    counter(ACTIVATION_INVALIDATED_TOTAL, "blocks of changed or deleted memories, dropped");
    describe_histogram!(ACTIVATION_QUANTISATION_ERROR, Unit::Count, "relative error of 8 bits");
    counter(REMOTE_FAILURES_TOTAL, "failed requests to a model elsewhere");
    counter(REMOTE_RETRIES_TOTAL, "requests to a model elsewhere, tried again");
    seconds(REMOTE_WAIT_SECONDS, "time before a request went to a model elsewhere");
    counter(REMOTE_PRELOADS_TOTAL, "prompts sent ahead to a model elsewhere");
}

fn describe_jobs() {
    describe_gauge!(JOBS_WAITING, Unit::Count, "background jobs that wait now");
    describe_gauge!(JOBS_RUNNING, Unit::Count, "background jobs that run now");
    describe_counter!(JOBS_TOTAL, Unit::Count, "background jobs that have ended");
    describe_histogram!(JOB_WAIT_SECONDS, Unit::Seconds, "time until a background job began");
    describe_histogram!(JOB_SECONDS, Unit::Seconds, "time that a background job took");
}
