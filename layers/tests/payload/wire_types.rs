//! Every known field at every level, in every wire type: only its own is taken. Groups and tags that no field has never are.

use infogw_layers::{decode::DecodeError, payload::SeriesSet};
use infogw_proto::{
    client,
    wire::WireType::{self, Fixed32, Fixed64, Len, Varint},
};
use prost::Message;

use crate::{
    DELIMITED,
    bytes::{bytes_field, field_of},
    expansion::decoder,
    families, line, write_request,
};

pub(crate) const ALL: [WireType; 4] = [Varint, Fixed64, Len, Fixed32];

/// Wire types 3, 4, 6 and 7; field number 0; a tag over 32 bits.
const NEVER: [&[u8]; 6] = [b"\x7b\x7c", b"\x7c", b"\x7e\x00", b"\x7f\x00", b"\x02\x00", b"\x8a\x80\x80\x80\x10\x00"];

/// Where a message lies in a write request, as field numbers, and its fields with their wire types.
type Level = (&'static [u32], &'static [(&'static [u32], &'static [WireType])]);

const WRITE_REQUEST: [Level; 9] = [
    (&[], &[(&[1, 3], &[Len])]),
    (&[1], &[(&[1, 2, 3, 4], &[Len])]),
    (&[1, 1], &[(&[1, 2], &[Len])]),
    (&[1, 2], &[(&[1], &[Fixed64]), (&[2], &[Varint])]),
    (&[1, 3], &[(&[1], &[Len]), (&[2], &[Fixed64]), (&[3], &[Varint])]),
    (&[1, 3, 1], &[(&[1, 2], &[Len])]),
    (
        &[1, 4],
        &[
            (&[1, 4, 6, 14, 15], &[Varint]),
            (&[2, 3, 5, 7], &[Fixed64]),
            (&[8, 11], &[Len]),
            (&[9, 12], &[Len, Varint]),
            (&[10, 13, 16], &[Len, Fixed64]),
        ],
    ),
    (&[1, 4, 8], &[(&[1, 2], &[Varint])]),
    (&[3], &[(&[1], &[Varint]), (&[2, 4, 5], &[Len])]),
];

#[test]
fn fields_of_write_requests_have_their_own_wire_types() {
    for (path, fields) in WRITE_REQUEST {
        for (numbers, own) in fields {
            for (&number, wire) in numbers.iter().flat_map(|number| ALL.map(|wire| (number, wire))) {
                let answer = write_request(&within(path, field_of(number, wire, 0)));
                let at = format!("field {number} of {path:?} as {wire:?}");
                match (own.contains(&wire), answer) {
                    (true, answer) => drop(answer.expect(&at)),
                    (false, answer) => wrong_wire_type(answer, number, &at),
                }
            }
        }
        // What nobody knows passes in any.
        for wire in ALL {
            write_request(&within(path, field_of(100, wire, 0))).unwrap();
        }
        for never in NEVER {
            let answer = write_request(&within(path, never.to_vec()));
            assert!(matches!(answer, Err(DecodeError::Malformed(_))), "{never:02x?} in {path:?}");
        }
    }
}

const FAMILY: [Level; 9] = [
    (&[], &[(&[3], &[Varint]), (&[1, 4], &[Len])]),
    (&[4], &[(&[1, 2, 3, 4, 5, 7], &[Len]), (&[6], &[Varint])]),
    (&[4, 1], &[(&[1, 2], &[Len])]),
    (&[4, 2], &[(&[1], &[Fixed64])]),
    (&[4, 3], &[(&[1], &[Fixed64])]),
    (&[4, 4], &[(&[1], &[Varint]), (&[2], &[Fixed64]), (&[3], &[Len])]),
    (&[4, 4, 3], &[(&[1, 2], &[Fixed64])]),
    (&[4, 7], &[(&[1], &[Varint]), (&[2, 4], &[Fixed64]), (&[3], &[Len])]),
    (&[4, 7, 3], &[(&[1], &[Varint]), (&[2, 4], &[Fixed64])]),
];

#[test]
fn fields_of_metric_families_have_their_own_wire_types() {
    for (path, fields) in FAMILY {
        for (numbers, own) in fields {
            for (&number, wire) in numbers.iter().flat_map(|number| ALL.map(|wire| (number, wire))) {
                if !own.contains(&wire) {
                    let at = format!("field {number} of {path:?} as {wire:?}");
                    wrong_wire_type(family(path, field_of(number, wire, 0)), number, &at);
                }
            }
        }
        for wire in ALL {
            let payload = family(path, field_of(100, wire, 0)).unwrap();
            assert!(payload.series() > 0, "{path:?}");
        }
        for never in NEVER {
            let answer = family(path, never.to_vec());
            assert!(matches!(answer, Err(DecodeError::Malformed(_))), "{never:02x?} in {path:?}");
        }
    }
}

fn within(path: &[u32], field: Vec<u8>) -> Vec<u8> {
    path.iter().rev().fold(field, |content, &number| bytes_field(number, &content))
}

/// A family that is sound but for `field`, which stands in the message at `path`.
fn family(path: &[u32], field: Vec<u8>) -> Result<infogw_layers::payload::MetricFamilies, DecodeError> {
    use client::MetricType::{Counter, Gauge, Histogram, Summary};
    let (kind, value) = match path.get(1) {
        Some(2) => (Gauge, 2),
        Some(4) => (Summary, 4),
        Some(7) => (Histogram, 7),
        _ => (Counter, 3),
    };
    // Protobuf has no order: what is missing yet comes behind.
    let timestamp = client::Metric {
        timestamp_ms: Some(infogw_layers::clock::ManualClock::START.as_millis() as i64),
        ..Default::default()
    };
    let mut message = match path {
        [4, inner @ ..] => {
            let mut metric = [within(inner, field), timestamp.encode_to_vec()].concat();
            if inner.first() != Some(&value) {
                metric.extend(bytes_field(value, &[]));
            }
            bytes_field(4, &metric)
        }
        _ => [field, bytes_field(4, &[timestamp.encode_to_vec(), bytes_field(value, &[])].concat())].concat(),
    };
    let family = client::MetricFamily { name: Some("up".to_owned()), r#type: Some(kind as i32), ..Default::default() };
    message.extend(family.encode_to_vec());
    let body = [varint(message.len()), message].concat();
    families(&decoder(), DELIMITED, "", body.into())
}

fn varint(len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    infogw_proto::wire::put_varint(&mut out, len as u64);
    out
}

pub(crate) fn wrong_wire_type<T>(answer: Result<T, DecodeError>, number: u32, at: &str) {
    let error = answer.err().expect(at);
    let line = line(error);
    assert!(
        line.contains(&format!("field {number} at byte")) && line.ends_with("has the wrong wire type"),
        "{at}: {line}"
    );
}
