use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
};

use super::{KeyPair, Loaded, PemFile, Source, TlsError, alpn, provider};

/// A listener's files.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// The listener.
    pub name: &'static str,
    /// What it shows.
    pub pair: KeyPair,
    /// Clients may show certificates of these authorities, and none of others.
    pub client_ca: Option<PemFile>,
}

impl Source for ServerFiles {
    type Config = ServerConfig;

    fn name(&self) -> &'static str {
        self.name
    }

    fn files(&self) -> impl Iterator<Item = &PemFile> {
        self.pair.files().chain(&self.client_ca)
    }

    fn load(&self) -> Result<Loaded<ServerConfig>, TlsError> {
        let (pair, not_after) = self.pair.load()?;
        let broken = |error: rustls::Error| TlsError(error.to_string());
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(broken)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                ca.add_to(&mut roots)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = verifier.allow_unauthenticated().build().map_err(|error| ca.wrong(error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        config.alpn_protocols = alpn();
        match &self.client_ca {
            // rustls remembers 256 sessions, which is nothing to a fleet: tickets are kept by the clients.
            None => config.ticketer = Ticketer::new().map_err(broken)?,
            // A resumed session's certificate would not be verified again, and outlive its end.
            Some(_) => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        Ok(Loaded { config, not_after: Some(not_after) })
    }
}
