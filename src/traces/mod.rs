//! Spans to where they are collected: OTLP, or Jaeger's agent or collector.
//!
//! What is sampled waits in a bounded queue, and goes out in batches on a thread of its own; what does not fit is dropped, counted and
//! logged by OpenTelemetry's SDK. Its variables for the queue, the resource, OTLP's headers and compression count.

mod jaeger;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use infogw_layers::{rejection::BoxError, trace::TraceLayer};
use opentelemetry::{
    Context, InstrumentationScope,
    trace::{FutureExt as _, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};
use tower::ServiceExt as _;

use self::jaeger::JaegerExporter;
use crate::{
    client::{CONNECT, HttpClient, chain, client},
    config::{SpanEndpoint, Tracing},
    log::Seldom,
};

/// How long a batch may take to be taken: OTLP's default.
const EXPORT: Duration = Duration::from_secs(10);
/// How long the last batch may take.
const LAST_EXPORT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const LONGEST_ANSWER: usize = 64 << 10;

/// Where spans come from; by default there are none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Source>>);

#[derive(Debug)]
struct Source {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: Arc<TraceContextPropagator>,
}

impl Traces {
    /// Begins to trace as `tracing` says, if it does. Whoever collects spans need not be up.
    ///
    /// # Errors
    /// If the endpoint is https and there are no roots to trust, or what the environment says of OTLP is wrong.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(tracing: Option<&Tracing>) -> Result<Self, String> {
        let Some(tracing) = tracing else { return Ok(Traces::default()) };
        let resource = Resource::builder().with_service_name(tracing.service.clone()).build();
        let builder = SdkTracerProvider::builder()
            .with_resource(resource)
            // As telemeter has it: by the trace's id alone, so that all who have the same fraction sample the same traces.
            .with_sampler(Sampler::TraceIdRatioBased(tracing.fraction));
        let failure = Arc::<Mutex<Option<String>>>::default();
        let sender = || {
            let client = client(&tracing.tls, tracing.endpoint.url(), CONNECT)?;
            Ok::<_, String>(Sender { client, runtime: Handle::current(), failure: Arc::clone(&failure) })
        };
        let provider = match &tracing.endpoint {
            SpanEndpoint::Otlp(url) => {
                let exporter = opentelemetry_otlp::SpanExporter::builder()
                    .with_http()
                    .with_http_client(sender()?)
                    .with_protocol(Protocol::HttpBinary)
                    .with_endpoint(url.to_string())
                    .with_timeout(EXPORT)
                    .build();
                let exporter = exporter.map_err(|error| format!("--internal.tracing.endpoint: {error}"))?;
                builder.with_batch_exporter(Telling::new(exporter, failure))
            }
            SpanEndpoint::JaegerCollector(url) => {
                builder.with_batch_exporter(Telling::new(JaegerExporter::collector(sender()?, url.clone()), failure))
            }
            SpanEndpoint::JaegerAgent { host, port } => {
                builder.with_batch_exporter(Telling::new(JaegerExporter::agent(host.clone(), *port), failure))
            }
        };
        let provider = provider.build();
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION"));
        let tracer = provider.tracer_with_scope(scope.build());
        Ok(Traces(Some(Arc::new(Source { provider, tracer, propagator: Arc::default() }))))
    }

    /// Spans of requests to `route`, if any.
    pub fn server(&self, route: &'static str) -> Option<TraceLayer<SdkTracer>> {
        let source = self.0.as_deref()?;
        Some(TraceLayer::server(source.tracer.clone(), source.propagator.clone()).target(route))
    }

    /// Spans of calls of `neighbour`, if any.
    pub fn client(&self, neighbour: &'static str) -> Option<TraceLayer<SdkTracer>> {
        let source = self.0.as_deref()?;
        Some(TraceLayer::client(source.tracer.clone(), source.propagator.clone()).target(neighbour))
    }

    /// `work`, of which a trace of its own is made: whatever is called by it belongs there.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn of<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(source) = &self.0 else { return work.await };
        let context = Context::new().with_span(source.tracer.start_with_context(name, &Context::new()));
        let given_up = GivenUp(context.clone());
        let outcome = work.with_context(context.clone()).await;
        if let Err(error) = &outcome {
            context.span().set_status(Status::error(error.to_string()));
        }
        context.span().end();
        drop(given_up);
        outcome
    }

    /// Sends what still waits. There are no spans after that.
    pub async fn end(&self) {
        let Some(source) = self.0.clone() else { return };
        // It waits for the runtime that it is called by.
        let ended = spawn_blocking(move || source.provider.shutdown_with_timeout(LAST_EXPORT)).await;
        match ended {
            Ok(Err(error)) if !matches!(error, OTelSdkError::AlreadyShutdown) => {
                tracing::warn!(%error, "the last spans are lost");
            }
            _ => {}
        }
    }
}

/// Work that is dropped before it is done is no success.
struct GivenUp(Context);

impl Drop for GivenUp {
    fn drop(&mut self) {
        let span = self.0.span();
        // Ended spans record no more.
        if span.is_recording() {
            span.set_status(Status::error("given up"));
        }
        span.end();
    }
}

/// Says how many spans are lost, and why.
#[derive(Debug)]
struct Telling<E> {
    exporter: E,
    /// What a [`Sender`] met, which not every exporter passes on.
    failure: Arc<Mutex<Option<String>>>,
    lost: AtomicUsize,
    seldom: Seldom,
}

impl<E> Telling<E> {
    fn new(exporter: E, failure: Arc<Mutex<Option<String>>>) -> Self {
        Telling { exporter, failure, lost: AtomicUsize::default(), seldom: Seldom::default() }
    }
}

impl<E: SpanExporter> SpanExporter for Telling<E> {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        let exported = self.exporter.export(spans).await;
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) = exported {
            self.lost.fetch_add(count, Ordering::Relaxed);
            if self.seldom.pass().is_some() {
                let (spans, cause) = (self.lost.swap(0, Ordering::Relaxed), failure.unwrap_or_default());
                tracing::error!(err = %error, cause, spans, "spans are lost: --internal.tracing.endpoint takes none");
            }
        }
        // It is told already.
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends for whoever has no runtime.
#[derive(Debug, Clone)]
struct Sender {
    client: HttpClient,
    runtime: Handle,
    failure: Arc<Mutex<Option<String>>>,
}

impl Sender {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        let client = self.client.clone();
        let exchange = async move {
            let (head, body) = client.oneshot(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // The time, too, is the runtime's.
        let exchanged = self.runtime.spawn(async { timeout(EXPORT, exchange).await }).await?;
        let exchanged = exchanged.unwrap_or_else(|_| Err(format!("no answer within {EXPORT:?}").into()));
        exchanged.inspect_err(|error: &BoxError| {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain(&**error));
        })
    }
}

#[async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        self.send(request).await
    }
}
