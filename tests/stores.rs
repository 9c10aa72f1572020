//! The engines that replicas share, as they are: redis-server and memcached, killed, stopped, lied for, and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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

mod redis_server {
    use super::*;

    #[tokio::test]
    async fn keeps_values_for_their_time() {
        let server = RedisServer::start().await;
        let store = redis(&server.url());
        assert_eq!(store.get("app:k").await.unwrap(), None);
        store.set("app:k", bytes("v\r\n\0"), MINUTE).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap().unwrap(), "v\r\n\0");
        let left: u64 = server.cli(&["TTL", "app:k"]).await.parse().unwrap();
        assert!((50..=60).contains(&left), "{left}");
        store.set("app:k", bytes("v"), Duration::from_millis(1)).await.unwrap();
        eventually("the end of a life", async || {
            ensure(store.get("app:k").await == Ok(None), || "it is there".to_owned())
        })
        .await;
    }

    #[tokio::test]
    async fn values_are_bounded_both_ways() {
        let server = RedisServer::start().await;
        let store = redis(&server.url());
        let most = Bytes::from(vec![b'x'; MAX_VALUE]);
        store.set("app:k", most.clone(), MINUTE).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap(), Some(most.clone()));
        for wrong in [Bytes::new(), Bytes::from(vec![b'x'; MAX_VALUE + 1])] {
            assert!(matches!(store.set("app:k", wrong, MINUTE).await, Err(StoreError::Invalid(_))));
        }

        server.cli(&["SETRANGE", "app:k", "10000000", "x"]).await;
        assert!(matches!(store.get("app:k").await, Err(StoreError::Protocol(_))));
        server.cli(&["LPUSH", "app:list", "x"]).await;
        assert_eq!(store.get("app:list").await, Err(StoreError::Protocol("WRONGTYPE".into())));
        assert_eq!(store.get("app:none").await, Ok(None), "the connection is none the worse");
    }

    #[tokio::test]
    async fn killed_it_fails_at_once_and_comes_back_by_itself() {
        let mut server = RedisServer::start().await;
        let store = redis(&server.url());
        works("at first", &store, "app:k").await;
        for _ in 0..2 {
            server.kill().await;
            let error = store.get("app:k").await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
            server.restart().await;
            works("after the restart", &store, "app:k").await;
        }
    }

    #[tokio::test]
    async fn need_not_be_there_at_the_start() {
        let mut server = RedisServer::start().await;
        server.kill().await;
        let store = redis(&server.url());
        let error = store.get("app:k").await.unwrap_err();
        assert!(error.to_string().starts_with("unavailable: Connection refused"), "{error}");
        server.restart().await;
        works("after the start", &store, "app:k").await;
    }

    #[tokio::test]
    async fn stopped_it_times_out_and_mixes_nothing_up() {
        let server = RedisServer::start().await;
        let store = RedisStore::new(connection(&[server.url()], RedisMode::Single));
        no_answer_meets_anothers_question(&store, async || server.pause().await, async || server.resume().await).await;
    }

    /// As a master that a sentinel demoted.
    #[tokio::test]
    async fn that_takes_no_writes_any_more_is_left_for_another_connection() {
        let server = RedisServer::start().await;
        let relay = Relay::to(server.port()).await;
        let store = redis(&format!("redis://{}", relay.address));
        works("as a master", &store, "app:k").await;
        assert_eq!(server.cli(&["REPLICAOF", "127.0.0.1", "1"]).await, "OK");
        let error = store.set("app:k", bytes("v"), MINUTE).await.unwrap_err();
        assert_eq!(error, StoreError::Unavailable("READONLY".into()));
        assert_eq!(server.cli(&["REPLICAOF", "NO", "ONE"]).await, "OK");
        works("as a master again", &store, "app:k").await;
        assert_eq!(relay.connections.load(Ordering::Relaxed), 2);
    }

    /// As when its host is gone without a word, and another has its address.
    #[tokio::test]
    async fn a_connection_that_went_silent_is_replaced() {
        let server = RedisServer::start().await;
        let relay = Relay::to(server.port()).await;
        let store = RedisStore::new(connection(&[format!("redis://{}", relay.address)], RedisMode::Single));
        works("at first", &store, "app:k").await;
        let before = relay.connections.load(Ordering::Relaxed);
        relay.silence();
        assert_eq!(store.get("app:k").await, Err(StoreError::TimedOut));
        works("by another connection", &store, "app:k").await;
        assert!(relay.connections.load(Ordering::Relaxed) > before);
    }

    #[tokio::test]
    async fn passwords_and_databases_are_those_of_the_url_and_never_shown() {
        let acl = ["--user", "gateway", "on", ">hush", "~app:*", "+@all", "--requirepass", "hush2"];
        let server = RedisServer::start_with(&acl).await;
        for (user, allowed) in [("gateway:hush@", true), (":hush2@", true), ("gateway:hush3@", false), ("", false)] {
            let url = format!("redis://{user}127.0.0.1:{}/3", server.port());
            let connection = patient(url);
            let store = RedisStore::new(connection.clone());
            let set = store.set("app:k", bytes("v"), MINUTE).await;
            if allowed {
                assert_eq!(set, Ok(()));
                assert_eq!(server.cli(&["-n", "3", "--pass", "hush2", "--no-auth-warning", "GET", "app:k"]).await, "v");
                continue;
            }
            let error = set.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
            let shown = format!("{error} {error:?} {connection:?} {store:?}");
            assert!(!shown.contains("hush"), "{shown}");
        }
        let foreign = redis(&format!("redis://gateway:hush@127.0.0.1:{}", server.port()));
        assert_eq!(foreign.get("other:k").await, Err(StoreError::Unavailable("NOPERM".into())));
    }

    #[tokio::test]
    async fn is_reached_by_a_unix_socket() {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("redis.sock").display().to_string();
        let _server = RedisServer::start_with(&["--unixsocket", &socket]).await;
        works("by a socket", &redis(&format!("redis+unix://{socket}")), "app:k").await;
    }

    #[tokio::test]
    async fn over_tls_both_ends_are_known() {
        let authority = Authority::new();
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (certificate, key) = authority.issue();
        for (name, pem) in [("ca.crt", &authority.pem), ("tls.crt", &certificate), ("tls.key", &key)] {
            std::fs::write(path(name), pem).unwrap();
        }
        let files = [path("ca.crt"), path("tls.crt"), path("tls.key")];
        let server = RedisServer::start_as(move |port| {
            let port = port.to_string();
            let [ca, crt, key] = &files;
            let options = ["--port", "0", "--tls-port", &port, "--tls-ca-cert-file", ca, "--tls-cert-file", crt];
            options.into_iter().chain(["--tls-key-file", key]).map(str::to_owned).collect()
        })
        .await;
        let url = format!("rediss://localhost:{}", server.port());
        let store = |roots: &str, client: Option<(String, String)>| {
            let client = client.map(|(certificate, key)| ClientTlsConfig {
                client_cert: certificate.into_bytes(),
                client_key: key.into_bytes(),
            });
            let tls = RedisTls { roots: Some(roots.to_owned().into_bytes()), client };
            let config = RedisConfig::new(&[&url], RedisMode::Single).unwrap().tls(tls);
            // Handshakes take their time where a dozen tests run.
            let config = config.response_timeout(PATIENT);
            RedisStore::new(RedisConnection::new(&config).unwrap())
        };
        works("over TLS", &store(&authority.pem, Some(authority.issue())), "app:k").await;

        let another = Authority::new();
        let error = store(&another.pem, Some(authority.issue())).get("app:k").await.unwrap_err();
        assert!(error.to_string().contains("invalid peer certificate"), "{error}");
        for client in [None, Some(another.issue())] {
            let error = store(&authority.pem, client).get("app:k").await.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        }
    }

    #[test]
    fn certificates_that_are_none_are_told_at_once() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue();
        let (_, anothers) = authority.issue();
        let client = |certificate: &str, key: &str| ClientTlsConfig {
            client_cert: certificate.as_bytes().to_vec(),
            client_key: key.as_bytes().to_vec(),
        };
        for (roots, client, expected) in [
            (Some(""), None, "the certificates to trust: there is none"),
            (None, Some(client("", &key)), "the client certificate: there is none"),
            (None, Some(client(&certificate, "")), "the client key: "),
            (None, Some(client(&certificate, &anothers)), "the client certificate and key: "),
        ] {
            let tls = RedisTls { roots: roots.map(|roots| roots.as_bytes().to_vec()), client };
            let config = RedisConfig::new(&["rediss://localhost"], RedisMode::Single).unwrap().tls(tls);
            let error = RedisConnection::new(&config).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

mod redis_cluster {
    use super::*;

    struct Cluster {
        nodes: Vec<RedisServer>,
    }

    impl Cluster {
        /// Three masters without replicas; while one is gone, the others go on.
        async fn start() -> Self {
            let mut nodes = Vec::new();
            for _ in 0..3 {
                let options = |port: u16| {
                    let bus = (port ^ 1).to_string();
                    let options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
                    let options = options.into_iter().chain(["--cluster-port", &bus]);
                    options.map(str::to_owned).collect()
                };
                nodes.push(RedisServer::start_as(options).await);
            }
            let ranges = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
            for (node, (first, last)) in nodes.iter().zip(ranges) {
                assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await, "OK");
                let (port, bus) = (nodes[0].port(), nodes[0].port() ^ 1);
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), &bus.to_string()];
                assert_eq!(node.cli(&meet).await, "OK");
            }
            for node in &nodes {
                eventually("a whole cluster", async || {
                    let info = node.cli(&["CLUSTER", "INFO"]).await;
                    let whole = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"];
                    ensure(whole.iter().all(|line| info.contains(line)), || info.clone())
                })
                .await;
            }
            Cluster { nodes }
        }
    }

    #[tokio::test]
    async fn keys_and_scripts_go_where_they_belong_and_a_node_takes_only_its_own_with_it() {
        let mut cluster = Cluster::start().await;
        // One node is enough to find the others.
        let connection = connection(&[cluster.nodes[0].url()], RedisMode::Cluster);
        let store = RedisStore::new(connection.clone());
        let keys = named(&store, 60).await;
        for key in &keys {
            let length = async || {
                let mut script = ::redis::cmd("EVAL");
                script.arg("return redis.call('STRLEN', KEYS[1])").arg(1).arg(key);
                connection.query::<usize>(&script).await.map_err(|error| error.to_string())
            };
            assert_eq!(eventually("a script", length).await, key.len());
        }
        let mut held = Vec::new();
        for node in &cluster.nodes {
            held.push(node.cli(&["DBSIZE"]).await.parse::<usize>().unwrap());
        }
        assert!(held.iter().all(|held| *held > 0) && held.iter().sum::<usize>() == keys.len(), "{held:?}");

        cluster.nodes[2].kill().await;
        let lost = async || {
            let mut lost = 0;
            for key in &keys {
                lost += usize::from(store.get(key).await.is_err());
            }
            ensure(lost == held[2], || format!("{lost} of {held:?}"))
        };
        eventually("the others' keys, and only these", lost).await;

        cluster.nodes[2].restart().await;
        for key in &keys {
            works("with all nodes", &store, key).await;
        }
    }

    #[tokio::test]
    async fn all_of_it_gone_it_comes_back() {
        let mut cluster = Cluster::start().await;
        let urls: Vec<_> = cluster.nodes.iter().map(RedisServer::url).collect();
        let store = RedisStore::new(connection(&urls, RedisMode::Cluster));
        let keys = named(&store, 10).await;
        for node in &mut cluster.nodes {
            node.kill().await;
        }
        assert!(store.get(&keys[0]).await.is_err());
        for node in &mut cluster.nodes {
            node.restart().await;
        }
        for key in &keys {
            works("after its end", &store, key).await;
        }
    }
}

mod redis_sentinel {
    use super::*;

    #[tokio::test]
    async fn the_master_is_the_one_that_sentinels_name() {
        let auth = ["--requirepass", "hush", "--masterauth", "hush"];
        let mut master = RedisServer::start_with(&auth).await;
        let port = master.port().to_string();
        let replica = RedisServer::start_with(&[&auth[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;
        let cli = ["--pass", "hush", "--no-auth-warning"];
        eventually("a replica in step", async || {
            let info = replica.cli(&[&cli[..], &["INFO", "replication"]].concat()).await;
            ensure(info.contains("master_link_status:up"), || info.clone())
        })
        .await;
        let sentinel = RedisServer::start_with(&["--sentinel"]).await;
        assert_eq!(sentinel.cli(&["SENTINEL", "MONITOR", "primary", "127.0.0.1", &port, "1"]).await, "OK");
        assert_eq!(sentinel.cli(&["SENTINEL", "SET", "primary", "auth-pass", "hush"]).await, "OK");
        eventually("a sentinel that knows both", async || {
            let info = sentinel.cli(&["INFO", "sentinel"]).await;
            ensure(info.contains("status=ok") && info.contains("slaves=1"), || info.clone())
        })
        .await;

        let url = format!("redis://:hush@127.0.0.1:{}/2", sentinel.port());
        let mode = RedisMode::Sentinel { master: "primary".to_owned() };
        let store = RedisStore::new(connection(&[url], mode));
        works("the master", &store, "app:k").await;
        assert_eq!(master.cli(&[&cli[..], &["-n", "2", "GET", "app:k"]].concat()).await, "works");

        eventually("a failover", async || {
            let answer = sentinel.cli(&["SENTINEL", "FAILOVER", "primary"]).await;
            ensure(answer == "OK", || answer.clone())
        })
        .await;
        let promoted = replica.port().to_string();
        eventually("another master", async || {
            let named = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "primary"]).await;
            ensure(named.ends_with(&promoted), || named.clone())
        })
        .await;
        master.kill().await;
        works("the other master", &store, "app:after").await;
        assert_eq!(replica.cli(&[&cli[..], &["-n", "2", "GET", "app:after"]].concat()).await, "works");
    }
}

mod memcached_server {
    use super::*;

    #[tokio::test]
    async fn keeps_values_for_their_time() {
        let server = Memcached::start().await;
        let store = memcached(&[&server]);
        assert_eq!(store.get("app:k").await.unwrap(), None);
        store.set("app:k", bytes("v\r\nEND\r\n\0"), MINUTE).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap().unwrap(), "v\r\nEND\r\n\0");
        // Told as so many seconds, it would end in 1970.
        store.set("app:k", bytes("long"), Duration::from_secs(31 * 86_400)).await.unwrap();
        assert_eq!(store.get("app:k").await.unwrap().unwrap(), "long");
        store.set("app:k", bytes("short"), Duration::from_millis(1)).await.unwrap();
        eventually("the end of a life", async || {
            ensure(store.get("app:k").await == Ok(None), || "it is there".to_owned())
        })
        .await;
    }

    #[tokio::test]
    async fn keys_and_values_are_bounded() {
        let server = Memcached::start().await;
        let store = memcached(&[&server]);
        let most = Bytes::from(vec![b'x'; MAX_VALUE]);
        let longest = "k".repeat(250);
        store.set(&longest, most.clone(), MINUTE).await.unwrap();
        assert_eq!(store.get(&longest).await.unwrap(), Some(most));
        for wrong in [Bytes::new(), Bytes::from(vec![b'x'; MAX_VALUE + 1])] {
            assert!(matches!(store.set("app:k", wrong, MINUTE).await, Err(StoreError::Invalid(_))));
        }
        for key in ["", "a b", "a\r\nflush_all", "a\0", "\u{7f}", &"k".repeat(251)] {
            assert!(matches!(store.get(key).await, Err(StoreError::Invalid(_))), "{key:?}");
            assert!(matches!(store.set(key, bytes("v"), MINUTE).await, Err(StoreError::Invalid(_))), "{key:?}");
        }
        assert_eq!(server.say("get a").await, ["END"]);
        server.say(&format!("set app:long 0 0 9000\r\n{}", "x".repeat(9000))).await;
        assert!(matches!(store.get("app:long").await, Err(StoreError::Protocol(_))));
    }

    #[tokio::test]
    async fn one_server_killed_only_its_keys_miss_and_it_comes_back() {
        let (mut one, other) = (Memcached::start().await, Memcached::start().await);
        let store = memcached(&[&one, &other]);
        let keys = named(&store, 100).await;
        let mut of_one = BTreeSet::new();
        for key in &keys {
            if one.say(&format!("get {key}")).await.len() > 1 {
                of_one.insert(key);
            }
        }
        assert!((20..80).contains(&of_one.len()), "{of_one:?}");

        one.kill().await;
        for key in &keys {
            let got = store.get(key).await;
            if of_one.contains(key) {
                assert!(matches!(got, Err(StoreError::Unavailable(_) | StoreError::LeftAlone)), "{got:?}");
            } else {
                assert_eq!(got.unwrap(), Some(bytes(key)));
            }
        }
        assert_eq!(store.get(of_one.first().unwrap()).await, Err(StoreError::LeftAlone));

        one.restart().await;
        for key in of_one {
            assert_eq!(gets(&store, key).await, None);
            works("with both servers", &store, key).await;
        }
    }

    #[tokio::test]
    async fn stopped_it_times_out_and_mixes_nothing_up() {
        let server = Memcached::start().await;
        let store = Client::new([server.address()]).response_timeout(Duration::from_millis(40));
        no_answer_meets_anothers_question(&store, async || server.pause().await, async || server.resume().await).await;
    }

    #[tokio::test]
    async fn connections_are_kept_and_their_number_is_bounded() {
        let server = Memcached::start().await;
        let relay = Relay::to(server.port()).await;
        let store = Client::new([relay.address.to_string()]).response_timeout(PATIENT);
        works("at first", &store, "app:k").await;
        for _ in 0..20 {
            store.get("app:k").await.unwrap();
        }
        assert_eq!(relay.connections.load(Ordering::Relaxed), 1);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let store = store.clone();
            calls.spawn(async move { store.get("app:k").await.unwrap() });
        }
        while let Some(value) = calls.join_next().await {
            assert_eq!(value.unwrap(), Some(bytes("works")));
        }
        assert!(relay.connections.load(Ordering::Relaxed) <= 32);
    }

    #[tokio::test]
    async fn names_are_looked_up_again_and_what_was_found_stays_while_they_cannot_be() {
        let (one, other) = (Memcached::start().await, Memcached::start().await);
        let names = Names::default();
        let store = Client::new(["cache.test:11211"])
            .resolver(names.clone())
            .refresh_every(Duration::from_millis(1))
            .response_timeout(PATIENT);
        names.answer(Err("no such host"));
        let error = store.get("app:k").await.unwrap_err();
        assert_eq!(error.to_string(), "unavailable: cache.test:11211: no such host");

        names.answer(Ok(vec![one.address()]));
        let keys = named(&store, 40).await;
        // Each address is a server of its own, in whichever order they come.
        names.answer(Ok(vec![other.address(), one.address(), other.address()]));
        eventually("keys on the new server", async || {
            for key in &keys {
                store.set(key, bytes(key), MINUTE).await.map_err(|error| error.to_string())?;
            }
            let stats = other.say("stats").await;
            ensure(!stats.contains(&"STAT curr_items 0".to_owned()), || format!("{stats:?}"))
        })
        .await;
        // Some may have been written while only the first was known.
        named(&store, 40).await;
        names.answer(Err("no answer"));
        names.asked_again(&store).await;
        for key in &keys {
            assert_eq!(gets(&store, key).await, Some(bytes(key)));
        }
        // Without the other again: what it had is no longer found, and everything works.
        names.answer(Ok(vec![one.address()]));
        names.asked_again(&store).await;
        drop(other);
        for key in &keys {
            works("without the other", &store, key).await;
        }
    }
}

mod memcached_that_lies {
    use super::*;

    /// What a server says to `get app:k`, one connection after the other, and what becomes of it. The last word is always honest.
    async fn said(answers: &[&str]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let mut script: Vec<_> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        script.push("VALUE app:k 0 6\r\nhonest\r\nEND\r\n".to_owned());
        let liar = Liar::start(script).await;
        // A client for each: three failures in a row, and a server is left alone.
        let mut results = Vec::new();
        for _ in 0..=answers.len() {
            let store = Client::new([liar.to_string()]).response_timeout(PATIENT);
            results.push(within("an answer", store.get("app:k")).await);
        }
        results
    }

    #[tokio::test]
    async fn is_not_believed() {
        let endless = "x".repeat(100_000);
        let results = said(&[
            "VALUE app:other 0 1\r\nx\r\nEND\r\n",
            "VALUE app:k 0 8193\r\n",
            "VALUE app:k 0 99999999999999999999\r\n",
            "VALUE app:k 0 -1\r\n",
            "VALUE app:k 0\r\n",
            "VALUE app:k 0 1\r\nxx\r\nEND\r\n",
            "VALUE app:k 0 1\r\nx\r\nVALUE app:k 0 1\r\nx\r\nEND\r\n",
            "\u{0}\u{1}\u{2}\r\n",
            "END\n",
            "STORED\r\n",
            "ERROR\r\n",
            "CLIENT_ERROR line too long\r\n",
            &endless,
            &format!("VALUE app:k {endless}"),
        ])
        .await;
        let (honest, lies) = results.split_last().unwrap();
        for (index, lie) in lies.iter().enumerate() {
            assert!(matches!(lie, Err(StoreError::Protocol(_))), "{index}: {lie:?}");
        }
        assert_eq!(*honest, Ok(Some(bytes("honest"))));
    }

    #[tokio::test]
    async fn or_dies_mid_word_is_unavailable() {
        let results =
            said(&["", "VAL", "VALUE app:k 0 5\r\nab", "VALUE app:k 0 1\r\nx\r\n", "SERVER_ERROR hush\r\n"]).await;
        let (honest, cuts) = results.split_last().unwrap();
        for cut in cuts {
            assert!(matches!(cut, Err(StoreError::Unavailable(_) | StoreError::Protocol(_))), "{cut:?}");
            assert!(!format!("{cut:?}").contains("hush"));
        }
        assert_eq!(*honest, Ok(Some(bytes("honest"))));
    }

    /// The second answer came unasked with the first: it must not become the answer to the next question.
    #[tokio::test]
    async fn or_talks_unasked_is_not_listened_to() {
        let unasked = "VALUE app:k 0 5\r\nfirst\r\nEND\r\nVALUE app:k 0 7\r\nunasked\r\nEND\r\n".to_owned();
        let liar = Liar::start(vec![unasked, "VALUE app:k 0 6\r\nsecond\r\nEND\r\n".to_owned()]).await;
        let store = Client::new([liar.to_string()]).response_timeout(PATIENT);
        assert_eq!(store.get("app:k").await, Ok(Some(bytes("first"))));
        assert_eq!(store.get("app:k").await, Ok(Some(bytes("second"))));
    }
}

/// Says the next thing on each new connection, once it was asked something, and closes it when the client has had its say.
struct Liar;

impl Liar {
    async fn start(script: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut asked = [0; 1024];
                    if stream.read(&mut asked).await.is_ok_and(|read| read > 0) {
                        let _ = stream.write_all(answer.as_bytes()).await;
                        let _ = stream.shutdown().await;
                        while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {}
                    }
                });
            }
        });
        address
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

/// A resolver that answers what it is told.
#[derive(Clone, Default)]
struct Names(Arc<NamesState>);

#[derive(Default)]
struct NamesState {
    answer: Mutex<Option<Result<Vec<String>, &'static str>>>,
    asked: AtomicUsize,
}

impl Names {
    fn answer(&self, answer: Result<Vec<String>, &'static str>) {
        *self.0.answer.lock().unwrap() = Some(answer);
    }

    /// Makes `store` look up its names, by asking it for something, and waits until it has twice: the first may have been under way.
    async fn asked_again(&self, store: &Client) {
        let before = self.0.asked.load(Ordering::Relaxed);
        eventually("a lookup", async || {
            let _ = store.get("app:none").await;
            let asked = self.0.asked.load(Ordering::Relaxed);
            ensure(asked >= before + 2, || format!("asked {asked} times"))
        })
        .await;
    }
}

impl Resolve for Names {
    fn resolve<'a>(
        &'a self,
        server: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        assert_eq!(server, "cache.test:11211");
        let answer = self.0.answer.lock().unwrap().clone().unwrap();
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        let parsed = |addresses: Vec<String>| addresses.iter().map(|address| address.parse().unwrap()).collect();
        Box::pin(async move { answer.map(parsed).map_err(io::Error::other) })
    }
}

/// Issues certificates for `localhost`.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        Authority { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}
