//! Connections, and what their requests buffer.

use infogw_layers::budget::BufferBudget;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{register, sampled::Sampled};

/// Metrics of connections.
#[derive(Debug)]
pub struct ConnectionMetrics {
    open: IntGaugeVec,
    refused: IntCounterVec,
    buffered: Sampled,
}

impl ConnectionMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let open = Opts::new("infogw_connections", "Connections that are open, by listener.");
        let refused = Opts::new(
            "infogw_connections_refused_total",
            "Connections closed at once, as their peer had as many as it may, by listener.",
        );
        Ok(ConnectionMetrics {
            open: register(registry, IntGaugeVec::new(open, &["listener"])?)?,
            refused: register(registry, IntCounterVec::new(refused, &["listener"])?)?,
            buffered: Sampled::new(
                registry,
                "infogw_buffered_bytes",
                "Bytes of bodies that requests have reserved of the budget: those that arrive, wait, or are forwarded.",
                "budget",
            )?,
        })
    }

    /// Handles for one listener.
    pub fn listener(&self, name: &'static str) -> ListenerMetrics {
        ListenerMetrics { open: self.open.with_label_values(&[name]), refused: self.refused.with_label_values(&[name]) }
    }

    /// Shows what is reserved of `budget`.
    pub fn budget(&self, budget: &BufferBudget) {
        let budget = budget.clone();
        self.buffered.add("requests", move || budget.reserved() as u64);
    }
}

/// One listener's handles.
#[derive(Debug, Clone)]
pub struct ListenerMetrics {
    open: IntGauge,
    refused: IntCounter,
}

impl ListenerMetrics {
    /// A connection was opened; it is open until this is dropped.
    pub fn opened(&self) -> Opened {
        self.open.inc();
        Opened(self.open.clone())
    }

    /// One was closed at once.
    pub fn refused(&self) {
        self.refused.inc();
    }
}

/// A connection that is open.
#[derive(Debug)]
pub struct Opened(IntGauge);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.dec();
    }
}
