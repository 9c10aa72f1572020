//! memcached, several servers of it, over its text protocol.
//!
//! A [`Memcached`] needs no more of a server than `get` and `set`. Servers are given by name; each address that a name stands for is
//! a server, and names are looked up again from time to time, so a headless service of Kubernetes is followed as it grows and shrinks.
//! A key's server is found by rendezvous hashing, alike in all replicas: a server that goes takes only its own keys with it.
//!
//! Servers are not trusted to be what they should be. What they say is read in bounded pieces and has to be the answer to what was
//! asked; a connection on which anything went otherwise, or whose caller left before the answer was complete, is closed and never used
//! again, so no answer meets another's question. A server that fails several times in a row is left alone for a second.
//!
//! ```no_run
//! use bytes::Bytes;
//! use infogw_layers::store::{Store, memcached::Memcached};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::store::StoreError> {
//! let store = Memcached::new(["memcached.cache.svc:11211"]).refresh_every(Duration::from_secs(10));
//! store.set("app:key", Bytes::from_static(b"value"), Duration::from_secs(60)).await?;
//! assert_eq!(store.get("app:key").await?.as_deref(), Some(&b"value"[..]));
//! # Ok(()) }
//! ```
//!
//! The protocol: <https://github.com/memcached/memcached/blob/master/doc/protocol.txt>.

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{MAX_VALUE, RESPONSE, Store, StoreError, StoreFuture, check_value, whole_seconds};
use crate::{
    circuit::Circuit,
    clock::{Clock, SystemClock},
};

/// Connections to one server at once; who needs one more waits within its time.
const CONNECTIONS: usize = 32;
/// How long the servers' names may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);
/// While no server is known, names are looked up again after this.
const LOOKUP_AGAIN: Duration = Duration::from_millis(500);
/// So many failures in a row, and a server is left alone for so long.
const FAILURES: NonZeroU32 = NonZeroU32::new(3).unwrap();
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// A line of a server's: `VALUE`, a key, three numbers, and some room.
const MAX_LINE: u64 = 512;
/// Longest key that the protocol has.
const MAX_KEY: usize = 250;
/// Past these seconds an expiry is not a time to live but a time since 1970.
const MAX_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// What looks up servers; [`Dns`] unless another is given.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses that `server`, a `host:port`, stands for.
    fn resolve<'a>(&'a self, server: &'a str)
    -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;
}

/// Looks up names as the system does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dns;

impl Resolve for Dns {
    fn resolve<'a>(
        &'a self,
        server: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        Box::pin(async move { Ok(tokio::net::lookup_host(server).await?.collect()) })
    }
}

/// A [`Store`] in memcached; see the [module](self). Clones share servers and connections.
#[derive(Clone)]
pub struct Memcached {
    names: Arc<[String]>,
    resolver: Arc<dyn Resolve>,
    refresh: Option<Duration>,
    response_timeout: Duration,
    directory: Arc<Directory>,
}

impl Memcached {
    /// Servers, each a `host:port`. They are looked up when they are first needed, which has to be within a tokio runtime.
    pub fn new<N: Into<String>>(servers: impl IntoIterator<Item = N>) -> Self {
        Memcached {
            names: servers.into_iter().map(Into::into).collect(),
            resolver: Arc::new(Dns),
            refresh: None,
            response_timeout: RESPONSE,
            directory: Arc::default(),
        }
    }

    /// Looks up the servers again after so long. While that fails, those that were found before stay.
    pub fn refresh_every(self, interval: Duration) -> Self {
        Memcached { refresh: Some(interval), ..self }
    }

    /// Looks them up by `resolver`.
    pub fn resolver(self, resolver: impl Resolve) -> Self {
        Memcached { resolver: Arc::new(resolver), ..self }
    }

    /// How long a server may take to answer: 40 ms unless set.
    pub fn response_timeout(self, response_timeout: Duration) -> Self {
        Memcached { response_timeout, ..self }
    }

    /// Asks the server that `key` belongs to.
    async fn ask<T>(
        &self,
        key: &str,
        ask: impl AsyncFnOnce(&mut Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        check_key(key)?;
        let asked = async {
            let server = self.server_of(key).await?;
            let attempt = server.circuit.admit(SystemClock.monotonic()).map_err(|_| StoreError::LeftAlone)?;
            let answer = timeout(self.response_timeout, server.ask(ask)).await.unwrap_or(Err(StoreError::TimedOut));
            if answer.is_ok() {
                attempt.succeeded();
            } else {
                attempt.failed(SystemClock.monotonic());
                // The others may be as dead, or lead to a server that is no more.
                server.idle().clear();
            }
            answer.map_err(|error| match error {
                StoreError::Unavailable(text) => StoreError::Unavailable(format!("{}: {text}", server.address).into()),
                other => other,
            })
        };
        asked.await
    }

    async fn server_of(&self, key: &str) -> Result<Arc<Server>, StoreError> {
        let mut found = self.directory.found.subscribe();
        let due = {
            let found = found.borrow();
            let after = if found.servers.is_empty() { Some(LOOKUP_AGAIN) } else { self.refresh };
            found.at.is_none_or(|at| after.is_some_and(|after| at.elapsed() >= after))
        };
        if due {
            self.look_up();
        }
        // Only who has no server waits for the lookup; it goes on if they leave.
        let known = |found: &Found| !found.servers.is_empty() || (!due && found.at.is_some());
        let found = if known(&found.borrow()) {
            found.borrow()
        } else {
            let answered = found.changed();
            match timeout(self.response_timeout, answered).await {
                Err(_) => return Err(StoreError::TimedOut),
                Ok(_) => found.borrow(),
            }
        };
        match found.server_of(key) {
            Some(server) => Ok(Arc::clone(server)),
            None => Err(StoreError::Unavailable(found.failure.clone().into())),
        }
    }

    /// Starts to look up all names, unless that is under way.
    fn look_up(&self) {
        if self.directory.looking_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            // Reset however this ends.
            let _done = Reset(&this.directory.looking_up);
            let lookups: Vec<_> = (0..this.names.len())
                .map(|index| {
                    let this = this.clone();
                    let lookup = async move { this.resolver.resolve(&this.names[index]).await };
                    tokio::spawn(async move { timeout(LOOKUP, lookup).await })
                })
                .collect();
            let mut addresses = this.directory.found.borrow().addresses.clone();
            addresses.resize(this.names.len(), Vec::new());
            let mut failure = String::new();
            for ((lookup, addresses), name) in lookups.into_iter().zip(&mut addresses).zip(&*this.names) {
                match lookup.await {
                    Ok(Ok(Ok(found))) if !found.is_empty() => *addresses = found,
                    Ok(Ok(Err(error))) => failure = format!("{name}: {error}"),
                    _ => failure = format!("{name}: no address was found"),
                }
            }
            this.directory.found.send_modify(|found| found.update(addresses, failure));
        });
    }
}

impl Store for Memcached {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(self.ask(key, async |connection| connection.get(key).await))
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_value(&value)?;
            self.ask(key, async |connection| connection.set(key, &value, expiry(life)).await).await
        })
    }
}

/// Which servers there are, for all clones.
struct Directory {
    found: watch::Sender<Found>,
    looking_up: AtomicBool,
}

impl Default for Directory {
    fn default() -> Self {
        Directory { found: watch::Sender::new(Found::default()), looking_up: AtomicBool::new(false) }
    }
}

struct Reset<'a>(&'a AtomicBool);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[derive(Default)]
struct Found {
    /// Of each name, as found last.
    addresses: Vec<Vec<SocketAddr>>,
    /// All of them.
    servers: Vec<Arc<Server>>,
    /// When they were looked up.
    at: Option<Instant>,
    /// What went wrong last.
    failure: String,
}

impl Found {
    /// By rendezvous hashing: the server that scores highest with this key (Thaler and Ravishankar, 1998).
    fn server_of(&self, key: &str) -> Option<&Arc<Server>> {
        self.servers.iter().max_by_key(|server| xxh3_64_with_seed(key.as_bytes(), server.seed))
    }

    /// Servers that stay keep their connections.
    fn update(&mut self, addresses: Vec<Vec<SocketAddr>>, failure: String) {
        let mut all: Vec<_> = addresses.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        let server = |address| {
            let known = self.servers.iter().find(|server| server.address == address);
            known.cloned().unwrap_or_else(|| Arc::new(Server::new(address)))
        };
        self.servers = all.into_iter().map(server).collect();
        self.addresses = addresses;
        self.at = Some(Instant::now());
        self.failure = failure;
    }
}

/// One server and the connections to it.
struct Server {
    address: SocketAddr,
    seed: u64,
    circuit: Circuit,
    connections: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Server {
    fn new(address: SocketAddr) -> Self {
        Server {
            address,
            // The same in each replica.
            seed: xxh3_64(address.to_string().as_bytes()),
            circuit: Circuit::new(FAILURES, LEFT_ALONE),
            connections: Semaphore::new(CONNECTIONS),
            idle: Mutex::default(),
        }
    }

    async fn ask<T>(&self, ask: impl AsyncFnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Ok(_permit) = self.connections.acquire().await else { return Err(StoreError::TimedOut) };
        let mut connection = match self.usable() {
            Some(connection) => connection,
            None => Connection::open(self.address).await?,
        };
        let answer = ask(&mut connection).await?;
        // Only here is it known that all was said and all was read.
        self.idle().push(connection);
        Ok(answer)
    }

    fn usable(&self) -> Option<Connection> {
        loop {
            // In two steps: the lock is not held while the system is asked.
            let connection = self.idle().pop()?;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self, StoreError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::with_capacity(1024, stream)))
    }

    /// Open, and nothing was said that nobody asked for.
    fn is_quiet(&self) -> bool {
        let nothing = |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.0.buffer().is_empty() && nothing(self.0.get_ref().try_read(&mut [0]))
    }

    async fn get(&mut self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.write_all(format!("get {key}\r\n").as_bytes()).await?;
        let line = self.line().await?;
        if line == "END" {
            return Ok(None);
        }
        // VALUE <key> <flags> <bytes> [<cas unique>]
        let mut words = line.split(' ');
        if words.next() != Some("VALUE") {
            return Err(refusal(&line));
        }
        if words.next() != Some(key) {
            return Err(StoreError::Protocol("the value of another key".into()));
        }
        let length = words.nth(1).and_then(|length| length.parse::<usize>().ok());
        let Some(length) = length.filter(|length| *length <= MAX_VALUE) else {
            return Err(StoreError::Protocol("a value without a length, or too long".into()));
        };
        let mut value = vec![0; length + 2];
        self.0.read_exact(&mut value).await?;
        if !value.ends_with(b"\r\n") || self.line().await? != "END" {
            return Err(StoreError::Protocol("a value that does not end where it should".into()));
        }
        value.truncate(length);
        Ok(Some(value.into()))
    }

    async fn set(&mut self, key: &str, value: &[u8], expiry: u64) -> Result<(), StoreError> {
        let mut command = String::with_capacity(key.len() + 48);
        let _ = write!(command, "set {key} 0 {expiry} {}\r\n", value.len());
        // In one piece, for one packet.
        let command = [command.as_bytes(), value, b"\r\n"].concat();
        self.0.write_all(&command).await?;
        match self.line().await?.as_str() {
            "STORED" => Ok(()),
            line => Err(refusal(line)),
        }
    }

    async fn line(&mut self) -> Result<String, StoreError> {
        let mut line = Vec::with_capacity(64);
        (&mut self.0).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\r\n").map(|line| String::from_utf8(line.to_vec())) {
            Some(Ok(line)) => Ok(line),
            _ if line.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Err(StoreError::Protocol("a line that does not end, or is not text".into())),
        }
    }
}

/// What a line means that is not the answer. Its text may repeat what was sent.
fn refusal(line: &str) -> StoreError {
    match line.split(' ').next() {
        Some("SERVER_ERROR") => StoreError::Unavailable("SERVER_ERROR".into()),
        Some("CLIENT_ERROR") => StoreError::Protocol("CLIENT_ERROR".into()),
        Some("ERROR") => StoreError::Protocol("ERROR".into()),
        Some("NOT_STORED") => StoreError::Unavailable("NOT_STORED".into()),
        _ => StoreError::Protocol("an answer to something else".into()),
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    let fits = (1..=MAX_KEY).contains(&key.len());
    if fits && key.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
        Ok(())
    } else {
        Err(StoreError::Invalid("a key is 1 to 250 bytes without spaces and control characters".into()))
    }
}

fn expiry(life: Duration) -> u64 {
    match whole_seconds(life) {
        seconds if seconds <= MAX_RELATIVE => seconds,
        seconds => {
            let now = SystemClock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            now.as_secs().saturating_add(seconds)
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => StoreError::TimedOut,
            _ => StoreError::Unavailable(error.to_string().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(servers: &[u8]) -> Found {
        let mut found = Found::default();
        found.update(vec![servers.iter().map(|n| SocketAddr::from(([10, 0, 0, *n], 11211))).collect()], String::new());
        found
    }

    #[test]
    fn servers_share_the_keys_alike_and_one_that_goes_takes_only_its_own() {
        let (four, three) = (found(&[1, 2, 3, 4]), found(&[3, 1, 4]));
        let mut shares = [0; 5];
        for i in 0..10_000 {
            let key = format!("app:{i}");
            let server = four.server_of(&key).unwrap().address;
            let SocketAddr::V4(v4) = server else { unreachable!() };
            let number = v4.ip().octets()[3];
            shares[usize::from(number)] += 1;
            if number != 2 {
                assert_eq!(three.server_of(&key).unwrap().address, server);
            }
        }
        assert!(shares[1..].iter().all(|share| (2300..2700).contains(share)), "{shares:?}");
    }

    /// Replicas of two versions share servers while one is rolled out.
    #[test]
    fn a_key_keeps_its_server_through_versions_of_this_code() {
        let found = found(&[1, 2, 3, 4]);
        let servers = ["a", "b", "c", "d", "e"].map(|key| found.server_of(key).unwrap().address.ip().to_string());
        assert_eq!(servers, ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.1", "10.0.0.4"]);
    }

    #[test]
    fn servers_that_stay_keep_their_connections() {
        let mut found = found(&[1, 2]);
        let before = Arc::clone(&found.servers[1]);
        let addresses = [2, 3].map(|n| SocketAddr::from(([10, 0, 0, n], 11211)));
        found.update(vec![vec![addresses[0]], vec![addresses[1], addresses[0]]], String::new());
        assert_eq!(found.servers.iter().map(|server| server.address).collect::<Vec<_>>(), addresses);
        assert!(Arc::ptr_eq(&before, &found.servers[0]));
    }

    #[test]
    fn a_life_past_thirty_days_is_a_date() {
        assert_eq!(expiry(Duration::ZERO), 1);
        assert_eq!(expiry(Duration::from_secs(MAX_RELATIVE)), MAX_RELATIVE);
        assert!(expiry(Duration::from_secs(MAX_RELATIVE + 1)) > 1_700_000_000);
    }
}
