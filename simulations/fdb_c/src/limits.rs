//! FoundationDB's limits and knobs, with the values of 7.3.

/// The longest key that may be written.
pub(crate) const KEY_BYTES_MAX: usize = 10_000;
/// The longest key of the system's own space that may be written.
pub(crate) const SYSTEM_KEY_BYTES_MAX: usize = 30_000;
/// The longest value that may be written.
pub(crate) const VALUE_BYTES_MAX: usize = 100_000;
/// The most a transaction may affect, unless its option says less.
pub(crate) const TRANSACTION_BYTES_MAX: u64 = 10_000_000;
/// The least that the option for the above may say.
pub(crate) const SIZE_LIMIT_MIN: i64 = 32;
/// Versions a second, and thus the unit of the window.
pub(crate) const VERSIONS_PER_SECOND: u64 = 1_000_000;
/// How far back a transaction may read, and how old it may be when it commits.
pub(crate) const WINDOW_VERSIONS: u64 = 5 * VERSIONS_PER_SECOND;
/// How far a recovery moves the versions.
pub(crate) const RECOVERY_VERSIONS: u64 = 100_000_000;
/// How long a storage server waits for a version before it says that it lies in the future.
pub(crate) const FUTURE_VERSION_DELAY_US: u64 = 1_000_000;
/// Watches one database handle may hold.
pub(crate) const WATCHES_MAX: u64 = 10_000;
/// The most that the option for the above may say.
pub(crate) const WATCHES_OPTION_MAX: i64 = 1_000_000;
/// Tags of one transaction.
pub(crate) const TAGS_MAX: usize = 5;
/// Length of one tag.
pub(crate) const TAG_BYTES_MAX: usize = 16;
/// The first delay of `on_error`.
pub(crate) const BACKOFF_FIRST_US: u64 = 10_000;
/// How much longer every further one is.
pub(crate) const BACKOFF_GROWTH: u64 = 2;
/// The longest, unless the option says otherwise.
pub(crate) const BACKOFF_MAX_US: u64 = 1_000_000;
/// The longest when a proxy ran out of memory.
pub(crate) const RESOURCE_BACKOFF_MAX_US: u64 = 30_000_000;
/// The delay of `on_error` after a version was too old or too new.
pub(crate) const FUTURE_VERSION_RETRY_US: u64 = 10_000;
/// What a mutation counts on top of its two byte strings.
pub(crate) const MUTATION_OVERHEAD_BYTES: u64 = 28;
/// What a conflict range counts on top of its two keys.
pub(crate) const RANGE_OVERHEAD_BYTES: u64 = 24;
/// Bytes of a reply in the streaming modes exact, small, medium, large, serial.
pub(crate) const MODE_BYTES: [Option<u64>; 5] =
    [None, Some(256), Some(1_000), Some(4_096), Some(80_000)];
/// Bytes of a reply in the iterator mode, by iteration.
pub(crate) const ITERATION_BYTES: [u64; 10] =
    [4_096, 6_144, 9_216, 13_824, 20_736, 31_104, 46_656, 69_984, 80_000, 120_000];
/// The oldest version of the interface whose behaviour this is: what changed later is not here.
pub(crate) const API_VERSION_MIN: i32 = 610;
/// The newest version of the interface that may be asked for.
pub(crate) const API_VERSION_MAX: i32 = 730;
