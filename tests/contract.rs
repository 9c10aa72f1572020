//! The contract's table of answers, row by row, against a running gateway.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;
#[path = "contract/table.rs"]
mod table;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use infogw_proto::prometheus::{MetricMetadata, WriteRequest};
use prost::Message;
use serde_json::json;
use support::{
    Answer, Gateway, World, authorizer,
    authorizer::Refusing,
    http::get,
    payload::{series, snappy_block, snappy_framed, write_body},
    world::{PULL_SECRET, TEXT, now},
};
use table::{Route, Row, clusters, refusal, row};

/// Passes `up` and `also`; what is called `off` is off it.
const ALLOWLIST: [&str; 2] = ["--whitelist", r#"{__name__=~"up|also"}"#];

const AUTHORIZER_DOWN: &str = "authorizer_unavailable: the authorizer does not answer as it should; come back in 10 s";

/// What the gateway counted of refusals, by route, layer and reason.
async fn refusals(world: &World) -> BTreeMap<String, u64> {
    let metrics = get(&world.gateway.internal("/metrics")).await.expect_status(200);
    let refused =
        metrics.text().lines().filter_map(|line| line.strip_prefix("infogw_rejections_total")?.rsplit_once(' '));
    refused.map(|(labels, count)| (labels.to_owned(), count.parse().unwrap())).collect()
}

/// How many of the rows are refusals.
fn refusing(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.status >= 300).count()
}

/// Each refusal was counted, by a counter that had been there from the start: no layer refuses with what it has not foretold.
async fn check_refusals(world: &World, foretold: &BTreeMap<String, u64>, refused: usize) {
    let counted = refusals(world).await;
    assert!(foretold.values().all(|count| *count == 0), "{foretold:?}");
    assert!(counted.keys().eq(foretold.keys()), "{foretold:?}\n{counted:?}");
    assert_eq!(counted.values().sum::<u64>(), refused as u64, "{counted:?}");
}

#[tokio::test]
async fn authorize() {
    let rows = vec![
        row("done", 200, ""),
        row("done, the id in a form, whose id wins", 200, "").sent(|sent| {
            sent.target("/authorize?id=another")
                .with("content-type", "application/x-www-form-urlencoded")
                .text("id={C}")
        }),
        row("not POST", 405, "only POST").sent(|sent| sent.method("GET")).header("allow", "POST"),
        row("no credentials", 401, "send one Authorization header")
            .sent(|sent| sent.without("authorization"))
            .header("www-authenticate", "Bearer"),
        row("broken credentials", 401, "Bearer TOKEN")
            .sent(|sent| sent.with("authorization", "Basic YTpi"))
            .header("www-authenticate", "Bearer"),
        row("the authorizer does not know the token", 401, "pull secret")
            .authorizer(refusal(401))
            .header("www-authenticate", "Bearer"),
        row("the authorizer refuses: 400", 400, "refused").authorizer(refusal(400)),
        row("the authorizer refuses: 403", 403, "forbids").authorizer(refusal(403)),
        row("the authorizer refuses: 404", 404, "does not know this cluster").authorizer(refusal(404)),
        row("the authorizer refuses: 409", 409, "check the cluster id").authorizer(refusal(409)),
        row("the authorizer answers 429", 429, "too often; come back in 120 s")
            .authorizer(Answer::status(429).header("retry-after", "120"))
            .retry_after(120..=180),
        row("the authorizer answers 429 and no more", 429, "too often; come back in 300 s")
            .authorizer(Answer::status(429))
            .retry_after(300..=450),
        row("the authorizer answers 500", 503, AUTHORIZER_DOWN).authorizer(refusal(500)).retry_after(10..=15),
        row("the authorizer answers 503", 503, AUTHORIZER_DOWN).authorizer(refusal(503)).retry_after(10..=15),
        row("the authorizer redirects", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::status(302).header("location", "/other"))
            .retry_after(10..=15),
        row("the authorizer redirects the POST", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::status(307).header("location", "/other"))
            .retry_after(10..=15),
        row("a router's page: 404", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::html(404, "<h1>Not Found</h1>"))
            .retry_after(10..=15),
        row("a router's page: 403", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::html(403, "<h1>Forbidden</h1>"))
            .retry_after(10..=15),
        row("the authorizer names no account", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::json(200, &json!({ "account_id": "" })))
            .retry_after(10..=15),
        row("the authorizer speaks no JSON", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::html(200, "<h1>Welcome</h1>"))
            .retry_after(10..=15),
        row("the authorizer hangs up", 503, AUTHORIZER_DOWN).authorizer(Answer::Close).retry_after(10..=15),
        row("too large", 413, "the body is 6000 bytes, at most 4096 are taken")
            .sent(|sent| sent.with("content-type", "application/x-www-form-urlencoded").body("id=c1&".repeat(1000))),
        row("no id", 400, "`id`").sent(|sent| sent.target("/authorize")),
        row("an empty id", 400, "`id`").sent(|sent| sent.target("/authorize?id=")),
        row("an id that is none", 400, "`id` is no cluster id").sent(|sent| sent.target("/authorize?id=a%0Ab")),
    ];
    let world = World::start().await;
    let (foretold, refused) = (refusals(&world).await, refusing(&rows));
    for (cluster, row) in clusters(rows) {
        let asked = world.authorizer.received().len();
        let reply = row.check(&world, Route::Authorize, &cluster).await;
        let asked = world.authorizer.received().split_off(asked);
        // What may be an outage is tried again, a few times.
        let most = if row.status == 503 { 3 } else { 1 };
        assert!(asked.len() <= most, "{}: asked {} times", row.case, asked.len());
        for call in asked {
            let body = json!({ "cluster_id": cluster, "authorization_token": PULL_SECRET, "account_id": "" });
            assert_eq!((call.method.as_str(), &call.body), ("POST", &body), "{}", row.case);
            assert_eq!(call.headers.get("authorization"), None, "{}", row.case);
        }
        if row.status == 200 {
            let answer = reply.json();
            assert_eq!((&answer["version"], &answer["expiresInSeconds"]), (&json!(1), &json!(86_400)));
            assert_eq!(answer["labels"], json!({ "_id": cluster }));
            assert_eq!(reply.header("content-type"), Some("application/json"));
        }
    }
    check_refusals(&world, &foretold, refused).await;
}

#[tokio::test]
async fn upload() {
    let rows = vec![
        row("done", 200, "").upstream(Answer::status(204)),
        row("everything dropped by policy", 200, "").sent(|sent| sent.lines(&[("off", "{C}")])).reaches(&[]),
        row("metadata only", 200, "").sent(|sent| sent.body("# HELP up It is up.\n# TYPE up gauge\n")).reaches(&[]),
        row("some of it dropped by policy", 200, "")
            .sent(|sent| sent.lines(&[("up", "{C}"), ("off", "{C}"), ("also", "{C}")]))
            .reaches(&["up", "also"]),
        row("not POST", 405, "only POST").sent(|sent| sent.method("PUT")).header("allow", "POST"),
        row("no credentials", 401, "send one Authorization header")
            .sent(|sent| sent.without("authorization"))
            .header("www-authenticate", "Bearer"),
        row("broken credentials", 401, "/authorize")
            .sent(|sent| sent.with("authorization", "Bearer a.b.c"))
            .header("www-authenticate", "Bearer"),
        row("two credentials", 401, "send one Authorization header")
            .sent(|sent| sent.also("authorization", "Bearer a.b.c"))
            .header("www-authenticate", "Bearer"),
        row("too large", 413, "the body is 512400 bytes, at most 512000 are taken")
            .sent(|sent| sent.body("# a comment\n".repeat(42_700))),
        row("too large, decoded", 413, "the decoded body is more than 512000 bytes")
            .sent(|sent| sent.with("content-encoding", "snappy").body(snappy_framed(&b"# a comment\n".repeat(50_000)))),
        row("malformed text", 400, "line").sent(|sent| sent.body("up{ 1\n")),
        row("malformed protobuf", 400, "protobuf")
            .sent(|sent| sent.with("content-type", "application/vnd.google.protobuf").body("\x05abc")),
        row("malformed compression", 400, "framed").sent(|sent| sent.with("content-encoding", "snappy")),
        row("snappy, not framed", 400, "framed")
            .sent(|sent| sent.with("content-encoding", "snappy").body(snappy_block(b"# a comment\n"))),
        row("no timestamp", 400, "series 1 `up`: it has no timestamp").sent(|sent| sent.text("up{_id=\"{C}\"} 1\n")),
        row("too old a timestamp", 400, "s old, at most 86400 s are taken")
            .sent(|sent| sent.text("up{_id=\"{C}\"} 1 {YESTERDAY}\n")),
        row("timestamps that do not ascend", 400, "sort each family by time")
            .sent(|sent| sent.text("up{_id=\"{C}\",a=\"1\"} 1 {NOW}\nup{_id=\"{C}\",a=\"2\"} 1 {BEFORE}\n")),
        row("too long a label", 400, "the value of label `a` is 256 bytes, at most 255 are taken")
            .sent(|sent| sent.text(&format!("up{{_id=\"{{C}}\",a=\"{}\"}} 1 {{NOW}}\n", "x".repeat(256)))),
        row("too long a name", 400, "the value of label `__name__` is 256 bytes, at most 255 are taken")
            .sent(|sent| sent.text(&format!("{}{{_id=\"{{C}}\"}} 1 {{NOW}}\n", "x".repeat(256)))),
        row("unknown media type", 415, "text/plain; version=0.0.4")
            .sent(|sent| sent.with("content-type", "application/json")),
        row("unknown version of text", 415, "text/plain; version=0.0.4")
            .sent(|sent| sent.with("content-type", "text/plain; version=1.0.0")),
        row("unknown encoding", 415, "snappy (framed format), identity, or none")
            .sent(|sent| sent.with("content-encoding", "gzip")),
        row(
            "a series without the cluster label",
            400,
            "series 2 `also`: label `_id` is missing, this sender writes `{C}`; 1 of 2 series refused",
        )
        .sent(|sent| sent.lines(&[("up", "{C}"), ("also", "")])),
        row(
            "a series with another cluster's",
            400,
            "series 2 `also`: label `_id` is `another`, this sender writes `{C}`; 1 of 2 series refused",
        )
        .sent(|sent| sent.lines(&[("up", "{C}"), ("also", "another")])),
    ];
    let world = World::with(&ALLOWLIST).await;
    let (foretold, refused) = (refusals(&world).await, refusing(&rows));
    for (cluster, row) in clusters(rows) {
        let reply = row.check(&world, Route::Upload, &cluster).await;
        assert!(row.status != 200 || reply.body.is_empty(), "{}: {reply:?}", row.case);
    }
    check_refusals(&world, &foretold, refused).await;
}

#[tokio::test]
async fn upload_too_often() {
    let world = World::start().await;
    let line = format!("up{{_id=\"c1\"}} 1 {}\n", now());
    let token = world.token("c1").await;
    world.gateway.upload(&token, TEXT, "", line.clone()).await.expect_status(200);
    let refused = world.gateway.upload(&token, TEXT, "", line).await.expect_status(429);
    assert!(refused.reason().contains("come back in"), "{refused:?}");
    let wait = refused.retry_after().expect("a wait");
    assert!((240..=405).contains(&wait), "{wait}");
    world.forwarded();
    world.upload("c2", &format!("up{{_id=\"c2\"}} 1 {}\n", now())).await.expect_status(200);
}

#[tokio::test]
async fn receive() {
    let rows = vec![
        row("done, upstream says 200", 200, "").upstream(Answer::status(200)),
        row("done, upstream says 202", 202, "").upstream(Answer::status(202)),
        row("done, upstream says 204", 204, "").upstream(Answer::status(204)),
        row("everything dropped by policy", 204, "").sent(|sent| sent.series(&[("off", "{C}")])).reaches(&[]),
        row("metadata only", 204, "")
            .sent(|sent| {
                let metadata = MetricMetadata { r#type: 1, metric_family_name: "up".to_owned(), ..Default::default() };
                sent.body(snappy_block(&WriteRequest { timeseries: vec![], metadata: vec![metadata] }.encode_to_vec()))
            })
            .reaches(&[]),
        row("no media type and no encoding mean remote write 1.0", 200, "")
            .sent(|sent| sent.without("content-type").without("content-encoding")),
        row("not POST", 405, "only POST").sent(|sent| sent.method("GET")).header("allow", "POST"),
        row("no credentials", 401, "send one Authorization header")
            .sent(|sent| sent.without("authorization"))
            .header("www-authenticate", "Bearer"),
        row("credentials that are not base64", 401, "base64")
            .sent(|sent| sent.with("authorization", "Bearer ?"))
            .header("www-authenticate", "Bearer"),
        row("credentials that are not JSON", 401, "JSON")
            .sent(|sent| sent.with("authorization", "Bearer e30x"))
            .header("www-authenticate", "Bearer"),
        row("credentials of nobody", 401, "authorization_token and cluster_id")
            .sent(|sent| sent.with("authorization", "Bearer e30="))
            .header("www-authenticate", "Bearer"),
        row("the authorizer does not know the token", 401, "pull secret")
            .authorizer(refusal(401))
            .header("www-authenticate", "Bearer"),
        row("the authorizer refuses: 400", 400, "refused").authorizer(refusal(400)),
        row("the authorizer refuses: 403", 403, "forbids").authorizer(refusal(403)),
        row("the authorizer refuses: 404", 404, "does not know this cluster").authorizer(refusal(404)),
        row("the authorizer refuses: 409", 409, "check the cluster id").authorizer(refusal(409)),
        row("the authorizer answers 429", 429, "too often; come back in 120 s")
            .authorizer(Answer::status(429).header("retry-after", "120"))
            .retry_after(120..=180),
        row("the authorizer answers 500", 503, AUTHORIZER_DOWN).authorizer(refusal(500)).retry_after(10..=15),
        row("the authorizer redirects", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::status(307).header("location", "/other"))
            .retry_after(10..=15),
        row("a router's page: 404", 503, AUTHORIZER_DOWN)
            .authorizer(Answer::html(404, "<h1>Not Found</h1>"))
            .retry_after(10..=15),
        row("the authorizer hangs up", 503, AUTHORIZER_DOWN).authorizer(Answer::Close).retry_after(10..=15),
        row("any 200 grants", 200, "").authorizer(Answer::html(200, "fine")),
        row("any 201 grants", 200, "").authorizer(Answer::status(201)),
        row("too large", 413, "the body is 131073 bytes, at most 131072 are taken")
            .sent(|sent| sent.body(vec![0; 131_073])),
        row("too many series", 413, "the request has 20001 series, at most 20000 are taken")
            .sent(|sent| sent.series(&[("up", "{C}"); 20_001])),
        row("malformed compression", 400, "snappy").sent(|sent| sent.body("up 1\n")),
        row("malformed payload", 400, "protobuf").sent(|sent| sent.body(snappy_block(b"\x0a\x05abc"))),
        row("unknown media type", 415, "application/x-protobuf").sent(|sent| sent.with("content-type", "text/plain")),
        row("remote write 2.0", 415, "remote write 1.0")
            .sent(|sent| sent.with("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request")),
        row("unknown encoding", 415, "snappy (block format)").sent(|sent| sent.with("content-encoding", "zstd")),
        row(
            "a series without the cluster label",
            400,
            "series 2 `also`: label `_id` is missing, this sender writes `{C}`; 1 of 2 series refused",
        )
        .sent(|sent| sent.series(&[("up", "{C}"), ("also", "")]))
        .reaches(&["up"]),
        row(
            "a series with another cluster's",
            400,
            "series 1 `also`: label `_id` is `another`, this sender writes `{C}`; 2 of 3 series refused",
        )
        .sent(|sent| sent.series(&[("also", "another"), ("up", "{C}"), ("off", "another")]))
        .reaches(&["up"]),
        row(
            "an invalid series",
            400,
            "series 1 `also`: it has 132 labels, at most 128 are taken; drop some; 1 of 2 series refused",
        )
        .sent(|sent| {
            let names: Vec<_> = (0..130).map(|n| format!("l{n:03}")).collect();
            let mut labels = vec![("__name__", "also"), ("_id", sent.cluster.as_str())];
            labels.extend(names.iter().map(|name| (name.as_str(), "v")));
            let invalid = series(&labels, &[(1.0, now())]);
            let up = series(&[("__name__", "up"), ("_id", &sent.cluster)], &[(1.0, now())]);
            sent.body(write_body(vec![invalid, up]))
        })
        .reaches(&["up"]),
        row("nothing but offenders", 400, "1 of 1 series refused").sent(|sent| sent.series(&[("up", "another")])),
    ];
    let world = World::with(&ALLOWLIST).await;
    let (foretold, refused) = (refusals(&world).await, refusing(&rows));
    for (cluster, row) in clusters(rows) {
        let asked = world.authorizer.received().len();
        row.check(&world, Route::Receive, &cluster).await;
        for call in world.authorizer.received().split_off(asked) {
            let body = json!({ "cluster_id": cluster, "authorization_token": PULL_SECRET });
            assert_eq!(call.body, body, "{}: the decoded token is what the authorizer gets", row.case);
            assert_eq!(call.headers.get("authorization"), None, "{}", row.case);
        }
    }
    check_refusals(&world, &foretold, refused).await;
}

/// What the upstream answers, on both routes that have one.
#[tokio::test]
async fn upstream() {
    let reason = |status| Answer::body(status, "text/plain", "\n out of order sample: up\nsecond line\n");
    let redirect = |status| Answer::status(status).header("location", "/elsewhere");
    let rows = || {
        vec![
            row("400", 400, "the upstream refused this: out of order sample: up").upstream(reason(400)),
            row("409", 409, "out of order sample: up").upstream(reason(409)),
            row("413", 413, "out of order sample: up").upstream(reason(413)),
            row("422", 422, "out of order sample: up").upstream(reason(422)),
            row("a long reason", 400, "refused this: rrrr").upstream(Answer::body(400, "text/plain", "r".repeat(5000))),
            row("401", 502, "to this gateway; come back in 30 s").upstream(refusal(401)).retry_after(30..=45),
            row("403", 502, "to this gateway; come back in 30 s").upstream(refusal(403)).retry_after(30..=45),
            row("404", 502, "to this gateway; come back in 30 s").upstream(refusal(404)).retry_after(30..=45),
            row("301", 502, "to this gateway; come back in 30 s").upstream(redirect(301)).retry_after(30..=45),
            row("302", 502, "to this gateway; come back in 30 s").upstream(redirect(302)).retry_after(30..=45),
            row("307", 502, "to this gateway; come back in 30 s").upstream(redirect(307)).retry_after(30..=45),
            row("308", 502, "to this gateway; come back in 30 s").upstream(redirect(308)).retry_after(30..=45),
            row("429", 503, "; come back in").upstream(refusal(429)).retry_after(5..=7),
            row("429 with its wait", 503, "; come back in")
                .upstream(refusal(429).header("retry-after", "60"))
                .retry_after(60..=90),
            row("500", 503, "; come back in").upstream(refusal(500)).retry_after(5..=7),
            row("503", 503, "; come back in").upstream(refusal(503)).retry_after(5..=7).attempts(3),
            row("503 with its wait", 503, "; come back in")
                .upstream(refusal(503).header("retry-after", "77"))
                .retry_after(77..=115),
            row("503 with a date", 503, "; come back in")
                .upstream(refusal(503).header("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"))
                .retry_after(3600..=5400),
            row("hangs up", 502, "cannot be reached").upstream(Answer::Close).retry_after(5..=7),
        ]
    };
    for route in [Route::Upload, Route::Receive] {
        let world = World::with(&ALLOWLIST).await;
        let foretold = refusals(&world).await;
        for (cluster, row) in clusters(rows()) {
            row.reaches(&["up"]).check(&world, route, &cluster).await;
        }
        check_refusals(&world, &foretold, refusing(&rows())).await;
    }
}

/// Nobody listens where flags point to.
#[tokio::test]
async fn unreachable() {
    let nobody = Refusing::new();
    let mut world = World::start().await;
    let authorize = world.authorizer.url();
    world.gateway = Gateway::start(["--authorize", &authorize, "--forward-url", &nobody.url()]).await;
    for route in [Route::Upload, Route::Receive] {
        let row = row("the upstream is unreachable", 502, "cannot be reached").retry_after(5..=7);
        row.check(&world, route, "c1").await;
    }
    world.gateway = Gateway::start(["--authorize", &nobody.url(), "--forward-url", &world.upstream.url()]).await;
    for route in [Route::Authorize, Route::Receive] {
        row("the authorizer is unreachable", 503, AUTHORIZER_DOWN)
            .retry_after(10..=15)
            .check(&world, route, "c1")
            .await;
    }
}

/// The deadlines are telemeter-server's, and take as long as they say: 5 s for the upstream, 20 s for the authorizer.
#[tokio::test]
async fn slow() {
    let world = World::start().await;
    let (token, started) = (world.token("c1").await, Instant::now());
    world.authorizer.set_script(|call| if call.cluster_id() == "c2" { Answer::Hang } else { authorizer::grant(call) });
    world.upstream.set_script(|_| Answer::Hang);
    let upstream = row("the upstream is slow", 504, "did not answer within 5 s").retry_after(5..=7);
    let authorizer = row("the authorizer is slow", 503, AUTHORIZER_DOWN).retry_after(10..=15);
    let sent = |row: &Row, route, cluster: &str| {
        let request = row.request(route, cluster, &token);
        let gateway = world.gateway.public_address().to_owned();
        async move { (request.send(&gateway).await, started.elapsed()) }
    };
    let answers = tokio::join!(
        sent(&upstream, Route::Upload, "c1"),
        sent(&upstream, Route::Receive, "c1"),
        sent(&authorizer, Route::Authorize, "c2"),
        sent(&authorizer, Route::Receive, "c2"),
    );
    for (row, (reply, elapsed), deadline) in [
        (&upstream, &answers.0, 5),
        (&upstream, &answers.1, 5),
        (&authorizer, &answers.2, 20),
        (&authorizer, &answers.3, 20),
    ] {
        row.check_reply(reply, "");
        let late = Duration::from_secs(deadline)..Duration::from_secs(deadline + 5);
        assert!(late.contains(elapsed), "{}: {elapsed:?}", row.case);
    }
}

/// One request is at work, and there is room for one.
#[tokio::test]
async fn overloaded() {
    for route in [Route::Authorize, Route::Upload, Route::Receive] {
        let world = World::with(&["--limit-in-flight", "1"]).await;
        let tokens = [world.token("c1").await, world.token("c2").await];
        let asked = world.authorizer.received().len();
        let (release, _) = tokio::sync::watch::channel(false);
        let held = Answer::json(200, &json!({ "account_id": "a" })).held(&release);
        if route == Route::Authorize {
            world.authorizer.set_script(move |_| held.clone());
        } else {
            world.upstream.set_script(move |_| held.clone());
        }
        let good = row("it is its turn", 200, "");
        let gateway = world.gateway.public_address().to_owned();
        let first = tokio::spawn({
            let request = good.request(route, "c1", &tokens[0]);
            async move { request.send(&gateway).await }
        });
        if route == Route::Authorize {
            world.authorizer.wait_for(asked + 1).await;
        } else {
            world.upstream.wait_for(1).await;
        }
        let shed =
            row("one too many", 503, "overloaded: this gateway is busy with 1 request, the most that it takes at once")
                .retry_after(5..=7);
        let reply = shed.request(route, "c2", &tokens[1]).send(world.gateway.public_address()).await;
        shed.check_reply(&reply, "c2");
        release.send_replace(true);
        first.await.expect("the client does not panic").expect_status(200);
        // What was shed used nothing up and held nothing.
        let reply = good.request(route, "c3", &world.token("c3").await).send(world.gateway.public_address()).await;
        reply.expect_status(200);
    }
}

#[tokio::test]
async fn retry_after_is_jittered() {
    let world = World::start().await;
    world.upstream.set_script(|_| Answer::status(503).header("retry-after", "100"));
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let up = series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())]);
        waits.extend(world.receive("c1", vec![up]).await.expect_status(503).retry_after());
    }
    assert!(waits.len() > 2 && waits.iter().all(|wait| (100..=150).contains(wait)), "{waits:?}");
}

#[tokio::test]
async fn the_receive_tenant_is_set_only_when_asked_for() {
    let world = World::with(&["--receive-tenant-id", "r1", "--tenant-id", "u1"]).await;
    let up = |cluster| series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())]);
    world.receive("c1", vec![up("c1")]).await.expect_status(200);
    world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    let tenants: Vec<_> =
        world.upstream.received().iter().map(|write| write.header("thanos-tenant").map(str::to_owned)).collect();
    assert_eq!(tenants, [Some("r1".to_owned()), Some("u1".to_owned())]);
}
