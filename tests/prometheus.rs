//! The gateway between real Prometheus servers: one that scrapes and pushes, one that receives and is asked what it got.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use infogw_proto::client::MetricFamily;
use serde_json::{Value, json};
use support::{
    Authorizer, Gateway, Prometheus, Target, ensure, eventually,
    payload::{composite_token, snappy_framed, undelimited},
    prometheus::Series,
    target,
};

/// The token that the authorizer is asked about.
const TOKEN: &str = "pull-secret";

/// The two formats of a federate answer, as an `Accept` header asks for them.
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const TEXT: &str = "text/plain; version=0.0.4";

/// What a cluster may write. These are PromQL, so a Prometheus that is asked with them says what has to pass.
const ALLOWLIST: [&str; 4] = [
    "prometheus_build_info",
    r#"{__name__=~"prometheus_tsdb_head_.*"}"#,
    r#"{__name__=~"app_.*",visibility!="private"}"#,
    r#"up{job="app"}"#,
];

/// Every series there is.
const ANY: &str = r#"{__name__=~".+"}"#;

/// Every series of the application.
const APP: &str = r#"{job="app",__name__=~"app_.*"}"#;

/// A sender counts here whatever did not pass at the first attempt. Nothing is dropped by relabelling in these tests.
const FAILURES: [&str; 11] = [
    "prometheus_remote_storage_samples_failed_total",
    "prometheus_remote_storage_samples_dropped_total",
    "prometheus_remote_storage_samples_retried_total",
    "prometheus_remote_storage_exemplars_failed_total",
    "prometheus_remote_storage_exemplars_dropped_total",
    "prometheus_remote_storage_exemplars_retried_total",
    "prometheus_remote_storage_histograms_failed_total",
    "prometheus_remote_storage_histograms_dropped_total",
    "prometheus_remote_storage_histograms_retried_total",
    "prometheus_remote_storage_metadata_failed_total",
    "prometheus_remote_storage_metadata_retried_total",
];

/// Values that do not survive careless handling. Not -0.0: Prometheus' own sender leaves out what equals 0.
const AWKWARD: [f64; 7] = [0.1 + 0.2, f64::MAX, 5e-324, f64::INFINITY, 9_007_199_254_740_991.0, f64::NAN, -1.0 / 3.0];

/// One of each kind: classic histogram, counter, native histogram, gauge.
const COMPARED: [&str; 4] = ["app_latency_seconds_bucket", "app_requests_total", "app_size_bytes", "app_temperature"];

#[tokio::test]
async fn remote_write_arrives_as_it_was_scraped() {
    let world = World::start().await;
    let target = Target::exposing(|| vec![target::gauge("app_build_info", &[("version", "1")], 1.0)]).await;
    let sender = world.sender(target.address(), "c1").await;

    // The first sample proves that the sender's queue is running. What the application exposes from now on has to arrive whole.
    eventually("the first sample at the receiver", async || {
        let series = world.receiver.query("app_build_info").await;
        ensure(series.len() == 1, || format!("{series:?}"))
    })
    .await;
    target.expose(telemetry());
    target.wait_for_scrapes(AWKWARD.len() + 2).await;

    // All kinds are there, with the cluster's label.
    eventually("the application's series at the receiver", async || {
        let series = world.receiver.query(r#"{job="app",__name__=~"app_.*",_id="c1"}"#).await;
        let arrived = names(&series);
        ensure(COMPARED.iter().all(|name| arrived.contains(name)), || format!("{arrived:?}"))
    })
    .await;
    // The application goes away. Had its stale markers been lost, it would live on for the five minutes of the lookback.
    target.disappear();
    eventually("the end of the application's series", async || {
        let series = world.receiver.query(APP).await;
        ensure(series.is_empty(), || format!("{:?}", names(&series)))
    })
    .await;
    eventually("`up` to be 0", async || {
        let up = world.receiver.number(r#"up{job="app"}"#).await;
        ensure(up == Some(0.0), || format!("{up:?}"))
    })
    .await;

    // Nothing more comes for these series: both sides must now hold the same points, bit for bit.
    for name in COMPARED {
        let range = format!("{name}[5m]");
        let at_sender = as_cluster("c1", sender.query(&range).await);
        let at_receiver = world.receiver.query(&range).await;
        assert!(at_sender.iter().all(|series| series.points.len() > AWKWARD.len()), "too few points: {at_sender:?}");
        assert_eq!(at_receiver, at_sender, "{range} (left: receiver, right: sender)");
    }

    eventually("the sender's exemplars at the receiver", async || {
        let at_sender = sender.exemplars("app_requests_total").await;
        let at_receiver = world.receiver.exemplars("app_requests_total").await;
        ensure(!at_sender.is_empty() && at_receiver == at_sender, || {
            format!("{at_receiver:?}, the sender has {at_sender:?}")
        })
    })
    .await;

    // The allowlist, and nothing else, decided which series passed.
    eventually("the series on the allowlist, and no others, at the receiver", async || {
        let allowed = sender.series(&ALLOWLIST).await;
        let allowed: BTreeSet<_> = allowed.into_iter().map(|labels| labelled(labels, "c1")).collect();
        let arrived = world.receiver.series(&[ANY]).await;
        let missing: Vec<_> = allowed.difference(&arrived).collect();
        let surplus: Vec<_> = arrived.difference(&allowed).collect();
        ensure(missing.is_empty() && surplus.is_empty(), || format!("missing {missing:?}, surplus {surplus:?}"))
    })
    .await;
    let refused = sender.series(&["go_goroutines", r#"up{job="self"}"#, "app_secret"]).await;
    assert_eq!(refused.len(), 3, "the sender has series that are off the allowlist: {refused:?}");

    // The sender noticed nothing, requests that hold only metadata included.
    eventually("the sender's metadata", async || {
        let sent = sender.counter("prometheus_remote_storage_metadata_total").await;
        ensure(sent > 0.0, || format!("{sent} sent"))
    })
    .await;
    for kind in ["samples", "exemplars", "histograms"] {
        assert!(sender.counter(&format!("prometheus_remote_storage_{kind}_total")).await > 0.0, "no {kind} were sent");
    }
    for failures in FAILURES {
        assert_eq!(sender.counter(failures).await, 0.0, "{failures}\n{}", sender.logs().join("\n"));
    }
    let asked = world.authorizer.received();
    assert!(!asked.is_empty(), "the authorizer was not asked");
    for registration in asked {
        assert_eq!((registration.cluster_id(), registration.authorization_token()), ("c1", TOKEN));
    }
}

#[tokio::test]
async fn an_outage_costs_a_sender_nothing() {
    let world = World::start().await;
    world.authorizer.set_script(|_| support::Answer::status(500));
    let target = Target::exposing(telemetry()).await;
    let sender = world.sender(target.address(), "c1").await;

    eventually("a retry by the sender", async || {
        let retried = sender.counter("prometheus_remote_storage_samples_retried_total").await;
        ensure(retried > 0.0, || format!("{retried} retried"))
    })
    .await;
    assert_eq!(world.receiver.series(&[ANY]).await, BTreeSet::new(), "it was not authorized");

    world.authorizer.set_script(support::authorizer::grant);
    let healed = unix_millis();
    eventually("what was scraped during the outage", async || {
        let at_sender = as_cluster("c1", sender.query("app_temperature[5m]").await);
        let at_receiver = world.receiver.query("app_temperature[5m]").await;
        let (Some(sent), Some(arrived)) = (at_sender.first(), at_receiver.first()) else {
            return Err(format!("{at_receiver:?}, the sender has {at_sender:?}"));
        };
        // Without a gap from the beginning, which the queue may have missed by a scrape, to the end of the outage and beyond:
        // scraping goes on, so the two ends are not the same.
        let (from, to) = (arrived.points[0].timestamp, arrived.points[arrived.points.len() - 1].timestamp);
        let between: Vec<_> = sent.points.iter().filter(|point| (from..=to).contains(&point.timestamp)).collect();
        let from_the_beginning = sent.points[..2.min(sent.points.len())].iter().any(|point| point.timestamp == from);
        ensure(from_the_beginning && to > healed && between == arrived.points.iter().collect::<Vec<_>>(), || {
            format!("healed at {healed}: {arrived:?}, the sender has {at_sender:?}")
        })
    })
    .await;
    for kind in ["samples", "exemplars", "histograms"] {
        let failed = format!("prometheus_remote_storage_{kind}_failed_total");
        assert_eq!(sender.counter(&failed).await, 0.0, "{failed}\n{}", sender.logs().join("\n"));
    }
}

#[tokio::test]
async fn a_federate_answer_arrives_in_every_format_and_encoding() {
    let world = World::start().await;
    let target = Target::exposing(telemetry()).await;
    let app = target.address();
    let source = Prometheus::start(|own| scrape_config(own, app, "none yet")).await;
    eventually("a scrape of both targets", async || {
        let up = source.query("up == 1").await;
        ensure(up.len() == 2, || format!("{up:?}"))
    })
    .await;

    // A cluster may upload once in some minutes, so each of these is another cluster.
    let cases = [("f1", PROTOBUF, "snappy"), ("f2", PROTOBUF, ""), ("f3", TEXT, "snappy"), ("f4", TEXT, "identity")];
    for (cluster, accept, encoding) in cases {
        source.reload(&scrape_config(source.address(), app, cluster)).await;
        // No name in two jobs: a family's timestamps have to ascend, and each target is scraped at its own times. No native
        // histograms: they are another test's.
        let selectors =
            [r#"{job="app",__name__!="app_size_bytes"}"#, r#"{job="self",__name__=~"prometheus_.*|go_.*"}"#];
        let federated = source.federate(accept, &selectors).await;
        let content_type = federated.header("content-type").expect("a content type").to_owned();
        let body = if encoding == "snappy" { snappy_framed(&federated.body).into() } else { federated.body.clone() };
        let sent = if accept == PROTOBUF { from_protobuf(&federated.body) } else { from_text(federated.text()) };

        let token = world.gateway.upload_token(cluster, TOKEN).await;
        let before = unix_seconds();
        world.gateway.upload(&token, &content_type, encoding, body).await.expect_status(200);
        let now = before..=unix_seconds();

        let mut arrived = Values::new();
        for series in world.receiver.query(&format!(r#"{{_id="{cluster}"}}[5m]"#)).await {
            let [point] = &series.points[..] else { panic!("{cluster}: not one sample: {series:?}") };
            let whole_second = point.timestamp % 1000 == 0;
            assert!(whole_second && now.contains(&(point.timestamp / 1000)), "{cluster}: not {now:?}: {series:?}");
            let value = bits(point.value.as_str().expect("a sample"));
            arrived.insert(series.labels, value);
        }
        let allowlisted = source.series(&ALLOWLIST).await;
        let allowlisted: BTreeSet<_> = allowlisted.into_iter().map(|labels| labelled(labels, cluster)).collect();
        let (allowed, refused): (Values, Values) =
            sent.into_iter().partition(|(labels, _)| allowlisted.contains(labels));
        assert!(
            allowed.len() > 20 && refused.len() > 20,
            "{cluster}: {} to pass, {} not",
            allowed.len(),
            refused.len()
        );
        assert_eq!(arrived, allowed, "{cluster}: {accept}, {encoding:?} (left: receiver, right: allowed)");
    }
}

#[tokio::test]
async fn a_native_histogram_in_a_federate_answer_stays_one() {
    let world = World::start().await;
    let target = Target::exposing(telemetry()).await;
    let source = Prometheus::start(|own| scrape_config(own, target.address(), "n1")).await;
    eventually("a scrape of the histogram", async || {
        let histogram = source.query("app_size_bytes").await;
        ensure(histogram.len() == 1, || format!("{histogram:?}"))
    })
    .await;
    let federated = source.federate(PROTOBUF, &["app_size_bytes"]).await;
    let token = world.gateway.upload_token("n1", TOKEN).await;
    let content_type = federated.header("content-type").expect("a content type").to_owned();
    world.gateway.upload(&token, &content_type, "", federated.body.clone()).await.expect_status(200);

    let histogram = from_protobuf_histogram(&federated.body);
    for (function, expected) in
        [("histogram_count", histogram.sample_count_float()), ("histogram_sum", histogram.sample_sum())]
    {
        let arrived = world.receiver.number(&format!(r#"{function}(app_size_bytes{{_id="n1"}})"#)).await;
        assert_eq!(arrived, Some(expected), "{function}");
    }
    let quantile = world.receiver.number(r#"histogram_quantile(0.5, app_size_bytes{_id="n1"})"#).await;
    assert!(quantile.is_some_and(f64::is_finite), "the buckets arrived: {quantile:?}");
}

/// The histogram of the one metric in a federate answer.
fn from_protobuf_histogram(body: &[u8]) -> infogw_proto::client::Histogram {
    let family =
        <infogw_proto::client::MetricFamily as prost::Message>::decode_length_delimited(body).expect("a family");
    let [metric] = &family.metric[..] else { panic!("not one metric: {family:?}") };
    metric.histogram.clone().expect("a histogram")
}

/// Everything but the sender.
struct World {
    gateway: Gateway,
    authorizer: Authorizer,
    receiver: Prometheus,
}

impl World {
    /// A gateway with [`ALLOWLIST`], an authorizer that grants and a Prometheus that receives.
    async fn start() -> Self {
        let (authorizer, receiver) = (Authorizer::granting().await, Prometheus::receiver().await);
        let mut args = vec!["--authorize".to_owned(), authorizer.url()];
        args.extend(["--forward-url".to_owned(), receiver.remote_write_url()]);
        for rule in ALLOWLIST {
            args.extend(["--whitelist".to_owned(), rule.to_owned()]);
        }
        Self { gateway: Gateway::start(args).await, authorizer, receiver }
    }

    /// A Prometheus that scrapes itself and `app`, and remote-writes through the gateway as this cluster. Its queue has a stock
    /// sender's settings but for the waits, which are short.
    async fn sender(&self, app: SocketAddr, cluster: &str) -> Prometheus {
        let remote_write = json!({
            "url": self.gateway.public("/metrics/v1/receive"),
            "authorization": { "type": "Bearer", "credentials": composite_token(TOKEN, cluster) },
            "send_exemplars": true,
            "send_native_histograms": true,
            "queue_config": { "batch_send_deadline": "100ms" },
            "metadata_config": { "send_interval": "1s" },
        });
        Prometheus::start(|own| {
            let mut config = scrape_config(own, app, cluster);
            config["remote_write"] = json!([remote_write]);
            config
        })
        .await
    }
}

fn scrape_config(own: SocketAddr, app: SocketAddr, cluster: &str) -> Value {
    let job = |name: &str, target: SocketAddr| json!({ "job_name": name, "honor_labels": true, "static_configs": [{ "targets": [target] }] });
    json!({
        "global": { "scrape_interval": "250ms", "external_labels": { "_id": cluster } },
        "scrape_configs": [job("self", own), job("app", app)],
    })
}

/// What the application exposes: one series of each kind, and values that change at each scrape.
fn telemetry() -> impl Fn() -> Vec<MetricFamily> {
    let scrapes = AtomicUsize::new(0);
    move || {
        let n = scrapes.fetch_add(1, Ordering::Relaxed);
        let count = n as u64;
        vec![
            target::counter(
                "app_requests_total",
                &[("code", "200")],
                count as f64,
                &[("trace_id", "4bf92f3577b34da6")],
            ),
            target::histogram("app_latency_seconds", &[(0.1, count), (2.5, 2 * count)], 3 * count, 0.7 * count as f64),
            target::native_histogram("app_size_bytes", &[1, 4 + count, 2], 10.5 * count as f64),
            target::gauge("app_temperature", &[("room", "a \"b\" \\c\nd é")], AWKWARD[n % AWKWARD.len()]),
            // It says that it has no instance; a federate answer spells that as a label with an empty value.
            target::gauge("app_orphans", &[("instance", "")], -0.0),
            target::gauge("app_secret", &[("visibility", "private")], 42.0),
        ]
    }
}

type Labels = BTreeMap<String, String>;

/// The value of each series, as its bits: every NaN is equal to itself then, and 0.0 is not -0.0.
type Values = BTreeMap<Labels, u64>;

/// The values in a federate answer in protobuf: there every series is of type untyped.
fn from_protobuf(stream: &[u8]) -> Values {
    let mut values = Values::new();
    for family in undelimited(stream) {
        for metric in &family.metric {
            let pairs = metric.label.iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
            let name = ("__name__".to_owned(), family.name().to_owned());
            let value = metric.untyped.as_ref().unwrap_or_else(|| panic!("not untyped: {family:?}")).value();
            values.insert(pairs.chain([name]).filter(|(_, value)| !value.is_empty()).collect(), value.to_bits());
        }
    }
    values
}

/// The values in a federate answer in the text format: `NAME{LABEL="VALUE",...} VALUE TIMESTAMP`, labels always present.
fn from_text(text: &str) -> Values {
    let mut values = Values::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut labels = Labels::new();
        let (name, mut rest) = line.split_once('{').unwrap_or_else(|| panic!("no labels: {line}"));
        labels.insert("__name__".to_owned(), name.to_owned());
        while let Some((label, after)) = rest.split_once("=\"") {
            let mut value = String::new();
            let mut characters = after.chars();
            loop {
                match characters.next().unwrap_or_else(|| panic!("an open quote: {line}")) {
                    '"' => break,
                    '\\' => match characters.next() {
                        Some('n') => value.push('\n'),
                        Some(other) => value.push(other),
                        None => panic!("an open escape: {line}"),
                    },
                    other => value.push(other),
                }
            }
            if !value.is_empty() {
                labels.insert(label.trim_start_matches(',').to_owned(), value);
            }
            rest = characters.as_str();
        }
        let value = rest.trim_start_matches("} ").split(' ').next().unwrap_or_default();
        values.insert(labels, bits(value));
    }
    values
}

fn bits(value: &str) -> u64 {
    value.parse::<f64>().unwrap_or_else(|error| panic!("{value:?}: {error}")).to_bits()
}

fn names(series: &[Series]) -> BTreeSet<&str> {
    series.iter().map(Series::name).collect()
}

/// `labels` as the gateway has to see them: with the sender's external label.
fn labelled(mut labels: Labels, cluster: &str) -> Labels {
    labels.insert("_id".to_owned(), cluster.to_owned());
    labels
}

/// The series that a sender shows, sorted by labels, as they have to arrive.
fn as_cluster(cluster: &str, mut series: Vec<Series>) -> Vec<Series> {
    for one in &mut series {
        one.labels = labelled(std::mem::take(&mut one.labels), cluster);
    }
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    series
}

fn unix_seconds() -> i64 {
    unix_millis() / 1000
}

fn unix_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}
