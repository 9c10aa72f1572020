//! What others read in a message: prost, and Go's decoders.

use std::collections::BTreeMap;

use infogw_proto::prometheus::Label;

use crate::{Labels, go};

/// A write request with nothing but its labels; everything else is unknown to it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LabelsOnly {
    #[prost(message, repeated, tag = "1")]
    pub(crate) timeseries: Vec<SeriesLabels>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SeriesLabels {
    #[prost(message, repeated, tag = "1")]
    pub(crate) labels: Vec<Label>,
}

/// Labels as they must go on: sorted, of a repeated one the first, nothing empty.
pub(crate) fn canonical(labels: &[Label]) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for Label { name, value } in labels.iter().filter(|label| !label.name.is_empty() && !label.value.is_empty()) {
        map.entry(name.clone()).or_insert_with(|| value.clone());
    }
    map
}

pub(crate) fn pairs(labels: &[Label]) -> Labels {
    labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect()
}

/// Each series' labels as Go reads them; `None` where it refuses.
pub(crate) fn go_labels(message: &[u8]) -> Option<Vec<Vec<Label>>> {
    // Go's strings are any bytes; ours refuses a label that is not UTF-8.
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let label = |label: &go::Label| Label { name: text(&label.name), value: text(&label.value) };
    let series = go::unmarshal(message).ok()?.timeseries;
    Some(series.iter().map(|series| series.labels.iter().map(label).collect()).collect())
}
