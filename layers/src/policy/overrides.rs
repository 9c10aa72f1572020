use std::sync::Arc;

use hashbrown::HashMap;

use super::Setting;
use crate::authorize::Identity;

/// Where a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Metric families, `/upload`.
    Upload,
    /// Remote write, `/metrics/v1/receive`.
    Receive,
}

impl Endpoint {
    /// Both.
    pub const ALL: [Endpoint; 2] = [Endpoint::Upload, Endpoint::Receive];
}

/// What holds for some accounts and clusters instead of what is common.
///
/// A million of them take some 130 bytes each, where they share their settings.
#[derive(Debug, Default)]
pub struct Overrides {
    accounts: Table,
    clusters: Table,
}

/// Ids are the operator's; hashed with random keys all the same, since requests bring others.
type Table = HashMap<Arc<str>, Arc<[(Endpoint, Setting)]>, foldhash::fast::RandomState>;

impl Overrides {
    /// For the account `id`, in place of what was there.
    pub fn account(&mut self, id: impl Into<Arc<str>>, settings: impl Into<Arc<[(Endpoint, Setting)]>>) {
        self.accounts.insert(id.into(), settings.into());
    }

    /// For the cluster `id`, in place of what was there.
    pub fn cluster(&mut self, id: impl Into<Arc<str>>, settings: impl Into<Arc<[(Endpoint, Setting)]>>) {
        self.clusters.insert(id.into(), settings.into());
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, accounts: usize, clusters: usize) {
        self.accounts.reserve(accounts);
        self.clusters.reserve(clusters);
    }

    /// How many there are, accounts and clusters.
    pub fn len(&self) -> usize {
        self.accounts.len() + self.clusters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is said of the account of `identity`, and what of its cluster; none if nothing is.
    pub(super) fn find(&self, identity: &Identity) -> Option<[&[(Endpoint, Setting)]; 2]> {
        let account = identity.account.as_deref().filter(|_| !self.accounts.is_empty());
        let account = account.and_then(|account| self.accounts.get(account));
        let cluster = self.clusters.get(identity.cluster.as_str());
        if account.is_none() && cluster.is_none() {
            return None;
        }
        Some([account, cluster].map(|settings| settings.map_or(&[][..], |settings| &**settings)))
    }
}
