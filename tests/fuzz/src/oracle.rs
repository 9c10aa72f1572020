//! What a write request must mean to whoever gets it: the labels that the policy saw, and all else as it came.

use std::{collections::BTreeMap, convert::Infallible};

use bytes::Bytes;
use infogw_layers::{
    decode::{DecodeError, DecodeLimits},
    encode::Encode,
    payload::{Keep, LabelSet, SeriesSet, WriteRequest},
    rejection::Rejection,
};
use infogw_proto::prometheus as prom;
use prost::Message as _;

use crate::go;

/// Labels in canonical form: sorted, each name once, nothing empty.
pub type Labels = BTreeMap<String, String>;

/// What of a series goes on, for the limits that hold: its labels in canonical form. `None` if it is refused.
pub fn canonical(labels: &[go::Label], limits: &DecodeLimits) -> Option<Labels> {
    let sizes =
        labels.iter().all(|label| label.name.len() <= limits.label_name && label.value.len() <= limits.label_value);
    let count = |name: &str| labels.iter().filter(|label| label.name == name.as_bytes()).count();
    if labels.len() > limits.labels || !sizes || limits.unrepeatable.iter().any(|name| count(name) > 1) {
        return None;
    }
    let mut map = Labels::new();
    for go::Label { name, value } in labels {
        let (name, value) = (str::from_utf8(name).ok()?, str::from_utf8(value).ok()?);
        if !name.is_empty() && !value.is_empty() {
            // Of those that share a name the first.
            map.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Some(map)
}

/// A message that a decoder took or refused: what it made of it is what Go and prost read.
pub fn judge(message: &[u8], limits: &DecodeLimits, decoded: Result<WriteRequest, DecodeError>) {
    let by_go = go::unmarshal(message);
    let by_prost = prom::WriteRequest::decode(message);
    let mut payload = match decoded {
        Err(error) => {
            if let DecodeError::TooManySeries { count: Some(count), .. } = &error
                && let Ok(by_go) = &by_go
            {
                assert_eq!(*count, by_go.timeseries.len() as u64);
            }
            assert_one_line(error);
            // Groups, and what overflows, are refused on purpose; what prost writes anew has none.
            if let (Ok(by_go), Ok(by_prost)) = (by_go, by_prost)
                && from_prost(&by_prost) == by_go
            {
                is_taken(&by_prost, limits);
            }
            return;
        }
        Ok(payload) => payload,
    };
    let by_go = by_go.expect("Go reads what is taken");
    match by_prost {
        Ok(by_prost) => assert_eq!(from_prost(&by_prost), by_go),
        // The one thing that Go is laxer about, and a series' labels are not taken with it.
        Err(error) => assert!(error.to_string().contains("not UTF-8"), "{error}"),
    }

    assert!(by_go.timeseries.len() <= limits.series);
    let expected = expected(&by_go, limits);
    assert_eq!(payload.refused().count(), by_go.timeseries.len() - expected.timeseries.len());
    let shown = shown(&mut payload);
    let labels = |series: &go::TimeSeries| series.labels.iter().map(text_of).collect::<Vec<_>>();
    assert_eq!(shown, expected.timeseries.iter().map(labels).collect::<Vec<_>>());
    let samples = |series: &go::TimeSeries| (series.samples.len() + series.histograms.len()) as u64;
    assert_eq!(payload.samples(), expected.timeseries.iter().map(samples).sum::<u64>());

    let sent = payload.to_message();
    let (block, untouched) = payload.encode().expect("it is small");
    assert_eq!(unblock(&block).expect("it is a block"), if untouched { message } else { &sent });
    if untouched {
        assert_eq!(payload.refused().count(), 0);
        assert_eq!(by_go, expected, "it was canonical");
    }
    assert_reads_as(&sent, &expected);
}

/// What a receiver must read of a request: series that are within the limits, their labels in canonical form.
pub fn expected(arrived: &go::WriteRequest, limits: &DecodeLimits) -> go::WriteRequest {
    let timeseries = arrived.timeseries.iter().filter_map(|series| {
        let labels = canonical(&series.labels, limits)?;
        Some(go::TimeSeries { labels: labels_of(labels), ..series.clone() })
    });
    go::WriteRequest { timeseries: timeseries.collect(), metadata: arrived.metadata.clone() }
}

/// Go and prost read `expected` in a message, and its labels are in order.
pub fn assert_reads_as(message: &[u8], expected: &go::WriteRequest) {
    let by_go = go::unmarshal(message).expect("Go reads what goes on");
    for series in &by_go.timeseries {
        assert!(series.labels.is_sorted_by(|a, b| a.name < b.name), "{series:?}");
        assert!(series.labels.iter().all(|label| !label.name.is_empty() && !label.value.is_empty()), "{series:?}");
        assert!(series.labels.iter().all(is_text_label), "{series:?}");
    }
    assert_eq!(&by_go, expected);
    match prom::WriteRequest::decode(message) {
        Ok(by_prost) => assert_eq!(&from_prost(&by_prost), expected),
        // What is not looked at by the policy, and harms nobody but its sender.
        Err(error) => {
            let (error, outside) = (error.to_string(), ["exemplars", "metadata"]);
            assert!(error.contains("not UTF-8") && outside.iter().any(|place| error.contains(place)), "{error}");
        }
    }
}

/// A valid request, written as prost does it, is taken, unless there is too much of it.
fn is_taken(request: &prom::WriteRequest, limits: &DecodeLimits) {
    let message = request.encode_to_vec();
    let samples = |series: &prom::TimeSeries| series.samples.len() + series.histograms.len();
    if message.len() > limits.decoded
        || request.timeseries.len() > limits.series
        || request.timeseries.iter().map(samples).sum::<usize>() > limits.samples
    {
        return;
    }
    // Not `request`: prost leaves out what equals zero, and so does -0.
    let written = go::unmarshal(&message).expect("Go reads what prost writes");
    let decoder = infogw_layers::decode::WriteRequestDecoder::new(limits.clone());
    let payload = decoder.decode_message(message).expect("what prost writes is taken");
    assert_reads_as(&payload.to_message(), &expected(&written, limits));
}

/// The line that a sender gets is one, and no longer than it may be.
pub fn assert_one_line(refused: impl Into<Rejection>) {
    let refused = refused.into();
    assert!(refused.status().is_client_error(), "{refused:?}");
    let line = refused.detail();
    assert!(!line.is_empty() && line.len() < 1024 && !line.contains(char::is_control), "{line:?}");
}

/// What a policy sees: each series' labels, in order.
pub fn shown(payload: &mut impl SeriesSet) -> Vec<Vec<(String, String)>> {
    let mut seen = Vec::new();
    let look = |labels: &mut LabelSet<'_>| -> Result<Keep, Infallible> {
        seen.push(labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        Ok(Keep::Yes)
    };
    let Ok(_) = payload.try_edit(look);
    seen
}

pub fn labels_of(labels: Labels) -> Vec<go::Label> {
    labels.into_iter().map(|(name, value)| go::Label { name: name.into(), value: value.into() }).collect()
}

fn text_of(label: &go::Label) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("labels are UTF-8");
    (text(&label.name), text(&label.value))
}

fn is_text_label(label: &go::Label) -> bool {
    str::from_utf8(&label.name).is_ok() && str::from_utf8(&label.value).is_ok()
}

pub fn block(message: &[u8]) -> Bytes {
    snap::raw::Encoder::new().compress_vec(message).expect("it is small").into()
}

pub fn unblock(block: &[u8]) -> Option<Vec<u8>> {
    // What it claims to become must be possible.
    snap::raw::decompress_len(block).ok().filter(|len| *len <= block.len().saturating_mul(64))?;
    snap::raw::Decoder::new().decompress_vec(block).ok()
}

pub fn framed(message: &[u8]) -> Bytes {
    let mut frames = snap::write::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut frames, message).expect("a vector takes it");
    frames.into_inner().expect("a vector takes it").into()
}

pub fn unframed(stream: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    std::io::Read::read_to_end(&mut snap::read::FrameDecoder::new(stream), &mut message).ok()?;
    Some(message)
}

/// What prost read, as what Go reads.
pub fn from_prost(request: &prom::WriteRequest) -> go::WriteRequest {
    use prom::histogram::{Count, ZeroCount};
    let labels = |labels: &[prom::Label]| -> Vec<go::Label> {
        labels.iter().map(|it| go::Label { name: it.name.clone().into(), value: it.value.clone().into() }).collect()
    };
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
    let spans = |spans: &[prom::BucketSpan]| -> Vec<go::Span> {
        spans.iter().map(|span| go::Span { offset: span.offset, length: span.length }).collect()
    };
    let histogram = |it: &prom::Histogram| go::Histogram {
        count: it.count.map(|count| match count {
            Count::CountInt(count) => go::Count::Int(count),
            Count::CountFloat(count) => go::Count::Float(count.to_bits()),
        }),
        sum: it.sum.to_bits(),
        schema: it.schema,
        zero_threshold: it.zero_threshold.to_bits(),
        zero_count: it.zero_count.map(|count| match count {
            ZeroCount::ZeroCountInt(count) => go::Count::Int(count),
            ZeroCount::ZeroCountFloat(count) => go::Count::Float(count.to_bits()),
        }),
        negative_spans: spans(&it.negative_spans),
        negative_deltas: it.negative_deltas.clone(),
        negative_counts: bits(&it.negative_counts),
        positive_spans: spans(&it.positive_spans),
        positive_deltas: it.positive_deltas.clone(),
        positive_counts: bits(&it.positive_counts),
        reset_hint: it.reset_hint,
        timestamp: it.timestamp,
        custom_values: bits(&it.custom_values),
    };
    let sample = |it: &prom::Sample| go::Sample { value: it.value.to_bits(), timestamp: it.timestamp };
    let exemplar = |it: &prom::Exemplar| go::Exemplar {
        labels: labels(&it.labels),
        value: it.value.to_bits(),
        timestamp: it.timestamp,
    };
    let series = |it: &prom::TimeSeries| go::TimeSeries {
        labels: labels(&it.labels),
        samples: it.samples.iter().map(sample).collect(),
        exemplars: it.exemplars.iter().map(exemplar).collect(),
        histograms: it.histograms.iter().map(histogram).collect(),
    };
    let metadata = |it: &prom::MetricMetadata| go::Metadata {
        kind: it.r#type,
        metric_family_name: it.metric_family_name.clone().into(),
        help: it.help.clone().into(),
        unit: it.unit.clone().into(),
    };
    go::WriteRequest {
        timeseries: request.timeseries.iter().map(series).collect(),
        metadata: request.metadata.iter().map(metadata).collect(),
    }
}
