//! Path to stack.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use infogw_layers::{
    describe::Row,
    observe::Observe,
    rejection::{Reason, Rejection},
    respond,
};
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

use crate::{
    admin::{
        self, Readiness,
        metrics::{Handler, Metrics},
    },
    authorizers,
    client::Clients,
    config::Config,
    limits::Limits,
    server,
    stack::{self, Answer, Stack},
};

const NAME: &str = "Router";

/// Each path with a stack, and what its route is called in metrics.
const ROUTES: [(&str, &str); 3] =
    [("/metrics/v1/receive", "receive"), ("/upload", "upload"), ("/authorize", "authorize")];

/// A route: one box, whatever the layers.
type Route = BoxCloneSyncService<Request<Incoming>, Response<Answer>, Infallible>;

/// The public listener's routes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Router(Arc<Routes>);

#[derive(Debug)]
struct Routes {
    authorize: Route,
    upload: Route,
    receive: Route,
    /// Health, the list of paths, 404; and every route's refusal of what is ambiguous, or comes once the end has come.
    other: Route,
    readiness: Readiness,
}

impl Router {
    /// The three stacks, and health.
    pub fn new(config: &Config, metrics: &'static Metrics, clients: &Clients, readiness: Readiness) -> Self {
        fn boxed(stack: impl Stack<Incoming>) -> Route {
            BoxCloneSyncService::new(stack)
        }
        let (ready, handlers) = (readiness.clone(), handlers(metrics));
        let other = service_fn(move |request: Request<_>| {
            let response = other(&request, &ready, &handlers).map(Either::Left);
            async move { Ok(response) }
        });
        let circuit = authorizers::circuit(metrics);
        let limits = Limits::new(config, metrics);
        Router(Arc::new(Routes {
            authorize: boxed(stack::authorize(config, metrics, clients, &circuit, &limits)),
            upload: boxed(stack::upload(config, metrics, clients, &limits)),
            receive: boxed(stack::receive(config, metrics, clients, &circuit, &limits)),
            other: BoxCloneSyncService::new(stack::drain().layer(other)),
            readiness,
        }))
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let routes = &*self.0;
        let route = match request.uri().path() {
            _ if !routes.readiness.is_ready() || ambiguous(&request).is_some() => &routes.other,
            "/metrics/v1/receive" => &routes.receive,
            "/upload" => &routes.upload,
            "/authorize" => &routes.authorize,
            _ => &routes.other,
        };
        match route.clone().oneshot(request).await {
            Ok(response) => response.map(Either::into_inner),
            Err(never) => match never {},
        }
    }
}

type Handlers = [(&'static str, Handler); ROUTES.len()];

/// By path: who counts what is refused there without a stack.
fn handlers(metrics: &'static Metrics) -> Handlers {
    ROUTES.map(|(path, route)| {
        let handler = metrics.handler(route);
        handler.describe(&[Row::new::<Request<Incoming>>(NAME, &[Reason::Overloaded, Reason::Malformed])]);
        (path, handler)
    })
}

/// What to change about a request of which two readers may disagree whom it is for, or where it ends. A request of HTTP/1.1 has one
/// Host, and none has two (RFC 9112, section 3.2); in HTTP/2 it is the `:authority` (RFC 9113, section 8.3.1). Of transfer codings we
/// read one, and once (RFC 9112, section 7).
fn ambiguous<B>(request: &Request<B>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() || host.is_none() && request.version() == Version::HTTP_11 {
        return Some("send one Host header");
    }
    // In an absolute URI of HTTP/1.1 it is what counts, whatever the Host says (RFC 9112, section 3.2.2).
    if request.version() == Version::HTTP_2
        && let (Some(host), Some(authority)) = (host, request.uri().authority())
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes())
    {
        return Some("send no Host header, or the :authority in it");
    }
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    (!chunked || codings.next().is_some()).then_some("send no Transfer-Encoding, or `chunked` once")
}

fn other<B>(request: &Request<B>, readiness: &Readiness, handlers: &Handlers) -> Response<Full<Bytes>> {
    let handler = handlers.iter().find(|(path, _)| *path == request.uri().path()).map(|(_, handler)| handler);
    let rejection = if let Some(detail) = ambiguous(request) {
        Rejection::new(Reason::Malformed, detail)
    } else if handler.is_some() {
        server::shutting_down()
    } else {
        return admin::common(request, readiness, admin::PUBLIC_PATHS);
    };
    let rejection = rejection.by(NAME);
    if let Some(handler) = handler {
        handler.observe(&rejection);
    }
    respond::answer(&rejection.with_header(header::CONNECTION, HeaderValue::from_static("close")))
}
