//! What the rate limits refused, gave back and remember.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use infogw_layers::{
    circuit::CircuitState,
    observe::Observe,
    rate_limit::{
        LocalLimiter, RateLimitEvent,
        shared::{Fallback, SharedEvent},
    },
};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{each, register, sampled::Sampled};

/// The limits, as the label `limit` names them.
const LIMITS: [&str; 3] = ["upload", "receive_requests", "receive_samples"];

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Uploads of a cluster.
    Upload,
    /// Remote-write requests of a cluster.
    ReceiveRequests,
    /// Samples that a cluster remote-writes.
    ReceiveSamples,
}

impl Limit {
    /// All there are, in the order of their discriminants.
    pub const ALL: [Limit; 3] = [Limit::Upload, Limit::ReceiveRequests, Limit::ReceiveSamples];

    /// Its name in metrics, logs and shared keys.
    pub fn name(self) -> &'static str {
        LIMITS[self as usize]
    }
}

/// Metrics of the rate limits.
#[derive(Debug)]
pub struct LimiterMetrics {
    rejections: [IntCounter; 3],
    refunds: [IntCounter; 3],
    fallbacks: IntCounterVec,
    lost: [IntCounter; 3],
    sizes: Sampled,
    redis: RedisState,
}

impl LimiterMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str| {
            let counters = register(registry, IntCounterVec::new(Opts::new(name, help), &["limit"])?)?;
            Ok::<_, prometheus::Error>(each(&counters, LIMITS))
        };
        let sizes = Sampled::new(
            registry,
            "infogw_rate_limit_keys",
            "Clusters that this process's limiter has state of: those that took something not yet earned back.",
            "limit",
        )?;
        Ok(LimiterMetrics {
            rejections: counters(
                "infogw_rate_limit_rejections_total",
                "Requests refused, by the limit they were over.",
            )?,
            refunds: counters(
                "infogw_rate_limit_refunds_total",
                "Attempts given back because they ended in a 5xx, or another limit refused them.",
            )?,
            fallbacks: register(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "infogw_rate_limit_shared_fallbacks_total",
                        "Requests that this process limited by itself, because Redis timed out, failed, or was left alone after that.",
                    ),
                    &["limit", "cause"],
                )?,
            )?,
            lost: counters(
                "infogw_rate_limit_shared_refunds_lost_total",
                "Attempts to be given back that stay charged, because Redis could not be told.",
            )?,
            sizes,
            redis: RedisState::default(),
        })
    }

    /// Handles for one limit, which counts in `local`.
    pub fn limit(&self, limit: Limit, local: &Arc<LocalLimiter>) -> LimitCounters {
        let counted = Arc::clone(local);
        self.sizes.add(limit.name(), move || counted.len() as u64);
        let index = limit as usize;
        LimitCounters { rejections: self.rejections[index].clone(), refunds: self.refunds[index].clone() }
    }
}

impl LimiterMetrics {
    /// Handles for one limit that is shared.
    pub fn shared(&self, limit: Limit) -> SharedCounters {
        let fallbacks =
            ["timeout", "error", "circuit_open"].map(|cause| self.fallbacks.with_label_values(&[limit.name(), cause]));
        let lost = self.lost[limit as usize].clone();
        SharedCounters { limit, fallbacks, lost, redis: self.redis.clone() }
    }

    /// The observer of the circuit that all shared limits ask Redis through.
    pub fn circuit(&self) -> RedisState {
        self.redis.clone()
    }
}

/// Logs when Redis is left alone, with the cause that the next of [`SharedCounters`] hears, and when it is back.
#[derive(Debug, Clone, Default)]
pub struct RedisState {
    /// How many circuits are open: in a cluster there are several.
    open: Arc<AtomicUsize>,
    /// The circuit has opened, and why was not logged yet.
    opened: Arc<AtomicBool>,
}

/// Counts where a shared limit had to do without Redis.
#[derive(Debug, Clone)]
pub struct SharedCounters {
    limit: Limit,
    /// Timeout, error, circuit open.
    fallbacks: [IntCounter; 3],
    lost: IntCounter,
    redis: RedisState,
}

impl Observe<SharedEvent> for SharedCounters {
    fn observe(&self, event: &SharedEvent) {
        let limit = self.limit.name();
        let cause = match event {
            SharedEvent::Answered => return,
            SharedEvent::FellBack(cause) => {
                let [timeout, error, open] = &self.fallbacks;
                match cause {
                    Fallback::TimedOut => timeout.inc(),
                    Fallback::Failed(_) => error.inc(),
                    // Of refunds alone is it ever too busy.
                    Fallback::CircuitOpen | Fallback::Busy => open.inc(),
                }
                cause
            }
            SharedEvent::RefundLost(cause) => {
                self.lost.inc();
                cause
            }
        };
        if !matches!(cause, Fallback::CircuitOpen | Fallback::Busy) && self.redis.opened.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(%cause, "Redis does not keep the rate limits: this process limits by itself");
        } else {
            tracing::debug!(limit, %cause, "Redis did not decide about the rate limit");
        }
    }
}

impl Observe<CircuitState> for RedisState {
    fn observe(&self, state: &CircuitState) {
        match state {
            CircuitState::Open if self.open.fetch_add(1, Ordering::Relaxed) == 0 => {
                self.opened.store(true, Ordering::Relaxed);
            }
            CircuitState::Closed if self.open.fetch_sub(1, Ordering::Relaxed) == 1 => {
                tracing::info!("Redis keeps the rate limits again");
            }
            CircuitState::Open | CircuitState::Closed => {}
        }
    }
}

/// One limit's counters.
#[derive(Debug, Clone)]
pub struct LimitCounters {
    rejections: IntCounter,
    refunds: IntCounter,
}

impl Observe<RateLimitEvent> for LimitCounters {
    fn observe(&self, event: &RateLimitEvent) {
        match event {
            RateLimitEvent::TooSoon | RateLimitEvent::TooMuch => self.rejections.inc(),
            RateLimitEvent::Refunded => self.refunds.inc(),
        }
    }
}
