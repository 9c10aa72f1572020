//! Flags to a [`Config`] in which nothing can be invalid any more.

mod authorization;
mod client_info;
mod connections;
pub mod duration;
mod environment;
mod flags;
mod oidc;
pub mod policy;
mod rates;
pub mod show;
mod stores;
mod tls;
mod traces;

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs as _},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use http::Uri;
use infogw_layers::authorize::cache::CacheConfig;

pub use authorization::AuthorizationFlags;
pub use client_info::{ClientInfoFile, ClientInfoFlags};
pub use connections::{ConnectionFlags, Connections};
pub(crate) use environment::variable;
pub use flags::Flags;
pub(crate) use flags::go_bool;
pub(crate) use oidc::secret_file;
pub use oidc::{Oidc, OidcFlags};
pub use policy::{GatewayPolicy, PolicyFlags, PolicySources, Upstream};
use policy::{Subject, Written};
pub use rates::RateFlags;
pub use stores::{MemcachedServers, StoreFlags, Stores};
pub use tls::{TlsConfig, TlsFlags};
pub(crate) use tls::{file, pair, system_roots, tls_to, used};
pub use traces::{SpanEndpoint, Tracing, TracingFlags};

use crate::keys::Keyring;

/// A wrong flag, or a wrong combination: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// Fails with a formatted line.
macro_rules! wrong {
    ($($line:tt)*) => { Err($crate::config::ConfigError(format!($($line)*))) };
}
pub(crate) use wrong;

/// What the gateway shall be like.
#[derive(Debug)]
pub struct Config {
    /// Public address.
    pub listen: Vec<SocketAddr>,
    /// Address for health and metrics.
    pub listen_internal: Vec<SocketAddr>,
    /// Holds the token of those who may change something there.
    pub internal_token_file: Option<PathBuf>,
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
    /// The label that carries the cluster's id.
    pub partition_label: String,
    /// Names the tenant in the composite token.
    pub tenant_key: Option<String>,
    /// Where remote-write requests go.
    pub upstream: Upstream,
    /// How to get the token that authorizer and upstream are shown.
    pub oidc: Option<Oidc>,
    /// Flags say who would get it, but not from whom.
    pub oidc_idle: bool,
    /// What connections may hold, and for how long.
    pub connections: Connections,
    /// Most requests at work at once on each route.
    pub in_flight: NonZeroUsize,
    /// Where the policy comes from.
    pub policy_sources: PolicySources,
    /// The policy in force.
    pub policy: GatewayPolicy,
    /// What replicas share.
    pub stores: Stores,
    /// The least severe level that is logged.
    pub log_level: tracing::Level,
    /// Log outgoing requests.
    pub verbose: bool,
    /// Where spans of requests go, if anywhere.
    pub tracing: Option<Tracing>,
}

/// Who says which token is which cluster's.
#[derive(Clone, PartialEq, Eq)]
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

/// Without what may be a key.
impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authorizer::Registrations(url) => write!(f, "Registrations({})", show::hidden_in_query(&url.to_string())),
            Authorizer::AcceptAny => f.write_str("AcceptAny"),
            Authorizer::Nobody => f.write_str("Nobody"),
        }
    }
}

impl Config {
    /// What `flags` mean.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn new(flags: Flags) -> Result<Self, ConfigError> {
        Config::read(flags).map(|(config, _)| config)
    }

    /// As [`new`](Self::new); with the policy as it is written, to be shown.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn read(flags: Flags) -> Result<(Self, Written), ConfigError> {
        let partition_label = partition_label(flags.partition_label)?;
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
        let key_files = flags.shared_key.into_iter().map(|file| path("--shared-key", Some(file)));
        let key_files: Vec<_> = key_files.collect::<Result<_, _>>()?;
        let keys = Keyring::new(key_files.into_iter().flatten().map(PathBuf::from).collect())
            .map_err(|error| ConfigError(format!("--shared-key: {error}")))?;
        let token_lifetime = number("--token-expire-seconds", flags.token_expire_seconds, 86_400)? as u64;
        if token_lifetime == 0 || token_lifetime > 10 * 365 * 86_400 {
            return wrong!("--token-expire-seconds: a token lives 1 second to 10 years");
        }
        let in_flight = number("--limit-in-flight", flags.limit_in_flight, 1024)?;
        let Some(in_flight) = NonZeroUsize::new(in_flight).filter(|n| n.get() <= 1 << 20) else {
            return wrong!("--limit-in-flight: at least 1 and at most 1048576 requests");
        };
        let upstream = Upstream::new("--forward-url", &forward_url)?;
        let subject = Subject::new(partition_label.clone(), receive_label, upstream.clone());
        let policy_sources = PolicySources::new(flags.policy, subject)?;
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
        let tls = TlsConfig::new(flags.tls, upstream.uri(), authorizer.url())?;
        let oidc_idle = Oidc::idle(&flags.oidc);
        let oidc = Oidc::new(flags.oidc, &tls.roots)?;
        let tracing = Tracing::new(flags.tracing, "telemeter-server", &tls.roots)?;
        let authorizations = flags.authorization.parse()?;
        let (policy, written) = GatewayPolicy::read(&policy_sources)?;
        let config = Config {
            listen,
            listen_internal,
            internal_token_file: token_file("--internal-token-file", flags.internal_token_file)?,
            tls,
            authorizer,
            authorizations,
            client_info,
            keys,
            token_lifetime: Duration::from_secs(token_lifetime),
            partition_label,
            tenant_key: given(flags.tenant_key),
            upstream,
            oidc,
            oidc_idle,
            connections: flags.connections.read()?,
            in_flight,
            policy,
            policy_sources,
            stores: Stores::new(flags.stores)?,
            log_level: log_level(flags.log_level)?,
            verbose: flags.verbose,
            tracing,
        };
        Ok((config, written))
    }
}

impl PolicySources {
    /// What `flags` say of the policy, for whoever asks about it and runs no gateway: of the others only those count that it is about.
    ///
    /// # Errors
    /// The first of these that is wrong.
    pub fn of_flags(flags: Flags) -> Result<Self, ConfigError> {
        let partition_label = partition_label(flags.partition_label)?;
        let receive_label = match given(flags.client_info.client_info_subject_label) {
            None => partition_label.clone(),
            Some(label) => label_name("--client-info-subject-label", label)?,
        };
        let upstream = match given(flags.forward_url) {
            Some(url) => Upstream::new("--forward-url", &url)?,
            // Who asks does not write.
            None => Upstream::new("--forward-url", "http://upstream.invalid/")?,
        };
        PolicySources::new(flags.policy, Subject::new(partition_label, receive_label, upstream))
    }
}

pub(crate) fn log_level(flag: Option<String>) -> Result<tracing::Level, ConfigError> {
    match given(flag).as_deref() {
        Some("debug") => Ok(tracing::Level::DEBUG),
        None | Some("info") => Ok(tracing::Level::INFO),
        Some("warn") => Ok(tracing::Level::WARN),
        Some("error") => Ok(tracing::Level::ERROR),
        Some(other) => wrong!("--log-level: `{other}` is none of debug, info, warn, error"),
    }
}

fn partition_label(flag: Option<String>) -> Result<String, ConfigError> {
    label_name("--partition-label", given(flag).unwrap_or_else(|| "_id".to_owned()))
}

/// The secret that a flag gives, or else the file that another flag names; a line end after it is none of it.
fn secret(
    (flag, value): (&str, Option<String>),
    (file_flag, file): (&str, Option<String>),
) -> Result<Option<String>, ConfigError> {
    match (given(value), path(file_flag, file)?) {
        (Some(_), Some(_)) => wrong!("{flag} and {file_flag} exclude each other; give one of them"),
        (value, None) => Ok(value),
        (None, Some(path)) => secret_in(file_flag, &path).map(Some),
    }
}

/// The secret in a file, without the line end after it.
pub(crate) fn secret_in(flag: &str, path: &str) -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError(format!("{flag}: {path}: {error}")))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => wrong!("{flag}: {path} holds no secret"),
        secret => Ok(secret.to_owned()),
    }
}

/// Empty means unset.
pub(crate) fn given(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

/// Empty means unset here, too.
pub(crate) fn is_given(value: &Option<String>) -> bool {
    value.as_ref().is_some_and(|value| !value.is_empty())
}

pub(crate) fn number(flag: &str, value: Option<String>, default: usize) -> Result<usize, ConfigError> {
    given(value).map_or(Ok(default), |value| {
        value.parse().map_err(|_| ConfigError(format!("{flag}: `{value}` is not a whole number from 0 up")))
    })
}

/// `value` for the line that says what is wrong with it. What stands before an @ may be a password, and in a query a key.
pub(crate) fn shown(value: &str) -> String {
    if value.contains(['@', '?']) { "the value".to_owned() } else { format!("`{value}`") }
}

/// A file's path. Who gives what should be in the file instead is not told it again.
pub(crate) fn path(flag: &str, value: Option<String>) -> Result<Option<String>, ConfigError> {
    match given(value) {
        Some(value) if value.contains('\n') || value.contains("-----BEGIN") || value.trim_start().starts_with('{') => {
            wrong!("{flag}: this is what the file should hold; write it there, and give the file's path")
        }
        value => Ok(value),
    }
}

pub(crate) fn url_of(flag: &str, value: &str) -> Result<Uri, ConfigError> {
    let shown = shown(value);
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

/// `url` with what `change` makes of its path.
pub(crate) fn with_path(url: &Uri, change: impl FnOnce(&str) -> String) -> Uri {
    let path = change(url.path());
    let path = url.query().map_or(path.clone(), |query| format!("{path}?{query}"));
    let mut parts = url.clone().into_parts();
    // It was one, and is one with a segment of letters more or less.
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// Every address that `host:port` stands for, the one to try first in front.
pub(crate) fn addresses(flag: &str, value: Option<String>, default: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let value = value.unwrap_or_else(|| default.to_owned());
    match resolve(&value) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => wrong!("{flag}: {} stands for no address", shown(&value)),
        Err(error) => wrong!("{flag}: {} is not an address like 0.0.0.0:9003: {error}", shown(&value)),
    }
}

/// A file that holds something.
fn token_file(flag: &str, file: Option<String>) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = path(flag, file)? else { return Ok(None) };
    match std::fs::read(&path) {
        Ok(token) if token.trim_ascii().is_empty() => wrong!("{flag}: {path} is empty; write the token into it"),
        Ok(_) => Ok(Some(path.into())),
        Err(error) => wrong!("{flag}: {path}: {error}"),
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

/// Label names as Prometheus' legacy scheme has them: what every receiver takes.
fn is_label_name(name: &str) -> bool {
    let mut chars = name.chars();
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    begins && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub(crate) fn label_name(flag: &str, name: String) -> Result<String, ConfigError> {
    if is_label_name(&name) { Ok(name) } else { wrong!("{flag}: `{name}` is not a label name") }
}

/// `name=value`, comma-separated.
pub(crate) fn pairs(flag: &str, values: &[String]) -> Result<Vec<(String, String)>, ConfigError> {
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
    fn addresses_come_in_the_order_to_try() {
        let found = |value: &str| addresses("--listen", Some(value.to_owned()), "").unwrap();
        assert_eq!(found(":80"), ["[::]:80".parse().unwrap(), "0.0.0.0:80".parse().unwrap()]);
        assert_eq!(found("[::1]:80"), ["[::1]:80".parse().unwrap()]);
        assert_eq!(found("localhost:80")[0], "127.0.0.1:80".parse().unwrap());
    }

    #[test]
    fn no_debug_shows_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let client_info = r#"{"secret":"hush","config":{"secret_header":"x-s","common_name_header":"x-c"}}"#;
        std::fs::write(file.path(), client_info).unwrap();
        let some = |text: &str| Some(text.to_owned());
        let mut flags = Flags {
            authorize: some("http://localhost:1/?key=hush"),
            forward_url: some("http://localhost:1/{tenant}?key=hush&hush"),
            ..Flags::default()
        };
        flags.client_info.client_info_data_file = some(file.path().to_str().unwrap());
        flags.policy.receive_tenant_id = some("t");
        flags.oidc.oidc_issuer = some("http://localhost:1");
        flags.oidc.client_id = some("gateway");
        flags.oidc.client_secret = Some("hush".into());
        flags.stores.redis = vec!["redis://localhost:1".to_owned()];
        flags.stores.redis_mode = some("sentinel");
        flags.stores.redis_sentinel_master = some("m");
        flags.stores.redis_password = some("hush");
        flags.stores.redis_sentinel_password = some("hush");
        let (config, written) = Config::read(flags.clone()).unwrap();
        let shown = format!("{flags:?} {:?} {config:?} {written:?} {:?}", flags.stores, config.oidc);
        assert!(!shown.contains("hush") && shown.contains("localhost:1"), "{shown}");
        // Neither what is wrong.
        flags.authorize = some("http://user:hush@localhost/");
        flags.oidc.oidc_issuer = some("http://user:hush@localhost/");
        let shown = format!("{flags:?}");
        assert!(!shown.contains("hush"), "{shown}");
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
