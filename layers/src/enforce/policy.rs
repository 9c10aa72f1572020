use std::sync::Arc;

use super::selector::{Labels, Selector, SelectorError, SelectorSet};
use crate::{
    authorize::{Identity, Writes},
    edit::{Edit as _, LabelPairs, SetLabels, pairs},
    payload::{LabelSet, Offence},
    rejection::{Reason, excerpt},
};

/// What the series of one endpoint must be, and what is done to them. Cheap to clone, so that exceptions can be made of it.
#[derive(Debug, Clone)]
pub struct LabelPolicy {
    cluster_label: Arc<str>,
    pub(crate) check: ClusterLabelCheck,
    pub(super) on_offence: OnOffence,
    /// None: everything is allowed.
    pub(crate) allowlist: Option<Arc<SelectorSet>>,
    pub(crate) require: LabelPairs,
    pub(crate) set: SetLabels,
    pub(crate) elide: LabelNames,
    /// None: what the identity says.
    pub(crate) writes: Option<Writes>,
}

/// Names of labels. Cheap to clone.
pub type LabelNames = Arc<[Box<str>]>;

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
    pub fn new(cluster_label: impl Into<Arc<str>>) -> Self {
        LabelPolicy {
            cluster_label: cluster_label.into(),
            check: ClusterLabelCheck::default(),
            on_offence: OnOffence::default(),
            allowlist: None,
            require: Arc::default(),
            set: SetLabels::default(),
            elide: Arc::default(),
            writes: None,
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

    /// Keeps all series again.
    #[must_use]
    pub fn allow_all(self) -> Self {
        LabelPolicy { allowlist: None, ..self }
    }

    /// Refuses series that do not carry these labels with these values, as those that lack their sender's.
    #[must_use]
    pub fn require<N: Into<Box<str>>, V: Into<Box<str>>>(self, labels: impl IntoIterator<Item = (N, V)>) -> Self {
        LabelPolicy { require: pairs(labels), ..self }
    }

    /// Sets these labels on every series, replacing what is there; after the allowlist, before eliding.
    #[must_use]
    pub fn set<N: Into<Box<str>>, V: Into<Box<str>>>(self, labels: impl IntoIterator<Item = (N, V)>) -> Self {
        LabelPolicy { set: SetLabels::new(labels), ..self }
    }

    /// Removes these labels from every series.
    #[must_use]
    pub fn elide<N: Into<Box<str>>>(self, labels: impl IntoIterator<Item = N>) -> Self {
        LabelPolicy { elide: labels.into_iter().map(Into::into).collect(), ..self }
    }

    /// Whose series a sender may write, whatever its identity says.
    #[must_use]
    pub fn writes(self, writes: Writes) -> Self {
        LabelPolicy { writes: Some(writes), ..self }
    }

    fn writes_of<'p>(&'p self, identity: &'p Identity) -> &'p Writes {
        self.writes.as_ref().unwrap_or(&identity.writes)
    }

    /// What becomes of a series of `identity`, and why. Its labels stay as they are; [`EnforceLabelsLayer`](super::EnforceLabelsLayer)
    /// does what is said here.
    pub fn explain(&self, identity: &Identity, labels: &LabelSet<'_>) -> Explained {
        let mut side = Vec::new();
        let mut edited = labels.copy(&mut side);
        let Decision { verdict, foreign } = self.apply(identity, &mut edited);
        match verdict {
            Verdict::Keep => Explained::Kept {
                rule: self.allowlist.as_ref().and_then(|allowlist| allowlist.find(labels)),
                labels: edited.iter().map(|(name, value)| (name.into(), value.into())).collect(),
                foreign,
            },
            Verdict::Drop => Explained::Dropped,
            refused => Explained::Refused(self.offence(identity, labels, refused)),
        }
    }

    /// Decides about a series, and edits the labels of one that goes on.
    pub(super) fn apply<'p>(&'p self, identity: &'p Identity, labels: &mut LabelSet<'_>) -> Decision<'p> {
        let verdict = self.judge(identity, labels);
        let decision = match verdict {
            Verdict::Foreign if self.check != ClusterLabelCheck::Enforce => {
                let verdict = if self.allows(labels) { Verdict::Keep } else { Verdict::Drop };
                Decision { verdict, foreign: self.check == ClusterLabelCheck::Count }
            }
            Verdict::Foreign | Verdict::Wrong(..) => Decision { verdict, foreign: true },
            Verdict::Keep | Verdict::Drop | Verdict::Missing(_) => Decision { verdict, foreign: false },
        };
        if decision.verdict == Verdict::Keep {
            self.relabel(labels);
        }
        decision
    }

    fn judge<'p>(&'p self, identity: &'p Identity, labels: &LabelSet<'_>) -> Verdict<'p> {
        for (name, value) in identity.labels.iter().chain(&*self.require) {
            if **name == *self.cluster_label {
                continue;
            }
            match labels.bytes(name) {
                b"" => return Verdict::Missing(name),
                found if found != value.as_bytes() => return Verdict::Wrong(name, value),
                _ => {}
            }
        }
        match labels.bytes(&self.cluster_label) {
            b"" => Verdict::Missing(""),
            // Most write their own, which is seen without looking at what else they may write.
            cluster if cluster != identity.cluster.as_str().as_bytes() && !self.may_write_for(identity, labels) => {
                Verdict::Foreign
            }
            _ if !self.allows(labels) => Verdict::Drop,
            _ => Verdict::Keep,
        }
    }

    fn may_write_for(&self, identity: &Identity, labels: &LabelSet<'_>) -> bool {
        self.writes_of(identity).allows(&identity.cluster, labels.value(&self.cluster_label))
    }

    fn allows(&self, labels: &LabelSet<'_>) -> bool {
        self.allowlist.as_ref().is_none_or(|allowlist| allowlist.matches(labels))
    }

    fn relabel(&self, labels: &mut LabelSet<'_>) {
        self.set.edit(labels);
        for name in &*self.elide {
            labels.remove(name);
        }
    }

    pub(super) fn offence(&self, identity: &Identity, labels: &LabelSet<'_>, verdict: Verdict<'_>) -> Offence {
        let cluster = &*self.cluster_label;
        let own = excerpt(identity.cluster.as_str());
        let others = match self.writes_of(identity) {
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
        Offence::new(Reason::ClusterLabel, labels.index(), labels.metric_name(), what)
    }
}

/// What becomes of one series, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explained {
    /// It goes on.
    Kept {
        /// Which selector of the allowlist selects it, from 0: the first if several do. None where all series pass.
        rule: Option<usize>,
        /// Its labels as they go on, sorted by name.
        labels: Vec<(Box<str>, Box<str>)>,
        /// It is another cluster's, and counted as such: [`ClusterLabelCheck::Count`].
        foreign: bool,
    },
    /// No selector of the allowlist selects it. Its sender is not told.
    Dropped,
    /// Its sender is told, of the first such series of a request.
    Refused(Offence),
}

/// What was decided about one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision<'p> {
    pub(super) verdict: Verdict<'p>,
    /// It counts as another's, whatever becomes of it.
    pub(super) foreign: bool,
}

/// What is to be done with one series. [`LabelPolicy::apply`] leaves [`Foreign`](Verdict::Foreign) only where it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<'p> {
    Keep,
    /// It is off the allowlist.
    Drop,
    /// It is another cluster's.
    Foreign,
    /// A label that must be there is not; "" stands for the cluster label.
    Missing(&'p str),
    /// A label that must be there has another value than this one.
    Wrong(&'p str, &'p str),
}

impl Labels for LabelSet<'_> {
    fn value(&self, name: &str) -> &str {
        LabelSet::value(self, name)
    }

    fn bytes(&self, name: &str) -> &[u8] {
        LabelSet::bytes(self, name)
    }
}
