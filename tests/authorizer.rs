//! An authorizer that is slow, down, or asked for the same thing by many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use infogw_proto::prometheus::TimeSeries;
use serde_json::json;
use support::{
    Answer, Gateway, Reply, World, authorizer, ensure, eventually,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, now},
};
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::watch, task::JoinSet};

fn up(cluster: &str) -> Vec<TimeSeries> {
    vec![series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])]
}

/// Sends as this cluster in a task of its own.
fn receive(world: &Arc<World>, senders: &mut JoinSet<Reply>, token: &str, cluster: &str) {
    let (world, token, body) = (Arc::clone(world), composite_token(token, cluster), write_body(up(cluster)));
    senders.spawn(async move { world.gateway.receive(&token, body).await });
}

/// Waits until so many requests wait for an answer of the authorizer to one of them.
async fn missed(world: &World, count: usize) {
    eventually("requests that wait", async || {
        let missed = world.gateway.metric(r#"cache_reads_total{result="miss"}"#).await;
        ensure(missed >= count as f64, || format!("{missed} of {count}"))
    })
    .await;
}

/// telemeter-server makes fifty.
#[tokio::test]
async fn fifty_requests_of_a_new_cluster_make_one_call() {
    let world = Arc::new(World::start().await);
    let release = watch::Sender::new(false);
    let granted = Answer::json(200, &json!({ "account_id": "a1" })).held(&release);
    world.authorizer.set_script(move |_| granted.clone());
    let mut senders = JoinSet::new();
    for _ in 0..50 {
        receive(&world, &mut senders, PULL_SECRET, "c1");
    }
    missed(&world, 50).await;
    release.send_replace(true);
    for reply in senders.join_all().await {
        reply.expect_status(200);
    }
    assert_eq!(world.authorizer.received().len(), 1);
    world.receive("c1", up("c1")).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), 1);
    assert_eq!(world.gateway.metric(r#"cache_reads_total{result="hit"}"#).await, 1.0);
    assert_eq!(world.gateway.metric(r#"infogw_authorization_cache_entries{cache="authorizer"}"#).await, 1.0);
}

/// telemeter-server makes thirty.
#[tokio::test]
async fn thirty_requests_with_a_bad_token_make_one_call() {
    let world = Arc::new(World::with(&["--authorize-cache-refusal-ttl=1h"]).await);
    world.authorizer.set_script(|_| Answer::json(401, &json!({ "kind": "Error" })));
    let mut senders = JoinSet::new();
    for _ in 0..20 {
        receive(&world, &mut senders, "bad", "c1");
    }
    for reply in senders.join_all().await {
        reply.expect_status(401);
    }
    for _ in 0..10 {
        world.gateway.receive(&composite_token("bad", "c1"), write_body(up("c1"))).await.expect_status(401);
    }
    assert_eq!(world.authorizer.received().len(), 1);

    // Another token of the same cluster is another matter.
    world.authorizer.set_script(authorizer::grant);
    world.receive("c1", up("c1")).await.expect_status(200);
}

/// For the authorizer each is a registration.
#[tokio::test]
async fn registrations_are_asked_for_once_at_a_time_and_never_kept() {
    let world = Arc::new(World::start().await);
    let release = watch::Sender::new(false);
    let granted = Answer::json(200, &json!({ "account_id": "a1" })).held(&release);
    world.authorizer.set_script(move |_| granted.clone());
    let mut clusters = JoinSet::new();
    for _ in 0..20 {
        let world = Arc::clone(&world);
        clusters.spawn(async move { world.gateway.authorize("c1", PULL_SECRET).await });
    }
    world.authorizer.wait_for(1).await;
    // Another cluster, and another token, ask for themselves.
    for (cluster, token) in [("c2", PULL_SECRET), ("c1", "another")] {
        let world = Arc::clone(&world);
        clusters.spawn(async move { world.gateway.authorize(cluster, token).await });
    }
    world.authorizer.wait_for(3).await;
    release.send_replace(true);
    for reply in clusters.join_all().await {
        reply.expect_status(200);
    }
    let before = world.authorizer.received().len();
    world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200);
    assert_eq!(world.authorizer.received().len(), before + 1);
    // One that came late may have asked for itself, since nothing is kept.
    assert!(before <= 4, "{before} calls for 22 requests of three credentials");
}

#[tokio::test]
async fn while_the_authorizer_is_down_known_clusters_are_served() {
    let world = World::with(&["--authorize-cache-ttl=1s"]).await;
    world.receive("known", up("known")).await.expect_status(200);
    world.authorizer.set_script(|_| Answer::Close);
    eventually("a stale grant", async || {
        world.receive("known", up("known")).await.expect_status(200);
        let stale = world.gateway.metric(r#"infogw_authorization_cache_served_total{from="stale"}"#).await;
        ensure(stale > 0.0, || "none served".to_owned())
    })
    .await;
    let refused = world.receive("unknown", up("unknown")).await.expect_status(503);
    assert!(refused.retry_after().is_some(), "{refused:?}");

    // It comes back by itself, and its word counts again.
    world.authorizer.set_script(|_| Answer::json(403, &json!({ "kind": "Error" })));
    eventually("the authorizer's word", async || {
        let reply = world.receive("known", up("known")).await;
        ensure(reply.status == 403, || format!("{reply:?}"))
    })
    .await;
}

/// With no grace, an expired grant is none: still a 503, which makes senders retry.
#[tokio::test]
async fn grace_can_be_turned_off() {
    let world = World::with(&["--authorize-cache-ttl=1s", "--authorize-cache-grace=0"]).await;
    world.receive("known", up("known")).await.expect_status(200);
    world.authorizer.set_script(|_| Answer::Close);
    eventually("the end of the grant", async || {
        let reply = world.receive("known", up("known")).await;
        ensure(reply.status == 503 && reply.retry_after().is_some(), || format!("{reply:?}"))
    })
    .await;
}

#[tokio::test]
async fn with_the_authorizer_hanging_the_unknown_hear_so_and_the_known_notice_nothing() {
    let world = Arc::new(World::start().await);
    world.receive("known", up("known")).await.expect_status(200);
    world.authorizer.set_script(|_| Answer::Hang);
    let mut unknown = JoinSet::new();
    for n in 0..5 {
        receive(&world, &mut unknown, PULL_SECRET, &format!("unknown{n}"));
    }
    world.authorizer.wait_for(6).await;

    // At the latest after the deadline of 20 seconds; the test's own patience is 30.
    let mut served = 0;
    loop {
        tokio::select! {
            ended = unknown.join_next() => match ended {
                Some(reply) => {
                    let reply = reply.unwrap().expect_status(503);
                    assert!(reply.retry_after().is_some(), "{reply:?}");
                }
                None => break,
            },
            reply = world.receive("known", up("known")) => {
                reply.expect_status(200);
                served += 1;
            }
        }
    }
    assert!(served > 100, "{served} requests of a known cluster in all that time");

    // The circuit is open: nobody else is asked for, but for one now and then that finds out whether it is over.
    assert_eq!(world.gateway.metric("infogw_authorizer_circuit_open").await, 1.0);
    world.gateway.wait_for_log("the authorizer does not answer").await;
    let asked = world.authorizer.received().len();
    let mut more = JoinSet::new();
    for n in 5..25 {
        receive(&world, &mut more, PULL_SECRET, &format!("unknown{n}"));
    }
    for _ in 0..19 {
        let reply = more.join_next().await.unwrap().unwrap().expect_status(503);
        assert!(reply.retry_after().is_some(), "{reply:?}");
    }
    assert!(world.authorizer.received().len() <= asked + 1, "asked though the circuit is open");

    world.authorizer.set_script(authorizer::grant);
    eventually("the authorizer's answer", async || {
        let reply = world.receive("unknown0", up("unknown0")).await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
    assert_eq!(world.gateway.metric("infogw_authorizer_circuit_open").await, 0.0);
}

/// It sends a head and then nothing more, which is no answer either.
#[tokio::test]
async fn an_authorizer_that_stops_in_mid_answer_is_one_that_hangs() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            connection
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
                .await
                .unwrap();
            held.push(connection);
        }
    });
    let gateway = Arc::new(Gateway::start(["--authorize", &url, "--forward-url", &url]).await);
    let mut unknown = JoinSet::new();
    for n in 0..5 {
        let gateway = Arc::clone(&gateway);
        unknown.spawn(async move {
            gateway.receive(&composite_token(PULL_SECRET, &format!("c{n}")), write_body(up("c"))).await
        });
    }
    for reply in unknown.join_all().await {
        let reply = reply.expect_status(503);
        assert!(reply.retry_after().is_some(), "{reply:?}");
    }
    assert_eq!(gateway.metric("infogw_authorizer_circuit_open").await, 1.0);
}
