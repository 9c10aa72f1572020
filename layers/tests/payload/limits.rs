//! Every limit, at it and one over it: the reason, and the line that the sender reads.

use std::{sync::Arc, time::Duration};

use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeError, DecodeLimits, Decoder, MetricFamiliesDecoder, WriteRequestDecoder},
    payload::{MetricFamilies, SeriesSet, WriteRequest},
    rejection::{Reason, Rejection},
};
use infogw_proto::{client as io, prometheus as prom};
use prost::Message;

use crate::{DELIMITED, TEXT, block, families, framed};

fn limits() -> DecodeLimits {
    DecodeLimits {
        body: 400,
        decoded: 300,
        series: 3,
        samples: usize::MAX,
        labels: 3,
        label_name: 8,
        label_value: 10,
        unrepeatable: vec!["_id".into()],
    }
}

fn series(labels: &[(&str, &str)]) -> prom::TimeSeries {
    let label = |&(name, value): &(&str, &str)| prom::Label { name: name.to_owned(), value: value.to_owned() };
    // With a sample of now, as stock senders write it: what is read at once is held to the limits, too.
    let samples = vec![prom::Sample { value: 1.0, timestamp: at(0) }];
    prom::TimeSeries { labels: labels.iter().map(label).collect(), samples, ..Default::default() }
}

fn receive(timeseries: Vec<prom::TimeSeries>) -> Result<WriteRequest, DecodeError> {
    let message = prom::WriteRequest { timeseries, ..Default::default() }.encode_to_vec();
    WriteRequestDecoder::new(limits()).decode_block(block(&message))
}

fn upload(text: &str) -> Result<MetricFamilies, DecodeError> {
    let decoder = MetricFamiliesDecoder::new(limits()).clock(ManualClock::new()).max_age(Duration::from_secs(60));
    families(&decoder, TEXT, "", text.to_owned().into())
}

/// Milliseconds, `seconds` from now.
fn at(seconds: i64) -> i64 {
    (ManualClock::START.as_secs() as i64 + seconds) * 1000
}

#[track_caller]
fn refused<T>(answer: Result<T, DecodeError>, reason: Reason, line: &str) {
    let rejection = Rejection::from(answer.err().expect("it is over a limit"));
    assert_eq!((rejection.reason(), rejection.status(), rejection.detail()), (reason, reason.status(), line));
    assert!(!line.contains(char::is_control));
}

#[test]
fn too_many_series_refuse_a_write_request() {
    let up = || series(&[("__name__", "up")]);
    assert_eq!(receive(vec![up(); 3]).unwrap().series(), 3);
    let line = "the request has 4 series, at most 3 are taken; send fewer at a time";
    refused(receive(vec![up(); 4]), Reason::TooManySeries, line);
    // A refused series counts, too: refusing costs as much as taking.
    refused(receive(vec![series(&[("__name__", "far too long for this")]); 4]), Reason::TooManySeries, line);
}

/// A series over the limit ends the reading; what follows is counted as far as it can be.
#[test]
fn what_is_over_is_counted() {
    let many = prom::WriteRequest { timeseries: vec![series(&[("__name__", "up")]); 9], ..Default::default() };
    let message = [many.encode_to_vec(), crate::bytes::bytes_field(15, b"x"), many.encode_to_vec()].concat();
    let wide = DecodeLimits { decoded: 10_000, body: 10_000, ..limits() };
    let decode = |message: &[u8]| WriteRequestDecoder::new(wide.clone()).decode_block(block(message));
    let line = "the request has 18 series, at most 3 are taken; send fewer at a time";
    refused(decode(&message), Reason::TooManySeries, line);
    let line = "the request has more than 3 series, the most that is taken; send fewer at a time";
    refused(decode(&message[..message.len() - 1]), Reason::TooManySeries, line);

    let text = |count: usize| (0..count).map(|n| format!("up{{a=\"{n}\"}} 1 {}\n", at(0))).collect::<String>();
    let upload = |text: String| {
        families(&MetricFamiliesDecoder::new(wide.clone()).clock(ManualClock::new()), TEXT, "", text.into())
    };
    let line = "the request has 50 series, at most 3 are taken; send fewer at a time";
    refused(upload(text(50)), Reason::TooManySeries, line);
    // What is wrong with those that are over says nothing.
    let line = "the request has 5 series, at most 3 are taken; send fewer at a time";
    refused(upload(text(4) + "far_too_long_a_name 1\n"), Reason::TooManySeries, line);
    let line = "the request has more than 3 series, the most that is taken; send fewer at a time";
    refused(upload(text(4) + "what?\n"), Reason::TooManySeries, line);
}

#[test]
fn samples_are_counted_across_series() {
    let with = |samples: usize, histograms: usize| prom::TimeSeries {
        samples: vec![prom::Sample { value: 1.0, timestamp: 1 }; samples],
        histograms: vec![prom::Histogram::default(); histograms],
        ..series(&[("__name__", "up")])
    };
    let limits = DecodeLimits { samples: 5, series: 10, body: 10_000, decoded: 10_000, ..limits() };
    let receive = |timeseries| {
        let message = prom::WriteRequest { timeseries, ..Default::default() }.encode_to_vec();
        WriteRequestDecoder::new(limits.clone()).decode_block(block(&message))
    };
    assert_eq!(receive(vec![with(2, 1), with(0, 0), with(1, 1)]).unwrap().samples(), 5);
    let line = |count| format!("the request has {count} samples, at most 5 are taken; send fewer at a time");
    refused(receive(vec![with(2, 1), with(2, 1), with(9, 9)]), Reason::TooManySamples, &line(24));
    refused(receive(vec![with(6, 0)]), Reason::TooManySamples, &line(6));
    // Those of refused series, too.
    let long = prom::TimeSeries { labels: series(&[("__name__", "far too long for this")]).labels, ..with(3, 0) };
    refused(receive(vec![long; 2]), Reason::TooManySamples, &line(6));

    // Of families each series that they become has one: a histogram of two buckets makes five.
    let decoder = || MetricFamiliesDecoder::new(limits.clone()).clock(ManualClock::new());
    let upload = |text: String| families(&decoder(), TEXT, "", text.into());
    let text = |count: usize| (0..count).map(|n| format!("up{{a=\"{n}\"}} 1 {}\n", at(0))).collect::<String>();
    assert_eq!(upload(text(5)).unwrap().samples(), 5);
    refused(upload(text(6)), Reason::TooManySamples, &line(6));
    let histogram = |buckets: usize| {
        let bucket = |bound| io::Bucket { upper_bound: Some(f64::from(bound)), ..Default::default() };
        let bucket = (0..buckets as u32).map(bucket).collect();
        let metric = io::Metric {
            timestamp_ms: Some(at(0)),
            histogram: Some(io::Histogram { bucket, ..Default::default() }),
            ..Default::default()
        };
        let (name, r#type) = (Some("h".to_owned()), Some(io::MetricType::Histogram as i32));
        io::MetricFamily { name, r#type, metric: vec![metric], ..Default::default() }.encode_length_delimited_to_vec()
    };
    let expand = |buckets| families(&decoder(), DELIMITED, "", histogram(buckets).into());
    assert_eq!(expand(2).unwrap().samples(), 5);
    refused(expand(3), Reason::TooManySamples, &line(6));
}

/// In a write request a series over a limit is left out, its neighbours stay, and the first one is told of.
#[test]
fn a_series_over_a_limit_is_left_out() {
    let bad_utf8 = |message: Vec<u8>| {
        let at = message.windows(4).position(|bytes| bytes == b"what").unwrap();
        [&message[..at], b"\xff\xfe\xfd\xfc", &message[at + 4..]].concat()
    };
    let rows: [(&[(&str, &str)], &str); 9] = [
        (&[("__name__", "up"), ("a", "1"), ("b", "2"), ("c", "3")], "it has 4 labels, at most 3 are taken; drop some"),
        (
            &[("123456789", "x"), ("__name__", "up")],
            "label name `123456789` is 9 bytes, at most 8 are taken; shorten or drop it",
        ),
        (
            &[("__name__", "up"), ("a", "12345678901")],
            "the value of label `a` is 11 bytes, at most 10 are taken; shorten or drop it",
        ),
        (&[("__name__", "up"), ("_id", "c1"), ("_id", "c2")], "label `_id` stands there twice; send it once"),
        (&[("_id", "c1"), ("__name__", "up"), ("_id", "c1")], "label `_id` stands there twice; send it once"),
        (&[("__name__", "up"), ("_id", "c1"), ("_id", "")], "label `_id` stands there twice; send it once"),
        (&[("_id", ""), ("_id", "c1"), ("__name__", "up")], "label `_id` stands there twice; send it once"),
        (&[("__name__", "up"), ("a", "what")], "label `a` is not UTF-8; drop it"),
        (&[("what", "a"), ("__name__", "up")], "label `\u{fffd}\u{fffd}\u{fffd}\u{fffd}` is not UTF-8; drop it"),
    ];
    for (labels, what) in rows {
        let good = || series(&[("__name__", "good"), ("a", "1234567890"), ("_id", "c1")]);
        let timeseries = vec![good(), series(labels), good()];
        let mut message = prom::WriteRequest { timeseries, ..Default::default() }.encode_to_vec();
        if what.contains("UTF-8") {
            message = bad_utf8(message);
        }
        let mut payload = WriteRequestDecoder::new(limits()).decode_block(block(&message)).unwrap();
        assert_eq!((payload.series(), payload.received()), (2, None), "{labels:?}");
        let rejection = payload.refused().rejection().unwrap();
        let line = format!("series 2 `up`: {what}; 1 of 3 series refused");
        assert_eq!(
            (rejection.reason(), rejection.status().as_u16(), rejection.detail()),
            (Reason::InvalidSeries, 400, &*line)
        );
    }
    // At every limit: three labels, a name of eight bytes, a value of ten; of a label that may repeat the first counts.
    let mut payload = receive(vec![series(&[("12345678", "1234567890"), ("a", "1"), ("a", "2")])]).unwrap();
    assert!(payload.refused().rejection().is_none());
    assert_eq!(
        crate::shown(&mut payload),
        [[("12345678".to_owned(), "1234567890".to_owned()), ("a".to_owned(), "1".to_owned())]]
    );
}

/// Families are refused whole, as telemeter-server does it.
#[test]
fn one_series_over_a_limit_refuses_families() {
    let now = at(0);
    let line = |what: &str| format!("series 2 `up`: {what}");
    let rows = [
        ("up{a=\"1\",b=\"2\",c=\"3\"} 1 NOW", line("it has 4 labels, at most 3 are taken; drop some")),
        ("up{a23456789=\"x\"} 1 NOW", line("label name `a23456789` is 9 bytes, at most 8 are taken; shorten or drop it")),
        ("up{a=\"12345678901\"} 1 NOW", line("the value of label `a` is 11 bytes, at most 10 are taken; shorten or drop it")),
        ("up{_id=\"c1\",_id=\"c2\"} 1 NOW", line("label `_id` stands there twice; send it once")),
        ("up{_id=\"c1\",_id=\"\"} 1 NOW", line("label `_id` stands there twice; send it once")),
        (
            "up234567890 1 NOW",
            "series 2 `up234567890`: the value of label `__name__` is 11 bytes, at most 10 are taken; shorten or drop it".to_owned(),
        ),
    ];
    for (second, line) in rows {
        let text = format!("good{{a=\"1234567890\",_id=\"c1\"}} 1 NOW\n{second}\n").replace("NOW", &now.to_string());
        refused(upload(&text), Reason::InvalidSeries, &line);
    }
    // Delimited ones, whose name is one of a series' labels, too.
    let delimited = |labels: &[(&str, &str)]| {
        let pair = |&(name, value): &(&str, &str)| io::LabelPair { name: Some(name.into()), value: Some(value.into()) };
        let metric = io::Metric {
            label: labels.iter().map(pair).collect(),
            gauge: Some(io::Gauge { value: Some(1.0) }),
            timestamp_ms: Some(now),
            ..Default::default()
        };
        let (name, r#type) = (Some("up".to_owned()), Some(io::MetricType::Gauge as i32));
        let family = io::MetricFamily { name, r#type, metric: vec![metric], ..Default::default() };
        let decoder = MetricFamiliesDecoder::new(limits()).clock(ManualClock::new());
        families(&decoder, DELIMITED, "", family.encode_length_delimited_to_vec().into())
    };
    assert_eq!(delimited(&[("a", "1"), ("a2345678", "1234567890")]).unwrap().series(), 1);
    for (labels, what) in [
        (&[("a", "1"), ("b", "2"), ("c", "3")][..], "it has 4 labels, at most 3 are taken; drop some"),
        (&[("a23456789", "x")], "label name `a23456789` is 9 bytes, at most 8 are taken; shorten or drop it"),
        (&[("a", "12345678901")], "the value of label `a` is 11 bytes, at most 10 are taken; shorten or drop it"),
    ] {
        refused(delimited(labels), Reason::InvalidSeries, &format!("series 1 `up`: {what}"));
    }
    let text = |count: usize| (0..count).map(|n| format!("up{{a=\"{n}\"}} 1 {now}\n")).collect::<String>();
    assert_eq!(upload(&text(3)).unwrap().series(), 3);
    refused(
        upload(&text(4)),
        Reason::TooManySeries,
        "the request has 4 series, at most 3 are taken; send fewer at a time",
    );
}

#[test]
fn timestamps_are_there_fresh_and_ascending() {
    let line = |what: &str| format!("series 2 `up`: {what}");
    let missing = line("it has no timestamp; push what /federate gives");
    let old = line("its timestamp is 61 s old, at most 60 s are taken; push fresh samples and check the clock");
    let descending =
        line(&format!("its timestamp {} is before {} above it; sort each family by time", at(0) - 1, at(0)));
    let text = |first: i64, second: String| format!("up{{a=\"1\"}} 1 {first}\nup{{a=\"2\"}} 1{second}\n");
    refused(upload(&text(at(0), String::new())), Reason::Timestamp, &missing);
    refused(upload(&text(at(0), format!(" {}", at(-60) - 1))), Reason::Timestamp, &old);
    refused(upload(&text(at(0), format!(" {}", at(0) - 1))), Reason::Timestamp, &descending);
    // The oldest that passes, two at the same time, a family of its own, and the future.
    for (first, second) in [(at(-60), at(-60)), (at(0), at(0)), (at(0), at(9999))] {
        assert_eq!(upload(&text(first, format!(" {second}"))).unwrap().series(), 2);
    }
    assert_eq!(upload(&format!("up 1 {}\ndown 1 {}\n", at(0), at(-60))).unwrap().series(), 2);
}

/// What arrives, what it claims to become, and what it becomes.
#[test]
fn bytes_are_counted_before_and_after_decompression() {
    let text = |len: usize| format!("#{}\n", "x".repeat(len - 2));
    let too_large = |what| format!("the {what} is 301 bytes, at most 300 are taken; send less at a time");
    let more = "the decoded body is more than 300 bytes, the most that is taken; send less at a time";
    upload(&text(300)).unwrap();
    refused(upload(&text(301)), Reason::TooLarge, &too_large("body"));
    let packed =
        |text: String| families(&MetricFamiliesDecoder::new(limits()), TEXT, "snappy", framed(text.as_bytes()));
    packed(text(300)).unwrap();
    refused(packed(text(301)), Reason::TooLarge, more);

    let unknown = |len: usize| crate::bytes::bytes_field(15, &vec![0; len - 3]);
    let receive = |message: Vec<u8>| WriteRequestDecoder::new(limits()).decode_block(block(&message));
    receive(unknown(300)).unwrap();
    refused(receive(unknown(301)), Reason::TooLarge, &too_large("decoded body"));

    // 4 GB claimed by six bytes.
    let claim = b"\xff\xff\xff\xff\x0f\x00".to_vec();
    refused(
        WriteRequestDecoder::new(limits()).decode_block(claim.into()),
        Reason::Malformed,
        "the body of 6 bytes claims to be 4294967295 bytes, which snappy cannot do; send it whole",
    );
}

#[test]
fn what_is_no_body_is_told_how_to_be_one() {
    let receive = |body: &'static [u8]| WriteRequestDecoder::default().decode_block(body.into());
    let decoder = crate::expansion::decoder();
    let upload = |encoding, body: &'static [u8]| families(&decoder, DELIMITED, encoding, body.into());
    let not_block = "the body is not a snappy block; compress it as remote write asks for";
    for body in [&b""[..], b"\x05", b"\x03abc", b"\xff\xff\xff\xff\xff\x01"] {
        refused(receive(body), Reason::Malformed, not_block);
    }
    let not_framed = "the body is not snappy in its framed format; send it whole and framed";
    for body in [&b"abc"[..], b"\xff\x06\x00\x00sNaPpX", b"\xff\x06\x00\x00sNaPpY\x00"] {
        refused(upload("snappy", body), Reason::Malformed, not_framed);
    }
    let protobuf = "the body is not the protobuf message it should be: ";
    refused(receive(b"\x02\x04\x0a\x09"), Reason::Malformed, &format!("{protobuf}the message is cut off at byte 1"));
    refused(upload("", b"\x09"), Reason::Malformed, &format!("{protobuf}the message is cut off at byte 0"));
}

/// Limits that a layer outside put into the request's extensions hold for it alone; without them nothing is decoded.
#[test]
fn limits_can_be_the_requests_own() {
    let head = |limits: Option<DecodeLimits>| {
        let (mut head, ()) = http::Request::new(()).into_parts();
        if let Some(limits) = limits {
            head.extensions.insert(Arc::new(limits));
        }
        head
    };
    let few = || DecodeLimits { series: 1, body: 40, ..limits() };
    let up = || series(&[("__name__", "up")]);
    let message = prom::WriteRequest { timeseries: vec![up(); 2], ..Default::default() }.encode_to_vec();
    let text = format!("a 1 {0}\nb 1 {0}\n", at(0));

    let decoder = WriteRequestDecoder::per_request();
    let format = |limits| decoder.negotiate(&head(Some(limits))).unwrap();
    assert_eq!((decoder.body_limit(&format(few())), decoder.body_limit(&format(limits()))), (40, 400));
    assert_eq!(decoder.decode(format(limits()), block(&message)).unwrap().series(), 2);
    let over = decoder.decode(format(few()), block(&message));
    assert_eq!(Rejection::from(over.unwrap_err()).reason(), Reason::TooManySeries);
    let none = Rejection::from(decoder.negotiate(&head(None)).unwrap_err());
    assert_eq!((none.status().as_u16(), none.reason()), (500, Reason::Internal));
    assert!(decoder.decode_block(block(&message)).is_err(), "there is no request");

    let decoder = MetricFamiliesDecoder::per_request().clock(ManualClock::new());
    let format = |limits| decoder.negotiate(&head(Some(limits))).unwrap();
    assert_eq!((decoder.body_limit(&format(few())), decoder.body_limit(&format(limits()))), (40, 300));
    assert_eq!(decoder.decode(format(limits()), text.clone().into()).unwrap().series(), 2);
    let over = decoder.decode(format(few()), text.into());
    assert_eq!(Rejection::from(over.unwrap_err()).reason(), Reason::TooManySeries);
    let none = Rejection::from(decoder.negotiate(&head(None)).unwrap_err());
    assert_eq!((none.status().as_u16(), none.reason()), (500, Reason::Internal));
}

/// Text as an exporter gives it, for whoever reads that: what has no timestamp is of now.
#[test]
fn a_missing_timestamp_can_be_now() {
    let decoder = MetricFamiliesDecoder::new(limits()).clock(ManualClock::new());
    assert!(families(&decoder, TEXT, "", "up 1\n".into()).is_err());
    let decoder = decoder.stamp_missing();
    let payload = families(&decoder, TEXT, "", "up 1\ndown 1\n".into()).unwrap();
    assert!(format!("{payload:?}").matches(&format!("timestamp: {}", at(0))).count() == 2, "{payload:?}");
    assert!(families(&decoder, TEXT, "", "up 1 1\n".into()).is_err(), "too old is too old");
}
