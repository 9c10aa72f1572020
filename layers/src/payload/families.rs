use super::{Edited, Keep, LabelSet, Refused, SeriesSet, Span, edit_each};

/// Metric families (`io.prometheus.client.MetricFamily` or text 0.0.4), already expanded: a histogram or summary is the series
/// that a scrape would store, so a policy sees the same names here as in a write request.
#[derive(Debug, Default)]
pub struct MetricFamilies {
    /// Canonical label blocks, each with the histogram behind it, in the order of the series.
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
        let mut shelf = Shelf { side, front: 0, shift: 0 };
        let (mut dropped, mut failed_at) = (0, None);
        let edited = edit_each(points, |index, point| {
            if shelf.shift > 0 {
                shelf.follow(point);
            }
            let before = point.labels;
            shelf.reserve(before.len() + Shelf::ADDED);
            // An empty block may lie anywhere.
            let room = if before.len() > 0 { Span { start: shelf.front as u32, ..before } } else { before };
            let len = shelf.side.len();
            let mut labels = LabelSet { index, source: &[], side: shelf.side, block: before, in_side: true, room };
            let outcome = edit(&mut labels);
            point.labels = labels.block;
            match outcome {
                Ok(Keep::Yes) => {}
                Ok(Keep::No) => {
                    dropped += 1;
                    shelf.side.truncate(len);
                    return outcome;
                }
                Err(_) => failed_at = Some(index),
            }
            // Where nothing grows, all may stay where it is. Once something gave way, each series closes up: room that is left between
            // two of them would be nobody's.
            if point.labels.start as usize >= len || shelf.shift > 0 {
                shelf.settle(point, before, len);
            }
            shelf.pass(point);
            outcome
        });
        match failed_at {
            None => shelf.side.truncate(shelf.front),
            // Those that were not looked at.
            Some(index) => points.iter_mut().skip(index + 1 - dropped).for_each(|point| shelf.follow(point)),
        }
        edited
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

/// A payload's label blocks while they are edited, one after the other. A block that grows takes the room that those before it left; where
/// there is too little, all that is behind it gives way, and by more than it needs: by an eighth of itself. So no edit leaves a copy of the
/// labels behind, however many series it lengthens.
struct Shelf<'s> {
    side: &'s mut Vec<u8>,
    /// The end of what belongs to the series before.
    front: usize,
    /// How far what is behind has given way.
    shift: usize,
}

impl Shelf<'_> {
    /// Room that is made besides what is needed: a part of what there is.
    const PART: usize = 8;
    /// Bytes that an edit may add to a block before there is room for twice as much as there is, which of few bytes there may be.
    const ADDED: usize = 1 << 10;
    const FEW: usize = 64 << 10;

    /// Puts what `point` has in front. Its block, which was `before`, may have moved to the end, which was at `len`.
    #[inline(never)]
    fn settle(&mut self, point: &mut Point, before: Span, len: usize) {
        let (start, end) = (point.labels.start as usize, point.labels.end as usize);
        let needed = self.front + (end - start);
        let (mut gap, moved) = (0, start >= len);
        let behind = if before.len() > 0 { before.end as usize } else { self.front };
        if moved && behind < len && needed > behind {
            gap = needed - behind + (len - behind) / Self::PART;
            self.reserve(gap);
            self.side.resize(end + gap, 0);
            self.side.copy_within(behind..end, behind + gap);
            self.shift += gap;
            point.histogram = shifted(point.histogram, gap);
        }
        if start < end && start > self.front {
            self.side.copy_within(start + gap..end + gap, self.front);
            point.labels = Span::new(self.front, needed);
        }
        let (from, to) = (point.histogram.start as usize, point.histogram.end as usize);
        let front = if start < end { point.labels.end as usize } else { self.front };
        if from < to && front < from {
            self.side.copy_within(from..to, front);
            point.histogram = Span::new(front, front + (to - from));
        }
        if moved {
            self.side.truncate(needed.max(len + gap));
        }
    }

    /// What belongs to the series stays where it is.
    #[inline]
    fn pass(&mut self, point: &Point) {
        for span in [point.labels, point.histogram] {
            // An empty one may lie anywhere.
            if span.len() > 0 {
                self.front = span.end as usize;
            }
        }
    }

    /// Finds the series where it is now.
    fn follow(&self, point: &mut Point) {
        point.labels = shifted(point.labels, self.shift);
        point.histogram = shifted(point.histogram, self.shift);
    }

    fn reserve(&mut self, more: usize) {
        let len = self.side.len();
        if len > Self::FEW && self.side.capacity() - len < more {
            self.side.reserve_exact(more + len / Self::PART);
        }
    }
}

/// `span` further behind; an empty one belongs nowhere.
fn shifted(span: Span, by: usize) -> Span {
    match span.len() {
        0 => span,
        _ => Span::new(span.start as usize + by, span.end as usize + by),
    }
}

#[cfg(all(test, feature = "decode"))]
mod tests {
    use super::*;
    use crate::payload::LabelWriter;
    use std::convert::Infallible;

    /// Series of eight labels, in no more room than they need; with a histogram each, or without.
    fn families(series: usize, histogram: &[u8]) -> MetricFamilies {
        let (mut families, mut writer) = (MetricFamilies::default(), LabelWriter::default());
        for n in 0..series {
            writer.begin(&families.side);
            for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
                writer.push(&mut families.side, name.as_bytes(), format!("{name}-of-{n}-and-more").as_bytes());
            }
            let labels = writer.finish(&mut families.side);
            let start = families.side.len();
            families.side.extend_from_slice(histogram);
            let histogram = Span::new(start, families.side.len());
            families.points.push(Point { labels, value: 0, histogram, timestamp: 0 });
        }
        families.side.shrink_to_fit();
        families
    }

    /// Whichever series grow, and whatever stands between them: no more room is taken than an eighth of what there is.
    #[test]
    fn room_is_nobodys_for_no_longer_than_a_series() {
        type Grows = fn(usize) -> bool;
        let grows: [(&str, Grows); 4] = [
            ("all", |_| true),
            ("every second", |index| index % 2 == 1),
            ("few", |index| index % 100 == 7),
            ("the first ones", |index| index < 1000),
        ];
        for (which, grows) in grows {
            for histogram in [&[][..], &[7; 30], &[7; 3000]] {
                let mut families = families(3000, histogram);
                for pass in 1..5 {
                    let longer = "x".repeat(10 * pass);
                    let set = |labels: &mut LabelSet<'_>| {
                        if grows(labels.index()) {
                            labels.set("new", &longer);
                        }
                        Ok::<_, Infallible>(Keep::Yes)
                    };
                    families.try_edit(set).unwrap();
                    let live = |point: &Point| point.labels.len() + point.histogram.len();
                    let live: usize = families.points.iter().map(live).sum();
                    let (len, capacity) = (families.side.len(), families.side.capacity());
                    assert!(
                        len <= live + live / 8 && capacity <= live + live / 2,
                        "{which}, {} bytes between, pass {pass}: {live} in {len} of {capacity}",
                        histogram.len()
                    );
                    for (index, point) in families.points.iter().enumerate() {
                        assert_eq!(point.histogram.of(&families.side), histogram);
                        let block = super::super::labels::LabelBlock(point.labels.of(&families.side));
                        let new = block.pairs().find(|(name, _)| *name == "new").map(|(_, value)| value);
                        assert_eq!(new, grows(index).then_some(&*longer));
                    }
                }
            }
        }
    }

    #[test]
    fn no_edit_leaves_a_copy_of_the_labels_behind() {
        let mut families = families(5000, &[]);
        for pass in 1..10 {
            let longer = "x".repeat(10 * pass);
            let set = |labels: &mut LabelSet<'_>| {
                labels.set("b", &longer);
                labels.set("new", &longer);
                // Changes nothing.
                let same = labels.value("a").to_owned();
                labels.set("a", &same);
                Ok::<_, Infallible>(Keep::Yes)
            };
            families.try_edit(set).unwrap();
            let live: usize = families.points.iter().map(|point| point.labels.len()).sum();
            let (len, capacity) = (families.side.len(), families.side.capacity());
            assert!(
                len <= live + live / 8 && capacity <= live + live / 2,
                "pass {pass}: {live} in {len} of {capacity}"
            );
        }
        // What is shorter, and what is dropped, makes room for what grows.
        let before = families.side.capacity();
        let shorter = |labels: &mut LabelSet<'_>| {
            labels.remove("new");
            Ok::<_, Infallible>(if labels.index().is_multiple_of(2) { Keep::Yes } else { Keep::No })
        };
        families.try_edit(shorter).unwrap();
        let longer = "x".repeat(100);
        let grow = |labels: &mut LabelSet<'_>| {
            labels.set("new", &longer);
            Ok::<_, Infallible>(Keep::Yes)
        };
        families.try_edit(grow).unwrap();
        assert_eq!((families.series(), families.side.capacity()), (2500, before));
    }
}
