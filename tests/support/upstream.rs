//! The receive endpoint behind the gateway, scripted. The real one is [`Prometheus::receiver`](super::Prometheus::receiver).

use hyper::{HeaderMap, Method, Uri, body::Bytes};
use infogw_proto::prometheus::{TimeSeries, WriteRequest};
use prost::Message;

use super::server::{Answer, Received, Server};

/// A scripted receive endpoint.
pub type Upstream = Server<Write>;

/// One remote-write request that reached the endpoint.
#[derive(Debug, Clone)]
pub struct Write {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// As it was on the wire.
    pub body: Bytes,
    /// What it means, or why it means nothing.
    pub decoded: Result<WriteRequest, String>,
}

impl Write {
    /// The header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The request; panics where the body is not one.
    pub fn request(&self) -> &WriteRequest {
        self.decoded.as_ref().unwrap_or_else(|error| panic!("not a write request: {error}"))
    }

    /// The series in the request, whose metric is called `name`.
    pub fn series(&self, name: &str) -> Vec<&TimeSeries> {
        let called = |series: &&TimeSeries| series.labels.iter().any(|l| l.name == "__name__" && l.value == name);
        self.request().timeseries.iter().filter(called).collect()
    }
}

impl From<Received> for Write {
    fn from(Received { method, uri, headers, body }: Received) -> Self {
        let decoded = snap::raw::Decoder::new()
            .decompress_vec(&body)
            .map_err(|error| error.to_string())
            .and_then(|bytes| WriteRequest::decode(&*bytes).map_err(|error| error.to_string()));
        Self { method, uri, headers, body, decoded }
    }
}

impl Upstream {
    /// Takes everything, answering 200 as Thanos does.
    pub async fn accepting() -> Self {
        Self::start(|_| Answer::status(200)).await
    }

    /// What `--forward-url` is given.
    pub fn url(&self) -> String {
        self.url_of("/api/metrics/v1/telemeter/api/v1/receive")
    }
}
