//! A part of the limiter's keys, and how they are forgotten.

use hashbrown::HashTable;

use super::Key;

/// How many slots a sweep looks at. A check adds one key at most, so anything above 1 catches up.
const STRIDE: usize = 8;

/// How many keys compete for who is evicted.
const SAMPLE: usize = 8;

/// Keys and their arrival times. `Shard` is for one thread; a caller holds its lock.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// A table, not a map, because it can be walked a few slots at a time. A key is its own hash.
    table: HashTable<Entry>,
    /// The slot to look at next.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    arrival: u64,
}

impl Shard {
    /// The key's arrival time, where it has one.
    pub(super) fn arrival(&self, key: Key) -> Option<u64> {
        self.table.find(key.0, |entry| entry.key == key).map(|entry| entry.arrival)
    }

    /// Sets the key's arrival time. A new key in place of another, where there are `max`.
    pub(super) fn put(&mut self, key: Key, arrival: u64, max: usize) {
        if let Some(entry) = self.table.find_mut(key.0, |entry| entry.key == key) {
            entry.arrival = arrival;
            return;
        }
        if self.table.len() >= max {
            self.evict();
        }
        self.table.insert_unique(key.0, Entry { key, arrival }, |entry| entry.key.0);
    }

    /// Compare-and-set: sets the key's arrival time to `to` if it is `from`, and returns whether it was.
    pub(super) fn replace(&mut self, key: Key, from: u64, to: u64) -> bool {
        match self.table.find_mut(key.0, |entry| entry.key == key) {
            Some(entry) if entry.arrival == from => {
                entry.arrival = to;
                true
            }
            _ => false,
        }
    }

    /// Looks at a few slots, forgets those whose arrival time is not after `past`, and once around gives memory back.
    pub(super) fn sweep(&mut self, past: u64) {
        for _ in 0..STRIDE {
            if let Ok(slot) = self.table.get_bucket_entry(self.hand)
                && slot.get().arrival <= past
            {
                slot.remove();
            }
            self.hand += 1;
            if self.hand >= self.table.num_buckets() {
                self.hand = 0;
                self.shrink();
                return;
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Shrinks a table that is mostly empty. Room for twice the keys stays, so that it does not grow again at once.
    fn shrink(&mut self) {
        let len = self.table.len();
        if self.table.num_buckets() / 8 > len {
            self.table.shrink_to(2 * len, |entry| entry.key.0);
        }
    }

    /// Removes, of the next few keys, the one with the earliest arrival time.
    fn evict(&mut self) {
        let mut seen = 0;
        let mut earliest: Option<(u64, usize)> = None;
        for _ in 0..self.table.num_buckets() {
            if let Some(entry) = self.table.get_bucket(self.hand) {
                let this = (entry.arrival, self.hand);
                earliest = Some(earliest.map_or(this, |so_far| so_far.min(this)));
                seen += 1;
            }
            self.hand = if self.hand + 1 < self.table.num_buckets() { self.hand + 1 } else { 0 };
            if seen == SAMPLE {
                break;
            }
        }
        if let Some((_, slot)) = earliest
            && let Ok(slot) = self.table.get_bucket_entry(slot)
        {
            slot.remove();
        }
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.table.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key as a hasher would make it: bits that are all over the place.
    fn key(n: u64) -> Key {
        Key((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn full(keys: u64) -> Shard {
        let mut shard = Shard::default();
        for n in 0..keys {
            shard.put(key(n), n, usize::MAX);
        }
        shard
    }

    fn sweep_around(shard: &mut Shard, past: u64) {
        for _ in 0..=shard.table.num_buckets() / STRIDE {
            shard.sweep(past);
        }
    }

    #[test]
    fn a_sweep_around_forgets_what_is_past_and_nothing_else() {
        let mut shard = full(10_000);
        sweep_around(&mut shard, 6_999);
        assert_eq!(shard.len(), 3_000);
        for n in 0..10_000 {
            assert_eq!(shard.arrival(key(n)), (n >= 7_000).then_some(n));
        }
    }

    #[test]
    fn memory_follows_the_keys_down() {
        let mut shard = full(10_000);
        let at_most = shard.allocated();
        sweep_around(&mut shard, 9_899);
        assert_eq!(shard.len(), 100);
        assert!(shard.allocated() < at_most / 32, "{} of {at_most}", shard.allocated());
        for n in 9_900..10_000 {
            assert_eq!(shard.arrival(key(n)), Some(n), "shrinking loses no key");
        }
        sweep_around(&mut shard, 10_000);
        assert_eq!((shard.len(), shard.allocated()), (0, 0));
    }

    /// Cost must not depend on how many keys there are.
    #[test]
    fn one_sweep_looks_at_a_few_slots_only() {
        let mut shard = full(10_000);
        shard.sweep(u64::MAX);
        assert!(shard.len() >= 10_000 - STRIDE);
    }

    #[test]
    fn at_the_bound_a_new_key_replaces_one_that_is_nearly_past() {
        let mut shard = full(1_000);
        for n in 1_000..2_000 {
            shard.put(key(n), n, 1_000);
            assert_eq!((shard.len(), shard.arrival(key(n))), (1_000, Some(n)));
        }
        // One of eight at random goes, the earliest: the newest keys hardly ever.
        let kept = (1_500..2_000).filter(|n| shard.arrival(key(*n)).is_some()).count();
        assert!(kept > 480, "{kept}");

        shard.put(key(1_999), 7, 1_000);
        assert_eq!(shard.len(), 1_000, "a known key replaces no other");
    }

    #[test]
    fn a_bound_of_one_key() {
        let mut shard = Shard::default();
        for n in 0..100 {
            shard.put(key(n), n, 1);
            assert_eq!((shard.len(), shard.arrival(key(n))), (1, Some(n)));
        }
    }
}
