use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::selector::{Labels, Selector, SelectorError, SelectorSet};
use crate::{
    authorize::{Identity, Writes},
    payload::{LabelSet, Offence},
    rejection::{Reason, excerpt},
};

/// What the series of one endpoint must be, and what is done to them.
#[derive(Debug)]
pub struct LabelPolicy {
    cluster_label: Box<str>,
    pub(super) check: ClusterLabelCheck,
    pub(super) on_offence: OnOffence,
    /// None: everything is allowed.
    allowlist: Option<Arc<SelectorSet>>,
    set: Vec<(Box<str>, Box<str>)>,
    elide: Vec<Box<str>>,
}

/// What happens when the cluster label names a cluster that the sender may not write for. The label must be there either way, as
/// telemeter-server demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClusterLabelCheck {
    /// The series is refused.
    #[default]
    Enforce,
    /// The series passes and is counted: for migration.
    Count,
    /// The series passes.
    Off,
}

/// What happens to the neighbours of a series that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOffence {
    /// They go on; the sender is told once they are written.
    #[default]
    RefuseSeries,
    /// The whole request is refused.
    RefuseRequest,
}

impl LabelPolicy {
    /// Every series must carry `cluster_label` with a cluster its sender may write for, and the labels of the sender's identity.
    /// Everything else is allowed.
    pub fn new(cluster_label: impl Into<Box<str>>) -> Self {
        LabelPolicy {
            cluster_label: cluster_label.into(),
            check: ClusterLabelCheck::default(),
            on_offence: OnOffence::default(),
            allowlist: None,
            set: Vec::new(),
            elide: Vec::new(),
        }
    }

    /// How the cluster label's value is checked.
    #[must_use]
    pub fn check(self, check: ClusterLabelCheck) -> Self {
        LabelPolicy { check, ..self }
    }

    /// What happens to the neighbours of a refused series.
    #[must_use]
    pub fn on_offence(self, on_offence: OnOffence) -> Self {
        LabelPolicy { on_offence, ..self }
    }

    /// Keeps the series that any of `selectors` selects and drops the others. Without selectors all are kept.
    ///
    /// # Errors
    /// If the selectors together are too large to compile.
    pub fn allow(self, selectors: impl IntoIterator<Item = Selector>) -> Result<Self, SelectorError> {
        Ok(self.allowlist(Arc::new(SelectorSet::new(selectors)?)))
    }

    /// As [`allow`](Self::allow), with a compiled set that policies may share.
    #[must_use]
    pub fn allowlist(self, allowlist: Arc<SelectorSet>) -> Self {
        LabelPolicy { allowlist: Some(allowlist).filter(|set| !set.is_empty()), ..self }
    }

    /// Sets these labels on every series, replacing what is there; after the allowlist, before eliding.
    #[must_use]
    pub fn set<N: Into<Box<str>>, V: Into<Box<str>>>(self, labels: impl IntoIterator<Item = (N, V)>) -> Self {
        LabelPolicy { set: labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect(), ..self }
    }

    /// Removes these labels from every series.
    #[must_use]
    pub fn elide<N: Into<Box<str>>>(self, labels: impl IntoIterator<Item = N>) -> Self {
        LabelPolicy { elide: labels.into_iter().map(Into::into).collect(), ..self }
    }

    /// What is to be done with a series.
    pub(super) fn judge<'i>(&self, identity: &'i Identity, labels: &LabelSet<'_>) -> Verdict<'i> {
        for (name, value) in &identity.labels {
            if **name == *self.cluster_label {
                continue;
            }
            match labels.value(name) {
                "" => return Verdict::Missing(name),
                found if found != &**value => return Verdict::Wrong(name, value),
                _ => {}
            }
        }
        match labels.value(&self.cluster_label) {
            "" => Verdict::Missing(""),
            cluster if !identity.writes.allows(&identity.cluster, cluster) => Verdict::Foreign,
            _ if !self.allows(labels) => Verdict::Drop,
            _ => Verdict::Keep,
        }
    }

    pub(super) fn allows(&self, labels: &LabelSet<'_>) -> bool {
        self.allowlist.as_ref().is_none_or(|allowlist| allowlist.matches(labels))
    }

    pub(super) fn relabel(&self, labels: &mut LabelSet<'_>) {
        for (name, value) in &self.set {
            labels.set(name, value);
        }
        for name in &self.elide {
            labels.remove(name);
        }
    }

    pub(super) fn offence(&self, identity: &Identity, labels: &LabelSet<'_>, verdict: Verdict<'_>) -> Offence {
        let cluster = &*self.cluster_label;
        let own = excerpt(identity.cluster.as_str());
        let others = match &identity.writes {
            Writes::Also(others) => format!(" and {} more", others.len()),
            Writes::Any => " and any other".to_owned(),
            Writes::Own => String::new(),
        };
        let what = match verdict {
            Verdict::Missing("") => format!("label `{cluster}` is missing, this sender writes `{own}`{others}"),
            Verdict::Missing(name) => format!("label `{name}` is missing, this sender must have it"),
            Verdict::Wrong(name, value) => {
                format!(
                    "label `{name}` is `{}`, this sender must have `{}`",
                    excerpt(labels.value(name)),
                    excerpt(value)
                )
            }
            Verdict::Keep | Verdict::Drop | Verdict::Foreign => {
                let found = excerpt(labels.value(cluster));
                format!("label `{cluster}` is `{found}`, this sender writes `{own}`{others}")
            }
        };
        let detail = format!("series {} `{}`: {what}", labels.index() + 1, excerpt(labels.metric_name()));
        Offence { reason: Reason::ClusterLabel, detail }
    }
}

/// What is to be done with one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<'i> {
    Keep,
    /// It is off the allowlist.
    Drop,
    /// It is another cluster's.
    Foreign,
    /// A label of the identity is not there; "" stands for the cluster label.
    Missing(&'i str),
    /// A label of the identity has another value than this one.
    Wrong(&'i str, &'i str),
}

/// A policy that can be replaced while requests pass. A request ends under the policy it began with. Clones share the policy.
#[derive(Debug, Clone)]
pub struct LivePolicy(Arc<ArcSwap<LabelPolicy>>);

impl LivePolicy {
    /// Starts with `policy`.
    pub fn new(policy: LabelPolicy) -> Self {
        LivePolicy(Arc::new(ArcSwap::from_pointee(policy)))
    }

    /// Puts `policy` in force.
    pub fn replace(&self, policy: LabelPolicy) {
        self.0.store(Arc::new(policy));
    }

    pub(super) fn load(&self) -> Guard<Arc<LabelPolicy>> {
        self.0.load()
    }
}

impl From<LabelPolicy> for LivePolicy {
    fn from(policy: LabelPolicy) -> Self {
        LivePolicy::new(policy)
    }
}

impl Labels for LabelSet<'_> {
    fn value(&self, name: &str) -> &str {
        LabelSet::value(self, name)
    }
}
