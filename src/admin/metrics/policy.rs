//! The policy in force.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use prometheus::{
    Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{each, register};
use crate::config::policy::PolicyStatus;

/// Which policy is in force, and whether it could be read again.
#[derive(Debug)]
pub struct PolicyMetrics {
    info: Info,
    overrides: IntGauge,
    successful: IntGauge,
    succeeded_at: Gauge,
    /// Success, error.
    reloads: [IntCounter; 2],
}

impl PolicyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let reloads =
            Opts::new("infogw_policy_reloads_total", "How often the policy was read again, and put in force or not.");
        let succeeded_at =
            Gauge::new("infogw_policy_last_reload_success_timestamp_seconds", "When the policy in force was read.")?;
        Ok(PolicyMetrics {
            info: register(registry, Info::new()?)?,
            overrides: gauge(
                "infogw_policy_overrides",
                "Accounts and clusters for which the policy says something else.",
            )?,
            successful: gauge(
                "infogw_policy_last_reload_successful",
                "Whether the last reading of the policy was put in force.",
            )?,
            succeeded_at: register(registry, succeeded_at)?,
            reloads: each(&register(registry, IntCounterVec::new(reloads, &["result"])?)?, ["success", "error"]),
        })
    }

    /// This one is in force.
    pub fn in_force(&self, policy: &PolicyStatus) {
        self.info.set(&policy.hash);
        self.overrides.set(policy.overrides as i64);
        self.successful.set(1);
        self.succeeded_at.set(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64());
    }

    /// It was read again.
    pub fn reloaded<E>(&self, reloaded: &Result<PolicyStatus, E>) {
        let [success, error] = &self.reloads;
        match reloaded {
            Ok(policy) => {
                success.inc();
                self.in_force(policy);
            }
            Err(_) => {
                error.inc();
                self.successful.set(0);
            }
        }
    }
}

/// One series at any time: no scrape sees two policies in force, or none.
#[derive(Debug, Clone)]
struct Info {
    gauge: IntGaugeVec,
    changing: Arc<Mutex<()>>,
}

impl Info {
    fn new() -> Result<Self, prometheus::Error> {
        let opts =
            Opts::new("infogw_policy_info", "The policy in force, by a hash of what flags and files say together.");
        Ok(Info { gauge: IntGaugeVec::new(opts, &["hash"])?, changing: Arc::default() })
    }

    fn set(&self, hash: &str) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.gauge.reset();
        self.gauge.with_label_values(&[hash]).set(1);
    }
}

impl Collector for Info {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.gauge.collect()
    }
}
