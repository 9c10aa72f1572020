//! Bodies to payloads.

use bytes::Bytes;
use criterion::Criterion;
use http_body_util::Full;
use infogw_layers::decode::{DecodeLayer, DecodeLimits, Decoder, MetricFamiliesDecoder, WriteRequestDecoder};
use infogw_proto::prometheus::WriteRequest;
use infogw_proxy::registration::RegistrationDecoder;
use prost::Message as _;
use tower::{Layer, service_fn};

use crate::{
    inputs::{Pushed, REMOTE_WRITE, SIZES, UPLOAD, request},
    measure::{Group, Load, hand_back},
    telemetry,
};

type Headers<'h> = &'h [(&'static str, &'h str)];

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "decode");
    let write_requests = WriteRequestDecoder::default();
    let families = MetricFamiliesDecoder::new(DecodeLimits::default());
    for pushed in SIZES.map(Pushed::new) {
        let load = pushed.load();
        by_itself(
            &mut group,
            "WriteRequestDecoder, snappy block",
            load,
            &write_requests,
            &REMOTE_WRITE,
            &pushed.remote_write,
        );
        group.measure(
            "WriteRequestDecoder, message",
            load,
            || pushed.message.clone(),
            || |message| write_requests.decode_message(message).expect("decodes"),
        );
        by_itself(&mut group, "MetricFamiliesDecoder, framed snappy", load, &families, &UPLOAD, &pushed.upload);
        by_itself(&mut group, "MetricFamiliesDecoder, text", pushed.load_of_text(), &families, &[], &pushed.text);
        in_layer(
            &mut group,
            "DecodeLayer, remote write",
            load,
            write_requests.clone(),
            &REMOTE_WRITE,
            &pushed.remote_write,
        );
        in_layer(&mut group, "DecodeLayer, upload", load, families.clone(), &UPLOAD, &pushed.upload);

        group.measure(
            "snap alone, block into a buffer",
            load,
            || pushed.remote_write.clone(),
            || {
                let mut buffer = vec![0; pushed.message.len()];
                move |block| {
                    #[expect(clippy::disallowed_methods, reason = "the buffer is as long as the message")]
                    snap::raw::Decoder::new().decompress(&block, &mut buffer).expect("a block")
                }
            },
        );
        group.measure(
            "prost alone, message",
            load,
            || (),
            || |()| WriteRequest::decode(&*pushed.message).expect("decodes"),
        );
    }
    let form = Bytes::from(format!("id={}", telemetry::cluster(1)));
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    by_itself(&mut group, "RegistrationDecoder", Load::Request, &RegistrationDecoder, &headers, &form);
}

/// The decoder by itself, after what it says of the head.
fn by_itself<D>(group: &mut Group<'_>, name: &str, load: Load, decoder: &D, headers: Headers<'_>, body: &Bytes)
where
    D: Decoder + Sync,
{
    let (head, ()) = request(headers, ()).into_parts();
    let input = || (decoder.negotiate(&head).expect("a format"), body.clone());
    group.measure(name, load, input, || |(format, body)| decoder.decode(format, body).expect("decodes"));
}

/// The layer with the decoder in it.
fn in_layer<D>(group: &mut Group<'_>, name: &str, load: Load, decoder: D, headers: Headers<'_>, body: &Bytes)
where
    D: Decoder + Send + Sync,
{
    let service = DecodeLayer::new(decoder).layer(service_fn(hand_back));
    group.service(name, load, &service, || request(headers, Full::new(body.clone())));
}
