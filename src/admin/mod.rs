//! The internal listener: health and metrics. Its health and path list are on the public one, too.

mod guard;
pub mod metrics;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use infogw_layers::{
    rejection::{Reason, Rejection},
    respond::answer,
};

pub use guard::Guard;
use metrics::Metrics;

use crate::reload::Reloader;

/// Whether new requests are welcome. It depends on this process alone, never on authorizer or upstream.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<AtomicBool>);

impl Default for Readiness {
    fn default() -> Self {
        Readiness(Arc::new(AtomicBool::new(true)))
    }
}

impl Readiness {
    /// Whether they are.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on `/healthz/ready` answers 503.
    pub fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The paths of the public listener.
pub const PUBLIC_PATHS: &[&str] = &["/", "/authorize", "/upload", "/healthz", "/healthz/ready", "/metrics/v1/receive"];
const INTERNAL_PATHS: &[&str] = &["/", "/metrics", "/healthz", "/healthz/ready", "/-/reload"];

/// How long a reload is waited for: policies may be large.
const RELOAD: Duration = Duration::from_secs(120);

/// What the internal listener answers.
pub async fn internal<B>(
    request: &Request<B>,
    readiness: &Readiness,
    metrics: &Metrics,
    reloader: &Reloader,
    (guard, peer): (&Guard, IpAddr),
) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/metrics" => reading(request, || exposed(metrics.expose(request.headers()))),
        "/-/reload" => reload(request, || reloader.reload(), (guard, peer)).await,
        _ => common(request, readiness, INTERNAL_PATHS),
    }
}

/// `/-/reload`, as Prometheus has it: begins only where whoever asks may, and says what came of it.
pub(crate) async fn reload<B, F: Future<Output = Result<(), Vec<String>>>>(
    request: &Request<B>,
    reload: impl FnOnce() -> F,
    (guard, peer): (&Guard, IpAddr),
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::POST | Method::PUT) {
        let rejection = Rejection::new(Reason::Method, "only POST and PUT are taken here");
        return answer(&rejection.with_header(header::ALLOW, HeaderValue::from_static("POST, PUT")));
    }
    if let Err(guard::Refused { status, line }) = guard.check(peer, request.headers()).await {
        let mut refused = failed(status, line);
        if status == StatusCode::UNAUTHORIZED {
            refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        return refused;
    }
    match tokio::time::timeout(RELOAD, reload()).await {
        Ok(Ok(())) => with_type(PLAIN, "reloaded\n"),
        Ok(Err(faults)) => {
            let faults = faults.join("; ").replace(char::is_control, " ");
            failed(StatusCode::INTERNAL_SERVER_ERROR, format!("not reloaded, the old stays: {faults}\n"))
        }
        Err(_) => failed(StatusCode::GATEWAY_TIMEOUT, "still reading; the log will say what came of it\n"),
    }
}

/// What both listeners answer: health, the list of `paths`, and 404.
pub fn common<B>(request: &Request<B>, readiness: &Readiness, paths: &[&str]) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/healthz" => reading(request, || with_type(PLAIN, "ok")),
        "/healthz/ready" => reading(request, || {
            if readiness.is_ready() {
                with_type(PLAIN, "ok")
            } else {
                answer(&Rejection::new(Reason::Overloaded, "this gateway is shutting down"))
            }
        }),
        "/" => reading(request, || {
            let list = serde_json::json!({ "paths": paths });
            with_type("application/json", format!("{list:#}"))
        }),
        _ => failed(StatusCode::NOT_FOUND, "404 page not found; `GET /` lists the paths\n"),
    }
}

pub(crate) fn exposed(metrics: Result<(&'static str, Vec<u8>), prometheus::Error>) -> Response<Full<Bytes>> {
    match metrics {
        Ok((content_type, body)) => with_type(content_type, body),
        Err(_) => answer(&Rejection::internal("the metrics could not be encoded")),
    }
}

/// Only to be read.
pub(crate) fn reading<B>(
    request: &Request<B>,
    respond: impl FnOnce() -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond();
    }
    let rejection = Rejection::new(Reason::Method, "only GET and HEAD are taken here");
    answer(&rejection.with_header(header::ALLOW, HeaderValue::from_static("GET, HEAD")))
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn failed(status: StatusCode, line: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = with_type(PLAIN, line);
    *response.status_mut() = status;
    response
}

pub(crate) fn with_type(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
