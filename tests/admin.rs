//! Health, the list of paths, metrics and the lines of the log that people grep for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use hyper::{Request, body::Bytes};
use infogw_proto::client::{Metric, MetricFamily, MetricType};
use serde_json::json;
use support::{
    Answer, Reply, World, http,
    payload::{composite_token, series, undelimited},
    process::logfmt,
    world::{PULL_SECRET, TEXT, now},
};

/// The contract's metrics, each with its labels, of those that a gateway has after the traffic below.
const METRICS: [(&str, &[&str]); 17] = [
    ("http_requests_total", &["code", "handler", "method"]),
    ("http_request_duration_seconds", &["code", "handler", "method"]),
    ("http_request_size_bytes", &["code", "handler", "method"]),
    ("client_api_requests_total", &["client", "code", "method"]),
    ("telemeter_forward_requests_total", &["result"]),
    ("telemeter_receive_size_limited_total", &[]),
    ("telemeter_receive_request_missing_labels_total", &[]),
    ("telemeter_receive_series_processed_total", &[]),
    ("telemeter_v1_forward_samples_total", &[]),
    ("telemeter_v1_forward_requests_total", &["result"]),
    ("telemeter_v1_forward_request_duration_seconds", &["status_code"]),
    ("telemeter_overwritten_timestamps_total", &["tense"]),
    ("cache_reads_total", &["result"]),
    ("cache_writes_total", &["result"]),
    ("process_cpu_seconds_total", &[]),
    ("process_resident_memory_bytes", &[]),
    ("process_open_fds", &[]),
];

#[tokio::test]
async fn health_and_paths_on_both_listeners() {
    let world = World::start().await;
    // Readiness is this process's own: both neighbours are down.
    world.authorizer.set_script(|_| Answer::Close);
    world.upstream.set_script(|_| Answer::Close);
    let gateway = &world.gateway;
    for url in [gateway.public(""), gateway.internal("")] {
        for path in ["/healthz", "/healthz/ready"] {
            let reply = http::get(&format!("{url}{path}")).await.expect_status(200);
            assert_eq!(reply.text(), "ok");
            send("HEAD", &format!("{url}{path}")).await.expect_status(200);
            let refused = send("POST", &format!("{url}{path}")).await.expect_status(405);
            assert_eq!(refused.header("allow"), Some("GET, HEAD"));
        }
        http::get(&format!("{url}/nowhere")).await.expect_status(404);
        http::get(&format!("{url}/upload/")).await.expect_status(404);
    }
    let paths = async |url: String| {
        let reply = http::get(&url).await.expect_status(200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let list: BTreeSet<String> = serde_json::from_value(reply.json()["paths"].clone()).unwrap();
        list
    };
    let public = ["/", "/authorize", "/healthz", "/healthz/ready", "/metrics/v1/receive", "/upload"];
    assert_eq!(paths(gateway.public("/")).await, public.map(str::to_owned).into());
    let internal = ["/", "/-/reload", "/healthz", "/healthz/ready", "/metrics"];
    assert_eq!(paths(gateway.internal("/")).await, internal.map(str::to_owned).into());
    // On the internal listener only, and none of the public ones there.
    http::get(&gateway.public("/metrics")).await.expect_status(404);
    send("POST", &gateway.internal("/upload")).await.expect_status(404);
}

#[tokio::test]
async fn metrics_in_text() {
    let world = World::start().await;
    traffic(&world).await;
    let reply = http::get(&world.gateway.internal("/metrics")).await.expect_status(200);
    assert!(
        reply.header("content-type").is_some_and(|found| found.starts_with("text/plain; version=0.0.4")),
        "{reply:?}"
    );
    let text = reply.text();
    let value = |series: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse::<f64>().unwrap()
    };
    for (series, expected) in [
        (r#"http_requests_total{code="200",handler="authorize",method="post"}"#, 1.0),
        (r#"http_requests_total{code="200",handler="upload",method="post"}"#, 1.0),
        (r#"http_requests_total{code="405",handler="upload",method="get"}"#, 1.0),
        (r#"http_requests_total{code="405",handler="upload",method="unknown"}"#, 1.0),
        (r#"http_requests_total{code="200",handler="receive",method="post"}"#, 1.0),
        (r#"http_requests_total{code="400",handler="receive",method="post"}"#, 1.0),
        (r#"http_requests_total{code="413",handler="receive",method="post"}"#, 1.0),
        (r#"http_requests_total{code="503",handler="receive",method="post"}"#, 1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="0.005"}"#, -1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="1"}"#, 1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="2.5"}"#, 1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="5"}"#, 1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="10"}"#, 1.0),
        (r#"http_request_duration_seconds_bucket{code="200",handler="upload",method="post",le="+Inf"}"#, 1.0),
        (r#"http_request_duration_seconds_count{code="200",handler="receive",method="post"}"#, 1.0),
        (r#"http_request_size_bytes_count{code="200",handler="receive",method="post"}"#, 1.0),
        (r#"http_request_size_bytes_bucket{code="200",handler="receive",method="post",le="524288"}"#, 1.0),
        (r#"http_request_size_bytes_bucket{code="200",handler="receive",method="post",le="1.048576e+06"}"#, 1.0),
        // The registration, and the grant that is asked for once for two of the writes.
        (r#"client_api_requests_total{client="authorize",code="201",method="post"}"#, 2.0),
        (r#"client_api_requests_total{client="forward",code="200",method="post"}"#, 3.0),
        (r#"client_api_requests_total{client="forward",code="500",method="post"}"#, 1.0),
        (r#"telemeter_forward_requests_total{result="success"}"#, 2.0),
        (r#"telemeter_forward_requests_total{result="error"}"#, 1.0),
        ("telemeter_receive_size_limited_total", 1.0),
        ("telemeter_receive_request_missing_labels_total", 1.0),
        ("telemeter_receive_series_processed_total", 3.0),
        ("telemeter_v1_forward_samples_total", 2.0),
        (r#"telemeter_v1_forward_requests_total{result="success"}"#, 1.0),
        (r#"telemeter_v1_forward_requests_total{result="error"}"#, 0.0),
        (r#"telemeter_v1_forward_request_duration_seconds_count{status_code="200"}"#, 1.0),
        (r#"telemeter_overwritten_timestamps_total{tense="past"}"#, 1.0),
        (r#"telemeter_overwritten_timestamps_total{tense="future"}"#, 1.0),
        // Receive's four requests. The upload's token is verified here, not looked up there.
        (r#"cache_reads_total{result="hit"}"#, 3.0),
        (r#"cache_reads_total{result="miss"}"#, 1.0),
        (r#"cache_writes_total{result="success"}"#, 1.0),
    ] {
        let found = value(series);
        assert!(found == expected || expected < 0.0, "{series} is {found}, not {expected}");
    }
    let types: BTreeMap<_, _> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for (name, _) in METRICS {
        assert!(types.contains_key(name), "{name} is not in\n{text}");
    }
}

#[tokio::test]
async fn metrics_in_protobuf() {
    let world = World::start().await;
    traffic(&world).await;
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let request = Request::get(world.gateway.internal("/metrics")).header("accept", accept);
    let reply = http::send(request, Bytes::new()).await.expect_status(200);
    let content_type = reply.header("content-type").expect("a content type");
    assert!(content_type.starts_with("application/vnd.google.protobuf"), "{content_type}");
    assert!(content_type.contains("encoding=delimited") && content_type.contains("io.prometheus.client.MetricFamily"));

    let families: BTreeMap<String, MetricFamily> =
        undelimited(&reply.body).into_iter().map(|family| (family.name().to_owned(), family)).collect();
    for (name, labels) in METRICS {
        let family = families.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", families.keys()));
        let names = |metric: &Metric| metric.label.iter().map(|label| label.name().to_owned()).collect::<Vec<_>>();
        assert!(family.metric.iter().all(|metric| names(metric) == labels), "{family:?}");
    }
    let durations = &families["http_request_duration_seconds"];
    assert_eq!(durations.r#type(), MetricType::Histogram);
    let bounds: Vec<_> =
        durations.metric[0].histogram.as_ref().unwrap().bucket.iter().map(|b| b.upper_bound()).collect();
    let default = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    assert_eq!(bounds.into_iter().filter(|bound| bound.is_finite()).collect::<Vec<_>>(), default);

    // Whoever does not want it gets text.
    for accept in ["*/*", "application/vnd.google.protobuf;q=0", "application/vnd.google.protobuf;encoding=text"] {
        let request = Request::get(world.gateway.internal("/metrics")).header("accept", accept);
        let reply = http::send(request, Bytes::new()).await;
        assert!(
            reply.header("content-type").is_some_and(|found| found.starts_with("text/plain")),
            "{accept}: {reply:?}"
        );
    }
}

#[tokio::test]
async fn the_log_has_the_lines_that_people_grep_for() {
    let world = World::start().await;
    traffic(&world).await;
    let line = world.gateway.wait_for_log("path=/upload status=200").await;
    assert!(
        line.starts_with("level=info ")
            && line.contains("msg=\"request log\" method=POST path=/upload status=200 duration="),
        "{line}"
    );
    assert_eq!(logfmt(&line, "status"), Some("200"));
    let line = world.gateway.wait_for_log("msg=\"cluster ID\"").await;
    assert!(line.ends_with("msg=\"cluster ID\" cluster=c1"), "{line}");
    // What a client chooses cannot forge a line.
    let target = world.gateway.public("/authorize?id=c1");
    let form = "id=x%0Alevel%3Derror%20msg%3Dforged";
    let request = Request::post(target)
        .header("authorization", "Bearer t")
        .header("content-type", "application/x-www-form-urlencoded");
    http::send(request, form).await.expect_status(400);
    assert!(!world.gateway.logs().iter().any(|line| line.starts_with("level=error")));
}

/// A registration, an upload of two samples, and five remote-write requests: one taken, one of them with a series that lacks the
/// cluster, one too large, one whose forward fails, and one that is no request.
async fn traffic(world: &World) {
    let token = world.token("c1").await;
    let (past, future) = (now() - 600_000, now() + 600_000);
    let text = format!("a{{_id=\"c1\"}} 1 {past}\nb{{_id=\"c1\"}} 1 {future}\n");
    world.gateway.upload(&token, TEXT, "", text).await.expect_status(200);
    send("GET", &world.gateway.public("/upload")).await.expect_status(405);
    send("BREW", &world.gateway.public("/upload")).await.expect_status(405);
    let up = || series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())]);
    world.receive("c1", vec![up()]).await.expect_status(200);
    world.receive("c1", vec![up(), series(&[("__name__", "up")], &[(1.0, now())])]).await.expect_status(400);
    let composite = composite_token(PULL_SECRET, "c1");
    world.gateway.receive(&composite, vec![0; 200_000]).await.expect_status(413);
    world.upstream.set_script(|_| Answer::json(500, &json!({})));
    world.receive("c1", vec![up()]).await.expect_status(503);
}

async fn send(method: &str, url: &str) -> Reply {
    http::send(Request::builder().method(method).uri(url), Bytes::new()).await
}

#[tokio::test]
async fn whoever_has_the_token_reloads() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"s3cret\n").unwrap();
    let world = World::with(&["--internal-token-file", file.path().to_str().unwrap()]).await;
    let reload = world.gateway.internal("/-/reload");
    let refused = http::send(Request::post(&reload), "").await.expect_status(401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert!(refused.text().contains("show the token of --internal-token-file"), "{refused:?}");
    http::send(Request::post(&reload).header("authorization", "Bearer other"), "").await.expect_status(401);
    http::send(Request::post(&reload).header("authorization", "Bearer s3cret"), "").await.expect_status(200);
    http::get(&world.gateway.internal("/metrics")).await.expect_status(200);
}

/// Bound to all interfaces, as shipped manifests do it.
#[tokio::test]
async fn without_a_token_this_host_alone_reloads() {
    let world = World::with(&["--listen-internal=0.0.0.0:0"]).await;
    let port = world.gateway.internal_address().rsplit_once(':').unwrap().1.to_owned();
    // No packet is sent: the system only says which address it would send from.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if socket.connect("192.0.2.1:9").is_ok() {
        let outside = socket.local_addr().unwrap().ip();
        let refused =
            http::send(Request::post(format!("http://{outside}:{port}/-/reload")), "").await.expect_status(403);
        assert!(refused.text().starts_with("this is for this host alone"), "{refused:?}");
        http::get(&format!("http://{outside}:{port}/metrics")).await.expect_status(200);
    }
    http::send(Request::post(format!("http://127.0.0.1:{port}/-/reload")), "").await.expect_status(200);
}
