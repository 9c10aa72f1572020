use crate::rejection::{Reason, Rejection};

/// Series that were refused from a payload while the rest goes on: how many, and the first one in words.
///
/// A policy that drops series is not a refusal; nobody is told.
#[derive(Debug, Clone, Default)]
pub struct Refused {
    received: usize,
    count: usize,
    /// With the layer that refused it.
    first: Option<(&'static str, Offence)>,
}

/// What is wrong with one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The reason, from the closed list.
    pub reason: Reason,
    /// Which series, what is wrong, what to change: "series 17 `up`: label `_id` is `c2`, this sender writes `c1`".
    pub detail: String,
}

impl Refused {
    /// The payload arrived with `series` series.
    pub fn set_received(&mut self, series: usize) {
        self.received = series;
    }

    /// Counts one series that `layer` refused; `offence` is asked for the first one only.
    pub fn add(&mut self, layer: &'static str, offence: impl FnOnce() -> Offence) {
        self.count += 1;
        self.first.get_or_insert_with(|| (layer, offence()));
    }

    /// How many series were refused.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The answer to a sender some of whose series were refused, or `None` if none was. It is that of the layer that refused the
    /// first one, whoever gives it.
    pub fn rejection(&self) -> Option<Rejection> {
        let (layer, Offence { reason, detail }) = self.first.as_ref()?;
        let (count, received) = (self.count, self.received);
        Some(Rejection::new(*reason, format!("{detail}; {count} of {received} series refused")).by(layer))
    }
}
