use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use infogw_proto::wire::{Cursor, WireError, WireType, varint_len};

use super::{
    DecodeError, DecodeLimits, Decoder, NAME, content_encoding,
    fields::{check, check_bucket_span, check_packed, length_delimited, timestamp_of_now},
    label::{LabelRun, is_text, label},
    limits::{Excess, Limits},
    media_type, snappy,
};
use crate::{
    payload::{
        BYTES_PER_SERIES, Buffer, LARGEST_PAYLOAD, LabelBlock, LabelWriter, Offence, Refused, Series, Span,
        WriteRequest, flag,
    },
    rejection::Reason,
};

/// Decodes remote write 1.0: `prometheus.WriteRequest`, snappy block format.
///
/// A body that does not decode is refused whole. A series that decodes but breaks a limit is left out and counted as
/// [refused](crate::payload::Refused), so that its neighbours are written.
#[derive(Debug, Clone)]
pub struct WriteRequestDecoder {
    limits: Limits,
}

impl Default for WriteRequestDecoder {
    /// Decodes within the default limits.
    fn default() -> Self {
        Self::new(DecodeLimits::default())
    }
}

impl WriteRequestDecoder {
    /// Decodes within `limits`.
    pub fn new(limits: DecodeLimits) -> Self {
        WriteRequestDecoder { limits: Limits::fixed(limits) }
    }

    /// Decodes each request within limits of its own: the `Arc<DecodeLimits>` that a layer outside put into its extensions. A
    /// request without them is refused as a fault of ours.
    pub fn per_request() -> Self {
        WriteRequestDecoder { limits: Limits::PerRequest }
    }

    /// Decodes a body that came without a request, a snappy block.
    ///
    /// # Errors
    /// As [`Decoder::decode`]; and [`DecodeError::NoLimits`] where limits are per request.
    pub fn decode_block(&self, body: Bytes) -> Result<WriteRequest, DecodeError> {
        decode(self.limits.fixed_only()?, body)
    }

    /// Decodes a message that is not compressed. It counts as changed: there are no received bytes to hand on.
    ///
    /// # Errors
    /// As [`Self::decode_block`].
    pub fn decode_message(&self, message: Vec<u8>) -> Result<WriteRequest, DecodeError> {
        walk(self.limits.fixed_only()?, message.into(), None)
    }
}

fn decode(limits: &DecodeLimits, body: Bytes) -> Result<WriteRequest, DecodeError> {
    let message = snappy::block(&body, limits.decoded.min(LARGEST_PAYLOAD))?;
    walk(limits, message, Some(body))
}

fn walk(limits: &DecodeLimits, source: Buffer, received: Option<Bytes>) -> Result<WriteRequest, DecodeError> {
    if source.len() > LARGEST_PAYLOAD {
        return Err(DecodeError::TooLarge {
            what: "decoded body",
            size: Some(source.len() as u64),
            limit: LARGEST_PAYLOAD,
        });
    }
    let mut walk = Walk {
        limits,
        side: Vec::new(),
        writer: LabelWriter::default(),
        series: Vec::with_capacity((source.len() / BYTES_PER_SERIES).min(limits.series)),
        others: Vec::new(),
        refused: Refused::default(),
        seen: 0,
        samples: 0,
        untouched: true,
    };
    walk.message(&source)?;
    let Walk { side, series, others, mut refused, seen, untouched, .. } = walk;
    refused.set_received(seen);
    Ok(WriteRequest { received: received.filter(|_| untouched), source, side, series, others, refused })
}

impl Decoder for WriteRequestDecoder {
    type Payload = WriteRequest;
    /// The limits that hold for it.
    type Format = Arc<DecodeLimits>;
    const REASONS: &'static [Reason] = &[
        Reason::MediaType,
        Reason::Encoding,
        Reason::TooManySeries,
        Reason::TooManySamples,
        Reason::Malformed,
        Reason::InvalidSeries,
        Reason::Internal,
    ];

    /// Remote write 1.0 specification, "Protocol": a missing content type means 1.0, a missing encoding means snappy.
    fn negotiate(&self, head: &Parts) -> Result<Arc<DecodeLimits>, DecodeError> {
        let mut params = [("proto", None)];
        if let Some(essence) = media_type(&head.headers, &mut params) {
            let [(_, proto)] = params;
            if !essence.eq_ignore_ascii_case("application/x-protobuf")
                || proto.is_some_and(|proto| proto != "prometheus.WriteRequest")
            {
                let found = match proto {
                    Some(proto) => format!("{essence};proto={proto}"),
                    None => essence.to_owned(),
                };
                return Err(DecodeError::MediaType { found, takes: "application/x-protobuf (remote write 1.0)" });
            }
        }
        match content_encoding(&head.headers) {
            encoding if encoding.is_empty() || encoding.eq_ignore_ascii_case("snappy") => self.limits.of(head),
            found => Err(DecodeError::Encoding { found: found.to_owned(), takes: "snappy (block format)" }),
        }
    }

    fn body_limit(&self, limits: &Arc<DecodeLimits>) -> usize {
        limits.body
    }

    fn decode(&self, limits: Arc<DecodeLimits>, body: Bytes) -> Result<WriteRequest, DecodeError> {
        decode(&limits, body)
    }
}

/// One pass over a message.
struct Walk<'l> {
    limits: &'l DecodeLimits,
    side: Vec<u8>,
    writer: LabelWriter,
    series: Vec<Series>,
    others: Vec<Span>,
    refused: Refused,
    /// Series so far, refused ones among them.
    seen: usize,
    /// Samples so far, those of refused series among them.
    samples: usize,
    /// Everything so far may be handed on as it was received.
    untouched: bool,
}

impl Walk<'_> {
    fn message(&mut self, source: &[u8]) -> Result<(), DecodeError> {
        let mut cursor = Cursor::new(source);
        loop {
            let start = cursor.offset();
            let Some(field) = cursor.field()? else { return Ok(()) };
            match field.number {
                1 => {
                    cursor.expect(field, WireType::Len)?;
                    let content = cursor.bytes()?;
                    let whole = Span::new(start, cursor.offset());
                    self.seen += 1;
                    if self.seen > self.limits.series {
                        let more = count_on(&mut cursor, |_| Some(1));
                        let count = more.map(|more| self.seen as u64 + more);
                        return Err(DecodeError::TooManySeries { count, limit: self.limits.series });
                    }
                    self.one_series(source, whole, cursor.offset() - content.len(), field.overlong)?;
                    if self.samples > self.limits.samples {
                        let more = count_on(&mut cursor, count_samples);
                        let count = more.map(|more| self.samples as u64 + more);
                        return Err(DecodeError::TooManySamples { count, limit: self.limits.samples });
                    }
                }
                // Metadata, reserved and unknown fields: carried along.
                number => {
                    match number {
                        3 => metadata(length_delimited(&mut cursor, field)?, start)?,
                        _ => cursor.skip(field.wire)?,
                    }
                    extend(&mut self.others, start, cursor.offset());
                }
            }
        }
    }

    fn one_series(&mut self, source: &[u8], whole: Span, start: usize, overlong: bool) -> Result<(), DecodeError> {
        let series_bytes = Span::new(start, whole.end as usize);
        let plain = Plain::read(series_bytes.of(source), self.limits);
        if plain.behind.is_empty() && !overlong && plain.run.count <= self.limits.labels && is_text(plain.run.block) {
            self.samples += plain.samples as usize;
            let rest = start + plain.run.block.0.len();
            let (labels, rest) = (Span::new(start, rest), Span::new(rest, whole.end as usize));
            self.series.push(Series::new(whole, labels, rest, 0, plain.samples));
            return Ok(());
        }
        let index = self.seen - 1;
        let found = self.scan(series_bytes, &plain)?;
        self.samples = self.samples.saturating_add(found.samples as usize);
        let mut excess = found.excess;
        let mut flags = if overlong { flag::REFRAME } else { 0 };
        let (mut labels, mut rest) = (found.labels, found.rest);
        if excess.is_none() && !(found.canonical && is_text(LabelBlock(labels.of(source)))) {
            match self.rewrite_labels(source, series_bytes)? {
                Ok(rewritten) => labels = rewritten,
                Err(broken) => excess = Some(broken),
            }
            flags |= flag::LABELS_IN_SIDE;
        }
        if let Some(excess) = excess {
            self.untouched = false;
            let limits = self.limits;
            let offence = || {
                Offence::new(Reason::InvalidSeries, index, metric_name(source, series_bytes), limits.explain(excess))
            };
            self.refused.add(NAME, offence);
            return Ok(());
        }
        if found.scattered {
            rest = self.gather_rest(source, series_bytes)?;
            flags |= flag::REST_IN_SIDE;
        }
        self.untouched &= flags == 0;
        self.series.push(Series::new(whole, labels, rest, flags, found.samples));
        Ok(())
    }

    /// Checks the fields of a series behind those that are plain, and finds where its labels and its rest are.
    fn scan<'s>(&self, series: Span, plain: &Plain<'s>) -> Result<Found<'s>, WireError> {
        let (start, end) = (series.start as usize, series.end as usize);
        let (labels_end, rest_end) = (start + plain.run.block.0.len(), end - plain.behind.len());
        let mut found = Found {
            labels: Span::new(start, labels_end),
            rest: Span::new(labels_end, rest_end),
            canonical: true,
            scattered: false,
            excess: None,
            samples: plain.samples,
        };
        let (mut count, mut last_name) = (plain.run.count, plain.run.last_name);
        let mut cursor = Cursor::within(plain.behind, rest_end);
        loop {
            let start = cursor.offset();
            let Some(field) = cursor.field()? else {
                if count > self.limits.labels {
                    found.excess = Some(Excess::Labels(count));
                }
                return Ok(found);
            };
            if field.number == 1 {
                let content = length_delimited(&mut cursor, field)?;
                let label = label(content, cursor.offset() - content.len())?;
                count += 1;
                if let Err(excess) = self.limits.check_label(label.name, label.value) {
                    found.excess.get_or_insert(excess);
                }
                let minimal = 1 + varint_len(content.len() as u64) + content.len();
                found.canonical &= label.canonical
                    && last_name < label.name
                    && !label.value.is_empty()
                    && cursor.offset() - start == minimal;
                last_name = label.name;
                found.canonical &= grow(&mut found.labels, start, cursor.offset());
                continue;
            }
            match field.number {
                2 => {
                    sample(length_delimited(&mut cursor, field)?, start)?;
                    found.samples = found.samples.saturating_add(1);
                }
                3 => exemplar(length_delimited(&mut cursor, field)?, start)?,
                4 => {
                    histogram(length_delimited(&mut cursor, field)?, start)?;
                    found.samples = found.samples.saturating_add(1);
                }
                _ => cursor.skip(field.wire)?,
            }
            found.scattered |= !grow(&mut found.rest, start, cursor.offset());
        }
    }

    /// Writes the series' labels anew, in canonical form.
    fn rewrite_labels<'s>(&mut self, source: &'s [u8], series: Span) -> Result<Result<Span, Excess<'s>>, WireError> {
        let mut cursor = Cursor::within(series.of(source), series.start as usize);
        self.writer.begin(&self.side);
        while let Some(field) = cursor.field()? {
            if field.number != 1 {
                cursor.skip(field.wire)?;
                continue;
            }
            let content = cursor.bytes()?;
            let label = label(content, cursor.offset() - content.len())?;
            if std::str::from_utf8(label.name).is_err() || std::str::from_utf8(label.value).is_err() {
                return Ok(Err(Excess::NotUtf8(label.name)));
            }
            self.writer.push(&mut self.side, label.name, label.value);
        }
        let block = self.writer.finish(&mut self.side);
        Ok(self.repeated(source, series)?.map_or(Ok(block), |name| Err(Excess::Repeated(name))))
    }

    /// The label that repeats and must not. Looks at the labels as they were sent: an empty repeat is a repeat, too.
    fn repeated<'s>(&self, source: &'s [u8], series: Span) -> Result<Option<&'s [u8]>, WireError> {
        for unrepeatable in &self.limits.unrepeatable {
            let mut cursor = Cursor::within(series.of(source), series.start as usize);
            let mut seen = false;
            while let Some(field) = cursor.field()? {
                if field.number == 1 {
                    let name = label(cursor.bytes()?, 0)?.name;
                    if name == unrepeatable.as_bytes() && std::mem::replace(&mut seen, true) {
                        return Ok(Some(name));
                    }
                } else {
                    cursor.skip(field.wire)?;
                }
            }
        }
        Ok(None)
    }

    /// Brings together what stands between labels.
    fn gather_rest(&mut self, source: &[u8], series: Span) -> Result<Span, WireError> {
        let to = self.side.len();
        let mut cursor = Cursor::within(series.of(source), series.start as usize);
        loop {
            let start = cursor.offset();
            let Some(field) = cursor.field()? else { return Ok(Span::new(to, self.side.len())) };
            cursor.skip(field.wire)?;
            if field.number != 1 {
                self.side.extend_from_slice(Span::new(start, cursor.offset()).of(source));
            }
        }
    }
}

/// What `count` says of all series that follow, in sum. Nothing is kept, and the first that cannot be read ends it.
#[cold]
fn count_on(cursor: &mut Cursor<'_>, count: impl Fn(&[u8]) -> Option<u64>) -> Option<u64> {
    let mut sum = 0;
    while let Some(field) = cursor.field().ok()? {
        if field.number == 1 {
            sum += count(length_delimited(cursor, field).ok()?)?;
        } else {
            cursor.skip(field.wire).ok()?;
        }
    }
    Some(sum)
}

fn count_samples(series: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(series);
    let mut samples = 0;
    while let Some(field) = cursor.field().ok()? {
        samples += u64::from(matches!(field.number, 2 | 4));
        cursor.skip(field.wire).ok()?;
    }
    Some(samples)
}

/// What a scan of one series found.
struct Found<'s> {
    labels: Span,
    rest: Span,
    /// The labels are one canonical block, but for UTF-8.
    canonical: bool,
    /// The rest is not in one piece.
    scattered: bool,
    excess: Option<Excess<'s>>,
    samples: u32,
}

/// What a series begins with, as far as it is written as stock senders write it: labels, then samples. Most are nothing else.
struct Plain<'s> {
    run: LabelRun<'s>,
    samples: u32,
    behind: &'s [u8],
}

impl<'s> Plain<'s> {
    #[inline]
    fn read(series: &'s [u8], limits: &DecodeLimits) -> Self {
        let run = LabelRun::read(series, limits);
        let mut plain = Plain { run, samples: 0, behind: series.get(run.block.0.len()..).unwrap_or_default() };
        while let Some(behind) = behind_plain_sample(plain.behind) {
            plain.samples += 1;
            plain.behind = behind;
        }
        plain
    }
}

/// What is behind a sample, with its tag and length, that is written as stock senders write it: its value unless that is zero, and a
/// timestamp of this age.
#[inline]
fn behind_plain_sample(series: &[u8]) -> Option<&[u8]> {
    let (&[0x12, len], series) = series.split_first_chunk()? else { return None };
    let (sample, behind) = series.split_at_checked(usize::from(len))?;
    let timestamp = match sample.split_first_chunk() {
        Some((&[0x09, _, _, _, _, _, _, _, _], timestamp)) => timestamp,
        _ => sample,
    };
    let (&[0x10], timestamp) = timestamp.split_first_chunk()? else { return None };
    timestamp_of_now(timestamp).filter(|_| len < 0x80).map(|_| behind)
}

/// `Sample { value = 1 double, timestamp = 2 int64 }`
#[inline]
fn sample(content: &[u8], at: usize) -> Result<(), WireError> {
    check(content, at, |number| match number {
        1 => Some(WireType::Fixed64),
        2 => Some(WireType::Varint),
        _ => None,
    })
}

/// `MetricMetadata { type = 1 enum, metric_family_name = 2 string, help = 4 string, unit = 5 string }`
fn metadata(content: &[u8], at: usize) -> Result<(), WireError> {
    check(content, at, |number| match number {
        1 => Some(WireType::Varint),
        2 | 4 | 5 => Some(WireType::Len),
        _ => None,
    })
}

/// `Exemplar { labels = 1, value = 2 double, timestamp = 3 int64 }`
fn exemplar(content: &[u8], at: usize) -> Result<(), WireError> {
    let mut cursor = Cursor::within(content, at);
    while let Some(field) = cursor.field()? {
        match field.number {
            1 => {
                label(length_delimited(&mut cursor, field)?, at)?;
            }
            2 => {
                cursor.expect(field, WireType::Fixed64)?;
                cursor.skip(field.wire)?;
            }
            3 => {
                cursor.expect(field, WireType::Varint)?;
                cursor.skip(field.wire)?;
            }
            _ => cursor.skip(field.wire)?,
        }
    }
    Ok(())
}

/// `Histogram`: numbers of either layout, spans as messages, deltas packed or not.
fn histogram(content: &[u8], at: usize) -> Result<(), WireError> {
    let mut cursor = Cursor::within(content, at);
    while let Some(field) = cursor.field()? {
        match (field.number, field.wire) {
            (8 | 11, _) => check_bucket_span(length_delimited(&mut cursor, field)?, at)?,
            (9 | 12, WireType::Len) => check_packed(cursor.bytes()?, at, WireType::Varint)?,
            (10 | 13 | 16, WireType::Len) => check_packed(cursor.bytes()?, at, WireType::Fixed64)?,
            (1 | 4 | 6 | 9 | 12 | 14 | 15, _) => {
                cursor.expect(field, WireType::Varint)?;
                cursor.varint()?;
            }
            (2 | 3 | 5 | 7 | 10 | 13 | 16, _) => {
                cursor.expect(field, WireType::Fixed64)?;
                cursor.fixed64()?;
            }
            _ => cursor.skip(field.wire)?,
        }
    }
    Ok(())
}

/// The metric name of a series that may not be canonical, for a message.
fn metric_name(source: &[u8], series: Span) -> &str {
    let mut cursor = Cursor::new(series.of(source));
    while let Ok(Some(field)) = cursor.field() {
        if field.number == 1
            && let Ok(content) = cursor.bytes()
        {
            match label(content, 0) {
                Ok(label) if label.name == b"__name__" => return std::str::from_utf8(label.value).unwrap_or_default(),
                _ => continue,
            }
        }
        if cursor.skip(field.wire).is_err() {
            break;
        }
    }
    ""
}

/// Makes `run` reach to `end`; says whether it is still one piece.
#[inline]
fn grow(run: &mut Span, start: usize, end: usize) -> bool {
    let joined = run.len() == 0 || run.end as usize == start;
    *run = Span::new(if run.len() == 0 { start } else { run.start as usize }, end);
    joined
}

/// Adds `start..end` to the runs, to the last one if it continues it.
fn extend(runs: &mut Vec<Span>, start: usize, end: usize) {
    match runs.last_mut() {
        Some(run) if run.end as usize == start => run.end = end as u32,
        _ => runs.push(Span::new(start, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::SeriesSet;

    /// Names that differ behind their eighth byte only: out of order, and repeated.
    #[test]
    fn a_run_ends_where_names_do_not_ascend() {
        let block = |names: &[&str]| {
            let mut block = Vec::new();
            for name in names {
                let len = name.len() as u8;
                block.extend([0x0a, len + 5, 0x0a, len]);
                block.extend(name.as_bytes());
                block.extend(b"\x12\x01v");
            }
            block
        };
        let limits = DecodeLimits::default();
        for (names, count, canonical) in [
            (["longlabel_a", "longlabel_b"], 2, &["longlabel_a", "longlabel_b"][..]),
            (["longlabel_b", "longlabel_a"], 1, &["longlabel_a", "longlabel_b"][..]),
            (["longlabel_a", "longlabel_a"], 1, &["longlabel_a"][..]),
        ] {
            let labels = block(&names);
            assert_eq!(LabelRun::read(&labels, &limits).count, count, "{names:?}");
            let mut message = vec![0x0a, labels.len() as u8];
            message.extend(&labels);
            let mut request = walk(&limits, message.into(), None).unwrap();
            let mut found = Vec::new();
            let look = |labels: &mut crate::payload::LabelSet<'_>| -> Result<_, ()> {
                found.extend(labels.iter().map(|(name, _)| name.to_owned()));
                Ok(crate::payload::Keep::Yes)
            };
            request.try_edit(look).unwrap();
            assert_eq!(found, canonical);
        }
    }

    #[test]
    fn a_plain_sample_is_stepped_over_and_nothing_else() {
        let timestamp = [0x10, 0x80, 0xa0, 0xbf, 0xc7, 0xb1, 0x34];
        let value = [0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f];
        let framed = |sample: &[u8]| [&[0x12, sample.len() as u8], sample, b"rest"].concat();
        for plain in [[&value[..], &timestamp].concat(), timestamp.to_vec()] {
            assert_eq!(behind_plain_sample(&framed(&plain)), Some(&b"rest"[..]));
        }
        let others = [
            [&timestamp[..], &value].concat(),
            [&value[..], &timestamp, &[0x18, 1]].concat(),
            [&value[..], &timestamp[..6]].concat(),
            value.to_vec(),
            vec![],
        ];
        for other in others {
            assert_eq!(behind_plain_sample(&framed(&other)), None, "{other:?}");
        }
    }
}
