//! Redis and Valkey: one server, a cluster, or a master that sentinels name.
//!
//! A [`RedisConnection`] is a handle that is cheap to clone. It connects when it is first used, and anew when the connection broke or
//! went silent; whoever calls meanwhile hears so within the time that a reply may take, and nothing is sent twice, but in a
//! cluster: there a command follows the key, and goes out anew where a connection broke before the reply came. It is a
//! [`ConnectionLike`] of the `redis` crate, so all that crate's commands and scripts run on it. [`RedisStore`] is a [`Store`] on it.
//!
//! ```no_run
//! use bytes::Bytes;
//! use infogw_layers::store::{Store, redis::{RedisConfig, RedisConnection, RedisMode, RedisStore}};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connection = RedisConnection::new(&RedisConfig::new(&["redis://:password@localhost/0"], RedisMode::Single)?)?;
//! let store = RedisStore::new(connection.clone());
//! store.set("app:key", Bytes::from_static(b"value"), Duration::from_secs(60)).await?;
//!
//! let script = redis::Script::new("return redis.call('INCR', KEYS[1])");
//! let count: u64 = script.key("app:count").invoke_async(&mut connection.clone()).await?;
//! # Ok(()) }
//! ```

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
pub use redis::ClientTlsConfig;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{Instant, timeout},
};

use super::{MAX_VALUE, RESPONSE, Store, StoreError, StoreFuture, check_value, whole_seconds};

/// For one connection to one server, TLS and password included.
const CONNECT: Duration = Duration::from_secs(1);
/// For everything until a command can be sent: sentinels and masters, or a cluster's nodes, one after the other.
const CONNECT_ALL: Duration = Duration::from_secs(5);
/// How long a failed attempt to connect speaks for those who call next.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);
/// A connection on which no reply came for so long, though one was due, is given up.
const SILENCE: Duration = Duration::from_millis(500);
/// The kernel gives up a connection whose peer acknowledges nothing for so long. A cluster's are under the crate's care, which does
/// not replace those that are merely silent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// In a cluster, a command follows so many redirections and reconnections within its time.
const CLUSTER_RETRIES: u32 = 3;
/// Milliseconds between them.
const CLUSTER_RETRY_WAIT: (u64, u64) = (2, 10);

/// Which servers there are, and how to talk to them. Its `Debug` shows no password.
#[derive(Clone)]
pub struct RedisConfig {
    nodes: Vec<ConnectionInfo>,
    mode: RedisMode,
    sentinel_password: Option<String>,
    tls: RedisTls,
    response_timeout: Duration,
}

/// How the servers hang together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisMode {
    /// One server.
    Single,
    /// A cluster: keys are spread over masters, which are found through any node.
    Cluster,
    /// Sentinels, which name the master.
    Sentinel {
        /// The name by which they know the master.
        master: String,
    },
}

/// What TLS needs besides the system's roots.
#[derive(Debug, Clone, Default)]
pub struct RedisTls {
    /// PEM certificates to trust instead of the system's.
    pub roots: Option<Vec<u8>>,
    /// PEM certificate and key to show.
    pub client: Option<ClientTlsConfig>,
}

impl RedisTls {
    /// The client would say what is wrong with these when it connects, and so to nobody.
    fn check(&self) -> Result<(), RedisConfigError> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.roots {
            for root in certificates(pem, "the certificates to trust")? {
                roots.add(root).map_err(|error| RedisConfigError(format!("a certificate to trust: {error}")))?;
            }
        }
        if let Some(client) = &self.client {
            let chain = certificates(&client.client_cert, "the client certificate")?;
            // The library's own words quote the file.
            let key = PrivateKeyDer::from_pem_slice(&client.client_key).map_err(|_| {
                RedisConfigError("the client key: there is none in PEM that is not encrypted".to_owned())
            })?;
            ClientConfig::builder()
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .map_err(|error| RedisConfigError(format!("the client certificate and key: {error}")))?;
        }
        Ok(())
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, RedisConfigError> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if certificates.is_empty() => Err(RedisConfigError(format!("{what}: there is none"))),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err(RedisConfigError(format!("{what}: not well-formed PEM"))),
    }
}

/// What is wrong with a [`RedisConfig`]: one line, without the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedisConfigError(String);

impl RedisConfig {
    /// Servers by URL: `redis://[[user]:password@]host[:port][/database]`, `rediss://` for TLS, or
    /// `redis+unix:///path[?db=0&user=...&pass=...]`. One server, any nodes of a cluster, or the sentinels; with sentinels, user,
    /// password and database are those of the master.
    ///
    /// # Errors
    /// If a URL is none, or cannot be used in this mode.
    pub fn new<U: AsRef<str>>(urls: &[U], mode: RedisMode) -> Result<Self, RedisConfigError> {
        let nodes: Vec<_> = urls.iter().map(|url| node(url.as_ref())).collect::<Result<_, _>>()?;
        let problem = match (&mode, nodes.as_slice()) {
            (_, []) => "there is no server",
            (RedisMode::Single, [_, _, ..]) => "several servers are a cluster or sentinels",
            (RedisMode::Cluster | RedisMode::Sentinel { .. }, nodes)
                if nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::Unix(_))) =>
            {
                "a cluster or sentinels are not reached by Unix sockets: they answer with hosts and ports"
            }
            (_, [first, others @ ..]) if others.iter().any(|node| !alike(first, node)) => {
                "user, password, database and TLS are the same for all servers"
            }
            _ => {
                let (sentinel_password, tls, response_timeout) = (None, RedisTls::default(), RESPONSE);
                return Ok(RedisConfig { nodes, mode, sentinel_password, tls, response_timeout });
            }
        };
        Err(RedisConfigError(problem.to_owned()))
    }

    /// Whether the URLs have a password.
    pub fn has_password(&self) -> bool {
        self.nodes.iter().any(|node| node.redis_settings().password().is_some())
    }

    /// With this password for all the servers, in place of the URLs'.
    #[must_use]
    pub fn password(self, password: &str) -> Self {
        let with_password = |node: ConnectionInfo| {
            let settings = node.redis_settings().clone().set_password(password);
            node.set_redis_settings(settings)
        };
        RedisConfig { nodes: self.nodes.into_iter().map(with_password).collect(), ..self }
    }

    /// The password that the sentinels themselves want.
    pub fn sentinel_password(self, password: impl Into<String>) -> Self {
        RedisConfig { sentinel_password: Some(password.into()), ..self }
    }

    /// Talks TLS by these, to servers whose URL is `rediss://`.
    pub fn tls(self, tls: RedisTls) -> Self {
        RedisConfig { tls, ..self }
    }

    /// How long a reply may take: 40 ms unless set.
    pub fn response_timeout(self, response_timeout: Duration) -> Self {
        RedisConfig { response_timeout, ..self }
    }

    /// Whether it talks TLS.
    pub fn uses_tls(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. }))
    }

    fn tls_certificates(&self) -> Option<TlsCertificates> {
        let RedisTls { roots, client } = self.tls.clone();
        (self.uses_tls() && (roots.is_some() || client.is_some()))
            .then_some(TlsCertificates { client_tls: client, root_cert: roots })
    }
}

fn node(url: &str) -> Result<ConnectionInfo, RedisConfigError> {
    let wrong = |problem: &str| RedisConfigError(problem.to_owned());
    let url =
        redis::parse_redis_url(url).ok_or_else(|| wrong("this is not a redis://, rediss:// or redis+unix:// URL"))?;
    let node = url.into_connection_info().map_err(|error| match error.kind() {
        // The descriptions are the crate's; a detail could repeat a part of the URL.
        ErrorKind::InvalidClientConfig if error.detail().is_none() => RedisConfigError(error.to_string()),
        _ => wrong("this is not a redis://, rediss:// or redis+unix:// URL"),
    })?;
    if matches!(node.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
        return Err(wrong("#insecure is not taken: give the certificates to trust instead"));
    }
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED);
    Ok(node.set_tcp_settings(tcp))
}

fn alike(a: &ConnectionInfo, b: &ConnectionInfo) -> bool {
    let of = |node: &ConnectionInfo| {
        let redis = node.redis_settings();
        let tls = matches!(node.addr(), ConnectionAddr::TcpTls { .. });
        (redis.username().map(str::to_owned), redis.password().map(str::to_owned), redis.db(), tls)
    };
    of(a) == of(b)
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        f.debug_struct("RedisConfig").field("nodes", &nodes).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// A handle on Redis; see the [module](self).
#[derive(Clone)]
pub struct RedisConnection(Arc<Inner>);

struct Inner {
    connector: Arc<Connector>,
    response_timeout: Duration,
    database: i64,
    /// Made anew when the one in use is of use no longer.
    link: Mutex<Option<Arc<Link>>>,
}

impl RedisConnection {
    /// A handle that connects when it is first used, which has to be within a tokio runtime.
    ///
    /// TLS takes the process's default `rustls` provider; where there is none, aws-lc becomes it.
    ///
    /// # Errors
    /// If certificates or keys cannot be read.
    pub fn new(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        if config.uses_tls() && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another may have been faster, which is just as well.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        if config.uses_tls() {
            config.tls.check()?;
        }
        let connector = Connector::new(config).map_err(|error| RedisConfigError(error.to_string()))?;
        let database = config.nodes.first().map_or(0, |node| node.redis_settings().db());
        let response_timeout = config.response_timeout;
        Ok(RedisConnection(Arc::new(Inner {
            connector: Arc::new(connector),
            response_timeout,
            database,
            link: Mutex::default(),
        })))
    }

    /// Whether keys are spread over the masters of a cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.0.connector.servers, Servers::Cluster(_))
    }

    /// What `command` gives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        Ok(command.query_async(&mut self.clone()).await?)
    }

    async fn run<T: Replies>(&self, ask: impl AsyncFnOnce(Made) -> RedisResult<T>) -> RedisResult<T> {
        let mut call = Call::start(self.0.link());
        let asked = async {
            let made = call.link.made().await?;
            ask(made).await
        };
        let result = timeout(self.0.response_timeout, asked).await.unwrap_or_else(|_| Err(timed_out()));
        call.ended(&result);
        result
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection").finish_non_exhaustive()
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.run(async move |made| match made {
            Made::One(mut connection) => connection.req_packed_command(command).await,
            Made::Cluster(mut connection) => connection.req_packed_command(command).await,
        }))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.run(async move |made| match made {
            Made::One(mut connection) => connection.req_packed_commands(pipeline, offset, count).await,
            Made::Cluster(mut connection) => connection.req_packed_commands(pipeline, offset, count).await,
        }))
    }

    fn get_db(&self) -> i64 {
        self.0.database
    }
}

impl Inner {
    /// The link in use, or a new one where there is none that could be.
    fn link(&self) -> Arc<Link> {
        let mut current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(link) if link.is_of_use() => Arc::clone(link),
            _ => {
                let link = Arc::new(Link::connect(Arc::clone(&self.connector)));
                *current = Some(Arc::clone(&link));
                link
            }
        }
    }
}

/// One connection, from the attempt to make it until it is given up.
struct Link {
    attempt: watch::Receiver<Attempt>,
    health: Mutex<Health>,
}

#[derive(Clone)]
enum Attempt {
    UnderWay,
    Failed(RedisError, Instant),
    Made(Made),
}

#[derive(Clone)]
enum Made {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

#[derive(Default)]
struct Health {
    /// When the first call started that got no reply, if none got one since.
    silent_since: Option<Instant>,
    /// Only another connection can mend what went wrong.
    broken: bool,
}

impl Link {
    /// Connects in a task of its own: who waits for it may well leave before it is done.
    fn connect(connector: Arc<Connector>) -> Self {
        let (sender, attempt) = watch::channel(Attempt::UnderWay);
        tokio::spawn(async move {
            let made = timeout(CONNECT_ALL, connector.connect()).await.unwrap_or_else(|_| Err(timed_out()));
            let _ = sender.send(match made {
                Ok(made) => Attempt::Made(made),
                Err(error) => Attempt::Failed(error, Instant::now()),
            });
        });
        Link { attempt, health: Mutex::default() }
    }

    async fn made(&self) -> RedisResult<Made> {
        let mut attempt = self.attempt.clone();
        match attempt.wait_for(|attempt| !matches!(attempt, Attempt::UnderWay)).await.as_deref() {
            Ok(Attempt::Made(made)) => Ok(made.clone()),
            Ok(Attempt::Failed(error, _)) => Err(error.clone()),
            // The task ended without a word: its runtime is gone.
            _ => Err((ErrorKind::Client, "there is no connection").into()),
        }
    }

    fn is_of_use(&self) -> bool {
        match &*self.attempt.borrow() {
            Attempt::UnderWay => self.attempt.has_changed().is_ok(),
            Attempt::Failed(_, at) => at.elapsed() < CONNECT_AGAIN,
            Attempt::Made(_) => !self.health().broken,
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Each change is of independent fields: a panic elsewhere leaves nothing half done.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way. Dropped without an end it had no reply, which tells as much of the link as a timeout.
struct Call {
    link: Arc<Link>,
    started: Instant,
    reply: Reply,
}

enum Reply {
    Came,
    Missing,
    NeverWill,
}

impl Call {
    fn start(link: Arc<Link>) -> Self {
        Call { link, started: Instant::now(), reply: Reply::Missing }
    }

    fn ended(&mut self, result: &RedisResult<impl Replies>) {
        self.reply = match result {
            Err(error) if error.is_timeout() => Reply::Missing,
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => Reply::NeverWill,
            // This one was the master once.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) => Reply::NeverWill,
            Ok(replies) if replies.any_is(ServerErrorKind::ReadOnly) => Reply::NeverWill,
            _ => Reply::Came,
        };
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let cluster = match &*self.link.attempt.borrow() {
            Attempt::Made(made) => matches!(made, Made::Cluster(_)),
            // An attempt to connect has a time of its own.
            _ => return,
        };
        let mut health = self.link.health();
        match self.reply {
            Reply::Came => health.silent_since = None,
            // A cluster's connections are mended one by one: all of them are given up only when none replies.
            Reply::NeverWill if !cluster => health.broken = true,
            Reply::Missing | Reply::NeverWill => {
                let since = *health.silent_since.get_or_insert(self.started);
                health.broken |= since.elapsed() >= SILENCE;
            }
        }
    }
}

/// What a connection gives back: errors of the server are still values among the others.
trait Replies {
    fn any_is(&self, kind: ServerErrorKind) -> bool;
}

impl Replies for Value {
    fn any_is(&self, kind: ServerErrorKind) -> bool {
        matches!(self, Value::ServerError(error) if error.kind() == Some(kind))
    }
}

impl Replies for Vec<Value> {
    fn any_is(&self, kind: ServerErrorKind) -> bool {
        self.iter().any(|value| value.any_is(kind))
    }
}

/// Makes connections.
struct Connector {
    servers: Servers,
    config: AsyncConnectionConfig,
}

enum Servers {
    Single(Client),
    Cluster(ClusterClient),
    Sentinel(AsyncMutex<SentinelClient>),
}

impl Connector {
    fn new(config: &RedisConfig) -> RedisResult<Self> {
        let connection = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(config.response_timeout));
        Ok(Connector { servers: Servers::new(config)?, config: connection })
    }

    async fn connect(&self) -> RedisResult<Made> {
        let client = match &self.servers {
            Servers::Cluster(client) => return client.get_async_connection().await.map(Made::Cluster),
            Servers::Single(client) => client.clone(),
            Servers::Sentinel(client) => client.lock().await.async_get_client().await?,
        };
        client.get_multiplexed_async_connection_with_config(&self.config).await.map(Made::One)
    }
}

impl Servers {
    fn new(config: &RedisConfig) -> RedisResult<Self> {
        let certificates = config.tls_certificates();
        let Some(first) = config.nodes.first() else {
            return Err((ErrorKind::InvalidClientConfig, "there is no server").into());
        };
        Ok(match &config.mode {
            RedisMode::Single => Servers::Single(match certificates {
                Some(certificates) => Client::build_with_tls(first.clone(), certificates)?,
                None => Client::open(first.clone())?,
            }),
            RedisMode::Cluster => {
                let (shortest, longest) = CLUSTER_RETRY_WAIT;
                let builder = ClusterClientBuilder::new(config.nodes.iter().cloned())
                    .connection_timeout(CONNECT)
                    .response_timeout(config.response_timeout)
                    .retries(CLUSTER_RETRIES)
                    .min_retry_wait(shortest)
                    .max_retry_wait(longest)
                    .tcp_settings(first.tcp_settings().clone());
                let builder = match certificates {
                    Some(certificates) => builder.certs(certificates),
                    None => builder,
                };
                Servers::Cluster(builder.build()?)
            }
            RedisMode::Sentinel { master } => {
                let redis = first.redis_settings();
                let sentinels = config.nodes.iter().map(|node| node.addr().clone());
                let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
                    .set_client_to_redis_db(redis.db())
                    .set_client_to_redis_protocol(redis.protocol())
                    .set_client_to_redis_tcp_settings(first.tcp_settings().clone())
                    .set_client_to_sentinel_tcp_settings(first.tcp_settings().clone());
                if let Some(username) = redis.username() {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = redis.password() {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(password) = &config.sentinel_password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if config.uses_tls() {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
                Servers::Sentinel(AsyncMutex::new(builder.build()?))
            }
        })
    }
}

fn timed_out() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

impl From<RedisError> for StoreError {
    /// Of what the server says, only the code is taken: the rest may repeat what it was sent.
    fn from(error: RedisError) -> Self {
        let code = |code: &str| code.chars().filter(char::is_ascii_alphanumeric).take(32).collect::<String>();
        let text = match (error.kind(), error.code(), error.detail()) {
            // Without a detail the text is the crate's, or the system's.
            (ErrorKind::Io, ..) | (.., None) => error.to_string(),
            (_, Some(server), _) => code(server),
            _ => error.category().to_owned(),
        };
        match error.kind() {
            _ if error.is_timeout() => StoreError::TimedOut,
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
                StoreError::Protocol(error.category().to_owned().into())
            }
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => StoreError::Protocol(text.into()),
            ErrorKind::Server(ServerErrorKind::NoScript | ServerErrorKind::CrossSlot) => {
                StoreError::Protocol(text.into())
            }
            _ => StoreError::Unavailable(text.into()),
        }
    }
}

/// A [`Store`] in Redis: plain strings that expire.
#[derive(Debug, Clone)]
pub struct RedisStore(RedisConnection);

impl RedisStore {
    /// Keeps what it is given through `connection`.
    pub fn new(connection: RedisConnection) -> Self {
        RedisStore(connection)
    }
}

impl Store for RedisStore {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(async move {
            // Not GET: whoever else writes here, it is bounded before it is sent. What is not there is empty.
            let range = redis::cmd("GETRANGE").arg(key).arg(0).arg(MAX_VALUE).to_owned();
            let value: Vec<u8> = self.0.query(&range).await?;
            if value.len() > MAX_VALUE {
                return Err(StoreError::Protocol("a value that is too long".into()));
            }
            Ok((!value.is_empty()).then(|| value.into()))
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_value(&value)?;
            let set = redis::cmd("SET").arg(key).arg(&value[..]).arg("EX").arg(whole_seconds(life)).to_owned();
            self.0.query(&set).await
        })
    }
}
