//! Whose series who may write: the policy's `writes_for`, whatever says who the sender is. `--cluster-label-check`'s modes are among
//! the tests of `differences.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use hyper::Request;
use infogw_proto::prometheus::TimeSeries;
use support::{
    Reply, World,
    payload::{series, write_body},
    world::{now, spelt},
};
use tempfile::NamedTempFile;

const DELEGATIONS: &str = "\
overrides:
  clusters:
    # HyperShift
    management: {writes_for: [hosted-1, hosted-2]}
    nobody: {writes_for: []}
    feed: {writes_for: ['*']}
";

const CLUSTERS: [&str; 5] = ["management", "hosted-1", "hosted-2", "feed", "another"];

fn delegations(content: &str) -> (NamedTempFile, String) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let flag = format!("--policy={}", file.path().display());
    (file, flag)
}

/// A series of each cluster.
fn offered() -> Vec<TimeSeries> {
    CLUSTERS.iter().map(|id| series(&[("__name__", "up"), ("_id", id)], &[(1.0, now())])).collect()
}

/// Whose series went upstream for this reply.
fn written(world: &World, reply: &Reply) -> Vec<String> {
    let Some(write) = world.upstream.received().pop() else { return Vec::new() };
    let written: Vec<_> = spelt(&write).iter().map(|it| it.split('"').nth(1).unwrap().to_owned()).collect();
    match CLUSTERS.len() - written.len() {
        0 => assert_eq!(reply.status, 200, "{reply:?}"),
        refused => {
            assert_eq!(reply.status, 400, "{reply:?}");
            assert!(reply.reason().contains(&format!("; {refused} of 5 series refused")), "{reply:?}");
        }
    }
    written
}

const ROWS: [(&str, &[&str]); 5] = [
    ("management", &["management", "hosted-1", "hosted-2"]),
    // The hosted ones get nothing by it.
    ("hosted-1", &["hosted-1"]),
    ("feed", &CLUSTERS),
    ("another", &["another"]),
    ("feed", &CLUSTERS),
];

#[tokio::test]
async fn who_is_listed_writes_for_others() {
    let (_file, flag) = delegations(DELEGATIONS);
    let world = World::with(&[&flag]).await;
    for (sender, allowed) in ROWS {
        let reply = world.receive(sender, offered()).await;
        assert_eq!(written(&world, &reply), allowed, "{sender}");
    }
    // A feed's series must still say whose they are.
    let nameless = series(&[("__name__", "up"), ("job", "j")], &[(1.0, now())]);
    let refused = world.receive("feed", vec![nameless]).await.expect_status(400);
    assert!(
        refused.reason().contains("label `_id` is missing, this sender writes `feed` and any other"),
        "{refused:?}"
    );
    let refused = world.receive("nobody", offered()).await.expect_status(400);
    assert!(refused.reason().contains("; 5 of 5 series refused"), "{refused:?}");
    let metrics = support::http::get(&world.gateway.internal("/metrics")).await;
    assert!(metrics.text().contains("infogw_receive_foreign_series_total 15"), "{}", metrics.text());
}

#[tokio::test]
async fn it_does_not_matter_what_says_who_the_sender_is() {
    let (_file, flag) = delegations(DELEGATIONS);
    let data = NamedTempFile::new().unwrap();
    let json = r#"{"secret":"s3cret","config":{"secret_header":"x-secret","common_name_header":"x-common-name"}}"#;
    fs::write(data.path(), json).unwrap();
    let world = World::with(&[&flag, "--client-info-data-file", data.path().to_str().unwrap()]).await;
    for (sender, allowed) in ROWS {
        let request = Request::post(world.gateway.public("/metrics/v1/receive"))
            .header("x-secret", "s3cret")
            .header("x-common-name", format!("/O=1/CN={sender}"));
        let reply = support::http::send(request, write_body(offered())).await;
        assert_eq!(written(&world, &reply), allowed, "{sender}");
    }
    assert!(world.authorizer.received().is_empty());
}

/// Tokens of ours bind their series to one cluster.
#[tokio::test]
async fn uploads_are_not_delegated() {
    let (_file, flag) = delegations(DELEGATIONS);
    let world = World::with(&[&flag]).await;
    for sender in ["management", "feed"] {
        let text = format!("up{{_id=\"hosted-1\"}} 1 {}\n", now());
        let refused = world.upload(sender, &text).await.expect_status(400);
        assert!(refused.reason().contains("label `_id` is `hosted-1`"), "{refused:?}");
    }
    world.assert_nothing_forwarded();
}

#[tokio::test]
async fn what_is_taken_back_is_taken_back_at_once() {
    let (file, flag) = delegations(DELEGATIONS);
    let world = World::with(&[&flag]).await;
    let allowed = async |sender: &str| {
        let reply = world.receive(sender, offered()).await;
        written(&world, &reply)
    };
    assert_eq!(allowed("management").await, ["management", "hosted-1", "hosted-2"]);
    assert_eq!(allowed("feed").await, CLUSTERS);

    // From those too whose authorization is cached.
    fs::write(file.path(), "overrides: {clusters: {management: {writes_for: [hosted-2]}}}\n").unwrap();
    world.gateway.signal("HUP").await;
    world.gateway.wait_for_log("reloaded the policy").await;
    assert_eq!(allowed("management").await, ["management", "hosted-2"]);
    assert_eq!(allowed("feed").await, ["feed"]);
    assert_eq!(world.authorizer.received().len(), 2);
}
