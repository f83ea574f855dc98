//! FoundationDB's error codes: their texts, and what a caller may do about each.

use std::ffi::CStr;

/// An error of the C interface. Zero is success and is never wrapped in an `Err`.
pub(crate) type Code = i32;

pub(crate) const TRANSACTION_TOO_OLD: Code = 1007;
pub(crate) const FUTURE_VERSION: Code = 1009;
pub(crate) const NOT_COMMITTED: Code = 1020;
pub(crate) const COMMIT_UNKNOWN_RESULT: Code = 1021;
pub(crate) const TRANSACTION_CANCELLED: Code = 1025;
pub(crate) const TRANSACTION_TIMED_OUT: Code = 1031;
pub(crate) const TOO_MANY_WATCHES: Code = 1032;
pub(crate) const WATCHES_DISABLED: Code = 1034;
pub(crate) const ACCESSED_UNREADABLE: Code = 1036;
pub(crate) const PROCESS_BEHIND: Code = 1037;
pub(crate) const DATABASE_LOCKED: Code = 1038;
pub(crate) const CLUSTER_VERSION_CHANGED: Code = 1039;
pub(crate) const COMMIT_PROXY_MEMORY: Code = 1042;
pub(crate) const BATCH_THROTTLED: Code = 1051;
pub(crate) const GRV_PROXY_MEMORY: Code = 1078;
pub(crate) const OPERATION_CANCELLED: Code = 1101;
pub(crate) const TAG_THROTTLED: Code = 1213;
pub(crate) const PROXY_TAG_THROTTLED: Code = 1223;
pub(crate) const HOT_SHARD_THROTTLED: Code = 1235;
pub(crate) const IO_ERROR: Code = 1510;
pub(crate) const FILE_NOT_READABLE: Code = 1513;
pub(crate) const FILE_NOT_WRITABLE: Code = 1514;
pub(crate) const NO_CLUSTER_FILE_FOUND: Code = 1515;
pub(crate) const FILE_CORRUPT: Code = 1522;
pub(crate) const LOCK_FILE_FAILURE: Code = 1529;
pub(crate) const CLIENT_INVALID_OPERATION: Code = 2000;
pub(crate) const KEY_OUTSIDE_LEGAL_RANGE: Code = 2004;
pub(crate) const INVERTED_RANGE: Code = 2005;
pub(crate) const INVALID_OPTION_VALUE: Code = 2006;
pub(crate) const INVALID_OPTION: Code = 2007;
pub(crate) const NETWORK_NOT_SETUP: Code = 2008;
pub(crate) const NETWORK_ALREADY_SETUP: Code = 2009;
pub(crate) const READ_VERSION_ALREADY_SET: Code = 2010;
pub(crate) const VERSION_INVALID: Code = 2011;
pub(crate) const RANGE_LIMITS_INVALID: Code = 2012;
pub(crate) const FUTURE_NOT_SET: Code = 2015;
pub(crate) const USED_DURING_COMMIT: Code = 2017;
pub(crate) const INVALID_MUTATION_TYPE: Code = 2018;
pub(crate) const NO_COMMIT_VERSION: Code = 2021;
pub(crate) const NETWORK_CANNOT_BE_RESTARTED: Code = 2025;
pub(crate) const TRANSACTION_TOO_LARGE: Code = 2101;
pub(crate) const KEY_TOO_LARGE: Code = 2102;
pub(crate) const VALUE_TOO_LARGE: Code = 2103;
pub(crate) const CONNECTION_STRING_INVALID: Code = 2104;
pub(crate) const SPECIAL_KEYS_CROSS_MODULE_READ: Code = 2112;
pub(crate) const SPECIAL_KEYS_NO_MODULE_FOUND: Code = 2113;
pub(crate) const SPECIAL_KEYS_WRITE_DISABLED: Code = 2114;
pub(crate) const TENANTS_DISABLED: Code = 2136;
pub(crate) const API_VERSION_UNSET: Code = 2200;
pub(crate) const API_VERSION_ALREADY_SET: Code = 2201;
pub(crate) const API_VERSION_INVALID: Code = 2202;
pub(crate) const API_VERSION_NOT_SUPPORTED: Code = 2203;
pub(crate) const EXACT_MODE_WITHOUT_LIMITS: Code = 2210;
pub(crate) const MAPPER_BAD_INDEX: Code = 2030;
pub(crate) const MAPPER_BAD_RANGE: Code = 2032;
pub(crate) const MAPPED_READS_YOUR_WRITES: Code = 2039;
pub(crate) const KEY_NOT_TUPLE: Code = 2041;
pub(crate) const VALUE_NOT_TUPLE: Code = 2042;
pub(crate) const MAPPER_NOT_TUPLE: Code = 2043;
pub(crate) const UNSUPPORTED_OPERATION: Code = 2108;
pub(crate) const TAG_TOO_LONG: Code = 2110;
pub(crate) const TOO_MANY_TAGS: Code = 2109;

/// The text of `code`, as FoundationDB words it.
pub(crate) fn text(code: Code) -> &'static CStr {
    match code {
        0 => c"Success",
        1000 => c"Operation failed",
        TRANSACTION_TOO_OLD => c"Transaction is too old to perform reads or be committed",
        FUTURE_VERSION => c"Request for future version",
        NOT_COMMITTED => c"Transaction not committed due to conflict with another transaction",
        COMMIT_UNKNOWN_RESULT => c"Transaction may or may not have committed",
        TRANSACTION_CANCELLED => c"Operation aborted because the transaction was cancelled",
        TRANSACTION_TIMED_OUT => c"Operation aborted because the transaction timed out",
        TOO_MANY_WATCHES => c"Too many watches currently set",
        WATCHES_DISABLED => c"Watches cannot be set if read your writes is disabled",
        ACCESSED_UNREADABLE => c"Read or wrote an unreadable key",
        PROCESS_BEHIND => c"Storage process does not have recent mutations",
        DATABASE_LOCKED => c"Database is locked",
        CLUSTER_VERSION_CHANGED => c"The protocol version of the cluster has changed",
        COMMIT_PROXY_MEMORY => c"CommitProxy commit memory limit exceeded",
        BATCH_THROTTLED => c"Batch GRV request rate limit exceeded",
        GRV_PROXY_MEMORY => c"GetReadVersion proxy memory limit exceeded",
        OPERATION_CANCELLED => c"Asynchronous operation cancelled",
        TAG_THROTTLED => c"Transaction tag is being throttled",
        PROXY_TAG_THROTTLED => c"Exceeded maximum proxy tag throttling duration",
        HOT_SHARD_THROTTLED => c"Transaction throttled due to hot shard",
        IO_ERROR => c"Disk i/o operation failed",
        FILE_NOT_READABLE => c"File could not be read",
        FILE_NOT_WRITABLE => c"File could not be written to",
        NO_CLUSTER_FILE_FOUND => c"No cluster file found in current directory or default location",
        LOCK_FILE_FAILURE => c"Unable to lock the file",
        FILE_CORRUPT => c"A structurally corrupt data file was detected",
        _ => usage_text(code),
    }
}

/// Texts of the errors by which the client refuses what it was asked.
fn usage_text(code: Code) -> &'static CStr {
    match code {
        CLIENT_INVALID_OPERATION => c"Invalid API call",
        KEY_OUTSIDE_LEGAL_RANGE => c"Key outside legal range",
        INVERTED_RANGE => c"Range begin key larger than end key",
        INVALID_OPTION_VALUE => c"Option set with an invalid value",
        INVALID_OPTION => c"Option not valid in this context",
        NETWORK_NOT_SETUP => c"Action not possible before the network is configured",
        NETWORK_ALREADY_SETUP => c"Network can be configured only once",
        READ_VERSION_ALREADY_SET => c"Transaction already has a read version set",
        VERSION_INVALID => c"Version not valid",
        RANGE_LIMITS_INVALID => c"Range limits not valid",
        FUTURE_NOT_SET => c"Future not ready",
        USED_DURING_COMMIT => c"Operation issued while a commit was outstanding",
        INVALID_MUTATION_TYPE => c"Unrecognized atomic mutation type",
        NO_COMMIT_VERSION => {
            c"Transaction is read-only and therefore does not have a commit version"
        }
        NETWORK_CANNOT_BE_RESTARTED => c"Network can only be started once",
        TRANSACTION_TOO_LARGE => c"Transaction exceeds byte limit",
        KEY_TOO_LARGE => c"Key length exceeds limit",
        VALUE_TOO_LARGE => c"Value length exceeds limit",
        CONNECTION_STRING_INVALID => c"Connection string invalid",
        UNSUPPORTED_OPERATION => c"Operation is not supported",
        TOO_MANY_TAGS => c"Too many tags set on transaction",
        TAG_TOO_LONG => c"Tag set on transaction is too long",
        SPECIAL_KEYS_CROSS_MODULE_READ => c"Special key space range read crosses modules",
        SPECIAL_KEYS_NO_MODULE_FOUND => c"Special key space range read does not intersect a module",
        SPECIAL_KEYS_WRITE_DISABLED => c"Special key space is not allowed to write by default",
        TENANTS_DISABLED => c"Tenants have been disabled in the cluster",
        API_VERSION_UNSET => c"API version is not set",
        API_VERSION_ALREADY_SET => c"API version may be set only once",
        API_VERSION_INVALID => c"API version not valid",
        API_VERSION_NOT_SUPPORTED => c"API version not supported",
        EXACT_MODE_WITHOUT_LIMITS => c"EXACT streaming mode requires limits, but none were given",
        MAPPER_BAD_INDEX => c"The index in K[] or V[] is not a valid number or out of range",
        MAPPER_BAD_RANGE => c"\"{...}\" must be the last element of the mapper tuple",
        MAPPED_READS_YOUR_WRITES => {
            c"getMappedRange tries to read data that were previously written in the transaction"
        }
        KEY_NOT_TUPLE => c"The key cannot be parsed as a tuple",
        VALUE_NOT_TUPLE => c"The value cannot be parsed as a tuple",
        MAPPER_NOT_TUPLE => c"The mapper cannot be parsed as a tuple",
        _ => c"UNKNOWN_ERROR",
    }
}

/// Whether the transaction may have been committed although its commit failed.
pub(crate) fn is_maybe_committed(code: Code) -> bool {
    matches!(code, COMMIT_UNKNOWN_RESULT | CLUSTER_VERSION_CHANGED)
}

/// Whether the transaction is certainly not committed and may be tried again.
pub(crate) fn is_retryable_not_committed(code: Code) -> bool {
    matches!(code, TRANSACTION_TOO_OLD | FUTURE_VERSION) || is_backed_off(code) && code != 1021
}

/// Whether `on_error` waits for the growing delay before the transaction is tried again.
pub(crate) fn is_backed_off(code: Code) -> bool {
    matches!(
        code,
        NOT_COMMITTED
            | COMMIT_UNKNOWN_RESULT
            | DATABASE_LOCKED
            | COMMIT_PROXY_MEMORY
            | GRV_PROXY_MEMORY
            | PROCESS_BEHIND
            | BATCH_THROTTLED
            | TAG_THROTTLED
            | PROXY_TAG_THROTTLED
            | HOT_SHARD_THROTTLED
    )
}

/// `fdb_error_predicate`.
pub(crate) fn predicate(test: i32, code: Code) -> bool {
    match test {
        50_000 => is_maybe_committed(code) || is_retryable_not_committed(code),
        50_001 => is_maybe_committed(code),
        50_002 => is_retryable_not_committed(code),
        _ => false,
    }
}
