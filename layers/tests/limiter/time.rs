//! Times that are late, go back, or are past all reason.

use std::{num::NonZeroU32, time::Duration};

use infogw_layers::rate_limit::{LocalLimiter, Quota, Refused};
use proptest::{prelude::*, sample::Index};

use crate::{LATE, NANOSECOND, quota, small_quotas, wait, whole, within_quota};

#[test]
fn a_clock_that_went_back_costs_a_key_one_burst_at_most() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 3));
    let future = Duration::from_secs(1_000_000);
    assert!(limiter.check(key, 3, &quota, future).is_ok());
    let refused = limiter.check(key, 1, &quota, Duration::ZERO).unwrap_err();
    assert_eq!(wait(&refused), Duration::from_nanos(10));
    assert!(limiter.check(key, 1, &quota, Duration::from_nanos(9)).is_err());
    assert!(limiter.check(key, 1, &quota, Duration::from_nanos(10)).is_ok());
}

#[test]
fn at_the_end_of_time_the_limit_still_holds() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 1));
    assert!(limiter.check(key, 1, &quota, Duration::MAX).is_ok());
    assert!(limiter.check(key, 1, &quota, Duration::MAX).is_err());
}

/// A thread that read the clock first and got here last must not be taken for a clock that went back: that would cut what
/// others have taken.
#[test]
fn a_late_reading_gains_nothing() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(1_000, 1));
    let now = Duration::from_secs(10);
    assert!(limiter.check(key, 1, &quota, now).is_ok());
    let late = now - Duration::from_millis(900);
    assert_eq!(wait(&limiter.check(key, 1, &quota, late).unwrap_err()), Duration::from_millis(900) + quota.period());
    assert!(limiter.check(key, 1, &quota, now + quota.period() - NANOSECOND).is_err());
    assert!(limiter.check(key, 1, &quota, now + quota.period()).is_ok());
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..100_u64).prop_map(Duration::from_nanos),
        (0..3_000_u64).prop_map(Duration::from_millis),
        any::<u64>().prop_map(Duration::from_nanos),
        (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
        Just(Duration::MAX),
    ]
}

fn any_quota() -> impl Strategy<Value = Quota> {
    prop_oneof![
        small_quotas(),
        (any::<u32>(), any::<u32>()).prop_filter_map("zero", |(rate, burst)| Some(Quota::per_second(
            NonZeroU32::new(rate)?,
            NonZeroU32::new(burst)?
        ))),
        (1..=i64::MAX as u64).prop_map(|period| quota(period, 1)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_times_or_quotas_panic_or_lock_a_key_out(
        attempts in prop::collection::vec((any_time(), any_quota(), prop_oneof![1..6_u32, any::<u32>()], any_time(), 0..3_u8), 1..40),
    ) {
        let limiter = LocalLimiter::new();
        let key = limiter.key(b"a");
        let mut kept = Vec::new();
        for (now, quota, cost, floor, fate) in attempts {
            match limiter.check(key, cost, &quota, now) {
                Ok(permit) if fate == 0 => { limiter.refund(permit, floor, now); }
                Ok(permit) if fate == 1 => kept.push(permit),
                Ok(_) => {}
                Err(Refused::Never { .. }) => prop_assert!(cost > quota.burst().get()),
                Err(Refused::Later { retry_after }) => {
                    prop_assert!(retry_after <= whole(&quota) + LATE);
                    let at = now.saturating_add(retry_after);
                    // Past 292 years time stands still, and nothing is earned back.
                    if at.as_nanos() <= i64::MAX as u128 {
                        prop_assert!(limiter.check(key, cost, &quota, at - NANOSECOND).is_err());
                        prop_assert!(limiter.check(key, cost, &quota, at).is_ok());
                    }
                }
            }
            if fate == 2 && let Some(permit) = kept.pop() {
                limiter.refund(permit, floor, now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Threads' readings arrive in any order; by their own times, the quota still holds in every window.
    #[test]
    fn late_readings_do_not_break_the_quota(
        quota in small_quotas(),
        attempts in prop::collection::vec((0..40_u64, 0..60_u64, 1..4_u32, any::<Index>(), 0..60_u64), 0..50),
    ) {
        let limiter = LocalLimiter::new();
        let key = limiter.key(b"a");
        let (mut clock, mut granted, mut out) = (100, Vec::new(), Vec::new());
        for (step, late, cost, which, refund_late) in attempts {
            clock += step;
            let now = Duration::from_nanos(clock - late);
            if let Ok(permit) = limiter.check(key, cost, &quota, now) {
                out.push((now, cost, permit));
            }
            if out.len() > 2 {
                let (at, cost, permit) = out.swap_remove(which.index(out.len()));
                if !limiter.refund(permit, Duration::ZERO, Duration::from_nanos(clock - refund_late)) {
                    granted.push((at, cost));
                }
            }
            // So many others that all has been swept that may be.
            for _ in 0..256 {
                drop(limiter.check(limiter.key(b"b"), 0, &quota, Duration::from_nanos(clock)));
            }
        }
        granted.extend(out.into_iter().map(|(at, cost, _)| (at, cost)));
        granted.sort();
        within_quota(&granted, &quota)?;
    }
}
