//! Snappy that lies, as a block and in frames; and bombs.

use infogw_proto::client::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prost::Message;

use crate::{
    row::{Row, Rows},
    support::{
        payload::{snappy_block, snappy_framed},
        world::now,
    },
    wire::{good, label, one, own, series, varint},
};

const IDENTIFIER: &[u8] = b"\xff\x06\x00\x00sNaPpY";

pub(crate) fn rows() -> Vec<Row> {
    [blocks(), block_bombs(), frames(), frame_bombs()].into_iter().flatten().collect()
}

fn blocks() -> Vec<Row> {
    let mut rows = Rows::of("block");
    let message = good();
    let body = snappy_block(&message);
    let claiming = |length: u64| [&varint(length), &body[varint(message.len() as u64).len()..]].concat();
    let what = "not a snappy block";
    rows.block("nothing at all", vec![], 400, what);
    rows.block("only a length", varint(100), 400, "");
    rows.block("a length that does not end", vec![0xff; 12], 400, what);
    rows.block("more than it holds by one", claiming(message.len() as u64 + 1), 400, what);
    rows.block("less than it holds by one", claiming(message.len() as u64 - 1), 400, what);
    rows.block("a length of 0", claiming(0), 400, what);
    rows.block("a length of 4 GiB", claiming(u64::from(u32::MAX)), 400, "claims to be 4294967295 bytes");
    rows.block("a length over 32 bits", claiming(1 << 32), 400, what);
    rows.block("a length of 2^63", claiming(1 << 63), 400, what);
    rows.block("a literal behind the end", vec![10, 0xf0, 0xff, b'a'], 400, what);
    rows.block("a literal of 4 GiB", vec![10, 0xfc, 0xff, 0xff, 0xff, 0xff, b'a'], 400, what);
    rows.block("a copy from before the beginning", vec![4, 0x05, 0xff], 400, what);
    rows.block("a copy from nowhere", vec![5, 0x00, b'a', 0x01, 0x00], 400, what);
    rows.block("bytes behind the end", [&body[..], b"\x00a"].concat(), 400, what);
    rows.block("a second block behind it", [&body[..], &body].concat(), 400, what);
    rows.block("not compressed", message.clone(), 400, "");
    rows.block("in frames", snappy_framed(&message), 400, "");
    rows.block("a block in a block", snappy_block(&body), 400, "protobuf");
    rows.block("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0".to_vec(), 400, "");
    rows.all()
}

/// As large as can be sent by default, and as much as it can become.
fn block_bombs() -> Vec<Row> {
    let mut rows = Rows::of("block bomb");
    rows.message("zeros", vec![0; 2_600_000], 400, "protobuf");
    rows.message("empty series", b"\x0a\x00".repeat(1_300_000), 413, "1300000 series, at most 20000");
    rows.message("empty labels", series(&[&own(), &b"\x0a\x00".repeat(1_200_000)]), 400, "it has 1200002 labels");
    let repeated = series(&[&label("_id", "c1").repeat(200_000)]);
    rows.message("the cluster label, again and again", repeated, 400, "it has 200000 labels");
    // One series of many samples is what it says: nothing is left of it for others to pay.
    let samples = series(&[&own(), &one().repeat(20_000)]);
    rows.message("samples of the same time", samples, 200, "").reaches_as_sent();
    let unknown = [series(&[&own(), &one()]), b"\x7a\x00".repeat(300_000)].concat();
    rows.message("fields that nobody knows", unknown, 200, "").reaches_as_sent();
    // Each label must be written anew: what that takes must not grow with their number squared.
    let backwards: Vec<u8> = (0..128).rev().flat_map(|n| label(format!("l{n:0>200}"), "v".repeat(100))).collect();
    let wide = series(&[&backwards]).repeat(60);
    rows.message("wide series whose labels stand backwards", wide, 400, "label `_id` is missing");
    rows.block("more than is taken on the wire", vec![0; 131_073], 413, "at most 131072 are taken");
    rows.all()
}

fn chunk(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    [&[kind], &length.to_le_bytes()[..3], content].concat()
}

fn frames() -> Vec<Row> {
    let mut rows = Rows::of("frames");
    let text = format!("up{{_id=\"c1\"}} 1 {}\n", now());
    let body = snappy_framed(text.as_bytes());
    let data = &body[IDENTIFIER.len()..];
    let what = "not snappy in its framed format";
    let up = ["up{_id=\"c1\"} 1@now"];
    rows.frames("nothing at all", vec![], 200, "");
    rows.frames("nothing but the identifier", IDENTIFIER.to_vec(), 200, "");
    rows.frames("without the identifier", data.to_vec(), 400, what);
    rows.frames("the identifier of something else", [b"\xff\x06\x00\x00sNaPpX", data].concat(), 400, what);
    rows.frames("an identifier in between", [&body, IDENTIFIER].concat(), 200, "").reaches(up);
    rows.frames(
        "padding, and a chunk to be skipped",
        [IDENTIFIER, &chunk(0xfe, b"ab"), &chunk(0x80, b"cd"), data].concat(),
        200,
        "",
    )
    .reaches(up);
    rows.frames("a chunk that must not be skipped", [IDENTIFIER, &chunk(0x02, b"ab"), data].concat(), 400, what);
    rows.frames("a chunk of 16 MiB that is not there", [IDENTIFIER, b"\xfe\xff\xff\xff"].concat(), 400, what);
    rows.frames("data of 16 MiB that is not there", [IDENTIFIER, b"\x00\xff\xff\xffabcd"].concat(), 400, what);
    rows.frames("a chunk without a checksum", [IDENTIFIER, &chunk(0x01, b"abc")].concat(), 400, what);
    let mut wrong = body.clone();
    wrong[IDENTIFIER.len() + 4] ^= 1;
    rows.frames("a checksum of something else", wrong, 400, what);
    let claiming = |length: u64| [IDENTIFIER, &chunk(0x00, &[b"abcd", &varint(length)[..]].concat())].concat();
    rows.frames("a chunk that claims 64 KiB and a byte", claiming(65_537), 400, what);
    rows.frames("a chunk that claims 4 GiB", claiming(u64::from(u32::MAX)), 400, what);
    rows.frames("a block", snappy_block(text.as_bytes()), 400, what);
    rows.frames("frames in frames", snappy_framed(&body), 400, "line 1");
    rows.frames("not compressed", text.into_bytes(), 400, what);
    rows.all()
}

fn frame_bombs() -> Vec<Row> {
    let mut rows = Rows::of("frame bomb");
    let what = "the decoded body is more than 512000 bytes";
    rows.frames("newlines", snappy_framed(&vec![b'\n'; 9 << 20]), 413, what);
    // Each says that it becomes 64 KiB, and holds nothing.
    let empty = chunk(0x00, &[b"abcd", &varint(65_536)[..]].concat());
    rows.frames("chunks that only claim", [IDENTIFIER, &empty.repeat(40_000)].concat(), 413, what);
    rows.frames("identifiers", IDENTIFIER.repeat(50_000), 200, "");
    let names: String = (0..21_000).map(|n| format!("a{n} 1 {}\n", now())).collect();
    rows.frames("series", snappy_framed(names.as_bytes()), 413, "21000 series, at most 20000 are taken");
    let labels: String = (0..40_000).map(|n| format!("a{n}=\"\",")).collect();
    let labels = format!("up{{{labels}}} 1 {}\n", now());
    rows.frames("labels of one series", snappy_framed(labels.as_bytes()), 400, "the sample has 40001 labels");
    // Each bucket has all the labels.
    let pair = |n| LabelPair { name: Some(format!("{n:0>200}")), value: Some("v".repeat(200)) };
    let bucket = |n| Bucket { upper_bound: Some(f64::from(n)), ..Default::default() };
    let histogram = Histogram { bucket: (0..19_000).map(bucket).collect(), ..Default::default() };
    let metric = Metric {
        label: (0..100).map(pair).collect(),
        histogram: Some(histogram),
        timestamp_ms: Some(now()),
        ..Default::default()
    };
    let family = MetricFamily {
        name: Some("wide".to_owned()),
        r#type: Some(MetricType::Histogram as i32),
        metric: vec![metric],
        ..Default::default()
    };
    let body = family.encode_length_delimited_to_vec();
    rows.families("a histogram of wide buckets", body, 413, "with its histograms expanded is more than 16384000 bytes");
    rows.all()
}
