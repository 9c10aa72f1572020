//! `infogw-proxy explain`: what it says of series is what a gateway with the same policy does with them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{path::Path, process::Stdio};

use infogw_proto::{
    client::{LabelPair, Metric, MetricFamily, MetricType, Untyped},
    prometheus::TimeSeries,
};
use serde_json::{Value, json};
use support::{
    Answer, Gateway, Prometheus, Reply, Server, World, http,
    payload::{composite_token, delimited, series, snappy_block, snappy_framed, write_body},
    process::{self, Exit},
    server::Received,
    target,
    tls::{Authority, Volume},
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tempfile::{NamedTempFile, TempDir};

const DELIMITED: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

const POLICY: &str = r#"
upload:
  allowlist: [up, '{__name__=~"cluster:.*"}']
  require: {env: prod}
  set: {region: eu}
receive:
  allowlist: [up, '{__name__=~"cluster:.*"}', never]
  elide: [replica]
  set: {region: eu}
  limits: {label_value_bytes: 20, labels: 6}
tenants: {receive: gold, clusters: {hosted: silver}}
overrides:
  accounts:
    account-of-c2:
      receive: {allowlist: [down], set: {}}
      upload: {allowlist: [down], set: {}}
  clusters:
    c3: {denied: "unpaid since May"}
    c4: {exempt: [allowlist, sizes]}
    c5: {receive: {limits: {samples: 3}, require: {env: prod}}}
    hosted: {receive: {cluster_label_check: count}}
    c6: {writes_for: [c1], receive: {limits: {series: 2}}}
    c7: {receive: {limits: {sample_rate: {per_second: 1, burst: 4}}}}
"#;

/// One of each kind, of `cluster` but for two.
fn all_kinds(cluster: &str) -> Vec<TimeSeries> {
    let at = now();
    let of = |name: &str, more: &[(&str, &str)]| {
        let mut labels = vec![("__name__", name), ("_id", cluster), ("env", "prod")];
        labels.extend(more);
        series(&labels, &[(1.0, at)])
    };
    vec![
        of("up", &[("region", "us"), ("replica", "a")]),
        of("cluster:x:sum", &[]),
        of("down", &[("job", "a")]),
        series(&[("__name__", "up"), ("_id", "c1"), ("env", "prod")], &[(1.0, at), (2.0, at + 1)]),
        series(&[("__name__", "up"), ("env", "prod")], &[(1.0, at)]),
        of("up", &[("long", "a value of more than twenty bytes")]),
        of("up", &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]),
        of("up", &[("weird name", "\u{1b}[31m\"x\\\n\u{202e}")]),
        series(&[("__name__", "up"), ("_id", cluster), ("env", "test")], &[(1.0, at)]),
    ]
}

#[tokio::test]
async fn the_gateway_does_as_explained() {
    let policy = file(POLICY);
    let flag = format!("--policy={}", policy.path().display());
    let (mut kept, mut dropped, mut refused, mut changed) = (0, 0, 0, 0);
    for cluster in ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "hosted", "another"] {
        let account = format!("account-of-{cluster}");
        let all = all_kinds(cluster);
        let one_by_one = all.iter().map(|series| vec![series.clone()]);
        for series in one_by_one.chain([all.clone(), all[..2].to_vec(), Vec::new()]) {
            let body = write_body(series.clone());
            let args = ["--body", "-ojson", "--cluster", cluster, "--account", &account, &flag];
            let explained = explained(&explain(&args, &body).await);
            let world = World::with(&[&flag]).await;
            let reply = world.gateway.receive(&composite_token(PULL_SECRET, cluster), body).await;
            holds(&explained, &reply, &world);
            let totals = &explained["totals"];
            let number = |kind: &str| totals[kind]["series"].as_u64().unwrap();
            (kept, dropped, refused) =
                (kept + number("kept"), dropped + number("dropped"), refused + number("refused"));
            assert_eq!(number("received"), series.len() as u64);
            assert_eq!(number("kept") + number("dropped") + number("refused"), series.len() as u64);
            changed += listed(&explained).iter().filter(|series| series.get("changes").is_some()).count();
        }
    }
    assert!(kept > 40 && dropped > 20 && refused > 40 && changed > 20, "{kept} {dropped} {refused} {changed}");
}

#[tokio::test]
async fn the_gateway_does_with_uploads_as_explained() {
    let policy = file(POLICY);
    let flag = format!("--policy={}", policy.path().display());
    for cluster in ["c1", "c2", "c4"] {
        let account = format!("account-of-{cluster}");
        let fine = format!(
            "up{{_id=\"{cluster}\",env=\"prod\"}} 1 NOW\ncluster:x{{_id=\"{cluster}\",env=\"prod\",region=\"us\"}} 2 NOW\n"
        );
        let texts = [
            fine.clone(),
            format!("{fine}down{{_id=\"{cluster}\",env=\"prod\"}} 3 NOW\n"),
            format!("{fine}up{{_id=\"c9\",env=\"prod\"}} 3 NOW\n"),
            format!("{fine}up{{_id=\"{cluster}\"}} 3 NOW\n"),
            format!("{fine}up{{_id=\"{cluster}\",env=\"test\"}} 3 NOW\n"),
            format!("{fine}up{{_id=\"{cluster}\",env=\"prod\"}} 3\n"),
            format!("{fine}up{{_id=\"{cluster}\",env=\"prod\"}} 3 1\n"),
            format!("{fine}up{{_id=\"{cluster}\",env=\"prod\",env=\"prod\"}} 3 NOW\n"),
            format!("{fine}nonsense\n"),
        ];
        for text in texts {
            let text = text.replace("NOW", &now().to_string());
            for (encoding, body) in [("", text.clone().into_bytes()), ("snappy", snappy_framed(text.as_bytes()))] {
                let args =
                    ["--body", "-ojson", "--cluster", cluster, "--account", &account, &flag, "--content-type", TEXT];
                let explained = explained(&explain(&args, &body).await);
                let world = World::with(&[&flag]).await;
                let token = world.token(cluster).await;
                let reply = world.gateway.upload(&token, TEXT, encoding, body).await;
                holds(&explained, &reply, &world);
            }
        }
    }
}

/// Checks that what was explained of one request is what came of it.
#[track_caller]
fn holds(explained: &Value, reply: &Reply, world: &World) {
    let request = &explained["requests"][0];
    let expected = match request["answer"].as_str() {
        Some(answer) => (request["status"].as_u64().unwrap(), answer.to_owned()),
        // Then it is the upstream's, or nobody's.
        None if request["forwarded"]["series"] == 0 => (request["status"].as_u64().unwrap(), String::new()),
        None => (200, String::new()),
    };
    let told = (u64::from(reply.status.as_u16()), reply.text().trim_end().to_owned());
    // Time goes by.
    let timeless = |(status, line): (u64, String)| match line.split_once(" s old") {
        Some((before, after)) => (status, format!("{}{after}", before.trim_end_matches(|c: char| c.is_ascii_digit()))),
        None => (status, line),
    };
    assert_eq!(timeless(told), timeless(expected), "{explained:#}");
    let writes = world.upstream.received();
    let forwarded: Vec<_> = writes.iter().flat_map(spelt).collect();
    let expected: Vec<_> = listed(explained)
        .iter()
        .filter(|series| series["outcome"] == "kept")
        .map(|series| {
            let labels = series["forwarded_labels"].as_object().unwrap();
            let others = labels.iter().filter(|(name, _)| *name != "__name__");
            let others: Vec<_> = others.map(|(name, value)| format!("{name}={:?}", value.as_str().unwrap())).collect();
            format!("{}{{{}}}", labels["__name__"].as_str().unwrap(), others.join(","))
        })
        .collect();
    if request["forwarded"]["series"] == 0 {
        assert!(writes.is_empty(), "{explained:#}");
    } else {
        assert_eq!(forwarded, expected, "{explained:#}");
        let tenant = writes[0].header("thanos-tenant");
        assert_eq!(tenant, explained["sender"]["tenant"].as_str());
        let samples: usize = writes[0].request().timeseries.iter().map(|series| series.samples.len()).sum();
        assert_eq!(request["forwarded"], json!({ "series": forwarded.len(), "samples": samples }));
    }
}

#[tokio::test]
async fn people_read_lines() {
    let policy = file(POLICY);
    let flag = format!("--policy={}", policy.path().display());
    let body = write_body(all_kinds("c1"));
    let exit = explain(&["--body", &flag, "--cluster=c1"], &body).await;
    let path = policy.path().display().to_string();
    let expected = r#"
kept     up{_id="c1",env="prod",region="us",replica="a"}  by `up` (POLICY:7:15)
  ~ region="us" -> "eu"
  - replica="a"
kept     cluster:x:sum{_id="c1",env="prod"}  by `{__name__=~"cluster:.*"}` (POLICY:7:19)
  + region="eu"
dropped  down{_id="c1",env="prod",job="a"}  no rule of POLICY:7:14 selects it
kept     up{_id="c1",env="prod"}  by `up` (POLICY:7:15)
  + region="eu"
refused  up{env="prod"}  cluster_label: label `_id` is missing, this sender writes `c1`
refused  up{_id="c1",env="prod",long="a value of more than twenty bytes"}  invalid_series: the value of label `long` is 33 bytes, at most 20 are taken; shorten or drop it
refused  up{_id="c1",a="1",b="2",c="3",d="4",env="prod"}  invalid_series: it has 7 labels, at most 6 are taken; drop some
kept     up{_id="c1",env="prod","weird name"="\u{1b}[31m\"x\\\n\u{202e}"}  by `up` (POLICY:7:15)
  + region="eu"
kept     up{_id="c1",env="test"}  by `up` (POLICY:7:15)
  + region="eu"

sender     cluster "c1", at /metrics/v1/receive
tenant     gold
allowlist  3 rules of POLICY:7:14
received   9 series, 10 samples, in 1 request
kept       5 series, 6 samples
dropped    1 series, 1 sample
refused    3 series, 3 samples; cluster_label: 1; invalid_series: 2
forwarded  5 series, 6 samples
answer     400 invalid_series: series 6 `up`: the value of label `long` is 33 bytes, at most 20 are taken; shorten or drop it; 3 of 9 series refused
unmatched  `never` (POLICY:7:47)
"#;
    assert_eq!((exit.code(), exit.stdout.replace(&path, "POLICY")), (1, expected.trim().to_owned()), "{exit:?}");

    // Whoever is excepted is told by which word.
    let said = |exit: Exit| exit.stdout.replace(&path, "POLICY");
    let one = write_body(all_kinds("c2")[2..3].to_vec());
    let exit = explain(&["--body", &flag, "--account=account-of-c2"], &one).await;
    let expected = r#"
kept     down{_id="c2",env="prod",job="a"}  by `down` (POLICY:15:29)

sender     cluster "c2" of account "account-of-c2", at /metrics/v1/receive
tenant     gold
override   overrides.accounts.account-of-c2.receive.allowlist
override   overrides.accounts.account-of-c2.receive.set
allowlist  1 rule of POLICY:15:28
received   1 series, 1 sample, in 1 request
kept       1 series, 1 sample
dropped    0 series, 0 samples
refused    0 series, 0 samples
forwarded  1 series, 1 sample
answer     as the upstream answers
"#;
    assert_eq!((exit.code(), said(exit)), (0, expected.trim().to_owned()));

    for (cluster, code, lines) in [
        ("c2", 0, &["dropped    1 series, 1 sample", "answer     204, and nothing is left to write"][..]),
        (
            "c3",
            1,
            &[
                "override   overrides.clusters.c3.denied",
                "answer     403 denied: cluster `c3` may not write here, for good: unpaid since May",
            ],
        ),
        (
            "c4",
            0,
            &["override   overrides.clusters.c4.exempt", "allowlist  none holds for this sender: all series pass"],
        ),
        (
            "c5",
            0,
            &[
                "override   overrides.clusters.c5.receive.limits.samples",
                "override   overrides.clusters.c5.receive.require",
            ],
        ),
        (
            "c6",
            0,
            &["override   overrides.clusters.c6.receive.limits.series", "override   overrides.clusters.c6.writes_for"],
        ),
        ("c7", 0, &["quota      1 samples a second, a burst of 4: 1 sample; to earn that back takes 1s"]),
        ("hosted", 0, &["override   tenants.clusters.hosted", "tenant     silver"]),
    ] {
        let exit = explain(&["--body", &flag], &write_body(all_kinds(cluster)[2..3].to_vec())).await;
        for line in lines {
            assert!(exit.stdout.lines().any(|told| told == *line), "{cluster}: no `{line}` in {exit:?}");
        }
        assert_eq!(exit.code(), code, "{exit:?}");
    }
    let exit = explain(&["--body", &flag, "--cluster=hosted"], &write_body(all_kinds("c1")[..1].to_vec())).await;
    assert!(
        exit.stdout.contains("(POLICY:7:15); another cluster's, which is counted\n".replace("POLICY", &path).as_str()),
        "{exit:?}"
    );
    let exit = explain(&["--body", &flag], &write_body(all_kinds("c7"))).await;
    let answer = "answer     413 over_burst: 8 samples in one request are more than the 4 that the rate limit allows at once; set max_samples_per_send to at most that";
    for line in [
        "forwarded  0 series, 0 samples; what else is kept is refused with its request",
        answer,
        "quota      1 samples a second, a burst of 4: 8 samples, more than the burst; to earn that back takes 8s",
    ] {
        assert!(exit.stdout.lines().any(|told| told == line), "no `{line}` in {exit:?}");
    }
}

/// What cannot be read has samples, too; and what is refused before the quotas costs nothing.
#[tokio::test]
async fn samples_are_counted_where_they_count() {
    let policy = file(
        "receive: {limits: {request_rate: {per_second: 1, burst: 9}, sample_rate: {per_second: 1, burst: 9}}}\n\
         overrides: {clusters: {c3: {denied: unpaid}}}\n",
    );
    let flag = format!("--policy={}", policy.path().display());
    let four: Vec<_> = (0..4)
        .map(|i| series(&[("__name__", "up"), ("_id", "c1"), ("x", &format!("@{i}"))], &[(1.0, now())]))
        .collect();
    let mut raw = snap::raw::Decoder::new().decompress_vec(&write_body(four)).unwrap();
    for unreadable in [b"@1", b"@3"] {
        let at = raw.windows(2).position(|bytes| bytes == unreadable).unwrap();
        raw[at] = 0xff;
    }
    let body = snappy_block(&raw);
    let world = World::with(&[&flag]).await;
    let told = explained(&explain(&["--body", "-ojson", "--cluster=c1", &flag], &body).await);
    holds(&told, &world.gateway.receive(&composite_token(PULL_SECRET, "c1"), body.clone()).await, &world);
    assert_eq!(told["totals"]["received"], json!({ "series": 4, "samples": 4 }), "{told:#}");
    assert_eq!(told["totals"]["refused"], json!({ "series": 2, "samples": 2 }), "{told:#}");
    let earn = |told: &Value| {
        ["request_quota", "sample_quota"].map(|quota| told["sender"][quota]["seconds_to_earn_back"].clone())
    };
    assert_eq!(earn(&told), [json!(1.0), json!(2.0)], "{told:#}");
    let told = explained(&explain(&["--body", "-ojson", "--cluster=c3", &flag], &body).await);
    assert_eq!(earn(&told), [json!(0.0), json!(0.0)], "{told:#}");
}

#[tokio::test]
async fn scripts_read_json() {
    let policy = file(POLICY);
    let path = policy.path().display().to_string();
    let flag = format!("--policy={path}");
    let all = all_kinds("c1");
    let body = write_body(vec![all[0].clone(), all[2].clone(), all[4].clone()]);
    let exit = explain(&["--body", &flag, "-o", "json"], &body).await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (1, ""));
    let answer = "cluster_label: series 3 `up`: label `_id` is missing, this sender writes `c1`; 1 of 3 series refused";
    let one = json!({ "series": 1, "samples": 1 });
    let expected = json!({
        "series": [
            {
                "request": 1,
                "outcome": "kept",
                "labels": { "__name__": "up", "_id": "c1", "env": "prod", "region": "us", "replica": "a" },
                "samples": 1,
                "rule": { "selector": "up", "place": format!("{path}:7:15") },
                "forwarded_labels": { "__name__": "up", "_id": "c1", "env": "prod", "region": "eu" },
                "changes": [
                    { "label": "region", "from": "us", "to": "eu" },
                    { "label": "replica", "from": "a", "to": null },
                ],
            },
            {
                "request": 1,
                "outcome": "dropped",
                "labels": { "__name__": "down", "_id": "c1", "env": "prod", "job": "a" },
                "samples": 1,
            },
            {
                "request": 1,
                "outcome": "refused",
                "labels": { "__name__": "up", "env": "prod" },
                "samples": 1,
                "reason": "cluster_label",
                "detail": "label `_id` is missing, this sender writes `c1`",
            },
        ],
        "sender": {
            "endpoint": "receive",
            "cluster": "c1",
            "account": null,
            "tenant": "gold",
            "allowlist": "rules",
            "allowlist_place": format!("{path}:7:14"),
            "rules": 3,
            "overrides": [],
            "request_quota": null,
            "sample_quota": null,
        },
        "requests": [{
            "body_bytes": body.len(),
            "received": { "series": 3, "samples": 3 },
            "forwarded": one,
            "status": 400,
            "reason": "cluster_label",
            "layer": "enforce_labels",
            "answer": answer,
            "unread": null,
        }],
        "totals": {
            "received": { "series": 3, "samples": 3 },
            "kept": one,
            "dropped": one,
            "refused": one,
            "refused_by_reason": { "cluster_label": one },
            "forwarded": one,
        },
        "unmatched_rules": [
            { "selector": "{__name__=~\"cluster:.*\"}", "place": format!("{path}:7:19") },
            { "selector": "never", "place": format!("{path}:7:47") },
        ],
    });
    assert_eq!(serde_json::from_str::<Value>(&exit.stdout).unwrap(), expected);
    // A line each, for whoever cannot wait for the end.
    assert_eq!(exit.stdout.lines().filter(|line| line.starts_with("{\"request\":1,")).count(), 3);
}

/// Text is what a Prometheus would send of it, and families are judged as the write request that they become.
#[tokio::test]
async fn text_and_bodies_say_the_same() {
    let policy = ["up", "{le=\"1\"}", "{__name__=~\".*_(sum|count)\"}"].map(|rule| format!("--whitelist={rule}"));
    let labels =
        ["--elide-label=replica", "--receive-elide-label=replica", "--label=region=eu", "--receive-label=region=eu"];
    let flags: Vec<_> = policy.iter().map(String::as_str).chain(labels).chain(["-ojson"]).collect();
    let text = "\
# TYPE up gauge
up{_id=\"c1\",replica=\"a\",absent=\"\"} 1 NOW
# TYPE h histogram
h_bucket{_id=\"c1\",le=\"1\"} 1 NOW
h_bucket{_id=\"c1\",le=\"+Inf\"} 2 NOW
h_sum{_id=\"c1\"} NaN NOW
h_count{_id=\"c1\"} 2 NOW
up{_id=\"c2\"} 1 NOW
"
    .replace("NOW", &now().to_string());
    let at = now();
    let labels = |all: &[(&str, &str)]| series(all, &[(1.0, at)]);
    let body = write_body(vec![
        labels(&[("__name__", "up"), ("_id", "c1"), ("replica", "a")]),
        labels(&[("__name__", "h_bucket"), ("_id", "c1"), ("le", "1")]),
        labels(&[("__name__", "h_bucket"), ("_id", "c1"), ("le", "+Inf")]),
        labels(&[("__name__", "h_sum"), ("_id", "c1")]),
        labels(&[("__name__", "h_count"), ("_id", "c1")]),
        labels(&[("__name__", "up"), ("_id", "c2")]),
    ]);
    let from_body = explained(&explain(&[&flags[..], &["--body"]].concat(), &body).await);
    assert_eq!(from_body["totals"]["kept"]["series"], 4);
    for args in [&[][..], &["--endpoint=upload"]] {
        // With times and without.
        for text in [text.clone(), text.replace(&format!(" {}", text.split(' ').next_back().unwrap().trim()), "")] {
            let args = [args, &flags].concat();
            let from_text = explained(&explain(&args, text.as_bytes()).await);
            assert_eq!(from_text["series"], from_body["series"], "{args:?} {text}");
            let answer = |explained: &Value| explained["requests"][0]["answer"].clone();
            assert_eq!(answer(&from_text), answer(&from_body));
        }
    }
}

#[tokio::test]
async fn a_sender_adds_its_labels_and_packs_its_samples() {
    let policy = file(POLICY);
    let flag = format!("--policy={}", policy.path().display());
    let text = "# HELP up Is it?\n# TYPE up gauge\nup 1\nup{env=\"prod\",job=\"\\\"a\\\\\\n\"} +Inf\n# TYPE s summary\ns_sum 1\ns_count NaN\ns{quantile=\"0.5\"} -Inf\n";
    for (endpoint, requests) in [(&["--endpoint=receive", "--samples-per-send=2"][..], 3), (&["--endpoint=upload"], 1)]
    {
        let args = [&["-ojson", &flag, "--external-label=_id=c1,env=test"][..], endpoint].concat();
        let explained = explained(&explain(&args, text.as_bytes()).await);
        assert_eq!(explained["sender"]["cluster"], "c1");
        let labels: Vec<_> = listed(&explained).iter().map(|series| series["labels"].clone()).collect();
        assert_eq!(
            labels,
            [
                json!({ "__name__": "up", "_id": "c1", "env": "test" }),
                json!({ "__name__": "up", "_id": "c1", "env": "prod", "job": "\"a\\\n" }),
                json!({ "__name__": "s_sum", "_id": "c1", "env": "test" }),
                json!({ "__name__": "s_count", "_id": "c1", "env": "test" }),
                json!({ "__name__": "s", "_id": "c1", "env": "test", "quantile": "0.5" }),
            ]
        );
        assert_eq!(explained["requests"].as_array().unwrap().len(), requests);
        let requests: Vec<_> = listed(&explained).iter().map(|series| series["request"].as_u64().unwrap()).collect();
        assert_eq!(requests, if endpoint[0].ends_with("receive") { [1, 1, 2, 2, 3] } else { [1; 5] });
    }
    // What is packed is what the limits are about.
    let many: String = (0..9).map(|i| format!("up{{_id=\"c5\",env=\"prod\",i=\"{i}\"}} {i}\n")).collect();
    for (packed, code, answers) in
        [("--samples-per-send=3", 0, 0), ("--samples-per-send=4", 1, 2), ("--samples-per-send=2000", 1, 1)]
    {
        let exit = explain(&[&flag, packed], many.as_bytes()).await;
        let told = exit.stdout.lines().filter(|line| line.starts_with("answer")).count();
        assert_eq!((exit.code(), told), (code, answers), "{exit:?}");
    }
}

#[tokio::test]
async fn what_a_body_is_is_seen() {
    let at = now();
    let text = format!("up{{_id=\"c1\"}} 1 {at}\n");
    let label = |name: &str, value: &str| LabelPair { name: Some(name.to_owned()), value: Some(value.to_owned()) };
    let metric = Metric {
        label: vec![label("_id", "c1")],
        untyped: Some(Untyped { value: Some(1.0) }),
        timestamp_ms: Some(at),
        ..Metric::default()
    };
    let family = MetricFamily {
        name: Some("up".to_owned()),
        r#type: Some(MetricType::Untyped as i32),
        metric: vec![metric],
        ..MetricFamily::default()
    };
    let families = delimited(&[family]);
    let written = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, at)])]);
    let bodies = [
        ("upload", text.clone().into_bytes(), [TEXT, ""]),
        ("upload", snappy_framed(text.as_bytes()), [TEXT, "snappy"]),
        ("upload", families.clone(), [DELIMITED, ""]),
        ("upload", snappy_framed(&families), [DELIMITED, "snappy"]),
        ("receive", written.clone(), ["application/x-protobuf", "snappy"]),
    ];
    for (endpoint, body, [content_type, encoding]) in &bodies {
        let (content_type, encoding) =
            (format!("--content-type={content_type}"), format!("--content-encoding={encoding}"));
        let endpoint_flag = format!("--endpoint={endpoint}");
        for said in [
            &[][..],
            &[&endpoint_flag],
            &[&content_type],
            &[&content_type, &encoding],
            &[&content_type, &encoding, &endpoint_flag],
        ] {
            let args: Vec<_> = said.iter().map(|flag| flag.as_str()).chain(["--body", "-ojson"]).collect();
            let explained = explained(&explain(&args, body).await);
            assert_eq!(explained["sender"]["endpoint"], *endpoint, "{args:?}");
            assert_eq!(
                explained["totals"]["forwarded"],
                json!({ "series": 1, "samples": 1 }),
                "{args:?}: {explained:#}"
            );
        }
    }
    // What the head says of it counts as the gateway counts it.
    for (args, status, reason) in [
        (&["--content-type=application/json", "--endpoint=receive"][..], 415, "media_type"),
        (&["--content-type=application/x-protobuf;proto=io.prometheus.write.v2.Request"], 415, "media_type"),
        (&["--content-encoding=zstd", "--endpoint=receive"], 415, "encoding"),
        (&["--endpoint=upload"], 400, "malformed"),
    ] {
        let explained = explained(&explain(&[args, &["--body", "-ojson", "--cluster=c1"]].concat(), &written).await);
        let request = &explained["requests"][0];
        assert_eq!(
            (request["status"].as_u64(), request["reason"].as_str()),
            (Some(status), Some(reason)),
            "{explained:#}"
        );
    }
    failed(
        &explain(&["--body"], b"\x00\x01 whatever").await,
        65,
        "stdin: is neither a snappy block of remote write nor",
    );
    failed(
        &explain(&["--body", "--endpoint=upload", "--content-type=a\nb"], b"up 1\n").await,
        64,
        "cannot stand in a header",
    );
    failed(&explain(&["--body", "--endpoint=receive"], b"whatever").await, 64, "--cluster is required");
}

#[tokio::test]
async fn a_live_prometheus_is_asked() {
    let prometheus = Prometheus::receiver().await;
    let all = [all_kinds("c1")[0].clone(), all_kinds("c1")[2].clone()];
    let request = hyper::Request::post(prometheus.remote_write_url())
        .header("content-encoding", "snappy")
        .header("content-type", "application/x-protobuf");
    http::send(request, write_body(all.to_vec())).await.expect_status(204);

    let policy = file(POLICY);
    let flag = format!("--policy={}", policy.path().display());
    let federate = format!("--from={}", prometheus.url("/federate"));
    let args = [&federate, "--match=up", "--match", "{__name__=\"down\"}", &flag, "-ojson"];
    let explained_federation = explained(&explain(&args, b"").await);
    let told: Vec<_> = listed(&explained_federation)
        .iter()
        .map(|series| (series["labels"]["__name__"].as_str().unwrap(), series["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("down", "dropped"), ("up", "kept")], "{explained_federation:#}");
    assert_eq!(listed(&explained_federation)[1]["labels"]["replica"], "a");

    let metrics = format!("--from={}", prometheus.url("/metrics"));
    let own = explained(&explain(&[&metrics, "--external-label=_id=c1", "-ojson"], b"").await);
    assert!(own["totals"]["kept"]["series"].as_u64().unwrap() > 100, "{}", own["totals"]);

    let missing = format!("--from={}", prometheus.url("/api/v1/nothing"));
    failed(&explain(&[&missing], b"").await, 69, "answered 404 Not Found");
    // Without a selector it gives nothing.
    failed(&explain(&[&federate, "--match=a{"], b"").await, 69, "answered 400 Bad Request");
}

#[tokio::test]
async fn a_server_is_shown_the_token_and_held_to_the_text_format() {
    let server: Server<Received> = Server::start(|request: &Received| match request.uri.path() {
        "/metrics" => Answer::body(200, TEXT, "up{_id=\"c1\"} 1\n"),
        "/openmetrics" => Answer::body(200, "application/openmetrics-text; version=1.0.0", "# EOF\n"),
        "/gzip" => Answer::body(200, TEXT, vec![0x1f, 0x8b]).header("content-encoding", "gzip"),
        "/huge" => Answer::body(200, TEXT, vec![b'#'; (64 << 20) + 1]),
        _ => Answer::html(503, "come back\nlater"),
    })
    .await;
    let token = file("s3cret\n");
    let shown = format!("--from-token-file={}", token.path().display());
    let from = |path: &str| format!("--from={}", server.url_of(path));
    let exit = explain(&[&from("/metrics?a=b&match[]=x"), &shown, "--match=up", "--match="], b"").await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""));
    let asked = &server.received()[0];
    assert_eq!(asked.uri.query(), Some("a=b&match[]=x&match%5B%5D=up"));
    assert_eq!(asked.headers["authorization"], "Bearer s3cret");
    assert!(asked.headers["accept"].to_str().unwrap().starts_with("text/plain"));

    for (path, code, says) in [
        (
            "/openmetrics",
            65,
            "answered with `application/openmetrics-text; version=1.0.0`, and not with the text format",
        ),
        ("/gzip", 65, "answered with Content-Encoding `gzip`"),
        ("/huge", 65, "over 67108864 bytes"),
        ("/elsewhere", 69, "answered 503 Service Unavailable: come back"),
        ("/gone?s3cret&tok=s3cret&match[]=up", 69, "/gone?***&tok=***&match[]=up: answered 503"),
    ] {
        let exit = explain(&[&from(path), &shown], b"").await;
        failed(&exit, code, says);
        assert!(!exit.stderr.contains("s3cret"));
    }
    let (empty, gone) = (file(" \n"), server.url_of("/metrics"));
    let empty = format!("--from-token-file={}", empty.path().display());
    failed(&explain(&[&from("/metrics"), &empty], b"").await, 65, "holds no token");
    drop(server);
    failed(&explain(&[&format!("--from={gone}")], b"").await, 69, "Connection refused");
    for (from, says) in
        [("ftp://a/", "--from: `ftp://a/`"), ("http://user:pass@a/", "leave out what stands before the @")]
    {
        failed(&explain(&[&format!("--from={from}")], b"").await, 64, says);
    }
}

#[tokio::test]
async fn a_server_may_speak_tls() {
    let authority = Authority::new();
    let (leaf, trusted) = (Volume::of(&authority.server()), file(&authority.pem()));
    let flags = [leaf.flag("--internal-tls-crt", "tls.crt"), leaf.flag("--internal-tls-key", "tls.key")];
    let world = World::with(&[&flags[0], &flags[1]]).await;
    let port = world.gateway.internal_address().rsplit(':').next().unwrap().to_owned();
    let from = format!("--from=https://localhost:{port}/metrics");
    let ca = format!("--from-ca-file={}", trusted.path().display());
    let told = explained(&explain(&[&from, &ca, "--external-label=_id=c1", "-ojson"], b"").await);
    assert!(told["totals"]["kept"]["series"].as_u64().unwrap() > 20, "{}", told["totals"]);
    failed(&explain(&[&from], b"").await, 69, "invalid peer certificate");
    failed(
        &explain(&[&from.replace("https", "http"), &ca], b"").await,
        64,
        "--from-ca-file: this is for an https:// --from",
    );
}

#[tokio::test]
async fn flags_of_the_policy_count_and_no_others() {
    let rules = file("# those\nup\n\n{__name__=~\"cluster:.*\"}\n");
    let rules = format!("--whitelist-file={}", rules.path().display());
    let text = "cluster:x{cluster=\"c1\",a=\"b\"} 1\nother{cluster=\"c1\"} 1\n";
    let args = [
        rules.as_str(),
        "--whitelist={__name__=\"never\"}",
        "--partition-label=cluster",
        "--receive-label=region=eu",
        "--receive-elide-label=a",
        "--receive-tenant-id=t",
        "--cluster-label-check=off",
        "--limit-receive-requests-per-second=0.5",
        "--limit-receive-requests-burst=1",
        // To run takes more than this, and none of these is looked at.
        "--listen=nowhere",
        "--shared-key=/no/such/key",
        "--samples-per-send=1",
    ];
    let exit = explain(&args, text.as_bytes()).await;
    let rule = rules.trim_start_matches("--whitelist-file=");
    let expected = format!(
        "\
kept     cluster:x{{a=\"b\",cluster=\"c1\"}}  by `{{__name__=~\"cluster:.*\"}}` ({rule}:4)
  - a=\"b\"
  + region=\"eu\"
dropped  other{{cluster=\"c1\"}}  no rule of --whitelist and --whitelist-file selects it

sender     cluster \"c1\", at /metrics/v1/receive
tenant     t
allowlist  3 rules of --whitelist and --whitelist-file
received   2 series, 2 samples, in 2 requests
kept       1 series, 1 sample
dropped    1 series, 1 sample
refused    0 series, 0 samples
forwarded  1 series, 1 sample
quota      0.5 requests a second, a burst of 1: 2 requests, more than the burst; to earn that back takes 4s
unmatched  `never` (--whitelist)
unmatched  `up` ({rule}:2)"
    );
    assert_eq!((exit.code(), exit.stdout.as_str(), exit.stderr.as_str()), (0, expected.as_str(), ""));
}

#[tokio::test]
async fn what_is_wrong_is_one_line() {
    let (up, directory) = ("up{_id=\"c1\"} 1\n", TempDir::new().unwrap());
    let policy = file("receive: {allowlist: [up{]}\n");
    let wrong = format!("--policy={}", policy.path().display());
    let huge = directory.path().join("huge");
    std::fs::File::create(&huge).unwrap().set_len((64 << 20) + 1).unwrap();
    let huge = huge.to_str().unwrap();
    for (args, input, code, says) in [
        (&[][..], "up 1\n", 64, "--cluster is required: the first series has no label `_id` that names its sender"),
        (&[], "", 64, "--cluster is required"),
        (&["--cluster", &"x".repeat(257)], up, 64, "--cluster: a cluster id is 1 to 256 bytes"),
        (&[], "up{_id=\"c1\"} 1", 65, "stdin: this is no text of metrics: line 1: "),
        (&[], "up yes\n", 65, "line 1: `yes` is not a number"),
        (&["--endpoint=upload"], "up yes\n", 65, "line 1: `yes` is not a number"),
        (&["/no/such/file"], up, 66, "/no/such/file: No such file"),
        (&[huge], up, 65, "over 67108864 bytes"),
        (&[&wrong], up, 64, ":1:25: "),
        (&["--policy=/no/such/policy"], up, 64, "--policy: /no/such/policy: "),
        (&["--body", "--external-label=a=b"], up, 64, "cannot be used with"),
        (&["--body", "--samples-per-send=1"], up, 64, "cannot be used with"),
        (&["--endpoint=upload", "--samples-per-send=1"], up, 64, "--samples-per-send: an upload is one request"),
        (
            &["--endpoint=upload"],
            "up{_id=\"c1\"} 1 1000000\nup{_id=\"c1\"} 1 999\n",
            64,
            "--cluster is required: the series, whose label `_id` names the sender, cannot be read: ",
        ),
        (&["--match=up"], up, 64, "--from"),
        (&["--external-label=1a=b"], up, 64, "--external-label: `1a` is not a label name"),
        (&["--samples-per-send=0"], up, 64, "--samples-per-send"),
        (&["--endpoint=authorize"], up, 64, "possible values: receive, upload"),
    ] {
        failed(&explain(args, input.as_bytes()).await, code, says);
    }
    let exit = explain(&["--cluster=c1"], b"").await;
    assert!(
        exit.stdout.starts_with("sender ") && exit.stdout.ends_with("204, and nothing is left to write"),
        "{exit:?}"
    );
    assert_eq!(exit.code(), 0);
}

#[tokio::test]
async fn help_tells_the_codes() {
    let exit = explain(&["--help"], b"").await;
    for told in [
        "--external-label <NAME=VALUE>",
        "--whitelist-file <FILE>",
        "Of the gateway's flags those count that say what the policy is",
        "  1   the sender would hear a refusal",
        "  65  ",
        "  66  ",
    ] {
        assert!(exit.stdout.contains(told), "{told:?} is not in {}", exit.stdout);
    }
}

/// Whatever a body is: an answer, or one line.
#[tokio::test]
async fn hostile_bodies_are_explained_or_refused() {
    let (mut explained_some, mut refused_some) = (0, 0);
    let families = delimited(&[target::histogram("h", &[(1.0, 1), (2.0, 2)], 3, 4.0)]);
    let raw = snap::raw::Decoder::new().decompress_vec(&write_body(all_kinds("c1"))).unwrap();
    let bodies = (0..raw.len()).step_by(11).flat_map(|at| {
        let mut damaged = raw.clone();
        damaged[at] ^= 0x85;
        [("receive", snappy_block(&damaged)), ("receive", snappy_block(&raw[..at]))]
    });
    let uploads = (0..families.len()).step_by(7).flat_map(|at| {
        let mut damaged = families.clone();
        damaged[at] = damaged[at].wrapping_add(0x41);
        [("upload", snappy_framed(&damaged)), ("upload", damaged)]
    });
    for (endpoint, body) in bodies.chain(uploads) {
        let exit = explain(&["--body", "-ojson", "--cluster=c1", "--endpoint", endpoint], &body).await;
        match exit.code() {
            0 | 1 => {
                let told: Value = serde_json::from_str(&exit.stdout).unwrap();
                let answered = told["requests"][0]["answer"].is_string();
                assert_eq!(exit.code(), i32::from(answered), "{told:#}");
                if listed(&told).is_empty() { refused_some += 1 } else { explained_some += 1 }
            }
            _ => failed(&exit, 65, "stdin"),
        }
    }
    assert!(explained_some > 20 && refused_some > 10, "{explained_some} {refused_some}");

    // A few bytes that claim to be 4 GiB, a block of zeros over the limit, frames that become too much.
    let claim = b"\xff\xff\xff\xff\x0f\x00";
    failed(
        &explain(&["--body", "--endpoint=receive"], claim).await,
        65,
        "over 268435456 bytes once it is decompressed",
    );
    let zeros = vec![0; (256 << 20) + 1];
    failed(&explain(&["--body"], &snappy_block(&zeros)).await, 65, "over 268435456 bytes once it is decompressed");
    failed(&explain(&["--body"], &snappy_framed(&zeros)).await, 65, "over 268435456 bytes once it is decompressed");
}

/// As behind `| head`.
#[tokio::test]
async fn output_that_nobody_reads_is_no_failure() {
    let text: String = (0..20_000).map(|i| format!("up{{_id=\"c1\",i=\"{i}\"}} 1\n")).collect();
    let input = file(&text);
    let run = async |stdout: Stdio| {
        let mut command = Gateway::command();
        command.arg("explain").arg(input.path()).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        support::within("the end", command.spawn().unwrap().wait_with_output()).await.unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run(writer.into()).await;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let output = run(full(Path::new("/dev/full"))).await;
    assert_eq!(output.status.code(), Some(69));
    assert!(output.stderr.starts_with(b"error: stdout: No space left"));
}

fn full(path: &Path) -> Stdio {
    std::fs::File::options().write(true).open(path).unwrap().into()
}

async fn explain<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> Exit {
    let mut command = Gateway::command();
    command.arg("explain").args(args);
    process::run(command, input).await
}

/// What it said in JSON, be it good or bad.
#[track_caller]
fn explained(exit: &Exit) -> Value {
    assert!(matches!(exit.code(), 0 | 1) && exit.stderr.is_empty(), "{exit:?}");
    let told: Value = serde_json::from_str(&exit.stdout).unwrap();
    let refused = told["requests"].as_array().unwrap().iter().any(|request| request["answer"].is_string());
    assert_eq!(exit.code(), i32::from(refused), "{told:#}");
    told
}

fn listed(explained: &Value) -> &[Value] {
    explained["series"].as_array().unwrap()
}

#[track_caller]
fn failed(exit: &Exit, code: i32, says: &str) {
    assert_eq!((exit.code(), exit.stdout.as_str(), exit.stderr.lines().count()), (code, "", 1), "{exit:?}");
    assert!(exit.stderr.starts_with("error: ") && exit.stderr.contains(says), "{says:?}: {exit:?}");
}

fn file(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}
