//! What the flags say, to be shown: each with the value that it has, be it given or not; no secret among them.

use infogw_layers::client_credentials::ClientSecret;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    AuthorizationFlags, ClientInfoFlags, ConnectionFlags, Flags, OidcFlags, PolicyFlags, RateFlags, StoreFlags,
    TlsFlags, TracingFlags,
    policy::values::{Rate, RequestRate, SampleRate},
};

/// What stands in place of a secret.
pub const HIDDEN: &str = "<hidden>";

/// Each flag by its long name, in the order of `--help` but for those of one area, which stand together. Written out, it is a map.
#[derive(Debug, Clone, PartialEq)]
pub struct ShownFlags(Vec<(String, Value)>);

impl Serialize for ShownFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Takes every field of a struct of flags, so that none can be left out, and shows it under its flag's name.
macro_rules! show {
    ($to:ident, $flags:expr, $type:ident { $($flag:ident: $show:expr),* $(,)? } $($nested:ident)*) => {
        let $type { $($flag,)* $($nested,)* } = $flags;
        $($to.push((stringify!($flag).replace('_', "-"), $show($flag)));)*
    };
}

impl ShownFlags {
    /// What `flags` say, which are known to be right.
    pub fn new(flags: &Flags) -> Self {
        let mut shown = Vec::new();
        show!(shown, flags, Flags {
            listen: text("0.0.0.0:9003"),
            listen_internal: text("localhost:9004"),
            internal_token_file: unset,
            authorize: url,
            insecure_accept_any_token: switch,
            shared_key: list,
            token_expire_seconds: number(86_400),
            partition_label: text("_id"),
            tenant_key: unset,
            forward_url: url,
            limit_in_flight: number(1024),
            log_level: text("info"),
            verbose: switch,
        } tls client_info authorization oidc policy connections stores tracing);
        show!(
            shown,
            tls,
            TlsFlags {
                tls_crt: unset,
                tls_key: unset,
                tls_ca_crt: unset,
                internal_tls_crt: unset,
                internal_tls_key: unset,
                forward_tls_ca_crt: unset,
                forward_tls_crt: unset,
                forward_tls_key: unset,
                authorize_tls_ca_crt: unset,
                authorize_tls_crt: unset,
                authorize_tls_key: unset,
            }
        );
        let label = partition_label.as_deref().filter(|label| !label.is_empty()).unwrap_or("_id");
        show!(
            shown,
            client_info,
            ClientInfoFlags { client_info_data_file: unset, client_info_subject_label: text(label) }
        );
        show!(
            shown,
            authorization,
            AuthorizationFlags {
                authorize_cache_ttl: text("1h"),
                authorize_cache_refusal_ttl: text("30s"),
                authorize_cache_grace: text("24h"),
                authorize_cache_bytes: number(419_430_400),
            }
        );
        show!(
            shown,
            oidc,
            OidcFlags {
                oidc_issuer: url,
                client_id: unset,
                client_secret: secret,
                client_secret_file: unset,
                oidc_audience: unset,
                oidc_tls_ca_crt: unset,
            }
        );
        show!(shown, policy, PolicyFlags {
            policy: unset,
            whitelist: list,
            whitelist_file: list,
            label: list,
            elide_label: list,
            receive_label: list,
            receive_elide_label: list,
            required_label: list,
            cluster_label_check: text("enforce"),
            tenant_id: text("FB870BF3-9F3A-44FF-9BF7-D7A047A52F43"),
            receive_tenant_id: unset,
            limit_bytes: number(512_000),
            limit_receive_bytes: number(131_072),
            limit_receive_decoded_bytes: number(16_777_216),
            limit_series: number(20_000),
            limit_labels: number(128),
            limit_label_name_bytes: number(255),
            limit_label_value_bytes: number(255),
            limit_receive_label_name_bytes: number(0),
            limit_receive_label_value_bytes: number(0),
        } rates);
        show!(
            shown,
            connections,
            ConnectionFlags {
                limit_connections: number(16_384),
                limit_connections_per_peer: number(8192),
                limit_buffered_bytes: number(536_870_912),
                limit_header_bytes: number(65_536),
                limit_headers: number(100),
                limit_streams: number(256),
                limit_stream_resets: number(20),
                header_timeout: text("30s"),
                body_timeout: text("30s"),
                idle_timeout: text("6m"),
                shutdown_grace: text("22s"),
            }
        );
        show!(
            shown,
            rates,
            RateFlags {
                ratelimit: text("4m30s"),
                limit_receive_requests_per_second: number(0),
                limit_receive_requests_burst: burst(limit_receive_requests_per_second, RequestRate::new),
                limit_receive_samples_per_second: number(0),
                limit_receive_samples_burst: burst(limit_receive_samples_per_second, SampleRate::new),
            }
        );
        show!(
            shown,
            stores,
            StoreFlags {
                memcached: list,
                memcached_expire: number(86_400),
                memcached_interval: number(10),
                redis: urls,
                redis_mode: text("single"),
                redis_timeout: text("50ms"),
                redis_sentinel_master: unset,
                redis_password: secret_text,
                redis_password_file: unset,
                redis_sentinel_password: secret_text,
                redis_sentinel_password_file: unset,
                redis_tls_ca_crt: unset,
                redis_tls_crt: unset,
                redis_tls_key: unset,
            }
        );
        let TracingFlags { service_name, endpoint, endpoint_type, sampling_fraction } = tracing;
        for (name, value) in [
            ("service-name", text("telemeter-server")(service_name)),
            ("endpoint", url(endpoint)),
            ("endpoint-type", text("agent")(endpoint_type)),
            ("sampling-fraction", said(sampling_fraction).and_then(|part| part.parse().ok()).unwrap_or(0.1).into()),
        ] {
            shown.push((format!("internal.tracing.{name}"), value));
        }
        ShownFlags(shown)
    }
}

fn said(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

/// Without a default.
fn unset(value: &Option<String>) -> Value {
    said(value).into()
}

/// A URL with a user or password is not taken, so that none is shown; and keys may stand in a query.
fn url(value: &Option<String>) -> Value {
    let place = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
    said(value).map(|url| if place(url).contains('@') { HIDDEN.to_owned() } else { hidden_in_query(url) }).into()
}

fn text(default: &str) -> impl Fn(&Option<String>) -> Value {
    move |value| said(value).unwrap_or(default).into()
}

fn number(default: u64) -> impl Fn(&Option<String>) -> Value {
    move |value| match said(value) {
        None => default.into(),
        // `.5` is a number here, and in JSON it is not.
        Some(text) => text
            .parse::<u64>()
            .map(Value::from)
            .or_else(|_| text.parse::<f64>().map(Value::from))
            .unwrap_or_else(|_| text.into()),
    }
}

/// A burst that nobody gives comes of the rate.
fn burst<const LEAST: u32>(
    per_second: &Option<String>,
    rate: impl Fn(f64, Option<std::num::NonZeroU32>) -> Result<Rate<LEAST>, String>,
) -> impl Fn(&Option<String>) -> Value {
    let rate = said(per_second).and_then(|text| rate(text.parse().ok()?, None).ok());
    let burst = rate.and_then(|rate| rate.quota).map(|quota| quota.burst().get());
    move |value| said(value).map_or_else(|| burst.into(), |text| number(0)(&Some(text.to_owned())))
}

fn switch(value: &bool) -> Value {
    (*value).into()
}

fn list(values: &[String]) -> Value {
    values.iter().map(String::as_str).filter(|value| !value.is_empty()).collect()
}

fn secret(value: &Option<ClientSecret>) -> Value {
    match value {
        Some(ClientSecret::Value(secret)) if secret.is_empty() => Value::Null,
        secret => secret.as_ref().map(|_| HIDDEN).into(),
    }
}

fn secret_text(value: &Option<String>) -> Value {
    said(value).map(|_| HIDDEN).into()
}

fn urls(values: &[String]) -> Value {
    values.iter().flat_map(|value| super::stores::urls(value)).map(|url| hidden(&url)).collect()
}

/// The URL of a server of Redis without its password.
fn hidden(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (place, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
    // Whatever stands before the last @ may be of a password that has one, too.
    let place = match place.rsplit_once('@') {
        None => place.to_owned(),
        Some((who, place)) => match who.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{place}"),
            None => format!("{HIDDEN}@{place}"),
        },
    };
    hidden_but(&format!("{scheme}://{place}{query}"), |key, _| matches!(key, "db" | "protocol"))
}

/// The URL without the values in its query.
pub(crate) fn hidden_in_query(url: &str) -> String {
    hidden_but(url, |_, value| value == "{tenant}")
}

/// The same, but for those that may be shown.
fn hidden_but(url: &str, may_be_shown: impl Fn(&str, &str) -> bool) -> String {
    let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
    let shown = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if may_be_shown(key, value) => pair.to_owned(),
        Some((key, _)) => format!("{key}={HIDDEN}"),
        None if may_be_shown("", pair) => pair.to_owned(),
        None => HIDDEN.to_owned(),
    };
    let query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty()).map(shown).collect();
    if query.is_empty() { place.to_owned() } else { format!("{place}?{}", query.join("&")) }
}
