//! What is not decoded cannot be encoded.
use http::{Request, Response};
use infogw_layers::{
    conformance::Probe,
    decode::{DecodeLayer, WriteRequestDecoder},
    encode::EncodeLayer,
};
use tower::{Service, ServiceBuilder};

fn main() {
    let service = ServiceBuilder::new()
        .layer(EncodeLayer::new())
        .layer(DecodeLayer::new(WriteRequestDecoder::default()))
        .service(leaf());
    serves(service);
}

/// Takes whatever it is given, so that only the layers can be wrong.
fn leaf() -> Probe<Response<()>> {
    unreachable!("it only has to compile")
}

fn serves(_: impl Service<Request<http_body_util::Full<bytes::Bytes>>>) {}
