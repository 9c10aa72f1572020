//! A strict cursor over the protobuf wire format.
//!
//! It borrows, never allocates and never panics. It is stricter than the format asks, because what we hand on untouched must
//! mean to the receiver what we saw: Go's generated decoders take the field number from the low 32 bits of a tag, so a tag that
//! overflows is "unknown" to a lax reader and field 1 to them. Tags over 32 bits, field number 0, groups and the unassigned wire
//! types are refused; a tag spelt with more bytes than it needs is reported, so that the caller can rewrite it.
//!
//! ```
//! use infogw_proto::wire::{Cursor, WireType};
//!
//! // Field 1: the two bytes "up". Field 2: the varint 300.
//! let mut cursor = Cursor::new(b"\x0a\x02up\x10\xac\x02");
//! let field = cursor.field()?.unwrap();
//! assert_eq!((field.number, field.wire), (1, WireType::Len));
//! assert_eq!(cursor.bytes()?, b"up");
//! assert_eq!(cursor.field()?.unwrap().number, 2);
//! assert_eq!(cursor.varint()?, 300);
//! assert!(cursor.field()?.is_none());
//! # Ok::<(), infogw_proto::wire::WireError>(())
//! ```

use std::fmt;

/// How a field's value is laid out (protobuf encoding guide, "Message Structure"). Groups are not among them: they are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireType {
    /// int32, int64, uint32, uint64, sint32, sint64, bool, enum.
    Varint,
    /// fixed64, sfixed64, double.
    Fixed64,
    /// string, bytes, messages, packed repeated fields.
    Len,
    /// fixed32, sfixed32, float.
    Fixed32,
}

/// One field's tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The field number, 1 to 2^29 - 1.
    pub number: u32,
    /// The layout of the value that follows.
    pub wire: WireType,
    /// The tag was spelt with more bytes than it needs.
    pub overlong: bool,
}

/// Why bytes are not the message they claim to be, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireError {
    /// What is wrong.
    pub fault: Fault,
    /// Offset in the buffer that the cursor was made on, in bytes.
    pub offset: usize,
}

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The message ends inside a value.
    Truncated,
    /// A varint does not fit 64 bits.
    VarintOverflow,
    /// A tag does not fit 32 bits, or its field number is 0.
    BadTag,
    /// Groups (wire types 3 and 4) are not supported, 6 and 7 do not exist.
    BadWireType,
    /// A field that is known has another wire type than its definition.
    WrongWireType {
        /// The field's number.
        field: u32,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.offset;
        match self.fault {
            Fault::Truncated => write!(f, "the message is cut off at byte {at}"),
            Fault::VarintOverflow => write!(f, "the varint at byte {at} does not fit 64 bits"),
            Fault::BadTag => write!(f, "the tag at byte {at} has no valid field number"),
            Fault::BadWireType => write!(f, "the tag at byte {at} has a wire type that is not supported"),
            Fault::WrongWireType { field } => write!(f, "field {field} at byte {at} has the wrong wire type"),
        }
    }
}

impl std::error::Error for WireError {}

/// A position in a message. See the [module](self) for what it refuses.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the beginning of `message`.
    pub fn new(message: &'a [u8]) -> Self {
        Self::within(message, 0)
    }

    /// Starts at the beginning of a message that lies `base` bytes into a larger buffer; offsets count from that buffer's start.
    pub fn within(message: &'a [u8], base: usize) -> Self {
        Cursor { bytes: message, at: 0, base }
    }

    /// Offset of the next byte, counted from the start of the larger buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.base + self.at
    }

    /// Whether the message is at its end.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next field's tag, or `None` at the end of the message.
    ///
    /// # Errors
    /// [`Fault::Truncated`], [`Fault::BadTag`] or [`Fault::BadWireType`].
    #[inline]
    pub fn field(&mut self) -> Result<Option<Field>, WireError> {
        let start = self.at;
        let (tag, overlong) = match self.bytes.get(start) {
            None => return Ok(None),
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                (u32::from(byte), false)
            }
            Some(_) => self.long_tag()?,
        };
        let number = tag >> 3;
        if number == 0 {
            return Err(self.fault_at(Fault::BadTag, start));
        }
        let wire = match tag & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Len,
            5 => WireType::Fixed32,
            _ => return Err(self.fault_at(Fault::BadWireType, start)),
        };
        Ok(Some(Field { number, wire, overlong }))
    }

    #[cold]
    fn long_tag(&mut self) -> Result<(u32, bool), WireError> {
        let start = self.at;
        let tag = self.varint()?;
        let overlong = self.at - start > 1 && self.bytes.get(self.at - 1) == Some(&0);
        u32::try_from(tag).map(|tag| (tag, overlong)).map_err(|_| self.fault_at(Fault::BadTag, start))
    }

    /// A varint's value.
    ///
    /// # Errors
    /// [`Fault::Truncated`] or [`Fault::VarintOverflow`].
    #[inline]
    pub fn varint(&mut self) -> Result<u64, WireError> {
        match *self.bytes.get(self.at..).unwrap_or_default() {
            [byte, ..] if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            [low, high, ..] if high < 0x80 => {
                self.at += 2;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        let mut value = 0u64;
        for (i, &byte) in self.bytes.get(start..).unwrap_or_default().iter().take(10).enumerate() {
            // The tenth byte holds bit 63 alone; Go cuts the rest off, we refuse it.
            if i == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.at = start + i + 1;
                return Ok(value);
            }
        }
        let fault = if self.bytes.len() - start < 10 { Fault::Truncated } else { Fault::VarintOverflow };
        Err(self.fault_at(fault, start))
    }

    /// The bytes of a length-delimited value.
    ///
    /// # Errors
    /// [`Fault::Truncated`] or [`Fault::VarintOverflow`].
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let start = self.at;
        let len = self.varint()?;
        usize::try_from(len).ok().and_then(|len| self.take(len)).ok_or_else(|| self.fault_at(Fault::Truncated, start))
    }

    /// The eight bytes of a fixed64 or double, as they stand: a NaN's payload survives.
    ///
    /// # Errors
    /// [`Fault::Truncated`].
    #[inline]
    pub fn fixed64(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        self.take(8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_le_bytes)
            .ok_or_else(|| self.fault_at(Fault::Truncated, start))
    }

    /// Steps over a value.
    ///
    /// # Errors
    /// [`Fault::Truncated`] or [`Fault::VarintOverflow`].
    pub fn skip(&mut self, wire: WireType) -> Result<(), WireError> {
        let start = self.at;
        match wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Len => self.bytes().map(drop),
            WireType::Fixed64 => self.fixed64().map(drop),
            WireType::Fixed32 => self.take(4).map(drop).ok_or_else(|| self.fault_at(Fault::Truncated, start)),
        }
    }

    /// Steps over the length-delimited fields that stand here and begin with `tag`, one byte, as long as their lengths take at most two
    /// bytes and they are whole. Says how many.
    pub fn skip_repeated(&mut self, tag: u8) -> usize {
        let (mut rest, mut count) = (self.bytes.get(self.at..).unwrap_or_default(), 0);
        while let &[found, low, ref behind @ ..] = rest
            && found == tag
        {
            let content = match *behind {
                _ if low < 0x80 => behind.get(usize::from(low)..),
                [high @ ..0x80, ref behind @ ..] => behind.get(usize::from(low & 0x7f) | usize::from(high) << 7..),
                _ => None,
            };
            let Some(behind) = content else { break };
            (rest, count) = (behind, count + 1);
        }
        self.at = self.bytes.len() - rest.len();
        count
    }

    /// Nothing, if `field` has the wire type of its definition.
    ///
    /// # Errors
    /// [`Fault::WrongWireType`] otherwise. Go's decoders refuse these too; prost skips some.
    #[inline]
    pub fn expect(&self, field: Field, wire: WireType) -> Result<(), WireError> {
        if field.wire == wire {
            Ok(())
        } else {
            Err(self.fault_at(Fault::WrongWireType { field: field.number }, self.at))
        }
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn fault_at(&self, fault: Fault, at: usize) -> WireError {
        WireError { fault, offset: self.base + at }
    }
}

/// Bytes that `value` takes as a varint.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    // 7 bits a byte; `| 1` because zero takes one byte too.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Appends `value` as a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(message: &[u8]) -> Fault {
        let mut cursor = Cursor::new(message);
        loop {
            match cursor.field().and_then(|field| field.map(|field| cursor.skip(field.wire)).transpose()) {
                Ok(None) => panic!("{message:02x?} is accepted"),
                Ok(Some(())) => {}
                Err(error) => return error.fault,
            }
        }
    }

    #[test]
    fn refuses_what_other_decoders_read_differently() {
        // 2^32 + 10: field 1 to a decoder that looks at the low 32 bits only.
        assert_eq!(fault(b"\x8a\x80\x80\x80\x10\x00"), Fault::BadTag);
        assert_eq!(fault(b"\x02\x00"), Fault::BadTag);
        assert_eq!(fault(b"\x0b\x0c"), Fault::BadWireType);
        assert_eq!(fault(b"\x0e"), Fault::BadWireType);
        assert_eq!(fault(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), Fault::VarintOverflow);
        assert_eq!(fault(b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"), Fault::VarintOverflow);
    }

    #[test]
    fn refuses_what_is_cut_off() {
        for message in [&b"\x0a"[..], b"\x0a\x05abcd", b"\x8a", b"\x08\x80", b"\x09\0\0\0\0\0\0\0", b"\x0d\0\0\0"] {
            assert_eq!(fault(message), Fault::Truncated, "{message:02x?}");
        }
        // A length near 2^64 must neither overflow nor be believed.
        assert_eq!(fault(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), Fault::Truncated);
    }

    #[test]
    fn reports_overlong_tags() {
        let mut cursor = Cursor::new(b"\x8a\x00\x00");
        assert_eq!(cursor.field(), Ok(Some(Field { number: 1, wire: WireType::Len, overlong: true })));
    }

    #[test]
    fn repeated_fields_are_stepped_over_as_one_by_one() {
        let field = |len: usize| {
            let mut field = vec![0x22];
            put_varint(&mut field, len as u64);
            field.resize(field.len() + len, 0x22);
            field
        };
        for (lens, others, whole) in [
            (&[][..], &b""[..], 0),
            (&[0, 1, 127, 128, 300, 16_383], b"", 6),
            (&[3, 16_384, 3], b"", 1),
            (&[3, 3], b"\x0a\x01x", 2),
            (&[3], b"\x22", 1),
            (&[3], b"\x22\x81", 1),
            (&[3], b"\x22\x05abcd", 1),
            (&[3], b"\x22\x81\x80\x00x", 1),
        ] {
            let repeated: Vec<u8> = lens.iter().flat_map(|&len| field(len)).collect();
            let message = [&repeated[..], others].concat();
            let (mut cursor, mut slow) = (Cursor::new(&message), Cursor::new(&message));
            assert_eq!(cursor.skip_repeated(0x22), whole, "{lens:?} {others:?}");
            for _ in 0..whole {
                assert_eq!(slow.field().unwrap().unwrap().number, 4);
                slow.bytes().unwrap();
            }
            assert_eq!(cursor.offset(), slow.offset(), "{lens:?} {others:?}");
        }
    }

    #[test]
    fn varints_take_the_length_that_is_foretold() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                assert_eq!(Cursor::new(&out).varint(), Ok(value));
            }
        }
    }
}
