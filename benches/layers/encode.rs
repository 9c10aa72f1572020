//! Payloads to the bytes that go on.

use criterion::Criterion;
use http::Request;
use infogw_layers::{
    decode::{DecodeLimits, MetricFamiliesDecoder},
    encode::EncodeLayer,
    payload::{Keep, LabelSet, SeriesSet, WriteRequest},
    translate::TranslateLayer,
};
use infogw_proto::prometheus;
use prost::Message as _;
use tower::{Layer, service_fn};

use crate::{
    inputs::{Pushed, SIZES, UPLOAD, decoded},
    measure::{Group, hand_back},
    telemetry::REPLICA,
};

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "encode");
    let encode = EncodeLayer::new().layer(service_fn(hand_back));
    let translate = TranslateLayer::new().stamp().layer(service_fn(hand_back));
    let families = MetricFamiliesDecoder::new(DecodeLimits::default());
    for pushed in SIZES.map(Pushed::new) {
        let load = pushed.load();
        group.service("TranslateLayer", load, &translate, || Request::new(decoded(&families, &UPLOAD, &pushed.upload)));
        group.service("EncodeLayer, unchanged", load, &encode, || Request::new(pushed.write_request()));
        group.service("EncodeLayer, rewritten", load, &encode, || Request::new(rewritten(pushed.write_request())));

        let block = |()| snap::raw::Encoder::new().compress_vec(&pushed.message).unwrap();
        group.measure("snap, message into a block", load, || (), block);
        let message = prometheus::WriteRequest::decode(&*pushed.message).unwrap();
        group.measure("prost, message", load, || (), |()| message.encode_to_vec());
    }
}

/// With every fifth series dropped, and a label elided from the others.
fn rewritten(mut request: WriteRequest) -> WriteRequest {
    let edit = |labels: &mut LabelSet<'_>| -> Result<Keep, ()> {
        labels.remove(REPLICA);
        Ok(if labels.index() % 5 == 4 { Keep::No } else { Keep::Yes })
    };
    request.try_edit(edit).unwrap();
    request
}
