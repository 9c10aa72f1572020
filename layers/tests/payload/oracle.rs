//! What prost reads in a message.

use std::collections::BTreeMap;

use infogw_proto::prometheus::Label;

use crate::Labels;

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
