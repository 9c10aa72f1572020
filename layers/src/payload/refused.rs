use std::fmt;

use crate::rejection::{Reason, Rejection, excerpt};

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

/// What is wrong with one series. Shown as its sender reads it: "series 17 `up`: label `_id` is `c2`, this sender writes `c1`".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// The reason, from the closed list.
    pub reason: Reason,
    /// Its place in the payload, from 0.
    pub index: usize,
    /// Its name, as an excerpt.
    pub metric: Box<str>,
    /// What is wrong, and what to change.
    pub what: Box<str>,
}

impl Offence {
    /// `what` is wrong with the series at `index`, which is called `metric`.
    pub fn new(reason: Reason, index: usize, metric: &str, what: impl Into<Box<str>>) -> Self {
        Offence { reason, index, metric: excerpt(metric).into(), what: what.into() }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "series {} `{}`: {}", self.index + 1, self.metric, self.what)
    }
}

impl Refused {
    /// The payload arrived with `series` series.
    pub fn set_received(&mut self, series: usize) {
        self.received = series;
    }

    /// Series that the payload arrived with, those among them that are no longer in it.
    pub fn received(&self) -> usize {
        self.received
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

    /// What is wrong with the first of them.
    pub fn first(&self) -> Option<&Offence> {
        self.first.as_ref().map(|(_, offence)| offence)
    }

    /// The answer to a sender some of whose series were refused, or `None` if none was. It is that of the layer that refused the
    /// first one, whoever gives it.
    pub fn rejection(&self) -> Option<Rejection> {
        let (layer, offence) = self.first.as_ref()?;
        let (count, received) = (self.count, self.received);
        Some(Rejection::new(offence.reason, format!("{offence}; {count} of {received} series refused")).by(layer))
    }
}
