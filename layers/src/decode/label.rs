//! Labels as they are on the wire.

use infogw_proto::wire::{Cursor, WireError, varint_len};

use super::{DecodeLimits, fields::length_delimited};
use crate::payload::{LabelBlock, ShortLabel};

/// A label's strings (`Label` of remote write and `LabelPair` of metric families are the same on the wire); the last of a repeated
/// field counts, as for any protobuf decoder.
pub(super) struct Label<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// Spelt the one way that is canonical.
    pub(super) canonical: bool,
}

#[inline]
pub(super) fn label(content: &[u8], at: usize) -> Result<Label<'_>, WireError> {
    match short_label(content) {
        Some(label) => Ok(label),
        None => any_label(content, at),
    }
}

/// A canonical label whose name and value are shorter than 128 bytes each.
#[inline]
fn short_label(content: &[u8]) -> Option<Label<'_>> {
    let (&[0x0a, name_len], rest) = content.split_first_chunk()? else { return None };
    let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
    let (&[0x12, value_len], value) = rest.split_first_chunk()? else { return None };
    let canonical = name_len < 0x80 && value_len < 0x80 && value.len() == usize::from(value_len);
    canonical.then_some(Label { name, value, canonical })
}

fn any_label(content: &[u8], at: usize) -> Result<Label<'_>, WireError> {
    let mut cursor = Cursor::within(content, at);
    let mut label = Label { name: &[], value: &[], canonical: true };
    let mut next = 1;
    let mut minimal = 0;
    while let Some(field) = cursor.field()? {
        label.canonical &= field.number == next;
        next += 1;
        match field.number {
            1 => label.name = length_delimited(&mut cursor, field)?,
            2 => label.value = length_delimited(&mut cursor, field)?,
            _ => cursor.skip(field.wire)?,
        }
    }
    for string in [label.name, label.value] {
        minimal += 1 + varint_len(string.len() as u64) + string.len();
    }
    label.canonical &= next == 3 && content.len() == minimal;
    Ok(label)
}

/// The labels that a series begins with, as far as they are what stock senders write: canonical, ascending, within the limits, and
/// each of less than 128 bytes. What follows is read field by field.
#[derive(Debug, Clone, Copy)]
pub(super) struct LabelRun<'s> {
    /// A canonical block, but for UTF-8.
    pub(super) block: LabelBlock<'s>,
    /// Labels.
    pub(super) count: usize,
    pub(super) last_name: &'s [u8],
}

impl<'s> LabelRun<'s> {
    // Its loop needs every register there is.
    #[inline(never)]
    pub(super) fn read(series: &'s [u8], limits: &DecodeLimits) -> Self {
        let (mut count, mut rest) = (0, series);
        let (mut last_first, mut last_name): (u64, &[u8]) = (0, &[]);
        while let Some(short) = ShortLabel::at_start_of(rest)
            && let Some((value, behind)) = short.value(rest)
            && !value.is_empty()
        {
            let name = short.name(rest);
            // Few names are compared to their end. The first one is compared with nothing, as it must not be empty.
            if short.first <= last_first && (short.first < last_first || name <= last_name)
                || limits.check_label(name, value).is_err()
            {
                break;
            }
            (last_first, last_name) = (short.first, name);
            (count, rest) = (count + 1, behind);
        }
        let block = series.get(..series.len() - rest.len()).unwrap_or_default();
        LabelRun { block: LabelBlock(block), count, last_name }
    }
}

/// Whether every label of a canonical block is UTF-8. One test for the whole block in the case that is all but always true.
#[inline]
pub(super) fn is_text(block: LabelBlock<'_>) -> bool {
    is_ascii(block.0)
        || block.iter().all(|label| std::str::from_utf8(label.name).is_ok() && std::str::from_utf8(label.value).is_ok())
}

/// As the standard library's, which looks every few bytes whether it can stop: of blocks, all but all are looked at to their end.
#[inline]
fn is_ascii(block: &[u8]) -> bool {
    // The last ones overlap those before.
    let (chunks, Some(last)) = (block.as_chunks::<32>().0, block.last_chunk::<32>()) else { return block.is_ascii() };
    let mut seen = [0; 32];
    for chunk in chunks {
        seen.iter_mut().zip(chunk).for_each(|(seen, byte)| *seen |= byte);
    }
    seen.iter().chain(last).fold(0, |seen, byte| seen | byte) < 0x80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ascii_is_what_the_standard_library_says(
            mut bytes in prop::collection::vec(0u8..0x80, 0..100),
            high in prop::option::of((any::<prop::sample::Index>(), 0x80u8..)),
        ) {
            if let Some((at, high)) = high && !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = high;
            }
            prop_assert_eq!(is_ascii(&bytes), bytes.is_ascii());
        }
    }
}
