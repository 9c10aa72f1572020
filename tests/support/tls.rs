//! Certificates, a client and a server that speak TLS, and files as Kubernetes mounts them.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    http::request::Builder,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    http::{self, Reply},
    within,
};

/// An authority of the test's own.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of an [`Authority`], and its key.
pub struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    /// Nobody else trusts it.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A server's certificate, for `localhost`.
    pub fn server(&self) -> Leaf {
        self.issue(&CertificateParams::new(["localhost".to_owned()]).unwrap())
    }

    /// A client's, of this account and cluster.
    pub fn client(&self, account: &str, cluster: &str) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, account);
        params.distinguished_name.push(DnType::CommonName, cluster);
        self.issue(&params)
    }

    /// Any.
    pub fn issue(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        Arc::new(roots)
    }
}

impl Leaf {
    /// The certificate.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Its private key.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The certificate as it goes over the wire.
    pub fn der(&self) -> &CertificateDer<'static> {
        self.certificate.der()
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}

/// Takes TLS connections with this certificate, for whoever serves HTTP/1.1 by hand.
pub fn acceptor(leaf: &Leaf) -> TlsAcceptor {
    let builder = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], leaf.key_der());
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// How a [`TlsClient`] differs from most.
#[derive(Default)]
pub struct ClientOptions<'a> {
    /// The certificate that it shows where it is asked.
    pub shows: Option<&'a Leaf>,
    /// What it speaks, the better one first.
    pub alpn: &'a [&'a str],
    /// TLS 1.2 and 1.3 if empty.
    pub versions: &'a [&'static SupportedProtocolVersion],
}

/// A client that remembers its sessions.
pub struct TlsClient(Arc<ClientConfig>);

/// One connection. It is kept until dropped.
pub struct TlsConnection {
    /// What was agreed on.
    pub alpn: Option<String>,
    /// What the server showed.
    pub server: CertificateDer<'static>,
    /// Whether an earlier session was taken up.
    pub handshake: HandshakeKind,
    sender: Sender,
    _driver: JoinSet<()>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl TlsClient {
    /// Trusts the servers of this authority.
    pub fn new(authority: &Authority, options: &ClientOptions<'_>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = match options.versions {
            [] => builder.with_safe_default_protocol_versions(),
            versions => builder.with_protocol_versions(versions),
        };
        let builder = builder.unwrap().with_root_certificates(authority.roots());
        let mut config = match options.shows {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder.with_client_auth_cert(vec![leaf.der().clone()], leaf.key_der()).unwrap(),
        };
        config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Self(Arc::new(config))
    }

    /// How it speaks, for connections of the test's own.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }

    /// The same server, whatever the connection, is called `localhost`.
    pub async fn connect(&self, address: &str) -> Result<TlsConnection, String> {
        within("a TLS connection", self.try_connect(address)).await
    }

    async fn try_connect(&self, address: &str) -> Result<TlsConnection, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let tls = stream.get_ref().1;
        let alpn = tls.alpn_protocol().map(|protocol| String::from_utf8(protocol.to_vec()).unwrap());
        let server = tls.peer_certificates().unwrap()[0].clone().into_owned();
        let handshake = tls.handshake_kind().unwrap();
        let stream = TokioIo::new(stream);
        let mut driver = JoinSet::new();
        // How a connection ends shows in its requests.
        let sender = if alpn.as_deref() == Some("h2") {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(|e| e.to_string())?;
            driver.spawn(async move { drop(connection.await) });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
            driver.spawn(async move { drop(connection.await) });
            Sender::Http1(sender)
        };
        Ok(TlsConnection { alpn, server, handshake, sender, _driver: driver })
    }
}

impl TlsConnection {
    /// Sends `request`, whose target is a path, and reads the answer.
    pub async fn send(&mut self, request: Builder, body: impl Into<Bytes>) -> Result<Reply, String> {
        let mut request = request.body(Full::new(body.into())).expect("the test's request is a valid one");
        if let Sender::Http2(_) = self.sender {
            let url = format!("https://localhost{}", request.uri());
            *request.uri_mut() = url.parse().expect("a path");
        } else {
            request.headers_mut().insert("host", "localhost".parse().expect("a host"));
        }
        let answered = async {
            let response = match &mut self.sender {
                Sender::Http1(sender) => sender.send_request(request).await,
                Sender::Http2(sender) => sender.send_request(request).await,
            };
            http::read(response.map_err(|error| format!("{error:?}"))?).await
        };
        within("an answer over TLS", answered).await
    }
}

/// A TLS server for `localhost` that grants and takes whatever comes.
pub struct Neighbour {
    /// Where it is.
    pub url: String,
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    _accepting: JoinSet<()>,
}

impl Neighbour {
    /// With this certificate. Where there is an authority for clients, each must show a certificate of it.
    pub async fn start(leaf: &Leaf, clients: Option<&Authority>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), leaf, clients).await
    }

    /// The same at this address.
    pub async fn start_at(address: SocketAddr, leaf: &Leaf, clients: Option<&Authority>) -> Self {
        let builder = rustls::ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = match clients {
            None => builder.unwrap().with_no_client_auth(),
            Some(authority) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(authority.roots(), provider());
                builder.unwrap().with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut tls = builder.with_single_cert(vec![leaf.der().clone()], leaf.key_der()).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("https://localhost:{}/", address.port());
        let (asked, shown) = (Arc::default(), Arc::default());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, acceptor, Arc::clone(&asked), Arc::clone(&shown)));
        Self { url, address, asked, shown, _accepting: accepting }
    }

    /// How many requests it had.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// The clients' certificates, one a connection.
    pub fn shown(&self) -> Vec<CertificateDer<'static>> {
        self.shown.lock().unwrap().clone()
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    asked: Arc<AtomicUsize>,
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, asked, shown) = (acceptor.clone(), Arc::clone(&asked), Arc::clone(&shown));
        connections.spawn(async move {
            // A client that does not trust us hangs up.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let leaf = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone().into_owned());
            shown.lock().unwrap().extend(leaf);
            let answer = service_fn(move |request: Request<Incoming>| {
                let asked = Arc::clone(&asked);
                async move {
                    request.into_body().collect().await.unwrap();
                    asked.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(r#"{"account_id":"a"}"#)))
                }
            });
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// Files as Kubernetes mounts a secret: links through `..data`, which is swapped.
pub struct Volume {
    directory: TempDir,
    version: AtomicUsize,
}

impl Volume {
    /// With these names and contents.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let volume = Self { directory: TempDir::new().unwrap(), version: AtomicUsize::new(0) };
        volume.swap(files);
        for (name, _) in files {
            symlink(format!("..data/{name}"), volume.directory.path().join(name)).unwrap();
        }
        volume
    }

    /// A certificate and its key, as `tls.crt` and `tls.key`.
    pub fn of(leaf: &Leaf) -> Self {
        Self::new(&[("tls.crt", &leaf.pem()), ("tls.key", &leaf.key_pem())])
    }

    /// All of the files become these at once.
    pub fn swap(&self, files: &[(&str, &str)]) {
        let root = self.directory.path();
        let version = format!("..{}", self.version.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(root.join(&version)).unwrap();
        files.iter().for_each(|(name, contents)| fs::write(root.join(&version).join(name), contents).unwrap());
        symlink(&version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    }

    /// Certificate and key become these at once.
    pub fn swap_to(&self, leaf: &Leaf) {
        self.swap(&[("tls.crt", &leaf.pem()), ("tls.key", &leaf.key_pem())]);
    }

    /// `FLAG=PATH` for one of the files.
    pub fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.path(name).display())
    }

    /// Where one of the files is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
