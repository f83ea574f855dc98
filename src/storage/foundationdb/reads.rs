//! Reads: all ranges of one at one version, and values put together from their chunks.

use std::ops::ControlFlow;

use foundationdb::{RangeOption, Transaction, options::StreamingMode};
use futures_util::future::try_join_all;
use memcube_actors::storage::{Entry, RangePage, RangeRead, ReadOutput, StoreError};
use memcube_schemas::{Version, keys::KeyRange, limits::VALUE_BYTES_MAX};

use super::{
    Inner,
    attempts::{Attempts, Decision, Done, Obstacle},
    layout::{self, Value},
};

/// Bytes after which a page that has a limit is cut short of it.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Values that are put together from chunks at a time.
const CHUNKED_AT_A_TIME: usize = 32;

impl Inner {
    pub(super) async fn read(&self, ranges: &[RangeRead]) -> Result<ReadOutput, StoreError> {
        let closed = "invariant: the semaphore is never closed";
        let _place = self.reads.acquire().await.expect(closed);
        let mut attempts = Attempts::begin(&self.database, &self.cluster_file)?;
        loop {
            let attempt = attempts.within(self.attempt_read(attempts.transaction(), ranges)).await;
            match attempts.settle(attempt).await {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Ok(Done::Answer(output))) => return Ok(output),
                ControlFlow::Break(Ok(Done::Committed(_))) => {
                    unreachable!("invariant: a read does not commit")
                }
                ControlFlow::Break(Err(failure)) => return Err(failure.error),
            }
        }
    }

    async fn attempt_read(
        &self,
        transaction: &Transaction,
        ranges: &[RangeRead],
    ) -> Result<Decision<ReadOutput>, Obstacle> {
        let version = transaction.get_read_version().await?;
        let version = Version(u64::try_from(version).unwrap_or(0));
        let pages: Vec<_> = ranges.iter().map(|range| self.page(transaction, range)).collect();
        let pages = try_join_all(pages).await?;
        Ok(Decision::Answer(ReadOutput { version, pages }))
    }

    async fn page(
        &self,
        transaction: &Transaction,
        read: &RangeRead,
    ) -> Result<RangePage, Obstacle> {
        if read.range.start >= read.range.end {
            return Ok(RangePage::default());
        }
        if read.limit > 0 && is_one_key(&read.range) {
            let entry = self.entry(transaction, &read.range.start, true).await?;
            return Ok(RangePage { entries: entry.into_iter().collect(), more: false });
        }
        let (rows, more) = self.rows(transaction, read).await?;
        let mut entries = Vec::with_capacity(rows.len());
        for rows in rows.chunks(CHUNKED_AT_A_TIME) {
            let filled: Vec<_> = rows.iter().map(|row| self.fill(transaction, row)).collect();
            entries.extend(try_join_all(filled).await?);
        }
        Ok(RangePage { entries, more })
    }

    /// The rows of a range without what lies in chunks, and whether there are more.
    async fn rows(
        &self,
        transaction: &Transaction,
        read: &RangeRead,
    ) -> Result<(Vec<Found>, bool), Obstacle> {
        let is_limited = read.limit != usize::MAX;
        // One more than asked for tells whether there are more.
        let mut next = Some(RangeOption {
            limit: is_limited.then_some(read.limit.saturating_add(1)),
            mode: StreamingMode::WantAll,
            reverse: read.reverse,
            ..RangeOption::from((
                self.layout.row(&read.range.start),
                self.layout.row(&read.range.end),
            ))
        });
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut iteration = 1;
        while let Some(option) = next {
            let rows = transaction.get_range(&option, iteration, true).await?;
            for row in &rows {
                if found.len() == read.limit || (is_limited && bytes > PAGE_BYTES_MAX) {
                    return Ok((found, true));
                }
                let row = Found::new(self.layout.key_of(row.key()), row.value())?;
                bytes += row.bytes();
                found.push(row);
            }
            iteration += 1;
            next = option.next_range(&rows);
        }
        Ok((found, false))
    }

    /// Reads one key; `is_snapshot` keeps what is read out of conflicts.
    pub(super) async fn entry(
        &self,
        transaction: &Transaction,
        key: &[u8],
        is_snapshot: bool,
    ) -> Result<Option<Entry>, Obstacle> {
        let row = transaction.get(&self.layout.row(key), is_snapshot).await?;
        match row {
            Some(row) => Ok(Some(self.fill(transaction, &Found::new(key, &row)?).await?)),
            None => Ok(None),
        }
    }

    /// Fetches what lies in chunks. The row alone decides about conflicts: it changes whenever its
    /// chunks do.
    async fn fill(&self, transaction: &Transaction, found: &Found) -> Result<Entry, Obstacle> {
        let value = match &found.value {
            Stored::Inline(value) => value.clone(),
            Stored::Chunked(length) => self.chunks(transaction, &found.key, *length).await?,
        };
        Ok(Entry { key: found.key.clone(), value, version: found.version })
    }

    async fn chunks(
        &self,
        transaction: &Transaction,
        key: &[u8],
        length: usize,
    ) -> Result<Vec<u8>, Obstacle> {
        let (from, after) = (self.layout.chunks_from(key), self.layout.chunks_after(key));
        let mut next =
            Some(RangeOption { mode: StreamingMode::WantAll, ..RangeOption::from((from, after)) });
        let mut value = Vec::with_capacity(length.min(VALUE_BYTES_MAX));
        let mut iteration = 1;
        while let Some(option) = next {
            let chunks = transaction.get_range(&option, iteration, true).await?;
            chunks.iter().for_each(|chunk| value.extend_from_slice(chunk.value()));
            iteration += 1;
            next = option.next_range(&chunks);
        }
        if value.len() != length {
            let found = format!("{} bytes in chunks for a value of {length}", value.len());
            return Err(layout::corrupt(found).into());
        }
        Ok(value)
    }
}

/// A row that was read.
struct Found {
    key: Vec<u8>,
    version: Version,
    value: Stored,
}

/// A value, or how many bytes of it lie in chunks.
enum Stored {
    Inline(Vec<u8>),
    Chunked(usize),
}

impl Found {
    fn new(key: &[u8], row: &[u8]) -> Result<Self, StoreError> {
        let row = layout::row(key, row)?;
        let value = match row.value {
            Value::Inline(value) => Stored::Inline(value.to_vec()),
            Value::Chunked(length) => Stored::Chunked(length),
        };
        Ok(Self { key: key.to_vec(), version: row.version, value })
    }

    fn bytes(&self) -> usize {
        self.key.len()
            + match &self.value {
                Stored::Inline(value) => value.len(),
                Stored::Chunked(length) => *length,
            }
    }
}

fn is_one_key(range: &KeyRange) -> bool {
    range.end.split_last().is_some_and(|(last, key)| *last == 0 && key == range.start)
}
