//! Listeners, connections, and an orderly end.

mod places;

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
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::places::Places;
use crate::{
    admin::metrics::connections::ListenerMetrics,
    config::Connections,
    tls::{Current, ShortReads},
};

/// How long a TLS handshake may take, as Go's HTTP clients have it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection without a request may stay once the end has come.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What a stream of HTTP/2 may send before anybody reads it, in bytes; and all streams of a connection. A body of common size is
/// there at once, and whoever opens connections to fill them gets no further than this with each.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Where connections come from.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    limits: Connections,
    metrics: Option<ListenerMetrics>,
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
        Listener { tcp, tls: None, limits: Connections::default(), metrics: None }
    }

    /// HTTP over TLS by the configuration in force; `failures` counts connections that end in the handshake.
    pub fn tls(tcp: TcpListener, config: Current<ServerConfig>, failures: IntCounter) -> Self {
        Listener { tls: Some(Tls { config, failures }), ..Listener::plaintext(tcp) }
    }

    /// Holds its connections to these limits instead of the default ones.
    #[must_use]
    pub fn limits(self, limits: Connections) -> Self {
        Listener { limits, ..self }
    }

    /// Counts its connections.
    #[must_use]
    pub fn counted(self, metrics: ListenerMetrics) -> Self {
        Listener { metrics: Some(metrics), ..self }
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
/// flight end, and returns once they have, or after `grace`. `answer` is told who asks.
///
/// Where a client showed a certificate, each of its requests has an `Arc<`[`ClientCertificate`]`>` among the extensions, or the
/// [`CertificateError`] that says why it names nobody.
pub async fn serve<F, R>(listener: impl Into<Listener>, mut stop: watch::Receiver<bool>, grace: Duration, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let Listener { tcp: listener, tls, limits, metrics } = listener.into();
    let connections = GracefulShutdown::new();
    let places = Places::new(limits.most, limits.most_per_peer);
    let limits = Arc::new(limits);
    loop {
        let accepted = async {
            // More connections than there are places wait in the kernel's queue until one ends.
            let place = places.free().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((stream, peer)) => {
                    let Some(place) = places.take(place, peer.ip()) else {
                        tracing::debug!(%peer, "connection closed: its peer has as many as it may");
                        metrics.iter().for_each(ListenerMetrics::refused);
                        continue;
                    };
                    let open = metrics.as_ref().map(ListenerMetrics::opened);
                    let answer = answer.clone();
                    let answer = move |request| answer(request, peer);
                    let (tls, limits, watcher) = (tls.clone(), Arc::clone(&limits), connections.watcher());
                    let connection = connect(stream, tls, limits, watcher, stop.clone(), answer);
                    tokio::spawn(async move {
                        connection.await;
                        drop((open, place));
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
async fn connect<F, R>(
    stream: TcpStream,
    tls: Option<Tls>,
    limits: Arc<Connections>,
    watcher: Watcher,
    stop: watch::Receiver<bool>,
    answer: F,
) where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let requests = Arc::clone(&activity);
    let served = async {
        match tls {
            None => exchange(stream, &limits, watcher, requests, answer).await,
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
                    exchange(ShortReads(stream), &limits, watcher, requests, answer).await;
                }
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = activity.ceased(stop, &limits) => tracing::debug!("connection closed: no request for too long"),
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
fn exchange<S, F, R>(
    stream: S,
    limits: &Connections,
    watcher: Watcher,
    requests: Arc<Activity>,
    answer: F,
) -> impl Future<Output = ()> + Send + use<S, F, R>
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
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes as usize)
        .max_headers(limits.headers);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits.stream_resets)
        .max_header_list_size(limits.header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Duration::from_secs(60));
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

    /// Waits until the connection has had no request for too long: as new as it is, then idle for its time to twice as long, and
    /// [`LAST_WORDS`] after `stop`.
    async fn ceased(&self, mut stop: watch::Receiver<bool>, limits: &Connections) {
        let (mut patience, mut stopped) = (limits.header_timeout, false);
        let mut seen = 0;
        loop {
            tokio::select! {
                () = sleep(patience) => {}
                () = told(&mut stop), if !stopped => {
                    (patience, stopped) = (LAST_WORDS, true);
                    continue;
                }
            }
            let (ended, begun) = (self.ended.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed));
            if begun == ended && begun == seen {
                return;
            }
            seen = begun;
            if !stopped {
                patience = limits.idle_timeout;
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
