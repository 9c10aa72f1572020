//! A policy as it is written to the one that is enforced.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use infogw_layers::{
    authorize::Writes,
    decode::DecodeLimits,
    enforce::{LabelPairs, LabelPolicy, OnOffence, selector::SelectorSet},
    policy::{self, Denial, Endpoint, Overrides, Policy, Setting, Size, Terms},
};

use super::{
    PolicyError, Subject,
    document::{ById, Document, Override, Receive, ReceiveLimits, Tenant, Upload, UploadLimits},
    values::{At, Denied, LabelName, Labels, Place, Rule, SeriesLimit, SizeLimit, WritesFor, exempt},
};

/// The policy that `document` describes.
///
/// # Errors
/// What cannot be meant, and where it stands.
pub(super) fn compile(document: &Document, subject: &Subject) -> Result<Policy, PolicyError> {
    let mut compiler = Compiler { subject, allowlists: HashMap::new() };
    let base = |label: &str, on_offence| {
        let limits = DecodeLimits { unrepeatable: vec![label.into()], ..DecodeLimits::default() };
        Terms::new(LabelPolicy::new(label).on_offence(on_offence), limits)
    };
    let (mut upload, mut receive) = (Vec::new(), Vec::new());
    compiler.upload(document.upload.as_ref(), &mut upload)?;
    compiler.receive(document.receive.as_ref(), &mut receive)?;
    let tenants = document.tenants.clone().unwrap_or_default();
    upload.extend(tenants.upload.map(|tenant| compiler.placed_tenant(&tenant)).transpose()?);
    match tenants.receive {
        Some(tenant) => receive.push(compiler.placed_tenant(&tenant)?),
        None if subject.upstream.needs_tenant() => {
            return Err(PolicyError::nowhere(
                "--forward-url has `{tenant}`, and remote write of who is not listed has none: give --receive-tenant-id, or `tenants.receive` \
                 in the policy file",
            ));
        }
        None => {}
    }
    let upload = base(&subject.partition_label, OnOffence::RefuseRequest).with(&upload);
    let receive = base(&subject.receive_label, OnOffence::RefuseSeries).with(&receive);

    let mut overrides = Overrides::default();
    let written = document.overrides.clone().unwrap_or_default();
    overrides.reserve(
        ids(written.accounts.as_ref()).len().max(ids(tenants.accounts.as_ref()).len()),
        ids(written.clusters.as_ref()).len().max(ids(tenants.clusters.as_ref()).len()),
    );
    compiler.each(written.accounts.as_ref(), tenants.accounts.as_ref(), |id, all| overrides.account(id, all))?;
    compiler.each(written.clusters.as_ref(), tenants.clusters.as_ref(), |id, all| overrides.cluster(id, all))?;
    Ok(Policy::new(upload, receive).overrides(overrides))
}

type Settings = Arc<[(Endpoint, Setting)]>;

fn ids<V>(of: Option<&ById<V>>) -> &[(Arc<str>, Arc<V>)] {
    of.map_or(&[], |of| &of.0)
}

struct Compiler<'d> {
    subject: &'d Subject,
    /// Endpoints share the flags' allowlist, and clusters that of their kind.
    allowlists: HashMap<Vec<At<Rule>>, Arc<SelectorSet>>,
}

impl Compiler<'_> {
    /// What is said of each id: its override's settings, then its tenant.
    fn each(
        &mut self,
        overrides: Option<&ById<Override>>,
        tenants: Option<&ById<Tenant>>,
        mut add: impl FnMut(Arc<str>, Settings),
    ) -> Result<(), PolicyError> {
        let all_tenants = tenants;
        let (overrides, mut tenants) = (ids(overrides), ids(tenants));
        // By their address: equal ones are one.
        let mut compiled: HashMap<(*const Override, *const Tenant), Settings, RandomState> = HashMap::default();
        let mut settings = |this: &mut Self, own: Option<&Arc<Override>>, tenant: Option<&Arc<Tenant>>| {
            let key = (own.map_or(std::ptr::null(), Arc::as_ptr), tenant.map_or(std::ptr::null(), Arc::as_ptr));
            let shared = own.is_none_or(|own| Arc::strong_count(own) > 1)
                && tenant.is_none_or(|tenant| Arc::strong_count(tenant) > 1);
            if shared && let Some(known) = compiled.get(&key) {
                return Ok(Arc::clone(known));
            }
            let mut all = Vec::new();
            if let Some(own) = own {
                this.own(own, &mut all)?;
            }
            if let Some(tenant) = tenant {
                let place = || all_tenants.map_or_else(Place::default, |all| all.place_of(tenant));
                let tenant = this.tenant(tenant).map_err(|error| PolicyError::at(&place(), error))?;
                all.extend(Endpoint::ALL.map(|endpoint| (endpoint, tenant.clone())));
            }
            let all = Settings::from(all);
            if shared {
                compiled.insert(key, Arc::clone(&all));
            }
            Ok(all)
        };
        // Both are sorted.
        for (id, own) in overrides {
            while let Some(((before, tenant), rest)) = tenants.split_first().filter(|((other, _), _)| other < id) {
                add(before.clone(), settings(self, None, Some(tenant))?);
                tenants = rest;
            }
            let tenant = match tenants.split_first().filter(|((other, _), _)| other == id) {
                Some(((_, tenant), rest)) => {
                    tenants = rest;
                    Some(tenant)
                }
                None => None,
            };
            add(id.clone(), settings(self, Some(own), tenant)?);
        }
        for (id, tenant) in tenants {
            add(id.clone(), settings(self, None, Some(tenant))?);
        }
        Ok(())
    }

    fn own(&mut self, own: &Override, all: &mut Vec<(Endpoint, Setting)>) -> Result<(), PolicyError> {
        let (mut upload, mut receive) = (Vec::new(), Vec::new());
        self.upload(own.upload.as_deref(), &mut upload)?;
        self.receive(own.receive.as_deref(), &mut receive)?;
        receive.extend(own.writes_for.as_ref().map(|writes_for| {
            Setting::Writes(match writes_for {
                WritesFor::Any => Writes::Any,
                WritesFor::Clusters(clusters) if clusters.is_empty() => Writes::Own,
                WritesFor::Clusters(clusters) => {
                    Writes::Also(Arc::new(clusters.iter().map(|cluster| (&*cluster.0).into()).collect()))
                }
            })
        }));
        let denial = own.denied.as_ref().map(|denied| {
            Setting::Denial(match denied {
                Denied::No => None,
                Denied::Because { reason, until } => {
                    Some(Arc::new(Denial { reason: reason.clone(), until: until.map(|moment| moment.0) }))
                }
            })
        });
        let exempt = own.exempt.as_ref().map(|kinds| Setting::Exempt(exempt(kinds)));
        for setting in denial.into_iter().chain(exempt) {
            upload.push(setting.clone());
            receive.push(setting);
        }
        all.extend(upload.into_iter().map(|setting| (Endpoint::Upload, setting)));
        all.extend(receive.into_iter().map(|setting| (Endpoint::Receive, setting)));
        Ok(())
    }

    fn upload(&mut self, section: Option<&Upload>, settings: &mut Vec<Setting>) -> Result<(), PolicyError> {
        let Some(Upload { allowlist, elide, set, require, limits }) = section else { return Ok(()) };
        let own = (self.subject.partition_label.as_str(), "--partition-label");
        settings.extend(allowlist.as_ref().map(|rules| self.allowlist(rules)).transpose()?);
        settings.extend(elide.as_ref().map(|names| elided(names, own)).transpose()?);
        settings.extend(set.as_ref().map(|labels| pairs(labels, own).map(Setting::Set)).transpose()?);
        settings.extend(require.as_ref().map(|labels| required(labels, own).map(Setting::TokenLabels)).transpose()?);
        let Some(limits) = limits else { return Ok(()) };
        let UploadLimits { interval, decoded_bytes, series, samples, labels, label_name_bytes, label_value_bytes } =
            limits;
        settings.extend(interval.map(|interval| Setting::RequestQuota(interval.quota())));
        settings.extend(sizes([
            (Size::Decoded, decoded_bytes.map(SizeLimit::or_max)),
            (Size::Series, series.map(SeriesLimit::or_max)),
            (Size::Samples, samples.map(SizeLimit::or_max)),
            (Size::Labels, labels.map(SizeLimit::or_max)),
            (Size::LabelName, label_name_bytes.map(SizeLimit::or_max)),
            (Size::LabelValue, label_value_bytes.map(SizeLimit::or_max)),
        ]));
        Ok(())
    }

    fn receive(&mut self, section: Option<&Receive>, settings: &mut Vec<Setting>) -> Result<(), PolicyError> {
        let Some(Receive { allowlist, elide, set, require, cluster_label_check, limits }) = section else {
            return Ok(());
        };
        let own = (self.subject.receive_label.as_str(), self.subject.receive_label_flag);
        settings.extend(allowlist.as_ref().map(|rules| self.allowlist(rules)).transpose()?);
        settings.extend(elide.as_ref().map(|names| elided(names, own)).transpose()?);
        settings.extend(set.as_ref().map(|labels| pairs(labels, own).map(Setting::Set)).transpose()?);
        settings.extend(require.as_ref().map(|labels| required(labels, own).map(Setting::Require)).transpose()?);
        settings.extend(cluster_label_check.as_ref().map(|mode| Setting::Check(mode.value.into())));
        let Some(limits) = limits else { return Ok(()) };
        let ReceiveLimits { request_rate, sample_rate, body_bytes, decoded_bytes, series, samples, .. } = limits;
        let ReceiveLimits { labels, label_name_bytes, label_value_bytes, .. } = limits;
        settings.extend(request_rate.map(|rate| Setting::RequestQuota(rate.quota)));
        settings.extend(sample_rate.map(|rate| Setting::SampleQuota(rate.quota)));
        settings.extend(sizes([
            (Size::Body, body_bytes.map(SizeLimit::or_max)),
            (Size::Decoded, decoded_bytes.map(SizeLimit::or_max)),
            (Size::Series, series.map(SeriesLimit::or_max)),
            (Size::Samples, samples.map(SizeLimit::or_max)),
            (Size::Labels, labels.map(SizeLimit::or_max)),
            (Size::LabelName, label_name_bytes.map(SizeLimit::or_max)),
            (Size::LabelValue, label_value_bytes.map(SizeLimit::or_max)),
        ]));
        Ok(())
    }

    fn allowlist(&mut self, rules: &At<Vec<At<Rule>>>) -> Result<Setting, PolicyError> {
        if rules.value.is_empty() {
            return Err(PolicyError::at(
                &rules.place,
                "an allowlist without a rule is no list: leave the key out, and all series pass, or have the clusters denied, and none do",
            ));
        }
        if let Some(known) = self.allowlists.get(&rules.value) {
            return Ok(Setting::Allowlist(Arc::clone(known)));
        }
        let set = SelectorSet::new(rules.value.iter().map(|rule| rule.value.0.clone()));
        let set = Arc::new(set.map_err(|error| PolicyError::at(&rules.place, error))?);
        self.allowlists.insert(rules.value.clone(), Arc::clone(&set));
        Ok(Setting::Allowlist(set))
    }

    fn placed_tenant(&self, tenant: &At<Tenant>) -> Result<Setting, PolicyError> {
        self.tenant(&tenant.value).map_err(|error| PolicyError::at(&tenant.place, error))
    }

    fn tenant(&self, tenant: &Tenant) -> Result<Setting, String> {
        let uri = self.subject.upstream.of_tenant(tenant.url.as_str())?;
        Ok(Setting::Tenant(Arc::new(policy::Tenant { header: tenant.header.0.clone(), uri })))
    }
}

fn sizes<const N: usize>(limits: [(Size, Option<usize>); N]) -> impl Iterator<Item = Setting> {
    limits.into_iter().filter_map(|(size, limit)| Some(Setting::Limit(size, limit?)))
}

/// The cluster's label is neither set nor removed: whose a series is would no longer be what was checked.
fn untouched(name: &LabelName, (label, named_by): (&str, &str), place: &Place) -> Result<(), PolicyError> {
    if &*name.0 != label {
        return Ok(());
    }
    Err(PolicyError::at(place, format!("`{label}` is the {named_by}, which says whose a series is; leave it out")))
}

fn elided(names: &[At<LabelName>], own: (&str, &str)) -> Result<Setting, PolicyError> {
    names.iter().try_for_each(|name| untouched(&name.value, own, &name.place))?;
    Ok(Setting::Elide(names.iter().map(|name| name.value.0.clone()).collect()))
}

fn pairs(labels: &At<Labels>, own: (&str, &str)) -> Result<LabelPairs, PolicyError> {
    labels.value.keys().try_for_each(|name| untouched(name, own, &labels.place))?;
    Ok(written(labels))
}

fn written(labels: &At<Labels>) -> LabelPairs {
    labels.value.iter().map(|(name, value)| (name.0.clone(), value.as_str().into())).collect()
}

fn required(labels: &At<Labels>, (label, named_by): (&str, &str)) -> Result<LabelPairs, PolicyError> {
    if labels.value.keys().any(|name| &*name.0 == label) {
        let message = format!("`{label}` is the {named_by}, which each series carries anyway; leave it out");
        return Err(PolicyError::at(&labels.place, message));
    }
    if let Some((name, _)) = labels.value.iter().find(|(_, value)| value.is_empty()) {
        let message = format!("`{}` has no value, and no series could carry it", name.0);
        return Err(PolicyError::at(&labels.place, message));
    }
    Ok(written(labels))
}
