//! Two gateways that share what the authorizer granted, and what happens when the store between them dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use infogw_layers::authorize::jwt::SigningKey;
use infogw_proto::prometheus::TimeSeries;
use rcgen::KeyPair;
use support::{
    Answer, Authorizer, Gateway, Memcached, RedisServer, Reply, Upstream, ensure, eventually,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, now},
};
use tempfile::NamedTempFile;
use tokio::task::JoinSet;

fn up(cluster: &str) -> Vec<TimeSeries> {
    vec![series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])]
}

async fn receive(gateway: &Gateway, cluster: &str) -> Reply {
    gateway.receive(&composite_token(PULL_SECRET, cluster), write_body(up(cluster))).await
}

fn key() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(SigningKey::from_pem_or_der(&fs::read(file.path()).unwrap()).is_ok());
    file
}

/// Replicas between one authorizer and one upstream.
struct Fleet {
    authorizer: Authorizer,
    upstream: Upstream,
    key: NamedTempFile,
    store: Vec<String>,
}

impl Fleet {
    async fn sharing(store: &[String]) -> Self {
        Fleet {
            authorizer: Authorizer::granting().await,
            upstream: Upstream::accepting().await,
            key: key(),
            store: store.to_vec(),
        }
    }

    async fn replica(&self, key: &NamedTempFile, flags: &[&str]) -> Gateway {
        let (authorize, forward) = (self.authorizer.url(), self.upstream.url());
        let key = key.path().to_str().unwrap();
        let mut args = vec!["--authorize", &authorize, "--forward-url", &forward, "--shared-key", key];
        args.extend(self.store.iter().map(String::as_str));
        args.extend(flags);
        Gateway::start(args).await
    }

    fn calls(&self) -> usize {
        self.authorizer.received().len()
    }
}

async fn what_one_is_granted_the_other_need_not_ask_for(store: &str, flags: &[String]) {
    let fleet = Fleet::sharing(flags).await;
    let [first, second] = [fleet.replica(&fleet.key, &[]).await, fleet.replica(&fleet.key, &[]).await];
    // A call to a store may be late, and then is a miss: so another cluster is another try.
    let mut clusters = (0..).map(|n| format!("c{n}"));
    let mut shared = String::new();
    eventually("a grant that is shared", async || {
        shared = clusters.next().expect("there is no end of them");
        let series = format!(r#"infogw_store_requests_total{{operation="set",result="stored",store="{store}"}}"#);
        let before = first.metric(&series).await;
        receive(&first, &shared).await.expect_status(200);
        eventually("a grant left for others", async || {
            let written = first.metric(&series).await;
            ensure(written > before, || format!("{written} written"))
        })
        .await;
        let calls = fleet.calls();
        receive(&second, &shared).await.expect_status(200);
        ensure(fleet.calls() == calls, || format!("{shared} was asked about twice"))
    })
    .await;
    assert!(second.metric(r#"infogw_authorization_cache_served_total{from="shared"}"#).await >= 1.0);

    // Not so with another key, nor with another token.
    let calls = fleet.calls();
    let stranger = fleet.replica(&key(), &[]).await;
    receive(&stranger, &shared).await.expect_status(200);
    assert_eq!(fleet.calls(), calls + 1);
    fleet.authorizer.set_script(|_| Answer::json(401, &serde_json::json!({})));
    second.receive(&composite_token("another", &shared), write_body(up(&shared))).await.expect_status(401);
    assert_eq!(fleet.calls(), calls + 2);

    // A replica that starts while the authorizer is down knows what the others know.
    fleet.authorizer.set_script(|_| Answer::Close);
    let third = fleet.replica(&fleet.key, &[]).await;
    eventually("what the others know", async || {
        let reply = receive(&third, &shared).await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
    receive(&third, "unknown").await.expect_status(503);
}

#[tokio::test]
async fn authorizations_are_shared_in_memcached() {
    let memcached = Memcached::start().await;
    what_one_is_granted_the_other_need_not_ask_for("memcached", &["--memcached".to_owned(), memcached.address()]).await;
}

#[tokio::test]
async fn authorizations_are_shared_in_redis() {
    let redis = RedisServer::start().await;
    what_one_is_granted_the_other_need_not_ask_for("redis", &["--redis".to_owned(), redis.url()]).await;
}

/// Clusters come and go through both replicas, while the store is put through `ordeal`. Nobody may notice.
async fn nobody_notices(fleet: &Fleet, ordeal: impl AsyncFnOnce(&[Arc<Gateway>; 2])) {
    let flags = ["--authorize-cache-ttl=1s"];
    let replicas =
        [Arc::new(fleet.replica(&fleet.key, &flags).await), Arc::new(fleet.replica(&fleet.key, &flags).await)];
    let done = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for sender in 0..8 {
        let (replica, done) = (Arc::clone(&replicas[sender % 2]), Arc::clone(&done));
        load.spawn(async move {
            let (mut sent, mut slowest) = (0, Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                let cluster = format!("c{}", (sent + sender) % 50);
                let began = Instant::now();
                receive(&replica, &cluster).await.expect_status(200);
                slowest = slowest.max(began.elapsed());
                sent += 1;
            }
            (sent, slowest)
        });
    }
    ordeal(&replicas).await;
    done.store(true, Ordering::Relaxed);
    for (sent, slowest) in load.join_all().await {
        // A store costs 50 ms at most; one that was waited for to its end would cost as long as it is silent.
        assert!(sent > 0 && slowest < Duration::from_secs(5), "{sent} sent, the slowest in {slowest:?}");
    }
}

/// The circuit of a store, seen from a replica.
async fn left_alone(replicas: &[Arc<Gateway>; 2], store: &str, expected: f64) {
    for replica in replicas {
        let series = format!(r#"infogw_store_circuit_open{{store="{store}"}}"#);
        eventually("the store's circuit", async || {
            let open = replica.metric(&series).await;
            ensure(open == expected, || format!("{open}"))
        })
        .await;
    }
}

/// Waits until `count` requests more have reached the upstream, whatever becomes of the store meanwhile.
async fn served(upstream: &Upstream, count: usize) {
    upstream.wait_for(upstream.received().len() + count).await;
}

#[tokio::test]
async fn memcached_may_die_hang_and_come_back_under_load() {
    let mut memcached = Memcached::start().await;
    let fleet = Fleet::sharing(&["--memcached".to_owned(), memcached.address()]).await;
    let upstream = &fleet.upstream;
    nobody_notices(&fleet, async |replicas| {
        served(upstream, 50).await;
        memcached.kill().await;
        left_alone(replicas, "memcached", 1.0).await;
        memcached.restart().await;
        left_alone(replicas, "memcached", 0.0).await;
        memcached.pause().await;
        left_alone(replicas, "memcached", 1.0).await;
        memcached.resume().await;
        left_alone(replicas, "memcached", 0.0).await;
        served(upstream, 50).await;
    })
    .await;
}

#[tokio::test]
async fn redis_may_die_hang_and_come_back_under_load() {
    let mut redis = RedisServer::start().await;
    let fleet = Fleet::sharing(&["--redis".to_owned(), redis.url()]).await;
    let upstream = &fleet.upstream;
    nobody_notices(&fleet, async |replicas| {
        served(upstream, 50).await;
        redis.kill().await;
        left_alone(replicas, "redis", 1.0).await;
        redis.restart().await;
        left_alone(replicas, "redis", 0.0).await;
        redis.pause().await;
        left_alone(replicas, "redis", 1.0).await;
        redis.resume().await;
        left_alone(replicas, "redis", 0.0).await;
        served(upstream, 50).await;
    })
    .await;
}

/// Whose keys were rotated in their files shares with one that was started with the new ones.
#[tokio::test]
async fn rotated_keys_share_with_new_ones() {
    let memcached = Memcached::start().await;
    let fleet = Fleet::sharing(&["--memcached".to_owned(), memcached.address()]).await;
    let old = fleet.replica(&fleet.key, &[]).await;
    let next = key();
    fs::copy(next.path(), fleet.key.path()).unwrap();
    old.wait_for_log("reloaded the shared keys").await;
    let new = fleet.replica(&next, &[]).await;
    let mut clusters = 0..;
    eventually("a grant that is shared", async || {
        let cluster = format!("c{}", clusters.next().expect("there is no end of them"));
        receive(&old, &cluster).await.expect_status(200);
        let calls = fleet.calls();
        receive(&new, &cluster).await.expect_status(200);
        ensure(fleet.calls() == calls, || format!("{cluster} was asked about twice"))
    })
    .await;
}
