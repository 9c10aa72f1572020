//! Flags to a [`Config`] in which nothing can be invalid any more.

mod delegations;
pub mod duration;
mod flags;
mod rules;

use std::{
    collections::BTreeMap, fmt::Display, net::SocketAddr, num::NonZeroUsize, path::PathBuf, str::FromStr,
    time::Duration,
};

use clap::Parser;
use http::{HeaderValue, Uri};
use infogw_layers::{
    authorize::jwt::{SigningKey, TokenSigner, TokenVerifier},
    decode::DecodeLimits,
    enforce::{ClusterLabelCheck, selector::Selector},
};

pub use delegations::Delegations;
pub use flags::{Command, CommandLine, Flags};
use rules::Relabel;
pub use rules::{LiveRules, RuleSources, Rules};

/// A wrong flag, or a wrong combination: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Fails with a formatted line.
macro_rules! wrong {
    ($($line:tt)*) => { Err(ConfigError(format!($($line)*))) };
}

/// What the gateway shall be like.
#[derive(Debug)]
pub struct Config {
    /// Public address.
    pub listen: Vec<SocketAddr>,
    /// Address for health and metrics.
    pub listen_internal: Vec<SocketAddr>,
    /// Who says which token is which cluster's.
    pub authorizer: Authorizer,
    /// Signs the tokens that `/authorize` issues.
    pub signer: TokenSigner,
    /// Verifies them at `/upload`.
    pub verifier: TokenVerifier,
    /// The key was given, not generated.
    pub key_is_shared: bool,
    /// Life of an issued token.
    pub token_lifetime: Duration,
    /// Put into issued tokens besides the cluster's id.
    pub required_labels: BTreeMap<String, String>,
    /// The label that carries the cluster's id.
    pub partition_label: String,
    /// Names the tenant in the composite token.
    pub tenant_key: Option<String>,
    /// Where remote-write requests go.
    pub forward_url: Uri,
    /// `THANOS-TENANT` of uploads.
    pub tenant: HeaderValue,
    /// `THANOS-TENANT` of received requests.
    pub receive_tenant: Option<HeaderValue>,
    /// One upload per cluster in this time.
    pub ratelimit: Option<Duration>,
    /// What an upload may hold.
    pub upload_limits: DecodeLimits,
    /// What a remote-write request may hold.
    pub receive_limits: DecodeLimits,
    /// Most requests at work at once on each route.
    pub in_flight: NonZeroUsize,
    /// Where the label rules come from; SIGHUP reads them again.
    pub rule_sources: RuleSources,
    /// The label rules in force.
    pub rules: LiveRules,
    /// The least severe level that is logged.
    pub log_level: tracing::Level,
    /// Log outgoing requests.
    pub verbose: bool,
}

/// Who says which token is which cluster's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorizer {
    /// UHC's cluster registrations.
    Registrations(Uri),
    /// Nobody: `--insecure-accept-any-token`.
    AcceptAny,
}

impl CommandLine {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// Clap's: a request for help or the version, or a wrong flag in its first line.
    pub fn read() -> Result<Self, clap::Error> {
        CommandLine::try_parse()
    }
}

impl Config {
    /// What `flags` mean.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn new(flags: Flags) -> Result<Self, ConfigError> {
        let partition_label =
            label_name("--partition-label", given(flags.partition_label).unwrap_or_else(|| "_id".to_owned()))?;
        let authorizer = match (given(flags.authorize), flags.insecure_accept_any_token) {
            (Some(url), false) => Authorizer::Registrations(url_of("--authorize", &url)?),
            (None, true) => Authorizer::AcceptAny,
            (Some(_), true) => {
                return wrong!("--authorize and --insecure-accept-any-token exclude each other; give one of them");
            }
            (None, false) => {
                return wrong!("--authorize is required: the URL of the cluster registrations");
            }
        };
        let Some(forward_url) = given(flags.forward_url) else {
            return wrong!("--forward-url is required: the URL of the receive endpoint");
        };
        let key_file = given(flags.shared_key);
        let key = match &key_file {
            None => SigningKey::generate(),
            Some(path) => {
                let key = std::fs::read(path).map_err(|error| ConfigError(format!("--shared-key: {path}: {error}")))?;
                SigningKey::from_pem_or_der(&key)
            }
        };
        let key = key.map_err(|error| ConfigError(format!("--shared-key: {error}")))?;
        let token_lifetime = number("--token-expire-seconds", flags.token_expire_seconds, 86_400)? as u64;
        if token_lifetime == 0 || token_lifetime > 10 * 365 * 86_400 {
            return wrong!("--token-expire-seconds: a token lives 1 second to 10 years");
        }
        let required_labels: BTreeMap<_, _> = pairs("--required-label", &flags.required_label)?.into_iter().collect();
        if required_labels.contains_key(&partition_label) {
            return wrong!(
                "--required-label: `{partition_label}` is the --partition-label, which each token carries anyway"
            );
        }

        let bytes = |flag, value, default| number(flag, value, default).map(unlimited_if_zero);
        let series = bytes("--limit-series", flags.limit_series, 20_000)?;
        let labels = bytes("--limit-labels", flags.limit_labels, 128)?;
        let mut unrepeatable: Vec<Box<str>> = vec![partition_label.as_str().into()];
        unrepeatable.extend(required_labels.keys().map(|name| Box::from(name.as_str())));
        let upload_limits = DecodeLimits {
            decoded: bytes("--limit-bytes", flags.limit_bytes, 512_000)?,
            series,
            labels,
            label_name: bytes("--limit-label-name-bytes", flags.limit_label_name_bytes, 255)?,
            label_value: bytes("--limit-label-value-bytes", flags.limit_label_value_bytes, 255)?,
            unrepeatable,
            ..DecodeLimits::default()
        };
        let receive_limits = DecodeLimits {
            body: bytes("--limit-receive-bytes", flags.limit_receive_bytes, 131_072)?,
            decoded: bytes("--limit-receive-decoded-bytes", flags.limit_receive_decoded_bytes, 16 << 20)?,
            series,
            labels,
            label_name: bytes("--limit-receive-label-name-bytes", flags.limit_receive_label_name_bytes, 0)?,
            label_value: bytes("--limit-receive-label-value-bytes", flags.limit_receive_label_value_bytes, 0)?,
            unrepeatable: vec![partition_label.as_str().into()],
        };
        let in_flight = number("--limit-in-flight", flags.limit_in_flight, 1024)?;
        let Some(in_flight) = NonZeroUsize::new(in_flight).filter(|n| n.get() <= 1 << 20) else {
            return wrong!("--limit-in-flight: at least 1 and at most 1048576 requests");
        };
        let ratelimit = given(flags.ratelimit).unwrap_or_else(|| "4m30s".to_owned());
        let ratelimit = duration::parse(&ratelimit).map_err(|error| ConfigError(format!("--ratelimit: {error}")))?;

        let rule_sources = RuleSources {
            whitelist: selectors("--whitelist", &flags.whitelist)?,
            whitelist_files: flags
                .whitelist_file
                .into_iter()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
            upload: Relabel { set: pairs("--label", &flags.label)?, elide: names("--elide-label", flags.elide_label)? },
            receive: Relabel {
                set: pairs("--receive-label", &flags.receive_label)?,
                elide: names("--receive-elide-label", flags.receive_elide_label)?,
            },
            check: match given(flags.cluster_label_check).as_deref() {
                None | Some("enforce") => ClusterLabelCheck::Enforce,
                Some("count") => ClusterLabelCheck::Count,
                Some("off") => ClusterLabelCheck::Off,
                Some(other) => return wrong!("--cluster-label-check: `{other}` is none of enforce, count, off"),
            },
            delegations_file: given(flags.cluster_delegations_file).map(PathBuf::from),
            partition_label: partition_label.clone(),
        };
        let tenant = given(flags.tenant_id).unwrap_or_else(|| "FB870BF3-9F3A-44FF-9BF7-D7A047A52F43".to_owned());
        Ok(Config {
            listen: addresses("--listen", given(flags.listen), "0.0.0.0:9003")?,
            listen_internal: addresses("--listen-internal", given(flags.listen_internal), "localhost:9004")?,
            authorizer,
            verifier: TokenVerifier::new(vec![key.verifying_key()]),
            signer: TokenSigner::new(key),
            key_is_shared: key_file.is_some(),
            token_lifetime: Duration::from_secs(token_lifetime),
            required_labels,
            partition_label,
            tenant_key: given(flags.tenant_key),
            forward_url: url_of("--forward-url", &forward_url)?,
            tenant: header_value("--tenant-id", &tenant)?,
            receive_tenant: given(flags.receive_tenant_id)
                .map(|id| header_value("--receive-tenant-id", &id))
                .transpose()?,
            ratelimit: Some(ratelimit).filter(|ratelimit| !ratelimit.is_zero()),
            upload_limits,
            receive_limits,
            in_flight,
            rules: LiveRules::new(rule_sources.read()?),
            rule_sources,
            log_level: match given(flags.log_level).as_deref() {
                Some("debug") => tracing::Level::DEBUG,
                None | Some("info") => tracing::Level::INFO,
                Some("warn") => tracing::Level::WARN,
                Some("error") => tracing::Level::ERROR,
                Some(other) => return wrong!("--log-level: `{other}` is none of debug, info, warn, error"),
            },
            verbose: flags.verbose,
        })
    }
}

impl Config {
    /// Whether a URL is https, so that there must be roots to trust.
    pub fn needs_tls(&self) -> bool {
        let https = |url: &Uri| url.scheme_str() == Some("https");
        https(&self.forward_url) || matches!(&self.authorizer, Authorizer::Registrations(url) if https(url))
    }
}

/// Empty means unset.
fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// 0 is unlimited.
fn unlimited_if_zero(limit: usize) -> usize {
    if limit == 0 { usize::MAX } else { limit }
}

fn number(flag: &str, value: Option<String>, default: usize) -> Result<usize, ConfigError> {
    given(value).map_or(Ok(default), |value| {
        value.parse().map_err(|_| ConfigError(format!("{flag}: `{value}` is not a whole number from 0 up")))
    })
}

fn url_of(flag: &str, value: &str) -> Result<Uri, ConfigError> {
    let url: Uri = value.parse().map_err(|error| ConfigError(format!("{flag}: `{value}` is not a URL: {error}")))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url),
        _ => wrong!("{flag}: `{value}` is not an http:// or https:// URL"),
    }
}

/// Every address that `host:port` stands for; `:port` is all interfaces, as in Go.
fn addresses(flag: &str, value: Option<String>, default: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    use std::net::ToSocketAddrs;
    let value = value.unwrap_or_else(|| default.to_owned());
    let spelt = if value.starts_with(':') { format!("[::]{value}") } else { value.clone() };
    let found = spelt.to_socket_addrs().map(Vec::from_iter);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => wrong!("{flag}: `{value}` stands for no address"),
        Err(error) => wrong!("{flag}: `{value}` is not an address like 0.0.0.0:9003: {error}"),
    }
}

fn header_value(flag: &str, value: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::from_str(value).map_err(|_| ConfigError(format!("{flag}: `{value}` cannot stand in a header")))
}

fn selectors(flag: &str, rules: &[String]) -> Result<Vec<Selector>, ConfigError> {
    let rules = rules.iter().map(|rule| rule.trim()).filter(|rule| !rule.is_empty());
    rules.map(|rule| parsed(flag, rule)).collect()
}

fn parsed<T: FromStr<Err: Display>>(flag: &str, value: &str) -> Result<T, ConfigError> {
    value.parse().map_err(|error| ConfigError(format!("{flag}: `{value}`: {error}")))
}

fn names(flag: &str, values: Vec<String>) -> Result<Vec<String>, ConfigError> {
    values.into_iter().filter(|value| !value.is_empty()).map(|value| label_name(flag, value)).collect()
}

/// Label names as Prometheus' legacy scheme has them: what every receiver takes.
fn label_name(flag: &str, name: String) -> Result<String, ConfigError> {
    let mut chars = name.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if begins && chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(name)
    } else {
        wrong!("{flag}: `{name}` is not a label name")
    }
}

/// `name=value`, comma-separated.
fn pairs(flag: &str, values: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
    let mut pairs = Vec::new();
    for pair in values.iter().flat_map(|value| value.split(',')).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return wrong!("{flag}: `{pair}` is not name=value");
        };
        pairs.push((label_name(flag, name.to_owned())?, value.to_owned()));
    }
    Ok(pairs)
}
