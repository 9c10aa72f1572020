//! Bodies: what is refused before memory is spent on it, and what arrives upstream of the rest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use infogw_proto::{
    client::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Untyped},
    prometheus::{BucketSpan, Exemplar, Histogram, Label, MetricMetadata, TimeSeries, WriteRequest, histogram},
};
use prost::Message;
use support::{
    World,
    payload::{composite_token, delimited, series, snappy_block, snappy_framed, write_body},
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// As a `Content-Type`.
const DELIMITED: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// The bits of Prometheus' stale marker.
const STALE: u64 = 0x7ff0_0000_0000_0002;

#[tokio::test]
async fn a_block_that_claims_4_gb_costs_nothing() {
    let world = World::start().await;
    let token = composite_token(PULL_SECRET, "c1");
    // The first of this size, so that the buffers for it are there.
    world.gateway.receive(&token, vec![0; 100_000]).await.expect_status(400);
    let before = world.gateway.peak_memory();
    let mut body = vec![0xff, 0xff, 0xff, 0xff, 0x0f];
    body.resize(100_000, 0);
    for _ in 0..5 {
        let refused = world.gateway.receive(&token, body.clone()).await.expect_status(400);
        assert!(refused.reason().contains("claims to be 4294967295 bytes"), "{refused:?}");
    }
    // A claim of 20 MiB: more than 130 kB can become, and than 2 MB may.
    let mut body = vec![0x80, 0x80, 0x80, 0x0a];
    body.resize(130_000, 0);
    world.gateway.receive(&token, body.clone()).await.expect_status(400);
    assert_grown_less_than(4 << 20, &world, before);
    world.assert_nothing_forwarded();

    let world = World::with(&["--limit-receive-bytes=0"]).await;
    world.gateway.receive(&token, vec![0; 2_000_000]).await.expect_status(400);
    let before = world.gateway.peak_memory();
    body.resize(2_000_000, 0);
    let refused = world.gateway.receive(&token, body).await.expect_status(413);
    assert!(refused.reason().contains("decoded body is 20971520 bytes, at most 16777216 are taken"), "{refused:?}");
    assert_grown_less_than(4 << 20, &world, before);
    world.assert_nothing_forwarded();
}

#[tokio::test]
async fn a_framed_bomb_costs_no_more_than_the_limit() {
    let world = World::start().await;
    let token = world.token("c1").await;
    world
        .gateway
        .upload(&token, TEXT, "snappy", snappy_framed(&b"# a comment\n".repeat(42_000)))
        .await
        .expect_status(200);
    let before = world.gateway.peak_memory();
    // Frames of 64 KiB become 3 KiB each.
    let bomb = snappy_framed(&vec![b'\n'; 9 << 20]);
    assert!(bomb.len() < 512_000, "{} bytes would not pass the limit on the wire", bomb.len());
    for cluster in ["c2", "c3", "c4"] {
        let token = world.token(cluster).await;
        let refused = world.gateway.upload(&token, TEXT, "snappy", bomb.clone()).await.expect_status(413);
        assert!(refused.reason().contains("the decoded body is more than 512000 bytes"), "{refused:?}");
    }
    assert_grown_less_than(4 << 20, &world, before);
}

#[tokio::test]
async fn the_limit_of_an_upload_counts_decoded_bytes() {
    let world = World::with(&["--limit-bytes=1000", "--ratelimit=0"]).await;
    let token = world.token("c1").await;
    for (encoding, pack) in
        [("", <[u8]>::to_vec as fn(&[u8]) -> Vec<u8>), ("identity", <[u8]>::to_vec), ("snappy", snappy_framed)]
    {
        let mut text = format!("up{{_id=\"c1\"}} 1 {}\n", now()).into_bytes();
        text.resize(1000, b'\n');
        world.gateway.upload(&token, TEXT, encoding, pack(&text)).await.expect_status(200);
        text.push(b'\n');
        world.gateway.upload(&token, TEXT, encoding, pack(&text)).await.expect_status(413);
    }
    assert_eq!(world.upstream.received().len(), 3);

    let world = World::with(&["--limit-bytes=0", "--limit-receive-bytes=0"]).await;
    world.upload("c1", &"# a comment\n".repeat(100_000)).await.expect_status(200);
    let noise: Vec<_> = (0..20_000)
        .map(|n| series(&[("__name__", "up"), ("_id", "c1"), ("n", &format!("{:x}", n * 7919))], &[(f64::from(n), 1)]))
        .collect();
    let body = write_body(noise);
    assert!(body.len() > 131_072, "{} bytes are within the default limit", body.len());
    world.gateway.receive(&composite_token(PULL_SECRET, "c1"), body).await.expect_status(200);
}

/// A sender that is still sending when it is refused gets the answer nevertheless, and not a reset.
#[tokio::test]
async fn the_limit_on_the_wire_answers_while_the_client_sends() {
    let world = World::start().await;
    let head = |framing: &str| {
        let token = composite_token(PULL_SECRET, "c1");
        format!(
            "POST /metrics/v1/receive HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n{framing}\r\n\r\n"
        )
    };
    let chunk = [b"2000\r\n".as_slice(), &[0; 0x2000], b"\r\n"].concat();
    let whole = [vec![0; 900_000]].concat();
    let chunked = [chunk.repeat(110), b"0\r\n\r\n".to_vec()].concat();
    for (case, framing, body) in [
        ("Content-Length, sent to the end", "Content-Length: 900000", whole.as_slice()),
        ("Content-Length, and then it waits", "Content-Length: 900000", &whole[..200_000]),
        ("chunked, sent to the end", "Transfer-Encoding: chunked", &chunked),
        ("chunked, and then it waits", "Transfer-Encoding: chunked", &chunked[..200_000]),
    ] {
        let mut stream = TcpStream::connect(world.gateway.public_address()).await.unwrap();
        stream.write_all(head(framing).as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        let mut answer = Vec::new();
        let complete = support::within(case, async {
            while !String::from_utf8_lossy(&answer).contains("send less at a time\n") {
                if stream.read_buf(&mut answer).await.unwrap_or_else(|error| panic!("{case}: {error}")) == 0 {
                    return false;
                }
            }
            true
        });
        assert!(complete.await, "{case}: {:?}", String::from_utf8_lossy(&answer));
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{case}: {:?}", String::from_utf8_lossy(&answer));
    }
    world.assert_nothing_forwarded();
    let limited = support::http::get(&world.gateway.internal("/metrics")).await;
    assert!(limited.text().contains("\ntelemeter_receive_size_limited_total 4\n"), "{}", limited.text());
}

/// As many as a stock sender of the fleet sends, under the default limits. What they weigh on the wire depends on their labels.
#[tokio::test]
async fn ten_thousand_samples_pass() {
    let world = World::start().await;
    let one = |n: usize, samples: usize| {
        let pod = format!("pod-{n}");
        let labels = [("__name__", "up"), ("_id", "c1"), ("namespace", "openshift-monitoring"), ("pod", &pod)];
        let samples: Vec<_> = (0..samples).map(|at| (1.0, 1_700_000_000_000 + at as i64 * 15_000)).collect();
        series(&labels, &samples)
    };
    for (count, samples) in [(5_000, 2), (1_000, 10), (1, 10_000)] {
        let body = write_body((0..count).map(|n| one(n, samples)).collect());
        let reply = world.gateway.receive(&composite_token(PULL_SECRET, "c1"), body.clone()).await;
        assert_eq!(reply.status, 200, "{count} series, {} bytes: {reply:?}", body.len());
    }
    // Each in a series of its own: counted as series, and as samples.
    let bare =
        |n: usize| series(&[("__name__", "up"), ("_id", "c1"), ("n", &n.to_string())], &[(1.0, 1_700_000_000_000)]);
    world.receive("c1", (0..10_000).map(bare).collect()).await.expect_status(200);
    for write in world.upstream.received() {
        assert_eq!(write.request().timeseries.iter().map(|series| series.samples.len()).sum::<usize>(), 10_000);
    }
}

#[tokio::test]
async fn limits_have_flags() {
    let flags = [
        "--limit-series=3",
        "--limit-labels=4",
        "--limit-label-name-bytes=8",
        "--limit-label-value-bytes=6",
        "--limit-receive-label-name-bytes=9",
        "--limit-receive-label-value-bytes=7",
        "--limit-receive-decoded-bytes=4000",
    ];
    let world = World::with(&flags).await;
    let up = |more: &[(&str, &str)]| series(&[&[("__name__", "up"), ("_id", "c1")], more].concat(), &[(1.0, 1)]);
    let received: [(Vec<TimeSeries>, u16, &str); 7] = [
        (vec![up(&[("a", "1"), ("b", "2")]); 3], 200, ""),
        (vec![up(&[]); 4], 413, "the request has 4 series, at most 3 are taken"),
        (vec![up(&[("a", "1"), ("b", "2"), ("c", "3")])], 400, "series 1 `up`: it has 5 labels, at most 4 are taken"),
        (vec![up(&[("aaaaaaaaa", "1")])], 200, ""),
        (vec![up(&[("aaaaaaaaaa", "1")])], 400, "label name `aaaaaaaaaa` is 10 bytes, at most 9 are taken"),
        (
            vec![up(&[("a", "1234567"), ("b", "12345678")])],
            400,
            "the value of label `b` is 8 bytes, at most 7 are taken",
        ),
        (
            vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, i64::MAX); 400])],
            413,
            "bytes, at most 4000 are taken",
        ),
    ];
    for (offered, status, says) in received {
        let reply = world.receive("c1", offered).await.expect_status(status);
        assert!(status == 200 || reply.reason().contains(says), "{says:?}: {reply:?}");
    }
    let uploaded = [
        (r#"{_id="c",a="1",b="2"}"#, 1, 200, ""),
        (r#"{_id="c"}"#, 4, 413, "the request has 4 series, at most 3 are taken"),
        (r#"{_id="c",a="1",b="2",c="3"}"#, 1, 400, "it has 5 labels, at most 4 are taken"),
        (r#"{_id="c",aaaaaaaa="123456"}"#, 1, 200, ""),
        (r#"{_id="c",aaaaaaaaa="1"}"#, 1, 400, "label name `aaaaaaaaa` is 9 bytes, at most 8 are taken"),
        (r#"{_id="c",a="1234567"}"#, 1, 400, "the value of label `a` is 7 bytes, at most 6 are taken"),
    ];
    for (index, (labels, times, status, says)) in uploaded.into_iter().enumerate() {
        let cluster = format!("c{index}");
        let line = format!("up{} 1 {}\n", labels.replace("=\"c\"", &format!("={cluster:?}")), now());
        let reply = world.upload(&cluster, &line.repeat(times)).await.expect_status(status);
        assert!(status == 200 || reply.reason().contains(says), "{says:?}: {reply:?}");
    }
}

#[tokio::test]
async fn the_valid_rest_is_written_and_the_first_offender_named() {
    let world = World::start().await;
    let owner = |index| if [17, 18, 400].contains(&index) { "c2" } else { "c1" };
    let offered: Vec<_> =
        (1..=500).map(|index| series(&[("__name__", "up"), ("_id", owner(index))], &[(f64::from(index), 1)])).collect();
    let reply = world.receive("c1", offered.clone()).await.expect_status(400);
    let says = "cluster_label: series 17 `up`: label `_id` is `c2`, this sender writes `c1`; 3 of 500 series refused";
    assert_eq!(reply.reason(), says);
    let rest: Vec<_> = offered.into_iter().filter(|series| series.labels[1].value == "c1").collect();
    assert_eq!(world.forwarded().request().timeseries, rest);
}

#[tokio::test]
async fn a_repeated_cluster_label_is_refused_and_never_deduplicated() {
    let world = World::with(&["--required-label=env=prod"]).await;
    for ids in [["c1", "c1"], ["c1", "c2"], ["c2", "c1"], ["", "c1"], ["c1", ""]] {
        let offered = series(&[("__name__", "up"), ("_id", ids[0]), ("a", "b"), ("_id", ids[1])], &[(1.0, 1)]);
        let reply = world.receive("c1", vec![offered]).await.expect_status(400);
        assert!(reply.reason().contains("`_id` stands there twice"), "{ids:?}: {reply:?}");
    }
    for (cluster, labels) in [("u1", r#"_id="u1",_id="u1",env="prod""#), ("u2", r#"_id="u2",env="prod",env="test""#)] {
        let refused = world.upload(cluster, &format!("up{{{labels}}} 1 {}\n", now())).await.expect_status(400);
        assert!(refused.reason().len() > 10);
        let pairs = labels.split(',').map(|pair| pair.split_once('=').unwrap());
        let pairs: Vec<_> = pairs.map(|(name, value)| (name, value.trim_matches('"'))).collect();
        let cluster = format!("{cluster}p");
        let pairs: Vec<_> =
            pairs.iter().map(|&(name, value)| (name, if name == "_id" { cluster.as_str() } else { value })).collect();
        let token = world.token(&cluster).await;
        let reply = world.gateway.upload(&token, DELIMITED, "", delimited(&[family("up", &pairs, 1.0)])).await;
        assert!(reply.expect_status(400).reason().contains("twice"));
    }
    world.assert_nothing_forwarded();
}

#[tokio::test]
async fn label_sets_become_canonical() {
    let world = World::start().await;
    let labels = [
        ("z", "26"),
        ("_id", "c1"),
        ("empty", ""),
        ("a", "first"),
        ("a", "second"),
        ("", "nameless"),
        ("__name__", "up"),
    ];
    world.receive("c1", vec![series(&labels, &[(1.0, 1)])]).await.expect_status(200);
    let text = format!("up{{z=\"26\",empty=\"\",_id=\"u1\",a=\"\\\"\\\\\\n\"}} 1 {}\n", now());
    world.upload("u1", &text).await.expect_status(200);
    let writes = world.upstream.received();
    let sent: Vec<_> = writes.iter().map(|write| write.request().timeseries[0].labels.clone()).collect();
    let label = |(name, value): (&str, &str)| Label { name: name.to_owned(), value: value.to_owned() };
    assert_eq!(sent[0], [("__name__", "up"), ("_id", "c1"), ("a", "first"), ("z", "26")].map(label));
    assert_eq!(sent[1], [("__name__", "up"), ("_id", "u1"), ("a", "\"\\\n"), ("z", "26")].map(label));
}

#[tokio::test]
async fn what_is_not_changed_arrives_byte_for_byte() {
    let world = World::with(&["--whitelist=up", "--receive-elide-label=not_there"]).await;
    let message = [everything("c1").encode_to_vec(), UNKNOWN_IN_REQUEST.to_vec()].concat();
    // Literals only: a block that no encoder would write again.
    let mut body = Vec::new();
    prost::encoding::encode_varint(message.len() as u64, &mut body);
    for literal in message.chunks(60) {
        body.push((literal.len() as u8 - 1) << 2);
        body.extend(literal);
    }
    world.gateway.receive(&composite_token(PULL_SECRET, "c1"), body.clone()).await.expect_status(200);
    assert_eq!(world.forwarded().body, body);
}

#[tokio::test]
async fn what_is_not_understood_survives_a_change() {
    let world = World::with(&["--receive-label=region=eu", "--whitelist=up"]).await;
    let mut request = everything("c1");
    request.timeseries.push(series(&[("__name__", "down"), ("_id", "c1")], &[(1.0, 1)]));
    // A series whose message holds a field of a later version.
    let mut with_unknown =
        series(&[("__name__", "up"), ("_id", "c1"), ("which", "unknown")], &[(1.0, 1)]).encode_to_vec();
    with_unknown.extend(UNKNOWN_IN_SERIES);
    let mut message = [request.encode_to_vec(), UNKNOWN_IN_REQUEST.to_vec(), vec![0x0a]].concat();
    prost::encoding::encode_varint(with_unknown.len() as u64, &mut message);
    message.extend(with_unknown);
    let reply = world.gateway.receive(&composite_token(PULL_SECRET, "c1"), snappy_block(&message)).await;
    reply.expect_status(200);

    let write = world.forwarded();
    let mut expected = everything("c1");
    expected.timeseries.push(series(&[("__name__", "up"), ("_id", "c1"), ("which", "unknown")], &[(1.0, 1)]));
    for one in &mut expected.timeseries {
        one.labels.push(Label { name: "region".to_owned(), value: "eu".to_owned() });
        one.labels.sort_by(|a, b| a.name.cmp(&b.name));
    }
    assert_eq!(write.request().metadata, expected.metadata);
    // NaN is not equal to itself, so the messages are compared as they are encoded.
    let encoded = |series: &TimeSeries| series.encode_to_vec();
    let arrived: Vec<_> = write.request().timeseries.iter().map(encoded).collect();
    assert_eq!(arrived, expected.timeseries.iter().map(encoded).collect::<Vec<_>>());
    let raw = snap::raw::Decoder::new().decompress_vec(&write.body).unwrap();
    for unknown in [UNKNOWN_IN_REQUEST, UNKNOWN_IN_SERIES] {
        assert!(raw.windows(unknown.len()).any(|window| window == unknown), "{unknown:x?} is lost");
    }
}

#[tokio::test]
async fn stale_markers_keep_their_bits() {
    let world = World::with(&["--receive-label=region=eu"]).await;
    let stale = f64::from_bits(STALE);
    world.receive("c1", vec![series(&[("__name__", "up"), ("_id", "c1")], &[(stale, 1)])]).await.expect_status(200);
    let token = world.token("c1").await;
    world
        .gateway
        .upload(&token, DELIMITED, "", delimited(&[family("up", &[("_id", "c1")], stale)]))
        .await
        .expect_status(200);
    for write in world.upstream.wait_for(2).await {
        assert_eq!(write.request().timeseries[0].samples[0].value.to_bits(), STALE);
    }
}

#[tokio::test]
async fn text_and_protobuf_mean_the_same() {
    let world = World::start().await;
    let at = now();
    let text = |id: &str| {
        format!(
            "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total{{_id=\"{id}\"}} 1e3 {at}\n\
             # TYPE temperature gauge\ntemperature{{_id=\"{id}\",room=\"é\"}} -Inf {at}\n\
             any{{_id=\"{id}\"}} 0.30000000000000004 {at}\n"
        )
    };
    let families = |id: &str| {
        let metric =
            |labels: &[(&str, &str)]| Metric { label: pairs(labels), timestamp_ms: Some(at), ..Metric::default() };
        let counter = Some(Counter { value: Some(1e3), ..Counter::default() });
        let gauge = Some(Gauge { value: Some(f64::NEG_INFINITY) });
        let untyped = Some(Untyped { value: Some(0.1 + 0.2) });
        let of = |name: &str, kind: MetricType, metric| MetricFamily {
            name: Some(name.to_owned()),
            r#type: Some(kind as i32),
            metric: vec![metric],
            ..MetricFamily::default()
        };
        delimited(&[
            of("requests_total", MetricType::Counter, Metric { counter, ..metric(&[("_id", id)]) }),
            of("temperature", MetricType::Gauge, Metric { gauge, ..metric(&[("room", "é"), ("_id", id)]) }),
            of("any", MetricType::Untyped, Metric { untyped, ..metric(&[("_id", id)]) }),
        ])
    };
    let before = now() / 1000;
    for (id, content_type, encoding, body) in [
        ("c1", TEXT, "", text("c1").into_bytes()),
        ("c2", TEXT, "snappy", snappy_framed(text("c2").as_bytes())),
        ("c3", DELIMITED, "identity", families("c3")),
        ("c4", DELIMITED, "snappy", snappy_framed(&families("c4"))),
    ] {
        let token = world.token(id).await;
        world.gateway.upload(&token, content_type, encoding, body).await.expect_status(200);
    }
    for (index, write) in world.upstream.received().iter().enumerate() {
        let id = format!("c{}", index + 1);
        let expected = [
            format!("requests_total{{_id={id:?}}}"),
            format!("temperature{{_id={id:?},room=\"é\"}}"),
            format!("any{{_id={id:?}}}"),
        ];
        assert_eq!(spelt(write), expected);
        let samples = write.request().timeseries.iter().map(|series| series.samples[0]);
        assert_eq!(samples.clone().map(|sample| sample.value).collect::<Vec<_>>(), [1e3, f64::NEG_INFINITY, 0.1 + 0.2]);
        for sample in samples {
            let (second, rest) = (sample.timestamp / 1000, sample.timestamp % 1000);
            assert!(rest == 0 && (before..=now() / 1000).contains(&second), "not now in whole seconds: {sample:?}");
        }
    }
}

/// Field 99, a varint, and field 15, bytes: nobody knows them.
const UNKNOWN_IN_SERIES: &[u8] = &[0x98, 0x06, 0xab, 0x55];
const UNKNOWN_IN_REQUEST: &[u8] = &[0x7a, 0x05, b'l', b'a', b't', b'e', b'r'];

/// All that remote write 1.0 can hold, in series called `up`.
fn everything(cluster: &str) -> WriteRequest {
    let labels = |which| [("__name__", "up"), ("_id", cluster), ("which", which)];
    let exemplar = Exemplar {
        labels: vec![Label { name: "trace_id".to_owned(), value: "4bf9".to_owned() }],
        value: 0.5,
        timestamp: 3,
    };
    let integer = Histogram {
        count: Some(histogram::Count::CountInt(6)),
        sum: 12.5,
        schema: 3,
        zero_threshold: 1e-128,
        zero_count: Some(histogram::ZeroCount::ZeroCountInt(1)),
        positive_spans: vec![BucketSpan { offset: -2, length: 2 }],
        positive_deltas: vec![2, 1],
        timestamp: 4,
        ..Histogram::default()
    };
    let custom = Histogram {
        count: Some(histogram::Count::CountFloat(3.5)),
        sum: f64::from_bits(STALE),
        schema: -53,
        positive_spans: vec![BucketSpan { offset: 0, length: 2 }],
        positive_counts: vec![1.5, 2.0],
        custom_values: vec![0.1, 2.5],
        timestamp: 5,
        ..Histogram::default()
    };
    let samples = [(1.5, 1), (f64::from_bits(STALE), 2), (-0.0, i64::MIN)];
    WriteRequest {
        timeseries: vec![
            TimeSeries { exemplars: vec![exemplar], ..series(&labels("samples"), &samples) },
            TimeSeries { histograms: vec![integer, custom], ..series(&labels("with histograms"), &[]) },
        ],
        metadata: vec![MetricMetadata {
            r#type: 2,
            metric_family_name: "up".to_owned(),
            help: "Whether it is up.".to_owned(),
            unit: "boolean".to_owned(),
        }],
    }
}

/// A gauge of one series, now.
fn family(name: &str, labels: &[(&str, &str)], value: f64) -> MetricFamily {
    let gauge = Some(Gauge { value: Some(value) });
    MetricFamily {
        name: Some(name.to_owned()),
        r#type: Some(MetricType::Gauge as i32),
        metric: vec![Metric { label: pairs(labels), gauge, timestamp_ms: Some(now()), ..Metric::default() }],
        ..MetricFamily::default()
    }
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    labels
        .iter()
        .map(|&(name, value)| LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) })
        .collect()
}

#[track_caller]
fn assert_grown_less_than(bytes: u64, world: &World, before: u64) {
    let grown = world.gateway.peak_memory() - before;
    assert!(grown < bytes, "the gateway has grown by {grown} bytes");
}
