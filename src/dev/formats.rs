//! Telemetry as each protocol has it.

use std::fmt::Write as _;

use infogw_proto::{
    client::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Untyped},
    prometheus::{Label, Sample, TimeSeries, WriteRequest},
};
use prost::Message;

use super::telemetry::{BOUNDS, Family, Kind, Observed, STALE, Series, Value};

/// A remote-write 1.0 body: one snappy block. Only here can a series be told to have ended.
pub(super) fn remote_write(families: &[Family], now_ms: i64) -> Vec<u8> {
    let label = |name: &str, value: String| Label { name: name.to_owned(), value };
    let timeseries = expanded(families).map(|(name, mut labels, value)| {
        labels.push(("__name__", name));
        labels.sort_unstable();
        TimeSeries {
            labels: labels.into_iter().map(|(name, value)| label(name, value)).collect(),
            samples: vec![Sample { value, timestamp: now_ms }],
            ..TimeSeries::default()
        }
    });
    let request = WriteRequest { timeseries: timeseries.collect(), metadata: Vec::new() }.encode_to_vec();
    // Fails for 4 GiB and more only.
    snap::raw::Encoder::new().compress_vec(&request).unwrap_or_default()
}

/// Delimited protobuf in framed snappy.
pub(super) fn protobuf(families: &[Family], now_ms: i64) -> Vec<u8> {
    let messages = families.iter().map(|family| message(family, now_ms)).filter(|message| !message.metric.is_empty());
    let stream: Vec<u8> = messages.flat_map(|message| message.encode_length_delimited_to_vec()).collect();
    framed(&stream)
}

/// Text 0.0.4 in framed snappy.
pub(super) fn text(families: &[Family], now_ms: i64) -> Vec<u8> {
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
        for (name, labels, value) in expanded(std::slice::from_ref(family)) {
            if value.to_bits() == STALE {
                continue;
            }
            let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
            let labels: Vec<_> = labels.collect();
            let _ = writeln!(text, "{name}{{{}}} {value} {now_ms}", labels.join(","));
        }
    }
    framed(text.as_bytes())
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut frames = snap::write::FrameEncoder::new(Vec::new());
    // Writing to memory cannot fail.
    let _ = std::io::Write::write_all(&mut frames, bytes);
    frames.into_inner().unwrap_or_default()
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// Name, labels and value of each plain series.
type Plain = (String, Vec<(&'static str, String)>, f64);

/// A histogram as the series that a scrape of it stores.
fn expanded(families: &[Family]) -> impl Iterator<Item = Plain> {
    families.iter().flat_map(|family| family.series.iter().flat_map(|series| plain(family.name, series)))
}

fn plain(name: &str, series: &Series) -> Vec<Plain> {
    let labels = &series.labels;
    match &series.value {
        Value::Number(number) => vec![(name.to_owned(), labels.clone(), *number)],
        Value::Stale => vec![(name.to_owned(), labels.clone(), f64::from_bits(STALE))],
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

/// Without series that have ended: `/federate` leaves them out.
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
