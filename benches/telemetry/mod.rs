//! What a cluster of the fleet pushes, generated: in the shape that real ones have (medians of an OpenShift cluster's `/federate`:
//! 10 labels a series besides the name, label names of 8 bytes, values of 17, metric names of 27, two dozen names), and allowlists in
//! the shape of production's (211 rules: 175 name a metric exactly, one is a regular expression on the name, 35 match further labels).
//! The same arguments give the same bytes.

// Each bench is a crate of its own, and uses some of this.
#![allow(dead_code)]

use infogw_proto::{
    client::{LabelPair, Metric, MetricFamily, MetricType, Untyped},
    prometheus::{Label, Sample, TimeSeries, WriteRequest},
};
use prost::Message as _;

/// Distinct metric names of a request. A fifth of them can be left off the allowlist.
pub(crate) const NAMES: usize = 25;
/// The label that is there to be elided.
pub(crate) const REPLICA: &str = "prometheus_replica";
/// Rules of production's allowlist.
pub(crate) const RULES: usize = 211;

/// How much one request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Series, each with one sample.
    pub(crate) series: usize,
    /// Labels of each besides its name, the cluster's id and [`REPLICA`] among them: two at least.
    pub(crate) labels: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { series: 500, labels: 10 }
    }
}

/// The id of cluster `n`, a UUID.
pub(crate) fn cluster(n: u64) -> String {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:08x}-{:04x}-4000-8000-{n:012x}", mixed >> 32, mixed & 0xffff)
}

/// What cluster `cluster` pushes, its samples at `now` in milliseconds since the epoch.
pub(crate) fn write_request(cluster: &str, shape: Shape, now: i64) -> WriteRequest {
    let series = |(name, labels): (String, Vec<(String, String)>)| {
        let labels = std::iter::once(("__name__".to_owned(), name)).chain(labels);
        TimeSeries {
            labels: labels.map(|(name, value)| Label { name, value }).collect(),
            samples: vec![Sample { value: 1.5, timestamp: now }],
            ..Default::default()
        }
    };
    WriteRequest { timeseries: all_series(cluster, shape).map(series).collect(), ..Default::default() }
}

/// The same as a body of remote write 1.0: snappy's block format.
pub(crate) fn remote_write(cluster: &str, shape: Shape, now: i64) -> Vec<u8> {
    let message = write_request(cluster, shape, now).encode_to_vec();
    snap::raw::Encoder::new().compress_vec(&message).expect("less than 4 GiB")
}

/// The same series as `/federate` gives them: delimited families of untyped metrics.
pub(crate) fn families(cluster: &str, shape: Shape, now: i64) -> Vec<u8> {
    let mut families: Vec<MetricFamily> = Vec::new();
    for (name, labels) in all_series(cluster, shape) {
        let metric = Metric {
            label: labels.into_iter().map(|(name, value)| LabelPair { name: Some(name), value: Some(value) }).collect(),
            untyped: Some(Untyped { value: Some(1.5) }),
            timestamp_ms: Some(now),
            ..Default::default()
        };
        match families.last_mut().filter(|family| family.name() == name) {
            Some(family) => family.metric.push(metric),
            None => families.push(MetricFamily {
                name: Some(name),
                r#type: Some(MetricType::Untyped as i32),
                metric: vec![metric],
                ..Default::default()
            }),
        }
    }
    families.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect()
}

/// The same as a body of `/upload`: snappy's framed format.
pub(crate) fn upload(cluster: &str, shape: Shape, now: i64) -> Vec<u8> {
    let mut frames = snap::write::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut frames, &families(cluster, shape, now)).expect("memory");
    frames.into_inner().expect("memory")
}

/// The same as text 0.0.4.
pub(crate) fn text(cluster: &str, shape: Shape, now: i64) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut last = String::new();
    for (name, labels) in all_series(cluster, shape) {
        if name != last {
            writeln!(text, "# TYPE {name} untyped").expect("memory");
            last.clone_from(&name);
        }
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        writeln!(text, "{name}{{{}}} 1.5 {now}", labels.join(",")).expect("memory");
    }
    text
}

/// `rules` selectors that let the series of `kept` of the [`NAMES`] pass, and many that are about others. From 360 on nine in ten
/// name a metric exactly; below, as many as among production's [`RULES`].
pub(crate) fn rules(rules: usize, kept: usize) -> Vec<String> {
    let others = (rules * 36 / RULES).min(36).max(rules / 10);
    let mut rules: Vec<_> = (0..rules)
        .map(|n| match (n < kept, n + others >= rules) {
            // One of the names in eight passes by what else it is labelled.
            (true, _) if n % 8 == 7 => format!("{{__name__=\"{}\",job=~\"job-a|job-b|job-c|job-d\"}}", name(n)),
            (true, _) => name(n),
            (false, false) => format!("cluster:unrelated_usage_{n:05}:sum"),
            (false, true) if n % 36 == 0 => format!("{{__name__=~\"cluster:other_{n:05}_[a-z]+:(sum|max)\"}}"),
            (false, true) if n % 2 == 0 => format!("{{__name__=\"unrelated_{n:05}_total\",mode=\"m{n}\"}}"),
            (false, true) => format!("{{__name__=\"unrelated_{n:05}_total\",code=~\"2..|4..\",mode=~\"a{n}|b|c\"}}"),
        })
        .collect();
    // Whatever looks at one after the other meets the first match in the middle.
    let half = rules.len() / 2;
    rules.rotate_right(half);
    rules
}

/// 27 bytes, as the median of the real ones.
fn name(n: usize) -> String {
    format!("cluster:usage_{:05}_res:sum", n * 37)
}

/// Each with its name, and its labels sorted by name.
fn all_series(cluster: &str, shape: Shape) -> impl Iterator<Item = (String, Vec<(String, String)>)> {
    let labels = shape.labels.max(2);
    (0..shape.series).map(move |n| {
        let mixed = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut labels: Vec<_> = (0..labels)
            .map(|label| match label {
                0 => ("_id".to_owned(), cluster.to_owned()),
                1 => (REPLICA.to_owned(), "k8s-0".to_owned()),
                2 => (
                    "instance".to_owned(),
                    format!("10.{}.{}.{}:9100", mixed >> 56, mixed >> 48 & 0xff, mixed >> 40 & 0xff),
                ),
                3 => ("job".to_owned(), format!("job-{}", ["a", "b", "c", "d"][n % 4])),
                4 => ("pod".to_owned(), format!("server-{:08x}-{:05x}", mixed as u32, mixed >> 44)),
                5 => ("namespace".to_owned(), format!("openshift-{}", ["monitoring", "apiserver", "etcd"][n % 3])),
                // Some differ by series, some do not.
                _ if label % 2 == 0 => (format!("label_{label:02}"), format!("value-{:011x}", mixed >> (label % 20))),
                _ => (format!("label_{label:02}"), format!("constant-value-{label:02}")),
            })
            .collect();
        labels.sort_unstable();
        (name(n * NAMES / shape.series.max(1)), labels)
    })
}
