//! Who sends it, and what of the policy holds for that one.

use std::{collections::BTreeSet, sync::Arc};

use infogw_layers::{
    authorize::{ClusterId, Identity},
    policy::{Endpoint, Terms},
};
use serde::Serialize;
use serde_json::Value;

use super::super::{Exit, Failure};
use crate::config::{
    PolicySources,
    policy::{
        ReadPolicy,
        document::{Document, Override},
        values::{At, ExemptFrom, Rule},
    },
};

/// A sender at an endpoint.
pub(super) struct Sender<'p> {
    pub(super) sources: &'p PolicySources,
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
    pub(super) terms: Arc<Terms>,
    pub(super) allowlist: Allowlist,
    /// Keys of overrides that hold for it.
    pub(super) overrides: Vec<String>,
}

/// Which series pass.
pub(super) enum Allowlist {
    /// Those that a rule selects.
    Rules(At<Vec<At<Rule>>>),
    /// All: there is none.
    Absent,
    /// All: it does not hold for this sender.
    Exempt,
}

impl<'p> Sender<'p> {
    /// `cluster`, of `account`.
    pub(super) fn new(
        sources: &'p PolicySources,
        policy: &ReadPolicy,
        endpoint: Endpoint,
        cluster: &str,
        account: Option<String>,
    ) -> Result<Self, Failure> {
        let id =
            ClusterId::new(cluster).map_err(|error| Failure::new(Exit::Usage, format_args!("--cluster: {error}")))?;
        let account = account.map(Arc::from);
        let mut identity = Identity { account, ..Identity::of(id) };
        let terms = policy.policy.terms(endpoint, &identity);
        if endpoint == Endpoint::Upload {
            // As in a token that is issued under this policy.
            identity.labels = terms.token_labels.to_vec();
        }
        let said = Said::of(&policy.document, &identity);
        let (allowlist, overrides) = (said.allowlist(&policy.document, endpoint), said.overrides(&identity, endpoint));
        Ok(Sender { sources, endpoint, identity, terms, allowlist, overrides })
    }

    /// The rules of the allowlist.
    pub(super) fn rules(&self) -> &[At<Rule>] {
        match &self.allowlist {
            Allowlist::Rules(rules) => &rules.value,
            Allowlist::Absent | Allowlist::Exempt => &[],
        }
    }

    /// A rule as it is shown.
    pub(super) fn shown(&self, rule: &At<Rule>) -> ShownRule {
        ShownRule { selector: rule.value.0.to_string(), place: self.sources.place(&rule.place) }
    }
}

/// A rule, and where it stands.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ShownRule {
    pub(super) selector: String,
    pub(super) place: String,
}

/// What is said of one sender by name.
struct Said<'d> {
    account: Option<&'d Override>,
    cluster: Option<&'d Override>,
    /// Whether `tenants` names the account, and the cluster.
    tenants: [bool; 2],
}

/// Reads an override's allowlist at one endpoint.
type OwnRules<'d> = fn(&'d Override) -> Option<&'d At<Vec<At<Rule>>>>;

impl<'d> Said<'d> {
    fn of(document: &'d Document, identity: &Identity) -> Self {
        let (account, cluster) = (identity.account.as_deref(), identity.cluster.as_str());
        let overrides = document.overrides.as_ref();
        let tenants = document.tenants.as_ref();
        let accounts = overrides.and_then(|overrides| overrides.accounts.as_ref());
        let clusters = overrides.and_then(|overrides| overrides.clusters.as_ref());
        let account_tenants = tenants.and_then(|tenants| tenants.accounts.as_ref());
        let cluster_tenants = tenants.and_then(|tenants| tenants.clusters.as_ref());
        Said {
            account: accounts.zip(account).and_then(|(accounts, id)| accounts.find(id)).map(|own| &**own),
            cluster: clusters.and_then(|clusters| clusters.find(cluster)).map(|own| &**own),
            tenants: [
                account_tenants.zip(account).is_some_and(|(tenants, id)| tenants.find(id).is_some()),
                cluster_tenants.is_some_and(|tenants| tenants.find(cluster).is_some()),
            ],
        }
    }

    fn allowlist(&self, document: &Document, endpoint: Endpoint) -> Allowlist {
        let upload = document.upload.as_ref().and_then(|section| section.allowlist.as_ref());
        let receive = document.receive.as_ref().and_then(|section| section.allowlist.as_ref());
        let (common, own): (_, OwnRules<'d>) = match endpoint {
            Endpoint::Upload => (upload, |own| own.upload.as_ref()?.allowlist.as_ref()),
            Endpoint::Receive => (receive, |own| own.receive.as_ref()?.allowlist.as_ref()),
        };
        // None: nothing is said of that.
        let exempt = |own: Option<&Override>| Some(own?.exempt.as_ref()?.contains(&ExemptFrom::Allowlist));
        let rules = |rules: &At<Vec<At<Rule>>>| Allowlist::Rules(rules.clone());
        match (exempt(self.cluster), self.cluster.and_then(own)) {
            (Some(true), _) => Allowlist::Exempt,
            (_, Some(clusters)) => rules(clusters),
            (None, None) if exempt(self.account) == Some(true) => Allowlist::Exempt,
            _ => self.account.and_then(own).or(common).map_or(Allowlist::Absent, rules),
        }
    }

    /// The keys that hold at `endpoint`: of the account those that the cluster says nothing of.
    fn overrides(&self, identity: &Identity, endpoint: Endpoint) -> Vec<String> {
        let keys = |own: Option<&Override>, tenant| {
            let mut keys = BTreeSet::new();
            // A policy always serialises.
            let written = own.and_then(|own| serde_json::to_value(own).ok()).unwrap_or_default();
            collect(&written, "", endpoint, &mut keys);
            keys.extend(if tenant { Some("tenant".to_owned()) } else { None });
            keys
        };
        let [account_tenant, cluster_tenant] = self.tenants;
        let cluster = keys(self.cluster, cluster_tenant);
        let account: BTreeSet<_> = keys(self.account, account_tenant).difference(&cluster).cloned().collect();
        let named = |kind: &str, id: &str, keys: BTreeSet<String>| {
            let id = id.to_owned();
            let named = keys.into_iter().map(|key| match key.as_str() {
                "tenant" => format!("tenants.{kind}.{id}"),
                key => format!("overrides.{kind}.{id}.{key}"),
            });
            named.collect::<Vec<_>>()
        };
        let account = named("accounts", identity.account.as_deref().unwrap_or_default(), account);
        named("clusters", identity.cluster.as_str(), cluster).into_iter().chain(account).collect()
    }
}

/// The keys of an override that say something of `endpoint`.
fn collect(written: &Value, path: &str, endpoint: Endpoint, keys: &mut BTreeSet<String>) {
    let (here, elsewhere) = match endpoint {
        Endpoint::Upload => ("upload", "receive"),
        Endpoint::Receive => ("receive", "upload"),
    };
    for (key, value) in written.as_object().into_iter().flatten() {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match key.as_str() {
            key if key == elsewhere => {}
            // Delegation is remote write's.
            "writes_for" if endpoint == Endpoint::Upload => {}
            key if key == here || key == "limits" => collect(value, &full, endpoint, keys),
            _ => {
                keys.insert(full);
            }
        }
    }
}
