//! The engines that replicas share, as they are: redis-server and memcached, killed, stopped, lied for, and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "stores/memcached.rs"]
mod memcached;
#[path = "stores/redis.rs"]
mod redis;
mod support;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use infogw_layers::store::{
    Bounded, MAX_VALUE, Store, StoreError,
    memcached::{Memcached as Client, Resolve},
    redis::{ClientTlsConfig, RedisConfig, RedisConnection, RedisMode, RedisStore, RedisTls},
};
use infogw_proxy::{
    admin::metrics::Metrics,
    config::{Config, Flags, StoreFlags},
    stores,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use support::{Gateway, Memcached, RedisServer, World, ensure, eventually, payload::series, within, world::now};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

const MINUTE: Duration = Duration::from_secs(60);

/// For tests in which nothing is silent: machines that run tests are slow at times.
const PATIENT: Duration = Duration::from_secs(20);

fn connection(urls: &[String], mode: RedisMode) -> RedisConnection {
    RedisConnection::new(&RedisConfig::new(urls, mode).unwrap()).unwrap()
}

fn patient(url: String) -> RedisConnection {
    RedisConnection::new(&RedisConfig::new(&[url], RedisMode::Single).unwrap().response_timeout(PATIENT)).unwrap()
}

fn redis(url: &str) -> RedisStore {
    RedisStore::new(patient(url.to_owned()))
}

fn memcached(servers: &[&Memcached]) -> Client {
    Client::new(servers.iter().map(|server| server.address())).response_timeout(PATIENT)
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

/// Writes and reads until both work.
async fn works(what: &str, store: &impl Store, key: &str) {
    let seen = async || {
        store.set(key, bytes("works"), MINUTE).await.map_err(|error| error.to_string())?;
        let got = store.get(key).await.map_err(|error| error.to_string())?;
        ensure(got.as_deref() == Some(b"works"), || format!("{got:?}"))
    };
    eventually(what, seen).await;
}

/// Reads until it works.
async fn gets(store: &impl Store, key: &str) -> Option<Bytes> {
    eventually("a read", async || store.get(key).await.map_err(|error| error.to_string())).await
}

/// Keys whose values are their names, each written once it can be.
async fn named(store: &impl Store, count: usize) -> Vec<String> {
    let keys: Vec<_> = (0..count).map(|i| format!("app:{i}")).collect();
    for key in &keys {
        let set = async || store.set(key, bytes(key), MINUTE).await.map_err(|error| error.to_string());
        eventually("a write", set).await;
    }
    keys
}

/// While `pause` lasts, reads of all keys end without an answer; after `resume`, each key gets its own value or none.
async fn no_answer_meets_anothers_question<S: Store + Clone>(
    store: &S,
    pause: impl AsyncFnOnce(),
    resume: impl AsyncFnOnce(),
) {
    let keys = named(store, 40).await;
    pause().await;
    let mut calls = tokio::task::JoinSet::new();
    for (index, key) in keys.iter().cloned().enumerate() {
        let store = store.clone();
        calls.spawn(async move {
            let call = store.get(&key);
            if index % 2 == 0 {
                return call.await.map(drop);
            }
            // Its caller leaves.
            tokio::time::timeout(Duration::from_millis(5), call).await.map_or(Ok(()), |result| result.map(drop))
        });
    }
    let mut ends = Vec::new();
    while let Some(end) = within("calls to a silent server", calls.join_next()).await {
        ends.extend(end.unwrap().err());
    }
    assert!(ends.contains(&StoreError::TimedOut), "{ends:?}");
    assert!(ends.iter().all(|end| matches!(end, StoreError::TimedOut | StoreError::LeftAlone)), "{ends:?}");
    resume().await;
    works("after the silence", store, "app:works").await;
    for key in &keys {
        assert_eq!(gets(store, key).await, Some(bytes(key)));
    }
}

/// Reads and writes of many, each of its own key, while `ordeal` lasts: every call ends, no answer is another's, and it works after.
async fn bears<S: Store + Clone>(store: S, ordeal: impl AsyncFnOnce()) {
    let store = Arc::new(Bounded::new(store));
    works("before", &store, "app:before").await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut callers = tokio::task::JoinSet::new();
    // Done, failed.
    let results = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    for index in 0..64 {
        let (store, stopped, results) = (store.clone(), stopped.clone(), Arc::clone(&results));
        callers.spawn(async move {
            let key = format!("app:{index}");
            while !*stopped.borrow() {
                let set = store.set(&key, bytes(&key), MINUTE).await;
                let got = within("a call", store.get(&key)).await;
                if let Ok(Some(value)) = &got {
                    assert_eq!(*value, bytes(&key));
                }
                results[usize::from(set.is_err() || got.is_err())].fetch_add(1, Ordering::Relaxed);
                // Failures come at once, and are not to starve the server.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    ordeal().await;
    works("after", &store, "app:after").await;
    let [done, failed] = &*results;
    let before = done.load(Ordering::Relaxed);
    eventually("the callers are served again", async || {
        ensure(done.load(Ordering::Relaxed) > before, || format!("{results:?} done and failed"))
    })
    .await;
    stop.send_replace(true);
    while let Some(ended) = within("the callers' end", callers.join_next()).await {
        ended.unwrap();
    }
    assert!(failed.load(Ordering::Relaxed) > 0);
}

macro_rules! ordeal {
    ($server:ident, $store:expr) => {{
        let mut server = $server::start().await;
        let store = $store(&server);
        bears(store.clone(), async || {
            for _ in 0..2 {
                server.kill().await;
                server.restart().await;
                works("after a restart", &store, "app:restart").await;
                server.pause().await;
                let error = async || ensure(store.get("app:pause").await.is_err(), || "it answers".to_owned());
                eventually("silence", error).await;
                server.resume().await;
                works("after a pause", &store, "app:resume").await;
            }
        })
        .await;
    }};
}

#[tokio::test]
async fn redis_is_killed_and_stopped_under_load() {
    ordeal!(RedisServer, |server: &RedisServer| RedisStore::new(connection(&[server.url()], RedisMode::Single)));
}

#[tokio::test]
async fn memcached_is_killed_and_stopped_under_load() {
    ordeal!(Memcached, |server: &Memcached| Client::new([server.address()]));
}

#[tokio::test]
async fn a_gateway_starts_while_they_are_down() {
    let (mut redis, mut memcached) = (RedisServer::start().await, Memcached::start().await);
    redis.kill().await;
    memcached.kill().await;
    let world = World::with(&["--redis", &redis.url(), "--memcached", &memcached.address()]).await;
    world.receive("c1", vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]).await.expect_status(200);
}

/// What `metrics` tell of this series.
fn metric(metrics: &Metrics, series: &str) -> f64 {
    let (_, text) = metrics.expose(&hyper::HeaderMap::new()).unwrap();
    let text = String::from_utf8(text).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {text}"))
}

#[tokio::test]
async fn memcached_holds_authorizations_and_redis_does_where_there_is_no_memcached() {
    let (redis, mut memcached) = (RedisServer::start().await, Memcached::start().await);
    let config = |memcached: &[String]| {
        let stores = StoreFlags { redis: vec![redis.url()], memcached: memcached.to_vec(), ..StoreFlags::default() };
        let url = Some("http://localhost/".to_owned());
        Config::new(Flags { authorize: url.clone(), forward_url: url, stores, ..Flags::default() }).unwrap().stores
    };
    let metrics = Metrics::new().unwrap();
    let both = stores::authorizations(&config(&[memcached.address()]), metrics).unwrap();
    works("memcached", &both, "app:memcached").await;
    assert_eq!(memcached.say("get app:memcached").await[1], "works");
    assert_eq!(redis.cli(&["DBSIZE"]).await, "0");
    let alone = stores::authorizations(&config(&[]), metrics).unwrap();
    works("redis", &alone, "app:redis").await;
    assert_eq!(redis.cli(&["GET", "app:redis"]).await, "works");
    assert!(stores::rate_limit(&config(&[])).is_some());

    for store in ["memcached", "redis"] {
        let count = |operation: &str, result: &str| {
            let labels = format!("operation=\"{operation}\",result=\"{result}\",store=\"{store}\"");
            metric(metrics, &format!("infogw_store_requests_total{{{labels}}}"))
        };
        assert!(count("set", "stored") >= 1.0 && count("get", "hit") >= 1.0);
        // It is there before the first is.
        assert!(count("get", "skipped") >= 0.0);
    }
    let took = "infogw_store_request_duration_seconds_count{operation=\"get\",store=\"redis\"}";
    assert!(metric(metrics, took) >= 1.0);

    let open = "infogw_store_circuit_open{store=\"memcached\"}";
    assert_eq!(metric(metrics, open), 0.0);
    memcached.kill().await;
    eventually("an open circuit", async || {
        let _ = both.get("app:memcached").await;
        ensure(metric(metrics, open) == 1.0, || "closed".to_owned())
    })
    .await;
    memcached.restart().await;
    works("after the restart", &both, "app:memcached").await;
    assert_eq!(metric(metrics, open), 0.0);
}

#[tokio::test]
async fn flags_that_make_no_sense_are_one_line_without_a_password() {
    let needed = ["--authorize", "http://localhost/", "--forward-url", "http://localhost/"];
    for (wrong, expected) in [
        (&["--redis", "redis://:hush@a,redis://:hush@b"][..], "--redis: several servers need --redis-mode=cluster"),
        (&["--redis", "redis://:hush@a:b"][..], "--redis: this is not a redis://"),
        (&["--redis-mode", "cluster"][..], "--redis-mode is nothing without --redis"),
        (&["--memcached", "cache"][..], "--memcached: `cache` is not host:port"),
    ] {
        let exit = Gateway::run_to_exit(needed.iter().chain(wrong)).await;
        assert_eq!(exit.code(), 64);
        assert!(exit.stderr.starts_with(&format!("error: {expected}")), "{exit:?}");
        assert!(exit.stderr.lines().count() == 1 && !exit.stderr.contains("hush"), "{exit:?}");
    }
}

/// Hands on what it gets, until it is told to swallow it: what a network does that lost a host.
struct Relay {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    silent: Arc<tokio::sync::watch::Sender<usize>>,
}

impl Relay {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let silent = Arc::new(tokio::sync::watch::Sender::new(0));
        let (counter, silenced) = (connections.clone(), silent.subscribe());
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
                let mut silenced = silenced.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                        _ = silenced.wait_for(|silenced| number <= *silenced) => {}
                    }
                    // Both stay open, and whatever is sent is lost.
                    let mut lost = [0; 1024];
                    while client.read(&mut lost).await.is_ok_and(|read| read > 0) {}
                });
            }
        });
        Relay { address, connections, silent }
    }

    /// For all connections there are; later ones work.
    fn silence(&self) {
        self.silent.send_replace(self.connections.load(Ordering::Relaxed));
    }
}
