//! Bodies to payloads.

use std::{io::Read as _, iter};

use bytes::Bytes;
use criterion::Criterion;
use http_body_util::Full;
use infogw_layers::decode::{DecodeLayer, DecodeLimits, Decoder, MetricFamiliesDecoder, WriteRequestDecoder};
use infogw_proto::{client::MetricFamily, prometheus::WriteRequest};
use infogw_proxy::registration::RegistrationDecoder;
use prost::Message as _;
use tower::{Layer, service_fn};

use crate::{
    inputs::{DELIMITED, Pushed, REMOTE_WRITE, SIZES, UPLOAD, request},
    measure::{Group, Load, hand_back},
    telemetry,
};

type Headers<'h> = &'h [(&'static str, &'h str)];

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "decode");
    for pushed in SIZES.map(Pushed::new) {
        remote_write(&mut group, &pushed);
        upload(&mut group, &pushed);
    }
    let form = Bytes::from(format!("id={}", telemetry::cluster(1)));
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    by_itself(&mut group, "RegistrationDecoder", Load::Request, &RegistrationDecoder, &headers, &form);
}

fn remote_write(group: &mut Group<'_>, pushed: &Pushed) {
    let (load, block) = (pushed.load(), &pushed.remote_write);
    let decoder = WriteRequestDecoder::default();
    by_itself(group, "WriteRequestDecoder, block", load, &decoder, &REMOTE_WRITE, block);
    let message = || pushed.message.clone();
    group.measure("WriteRequestDecoder, message", load, message, |message| decoder.decode_message(message).unwrap());
    in_layer(group, "DecodeLayer, remote write", load, decoder.clone(), &REMOTE_WRITE, block);
    group.measure_workers(
        "snap, block into a buffer",
        load,
        || (),
        || {
            let mut buffer = vec![0; pushed.message.len()];
            move |()| {
                #[expect(clippy::disallowed_methods, reason = "the buffer is as long as the message")]
                snap::raw::Decoder::new().decompress(block, &mut buffer).unwrap()
            }
        },
    );
    group.measure("prost, message", load, || (), |()| WriteRequest::decode(&*pushed.message).unwrap());
}

fn upload(group: &mut Group<'_>, pushed: &Pushed) {
    let (load, frames) = (pushed.load_of(&pushed.families), &pushed.upload);
    let decoder = MetricFamiliesDecoder::new(DecodeLimits::default());
    by_itself(group, "MetricFamiliesDecoder, delimited in frames", load, &decoder, &UPLOAD, frames);
    by_itself(group, "MetricFamiliesDecoder, delimited", load, &decoder, &[DELIMITED], &pushed.families);
    let text = &pushed.text;
    by_itself(group, "MetricFamiliesDecoder, text", pushed.load_of(text), &decoder, &[], text);
    in_layer(group, "DecodeLayer, upload", load, decoder.clone(), &UPLOAD, frames);
    group.measure_workers(
        "snap, frames into a buffer",
        load,
        || (),
        || {
            let mut buffer = vec![0; pushed.families.len()];
            move |()| snap::read::FrameDecoder::new(&**frames).read_exact(&mut buffer).unwrap()
        },
    );
    group.measure(
        "prost, delimited families",
        load,
        || (),
        |()| {
            let mut rest = &*pushed.families;
            let families =
                iter::from_fn(|| (!rest.is_empty()).then(|| MetricFamily::decode_length_delimited(&mut rest)));
            families.collect::<Result<Vec<_>, _>>().unwrap()
        },
    );
}

/// The decoder by itself, after what it says of the head.
fn by_itself<D>(group: &mut Group<'_>, name: &str, load: Load, decoder: &D, headers: Headers<'_>, body: &Bytes)
where
    D: Decoder + Sync,
{
    let (head, ()) = request(headers, ()).into_parts();
    let input = || (decoder.negotiate(&head).unwrap(), body.clone());
    group.measure(name, load, input, |(format, body)| decoder.decode(format, body).unwrap());
}

/// The layer with the decoder in it.
fn in_layer<D>(group: &mut Group<'_>, name: &str, load: Load, decoder: D, headers: Headers<'_>, body: &Bytes)
where
    D: Decoder + Send + Sync,
{
    let service = DecodeLayer::new(decoder).layer(service_fn(hand_back));
    group.service(name, load, &service, || request(headers, Full::new(body.clone())));
}
