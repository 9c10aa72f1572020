//! Remote-write messages in every spelling that protobuf allows.

use infogw_proto::{
    prometheus as prom,
    wire::{Cursor, WireType, put_varint},
};
use proptest::{collection::vec, prelude::*};
use prost::Message;

/// The NaN that says that a series has ended.
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// One top-level field.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Series { fields: Vec<SeriesField>, long_tag: bool, long_length: bool },
    Other(Vec<u8>),
}

/// One field of a series.
#[derive(Debug, Clone)]
pub(crate) enum SeriesField {
    Label(String, String, Spelling),
    Rest(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    Canonical,
    ValueFirst,
    /// Another name and value stand before those that count.
    Repeated,
    LongTag,
    LongLength,
    LongInnerTag,
    LongInnerLength,
    /// With an unknown field inside.
    Extended,
}

pub(crate) fn message(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Part::Other(bytes) => out.extend_from_slice(bytes),
            Part::Series { fields, long_tag, long_length } => {
                let mut content = Vec::new();
                for field in fields {
                    match field {
                        SeriesField::Label(name, value, spelling) => put_label(&mut content, name, value, *spelling),
                        SeriesField::Rest(bytes) => content.extend_from_slice(bytes),
                    }
                }
                put_bytes(&mut out, 1, &content, *long_tag, *long_length);
            }
        }
    }
    out
}

fn put_label(out: &mut Vec<u8>, name: &str, value: &str, spelling: Spelling) {
    let mut inside = Vec::new();
    let long_tag = spelling == Spelling::LongInnerTag;
    let long_length = spelling == Spelling::LongInnerLength;
    if spelling == Spelling::Repeated {
        put_bytes(&mut inside, 1, b"zz", false, false);
        put_bytes(&mut inside, 2, b"not this", false, false);
    }
    if spelling == Spelling::ValueFirst {
        put_bytes(&mut inside, 2, value.as_bytes(), false, false);
    }
    put_bytes(&mut inside, 1, name.as_bytes(), long_tag, long_length);
    if spelling != Spelling::ValueFirst {
        put_bytes(&mut inside, 2, value.as_bytes(), false, false);
    }
    if spelling == Spelling::Extended {
        inside.extend_from_slice(b"\x18\x05");
    }
    put_bytes(out, 1, &inside, spelling == Spelling::LongTag, spelling == Spelling::LongLength);
}

/// A length-delimited field, with one byte more than needed in its tag or its length if asked.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, content: &[u8], long_tag: bool, long_length: bool) {
    put_spelt(out, u64::from(number << 3 | 2), long_tag);
    put_spelt(out, content.len() as u64, long_length);
    out.extend_from_slice(content);
}

pub(crate) fn bytes_field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(&mut out, number, content, false, false);
    out
}

fn put_spelt(out: &mut Vec<u8>, value: u64, long: bool) {
    put_varint(out, value);
    if long {
        *out.last_mut().unwrap() |= 0x80;
        out.push(0);
    }
}

/// A message taken apart: each series' fields that are not labels, and the fields that are not series.
pub(crate) fn rests(message: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut series, mut others) = (Vec::new(), Vec::new());
    for (number, field) in fields(message) {
        if number != 1 {
            others.extend_from_slice(field);
            continue;
        }
        let mut cursor = Cursor::new(field);
        cursor.field().unwrap();
        let rest = fields(cursor.bytes().unwrap()).into_iter().filter(|(number, _)| *number != 1);
        series.push(rest.flat_map(|(_, field)| field.to_vec()).collect());
    }
    (series, others)
}

fn fields(message: &[u8]) -> Vec<(u32, &[u8])> {
    let mut cursor = Cursor::new(message);
    let mut fields = Vec::new();
    loop {
        let start = cursor.offset();
        let Some(field) = cursor.field().unwrap() else { return fields };
        cursor.skip(field.wire).unwrap();
        fields.push((field.number, &message[start..cursor.offset()]));
    }
}

/// Messages as stock senders write them: nothing in them has to be rewritten.
pub(crate) fn tidy() -> impl Strategy<Value = Vec<Part>> {
    let labels = prop::collection::btree_map(name(1), text(1), 0..6);
    let series = (labels, vec(rest(), 0..4)).prop_map(|(labels, rest)| Part::Series {
        fields: labels
            .into_iter()
            .map(|(name, value)| SeriesField::Label(name, value, Spelling::Canonical))
            .chain(rest.into_iter().map(SeriesField::Rest))
            .collect(),
        long_tag: false,
        long_length: false,
    });
    vec(prop_oneof![4 => series, 1 => other().prop_map(Part::Other)], 0..8)
}

/// Tidy series among others whose labels come in any order, twice, empty, misspelt, and between samples.
pub(crate) fn wild() -> impl Strategy<Value = Vec<Part>> {
    let field = prop_oneof![
        3 => (name(0), text(0), spelling()).prop_map(|(name, value, spelling)| SeriesField::Label(name, value, spelling)),
        1 => rest().prop_map(SeriesField::Rest),
    ];
    let series = (vec(field, 0..9), prop::bool::weighted(0.1), prop::bool::weighted(0.1))
        .prop_map(|(fields, long_tag, long_length)| Part::Series { fields, long_tag, long_length });
    let some = vec(prop_oneof![4 => series, 1 => other().prop_map(Part::Other)], 0..6);
    (tidy(), some).prop_map(|(tidy, wild)| tidy.into_iter().chain(wild).collect::<Vec<_>>()).prop_shuffle()
}

fn name(least: usize) -> impl Strategy<Value = String> {
    let short = prop::string::string_regex(&format!("[a-c_]{{{least},2}}")).unwrap();
    // Some that only their end tells apart.
    prop_oneof![4 => short, 1 => Just("__name__".to_owned()), 1 => "longlabel_[a-c]?", 1 => "[é-ü]{60,70}"]
}

fn text(least: usize) -> impl Strategy<Value = String> {
    let short = prop::string::string_regex(&format!("[x-z]{{{least},2}}")).unwrap();
    prop_oneof![6 => short, 1 => "[à-ö]{60,100}"]
}

fn spelling() -> impl Strategy<Value = Spelling> {
    prop_oneof![
        12 => Just(Spelling::Canonical),
        1 => Just(Spelling::ValueFirst),
        1 => Just(Spelling::Repeated),
        1 => Just(Spelling::LongTag),
        1 => Just(Spelling::LongLength),
        1 => Just(Spelling::LongInnerTag),
        1 => Just(Spelling::LongInnerLength),
        1 => Just(Spelling::Extended),
    ]
}

/// A double's bits: any at all, with the ones that get lost most easily among them.
pub(crate) fn bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(STALE),
        Just(0x7ff0_0000_0000_0001),
        Just(0xfff8_dead_beef_cafe),
        Just((-0.0f64).to_bits()),
        Just(f64::INFINITY.to_bits()),
    ]
}

/// One field of a series that is not a label: sample, exemplar, histogram, or unknown.
fn rest() -> impl Strategy<Value = Vec<u8>> {
    let timestamp = prop_oneof![any::<i64>(), 1i64 << 35..1 << 42];
    let sample = (bits(), timestamp, any::<bool>()).prop_map(|(bits, timestamp, long_tag)| {
        let mut content = Vec::new();
        if bits != 0 {
            content.push(0x09);
            content.extend_from_slice(&bits.to_le_bytes());
        }
        content.push(0x10);
        put_varint(&mut content, timestamp as u64);
        let mut out = Vec::new();
        put_bytes(&mut out, 2, &content, long_tag, false);
        out
    });
    let exemplar = (text(0), bits(), any::<i64>()).prop_map(|(value, bits, timestamp)| {
        let labels = vec![prom::Label { name: "trace".to_owned(), value }];
        let exemplar = prom::Exemplar { labels, value: f64::from_bits(bits), timestamp };
        bytes_field(3, &exemplar.encode_to_vec())
    });
    let histogram = histogram().prop_map(|histogram| bytes_field(4, &histogram.encode_to_vec()));
    prop_oneof![4 => sample, 1 => exemplar, 1 => histogram, 1 => unknown(5)]
}

fn histogram() -> impl Strategy<Value = prom::Histogram> {
    use prom::histogram::{Count, ZeroCount};
    let spans =
        || vec((any::<i32>(), any::<u32>()).prop_map(|(offset, length)| prom::BucketSpan { offset, length }), 0..3);
    let floats = || vec(bits().prop_map(f64::from_bits), 0..3);
    let counts = prop_oneof![
        any::<u64>().prop_map(|n| (Some(Count::CountInt(n)), Some(ZeroCount::ZeroCountInt(n / 2)))),
        bits().prop_map(|n| {
            let n = f64::from_bits(n);
            (Some(Count::CountFloat(n)), Some(ZeroCount::ZeroCountFloat(n)))
        }),
    ];
    let negative = (spans(), vec(any::<i64>(), 0..3), floats());
    let positive = (spans(), vec(any::<i64>(), 0..3), floats());
    (counts, bits(), negative, positive, (any::<i32>(), any::<i64>(), 0..4i32, floats())).prop_map(
        |((count, zero_count), sum, negative, positive, (schema, timestamp, reset_hint, custom_values))| {
            prom::Histogram {
                count,
                sum: f64::from_bits(sum),
                schema,
                zero_threshold: f64::from_bits(sum ^ 1),
                zero_count,
                negative_spans: negative.0,
                negative_deltas: negative.1,
                negative_counts: negative.2,
                positive_spans: positive.0,
                positive_deltas: positive.1,
                positive_counts: positive.2,
                reset_hint,
                timestamp,
                custom_values,
            }
        },
    )
}

/// A top-level field that is not a series: metadata, or unknown.
fn other() -> impl Strategy<Value = Vec<u8>> {
    let metadata = text(0).prop_map(|help| {
        let metadata = prom::MetricMetadata { metric_family_name: "up".to_owned(), help, ..Default::default() };
        bytes_field(3, &metadata.encode_to_vec())
    });
    prop_oneof![metadata, unknown(4)]
}

/// A field that nobody knows, numbered from `first` on.
fn unknown(first: u32) -> impl Strategy<Value = Vec<u8>> {
    let wire =
        prop_oneof![Just(WireType::Varint), Just(WireType::Fixed64), Just(WireType::Len), Just(WireType::Fixed32),];
    let number = prop_oneof![first..30, Just((1 << 29) - 1)];
    (number, wire, any::<u64>()).prop_map(|(number, wire, value)| field_of(number, wire, value))
}

/// A field of the wire type asked for.
pub(crate) fn field_of(number: u32, wire: WireType, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut tag = |wire| put_varint(&mut out, u64::from(number) << 3 | wire);
    match wire {
        WireType::Varint => {
            tag(0);
            put_varint(&mut out, value);
        }
        WireType::Fixed64 => {
            tag(1);
            out.extend_from_slice(&value.to_le_bytes());
        }
        WireType::Len => put_bytes(&mut out, number, &value.to_le_bytes()[..(value % 9) as usize], false, false),
        WireType::Fixed32 => {
            tag(5);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
    }
    out
}
