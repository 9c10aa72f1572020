//! Payloads, decoded once into offsets.
//!
//! A payload is its decoded bytes and one small record a series. A layer that changes nothing leaves the bytes in place, so that
//! [`EncodeLayer`](crate::encode) can hand on what was received; a layer that edits labels writes the new label block into a side
//! buffer. Either way no label is ever a string of its own.
//!
//! After decoding, every series' label block is *canonical*: UTF-8, sorted by name, each name once, nothing empty, and each label
//! spelt the one way `0a len 0a len NAME 12 len VALUE`. What arrived otherwise was rewritten, so whoever looks at the labels sees
//! what the receiver will see.
//!
//! ```
//! # #[cfg(all(feature = "decode", feature = "encode"))] {
//! use infogw_layers::payload::{Keep, LabelSet, SeriesSet, WriteRequest};
//! use infogw_layers::decode::WriteRequestDecoder;
//!
//! // One series, up{job="a"}, without samples.
//! let message = b"\x0a\x1a\x0a\x0e\x0a\x08__name__\x12\x02up\x0a\x08\x0a\x03job\x12\x01a";
//! let mut request = WriteRequestDecoder::default().decode_message(message.to_vec()).unwrap();
//! let keep_up = |labels: &mut LabelSet<'_>| -> Result<Keep, ()> {
//!     labels.remove("job");
//!     Ok(if labels.value("__name__") == "up" { Keep::Yes } else { Keep::No })
//! };
//! request.try_edit(keep_up).unwrap();
//! assert_eq!(request.to_message(), b"\x0a\x10\x0a\x0e\x0a\x08__name__\x12\x02up");
//! # }
//! ```

mod buffer;
mod families;
mod labels;
mod refused;
mod write_request;

pub(crate) use buffer::Buffer;
pub use families::MetricFamilies;
#[cfg(any(feature = "decode", feature = "encode"))]
pub(crate) use families::Point;
#[cfg(any(feature = "decode", feature = "encode"))]
pub(crate) use labels::LabelBlock;
pub use labels::LabelSet;
#[cfg(feature = "decode")]
pub(crate) use labels::{LabelWriter, ShortLabel, put_block};
pub use refused::{Offence, Refused};
pub use write_request::WriteRequest;
#[cfg(any(feature = "decode", feature = "translate"))]
pub(crate) use write_request::{Series, flag};

/// A range of bytes. Payloads are bounded well below 4 GiB, so that a record stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    /// The bytes from `start` to `end`. Decoders refuse payloads over [`LARGEST_PAYLOAD`], so offsets fit.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Span { start: start as u32, end: end as u32 }
    }

    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    pub(crate) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// The largest decoded payload, in bytes. Offsets are 32 bits, and edits can add to what was decoded: the rest is room for those.
pub const LARGEST_PAYLOAD: usize = 1 << 30;

/// Telemetry has 200 to 400 bytes a series: few lists that are made for so many ever grow.
#[cfg(feature = "decode")]
pub(crate) const BYTES_PER_SERIES: usize = 192;

/// The most series of a payload: it counts in 32 bits.
pub const MOST_SERIES: usize = 1 << 22;

/// Whether a series stays in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It stays.
    Yes,
    /// It is dropped.
    No,
}

/// What an edit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Edited {
    /// Series that stayed, edited or not.
    pub kept: usize,
    /// Series that were dropped.
    pub dropped: usize,
}

/// What [`SeriesSet::try_edit`] does to a payload's records: shows each to `edit`, by its place, and keeps those that stay.
fn edit_each<T, E>(records: &mut Vec<T>, mut edit: impl FnMut(usize, &mut T) -> Result<Keep, E>) -> Result<Edited, E> {
    let (before, mut index, mut failed) = (records.len(), 0, None);
    records.retain_mut(|record| {
        // What was not looked at stays.
        if failed.is_some() {
            return true;
        }
        let outcome = edit(index, record);
        index += 1;
        match outcome {
            Ok(keep) => keep == Keep::Yes,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    let kept = records.len();
    failed.map_or(Ok(Edited { kept, dropped: before - kept }), Err)
}

/// A decoded payload whose series can be looked at, edited and dropped, in one pass and in place.
///
/// [`WriteRequest`] and [`MetricFamilies`] are; what is not decoded yet is not.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a decoded payload",
    label = "this body has not been decoded",
    note = "put `DecodeLayer` outside this layer: it turns a body into a payload"
)]
pub trait SeriesSet {
    /// Shows each series' labels to `edit` once, in the order they arrived.
    ///
    /// # Errors
    /// The first error of `edit`. Its series stays, with the labels as `edit` left them; series behind it were not looked at.
    fn try_edit<E>(&mut self, edit: impl FnMut(&mut LabelSet<'_>) -> Result<Keep, E>) -> Result<Edited, E>;

    /// Series in the payload.
    fn series(&self) -> usize;

    /// Samples in the payload, native histograms among them.
    fn samples(&self) -> u64;

    /// What was refused of this payload so far. Reported to the sender by the layer that encodes it.
    fn refused(&mut self) -> &mut Refused;
}
