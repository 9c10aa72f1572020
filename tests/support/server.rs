//! A scripted HTTP/1.1 server on a port of its own: records what it is asked, answers as it is told.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::DEADLINE;

/// A request as it arrived, with its whole body.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What to do about a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Answer it.
    Reply(Response<Bytes>),
    /// Leave the connection open and say nothing.
    Hang,
    /// Reset the connection.
    Close,
    /// Answer it as soon as this turns true.
    Held(watch::Receiver<bool>, Response<Bytes>),
}

impl Answer {
    /// An empty answer with this status.
    pub fn status(status: u16) -> Self {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::from_u16(status).expect("the test's status is a valid one");
        Self::Reply(response)
    }

    /// An answer with a body of this media type.
    pub fn body(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        match Self::status(status).header(CONTENT_TYPE.as_str(), content_type) {
            Self::Reply(response) => Self::Reply(response.map(|_| body)),
            other => other,
        }
    }

    /// An answer in JSON.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::body(status, "application/json", value.to_string())
    }

    /// An answer such as a router or a load balancer gives in the server's name.
    pub fn html(status: u16, page: &str) -> Self {
        Self::body(status, "text/html; charset=utf-8", page.to_owned())
    }

    /// The same answer, once `released` turns true.
    pub fn held(self, released: &watch::Sender<bool>) -> Self {
        let Self::Reply(response) = self else { panic!("{self:?} cannot be held") };
        Self::Held(released.subscribe(), response)
    }

    /// The same answer with one more header.
    pub fn header(self, name: &str, value: &str) -> Self {
        let Self::Reply(mut response) = self else { panic!("{self:?} has no headers") };
        let name: HeaderName = name.parse().expect("the test's header name is a valid one");
        response
            .headers_mut()
            .append(name, HeaderValue::from_str(value).expect("the test's header value is a valid one"));
        Self::Reply(response)
    }
}

/// The server. `R` is what it makes of each request. It stops, and its connections with it, when dropped.
pub struct Server<R> {
    address: SocketAddr,
    script: SharedScript<R>,
    received: watch::Sender<Vec<R>>,
    _accepting: JoinSet<()>,
}

type Script<R> = dyn Fn(&R) -> Answer + Send + Sync;
type SharedScript<R> = Arc<Mutex<Arc<Script<R>>>>;
type Answering = Pin<Box<dyn Future<Output = io::Result<Response<Full<Bytes>>>> + Send>>;

impl<R: From<Received> + Clone + Send + Sync + 'static> Server<R> {
    /// Listens on a free loopback port. Each request is recorded first, then answered by `script`.
    pub async fn start(script: impl Fn(&R) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), script).await
    }

    /// The same at an address that is known to be free.
    pub async fn start_at(address: SocketAddr, script: impl Fn(&R) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let script: SharedScript<R> = Arc::new(Mutex::new(Arc::new(script)));
        let received = watch::Sender::new(Vec::new());
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&script), received.clone()));
        Self { address, script, received, _accepting: accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path` here.
    pub fn url_of(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From the next request on, answers by `script`.
    pub fn set_script(&self, script: impl Fn(&R) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// Everything received so far, in order.
    pub fn received(&self) -> Vec<R> {
        self.received.borrow().clone()
    }

    /// How many requests were received so far.
    pub fn count(&self) -> usize {
        self.received.borrow().len()
    }

    /// What was received behind the first `n` requests.
    pub fn received_after(&self, n: usize) -> Vec<R> {
        self.received.borrow().get(n..).unwrap_or_default().to_vec()
    }

    /// Everything received so far, at least `n` requests.
    pub async fn wait_for(&self, n: usize) -> Vec<R> {
        let mut received = self.received.subscribe();
        // What is waited for is a lock: it goes before anybody asks for another.
        let came = tokio::time::timeout(DEADLINE, received.wait_for(|received| received.len() >= n)).await.is_ok();
        if !came {
            panic!("{} was sent {} of {n} requests within {DEADLINE:?}", self.address, self.received.borrow().len());
        }
        self.received()
    }
}

async fn accept<R: From<Received> + Clone + Send + Sync + 'static>(
    listener: TcpListener,
    script: SharedScript<R>,
    received: watch::Sender<Vec<R>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _peer)) = listener.accept() => {
                connections.spawn(serve(stream, Arc::clone(&script), received.clone()));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn serve<R: From<Received> + Clone + Send + Sync + 'static>(
    stream: TcpStream,
    script: SharedScript<R>,
    received: watch::Sender<Vec<R>>,
) {
    let service = service_fn(|request| {
        let (script, received) = (Arc::clone(&script), received.clone());
        let answer: Answering = Box::pin(answer(request, script, received));
        answer
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let served = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let mut stream = connection.into_parts().io.into_inner();
    let _ = match served {
        Ok(()) => stream.shutdown().await,
        // Dropped without lingering, a socket sends a reset: what a crashed server looks like.
        Err(_) => stream.set_zero_linger(),
    };
}

async fn answer<R: From<Received> + Clone>(
    request: Request<Incoming>,
    script: SharedScript<R>,
    received: watch::Sender<Vec<R>>,
) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let request = R::from(Received { method: head.method, uri: head.uri, headers: head.headers, body });
    received.send_modify(|received| received.push(request.clone()));
    let script = Arc::clone(&script.lock().unwrap());
    match script(&request) {
        Answer::Reply(response) => Ok(response.map(Full::new)),
        Answer::Held(mut released, response) => {
            released.wait_for(|released| *released).await.map_err(io::Error::other)?;
            Ok(response.map(Full::new))
        }
        Answer::Hang => match std::future::pending::<Infallible>().await {},
        // hyper gives up a connection whose service fails, and writes nothing to it.
        Answer::Close => Err(io::Error::other("the script closes this connection")),
    }
}
