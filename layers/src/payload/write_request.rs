use bytes::Bytes;
use infogw_proto::wire::{put_varint, varint_len};

use super::{Buffer, Edited, Keep, LabelSet, Refused, SeriesSet, Span, edit_each};

/// A remote-write 1.0 request (`prometheus.WriteRequest`) as offsets into its decoded bytes.
///
/// Metadata and unknown fields are carried along as bytes.
#[derive(Debug, Default)]
pub struct WriteRequest {
    /// The snappy block as it arrived, as long as nothing has been changed.
    pub(crate) received: Option<Bytes>,
    /// The decoded message.
    pub(crate) source: Buffer,
    /// What was written anew: label blocks, and what else could not be left where it was.
    pub(crate) side: Vec<u8>,
    pub(crate) series: Vec<Series>,
    /// The top-level fields that are not series, as runs of `source`.
    pub(crate) others: Vec<Span>,
    pub(crate) refused: Refused,
}

/// One `TimeSeries`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Series {
    /// The whole field in `source`, tag and length included: what is copied when nothing was changed.
    pub(crate) whole: Span,
    /// The canonical label block.
    pub(crate) labels: Span,
    /// Samples, exemplars, histograms and unknown fields.
    pub(crate) rest: Span,
    /// The low byte holds [`flag`]s, the others count samples and histograms, as far as 24 bits go.
    pub(crate) state: u32,
}

/// What of a series is not where it was.
pub(crate) mod flag {
    pub(crate) const LABELS_IN_SIDE: u32 = 1;
    pub(crate) const REST_IN_SIDE: u32 = 2;
    /// The bytes around labels and rest must be written anew.
    pub(crate) const REFRAME: u32 = 4;
    pub(crate) const ANY: u32 = 7;
}

const TIMESERIES: u8 = 0x0a;

impl Series {
    pub(crate) const MOST_SAMPLES: u32 = (1 << 24) - 1;

    pub(crate) fn new(whole: Span, labels: Span, rest: Span, flags: u32, samples: u32) -> Self {
        Series { whole, labels, rest, state: flags | samples.min(Self::MOST_SAMPLES) << 8 }
    }

    fn has(self, flag: u32) -> bool {
        self.state & flag != 0
    }

    fn samples(self) -> u32 {
        self.state >> 8
    }

    /// Length of the message, without tag and length.
    fn content_len(self) -> usize {
        self.labels.len() + self.rest.len()
    }
}

impl WriteRequest {
    /// The request as it was received, a snappy block, unless something was changed since.
    pub fn received(&self) -> Option<&Bytes> {
        self.received.as_ref()
    }

    /// The message as protobuf. Runs of series that nobody changed are copied as one range.
    pub fn to_message(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.message_len());
        let mut run: Option<Span> = None;
        for &series in &self.series {
            if !series.has(flag::ANY) {
                match &mut run {
                    Some(run) if run.end == series.whole.start => run.end = series.whole.end,
                    _ => self.put_run(&mut out, run.replace(series.whole)),
                }
                continue;
            }
            self.put_run(&mut out, run.take());
            out.push(TIMESERIES);
            put_varint(&mut out, series.content_len() as u64);
            out.extend_from_slice(self.labels(series));
            let rest: &[u8] = if series.has(flag::REST_IN_SIDE) { &self.side } else { &self.source };
            out.extend_from_slice(series.rest.of(rest));
        }
        self.put_run(&mut out, run);
        for other in &self.others {
            out.extend_from_slice(other.of(&self.source));
        }
        out
    }

    fn message_len(&self) -> usize {
        let series = self.series.iter().map(|series| match series.has(flag::ANY) {
            false => series.whole.len(),
            true => 1 + varint_len(series.content_len() as u64) + series.content_len(),
        });
        series.sum::<usize>() + self.others.iter().map(|other| other.len()).sum::<usize>()
    }

    fn put_run(&self, out: &mut Vec<u8>, run: Option<Span>) {
        if let Some(run) = run {
            out.extend_from_slice(run.of(&self.source));
        }
    }

    fn labels(&self, series: Series) -> &[u8] {
        series.labels.of(if series.has(flag::LABELS_IN_SIDE) { &self.side } else { &self.source })
    }
}

impl SeriesSet for WriteRequest {
    fn try_edit<E>(&mut self, mut edit: impl FnMut(&mut LabelSet<'_>) -> Result<Keep, E>) -> Result<Edited, E> {
        let WriteRequest { received, source, side, series, .. } = self;
        let (before, mut changed) = (series.len(), false);
        let edited = edit_each(series, |index, series| {
            let in_side = series.has(flag::LABELS_IN_SIDE);
            let mut labels = LabelSet { index, source, side, block: series.labels, in_side, room: Span::default() };
            let outcome = edit(&mut labels);
            if labels.in_side != in_side || labels.block != series.labels {
                series.labels = labels.block;
                series.state |= flag::LABELS_IN_SIDE;
                changed = true;
            }
            outcome
        });
        if changed || series.len() < before {
            *received = None;
        }
        edited
    }

    fn series(&self) -> usize {
        self.series.len()
    }

    fn samples(&self) -> u64 {
        self.series.iter().map(|series| u64::from(series.samples())).sum()
    }

    fn refused(&mut self) -> &mut Refused {
        &mut self.refused
    }
}
