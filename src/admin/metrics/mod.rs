//! What the gateway counts, under the names that telemeter-server's dashboards and alerts query.

mod authorization;
pub mod connections;
pub mod identity;
pub mod keys;
pub mod limiter;
mod oidc;
mod policy;
mod sampled;
mod stores;
pub mod tls;
pub mod upstream;

use std::{collections::BTreeSet, sync::OnceLock, time::Duration};

use http::{HeaderMap, Method, StatusCode, header};
use infogw_layers::{
    authorize::cache::{CacheEvent, CacheHandle},
    circuit::CircuitState,
    describe::{self, Row},
    enforce::Enforced,
    observe::{Exchange, Observe},
    rejection::{Reason, Rejection},
    translate::Translated,
};
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, ProtobufEncoder,
    Registry, TEXT_FORMAT, TextEncoder, core::Collector,
};

use self::{
    authorization::AuthorizationMetrics, connections::ConnectionMetrics, identity::IdentityMetrics, keys::KeyMetrics,
    limiter::LimiterMetrics, policy::PolicyMetrics, tls::TlsMetrics, upstream::UpstreamMetrics,
};
pub use self::{
    oidc::OidcMetrics,
    stores::{StoreMetrics, StoreObserver},
};
use crate::{forward::Forwarded, log::Seldom, retry::Retry};

/// Every metric, registered. There is one of these in a process, and it lives as long.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    size: HistogramVec,
    rejections: IntCounterVec,
    client_requests: IntCounterVec,
    client_duration: HistogramVec,
    authorization: AuthorizationMetrics,
    /// Success, error.
    forwarded: [IntCounter; 2],
    /// Made, over budget.
    retries: [IntCounter; 2],
    size_limited: IntCounter,
    missing_labels: IntCounter,
    foreign_series: IntCounter,
    processed: IntCounter,
    dropped: IntCounterVec,
    v1_samples: IntCounter,
    /// Success, error.
    v1_forwarded: [IntCounter; 2],
    v1_duration: HistogramVec,
    /// Past, present, future.
    tenses: [IntCounter; 3],
    /// What the stores that replicas share were asked.
    pub stores: StoreMetrics,
    /// Connections, and what their requests buffer.
    pub connections: ConnectionMetrics,
    /// TLS of listeners and clients.
    pub tls: TlsMetrics,
    /// Who said who it was.
    pub identity: IdentityMetrics,
    /// The keys of our tokens.
    pub keys: KeyMetrics,
    /// The rate limits'.
    pub limiter: LimiterMetrics,
    /// The policy in force.
    pub policy: PolicyMetrics,
    /// Where the upstream is.
    pub upstream: UpstreamMetrics,
}

/// `prometheus.DefBuckets` of the Go client.
const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Up to the time that a forward has.
const FORWARD_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Up to the time that an authorization has.
const CLIENT_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];
const BYTES: &[f64] = &[1024.0, 8192.0, 65536.0, 262_144.0, 524_288.0, 1_048_576.0, 2_097_152.0];

impl Metrics {
    /// Registers them all.
    ///
    /// # Errors
    /// If two metrics share a name, which no configuration brings about.
    pub fn new() -> Result<&'static Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let histograms = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
        };
        // Resolved here, which also makes them begin at 0: a rate misses the first event of a counter that appears with it.
        const OUTCOMES: [&str; 2] = ["success", "error"];
        let by_handler = ["code", "handler", "method"];
        let metrics = Metrics {
            requests: counters("http_requests_total", "Tracks the number of HTTP requests.", &by_handler)?,
            duration: histograms(
                "http_request_duration_seconds",
                "Tracks the latencies for HTTP requests.",
                SECONDS,
                &by_handler,
            )?,
            size: histograms("http_request_size_bytes", "Tracks the size of HTTP requests.", BYTES, &by_handler)?,
            rejections: counters(
                "infogw_rejections_total",
                "Requests refused, by route, layer and reason.",
                &["route", "layer", "reason"],
            )?,
            client_requests: counters(
                "client_api_requests_total",
                "A counter for requests from the wrapped client.",
                &["client", "code", "method"],
            )?,
            client_duration: histograms(
                "infogw_client_request_duration_seconds",
                "How long our requests to authorizer, upstream and issuer took.",
                CLIENT_SECONDS,
                &["client"],
            )?,
            authorization: AuthorizationMetrics::new(&registry)?,
            forwarded: each(
                &counters(
                    "telemeter_forward_requests_total",
                    "The number of forwarded remote-write requests.",
                    &["result"],
                )?,
                OUTCOMES,
            ),
            retries: each(
                &counters(
                    "infogw_forward_retries_total",
                    "Forwards that the upstream did not take and that could be tried again: that were, or were too many.",
                    &["result"],
                )?,
                ["made", "over_budget"],
            ),
            size_limited: counter(
                "telemeter_receive_size_limited_total",
                "The number of remote write requests dropped due to body size.",
            )?,
            missing_labels: counter(
                "telemeter_receive_request_missing_labels_total",
                "The number of remote write requests with series that lack the cluster label.",
            )?,
            foreign_series: counter(
                "infogw_receive_foreign_series_total",
                "The number of received series that carry another cluster's label, refused or only counted.",
            )?,
            processed: counter(
                "telemeter_receive_series_processed_total",
                "The total number of series processed by receive.",
            )?,
            dropped: counters(
                "infogw_series_dropped_total",
                "The number of series that the allowlist dropped.",
                &["route"],
            )?,
            v1_samples: counter(
                "telemeter_v1_forward_samples_total",
                "Total number of samples forwarded from uploads.",
            )?,
            v1_forwarded: each(
                &counters("telemeter_v1_forward_requests_total", "Total number of forwarded uploads.", &["result"])?,
                OUTCOMES,
            ),
            v1_duration: histograms(
                "telemeter_v1_forward_request_duration_seconds",
                "Tracks the duration of the forwarding requests.",
                FORWARD_SECONDS,
                &["status_code"],
            )?,
            tenses: each(
                &counters(
                    "telemeter_overwritten_timestamps_total",
                    "Number of timestamps that were in the past, present or future.",
                    &["tense"],
                )?,
                ["past", "present", "future"],
            ),
            stores: StoreMetrics::new(&registry)?,
            connections: ConnectionMetrics::new(&registry)?,
            tls: TlsMetrics::new(&registry)?,
            identity: IdentityMetrics::new(&registry)?,
            keys: KeyMetrics::new(&registry)?,
            limiter: LimiterMetrics::new(&registry)?,
            policy: PolicyMetrics::new(&registry)?,
            upstream: UpstreamMetrics::new(&registry)?,
            registry: registry.clone(),
        };
        register_process(&registry)?;
        Ok(Box::leak(Box::new(metrics)))
    }

    /// All metrics in the format that `headers` accept, with its content type.
    ///
    /// # Errors
    /// If a metric does not encode.
    pub fn expose(&self, headers: &HeaderMap) -> Result<(&'static str, Vec<u8>), prometheus::Error> {
        expose(&self.registry, headers)
    }

    /// Handles for one route's requests.
    pub fn handler(&'static self, name: &'static str) -> Handler {
        let route = Route {
            name,
            metrics: self,
            posts: (100..600).map(|_| OnceLock::new()).collect(),
            rejections: OnceLock::new(),
            dropped: self.dropped.with_label_values(&[name]),
        };
        Handler(Box::leak(Box::new(route)))
    }

    /// Handles for the requests of one of our clients.
    pub fn client(&'static self, name: &'static str, verbose: bool) -> ClientRequests {
        let duration = self.client_duration.with_label_values(&[name]);
        ClientRequests { name, requests: &self.client_requests, duration: Box::leak(Box::new(duration)), verbose }
    }

    /// Tells the size of `cache` at every scrape.
    pub fn cache(&self, cache: &'static str, handle: CacheHandle) {
        self.authorization.watch(cache, handle);
    }

    /// Is told whether the authorizer is asked.
    pub fn authorizer_circuit(&'static self) -> impl Observe<CircuitState> + Send + Sync + 'static {
        &self.authorization
    }
}

/// What is registered in the format that `headers` accept, text 0.0.4 unless they ask for delimited protobuf, with its content type.
///
/// # Errors
/// If a metric does not encode.
pub(crate) fn expose(registry: &Registry, headers: &HeaderMap) -> Result<(&'static str, Vec<u8>), prometheus::Error> {
    let families = registry.gather();
    if accepts_protobuf(headers) {
        let mut body = Vec::with_capacity(32 * 1024);
        ProtobufEncoder::new().encode(&families, &mut body)?;
        return Ok((prometheus::PROTOBUF_FORMAT, body));
    }
    let mut text = String::with_capacity(32 * 1024);
    TextEncoder::new().encode_utf8(&families, &mut text)?;
    // The encoder prints no exponents. Go's does from 1e+06 on, and `le` is compared as text.
    for (ours, gos) in [("le=\"1048576\"", "le=\"1.048576e+06\""), ("le=\"2097152\"", "le=\"2.097152e+06\"")] {
        text = text.replace(ours, gos);
    }
    Ok((TEXT_FORMAT, text.into_bytes()))
}

/// What every process of ours tells: its version, and what it takes of the machine.
pub(crate) fn register_process(registry: &Registry) -> Result<(), prometheus::Error> {
    let build = IntGaugeVec::new(Opts::new("infogw_build_info", "The version that runs."), &["version"])?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    register(registry, build)?;
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
}

pub(crate) fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// One handle for each value of a counter's one label.
pub(crate) fn each<const N: usize>(counter: &IntCounterVec, values: [&str; N]) -> [IntCounter; N] {
    values.map(|value| counter.with_label_values(&[value]))
}

/// Whether delimited protobuf is asked for no less than anything else (RFC 9110, section 12.5.1).
pub(crate) fn accepts_protobuf(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut protobuf, mut best) = (0.0, 0.0);
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let mut delimited = parts.next() == Some("application/vnd.google.protobuf");
        let mut weight = 1.0;
        for part in parts {
            match part.split_once('=') {
                Some(("encoding", encoding)) => delimited &= encoding == "delimited",
                Some(("proto", proto)) => delimited &= proto == "io.prometheus.client.MetricFamily",
                Some(("q", q)) => weight = q.parse().unwrap_or(0.0),
                _ => {}
            }
        }
        best = f64::max(best, weight);
        if delimited {
            protobuf = f64::max(protobuf, weight);
        }
    }
    protobuf > 0.0 && protobuf >= best
}

/// One route's handles. They are looked up once: by status for the method that all real requests have.
#[derive(Debug, Clone, Copy)]
pub struct Handler(&'static Route);

#[derive(Debug)]
struct Route {
    name: &'static str,
    metrics: &'static Metrics,
    posts: Box<[OnceLock<Exchanges>]>,
    /// What the route's stack can refuse with.
    rejections: OnceLock<Box<[Refusals]>>,
    dropped: IntCounter,
}

/// Those by one layer for one reason.
#[derive(Debug)]
struct Refusals {
    layer: &'static str,
    reason: Reason,
    count: IntCounter,
    told: Seldom,
}

#[derive(Debug)]
struct Exchanges {
    requests: IntCounter,
    duration: Histogram,
    size: Histogram,
}

impl Route {
    fn resolve(&self, status: StatusCode, method: &str) -> Exchanges {
        let labels = [status.as_str(), self.name, method];
        Exchanges {
            requests: self.metrics.requests.with_label_values(&labels),
            duration: self.metrics.duration.with_label_values(&labels),
            size: self.metrics.size.with_label_values(&labels),
        }
    }

    fn rejections(&self, layer: &str, reason: Reason) -> IntCounter {
        self.metrics.rejections.with_label_values(&[self.name, &describe::label(layer), reason.as_str()])
    }

    /// Counts it, and says where the like of it are.
    fn count_rejection(&self, layer: &'static str, reason: Reason) -> Option<&Refusals> {
        let described = self.rejections.get().map(|rejections| &**rejections).unwrap_or_default();
        let refusals = described.iter().find(|refusals| (refusals.layer, refusals.reason) == (layer, reason));
        match refusals {
            Some(refusals) => refusals.count.inc(),
            // A fault of ours, and counted all the same.
            None => {
                tracing::error!(route = self.name, layer, %reason, "a refusal that no layer has foretold");
                self.rejections(layer, reason).inc();
            }
        }
        refusals
    }

    fn is_receive(&self) -> bool {
        self.name == "receive"
    }
}

impl Exchanges {
    fn add(&self, elapsed: Duration, bytes: u64) {
        self.requests.inc();
        self.duration.observe(elapsed.as_secs_f64());
        self.size.observe(bytes as f64);
    }
}

impl Handler {
    /// Counts, from 0 on, what the layers of the route's stack can refuse with.
    pub fn describe(self, rows: &[Row]) {
        let pairs: BTreeSet<_> =
            rows.iter().flat_map(|row| row.reasons.iter().map(|reason| (row.layer, *reason))).collect();
        let counters = pairs.into_iter().map(|(layer, reason)| {
            let count = self.0.rejections(layer, reason);
            Refusals { layer, reason, count, told: Seldom::default() }
        });
        // Once for each stack; a second would be the same.
        let _ = self.0.rejections.set(counters.collect());
    }
}

impl Observe<Exchange<'_>> for Handler {
    fn observe(&self, exchange: &Exchange<'_>) {
        let Exchange { method, uri, status, elapsed, request_bytes } = exchange;
        let slot = self.0.posts.get(usize::from(status.as_u16()) - 100).filter(|_| *method == Method::POST);
        match slot {
            Some(slot) => slot.get_or_init(|| self.0.resolve(*status, "post")).add(*elapsed, *request_bytes),
            None => self.0.resolve(*status, known_method(method)).add(*elapsed, *request_bytes),
        }
        // A method can be as long as its sender likes.
        let method = if known_method(method) == "unknown" { "unknown" } else { method.as_str() };
        tracing::info!(method, path = uri.path(), status = status.as_u16(), duration = ?elapsed, "request log");
    }
}

/// Lower case, and from a closed list: a method is a label that clients choose.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "DELETE" => "delete",
        "PATCH" => "patch",
        "OPTIONS" => "options",
        _ => "unknown",
    }
}

impl Observe<Rejection> for Handler {
    fn observe(&self, rejection: &Rejection) {
        let (reason, layer) = (rejection.reason(), rejection.layer().unwrap_or("Unnamed"));
        let refusals = self.0.count_rejection(layer, reason);
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE && reason == Reason::TooLarge && self.0.is_receive() {
            self.0.metrics.size_limited.inc();
        }
        let status = rejection.status().as_u16();
        let (route, detail) = (self.0.name, rejection.detail());
        if !rejection.status().is_server_error() {
            tracing::debug!(route, layer, %reason, status, detail, "request refused");
        } else if let Some(held_back) = refusals.map_or(Some(0), |refusals| refusals.told.pass()) {
            // What brings many about, such as overload, is not made worse by telling of each.
            tracing::warn!(route, layer, %reason, status, detail, held_back, "request failed");
        } else {
            tracing::debug!(route, layer, %reason, status, detail, "request failed");
        }
    }
}

impl Observe<Enforced<'_>> for Handler {
    fn observe(&self, enforced: &Enforced<'_>) {
        self.0.dropped.inc_by(enforced.dropped as u64);
        if !self.0.is_receive() {
            return;
        }
        self.0.metrics.processed.inc_by(enforced.kept as u64);
        self.0.metrics.foreign_series.inc_by(enforced.foreign as u64);
        if enforced.missing > 0 {
            self.0.metrics.missing_labels.inc();
        }
        if enforced.foreign > 0 {
            tracing::warn!(cluster = enforced.cluster.as_str(), series = enforced.foreign, "series of another cluster");
        }
    }
}

impl Observe<Translated> for Handler {
    fn observe(&self, translated: &Translated) {
        let Translated { past, present, future } = *translated;
        for (counter, count) in self.0.metrics.tenses.iter().zip([past, present, future]) {
            counter.inc_by(count);
        }
    }
}

impl Observe<CacheEvent> for Handler {
    fn observe(&self, event: &CacheEvent) {
        let authorization = &self.0.metrics.authorization;
        if self.0.is_receive() { authorization.authorizer_cache(*event) } else { authorization.token_cache(*event) }
    }
}

impl Observe<Forwarded> for Handler {
    fn observe(&self, forwarded: &Forwarded) {
        let metrics = self.0.metrics;
        let done = forwarded.status.is_some_and(|status| status.is_success());
        let [success, error] = if self.0.is_receive() { &metrics.forwarded } else { &metrics.v1_forwarded };
        if done {
            success.inc();
        } else {
            error.inc();
        }
        if self.0.is_receive() {
            return;
        }
        if let Some(status) = forwarded.status {
            metrics.v1_duration.with_label_values(&[status.as_str()]).observe(forwarded.elapsed.as_secs_f64());
        }
        if done {
            metrics.v1_samples.inc_by(forwarded.samples);
        }
    }
}

impl Observe<Retry> for Handler {
    fn observe(&self, retry: &Retry) {
        let [made, over_budget] = &self.0.metrics.retries;
        match retry {
            Retry::Made => made.inc(),
            Retry::OverBudget => over_budget.inc(),
        }
    }
}

/// Counts what one of our clients was answered, and logs it if asked to.
#[derive(Debug, Clone, Copy)]
pub struct ClientRequests {
    name: &'static str,
    requests: &'static IntCounterVec,
    duration: &'static Histogram,
    verbose: bool,
}

impl Observe<Exchange<'_>> for ClientRequests {
    fn observe(&self, exchange: &Exchange<'_>) {
        let code = exchange.status.as_str();
        self.requests.with_label_values(&[self.name, code, known_method(exchange.method)]).inc();
        self.duration.observe(exchange.elapsed.as_secs_f64());
        if self.verbose {
            let Exchange { method, uri, status, elapsed, .. } = exchange;
            let (host, path) = (uri.host().unwrap_or_default(), uri.path());
            tracing::debug!(client = self.name, %method, host, path, status = status.as_u16(), duration = ?elapsed, "outgoing request");
        }
    }
}
