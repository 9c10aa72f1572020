//! Native histograms: `io.prometheus.client.Histogram` to remote write's `prometheus.Histogram`.

use infogw_proto::wire::{Cursor, Field, WireError, WireType, put_varint};

use super::fields::{check_bucket_span, check_packed, double, varint};

/// `Histogram.reset_hint = 14 GAUGE`: counts may fall, and a reader does not take that for a reset.
const RESET_HINT_GAUGE: [u8; 2] = [0x70, 0x03];

/// Writes the remote-write fields of the histogram `message` into `out`, all but the timestamp.
///
/// Field for field as a Prometheus scrape stores it: a float count makes it a float histogram, and one of a family of type
/// GAUGE_HISTOGRAM is a `gauge`. Spans, deltas and counts have the same encoding on both sides, so they are copied.
pub(super) fn translate(message: &[u8], at: usize, gauge: bool, out: &mut Vec<u8>) -> Result<(), WireError> {
    out.clear();
    let float = is_float(message, at)?;
    let mut cursor = Cursor::within(message, at);
    while let Some(field) = cursor.field()? {
        let to = match (field.number, float) {
            (1, false) => 1,
            (4, true) => 2,
            (2, _) => 3,
            (5, _) => 4,
            (6, _) => 5,
            (7, false) => 6,
            (8, true) => 7,
            (9, _) => 8,
            (10, false) => 9,
            (11, true) => 10,
            (12, _) => 11,
            (13, false) => 12,
            (14, true) => 13,
            _ => {
                cursor.skip(field.wire)?;
                continue;
            }
        };
        copy(&mut cursor, field, to, out)?;
    }
    if gauge {
        out.extend_from_slice(&RESET_HINT_GAUGE);
    }
    Ok(())
}

/// Whether a histogram without classic buckets is a native one: what Prometheus' scrape asks. Of a field that repeats the last one
/// counts, as it does for whoever reads what becomes of it.
pub(super) fn is_native(message: &[u8], at: usize) -> Result<bool, WireError> {
    let mut cursor = Cursor::within(message, at);
    let (mut zero_threshold, mut zero_count, mut zero_count_float, mut spans) = (0.0, 0, 0.0, false);
    while let Some(field) = cursor.field()? {
        match field.number {
            6 => zero_threshold = double(&mut cursor, field)?,
            7 => zero_count = varint(&mut cursor, field)?,
            8 => zero_count_float = double(&mut cursor, field)?,
            9 | 12 => {
                spans = true;
                cursor.skip(field.wire)?;
            }
            _ => cursor.skip(field.wire)?,
        }
    }
    Ok(spans || zero_threshold > 0.0 || zero_count > 0 || zero_count_float > 0.0)
}

fn is_float(message: &[u8], at: usize) -> Result<bool, WireError> {
    let mut cursor = Cursor::within(message, at);
    let (mut count, mut zero_count) = (0.0, 0.0);
    while let Some(field) = cursor.field()? {
        match field.number {
            4 => count = double(&mut cursor, field)?,
            8 => zero_count = double(&mut cursor, field)?,
            _ => cursor.skip(field.wire)?,
        }
    }
    Ok(count > 0.0 || zero_count > 0.0)
}

/// Copies a field's value under the number `to`, checked against the definition on that side.
fn copy(cursor: &mut Cursor<'_>, field: Field, to: u32, out: &mut Vec<u8>) -> Result<(), WireError> {
    let defined = match to {
        1 | 4 | 6 | 9 | 12 => WireType::Varint,
        8 | 11 => WireType::Len,
        _ => WireType::Fixed64,
    };
    // Deltas and counts may be packed.
    let packed = field.wire == WireType::Len && matches!(to, 9 | 10 | 12 | 13);
    if !packed {
        cursor.expect(field, defined)?;
    }
    out.push((to << 3) as u8 | wire_bits(field.wire));
    match field.wire {
        WireType::Varint => put_varint(out, cursor.varint()?),
        WireType::Fixed64 => out.extend_from_slice(&cursor.fixed64()?.to_le_bytes()),
        _ => {
            let bytes = cursor.bytes()?;
            check_content(bytes, cursor.offset() - bytes.len(), to)?;
            put_varint(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        }
    }
    Ok(())
}

/// A receiver refuses a whole request for one value that does not decode: none must go on.
fn check_content(bytes: &[u8], at: usize, to: u32) -> Result<(), WireError> {
    match to {
        8 | 11 => check_bucket_span(bytes, at),
        9 | 12 => check_packed(bytes, at, WireType::Varint),
        _ => check_packed(bytes, at, WireType::Fixed64),
    }
}

fn wire_bits(wire: WireType) -> u8 {
    match wire {
        WireType::Varint => 0,
        WireType::Fixed64 => 1,
        WireType::Len => 2,
        WireType::Fixed32 => 5,
    }
}
