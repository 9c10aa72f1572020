//! Listeners, connections, and an orderly end.

use std::{net::SocketAddr, time::Duration};

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
    sync::watch,
};

/// How long a connection may be without a whole request head. hyper counts the idle time before it, too, so this is longer than a
/// stock sender's pauses.
const HEADERS: Duration = Duration::from_secs(60);
/// How long requests in flight may take to end once the gateway is told to.
pub const GRACE: Duration = Duration::from_secs(30);

/// Binds the first of `addresses` that can be had.
///
/// # Errors
/// The last address' error.
pub async fn bind(addresses: &[SocketAddr]) -> std::io::Result<TcpListener> {
    TcpListener::bind(addresses).await
}

/// Serves HTTP/1.1 and h2 (prior knowledge) until `stop` turns true; then takes no more connections, lets requests in flight end,
/// and returns once they have, or after [`GRACE`].
pub async fn serve<F, R>(listener: TcpListener, mut stop: watch::Receiver<bool>, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let connections = GracefulShutdown::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connect(stream, &connections, answer.clone()),
                // Out of file descriptors, most likely: connections that end give some back.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    if tokio::time::timeout(GRACE, connections.shutdown()).await.is_err() {
        tracing::warn!("requests in flight did not end in time");
    }
}

fn connect<F, R>(stream: TcpStream, connections: &GracefulShutdown, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, std::convert::Infallible>(answered.await) }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    http.http2().timer(TokioTimer::new()).max_concurrent_streams(256);
    let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        // A client that hangs up or does not speak HTTP is its own trouble.
        if let Err(error) = connection.await {
            tracing::debug!(error, "connection ended");
        }
    });
}

/// Waits until `stop` turns true, or nobody is left who could turn it.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
