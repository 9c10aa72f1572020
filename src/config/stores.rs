//! The engines that replicas share.

use std::{fmt, ops::RangeInclusive, time::Duration};

use clap::Args;
use infogw_layers::store::redis::{ClientTlsConfig, RedisConfig, RedisConnection, RedisMode, RedisTls};

use super::{ConfigError, duration, given, is_given, number, path, secret, shown, wrong};

/// Flags of what replicas share.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Shared between replicas")]
pub struct StoreFlags {
    /// memcached that shares authorizations, host:port; repeatable, comma-separated. Each address of a name is a server.
    #[arg(long, value_name = "HOST:PORT")]
    pub memcached: Vec<String>,
    /// How long a shared authorization is kept at most, in memcached or Redis; 0 is as long as it is of use [default:
    /// 86400].
    #[arg(long, value_name = "SECONDS")]
    pub memcached_expire: Option<String>,
    /// How often the addresses of memcached are looked up; 0 or less is once [default: 10].
    #[arg(long, allow_hyphen_values = true, value_name = "SECONDS")]
    pub memcached_interval: Option<String>,
    /// Redis or Valkey that shares the rate limit, and authorizations unless memcached does: redis://user@host:port/database,
    /// rediss:// for TLS, or redis+unix:///path; nodes of a cluster, or sentinels, repeatable, comma-separated.
    #[arg(long, value_name = "URL")]
    pub redis: Vec<String>,
    /// single, cluster or sentinel [default: single].
    #[arg(long, value_name = "MODE")]
    pub redis_mode: Option<String>,
    /// How long Redis may take to answer; a request then does without it [default: 50ms].
    #[arg(long, value_name = "DURATION")]
    pub redis_timeout: Option<String>,
    /// The name by which the sentinels know the master.
    #[arg(long, value_name = "NAME")]
    pub redis_sentinel_master: Option<String>,
    /// Its password, where the URL gives none; whoever may list processes sees both, so prefer --redis-password-file, or
    /// $INFOGW_REDIS_PASSWORD.
    #[arg(long, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub redis_password: Option<String>,
    /// File that holds the password; read at the start.
    #[arg(long, value_name = "FILE")]
    pub redis_password_file: Option<String>,
    /// The sentinels' own password; the one above is the master's. Prefer --redis-sentinel-password-file, or
    /// $INFOGW_REDIS_SENTINEL_PASSWORD.
    #[arg(long, value_name = "PASSWORD", allow_hyphen_values = true)]
    pub redis_sentinel_password: Option<String>,
    /// File that holds the sentinels' own password; read at the start.
    #[arg(long, value_name = "FILE")]
    pub redis_sentinel_password_file: Option<String>,
    /// Certificates to trust as Redis's authorities, PEM, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub redis_tls_ca_crt: Option<String>,
    /// Client certificate to show to Redis, PEM.
    #[arg(long, value_name = "FILE")]
    pub redis_tls_crt: Option<String>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    pub redis_tls_key: Option<String>,
}

/// Without what may be a password.
impl fmt::Debug for StoreFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFlags")
            .field("memcached", &self.memcached)
            .field("redis", &self.redis.len())
            .field("redis_mode", &self.redis_mode)
            .finish_non_exhaustive()
    }
}

/// What replicas share, and where.
#[derive(Debug)]
pub struct Stores {
    /// Shares authorizations, and comes before Redis.
    pub memcached: Option<MemcachedServers>,
    /// Shares the rate limit, and authorizations unless memcached does.
    pub redis: Option<RedisConnection>,
    /// How long Redis may take to answer.
    pub redis_timeout: Duration,
    /// How long an authorization is kept there at most.
    pub expire: Duration,
}

/// Seconds, longer than any authorization is of use.
const LONGEST: u64 = 10 * 365 * 86_400;
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);
const REDIS_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// Where memcached is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemcachedServers {
    /// Each a `host:port`.
    pub servers: Vec<String>,
    /// How often they are looked up; `None` is once.
    pub interval: Option<Duration>,
}

impl StoreFlags {
    /// Whether a flag says the password of Redis, its URL among them.
    pub(super) fn gives_redis_password(&self) -> bool {
        let urls: Vec<_> = self.redis.iter().flat_map(|value| urls(value)).collect();
        // What is wrong with them is found out later.
        let in_url =
            RedisConfig::new(&urls, RedisMode::Cluster).or_else(|_| RedisConfig::new(&urls, RedisMode::Single));
        is_given(&self.redis_password)
            || is_given(&self.redis_password_file)
            || in_url.is_ok_and(|config| config.has_password())
    }
}

impl Stores {
    pub(super) fn new(flags: StoreFlags) -> Result<Self, ConfigError> {
        let expire = match number("--memcached-expire", flags.memcached_expire.clone(), 86_400)? as u64 {
            0 => LONGEST,
            seconds @ 1..=LONGEST => seconds,
            _ => {
                return wrong!(
                    "--memcached-expire: an authorization is kept 1 second to 10 years; 0 is without a bound"
                );
            }
        };
        // telemeter-server takes any below as 0.
        let interval = match given(flags.memcached_interval.clone()) {
            Some(seconds) if seconds.strip_prefix('-').is_some_and(|number| number.parse::<u64>().is_ok()) => 0,
            seconds => number("--memcached-interval", seconds, 10)? as u64,
        };
        let servers = flags.memcached.iter().flat_map(|value| value.split(',')).map(str::trim);
        let servers: Vec<_> =
            servers.filter(|server| !server.is_empty()).map(host_and_port).collect::<Result<_, _>>()?;
        let interval = (interval > 0).then(|| Duration::from_secs(interval));
        Ok(Stores {
            memcached: (!servers.is_empty()).then_some(MemcachedServers { servers, interval }),
            redis_timeout: redis_timeout(given(flags.redis_timeout.clone()))?,
            redis: redis(flags)?,
            expire: Duration::from_secs(expire),
        })
    }
}

fn host_and_port(server: &str) -> Result<String, ConfigError> {
    let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // An IPv6 address without brackets would lose its last group to the port.
    let enclosed = !bare.contains(':') || host.starts_with('[');
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '@';
    let has_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    if bare.is_empty() || bare.contains(odd) || !enclosed || !has_port {
        return wrong!("--memcached: {} is not host:port", shown(server));
    }
    Ok(server.to_owned())
}

fn redis_timeout(timeout: Option<String>) -> Result<Duration, ConfigError> {
    let Some(timeout) = timeout else { return Ok(REDIS_TIMEOUT) };
    match duration::parse(&timeout) {
        Ok(parsed) if REDIS_TIMEOUTS.contains(&parsed) => Ok(parsed),
        Ok(_) => wrong!("--redis-timeout: `{timeout}` is not 1ms to 1m"),
        Err(error) => wrong!("--redis-timeout: {error}"),
    }
}

fn redis(flags: StoreFlags) -> Result<Option<RedisConnection>, ConfigError> {
    let urls: Vec<_> = flags.redis.iter().flat_map(|value| urls(value)).collect();
    let mode = given(flags.redis_mode);
    let timeout = given(flags.redis_timeout);
    let master = given(flags.redis_sentinel_master);
    let password =
        secret(("--redis-password", flags.redis_password), ("--redis-password-file", flags.redis_password_file))?;
    let sentinel_password = secret(
        ("--redis-sentinel-password", flags.redis_sentinel_password),
        ("--redis-sentinel-password-file", flags.redis_sentinel_password_file),
    )?;
    let ca = path("--redis-tls-ca-crt", flags.redis_tls_ca_crt)?;
    let crt = path("--redis-tls-crt", flags.redis_tls_crt)?;
    let key = path("--redis-tls-key", flags.redis_tls_key)?;
    if urls.is_empty() {
        let idle = [
            ("--redis-mode", mode.is_some()),
            ("--redis-timeout", timeout.is_some()),
            ("--redis-sentinel-master", master.is_some()),
            ("--redis-password", password.is_some()),
            ("--redis-sentinel-password", sentinel_password.is_some()),
            ("--redis-tls-ca-crt", ca.is_some()),
            ("--redis-tls-crt", crt.is_some()),
            ("--redis-tls-key", key.is_some()),
        ];
        return match idle.iter().find(|(_, given)| *given) {
            Some((flag, _)) => wrong!("{flag} is nothing without --redis"),
            None => Ok(None),
        };
    }
    let mode = match (mode.as_deref(), master) {
        (Some("sentinel"), Some(master)) => RedisMode::Sentinel { master },
        (Some("sentinel"), None) => {
            return wrong!(
                "--redis-mode=sentinel needs --redis-sentinel-master: the name by which they know the master"
            );
        }
        (_, Some(_)) => return wrong!("--redis-sentinel-master is for --redis-mode=sentinel"),
        (None | Some("single"), None) => RedisMode::Single,
        (Some("cluster"), None) => RedisMode::Cluster,
        (Some(other), None) => return wrong!("--redis-mode: `{other}` is none of single, cluster, sentinel"),
    };
    if sentinel_password.is_some() && !matches!(mode, RedisMode::Sentinel { .. }) {
        return wrong!("--redis-sentinel-password is for --redis-mode=sentinel");
    }
    let single = mode == RedisMode::Single;
    // The connection is to find out first, and why: what asks it has all of the time.
    let response = redis_timeout(timeout)? * 4 / 5;
    let config = match RedisConfig::new(&urls, mode) {
        Ok(config) => config.response_timeout(response),
        Err(_) if single && urls.len() > 1 => {
            return wrong!("--redis: several servers need --redis-mode=cluster or --redis-mode=sentinel");
        }
        Err(error) => return wrong!("--redis: {error}"),
    };
    let config = match password {
        Some(_) if config.has_password() => {
            return wrong!("--redis-password: the URL has a password already; give one of them");
        }
        Some(password) => config.password(&password),
        None => config,
    };
    let config = match sentinel_password {
        Some(password) => config.sentinel_password(password),
        None => config,
    };
    let with_tls = ca.is_some() || crt.is_some() || key.is_some();
    if with_tls && !config.uses_tls() {
        return wrong!("--redis-tls-*: certificates are for a URL that begins with rediss://");
    }
    let client = match (crt, key) {
        (Some(crt), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("--redis-tls-crt", &crt)?,
            client_key: read("--redis-tls-key", &key)?,
        }),
        (None, None) => None,
        _ => return wrong!("--redis-tls-crt and --redis-tls-key need each other; give both"),
    };
    let roots = ca.map(|ca| read("--redis-tls-ca-crt", &ca)).transpose()?;
    match RedisConnection::new(&config.tls(RedisTls { roots, client })) {
        Ok(connection) => Ok(Some(connection)),
        Err(error) => wrong!("--redis-tls-*: {error}"),
    }
}

/// Comma-separated URLs. A comma may stand in a password: one parts URLs only if another URL follows.
pub(super) fn urls(value: &str) -> Vec<String> {
    let mut urls: Vec<String> = Vec::new();
    for part in value.split(',') {
        let is_url = part.trim().split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphabetic() || c == '+')
        });
        match urls.last_mut() {
            Some(last) if !is_url => {
                last.push(',');
                last.push_str(part);
            }
            _ => urls.push(part.to_owned()),
        }
    }
    urls.into_iter().map(|url| url.trim().trim_end_matches(',').to_owned()).filter(|url| !url.is_empty()).collect()
}

fn read(flag: &str, path: &str) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| ConfigError(format!("{flag}: {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(set: impl FnOnce(&mut StoreFlags)) -> Result<Stores, String> {
        let mut flags = StoreFlags::default();
        set(&mut flags);
        Stores::new(flags).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_shared_unless_asked_for() {
        let stores = stores(|flags| flags.memcached = vec![String::new()]).unwrap();
        assert!(stores.memcached.is_none() && stores.redis.is_none());
    }

    #[test]
    fn memcached_as_telemeter_server_has_it() {
        let found = stores(|flags| flags.memcached = vec!["a:1,b:2".to_owned(), "[::1]:3".to_owned()]).unwrap();
        let memcached = found.memcached.unwrap();
        assert_eq!(memcached.servers, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!((memcached.interval, found.expire), (Some(Duration::from_secs(10)), Duration::from_secs(86_400)));

        for wrong in ["a", "a:", "a:0", "a:65536", ":1", "::1:3", "/tmp/socket", "a b:1"] {
            let error = stores(|flags| flags.memcached = vec![wrong.to_owned()]).unwrap_err();
            assert_eq!(error, format!("--memcached: `{wrong}` is not host:port"));
        }
        let error = stores(|flags| flags.memcached = vec!["u:hush@a:1".to_owned()]).unwrap_err();
        assert_eq!(error, "--memcached: the value is not host:port");
        let expire = |expire: &str| stores(|flags| flags.memcached_expire = Some(expire.to_owned()));
        assert_eq!(expire("0").unwrap().expire, Duration::from_secs(LONGEST));
        assert_eq!(expire("1").unwrap().expire, Duration::from_secs(1));
        let error = expire("315360001").unwrap_err();
        assert_eq!(error, "--memcached-expire: an authorization is kept 1 second to 10 years; 0 is without a bound");
        for off in ["0", "-1", "-10"] {
            let found = stores(|flags| {
                flags.memcached = vec!["a:1".to_owned()];
                flags.memcached_interval = Some(off.to_owned());
            });
            assert_eq!(found.unwrap().memcached.unwrap().interval, None, "{off}");
        }
        assert!(stores(|flags| flags.memcached_interval = Some("-".to_owned())).is_err());
    }

    #[test]
    fn how_long_redis_may_take() {
        let timeout = |timeout: &str| {
            let found = stores(|flags| {
                flags.redis = vec!["redis://a".to_owned()];
                flags.redis_timeout = Some(timeout.to_owned());
            });
            found.map(|stores| stores.redis_timeout)
        };
        assert_eq!(timeout(""), Ok(Duration::from_millis(50)));
        assert_eq!(timeout("10s"), Ok(Duration::from_secs(10)));
        for wrong in ["0", "61s", "999us"] {
            assert_eq!(timeout(wrong).unwrap_err(), format!("--redis-timeout: `{wrong}` is not 1ms to 1m"));
        }
        assert!(timeout("soon").unwrap_err().starts_with("--redis-timeout: "));
        let error = stores(|flags| flags.redis_timeout = Some("1s".to_owned())).unwrap_err();
        assert_eq!(error, "--redis-timeout is nothing without --redis");
    }

    #[test]
    fn a_comma_parts_urls_but_not_passwords() {
        assert_eq!(urls("redis://a,redis+unix:///b , rediss://c,"), ["redis://a", "redis+unix:///b", "rediss://c"]);
        assert_eq!(urls("redis://:a,b@c,redis://:a,b@d"), ["redis://:a,b@c", "redis://:a,b@d"]);
    }

    #[test]
    fn what_is_wrong_with_redis_is_said_without_its_password() {
        let several = "several servers need --redis-mode=cluster or --redis-mode=sentinel";
        let rows: [(&str, &str, &str, &str); 12] = [
            ("http://:hush@a", "", "", "this is not a redis://, rediss:// or redis+unix:// URL"),
            ("redis://:hush@a:port", "", "", "this is not a redis://, rediss:// or redis+unix:// URL"),
            ("redis://:hush@a/hush", "", "", "Invalid database number - InvalidClientConfig"),
            ("hush", "", "", "this is not a redis://, rediss:// or redis+unix:// URL"),
            ("rediss://:hush@a#insecure", "", "", "#insecure is not taken: give the certificates to trust instead"),
            ("redis://:hush@a,redis://:hush@b", "", "", several),
            (
                "redis://:hush@a,redis://b",
                "cluster",
                "",
                "user, password, database and TLS are the same for all servers",
            ),
            ("redis+unix:///hush", "cluster", "", "a cluster or sentinels are not reached by Unix sockets"),
            ("redis://:hush@a", "hash", "", "`hash` is none of single, cluster, sentinel"),
            ("redis://:hush@a", "sentinel", "", "needs --redis-sentinel-master"),
            ("redis://:hush@a", "cluster", "m", "--redis-sentinel-master is for --redis-mode=sentinel"),
            ("", "cluster", "", "--redis-mode is nothing without --redis"),
        ];
        for (url, mode, master, expected) in rows {
            let error = stores(|flags| {
                flags.redis = vec![url.to_owned()];
                flags.redis_mode = Some(mode.to_owned());
                flags.redis_sentinel_master = Some(master.to_owned());
            });
            let error = error.unwrap_err();
            assert!(error.contains(expected) && error.starts_with("--redis"), "{error}");
            assert!(!error.contains("hush") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn no_debug_shows_a_password() {
        let flags = StoreFlags {
            redis: vec!["redis://user:hush@a,redis://user:hush@b".to_owned()],
            redis_mode: Some("sentinel".to_owned()),
            redis_sentinel_master: Some("m".to_owned()),
            redis_sentinel_password: Some("hush".to_owned()),
            ..StoreFlags::default()
        };
        let shown = format!("{flags:?} {:?}", Stores::new(flags.clone()).unwrap());
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn certificates_are_read_at_the_start() {
        let stores = |url: &str, ca: &str| {
            stores(|flags| {
                flags.redis = vec![url.to_owned()];
                flags.redis_tls_ca_crt = Some(ca.to_owned());
            })
        };
        let error = stores("redis://a", "/nowhere").unwrap_err();
        assert_eq!(error, "--redis-tls-*: certificates are for a URL that begins with rediss://");
        assert!(stores("rediss://a", "/nowhere").unwrap_err().starts_with("--redis-tls-ca-crt: /nowhere: "));
        assert!(stores("rediss://a", "/dev/null").unwrap_err().starts_with("--redis-tls-"), "no certificate in it");
    }
}
