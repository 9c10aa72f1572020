//! TLS of the listeners and the clients, from files that are read again when they change, and on SIGHUP.
//!
//! A change makes a whole new rustls configuration, which new connections get: no ticket or session of the old one is taken up. Those
//! that are open keep what they began with until they end, a client whose authority was taken away among them; for how long is the
//! client's choice. Only its own certificate's end is looked at with each request. A broken new file is logged, and the old
//! configuration stays.

mod client;
mod pem;
mod server;
mod short_reads;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
};
use tokio::task::JoinSet;

pub use client::ClientFiles;
pub use pem::{KeyPair, PemFile};
pub use server::ServerFiles;
pub use short_reads::ShortReads;

use crate::{
    admin::metrics::tls::{CertificateMetrics, TlsMetrics},
    watch::Followed,
};

/// What is wrong with a file: one line, with its flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// Files that make a rustls configuration.
pub trait Source: Send + Sync + 'static {
    /// [`rustls::ServerConfig`] or [`rustls::ClientConfig`].
    type Config: Send + Sync + 'static;

    /// What logs and metrics call its certificate.
    fn name(&self) -> &'static str;

    /// The files.
    fn files(&self) -> impl Iterator<Item = &PemFile>;

    /// Reads them.
    ///
    /// # Errors
    /// The first that is wrong.
    fn load(&self) -> Result<Loaded<Self::Config>, TlsError>;
}

/// What [`Source::load`] read.
#[derive(Debug)]
pub struct Loaded<C> {
    config: C,
    /// Of our certificate, if there is one.
    not_after: Option<UnixTime>,
}

/// A configuration in force, for whoever makes connections by it.
pub type Current<C> = Arc<ArcSwap<C>>;

/// A configuration that follows its files. Clones share it.
#[derive(Debug)]
pub struct Live<S: Source> {
    source: Arc<S>,
    current: Current<S::Config>,
    not_after: Option<UnixTime>,
    followed: Followed,
}

impl<S: Source> Clone for Live<S> {
    fn clone(&self) -> Self {
        Live {
            source: Arc::clone(&self.source),
            current: Arc::clone(&self.current),
            not_after: self.not_after,
            followed: self.followed.clone(),
        }
    }
}

impl<S: Source> Live<S> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn new(source: S) -> Result<Self, TlsError> {
        // Looked at before they are read: what changes in between is told.
        let followed = Followed::new(source.files().map(|file| &file.path));
        let Loaded { config, not_after } = source.load()?;
        Ok(Live { source: Arc::new(source), current: Arc::new(ArcSwap::from_pointee(config)), not_after, followed })
    }

    /// What it is made of.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The configuration in force, now and later.
    pub fn current(&self) -> Current<S::Config> {
        Arc::clone(&self.current)
    }

    /// Follows the files, if there are any, in one of `tasks`. One of the clones has to.
    pub fn follow(&self, tasks: &mut JoinSet<()>, metrics: &TlsMetrics) {
        if self.source.files().next().is_none() {
            return;
        }
        let certificate = self.source.name();
        let metrics = metrics.certificate(certificate);
        report(certificate, self.not_after, &metrics);
        let (source, current) = (Arc::clone(&self.source), self.current());
        let read = move || {
            let Loaded { config, not_after } = source.load()?;
            current.store(Arc::new(config));
            Ok::<_, TlsError>(not_after)
        };
        self.followed.follow(tasks, read, move |reloaded: Result<Option<UnixTime>, String>| match reloaded {
            Ok(not_after) => {
                metrics.reloaded();
                tracing::info!(certificate, "reloaded the TLS files");
                report(certificate, not_after, &metrics);
            }
            Err(error) => {
                metrics.not_reloaded();
                tracing::error!(certificate, %error, "the TLS files were not reloaded; the old ones stay");
            }
        });
    }

    /// The files, to be read again when somebody asks.
    pub fn followed(&self) -> &Followed {
        &self.followed
    }
}

fn report(certificate: &'static str, not_after: Option<UnixTime>, metrics: &CertificateMetrics) {
    let Some(not_after) = not_after else { return };
    metrics.expires(not_after);
    if not_after < UnixTime::now() {
        let expired = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs());
        let expired = humantime::format_rfc3339_seconds(expired);
        tracing::warn!(certificate, %expired, "this certificate has expired");
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What both ends speak, the better one first.
fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}
