//! What both formats of metric families become: series, collected in canonical form.

use std::time::Duration;

use super::{DecodeError, DecodeLimits, label::LabelRun, limits::Excess};
use crate::{
    payload::{BYTES_PER_SERIES, LARGEST_PAYLOAD, LabelWriter, MetricFamilies, Point, Refused, Span, put_block},
    rejection::excerpt,
};

/// Collects series into [`MetricFamilies`]. Whatever is wrong with one of them refuses them all, as telemeter-server does it; or it is
/// left out, as telemeter-client does it.
pub(super) struct FamiliesBuilder<'l> {
    limits: &'l DecodeLimits,
    leave_out: bool,
    /// Bytes that all label blocks together may take.
    room: usize,
    times: Times,
    families: MetricFamilies,
    /// Series so far, the one at hand and those over the limit among them.
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

/// Why a timestamp is not taken.
enum Untimely {
    Missing,
    Old(i64),
    Unsorted { timestamp: i64, last: i64 },
}

impl Times {
    /// What to tell a sender.
    fn explain(&self, untimely: &Untimely) -> String {
        match *untimely {
            Untimely::Missing => "it has no timestamp; push what /federate gives".to_owned(),
            Untimely::Old(timestamp) => {
                let over = self.oldest.saturating_sub(timestamp).unsigned_abs().div_ceil(1000);
                let limit = self.max_age.as_secs();
                let age = limit.saturating_add(over);
                format!(
                    "its timestamp is {age} s old, at most {limit} s are taken; push fresh samples and check the clock"
                )
            }
            Untimely::Unsorted { timestamp, last } => {
                format!("its timestamp {timestamp} is before {last} above it; sort each family by time")
            }
        }
    }
}

/// Where the series of a metric begin.
pub(super) struct Mark {
    seen: usize,
    side: usize,
    points: usize,
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

/// A label's name and value.
pub(super) type Pair<'a> = (&'a str, &'a str);

/// A series' name: its family's, and what is appended to that.
pub(super) type Name<'a> = (&'a str, &'a str);

impl<'l> FamiliesBuilder<'l> {
    /// For families of `len` bytes.
    pub(super) fn new(limits: &'l DecodeLimits, times: Times, leave_out: bool, len: usize) -> Self {
        let writer = LabelWriter::default();
        let families = MetricFamilies {
            // The labels and a name for each series; and, so that translating them moves nothing, a sample.
            side: Vec::with_capacity(len + len / 4),
            points: Vec::with_capacity((len / BYTES_PER_SERIES).min(limits.series)),
            refused: Refused::default(),
        };
        let room = limits.decoded.saturating_mul(MOST_EXPANSION).min(LARGEST_PAYLOAD);
        FamiliesBuilder { limits, leave_out, room, times, families, seen: 0, writer, last: i64::MIN }
    }

    /// What holds for these families.
    pub(super) fn limits(&self) -> &'l DecodeLimits {
        self.limits
    }

    /// Whether a series that cannot go on is left out, and refuses nothing.
    pub(super) fn leaves_out(&self) -> bool {
        self.leave_out
    }

    /// So many metrics are left out, whatever they are.
    pub(super) fn left_out(&mut self, metrics: usize) {
        self.seen += metrics;
    }

    /// The series so far.
    pub(super) fn mark(&self) -> Mark {
        let MetricFamilies { side, points, .. } = &self.families;
        Mark { seen: self.seen, side: side.len(), points: points.len() }
    }

    /// Takes a metric back whose series were added since `mark`.
    #[cold]
    pub(super) fn take_back(&mut self, mark: &Mark) {
        self.seen = mark.seen + 1;
        self.families.side.truncate(mark.side);
        self.families.points.truncate(mark.points);
    }

    /// A family begins.
    pub(super) fn family(&mut self) {
        self.last = i64::MIN;
    }

    /// Adds the series `name` + `suffix` with its sample. `added` is a label that the expansion of a histogram or summary adds.
    pub(super) fn point<'a>(
        &mut self,
        name: Name<'_>,
        labels: impl Iterator<Item = Pair<'a>> + Clone,
        added: Option<Pair<'_>>,
        value: Value<'_>,
        timestamp: Option<i64>,
    ) -> Result<(), DecodeError> {
        let Some(timestamp) = self.begin(name, timestamp)? else { return Ok(()) };
        if let Err(excess) = self.check_name(name).and_then(|()| self.check_labels(labels.clone())) {
            return self.invalid(name, excess);
        }
        let out = &mut self.families.side;
        self.writer.begin(out);
        // The name goes first: it is the one `__name__`, whatever the labels say.
        self.writer.push_joined(out, b"__name__", name.0.as_bytes(), name.1.as_bytes());
        if let Some((name, value)) = added {
            self.writer.push(out, name.as_bytes(), value.as_bytes());
        }
        for (name, value) in labels {
            self.writer.push(out, name.as_bytes(), value.as_bytes());
        }
        let labels = self.writer.finish(out);
        self.end(labels, value, timestamp)
    }

    /// The same of a series whose labels are a run that was read within the limits of these families, UTF-8 all of it.
    pub(super) fn point_of_run(
        &mut self,
        name: Name<'_>,
        labels: LabelRun<'_>,
        added: Option<Pair<'_>>,
        value: Value<'_>,
        timestamp: Option<i64>,
    ) -> Result<(), DecodeError> {
        let Some(timestamp) = self.begin(name, timestamp)? else { return Ok(()) };
        if let Err(excess) = self.check_name(name) {
            return self.invalid(name, excess);
        }
        // Its name is one of a series' labels.
        if labels.count >= self.limits.labels {
            return self.invalid(name, Excess::Labels(labels.count + 1));
        }
        let labels = put_block(&mut self.families.side, labels.block, name, added);
        self.end(labels, value, timestamp)
    }

    /// Counts a series, and says the time of its sample. There is none where the series is only counted: too many are, to their end, and
    /// what is left out is.
    fn begin(&mut self, name: Name<'_>, timestamp: Option<i64>) -> Result<Option<i64>, DecodeError> {
        self.seen += 1;
        if self.seen > self.limits.series.min(self.limits.samples) {
            return Ok(None);
        }
        match self.timestamp(timestamp) {
            Ok(timestamp) => Ok(Some(timestamp)),
            Err(_) if self.leave_out => Ok(None),
            Err(untimely) => Err(DecodeError::Timestamp(self.about_series(name, &self.times.explain(&untimely)))),
        }
    }

    fn end(&mut self, labels: Span, value: Value<'_>, timestamp: i64) -> Result<(), DecodeError> {
        let out = &mut self.families.side;
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

    #[cold]
    fn invalid(&self, name: Name<'_>, excess: Excess<'_>) -> Result<(), DecodeError> {
        if self.leave_out {
            return Ok(());
        }
        Err(DecodeError::InvalidSeries(self.about_series(name, &self.limits.explain(excess))))
    }

    /// `what` is wrong with the series at hand.
    fn about_series(&self, (name, suffix): Name<'_>, what: &str) -> String {
        format!("series {} `{}{suffix}`: {what}", self.seen, excerpt(name))
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

    fn timestamp(&mut self, timestamp: Option<i64>) -> Result<i64, Untimely> {
        let timestamp = timestamp.or(self.times.missing).ok_or(Untimely::Missing)?;
        if timestamp < self.times.oldest {
            return Err(Untimely::Old(timestamp));
        }
        if timestamp < self.last && !self.leave_out {
            return Err(Untimely::Unsorted { timestamp, last: self.last });
        }
        self.last = timestamp;
        Ok(timestamp)
    }

    fn check_name(&self, (name, suffix): Name<'_>) -> Result<(), Excess<'static>> {
        let len = name.len() + suffix.len();
        if len > self.limits.label_value { Err(Excess::LabelValue(b"__name__", len)) } else { Ok(()) }
    }

    fn check_labels<'a>(&self, mut labels: impl Iterator<Item = Pair<'a>>) -> Result<(), Excess<'a>> {
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
