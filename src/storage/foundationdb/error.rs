//! What FoundationDB's error codes mean to whoever called the state store.

use foundationdb::FdbError;
use memcube_actors::storage::StoreError;

/// Codes of `flow/error_definitions.h` that something is decided on.
pub(super) mod code {
    pub(in super::super) const TIMED_OUT_CONNECTING: i32 = 1004;
    pub(in super::super) const TRANSACTION_TOO_OLD: i32 = 1007;
    pub(in super::super) const FUTURE_VERSION: i32 = 1009;
    pub(in super::super) const NOT_COMMITTED: i32 = 1020;
    pub(in super::super) const TRANSACTION_TIMED_OUT: i32 = 1031;
    pub(in super::super) const PROCESS_BEHIND: i32 = 1037;
    pub(in super::super) const DATABASE_LOCKED: i32 = 1038;
    pub(in super::super) const PROXY_MEMORY_LIMIT: i32 = 1042;
    pub(in super::super) const BATCH_THROTTLED: i32 = 1051;
    pub(in super::super) const GRV_PROXY_MEMORY_LIMIT: i32 = 1078;
    pub(in super::super) const TAG_THROTTLED: i32 = 1213;
    pub(in super::super) const PROXY_TAG_THROTTLED: i32 = 1223;
    pub(in super::super) const NO_CLUSTER_FILE: i32 = 1515;
    pub(in super::super) const TOO_LARGE: [i32; 3] = [2101, 2102, 2103];
    pub(in super::super) const CONNECTION_STRING_INVALID: i32 = 2104;
}

/// Why a transaction came to nothing, given that none of its attempts took effect.
pub(super) fn failed(error: FdbError, cluster_file: &str) -> StoreError {
    let code = error.code();
    match code {
        code::PROXY_MEMORY_LIMIT
        | code::BATCH_THROTTLED
        | code::GRV_PROXY_MEMORY_LIMIT
        | code::TAG_THROTTLED
        | code::PROXY_TAG_THROTTLED => StoreError::Overloaded,
        code if code::TOO_LARGE.contains(&code) => {
            StoreError::TooLarge { reason: format!("{error} (FoundationDB error {code})") }
        }
        code::TIMED_OUT_CONNECTING | code::TRANSACTION_TIMED_OUT => silent(cluster_file),
        code::TRANSACTION_TOO_OLD | code::FUTURE_VERSION => unavailable(format!(
            "FoundationDB did not finish within the five seconds that it keeps a version for \
             ({error}, error {code}); ask for less at a time, or retry when the cluster is less \
             busy"
        )),
        code::DATABASE_LOCKED => unavailable(
            "the FoundationDB database is locked; unlock it with `fdbcli` when its restore is over"
                .to_owned(),
        ),
        code => unavailable(format!(
            "FoundationDB refuses: {error} (error {code}); `fdbcli --exec status` tells more"
        )),
    }
}

/// Nothing came back in time.
pub(super) fn silent(cluster_file: &str) -> StoreError {
    unavailable(format!(
        "the FoundationDB cluster of {cluster_file} did not answer in time; check that it runs and \
         can be reached, and that `store.fdb-cluster-file` names the right cluster file"
    ))
}

/// Why a database cannot be opened.
pub(super) fn connecting(error: FdbError, cluster_file: Option<&str>) -> StoreError {
    let named = named(cluster_file);
    let what = match error.code() {
        code::NO_CLUSTER_FILE => "there is no such file",
        code::CONNECTION_STRING_INVALID => "it holds no connection string",
        _ => error.message(),
    };
    unavailable(format!(
        "the FoundationDB database of {named} cannot be opened: {what} (error {}); set \
         `store.fdb-cluster-file` to the cluster file",
        error.code()
    ))
}

/// How messages name a cluster file.
pub(super) fn named(cluster_file: Option<&str>) -> String {
    cluster_file.map_or_else(
        || "the default cluster file".to_owned(),
        |path| format!("the cluster file `{path}`"),
    )
}

/// Whether a commit that was answered with this error certainly took no effect, and never will.
pub(super) fn is_harmless(code: i32) -> bool {
    matches!(
        code,
        code::TRANSACTION_TOO_OLD
            | code::FUTURE_VERSION
            | code::NOT_COMMITTED
            | code::PROCESS_BEHIND
            | code::DATABASE_LOCKED
            | code::PROXY_MEMORY_LIMIT
            | code::BATCH_THROTTLED
            | code::GRV_PROXY_MEMORY_LIMIT
            | code::TAG_THROTTLED
            | code::PROXY_TAG_THROTTLED
    ) || code::TOO_LARGE.contains(&code)
}

pub(super) const fn unavailable(reason: String) -> StoreError {
    StoreError::Unavailable { reason }
}
