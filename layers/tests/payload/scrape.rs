//! What a scrape answers: what cannot be pushed on is left out and counted, and the rest goes on.

use std::time::Duration;

use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeError, DecodeLimits, MetricFamiliesDecoder},
    payload::{MetricFamilies, SeriesSet},
    rejection::{Reason, Rejection},
};
use infogw_proto::client;
use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use crate::{
    DELIMITED, TEXT,
    bytes::{bytes_field, field_of},
    expansion::stream,
    families, shown,
};

/// What Prometheus answers to scrapes, by version and by what they accept.
const ANSWERS: [&str; 7] = [
    "text/plain; version=0.0.4; charset=utf-8",
    "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
    "text/plain; version=0.0.4; charset=utf-8; escaping=values",
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores",
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=allow-utf-8",
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=values",
];

#[test]
fn every_content_type_of_prometheus_is_taken() {
    let text = format!("up 1 {}\n", at(0)).into_bytes();
    for content_type in ANSWERS {
        let body = if content_type.starts_with("text") { text.clone() } else { stream(&[ups(&[Some(at(0))])]) };
        for encoding in ["", "identity"] {
            let payload = families(&scraping(limits()), content_type, encoding, body.clone().into()).unwrap();
            assert_eq!(payload.series(), 1, "{content_type}");
        }
        let error = families(&scraping(limits()), content_type, "gzip", body.into()).unwrap_err();
        assert_eq!(Rejection::from(error).reason(), Reason::Encoding);
    }
}

proptest! {
    /// Text or protobuf, in any order: the samples within the window go on as they stand, the others are counted.
    #[test]
    fn untimely_samples_are_left_out(ages in vec(option::of(-5i64..130), 0..12)) {
        let times: Vec<_> = ages.iter().map(|age| age.map(|age| at(-age))).collect();
        let line = |(i, time): (usize, &Option<i64>)| {
            let time = time.map(|time| format!(" {time}")).unwrap_or_default();
            format!("up{{i=\"{i}\"}} {i}{time}\n")
        };
        let text: String = times.iter().enumerate().map(line).collect();
        let bodies = [(TEXT, text.into_bytes()), (DELIMITED, stream(&[ups(&times)]))];
        let fresh = |(i, age): (usize, &Option<i64>)| age.filter(|age| *age <= 60).map(|_| i.to_string());
        let expected: Vec<_> = ages.iter().enumerate().filter_map(fresh).collect();
        for (content_type, body) in bodies {
            let mut payload = families(&scraping(limits()), content_type, "", body.into()).unwrap();
            let kept: Vec<_> = shown(&mut payload).into_iter().map(|labels| labels[1].1.clone()).collect();
            prop_assert_eq!(&kept, &expected);
            prop_assert_eq!((payload.refused().received(), payload.refused().count()), (ages.len(), 0));
        }
    }
}

#[test]
fn a_series_over_a_limit_is_left_out_and_its_neighbours_go_on() {
    let long = "x".repeat(11);
    let bad = [
        format!("up{{a=\"{long}\"}}"),
        format!("up{{{long}=\"a\"}}"),
        format!("{long}{{a=\"b\"}}"),
        "up{a=\"1\",b=\"2\",c=\"3\"}".to_owned(),
        "up{_id=\"a\",_id=\"b\"}".to_owned(),
    ];
    let tight =
        DecodeLimits { labels: 3, label_name: 8, label_value: 10, unrepeatable: vec!["_id".into()], ..limits() };
    for bad in bad {
        let text = format!("before 1 {0}\n{bad} 2 {0}\nbehind 3 {0}\n", at(0));
        let payload = kept(&tight, TEXT, text.clone().into_bytes(), &["before", "behind"], 3);
        assert_eq!(payload.samples(), 2);
        // Whoever pushes that is told.
        assert_eq!(refused(&tight, TEXT, text.into_bytes()).reason(), Reason::InvalidSeries, "{bad}");
    }
    // Without such limits nothing is left out: how long labels may be is for others to say.
    let longest = "x".repeat(1 << 12);
    let text = format!("{longest}{{{longest}=\"{longest}\"}} 1 {}\n", at(0));
    kept(&DecodeLimits { labels: usize::MAX, ..limits() }, TEXT, text.into_bytes(), &[&longest], 1);
    let label = client::LabelPair { name: Some(longest.clone()), value: Some(longest.clone()) };
    let metric = client::Metric { label: vec![label; 200], ..up(Some(at(0))) };
    let family = client::MetricFamily { name: Some(longest.clone()), metric: vec![metric], ..ups(&[]) };
    let many = DecodeLimits { labels: usize::MAX, ..limits() };
    kept(&many, DELIMITED, stream(&[family]), &[&longest], 1);
}

/// As telemeter-client leaves them out; each is between two that go on.
#[test]
fn what_is_wrong_with_a_metric_or_family_leaves_it_out() {
    let good = |name: &str| client::MetricFamily { name: Some(name.to_owned()), ..ups(&[Some(at(0))]) };
    let framed = |family: &[u8]| [&[family.len() as u8], family].concat();
    let around = |bad: &[u8]| [stream(&[good("before")]), framed(bad), stream(&[good("behind")])].concat();
    let gauge = client::Gauge { value: Some(1.0) };
    let family = |metric| client::MetricFamily { metric: vec![metric], ..good("bad") }.encode_to_vec();
    let with_metric = |metric: &[u8]| {
        [bytes_field(1, b"bad"), field_of(3, infogw_proto::wire::WireType::Varint, 3), bytes_field(4, metric)].concat()
    };
    let not_text = bytes_field(1, &[bytes_field(1, b"a"), bytes_field(2, b"\xff")].concat());
    let bucket = |bound| client::Bucket { upper_bound: Some(bound), ..Default::default() };
    let histogram = client::Histogram { bucket: vec![bucket(1.0)], ..Default::default() };
    // One bucket is read before what is wrong with the other is seen.
    let broken = [histogram.encode_to_vec(), bytes_field(3, b"\x0d\0\0\0\0")].concat();
    let broken = [bytes_field(7, &broken), up(Some(at(0))).encode_to_vec().split_off(11)].concat();
    let rows: [(&str, Vec<u8>); 8] = [
        ("another value", family(client::Metric { gauge: Some(gauge), untyped: None, ..up(Some(at(0))) })),
        ("two values", family(client::Metric { gauge: Some(gauge), ..up(Some(at(0))) })),
        ("no value", family(client::Metric { untyped: None, ..up(Some(at(0))) })),
        ("no name", client::MetricFamily { name: None, ..good("") }.encode_to_vec()),
        ("a name that is not UTF-8", [good("").encode_to_vec(), bytes_field(1, b"\xff")].concat()),
        ("an unknown type", client::MetricFamily { r#type: Some(6), ..good("bad") }.encode_to_vec()),
        ("a label that is not UTF-8", with_metric(&[not_text, up(Some(at(0))).encode_to_vec()].concat())),
        (
            "half a histogram",
            [bytes_field(1, b"bad"), field_of(3, infogw_proto::wire::WireType::Varint, 4), bytes_field(4, &broken)]
                .concat(),
        ),
    ];
    for (what, bad) in rows {
        let body = around(&bad);
        let payload = kept(&limits(), DELIMITED, body.clone(), &["before", "behind"], 3);
        assert_eq!(payload.samples(), 2, "{what}");
        assert_eq!(refused(&limits(), DELIMITED, body).reason(), Reason::Malformed, "{what}");
    }
}

#[test]
fn what_is_not_of_its_format_is_refused_as_ever() {
    let cut = &stream(&[ups(&[Some(at(0))])])[..20];
    let too_many = DecodeLimits { series: 1, ..limits() };
    let rows = [
        (limits(), TEXT, format!("up 1 {0}\nup one {0}\n", at(0)).into_bytes(), Reason::Malformed),
        (limits(), DELIMITED, cut.to_vec(), Reason::Malformed),
        // What is left out counts.
        (too_many.clone(), TEXT, b"up 1\nup 2\n".to_vec(), Reason::TooManySeries),
        (too_many, DELIMITED, stream(&[ups(&[None, None])]), Reason::TooManySeries),
        (DecodeLimits { decoded: 20, ..limits() }, TEXT, b"#\n".repeat(11), Reason::TooLarge),
    ];
    for (limits, content_type, body, reason) in rows {
        let error = families(&scraping(limits), content_type, "", body.into()).unwrap_err();
        assert_eq!(Rejection::from(error).reason(), reason);
    }
}

/// The names of those that go on, and how many came.
fn kept(limits: &DecodeLimits, content_type: &str, body: Vec<u8>, names: &[&str], received: usize) -> MetricFamilies {
    let mut payload = families(&scraping(limits.clone()), content_type, "", body.into()).unwrap();
    let label = |labels: &crate::Labels| labels.iter().find(|(name, _)| name == "__name__").unwrap().1.clone();
    assert_eq!(shown(&mut payload).iter().map(label).collect::<Vec<_>>(), names);
    assert_eq!((payload.refused().received(), payload.refused().count()), (received, 0));
    payload
}

/// What those are told who push it.
fn refused(limits: &DecodeLimits, content_type: &str, body: Vec<u8>) -> Rejection {
    let decoder = MetricFamiliesDecoder::new(limits.clone()).clock(ManualClock::new());
    let error: DecodeError = families(&decoder, content_type, "", body.into()).unwrap_err();
    error.into()
}

fn scraping(limits: DecodeLimits) -> MetricFamiliesDecoder<ManualClock> {
    MetricFamiliesDecoder::new(limits).clock(ManualClock::new()).max_age(Duration::from_secs(60)).drop_unusable()
}

fn limits() -> DecodeLimits {
    DecodeLimits::default()
}

/// Milliseconds, `seconds` from now.
fn at(seconds: i64) -> i64 {
    (ManualClock::START.as_secs() as i64 + seconds) * 1000
}

fn up(timestamp: Option<i64>) -> client::Metric {
    let untyped = client::Untyped { value: Some(1.0) };
    client::Metric { untyped: Some(untyped), timestamp_ms: timestamp, ..Default::default() }
}

/// `up{i="0"}` and so on.
fn ups(timestamps: &[Option<i64>]) -> client::MetricFamily {
    let metric = |(i, timestamp): (usize, &Option<i64>)| {
        let label = client::LabelPair { name: Some("i".to_owned()), value: Some(i.to_string()) };
        client::Metric { label: vec![label], ..up(*timestamp) }
    };
    client::MetricFamily {
        name: Some("up".to_owned()),
        r#type: Some(client::MetricType::Untyped as i32),
        metric: timestamps.iter().enumerate().map(metric).collect(),
        ..Default::default()
    }
}
