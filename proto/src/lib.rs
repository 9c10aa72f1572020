//! Wire types of the two protobuf formats that Prometheus metrics are pushed in.
//!
//! - [`prometheus`]: remote write 1.0 (package `prometheus`). A request is one [`WriteRequest`](prometheus::WriteRequest),
//!   compressed as a snappy block.
//! - [`client`]: the exposition format (package `io.prometheus.client`). A stream of
//!   [`MetricFamily`](client::MetricFamily), each preceded by its length as a varint.
//! - [`wire`]: a cursor that walks either format without building it.
//!
//! The types are prost's: every name and label becomes a `String` of its own, and unknown fields are lost. They serve tests,
//! clients, and whatever is not on the path of every series; that path uses [`wire`].
//!
//! ```
//! use infogw_proto::client::{LabelPair, Metric, MetricFamily, MetricType, Untyped};
//! use infogw_proto::prometheus::{Label, Sample, TimeSeries, WriteRequest};
//! use prost::Message;
//!
//! // Remote write: one message is the whole body.
//! let label = |name: &str, value: &str| Label { name: name.into(), value: value.into() };
//! let request = WriteRequest {
//!     timeseries: vec![TimeSeries {
//!         labels: vec![label("__name__", "up"), label("job", "api")],
//!         samples: vec![Sample { value: 1.0, timestamp: 1_700_000_000_000 }],
//!         ..Default::default()
//!     }],
//!     ..Default::default()
//! };
//! assert_eq!(WriteRequest::decode(&*request.encode_to_vec())?, request);
//!
//! // The exposition format: as many messages as there are, each behind its length.
//! let family = |name: &str| MetricFamily {
//!     name: Some(name.into()),
//!     r#type: Some(MetricType::Untyped as i32),
//!     metric: vec![Metric {
//!         label: vec![LabelPair { name: Some("job".into()), value: Some("api".into()) }],
//!         untyped: Some(Untyped { value: Some(1.0) }),
//!         timestamp_ms: Some(1_700_000_000_000),
//!         ..Default::default()
//!     }],
//!     ..Default::default()
//! };
//! let mut stream = Vec::new();
//! for name in ["up", "scrape_duration_seconds"] {
//!     family(name).encode_length_delimited(&mut stream)?;
//! }
//!
//! let mut rest = &stream[..];
//! let mut names = Vec::new();
//! while !rest.is_empty() {
//!     names.push(MetricFamily::decode_length_delimited(&mut rest)?.name().to_owned());
//! }
//! assert_eq!(names, ["up", "scrape_duration_seconds"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod wire;

/// Remote write 1.0, package `prometheus`: `proto/prometheus/{remote,types}.proto`.
pub mod prometheus {
    include!("gen/prometheus.rs");
}

/// The protobuf exposition format, package `io.prometheus.client`: `proto/io/prometheus/client/metrics.proto`.
pub mod client {
    include!("gen/io.prometheus.client.rs");
}
