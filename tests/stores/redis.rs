//! redis-server: alone, as a cluster, behind sentinels.

use super::*;

mod server {
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

mod cluster {
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

mod sentinel {
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
