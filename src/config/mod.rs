//! Flags to a [`Config`] in which nothing can be invalid any more.

mod authorization;
mod client_info;
mod delegations;
pub mod duration;
mod flags;
mod oidc;
mod rates;
mod rules;
mod stores;
mod tls;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Parser;
use http::{HeaderValue, Uri};
use infogw_layers::{
    authorize::cache::CacheConfig,
    decode::DecodeLimits,
    enforce::{ClusterLabelCheck, selector::Selector},
};

pub use authorization::AuthorizationFlags;
pub use client_info::{ClientInfoFile, ClientInfoFlags};
pub use delegations::Delegations;
pub use flags::{Command, CommandLine, Flags};
pub use oidc::{Oidc, OidcFlags};
pub use rates::{RateFlags, Rates};
use rules::Relabel;
pub use rules::{LiveRules, RuleSources, Rules};
pub use stores::{MemcachedServers, StoreFlags, Stores};
pub use tls::{TlsConfig, TlsFlags};

use crate::keys::Keyring;

/// Most series in a request whatever the flags say: payloads count in 32 bits.
const MOST_SERIES: usize = 1 << 22;

/// A wrong flag, or a wrong combination: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// Fails with a formatted line.
macro_rules! wrong {
    ($($line:tt)*) => { Err(ConfigError(format!($($line)*))) };
}
use wrong;

/// What the gateway shall be like.
#[derive(Debug)]
pub struct Config {
    /// Public address.
    pub listen: Vec<SocketAddr>,
    /// Address for health and metrics.
    pub listen_internal: Vec<SocketAddr>,
    /// TLS of listeners and clients.
    pub tls: TlsConfig,
    /// Who says which token is which cluster's.
    pub authorizer: Authorizer,
    /// How what it says is kept.
    pub authorizations: CacheConfig,
    /// Whom a balancer says that it speaks for.
    pub client_info: Option<ClientInfoFile>,
    /// Sign the tokens that `/authorize` issues, and verify them at `/upload`.
    pub keys: Keyring,
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
    /// How often a cluster may write, and how much.
    pub rates: Rates,
    /// How to get the token that authorizer and upstream are shown.
    pub oidc: Option<Oidc>,
    /// Flags say who would get it, but not from whom.
    pub oidc_idle: bool,
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
    /// What replicas share.
    pub stores: Stores,
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
    /// Anyone is taken for whom they say: `--insecure-accept-any-token`.
    AcceptAny,
    /// Tokens are not taken: client certificates or a balancer's headers say which cluster it is.
    Nobody,
}

impl Authorizer {
    /// Where it is, if there is one.
    pub fn url(&self) -> Option<&Uri> {
        match self {
            Authorizer::Registrations(url) => Some(url),
            Authorizer::AcceptAny | Authorizer::Nobody => None,
        }
    }
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
            (None, false) if is_given(&flags.tls.tls_ca_crt) || is_given(&flags.client_info.client_info_data_file) => {
                Authorizer::Nobody
            }
            (None, false) => {
                return wrong!(
                    "--authorize is required: the URL of the cluster registrations; or --tls-ca-crt or --client-info-data-file, where \
                     client certificates say which cluster it is"
                );
            }
        };
        let (client_info, receive_label) = flags.client_info.read(&authorizer, &partition_label)?;
        let Some(forward_url) = given(flags.forward_url) else {
            return wrong!("--forward-url is required: the URL of the receive endpoint");
        };
        let key_files = flags.shared_key.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        let keys = Keyring::new(key_files).map_err(|error| ConfigError(format!("--shared-key: {error}")))?;
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
        if let Some((name, _)) = required_labels.iter().find(|(_, value)| value.is_empty()) {
            return wrong!("--required-label: `{name}` has no value, and no series could carry it");
        }

        let bytes = |flag, value, default| number(flag, value, default).map(unlimited_if_zero);
        let series = match number("--limit-series", flags.limit_series, 20_000)? {
            0 => MOST_SERIES,
            series if series <= MOST_SERIES => series,
            _ => return wrong!("--limit-series: at most {MOST_SERIES} series"),
        };
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
            unrepeatable: vec![receive_label.as_str().into()],
            ..DecodeLimits::default()
        };
        let in_flight = number("--limit-in-flight", flags.limit_in_flight, 1024)?;
        let Some(in_flight) = NonZeroUsize::new(in_flight).filter(|n| n.get() <= 1 << 20) else {
            return wrong!("--limit-in-flight: at least 1 and at most 1048576 requests");
        };
        let rates = Rates::new(flags.rates)?;

        let receive_label_flag =
            if receive_label == partition_label { "--partition-label" } else { "--client-info-subject-label" };
        let rule_sources = RuleSources {
            whitelist: selectors("--whitelist", &flags.whitelist)?,
            whitelist_files: flags
                .whitelist_file
                .into_iter()
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .collect(),
            upload: relabel(
                ("--label", &flags.label),
                ("--elide-label", flags.elide_label),
                ("--partition-label", &partition_label),
            )?,
            receive: relabel(
                ("--receive-label", &flags.receive_label),
                ("--receive-elide-label", flags.receive_elide_label),
                (receive_label_flag, &receive_label),
            )?,
            check: match given(flags.cluster_label_check).as_deref() {
                None | Some("enforce") => ClusterLabelCheck::Enforce,
                Some("count") => ClusterLabelCheck::Count,
                Some("off") => ClusterLabelCheck::Off,
                Some(other) => return wrong!("--cluster-label-check: `{other}` is none of enforce, count, off"),
            },
            delegations_file: given(flags.cluster_delegations_file).map(PathBuf::from),
            partition_label: partition_label.clone(),
            receive_label,
        };
        let tenant = given(flags.tenant_id).unwrap_or_else(|| "FB870BF3-9F3A-44FF-9BF7-D7A047A52F43".to_owned());
        let listen = addresses("--listen", given(flags.listen), "0.0.0.0:9003")?;
        let listen_internal = addresses("--listen-internal", given(flags.listen_internal), "localhost:9004")?;
        // Only the first ones: the others are for hosts where those cannot be had.
        if let (Some(public), Some(internal)) = (listen.first(), listen_internal.first())
            && overlap(*public, *internal)
        {
            return wrong!(
                "--listen and --listen-internal: {public} and {internal} overlap; give them different ports"
            );
        }
        let forward_url = url_of("--forward-url", &forward_url)?;
        let tls = TlsConfig::new(flags.tls, &forward_url, authorizer.url())?;
        let oidc_idle = Oidc::idle(&flags.oidc);
        let oidc = Oidc::new(flags.oidc, &tls.roots)?;
        Ok(Config {
            listen,
            listen_internal,
            tls,
            authorizer,
            authorizations: flags.authorization.parse()?,
            client_info,
            keys,
            token_lifetime: Duration::from_secs(token_lifetime),
            required_labels,
            partition_label,
            tenant_key: given(flags.tenant_key),
            forward_url,
            tenant: header_value("--tenant-id", &tenant)?,
            receive_tenant: given(flags.receive_tenant_id)
                .map(|id| header_value("--receive-tenant-id", &id))
                .transpose()?,
            rates,
            oidc,
            oidc_idle,
            upload_limits,
            receive_limits,
            in_flight,
            rules: LiveRules::new(rule_sources.read()?),
            rule_sources,
            stores: Stores::new(flags.stores)?,
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

/// Empty means unset.
fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// Empty means unset here, too.
fn is_given(value: &Option<String>) -> bool {
    value.as_ref().is_some_and(|value| !value.is_empty())
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
    // What stands before an @ may be a password.
    let shown = if value.contains('@') { "the value".to_owned() } else { format!("`{value}`") };
    let url: Uri = value.parse().map_err(|error| ConfigError(format!("{flag}: {shown} is not a URL: {error}")))?;
    match (url.scheme_str(), url.authority()) {
        (_, Some(authority)) if authority.as_str().contains('@') => {
            wrong!("{flag}: a URL with a user or password is not taken; leave out what stands before the @")
        }
        (Some("http" | "https"), Some(authority)) if !authority.host().is_empty() => {
            // A port that is none would be passed over for the scheme's own.
            if authority.as_str() != authority.host() && authority.port_u16().is_none() {
                return wrong!("{flag}: {shown} has no port from 0 to 65535 after the colon");
            }
            Ok(url)
        }
        _ => wrong!("{flag}: {shown} is not an http:// or https:// URL"),
    }
}

/// Every address that `host:port` stands for, the one to try first in front.
fn addresses(flag: &str, value: Option<String>, default: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let value = value.unwrap_or_else(|| default.to_owned());
    match resolve(&value) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => wrong!("{flag}: `{value}` stands for no address"),
        Err(error) => wrong!("{flag}: `{value}` is not an address like 0.0.0.0:9003: {error}"),
    }
}

/// As Go's `net.Listen` does: of a name the IPv4 address first; `:port` is all interfaces, IPv6 with IPv4 where there is IPv6.
fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if address.starts_with(':') {
        let (v6, v4) = (format!("[::]{address}"), format!("0.0.0.0{address}"));
        return Ok(v6.to_socket_addrs()?.chain(v4.to_socket_addrs()?).collect());
    }
    let mut found = Vec::from_iter(address.to_socket_addrs()?);
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// Whether both cannot be listened on at once. Port 0 is another one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |all: SocketAddr, one: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
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

/// The cluster's label is neither set nor removed: whose a series is would no longer be what was checked.
fn relabel(
    set: (&str, &[String]),
    elide: (&str, Vec<String>),
    (named_by, label): (&str, &str),
) -> Result<Relabel, ConfigError> {
    let relabel = Relabel { set: pairs(set.0, set.1)?, elide: names(elide.0, elide.1)? };
    let sets = relabel.set.iter().any(|(name, _)| name == label);
    let elides = relabel.elide.iter().any(|name| name == label);
    if sets || elides {
        let flag = if sets { set.0 } else { elide.0 };
        return wrong!("{flag}: `{label}` is the {named_by}, which says whose a series is; leave it out");
    }
    Ok(relabel)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_of_series_is_past_what_payloads_count() {
        let limits = |series: &str| {
            let url = Some("http://localhost/".to_owned());
            let flags = Flags { limit_series: Some(series.to_owned()), ..Flags::default() };
            let flags = Flags { authorize: url.clone(), forward_url: url, ..flags };
            Config::new(flags).map(|config| (config.upload_limits.series, config.receive_limits.series))
        };
        assert_eq!(limits("").unwrap(), (20_000, 20_000));
        assert_eq!(limits("0").unwrap(), (MOST_SERIES, MOST_SERIES));
        assert_eq!(limits("4194304").unwrap(), (MOST_SERIES, MOST_SERIES));
        assert_eq!(limits("4194305").unwrap_err().to_string(), "--limit-series: at most 4194304 series");
    }

    #[test]
    fn addresses_come_in_the_order_to_try() {
        let found = |value: &str| addresses("--listen", Some(value.to_owned()), "").unwrap();
        assert_eq!(found(":80"), ["[::]:80".parse().unwrap(), "0.0.0.0:80".parse().unwrap()]);
        assert_eq!(found("[::1]:80"), ["[::1]:80".parse().unwrap()]);
        assert_eq!(found("localhost:80")[0], "127.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn addresses_overlap_by_port_and_interface() {
        for (a, b, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "0.0.0.0:80", true),
        ] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((overlap(a, b), overlap(b, a)), (expected, expected), "{a} {b}");
        }
    }
}
