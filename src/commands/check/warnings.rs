//! What is allowed, and seldom meant.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::SystemTime,
};

use infogw_layers::policy::Endpoint;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::rules::{Rules, Use};
use crate::{
    config::{
        Config, Flags, PolicyFlags, PolicySources, RateFlags,
        policy::{
            Written,
            document::{ById, Document, Override, Receive, Tenant, Tenants},
            values::{At, Denied, ExemptFrom, Id, LabelName, Labels, Place, Rule, SampleRate, WritesFor},
        },
    },
    gateway,
};

/// So many samples senders of the fleet may pack into a request of remote write: the default burst lets that many pass, too.
const SAMPLES_PER_SEND: u32 = SampleRate::LEAST_BURST;

/// A line for each thing to warn of, in the order of the file.
pub(super) fn warnings(config: &Config, flags: &Flags, written: &Written, now: SystemTime) -> Vec<String> {
    let Written { file, document } = written;
    let overrides = document.overrides.as_ref();
    let by_account = said_by_any(overrides.and_then(|overrides| overrides.accounts.as_ref()));
    let by_cluster = said_by_any(overrides.and_then(|overrides| overrides.clusters.as_ref()));
    let mut checker = Checker {
        sources: &config.policy_sources,
        rules: Rules::new(&config.policy_sources),
        document,
        by_account: &by_account,
        by_cluster: &by_cluster,
        now,
        warnings: Vec::new(),
    };
    checker.flags(&flags.policy, file);
    checker.sections(file);
    checker.tenants();
    checker.overrides();
    let Checker { rules, warnings, .. } = checker;
    let told = warnings.into_iter().flat_map(|warning| match warning {
        Warning::Line(line) => vec![line],
        Warning::Rules(list) => rules.warnings(list),
    });
    let of_any = gateway::warnings(config).into_iter().map(|gateway::Warning { route, text }| match route {
        Some(route) => format!("{route}: {text}"),
        None => text.into_owned(),
    });
    // Endpoints share what flags say.
    let mut seen = HashSet::new();
    told.chain(of_any).filter(|line| seen.insert(line.clone())).collect()
}

struct Checker<'d> {
    sources: &'d PolicySources,
    rules: Rules<'d>,
    /// What holds.
    document: &'d Document,
    /// Keys that are said of any account.
    by_account: &'d HashSet<String>,
    /// Keys that are said of any cluster.
    by_cluster: &'d HashSet<String>,
    now: SystemTime,
    warnings: Vec<Warning<'d>>,
}

/// What to warn of at this point.
enum Warning<'d> {
    Line(String),
    /// Whatever there is to say of these, once it is known who is held to them.
    Rules(&'d At<Vec<At<Rule>>>),
}

/// Whose overrides these are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Account,
    Cluster,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Account => "account",
            Whose::Cluster => "cluster",
        }
    }
}

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
    fn warn(&mut self, place: &str, what: impl std::fmt::Display) {
        self.warnings.push(Warning::Line(format!("{place}: {what}")));
    }

    /// The policy file, where it is not known what line.
    fn file(&self) -> String {
        self.sources.policy_file().map_or_else(String::new, |path| path.display().to_string())
    }

    /// Flags that the file stands in place of.
    fn flags(&mut self, flags: &PolicyFlags, file: &Document) {
        let Some(path) = self.sources.policy_file() else { return };
        let said = said_for_all(file);
        for (flag, given, keys) in flags_and_keys(flags) {
            if given && keys.iter().all(|key| said.contains_key(*key)) {
                let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
                let keys = keys.join(" and ");
                self.warn(&path.display().to_string(), format_args!("{keys} in place of {flag}, which has no effect"));
            }
        }
    }

    /// What holds for all.
    fn sections(&mut self, file: &Document) {
        let document = self.document;
        let (upload, receive) = (document.upload.as_ref(), document.receive.as_ref());
        self.allowlist(Endpoint::Upload, upload.and_then(|section| section.allowlist.as_ref()), None);
        if let Some(receive) = receive {
            // Some may be held to these rules whose series carry something else.
            let others = self.by_account.contains("receive.require") || self.by_cluster.contains("receive.require");
            self.allowlist(Endpoint::Receive, receive.allowlist.as_ref(), receive.require.as_ref().filter(|_| !others));
        }
        let upload = upload.map(|section| (section.set.as_ref(), section.elide.as_ref()));
        let receive = receive.map(|section| (section.set.as_ref(), section.elide.as_ref()));
        for (set, elide) in upload.into_iter().chain(receive) {
            self.labels(set, elide);
        }
        if let Some(receive) = &document.receive {
            let said = said_for_all(file);
            let path = self.file();
            self.full_requests(receive, &[], |key, flag| {
                let key = format!("receive.limits.{key}");
                if said.contains_key(&key) {
                    (path.clone(), format!("`{key}`"))
                } else {
                    (flag.to_owned(), "it".to_owned())
                }
            });
        }
    }

    /// Notes that the series that come to this list carry `require`.
    fn allowlist(&mut self, endpoint: Endpoint, list: Option<&'d At<Vec<At<Rule>>>>, require: Option<&'d At<Labels>>) {
        let subject = self.sources.subject();
        let label = match endpoint {
            Endpoint::Upload => &subject.partition_label,
            Endpoint::Receive => &subject.receive_label,
        };
        if let Some(list) = list
            && self.rules.note(list, Use { label, require: require.map(|require| &require.value) })
        {
            self.warnings.push(Warning::Rules(list));
        }
    }

    /// Labels are set before others are removed, and an empty label is none.
    fn labels(&mut self, set: Option<&At<Labels>>, elide: Option<&Vec<At<LabelName>>>) {
        let Some(At { value: set, place }) = set else { return };
        let place = self.sources.place(place);
        for (name, value) in set.iter() {
            let elided = elide.and_then(|names| names.iter().find(|elided| elided.value == *name));
            if let Some(elided) = elided {
                let elided = self.sources.place(&elided.place);
                self.warn(&place, format_args!("label `{}` is set, and removed by `elide` ({elided})", name.0));
            } else if value.is_empty() {
                self.warn(
                    &place,
                    format_args!("label `{}` is set to nothing, which removes it: `elide` says so", name.0),
                );
            }
        }
    }

    /// Limits under which requests as full as senders may make them are refused for ever. `at` says where a key or flag stands.
    fn full_requests(&mut self, receive: &Receive, exempt: &[ExemptFrom], at: impl Fn(&str, &str) -> (String, String)) {
        let Some(limits) = &receive.limits else { return };
        let sizes = [
            ("samples", "", "samples", limits.samples.map_or(0, |limit| limit.0)),
            ("series", "--limit-series", "series", limits.series.map_or(0, |limit| limit.0)),
        ];
        let burst = limits.sample_rate.filter(|rate| rate.quota.is_some()).map_or(0, |rate| rate.burst.get());
        let burst = ("sample_rate", "--limit-receive-samples-burst", "samples at once", burst);
        for (key, flag, of_what, limit) in sizes.into_iter().chain([burst]) {
            let holds = !exempt.iter().any(|kind| lifts(*kind, &format!("receive.limits.{key}")));
            if holds && (1..SAMPLES_PER_SEND).contains(&limit) {
                let (place, key) = at(key, flag);
                self.warn(
                    &place,
                    format_args!(
                        "{key} lets {limit} {of_what} pass; senders of this fleet may pack {SAMPLES_PER_SEND} samples into a request, and \
                         such a one may be refused for ever"
                    ),
                );
            }
        }
    }

    fn tenants(&mut self) {
        let Some(Tenants { upload, receive, accounts, clusters }) = &self.document.tenants else { return };
        let one_url = !self.sources.subject().upstream.needs_tenant();
        let idle = |tenant: &Tenant| one_url && tenant.header != tenant.url;
        let what = "has a `url` of its own, and --forward-url has no `{tenant}` to stand for it";
        for (key, tenant) in [("upload", upload), ("receive", receive)] {
            if let Some(tenant) = tenant.as_ref().filter(|tenant| idle(&tenant.value)) {
                self.warn(&self.sources.place(&tenant.place), format_args!("tenants.{key} {what}"));
            }
        }
        for (whose, tenants) in [(Whose::Account, accounts), (Whose::Cluster, clusters)] {
            let accounts = accounts.as_ref().filter(|_| whose == Whose::Cluster);
            let by_account = accounts.is_some_and(|accounts| !accounts.0.is_empty());
            for group in tenants.iter().flat_map(groups) {
                let place = self.sources.place(&group.place);
                let of_whom = format!("the tenant of {}", group.named(whose));
                if idle(group.value) {
                    self.warn(&place, format_args!("{of_whom} {what}"));
                }
                let is_everyones = [upload, receive]
                    .iter()
                    .all(|tenant| tenant.as_ref().is_some_and(|tenant| tenant.value == *group.value));
                if is_everyones && !by_account {
                    self.warn(&place, format_args!("{of_whom} is everyone's"));
                }
            }
        }
    }

    fn overrides(&mut self) {
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

/// Those of whom the same is said.
struct Group<'d, V> {
    value: &'d V,
    /// Of them, who stands first in the file.
    first: &'d str,
    /// Where.
    place: Place,
    /// How many there are besides.
    others: usize,
}

impl<V> Group<'_, V> {
    fn named(&self, whose: Whose) -> String {
        let (whose, first) = (whose.name(), self.first);
        match self.others {
            0 => format!("{whose} `{first}`"),
            1 => format!("{whose} `{first}`, and of 1 more,"),
            others => format!("{whose} `{first}`, and of {others} more,"),
        }
    }
}

/// Equal values are one, as they are read. In the order of the file.
fn groups<V>(by_id: &ById<V>) -> Vec<Group<'_, V>> {
    let mut groups: HashMap<*const V, Group<'_, V>> = HashMap::new();
    let before = |one: &Place, other: &Place| (one.line, one.column) < (other.line, other.column);
    for (index, (id, value)) in by_id.0.iter().enumerate() {
        let place = by_id.place(index);
        match groups.entry(Arc::as_ptr(value)) {
            Entry::Vacant(vacant) => {
                vacant.insert(Group { value: &**value, first: id, place, others: 0 });
            }
            Entry::Occupied(group) => {
                let group = group.into_mut();
                group.others += 1;
                if before(&place, &group.place) {
                    (group.first, group.place) = (id, place);
                }
            }
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_unstable_by_key(|group| (group.place.line, group.place.column));
    groups
}

/// Each key that is said, as `receive.limits.series`, and its value.
type Said = BTreeMap<String, Value>;

/// What a structure of the file says.
fn said_in(section: &impl Serialize) -> Said {
    let mut said = Said::new();
    // What is read from YAML can be written as JSON.
    if let Ok(Value::Object(section)) = serde_json::to_value(section) {
        flatten("", section, &mut said);
    }
    said
}

fn flatten(prefix: &str, section: Map<String, Value>, said: &mut Said) {
    for (key, value) in section {
        match (key.as_str(), value) {
            ("upload" | "receive" | "limits", Value::Object(section)) => {
                flatten(&format!("{prefix}{key}."), section, said);
            }
            (_, value) => {
                said.insert(format!("{prefix}{key}"), value);
            }
        }
    }
}

/// The keys that are said of any of these.
fn said_by_any(overrides: Option<&ById<Override>>) -> HashSet<String> {
    overrides.into_iter().flat_map(groups).flat_map(|group| said_in(group.value).into_keys()).collect()
}

/// What a document says for all.
fn said_for_all(document: &Document) -> Said {
    let Document { upload, receive, tenants, overrides: _ } = document;
    let both = Override {
        upload: upload.clone().map(Box::new),
        receive: receive.clone().map(Box::new),
        ..Override::default()
    };
    let mut said = said_in(&both);
    if let Some(Tenants { upload, receive, .. }) = tenants {
        for (key, tenant) in [("tenants.upload", upload), ("tenants.receive", receive)] {
            said.extend(tenant.as_ref().map(|tenant| (key.to_owned(), json!(tenant))));
        }
    }
    said
}

/// What holds for whom there is no override; also where nobody says it.
fn base(document: &Document) -> Said {
    let unlimited = json!({ "per_second": 0.0 });
    let unsaid = [
        ("upload.elide", json!([])),
        ("upload.set", json!({})),
        ("upload.require", json!({})),
        ("upload.limits.samples", json!(0)),
        ("receive.elide", json!([])),
        ("receive.set", json!({})),
        ("receive.require", json!({})),
        ("receive.limits.samples", json!(0)),
        ("receive.limits.request_rate", unlimited.clone()),
        ("receive.limits.sample_rate", unlimited),
        ("exempt", json!([])),
        ("denied", json!(false)),
        ("writes_for", json!([])),
    ];
    let mut base: Said = unsaid.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    base.extend(said_for_all(document));
    base
}

/// Whether whoever is exempt from this is not held to that key.
fn lifts(kind: ExemptFrom, key: &str) -> bool {
    let Some((_, key)) = key.split_once('.') else { return false };
    let is_rate = matches!(key, "limits.interval" | "limits.request_rate" | "limits.sample_rate");
    match kind {
        ExemptFrom::Rates => is_rate,
        ExemptFrom::Sizes => key.starts_with("limits.") && !is_rate,
        ExemptFrom::Allowlist => key == "allowlist",
    }
}

/// `a has`; `a and b have`.
fn have(keys: &[String]) -> String {
    match keys {
        [key] => format!("{key} has"),
        keys => format!("{} have", keys.join(" and ")),
    }
}

/// Each flag that has keys in the file, whether it is given, and the keys.
fn flags_and_keys(flags: &PolicyFlags) -> Vec<(&'static str, bool, &'static [&'static str])> {
    let PolicyFlags {
        policy: _,
        whitelist,
        whitelist_file,
        label,
        elide_label,
        receive_label,
        receive_elide_label,
        required_label,
        cluster_label_check,
        tenant_id,
        receive_tenant_id,
        limit_bytes,
        limit_receive_bytes,
        limit_receive_decoded_bytes,
        limit_series,
        limit_labels,
        limit_label_name_bytes,
        limit_label_value_bytes,
        limit_receive_label_name_bytes,
        limit_receive_label_value_bytes,
        rates,
    } = flags;
    let RateFlags {
        ratelimit,
        limit_receive_requests_per_second,
        limit_receive_requests_burst,
        limit_receive_samples_per_second,
        limit_receive_samples_burst,
    } = rates;
    let one = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let any = |values: &[String]| values.iter().any(|value| !value.is_empty());
    vec![
        ("--whitelist", any(whitelist), &["upload.allowlist", "receive.allowlist"]),
        ("--whitelist-file", any(whitelist_file), &["upload.allowlist", "receive.allowlist"]),
        ("--label", any(label), &["upload.set"]),
        ("--elide-label", any(elide_label), &["upload.elide"]),
        ("--receive-label", any(receive_label), &["receive.set"]),
        ("--receive-elide-label", any(receive_elide_label), &["receive.elide"]),
        ("--required-label", any(required_label), &["upload.require"]),
        ("--cluster-label-check", one(cluster_label_check), &["receive.cluster_label_check"]),
        ("--tenant-id", one(tenant_id), &["tenants.upload"]),
        ("--receive-tenant-id", one(receive_tenant_id), &["tenants.receive"]),
        ("--limit-bytes", one(limit_bytes), &["upload.limits.decoded_bytes"]),
        ("--limit-receive-bytes", one(limit_receive_bytes), &["receive.limits.body_bytes"]),
        ("--limit-receive-decoded-bytes", one(limit_receive_decoded_bytes), &["receive.limits.decoded_bytes"]),
        ("--limit-series", one(limit_series), &["upload.limits.series", "receive.limits.series"]),
        ("--limit-labels", one(limit_labels), &["upload.limits.labels", "receive.limits.labels"]),
        ("--limit-label-name-bytes", one(limit_label_name_bytes), &["upload.limits.label_name_bytes"]),
        ("--limit-label-value-bytes", one(limit_label_value_bytes), &["upload.limits.label_value_bytes"]),
        ("--limit-receive-label-name-bytes", one(limit_receive_label_name_bytes), &["receive.limits.label_name_bytes"]),
        (
            "--limit-receive-label-value-bytes",
            one(limit_receive_label_value_bytes),
            &["receive.limits.label_value_bytes"],
        ),
        ("--ratelimit", one(ratelimit), &["upload.limits.interval"]),
        (
            "--limit-receive-requests-per-second",
            one(limit_receive_requests_per_second),
            &["receive.limits.request_rate"],
        ),
        ("--limit-receive-requests-burst", one(limit_receive_requests_burst), &["receive.limits.request_rate"]),
        ("--limit-receive-samples-per-second", one(limit_receive_samples_per_second), &["receive.limits.sample_rate"]),
        ("--limit-receive-samples-burst", one(limit_receive_samples_burst), &["receive.limits.sample_rate"]),
    ]
}
