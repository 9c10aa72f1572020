//! Protobuf, spelt out, so that it can be misspelt.

use infogw_proto::wire::put_varint;

use crate::row::{AT, SENDER};

/// A varint in as few bytes as it needs.
pub(crate) fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, value);
    out
}

/// A varint in this many bytes, the last ones zero.
pub(crate) fn long(value: u64, bytes: usize) -> Vec<u8> {
    let mut out = varint(value);
    *out.last_mut().unwrap() |= 0x80;
    out.resize(bytes - 1, 0x80);
    out.push(0);
    out
}

/// The tag of a field; a number of 2^29 and more does not fit the 32 bits that a tag has.
pub(crate) fn tag(number: u64, wire: u64) -> Vec<u8> {
    varint(number << 3 | wire)
}

/// A length-delimited field.
pub(crate) fn field(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    lying(number, content.as_ref().len() as u64, content)
}

/// A length-delimited field that says it is of this length.
pub(crate) fn lying(number: u64, length: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    [&tag(number, 2), &varint(length), content.as_ref()].concat()
}

/// A varint field.
pub(crate) fn int(number: u64, value: u64) -> Vec<u8> {
    [tag(number, 0), varint(value)].concat()
}

/// A fixed64 field.
pub(crate) fn fixed64(number: u64, bits: u64) -> Vec<u8> {
    [&tag(number, 1)[..], &bits.to_le_bytes()].concat()
}

/// What a label holds.
pub(crate) fn pair(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [field(1, name), field(2, value)].concat()
}

/// A label: the same field of series, of metrics and of exemplars.
pub(crate) fn label(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    field(1, pair(name, value))
}

/// The labels of `up`, the sender's.
pub(crate) fn own() -> Vec<u8> {
    [label("__name__", "up"), label("_id", SENDER)].concat()
}

/// A sample of remote write.
pub(crate) fn sample(bits: u64, timestamp: i64) -> Vec<u8> {
    field(2, [fixed64(1, bits), int(2, timestamp as u64)].concat())
}

/// The sample that a good series has: 1.
pub(crate) fn one() -> Vec<u8> {
    sample(1f64.to_bits(), AT)
}

/// A series of remote write.
pub(crate) fn series(parts: &[&[u8]]) -> Vec<u8> {
    field(1, parts.concat())
}

/// A good one: `up`.
pub(crate) fn good() -> Vec<u8> {
    series(&[&own(), &one()])
}

/// A delimited family of gauges called `up`, with these metrics.
pub(crate) fn gauges(metrics: &[Vec<u8>]) -> Vec<u8> {
    let metrics: Vec<u8> = metrics.iter().flat_map(|metric| field(4, metric)).collect();
    delimited([field(1, "up"), int(3, 1), metrics].concat())
}

/// A message behind its length.
pub(crate) fn delimited(message: Vec<u8>) -> Vec<u8> {
    [varint(message.len() as u64), message].concat()
}

/// A gauge's value, as a field of a metric: 1.
pub(crate) fn gauge() -> Vec<u8> {
    field(2, fixed64(1, 1f64.to_bits()))
}

/// A metric's timestamp: now.
pub(crate) fn timestamp() -> Vec<u8> {
    int(6, crate::support::world::now() as u64)
}
