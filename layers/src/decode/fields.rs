//! Protobuf fields, read and checked by the wire types of their definitions.

use infogw_proto::wire::{Cursor, Field, WireError, WireType};

pub(super) fn varint(cursor: &mut Cursor<'_>, field: Field) -> Result<u64, WireError> {
    cursor.expect(field, WireType::Varint)?;
    cursor.varint()
}

/// A double by its bits, so that a stale marker stays one.
pub(super) fn double(cursor: &mut Cursor<'_>, field: Field) -> Result<f64, WireError> {
    cursor.expect(field, WireType::Fixed64)?;
    cursor.fixed64().map(f64::from_bits)
}

/// All of `varint` as milliseconds since the epoch, where it has six bytes, as those from 1971 until 2109 have.
#[inline]
pub(super) fn timestamp_of_now(varint: &[u8]) -> Option<i64> {
    let &[a, b, c, d, e, f] = varint else { return None };
    let seven_bits = |byte: u8, place: u32| i64::from(byte & 0x7f) << (7 * place);
    let timestamp =
        seven_bits(a, 0) | seven_bits(b, 1) | seven_bits(c, 2) | seven_bits(d, 3) | seven_bits(e, 4) | seven_bits(f, 5);
    (a & b & c & d & e >= 0x80 && f < 0x80).then_some(timestamp)
}

#[inline]
pub(super) fn length_delimited<'a>(cursor: &mut Cursor<'a>, field: Field) -> Result<&'a [u8], WireError> {
    cursor.expect(field, WireType::Len)?;
    cursor.bytes()
}

/// Every field of a flat message has the wire type that `known` says.
#[inline]
pub(super) fn check(content: &[u8], at: usize, known: impl Fn(u32) -> Option<WireType>) -> Result<(), WireError> {
    let mut cursor = Cursor::within(content, at);
    while let Some(field) = cursor.field()? {
        if let Some(wire) = known(field.number) {
            cursor.expect(field, wire)?;
        }
        cursor.skip(field.wire)?;
    }
    Ok(())
}

/// `BucketSpan { offset = 1 sint32, length = 2 uint32 }`, the same in both definitions of a native histogram.
pub(super) fn check_bucket_span(content: &[u8], at: usize) -> Result<(), WireError> {
    check(content, at, |number| match number {
        1 | 2 => Some(WireType::Varint),
        _ => None,
    })
}

/// A packed field holds whole values of the type `wire`, and nothing else.
pub(super) fn check_packed(content: &[u8], at: usize, wire: WireType) -> Result<(), WireError> {
    let mut cursor = Cursor::within(content, at);
    while !cursor.is_empty() {
        cursor.skip(wire)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use infogw_proto::wire::put_varint;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_timestamp_of_six_bytes_is_what_any_varint_is(timestamp in any::<u64>(), shift in 0u32..64) {
            let timestamp = timestamp >> shift;
            let mut varint = Vec::new();
            put_varint(&mut varint, timestamp);
            let of_now = (varint.len() == 6).then_some(timestamp as i64);
            prop_assert_eq!(timestamp_of_now(&varint), of_now);
        }

        #[test]
        fn six_bytes_that_are_not_one_varint_are_no_timestamp(bytes in any::<[u8; 6]>()) {
            let mut cursor = Cursor::new(&bytes);
            let whole = cursor.varint().ok().filter(|_| cursor.is_empty());
            prop_assert_eq!(timestamp_of_now(&bytes), whole.map(|timestamp| timestamp as i64));
        }
    }

    #[test]
    fn now_is_a_timestamp_of_now() {
        let mut varint = Vec::new();
        put_varint(&mut varint, 1_800_000_000_000);
        assert_eq!(timestamp_of_now(&varint), Some(1_800_000_000_000));
    }
}
