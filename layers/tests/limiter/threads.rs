//! Many threads at one key.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use infogw_layers::rate_limit::LocalLimiter;

use crate::{quota, within_quota};

const THREADS: u64 = 8;
const EACH: u64 = 5_000;

#[test]
fn many_threads_at_one_key_get_exactly_the_burst() {
    let limiter = LocalLimiter::new();
    let quota = quota(1_000_000_000, 100);
    let key = limiter.key(b"a");
    let together = Barrier::new(THREADS as usize);
    let granted: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    (0..EACH).filter(|_| limiter.check(key, 1, &quota, Duration::ZERO).is_ok()).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 100);
}

/// With refunds in between, and every thread free to be overtaken between its reading of the clock and its attempt.
#[test]
fn threads_that_refund_stay_within_the_quota_and_the_floor() {
    for floor in [0, 20] {
        threads_that_refund(Duration::from_nanos(floor));
    }
}

fn threads_that_refund(floor: Duration) {
    let limiter = LocalLimiter::new();
    let quota = quota(50, 3);
    let key = limiter.key(b"a");
    let clock = AtomicU64::new(0);
    let together = Barrier::new(THREADS as usize);
    let mut granted: Vec<(Duration, u32, bool)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (limiter, clock, together) = (&limiter, &clock, &together);
                scope.spawn(move || {
                    together.wait();
                    let mut granted = Vec::new();
                    for n in 0..EACH {
                        let now = Duration::from_nanos(clock.fetch_add(1, Ordering::Relaxed));
                        if let Ok(permit) = limiter.check(key, 1, &quota, now) {
                            let failed = (n + thread) % 3 > 0;
                            granted.push((now, 1, failed && limiter.refund(permit, floor, now)));
                        }
                    }
                    granted
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    granted.sort();
    let (refunded, counted): (Vec<_>, Vec<_>) = granted.into_iter().partition(|(_, _, refunded)| *refunded);
    let counted: Vec<_> = counted.into_iter().map(|(at, cost, _)| (at, cost)).collect();
    assert!(!refunded.is_empty() && counted.len() > 100, "{} {}", refunded.len(), counted.len());
    within_quota(&counted, &quota).unwrap();
    for pair in refunded.windows(2) {
        assert!(pair[1].0 >= pair[0].0 + floor, "{pair:?}");
    }
}
