//! TLS of the listeners and of the clients.

use std::sync::Arc;

use clap::Args;
use http::Uri;
use rustls::RootCertStore;
use tokio::task::JoinSet;

use super::{ConfigError, path, wrong};
use crate::watch::Followed;
use crate::{
    admin::metrics::tls::TlsMetrics,
    tls::{ClientFiles, KeyPair, Live, PemFile, ServerFiles, Source as _, TlsError},
};

/// Flags of TLS. Every file is PEM, and read again when it changes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub struct TlsFlags {
    /// Certificate chain of the public listener, PEM, its own certificate first; without one the listener speaks plaintext.
    #[arg(long, value_name = "FILE")]
    pub tls_crt: Option<String>,
    /// Private key of the public listener, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Authorities of clients, PEM: a certificate that a client shows must be of one of them; it need not show any.
    #[arg(long, value_name = "FILE")]
    pub tls_ca_crt: Option<String>,
    /// Certificate chain of the internal listener, PEM; without one the listener speaks plaintext.
    #[arg(long, value_name = "FILE")]
    pub internal_tls_crt: Option<String>,
    /// Private key of the internal listener, PEM.
    #[arg(long, value_name = "FILE")]
    pub internal_tls_key: Option<String>,
    /// Authorities that the upstream's certificate may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE")]
    pub forward_tls_ca_crt: Option<String>,
    /// Certificate chain to show to the upstream, PEM.
    #[arg(long, value_name = "FILE")]
    pub forward_tls_crt: Option<String>,
    /// Private key of that certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub forward_tls_key: Option<String>,
    /// Authorities that the authorizer's certificate may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE")]
    pub authorize_tls_ca_crt: Option<String>,
    /// Certificate chain to show to the authorizer, PEM.
    #[arg(long, value_name = "FILE")]
    pub authorize_tls_crt: Option<String>,
    /// Private key of that certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub authorize_tls_key: Option<String>,
}

/// TLS in force, which follows its files.
#[derive(Debug)]
pub struct TlsConfig {
    /// Of the public listener, if it has any.
    pub public: Option<Live<ServerFiles>>,
    /// Of the internal listener, if it has any.
    pub internal: Option<Live<ServerFiles>>,
    /// Of the client that calls the upstream.
    pub forward: Live<ClientFiles>,
    /// Of the client that calls the authorizer.
    pub authorize: Live<ClientFiles>,
    /// The system's roots, or those of `SSL_CERT_FILE`: for further clients.
    pub roots: Arc<RootCertStore>,
}

impl From<TlsError> for ConfigError {
    fn from(error: TlsError) -> Self {
        ConfigError(error.to_string())
    }
}

impl TlsConfig {
    /// Reads the files that `flags` name.
    pub(super) fn new(flags: TlsFlags, forward: &Uri, authorize: Option<&Uri>) -> Result<Self, ConfigError> {
        let client_ca = file("--tls-ca-crt", flags.tls_ca_crt)?;
        let public = pair(("--tls-crt", flags.tls_crt), ("--tls-key", flags.tls_key))?;
        let public = match (public, client_ca) {
            (Some(pair), client_ca) => Some(Live::new(ServerFiles { name: "public", pair, client_ca })?),
            (None, Some(_)) => {
                return wrong!(
                    "--tls-ca-crt: clients show certificates over TLS alone; give --tls-crt and --tls-key, too"
                );
            }
            (None, None) => None,
        };
        let internal =
            pair(("--internal-tls-crt", flags.internal_tls_crt), ("--internal-tls-key", flags.internal_tls_key))?;
        let internal = match internal {
            Some(pair) => Some(Live::new(ServerFiles { name: "internal", pair, client_ca: None })?),
            None => None,
        };
        let roots = Arc::new(system_roots());
        let client = |name, ca, pair| ClientFiles { ca, pair, ..ClientFiles::new(name, Arc::clone(&roots)) };
        let to_upstream = client(
            "forward",
            file("--forward-tls-ca-crt", flags.forward_tls_ca_crt)?,
            pair(("--forward-tls-crt", flags.forward_tls_crt), ("--forward-tls-key", flags.forward_tls_key))?,
        );
        let to_authorizer = client(
            "authorize",
            file("--authorize-tls-ca-crt", flags.authorize_tls_ca_crt)?,
            pair(("--authorize-tls-crt", flags.authorize_tls_crt), ("--authorize-tls-key", flags.authorize_tls_key))?,
        );
        Ok(TlsConfig {
            public,
            internal,
            forward: used(to_upstream, "--forward-url", Some(forward))?,
            authorize: used(to_authorizer, "--authorize", authorize)?,
            roots,
        })
    }

    /// Follows all the files.
    pub fn follow(&self, tasks: &mut JoinSet<()>, metrics: &TlsMetrics) {
        for listener in [&self.public, &self.internal].into_iter().flatten() {
            listener.follow(tasks, metrics);
        }
        for client in [&self.forward, &self.authorize] {
            client.follow(tasks, metrics);
        }
    }

    /// All the files, to be read again when somebody asks.
    pub fn followed(&self) -> impl Iterator<Item = &Followed> {
        let listeners = [&self.public, &self.internal].into_iter().flatten().map(Live::followed);
        listeners.chain([&self.forward, &self.authorize].map(Live::followed))
    }
}

/// TLS to the server at `url`, which `flag` gives: of the system's authorities, and those in the file that `ca_flag` names.
///
/// # Errors
/// A file that cannot be read, or is for nothing since the URL is no https one.
pub(crate) fn tls_to(
    (flag, url): (&'static str, &Uri),
    ca_flag: &'static str,
    ca: Option<String>,
) -> Result<Live<ClientFiles>, ConfigError> {
    let files = ClientFiles { ca: file(ca_flag, ca)?, ..ClientFiles::new(flag, Arc::new(system_roots())) };
    used(files, flag, Some(url))
}

/// Who names files for TLS means it: nothing may go out in plaintext then.
pub(crate) fn used(files: ClientFiles, flag: &str, url: Option<&Uri>) -> Result<Live<ClientFiles>, ConfigError> {
    let https = url.is_some_and(|url| url.scheme_str() == Some("https"));
    if let Some(file) = files.files().next().filter(|_| !https) {
        return wrong!("{}: this is for an https:// {flag}, and there is none", file.flag);
    }
    Ok(Live::new(files)?)
}

pub(crate) fn file(flag: &'static str, value: Option<String>) -> Result<Option<PemFile>, ConfigError> {
    Ok(path(flag, value)?.map(|path| PemFile { flag, path: path.into() }))
}

pub(crate) fn pair(
    (crt, certificate): (&'static str, Option<String>),
    (key, private): (&'static str, Option<String>),
) -> Result<Option<KeyPair>, ConfigError> {
    match (file(crt, certificate)?, file(key, private)?) {
        (Some(certificate), Some(key)) => Ok(Some(KeyPair { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => wrong!("{crt}: a certificate needs its key; give {key}, too"),
        (None, Some(_)) => wrong!("{key}: a key needs its certificate; give {crt}, too"),
    }
}

pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
