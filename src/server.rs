//! Listeners, connections, and an orderly end.

mod activity;
mod lingering;
mod places;

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, ErrorKind},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulConnection},
};
use infogw_layers::{
    authorize::certificate::{CertificateError, ClientCertificate},
    rejection::{Reason, Rejection},
    respond,
};
use prometheus::IntCounter;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::{
    activity::Activity,
    lingering::Lingering,
    places::{Crowd, Places},
};
use crate::{
    admin::metrics::connections::ListenerMetrics,
    config::Connections,
    log::Seldom,
    tls::{Current, ShortReads},
};

/// How long a TLS handshake may take, as Go's HTTP clients have it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connections that are being made by then are still taken at the end of a farewell.
const LAST_CALL: Duration = Duration::from_millis(250);
/// How long a connection without a request may stay once nobody can connect any more; and one that has had none yet.
const LAST_WORDS: Duration = Duration::from_millis(500);
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// What a stream of HTTP/2 may send before anybody reads it, in bytes; and all streams of a connection. A body of common size is
/// there at once, and whoever opens connections to fill them gets no further than this with each.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Where connections come from.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
    limits: Arc<Connections>,
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
        Listener { tcp, tls: None, limits: Arc::default(), metrics: None }
    }

    /// HTTP over TLS by the configuration in force; `failures` counts connections that end in the handshake.
    pub fn tls(tcp: TcpListener, config: Current<ServerConfig>, failures: IntCounter) -> Self {
        Listener { tls: Some(Tls { config, failures }), ..Listener::plaintext(tcp) }
    }

    /// Holds its connections to these limits instead of the default ones.
    #[must_use]
    pub fn limits(self, limits: Connections) -> Self {
        Listener { limits: Arc::new(limits), ..self }
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

/// How a listener ends once it is told to.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// How long connections are still taken. Each answer then says that its connection ends: by `Connection: close`, or GOAWAY.
    pub farewell: Duration,
    /// How long requests that are in flight by then still have. What is not answered in this time is answered with 503.
    pub grace: Duration,
}

/// What connections know of the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Farewell,
    /// Nobody can connect any more.
    Closed,
    /// Nor is anybody waited for.
    Over,
}

/// Serves HTTP/1.1 and h2 (by ALPN, or with prior knowledge) until `stop` turns true; then says farewell, takes no more connections,
/// lets requests in flight end, and returns once they have, or after the [time](Ending) for it. `answer` is told who asks.
///
/// Where a client showed a certificate, each of its requests has an `Arc<`[`ClientCertificate`]`>` among the extensions, or the
/// [`CertificateError`] that says why it names nobody.
pub async fn serve<F, R>(listener: impl Into<Listener>, mut stop: watch::Receiver<bool>, ending: Ending, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = listener.into();
    let phase = watch::Sender::new(Phase::Open);
    let places = Places::new(listener.limits.most, listener.limits.most_per_peer);
    tokio::select! {
        never = accept(&listener, &places, &phase, &answer) => match never {},
        () = told(&mut stop) => {}
    }
    phase.send_replace(Phase::Farewell);
    if !ending.farewell.is_zero() {
        let _ = timeout(ending.farewell, accept(&listener, &places, &phase, &answer)).await;
        last_call(&listener.tcp);
        let _ = timeout(LAST_CALL, accept(&listener, &places, &phase, &answer)).await;
    }
    drop(listener);
    phase.send_replace(Phase::Closed);
    // Each connection has a receiver.
    if timeout(ending.grace, phase.closed()).await.is_err() {
        tracing::warn!("requests in flight did not end in time");
        phase.send_replace(Phase::Over);
        let _ = timeout(LAST_WORDS, phase.closed()).await;
    }
}

/// Waits until `stop` turns true, or nobody is left who could turn it.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits until the end has come so far.
async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    let _ = phases.wait_for(|now| *now >= phase).await;
}

/// Takes connections.
async fn accept<F, R>(listener: &Listener, places: &Places, phase: &watch::Sender<Phase>, answer: &F) -> Infallible
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (metrics, told) = (&listener.metrics, Seldom::default());
    loop {
        // More connections than there are places wait in the kernel's queue until one ends.
        let place = places.free().await;
        match listener.tcp.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = places.take(place, peer.ip()) else {
                    tracing::debug!(%peer, "connection closed: its peer has as many as it may");
                    metrics.iter().for_each(ListenerMetrics::refused);
                    continue;
                };
                let open = metrics.as_ref().map(ListenerMetrics::opened);
                let answer = answer.clone();
                let answer = move |request| answer(request, peer);
                let (tls, limits) = (listener.tls.clone(), Arc::clone(&listener.limits));
                let connection = connect(stream, tls, limits, places.crowd(), phase.subscribe(), answer);
                tokio::spawn(async move {
                    connection.await;
                    drop((open, place));
                });
            }
            // It was gone before it was taken.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            // Out of file descriptors, most likely: connections that end give some back.
            Err(error) => {
                if let Some(held_back) = told.pass() {
                    tracing::warn!(%error, held_back, "a connection could not be accepted");
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// From now on the kernel answers nobody who wants to connect: they try again after a second, and are refused. A connection that it
/// had made itself, and that nobody took, would be reset when the listener closes.
#[cfg(target_os = "linux")]
fn last_call(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_ANY: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const TCP_FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    let no_syn = [
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(JUMP_IF_ANY, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&no_syn) {
        tracing::debug!(%error, "connections that are made while the listener closes may be reset");
    }
}

#[cfg(not(target_os = "linux"))]
fn last_call(_: &TcpListener) {}

/// Serves one connection until it ends, or has had no request for too long.
async fn connect<F, R>(
    stream: TcpStream,
    tls: Option<Tls>,
    limits: Arc<Connections>,
    crowd: Crowd,
    phases: watch::Receiver<Phase>,
    answer: F,
) where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let stream = Lingering::new(stream, Arc::clone(&activity));
    let (requests, knows) = (Arc::clone(&activity), phases.clone());
    let served = async {
        match tls {
            None => exchange(stream, &limits, knows, requests, answer).await,
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
                    exchange(ShortReads(stream), &limits, knows, requests, answer).await;
                }
            }
        }
    };
    tokio::select! {
        // What has arrived in the last moment is still looked at.
        biased;
        () = served => {}
        () = activity.ceased(phases, &limits, &crowd) => tracing::debug!("connection closed: no request for too long"),
    }
}

impl Tls {
    async fn handshake(&self, stream: Lingering) -> Option<TlsStream<Lingering>> {
        let accepted = TlsAcceptor::from(self.config.load_full()).accept(stream);
        let error = match timeout(HANDSHAKE, accepted).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error,
            Err(_) => ErrorKind::TimedOut.into(),
        };
        self.failures.inc();
        tracing::debug!(%error, "TLS handshake failed");
        None
    }
}

/// Whom the client's verified certificate names, if it showed one.
fn certificate(stream: &TlsStream<Lingering>) -> Option<Result<Arc<ClientCertificate>, CertificateError>> {
    let (_, connection) = stream.get_ref();
    let leaf = connection.peer_certificates()?.first()?;
    Some(ClientCertificate::from_der(leaf).map(Arc::new))
}

/// Speaks HTTP.
fn exchange<S, F, R>(
    stream: S,
    limits: &Connections,
    phases: watch::Receiver<Phase>,
    activity: Arc<Activity>,
    answer: F,
) -> impl Future<Output = ()> + Send + use<S, F, R>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let (requests, knows) = (Arc::clone(&activity), phases.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let version = request.version();
        let request_in_flight = requests.begin(version);
        let (answered, mut phases) = (answer(request), knows.clone());
        // In a box: hyper keeps room for it while the connection is idle.
        Box::pin(async move {
            let mut response = tokio::select! {
                biased;
                response = answered => response,
                () = reached(&mut phases, Phase::Over) => respond::answer(&shutting_down()),
            };
            if version != Version::HTTP_2 && *phases.borrow() >= Phase::Farewell {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(request_in_flight.answered(response))
        })
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
    // In a box: a future has room for it in each of its states.
    let connection = Box::pin(http.serve_connection(TokioIo::new(stream), service).into_owned());
    async move {
        // A client that hangs up or does not speak HTTP is its own trouble.
        if let Err(error) = until_the_end(connection, phases, &activity).await {
            tracing::debug!(error, "connection ended");
        }
    }
}

/// What a request hears that comes, or is not done, when the end has come.
pub(crate) fn shutting_down() -> Rejection {
    Rejection::new(Reason::Overloaded, "this gateway is shutting down")
}

/// Drives a connection, and has it end in order.
async fn until_the_end<C: GracefulConnection>(
    mut connection: Pin<Box<C>>,
    mut phases: watch::Receiver<Phase>,
    activity: &Activity,
) -> Result<(), C::Error> {
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended,
        () = reached(&mut phases, Phase::Farewell) => {}
    }
    // Behind the first request of HTTP/2: whoever has just connected gets an answer, not only a GOAWAY.
    let mut told = false;
    let mut tell = |mut connection: Pin<&mut C>, cx: &mut Context<'_>| {
        for _ in 0..2 {
            if !told && activity.is_http2() {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    };
    tokio::select! {
        biased;
        ended = poll_fn(|cx| tell(connection.as_mut(), cx)) => return ended,
        () = reached(&mut phases, Phase::Closed) => {}
    }
    // What has arrived by now is read: `yield_now` has the runtime look.
    for _ in 0..2 {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| tell(connection.as_mut(), cx)) => return ended,
            () = yield_now() => {}
        }
    }
    // Idle ones of HTTP/1.1 are closed. Those that are new may still have their say, see `Activity::ceased`.
    if activity.has_begun() && !activity.is_http2() {
        connection.as_mut().graceful_shutdown();
    }
    poll_fn(|cx| tell(connection.as_mut(), cx)).await
}
