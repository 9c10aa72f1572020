//! What a Prometheus has, sample by sample, and how that differs from what another has.

use std::{collections::BTreeMap, fmt::Write};

use infogw_proto::prometheus::TimeSeries;

pub(crate) type Labels = BTreeMap<String, String>;

/// The samples of each series: at which millisecond, which bits.
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
                assert_eq!(other, None, "{} twice: the policy makes one series of two", sample.timestamp);
            }
        }
        Self(record)
    }

    /// The label sets.
    pub(crate) fn series(&self) -> impl Iterator<Item = &Labels> {
        self.0.keys()
    }

    /// The bits of all samples.
    pub(crate) fn values(&self) -> impl Iterator<Item = u64> {
        self.0.values().flat_map(BTreeMap::values).copied()
    }

    /// How many samples there are.
    pub(crate) fn samples(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// How `arrived` differs from this, in counts and the first few samples; empty where it does not.
    pub(crate) fn difference(&self, arrived: &Self) -> String {
        let (mut missing, mut surplus, mut other) = (0, 0, 0);
        let mut shown = String::new();
        let mut show = |nth: usize, what: &str, labels: &Labels, at: i64, value: &dyn std::fmt::Debug| {
            if nth <= SHOWN {
                let _ = write!(shown, "\n{what} {labels:?} at {at}: {value:x?}");
            }
        };
        let nothing = BTreeMap::new();
        for (labels, samples) in &self.0 {
            let there = arrived.0.get(labels).unwrap_or(&nothing);
            for (&at, value) in samples {
                match there.get(&at) {
                    None => {
                        missing += 1;
                        show(missing, "missing", labels, at, value);
                    }
                    Some(found) if found != value => {
                        other += 1;
                        show(other, "differs", labels, at, &(value, found));
                    }
                    Some(_) => {}
                }
            }
        }
        for (labels, samples) in &arrived.0 {
            let here = self.0.get(labels).unwrap_or(&nothing);
            for (&at, value) in samples.iter().filter(|(at, _)| !here.contains_key(at)) {
                surplus += 1;
                show(surplus, "surplus", labels, at, value);
            }
        }
        if missing + surplus + other == 0 {
            return String::new();
        }
        format!("{missing} samples are missing, {surplus} too many, {other} with other bits{shown}")
    }
}
