//! The keys of our tokens.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{each, register};

/// How many keys there are, and how often they were read again.
#[derive(Debug)]
pub struct KeyMetrics {
    keys: IntGauge,
    /// Success, error.
    reloads: [IntCounter; 2],
}

impl KeyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reloads = Opts::new(
            "infogw_token_key_reloads_total",
            "How often changed --shared-key files were put in force, or not.",
        );
        Ok(KeyMetrics {
            keys: register(registry, IntGauge::new("infogw_token_keys", "Keys that tokens are verified with.")?)?,
            reloads: each(&register(registry, IntCounterVec::new(reloads, &["result"])?)?, ["success", "error"]),
        })
    }

    /// There are so many.
    pub fn count(&self, keys: usize) {
        self.keys.set(keys as i64);
    }

    /// Counts one reading of the files; one that found nothing new is none.
    pub fn reloaded<E>(&self, reloaded: &Result<bool, E>) {
        let [success, error] = &self.reloads;
        match reloaded {
            Ok(true) => success.inc(),
            Ok(false) => {}
            Err(_) => error.inc(),
        }
    }
}
