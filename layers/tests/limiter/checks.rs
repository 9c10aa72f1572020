//! What is granted and refused, where nothing is refunded.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    RateLimiter,
    clock::{Clock, FakeRelativeClock},
};
use infogw_layers::rate_limit::{LocalLimiter, Quota, Refused};
use proptest::prelude::*;

use crate::{LATE, NANOSECOND, quota, small_quotas, wait};

#[test]
fn a_cost_above_the_burst_is_refused_for_good_and_takes_nothing() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 3));
    let refused = limiter.check(key, 4, &quota, Duration::ZERO).unwrap_err();
    assert_eq!(refused, Refused::Never { cost: 4, burst: NonZeroU32::new(3).unwrap() });
    assert_eq!(refused.retry_after(), None);
    assert_eq!(refused.to_string(), "costs 4, which is more than the rate limit allows at once; make it at most 3");
    assert!(limiter.is_empty());
    assert!(limiter.check(key, 3, &quota, Duration::ZERO).is_ok());
}

#[test]
fn a_cost_of_nothing_is_always_granted_and_takes_no_memory() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 1));
    let nothing = limiter.check(key, 0, &quota, Duration::ZERO).unwrap();
    assert!(!limiter.refund(nothing, Duration::ZERO, Duration::ZERO));
    assert!(limiter.is_empty());

    let something = limiter.check(key, 1, &quota, LATE).unwrap();
    for floor in [Duration::ZERO, NANOSECOND] {
        for now in [LATE, Duration::ZERO] {
            let nothing = limiter.check(key, 0, &quota, now).unwrap();
            assert!(!limiter.refund(nothing, floor, now), "it must not give back what another took");
        }
    }
    assert!(limiter.refund(something, Duration::ZERO, LATE));
}

#[test]
fn keys_do_not_share() {
    let limiter = LocalLimiter::new();
    let quota = quota(10, 1);
    assert_eq!(limiter.key(b"a"), limiter.key(b"a"));
    for name in ["a", "b", "", "ab"] {
        assert!(limiter.check(limiter.key(name.as_bytes()), 1, &quota, Duration::ZERO).is_ok(), "{name}");
    }
    assert_eq!(limiter.len(), 4);
    assert_ne!(limiter.key(b"a"), LocalLimiter::new().key(b"a"), "a hash that others can know can be collided with");
}

#[test]
fn a_quota_that_was_lowered_holds_at_once_and_no_key_waits_for_the_old_one() {
    let limiter = LocalLimiter::new();
    let key = limiter.key(b"a");
    let hours = Quota::one_per(Duration::from_secs(86_400)).unwrap();
    let seconds = Quota::one_per(Duration::from_secs(5)).unwrap();
    assert!(limiter.check(key, 1, &hours, Duration::ZERO).is_ok());
    let refused = limiter.check(key, 1, &seconds, Duration::from_secs(1)).unwrap_err();
    assert_eq!(wait(&refused), Duration::from_secs(5));
    assert!(limiter.check(key, 1, &seconds, Duration::from_secs(6)).is_ok());
}

proptest! {
    #[test]
    fn a_refusal_knows_the_very_nanosecond(
        quota in small_quotas(),
        history in prop::collection::vec((0..30_u64, 0..6_u32), 0..40),
        cost in 1..6_u32,
    ) {
        let limiter = LocalLimiter::new();
        let key = limiter.key(b"a");
        let mut now = Duration::ZERO;
        for (step, cost) in history {
            now += Duration::from_nanos(step);
            drop(limiter.check(key, cost, &quota, now));
        }
        let cost = cost.min(quota.burst().get());
        if let Err(refused) = limiter.check(key, cost, &quota, now) {
            let at = now + wait(&refused);
            prop_assert!(at > now);
            let early = limiter.check(key, cost, &quota, at - NANOSECOND).unwrap_err();
            prop_assert_eq!(wait(&early), NANOSECOND);
            prop_assert!(limiter.check(key, cost, &quota, at).is_ok());
        }
    }

    /// The model: the same decisions and waits as governor's, where nothing is refunded.
    #[test]
    fn decides_as_governor_does(
        period in 1..1_000_000_000_000_u64,
        burst in 1..20_u32,
        attempts in prop::collection::vec((0..3_000_u64, 1..4_u32, 0..3_u8), 1..200),
    ) {
        let limiter = LocalLimiter::new();
        let ours = quota(period, burst);
        let clock = FakeRelativeClock::default();
        let theirs = governor::Quota::with_period(Duration::from_nanos(period)).unwrap();
        let model = RateLimiter::hashmap_with_clock(theirs.allow_burst(ours.burst()), clock.clone());
        let mut now = Duration::ZERO;
        for (thousandths, cost, who) in attempts {
            // Up to three periods at a time, so that some attempts are refused and some find a full burst.
            let step = Duration::from_nanos(u64::try_from(u128::from(period) * u128::from(thousandths) / 1_000).unwrap());
            clock.advance(step);
            now += step;
            let decided = limiter.check(limiter.key(&[who]), cost, &ours, now);
            match model.check_key_n(&who, NonZeroU32::new(cost).unwrap()) {
                Ok(Ok(())) => prop_assert!(decided.is_ok()),
                Ok(Err(until)) => {
                    let wait_time = until.wait_time_from(clock.now());
                    prop_assert_eq!(decided.unwrap_err(), Refused::Later { retry_after: wait_time });
                }
                Err(_) => prop_assert_eq!(decided.unwrap_err(), Refused::Never { cost, burst: ours.burst() }),
            }
        }
    }
}
