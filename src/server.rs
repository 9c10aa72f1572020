//! Listeners, connections, and an orderly end.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use infogw_layers::authorize::certificate::{CertificateError, ClientCertificate};
use prometheus::IntCounter;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::tls::{Current, ShortReads};

/// How long a TLS handshake may take, as Go's HTTP clients have it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a new connection may be without a request, the handshake included.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long a connection may then be idle. A stock sender that has nothing else to say sends metadata every minute, and
/// telemeter's client comes back after four and a half.
const IDLE: Duration = Duration::from_secs(6 * 60);
/// How long a connection without a request may stay once the end has come.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Connections of one listener. More wait in the kernel's queue until one ends.
const CONNECTIONS: usize = 16 * 1024;

/// Where connections come from.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

/// What a connection's TLS takes.
#[derive(Debug, Clone)]
struct Tls {
    config: Current<ServerConfig>,
    failures: IntCounter,
}

impl Listener {
    /// HTTP as it is.
    pub fn plaintext(tcp: TcpListener) -> Self {
        Listener { tcp, tls: None }
    }

    /// HTTP over TLS by the configuration in force; `failures` counts connections that end in the handshake.
    pub fn tls(tcp: TcpListener, config: Current<ServerConfig>, failures: IntCounter) -> Self {
        Listener { tcp, tls: Some(Tls { config, failures }) }
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Listener::plaintext(tcp)
    }
}

/// Serves HTTP/1.1 and h2 (by ALPN, or with prior knowledge) until `stop` turns true; then takes no more connections, lets requests in
/// flight end, and returns once they have, or after `grace`.
///
/// Where a client showed a certificate, each of its requests has an `Arc<`[`ClientCertificate`]`>` among the extensions, or the
/// [`CertificateError`] that says why it names nobody.
pub async fn serve<F, R>(listener: impl Into<Listener>, mut stop: watch::Receiver<bool>, grace: Duration, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Listener { tcp: listener, tls } = listener.into();
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => {
                    let connection = connect(stream, tls.clone(), connections.watcher(), stop.clone(), answer.clone());
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                // Out of file descriptors, most likely: connections that end give some back.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    if timeout(grace, connections.shutdown()).await.is_err() {
        tracing::warn!("requests in flight did not end in time");
    }
}

/// Waits until `stop` turns true, or nobody is left who could turn it.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves one connection until it ends, or has had no request for too long.
async fn connect<F, R>(stream: TcpStream, tls: Option<Tls>, watcher: Watcher, stop: watch::Receiver<bool>, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let requests = Arc::clone(&activity);
    let served = async {
        match tls {
            None => exchange(stream, watcher, requests, answer).await,
            Some(tls) => {
                // Boxed, as a connection lives much longer than its handshake.
                if let Some(stream) = Box::pin(tls.handshake(stream)).await {
                    let certificate = certificate(&stream);
                    let answer = move |mut request: Request<Incoming>| {
                        match &certificate {
                            Some(Ok(certificate)) => drop(request.extensions_mut().insert(Arc::clone(certificate))),
                            Some(Err(error)) => drop(request.extensions_mut().insert(*error)),
                            None => {}
                        }
                        answer(request)
                    };
                    exchange(ShortReads(stream), watcher, requests, answer).await;
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = activity.ceased(stop) => tracing::debug!("connection closed: no request for too long"),
    }
}

impl Tls {
    async fn handshake(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let accepted = TlsAcceptor::from(self.config.load_full()).accept(stream);
        let error = match timeout(HANDSHAKE, accepted).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        self.failures.inc();
        tracing::debug!(%error, "TLS handshake failed");
        None
    }
}

/// Whom the client's verified certificate names, if it showed one.
fn certificate(stream: &TlsStream<TcpStream>) -> Option<Result<Arc<ClientCertificate>, CertificateError>> {
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates()?.first()?;
    Some(ClientCertificate::from_der(leaf).map(Arc::new))
}

/// Speaks HTTP.
fn exchange<S, F, R>(stream: S, watcher: Watcher, requests: Arc<Activity>, answer: F) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let request_in_flight = requests.begin();
        // In a box: hyper keeps room for it while the connection is idle.
        let answered = Box::pin(answer(request));
        async move {
            let response = answered.await;
            drop(request_in_flight);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Heads are timed by `Activity`: hyper's own timer begins only once it knows the version, and counts idle time.
    http.http1().timer(TokioTimer::new()).header_read_timeout(None);
    http.http2().timer(TokioTimer::new()).max_concurrent_streams(256).keep_alive_interval(Duration::from_secs(60));
    let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
    // In a box: a future has room for it in each of its states.
    let watched = Box::pin(watcher.watch(connection));
    async move {
        // A client that hangs up or does not speak HTTP is its own trouble.
        if let Err(error) = watched.await {
            tracing::debug!(error, "connection ended");
        }
    }
}

/// The requests of one connection. Counted without waking anybody.
#[derive(Debug, Default)]
struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Waits until the connection has had no request for too long: [`FIRST_REQUEST`], then [`IDLE`] to twice as long, and
    /// [`LAST_WORDS`] after `stop`.
    async fn ceased(&self, mut stop: watch::Receiver<bool>) {
        let mut patience = FIRST_REQUEST;
        let mut seen = 0;
        loop {
            tokio::select! {
                () = sleep(patience) => {}
                () = told(&mut stop), if patience != LAST_WORDS => {
                    patience = LAST_WORDS;
                    continue;
                }
            }
            let (ended, begun) = (self.ended.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed));
            if begun == ended && begun == seen {
                return;
            }
            seen = begun;
            if patience == FIRST_REQUEST {
                patience = IDLE;
            }
        }
    }
}

/// A request that was begun; it ends when this is dropped.
struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}
