//! The upstream's addresses.

use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::register;

/// How many there are.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    up: IntGauge,
    down: IntGauge,
}

impl UpstreamMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let addresses = Opts::new(
            "infogw_upstream_addresses",
            "The upstream's addresses, if they are several: those that are balanced over, and those left out as they are down.",
        );
        let addresses = register(registry, IntGaugeVec::new(addresses, &["state"])?)?;
        let [up, down] = ["up", "down"].map(|state| addresses.with_label_values(&[state]));
        Ok(UpstreamMetrics { up, down })
    }

    /// There are so many.
    pub fn addresses(&self, up: usize, down: usize) {
        self.up.set(up as i64);
        self.down.set(down as i64);
    }
}
