//! Slots in the order of their rows, in blocks of some hundreds: a tree of single rows would need
//! several times as much memory.

use std::collections::BTreeMap;

use super::index::Slot;

/// Slots in one run at most.
const RUN: usize = 512;

/// Rows and their slots.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Runs by their lowest row at the time when they were made; each is sorted and not empty.
    runs: BTreeMap<u64, Vec<(u64, Slot)>>,
    len: usize,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, row: u64, slot: Slot) {
        let key = self.key(row);
        let run = self.runs.entry(key).or_default();
        match run.binary_search_by_key(&row, |(row, _)| *row) {
            Ok(position) => run[position].1 = slot,
            Err(position) => {
                run.insert(position, (row, slot));
                self.len += 1;
            }
        }
        if run.len() > RUN {
            // Rows grow, so that the upper end is where the next ones come.
            let middle = if run.last().is_some_and(|last| last.0 == row) {
                RUN
            } else {
                RUN / 2
            };
            let upper = run.split_off(middle);
            run.shrink_to_fit();
            if let Some((first, _)) = upper.first() {
                self.runs.insert(*first, upper);
            }
        }
    }

    pub(super) fn remove(&mut self, row: u64) {
        let key = self.key(row);
        let Some(run) = self.runs.get_mut(&key) else {
            return;
        };
        if let Ok(position) = run.binary_search_by_key(&row, |(row, _)| *row) {
            run.remove(position);
            self.len -= 1;
            if run.is_empty() {
                self.runs.remove(&key);
            }
        }
    }

    /// Rows above `after_row` and their slots, in order.
    pub(super) fn after(&self, after_row: u64) -> impl Iterator<Item = (u64, Slot)> {
        self.runs
            .range(self.key(after_row)..)
            .flat_map(|(_, run)| run)
            .copied()
            .skip_while(move |(row, _)| *row <= after_row)
    }

    /// The key of the run in which a row stands or would stand.
    fn key(&self, row: u64) -> u64 {
        let below = self.runs.range(..=row).next_back();
        below
            .or_else(|| self.runs.first_key_value())
            .map_or(row, |(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn agrees_with_a_tree_over_random_changes() {
        let mut random = StdRng::seed_from_u64(7);
        let (mut rows, mut model) = (Rows::default(), BTreeMap::new());
        for step in 0..20_000_u32 {
            let row = random.random_range(0..4_000);
            if random.random_bool(0.6) {
                rows.insert(row, step);
                model.insert(row, step);
            } else {
                rows.remove(row);
                model.remove(&row);
            }
            assert_eq!(rows.len(), model.len());
            if step % 50 == 0 {
                let from = random.random_range(0..4_000);
                let expected = model.range(from + 1..).map(|(row, slot)| (*row, *slot));
                assert!(rows.after(from).eq(expected));
            }
        }
    }

    #[test]
    fn rows_that_grow_fill_their_runs() {
        let mut rows = Rows::default();
        (0..10_000).for_each(|row| rows.insert(row, 1));
        assert_eq!(rows.runs.len(), 10_000_usize.div_ceil(RUN));
        assert_eq!(rows.after(u64::MAX).count(), 0);
    }
}
