//! Spans of requests, for OpenTelemetry: which hops a request made, and how long each took.
//!
//! [`TraceLayer::server`] goes around a stack: it continues the trace that a sender began, or begins one. [`TraceLayer::client`] goes
//! around an HTTP client: its spans belong to the request on whose behalf it is called, and the neighbour is told of the trace. What
//! happens in between adds to the span, as [`Refusals`] do. Attributes are those of OpenTelemetry's
//! [semantic conventions for HTTP](https://opentelemetry.io/docs/specs/semconv/http/http-spans/).
//!
//! Tracer and propagator are given, none is global. Of a request that is not sampled nothing is kept but its ids, which are passed on.
//!
//! ```
//! use infogw_layers::trace::TraceLayer;
//! use opentelemetry::trace::TracerProvider as _;
//! use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::{InMemorySpanExporter, SdkTracerProvider}};
//! use std::sync::Arc;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let exporter = InMemorySpanExporter::default();
//! let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
//! let (tracer, propagator) = (provider.tracer("example"), Arc::new(TraceContextPropagator::new()));
//! // The upstream is told which trace its request belongs to.
//! let upstream = service_fn(async |request: http::Request<()>| {
//!     assert!(request.headers()["traceparent"].to_str().unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
//!     Ok::<_, std::convert::Infallible>(http::Response::new(()))
//! });
//! let service = ServiceBuilder::new()
//!     .layer(TraceLayer::server(tracer.clone(), propagator.clone()).target("/upload"))
//!     .layer(TraceLayer::client(tracer, propagator).target("upstream"))
//!     .service(upstream);
//! let request = http::Request::post("/upload")
//!     .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
//!     .body(()).unwrap();
//! service.oneshot(request).await?;
//! let names: Vec<_> = exporter.get_finished_spans().unwrap().into_iter().map(|span| span.name).collect();
//! assert_eq!(names, ["POST upstream", "POST /upload"]);
//! # Ok(()) }
//! ```

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll, ready},
};

use http::{Method, Request, Response, StatusCode, Uri, Version, header};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanKind, SpanRef, Status, TraceContextExt as _, Tracer},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    describe::{Describe, Row},
    observe::Observe,
    rejection::Rejection,
};

/// Characters of a header that are read, or noted: what a sender says of a trace goes on to every neighbour, and waits to be exported. The
/// longest `tracestate` that has to be passed on (W3C Trace Context, section 3.3.1.5).
const LONGEST: usize = 512;

/// Makes a span of each request.
#[derive(Debug)]
pub struct TraceLayer<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug, Clone)]
struct Shared<T> {
    tracer: T,
    propagator: Arc<dyn TextMapPropagator + Send + Sync>,
    kind: SpanKind,
    target: &'static str,
}

impl<T> TraceLayer<T> {
    /// Spans of requests that come in. They continue the trace that a request's headers name, as `propagator` reads them.
    pub fn server(tracer: T, propagator: Arc<dyn TextMapPropagator + Send + Sync>) -> Self {
        Self::new(tracer, propagator, SpanKind::Server)
    }

    /// Spans of requests that go out. They belong to the [current](Context::current) context: whatever is called inside of
    /// [`TraceLayer::server`] has that request's. The headers of each name it, as `propagator` writes them.
    pub fn client(tracer: T, propagator: Arc<dyn TextMapPropagator + Send + Sync>) -> Self {
        Self::new(tracer, propagator, SpanKind::Client)
    }

    fn new(tracer: T, propagator: Arc<dyn TextMapPropagator + Send + Sync>, kind: SpanKind) -> Self {
        TraceLayer { shared: Arc::new(Shared { tracer, propagator, kind, target: "" }) }
    }
}

impl<T: Clone> TraceLayer<T> {
    /// What is behind it: a route, a neighbour's name. It stands in the span's name, and is a server's `http.route`.
    #[must_use]
    pub fn target(self, target: &'static str) -> Self {
        TraceLayer { shared: Arc::new(Shared { target, ..Arc::unwrap_or_clone(self.shared) }) }
    }
}

impl<T> Clone for TraceLayer<T> {
    fn clone(&self) -> Self {
        TraceLayer { shared: Arc::clone(&self.shared) }
    }
}

impl<S, T> Layer<S> for TraceLayer<T> {
    type Service = Traced<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Traced { inner, layer: self.clone() }
    }
}

/// The service that [`TraceLayer`] makes.
#[derive(Debug)]
pub struct Traced<S, T> {
    inner: S,
    layer: TraceLayer<T>,
}

impl<S: Clone, T> Clone for Traced<S, T> {
    fn clone(&self) -> Self {
        Traced { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, T, B, R> Service<Request<B>> for Traced<S, T>
where
    T: Tracer<Span: Send + Sync + 'static>,
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Shared { tracer, propagator, kind, target } = &*self.layer.shared;
        let parent = match kind {
            SpanKind::Server => {
                propagator.extract_with_context(&Context::new(), &Short(HeaderExtractor(request.headers())))
            }
            _ => Context::current(),
        };
        // A name that costs nothing: most are not sampled.
        let span = tracer.span_builder(*target).with_kind(kind.clone()).start_with_context(tracer, &parent);
        let mut context = parent.with_span(span);
        if context.span().is_recording() {
            describe(&context.span(), kind, target, &request);
            if *kind == SpanKind::Server {
                context = context.with_value(Explained::default());
            }
        }
        if *kind == SpanKind::Client {
            propagator.inject_context(&context, &mut NotEmpty(HeaderInjector(request.headers_mut())));
        }
        let inner = {
            let _current = context.clone().attach();
            self.inner.call(request)
        };
        TraceFuture { inner, span: Box::new(OpenSpan { context, kind: kind.clone() }) }
    }
}

impl<S: Describe<Req>, T, Req> Describe<Req> for Traced<S, T> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Req>("TraceLayer", &[]));
        S::describe(rows);
    }
}

/// Names a span and says what request it is of.
fn describe<B>(span: &SpanRef<'_>, kind: &SpanKind, target: &'static str, request: &Request<B>) {
    let method = method(request.method());
    span.update_name(if target.is_empty() { method.to_owned() } else { format!("{method} {target}") });
    span.set_attribute(KeyValue::new("http.request.method", method));
    match kind {
        SpanKind::Server => {
            let version = match request.version() {
                Version::HTTP_10 => "1.0",
                Version::HTTP_11 => "1.1",
                Version::HTTP_2 => "2",
                _ => "",
            };
            span.set_attribute(KeyValue::new("network.protocol.version", version));
            span.set_attribute(KeyValue::new("url.path", start(request.uri().path()).to_owned()));
            if !target.is_empty() {
                span.set_attribute(KeyValue::new("http.route", target));
            }
            if let Some(agent) = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()) {
                span.set_attribute(KeyValue::new("user_agent.original", start(agent).to_owned()));
            }
        }
        _ => {
            let uri = request.uri();
            let host = uri.host().unwrap_or_default();
            span.set_attribute(KeyValue::new("server.address", host.to_owned()));
            let port = uri.port_u16().or(match uri.scheme_str() {
                Some("http") => Some(80),
                Some("https") => Some(443),
                _ => None,
            });
            if let Some(port) = port {
                span.set_attribute(KeyValue::new("server.port", i64::from(port)));
            }
            span.set_attribute(KeyValue::new("url.full", shown(uri)));
        }
    }
}

/// A URL without what may be a secret: user, password and query.
fn shown(uri: &Uri) -> String {
    let (host, path) = (uri.host().unwrap_or_default(), start(uri.path()));
    let scheme = uri.scheme_str().map(|scheme| format!("{scheme}://")).unwrap_or_default();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}{host}{port}{path}")
}

/// A method that is known, or `_OTHER`: senders make up no names of spans.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "PATCH", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

/// No more of a text than is noted.
fn start(text: &str) -> &str {
    let end = text.char_indices().nth(LONGEST);
    end.and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// Headers, but for long ones.
struct Short<'a>(HeaderExtractor<'a>);

impl Extractor for Short<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).filter(|value| value.len() <= LONGEST)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys()
    }
}

/// Headers that are set to something: without a trace state there is no `tracestate`.
struct NotEmpty<'a>(HeaderInjector<'a>);

impl Injector for NotEmpty<'_> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.set(key, value);
        }
    }
}

pin_project! {
    /// The future of [`Traced`].
    #[derive(Debug)]
    pub struct TraceFuture<F> {
        #[pin]
        inner: F,
        // Boxed: where nothing is traced, futures are hardly larger for it.
        span: Box<OpenSpan>,
    }
}

impl<F, R, E> Future for TraceFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = {
            let _current = this.span.context.clone().attach();
            ready!(this.inner.poll(cx))
        };
        this.span.end(result.as_ref().ok().map(Response::status));
        Poll::Ready(result)
    }
}

/// Whether a span's `error.type` says more than the status does.
#[derive(Debug, Default)]
struct Explained(AtomicBool);

impl Explained {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A span that ends with the answer's head, or with whoever waited for it.
#[derive(Debug)]
struct OpenSpan {
    context: Context,
    kind: SpanKind,
}

impl OpenSpan {
    /// `None`: there was no answer, but an error.
    fn end(&self, status: Option<StatusCode>) {
        let span = self.context.span();
        if span.is_recording() {
            let fails_from = if self.kind == SpanKind::Server { 500 } else { 400 };
            match status {
                Some(status) => {
                    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
                    if status.as_u16() >= fails_from {
                        // A client's context has the server's.
                        let explained = self.context.get::<Explained>().filter(|_| self.kind == SpanKind::Server);
                        if !explained.is_some_and(Explained::is_set) {
                            span.set_attribute(KeyValue::new("error.type", status.as_str().to_owned()));
                        }
                        // Replaces no description.
                        span.set_status(Status::error(""));
                    }
                }
                None => {
                    span.set_attribute(KeyValue::new("error.type", "_OTHER"));
                    span.set_status(Status::error("no answer"));
                }
            }
        }
        // Whoever still has the context keeps it open no longer.
        span.end();
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        let span = self.context.span();
        // Ended spans record no more.
        if span.is_recording() {
            span.set_attribute(KeyValue::new("error.type", "cancelled"));
            span.set_status(Status::error("nobody waits for the answer any more"));
        }
        span.end();
    }
}

/// Tells the current span what its request is refused for: `infogw.reason` and `infogw.layer`. The line that the sender is told is an
/// event, or the description of an error of ours, whose `error.type` is the reason.
///
/// It is given to whatever reports refusals, such as [`RespondLayer`](crate::respond).
#[derive(Debug, Clone, Copy, Default)]
pub struct Refusals;

impl Observe<Rejection> for Refusals {
    fn observe(&self, rejection: &Rejection) {
        note(|span| {
            span.set_attribute(KeyValue::new("infogw.reason", rejection.reason().as_str()));
            if let Some(layer) = rejection.layer() {
                span.set_attribute(KeyValue::new("infogw.layer", layer));
            }
            let told = rejection.to_string();
            if rejection.status().is_server_error() {
                span.set_attribute(KeyValue::new("error.type", rejection.reason().as_str()));
                span.set_status(Status::error(told));
                Context::map_current(|context| context.get::<Explained>().map(Explained::set));
            } else {
                span.add_event("refused", vec![KeyValue::new("message", told)]);
            }
        });
    }
}

/// Shows `note` the current span, if there is one that is sampled.
pub fn note(note: impl FnOnce(&SpanRef<'_>)) {
    Context::map_current(|context| {
        if context.has_active_span() && context.span().is_recording() {
            note(&context.span());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        convert::Infallible,
        future::{pending, ready},
        task::Waker,
    };

    use opentelemetry::trace::{TraceId, TracerProvider as _};
    use opentelemetry_sdk::{
        propagation::TraceContextPropagator,
        trace::{InMemorySpanExporter, Sampler, SdkTracer, SdkTracerProvider, SpanData},
    };
    use tower::{ServiceExt as _, service_fn};

    use crate::rejection::Reason;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    struct Collected {
        exporter: InMemorySpanExporter,
        provider: SdkTracerProvider,
    }

    impl Collected {
        fn new(sampler: Sampler) -> Self {
            let exporter = InMemorySpanExporter::default();
            let provider =
                SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).with_sampler(sampler).build();
            Collected { exporter, provider }
        }

        fn server(&self) -> TraceLayer<SdkTracer> {
            TraceLayer::server(self.provider.tracer("test"), Arc::new(TraceContextPropagator::new()))
        }

        fn client(&self) -> TraceLayer<SdkTracer> {
            TraceLayer::client(self.provider.tracer("test"), Arc::new(TraceContextPropagator::new()))
        }

        fn spans(&self) -> Vec<SpanData> {
            self.exporter.get_finished_spans().unwrap()
        }
    }

    /// An attribute as text, "" if there is none.
    fn attribute(span: &SpanData, name: &str) -> String {
        let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
        found.map(|attribute| attribute.value.to_string()).unwrap_or_default()
    }

    fn answer(status: u16) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
    }

    #[tokio::test]
    async fn an_outgoing_request_belongs_to_the_incoming_one() {
        let collected = Collected::new(Sampler::AlwaysOn);
        let upstream = service_fn(|request: Request<()>| {
            let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            let told = (header("traceparent"), header("tracestate"));
            ready(Ok::<_, Infallible>(Response::new(told)))
        });
        let client = collected.client().target("upstream").layer(upstream);
        let stack = collected.server().target("/upload").layer(service_fn(move |_: Request<()>| {
            let request = Request::post("https://user:secret@upstream:8443/write?token=secret").body(()).unwrap();
            client.clone().oneshot(request)
        }));
        let request = Request::post("/upload")
            .header("traceparent", PARENT)
            .header("tracestate", "vendor=1")
            .header("user-agent", "Prometheus/3")
            .body(())
            .unwrap();
        let (told, state) = stack.oneshot(request).await.unwrap().into_body();
        let [client, server] = collected.spans().try_into().unwrap();
        for span in [&client, &server] {
            assert_eq!(span.span_context.trace_id(), TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap());
        }
        assert_eq!(server.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(client.parent_span_id, server.span_context.span_id());
        let id = client.span_context.span_id();
        assert_eq!(
            told.unwrap(),
            format!("00-0af7651916cd43dd8448eb211c80319c-{id}-01"),
            "the client's span, not the server's"
        );
        assert_eq!(state.unwrap(), "vendor=1");
        let seen = |span: &SpanData, names: &[&'static str]| -> Vec<String> {
            names.iter().map(|name| attribute(span, name)).collect()
        };
        assert_eq!((&*server.name, server.span_kind.clone()), ("POST /upload", SpanKind::Server));
        let names = [
            "http.request.method",
            "http.route",
            "url.path",
            "http.response.status_code",
            "user_agent.original",
            "network.protocol.version",
        ];
        assert_eq!(seen(&server, &names), ["POST", "/upload", "/upload", "200", "Prometheus/3", "1.1"]);
        assert_eq!((&*client.name, client.span_kind.clone()), ("POST upstream", SpanKind::Client));
        let names = ["http.request.method", "server.address", "server.port", "url.full", "http.response.status_code"];
        assert_eq!(seen(&client, &names), ["POST", "upstream", "8443", "https://upstream:8443/write", "200"]);
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
        assert_eq!((client.status, server.status), (Status::Unset, Status::Unset));
    }

    #[tokio::test]
    async fn what_is_not_sampled_is_passed_on_and_not_kept() {
        let collected = Collected::new(Sampler::AlwaysOff);
        let upstream = service_fn(|request: Request<()>| ready(Ok::<_, Infallible>(Response::new(request))));
        let client = collected.client().layer(upstream);
        let stack = collected.server().layer(service_fn(move |request: Request<()>| client.clone().oneshot(request)));
        let told = stack.clone().oneshot(Request::new(())).await.unwrap().into_body();
        let parent = told.headers()["traceparent"].to_str().unwrap();
        assert!(parent.starts_with("00-") && parent.ends_with("-00"), "{parent}");
        assert_eq!(told.headers().get("tracestate"), None);
        let request = Request::builder().header("traceparent", PARENT).body(()).unwrap();
        let told = stack.oneshot(request).await.unwrap().into_body();
        assert!(told.headers()["traceparent"].to_str().unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert_eq!(collected.spans(), []);
    }

    #[tokio::test]
    async fn a_span_says_how_its_request_ended() {
        let ended = |layer: fn(&Collected) -> TraceLayer<SdkTracer>, result: Result<u16, &'static str>| async move {
            let collected = Collected::new(Sampler::AlwaysOn);
            let inner = service_fn(move |_: Request<()>| ready(result.map(answer)));
            let _ = layer(&collected).layer(inner).oneshot(Request::new(())).await;
            let [span] = collected.spans().try_into().unwrap();
            (attribute(&span, "http.response.status_code"), attribute(&span, "error.type"), span.status)
        };
        let status = |code: &str| (code.to_owned(), String::new(), Status::Unset);
        let failed = |code: &str| (code.to_owned(), code.to_owned(), Status::error(""));
        assert_eq!(ended(Collected::server, Ok(204)).await, status("204"));
        assert_eq!(ended(Collected::server, Ok(429)).await, status("429"), "the sender's doing");
        assert_eq!(ended(Collected::server, Ok(503)).await, failed("503"));
        assert_eq!(ended(Collected::client, Ok(302)).await, status("302"));
        assert_eq!(ended(Collected::client, Ok(429)).await, failed("429"));
        assert_eq!(
            ended(Collected::client, Err("refused")).await,
            (String::new(), "_OTHER".to_owned(), Status::error("no answer"))
        );

        let collected = Collected::new(Sampler::AlwaysOn);
        let hangs = service_fn(|_: Request<()>| pending::<Result<Response<()>, Infallible>>());
        let mut call = Box::pin(collected.server().layer(hangs).oneshot(Request::new(())));
        assert!(call.as_mut().poll(&mut task::Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(collected.spans(), []);
        drop(call);
        let [span] = collected.spans().try_into().unwrap();
        assert_eq!(attribute(&span, "error.type"), "cancelled");
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_where() {
        for (reason, expected) in
            [(Reason::RateLimited, Status::Unset), (Reason::UpstreamTimeout, Status::error("no answer within 5s"))]
        {
            let collected = Collected::new(Sampler::AlwaysOn);
            let inner = service_fn(move |_: Request<()>| {
                let rejection = Rejection::new(reason, "no answer within 5s").by("Forward");
                Refusals.observe(&rejection);
                ready(Ok::<_, Infallible>(answer(rejection.status().as_u16())))
            });
            collected.server().layer(inner).oneshot(Request::new(())).await.unwrap();
            let [span] = collected.spans().try_into().unwrap();
            assert_eq!(
                (attribute(&span, "infogw.reason"), attribute(&span, "infogw.layer")),
                (reason.as_str().to_owned(), "Forward".to_owned())
            );
            assert_eq!(span.status, expected);
            let told: Vec<_> = span.events.iter().map(|event| event.attributes[0].value.to_string()).collect();
            assert_eq!(told, if expected == Status::Unset { &["no answer within 5s"][..] } else { &[] });
        }
        // Where nobody traces, nothing comes of it.
        Refusals.observe(&Rejection::new(Reason::RateLimited, "slower"));
    }

    #[tokio::test]
    async fn what_senders_make_up_is_cut() {
        let collected = Collected::new(Sampler::AlwaysOn);
        let upstream = service_fn(|request: Request<()>| ready(Ok::<_, Infallible>(Response::new(request))));
        let client = collected.client().layer(upstream);
        let stack = collected.server().target("/upload").layer(service_fn(move |request: Request<()>| {
            client.clone().oneshot(Request::from_parts(request.into_parts().0, ()))
        }));
        let long = "x".repeat(8000);
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(b"MADE-UP").unwrap();
        *request.uri_mut() = format!("/{long}?token=secret").parse().unwrap();
        for (name, value) in
            [("traceparent", PARENT.to_owned()), ("tracestate", format!("vendor={long}")), ("user-agent", long.clone())]
        {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        stack.oneshot(request).await.unwrap();
        let spans = collected.spans();
        assert_eq!(&*spans[1].name, "_OTHER /upload");
        for span in spans {
            assert_eq!(span.span_context.trace_state().header(), "");
            let size = format!("{span:?}").len();
            assert!(size < 4000 && !format!("{span:?}").contains("secret"), "{size}: {span:?}");
        }
        // Headers that name no trace begin one.
        for parent in ["", "00-00000000000000000000000000000000-0000000000000000-01", "00-x-y-z", "🦀", &long] {
            let collected = Collected::new(Sampler::AlwaysOn);
            let mut request = Request::new(());
            request.headers_mut().insert("traceparent", http::HeaderValue::from_bytes(parent.as_bytes()).unwrap());
            let fine = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(answer(200))));
            collected.server().layer(fine).oneshot(request).await.unwrap();
            let [span] = collected.spans().try_into().unwrap();
            assert!(span.span_context.is_valid() && span.parent_span_id == opentelemetry::trace::SpanId::INVALID);
        }
    }
}
