use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, sign::SingleCertAndKey};

use super::{KeyPair, Loaded, PemFile, Source, TlsError, alpn, provider};

/// A client's files.
#[derive(Debug, Clone)]
pub struct ClientFiles {
    /// Whom it calls.
    pub name: &'static str,
    /// The system's roots, or those of `SSL_CERT_FILE`.
    pub roots: Arc<RootCertStore>,
    /// Authorities that are trusted besides.
    pub ca: Option<PemFile>,
    /// What it shows where it is asked.
    pub pair: Option<KeyPair>,
}

impl ClientFiles {
    /// A client of the system's roots alone.
    pub fn new(name: &'static str, roots: Arc<RootCertStore>) -> Self {
        ClientFiles { name, roots, ca: None, pair: None }
    }

    /// Whether no server could ever be verified.
    pub fn trusts_nobody(&self) -> bool {
        self.roots.is_empty() && self.ca.is_none()
    }
}

impl Source for ClientFiles {
    type Config = ClientConfig;

    fn name(&self) -> &'static str {
        self.name
    }

    fn files(&self) -> impl Iterator<Item = &PemFile> {
        self.ca.iter().chain(self.pair.iter().flat_map(KeyPair::files))
    }

    fn load(&self) -> Result<Loaded<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::clone(&self.roots);
        if let Some(ca) = &self.ca {
            ca.add_to(&mut roots)?;
        }
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| TlsError(error.to_string()))?;
        let builder = builder.with_root_certificates(roots);
        let (mut config, not_after) = match &self.pair {
            None => (builder.with_no_client_auth(), None),
            Some(pair) => {
                let (pair, not_after) = pair.load()?;
                (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))), Some(not_after))
            }
        };
        config.alpn_protocols = alpn();
        Ok(Loaded { config, not_after })
    }
}
