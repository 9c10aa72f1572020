//! How often a cluster may write, and how much: by one gateway, and by two that share a Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Keys of every kind.
#[allow(dead_code)]
#[path = "../layers/tests/jwt/fixtures.rs"]
mod fixtures;
mod support;

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use infogw_proto::prometheus::{Histogram, MetricMetadata, TimeSeries, WriteRequest};
use prost::Message as _;
use support::{
    Answer, Authorizer, Gateway, RedisServer, Reply, Upstream, World, ensure, eventually, http,
    payload::{composite_token, series, snappy_block, write_body},
    world::{PULL_SECRET, TEXT, now},
};
use tempfile::NamedTempFile;
use tokio::{sync::watch, task::JoinHandle};

/// A series of this cluster with so many samples.
fn samples(cluster: &str, count: usize) -> Vec<TimeSeries> {
    let start = now() - count as i64;
    let samples: Vec<_> = (0..count).map(|n| (1.0, start + n as i64)).collect();
    vec![series(&[("__name__", "up"), ("_id", cluster)], &samples)]
}

/// What a stock sender sends once a minute.
fn metadata_only() -> Vec<u8> {
    let metadata = vec![MetricMetadata { metric_family_name: "up".to_owned(), ..MetricMetadata::default() }];
    snappy_block(&WriteRequest { timeseries: Vec::new(), metadata }.encode_to_vec())
}

async fn receive(gateway: &Gateway, cluster: &str, count: usize) -> Reply {
    gateway.receive(&composite_token(PULL_SECRET, cluster), write_body(samples(cluster, count))).await
}

/// [`receive`] in a task of its own.
fn attempt(gateway: &Gateway, cluster: &str, count: usize) -> JoinHandle<Reply> {
    let request = hyper::Request::post(gateway.public("/metrics/v1/receive"))
        .header("authorization", format!("Bearer {}", composite_token(PULL_SECRET, cluster)))
        .header("content-encoding", "snappy");
    tokio::spawn(http::send(request, write_body(samples(cluster, count))))
}

/// The value of a counter or gauge, as it is spelt.
async fn metric(gateway: &Gateway, name: &str) -> f64 {
    let metrics = http::get(&gateway.internal("/metrics")).await.expect_status(200);
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {}", metrics.text())).parse().unwrap()
}

#[tokio::test]
async fn remote_write_is_not_limited_unless_asked_for() {
    let world = World::start().await;
    for _ in 0..20 {
        world.receive("c1", samples("c1", 100)).await.expect_status(200);
    }
}

#[tokio::test]
async fn requests_are_limited_by_cluster() {
    let flags = ["--limit-receive-requests-per-second=0.01", "--limit-receive-requests-burst=2"];
    let world = World::with(&flags).await;
    world.receive("c1", samples("c1", 1)).await.expect_status(200);
    // Metadata alone is a request, too.
    let token = composite_token(PULL_SECRET, "c1");
    world.gateway.receive(&token, metadata_only()).await.expect_status(204);
    let refused = world.receive("c1", samples("c1", 1)).await.expect_status(429);
    let says = refused.reason();
    assert!(
        says.starts_with(
            "rate_limited: over the rate limit of 2 requests at once and one more every 100s; come back in"
        ),
        "{says}"
    );
    let wait = refused.retry_after().unwrap();
    assert!((98..=150).contains(&wait), "{wait} s");
    // It is refused before its body is read: one that would not decode, neither.
    world.gateway.receive(&token, "not snappy").await.expect_status(429);
    // Another cluster is another matter, and so are uploads.
    world.receive("c2", samples("c2", 1)).await.expect_status(200);
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    assert_eq!(metric(&world.gateway, "infogw_rate_limit_rejections_total{limit=\"receive_requests\"}").await, 2.0);
    assert_eq!(metric(&world.gateway, "infogw_rate_limit_rejections_total{limit=\"receive_samples\"}").await, 0.0);
    assert_eq!(metric(&world.gateway, "infogw_rate_limit_keys{limit=\"receive_requests\"}").await, 2.0);
    assert_eq!(metric(&world.gateway, "infogw_rate_limit_keys{limit=\"upload\"}").await, 1.0);
    let rejections = "infogw_rejections_total{layer=\"rate_limit\",reason=\"rate_limited\",route=\"receive\"}";
    assert_eq!(metric(&world.gateway, rejections).await, 2.0);
}

#[tokio::test]
async fn samples_are_limited_by_cluster_as_received() {
    let flags = ["--limit-receive-samples-per-second=0.5", "--limit-receive-bytes=0", "--whitelist=up"];
    let world = World::with(&flags).await;
    // The largest request that a stock sender of this fleet sends passes whatever the rate.
    world.receive("c1", samples("c1", 10_000)).await.expect_status(200);
    let refused = world.receive("c1", samples("c1", 50)).await.expect_status(429);
    let says = refused.reason();
    assert!(
        says.starts_with(
            "rate_limited: over the rate limit of 10000 samples at once and one more every 2s; this is 50 samples; come back in"
        ),
        "{says}"
    );
    let wait = refused.retry_after().unwrap();
    assert!((90..=150).contains(&wait), "{wait} s");
    // Metadata is no sample.
    world.gateway.receive(&composite_token(PULL_SECRET, "c1"), metadata_only()).await.expect_status(204);

    // What the allowlist drops was received.
    let dropped = vec![series(&[("__name__", "down"), ("_id", "c2")], &vec![(1.0, now()); 9_990])];
    world.receive("c2", dropped).await.expect_status(204);
    // A native histogram is a sample.
    let histogram = Histogram { timestamp: now(), ..Histogram::default() };
    let histograms = TimeSeries { samples: Vec::new(), histograms: vec![histogram; 10], ..samples("c2", 0).remove(0) };
    world.receive("c2", vec![histograms]).await.expect_status(200);
    world.receive("c2", samples("c2", 5)).await.expect_status(429);
    assert_eq!(metric(&world.gateway, "infogw_rate_limit_rejections_total{limit=\"receive_samples\"}").await, 2.0);
}

/// To come back later would not help.
#[tokio::test]
async fn a_request_over_the_burst_is_413_and_says_what_to_set() {
    let flags = ["--limit-receive-samples-per-second=1", "--limit-receive-samples-burst=100"];
    let world = World::with(&flags).await;
    for _ in 0..3 {
        let refused = world.receive("c1", samples("c1", 101)).await.expect_status(413);
        assert_eq!(
            refused.reason(),
            "over_burst: 101 samples in one request are more than the 100 that the rate limit allows at once; \
             set max_samples_per_send to at most that"
        );
        assert_eq!(refused.retry_after(), None);
    }
    world.receive("c1", samples("c1", 100)).await.expect_status(200);
    let rejections = "infogw_rejections_total{layer=\"rate_limit\",reason=\"over_burst\",route=\"receive\"}";
    assert_eq!(metric(&world.gateway, rejections).await, 3.0);
}

#[tokio::test]
async fn neither_limit_trips_the_other() {
    let flags = [
        "--limit-receive-requests-per-second=2",
        "--limit-receive-requests-burst=1",
        "--limit-receive-samples-per-second=0.001",
        "--limit-receive-samples-burst=10",
    ];
    let world = World::with(&flags).await;
    world.receive("c1", samples("c1", 4)).await.expect_status(200);
    // Refused as one request too many, its samples are not charged: they fit once the time for a request has come.
    let passed = async || {
        let reply = world.receive("c1", samples("c1", 6)).await;
        match reply.status.as_u16() {
            200 => Ok(()),
            429 if reply.reason().contains("1 request at once") => Err(format!("{reply:?}")),
            _ => panic!("{reply:?}"),
        }
    };
    eventually("a second request", passed).await;
    // Now there is no sample left, and a request without any passes when its time comes.
    let passed = async || {
        let reply = world.gateway.receive(&composite_token(PULL_SECRET, "c1"), metadata_only()).await;
        ensure(reply.status == 204, || format!("{reply:?}"))
    };
    eventually("a request without samples", passed).await;
    let refused = async || {
        let reply = world.receive("c1", samples("c1", 1)).await.expect_status(429);
        ensure(reply.reason().contains("samples at once"), || format!("{reply:?}"))
    };
    eventually("a refusal for the sample", refused).await;
    // Nor does either limit uploads.
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
}

/// What the limit of samples refuses is no request to the other limit, however slow that is.
#[tokio::test]
async fn what_one_limit_refuses_the_other_does_not_count() {
    let flags = [
        "--limit-receive-requests-per-second=0.001",
        "--limit-receive-requests-burst=2",
        "--limit-receive-samples-per-second=0.001",
        "--limit-receive-samples-burst=10",
    ];
    let world = World::with(&flags).await;
    world.receive("c1", samples("c1", 10)).await.expect_status(200);
    for _ in 0..3 {
        let refused = world.receive("c1", samples("c1", 1)).await.expect_status(429);
        assert!(refused.reason().contains("10 samples at once"), "{refused:?}");
        world.receive("c1", samples("c1", 11)).await.expect_status(413);
    }
    let token = composite_token(PULL_SECRET, "c1");
    world.gateway.receive(&token, metadata_only()).await.expect_status(204);
    let refused = world.gateway.receive(&token, metadata_only()).await.expect_status(429);
    assert!(refused.reason().contains("2 requests at once"), "{refused:?}");
}

#[tokio::test]
async fn who_waits_for_as_long_as_told_gets_in() {
    let by_requests = ["--limit-receive-requests-per-second=1", "--limit-receive-requests-burst=1"];
    let by_samples = ["--limit-receive-samples-per-second=10", "--limit-receive-samples-burst=10"];
    for flags in [by_requests, by_samples] {
        let world = World::with(&flags).await;
        world.receive("c1", samples("c1", 10)).await.expect_status(200);
        for _ in 0..2 {
            let wait = world.receive("c1", samples("c1", 10)).await.expect_status(429).retry_after().unwrap();
            // The wait is what is tested.
            tokio::time::sleep(Duration::from_secs(wait)).await;
            world.receive("c1", samples("c1", 10)).await.expect_status(200);
        }
    }
}

#[tokio::test]
async fn an_outage_of_the_upstream_is_not_the_senders() {
    let flags = [
        "--limit-receive-requests-per-second=0.001",
        "--limit-receive-requests-burst=1",
        "--limit-receive-samples-per-second=0.001",
        "--limit-receive-samples-burst=10",
    ];
    let world = World::with(&flags).await;
    for (upstream, answered) in [(503, 503), (500, 503), (429, 503), (401, 502)] {
        world.upstream.set_script(move |_| Answer::status(upstream));
        world.receive("c1", samples("c1", 10)).await.expect_status(answered);
    }
    world.upstream.set_script(|_| Answer::Close);
    world.receive("c1", samples("c1", 10)).await.expect_status(502);
    // What is the data's fault stays charged.
    world.upstream.set_script(|_| Answer::status(400));
    world.receive("c1", samples("c1", 10)).await.expect_status(400);
    world.upstream.set_script(|_| Answer::status(200));
    world.receive("c1", samples("c1", 1)).await.expect_status(429);
    for limit in ["receive_requests", "receive_samples"] {
        let refunds = format!("infogw_rate_limit_refunds_total{{limit=\"{limit}\"}}");
        assert_eq!(metric(&world.gateway, &refunds).await, 5.0, "{limit}");
    }
}

/// A sender with several requests under way hears 5xx for all of them, round after round, and never 429: a stock one would take
/// that for the end of its data.
#[tokio::test]
async fn an_outage_is_not_the_senders_however_many_requests_are_under_way() {
    let flags = [
        "--limit-receive-requests-per-second=0.001",
        "--limit-receive-requests-burst=6",
        "--limit-receive-samples-per-second=0.001",
        "--limit-receive-samples-burst=10001",
    ];
    let world = World::with(&flags).await;
    outage_under_load(&world.upstream, &[&world.gateway]).await;
    let replicas = Replicas::patient(&flags).await;
    let [one, other] = &replicas.gateways;
    outage_under_load(&replicas.upstream, &[one, other]).await;
}

/// Five requests under way at once, four times, then one of all the samples that may be sent at once.
async fn outage_under_load(upstream: &Upstream, gateways: &[&Gateway]) {
    for round in 0..4 {
        let (release, held) = watch::channel(false);
        let Answer::Reply(down) = Answer::status(503) else { panic!("it is a reply") };
        upstream.set_script(move |_| Answer::Held(held.clone(), down.clone()));
        let before = upstream.received().len();
        let attempts: Vec<_> = (0..5).map(|n| attempt(gateways[n % gateways.len()], "c1", 2_000)).collect();
        assert_eq!(upstream.wait_for(before + 5).await.len(), before + 5, "round {round}");
        release.send(true).unwrap();
        for attempt in attempts {
            attempt.await.unwrap().expect_status(503);
        }
        for limit in ["receive_requests", "receive_samples"] {
            given_back(gateways, limit, 5 * (round + 1)).await;
        }
    }
    upstream.set_script(|_| Answer::status(200));
    receive(gateways[0], "c1", 10_000).await.expect_status(200);
}

/// Waits until these gateways gave so many attempts back: an answer does not wait for Redis.
async fn given_back(gateways: &[&Gateway], limit: &str, expected: usize) {
    let name = format!("infogw_rate_limit_refunds_total{{limit=\"{limit}\"}}");
    let all = async || {
        let mut found = 0.0;
        for gateway in gateways {
            found += metric(gateway, &name).await;
        }
        ensure(found == expected as f64, || format!("{limit}: {found} of {expected}"))
    };
    eventually("refunds", all).await;
}

/// Two gateways with one key, one Redis, one authorizer and one upstream.
struct Replicas {
    redis: RedisServer,
    gateways: [Arc<Gateway>; 2],
    upstream: Upstream,
    _authorizer: Authorizer,
    _key: NamedTempFile,
}

impl Replicas {
    /// Gateways that wait for Redis however busy this machine is, for tests in which it decides every time.
    async fn patient(flags: &[&str]) -> Self {
        Self::with(&[flags, &["--redis-timeout=10s"]].concat()).await
    }

    async fn with(flags: &[&str]) -> Self {
        let (redis, authorizer, upstream) =
            (RedisServer::start().await, Authorizer::granting().await, Upstream::accepting().await);
        let mut key = NamedTempFile::new().unwrap();
        key.write_all(fixtures::P256_PKCS8.as_bytes()).unwrap();
        let args = |flag: &str, value: &str| format!("{flag}={value}");
        let mut args = vec![
            args("--authorize", &authorizer.url()),
            args("--forward-url", &upstream.url()),
            args("--redis", &redis.url()),
            args("--shared-key", &key.path().display().to_string()),
        ];
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        let gateways = [Gateway::start(&args).await, Gateway::start(&args).await].map(Arc::new);
        let replicas = Replicas { redis, gateways, upstream, _authorizer: authorizer, _key: key };
        replicas.share("first").await;
        replicas
    }

    /// Waits until what one grants the other knows: until both have their connection. `name` is that of clusters that nobody else
    /// uses.
    async fn share(&self, name: &str) {
        let mut attempt = 0;
        let shared = async || {
            attempt += 1;
            // An upload, whose quota all tests here leave as it is.
            let cluster = format!("{name}-{attempt}");
            let [one, other] = &self.gateways;
            let statuses =
                [upload(one, &cluster).await.status, upload(other, &cluster).await.status].map(|s| s.as_u16());
            ensure(statuses == [200, 429], || format!("{statuses:?}"))
        };
        eventually("the gateways share", shared).await;
    }
}

async fn upload(gateway: &Gateway, cluster: &str) -> Reply {
    let token = gateway.upload_token(cluster, PULL_SECRET).await;
    gateway.upload(&token, TEXT, "", format!("up{{_id={cluster:?}}} 1 {}\n", now())).await
}

#[tokio::test]
async fn two_gateways_allow_what_one_would() {
    let flags = [
        "--limit-receive-requests-per-second=0.01",
        "--limit-receive-requests-burst=10",
        "--limit-receive-samples-per-second=0.01",
        "--limit-receive-samples-burst=30",
    ];
    let replicas = Replicas::patient(&flags).await;
    let [one, other] = &replicas.gateways;
    // Both at once.
    let attempts: Vec<_> = [one, other].into_iter().cycle().take(30).map(|gateway| attempt(gateway, "c1", 1)).collect();
    let mut statuses = Vec::new();
    for attempt in attempts {
        statuses.push(attempt.await.unwrap().status.as_u16());
    }
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 10, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    // Samples.
    receive(one, "c2", 20).await.expect_status(200);
    receive(other, "c2", 11).await.expect_status(429);
    receive(other, "c2", 10).await.expect_status(200);
    receive(one, "c2", 1).await.expect_status(429);
    // A wait that one was told, the other tells, too.
    let waits = [receive(one, "c1", 1).await, receive(other, "c1", 1).await].map(|reply| reply.retry_after().unwrap());
    assert!(waits.iter().all(|wait| (95..=150).contains(wait)), "{waits:?}");
    // A refund at one is a refund at the other.
    replicas.upstream.set_script(|_| Answer::status(503));
    // Those of c2 that the limit of samples refused.
    let both: [&Gateway; 2] = [one, other];
    given_back(&both, "receive_requests", 2).await;
    for (n, gateway) in [one, other, one, other].into_iter().enumerate() {
        receive(gateway, "c3", 30).await.expect_status(503);
        given_back(&both, "receive_samples", n + 1).await;
        given_back(&both, "receive_requests", n + 3).await;
    }
    upload(one, "c3").await.expect_status(503);
    given_back(&both, "upload", 1).await;
    replicas.upstream.set_script(|_| Answer::status(200));
    let refunded = upload(other, "c3").await.expect_status(429).retry_after().unwrap();
    assert!((50..=92).contains(&refunded), "down to one attempt a minute: {refunded} s");
    receive(other, "c3", 30).await.expect_status(200);
    receive(one, "c3", 1).await.expect_status(429);

    // Clusters are not named there.
    let keys = replicas.redis.cli(&["KEYS", "*"]).await;
    for prefix in
        ["infogw:ratelimit:upload:", "infogw:ratelimit:receive_requests:", "infogw:ratelimit:receive_samples:"]
    {
        assert!(keys.contains(prefix), "{keys}");
    }
    // Nor are they, with their credentials, where authorizations are shared.
    let is_hash = |name: &str| [32, 64].contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(keys.lines().all(|key| is_hash(key.rsplit(':').next().unwrap())), "{keys}");
    for gateway in &replicas.gateways {
        let lost = "infogw_rate_limit_shared_refunds_lost_total{limit=\"receive_requests\"}";
        assert_eq!(metric(gateway, lost).await, 0.0);
    }
}

/// Whatever happens to Redis, the answer is 200 or 429, and sharing comes back by itself.
#[tokio::test]
async fn redis_may_die_hang_and_come_back_under_load() {
    let flags = [
        "--limit-receive-requests-per-second=1000",
        "--limit-receive-samples-per-second=100",
        "--limit-receive-samples-burst=1000",
    ];
    let mut replicas = Replicas::with(&flags).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut load = Vec::new();
    for (n, gateway) in replicas.gateways.iter().cycle().take(6).enumerate() {
        let (done, gateway) = (Arc::clone(&done), Arc::clone(gateway));
        load.push(tokio::spawn(async move {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                let reply = receive(&gateway, &format!("load-{n}-{}", answers.len() % 3), 100).await;
                answers.push((reply.status.as_u16(), began.elapsed()));
            }
            answers
        }));
    }
    let fallbacks = async |gateway: &Gateway, cause: &str| {
        metric(
            gateway,
            &format!("infogw_rate_limit_shared_fallbacks_total{{cause=\"{cause}\",limit=\"receive_requests\"}}"),
        )
        .await
    };
    let fell_back = async |gateways: &[Arc<Gateway>; 2], cause: &str, before: [f64; 2]| {
        for (gateway, before) in gateways.iter().zip(before) {
            let more = async || {
                let now = fallbacks(gateway, cause).await;
                ensure(now > before, || format!("{cause}: {now}"))
            };
            eventually("fallbacks", more).await;
        }
    };
    let count = async |gateways: &[Arc<Gateway>; 2], cause: &str| {
        [fallbacks(&gateways[0], cause).await, fallbacks(&gateways[1], cause).await]
    };

    // It hangs.
    let before = [count(&replicas.gateways, "timeout").await, count(&replicas.gateways, "circuit_open").await];
    replicas.redis.pause().await;
    fell_back(&replicas.gateways, "timeout", before[0]).await;
    fell_back(&replicas.gateways, "circuit_open", before[1]).await;
    replicas.redis.resume().await;
    replicas.share("hung").await;
    // It dies.
    let before = count(&replicas.gateways, "error").await;
    replicas.redis.kill().await;
    fell_back(&replicas.gateways, "error", before).await;
    for gateway in &replicas.gateways {
        gateway.wait_for_log("this process limits by itself").await;
        // Each by itself, it still limits.
        let cluster = "without-redis";
        upload(gateway, cluster).await.expect_status(200);
        upload(gateway, cluster).await.expect_status(429);
    }
    replicas.redis.restart().await;
    replicas.share("died").await;
    // What was granted without it holds on.
    upload(&replicas.gateways[0], "without-redis").await.expect_status(429);
    for gateway in &replicas.gateways {
        gateway.wait_for_log("Redis keeps the rate limits again").await;
    }

    done.store(true, Ordering::Relaxed);
    let mut answers = Vec::new();
    for load in load {
        answers.extend(load.await.unwrap());
    }
    let of = |status| answers.iter().filter(|(answered, _)| *answered == status).count();
    assert!(of(200) > 0 && of(429) > 0, "{} and {} of {}", of(200), of(429), answers.len());
    let others: Vec<_> = answers.iter().filter(|(status, _)| ![200, 429].contains(status)).collect();
    assert!(others.is_empty(), "{others:?}");
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap();
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

/// Replicas that are not to share, such as those with another key, do not.
#[tokio::test]
async fn without_a_shared_key_nothing_is_shared_and_that_is_said() {
    let redis = RedisServer::start().await;
    let world = World::with(&["--redis", &redis.url()]).await;
    world.gateway.wait_for_log("--redis without --shared-key").await;
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(429);
}
