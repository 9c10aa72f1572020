//! Upstream and authorizer over TLS: trusted by the system's roots, which `SSL_CERT_FILE` replaces, and not otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::PrivateKeyDer;
use support::{
    Gateway,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, now},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A server for `localhost` that grants and takes whatever comes, and whose certificate signs itself.
struct Neighbour {
    url: String,
    certificate: String,
    asked: Arc<AtomicUsize>,
}

impl Neighbour {
    async fn start() -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, counter) = (acceptor.clone(), counter.clone());
                tokio::spawn(async move {
                    // A client that does not trust us hangs up.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let counter = counter.clone();
                        async move {
                            request.into_body().collect().await.unwrap();
                            counter.fetch_add(1, Ordering::Relaxed);
                            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(r#"{"account_id":"a"}"#)))
                        }
                    });
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Neighbour { url, certificate: cert.pem(), asked }
    }
}

async fn push(neighbour: &Neighbour, roots: &str) -> support::Reply {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), roots).unwrap();
    let mut command = Gateway::command();
    command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0"]);
    command.args(["--authorize", &neighbour.url, "--forward-url", &neighbour.url]);
    command.env("SSL_CERT_FILE", file.path()).env_remove("SSL_CERT_DIR");
    let gateway = Gateway::start_command(command).await;
    let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
    gateway.receive(&composite_token(PULL_SECRET, "c1"), body).await
}

#[tokio::test]
async fn neighbours_are_trusted_by_the_systems_roots() {
    let neighbour = Neighbour::start().await;
    push(&neighbour, &neighbour.certificate).await.expect_status(200);
    assert_eq!(neighbour.asked.load(Ordering::Relaxed), 2, "the authorizer and the upstream");

    let another = Neighbour::start().await;
    let refused = push(&neighbour, &another.certificate).await.expect_status(503);
    assert!(refused.retry_after().is_some(), "{refused:?}");
    assert_eq!(neighbour.asked.load(Ordering::Relaxed), 2, "nothing is sent to whom we do not trust");
}
