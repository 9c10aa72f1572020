//! Time, injected, so that tests can hold it.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

/// What time it is. Layers that decide by time take one.
pub trait Clock: Clone + Send + Sync + 'static {
    /// Wall-clock time, for timestamps and token lifetimes.
    fn now(&self) -> SystemTime;

    /// Time since some fixed start, which never goes backwards: for rates.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

#[cfg(any(test, feature = "test-util"))]
pub use manual::ManualClock;

#[cfg(any(test, feature = "test-util"))]
mod manual {
    use super::{Clock, Duration, SystemTime};
    use std::sync::{Arc, Mutex, PoisonError};

    /// A clock that stands still until it is told to go on. Clones share their time.
    #[derive(Debug, Clone, Default)]
    pub struct ManualClock(Arc<Mutex<Duration>>);

    impl ManualClock {
        /// 2026-01-01 00:00 UTC: where the wall clock starts.
        pub const START: Duration = Duration::from_secs(1_767_225_600);

        /// A clock at [`Self::START`].
        pub fn new() -> Self {
            Self::default()
        }

        /// Goes on by `step`.
        pub fn advance(&self, step: Duration) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) += step;
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Self::START + self.monotonic()
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
