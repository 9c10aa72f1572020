//! The HTTP clients that call the authorizer and the upstream.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};

/// A client over pooled connections, plaintext or TLS, HTTP/1.1 or h2 as ALPN says.
pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// One client for each neighbour. They heed no proxy variables and follow no redirects.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Calls the authorizer.
    pub authorize: HttpClient,
    /// Calls the upstream.
    pub forward: HttpClient,
}

/// As telemeter-server has it.
const CONNECT: Duration = Duration::from_secs(10);
/// The time for connecting is divided among a name's addresses, and the whole of a forward has five seconds: a dead first address
/// must leave time for the second.
const CONNECT_UPSTREAM: Duration = Duration::from_secs(3);

impl Clients {
    /// Clients that trust the system's roots, or those of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// If one `needs_tls` and there are no roots to trust, or the TLS library lacks its parts.
    pub fn new(needs_tls: bool) -> Result<Self, String> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if needs_tls && roots.is_empty() {
            return Err("no trusted root certificates were found; install them or set SSL_CERT_FILE".to_owned());
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Clients { authorize: client(tls.clone(), CONNECT), forward: client(tls, CONNECT_UPSTREAM) })
    }
}

fn client(tls: ClientConfig, connect: Duration) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(connector)
}
