//! Options of the network, of databases and of transactions: which exist, what they take, and
//! which of them outlive a retry.

use crate::errors::{Code, INVALID_OPTION, INVALID_OPTION_VALUE, TAG_TOO_LONG, TOO_MANY_TAGS};
use crate::limits::{
    BACKOFF_MAX_US, SIZE_LIMIT_MIN, TAG_BYTES_MAX, TAGS_MAX, TRANSACTION_BYTES_MAX, WATCHES_MAX,
    WATCHES_OPTION_MAX,
};

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Int,
    Bytes,
}

fn network_option(code: u32) -> Option<Takes> {
    Some(match code {
        10 | 20 | 30 | 33..=36 | 39..=43 | 45..=47 | 52..=54 | 62 | 63 | 66 | 90 | 91 | 1000 => {
            Takes::Bytes
        }
        31 | 32 | 50 | 51 | 65 | 82 | 83 | 1002 => Takes::Int,
        37 | 38 | 48 | 49 | 60 | 61 | 64 | 67..=72 | 80 | 81 | 1001 => Takes::Nothing,
        _ => return None,
    })
}

fn database_option(code: u32) -> Option<Takes> {
    Some(match code {
        10 | 20 | 405 | 500..=503 => Takes::Int,
        21 | 22 => Takes::Bytes,
        26 | 27 | 504..=506 | 700..=702 | 800 | 900 => Takes::Nothing,
        _ => return None,
    })
}

fn transaction_option(code: u32) -> Option<Takes> {
    Some(match code {
        405 | 500..=503 => Takes::Int,
        401..=403 | 504 | 800 | 801 | 900 | 2000 => Takes::Bytes,
        10
        | 20
        | 21
        | 23
        | 30
        | 40
        | 50..=52
        | 110
        | 120
        | 130
        | 200
        | 201
        | 300..=304
        | 400
        | 404
        | 406
        | 505
        | 507..=511
        | 600
        | 601
        | 700..=702
        | 710..=714
        | 1000
        | 1100..=1102 => Takes::Nothing,
        _ => return None,
    })
}

fn check(takes: Option<Takes>, value: &[u8]) -> Result<Option<i64>, Code> {
    match takes.ok_or(INVALID_OPTION)? {
        Takes::Nothing if value.is_empty() => Ok(None),
        Takes::Nothing => Err(INVALID_OPTION_VALUE),
        Takes::Int => {
            let bytes = value.try_into().map_err(|_| INVALID_OPTION_VALUE)?;
            Ok(Some(i64::from_le_bytes(bytes)))
        }
        Takes::Bytes => Ok(None),
    }
}

/// Checks an option of the network; none changes what the double does.
pub(crate) fn check_network(code: u32, value: &[u8]) -> Result<(), Code> {
    check(network_option(code), value).map(|_| ())
}

fn within(value: Option<i64>, low: i64, high: i64) -> Result<i64, Code> {
    value.filter(|value| (low..=high).contains(value)).ok_or(INVALID_OPTION_VALUE)
}

/// Milliseconds of an option as microseconds.
fn micros(value: Option<i64>) -> Result<u64, Code> {
    Ok(within(value, 0, i64::from(i32::MAX))?.unsigned_abs() * 1_000)
}

/// What a database handle was told.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseOptions {
    pub(crate) watches_max: u64,
    /// What its transactions begin with, and go back to at a reset.
    pub(crate) transactions: Options,
}

impl Default for DatabaseOptions {
    fn default() -> DatabaseOptions {
        DatabaseOptions { watches_max: WATCHES_MAX, transactions: Options::default() }
    }
}

impl DatabaseOptions {
    pub(crate) fn set(&mut self, code: u32, value: &[u8]) -> Result<(), Code> {
        let number = check(database_option(code), value)?;
        let of_transaction = match code {
            20 => {
                self.watches_max = within(number, 0, WATCHES_OPTION_MAX)?.unsigned_abs();
                return Ok(());
            }
            26 => 600,
            27 => 601,
            500..=503 => code,
            504 => 20,
            506 => 505,
            700 => 1100,
            701 => 701,
            702 => 712,
            _ => return Ok(()),
        };
        self.transactions.set(of_transaction, value)
    }
}

/// What a transaction was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Zero is none.
    pub(crate) timeout_us: u64,
    pub(crate) retries_max: Option<u64>,
    pub(crate) backoff_max_us: u64,
    pub(crate) size_limit: u64,
    pub(crate) next_write_has_no_conflict: bool,
    pub(crate) ignores_own_writes: bool,
    /// Snapshot reads see own writes while this is not negative.
    pub(crate) snapshot_sees_own_writes: i32,
    pub(crate) reads_system_keys: bool,
    pub(crate) writes_system_keys: bool,
    pub(crate) has_no_commit_protection: bool,
    pub(crate) reports_conflicts: bool,
    pub(crate) special_keys_relaxed: bool,
    pub(crate) sees_unreadable: bool,
    pub(crate) is_batch: bool,
    tags: Vec<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout_us: 0,
            retries_max: None,
            backoff_max_us: BACKOFF_MAX_US,
            size_limit: TRANSACTION_BYTES_MAX,
            next_write_has_no_conflict: false,
            ignores_own_writes: false,
            snapshot_sees_own_writes: 0,
            reads_system_keys: false,
            writes_system_keys: false,
            has_no_commit_protection: false,
            reports_conflicts: false,
            special_keys_relaxed: false,
            sees_unreadable: false,
            is_batch: false,
            tags: Vec::new(),
        }
    }
}

impl Options {
    pub(crate) fn set(&mut self, code: u32, value: &[u8]) -> Result<(), Code> {
        let number = check(transaction_option(code), value)?;
        match code {
            30 => self.next_write_has_no_conflict = true,
            51 => self.ignores_own_writes = true,
            201 => self.is_batch = true,
            301 => (self.reads_system_keys, self.writes_system_keys) = (true, true),
            302 => self.reads_system_keys = true,
            500 => self.timeout_us = micros(number)?,
            501 => {
                let retries = within(number, -1, i64::from(i32::MAX))?;
                self.retries_max = u64::try_from(retries).ok();
            }
            502 => self.backoff_max_us = micros(number)?,
            503 => {
                let limit = within(number, SIZE_LIMIT_MIN, TRANSACTION_BYTES_MAX as i64)?;
                self.size_limit = limit.unsigned_abs();
            }
            504 if !(16..256).contains(&value.len()) => return Err(INVALID_OPTION_VALUE),
            600 => self.snapshot_sees_own_writes += 1,
            601 => self.snapshot_sees_own_writes -= 1,
            701 => self.has_no_commit_protection = true,
            712 => self.reports_conflicts = true,
            713 => self.special_keys_relaxed = true,
            800 | 801 if value.len() > TAG_BYTES_MAX => return Err(TAG_TOO_LONG),
            800 | 801 if self.tags.len() >= TAGS_MAX => return Err(TOO_MANY_TAGS),
            800 | 801 => self.tags.push(value.to_vec()),
            1100 => self.sees_unreadable = true,
            // The others tune a server that does not exist here.
            _ => {}
        }
        Ok(())
    }

    /// What is left after `on_error` reset the transaction: the limits it was given stay, the rest
    /// goes back to what the database says.
    pub(crate) fn after_retry(&self, defaults: &Options) -> Options {
        Options {
            timeout_us: self.timeout_us,
            retries_max: self.retries_max,
            backoff_max_us: self.backoff_max_us,
            size_limit: self.size_limit,
            ..defaults.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4.2 point 10: the table of options and its errors.
    #[test]
    fn options_are_checked() {
        let int = |value: i64| value.to_le_bytes().to_vec();
        for (code, value, expected) in [
            (500, int(100), Ok(())),
            (500, int(-1), Err(INVALID_OPTION_VALUE)),
            (500, vec![1], Err(INVALID_OPTION_VALUE)),
            (500, vec![], Err(INVALID_OPTION_VALUE)),
            (501, int(-1), Ok(())),
            (501, int(-2), Err(INVALID_OPTION_VALUE)),
            (503, int(31), Err(INVALID_OPTION_VALUE)),
            (503, int(32), Ok(())),
            (503, int(10_000_001), Err(INVALID_OPTION_VALUE)),
            (51, vec![], Ok(())),
            (51, vec![1], Err(INVALID_OPTION_VALUE)),
            (504, vec![0; 15], Err(INVALID_OPTION_VALUE)),
            (800, vec![b'a'; 16], Ok(())),
            (800, vec![b'a'; 17], Err(TAG_TOO_LONG)),
            (0, vec![], Err(INVALID_OPTION)),
            (9_999, vec![], Err(INVALID_OPTION)),
        ] {
            assert_eq!(Options::default().set(code, &value), expected, "{code} {value:?}");
        }
        let mut options = Options::default();
        for _ in 0..TAGS_MAX {
            assert_eq!(options.set(800, b"tag"), Ok(()));
        }
        assert_eq!(options.set(801, b"tag"), Err(TOO_MANY_TAGS));
        assert_eq!(check_network(30, b"/tmp"), Ok(()));
        assert_eq!(check_network(31, b"/tmp"), Err(INVALID_OPTION_VALUE));
        assert_eq!(check_network(7, b""), Err(INVALID_OPTION));
    }

    #[test]
    fn a_database_gives_its_transactions_their_defaults() {
        let mut database = DatabaseOptions::default();
        for (code, value, expected) in [
            (500, 5_000_i64.to_le_bytes().to_vec(), Ok(())),
            (20, 7_i64.to_le_bytes().to_vec(), Ok(())),
            (20, 1_000_001_i64.to_le_bytes().to_vec(), Err(INVALID_OPTION_VALUE)),
            (702, vec![], Ok(())),
            (1, vec![], Err(INVALID_OPTION)),
        ] {
            assert_eq!(database.set(code, &value), expected, "{code}");
        }
        assert_eq!(database.watches_max, 7);
        assert_eq!(database.transactions.timeout_us, 5_000_000);
        assert!(database.transactions.reports_conflicts);
    }

    #[test]
    fn limits_outlive_a_retry_and_nothing_else_does() {
        let mut options = Options::default();
        for code in [51, 301, 712, 1100, 601] {
            options.set(code, b"").expect("a flag");
        }
        for (code, value) in [(500, 1_i64), (501, 2), (502, 3), (503, 400)] {
            options.set(code, &value.to_le_bytes()).expect("a number");
        }
        let expected = Options {
            timeout_us: 1_000,
            retries_max: Some(2),
            backoff_max_us: 3_000,
            size_limit: 400,
            ..Options::default()
        };
        assert_eq!(options.after_retry(&Options::default()), expected);
    }
}
