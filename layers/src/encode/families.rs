//! Metric families as a stream of `io.prometheus.client.MetricFamily`, each behind its length, in snappy frames.

use std::io::{self, Write as _};

use bytes::Bytes;
use infogw_proto::wire::{put_varint, varint_len};
use snap::write::FrameEncoder;

use super::native_histogram;
use crate::payload::{LabelBlock, MetricFamilies, Point};

/// What is handed to the compressor at once, in bytes: it has a buffer of its own.
const CHUNK: usize = 4 << 10;

/// What the metrics of a family are: the numbers of `MetricType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Untyped = 3,
    Histogram = 4,
    GaugeHistogram = 5,
}

/// One series of a payload, and what it is sorted by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'p> {
    pub(super) name: &'p [u8],
    pub(super) kind: Kind,
    pub(super) point: &'p Point,
}

/// The series of `payload` by name, by kind and by time; those that are equal stay in their order.
pub(super) fn sorted(payload: &MetricFamilies) -> Vec<Entry<'_>> {
    let entry = |point| Entry::of(point, &payload.side);
    let mut entries: Vec<_> = payload.points.iter().map(entry).collect();
    // Stable, and quick where what came from a Prometheus is sorted already.
    entries.sort_by_key(|entry| (entry.name, entry.kind, entry.point.timestamp));
    entries
}

/// The stream, compressed as it is written.
pub(super) fn frames(payload: &MetricFamilies) -> io::Result<Bytes> {
    let entries = sorted(payload);
    let mut frames = FrameEncoder::new(Vec::new());
    let mut out = Vec::with_capacity(2 * CHUNK);
    for family in entries.chunk_by(|a, b| (a.name, a.kind) == (b.name, b.kind)) {
        let Some(&Entry { name, kind, .. }) = family.first() else { continue };
        let metrics: usize = family.iter().map(|entry| field_len(entry.metric_len(&payload.side))).sum();
        put_varint(&mut out, (field_len(name.len()) + 2 + metrics) as u64);
        put_field(&mut out, 0x0a, name);
        out.extend_from_slice(&[0x18, kind as u8]);
        for entry in family {
            entry.put_metric(&payload.side, &mut out);
            if out.len() >= CHUNK {
                frames.write_all(&out)?;
                out.clear();
            }
        }
    }
    frames.write_all(&out)?;
    let mut body = frames.into_inner().map_err(snap::write::IntoInnerError::into_error)?;
    // It lives until the upstream has answered.
    body.shrink_to_fit();
    Ok(body.into())
}

impl<'p> Entry<'p> {
    fn of(point: &'p Point, side: &'p [u8]) -> Self {
        let kind = match point.histogram.of(side) {
            [] => Kind::Untyped,
            fields if native_histogram::is_gauge(fields) => Kind::GaugeHistogram,
            _ => Kind::Histogram,
        };
        let (name, _) = LabelBlock(point.labels.of(side)).without(b"__name__");
        Entry { name, kind, point }
    }

    /// Length of the `Metric`, without tag and length.
    fn metric_len(&self, side: &[u8]) -> usize {
        let (_, [before, behind]) = LabelBlock(self.point.labels.of(side)).without(b"__name__");
        let value = match self.kind {
            Kind::Untyped => 11,
            Kind::Histogram | Kind::GaugeHistogram => field_len(native_histogram::len(self.point.histogram.of(side))),
        };
        before.len() + behind.len() + value + 1 + varint_len(self.point.timestamp as u64)
    }

    /// `MetricFamily.metric = 4 { label = 1, untyped = 5 { value = 1 double }, timestamp_ms = 6 int64, histogram = 7 }`. A canonical
    /// block is what `label` looks like already.
    fn put_metric(&self, side: &[u8], out: &mut Vec<u8>) {
        let Point { labels, value, histogram, timestamp } = *self.point;
        let (_, [before, behind]) = LabelBlock(labels.of(side)).without(b"__name__");
        out.push(0x22);
        put_varint(out, self.metric_len(side) as u64);
        out.extend_from_slice(before);
        out.extend_from_slice(behind);
        if self.kind == Kind::Untyped {
            out.extend_from_slice(&[0x2a, 9, 0x09]);
            // By its bits: a stale marker stays one.
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.push(0x30);
        // int64 is two's complement on the wire.
        put_varint(out, timestamp as u64);
        if self.kind != Kind::Untyped {
            let fields = histogram.of(side);
            out.push(0x3a);
            put_varint(out, native_histogram::len(fields) as u64);
            native_histogram::put(fields, out);
        }
    }
}

/// Length of a length-delimited field with a tag of one byte.
fn field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

fn put_field(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    put_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
