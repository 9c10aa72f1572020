//! What is allowed, and seldom meant.

mod flags_and_keys;
mod groups;
mod overrides;
mod said;

use std::{collections::HashSet, time::SystemTime};

use infogw_layers::policy::Endpoint;

use self::{
    flags_and_keys::flags_and_keys,
    groups::{Whose, groups},
    overrides::said_by_any,
    said::{lifts, said_for_all},
};
use super::rules::{Rules, Use};
use crate::{
    config::{
        Config, Flags, PolicyFlags, PolicySources,
        policy::{
            Written,
            document::{Document, Receive, Tenant, Tenants},
            values::{At, ExemptFrom, LabelName, Labels, Rule, SampleRate},
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
}
