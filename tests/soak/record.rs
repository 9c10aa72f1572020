//! What a Prometheus has, sample by sample, and how that differs from what another has.

use std::{collections::BTreeMap, fmt::Write};

use infogw_proto::prometheus::TimeSeries;

pub(crate) type Labels = BTreeMap<String, String>;

/// The samples of each series: at which millisecond, which bits.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record(BTreeMap<Labels, BTreeMap<i64, u64>>);

/// How many lines of a difference are shown.
const SHOWN: usize = 12;

impl Record {
    /// Of these series, each with the labels that `renamed` gives it, if any.
    pub(crate) fn new(series: Vec<TimeSeries>, renamed: impl Fn(Labels) -> Option<Labels>) -> Self {
        let mut record = BTreeMap::<_, BTreeMap<_, _>>::new();
        for one in series {
            let labels = one.labels.into_iter().map(|label| (label.name, label.value)).collect();
            let Some(labels) = renamed(labels) else { continue };
            let samples = record.entry(labels).or_default();
            for sample in one.samples {
                let other = samples.insert(sample.timestamp, sample.value.to_bits());
                assert_eq!(
                    other, None,
                    "two samples at {}: the test's policy makes one series of two",
                    sample.timestamp
                );
            }
        }
        Self(record)
    }

    /// The label sets.
    pub(crate) fn series(&self) -> impl Iterator<Item = &Labels> {
        self.0.keys()
    }

    /// The values of all series of this name, by their bits.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = u64> {
        let named = move |labels: &Labels| labels.get("__name__").is_some_and(|own| own == name);
        self.0.iter().filter(move |(labels, _)| named(labels)).flat_map(|(_, samples)| samples.values().copied())
    }

    /// How many samples there are.
    pub(crate) fn samples(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// How many samples there are with these bits.
    pub(crate) fn count(&self, bits: u64) -> usize {
        self.0.values().flat_map(BTreeMap::values).filter(|value| **value == bits).count()
    }

    /// How `arrived` differs from this, in counts and the first few samples; empty where it does not.
    pub(crate) fn difference(&self, arrived: &Self) -> String {
        let (mut missing, mut surplus, mut other) = (0, 0, 0);
        let mut shown = String::new();
        let mut show = |nth: usize, what: &str, labels: &Labels, at: i64, bits: &dyn std::fmt::Debug| {
            if nth <= SHOWN {
                let _ = write!(shown, "\n{what} {labels:?} at {at}: {bits:x?}");
            }
        };
        let nothing = BTreeMap::new();
        for (labels, samples) in &self.0 {
            let there = arrived.0.get(labels).unwrap_or(&nothing);
            for (&at, bits) in samples {
                match there.get(&at) {
                    None => {
                        missing += 1;
                        show(missing, "missing", labels, at, bits);
                    }
                    Some(found) if found != bits => {
                        other += 1;
                        show(other, "differs", labels, at, &(bits, found));
                    }
                    Some(_) => {}
                }
            }
        }
        for (labels, samples) in &arrived.0 {
            let here = self.0.get(labels).unwrap_or(&nothing);
            for (&at, bits) in samples.iter().filter(|(at, _)| !here.contains_key(at)) {
                surplus += 1;
                show(surplus, "surplus", labels, at, bits);
            }
        }
        if missing + surplus + other == 0 {
            return String::new();
        }
        format!("{missing} samples are missing, {surplus} too many, {other} with other bits{shown}")
    }
}
