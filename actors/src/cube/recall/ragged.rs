//! Rows of different lengths in one allocation.

/// Appended once, read by number, never changed.
#[derive(Debug, Clone)]
pub(crate) struct Ragged<T> {
    ends: Vec<u32>,
    values: Vec<T>,
}

impl<T> Default for Ragged<T> {
    fn default() -> Self {
        Self { ends: Vec::new(), values: Vec::new() }
    }
}

impl<T> Ragged<T> {
    /// Rows that end at these places; `None` when they are no places, or out of order.
    pub(crate) fn restore(ends: Vec<u32>, values: Vec<T>) -> Option<Self> {
        let last = ends.last().map_or(0, |end| *end as usize);
        (ends.is_sorted() && last == values.len()).then_some(Self { ends, values })
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = T>) {
        self.values.extend(row);
        // Past this many values a cube has long been too large for its RAM.
        self.ends.push(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
    }

    /// A row.
    pub(crate) fn row(&self, number: usize) -> &[T] {
        let start = if number == 0 { 0 } else { self.ends[number - 1] as usize };
        &self.values[start..self.ends[number] as usize]
    }

    /// All values, row after row.
    pub(crate) fn values(&self) -> &[T] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        let mut ragged = Ragged::default();
        let rows: [&[u8]; 4] = [&[1, 2], &[], &[3], &[]];
        rows.iter().for_each(|row| ragged.push(row.iter().copied()));
        let restored = Ragged::restore(vec![2, 2, 3, 3], vec![1, 2, 3]).expect("they fit");
        for (number, row) in rows.iter().enumerate() {
            assert_eq!((ragged.row(number), restored.row(number)), (*row, *row));
        }
        assert_eq!(ragged.values(), [1, 2, 3]);
        assert!(Ragged::restore(vec![2, 1], vec![0_u8]).is_none());
        assert!(Ragged::restore(vec![1, 3], vec![0_u8, 1]).is_none());
    }
}
