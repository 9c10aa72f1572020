use super::{Edited, Keep, LabelSet, Refused, SeriesSet, Span, edit_each};

/// Metric families (`io.prometheus.client.MetricFamily` or text 0.0.4), already expanded: a histogram or summary is the series
/// that a scrape would store, so a policy sees the same names here as in a write request.
#[derive(Debug, Default)]
pub struct MetricFamilies {
    /// Canonical label blocks.
    pub(crate) side: Vec<u8>,
    pub(crate) points: Vec<Point>,
    pub(crate) refused: Refused,
}

/// One series with its one sample, a number or a native histogram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) labels: Span,
    /// The value's bits: a stale marker is a NaN that must arrive as it is.
    pub(crate) value: u64,
    /// A native histogram: the fields of remote write's `Histogram` but the timestamp, in `side`. Empty for a number.
    pub(crate) histogram: Span,
    /// Milliseconds since the epoch.
    pub(crate) timestamp: i64,
}

impl SeriesSet for MetricFamilies {
    fn try_edit<E>(&mut self, mut edit: impl FnMut(&mut LabelSet<'_>) -> Result<Keep, E>) -> Result<Edited, E> {
        let MetricFamilies { side, points, .. } = self;
        edit_each(points, |index, point| {
            let mut labels = LabelSet { index, source: &[], side, block: point.labels, in_side: true };
            let outcome = edit(&mut labels);
            point.labels = labels.block;
            outcome
        })
    }

    fn series(&self) -> usize {
        self.points.len()
    }

    fn samples(&self) -> u64 {
        self.points.len() as u64
    }

    fn refused(&mut self) -> &mut Refused {
        &mut self.refused
    }
}
