//! What the stores that replicas share were asked, and what came of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infogw_layers::{
    circuit::CircuitState,
    observe::Observe,
    store::{Called, Operation, Outcome, StoreError},
};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::register;

/// Calls by operation and result.
#[derive(Debug)]
pub struct StoreMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    circuit: IntGaugeVec,
}

/// What a call may take is 50 ms.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1];

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(StoreMetrics {
            requests: register(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "infogw_store_requests_total",
                        "Calls to a store that replicas share, by result: hit, miss, stored, error, or skipped where it was left alone.",
                    ),
                    &["store", "operation", "result"],
                )?,
            )?,
            duration: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "infogw_store_request_duration_seconds",
                        "Time that calls to a store took which was not left alone.",
                    )
                    .buckets(SECONDS.to_vec()),
                    &["store", "operation"],
                )?,
            )?,
            circuit: register(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "infogw_store_circuit_open",
                        "Whether a store is left alone, as it failed several times in a row: 0 or 1; of a Redis cluster, how many of 64 parts.",
                    ),
                    &["store"],
                )?,
            )?,
        })
    }

    /// Handles for the store of this name.
    pub fn store(&self, name: &'static str) -> StoreObserver {
        let [hit, miss, get_error, get_skipped] = self.results(name, "get", ["hit", "miss", "error", "skipped"]);
        let [stored, set_error, set_skipped] = self.results(name, "set", ["stored", "error", "skipped"]);
        StoreObserver {
            name,
            hit,
            miss,
            stored,
            errors: [get_error, set_error],
            skipped: [get_skipped, set_skipped],
            durations: ["get", "set"].map(|operation| self.duration.with_label_values(&[name, operation])),
            circuit: self.circuit.with_label_values(&[name]),
            last_error: Arc::default(),
        }
    }

    fn results<const N: usize>(&self, store: &str, operation: &str, results: [&str; N]) -> [IntCounter; N] {
        results.map(|result| self.requests.with_label_values(&[store, operation, result]))
    }
}

/// Counts the calls of one store, and logs when it is left alone and when it is back.
#[derive(Debug, Clone)]
pub struct StoreObserver {
    name: &'static str,
    hit: IntCounter,
    miss: IntCounter,
    stored: IntCounter,
    /// Get, set; so are the next two.
    errors: [IntCounter; 2],
    skipped: [IntCounter; 2],
    durations: [Histogram; 2],
    circuit: IntGauge,
    /// For the log: of a hundred failures alike, one line is enough.
    last_error: Arc<Mutex<Option<StoreError>>>,
}

impl StoreObserver {
    fn last_error(&self) -> MutexGuard<'_, Option<StoreError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observe<Called<'_>> for StoreObserver {
    fn observe(&self, called: &Called<'_>) {
        let operation = match called.operation {
            Operation::Get => 0,
            Operation::Set => 1,
        };
        match called.outcome {
            Outcome::Hit => self.hit.inc(),
            Outcome::Miss => self.miss.inc(),
            Outcome::Written => self.stored.inc(),
            Outcome::Skipped(_) => return self.skipped[operation].inc(),
            Outcome::Failed(error) => {
                self.errors[operation].inc();
                *self.last_error() = Some(error.clone());
                tracing::debug!(store = self.name, operation = ?called.operation, %error, "a shared store failed");
            }
        }
        self.durations[operation].observe(called.elapsed.as_secs_f64());
    }
}

impl Observe<CircuitState> for StoreObserver {
    fn observe(&self, state: &CircuitState) {
        match state {
            CircuitState::Open => {
                self.circuit.inc();
                if self.circuit.get() > 1 {
                    return;
                }
                let error = self.last_error().take().map(|error| error.to_string()).unwrap_or_default();
                tracing::warn!(
                    store = self.name,
                    error,
                    "a shared store fails and is left alone, but for a try each second"
                );
            }
            CircuitState::Closed => {
                self.circuit.dec();
                if self.circuit.get() == 0 {
                    tracing::info!(store = self.name, "the shared store is back");
                }
            }
        }
    }
}
