//! Which commits happened: the tokens of the last [`COMMIT_TOKENS_MAX`] commits and their versions.
//!
//! One row a group: the version of its first commit → the tokens of its commits, in order, 16 bytes
//! each. Versions are consecutive, so a row needs no other, and a gap between rows is lost data.
//! The last row tells the version of the store. The oldest rows leave as whole groups.

use std::collections::{BTreeMap, VecDeque};

use memcube_actors::storage::CommitToken;
use memcube_schemas::{
    Version,
    limits::{COMMIT_TOKENS_MAX, STORE_GROUP_MAX},
};

use super::engine::LogRow;

const TOKEN_BYTES: usize = 16;

// Otherwise a group could push itself out.
const _: () = assert!(STORE_GROUP_MAX < COMMIT_TOKENS_MAX);

/// The log in RAM, as it is on the disk.
#[derive(Debug, Default)]
pub(super) struct CommitLog {
    versions: BTreeMap<CommitToken, Version>,
    /// First version and tokens of each group, oldest first.
    groups: VecDeque<(Version, Vec<CommitToken>)>,
    last: Version,
}

impl CommitLog {
    /// Rebuilds the log from its rows; the error says which commits are missing.
    pub(super) fn from_rows(rows: Vec<LogRow>) -> Result<Self, String> {
        let mut log = Self::default();
        for (key, tokens) in rows {
            let first: [u8; 8] =
                key.try_into().map_err(|_| "a key of the commit log is damaged".to_owned())?;
            let first = Version(u64::from_be_bytes(first));
            let (tokens, rest) = tokens.as_chunks::<TOKEN_BYTES>();
            if tokens.is_empty() || !rest.is_empty() {
                return Err(format!("the commit log is damaged at version {first}"));
            }
            if !log.groups.is_empty() && first != log.last.next() {
                let next = log.last.next();
                return Err(format!("commits {next} to {} are missing", first.0 - 1));
            }
            log.last = Version(first.0 - 1);
            log.append(
                tokens.iter().map(|token| CommitToken(u128::from_be_bytes(*token))).collect(),
            );
        }
        Ok(log)
    }

    /// The version of the last commit.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    /// The version of the commit with this token.
    pub(super) fn find(&self, token: CommitToken) -> Option<Version> {
        self.versions.get(&token).copied()
    }

    /// The value of the row for a new group.
    pub(super) fn row(tokens: &[CommitToken]) -> Vec<u8> {
        tokens.iter().flat_map(|token| token.0.to_be_bytes()).collect()
    }

    /// The rows that have to leave when a group of `added` commits is appended.
    pub(super) fn expired(&self, added: usize) -> Vec<Version> {
        let mut remaining = self.versions.len() + added;
        let mut expired = Vec::new();
        for (first, tokens) in &self.groups {
            if remaining <= COMMIT_TOKENS_MAX {
                break;
            }
            remaining -= tokens.len();
            expired.push(*first);
        }
        expired
    }

    /// Appends a group, and drops what [`Self::expired`] named.
    pub(super) fn append(&mut self, tokens: Vec<CommitToken>) {
        for _ in 0..self.expired(tokens.len()).len() {
            let (_, expired) = self.groups.pop_front().expect("invariant: it was just seen");
            for token in expired {
                self.versions.remove(&token);
            }
        }
        let first = self.last.next();
        for token in &tokens {
            self.last = self.last.next();
            self.versions.insert(*token, self.last);
        }
        self.groups.push_back((first, tokens));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(range: std::ops::Range<usize>) -> Vec<CommitToken> {
        range.map(|number| CommitToken(number as u128)).collect()
    }

    #[test]
    fn the_oldest_groups_leave_and_the_rest_is_found() {
        let mut log = CommitLog::default();
        let groups = COMMIT_TOKENS_MAX / 1_000 + 3;
        for group in 0..groups {
            let tokens = tokens(group * 1_000..(group + 1) * 1_000);
            let expired = log.expired(tokens.len());
            assert_eq!(expired.len(), usize::from(group >= 65), "group {group}");
            log.append(tokens);
            assert!(log.versions.len() <= COMMIT_TOKENS_MAX);
        }
        assert_eq!(log.last(), Version(groups as u64 * 1_000));
        assert_eq!(log.find(CommitToken(0)), None);
        assert_eq!(log.find(CommitToken(67_999)), Some(Version(68_000)));
    }

    #[test]
    fn rows_round_trip_and_gaps_are_named() {
        let row = |first: u64, tokens: &[CommitToken]| {
            (first.to_be_bytes().to_vec(), CommitLog::row(tokens))
        };
        let rows = vec![row(7, &tokens(0..3)), row(10, &tokens(3..4))];
        let log = CommitLog::from_rows(rows).expect("sound rows");
        assert_eq!(log.last(), Version(10));
        assert_eq!(log.find(CommitToken(1)), Some(Version(8)));

        let rows = vec![row(7, &tokens(0..3)), row(12, &tokens(3..4))];
        let error = CommitLog::from_rows(rows).expect_err("a gap");
        assert_eq!(error, "commits 10 to 11 are missing");
        assert!(CommitLog::from_rows(vec![(vec![1], vec![])]).is_err());
    }
}
