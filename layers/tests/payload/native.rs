//! Native histograms: `io.prometheus.client.Histogram` to `prometheus.Histogram`, field for field, as a scrape stores them.

use infogw_layers::{
    clock::ManualClock,
    decode::DecodeError,
    encode::Encode,
    payload::{MetricFamilies, SeriesSet},
    rejection::Rejection,
    translate::Translate,
};
use infogw_proto::{
    client,
    prometheus::{
        self as prom,
        histogram::{Count, ResetHint, ZeroCount},
    },
    wire::{
        WireType::{self, Fixed64, Len, Varint},
        put_varint,
    },
};
use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use crate::{
    DELIMITED,
    bytes::{STALE, bits, bytes_field, field_of},
    expansion::decoder,
    families, unblock,
    wire_types::{ALL, wrong_wire_type},
};

proptest! {
    #[test]
    fn native_histograms_arrive_field_for_field(all in histogram(), gauge: bool, packed: bool) {
        let message = if packed { pack(all.clone()) } else { all.encode_to_vec() };
        let payload = family(gauge, &message).unwrap();
        prop_assert_eq!((payload.series(), payload.samples()), (1, 1));
        let (sent, untouched) = payload.translate(None).encode().unwrap();
        prop_assert!(!untouched);
        let (found, expected) = (sole(&unblock(&sent)), scraped(&all, gauge));
        prop_assert_eq!(found.sum.to_bits(), expected.sum.to_bits());
        // As bytes: a NaN is not equal to itself.
        prop_assert_eq!(found.encode_to_vec(), expected.encode_to_vec(), "{:?} for {:?}", found, expected);
    }

    /// Whatever stands in one: it is refused, or what goes on decodes.
    #[test]
    fn nothing_goes_on_that_does_not_decode(number in 1..17u32, wire in prop::sample::select(&ALL), value: u64, float: bool) {
        if let Ok(payload) = family(false, &with(float, &field_of(number, wire, value))) {
            prom::WriteRequest::decode(&payload.translate(None).to_message()[..]).unwrap();
        }
    }
}

#[test]
fn a_gauge_histogram_says_so_and_a_stale_one_stays_stale() {
    let histogram = client::Histogram {
        sample_count: Some(3),
        sample_sum: Some(f64::from_bits(STALE)),
        schema: Some(-4),
        zero_threshold: Some(1e-9),
        zero_count: Some(1),
        negative_span: vec![client::BucketSpan { offset: Some(-7), length: Some(1) }],
        negative_delta: vec![1],
        positive_span: vec![client::BucketSpan { offset: Some(2), length: Some(1) }],
        positive_delta: vec![1],
        ..Default::default()
    };
    for (gauge, hint) in [(false, ResetHint::Unknown), (true, ResetHint::Gauge)] {
        let payload = family(gauge, &histogram.encode_to_vec()).unwrap();
        let stamped = sole(&payload.translate(Some(-1)).to_message());
        assert_eq!((stamped.reset_hint(), stamped.timestamp), (hint, -1));
        assert_eq!(stamped.sum.to_bits(), STALE);
        assert_eq!((stamped.count, stamped.zero_count), (Some(Count::CountInt(3)), Some(ZeroCount::ZeroCountInt(1))));
        assert_eq!((stamped.schema, stamped.zero_threshold), (-4, 1e-9));
        assert_eq!(stamped.negative_spans, [prom::BucketSpan { offset: -7, length: 1 }]);
        assert_eq!(stamped.positive_spans, [prom::BucketSpan { offset: 2, length: 1 }]);
        assert_eq!((stamped.negative_deltas, stamped.positive_deltas), (vec![1], vec![1]));
    }
}

#[test]
fn wrong_wire_types_are_refused_and_never_forwarded() {
    let both: &[(u32, &[WireType])] = &[
        (1, &[Varint]),
        (2, &[Fixed64]),
        (4, &[Fixed64]),
        (5, &[Varint]),
        (6, &[Fixed64]),
        (7, &[Varint]),
        (8, &[Fixed64]),
        (9, &[Len]),
        (12, &[Len]),
    ];
    let integer: &[(u32, &[WireType])] = &[(10, &[Len, Varint]), (13, &[Len, Varint])];
    let float: &[(u32, &[WireType])] = &[(11, &[Len, Fixed64]), (14, &[Len, Fixed64])];
    for (is_float, own) in [(false, integer), (true, float)] {
        for (number, own) in both.iter().chain(own) {
            for wire in ALL.into_iter().filter(|wire| !own.contains(wire)) {
                let at = format!("field {number} as {wire:?}, float: {is_float}");
                wrong_wire_type(family(false, &with(is_float, &field_of(*number, wire, 1))), *number, &at);
            }
        }
        for (span, number) in [(9, 1), (9, 2), (12, 1), (12, 2)] {
            for wire in ALL.into_iter().filter(|wire| *wire != Varint) {
                let field = bytes_field(span, &field_of(number, wire, 1));
                wrong_wire_type(family(false, &with(is_float, &field)), number, &format!("{number} of {span}"));
            }
        }
        // Packed values that break off.
        let cut: [&[u8]; 2] = if is_float { [&[0; 7], &[0; 9]] } else { [b"\x80", b"\x01\xff"] };
        for (number, cut) in own.iter().flat_map(|(number, _)| cut.map(|cut| (*number, cut))) {
            let error = family(false, &with(is_float, &bytes_field(number, cut))).unwrap_err();
            assert_eq!(Rejection::from(error).status(), 400, "{cut:?} in field {number}");
        }
    }
}

/// Found by fuzzing: what made a histogram a native or a float one was any of a repeated field, and what went on the last one.
#[test]
fn of_a_repeated_field_the_last_one_says_what_a_histogram_is() {
    let native = with(false, b"");
    for number in [4, 8] {
        let twice = [field_of(number, Fixed64, 1f64.to_bits()), field_of(number, Fixed64, 0)].concat();
        let counted = [twice, field_of(1, Varint, 3), native.clone()].concat();
        let sent = family(false, &counted).unwrap().translate(None).to_message();
        assert_eq!(sole(&sent).count, Some(Count::CountInt(3)), "field {number}");
    }
    for (number, wire, one) in [(6, Fixed64, 1f64.to_bits()), (7, Varint, 1), (8, Fixed64, 1f64.to_bits())] {
        let (one, zero) = (field_of(number, wire, one), field_of(number, wire, 0));
        // Without buckets and not native: the bucket +Inf, the sum, and the count.
        let classic = family(false, &[one.clone(), zero.clone()].concat()).unwrap();
        assert_eq!(classic.series(), 3, "field {number}");
        let native = family(false, &[zero, one].concat()).unwrap();
        assert_eq!(native.series(), 1, "field {number}");
    }
}

/// A native histogram, behind `field`.
fn with(float: bool, field: &[u8]) -> Vec<u8> {
    let native = client::Histogram {
        sample_count_float: float.then_some(1.0),
        positive_span: vec![client::BucketSpan::default()],
        ..Default::default()
    };
    [field, &native.encode_to_vec()].concat()
}

/// A family of one histogram.
fn family(gauge: bool, histogram: &[u8]) -> Result<MetricFamilies, DecodeError> {
    let kind = if gauge { client::MetricType::GaugeHistogram } else { client::MetricType::Histogram };
    let metric = client::Metric { timestamp_ms: Some(now()), ..Default::default() };
    let family = client::MetricFamily { name: Some("h".to_owned()), r#type: Some(kind as i32), ..Default::default() };
    let metric = [metric.encode_to_vec(), bytes_field(7, histogram)].concat();
    let message = [family.encode_to_vec(), bytes_field(4, &metric)].concat();
    let mut body = Vec::new();
    put_varint(&mut body, message.len() as u64);
    body.extend(message);
    families(&decoder(), DELIMITED, "", body.into())
}

fn now() -> i64 {
    ManualClock::START.as_millis() as i64
}

/// The one histogram of a write request.
fn sole(message: &[u8]) -> prom::Histogram {
    let request = prom::WriteRequest::decode(message).unwrap();
    let [series] = &request.timeseries[..] else { panic!("{request:?}") };
    assert_eq!(series.labels, [prom::Label { name: "__name__".to_owned(), value: "h".to_owned() }]);
    assert!(series.samples.is_empty());
    let [histogram] = &series.histograms[..] else { panic!("{request:?}") };
    histogram.clone()
}

/// What a scrape stores of it.
pub(crate) fn scraped(histogram: &client::Histogram, gauge: bool) -> prom::Histogram {
    let spans = |spans: &[client::BucketSpan]| {
        spans.iter().map(|span| prom::BucketSpan { offset: span.offset(), length: span.length() }).collect()
    };
    let common = prom::Histogram {
        sum: histogram.sample_sum(),
        schema: histogram.schema(),
        zero_threshold: histogram.zero_threshold(),
        negative_spans: spans(&histogram.negative_span),
        positive_spans: spans(&histogram.positive_span),
        reset_hint: if gauge { ResetHint::Gauge } else { ResetHint::Unknown } as i32,
        timestamp: now(),
        ..Default::default()
    };
    if histogram.sample_count_float() > 0.0 || histogram.zero_count_float() > 0.0 {
        return prom::Histogram {
            count: histogram.sample_count_float.map(Count::CountFloat),
            zero_count: histogram.zero_count_float.map(ZeroCount::ZeroCountFloat),
            negative_counts: histogram.negative_count.clone(),
            positive_counts: histogram.positive_count.clone(),
            ..common
        };
    }
    prom::Histogram {
        count: histogram.sample_count.map(Count::CountInt),
        zero_count: histogram.zero_count.map(ZeroCount::ZeroCountInt),
        negative_deltas: histogram.negative_delta.clone(),
        positive_deltas: histogram.positive_delta.clone(),
        ..common
    }
}

/// With its deltas and counts packed, which the definition does not ask for but every decoder takes.
fn pack(mut histogram: client::Histogram) -> Vec<u8> {
    let zigzag = |deltas: Vec<i64>| {
        let mut out = Vec::new();
        deltas.iter().for_each(|delta| put_varint(&mut out, (delta << 1 ^ delta >> 63) as u64));
        out
    };
    let doubles = |counts: Vec<f64>| counts.iter().flat_map(|count| count.to_le_bytes()).collect::<Vec<u8>>();
    let packed = [
        bytes_field(10, &zigzag(std::mem::take(&mut histogram.negative_delta))),
        bytes_field(11, &doubles(std::mem::take(&mut histogram.negative_count))),
        bytes_field(13, &zigzag(std::mem::take(&mut histogram.positive_delta))),
        bytes_field(14, &doubles(std::mem::take(&mut histogram.positive_count))),
    ];
    [histogram.encode_to_vec(), packed.concat()].concat()
}

/// A native histogram: its buckets of either kind, of which those of the other kind must not go on.
pub(crate) fn histogram() -> impl Strategy<Value = client::Histogram> {
    let span = || {
        (option::of(any::<i32>()), option::of(any::<u32>()))
            .prop_map(|(offset, length)| client::BucketSpan { offset, length })
    };
    let double = || bits().prop_map(f64::from_bits);
    let side = || (vec(span(), 0..3), vec(any::<i64>(), 0..4), vec(double(), 0..4));
    let scale = (option::of(-53..9i32), option::of(1e-300..1.0));
    let integers = (option::of(any::<u64>()), option::of(any::<u64>()));
    let floats = (option::of(0.0..1e9), option::of(0.0..1e9));
    (side(), side(), double(), scale, integers, floats).prop_map(
        |(negative, mut positive, sum, (schema, zero_threshold), (count, zero_count), (count_float, zero_float))| {
            if zero_threshold.is_none() {
                // A native one without observations has an empty span, to be told from a classic one.
                positive.0.push(client::BucketSpan::default());
            }
            client::Histogram {
                sample_count: count,
                sample_sum: Some(sum),
                sample_count_float: count_float,
                schema,
                zero_threshold,
                zero_count,
                zero_count_float: zero_float,
                negative_span: negative.0,
                negative_delta: negative.1,
                negative_count: negative.2,
                positive_span: positive.0,
                positive_delta: positive.1,
                positive_count: positive.2,
                ..Default::default()
            }
        },
    )
}
