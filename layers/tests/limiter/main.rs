//! The limiter's promises, as properties: over sequences of attempts, refunds and times that nobody thought of.

#![cfg(feature = "rate-limit")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checks;
mod memory;
mod quotas;
mod refunds;
#[cfg(all(feature = "rate-limit-redis", feature = "test-util"))]
mod shared;
mod threads;
mod time;

use std::{num::NonZeroU32, time::Duration};

use infogw_layers::rate_limit::{Quota, Refused};
use proptest::prelude::*;

const NANOSECOND: Duration = Duration::from_nanos(1);
/// How late a reading of the clock may be and still count exactly.
const LATE: Duration = Duration::from_secs(1);

fn quota(period: u64, burst: u32) -> Quota {
    Quota::new(Duration::from_nanos(period), NonZeroU32::new(burst).unwrap()).unwrap()
}

fn whole(quota: &Quota) -> Duration {
    quota.period() * quota.burst().get()
}

/// Quotas so small and coarse that random times often hit the very nanosecond that matters.
fn small_quotas() -> impl Strategy<Value = Quota> {
    (1..12_u64, 1..6_u32).prop_map(|(period, burst)| quota(period, burst))
}

fn wait(refused: &Refused) -> Duration {
    refused.retry_after().expect("a cost within the burst can be waited for")
}

/// The definition of a quota, and no algorithm: in any window, at most the burst and what the window earns back.
/// Takes times in ascending order.
fn within_quota(granted: &[(Duration, u32)], quota: &Quota) -> Result<(), TestCaseError> {
    for (first, &(from, _)) in granted.iter().enumerate() {
        let mut cost = 0;
        for &(to, one) in &granted[first..] {
            cost += one;
            let allowed = whole(quota) + (to - from);
            prop_assert!(quota.period() * cost <= allowed, "{cost} between {from:?} and {to:?} of {granted:?}");
        }
    }
    Ok(())
}
