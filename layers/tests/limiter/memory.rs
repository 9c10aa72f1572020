//! What is remembered, and what is forgotten.

use std::{num::NonZeroUsize, time::Duration};

use infogw_layers::rate_limit::{LocalLimiter, Quota};

use crate::{NANOSECOND, quota, wait};

#[test]
fn keys_that_went_away_are_forgotten_while_others_are_checked() {
    let limiter = LocalLimiter::new();
    let quota = quota(1_000_000_000, 1);
    for n in 0..50_000_u32 {
        assert!(limiter.check(limiter.key(&n.to_be_bytes()), 1, &quota, Duration::ZERO).is_ok());
    }
    assert_eq!(limiter.len(), 50_000);
    // One busy key, in one shard, is enough to sweep them all; and it is refused, which must not matter.
    let later = Duration::from_secs(3_600);
    let mut checks = 0;
    while limiter.len() > 1 {
        drop(limiter.check(limiter.key(b"busy"), 1, &quota, later));
        checks += 1;
        assert!(checks <= 50_000, "{} of 50,000 left after as many checks", limiter.len());
    }
    // Nothing that is owed, nothing kept.
    while !limiter.is_empty() {
        drop(limiter.check(limiter.key(b"busy"), 0, &quota, later + later));
        checks += 1;
        assert!(checks <= 100_000, "{} left after as many checks", limiter.len());
    }
}

#[test]
fn keys_that_owe_are_not_forgotten() {
    let limiter = LocalLimiter::new();
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    for n in 0..1_000_u32 {
        assert!(limiter.check(limiter.key(&n.to_be_bytes()), 1, &quota, Duration::ZERO).is_ok());
    }
    let just_before = Duration::from_secs(270) - NANOSECOND;
    for _ in 0..10_000 {
        drop(limiter.check(limiter.key(b"busy"), 1, &quota, just_before));
    }
    for n in 0..1_000_u32 {
        let refused = limiter.check(limiter.key(&n.to_be_bytes()), 1, &quota, just_before).unwrap_err();
        assert_eq!(wait(&refused), NANOSECOND);
    }
}

#[test]
fn invented_keys_cannot_fill_the_memory() {
    let max = 2_560;
    let limiter = LocalLimiter::with_max_keys(NonZeroUsize::new(max).unwrap());
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    for n in 0..50_000_u32 {
        let key = limiter.key(&n.to_be_bytes());
        assert!(limiter.check(key, 1, &quota, Duration::from_millis(u64::from(n))).is_ok());
        assert!(limiter.check(key, 1, &quota, Duration::from_millis(u64::from(n))).is_err(), "it is itself limited");
    }
    assert_eq!(limiter.len(), max);
}
