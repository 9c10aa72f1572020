//! What the layers are given.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity},
    decode::{Decoder, WriteRequestDecoder},
    payload::WriteRequest,
    rejection::Rejection,
};
use tower::{Layer, service_fn};

use crate::{
    measure::{Load, call, hand_back},
    telemetry::{self, Shape},
};

/// Series of a request: the fewest, what telemetry sends, many.
pub(crate) const SIZES: [usize; 3] = [1, 500, 10_000];

/// The headers of both endpoints' bodies.
pub(crate) const REMOTE_WRITE: [(&str, &str); 2] =
    [("content-type", "application/x-protobuf"), ("content-encoding", "snappy")];
pub(crate) const UPLOAD: [(&str, &str); 2] = [DELIMITED, ("content-encoding", "snappy")];
pub(crate) const DELIMITED: (&str, &str) =
    ("content-type", "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited");

/// Milliseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// A request with these headers.
pub(crate) fn request<B>(headers: &[(&'static str, &str)], body: B) -> Request<B> {
    let request = headers.iter().fold(Request::post("/"), |request, (name, value)| request.header(*name, *value));
    request.body(body).unwrap()
}

/// What cluster `n` is known as.
pub(crate) fn identity(n: u64) -> Identity {
    let cluster = ClusterId::new(&telemetry::cluster(n)).unwrap();
    let account: String = cluster.as_str().chars().filter(|c| *c != '-').take(27).collect();
    Identity { account: Some(account.into()), ..Identity::of(cluster) }
}

/// A request with `body` that has been authorized as `identity`'s.
pub(crate) fn authorized<B>(identity: Identity, body: B) -> Request<B> {
    let identity = Arc::new(identity);
    let mut service = AuthorizeLayer::new(
        |_: &Request<B>| Ok::<_, Rejection>(Arc::clone(&identity)),
        service_fn(async |identity| Ok::<_, Rejection>(identity)),
    )
    .layer(service_fn(hand_back));
    call(&mut service, Request::new(body)).expect("authorized").into_body()
}

/// What cluster 1 sends in one request of so many series, each way.
pub(crate) struct Pushed {
    pub(crate) series: usize,
    /// The write request, not compressed.
    pub(crate) message: Vec<u8>,
    pub(crate) remote_write: Bytes,
    /// Delimited families, not compressed.
    pub(crate) families: Bytes,
    pub(crate) upload: Bytes,
    pub(crate) text: Bytes,
}

impl Pushed {
    pub(crate) fn new(series: usize) -> Self {
        let (cluster, shape, now) = (telemetry::cluster(1), Shape { series, ..Shape::default() }, now());
        Pushed {
            series,
            message: prost::Message::encode_to_vec(&telemetry::write_request(&cluster, shape, now)),
            remote_write: telemetry::remote_write(&cluster, shape, now).into(),
            families: telemetry::families(&cluster, shape, now).into(),
            upload: telemetry::upload(&cluster, shape, now).into(),
            text: telemetry::text(&cluster, shape, now).into(),
        }
    }

    /// As remote write.
    pub(crate) fn load(&self) -> Load {
        self.load_of(&self.message)
    }

    /// As what is decoded to `bytes`.
    pub(crate) fn load_of(&self, bytes: &[u8]) -> Load {
        Load::Payload { series: self.series, bytes: bytes.len() }
    }

    /// As the layers behind the decoder have it.
    pub(crate) fn write_request(&self) -> WriteRequest {
        decoded(&WriteRequestDecoder::default(), &REMOTE_WRITE, &self.remote_write)
    }
}

/// A body that came with these headers, decoded.
pub(crate) fn decoded<D: Decoder>(decoder: &D, headers: &[(&'static str, &str)], body: &Bytes) -> D::Payload {
    let (head, ()) = request(headers, ()).into_parts();
    decoder.decode(decoder.negotiate(&head).unwrap(), body.clone()).unwrap()
}
