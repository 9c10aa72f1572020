//! Listeners, connections, and an orderly end.

use std::{
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
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

/// How long a new connection may be without a request.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// How long a connection may then be idle. A stock sender that has nothing else to say sends metadata every minute, and
/// telemeter's client comes back after four and a half.
const IDLE: Duration = Duration::from_secs(6 * 60);
/// How long a connection without a request may stay once the end has come.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Connections of one listener. More wait in the kernel's queue until one ends.
const CONNECTIONS: usize = 16 * 1024;

/// Serves HTTP/1.1 and h2 (prior knowledge) until `stop` turns true; then takes no more connections, lets requests in flight end,
/// and returns once they have, or after `grace`.
pub async fn serve<F, R>(listener: TcpListener, mut stop: watch::Receiver<bool>, grace: Duration, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
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
                    let connection = connect(stream, &connections, stop.clone(), answer.clone());
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
fn connect<F, R>(
    stream: TcpStream,
    connections: &GracefulShutdown,
    stop: watch::Receiver<bool>,
    answer: F,
) -> impl Future<Output = ()> + Send + use<F, R>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request| {
        let request_in_flight = requests.begin();
        let answered = answer(request);
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
    let connection = connections.watch(connection);
    async move {
        tokio::select! {
            // A client that hangs up or does not speak HTTP is its own trouble.
            ended = connection => if let Err(error) = ended {
                tracing::debug!(error, "connection ended");
            },
            () = activity.ceased(stop) => tracing::debug!("connection closed: no request for too long"),
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
