//! Telemetry as a Prometheus' `/federate` has it: without series that have ended.

use std::fmt::Write as _;

use infogw_proto::client::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Untyped};
use prost::Message;

use super::telemetry::{BOUNDS, Family, Kind, Observed, Series, Value};

/// Delimited protobuf.
pub(super) fn protobuf(families: &[Family], now_ms: i64) -> Vec<u8> {
    let messages = families.iter().map(|family| message(family, now_ms)).filter(|message| !message.metric.is_empty());
    messages.flat_map(|message| message.encode_length_delimited_to_vec()).collect()
}

/// Text 0.0.4.
pub(super) fn text(families: &[Family], now_ms: i64) -> String {
    let mut text = String::new();
    for family in families {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Untyped => "untyped",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# TYPE {} {kind}", family.name);
        for (name, labels, value) in family.series.iter().flat_map(|series| plain(family.name, series)) {
            let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
            let labels: Vec<_> = labels.collect();
            let _ = writeln!(text, "{name}{{{}}} {value} {now_ms}", labels.join(","));
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// Name, labels and value of each plain series.
type Plain = (String, Vec<(&'static str, String)>, f64);

/// A histogram as the series that a scrape of it stores.
fn plain(name: &str, series: &Series) -> Vec<Plain> {
    let labels = &series.labels;
    match &series.value {
        Value::Number(number) => vec![(name.to_owned(), labels.clone(), *number)],
        Value::Stale => Vec::new(),
        Value::Histogram(Observed { buckets, count, sum }) => {
            let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            let bucket = |(bound, count): (String, &u64)| {
                let labels = labels.iter().cloned().chain([("le", bound)]).collect();
                (format!("{name}_bucket"), labels, *count as f64)
            };
            let mut plain: Vec<_> = bounds.zip(buckets.iter().chain([count])).map(bucket).collect();
            plain.push((format!("{name}_sum"), labels.clone(), *sum));
            plain.push((format!("{name}_count"), labels.clone(), *count as f64));
            plain
        }
    }
}

fn message(family: &Family, now_ms: i64) -> MetricFamily {
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Untyped => MetricType::Untyped,
        Kind::Histogram => MetricType::Histogram,
    };
    MetricFamily {
        name: Some(family.name.to_owned()),
        r#type: Some(kind as i32),
        metric: family.series.iter().filter_map(|series| metric(family.kind, series, now_ms)).collect(),
        ..MetricFamily::default()
    }
}

fn metric(kind: Kind, series: &Series, now_ms: i64) -> Option<Metric> {
    let pair =
        |(name, value): &(&str, String)| LabelPair { name: Some((*name).to_owned()), value: Some(value.clone()) };
    let mut metric =
        Metric { label: series.labels.iter().map(pair).collect(), timestamp_ms: Some(now_ms), ..Metric::default() };
    match &series.value {
        Value::Stale => return None,
        Value::Histogram(Observed { buckets, count, sum }) => {
            let bucket = |(&bound, &count)| Bucket {
                upper_bound: Some(bound),
                cumulative_count: Some(count),
                ..Bucket::default()
            };
            metric.histogram = Some(Histogram {
                sample_count: Some(*count),
                sample_sum: Some(*sum),
                bucket: BOUNDS.iter().zip(buckets).map(bucket).collect(),
                ..Histogram::default()
            });
        }
        Value::Number(number) => {
            let value = Some(*number);
            match kind {
                Kind::Counter => metric.counter = Some(Counter { value, ..Counter::default() }),
                Kind::Gauge => metric.gauge = Some(Gauge { value }),
                Kind::Untyped | Kind::Histogram => metric.untyped = Some(Untyped { value }),
            }
        }
    }
    Some(metric)
}
