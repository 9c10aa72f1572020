//! The policy in force.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use infogw_layers::policy::LivePolicy;
use tokio::task::JoinSet;

use super::{PolicySources, ReadPolicy, document::Document};
use crate::{config::ConfigError, watch::Followed};

/// The policy in force. It is replaced when its files change or somebody asks; a request ends under the one it began with. Clones
/// share it.
#[derive(Debug, Clone)]
pub struct GatewayPolicy {
    live: LivePolicy,
    status: Arc<ArcSwap<PolicyStatus>>,
    files: Followed,
}

/// What can be told of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Tells it from others.
    pub hash: String,
    /// Rules in the allowlists of `/upload` and `/metrics/v1/receive`; without any, all series pass.
    pub rules: [usize; 2],
    /// Accounts and clusters for which something else holds.
    pub overrides: usize,
}

/// A policy as it is written, which nobody needs while it is enforced.
#[derive(Debug)]
pub struct Written {
    /// What the policy file says by itself.
    pub file: Document,
    /// What holds, with nothing left to fill in.
    pub document: Document,
}

impl From<&ReadPolicy> for PolicyStatus {
    fn from(read: &ReadPolicy) -> Self {
        PolicyStatus { hash: read.hash.clone(), rules: read.rules(), overrides: read.overrides() }
    }
}

impl GatewayPolicy {
    /// Reads what `sources` say.
    ///
    /// # Errors
    /// As [`PolicySources::read`].
    pub fn read(sources: &PolicySources) -> Result<(Self, Written), ConfigError> {
        // Before they are read: what changes meanwhile is read again.
        let files = Followed::new(sources.files().cloned().collect::<Vec<PathBuf>>());
        let read = sources.read()?;
        let status = Arc::new(ArcSwap::from_pointee(PolicyStatus::from(&read)));
        let ReadPolicy { file, document, policy, hash: _ } = read;
        Ok((GatewayPolicy { live: LivePolicy::new(policy), status, files }, Written { file, document }))
    }

    /// Reads `sources` whenever their files change or somebody [asks](Followed::ask), in one of `tasks`, and puts what they say in
    /// force; on a fault the old policy stays. Tells `observe` of each reading.
    pub fn follow(
        &self,
        tasks: &mut JoinSet<()>,
        sources: &PolicySources,
        observe: impl Fn(&Result<PolicyStatus, String>) + Send + 'static,
    ) {
        let (sources, policy) = (sources.clone(), self.clone());
        self.files.follow(
            tasks,
            // In here, where blocking is no harm: freeing the old one takes its time.
            move || {
                let read = sources.read()?;
                let status = PolicyStatus::from(&read);
                policy.live.replace(read.policy);
                policy.status.store(Arc::new(status.clone()));
                Ok::<_, ConfigError>(status)
            },
            move |status| {
                match &status {
                    Ok(PolicyStatus { hash, rules: [upload, receive], overrides }) => {
                        tracing::info!(
                            hash,
                            upload_rules = upload,
                            receive_rules = receive,
                            overrides,
                            "reloaded the policy"
                        );
                    }
                    Err(error) => tracing::error!(%error, "the policy was not reloaded; the old one stays"),
                }
                observe(&status);
            },
        );
    }

    /// Its files, to be read again when somebody asks.
    pub fn followed(&self) -> &Followed {
        &self.files
    }

    /// The one in force, as layers take it.
    pub fn live(&self) -> &LivePolicy {
        &self.live
    }

    /// What can be told of the one in force.
    pub fn status(&self) -> Arc<PolicyStatus> {
        self.status.load_full()
    }
}
