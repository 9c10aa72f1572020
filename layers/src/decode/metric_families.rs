use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::request::Parts;
use infogw_proto::wire::Cursor;

use super::{
    DecodeError, DecodeLimits, Decoder, content_encoding,
    families::{FamiliesBuilder, Name, Pair, Times, Value},
    fields::{double, length_delimited, timestamp_of_now, varint},
    label::{LabelRun, is_text, label},
    limits::Limits,
    media_type, native_histogram, snappy, text,
};
use crate::{
    clock::{Clock, SystemClock},
    float::go_float,
    payload::{LARGEST_PAYLOAD, MetricFamilies},
    rejection::{Reason, excerpt},
};

/// Decodes metric families as `/federate` gives them: delimited protobuf or text 0.0.4; framed snappy, identity or none.
///
/// Histograms and summaries become their series (`_bucket` with `le`, `quantile`, `_sum`, `_count`) as they are read, spelt
/// as Prometheus' Go client spells them in text; a native histogram stays one. Every sample needs a timestamp that is not too old
/// and ascends within its family; or what cannot go on is [left out](Self::drop_unusable).
#[derive(Debug, Clone)]
pub struct MetricFamiliesDecoder<C = SystemClock> {
    limits: Limits,
    max_age: Duration,
    stamp_missing: bool,
    drop_unusable: bool,
    clock: C,
}

impl MetricFamiliesDecoder {
    /// Decodes within `limits`; samples may be 24 hours old.
    pub fn new(limits: DecodeLimits) -> Self {
        Self::with(Limits::fixed(limits))
    }

    /// Decodes each request within limits of its own: the `Arc<DecodeLimits>` that a layer outside put into its extensions. A
    /// request without them is refused as a fault of ours.
    pub fn per_request() -> Self {
        Self::with(Limits::PerRequest)
    }

    fn with(limits: Limits) -> Self {
        let max_age = Duration::from_secs(24 * 60 * 60);
        MetricFamiliesDecoder { limits, max_age, stamp_missing: false, drop_unusable: false, clock: SystemClock }
    }
}

impl<C> MetricFamiliesDecoder<C> {
    /// Takes samples that are no older than `max_age`.
    #[must_use]
    pub fn max_age(self, max_age: Duration) -> Self {
        MetricFamiliesDecoder { max_age, ..self }
    }

    /// Takes a sample without a timestamp as one of now, as a scrape does, instead of refusing it.
    #[must_use]
    pub fn stamp_missing(self) -> Self {
        MetricFamiliesDecoder { stamp_missing: true, ..self }
    }

    /// Takes what a scrape answers as it is: what cannot be pushed on is left out, and the rest goes on, in any order of time. Left out
    /// are samples without a timestamp or too old, series over the limits of one, and of protobuf whatever is wrong with a metric, a
    /// family without a name and one of an unknown type, as telemeter-client does it. [`Refused::received`] counts these, and nobody is
    /// told of them. What is not of its format, and too much of everything, is refused as ever.
    ///
    /// [`Refused::received`]: crate::payload::Refused::received
    #[must_use]
    pub fn drop_unusable(self) -> Self {
        MetricFamiliesDecoder { drop_unusable: true, ..self }
    }

    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> MetricFamiliesDecoder<D> {
        let MetricFamiliesDecoder { limits, max_age, stamp_missing, drop_unusable, .. } = self;
        MetricFamiliesDecoder { limits, max_age, stamp_missing, drop_unusable, clock }
    }
}

/// How families are written and packed, and the limits that hold for them.
#[derive(Debug, Clone)]
pub struct Format {
    limits: Arc<DecodeLimits>,
    delimited: bool,
    framed: bool,
}

impl<C: Clock> Decoder for MetricFamiliesDecoder<C> {
    type Payload = MetricFamilies;
    type Format = Format;
    const REASONS: &'static [Reason] = &[
        Reason::MediaType,
        Reason::Encoding,
        Reason::TooManySeries,
        Reason::TooManySamples,
        Reason::Malformed,
        Reason::InvalidSeries,
        Reason::Timestamp,
        Reason::Internal,
    ];

    /// As `expfmt.ResponseFormat` of Prometheus' Go libraries reads the head; without a content type it is text.
    fn negotiate(&self, head: &Parts) -> Result<Format, DecodeError> {
        const DELIMITED: &str = "application/vnd.google.protobuf";
        let mut params = [("proto", None), ("encoding", None), ("version", None)];
        let essence = media_type(&head.headers, &mut params).unwrap_or("text/plain");
        let [(_, proto), (_, encoding), (_, version)] = params;
        let delimited = match essence {
            _ if essence.eq_ignore_ascii_case("text/plain") && version.is_none_or(|version| version == "0.0.4") => {
                false
            }
            _ if essence.eq_ignore_ascii_case(DELIMITED)
                && proto.is_none_or(|proto| proto == "io.prometheus.client.MetricFamily")
                && encoding.is_none_or(|encoding| encoding == "delimited") =>
            {
                true
            }
            _ => {
                let found = head.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                return Err(DecodeError::MediaType {
                    found: found.unwrap_or("?").to_owned(),
                    takes: "delimited io.prometheus.client.MetricFamily or text/plain; version=0.0.4",
                });
            }
        };
        let framed = match content_encoding(&head.headers) {
            encoding if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") => false,
            encoding if encoding.eq_ignore_ascii_case("snappy") => true,
            found => {
                return Err(DecodeError::Encoding {
                    found: found.to_owned(),
                    takes: "snappy (framed format), identity, or none",
                });
            }
        };
        Ok(Format { limits: self.limits.of(head)?, delimited, framed })
    }

    /// The limit counts decoded bytes. Frames of incompressible data are a little longer than what they hold.
    fn body_limit(&self, format: &Format) -> usize {
        let limit = format.limits.decoded;
        let slack = if format.framed { limit / 1024 + 64 } else { 0 };
        format.limits.body.min(limit.saturating_add(slack))
    }

    fn decode(&self, format: Format, body: Bytes) -> Result<MetricFamilies, DecodeError> {
        let limits = &*format.limits;
        let limit = limits.decoded.min(LARGEST_PAYLOAD);
        let unpacked;
        let message: &[u8] = if format.framed {
            unpacked = snappy::framed(&body, limit)?;
            &unpacked
        } else if body.len() > limit {
            return Err(DecodeError::TooLarge { what: "body", size: Some(body.len() as u64), limit });
        } else {
            &body
        };
        let mut builder = FamiliesBuilder::new(limits, self.times(), self.drop_unusable, message.len());
        let read = if format.delimited {
            delimited(message, &mut builder)
        } else {
            // Where one that has too many is left out, it is read to its end.
            let labels = if self.drop_unusable { usize::MAX } else { limits.labels };
            text::parse(message, labels, &mut builder).map_err(|error| match error {
                text::TextError::Sink { error, .. } => error,
                // The name is one of ours, and none of the text's.
                text::TextError::TooManyLabels { line, labels, max_labels } => DecodeError::InvalidSeries(format!(
                    "line {line}: the sample has {} labels, its name among them, at most {max_labels} are taken; drop some",
                    labels + 1
                )),
                other => DecodeError::Malformed(other.to_string()),
            })
        };
        builder.finish(read)
    }
}

impl<C: Clock> MetricFamiliesDecoder<C> {
    fn times(&self) -> Times {
        let now = self.clock.now();
        let oldest = now.checked_sub(self.max_age).and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        // Whole seconds, as telemeter-server counts.
        let oldest = oldest.map_or(i64::MIN, |oldest| oldest.as_secs() as i64 * 1000);
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let missing = self.stamp_missing.then_some(since_epoch.as_millis() as i64);
        Times { oldest, max_age: self.max_age, missing }
    }
}

impl text::TextSink for FamiliesBuilder<'_> {
    type Error = DecodeError;

    fn family(&mut self, _: &str, _: text::FamilyKind) -> Result<(), DecodeError> {
        FamiliesBuilder::family(self);
        Ok(())
    }

    /// Text spells histograms and summaries as their series already.
    fn sample(
        &mut self,
        name: &str,
        labels: &[text::Label<'_>],
        value: f64,
        timestamp: Option<i64>,
    ) -> Result<(), DecodeError> {
        self.point(
            (name, ""),
            labels.iter().map(|label| (label.name, label.value)),
            None,
            Value::Number(value),
            timestamp,
        )
    }
}

/// A stream of `MetricFamily` messages, each behind its length as a varint.
fn delimited(stream: &[u8], builder: &mut FamiliesBuilder<'_>) -> Result<(), DecodeError> {
    let mut cursor = Cursor::new(stream);
    let mut scratch = Scratch::default();
    while !cursor.is_empty() {
        let message = cursor.bytes()?;
        family(message, cursor.offset() - message.len(), builder, &mut scratch)?;
    }
    Ok(())
}

/// Buffers that serve all families of a body.
#[derive(Default)]
struct Scratch {
    number: String,
    histogram: Vec<u8>,
}

/// A metric's field in `MetricFamily`.
const METRIC: u8 = 0x22;

/// `MetricFamily { name = 1, help = 2, type = 3, metric = 4, unit = 5 }`. Name and type may stand behind the metrics.
fn family(
    message: &[u8],
    at: usize,
    builder: &mut FamiliesBuilder<'_>,
    scratch: &mut Scratch,
) -> Result<(), DecodeError> {
    let mut cursor = Cursor::within(message, at);
    let (mut name, mut kind, mut metrics) = ("", None, 0usize);
    while let Some(field) = cursor.field()? {
        match field.number {
            1 => {
                let text = utf8(length_delimited(&mut cursor, field)?, "family name");
                name = if builder.leaves_out() { text.unwrap_or_default() } else { text? };
            }
            3 => kind = Some(varint(&mut cursor, field)?),
            4 => {
                length_delimited(&mut cursor, field)?;
                metrics += 1 + cursor.skip_repeated(METRIC);
            }
            _ => cursor.skip(field.wire)?,
        }
    }
    if metrics == 0 {
        return Ok(());
    }
    if builder.leaves_out() && (name.is_empty() || kind.is_some_and(|kind| kind > 5)) {
        builder.left_out(metrics);
        return Ok(());
    }
    if name.is_empty() {
        return Err(DecodeError::Malformed("a metric family has no name; name it".to_owned()));
    }
    let kind = match kind {
        // The definition's default: a sender that leaves out a zero means a counter.
        None | Some(0) => Kind::Counter,
        Some(1) => Kind::Gauge,
        Some(2) => Kind::Summary,
        Some(3) => Kind::Untyped,
        Some(4) => Kind::Histogram,
        Some(5) => Kind::GaugeHistogram,
        Some(other) => {
            return Err(DecodeError::Malformed(format!(
                "metric family `{}` is of type {other}, which is not taken; send counters, gauges, untyped metrics, summaries or histograms",
                excerpt(name)
            )));
        }
    };
    builder.family();
    let mut cursor = Cursor::within(message, at);
    while let Some(field) = cursor.field()? {
        if field.number == 4 {
            let content = cursor.bytes()?;
            let run = Some(LabelRun::read(content, builder.limits())).filter(|run| is_text(run.block));
            if let Some(run) = run
                && let Some((value, timestamp)) =
                    plain_number(content.get(run.block.0.len()..).unwrap_or_default(), kind)
            {
                builder.point_of_run((name, ""), run, None, Value::Number(value), timestamp)?;
            } else {
                let mark = builder.mark();
                let metric = Metric::read(content, cursor.offset() - content.len(), run);
                match metric.and_then(|metric| metric.expand(name, kind, builder, scratch)) {
                    // Its length says where the next one begins.
                    Err(DecodeError::Malformed(_)) if builder.leaves_out() => builder.take_back(&mark),
                    read => read?,
                }
            }
        } else {
            cursor.skip(field.wire)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Summary,
    Untyped,
    Histogram,
    /// One whose counts may fall. `/federate` sends native ones whose reset hint says so.
    GaugeHistogram,
}

impl Kind {
    /// The field of `Metric` that holds the value.
    fn field(self) -> usize {
        match self {
            Kind::Gauge => 2,
            Kind::Counter => 3,
            Kind::Summary => 4,
            Kind::Untyped => 5,
            Kind::Histogram | Kind::GaugeHistogram => 7,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
            Kind::Untyped => "untyped",
            Kind::Histogram => "histogram",
            Kind::GaugeHistogram => "gauge histogram",
        }
    }
}

/// The value and the timestamp that stand behind a metric's labels, where they are one number as stock senders write it: a fixed64, and
/// no timestamp or one of this age.
#[inline]
fn plain_number(behind: &[u8], kind: Kind) -> Option<(f64, Option<i64>)> {
    let (&[tag, 0x09, 0x09], behind) = behind.split_first_chunk()? else { return None };
    let (value, behind) = behind.split_first_chunk()?;
    let timestamp = match behind {
        [] => None,
        [0x30, timestamp @ ..] => Some(timestamp_of_now(timestamp)?),
        _ => return None,
    };
    let number =
        matches!(kind, Kind::Counter | Kind::Gauge | Kind::Untyped) && usize::from(tag) == kind.field() << 3 | 2;
    number.then(|| (f64::from_le_bytes(*value), timestamp))
}

/// `Metric { label = 1, gauge = 2, counter = 3, summary = 4, untyped = 5, timestamp_ms = 6, histogram = 7 }`
struct Metric<'a> {
    content: &'a [u8],
    at: usize,
    /// All of the labels, where they are such a run and UTF-8.
    run: Option<LabelRun<'a>>,
    /// The value messages by field number; the rest of the array stays empty.
    values: [Option<(&'a [u8], usize)>; 8],
    timestamp: Option<i64>,
}

impl<'a> Metric<'a> {
    /// `run` is what `content` begins with.
    fn read(content: &'a [u8], at: usize, run: Option<LabelRun<'a>>) -> Result<Self, DecodeError> {
        let read = run.map_or(0, |run| run.block.0.len());
        let mut metric = Metric { content, at, run, values: [None; 8], timestamp: None };
        let mut cursor = Cursor::within(content.get(read..).unwrap_or_default(), at + read);
        while let Some(field) = cursor.field()? {
            match field.number {
                1 => {
                    let pair = length_delimited(&mut cursor, field)?;
                    label_pair(pair, cursor.offset() - pair.len())?;
                    metric.run = None;
                }
                6 => metric.timestamp = Some(varint(&mut cursor, field)? as i64),
                2 | 3 | 4 | 5 | 7 => {
                    let value = length_delimited(&mut cursor, field)?;
                    let value = Some((value, cursor.offset() - value.len()));
                    if let Some(slot) = metric.values.get_mut(field.number as usize) {
                        // Repeats of a message merge by concatenation, which nobody sends.
                        if slot.is_some() {
                            return Err(DecodeError::Malformed(
                                "a metric has its value twice; send it once".to_owned(),
                            ));
                        }
                        *slot = value;
                    }
                }
                _ => cursor.skip(field.wire)?,
            }
        }
        Ok(metric)
    }

    /// The labels; `read` has seen that they are sound.
    fn labels(&self) -> impl Iterator<Item = Pair<'a>> + Clone + use<'a> {
        let mut cursor = Cursor::within(self.content, self.at);
        std::iter::from_fn(move || {
            while let Ok(Some(field)) = cursor.field() {
                if field.number == 1 {
                    return label_pair(cursor.bytes().ok()?, 0).ok();
                }
                cursor.skip(field.wire).ok()?;
            }
            None
        })
    }

    /// Adds the series `name` with its sample.
    fn point(
        &self,
        builder: &mut FamiliesBuilder<'_>,
        name: Name<'_>,
        added: Option<Pair<'_>>,
        value: Value<'_>,
    ) -> Result<(), DecodeError> {
        match self.run {
            Some(run) => builder.point_of_run(name, run, added, value, self.timestamp),
            None => builder.point(name, self.labels(), added, value, self.timestamp),
        }
    }

    fn expand(
        &self,
        name: &str,
        kind: Kind,
        builder: &mut FamiliesBuilder<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), DecodeError> {
        let value = self.values.get(kind.field()).copied().flatten();
        let others = self.values.iter().enumerate().any(|(field, value)| field != kind.field() && value.is_some());
        let (Some((value, at)), false) = (value, others) else {
            return Err(DecodeError::Malformed(format!(
                "metric family `{}`: each metric must hold the value of a {}, and no other",
                excerpt(name),
                kind.as_str()
            )));
        };
        match kind {
            Kind::Counter | Kind::Gauge | Kind::Untyped => {
                let value = number(value, at)?;
                self.point(builder, (name, ""), None, Value::Number(value))
            }
            Kind::Summary => self.summary(name, value, at, builder, scratch),
            Kind::Histogram | Kind::GaugeHistogram => self.histogram((name, kind), value, at, builder, scratch),
        }
    }

    /// `Summary { sample_count = 1, sample_sum = 2, quantile = 3 { quantile = 1, value = 2 } }`
    fn summary(
        &self,
        name: &str,
        message: &[u8],
        at: usize,
        builder: &mut FamiliesBuilder<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), DecodeError> {
        let (mut count, mut sum) = (0u64, 0f64);
        let mut cursor = Cursor::within(message, at);
        while let Some(field) = cursor.field()? {
            match field.number {
                1 => count = varint(&mut cursor, field)?,
                2 => sum = double(&mut cursor, field)?,
                3 => {
                    let content = length_delimited(&mut cursor, field)?;
                    let (mut quantile, mut value) = (0f64, 0f64);
                    let mut inner = Cursor::within(content, cursor.offset() - content.len());
                    while let Some(field) = inner.field()? {
                        match field.number {
                            1 => quantile = double(&mut inner, field)?,
                            2 => value = double(&mut inner, field)?,
                            _ => inner.skip(field.wire)?,
                        }
                    }
                    go_float(&mut scratch.number, quantile);
                    let quantile = Some(("quantile", scratch.number.as_str()));
                    self.point(builder, (name, ""), quantile, Value::Number(value))?;
                }
                _ => cursor.skip(field.wire)?,
            }
        }
        self.point(builder, (name, "_sum"), None, Value::Number(sum))?;
        self.point(builder, (name, "_count"), None, Value::Number(count as f64))
    }

    /// `Histogram { sample_count = 1, sample_sum = 2, bucket = 3, sample_count_float = 4, ... }`
    fn histogram(
        &self,
        (name, kind): (&str, Kind),
        message: &[u8],
        at: usize,
        builder: &mut FamiliesBuilder<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), DecodeError> {
        let (mut count, mut count_float, mut sum) = (0u64, 0f64, 0f64);
        let (mut buckets, mut infinite) = (0usize, false);
        let mut cursor = Cursor::within(message, at);
        while let Some(field) = cursor.field()? {
            match field.number {
                1 => count = varint(&mut cursor, field)?,
                2 => sum = double(&mut cursor, field)?,
                3 => {
                    let content = length_delimited(&mut cursor, field)?;
                    let bucket = Bucket::read(content, cursor.offset() - content.len())?;
                    buckets += 1;
                    infinite |= bucket.upper_bound == f64::INFINITY;
                    go_float(&mut scratch.number, bucket.upper_bound);
                    let le = Some(("le", scratch.number.as_str()));
                    self.point(builder, (name, "_bucket"), le, Value::Number(bucket.count()))?;
                }
                4 => count_float = double(&mut cursor, field)?,
                _ => cursor.skip(field.wire)?,
            }
        }
        if buckets == 0 && native_histogram::is_native(message, at)? {
            native_histogram::translate(message, at, kind == Kind::GaugeHistogram, &mut scratch.histogram)?;
            return self.point(builder, (name, ""), None, Value::Histogram(&scratch.histogram));
        }
        let count = if count_float > 0.0 { count_float } else { count as f64 };
        if !infinite {
            self.point(builder, (name, "_bucket"), Some(("le", "+Inf")), Value::Number(count))?;
        }
        self.point(builder, (name, "_sum"), None, Value::Number(sum))?;
        self.point(builder, (name, "_count"), None, Value::Number(count))
    }
}

/// `Bucket { cumulative_count = 1, upper_bound = 2, exemplar = 3, cumulative_count_float = 4 }`
#[derive(Default)]
struct Bucket {
    cumulative_count: u64,
    cumulative_count_float: f64,
    upper_bound: f64,
}

impl Bucket {
    fn read(content: &[u8], at: usize) -> Result<Self, DecodeError> {
        let mut bucket = Bucket::default();
        let mut cursor = Cursor::within(content, at);
        while let Some(field) = cursor.field()? {
            match field.number {
                1 => bucket.cumulative_count = varint(&mut cursor, field)?,
                2 => bucket.upper_bound = double(&mut cursor, field)?,
                4 => bucket.cumulative_count_float = double(&mut cursor, field)?,
                _ => cursor.skip(field.wire)?,
            }
        }
        Ok(bucket)
    }

    fn count(&self) -> f64 {
        if self.cumulative_count_float > 0.0 { self.cumulative_count_float } else { self.cumulative_count as f64 }
    }
}

/// `Gauge`, `Counter` and `Untyped`: `{ value = 1 double }`
fn number(message: &[u8], at: usize) -> Result<f64, DecodeError> {
    let mut cursor = Cursor::within(message, at);
    let mut value = 0.0;
    while let Some(field) = cursor.field()? {
        if field.number == 1 {
            value = double(&mut cursor, field)?;
        } else {
            cursor.skip(field.wire)?;
        }
    }
    Ok(value)
}

/// `LabelPair { name = 1, value = 2 }`
fn label_pair(content: &[u8], at: usize) -> Result<Pair<'_>, DecodeError> {
    let label = label(content, at)?;
    Ok((utf8(label.name, "label name")?, utf8(label.value, "label value")?))
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Malformed(format!("a {what} is not UTF-8; drop it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_number_is_that_of_its_kind_and_nothing_else() {
        let timestamp = [0x80, 0xa0, 0xbf, 0xc7, 0xb1, 0x34];
        let at = Cursor::new(&timestamp).varint().unwrap() as i64;
        for (kind, tag) in [(Kind::Gauge, 0x12), (Kind::Counter, 0x1a), (Kind::Untyped, 0x2a)] {
            let value = [&[tag, 9, 0x09][..], &1.5f64.to_le_bytes()].concat();
            let timed = [&value[..], &[0x30], &timestamp].concat();
            assert_eq!(plain_number(&value, kind), Some((1.5, None)));
            assert_eq!(plain_number(&timed, kind), Some((1.5, Some(at))));
            for other in [[&timed[..], &[0x08, 0x01]].concat(), timed[..timed.len() - 1].to_vec(), timed[..9].to_vec()]
            {
                assert_eq!(plain_number(&other, kind), None, "{other:?}");
            }
            assert_eq!(plain_number(&value, Kind::Summary), None);
            assert_eq!(plain_number(&value, if kind == Kind::Gauge { Kind::Counter } else { Kind::Gauge }), None);
        }
        // A summary's count has no such wire type.
        assert_eq!(plain_number(&[&[0x22, 9, 0x09][..], &[0; 8]].concat(), Kind::Summary), None);
    }
}
