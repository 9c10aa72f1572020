//! What is read again while the gateway runs.

use std::sync::Arc;

use crate::{
    config::{ClientInfoFile, Config},
    watch::Followed,
};

/// Has all files read again: policy, keys, certificates.
#[derive(Debug, Clone)]
pub struct Reloader(Arc<[Followed]>);

impl Reloader {
    /// Of the files that `config` names.
    pub fn new(config: &Config) -> Self {
        let files = config.tls.followed().chain(config.oidc.iter().map(|oidc| oidc.tls.followed()));
        let files = files.chain([config.keys.followed()]);
        let files =
            files.chain(config.client_info.iter().map(ClientInfoFile::followed)).chain([config.policy.followed()]);
        Reloader(files.cloned().collect())
    }

    /// Has what they hold put in force; on a fault the old stays. It begins at once, and need not be waited for.
    ///
    /// # Errors
    /// The future's: what is wrong with each that is not in force.
    pub fn reload(&self) -> impl Future<Output = Result<(), Vec<String>>> + Send + use<> {
        let asked: Vec<_> = self.0.iter().map(Followed::ask).collect();
        async move {
            let mut faults = Vec::new();
            for told in asked {
                faults.extend(told.await.err());
            }
            if faults.is_empty() { Ok(()) } else { Err(faults) }
        }
    }
}
