//! How the gateway gets a token of its own, to show to authorizer and upstream.

use std::sync::Arc;

use clap::Args;
use infogw_layers::client_credentials::{ClientSecret, IssuerUrl};
use rustls::RootCertStore;

use super::{ConfigError, given, path, secret_in, shown, tls, wrong};
use crate::tls::{ClientFiles, Live};

/// Flags of the client-credentials grant.
#[derive(Clone, Default, Args)]
pub struct OidcFlags {
    /// OpenID issuer whose tokens the authorizer and the upstream are shown; none are shown unless given.
    #[arg(long, value_name = "URL", help_heading = "Credentials")]
    pub oidc_issuer: Option<String>,
    /// This gateway's client id there.
    #[arg(long, value_name = "ID", help_heading = "Credentials", allow_hyphen_values = true)]
    pub client_id: Option<String>,
    /// The client's secret; whoever may list processes sees it, so prefer --client-secret-file, or $INFOGW_CLIENT_SECRET.
    #[arg(long, value_name = "SECRET", help_heading = "Credentials", allow_hyphen_values = true)]
    pub client_secret: Option<ClientSecret>,
    /// File that holds the client's secret; read again for each token.
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    pub client_secret_file: Option<String>,
    /// Audience to ask a token for, which some issuers want.
    #[arg(long, value_name = "AUDIENCE", help_heading = "Credentials")]
    pub oidc_audience: Option<String>,
    /// Authorities that the issuer's certificate may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE", help_heading = "Credentials")]
    pub oidc_tls_ca_crt: Option<String>,
}

/// How to get a token.
#[derive(Debug)]
pub struct Oidc {
    /// Who issues it.
    pub issuer: IssuerUrl,
    /// Whom to.
    pub client_id: String,
    /// What the client proves itself with.
    pub client_secret: ClientSecret,
    /// What for.
    pub audience: Option<String>,
    /// TLS of the client that calls the issuer.
    pub tls: Live<ClientFiles>,
}

impl Oidc {
    /// Whether flags of telemeter-server's are given that are of no use without an issuer.
    pub(super) fn idle(flags: &OidcFlags) -> bool {
        let is_given = |value: &Option<String>| value.as_deref().is_some_and(|value| !value.is_empty());
        let secret = matches!(&flags.client_secret, Some(ClientSecret::Value(secret)) if !secret.is_empty());
        !is_given(&flags.oidc_issuer) && (is_given(&flags.client_id) || is_given(&flags.oidc_audience) || secret)
    }

    /// What `flags` mean: nothing without an issuer.
    pub(crate) fn new(flags: OidcFlags, roots: &Arc<RootCertStore>) -> Result<Option<Self>, ConfigError> {
        let id = given(flags.client_id);
        let value =
            flags.client_secret.filter(|secret| !matches!(secret, ClientSecret::Value(value) if value.is_empty()));
        let file = path("--client-secret-file", flags.client_secret_file)?;
        let audience = given(flags.oidc_audience);
        let ca = tls::file("--oidc-tls-ca-crt", flags.oidc_tls_ca_crt)?;
        let Some(issuer) = given(flags.oidc_issuer) else {
            // telemeter-server's own are passed over there, and its manifests give them all, empty or not.
            let others = [("--client-secret-file", file.is_some()), ("--oidc-tls-ca-crt", ca.is_some())];
            return match others.iter().find(|(_, given)| *given) {
                Some((flag, _)) => wrong!("{flag} is of no use without --oidc-issuer; give both or neither"),
                None => Ok(None),
            };
        };
        let shown = shown(&issuer);
        let issuer: IssuerUrl =
            issuer.parse().map_err(|error| ConfigError(format!("--oidc-issuer: {shown}: {error}")))?;
        let Some(client_id) = id else {
            return wrong!("--oidc-issuer needs --client-id, the client that tokens are issued to");
        };
        let client_secret = match (value, file) {
            (Some(value), None) => value,
            (None, Some(path)) => secret_file("--client-secret-file", path)?,
            (Some(_), Some(_)) => {
                return wrong!("--client-secret and --client-secret-file exclude each other; give one of them");
            }
            (None, None) => return wrong!("--oidc-issuer needs --client-secret-file or --client-secret"),
        };
        let files = ClientFiles { ca, ..ClientFiles::new("issuer", Arc::clone(roots)) };
        let tls = tls::used(files, "--oidc-issuer", Some(issuer.configuration()))?;
        Ok(Some(Oidc { issuer, client_id, client_secret, audience, tls }))
    }
}

/// The secret in a file, which is there now, and is read again whenever it is used.
pub(crate) fn secret_file(flag: &str, path: String) -> Result<ClientSecret, ConfigError> {
    let secret = secret_in(flag, &path)?;
    // A pipe gives it once.
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        Ok(ClientSecret::File(path.into()))
    } else {
        Ok(ClientSecret::from(secret.as_str()))
    }
}
