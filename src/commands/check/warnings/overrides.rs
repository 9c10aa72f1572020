//! What is said of some and makes no difference, or another one than it seems to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use infogw_layers::policy::Endpoint;

use super::{
    Checker,
    groups::{Whose, groups},
    said::{Said, base, lifts, said_in},
};
use crate::config::policy::{
    document::{ById, Override},
    values::{Denied, ExemptFrom, Id, WritesFor},
};

/// What is said of others, seen from an override of `whose`. It is not known which cluster is of which account: what is said of any
/// may go together with what is said here.
#[derive(Clone, Copy)]
struct Elsewhere<'a> {
    whose: Whose,
    /// Keys that are said of any account.
    by_account: &'a HashSet<String>,
    /// Keys that are said of any cluster.
    by_cluster: &'a HashSet<String>,
}

impl Elsewhere<'_> {
    /// Whether what is said here of this key is not for all whom the override is for.
    fn may_be_replaced(self, key: &str) -> bool {
        self.whose == Whose::Account && self.by_cluster.contains(key)
    }

    /// Whether an account may be exempt from what is said here.
    fn may_exempt(self, key: &str) -> bool {
        let kinds = [ExemptFrom::Rates, ExemptFrom::Sizes, ExemptFrom::Allowlist];
        !self.leaves_common("exempt") && kinds.into_iter().any(|kind| lifts(kind, key))
    }

    /// Whether what is said of this key for all is for all whom the override is for, if it does not say it itself.
    fn leaves_common(self, key: &str) -> bool {
        self.whose == Whose::Account || !self.by_account.contains(key)
    }
}

impl<'d> Checker<'d> {
    pub(super) fn overrides(&mut self) {
        let document = self.document;
        let Some(overrides) = &document.overrides else { return };
        let base = base(document);
        let (by_account, by_cluster) = (self.by_account, self.by_cluster);
        for (whose, of) in [(Whose::Account, &overrides.accounts), (Whose::Cluster, &overrides.clusters)] {
            for group in of.iter().flat_map(groups) {
                let place = self.sources.place(&group.place);
                let name = format!("the override of {}", group.named(whose));
                let said = said_in(group.value);
                let elsewhere = Elsewhere { whose, by_account, by_cluster };
                let holds_anyway = |key: &str, value| {
                    base.get(key) == Some(value) && elsewhere.leaves_common(key) && !elsewhere.may_exempt(key)
                };
                if said.is_empty() {
                    self.warn(&place, format_args!("{name} says nothing"));
                } else if said.iter().all(|(key, value)| holds_anyway(key, value)) {
                    self.warn(&place, format_args!("{name} changes nothing: it says what holds anyway"));
                }
                self.within(group.value, &place, &name, &said, elsewhere);
            }
        }
        if let Some(clusters) = &overrides.clusters {
            self.writes_for_itself(clusters);
        }
    }

    /// What is wrong with an override in itself.
    fn within(&mut self, value: &'d Override, place: &str, name: &str, said: &Said, elsewhere: Elsewhere<'_>) {
        let keys_without_effect = |is_one: &dyn Fn(&str) -> bool| -> Vec<String> {
            said.keys().filter(|key| is_one(key)).map(|key| format!("`{key}`")).collect()
        };
        match &value.denied {
            Some(Denied::Because { until: None, .. }) if !elsewhere.may_be_replaced("denied") => {
                let keys = keys_without_effect(&|key| key != "denied");
                if !keys.is_empty() {
                    self.warn(place, format_args!("{name} has `denied`, so {} no effect", have(&keys)));
                }
                return;
            }
            Some(Denied::Because { until: Some(until), .. }) if until.0 <= self.now => {
                let until = humantime::format_rfc3339_seconds(until.0);
                self.warn(place, format_args!("{name} denies until {until}, which is past"));
            }
            _ => {}
        }
        let exempt = value.exempt.as_deref().filter(|_| !elsewhere.may_be_replaced("exempt")).unwrap_or_default();
        let keys = keys_without_effect(&|key| exempt.iter().any(|kind| lifts(*kind, key)));
        if !keys.is_empty() {
            self.warn(place, format_args!("{name} has `exempt`, so {} no effect", have(&keys)));
        }
        self.sections_of(value, place, name, exempt, elsewhere);
    }

    /// What is wrong with what holds in place of the common sections. What it is exempt from does not hold.
    fn sections_of(
        &mut self,
        value: &'d Override,
        place: &str,
        name: &str,
        exempt: &[ExemptFrom],
        elsewhere: Elsewhere<'_>,
    ) {
        let document = self.document;
        let allowlists = !exempt.contains(&ExemptFrom::Allowlist);
        if let Some(own) = &value.upload {
            self.allowlist(Endpoint::Upload, own.allowlist.as_ref().filter(|_| allowlists), None);
            if own.set.is_some() || own.elide.is_some() {
                let common = |key| document.upload.as_ref().filter(|_| elsewhere.leaves_common(key));
                let set = own.set.as_ref().or_else(|| common("upload.set")?.set.as_ref());
                self.labels(set, own.elide.as_ref().or_else(|| common("upload.elide")?.elide.as_ref()));
            }
        }
        if let Some(own) = &value.receive {
            let common = || document.receive.as_ref().filter(|_| elsewhere.leaves_common("receive.require"));
            let require = own.require.as_ref().or_else(|| common()?.require.as_ref());
            let require = require.filter(|_| !elsewhere.may_be_replaced("receive.require"));
            self.allowlist(Endpoint::Receive, own.allowlist.as_ref().filter(|_| allowlists), require);
            if own.set.is_some() || own.elide.is_some() {
                let common = |key| document.receive.as_ref().filter(|_| elsewhere.leaves_common(key));
                let set = own.set.as_ref().or_else(|| common("receive.set")?.set.as_ref());
                self.labels(set, own.elide.as_ref().or_else(|| common("receive.elide")?.elide.as_ref()));
            }
            self.full_requests(own, exempt, |key, _| (place.to_owned(), format!("`receive.limits.{key}` in {name}")));
        }
    }

    /// A cluster writes for itself anyway.
    fn writes_for_itself(&mut self, clusters: &ById<Override>) {
        // Many may share a long list.
        let mut lists: HashMap<*const Override, HashSet<&Id>> = HashMap::new();
        for (index, (id, value)) in clusters.0.iter().enumerate() {
            let Some(WritesFor::Clusters(others)) = &value.writes_for else { continue };
            let id = Id(id.clone());
            if lists.entry(Arc::as_ptr(value)).or_insert_with(|| others.iter().collect()).contains(&id) {
                let place = self.sources.place(&clusters.place(index));
                self.warn(
                    &place,
                    format_args!("cluster `{}` writes for itself anyway: leave it out of `writes_for`", id.0),
                );
            }
        }
    }
}

/// The keys that are said of any of these.
pub(super) fn said_by_any(overrides: Option<&ById<Override>>) -> HashSet<String> {
    overrides.into_iter().flat_map(groups).flat_map(|group| said_in(group.value).into_keys()).collect()
}

/// `a has`; `a and b have`.
fn have(keys: &[String]) -> String {
    match keys {
        [key] => format!("{key} has"),
        keys => format!("{} have", keys.join(" and ")),
    }
}
