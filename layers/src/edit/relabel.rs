//! Edits of names and labels.

use std::{collections::HashMap, sync::Arc};

use super::Edit;
use crate::payload::{Keep, LabelSet};

/// Labels with their values. Cheap to clone.
pub type LabelPairs = Arc<[(Box<str>, Box<str>)]>;

pub(crate) fn pairs<N: Into<Box<str>>, V: Into<Box<str>>>(labels: impl IntoIterator<Item = (N, V)>) -> LabelPairs {
    labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Sets labels on every series, replacing what is there; telemeter-client's `--label`. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SetLabels(LabelPairs);

impl SetLabels {
    /// Sets these. An empty value removes a label.
    pub fn new<N: Into<Box<str>>, V: Into<Box<str>>>(labels: impl IntoIterator<Item = (N, V)>) -> Self {
        SetLabels(pairs(labels))
    }
}

impl From<LabelPairs> for SetLabels {
    fn from(labels: LabelPairs) -> Self {
        SetLabels(labels)
    }
}

impl Edit for SetLabels {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        for (name, value) in &*self.0 {
            labels.set(name, value);
        }
        Keep::Yes
    }
}

/// Renames metrics, each name as a whole; telemeter-client's `--rename`.
#[derive(Debug, Clone, Default)]
pub struct Rename(HashMap<Box<str>, Box<str>>);

impl Rename {
    /// Renames each old name to its new one, once. Of an old name that repeats the last counts.
    pub fn new<O: Into<Box<str>>, N: Into<Box<str>>>(names: impl IntoIterator<Item = (O, N)>) -> Self {
        Rename(names.into_iter().map(|(old, new)| (old.into(), new.into())).collect())
    }
}

impl Edit for Rename {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        if let Some(new) = self.0.get(labels.metric_name()) {
            labels.set("__name__", new);
        }
        Keep::Yes
    }
}

/// Drops what `/upload` refuses a whole request for, as telemeter-client does: a series without a name or with one that is too long,
/// and of other series the labels whose name or value is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropInvalid {
    longest: usize,
}

impl DropInvalid {
    /// Names and values may have `longest` bytes.
    pub fn new(longest: usize) -> Self {
        DropInvalid { longest }
    }
}

impl Default for DropInvalid {
    /// 255 bytes, as telemeter-server takes them.
    fn default() -> Self {
        DropInvalid::new(255)
    }
}

impl Edit for DropInvalid {
    fn edit(&self, labels: &mut LabelSet<'_>) -> Keep {
        if !(1..=self.longest).contains(&labels.metric_name().len()) {
            return Keep::No;
        }
        let longest = |name: &str, value: &str| name.len().max(value.len());
        labels.retain(|name, value| name == "__name__" || longest(name, value) <= self.longest);
        Keep::Yes
    }
}
