//! How often: a limiter that keeps one number a key, and gives back what a failed attempt took.
//!
//! It decides by GCRA, the generic cell rate algorithm of ATM (ITU-T I.371): a key's state is its *arrival time*, the time at
//! which all that it has taken will be earned back. An attempt pushes that time out by what it costs, and is refused where
//! this would put it further ahead of now than a whole burst. A key whose arrival time has passed needs no state at all.
//!
//! Nothing in here waits, and nothing reads a clock: the caller says what time it is.
//!
//! ```
//! use infogw_layers::rate_limit::{LocalLimiter, Quota, Refused};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Refused> {
//! let every_4m30s = Quota::one_per(Duration::from_secs(270)).expect("not zero");
//! let limiter = LocalLimiter::new();
//! let cluster = limiter.key(b"upload/6d0a6b5e-2f0c-4d54-a8ba-6f2d1a1f0c4e");
//!
//! let start = Duration::ZERO;
//! let permit = limiter.check(cluster, 1, &every_4m30s, start)?;
//!
//! // Too soon: the refusal knows, to the nanosecond, when to come back.
//! let soon = start + Duration::from_secs(60);
//! let refused = limiter.check(cluster, 1, &every_4m30s, soon).unwrap_err();
//! assert_eq!(refused.retry_after(), Some(Duration::from_secs(210)));
//!
//! // The attempt came to nothing through no fault of the sender's, so it may have another a minute after it.
//! assert!(limiter.refund(permit, Duration::from_secs(60), start + Duration::from_secs(1)));
//! limiter.check(cluster, 1, &every_4m30s, soon)?;
//! # Ok(())
//! # }
//! ```

mod quota;
mod shard;

use std::{
    array, fmt,
    hash::{BuildHasher, RandomState},
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use quota::Quota;
use shard::Shard;

/// How far two callers' readings of one clock may be apart, in nanoseconds. A thread can read the clock and then wait for its
/// turn: a time behind others by less than this is late, and counts as it is; by more, the clock itself has gone back.
const LATE: u64 = 1_000_000_000;

/// More shards than cores would ever contend for; each is small enough that to grow or shrink one is no pause.
const SHARDS: usize = 256;

/// A rate limiter in this process's memory, for any number of keys, each checked against the quota that it is given.
///
/// **Memory** is 17 bytes a slot, so 19 to 39 bytes a key. State of keys that went away is given back a little with each
/// check, whichever keys are checked. There is a bound on the keys remembered, so that callers who can invent keys (peers'
/// addresses, say) cannot fill the memory: at the bound a new key takes the place of one of those that need remembering
/// least long, which thereby gets its burst back early.
///
/// **Time** is since any fixed start, and should not go backwards. Threads whose readings arrive in another order, up to a
/// second late, are limited exactly all the same. Should the clock go back further, a key waits no longer than if all of its
/// burst had just been taken.
///
/// Two limits need two limiters, or keys that hold the limit's name: a key has one state, whichever quota it is checked against.
pub struct LocalLimiter {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>; SHARDS]>,
    shard_max: usize,
    /// Whose turn it is to be swept.
    turn: AtomicUsize,
}

impl LocalLimiter {
    /// How many keys [`new`](Self::new) remembers at most; that many take 70 MB.
    pub const MAX_KEYS: NonZeroUsize = NonZeroUsize::new(3_500_000).unwrap();

    /// A limiter that remembers [`MAX_KEYS`](Self::MAX_KEYS) at most.
    pub fn new() -> Self {
        Self::with_max_keys(Self::MAX_KEYS)
    }

    /// A limiter that remembers about `max` keys at most: the bound is kept by each of 256 shards, rounded up.
    pub fn with_max_keys(max: NonZeroUsize) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: Box::new(array::from_fn(|_| Mutex::default())),
            shard_max: max.get().div_ceil(SHARDS),
            turn: AtomicUsize::new(0),
        }
    }

    /// The key for whatever these bytes name. Only this limiter knows it: each hashes with random keys of its own.
    pub fn key(&self, bytes: &[u8]) -> Key {
        Key(self.hasher.hash_one(bytes))
    }

    /// Takes `cost` out of what `quota` leaves `key` at `now`, all of it or nothing. A cost of 0 is always granted.
    ///
    /// # Errors
    ///
    /// [`Refused::Later`] where not enough is left; a refused attempt costs nothing. [`Refused::Never`] where `cost` is above
    /// the quota's burst.
    pub fn check(&self, key: Key, cost: u32, quota: &Quota, now: Duration) -> Result<Permit, Refused> {
        let Some(charge) = quota.charge(cost) else {
            return Err(Refused::Never { cost, burst: quota.burst() });
        };
        let now = nanos(now);
        let decision = take(&mut self.shard(key), key, charge, quota, now, self.shard_max);
        self.sweep(now);
        decision
    }

    /// Gives back at `now` what an attempt took, because it failed through no fault of the caller's. Returns whether that changed
    /// anything.
    ///
    /// A `floor` of zero gives back all that was not earned back meanwhile, however many attempts of the key are under way. Where
    /// they end neither in the order in which they began nor in the opposite one, what is earned during an attempt may stay taken.
    /// Keys of which several attempts were under way at a refund take 25 bytes a slot more, for as long as that matters; at the bound
    /// on keys only the last attempt is given back.
    ///
    /// Any other floor is for quotas of one in a long time, so that refunds do not turn an outage into a storm: the next attempt of
    /// cost 1 is allowed no sooner than `floor` after the refunded one was granted, or when it would have been allowed without the
    /// refund, if that is sooner. A quota that still allows, or will allow, another attempt within `floor` therefore gives nothing
    /// back: such a refund is worth at most one period. Nor is there one once something else was granted or given back to the key.
    pub fn refund(&self, permit: Permit, floor: Duration, now: Duration) -> bool {
        let mut shard = self.shard(permit.key);
        let Permit { key, before, end, .. } = permit;
        let refunded = shard.refunded(key);
        if !floor.is_zero() {
            let same = refunded == permit.refunded;
            let restored = permit.restored(floor);
            return same && restored < end && shard.replace(key, end, restored);
        }
        let Some(arrival) = shard.arrival(key) else { return false };
        // A reading that is late would give back what others have taken since it was earned back.
        let now = shard.clock(nanos(now));
        // More than now was given back until then: that has been forgotten since, as everybody's part had ended.
        let Some(since) = refunded.checked_sub(permit.refunded) else { return false };
        // Nothing was granted since, or all of that was given back. Nobody's part then ends sooner for this.
        let is_last = end.saturating_sub(since) == arrival;
        let ends = if is_last { arrival } else { permit.ends(since).min(arrival) };
        let back = ends.saturating_sub(now).min(end - before);
        if is_last {
            shard.give_back_last(key, back);
            return back > 0;
        }
        back > 0 && shard.give_back(key, back, self.shard_max)
    }

    /// How many keys have state: those that took something not yet earned back, and some that are yet to be swept.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether no key has state.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sweeps a few slots of the next shard in turn, not of the key's own: a handful of busy keys then sweep for all.
    fn sweep(&self, now: u64) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut shard = match self.shards[turn].try_lock() {
            Ok(shard) => shard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // A late caller's time may still be before this arrival time, so those that are only just past stay.
        shard.sweep(now.saturating_sub(LATE));
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        lock(&self.shards[key.shard()])
    }
}

/// For a limiter whose state is elsewhere, and which falls back to this one.
#[cfg(feature = "rate-limit-redis")]
impl LocalLimiter {
    /// An empty one that knows keys by the same hashes.
    pub(super) fn sibling(&self) -> Self {
        Self { hasher: self.hasher.clone(), ..Self::with_max_keys(Self::MAX_KEYS) }
    }

    /// The arrival time of `key`, if it has state.
    pub(super) fn arrival(&self, key: Key, now: Duration) -> Option<u64> {
        let arrival = self.shard(key).arrival(key);
        self.sweep(nanos(now));
        arrival
    }

    /// Takes over that `key` owes `debt` at `now`, whatever it owed here.
    pub(super) fn set_debt(&self, key: Key, debt: Duration, now: Duration) -> u64 {
        let now = nanos(now);
        let arrival = now.saturating_add(nanos(debt));
        self.shard(key).put(key, arrival, self.shard_max);
        self.sweep(now);
        arrival
    }

    /// Takes over what another limiter with the same hashes granted. What that took can be given back here by the second permit.
    pub(super) fn copy(&self, permit: &Permit) -> Permit {
        let mut shard = self.shard(permit.key);
        // Of two at once, the later may be copied first.
        let arrival = shard.arrival(permit.key).map_or(permit.end, |arrival| arrival.max(permit.end));
        shard.put(permit.key, arrival, self.shard_max);
        Permit { refunded: shard.refunded(permit.key), ..*permit }
    }

    /// Forgets `key` if its arrival time is still `arrival`.
    pub(super) fn forget(&self, key: Key, arrival: u64) {
        self.shard(key).replace(key, arrival, 0);
    }

    /// Takes over that `key` was granted `cost` at `now`, and owes `debt` with it.
    pub(super) fn set_granted(&self, key: Key, cost: u32, quota: &Quota, debt: Duration, now: Duration) -> Permit {
        let end = self.set_debt(key, debt, now);
        let before = end.saturating_sub(quota.charge(cost).unwrap_or(0));
        let refunded = self.shard(key).refunded(key);
        Permit { key, before, end, granted: nanos(now), spare: quota.whole() - quota.one(), refunded }
    }
}

/// `arrival`, as a debt at `now`.
#[cfg(feature = "rate-limit-redis")]
pub(super) fn debt(arrival: u64, now: Duration) -> Duration {
    Duration::from_nanos(arrival.saturating_sub(nanos(now)))
}

impl Default for LocalLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LocalLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLimiter").field("max_keys", &(self.shard_max * SHARDS)).finish_non_exhaustive()
    }
}

/// The decision itself, on a shard that is locked.
fn take(shard: &mut Shard, key: Key, charge: u64, quota: &Quota, now: u64, max: usize) -> Result<Permit, Refused> {
    shard.clock(now);
    let whole = quota.whole();
    let mut debt = shard.arrival(key).map_or(0, |arrival| arrival.saturating_sub(now));
    if debt > whole.saturating_add(LATE) {
        // Nobody can have taken that much: the clock went back, or the quota was larger until now.
        debt = whole;
    }
    let before = now.saturating_add(debt);
    let owed = debt.saturating_add(charge);
    if charge > 0 && owed > whole {
        // Nothing new, unless the debt was cut: then the cut must last, or the time we answer would not hold.
        shard.put(key, before, max);
        return Err(Refused::Later { retry_after: Duration::from_nanos(owed - whole) });
    }
    let end = before.saturating_add(charge);
    if end > now {
        shard.put(key, end, max);
    }
    Ok(Permit { key, before, end, granted: now, spare: whole - quota.one(), refunded: shard.refunded(key) })
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A panic elsewhere cannot leave a shard half changed in a way that matters: an entry is one number.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds, cut at the 292 years that a sum of two still has room for.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(quota::LONGEST)
}

/// Who is limited: a keyed hash, made by [`LocalLimiter::key`], of the bytes that name them.
///
/// It is SipHash with random keys, 64 bits: nobody outside can choose names that collide, and among a million keys any two
/// collide, and so share a limit, with a chance of 1 in 37 million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// By bits that the table inside uses neither for the slot (the lowest) nor as the slot's tag (the topmost 7).
    fn shard(self) -> usize {
        (self.0 >> 40) as usize % SHARDS
    }
}

/// An attempt was granted, and what it took. Dropped, that stays taken; [`LocalLimiter::refund`] gives it back.
///
/// Not `Clone`, because what was taken once can be given back only once:
///
/// ```compile_fail,E0382
/// # use infogw_layers::rate_limit::{LocalLimiter, Permit};
/// # use std::time::Duration;
/// fn twice(limiter: &LocalLimiter, permit: Permit) {
///     limiter.refund(permit, Duration::ZERO, Duration::ZERO);
///     limiter.refund(permit, Duration::ZERO, Duration::ZERO);
/// }
/// ```
#[derive(Debug)]
#[must_use = "keep it for as long as the attempt may need a refund, or drop it to let the attempt count"]
pub struct Permit {
    key: Key,
    /// The key's arrival time without this attempt.
    before: u64,
    /// The key's arrival time with it, and what a refund with a floor compares: every grant moves it on, so it tells one from the
    /// next.
    end: u64,
    granted: u64,
    /// How far ahead of now an arrival time may be that still allows an attempt of cost 1.
    spare: u64,
    /// What had been given back to the key, and was remembered, until then.
    refunded: u64,
}

impl Permit {
    /// When the attempt is earned back, or somewhat sooner, where `since` was given back to its key since.
    ///
    /// What attempts took is earned back one after the other, as a queue is served. So this one's part ends at `end`, or sooner by
    /// what those before it had back since. That is at most all that anybody had back since, and at most what stood before it.
    fn ends(self, since: u64) -> u64 {
        self.end.saturating_sub(since.min(self.before.saturating_sub(self.granted)))
    }

    /// The arrival time after a refund with a floor, which may be past `end`: then there is nothing to give back.
    fn restored(self, floor: Duration) -> u64 {
        self.granted.saturating_add(nanos(floor)).saturating_add(self.spare).max(self.before)
    }
}

/// An attempt was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not yet.
    #[error("over the rate limit, retry in {retry_after:?}")]
    Later {
        /// When to come back, exactly: the same attempt is granted this much later, and not a nanosecond before, if nothing
        /// else was granted or refunded to the key until then.
        retry_after: Duration,
    },
    /// The attempt costs more than the quota ever has to give.
    #[error("costs {cost}, which is more than the rate limit allows at once; make it at most {burst}")]
    Never {
        /// What was asked for.
        cost: u32,
        /// The most that can be.
        burst: NonZeroU32,
    },
}

impl Refused {
    /// When to come back, where that can help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Later { retry_after } => Some(*retry_after),
            Self::Never { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, panic};

    #[test]
    fn a_panic_while_a_shard_is_locked_does_not_spread() {
        let limiter = LocalLimiter::new();
        for shard in limiter.shards.iter() {
            let poisoning = panic::catch_unwind(panic::AssertUnwindSafe(|| {
                let _guard = lock(shard);
                panic::resume_unwind(Box::new("while locked"));
            }));
            assert!(poisoning.is_err() && shard.is_poisoned());
        }
        let once = Quota::per_second(NonZeroU32::MIN, NonZeroU32::MIN);
        for second in 0..1_000 {
            let now = Duration::from_secs(second);
            let permit = limiter.check(limiter.key(b"a"), 1, &once, now);
            assert!(limiter.check(limiter.key(b"a"), 1, &once, now).is_err());
            assert!(permit.is_ok_and(|permit| limiter.refund(permit, Duration::ZERO, now)));
        }
        assert!(limiter.len() <= 1);
    }

    /// Two that were granted at once, of which the later is copied first.
    #[cfg(feature = "rate-limit-redis")]
    #[test]
    fn copies_may_come_in_any_order() {
        let limiter = LocalLimiter::new();
        let (copies, key) = (limiter.sibling(), limiter.key(b"a"));
        let quota = Quota::per_second(NonZeroU32::MIN, NonZeroU32::new(2).unwrap());
        let [first, second] = [(); 2].map(|()| limiter.check(key, 1, &quota, Duration::ZERO).unwrap());
        let [second, first] = [second, first].map(|permit| copies.copy(&permit));
        assert_eq!(copies.arrival(key, Duration::ZERO), Some(2_000_000_000));
        for permit in [first, second] {
            assert!(copies.refund(permit, Duration::ZERO, Duration::ZERO));
        }
        assert_eq!(copies.arrival(key, Duration::ZERO), Some(0));
    }

    /// A shard chosen by bits that also choose the slot leaves most slots of its table empty.
    #[test]
    fn keys_spread_over_shards_and_over_the_slots_of_each() {
        let limiter = LocalLimiter::new();
        let quota = Quota::per_second(NonZeroU32::MIN, NonZeroU32::MIN);
        let keys: Vec<Key> = (0..100_000_u32).map(|n| limiter.key(&n.to_be_bytes())).collect();
        for &key in &keys {
            assert!(limiter.check(key, 1, &quota, Duration::ZERO).is_ok());
        }
        let sizes: Vec<usize> = limiter.shards.iter().map(|shard| lock(shard).len()).collect();
        assert!(sizes.iter().all(|size| (200..600).contains(size)), "{sizes:?}");

        let of_one = keys.iter().filter(|key| key.shard() == 0);
        let (low, high): (HashSet<u64>, HashSet<u64>) = of_one.map(|key| (key.0 % 64, key.0 >> 57)).unzip();
        assert!(low.len() > 56 && high.len() > 100, "{} {}", low.len(), high.len());
    }

    #[test]
    fn a_key_takes_less_than_40_bytes() {
        let limiter = LocalLimiter::new();
        let quota = Quota::per_second(NonZeroU32::MIN, NonZeroU32::MIN);
        // Just more than fit a quarter of a million slots, so that the tables are as empty as they get.
        for n in 0..250_000_u32 {
            assert!(limiter.check(limiter.key(&n.to_be_bytes()), 1, &quota, Duration::ZERO).is_ok());
        }
        let bytes: usize = limiter.shards.iter().map(|shard| lock(shard).allocated()).sum();
        assert!(bytes < 40 * limiter.len(), "{bytes} bytes for {} keys", limiter.len());
    }
}
