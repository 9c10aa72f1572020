pub(crate) mod metric_families;
pub(crate) mod pipeline;
pub(crate) mod selector;
pub(crate) mod text;
pub(crate) mod token;
pub(crate) mod write_request;

use std::time::{Duration, SystemTime};

use infogw_layers::{clock::Clock, decode::DecodeLimits};

/// 2026-01-01 00:00 UTC, for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StandingClock;

pub(crate) const NOW: Duration = Duration::from_secs(1_767_225_600);
/// The oldest timestamp that is taken, in milliseconds: a day ago.
pub(crate) const OLDEST: i64 = (NOW.as_secs() as i64 - 24 * 60 * 60) * 1000;

impl Clock for StandingClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// The gateway's own limits, or some that a short body breaks.
pub(crate) fn limits(tight: bool) -> DecodeLimits {
    let unrepeatable = vec!["_id".into()];
    if tight {
        DecodeLimits {
            series: 8,
            samples: 16,
            labels: 5,
            label_name: 12,
            label_value: 20,
            decoded: 1 << 10,
            unrepeatable,
            body: 1 << 10,
        }
    } else {
        DecodeLimits { unrepeatable, ..DecodeLimits::default() }
    }
}
