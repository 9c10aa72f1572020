//! Spans to where they are collected: OTLP, or Jaeger's agent or collector.
//!
//! What is sampled waits in a bounded queue, and goes out in batches on a thread of its own; what does not fit is dropped, counted and
//! logged by OpenTelemetry's SDK. Its variables (`OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`) count.

mod jaeger;

use std::{sync::Arc, time::Duration};

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
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};
use tower::ServiceExt as _;

use self::jaeger::JaegerExporter;
use crate::{
    client::{CONNECT, HttpClient, client},
    config::{SpanEndpoint, Tracing},
    log::Seldom,
};

/// How long a batch may take to be taken: OTLP's default.
const EXPORT: Duration = Duration::from_secs(10);
/// How long the last batch may take.
const LAST_EXPORT: Duration = Duration::from_secs(5);
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
        let sender = || {
            let client = client(&tracing.tls, tracing.endpoint.url(), CONNECT)?;
            Ok::<_, String>(Sender { client, runtime: Handle::current() })
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
                builder.with_batch_exporter(Telling::new(exporter))
            }
            SpanEndpoint::JaegerCollector(url) => {
                builder.with_batch_exporter(Telling::new(JaegerExporter::collector(sender()?, url.clone())))
            }
            SpanEndpoint::JaegerAgent { host, port } => {
                builder.with_batch_exporter(Telling::new(JaegerExporter::agent(host.clone(), *port)))
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
        let outcome = work.with_context(context.clone()).await;
        if let Err(error) = &outcome {
            context.span().set_status(Status::error(error.to_string()));
        }
        context.span().end();
        outcome
    }

    /// Sends what still waits. There are no spans after that.
    pub async fn end(&self) {
        let Some(source) = self.0.clone() else { return };
        // It waits for the runtime that it is called by.
        let ended = spawn_blocking(move || source.provider.shutdown_with_timeout(LAST_EXPORT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

/// Says which spans are lost, and why.
#[derive(Debug)]
struct Telling<E> {
    exporter: E,
    seldom: Seldom,
}

impl<E> Telling<E> {
    fn new(exporter: E) -> Self {
        Telling { exporter, seldom: Seldom::default() }
    }
}

impl<E: SpanExporter> SpanExporter for Telling<E> {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        if let Err(error) = self.exporter.export(spans).await
            && let Some(held_back) = self.seldom.pass()
        {
            tracing::error!(err = %error, spans = count, held_back, "spans are lost: --internal.tracing.endpoint takes none");
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
        self.runtime.spawn(async { timeout(EXPORT, exchange).await }).await??
    }
}

#[async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        self.send(request).await
    }
}
