//! What both formats of metric families become: series, collected in canonical form.

use std::{borrow::Cow, time::Duration};

use super::{DecodeError, DecodeLimits, limits::Excess};
use crate::{
    payload::{LARGEST_PAYLOAD, LabelWriter, MetricFamilies, Point, Span},
    rejection::excerpt,
};

/// Collects series into [`MetricFamilies`]. Whatever is wrong with one of them refuses them all, as telemeter-server does it.
pub(super) struct FamiliesBuilder<'l> {
    limits: &'l DecodeLimits,
    /// Bytes that all label blocks together may take.
    room: usize,
    times: Times,
    families: MetricFamilies,
    /// Series so far, those that are over the limit among them.
    seen: usize,
    writer: LabelWriter,
    /// The last timestamp of the family at hand: they ascend within one.
    last: i64,
}

/// Which timestamps are taken, in milliseconds since the epoch.
pub(super) struct Times {
    /// No sample may be older.
    pub(super) oldest: i64,
    /// The time from there to now.
    pub(super) max_age: Duration,
    /// What a sample without one gets, or it is refused.
    pub(super) missing: Option<i64>,
}

/// What a sample holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'v> {
    Number(f64),
    /// A native histogram: remote write's `Histogram` without its timestamp.
    Histogram(&'v [u8]),
}

/// How many times the limit for decoded bytes the expanded labels may take. Each bucket of a histogram carries all labels of its
/// metric, so a few kilobytes of labels and empty buckets become gigabytes. Real ones become some 20 times as long.
const MOST_EXPANSION: usize = 32;

/// A label by its bytes.
pub(super) type Pair<'a> = (&'a str, &'a str);

impl<'l> FamiliesBuilder<'l> {
    pub(super) fn new(limits: &'l DecodeLimits, times: Times) -> Self {
        let (families, writer) = (MetricFamilies::default(), LabelWriter::default());
        let room = limits.decoded.saturating_mul(MOST_EXPANSION).min(LARGEST_PAYLOAD);
        FamiliesBuilder { limits, room, times, families, seen: 0, writer, last: i64::MIN }
    }

    /// A family begins.
    pub(super) fn family(&mut self) {
        self.last = i64::MIN;
    }

    /// Adds the series `name` + `suffix` with its sample. `added` is a label that the expansion of a histogram or summary adds.
    pub(super) fn point<'a>(
        &mut self,
        (name, suffix): (&str, &str),
        labels: impl Iterator<Item = Pair<'a>> + Clone,
        added: Option<Pair<'_>>,
        value: Value<'_>,
        timestamp: Option<i64>,
    ) -> Result<(), DecodeError> {
        let index = self.seen;
        self.seen += 1;
        // Too many are counted to their end, and that is all.
        if index >= self.limits.series.min(self.limits.samples) {
            return Ok(());
        }
        let timestamp = self.timestamp(timestamp).map_err(|what| {
            DecodeError::Timestamp(format!("series {} `{}{suffix}`: {what}", index + 1, excerpt(name)))
        })?;
        self.check(name, suffix, labels.clone()).map_err(|excess| {
            let what = self.limits.explain(excess);
            DecodeError::InvalidSeries(format!("series {} `{}{suffix}`: {what}", index + 1, excerpt(name)))
        })?;

        let out = &mut self.families.side;
        self.writer.begin(out);
        // The name goes first: it is the one `__name__`, whatever the labels say.
        self.writer.push_joined(out, "__name__", name, suffix);
        if let Some((name, value)) = added {
            self.writer.push(out, name.as_bytes(), value.as_bytes());
        }
        for (name, value) in labels {
            self.writer.push(out, name.as_bytes(), value.as_bytes());
        }
        let labels = self.writer.finish(out);
        let (value, histogram) = match value {
            Value::Number(value) => (value.to_bits(), Span::default()),
            Value::Histogram(fields) => {
                let start = out.len();
                out.extend_from_slice(fields);
                (0, Span::new(start, out.len()))
            }
        };
        if out.len() > self.room {
            return Err(DecodeError::TooLarge {
                what: "body with its histograms expanded",
                size: None,
                limit: self.room,
            });
        }
        self.families.points.push(Point { labels, value, histogram, timestamp });
        Ok(())
    }

    /// The families, whole, where `read` is how reading them ended. Each series has one sample.
    pub(super) fn finish(mut self, read: Result<(), DecodeError>) -> Result<MetricFamilies, DecodeError> {
        let count = read.is_ok().then_some(self.seen as u64);
        let DecodeLimits { series, samples, .. } = *self.limits;
        if self.seen > series {
            return Err(DecodeError::TooManySeries { count, limit: series });
        }
        if self.seen > samples {
            return Err(DecodeError::TooManySamples { count, limit: samples });
        }
        read?;
        self.families.refused.set_received(self.seen);
        Ok(self.families)
    }

    fn timestamp(&mut self, timestamp: Option<i64>) -> Result<i64, Cow<'static, str>> {
        let timestamp =
            timestamp.or(self.times.missing).ok_or(Cow::Borrowed("it has no timestamp; push what /federate gives"))?;
        if timestamp < self.times.oldest {
            let over = self.times.oldest.saturating_sub(timestamp).unsigned_abs().div_ceil(1000);
            let limit = self.times.max_age.as_secs();
            let age = limit.saturating_add(over);
            return Err(format!(
                "its timestamp is {age} s old, at most {limit} s are taken; push fresh samples and check the clock"
            )
            .into());
        }
        if timestamp < self.last {
            let last = self.last;
            return Err(format!("its timestamp {timestamp} is before {last} above it; sort each family by time").into());
        }
        self.last = timestamp;
        Ok(timestamp)
    }

    fn check<'a>(
        &self,
        name: &str,
        suffix: &str,
        mut labels: impl Iterator<Item = Pair<'a>>,
    ) -> Result<(), Excess<'a>> {
        let len = name.len() + suffix.len();
        if len > self.limits.label_value {
            return Err(Excess::LabelValue(b"__name__", len));
        }
        let mut count = 1;
        let mut unrepeatable = 0u64;
        while let Some((name, value)) = labels.next() {
            count += 1;
            if count > self.limits.labels {
                return Err(Excess::Labels(count + labels.count()));
            }
            self.limits.check_label(name.as_bytes(), value.as_bytes())?;
            if let Some(which) = self.limits.unrepeatable.iter().position(|unrepeatable| **unrepeatable == *name) {
                let bit = 1u64.checked_shl(which as u32).unwrap_or(0);
                if unrepeatable & bit != 0 {
                    return Err(Excess::Repeated(name.as_bytes()));
                }
                unrepeatable |= bit;
            }
        }
        Ok(())
    }
}
