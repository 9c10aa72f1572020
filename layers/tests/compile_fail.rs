//! Orders that cannot work do not compile, and the compiler says in words what to do instead.
#![cfg(all(feature = "decode", feature = "encode", feature = "enforce", feature = "test-util", feature = "translate"))]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use infogw_layers::{
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder},
    encode::EncodeLayer,
    enforce::{EnforceLabelsLayer, LabelPolicy},
    translate::TranslateLayer,
};
use tower::{Service, ServiceBuilder, service_fn};

#[test]
fn wrong_orders_do_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile_fail/enforce_before_decode.rs");
    cases.compile_fail("tests/compile_fail/translate_before_decode.rs");
    cases.compile_fail("tests/compile_fail/encode_before_decode.rs");
    cases.compile_fail("tests/compile_fail/encode_before_translate.rs");
}

/// So what is wrong with the others is their order.
#[test]
fn the_right_order_does() {
    fn serves(_: impl Service<Request<Full<Bytes>>>) {}
    let service = ServiceBuilder::new()
        .layer(DecodeLayer::new(MetricFamiliesDecoder::new(DecodeLimits::default())))
        .layer(EnforceLabelsLayer::new(LabelPolicy::new("_id")))
        .layer(TranslateLayer::new())
        .layer(EncodeLayer::new())
        .service(service_fn(async |_: Request<Full<Bytes>>| Ok::<_, Infallible>(Response::new(()))));
    serves(service);
}
