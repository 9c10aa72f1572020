//! Snappy, with bounds that hold before memory is spent.

use super::DecodeError;
use crate::payload::Buffer;

/// The most that one byte of a snappy block can become: a copy of three bytes stands for at most 64.
const MOST_EXPANSION: usize = 22;
/// The most that a chunk of a framed stream may hold, in bytes, decompressed (framing_format.txt, section 3).
const LARGEST_CHUNK: usize = 1 << 16;
const STREAM_IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// Decompresses a block (the "raw" format of remote write). The length it declares is refused before anything is allocated when
/// it is over `limit`, or more than what was received can become (GHSA-66jq-2c23-2xh5 is about decoders that believe it).
pub(super) fn block(body: &[u8], limit: usize) -> Result<Buffer, DecodeError> {
    let malformed =
        || DecodeError::Malformed("the body is not a snappy block; compress it as remote write asks for".to_owned());
    let declared = snap::raw::decompress_len(body).map_err(|_| malformed())?;
    if declared > body.len().saturating_mul(MOST_EXPANSION) {
        return Err(DecodeError::Malformed(format!(
            "the body of {} bytes claims to be {declared} bytes, which snappy cannot do; send it whole",
            body.len()
        )));
    }
    if declared > limit {
        return Err(DecodeError::TooLarge { what: "decoded body", size: Some(declared as u64), limit });
    }
    let mut decoded = Buffer::of_len(declared);
    decompress(body, &mut decoded).ok_or_else(malformed)?;
    Ok(decoded)
}

/// Decompresses a stream of frames, up to `limit` bytes: what they declare is summed up before anything is allocated.
pub(super) fn framed(stream: &[u8], limit: usize) -> Result<Buffer, DecodeError> {
    let malformed =
        || DecodeError::Malformed("the body is not snappy in its framed format; send it whole and framed".to_owned());
    if !(stream.is_empty() || stream.starts_with(STREAM_IDENTIFIER)) {
        return Err(malformed());
    }
    let (mut rest, mut len) = (stream, 0);
    while let Some(chunk) = Chunk::next(&mut rest) {
        len += chunk.and_then(Chunk::decoded_len).ok_or_else(malformed)?;
        if len > limit {
            return Err(DecodeError::TooLarge { what: "decoded body", size: None, limit });
        }
    }
    let mut decoded = Buffer::of_len(len);
    let (mut rest, mut room) = (stream, &mut *decoded);
    while let Some(chunk) = Chunk::next(&mut rest) {
        let chunk = chunk.ok_or_else(malformed)?;
        let len = chunk.decoded_len().ok_or_else(malformed)?;
        let (out, behind) = std::mem::take(&mut room).split_at_mut_checked(len).ok_or_else(malformed)?;
        chunk.decode(out).ok_or_else(malformed)?;
        room = behind;
    }
    Ok(decoded)
}

/// A chunk of a framed stream (framing_format.txt, section 4).
#[derive(Clone, Copy)]
enum Chunk<'s> {
    Compressed {
        checksum: u32,
        block: &'s [u8],
    },
    Plain {
        checksum: u32,
        bytes: &'s [u8],
    },
    /// An identifier, padding, or what may be skipped.
    Skipped,
}

impl<'s> Chunk<'s> {
    /// The next one, which `stream` is then behind. Nothing at the end; and no chunk where what follows is none.
    fn next(stream: &mut &'s [u8]) -> Option<Option<Self>> {
        if stream.is_empty() { None } else { Some(Self::read(stream)) }
    }

    fn read(stream: &mut &'s [u8]) -> Option<Self> {
        let (&[kind, a, b, c], behind) = stream.split_first_chunk()?;
        let (content, behind) = behind.split_at_checked(u32::from_le_bytes([a, b, c, 0]) as usize)?;
        let whole = stream.get(..4 + content.len())?;
        *stream = behind;
        let checked = || content.split_first_chunk().map(|(checksum, data)| (u32::from_le_bytes(*checksum), data));
        match kind {
            0x00 => checked().map(|(checksum, block)| Chunk::Compressed { checksum, block }),
            0x01 => checked().map(|(checksum, bytes)| Chunk::Plain { checksum, bytes }),
            0x02..=0x7f => None,
            0x80..=0xfe => Some(Chunk::Skipped),
            0xff => (whole == STREAM_IDENTIFIER).then_some(Chunk::Skipped),
        }
    }

    fn decoded_len(self) -> Option<usize> {
        let len = match self {
            Chunk::Compressed { block, .. } => snap::raw::decompress_len(block).ok()?,
            Chunk::Plain { bytes, .. } => bytes.len(),
            Chunk::Skipped => 0,
        };
        (len <= LARGEST_CHUNK).then_some(len)
    }

    /// Into as many bytes as it becomes.
    fn decode(self, out: &mut [u8]) -> Option<()> {
        let checksum = match self {
            Chunk::Compressed { checksum, block } => {
                decompress(block, out)?;
                checksum
            }
            Chunk::Plain { checksum, bytes } => {
                out.copy_from_slice(bytes);
                checksum
            }
            Chunk::Skipped => return Some(()),
        };
        // "Masked", section 3.
        (crc32c::crc32c(out).rotate_right(15).wrapping_add(0xa282_ead8) == checksum).then_some(())
    }
}

/// Decompresses a block into as many bytes as it declares.
#[allow(clippy::disallowed_methods, reason = "the lengths that were declared are what callers check")]
fn decompress(block: &[u8], out: &mut [u8]) -> Option<()> {
    let written = snap::raw::Decoder::new().decompress(block, out).ok()?;
    // What an earlier request left in the buffer is nobody's.
    (written == out.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use proptest::prelude::*;

    fn frames(data: &[u8]) -> Vec<u8> {
        let mut frames = snap::write::FrameEncoder::new(Vec::new());
        frames.write_all(data).unwrap();
        frames.into_inner().unwrap()
    }

    proptest! {
        /// As the reference reader takes it or does not, whatever was done to a stream.
        #[test]
        fn frames_are_what_they_are_to_others(
            data in prop::collection::vec((any::<u8>(), 1usize..3000), 0..100),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            inserted in prop::option::of((prop::sample::select(vec![0x00u8, 0x01, 0x02, 0x7f, 0x80, 0xfd, 0xfe, 0xff]), 0usize..8)),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let data: Vec<u8> = data.iter().flat_map(|&(byte, len)| std::iter::repeat_n(byte, len)).collect();
            let mut stream = frames(&data);
            if let Some((kind, len)) = inserted && stream.len() > 10 {
                stream.splice(10..10, [kind, len as u8, 0, 0].into_iter().chain(std::iter::repeat_n(7, len)));
            }
            for (at, byte) in edits {
                if !stream.is_empty() {
                    let at = at.index(stream.len());
                    stream[at] = byte;
                }
            }
            if let Some(cut) = cut && !stream.is_empty() {
                stream.truncate(cut.index(stream.len()));
            }
            let mut expected = Vec::new();
            let read = snap::read::FrameDecoder::new(&*stream).read_to_end(&mut expected);
            let found = framed(&stream, 1 << 20);
            prop_assert_eq!(found.as_deref().ok(), read.ok().map(|_| &*expected));
        }
    }

    #[test]
    fn a_block_is_not_believed() {
        // 100 kB whose header claims 4 GB, then 2 MB: more than they can become, then more than the limit.
        for (claim, limit) in [(u32::MAX, usize::MAX), (2_000_000, 1_000_000)] {
            let mut body = Vec::new();
            infogw_proto::wire::put_varint(&mut body, u64::from(claim));
            body.resize(100_000, 0);
            let error = block(&body, limit).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed(_)) == (claim == u32::MAX), "{error}");
        }
    }

    #[test]
    fn the_best_that_snappy_can_do_is_within_the_bound() {
        for len in [0, 1, 100, 10_000, 3_000_000] {
            let zeros = vec![0u8; len];
            let body = snap::raw::Encoder::new().compress_vec(&zeros).unwrap();
            assert_eq!(*block(&body, len).unwrap(), *zeros);
        }
    }

    #[test]
    fn a_stream_of_frames_is_capped() {
        let mut body = frames(&[7; 300_000]);
        assert_eq!(framed(&body, 300_000).unwrap().len(), 300_000);
        assert!(matches!(framed(&body, 299_999), Err(DecodeError::TooLarge { .. })));
        body.truncate(body.len() - 1);
        assert!(matches!(framed(&body, 300_000), Err(DecodeError::Malformed(_))));
    }
}
