//! What the client counts: telemeter-client's names, and a few of ours.

use std::{fmt, sync::OnceLock, time::Duration};

use http::HeaderMap;
use infogw_layers::{
    observe::{Exchange, Observe},
    rejection::Rejection,
    retry::{Next, PushFailed},
};
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::seconds_since_epoch;
use crate::admin::metrics::{OidcMetrics, each, expose, register, register_process, tls::TlsMetrics};

/// Every metric, registered.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    /// Attempts, a push that is tried again among them.
    pub(super) attempts: IntCounter,
    /// Those that failed.
    pub(super) failed: IntCounter,
    samples: IntGauge,
    filtered: IntGauge,
    /// Refused, too old.
    given_up: [IntCounter; 2],
    last_success: Gauge,
    requests: IntCounterVec,
    retrieved: GaugeVec,
    sent: GaugeVec,
    pub(super) tls: TlsMetrics,
    oidc: OnceLock<OidcMetrics>,
    pub(super) failures: Failures,
}

/// Who is told why an attempt fails: the log, unless there is somebody else.
#[derive(Default)]
pub(super) struct Failures(Option<Box<dyn Observe<Rejection> + Send + Sync>>);

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failures")
    }
}

impl Failures {
    pub(super) fn to(observer: impl Observe<Rejection> + Send + Sync + 'static) -> Self {
        Failures(Some(Box::new(observer)))
    }

    /// Tells of one; `log` writes to the log.
    pub(super) fn tell(&self, rejection: &Rejection, log: impl FnOnce()) {
        match &self.0 {
            Some(observer) => observer.observe(rejection),
            None => log(),
        }
    }
}

impl Metrics {
    pub(super) fn new(failures: Failures) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let by_status = ["client", "status_code"];
        let given_up = Opts::new(
            "infogw_federate_payloads_given_up_total",
            "Payloads that were never pushed: refused for what they are, or too old by now.",
        );
        let requests = Opts::new(
            "metricsclient_http_requests_total",
            "Total count of HTTP requests by client and HTTP status code.",
        );
        let retrieved = Opts::new("metricsclient_request_retrieve", "Tracks the number of metrics retrievals");
        let sent = Opts::new("metricsclient_request_send", "Tracks the number of metrics sends");
        let last_success = register(
            &registry,
            Gauge::new(
                "infogw_federate_last_success_timestamp_seconds",
                "When something was last pushed, or there was nothing to push; 0 before.",
            )?,
        )?;
        let metrics = Metrics {
            attempts: counter("federate_requests_total", "Number of times the client forwarded metrics")?,
            failed: counter("federate_requests_failed_total", "Number of times the client failed to forward metrics")?,
            samples: gauge("federate_samples", "Tracks the number of samples per federation")?,
            filtered: gauge("federate_filtered_samples", "Tracks the number of samples filtered per federation")?,
            given_up: each(&register(&registry, IntCounterVec::new(given_up, &["reason"])?)?, ["refused", "too_old"]),
            last_success,
            requests: register(&registry, IntCounterVec::new(requests, &by_status)?)?,
            retrieved: register(&registry, GaugeVec::new(retrieved, &by_status)?)?,
            sent: register(&registry, GaugeVec::new(sent, &by_status)?)?,
            tls: TlsMetrics::new(&registry)?,
            oidc: OnceLock::new(),
            failures,
            registry: registry.clone(),
        };
        register_process(&registry)?;
        Ok(metrics)
    }

    /// What a scrape had, and what is left of that.
    pub(super) fn selected(&self, received: usize, kept: usize) {
        self.samples.set(received as i64);
        self.filtered.set(received.saturating_sub(kept) as i64);
    }

    pub(super) fn succeeded(&self) {
        self.last_success.set(seconds_since_epoch() as f64);
    }

    /// Handles for a token of an issuer's: registered once, however often settings are replaced.
    pub(super) fn oidc(&self) -> Result<OidcMetrics, prometheus::Error> {
        if let Some(oidc) = self.oidc.get() {
            return Ok(oidc.clone());
        }
        let oidc = OidcMetrics::new(&self.registry)?;
        Ok(self.oidc.get_or_init(|| oidc).clone())
    }

    pub(super) fn expose(&self, headers: &HeaderMap) -> Result<(&'static str, Vec<u8>), prometheus::Error> {
        expose(&self.registry, headers)
    }

    /// Handles for the requests to one neighbour.
    pub(super) fn client(&self, neighbour: Neighbour, verbose: bool) -> Requests {
        let by_status = match neighbour {
            Neighbour::From => Some(self.retrieved.clone()),
            Neighbour::To => Some(self.sent.clone()),
            Neighbour::Authorize | Neighbour::Issuer => None,
        };
        Requests { neighbour, requests: self.requests.clone(), by_status, verbose }
    }
}

/// Whom the client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    From,
    To,
    Authorize,
    Issuer,
}

impl Neighbour {
    pub(super) fn name(self) -> &'static str {
        match self {
            Neighbour::From => "federate_from",
            Neighbour::To => "federate_to",
            Neighbour::Authorize => "authorize",
            Neighbour::Issuer => "oauth",
        }
    }
}

/// Counts what one neighbour answered, and logs it if asked to.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    neighbour: Neighbour,
    requests: IntCounterVec,
    /// The older metric.
    by_status: Option<GaugeVec>,
    verbose: bool,
}

impl Observe<Exchange<'_>> for Requests {
    fn observe(&self, exchange: &Exchange<'_>) {
        let Exchange { method, uri, status, elapsed, .. } = exchange;
        let client = self.neighbour.name();
        let labels = [client, status.as_str()];
        self.requests.with_label_values(&labels).inc();
        if let Some(older) = &self.by_status {
            older.with_label_values(&labels).inc();
        }
        if self.verbose {
            let (host, path) = (uri.host().unwrap_or_default(), uri.path());
            tracing::debug!(client, %method, host, path, status = status.as_u16(), duration = ?elapsed, "outgoing request");
        }
    }
}

/// Is told of attempts that fail.
impl Observe<PushFailed<'_>> for Metrics {
    fn observe(&self, failed: &PushFailed<'_>) {
        let [refused, too_old] = &self.given_up;
        let PushFailed { rejection, attempts, next } = *failed;
        match next {
            Next::Retry(pause) => {
                self.failed.inc();
                self.attempts.inc();
                let retry_in = Duration::from_millis(pause.as_millis() as u64);
                self.failures.tell(rejection, || {
                    tracing::warn!(err = %rejection, attempts, ?retry_in, "unable to forward results: trying again");
                });
            }
            // The round fails, which is counted and told there.
            Next::Refused => refused.inc(),
            Next::Never => {}
            Next::TooOld => {
                too_old.inc();
                tracing::error!(attempts, "the payload was given up: no server takes what is older than a day");
            }
        }
    }
}
