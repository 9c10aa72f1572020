//! Payloads, from outside: what goes on is what the policy saw, bit for bit, whatever arrived.
#![cfg(all(
    feature = "authorize",
    feature = "decode",
    feature = "encode",
    feature = "enforce",
    feature = "test-util",
    feature = "translate"
))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "payload/bytes.rs"]
mod bytes;
#[path = "payload/delimited.rs"]
mod delimited;
#[path = "payload/edits.rs"]
mod edits;
#[path = "payload/expansion.rs"]
mod expansion;
#[path = "payload/exposition.rs"]
mod exposition;
// What is fuzzed is held against it, too, and more of what it reads: tests/fuzz.
#[allow(dead_code, unreachable_pub)]
#[path = "payload/go.rs"]
mod go;
#[path = "payload/hostile.rs"]
mod hostile;
#[path = "payload/limits.rs"]
mod limits;
#[path = "payload/native.rs"]
mod native;
#[path = "payload/oracle.rs"]
mod oracle;
#[path = "payload/policy.rs"]
mod policy;
#[path = "payload/scrape.rs"]
mod scrape;
#[path = "payload/wire_types.rs"]
mod wire_types;

use ::bytes::Bytes;
use infogw_layers::{
    decode::{DecodeError, Decoder, MetricFamiliesDecoder, WriteRequestDecoder},
    payload::{Keep, LabelSet, MetricFamilies, SeriesSet, WriteRequest},
    rejection::Rejection,
};

/// A series' labels in the order given.
type Labels = Vec<(String, String)>;

/// Decodes a message as remote write sends it.
fn write_request(message: &[u8]) -> Result<WriteRequest, DecodeError> {
    WriteRequestDecoder::default().decode_block(block(message))
}

fn block(message: &[u8]) -> Bytes {
    snap::raw::Encoder::new().compress_vec(message).unwrap().into()
}

fn unblock(block: &[u8]) -> Vec<u8> {
    snap::raw::Decoder::new().decompress_vec(block).unwrap()
}

fn framed(message: &[u8]) -> Bytes {
    let mut frames = snap::write::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut frames, message).unwrap();
    frames.into_inner().unwrap().into()
}

fn unframed(stream: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    std::io::Read::read_to_end(&mut snap::read::FrameDecoder::new(stream), &mut message).unwrap();
    message
}

const DELIMITED: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const TEXT: &str = "text/plain; version=0.0.4";

/// Decodes a body of families as its head says.
fn families<C>(
    decoder: &MetricFamiliesDecoder<C>,
    content_type: &str,
    encoding: &str,
    body: Bytes,
) -> Result<MetricFamilies, DecodeError>
where
    MetricFamiliesDecoder<C>: Decoder<Payload = MetricFamilies>,
{
    let head = http::Request::post("/").header("content-type", content_type).header("content-encoding", encoding);
    let (head, ()) = head.body(()).unwrap().into_parts();
    decoder.decode(decoder.negotiate(&head)?, body)
}

/// What a policy sees: each series' labels, in order.
fn shown(payload: &mut impl SeriesSet) -> Vec<Labels> {
    let mut seen = Vec::new();
    let look = |labels: &mut LabelSet<'_>| -> Result<Keep, std::convert::Infallible> {
        assert_eq!(labels.index(), seen.len());
        seen.push(labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        Ok(Keep::Yes)
    };
    payload.try_edit(look).unwrap();
    seen
}

/// The one line that the sender gets.
fn line(error: DecodeError) -> String {
    let rejection = Rejection::from(error);
    let line = rejection.detail().to_owned();
    assert!(!line.contains(char::is_control) && line.len() < 1024, "{line:?}");
    line
}
