//! Snappy, with bounds that hold before memory is spent.

use std::io::Read;

use super::DecodeError;

/// The most that one byte of a snappy block can become: a copy of three bytes stands for at most 64.
const MOST_EXPANSION: usize = 22;

/// Decompresses a block (the "raw" format of remote write). The length it declares is refused before anything is allocated when
/// it is over `limit`, or more than what was received can become (GHSA-66jq-2c23-2xh5 is about decoders that believe it).
pub(super) fn block(body: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    let malformed =
        |_| DecodeError::Malformed("the body is not a snappy block; compress it as remote write asks for".to_owned());
    let declared = snap::raw::decompress_len(body).map_err(malformed)?;
    if declared > body.len().saturating_mul(MOST_EXPANSION) {
        return Err(DecodeError::Malformed(format!(
            "the body of {} bytes claims to be {declared} bytes, which snappy cannot do; send it whole",
            body.len()
        )));
    }
    if declared > limit {
        return Err(DecodeError::TooLarge { what: "decoded body", size: Some(declared as u64), limit });
    }
    snap::raw::Decoder::new().decompress_vec(body).map_err(malformed)
}

/// Decompresses a stream of frames, up to `limit` bytes.
pub(super) fn framed(body: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoded = Vec::with_capacity(body.len().saturating_mul(2).min(limit));
    let mut frames = snap::read::FrameDecoder::new(body).take((limit as u64).saturating_add(1));
    frames.read_to_end(&mut decoded).map_err(|_| {
        DecodeError::Malformed("the body is not snappy in its framed format; send it whole and framed".to_owned())
    })?;
    if decoded.len() > limit {
        return Err(DecodeError::TooLarge { what: "decoded body", size: None, limit });
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(block(&body, len).unwrap(), zeros);
        }
    }

    #[test]
    fn a_stream_of_frames_is_capped() {
        let mut body = Vec::new();
        let mut frames = snap::write::FrameEncoder::new(&mut body);
        std::io::Write::write_all(&mut frames, &vec![7u8; 300_000]).unwrap();
        drop(frames);
        assert_eq!(framed(&body, 300_000).unwrap().len(), 300_000);
        assert!(matches!(framed(&body, 299_999), Err(DecodeError::TooLarge { .. })));
        body.truncate(body.len() - 1);
        assert!(matches!(framed(&body, 300_000), Err(DecodeError::Malformed(_))));
    }
}
