//! What is given back, and what is not.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use infogw_layers::rate_limit::{Key, LocalLimiter, Permit, Quota};
use proptest::{prelude::*, sample::Index};

use crate::{NANOSECOND, quota, small_quotas, wait, whole, within_quota};

/// The contract's own case: one upload in 4m30s, and while the upstream is down one attempt a minute.
#[test]
fn an_outage_allows_an_attempt_a_minute_and_its_end_restores_the_quota() {
    let limiter = LocalLimiter::new();
    let key = limiter.key(b"cluster");
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let minute = Duration::from_secs(60);
    let mut now = Duration::from_secs(1_000);
    for _ in 0..10 {
        let permit = limiter.check(key, 1, &quota, now).unwrap();
        assert!(limiter.refund(permit, minute, now));
        let early = limiter.check(key, 1, &quota, now + Duration::from_secs(5)).unwrap_err();
        assert_eq!(wait(&early), Duration::from_secs(55));
        now += minute;
    }
    drop(limiter.check(key, 1, &quota, now).unwrap());
    assert_eq!(wait(&limiter.check(key, 1, &quota, now + minute).unwrap_err()), Duration::from_secs(210));
}

#[test]
fn with_a_floor_nothing_is_given_back_once_another_attempt_was_granted() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 2));
    let now = Duration::from_nanos(5);
    let first = limiter.check(key, 1, &quota, now).unwrap();
    let second = limiter.check(key, 1, &quota, now).unwrap();
    assert!(!limiter.refund(first, NANOSECOND, now));
    assert!(limiter.refund(second, NANOSECOND, now));
    assert_eq!(debt(&limiter, key, &quota, now), Duration::from_nanos(11), "one attempt a nanosecond later");
}

/// A sender with several requests under way, all of which an outage ends, one after the other, round after round: its next ones are
/// granted, or it would hear 429, and give its data up.
#[test]
fn all_that_is_under_way_is_given_back() {
    let limiter = LocalLimiter::new();
    let key = limiter.key(b"a");
    let quota = Quota::new(Duration::from_secs(100), NonZeroU32::new(10_000).unwrap()).unwrap();
    let mut now = Duration::from_secs(1);
    for _ in 0..10 {
        let mut permits = VecDeque::new();
        for _ in 0..5 {
            permits.push_back(limiter.check(key, 2_000, &quota, now).unwrap());
            now += Duration::from_millis(30);
        }
        while let Some(permit) = permits.pop_front() {
            now += Duration::from_millis(30);
            assert!(limiter.refund(permit, Duration::ZERO, now));
        }
    }
    assert_eq!(debt(&limiter, key, &quota, now), Duration::ZERO);
}

/// What was earned back is not given back on top of that.
#[test]
fn of_an_attempt_that_took_long_the_rest_is_given_back() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 3));
    let [first, second, third] = [(); 3].map(|()| limiter.check(key, 1, &quota, Duration::ZERO).unwrap());
    let now = Duration::from_nanos(13);
    assert!(!limiter.refund(first, Duration::ZERO, now), "earned back");
    assert!(limiter.refund(second, Duration::ZERO, now));
    assert_eq!(debt(&limiter, key, &quota, now), Duration::from_nanos(10), "the third one's alone");
    assert!(limiter.refund(third, Duration::ZERO, now));
    assert_eq!(debt(&limiter, key, &quota, now), Duration::ZERO);
}

/// By a clock that others have read later: what was earned back by then, they may have taken.
#[test]
fn a_refund_by_a_late_reading_gains_nothing() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 3));
    let first = limiter.check(key, 3, &quota, Duration::ZERO).unwrap();
    let now = Duration::from_nanos(30);
    drop(limiter.check(key, 3, &quota, now).unwrap());
    assert!(!limiter.refund(first, Duration::ZERO, Duration::ZERO));
    assert_eq!(debt(&limiter, key, &quota, now), whole(&quota));
}

#[test]
fn a_refund_that_comes_after_the_state_is_gone_does_nothing() {
    let limiter = LocalLimiter::new();
    let (key, quota) = (limiter.key(b"a"), quota(10, 1));
    let old = limiter.check(key, 1, &quota, Duration::ZERO).unwrap();
    let later = Duration::from_secs(60);
    for _ in 0..1_000 {
        drop(limiter.check(limiter.key(b"b"), 1, &quota, later));
    }
    assert_eq!(limiter.len(), 1);
    assert!(!limiter.refund(old, Duration::ZERO, later));
    assert!(limiter.check(key, 1, &quota, later).is_ok());
}

#[test]
fn a_floor_beyond_all_time_gives_nothing_back() {
    let limiter = LocalLimiter::new();
    let key = limiter.key(b"a");
    let quota = Quota::new(Duration::from_nanos(i64::MAX as u64), NonZeroU32::MIN).unwrap();
    let permit = limiter.check(key, 1, &quota, Duration::MAX).unwrap();
    assert!(!limiter.refund(permit, Duration::MAX, Duration::MAX));
}

proptest! {
    /// When the next attempt is allowed: at the floor, unless what was taken before is in the way (then later), or there
    /// would have been no need for a refund (then sooner).
    #[test]
    fn the_next_attempt_is_allowed_exactly_at_the_floor(
        quota in small_quotas(),
        history in prop::collection::vec((0..30_u64, 1..6_u32), 0..20),
        cost in 1..6_u32,
        floor in 0..40_u64,
        late in 0..40_u64,
    ) {
        let limiter = LocalLimiter::new();
        let key = limiter.key(b"a");
        let mut now = Duration::from_nanos(100);
        for (step, cost) in history {
            now += Duration::from_nanos(step);
            drop(limiter.check(key, cost, &quota, now));
        }
        let cost = cost.min(quota.burst().get());
        let never_taken = now + next(&limiter, key, &quota, now);
        let Ok(permit) = limiter.check(key, cost, &quota, now) else { return Ok(()) };
        let not_refunded = now + next(&limiter, key, &quota, now);
        let debt_before = debt(&limiter, key, &quota, now);
        let floor = Duration::from_nanos(floor);
        // The first moment an attempt may be made at all is the one at which this one was.
        let at_floor = if floor.is_zero() { never_taken } else { never_taken.max(now + floor) };
        let expected = at_floor.min(not_refunded);

        let late = Duration::from_nanos(late);
        let refunded_at = now + late;
        let changed = limiter.refund(permit, floor, refunded_at);
        let left = debt(&limiter, key, &quota, refunded_at);
        prop_assert_eq!(refunded_at + next(&limiter, key, &quota, refunded_at), expected.max(refunded_at));
        if floor.is_zero() {
            prop_assert_eq!(changed, debt_before > late, "unless it is earned back");
            prop_assert_eq!(left, debt_before.saturating_sub(quota.period() * cost + late), "all of it is given back");
        } else {
            prop_assert_eq!(changed, expected < not_refunded);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Attempt {
        who: u8,
        cost: u32,
    },
    /// One of the permits that are out, whether or not others were granted since.
    Refund {
        which: Index,
    },
    Drop {
        which: Index,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..25_u64).prop_map(Step::Wait),
        4 => (0..2_u8, 1..4_u32).prop_map(|(who, cost)| Step::Attempt { who, cost }),
        2 => any::<Index>().prop_map(|which| Step::Refund { which }),
        1 => any::<Index>().prop_map(|which| Step::Drop { which }),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// In whichever order attempts end, all that they took is given back, but for what is earned meanwhile.
    #[test]
    fn the_order_in_which_attempts_end_does_not_matter(
        period in 1..1_000_u64,
        costs in prop::collection::vec((1..6_u32, 0..3_u64), 1..8),
        order in prop::collection::vec(any::<Index>(), 8),
    ) {
        let limiter = LocalLimiter::new();
        let key = limiter.key(b"a");
        let quota = quota(period, costs.iter().map(|(cost, _)| cost).sum());
        let mut now = Duration::from_nanos(100);
        let mut permits = Vec::new();
        for (cost, step) in costs {
            now += Duration::from_nanos(step);
            permits.push((now, limiter.check(key, cost, &quota, now).unwrap()));
        }
        let mut lost = Duration::ZERO;
        for index in order {
            if !permits.is_empty() {
                let (granted, permit) = permits.remove(index.index(permits.len()));
                limiter.refund(permit, Duration::ZERO, now);
                lost += now - granted;
            }
        }
        prop_assert!(debt(&limiter, key, &quota, now) <= lost);
    }

    /// To subtract the cost whatever was earned of it fails here; so does a refund that ignores its floor.
    #[test]
    fn no_sequence_of_refunds_gets_more_than_the_quota_and_one_attempt_a_floor(
        quota in small_quotas(),
        floor in prop_oneof![Just(0), 0..30_u64],
        steps in steps(),
    ) {
        let limiter = LocalLimiter::new();
        let floor = Duration::from_nanos(floor);
        let mut now = Duration::ZERO;
        let mut granted: Vec<Granted> = Vec::new();
        let mut out: Vec<(usize, Permit)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(step) => now += Duration::from_nanos(step),
                Step::Attempt { who, cost } => {
                    if let Ok(permit) = limiter.check(limiter.key(&[who]), cost, &quota, now) {
                        out.push((granted.len(), permit));
                        granted.push(Granted { who, at: now, cost, refunded: false });
                    }
                }
                Step::Refund { which } if !out.is_empty() => {
                    let (index, permit) = out.swap_remove(which.index(out.len()));
                    let since = granted[index + 1..].iter().any(|other| other.who == granted[index].who && !other.refunded);
                    let changed = limiter.refund(permit, floor, now);
                    prop_assert!(floor.is_zero() || !(changed && since), "refunded although another was granted since");
                    granted[index].refunded = changed;
                }
                Step::Drop { which } if !out.is_empty() => drop(out.swap_remove(which.index(out.len()))),
                Step::Refund { .. } | Step::Drop { .. } => {}
            }
        }
        for who in 0..2 {
            let of_one: Vec<&Granted> = granted.iter().filter(|granted| granted.who == who).collect();
            let counted: Vec<(Duration, u32)> =
                of_one.iter().filter(|granted| !granted.refunded).map(|granted| (granted.at, granted.cost)).collect();
            within_quota(&counted, &quota)?;
            for pair in of_one.windows(2) {
                if pair[0].refunded {
                    prop_assert!(pair[1].at >= pair[0].at + floor, "{:?} then {:?}", pair[0], pair[1]);
                }
            }
        }
    }
}

#[derive(Debug)]
struct Granted {
    who: u8,
    at: Duration,
    cost: u32,
    refunded: bool,
}

/// What the key has taken and not yet earned back: an attempt at the whole burst waits exactly for that.
fn debt(limiter: &LocalLimiter, key: Key, quota: &Quota, now: Duration) -> Duration {
    match limiter.check(key, quota.burst().get(), quota, now) {
        Ok(permit) => {
            assert!(limiter.refund(permit, Duration::ZERO, now), "nothing came between");
            Duration::ZERO
        }
        Err(refused) => wait(&refused),
    }
}

/// How long an attempt of cost 1 would have to wait.
fn next(limiter: &LocalLimiter, key: Key, quota: &Quota, now: Duration) -> Duration {
    (debt(limiter, key, quota, now) + quota.period()).saturating_sub(whole(quota))
}
