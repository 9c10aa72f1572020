//! Who said who it was.

use infogw_layers::observe::Observe;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{each, register};
use crate::identity::Source;

/// Metrics of identity.
#[derive(Debug)]
pub struct IdentityMetrics {
    /// By [`Source`].
    authorizations: [IntCounter; 3],
    /// Success, error.
    reloads: [IntCounter; 2],
}

impl IdentityMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let authorizations = Opts::new(
            "infogw_authorizations_total",
            "Remote-write requests that were authorized, by what said who sent them: certificate, headers or token.",
        );
        let reloads = Opts::new(
            "infogw_client_info_reloads_total",
            "Changes of --client-info-data-file, put in force (success) or found broken (error).",
        );
        let authorizations = register(registry, IntCounterVec::new(authorizations, &["source"])?)?;
        let reloads = register(registry, IntCounterVec::new(reloads, &["result"])?)?;
        Ok(IdentityMetrics {
            authorizations: each(&authorizations, Source::ALL.map(Source::as_str)),
            reloads: each(&reloads, ["success", "error"]),
        })
    }

    /// Counts one reading of the file; one that found nothing new is none.
    pub fn reloaded<E>(&self, reloaded: &Result<bool, E>) {
        let [success, error] = &self.reloads;
        match reloaded {
            Ok(true) => success.inc(),
            Ok(false) => {}
            Err(_) => error.inc(),
        }
    }
}

impl Observe<Source> for &'static IdentityMetrics {
    fn observe(&self, source: &Source) {
        if let Some(counter) = self.authorizations.get(*source as usize) {
            counter.inc();
        }
    }
}
