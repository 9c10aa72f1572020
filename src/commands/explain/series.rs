//! The series of a request, each by itself, whatever becomes of the request.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use infogw_layers::{
    decode::{DecodeError, DecodeLimits, Decoder as _, MetricFamiliesDecoder, WriteRequestDecoder},
    enforce::Explained,
    payload::{Keep, LARGEST_PAYLOAD, LabelSet, MOST_SERIES, SeriesSet},
    policy::Endpoint,
};
use infogw_proto::wire::{Cursor, WireType, put_varint};

use super::{LARGEST_DECODED, input::Input, sender::Sender};

/// Labels, sorted by name.
pub(super) type Labels = Vec<(Box<str>, Box<str>)>;

/// One series, and what becomes of it.
#[derive(Debug)]
pub(super) struct Series {
    /// As it arrived. Without any, its labels cannot be read.
    pub(super) labels: Labels,
    pub(super) samples: u64,
    pub(super) explained: Explained,
}

/// Shows each series to `see`, in the order they arrived.
///
/// # Errors
/// What keeps the rest from being read.
pub(super) fn each(
    sender: &Sender<'_>,
    input: &Input,
    body: &Bytes,
    mut see: impl FnMut(Series),
) -> Result<(), DecodeError> {
    let explain = |labels: &LabelSet<'_>| sender.terms.labels.explain(&sender.identity, labels);
    match input.endpoint {
        Endpoint::Upload => {
            let decoder = lenient_families();
            let mut families = decoder.decode(decoder.negotiate(&input.head())?, body.clone())?;
            look(&mut families, |labels| {
                see(Series { labels: copy(labels), samples: 1, explained: explain(labels) });
            });
        }
        Endpoint::Receive => {
            // The limits of one series: those of the request are the request's.
            let limits = DecodeLimits::clone(&sender.terms.limits);
            let strict = WriteRequestDecoder::new(DecodeLimits { samples: usize::MAX, ..whole(limits) });
            let lenient = WriteRequestDecoder::new(lenient());
            each_message(body, |message, samples| {
                let mut series = strict.decode_message(message.clone())?;
                if let Some(offence) = series.refused().first().cloned() {
                    let mut labels = Labels::new();
                    look(&mut lenient.decode_message(message)?, |found| labels = copy(found));
                    see(Series { labels, samples, explained: Explained::Refused(offence) });
                }
                look(&mut series, |labels| see(Series { labels: copy(labels), samples, explained: explain(labels) }));
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// The value of the label `name` of the first series.
///
/// # Errors
/// What keeps the series from being read.
pub(super) fn first_value(input: &Input, name: &str) -> Result<Option<String>, DecodeError> {
    let mut first: Option<String> = None;
    let mut see = |labels: &LabelSet<'_>| {
        first.get_or_insert_with(|| labels.value(name).to_owned());
    };
    let Some(body) = input.bodies.first() else { return Ok(None) };
    match input.endpoint {
        Endpoint::Upload => {
            let decoder = lenient_families();
            let format = decoder.negotiate(&input.head())?;
            look(&mut decoder.decode(format, body.clone())?, see);
        }
        Endpoint::Receive => {
            let mut request = WriteRequestDecoder::new(lenient()).decode_block(body.clone())?;
            look(&mut request, &mut see);
        }
    }
    Ok(first.filter(|value| !value.is_empty()))
}

/// Whether it is the body of a remote write.
pub(super) fn is_write_request(body: &[u8]) -> bool {
    WriteRequestDecoder::new(lenient()).decode_block(Bytes::copy_from_slice(body)).is_ok()
}

/// Takes families of any size and age.
pub(super) fn lenient_families() -> MetricFamiliesDecoder {
    MetricFamiliesDecoder::new(lenient()).max_age(Duration::MAX).stamp_missing()
}

/// Shows each message with one series of the remote write `body`, as it arrived, and how many samples it has, be it ever so wrong: in a
/// request with the others it is decoded alike.
fn each_message(body: &[u8], mut see: impl FnMut(Vec<u8>, u64) -> Result<(), DecodeError>) -> Result<(), DecodeError> {
    // What it claims to become was looked at when it was read.
    let message = snap::raw::Decoder::new().decompress_vec(body);
    let message = message.map_err(|_| DecodeError::Malformed("the body is not a snappy block".to_owned()))?;
    let mut cursor = Cursor::new(&message);
    while let Some(field) = cursor.field()? {
        match (field.number, field.wire) {
            (1, WireType::Len) => {
                let content = cursor.bytes()?;
                let mut single = Vec::with_capacity(content.len() + 6);
                single.push(0x0a);
                put_varint(&mut single, content.len() as u64);
                single.extend_from_slice(content);
                see(single, samples(content)?)?;
            }
            (_, wire) => cursor.skip(wire)?,
        }
    }
    Ok(())
}

/// How many samples and histograms a `TimeSeries` has.
fn samples(series: &[u8]) -> Result<u64, DecodeError> {
    let mut cursor = Cursor::new(series);
    let mut samples = 0;
    while let Some(field) = cursor.field()? {
        samples += u64::from(matches!(field.number, 2 | 4));
        cursor.skip(field.wire)?;
    }
    Ok(samples)
}

fn look(payload: &mut impl SeriesSet, mut see: impl FnMut(&LabelSet<'_>)) {
    let seen = payload.try_edit(|labels| -> Result<Keep, Infallible> {
        see(labels);
        Ok(Keep::Yes)
    });
    match seen {
        Ok(_) => {}
        Err(never) => match never {},
    }
}

fn copy(labels: &LabelSet<'_>) -> Labels {
    labels.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn lenient() -> DecodeLimits {
    whole(DecodeLimits {
        samples: usize::MAX,
        labels: usize::MAX,
        label_name: usize::MAX,
        label_value: usize::MAX,
        unrepeatable: Vec::new(),
        ..DecodeLimits::default()
    })
}

/// Of whatever size that is taken here.
fn whole(limits: DecodeLimits) -> DecodeLimits {
    DecodeLimits { body: LARGEST_PAYLOAD, decoded: LARGEST_DECODED, series: MOST_SERIES, ..limits }
}
