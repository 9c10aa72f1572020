//! What a key may take, and when it has earned it back.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

/// The longest time that is counted, in nanoseconds: 292 years, which is also Go's longest duration.
pub(super) const LONGEST: u64 = i64::MAX as u64;

/// How much may be taken at once (the burst), and the period in which one of it is earned back.
///
/// Over any span of time, what is granted costs at most the burst, and one more for each whole period in the span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Nanoseconds. `period * burst` is at most [`LONGEST`].
    period: NonZeroU64,
    burst: NonZeroU32,
}

impl Quota {
    /// One at a time, and the next a `period` later. `None` where `period` is zero or more than 292 years.
    pub const fn one_per(period: Duration) -> Option<Self> {
        Self::new(period, NonZeroU32::MIN)
    }

    /// At most `rate` a second, and `burst` at once. A rate above 10^9 counts as that.
    ///
    /// The period is rounded up to whole nanoseconds, so that the rate is never exceeded.
    pub const fn per_second(rate: NonZeroU32, burst: NonZeroU32) -> Self {
        let period = 1_000_000_000_u64.div_ceil(rate.get() as u64);
        match NonZeroU64::new(period) {
            Some(period) => Self { period, burst },
            // Rounded up, it is not zero.
            None => Self { period: NonZeroU64::MIN, burst },
        }
    }

    /// `burst` at once, one of it earned back in each `period`. `None` where `period` is zero, or the whole burst would take
    /// more than 292 years to earn back.
    pub const fn new(period: Duration, burst: NonZeroU32) -> Option<Self> {
        let nanos = period.as_nanos();
        // No overflow: a duration has less than 95 bits of nanoseconds, a burst 32.
        if nanos == 0 || nanos * burst.get() as u128 > LONGEST as u128 {
            return None;
        }
        match NonZeroU64::new(nanos as u64) {
            Some(period) => Some(Self { period, burst }),
            None => None,
        }
    }

    /// The most that can be taken at once.
    pub const fn burst(&self) -> NonZeroU32 {
        self.burst
    }

    /// How long it takes to earn one back.
    pub const fn period(&self) -> Duration {
        Duration::from_nanos(self.period.get())
    }

    /// Nanoseconds to earn `cost` back; `None` where it is above the burst.
    pub(in crate::rate_limit) const fn charge(&self, cost: u32) -> Option<u64> {
        if cost > self.burst.get() {
            return None;
        }
        Some(self.one() * cost as u64)
    }

    /// Nanoseconds to earn one back.
    pub(in crate::rate_limit) const fn one(&self) -> u64 {
        self.period.get()
    }

    /// Nanoseconds to earn the whole burst back.
    pub(in crate::rate_limit) const fn whole(&self) -> u64 {
        self.one() * self.burst.get() as u64
    }
}
