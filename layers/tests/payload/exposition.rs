//! Metric families as text: what is read of it again is what it was, and what it cannot say is a comment.

use std::convert::Infallible;

use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeLimits, MetricFamiliesDecoder},
    encode,
    payload::{Keep, LabelSet, MetricFamilies, SeriesSet},
    translate::Translate,
};
use infogw_proto::client;
use proptest::{collection::vec, prelude::*};

use crate::{
    DELIMITED,
    bytes::bits,
    expansion::{Point, decoder, points, stream},
    families,
    native::histogram,
};

proptest! {
    #[test]
    fn what_is_read_again_is_what_it_was(
        series in vec(("[a-c:_]{1,2}(_sum|_total|_bucket)?", vec(("[a-c_]{1,2}|le", label_value()), 0..4), bits(), -3i64..4), 0..12),
    ) {
        // Of a NaN text says no more than that it is one.
        let number = |bits| f64::from_bits(bits);
        let series: Vec<_> = series.into_iter().filter(|(_, _, bits, _)| !number(*bits).is_nan()).collect();
        let metric = |(name, labels, bits, at): &(String, Vec<(String, String)>, u64, i64)| {
            let label = |(name, value): &(String, String)| client::LabelPair { name: Some(name.clone()), value: Some(value.clone()) };
            let metric = client::Metric {
                label: labels.iter().map(label).collect(),
                untyped: Some(client::Untyped { value: Some(number(*bits)) }),
                timestamp_ms: Some(now() + at),
                ..Default::default()
            };
            family(name, client::MetricType::Untyped, metric)
        };
        let payload = scrape(&series.iter().map(metric).collect::<Vec<_>>());
        let text = payload.to_string();
        let read = families(&decoder(), encode::TEXT, "", text.clone().into()).unwrap();
        prop_assert_eq!(read.to_string(), text, "once more it is the same");
        let written = |payload: MetricFamilies| -> Vec<Point> { points(&payload.translate(None).to_message()) };
        let (read, mut expected) = (written(read), written(payload));
        expected.sort_by_key(|point| (point.labels["__name__"].clone(), point.timestamp));
        prop_assert_eq!(read, expected);
    }

    /// Whatever names there are, and histograms among the numbers: what the format has no form for is left out of it, line by line.
    #[test]
    fn what_the_format_cannot_say_is_a_comment(
        series in vec(("[a.é\n\"]{1,2}|TYPE|HELP", "[a. \n]{1,2}", prop::option::of(histogram())), 0..8),
    ) {
        let metric = |(name, label, histogram): &(String, String, Option<client::Histogram>)| {
            let kind = if histogram.is_some() { client::MetricType::Histogram } else { client::MetricType::Untyped };
            let metric = client::Metric {
                label: vec![client::LabelPair { name: Some(label.clone()), value: Some("v".to_owned()) }],
                untyped: histogram.is_none().then_some(client::Untyped { value: Some(1.0) }),
                histogram: histogram.clone(),
                timestamp_ms: Some(now()),
                ..Default::default()
            };
            family(name, kind, metric)
        };
        let all: Vec<_> = series.iter().map(metric).collect();
        let text = scrape(&all).to_string();
        let said = |(name, label, histogram): &&(String, String, Option<client::Histogram>)| {
            let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphabetic());
            histogram.is_none() && is_name(name) && is_name(label)
        };
        let said = series.iter().filter(said).count();
        let mut read = families(&decoder(), encode::TEXT, "", text.clone().into()).unwrap();
        prop_assert_eq!(read.series(), said, "{}", text);
        prop_assert_eq!(read.refused().received(), said);
        let comments = text.lines().filter(|line| line.starts_with("# a ")).count();
        prop_assert_eq!(comments, series.len() - said, "{}", text);
    }
}

#[test]
fn it_reads_as_prometheus_writes_it() {
    let at = now();
    let text = format!(
        "up{{job=\"b\",instance=\"a\"}} 1 {at}\nb 1234567 {at}\nup 0.5 {}\nb NaN {at}\nb{{x=\"a\\\\b\\\"c\\nd\"}} +Inf {at}\n",
        at - 1
    );
    let decoder = MetricFamiliesDecoder::new(DecodeLimits::default()).clock(ManualClock::new()).drop_unusable();
    let mut payload = families(&decoder, encode::TEXT, "", text.into()).unwrap();
    let expected = format!(
        "# TYPE b untyped\n\
         b 1.234567e+06 {at}\n\
         b NaN {at}\n\
         b{{x=\"a\\\\b\\\"c\\nd\"}} +Inf {at}\n\
         # TYPE up untyped\n\
         up 0.5 {}\n\
         up{{instance=\"a\",job=\"b\"}} 1 {at}\n",
        at - 1
    );
    assert_eq!(payload.to_string(), expected);
    let histogram = client::Histogram { zero_count: Some(1), ..Default::default() };
    let label = client::LabelPair { name: Some("a".to_owned()), value: Some("b\nc".to_owned()) };
    let metric =
        client::Metric { label: vec![label], histogram: Some(histogram), timestamp_ms: Some(at), ..Default::default() };
    let native = scrape(&[family("h", client::MetricType::Histogram, metric)]);
    let expected = format!("# a native histogram, which is not of this format: h{{a=\"b\\nc\"}} {at}\n");
    assert_eq!(native.to_string(), expected);

    let nothing = |_: &mut LabelSet<'_>| Ok::<_, Infallible>(Keep::No);
    payload.try_edit(nothing).unwrap();
    assert_eq!(payload.to_string(), "");
}

fn family(name: &str, kind: client::MetricType, metric: client::Metric) -> client::MetricFamily {
    client::MetricFamily {
        name: Some(name.to_owned()),
        r#type: Some(kind as i32),
        metric: vec![metric],
        ..Default::default()
    }
}

fn scrape(all: &[client::MetricFamily]) -> MetricFamilies {
    families(&decoder(), DELIMITED, "", stream(all).into()).unwrap()
}

fn label_value() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[x-z]{0,2}", 1 => "[ \"\\\\\n\r{},=é#]{1,4}"]
}

fn now() -> i64 {
    ManualClock::START.as_millis() as i64
}
