//! Flags of tracing, which gateway and client share.

use std::{fmt, sync::Arc};

use clap::Args;
use http::Uri;
use rustls::RootCertStore;

use super::{ConfigError, given, shown, tls::used, url_of, with_path, wrong};
use crate::tls::{ClientFiles, Live};

/// telemeter's flags of tracing.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Tracing")]
pub struct TracingFlags {
    /// What this service is called in its spans, instead of telemeter-server or telemeter-client.
    #[arg(id = "internal.tracing.service-name", long = "internal.tracing.service-name", value_name = "NAME")]
    pub service_name: Option<String>,
    /// Where spans go, as the type says: HOST:PORT of a Jaeger agent, the URL of a Jaeger collector (its /api/traces), or HOST:PORT or
    /// URL of an OTLP receiver; nothing is traced unless given.
    #[arg(id = "internal.tracing.endpoint", long = "internal.tracing.endpoint", value_name = "ENDPOINT")]
    pub endpoint: Option<String>,
    /// agent (Jaeger over UDP), collector (Jaeger over HTTP) or otel (OTLP over HTTP) [default: agent].
    #[arg(id = "internal.tracing.endpoint-type", long = "internal.tracing.endpoint-type", value_name = "TYPE")]
    pub endpoint_type: Option<String>,
    /// Which part of all traces is sampled, 0 to 1 [default: 0.1].
    #[arg(
        id = "internal.tracing.sampling-fraction",
        long = "internal.tracing.sampling-fraction",
        value_name = "FRACTION"
    )]
    pub sampling_fraction: Option<String>,
}

/// Without the endpoint: its query may hold a key.
impl fmt::Debug for TracingFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TracingFlags").field("type", &self.endpoint_type).finish_non_exhaustive()
    }
}

/// How to trace.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// What the service is called.
    pub service: String,
    /// Where spans go.
    pub endpoint: SpanEndpoint,
    /// Which part of all traces is sampled; from 1 on all of them.
    pub fraction: f64,
    /// For an endpoint that is https.
    pub tls: Live<ClientFiles>,
}

/// Where spans go, and how.
#[derive(Clone, PartialEq, Eq)]
pub enum SpanEndpoint {
    /// Thrift's compact protocol over UDP.
    JaegerAgent {
        /// A name or an address.
        host: String,
        /// 6831, as a rule.
        port: u16,
    },
    /// Thrift's binary protocol over HTTP.
    JaegerCollector(Uri),
    /// OTLP over HTTP, protobuf.
    Otlp(Uri),
}

impl SpanEndpoint {
    /// What is called over HTTP, if anything is.
    pub fn url(&self) -> Option<&Uri> {
        match self {
            SpanEndpoint::JaegerAgent { .. } => None,
            SpanEndpoint::JaegerCollector(url) | SpanEndpoint::Otlp(url) => Some(url),
        }
    }
}

/// Without what may be a key.
impl fmt::Debug for SpanEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpanEndpoint::JaegerAgent { host, port } => write!(f, "JaegerAgent({host}:{port})"),
            SpanEndpoint::JaegerCollector(url) => write!(f, "JaegerCollector({})", url.path()),
            SpanEndpoint::Otlp(url) => write!(f, "Otlp({})", url.path()),
        }
    }
}

const ENDPOINT: &str = "--internal.tracing.endpoint";
/// The trees that OTLP's receivers have by default (OTLP, section "OTLP/HTTP Request").
const OTLP_PATH: &str = "/v1/traces";

impl Tracing {
    /// What `flags` mean for a service that is called `service` unless they say otherwise. `None`: nothing is traced.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn new(flags: TracingFlags, service: &str, roots: &Arc<RootCertStore>) -> Result<Option<Self>, ConfigError> {
        let fraction = match given(flags.sampling_fraction).as_deref().map(str::parse) {
            None => 0.1,
            Some(Ok(fraction)) if !f64::is_nan(fraction) => fraction,
            Some(_) => return wrong!("--internal.tracing.sampling-fraction: this is not a number from 0 to 1"),
        };
        let kind = given(flags.endpoint_type);
        let kind = kind.as_deref().unwrap_or("agent");
        let endpoint = given(flags.endpoint);
        let read = match kind {
            "agent" => agent,
            "collector" => collector,
            "otel" => otlp,
            _ => return wrong!("--internal.tracing.endpoint-type: `{kind}` is none of agent, collector, otel"),
        };
        let Some(endpoint) = endpoint else { return Ok(None) };
        let endpoint = read(&endpoint)?;
        let tls = used(ClientFiles::new("tracing", Arc::clone(roots)), ENDPOINT, endpoint.url())?;
        let service = given(flags.service_name).unwrap_or_else(|| service.to_owned());
        Ok(Some(Tracing { service, endpoint, fraction, tls }))
    }
}

fn agent(value: &str) -> Result<SpanEndpoint, ConfigError> {
    // As Go's `net.SplitHostPort`: an IPv6 address stands in brackets.
    let bare = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => Some(v6.to_owned()),
        None if host.is_empty() => Some("localhost".to_owned()),
        None => (!host.contains([':', '/', '@'])).then(|| host.to_owned()),
    };
    let parts = value.rsplit_once(':').and_then(|(host, port)| Some((bare(host)?, port.parse().ok()?)));
    match parts {
        Some((host, port)) => Ok(SpanEndpoint::JaegerAgent { host, port }),
        None => wrong!(
            "{ENDPOINT}: {} is not HOST:PORT of a Jaeger agent; or say with --internal.tracing.endpoint-type what it is of",
            shown(value)
        ),
    }
}

fn collector(value: &str) -> Result<SpanEndpoint, ConfigError> {
    url_of(ENDPOINT, value).map(SpanEndpoint::JaegerCollector)
}

/// `HOST:PORT` is plaintext, as telemeter has it.
fn otlp(value: &str) -> Result<SpanEndpoint, ConfigError> {
    let url =
        if value.contains("://") { url_of(ENDPOINT, value) } else { url_of(ENDPOINT, &format!("http://{value}")) }?;
    Ok(SpanEndpoint::Otlp(with_path(&url, |path| if path == "/" { OTLP_PATH } else { path }.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, endpoint: &str, fraction: &str) -> Result<Option<Tracing>, ConfigError> {
        let some = |text: &str| Some(text.to_owned());
        let flags = TracingFlags {
            service_name: some(""),
            endpoint: some(endpoint),
            endpoint_type: some(kind),
            sampling_fraction: some(fraction),
        };
        Tracing::new(flags, "telemeter-server", &Arc::new(RootCertStore::empty()))
    }

    #[test]
    fn the_endpoint_is_what_its_type_says() {
        let agent = |host: &str, port| SpanEndpoint::JaegerAgent { host: host.to_owned(), port };
        let otlp = |url: &str| SpanEndpoint::Otlp(url.parse().unwrap());
        for (kind, endpoint, expected) in [
            ("", "localhost:6831", agent("localhost", 6831)),
            ("agent", "[::1]:6831", agent("::1", 6831)),
            ("agent", ":6831", agent("localhost", 6831)),
            (
                "collector",
                "http://jaeger:14268/api/traces",
                SpanEndpoint::JaegerCollector("http://jaeger:14268/api/traces".parse().unwrap()),
            ),
            ("otel", "collector:4318", otlp("http://collector:4318/v1/traces")),
            ("otel", "https://collector", otlp("https://collector/v1/traces")),
            ("otel", "https://collector/a/v1/traces?k=v", otlp("https://collector/a/v1/traces?k=v")),
        ] {
            let tracing = read(kind, endpoint, "").unwrap().unwrap();
            assert_eq!((tracing.endpoint, tracing.fraction, &*tracing.service), (expected, 0.1, "telemeter-server"));
        }
        assert!(read("", "", "").unwrap().is_none());
        // Go's samplers take what is beyond for all and for none.
        assert_eq!(read("otel", "c:1", "2").unwrap().unwrap().fraction, 2.0);
    }

    #[test]
    fn what_is_wrong_is_said_at_once() {
        for (kind, endpoint, fraction, expected) in [
            ("jaeger", "", "", "`jaeger` is none of agent, collector, otel"),
            ("agent", "http://jaeger:14268/api/traces", "", "HOST:PORT of a Jaeger agent"),
            ("agent", "localhost", "", "HOST:PORT"),
            ("agent", "::1:6831", "", "HOST:PORT"),
            ("agent", "localhost:66666", "", "HOST:PORT"),
            ("collector", "localhost:14268", "", "is not an http:// or https:// URL"),
            ("otel", "localhost:port", "", "localhost:port"),
            ("otel", "http://user:hush@localhost", "", "leave out what stands before the @"),
            ("otel", "localhost:1", "all", "from 0 to 1"),
            ("otel", "localhost:1", "NaN", "from 0 to 1"),
        ] {
            let error = read(kind, endpoint, fraction).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.starts_with("--internal.tracing.") && !error.contains("hush"),
                "{error}"
            );
        }
    }
}
