//! Bytes from anybody: nothing panics, and nothing passes that somebody else would read differently.

use std::convert::Infallible;

use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeError, DecodeLimits, MetricFamiliesDecoder, WriteRequestDecoder},
    encode::Encode,
    payload::{Keep, SeriesSet, WriteRequest},
    translate::Translate,
};
use infogw_proto::{prometheus as prom, wire::put_varint};
use proptest::{collection::vec, prelude::*, sample::Index};
use prost::Message;

use crate::{
    DELIMITED, Labels, TEXT, block,
    bytes::{bytes_field, message, tidy, wild},
    edits::agrees,
    expansion::{arbitrary_families, decoder, expand, stream},
    families, framed,
    go::go_labels,
    oracle::{LabelsOnly, canonical, pairs},
    shown, unblock, write_request,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        everything_bears(&bytes)?;
    }

    #[test]
    fn no_text_panics(text in "(# (TYPE|HELP) [a-c_]{0,3} (counter|histogram|x)\n|[a-c_:]{0,3}(\\{[a-c]{0,2}=\"[^\n]{0,4}\",?\\})? ?[0-9eEx.+-]{0,4}( [0-9]{0,20})?\n|\\PC{0,9}\n?){0,8}") {
        everything_bears(text.as_bytes())?;
    }

    /// Damage to a message that is all but sound gets further in than noise.
    #[test]
    fn no_damage_gets_past_the_policy(parts in wild(), damage in vec((any::<Index>(), any::<u8>()), 1..4)) {
        let mut message = message(&parts);
        damaged(&mut message, &damage);
        everything_bears(&message)?;
    }

    #[test]
    fn no_damage_to_families_panics(all in arbitrary_families(), damage in vec((any::<Index>(), any::<u8>()), 1..4)) {
        let mut stream = stream(&all);
        damaged(&mut stream, &damage);
        everything_bears(&stream)?;
    }

    /// The tag of a label, plus a multiple of 2^35: Go reads a label there. Whoever skips it is deceived about whose series it is.
    #[test]
    fn no_label_hides_behind_a_tag_that_overflows(parts in tidy(), high in 1u64..(1 << 29), level in 0usize..4) {
        let mut spoof = Vec::new();
        let hidden = |number: u64, content: &[u8]| {
            let mut field = Vec::new();
            put_varint(&mut field, (high << 35) | (number << 3 | 2));
            put_varint(&mut field, content.len() as u64);
            field.extend_from_slice(content);
            field
        };
        let name = bytes_field(1, b"_id");
        let label = [name.clone(), bytes_field(2, b"c1")].concat();
        let series = match level {
            0 => hidden(1, &bytes_field(1, &label)),
            1 => bytes_field(1, &[bytes_field(1, &label), hidden(1, &label)].concat()),
            2 => bytes_field(1, &bytes_field(1, &[name, bytes_field(2, b"c1"), hidden(2, b"c2")].concat())),
            _ => bytes_field(1, &bytes_field(1, &[hidden(1, b"_id"), bytes_field(2, b"c2")].concat())),
        };
        spoof.extend_from_slice(&message(&parts));
        spoof.extend_from_slice(&series);
        let read_by_go = go_labels(&spoof).expect("Go reads it");
        prop_assert!(read_by_go.last().is_some_and(|labels| labels.iter().any(|label| label.name == "_id")));
        prop_assert!(matches!(write_request(&spoof), Err(DecodeError::Malformed(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A message cut off anywhere is refused where prost refuses it, and otherwise means what prost reads.
    #[test]
    fn what_is_cut_off_is_no_other_message(parts in wild()) {
        let whole = message(&parts);
        for cut in 0..whole.len() {
            let part = &whole[..cut];
            let read = prom::WriteRequest::decode(part);
            let payload = write_request(part);
            prop_assert_eq!(payload.is_ok(), read.is_ok(), "{} of {:02x?}", cut, whole);
            if let (Ok(payload), Ok(read)) = (payload, read) {
                let model: Vec<_> = read.timeseries.iter().map(|series| Some(canonical(&series.labels))).collect();
                agrees(&payload, part, &model)?;
            }
        }
        let body = block(&whole);
        for cut in 0..body.len() {
            let refused = WriteRequestDecoder::default().decode_block(body.slice(..cut));
            prop_assert!(matches!(refused, Err(DecodeError::Malformed(_))), "a block knows its length");
        }
    }

    #[test]
    fn families_that_are_cut_off_are_no_others(all in arbitrary_families()) {
        let (decoder, whole) = (decoder(), stream(&all));
        for cut in 0..whole.len() {
            let (mut rest, mut read) = (&whole[..cut], Some(Vec::new()));
            while let (false, Some(so_far)) = (rest.is_empty(), &mut read) {
                match infogw_proto::client::MetricFamily::decode_length_delimited(&mut rest) {
                    Ok(family) => so_far.push(family),
                    Err(_) => read = None,
                }
            }
            let payload = families(&decoder, DELIMITED, "identity", whole[..cut].to_vec().into());
            prop_assert_eq!(payload.is_ok(), read.is_some());
            if let (Ok(mut payload), Some(read)) = (payload, read) {
                let expected: Vec<Vec<_>> = read.iter().flat_map(expand).map(|point| point.labels.into_iter().collect()).collect();
                prop_assert_eq!(shown(&mut payload), expected);
            }
        }
    }
}

/// In frames and in text a cut can fall between two series: what was there before it stays what it was.
#[test]
fn frames_and_text_that_are_cut_off_are_no_others() {
    let at = ManualClock::START.as_millis();
    let text: String = (0..3000).map(|n| format!("a{n}{{b=\"c\\n\"}} {n} {at}\n")).collect();
    let decoder = decoder();
    let whole = shown(&mut families(&decoder, TEXT, "", text.clone().into()).unwrap());
    let body = framed(text.as_bytes());
    assert_eq!(shown(&mut families(&decoder, TEXT, "snappy", body.clone()).unwrap()), whole);
    let mut taken = 0;
    for cut in (0..body.len()).step_by(7).chain([10]) {
        if let Ok(mut payload) = families(&decoder, TEXT, "snappy", body.slice(..cut)) {
            assert!(whole.starts_with(&shown(&mut payload)));
            taken += 1;
        }
    }
    assert!(taken > 0, "the header of the stream is a stream");
    for cut in 0..300 {
        match families(&decoder, TEXT, "", text[..cut].to_owned().into()) {
            Ok(mut payload) => assert!(whole.starts_with(&shown(&mut payload)), "{cut}"),
            Err(error) => assert!(!text[..cut].ends_with('\n'), "{cut}: {error}"),
        }
    }
}

/// 300 kB of one metric with a wide label set and many narrow buckets: each bucket would carry all of the labels.
#[test]
fn expansion_is_bounded() {
    use infogw_proto::client::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
    let label = |n| LabelPair { name: Some(format!("{n:0>200}")), value: Some("v".repeat(200)) };
    let bucket = |n| Bucket { upper_bound: Some(f64::from(n)), ..Default::default() };
    let histogram = Histogram { bucket: (0..19_000).map(bucket).collect(), ..Default::default() };
    let metric = Metric {
        label: (0..100).map(label).collect(),
        histogram: Some(histogram),
        timestamp_ms: Some(ManualClock::START.as_millis() as i64),
        ..Default::default()
    };
    let family = MetricFamily {
        name: Some("wide".to_owned()),
        r#type: Some(MetricType::Histogram as i32),
        metric: vec![metric],
        ..Default::default()
    };
    let body = family.encode_length_delimited_to_vec();
    let limits = DecodeLimits { decoded: 512_000, ..DecodeLimits::default() };
    assert!(body.len() < limits.decoded);
    let decoder = MetricFamiliesDecoder::new(limits).clock(ManualClock::new());
    match families(&decoder, DELIMITED, "", body.into()) {
        Err(DecodeError::TooLarge { limit, .. }) => assert!(limit <= 16 << 20, "{limit} bytes were spent on it"),
        answer => panic!("it became {} series", answer.unwrap().series()),
    }
}

fn damaged(bytes: &mut [u8], damage: &[(Index, u8)]) {
    for (at, byte) in damage {
        if !bytes.is_empty() {
            *at.get_mut(bytes) = *byte;
        }
    }
}

/// Every decoder bears `bytes`, in every wrapping. What passes is what others read.
fn everything_bears(bytes: &[u8]) -> Result<(), TestCaseError> {
    let _ = WriteRequestDecoder::default().decode_block(bytes.to_vec().into());
    let uncompressed = WriteRequestDecoder::default().decode_message(bytes.to_vec());
    let compressed = write_request(bytes);
    prop_assert_eq!(uncompressed.is_ok(), compressed.is_ok());
    for mut payload in uncompressed.into_iter().chain(compressed) {
        reads_the_same(&mut payload, bytes)?;
    }
    let decoder = decoder();
    for content_type in [DELIMITED, TEXT] {
        let plain = families(&decoder, content_type, "", bytes.to_vec().into());
        let packed = families(&decoder, content_type, "snappy", framed(bytes));
        prop_assert_eq!(plain.is_ok(), packed.is_ok());
        let _ = families(&decoder, content_type, "snappy", bytes.to_vec().into());
        for mut payload in plain.into_iter().chain(packed) {
            let seen = shown(&mut payload);
            let mut payload = payload.translate(None);
            prop_assert_eq!(&shown(&mut payload), &seen);
            let message = payload.to_message();
            reads_the_same(&mut payload, &message)?;
        }
    }
    Ok(())
}

fn reads_the_same(payload: &mut WriteRequest, arrived: &[u8]) -> Result<(), TestCaseError> {
    let seen = shown(payload);
    prop_assert!(seen.iter().all(|labels| labels.is_sorted_by(|(a, _), (b, _)| a < b)));
    prop_assert!(seen.iter().flatten().all(|(name, value)| !name.is_empty() && !value.is_empty()));

    if payload.refused().count() == 0 {
        let arrived = go_labels(arrived).expect("Go reads what arrived");
        let model = arrived.iter().map(|series| canonical(series).into_iter().collect());
        prop_assert_eq!(&seen, &model.collect::<Vec<Labels>>());
    }
    let sent = unblock(&payload.encode().unwrap().0);
    let by_go = go_labels(&sent).expect("Go reads what goes on");
    prop_assert_eq!(by_go.iter().map(|series| pairs(series)).collect::<Vec<_>>(), seen.clone());
    let by_prost = LabelsOnly::decode(&*sent).expect("prost reads the labels that go on");
    prop_assert_eq!(by_prost.timeseries.iter().map(|series| pairs(&series.labels)).collect::<Vec<_>>(), seen);

    let edit = |labels: &mut infogw_layers::payload::LabelSet<'_>| -> Result<Keep, Infallible> {
        labels.set("b", "x");
        labels.remove("a");
        Ok(Keep::Yes)
    };
    payload.try_edit(edit).unwrap();
    prop_assert!(LabelsOnly::decode(&*payload.to_message()).is_ok());
    Ok(())
}
