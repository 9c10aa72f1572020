//! What the authorizer said, what was kept of it, and whether it is there.

use infogw_layers::{
    authorize::cache::{CacheEvent, CacheHandle, Verdict},
    circuit::CircuitState,
    observe::Observe,
};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{each, register, sampled::Sampled};

/// Metrics of both authorization caches, and of the authorizer's circuit.
#[derive(Debug)]
pub(super) struct AuthorizationMetrics {
    /// Hit, miss.
    reads: [IntCounter; 2],
    /// Hit, miss.
    token_reads: [IntCounter; 2],
    writes: IntCounter,
    /// Memory, shared, stale, refusal.
    served: [IntCounter; 4],
    shed: IntCounter,
    /// Granted, refused, throttled, outage.
    answers: [IntCounter; 4],
    circuit: IntGauge,
    entries: Sampled,
    bytes: Sampled,
}

impl AuthorizationMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
        };
        let sampled = |name: &str, help: &str| Sampled::new(registry, name, help, "cache");
        Ok(AuthorizationMetrics {
            reads: each(
                &counters(
                    "cache_reads_total",
                    "Reads of the authorization cache: a hit was answered from memory at once, a miss was looked up.",
                    "result",
                )?,
                ["hit", "miss"],
            ),
            token_reads: each(
                &counters(
                    "infogw_token_cache_reads_total",
                    "Uploads whose token had been verified before, or had to be: hit or miss.",
                    "result",
                )?,
                ["hit", "miss"],
            ),
            writes: counters("cache_writes_total", "Writes to the authorization cache.", "result")?
                .with_label_values(&["success"]),
            served: each(
                &counters(
                    "infogw_authorization_cache_served_total",
                    "Requests that the authorization cache answered: from memory, from the store that replicas share, \
                     with a stale grant because the authorizer was down, or with a refusal.",
                    "from",
                )?,
                ["memory", "shared", "stale", "refusal"],
            ),
            shed: register(
                registry,
                IntCounter::new(
                    "infogw_authorizer_shed_total",
                    "Requests refused because too many calls to the authorizer were under way.",
                )?,
            )?,
            answers: each(
                &counters(
                    "infogw_authorizer_answers_total",
                    "What came of asking the authorizer about received requests' credentials, after retries; of an open circuit, an outage.",
                    "answer",
                )?,
                ["granted", "refused", "throttled", "outage"],
            ),
            circuit: register(
                registry,
                IntGauge::new(
                    "infogw_authorizer_circuit_open",
                    "1 while the authorizer is not asked because it did not answer.",
                )?,
            )?,
            entries: sampled("infogw_authorization_cache_entries", "Grants that are kept, by cache.")?,
            bytes: sampled("infogw_authorization_cache_bytes", "About how much memory these grants take, by cache.")?,
        })
    }

    /// Of the authorizer's answers; `cache_*` has always meant those.
    pub(super) fn authorizer_cache(&self, event: CacheEvent) {
        let [hit, miss] = &self.reads;
        let [memory, shared, stale, refusal] = &self.served;
        match event {
            CacheEvent::Hit => {
                hit.inc();
                memory.inc();
            }
            CacheEvent::RefusalHit => {
                hit.inc();
                refusal.inc();
            }
            CacheEvent::Stale { waited } => {
                if !waited {
                    hit.inc();
                }
                stale.inc();
            }
            CacheEvent::Miss => miss.inc(),
            CacheEvent::Shed => self.shed.inc(),
            CacheEvent::SharedHit => shared.inc(),
            CacheEvent::Write => self.writes.inc(),
            CacheEvent::Asked(verdict) => {
                let [granted, refused, throttled, outage] = &self.answers;
                let counter = match verdict {
                    Verdict::Granted => granted,
                    Verdict::Refused => refused,
                    Verdict::Throttled => throttled,
                    Verdict::Outage => outage,
                };
                counter.inc();
            }
        }
    }

    /// Of tokens of ours, which are verified here.
    pub(super) fn token_cache(&self, event: CacheEvent) {
        let [hit, miss] = &self.token_reads;
        match event {
            CacheEvent::Hit | CacheEvent::RefusalHit => hit.inc(),
            CacheEvent::Miss => miss.inc(),
            _ => {}
        }
    }

    /// From now on tells the size of `cache`, too.
    pub(super) fn watch(&self, cache: &'static str, handle: CacheHandle) {
        let other = handle.clone();
        self.entries.add(cache, move || handle.entries());
        self.bytes.add(cache, move || other.bytes());
    }
}

/// Says on `/metrics` and in the log whether the authorizer is asked.
impl Observe<CircuitState> for &'static AuthorizationMetrics {
    fn observe(&self, state: &CircuitState) {
        match state {
            CircuitState::Open => {
                self.circuit.set(1);
                tracing::warn!(
                    "the authorizer does not answer: until it does, known clusters are served and others refused"
                );
            }
            CircuitState::Closed => {
                self.circuit.set(0);
                tracing::info!("the authorizer answers again");
            }
        }
    }
}
