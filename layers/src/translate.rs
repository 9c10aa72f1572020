//! Metric families to remote write.
//!
//! [`TranslateLayer`] makes a [`WriteRequest`] of decoded [`MetricFamilies`]: a series with one sample each, values bit for bit.
//! The label blocks move over; nothing is parsed again.
//!
//! ```
//! use infogw_layers::{payload::{MetricFamilies, SeriesSet, WriteRequest}, translate::TranslateLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let service = ServiceBuilder::new()
//!     .layer(TranslateLayer::new().stamp())
//!     .service(service_fn(async |request: http::Request<WriteRequest>| Ok::<_, std::convert::Infallible>(request.body().samples())));
//! assert_eq!(service.oneshot(http::Request::new(MetricFamilies::default())).await?, 0);
//! # Ok(()) }
//! ```

use std::{
    task::{Context, Poll},
    time::SystemTime,
};

use http::Request;
use infogw_proto::wire::{put_varint, varint_len};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::{Clock, SystemClock},
    describe::{Describe, Row},
    observe::Observe,
    payload::{MetricFamilies, Series, Span, WriteRequest, flag},
};

/// A payload that can become a write request.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be translated to a write request",
    label = "this body is not metric families",
    note = "put `DecodeLayer` with a `MetricFamiliesDecoder` outside `TranslateLayer`"
)]
pub trait Translate {
    /// The write request, with each sample's own timestamp or, if given, with `timestamp` (milliseconds since the epoch).
    fn translate(self, timestamp: Option<i64>) -> WriteRequest;

    /// How far the samples' timestamps are from `now` (milliseconds since the epoch).
    fn tenses(&self, now: i64) -> Translated;
}

/// Timestamps, by how they lay to the gateway's clock: more than five minutes behind, within, or more than five minutes ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Translated {
    /// Behind.
    pub past: u64,
    /// Within five minutes.
    pub present: u64,
    /// Ahead.
    pub future: u64,
}

const DRIFT_MS: i64 = 5 * 60 * 1000;

impl Translate for MetricFamilies {
    fn translate(self, timestamp: Option<i64>) -> WriteRequest {
        let MetricFamilies { mut side, points, refused } = self;
        side.reserve(points.len() * Sample::LONGEST);
        let mut sample = Sample::at(timestamp.unwrap_or_default());
        let series = points.iter().map(|point| {
            let start = side.len();
            let timestamp = timestamp.unwrap_or(point.timestamp);
            if point.histogram.len() == 0 {
                sample.put(&mut side, point.value, timestamp);
            } else {
                put_histogram(&mut side, point.histogram, timestamp);
            }
            let rest = Span::new(start, side.len());
            Series::new(Span::default(), point.labels, rest, flag::ANY, 1)
        });
        let series = series.collect();
        WriteRequest { series, side, refused, ..WriteRequest::default() }
    }

    fn tenses(&self, now: i64) -> Translated {
        let mut tenses = Translated::default();
        for point in &self.points {
            match point.timestamp.saturating_sub(now) {
                drift if drift < -DRIFT_MS => tenses.past += 1,
                drift if drift > DRIFT_MS => tenses.future += 1,
                _ => tenses.present += 1,
            }
        }
        tenses
    }
}

/// `TimeSeries.samples = 2 { value = 1 double, timestamp = 2 int64 }`, kept for the next one: most have the same timestamp.
struct Sample {
    timestamp: i64,
    head: [u8; 3],
    tail: [u8; 1 + 10],
    tail_len: usize,
}

impl Sample {
    /// Tag, length, and at most 9 + 11 bytes.
    const LONGEST: usize = 22;

    fn at(timestamp: i64) -> Self {
        // int64 is two's complement on the wire, ten bytes when negative.
        let (varint, len) = (timestamp as u64, varint_len(timestamp as u64));
        let mut tail = [0; 11];
        for (i, byte) in tail.iter_mut().enumerate().take(1 + len) {
            *byte = match i.checked_sub(1) {
                None => 0x10,
                Some(i) => (varint >> (7 * i)) as u8 & 0x7f | if i + 1 < len { 0x80 } else { 0 },
            };
        }
        Sample { timestamp, head: [0x12, (9 + 1 + len) as u8, 0x09], tail, tail_len: 1 + len }
    }

    fn put(&mut self, out: &mut Vec<u8>, value: u64, timestamp: i64) {
        if timestamp != self.timestamp {
            *self = Self::at(timestamp);
        }
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&value.to_le_bytes());
        // Copied whole, which takes two instructions, and cut.
        let end = out.len() + self.tail_len;
        out.extend_from_slice(&self.tail);
        out.truncate(end);
    }
}

/// `TimeSeries.histograms = 4 { ..., timestamp = 15 int64 }`, its other fields at `fields`.
fn put_histogram(out: &mut Vec<u8>, fields: Span, timestamp: i64) {
    let timestamp = timestamp as u64;
    out.push(0x22);
    put_varint(out, (fields.len() + 1 + varint_len(timestamp)) as u64);
    out.extend_from_within(fields.start as usize..fields.end as usize);
    out.push(0x78);
    put_varint(out, timestamp);
}

/// Translates metric families.
#[derive(Debug, Clone, Default)]
pub struct TranslateLayer<C = SystemClock, O = ()> {
    stamp: bool,
    clock: C,
    observer: O,
}

impl TranslateLayer {
    /// Keeps each sample's timestamp.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C, O> TranslateLayer<C, O> {
    /// Sets every timestamp to now, in whole seconds, as telemeter-server does.
    #[must_use]
    pub fn stamp(self) -> Self {
        TranslateLayer { stamp: true, ..self }
    }

    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> TranslateLayer<D, O> {
        TranslateLayer { stamp: self.stamp, clock, observer: self.observer }
    }

    /// Tells `observer` how the timestamps lay to the clock.
    pub fn observed_by<P>(self, observer: P) -> TranslateLayer<C, P> {
        TranslateLayer { stamp: self.stamp, clock: self.clock, observer }
    }
}

impl<S, C: Clone, O: Clone> Layer<S> for TranslateLayer<C, O> {
    type Service = Translating<S, C, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Translating { inner, layer: self.clone() }
    }
}

/// The service that [`TranslateLayer`] makes.
#[derive(Debug, Clone)]
pub struct Translating<S, C = SystemClock, O = ()> {
    inner: S,
    layer: TranslateLayer<C, O>,
}

impl<S, C, O, P> Service<Request<P>> for Translating<S, C, O>
where
    P: Translate,
    C: Clock,
    O: Observe<Translated>,
    S: Service<Request<WriteRequest>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<P>) -> Self::Future {
        let TranslateLayer { stamp, clock, observer } = &self.layer;
        let since_epoch = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since_epoch.as_secs() * 1000).unwrap_or(i64::MAX);
        self.inner.call(request.map(|payload| {
            observer.observe(&payload.tenses(now));
            payload.translate(stamp.then_some(now))
        }))
    }
}

impl<S, C, O, P> Describe<Request<P>> for Translating<S, C, O>
where
    P: Translate,
    S: Describe<Request<WriteRequest>>,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<P>>("TranslateLayer", &[]));
        S::describe(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use infogw_proto::prometheus;
    use proptest::prelude::*;
    use prost::Message as _;

    proptest! {
        /// Whatever was written before it.
        #[test]
        fn a_sample_is_what_prost_reads(
            samples in prop::collection::vec(
                (any::<u64>(), prop_oneof![any::<i64>(), Just(0), Just(-1), Just(1_800_000_000_000), (0u32..64).prop_map(|bits| (1u64 << bits) as i64)]),
                1..8,
            ),
        ) {
            let (mut out, mut sample) = (Vec::new(), Sample::at(0));
            for &(value, timestamp) in &samples {
                sample.put(&mut out, value, timestamp);
            }
            let read = prometheus::TimeSeries::decode(&out[..]).unwrap().samples;
            let read: Vec<_> = read.iter().map(|sample| (sample.value.to_bits(), sample.timestamp)).collect();
            prop_assert_eq!(&read, &samples);
            // No longer than need be: 11 bytes and the timestamp, and the field around them.
            let shortest = samples.iter().map(|&(_, timestamp)| 11 + 1 + varint_len(timestamp as u64)).sum::<usize>();
            prop_assert_eq!(out.len(), shortest);
        }
    }
}
