//! The push client between real Prometheus servers, through the gateway and around it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{io::Write as _, net::SocketAddr};

use infogw_proto::client::MetricFamily;
use serde_json::{Value, json};
use support::{
    Authorizer, Gateway, Prometheus, Target, ensure, eventually,
    federate::{Client, Receiver, families},
    payload::{composite_token, undelimited},
    target,
};

const EVERY: &str = "--interval=500ms";
const SECRET: &str = "pull-secret";

/// Scrapes one application every half second.
fn scraping(target: SocketAddr) -> Value {
    json!({
        "global": { "scrape_interval": "500ms", "scrape_timeout": "500ms" },
        "scrape_configs": [{ "job_name": "app", "static_configs": [{ "targets": [target.to_string()] }] }],
    })
}

/// A gateway into `central`, which everyone may write through, a feed for all.
async fn gateway(authorizer: &Authorizer, central: &Prometheus) -> (Gateway, tempfile::NamedTempFile) {
    let mut policy = tempfile::NamedTempFile::new().unwrap();
    writeln!(policy, "overrides: {{clusters: {{feed: {{writes_for: [\"*\"]}}}}}}").unwrap();
    let (authorize, forward) = (authorizer.url(), central.remote_write_url());
    let file = policy.path().to_str().unwrap().to_owned();
    let args = ["--authorize", &authorize, "--forward-url", &forward, "--policy", &file, "--ratelimit", "100ms"];
    (Gateway::start(args).await, policy)
}

#[tokio::test]
async fn a_cluster_is_pushed_through_the_gateway_by_both_protocols() {
    let (authorizer, central) = (Authorizer::granting().await, Prometheus::receiver().await);
    let (gateway, _policy) = gateway(&authorizer, &central).await;
    let target = Target::exposing(|| {
        vec![
            target::gauge("app_temperature", &[("room", "a \"b\" \\c\nd é")], 0.1 + 0.2),
            target::histogram("app_latency_seconds", &[(0.1, 1), (2.5, 2)], 3, 0.7),
        ]
    })
    .await;
    let cluster = Prometheus::start(|_| scraping(target.address())).await;
    eventually("the application's series", async || {
        let series = cluster.query(r#"{job="app",__name__=~"app_.*"}"#).await;
        ensure(series.len() >= 5, || format!("{series:?}"))
    })
    .await;
    let from = format!("--from={}", cluster.url(""));
    let common = [from.as_str(), r#"--match={job="app",__name__=~"app_.*"}"#, EVERY];
    let to = format!("--to={}", gateway.public(""));
    let token = format!("--to-token={SECRET}");
    let uploads = Client::start([&common[..], &[&to, &token, "--id=uploaded"]].concat()).await;
    let to = format!("--to-write={}", gateway.public("/metrics/v1/receive"));
    let token = format!("--to-token={}", composite_token(SECRET, "written"));
    let writes = Client::start([&common[..], &[&to, &token, "--label=_id=written"]].concat()).await;
    for (client, id) in [(&uploads, "uploaded"), (&writes, "written")] {
        let mut at_cluster = Vec::new();
        for series in cluster.query(r#"{job="app",__name__=~"app_.*"}"#).await {
            let value = series.points[0].value.clone();
            let mut labels = series.labels;
            labels.insert("_id".to_owned(), id.to_owned());
            at_cluster.push((labels, value));
        }
        at_cluster.sort_by(|a, b| a.0.cmp(&b.0));
        eventually("the cluster's series in the central one", async || {
            let series = central.query(&format!(r#"{{_id="{id}",__name__=~"app_.*"}}"#)).await;
            let mut arrived: Vec<_> =
                series.into_iter().map(|series| (series.labels, series.points[0].value.clone())).collect();
            arrived.sort_by(|a, b| a.0.cmp(&b.0));
            ensure(arrived == at_cluster, || format!("{arrived:?}, not {at_cluster:?}; {:?}", client.logs()))
        })
        .await;
        client.wait_for_metric("federate_samples", 5.0).await;
        assert_eq!(client.metric("federate_filtered_samples").await, 0.0);
    }
}

#[tokio::test]
async fn what_is_uploaded_has_every_sample_of_the_scrape() {
    let target = Target::exposing(|| {
        let gauges = [f64::NAN, f64::INFINITY, -0.0, 5e-324, f64::MAX];
        let gauge = |(n, value): (usize, &f64)| target::gauge("app_gauge", &[("n", &n.to_string())], *value);
        let mut families: Vec<MetricFamily> = Vec::new();
        for gauge in gauges.iter().enumerate().map(gauge) {
            match families.first_mut() {
                Some(family) => family.metric.extend(gauge.metric),
                None => families.push(gauge),
            }
        }
        families.push(target::histogram("app_latency_seconds", &[(0.1, 1), (2.5, 2)], 3, 0.7));
        families
    })
    .await;
    let cluster = Prometheus::start(|_| scraping(target.address())).await;
    let receiver = Receiver::labelling("_id", "c1").await;
    const SELECTOR: &str = r#"{job="app"}"#;
    eventually("the application's series", async || {
        let series = cluster.query(SELECTOR).await;
        ensure(series.len() > 10, || format!("{series:?}"))
    })
    .await;
    let flags = [format!("--from={}", cluster.url("")), format!("--match={SELECTOR}"), "--once".to_owned()];
    let accept = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
    let values = |families: Vec<MetricFamily>| {
        let mut values = Vec::new();
        for family in families {
            for metric in &family.metric {
                let value = metric.untyped.as_ref().expect("untyped").value().to_bits();
                let pairs = metric.label.iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
                let mut labels: Vec<_> = pairs.filter(|(name, value)| name != "_id" && !value.is_empty()).collect();
                labels.sort();
                values.push((family.name().to_owned(), labels, value, metric.timestamp_ms()));
            }
        }
        values.sort();
        values
    };
    // Now and then the application is scraped in between.
    eventually("an upload of what is there now", async || {
        let before = values(undelimited(&cluster.federate(accept, &[SELECTOR]).await.body));
        let seen = receiver.upload.count();
        let exit = Client::run_to_exit(flags.iter().cloned().chain(receiver.flags())).await;
        assert_eq!(exit.code(), 0, "{exit:?}");
        let [upload] = &receiver.upload.received_after(seen)[..] else { panic!("not one upload") };
        let uploaded = values(families(upload));
        ensure(uploaded == before && uploaded.len() > 10, || format!("{uploaded:?}, not {before:?}"))
    })
    .await;
}

/// A cluster's telemetry through the gateway, the subscriptions that UHC knows by the feed, and a join of the two.
async fn joined(metric: &'static str, through_the_gateway: bool) {
    let (authorizer, central) = (Authorizer::granting().await, Prometheus::receiver().await);
    let (gateway, _policy) = gateway(&authorizer, &central).await;
    let app = Target::exposing(|| vec![target::gauge("cluster_version", &[("version", "4.17")], 1.0)]).await;
    let subscriptions = Target::exposing(move || {
        let labels = [("_id", "c1"), ("ebs_account", "12345"), ("support", "Premium"), ("internal", "false")];
        vec![target::gauge(metric, &labels, 1.0)]
    })
    .await;
    let cluster = Prometheus::start(|_| scraping(app.address())).await;
    let uhc = Prometheus::start(|_| scraping(subscriptions.address())).await;

    let (from, to) = (format!("--from={}", cluster.url("")), format!("--to={}", gateway.public("")));
    let token = format!("--to-token={SECRET}");
    let agent = Client::start([&from, "--match=cluster_version", &to, &token, "--id=c1", EVERY]).await;
    let (from, matches) = (format!("--from={}", uhc.url("")), format!("--match={metric}"));
    let (to, token) = match through_the_gateway {
        true => (gateway.public("/metrics/v1/receive"), composite_token(SECRET, "feed")),
        false => (central.remote_write_url(), String::new()),
    };
    let (to, token) = (format!("--to-write={to}"), format!("--to-token={token}"));
    let feed = Client::start([from.as_str(), &matches, &to, &token, EVERY]).await;

    let join = format!("cluster_version * on(_id) group_left(ebs_account, support) {metric}");
    eventually("the join", async || {
        let series = central.query(&join).await;
        let seen = || format!("{series:?}; {:?}; {:?}", agent.logs(), feed.logs());
        let [one] = &series[..] else { return Err(seen()) };
        let label = |name: &str| one.labels.get(name).map_or("", String::as_str);
        let right = label("_id") == "c1" && label("ebs_account") == "12345" && label("support") == "Premium";
        ensure(right && one.points[0].value == "1", seen)
    })
    .await;
}

#[tokio::test]
async fn subscription_labels_join_the_telemetry() {
    joined("subscription_labels", false).await;
}

#[tokio::test]
async fn ocm_subscription_joins_the_telemetry_through_the_gateway() {
    joined("ocm_subscription", true).await;
}
