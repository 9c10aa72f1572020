//! Telemetry of one cluster, in the shape that real clusters send: 24 metric names of 27 bytes, 10 labels a series, values of 17
//! bytes (medians). Counters grow, gauges wander, alerts come and go.

/// What the dev gateway lets pass. Not `up`, not `node_uname_info`, and of alerts only those that fire.
pub(super) const ALLOWLIST: [&str; 9] = [
    r#"{__name__=~"cluster:.*|openshift:.*"}"#,
    r#"{__name__=~"cluster_version|cluster_version_(available_updates|payload)"}"#,
    r#"{__name__=~"cluster_installer|cluster_operator_(conditions|up)"}"#,
    r#"{__name__="code:apiserver_request_count:rate:sum"}"#,
    r#"{__name__=~"instance:etcd_object_counts:sum|kube_pod_status_ready:etcd:sum"}"#,
    r#"{__name__=~"etcd_request_duration_seconds_(bucket|sum|count)"}"#,
    r#"{__name__=~"apiserver_request_total|subscription_sync_total|csv_succeeded|console_url"}"#,
    r#"{__name__="alerts",alertstate="firing"}"#,
    "pushed_by_hand",
];

/// The NaN that says that a series has ended (Prometheus, `value.StaleNaN`).
pub(super) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// Series of one name.
#[derive(Debug, Clone)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) series: Vec<Series>,
}

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Says nothing, as in `/federate`.
    Untyped,
    /// Counts by upper bound.
    Histogram,
}

/// One series, or the series of one histogram.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// Sorted by name, without `__name__`.
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Number(f64),
    /// The series was there at the scrape before, and is no more.
    Stale,
    Histogram(Observed),
}

/// Observations of a classic histogram.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    /// By bucket of [`BOUNDS`], each with those below it.
    pub(super) buckets: [u64; BOUNDS.len()],
    pub(super) count: u64,
    pub(super) sum: f64,
}

/// Upper bounds of the histogram's buckets, in seconds; `+Inf` is the count.
pub(super) const BOUNDS: [f64; 5] = [0.005, 0.025, 0.1, 0.5, 2.5];

/// Where a series is scraped.
struct Source {
    job: &'static str,
    endpoint: &'static str,
    namespace: &'static str,
    pod: &'static str,
    port: u16,
}

const VERSION: Source = Source {
    job: "cluster-version-operator",
    endpoint: "metrics",
    namespace: "openshift-cluster-version",
    pod: "cluster-version-operator-5cb5f8c9db-st825",
    port: 9099,
};
const ETCD: Source =
    Source { job: "etcd", endpoint: "etcd-metrics", namespace: "openshift-etcd", pod: "etcd-ip-10-0-3-17", port: 9979 };
const API: Source = Source {
    job: "apiserver",
    endpoint: "https",
    namespace: "openshift-apiserver",
    pod: "apiserver-76f9d",
    port: 6443,
};
const STATE: Source = Source {
    job: "kube-state-metrics",
    endpoint: "https-main",
    namespace: "openshift-monitoring",
    pod: "kube-state-metrics-0",
    port: 8443,
};
const CATALOG: Source = Source {
    job: "olm-operator",
    endpoint: "https-metrics",
    namespace: "openshift-operators",
    pod: "olm-operator-66d8",
    port: 8443,
};

/// What a family looks like: the label that tells its series apart, and a usual value.
struct Shape {
    name: &'static str,
    kind: Kind,
    source: &'static Source,
    label: &'static str,
    values: &'static [&'static str],
    usual: f64,
}

macro_rules! shapes {
    ($($name:literal $kind:ident $source:ident $label:ident [$($value:literal),*] $usual:literal;)*) => {
        const SHAPES: &[Shape] = &[$(Shape {
            name: $name,
            kind: Kind::$kind,
            source: &$source,
            label: stringify!($label),
            values: &[$($value),*],
            usual: $usual,
        },)*];
    };
}

shapes! {
    "cluster_version" Gauge VERSION version ["4.16.3", "4.17.0-rc.2"] 1.0;
    "cluster_version_payload" Gauge VERSION type ["applied", "pending"] 420.0;
    "cluster_version_available_updates" Gauge VERSION channel ["stable-4.17"] 3.0;
    "cluster_installer" Gauge VERSION invoker ["openshift-install"] 1.0;
    "cluster_operator_up" Untyped VERSION name ["authentication", "console", "dns", "image-registry", "ingress", "monitoring"] 1.0;
    "cluster_operator_conditions" Untyped VERSION condition ["Available", "Degraded", "Progressing", "Upgradeable"] 1.0;
    "cluster:capacity_cpu_cores:sum" Gauge STATE label_node_role ["master", "worker"] 48.0;
    "cluster:capacity_memory_bytes:sum" Gauge STATE label_node_role ["master", "worker"] 48_301_974_425.6;
    "cluster:cpu_usage_cores:sum" Gauge STATE label_node_role ["master", "worker"] 11.75;
    "cluster:memory_usage_bytes:sum" Gauge STATE label_node_role ["master", "worker"] 14_823_510_016.0;
    "cluster:node_instance_type_count:sum" Gauge STATE label_instance_type ["m5.large", "m5.xlarge"] 3.0;
    "openshift:cpu_usage_cores:sum" Gauge STATE label_node_role ["master", "worker"] 4.5;
    "openshift:memory_usage_bytes:sum" Gauge STATE label_node_role ["master", "worker"] 9_216_741_376.0;
    "kube_pod_status_ready:etcd:sum" Gauge STATE condition ["true"] 3.0;
    "instance:etcd_object_counts:sum" Gauge ETCD peer ["etcd-ip-10-0-3-17", "etcd-ip-10-0-3-18", "etcd-ip-10-0-3-19"] 9321.0;
    "etcd_request_duration_seconds" Histogram ETCD operation ["get", "listWithCount"] 0.02;
    "code:apiserver_request_count:rate:sum" Gauge API code ["200", "201", "404", "500"] 63.25;
    "apiserver_request_total" Counter API verb ["GET", "LIST", "PATCH", "WATCH"] 250.0;
    "subscription_sync_total" Counter CATALOG installed ["elasticsearch.v5.8", "jaeger.v1.57"] 2.0;
    "csv_succeeded" Gauge CATALOG name ["elasticsearch.v5.8", "jaeger.v1.57"] 1.0;
    "console_url" Gauge STATE url ["https://console.apps.example.com"] 1.0;
    "node_uname_info" Gauge STATE release ["5.14.0-427.el9.x86_64"] 1.0;
    "up" Gauge ETCD metrics_path ["/metrics", "/metrics/cadvisor"] 1.0;
}

/// One cluster's telemetry over time.
#[derive(Debug)]
pub(super) struct Telemetry {
    cluster: &'static str,
    random: fastrand::Rng,
    scrapes: u64,
    /// By shape and value of its label.
    numbers: Vec<Vec<f64>>,
    observed: Vec<Observed>,
}

impl Telemetry {
    /// The cluster's id is its seed.
    pub(super) fn new(cluster: &'static str) -> Self {
        let seed = cluster.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let numbers = SHAPES.iter().map(|shape| vec![shape.usual; shape.values.len()]).collect();
        Telemetry { cluster, random: fastrand::Rng::with_seed(seed), scrapes: 0, numbers, observed: Vec::new() }
    }

    /// What is there now, a scrape interval after the last time.
    pub(super) fn scrape(&mut self) -> Vec<Family> {
        self.advance();
        let mut families = Vec::with_capacity(SHAPES.len() + 1);
        for (shape, numbers) in SHAPES.iter().zip(&self.numbers) {
            let value = |index: usize, number: f64| match shape.kind {
                Kind::Histogram => Value::Histogram(self.observed.get(index).cloned().unwrap_or_default()),
                _ => Value::Number(number),
            };
            let series = shape.values.iter().zip(numbers).enumerate().map(|(index, (&own, &number))| Series {
                labels: self.labels(shape.source, &[(shape.label, own)], &[]),
                value: value(index, number),
            });
            families.push(Family { name: shape.name, kind: shape.kind, series: series.collect() });
        }
        families.push(Family { name: "alerts", kind: Kind::Untyped, series: self.alerts() });
        self.scrapes += 1;
        families
    }

    fn advance(&mut self) {
        let Telemetry { random, numbers, observed, .. } = self;
        for (shape, numbers) in SHAPES.iter().zip(numbers) {
            if shape.kind == Kind::Histogram {
                observed.resize(shape.values.len(), Observed::default());
                for histogram in observed.iter_mut() {
                    for _ in 0..random.u32(5..40) {
                        histogram.observe(shape.usual * -random.f64().max(f64::MIN_POSITIVE).ln());
                    }
                }
            }
            for number in numbers {
                match shape.kind {
                    Kind::Counter => *number += (random.f64() * shape.usual).round(),
                    // What is measured wanders; what is counted in units stays.
                    Kind::Gauge if shape.name.contains("usage") || shape.name.contains("rate") => {
                        *number *= 0.98 + 0.04 * random.f64();
                    }
                    _ => {}
                }
            }
        }
    }

    /// One alert that always fires, and one that is pending, fires and ends, over and over.
    fn alerts(&self) -> Vec<Series> {
        let alert = |name, state, severity, value| {
            let own = [("alertname", name), ("alertstate", state), ("severity", severity)];
            Series { labels: self.labels(&ETCD, &own, &["endpoint", "instance"]), value }
        };
        let mut alerts = vec![alert("Watchdog", "firing", "none", Value::Number(1.0))];
        let mut degraded = |state, value| alerts.push(alert("ClusterOperatorDegraded", state, "warning", value));
        match self.scrapes % 12 {
            0 | 1 => degraded("pending", Value::Number(1.0)),
            2 => {
                degraded("pending", Value::Stale);
                degraded("firing", Value::Number(1.0));
            }
            3..=8 => degraded("firing", Value::Number(1.0)),
            9 => degraded("firing", Value::Stale),
            _ => {}
        }
        alerts
    }

    fn labels(&self, source: &Source, own: &[(&'static str, &str)], without: &[&str]) -> Vec<(&'static str, String)> {
        let host = 100 + self.cluster.bytes().fold(0u8, u8::wrapping_add) % 100;
        let common = [
            ("_id", self.cluster.to_owned()),
            ("endpoint", source.endpoint.to_owned()),
            ("instance", format!("10.0.{host}.117:{}", source.port)),
            ("job", source.job.to_owned()),
            ("namespace", source.namespace.to_owned()),
            ("pod", source.pod.to_owned()),
            ("prometheus", "openshift-monitoring/k8s".to_owned()),
            ("prometheus_replica", "prometheus-k8s-0".to_owned()),
            ("service", source.job.to_owned()),
        ];
        let mut labels: Vec<_> = common.into_iter().filter(|(name, _)| !without.contains(name)).collect();
        labels.extend(own.iter().map(|&(name, value)| (name, value.to_owned())));
        labels.sort_unstable();
        labels
    }
}

impl Observed {
    fn observe(&mut self, seconds: f64) {
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn median(mut lengths: Vec<usize>) -> usize {
        lengths.sort_unstable();
        lengths[lengths.len() / 2]
    }

    #[test]
    fn it_has_the_shape_of_real_telemetry() {
        let families = Telemetry::new("remote-write-1").scrape();
        assert_eq!(families.len(), 24);
        assert_eq!(median(families.iter().map(|family| family.name.len()).collect()), 27);
        let series: Vec<&Series> = families.iter().flat_map(|family| &family.series).collect();
        assert!(series.iter().all(|series| series.labels.len() == 10), "{series:#?}");
        assert!(series.iter().all(|series| series.labels.is_sorted_by(|a, b| a.0 < b.0)), "{series:#?}");
        let values = series.iter().flat_map(|series| &series.labels).map(|(_, value)| value.len());
        assert_eq!(median(values.collect()), 17);
    }

    #[test]
    fn counters_grow_and_alerts_end() {
        let mut telemetry = Telemetry::new("c1");
        let mut last: BTreeMap<String, f64> = BTreeMap::new();
        let (mut grown, mut stale) = (0, 0);
        for _ in 0..30 {
            for family in telemetry.scrape() {
                for series in family.series {
                    let key = format!("{}{:?}", family.name, series.labels);
                    match series.value {
                        Value::Number(number) => {
                            let before = last.insert(key, number);
                            if family.kind == Kind::Counter {
                                assert!(before.is_none_or(|before| before <= number), "{}", family.name);
                                grown += usize::from(before.is_some_and(|before| before < number));
                            }
                        }
                        Value::Stale => {
                            stale += 1;
                            assert!(last.remove(&key).is_some(), "only what was there can end: {key}");
                        }
                        Value::Histogram(observed) => {
                            assert!(
                                observed.buckets.is_sorted() && observed.buckets[BOUNDS.len() - 1] <= observed.count
                            );
                            let before = last.insert(key, observed.count as f64);
                            assert!(before.unwrap_or_default() < observed.count as f64);
                        }
                    }
                }
            }
        }
        assert!(grown > 50 && stale >= 4, "{grown} steps up, {stale} ends");
    }
}
