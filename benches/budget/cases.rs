//! Which requests are measured.

use std::fmt;

use crate::{gateway::Kind, telemetry::Shape};

/// Requests of one kind and size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) request: Kind,
    pub(crate) shape: Shape,
}

const LABELS: usize = 10;
const SMALLEST: Shape = Shape { series: 1, labels: LABELS };
const USUAL: Shape = Shape { series: 500, labels: LABELS };
const LARGEST: Shape = Shape { series: 5_000, labels: LABELS };
const FEW_LABELS: Shape = Shape { labels: 5, ..USUAL };
const MANY_LABELS: Shape = Shape { labels: 20, ..USUAL };

/// Two sizes that should take the same number of allocations.
pub(crate) struct Growth {
    pub(crate) name: &'static str,
    pub(crate) from: Shape,
    pub(crate) to: Shape,
}

pub(crate) const GROWTHS: [Growth; 2] = [
    Growth { name: "5000 series over 1", from: SMALLEST, to: LARGEST },
    Growth { name: "20 labels over 5", from: FEW_LABELS, to: MANY_LABELS },
];

impl Case {
    /// Every size of a kind.
    pub(crate) fn of(request: Kind) -> impl Iterator<Item = Case> {
        [SMALLEST, USUAL, LARGEST, FEW_LABELS, MANY_LABELS].into_iter().map(move |shape| Case { request, shape })
    }

    pub(crate) fn all() -> impl Iterator<Item = Case> {
        Kind::ALL.into_iter().flat_map(Case::of)
    }

    /// Callgrind is slow: there the number of labels is not varied.
    pub(crate) fn counts_instructions(self) -> bool {
        self.shape.labels == LABELS
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { request, shape: Shape { series, labels } } = self;
        write!(f, "{}, {series} series, {labels} labels", request.name())
    }
}
