//! Where the gateway differs from telemeter-server on purpose: a test for each difference of the contract, by its number. Each
//! would fail there.
//!
//! Difference 12 is in `oidc.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{io::Write as _, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use infogw_proto::{
    client::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary},
    prometheus::TimeSeries,
};
use support::{
    Answer, Gateway, Memcached, RedisServer, World, authorizer,
    authorizer::Refusing,
    ensure, eventually,
    payload::{composite_token, delimited, series, write_body},
    world::{PULL_SECRET, TEXT, now, spelt},
};

#[tokio::test]
async fn d01_a_cluster_writes_only_its_own_series() {
    let offered = || vec![named("up", "c1"), named("up", "hosted"), named("up", "victim")];
    let mut delegations = tempfile::NamedTempFile::new().unwrap();
    writeln!(delegations, "overrides: {{clusters: {{c1: {{writes_for: [hosted]}}}}}}").unwrap();
    let delegated = format!("--policy={}", delegations.path().display());

    let modes: [(&[&str], u16, &[&str]); 5] = [
        (&[], 400, &["c1"]),
        (&["--cluster-label-check=enforce"], 400, &["c1"]),
        (&["--cluster-label-check=count"], 200, &["c1", "hosted", "victim"]),
        (&["--cluster-label-check=off"], 200, &["c1", "hosted", "victim"]),
        (&[&delegated], 400, &["c1", "hosted"]),
    ];
    for (flags, status, passed) in modes {
        let world = World::with(flags).await;
        let reply = world.receive("c1", offered()).await.expect_status(status);
        let passed: Vec<_> = passed.iter().map(|id| format!("up{{_id={id:?}}}")).collect();
        assert_eq!(spelt(&world.forwarded()), passed, "{flags:?}");
        if status == 400 {
            let refused = format!("{} of 3 series refused", 3 - passed.len());
            assert!(reply.reason().contains(&refused), "{flags:?}: {reply:?}");
        }
        if flags == ["--cluster-label-check=count"] {
            let logged = world.gateway.wait_for_log("series of another cluster").await;
            assert!(logged.contains("cluster=c1") && logged.contains("series=2"), "{logged}");
            let metrics = support::http::get(&world.gateway.internal("/metrics")).await;
            assert!(metrics.text().contains("infogw_receive_foreign_series_total 2"), "{}", metrics.text());
        }
    }
}

#[tokio::test]
async fn d02_an_outage_is_never_a_4xx() {
    let nobody = Refusing::new();
    let world = World::start().await;
    let gateway = Gateway::start(["--authorize", &nobody.url(), "--forward-url", &world.upstream.url()]).await;
    let reply = gateway.receive(&composite_token(PULL_SECRET, "c1"), write_body(vec![named("up", "c1")])).await;
    assert!(reply.expect_status(503).retry_after().is_some());

    for page in [Answer::html(404, "no route"), Answer::html(401, "log in"), Answer::status(302)] {
        world.authorizer.set_script(move |_| page.clone());
        let reply = world.receive("c2", vec![named("up", "c2")]).await;
        assert!(reply.expect_status(503).retry_after().is_some());
    }
    world.authorizer.set_script(authorizer::grant);
    // Our credentials, our URL, the tenant that we all share.
    for (status, answered) in [(401, 502), (403, 502), (404, 502), (405, 502), (429, 503), (500, 503)] {
        world.upstream.set_script(move |_| Answer::status(status));
        let reply = world.receive("c3", vec![named("up", "c3")]).await;
        assert!(reply.expect_status(answered).retry_after().is_some());
    }
}

#[tokio::test]
async fn d03_a_failed_forward_does_not_use_up_the_rate_limit() {
    let world = World::start().await;
    let attempt = async |cluster: &str| {
        let token = world.token(cluster).await;
        world.gateway.upload(&token, TEXT, "", format!("up{{_id={cluster:?}}} 1 {}\n", now())).await
    };
    let wait = async |cluster: &str| attempt(cluster).await.expect_status(429).retry_after().expect("a wait");

    // Used up by a success: the whole 4m30s.
    attempt("c1").await.expect_status(200);
    let whole = wait("c1").await;
    assert!(whole >= 240, "{whole} s");
    // Used up by what the client itself did wrong.
    let token = world.token("c2").await;
    world.gateway.upload(&token, TEXT, "", "up{").await.expect_status(400);
    assert!(wait("c2").await >= 240);
    // Refunded but for a minute, which the jitter makes a minute and a half at most.
    for status in [500, 429, 403] {
        let cluster = format!("c{status}");
        world.upstream.set_script(move |_| Answer::status(status));
        let failed = attempt(&cluster).await;
        assert!(failed.status.is_server_error(), "{failed:?}");
        let refunded = wait(&cluster).await;
        assert!((50..=92).contains(&refunded), "{refunded} s");
    }
}

#[tokio::test]
async fn d04_dropping_by_policy_is_success() {
    let world = World::with(&["--whitelist", "up"]).await;
    let reply = world.receive("c1", vec![named("down", "c1"), named("out", "c1")]).await;
    assert!(reply.status.is_success() && reply.body.is_empty(), "{reply:?}");
    world.assert_nothing_forwarded();
}

#[tokio::test]
async fn d05_client_errors_are_4xx() {
    let world = World::start().await;
    for body in ["up{", "up{_id=\"another\"} 1 {NOW}\n"] {
        let cluster = format!("c{}", body.len());
        let reply = world.upload(&cluster, &body.replace("{NOW}", &now().to_string())).await;
        assert!(reply.expect_status(400).reason().len() > 10);
    }
    world.assert_nothing_forwarded();
}

#[tokio::test]
async fn d05_histograms_and_summaries_become_series_and_the_allowlist_sees_their_names() {
    let world = World::with(&["--whitelist", r#"{__name__=~"h_bucket|h_count|s|s_sum"}"#]).await;
    let id = || vec![LabelPair { name: Some("_id".to_owned()), value: Some("c1".to_owned()) }];
    let bucket = |bound, count| Bucket { upper_bound: Some(bound), cumulative_count: Some(count), ..Bucket::default() };
    let histogram = Histogram {
        sample_count: Some(7),
        sample_sum: Some(1.5),
        bucket: vec![bucket(0.5, 3), bucket(5.0, 6)],
        ..Histogram::default()
    };
    let quantile = vec![Quantile { quantile: Some(0.99), value: Some(2.5) }];
    let summary = Summary { sample_count: Some(7), sample_sum: Some(1.5), quantile, ..Summary::default() };
    let timestamp_ms = Some(now());
    let metrics = [
        (
            "h",
            MetricType::Histogram,
            Metric { label: id(), timestamp_ms, histogram: Some(histogram), ..Metric::default() },
        ),
        ("s", MetricType::Summary, Metric { label: id(), timestamp_ms, summary: Some(summary), ..Metric::default() }),
    ];
    let families = metrics.map(|(name, kind, metric)| MetricFamily {
        name: Some(name.to_owned()),
        r#type: Some(kind as i32),
        metric: vec![metric],
        ..MetricFamily::default()
    });
    let content_type = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
    let token = world.token("c1").await;
    world.gateway.upload(&token, content_type, "", delimited(&families)).await.expect_status(200);
    let write = world.forwarded();
    let mut values: Vec<_> = spelt(&write).into_iter().zip(values(&write)).collect();
    values.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        (r#"h_bucket{_id="c1",le="+Inf"}"#, 7.0),
        (r#"h_bucket{_id="c1",le="0.5"}"#, 3.0),
        (r#"h_bucket{_id="c1",le="5"}"#, 6.0),
        (r#"h_count{_id="c1"}"#, 7.0),
        (r#"s_sum{_id="c1"}"#, 1.5),
        (r#"s{_id="c1",quantile="0.99"}"#, 2.5),
    ];
    assert_eq!(values, expected.map(|(spelt, value)| (spelt.to_owned(), value)));
}

#[tokio::test]
async fn d06_limits_hold_before_memory_is_spent() {
    let world = World::start().await;
    let token = composite_token(PULL_SECRET, "c1");
    world.receive("c1", vec![named("up", "c1")]).await.expect_status(200);
    let before = world.gateway.peak_memory();
    // A snappy block of 100 kB whose header claims 4 GB.
    let mut body = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    body.resize(100_000, 0);
    world.gateway.receive(&token, body).await.expect_status(400);
    // 64 MB, of which no more than the limit may be kept. A sender that goes on for so long may be cut off before the answer.
    let request = hyper::Request::post(world.gateway.public("/metrics/v1/receive"))
        .header("authorization", format!("Bearer {token}"))
        .body(http_body_util::Full::new(bytes::Bytes::from(vec![0; 64 << 20])));
    if let Ok(reply) = support::http::try_send(request.unwrap()).await {
        reply.expect_status(413);
    }
    let grown = world.gateway.peak_memory() - before;
    assert!(grown < 8 << 20, "grown by {grown} bytes");
}

#[tokio::test]
async fn d07_selectors_mean_what_promql_says() {
    // An absent label is the empty string; and a rule sees every label, the last ones too.
    let rules = [
        r#"{__name__="absent_is_empty",gone=""}"#,
        r#"{__name__="absent_is_not",gone!="x"}"#,
        r#"{__name__="late",z="z"}"#,
    ];
    let flags: Vec<_> = rules.iter().flat_map(|rule| ["--whitelist", rule]).collect();
    let world = World::with(&flags).await;
    let with =
        |name, more: &[(&str, &str)]| series(&[&[("__name__", name), ("_id", "c1")], more].concat(), &[(1.0, now())]);
    let many = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("z", "z")];
    let offered = || {
        vec![
            with("absent_is_empty", &[]),
            with("absent_is_empty", &[("gone", "here")]),
            with("absent_is_not", &[]),
            with("absent_is_not", &[("gone", "x")]),
            with("late", &many),
            with("late", &many[..4]),
        ]
    };
    let passed = [
        r#"absent_is_empty{_id="c1"}"#,
        r#"absent_is_not{_id="c1"}"#,
        r#"late{_id="c1",a="1",b="2",c="3",d="4",z="z"}"#,
    ];
    world.receive("c1", offered()).await.expect_status(200);
    assert_eq!(spelt(&world.forwarded()), passed);

    let world = World::with(&flags).await;
    let line = |labels: &str| format!("{} 1 {}\n", labels.replacen('{', "{_id=\"c1\",", 1), now());
    let text =
        [r#"absent_is_empty{}"#, r#"absent_is_empty{gone="here"}"#, r#"late{a="1",z="z"}"#, r#"late{a="1"}"#].map(line);
    world.upload("c1", &text.concat().replace(",}", "}")).await.expect_status(200);
    assert_eq!(spelt(&world.forwarded()), [r#"absent_is_empty{_id="c1"}"#, r#"late{_id="c1",a="1",z="z"}"#]);
}

#[tokio::test]
async fn d08_nothing_secret_is_logged() {
    let world = World::with(&["--log-level", "debug", "-v", "--tenant-key", "authorization_token"]).await;
    let secret = "do-not-tell-anyone";
    let jwt = world.gateway.upload_token("c1", secret).await;
    world.gateway.upload(&jwt, TEXT, "", format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    world.gateway.upload(&format!("{jwt}x"), TEXT, "", "").await.expect_status(401);
    let composite = composite_token(secret, "c1");
    world.gateway.receive(&composite, write_body(vec![named("up", "c1")])).await.expect_status(200);
    let broken = BASE64_STANDARD.encode(format!("{{\"authorization_token\":\"{secret}\",\"cluster_id\":7}}"));
    world.gateway.receive(&broken, "").await.expect_status(401);
    world.authorizer.set_script(|_| Answer::Close);
    world.gateway.authorize("c2", secret).await.expect_status(503);
    world.upstream.set_script(|_| Answer::Close);
    world.gateway.receive(&composite, write_body(vec![named("up", "c1")])).await.expect_status(502);

    // The calls are in the log, with the failed ones.
    world.gateway.wait_for_log("client=authorize").await;
    world.gateway.wait_for_log("client=forward").await;
    let logs = world.gateway.stop().await.stderr;
    let signature = jwt.rsplit('.').next().unwrap();
    for secret in [secret, signature, &jwt[..40], &composite[..24], &broken[..24], "Bearer"] {
        let told = logs.lines().find(|line| line.contains(secret));
        assert_eq!(told, None, "tells {secret:?}");
    }
}

#[tokio::test]
async fn d08_shared_stores_hold_keys_of_ours_and_learn_no_names() {
    let (memcached, redis) = (Memcached::start().await, RedisServer::start().await);
    let world = World::with(&["--memcached", &memcached.address(), "--redis", &redis.url()]).await;
    let world_of_redis = World::with(&["--redis", &redis.url()]).await;
    let mut clusters = (0..).map(|n| format!("cluster-{n}"));
    // A call to a store may be late, and then nothing is kept.
    let kept = eventually("something is kept in both", async || {
        let cluster = clusters.next().expect("there is no end of them");
        for world in [&world, &world_of_redis] {
            world.receive(&cluster, vec![named("up", &cluster)]).await.expect_status(200);
            world.upload(&cluster, &format!("up{{_id=\"{cluster}\"}} 1 {}\n", now())).await.expect_status(200);
        }
        let mut kept: Vec<String> = redis.cli(&["--raw", "KEYS", "*"]).await.lines().map(str::to_owned).collect();
        // It spells keys as URLs do.
        kept.extend(memcached.say("lru_crawler metadump all").await.iter().map(|line| line.replace("%3A", ":")));
        let has = |prefix: &str| kept.iter().filter(|key| key.contains(prefix)).count();
        ensure(has("infogw:authorization:") >= 2 && has("infogw:ratelimit:") >= 1, || format!("{kept:?}"))?;
        Ok(kept)
    })
    .await;
    for key in &kept {
        assert!(key.trim_start_matches("key=").starts_with("infogw:"), "not a key of ours: {key}");
        assert!(!key.contains("cluster-") && !key.contains(PULL_SECRET), "tells a name: {key}");
    }
}

#[tokio::test]
async fn d09_forwarded_requests_carry_the_remote_write_headers() {
    let world = World::start().await;
    world.receive("c1", vec![named("up", "c1")]).await.expect_status(200);
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    for write in world.upstream.wait_for(2).await {
        assert_eq!(write.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(write.header("content-encoding"), Some("snappy"));
        assert_eq!(write.header("x-prometheus-remote-write-version"), Some("0.1.0"));
        assert_eq!(write.header("authorization"), None);
    }
}

#[tokio::test]
async fn d10_labels_are_set_and_elided_by_endpoint() {
    let flags = ["--label=region=eu", "--elide-label=replica", "--receive-label=via=rw", "--receive-elide-label=pod"];
    let world = World::with(&flags).await;
    let labels = [("__name__", "up"), ("_id", "c1"), ("pod", "p"), ("region", "us"), ("replica", "a")];
    world.receive("c1", vec![series(&labels, &[(1.0, now())])]).await.expect_status(200);
    let text = format!("up{{_id=\"c1\",pod=\"p\",region=\"us\",replica=\"a\"}} 1 {}\n", now());
    world.upload("c1", &text).await.expect_status(200);
    let writes = world.upstream.wait_for(2).await;
    assert_eq!(spelt(&writes[0]), [r#"up{_id="c1",region="us",replica="a",via="rw"}"#]);
    assert_eq!(spelt(&writes[1]), [r#"up{_id="c1",pod="p",region="eu"}"#]);
}

#[tokio::test]
async fn d11_without_rules_everything_passes_with_a_warning() {
    let world = World::start().await;
    world.gateway.wait_for_log("every series passes").await;
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    assert_eq!(spelt(&world.forwarded()), [r#"up{_id="c1"}"#]);

    let world = World::with(&["--whitelist", "up"]).await;
    assert!(!world.gateway.logs().iter().any(|line| line.contains("every series passes")));
}

#[tokio::test]
async fn d11_without_an_authorizer_it_does_not_start_unless_told_to() {
    let world = World::start().await;
    let exit = Gateway::run_to_exit(["--forward-url", &world.upstream.url()]).await;
    assert_eq!(exit.code(), 64, "{exit:?}");
    assert!(exit.stderr.contains("--authorize is required"), "{exit:?}");

    let gateway = Gateway::start(["--forward-url", &world.upstream.url(), "--insecure-accept-any-token"]).await;
    gateway.wait_for_log("anyone gets in").await;
    let token = gateway.upload_token("c1", "anything").await;
    gateway.upload(&token, TEXT, "", format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    gateway.receive(&composite_token("anything", "c1"), write_body(vec![named("up", "c1")])).await.expect_status(200);
    assert_eq!(world.upstream.received().len(), 2);
    assert!(world.authorizer.received().is_empty());
}

#[tokio::test]
async fn d13_one_good_series_is_never_lost_for_a_bad_neighbour() {
    let world = World::start().await;
    let nameless_cluster = series(&[("__name__", "up"), ("job", "j")], &[(1.0, now())]);
    let twice = series(&[("__name__", "up"), ("_id", "c1"), ("_id", "c1")], &[(1.0, now())]);
    let good = series(&[("__name__", "good"), ("_id", "c1")], &[(42.0, 1_700_000_000_123)]);
    let reply = world.receive("c1", vec![named("up", "c2"), nameless_cluster, good.clone(), twice]).await;
    let reason = reply.expect_status(400);
    assert!(reason.reason().ends_with("; 3 of 4 series refused"), "{reason:?}");
    assert_eq!(world.forwarded().request().timeseries, [good]);
}

#[tokio::test]
async fn d14_sigterm_drains() {
    let world = World::start().await;
    let (release, _) = tokio::sync::watch::channel(false);
    let held = Answer::status(200).held(&release);
    world.upstream.set_script(move |_| held.clone());
    let World { gateway, upstream, authorizer: _authorizer } = world;
    let (ready, public) = (gateway.internal("/healthz/ready"), gateway.public("/healthz"));
    let in_flight = tokio::spawn({
        let url = gateway.public("/metrics/v1/receive");
        let bearer = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
        let request = hyper::Request::post(url).header("authorization", bearer);
        async move { support::http::send(request, write_body(vec![named("up", "c1")])).await }
    });
    upstream.wait_for(1).await;
    // One that has begun a request and goes no further must not keep the gateway from ending.
    let mut stalled = tokio::net::TcpStream::connect(gateway.public_address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stalled, b"POST /upload HTTP/1.1\r\n").await.unwrap();
    gateway.signal("TERM").await;
    // No longer ready, and what comes is sent elsewhere; then no new connections. The internal listener tells so until the end.
    support::eventually("readiness to end", async || {
        let reply = support::http::get(&ready).await;
        support::ensure(reply.status == 503 && reply.retry_after().is_some(), || format!("{reply:?}"))
    })
    .await;
    let bearer = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
    let late = hyper::Request::post(gateway.public("/metrics/v1/receive")).header("authorization", bearer);
    let late = support::http::send(late, write_body(vec![named("up", "c1")])).await.expect_status(503);
    assert!(late.retry_after().is_some() && late.reason().contains("shutting down"), "{late:?}");
    let counted = r#"infogw_rejections_total{layer="router",reason="overloaded",route="receive"}"#;
    assert_eq!(gateway.metric(counted).await, 1.0);
    support::eventually("the public listener to close", async || {
        let request = hyper::Request::get(&public).body(http_body_util::Full::<bytes::Bytes>::default()).unwrap();
        let refused = support::http::try_send(request).await;
        support::ensure(refused.is_err(), || format!("{refused:?}"))
    })
    .await;
    assert!(!in_flight.is_finished(), "the upstream has not answered yet");
    release.send_replace(true);
    in_flight.await.expect("the client does not panic").expect_status(200);
    let exit = tokio::time::timeout(Duration::from_secs(10), gateway.exit()).await.expect("an end soon after");
    assert_eq!(exit.code(), 0, "{exit:?}");
}

#[tokio::test]
async fn d14_sighup_reloads() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    let path = rules.path().display().to_string();
    std::fs::write(rules.path(), "# first\nup\n").unwrap();
    let world = World::with(&["--whitelist-file", &path]).await;
    let passed = async || {
        let before = world.upstream.received().len();
        let offered = vec![named("up", "c1"), named("down", "c1")];
        assert!(world.receive("c1", offered).await.status.is_success());
        world.upstream.received()[before..].iter().flat_map(spelt).collect::<Vec<_>>()
    };
    assert_eq!(passed().await, [r#"up{_id="c1"}"#]);

    // A broken file changes nothing, and the log says where it is broken.
    std::fs::write(rules.path(), "down\n\n{broken\n").unwrap();
    world.gateway.signal("HUP").await;
    let logged = world.gateway.wait_for_log("not reloaded").await;
    assert!(logged.starts_with("level=error") && logged.contains(&format!("{path}:3:")), "{logged}");
    assert_eq!(passed().await, [r#"up{_id="c1"}"#]);

    std::fs::write(rules.path(), "down\n").unwrap();
    world.gateway.signal("HUP").await;
    world.gateway.wait_for_log("msg=\"reloaded the policy\"").await;
    assert_eq!(passed().await, [r#"down{_id="c1"}"#]);
}

#[tokio::test]
async fn d14_sighup_does_not_open_the_gate() {
    let rules = tempfile::NamedTempFile::new().unwrap();
    let path = rules.path().display().to_string();
    std::fs::write(rules.path(), "up\n").unwrap();
    let world = World::with(&["--whitelist-file", &path]).await;
    for (reloads, emptied) in ["", "# up\n\n"].into_iter().enumerate() {
        std::fs::write(rules.path(), emptied).unwrap();
        world.gateway.signal("HUP").await;
        support::eventually("the refusal", async || {
            let logs = world.gateway.logs();
            let refusals = logs.iter().filter(|line| line.contains("not reloaded") && line.contains("no rule in"));
            support::ensure(refusals.count() > reloads, || format!("{logs:?}"))
        })
        .await;
        let offered = vec![named("up", "c1"), named("down", "c1")];
        assert!(world.receive("c1", offered).await.status.is_success());
    }
    for write in world.upstream.wait_for(2).await {
        assert_eq!(spelt(&write), [r#"up{_id="c1"}"#]);
    }
}

/// A series of this cluster.
fn named(name: &str, cluster: &str) -> TimeSeries {
    series(&[("__name__", name), ("_id", cluster)], &[(1.0, now())])
}

/// The first sample of each series.
fn values(write: &support::Write) -> Vec<f64> {
    write.request().timeseries.iter().map(|series| series.samples[0].value).collect()
}
