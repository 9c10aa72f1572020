//! Families to series: every sample bit for bit, histograms and summaries as a scrape stores them.

use std::{collections::BTreeMap, fmt::Write as _};

use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeLimits, MetricFamiliesDecoder},
    encode::Encode,
    payload::SeriesSet,
    translate::Translate,
};
use infogw_proto::{client, prometheus as prom};
use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message;

use crate::{DELIMITED, TEXT, bytes::bits, families, framed, oracle::canonical, unblock};

proptest! {
    #[test]
    fn every_sample_arrives_bit_for_bit(all in arbitrary_families()) {
        let (decoder, stream) = (decoder(), stream(&all));
        let expected: Vec<Point> = all.iter().flat_map(expand).collect();
        let payloads = [
            families(&decoder, DELIMITED, "", stream.clone().into()).unwrap(),
            families(&decoder, DELIMITED, "snappy", framed(&stream)).unwrap(),
        ];
        for payload in payloads {
            prop_assert_eq!((payload.series(), payload.samples()), (expected.len(), expected.len() as u64));
            let (sent, untouched) = payload.translate(None).encode().unwrap();
            prop_assert!(!untouched);
            prop_assert_eq!(points(&unblock(&sent)), expected.clone());
        }
        // Stamped, only the time differs.
        let stamped = families(&decoder, DELIMITED, "", stream.into()).unwrap().translate(Some(-1));
        let expected: Vec<Point> = expected.into_iter().map(|point| Point { timestamp: -1, ..point }).collect();
        prop_assert_eq!(points(&stamped.to_message()), expected);
    }

    /// The same families, as text: the same write request.
    #[test]
    fn text_and_protobuf_say_the_same(all in arbitrary_families().prop_map(writable)) {
        let decoder = decoder();
        let delimited = families(&decoder, DELIMITED, "", stream(&all).into()).unwrap();
        let text = text(&all);
        let plain = families(&decoder, TEXT, "", text.clone().into()).unwrap();
        let packed = families(&decoder, TEXT, "snappy", framed(text.as_bytes())).unwrap();
        let expected = points(&delimited.translate(None).to_message());
        prop_assert_eq!(points(&plain.translate(None).to_message()), expected.clone(), "{}", text);
        prop_assert_eq!(points(&packed.translate(None).to_message()), expected);
    }
}

/// One series with its one sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) bits: u64,
    pub(crate) timestamp: i64,
}

/// Reads the clock of [`ManualClock::START`].
pub(crate) fn decoder() -> MetricFamiliesDecoder<ManualClock> {
    MetricFamiliesDecoder::new(DecodeLimits::default()).clock(ManualClock::new())
}

pub(crate) fn stream(families: &[client::MetricFamily]) -> Vec<u8> {
    families.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
}

/// What a scrape would store (`scrape_classic_histograms` and all).
pub(crate) fn expand(family: &client::MetricFamily) -> Vec<Point> {
    let mut points = Vec::new();
    for metric in &family.metric {
        let mut add = |suffix: &str, added: Option<(&str, f64)>, value: f64| {
            let name = ("__name__".to_owned(), format!("{}{suffix}", family.name()));
            let added = added.map(|(name, bound)| (name.to_owned(), printed(bound)));
            let own = metric.label.iter().map(|label| (label.name().to_owned(), label.value().to_owned()));
            let labels: Vec<_> =
                [name].into_iter().chain(added).chain(own).map(|(name, value)| prom::Label { name, value }).collect();
            let (bits, timestamp) = (value.to_bits(), metric.timestamp_ms());
            points.push(Point { labels: canonical(&labels), bits, timestamp });
        };
        let positive = |float: Option<f64>, int: u64| float.filter(|float| *float > 0.0).unwrap_or(int as f64);
        if let Some(counter) = &metric.counter {
            add("", None, counter.value());
        }
        if let Some(gauge) = &metric.gauge {
            add("", None, gauge.value());
        }
        if let Some(untyped) = &metric.untyped {
            add("", None, untyped.value());
        }
        if let Some(summary) = &metric.summary {
            for quantile in &summary.quantile {
                add("", Some(("quantile", quantile.quantile())), quantile.value());
            }
            add("_sum", None, summary.sample_sum());
            add("_count", None, summary.sample_count() as f64);
        }
        if let Some(histogram) = &metric.histogram {
            for bucket in &histogram.bucket {
                let count = positive(bucket.cumulative_count_float, bucket.cumulative_count());
                add("_bucket", Some(("le", bucket.upper_bound())), count);
            }
            let count = positive(histogram.sample_count_float, histogram.sample_count());
            if !histogram.bucket.iter().any(|bucket| bucket.upper_bound() == f64::INFINITY) {
                add("_bucket", Some(("le", f64::INFINITY)), count);
            }
            add("_sum", None, histogram.sample_sum());
            add("_count", None, count);
        }
    }
    points
}

/// Bounds, and how Prometheus' Go client prints them.
const BOUNDS: [(f64, &str); 8] = [
    (0.005, "0.005"),
    (0.5, "0.5"),
    (1.0, "1"),
    (10.0, "10"),
    (123_456.75, "123456.75"),
    (1e6, "1e+06"),
    (2.5e-5, "2.5e-05"),
    (f64::INFINITY, "+Inf"),
];

fn printed(bound: f64) -> String {
    BOUNDS.iter().find(|(known, _)| *known == bound).unwrap().1.to_owned()
}

/// Up to five families of every kind, whose samples ascend.
pub(crate) fn arbitrary_families() -> impl Strategy<Value = Vec<client::MetricFamily>> {
    vec(family(), 0..5).prop_map(|mut families| {
        // Names differ, as expfmt wants them; timestamps ascend within each family.
        for (index, family) in families.iter_mut().enumerate() {
            family.name = Some(format!("f{index}"));
            let mut at = ManualClock::START.as_millis() as i64 - 1000;
            for metric in &mut family.metric {
                at += metric.timestamp_ms() % 3;
                metric.timestamp_ms = Some(at);
            }
        }
        families
    })
}

fn family() -> impl Strategy<Value = client::MetricFamily> {
    use client::MetricType::{Counter, Gauge, GaugeHistogram, Histogram, Summary, Untyped};
    let kind = select(vec![Counter, Gauge, GaugeHistogram, Histogram, Summary, Untyped]);
    (kind, vec(metric(), 0..4), any::<bool>()).prop_map(|(kind, mut metrics, unsaid)| {
        for metric in &mut metrics {
            let keep = |wanted| kind == wanted;
            metric.counter = metric.counter.take().filter(|_| keep(Counter));
            metric.gauge = metric.gauge.take().filter(|_| keep(Gauge));
            metric.histogram = metric.histogram.take().filter(|_| keep(Histogram) || keep(GaugeHistogram));
            metric.summary = metric.summary.take().filter(|_| keep(Summary));
            metric.untyped = metric.untyped.take().filter(|_| keep(Untyped));
        }
        // What has no type is a counter, by the definition's default.
        let kind = Some(kind as i32).filter(|_| !(unsaid && kind == Counter));
        client::MetricFamily { r#type: kind, help: Some("help".to_owned()), metric: metrics, ..Default::default() }
    })
}

/// A metric with a value of each kind.
fn metric() -> impl Strategy<Value = client::Metric> {
    let value = || bits().prop_map(f64::from_bits);
    let label = (
        prop_oneof![8 => "[a-c]{1,2}", 2 => "[A-C]", 1 => Just("le".to_owned()), 1 => Just("quantile".to_owned())],
        label_value(),
    )
        .prop_map(|(name, value)| client::LabelPair { name: Some(name), value: Some(value) });
    let bound = || select(&BOUNDS).prop_map(|(bound, _)| bound);
    let quantile = (bound(), value())
        .prop_map(|(quantile, value)| client::Quantile { quantile: Some(quantile), value: Some(value) });
    let bucket = (bound(), any::<u64>(), option::of(0.0..1e9)).prop_map(|(bound, count, float)| client::Bucket {
        cumulative_count: Some(count),
        upper_bound: Some(bound),
        cumulative_count_float: float,
        ..Default::default()
    });
    let (quantiles, buckets) = (vec(quantile, 0..4), vec(bucket, 0..4));
    let counts = (any::<u64>(), option::of(0.0..1e9));
    // As Prometheus sends them, half of the time.
    let labels = (vec(label, 0..5), any::<bool>()).prop_map(|(mut labels, sorted)| {
        if sorted {
            labels.sort_by(|a, b| a.name.cmp(&b.name));
        }
        labels
    });
    (labels, value(), quantiles, buckets, counts, 0..3i64).prop_map(
        |(label, value, quantile, bucket, (count, count_float), timestamp)| client::Metric {
            label,
            gauge: Some(client::Gauge { value: Some(value) }),
            counter: Some(client::Counter { value: Some(value), ..Default::default() }),
            untyped: Some(client::Untyped { value: Some(value) }),
            summary: Some(client::Summary {
                sample_count: Some(count),
                sample_sum: Some(value),
                quantile,
                ..Default::default()
            }),
            histogram: Some(client::Histogram {
                sample_count: Some(count),
                sample_sum: Some(value),
                bucket,
                sample_count_float: count_float,
                ..Default::default()
            }),
            timestamp_ms: Some(timestamp),
        },
    )
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn label_value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[x-z]{0,2}", 1 => "[ \"\\\\\n{},=é#]{1,4}"]
}

/// Without what text cannot say: a NaN's payload, and bounds of the sender's own.
fn writable(mut families: Vec<client::MetricFamily>) -> Vec<client::MetricFamily> {
    let number = |value: &mut Option<f64>| *value = value.filter(|value| !value.is_nan());
    for metric in families.iter_mut().flat_map(|family| &mut family.metric) {
        metric.label.retain(|label| !["le", "quantile"].contains(&label.name()));
        if let Some(gauge) = &mut metric.gauge {
            number(&mut gauge.value);
        }
        if let Some(counter) = &mut metric.counter {
            number(&mut counter.value);
        }
        if let Some(untyped) = &mut metric.untyped {
            number(&mut untyped.value);
        }
        if let Some(summary) = &mut metric.summary {
            number(&mut summary.sample_sum);
            summary.quantile.iter_mut().for_each(|quantile| number(&mut quantile.value));
        }
        if let Some(histogram) = &mut metric.histogram {
            number(&mut histogram.sample_sum);
        }
    }
    families
}

/// The families as `/federate` would write them.
fn text(families: &[client::MetricFamily]) -> String {
    let mut text = String::new();
    for family in families {
        let kind = family.r#type().as_str_name().to_ascii_lowercase();
        let (name, metrics) = (family.name(), &family.metric);
        writeln!(text, "# HELP {name} help\n# TYPE {name} {kind}").unwrap();
        // One metric at a time: which of its labels come first decides which of two namesakes stays.
        for metric in metrics {
            let own: Vec<_> = metric.label.iter().map(|l| format!("{}=\"{}\"", l.name(), escaped(l.value()))).collect();
            let one = client::MetricFamily { metric: vec![metric.clone()], ..family.clone() };
            for Point { labels, bits, timestamp } in expand(&one) {
                let added =
                    ["le", "quantile"].iter().filter_map(|name| Some(format!("{name}=\"{}\"", labels.get(*name)?)));
                let all: Vec<_> = added.chain(own.clone()).collect();
                let value = match f64::from_bits(bits) {
                    value if value.is_infinite() => if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
                    value => format!("{value:?}"),
                };
                writeln!(text, "{}{{{}}} {value} {timestamp}", labels["__name__"], all.join(",")).unwrap();
            }
        }
    }
    text
}

/// A write request's series, each of which must have exactly one sample and canonical labels.
pub(crate) fn points(message: &[u8]) -> Vec<Point> {
    let request = prom::WriteRequest::decode(message).unwrap();
    let point = |series: &prom::TimeSeries| {
        let labels = canonical(&series.labels);
        assert_eq!(labels.len(), series.labels.len());
        assert!(series.labels.is_sorted_by(|a, b| a.name < b.name));
        let [sample] = series.samples[..] else { panic!("{series:?}") };
        Point { labels, bits: sample.value.to_bits(), timestamp: sample.timestamp }
    };
    request.timeseries.iter().map(point).collect()
}
