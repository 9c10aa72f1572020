//! Labels cannot be enforced on bytes.
use http::{Request, Response};
use infogw_layers::{
    conformance::Probe,
    decode::{DecodeLayer, WriteRequestDecoder},
    encode::EncodeLayer,
    enforce::{EnforceLabelsLayer, LabelPolicy},
};
use tower::{Service, ServiceBuilder};

fn main() {
    let service = ServiceBuilder::new()
        .layer(EnforceLabelsLayer::new(LabelPolicy::new("_id")))
        .layer(DecodeLayer::new(WriteRequestDecoder::default()))
        .layer(EncodeLayer::new())
        .service(leaf());
    serves(service);
}

/// Takes whatever it is given, so that only the layers can be wrong.
fn leaf() -> Probe<Response<()>> {
    unreachable!("it only has to compile")
}

fn serves(_: impl Service<Request<http_body_util::Full<bytes::Bytes>>>) {}
