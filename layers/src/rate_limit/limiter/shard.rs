//! A part of the limiter's keys, and how they are forgotten.

use hashbrown::HashTable;

use super::{Key, LATE};

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
    /// What was given back, of the few keys of which something was: the table above has no room for it.
    ledger: HashTable<Refunds>,
    ledger_hand: usize,
    /// The latest time that a caller brought.
    latest: u64,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    arrival: u64,
}

#[derive(Debug)]
struct Refunds {
    key: Key,
    /// All that was given back of attempts that others had been granted after, added up. It wraps.
    sum: u64,
    /// The latest arrival time that a refund brought forward. Before it, permits may be out to which the sum matters.
    until: u64,
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

    /// What was given back to the key so far and remembered.
    pub(super) fn refunded(&self, key: Key) -> u64 {
        self.ledger.find(key.0, |refunds| refunds.key == key).map_or(0, |refunds| refunds.sum)
    }

    /// Brings the key's arrival time forward by `back`, where nobody needs to know.
    pub(super) fn give_back_last(&mut self, key: Key, back: u64) {
        if let Some(entry) = self.table.find_mut(key.0, |entry| entry.key == key) {
            entry.arrival = entry.arrival.saturating_sub(back);
        }
    }

    /// Brings the key's arrival time forward by `back`, and remembers that. Not where that would make more than `max` to remember.
    pub(super) fn give_back(&mut self, key: Key, back: u64, max: usize) -> bool {
        let Some(entry) = self.table.find_mut(key.0, |entry| entry.key == key) else { return false };
        let is_full = self.ledger.len() >= max;
        match self.ledger.find_mut(key.0, |refunds| refunds.key == key) {
            Some(refunds) => {
                refunds.sum = refunds.sum.wrapping_add(back);
                refunds.until = refunds.until.max(entry.arrival);
            }
            None if is_full => return false,
            None => {
                let refunds = Refunds { key, sum: back, until: entry.arrival };
                self.ledger.insert_unique(key.0, refunds, |refunds| refunds.key.0);
            }
        }
        entry.arrival = entry.arrival.saturating_sub(back);
        true
    }

    /// Notes that somebody says it is `now`, and returns the latest that anybody said: nobody is late by more than [`LATE`] but for
    /// a clock that went back.
    pub(super) fn clock(&mut self, now: u64) -> u64 {
        self.latest = if now.saturating_add(LATE) < self.latest { now } else { self.latest.max(now) };
        self.latest
    }

    /// Looks at a few slots, forgets those whose arrival time is not after `past`, and once around gives memory back.
    pub(super) fn sweep(&mut self, past: u64) {
        self.sweep_ledger(past);
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

    /// The same for what was given back: once all permits are past to which it could matter, they get nothing back for that alone.
    fn sweep_ledger(&mut self, past: u64) {
        for _ in 0..STRIDE {
            if let Ok(slot) = self.ledger.get_bucket_entry(self.ledger_hand) {
                let Refunds { key, until, .. } = *slot.get();
                let arrival = self.table.find(key.0, |entry| entry.key == key).map_or(0, |entry| entry.arrival);
                if until.max(arrival) <= past {
                    slot.remove();
                }
            }
            self.ledger_hand += 1;
            if self.ledger_hand >= self.ledger.num_buckets() {
                self.ledger_hand = 0;
                let len = self.ledger.len();
                if self.ledger.num_buckets() / 8 > len {
                    self.ledger.shrink_to(2 * len, |refunds| refunds.key.0);
                }
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
        self.table.allocation_size() + self.ledger.allocation_size()
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
    fn what_was_given_back_is_bounded_and_forgotten_when_all_it_matters_to_is_past() {
        let mut shard = full(1_000);
        for n in 0..1_000 {
            assert_eq!(shard.give_back(key(n), n / 2, 500), n < 500, "{n}");
        }
        assert_eq!((shard.refunded(key(400)), shard.arrival(key(400))), (200, Some(200)));
        assert_eq!((shard.refunded(key(500)), shard.arrival(key(500))), (0, Some(500)), "no room to remember it");
        assert!(shard.give_back(key(400), 1, 500), "a known key takes no more room");
        // By the arrival time before, though the one after is past.
        sweep_around(&mut shard, 399);
        assert_eq!((shard.refunded(key(400)), shard.refunded(key(399))), (201, 0));
        sweep_around(&mut shard, 400);
        assert_eq!(shard.refunded(key(400)), 0);
        // By what was granted since, too.
        shard.put(key(499), 700, usize::MAX);
        sweep_around(&mut shard, 699);
        assert_eq!((shard.ledger.len(), shard.refunded(key(499))), (1, 249));
        sweep_around(&mut shard, 1_000);
        sweep_around(&mut shard, 1_000);
        assert_eq!((shard.len(), shard.ledger.len()), (0, 0));
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
