//! What the rate limits refused, gave back and remember.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use infogw_layers::{
    observe::Observe,
    rate_limit::{LocalLimiter, RateLimitEvent},
};
use prometheus::{
    IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{each, register};

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
    sizes: Sizes,
}

impl LimiterMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str| {
            let counters = register(registry, IntCounterVec::new(Opts::new(name, help), &["limit"])?)?;
            Ok::<_, prometheus::Error>(each(&counters, LIMITS))
        };
        let keys = Opts::new(
            "infogw_rate_limit_keys",
            "Clusters that this process's limiter has state of: those that took something not yet earned back.",
        );
        let sizes = Sizes { keys: IntGaugeVec::new(keys, &["limit"])?, limiters: Arc::default() };
        registry.register(Box::new(sizes.clone()))?;
        Ok(LimiterMetrics {
            rejections: counters(
                "infogw_rate_limit_rejections_total",
                "Requests refused, by the limit they were over.",
            )?,
            refunds: counters("infogw_rate_limit_refunds_total", "Attempts given back because they ended in a 5xx.")?,
            sizes,
        })
    }

    /// Handles for one limit, which counts in `local`.
    pub fn limit(&self, limit: Limit, local: &Arc<LocalLimiter>) -> LimitCounters {
        self.sizes.add(limit, Arc::clone(local));
        let index = limit as usize;
        LimitCounters { rejections: self.rejections[index].clone(), refunds: self.refunds[index].clone() }
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

type Tracked = (Limit, Arc<LocalLimiter>);

/// Sizes are looked up when they are asked for.
#[derive(Clone)]
struct Sizes {
    keys: IntGaugeVec,
    limiters: Arc<Mutex<Vec<Tracked>>>,
}

impl Sizes {
    fn add(&self, limit: Limit, local: Arc<LocalLimiter>) {
        self.limiters.lock().unwrap_or_else(PoisonError::into_inner).push((limit, local));
    }
}

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sizes").field(&self.limiters).finish()
    }
}

impl Collector for Sizes {
    fn desc(&self) -> Vec<&Desc> {
        self.keys.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (limit, local) in &*self.limiters.lock().unwrap_or_else(PoisonError::into_inner) {
            self.keys.with_label_values(&[limit.name()]).set(local.len() as i64);
        }
        self.keys.collect()
    }
}
