use bytes::Bytes;
use infogw_layers::decode::{DecodeError, WriteRequestDecoder};

use super::limits;
use crate::oracle::{assert_one_line, block, judge, unblock};

/// Remote write. The first byte says whether what follows is a message or a body as it arrives, and which limits hold.
pub fn write_request(data: &[u8]) {
    let Some((mode, input)) = data.split_first() else { return };
    let limits = limits(mode & 2 != 0);
    let decoder = WriteRequestDecoder::new(limits.clone());
    if mode & 1 == 0 {
        judge(input, &limits, decoder.decode_message(input.to_vec()));
        let decoded = decoder.decode_block(block(input));
        if input.len() > limits.decoded {
            assert!(matches!(decoded, Err(DecodeError::TooLarge { .. })));
        } else {
            judge(input, &limits, decoded);
        }
        return;
    }
    let decoded = decoder.decode_block(Bytes::copy_from_slice(input));
    match unblock(input) {
        Some(message) if message.len() <= limits.decoded => judge(&message, &limits, decoded),
        _ => assert_one_line(decoded.expect_err("no block, or too large")),
    }
}
