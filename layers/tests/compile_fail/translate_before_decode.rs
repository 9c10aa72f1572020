//! Bytes cannot be translated.
use http::{Request, Response};
use infogw_layers::{
    conformance::Probe,
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder},
    encode::EncodeLayer,
    translate::TranslateLayer,
};
use tower::{Service, ServiceBuilder};

fn main() {
    let service = ServiceBuilder::new()
        .layer(TranslateLayer::new())
        .layer(EncodeLayer::new())
        .layer(DecodeLayer::new(MetricFamiliesDecoder::new(DecodeLimits::default())))
        .service(leaf());
    serves(service);
}

/// Takes whatever it is given, so that only the layers can be wrong.
fn leaf() -> Probe<Response<()>> {
    unreachable!("it only has to compile")
}

fn serves(_: impl Service<Request<http_body_util::Full<bytes::Bytes>>>) {}
