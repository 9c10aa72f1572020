//! Gauges that are read when somebody asks.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::register;

type Sample = Box<dyn Fn() -> u64 + Send + Sync>;

/// A gauge with one label. Each of its values has something that is asked for it at every scrape.
#[derive(Clone)]
pub(super) struct Sampled {
    gauge: IntGaugeVec,
    samples: Arc<Mutex<Vec<(&'static str, Sample)>>>,
}

impl Sampled {
    pub(super) fn new(registry: &Registry, name: &str, help: &str, label: &str) -> Result<Self, prometheus::Error> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &[label])?;
        register(registry, Sampled { gauge, samples: Arc::default() })
    }

    /// From now on has `value` of the label, too.
    pub(super) fn add(&self, value: &'static str, sample: impl Fn() -> u64 + Send + Sync + 'static) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push((value, Box::new(sample)));
    }
}

impl fmt::Debug for Sampled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampled").field("gauge", &self.gauge).finish_non_exhaustive()
    }
}

impl Collector for Sampled {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (value, sample) in &*self.samples.lock().unwrap_or_else(PoisonError::into_inner) {
            self.gauge.with_label_values(&[value]).set(i64::try_from(sample()).unwrap_or(i64::MAX));
        }
        self.gauge.collect()
    }
}
