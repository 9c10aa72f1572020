//! Which quotas there are.

use std::{num::NonZeroU32, time::Duration};

use infogw_layers::rate_limit::Quota;

use crate::NANOSECOND;

#[test]
fn what_makes_no_sense_cannot_be_made() {
    let one = NonZeroU32::MIN;
    let longest = Duration::from_nanos(i64::MAX as u64);
    assert_eq!(Quota::one_per(Duration::ZERO), None);
    assert_eq!(Quota::one_per(Duration::MAX), None);
    assert_eq!(Quota::one_per(longest + NANOSECOND), None);
    assert_eq!(Quota::one_per(longest).map(|quota| quota.period()), Some(longest));
    assert_eq!(Quota::new(longest / 2, NonZeroU32::new(3).unwrap()), None);
    assert_eq!(Quota::new(Duration::MAX, NonZeroU32::MAX), None);
    assert_eq!(Quota::new(NANOSECOND, one), Quota::one_per(NANOSECOND));
}

#[test]
fn a_rate_is_never_exceeded_by_rounding() {
    for (rate, nanos) in [(1, 1_000_000_000), (3, 333_333_334), (7, 142_857_143), (999_999_999, 2), (u32::MAX, 1)] {
        let quota = Quota::per_second(NonZeroU32::new(rate).unwrap(), NonZeroU32::MAX);
        assert_eq!((quota.period(), quota.burst()), (Duration::from_nanos(nanos), NonZeroU32::MAX));
    }
}
