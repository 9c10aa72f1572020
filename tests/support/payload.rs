//! What clients send: tokens, compressed bodies, series.

use base64::{Engine, prelude::BASE64_STANDARD};
use infogw_proto::{
    client::MetricFamily,
    prometheus::{Label, Sample, TimeSeries, WriteRequest},
};
use prost::Message;
use serde_json::json;

/// The bearer token of a stock sender: base64 of `{"authorization_token","cluster_id"}`.
pub fn composite_token(token: &str, cluster: &str) -> String {
    BASE64_STANDARD.encode(json!({ "authorization_token": token, "cluster_id": cluster }).to_string())
}

/// One snappy block, as remote write has it.
pub fn snappy_block(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).expect("snappy takes up to 4 GiB")
}

/// A framed snappy stream, as an upload has it.
pub fn snappy_framed(bytes: &[u8]) -> Vec<u8> {
    let mut framed = snap::write::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut framed, bytes).expect("writing to memory");
    framed.into_inner().expect("flushing to memory")
}

/// A stream of families, each preceded by its length.
pub fn delimited(families: &[MetricFamily]) -> Vec<u8> {
    families.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
}

/// The families of such a stream.
pub fn undelimited(mut stream: &[u8]) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    while !stream.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut stream).expect("a stream of metric families"));
    }
    families
}

/// A series with these labels, in this order, and these samples: value, then milliseconds.
pub fn series(labels: &[(&str, &str)], samples: &[(f64, i64)]) -> TimeSeries {
    let label = |&(name, value): &(&str, &str)| Label { name: name.to_owned(), value: value.to_owned() };
    TimeSeries {
        labels: labels.iter().map(label).collect(),
        samples: samples.iter().map(|&(value, timestamp)| Sample { value, timestamp }).collect(),
        ..TimeSeries::default()
    }
}

/// `series` as the body of a remote-write request.
pub fn write_body(series: Vec<TimeSeries>) -> Vec<u8> {
    snappy_block(&WriteRequest { timeseries: series, metadata: Vec::new() }.encode_to_vec())
}
