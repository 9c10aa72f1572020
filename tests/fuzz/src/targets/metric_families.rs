use std::{collections::BTreeMap, convert::Infallible};

use bytes::Bytes;
use infogw_layers::{
    decode::{DecodeError, DecodeLimits, Decoder, MetricFamiliesDecoder},
    encode::{Delimited, Encode},
    payload::{Keep, LabelSet, MetricFamilies, SeriesSet},
    translate::Translate,
};

use super::{OLDEST, StandingClock, limits};
use crate::{families, go, oracle};

pub(crate) const DELIMITED: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// What a decoder of families makes of a body with this head.
pub(crate) fn decode(
    tight: bool,
    content_type: &str,
    encoding: &str,
    body: Bytes,
) -> Result<MetricFamilies, DecodeError> {
    let decoder = MetricFamiliesDecoder::new(limits(tight)).clock(StandingClock);
    let head = http::Request::post("/").header("content-type", content_type).header("content-encoding", encoding);
    let (head, ()) = head.body(()).expect("it is a head").into_parts();
    decoder.decode(decoder.negotiate(&head)?, body)
}

/// Delimited protobuf. The first byte says whether what follows is a stream of families or a body in frames, and which limits
/// hold.
pub fn metric_families(data: &[u8]) {
    let Some((mode, input)) = data.split_first() else { return };
    let tight = mode & 2 != 0;
    if mode & 1 == 0 {
        judge(input, tight, decode(tight, DELIMITED, "", Bytes::copy_from_slice(input)));
        // Packing takes longer than all the rest.
        if mode & 4 != 0 {
            judge(input, tight, decode(tight, DELIMITED, "snappy", oracle::framed(input)));
        }
        return;
    }
    let decoded = decode(tight, DELIMITED, "snappy", Bytes::copy_from_slice(input));
    match oracle::unframed(input) {
        Some(stream) => judge(&stream, tight, decoded),
        None => oracle::assert_one_line(decoded.expect_err("what is not framed is refused")),
    }
}

fn judge(stream: &[u8], tight: bool, decoded: Result<MetricFamilies, DecodeError>) {
    let limits = limits(tight);
    let read = families::read(stream);
    match decoded {
        Err(error) => {
            let too_much = is_too_much(&error);
            oracle::assert_one_line(error);
            let Ok(read) = read else { return };
            let Ok(expected) = families::expand(&read, &limits, OLDEST) else { return };
            // What is strange about the stream is gone from it once prost has written it anew.
            let anew: Vec<u8> = read.iter().flat_map(prost::Message::encode_length_delimited_to_vec).collect();
            if !too_much && anew.len() <= limits.decoded {
                let strange = |read: &families::Metric| read.summary.is_some() || read.histogram.is_some();
                match decode(tight, DELIMITED, "", anew.into()) {
                    Ok(payload) => arrives(payload, &expected),
                    // But for what prost took as bytes.
                    Err(error) if is_too_much(&error) => {}
                    Err(error) => assert!(read.iter().flat_map(|family| &family.metric).any(strange), "{error}"),
                }
            }
        }
        Ok(payload) => {
            let read = read.expect("prost reads what is taken");
            let expected = families::expand(&read, &limits, OLDEST).expect("it is as it should be");
            arrives(payload, &expected);
        }
    }
}

fn is_too_much(error: &DecodeError) -> bool {
    use DecodeError::{TooLarge, TooManySamples, TooManySeries};
    matches!(error, TooLarge { .. } | TooManySeries { .. } | TooManySamples { .. })
}

/// What goes on is the series expected.
pub(crate) fn arrives(mut payload: MetricFamilies, expected: &[go::TimeSeries]) {
    let shown = oracle::shown(&mut payload);
    assert_eq!((payload.series(), payload.samples()), (expected.len(), expected.len() as u64));
    for (shown, expected) in shown.iter().zip(expected) {
        let labels =
            shown.iter().map(|(name, value)| go::Label { name: name.clone().into(), value: value.clone().into() });
        assert_eq!(labels.collect::<Vec<_>>(), expected.labels);
    }
    let mut again = goes_round(&payload);
    let expected = go::WriteRequest { timeseries: expected.to_vec(), metadata: Vec::new() };
    let sent = payload.translate(None).to_message();
    oracle::assert_reads_as(&sent, &expected);
    is_edited(&mut again);
}

/// What the push client encodes a gateway takes as it was.
fn goes_round(payload: &MetricFamilies) -> MetricFamilies {
    let (body, _) = Encode::<Delimited>::encode(payload).expect("it is small");
    // A name may be in the labels of two series and not be a family's, and times are of another clock.
    let limits = DecodeLimits { labels: usize::MAX, ..DecodeLimits::default() };
    let decoder = MetricFamiliesDecoder::new(limits).clock(StandingClock);
    let head = http::Request::post("/").header("content-type", DELIMITED).header("content-encoding", "snappy");
    let (head, ()) = head.body(()).expect("it is a head").into_parts();
    let again = decoder.negotiate(&head).and_then(|how| decoder.decode(how, body.clone()));
    let again = again.expect("what was taken is taken again");
    assert_eq!(again.series(), payload.series());
    assert_eq!(Encode::<Delimited>::encode(&again).expect("it is small").0, body);
    again
}

/// Labels that grow and shrink and series that go leave all others as they were.
fn is_edited(payload: &mut MetricFamilies) {
    let before = oracle::shown(payload);
    let value = |index: usize| "x".repeat(index * 37 % 300);
    let keeps = |index: usize| index % 5 != 4;
    let edit = |labels: &mut LabelSet<'_>| {
        let index = labels.index();
        labels.set("a", &value(index));
        labels.set("zz", &value(index + 1));
        labels.remove("le");
        Ok::<_, Infallible>(if keeps(index) { Keep::Yes } else { Keep::No })
    };
    let Ok(_) = payload.try_edit(edit);
    let edited = |(index, labels): (usize, &Vec<(String, String)>)| {
        let mut labels: BTreeMap<_, _> = labels.iter().cloned().collect();
        labels.insert("a".to_owned(), value(index));
        labels.insert("zz".to_owned(), value(index + 1));
        labels.retain(|name, value| name != "le" && !value.is_empty());
        Vec::from_iter(labels)
    };
    let expected: Vec<_> = before.iter().enumerate().filter(|(index, _)| keeps(*index)).map(edited).collect();
    assert_eq!(oracle::shown(payload), expected);
}
