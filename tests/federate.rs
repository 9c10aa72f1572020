//! The push client between a scripted Prometheus and a scripted gateway: what it sends, and what it does when they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hyper::Method;
use rcgen::CertificateParams;
use serde_json::json;
use support::{
    Answer, Issuer, Upstream, ensure, eventually,
    federate::{Client, Receiver, Source, families, spelt},
    http,
    issuer::{CLIENT, Port, SECRET},
    process::logfmt,
    proxy::Proxy,
    server::Received,
    tls::{Authority, Neighbour, Volume},
    world::{now, spelt as spelt_write},
};
use tokio::time::Instant;

const EVERY: &str = "--interval=300ms";

/// `federate` of `source` to `receiver`, with more flags.
fn args(source: &Source, receiver: &Receiver, flags: &[&str]) -> Vec<String> {
    let mut args = vec![format!("--from={}", source.url_of(""))];
    args.extend(receiver.flags());
    args.extend(flags.iter().map(ToString::to_string));
    args
}

/// A selection of one series that is there now.
fn up() -> String {
    format!("# TYPE up untyped\nup{{job=\"a\"}} 1 {}\n", now())
}

fn bearer(request: &Received) -> &str {
    request.headers.get("authorization").map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn what_is_pushed_is_what_telemeter_client_pushes() {
    let (early, late, long) = (now() - 60_000, now(), "x".repeat(256));
    let text = format!(
        "# TYPE ALERTS untyped\nALERTS{{alertname=\"a\",_id=\"other\"}} 1 {late}\n\
         # TYPE up untyped\nup{{instance=\"b\"}} 1 {late}\nup{{instance=\"a\"}} 0 {early}\n\
         up{{instance=\"old\"}} 1 {}\nup{{instance=\"timeless\"}} 1\nup{{instance=\"c\",long=\"{long}\"}} NaN {late}\n\
         {long} 1 {late}\n",
        now() - 25 * 3_600_000,
    );
    let (source, receiver) = (Source::of_text(text).await, Receiver::start().await);
    let flags = [
        "--match=up",
        r#"--match={__name__="ALERTS"}"#,
        "--label=region=r1,_id=mine",
        "--anonymize-labels=instance,nothing",
        "--anonymize-salt=salt",
        "--from-token=from-secret",
        "--once",
    ];
    let exit = Client::run_to_exit(args(&source, &receiver, &flags)).await;
    assert_eq!(exit.code(), 0, "{exit:?}");

    let [scrape] = &source.received()[..] else { panic!("{:?}", source.received()) };
    assert_eq!((&scrape.method, scrape.uri.path(), bearer(scrape)), (&Method::GET, "/federate", "Bearer from-secret"));
    assert_eq!(scrape.uri.query(), Some("match%5B%5D=up&match%5B%5D=%7B__name__%3D%22ALERTS%22%7D"));
    let [exchange] = &receiver.authorize.received()[..] else { panic!("{:?}", receiver.authorize.received()) };
    assert_eq!((&exchange.method, exchange.uri.to_string().as_str()), (&Method::POST, "/authorize?id=c1"));
    assert_eq!((bearer(exchange), exchange.body.len()), ("Bearer pull-secret", 0));
    let [upload] = &receiver.upload.received()[..] else { panic!("{:?}", receiver.upload.received()) };
    assert_eq!((&upload.method, upload.uri.path(), bearer(upload)), (&Method::POST, "/upload", "Bearer token-1"));
    assert_eq!(upload.headers["content-encoding"], "snappy");
    assert_eq!(
        upload.headers["content-type"],
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    );
    // By `printf salt$VALUE | sha256sum | xxd -r -p | head -c 9 | base64 | tr +/ -_`.
    let [a, b, c] = ["xI4i0Qn73J6p", "CMyVJ14O02fu", "3UzHfFvLYZ4B"];
    let expected = [
        format!("alerts{{_id=\"c1\",alertname=\"a\",region=\"r1\"}} 1 {late}"),
        format!("up{{_id=\"c1\",instance={a:?},region=\"r1\"}} 0 {early}"),
        format!("up{{_id=\"c1\",instance={b:?},region=\"r1\"}} 1 {late}"),
        format!("up{{_id=\"c1\",instance={c:?},region=\"r1\"}} NaN {late}"),
    ];
    assert_eq!(spelt(upload), expected);
    // One family a name: a server looks at the order of times within each.
    assert_eq!(families(upload).len(), 2);
}

#[tokio::test]
async fn a_dry_run_prints_what_would_be_pushed() {
    let at = now();
    let (source, receiver) = (Source::of_text(format!("up{{a=\"b\\\"\"}} 1.5 {at}\n")).await, Receiver::start().await);
    let exit = Client::run_to_exit(args(&source, &receiver, &["--dry-run", "--label=x=y"])).await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""));
    assert_eq!(exit.stdout, format!("# TYPE up untyped\nup{{_id=\"c1\",a=\"b\\\"\",x=\"y\"}} 1.5 {at}"));
    assert_eq!((receiver.authorize.count(), receiver.upload.count()), (1, 0));
}

#[tokio::test]
async fn the_exit_code_of_one_round_tells() {
    let (good, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    let bad = Source::of_text("no metrics at all {\n").await;
    let down = Source::start(|_: &Received| Answer::status(500)).await;
    let picky = Source::start(|_: &Received| Answer::body(400, "text/plain", "no such selector\n")).await;
    let old = Source::of_text("up 1 1\n").await;
    let large = Source::of_text("x 1 1\n".repeat(40_000)).await;
    for (source, upload, code, line) in [
        (&bad, 200, 65, "error: "),
        (&large, 200, 65, "error: what was scraped is not taken: the body is 240000 bytes, at most 204800 are taken"),
        (&down, 200, 69, "/federate: the Prometheus answered 500"),
        (&picky, 200, 69, "/federate: the Prometheus answered 400: no such selector"),
        (&old, 200, 65, "error: of 1 samples none is left: older than a day by the clock here"),
        (&good, 400, 65, "error: the upstream refused this: no such label"),
        (&good, 503, 69, "error: the upstream answered 503: no such label"),
        (&good, 403, 69, "error: the upstream answered 403: no such label"),
        (&good, 302, 69, "error: the upstream answered 302: no such label"),
    ] {
        receiver.upload.set_script(move |_| Answer::body(upload, "text/plain", "no such label\nor so"));
        let exit = Client::run_to_exit(args(source, &receiver, &["--once"])).await;
        let last = exit.stderr.lines().last().unwrap_or_default();
        assert!(exit.code() == code && last.contains(line), "{exit:?}");
    }
    assert_eq!(good.count(), 4, "nothing is tried again");
}

#[tokio::test]
async fn wrong_flags_are_one_line_and_exit_64_at_once() {
    for (flags, line) in [
        (
            &["--from=http://localhost:1"][..],
            "error: --to is required: the URL of a gateway; or --to-upload and --to-auth, or --to-write",
        ),
        (
            &["--from=http://localhost:1", "--to=http://localhost:1"],
            "error: --to-token-file or --to-token is required: the token that is exchanged for the gateway's",
        ),
        (&["--from=http://localhost:1", "--to-write=http://localhost:1", "--match=up{"], "error: --match: `up{`: "),
        (
            &["--from=http://localhost:1", "--to-write=http://localhost:1", "--from-token-file=/nowhere/at/all"],
            "error: --from-token-file: /nowhere/at/all: ",
        ),
        (
            &["--from=http://localhost:1", "--to-write=http://localhost:1", "--no-such-flag"],
            "error: unexpected argument '--no-such-flag' found",
        ),
    ] {
        let exit = Client::run_to_exit(flags).await;
        assert!(exit.code() == 64 && exit.stderr.starts_with(line) && exit.stderr.lines().count() == 1, "{exit:?}");
    }
}

#[tokio::test]
async fn a_push_that_fails_is_tried_again_with_what_was_scraped() {
    let scrapes = AtomicUsize::new(0);
    let source = Source::start(move |_: &Received| {
        let n = scrapes.fetch_add(1, Ordering::Relaxed);
        Answer::body(200, "text/plain; version=0.0.4", format!("up {n} {}\n", now()))
    })
    .await;
    let receiver = Receiver::start().await;
    let asked = AtomicUsize::new(0);
    receiver.upload.set_script(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::status(503).header("retry-after", "1"),
        1 => Answer::Close,
        2 => Answer::status(429),
        _ => Answer::status(200),
    });
    let client = Client::start(args(&source, &receiver, &[EVERY])).await;
    receiver.upload.wait_for(1).await;
    let first = Instant::now();
    receiver.upload.wait_for(2).await;
    assert!(first.elapsed() > Duration::from_millis(900), "Retry-After is obeyed: {:?}", first.elapsed());
    let uploads = receiver.upload.wait_for(4).await;
    assert!(uploads[..4].windows(2).all(|pair| pair[0].body == pair[1].body), "the same payload");
    assert_eq!(spelt(&uploads[0]).len(), 1);
    let next = receiver.upload.wait_for(5).await;
    assert_ne!(next[4].body, next[0].body, "then what is there now");
    client.wait_for_metric("federate_requests_total", 5.0).await;
    assert_eq!(client.metric("federate_requests_failed_total").await, 3.0);
    assert_eq!(client.metric(r#"infogw_federate_payloads_given_up_total{reason="too_old"}"#).await, 0.0);
    let told = client.wait_for_log("trying again").await;
    assert!(told.contains("the upstream answered 503") && told.contains("retry_in="), "{told}");
    assert_eq!(client.stop().await.code(), 0);
}

#[tokio::test]
async fn what_is_refused_is_given_up_and_counted() {
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    receiver.upload.set_script(|_| Answer::body(400, "text/plain", "out of order\n"));
    let client = Client::start(args(&source, &receiver, &[EVERY])).await;
    // The next round scrapes anew.
    receiver.upload.wait_for(2).await;
    client.wait_for_metric(r#"infogw_federate_payloads_given_up_total{reason="refused"}"#, 2.0).await;
    assert!(source.count() >= 2);
    let told = client.wait_for_log("unable to forward results").await;
    assert!(told.contains("the upstream refused this: out of order"), "{told}");
}

#[tokio::test]
async fn a_bad_source_is_told_counted_and_tried_again() {
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    let (protobuf, text) = (
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        "text/plain; version=0.0.4",
    );
    let cut = support::payload::delimited(&[support::target::gauge("up", &[], 1.0)]);
    let cut = cut[..cut.len() - 1].to_vec();
    let bad: [(Answer, &str); 8] = [
        (Answer::status(401), "the Prometheus answered 401: it wants a token, or another one"),
        (Answer::status(403), "the Prometheus answered 403: it does not let this client in"),
        (Answer::status(302).header("location", "http://localhost:1/"), "the Prometheus answered 302"),
        (Answer::html(200, "<html>hello</html>"), "text/html"),
        (Answer::body(200, text, "up{ 1\n"), "line 1"),
        (Answer::body(200, protobuf, cut), "cut off"),
        (Answer::body(200, text, "x 1 1\n".repeat(40_000)), "at most 204800 are taken"),
        (Answer::Close, "connection"),
    ];
    let failures = bad.len() as f64;
    let answers = bad.clone().map(|(answer, _)| answer);
    let asked = AtomicUsize::new(0);
    source.set_script(move |_| {
        let n = asked.fetch_add(1, Ordering::Relaxed);
        answers.get(n).cloned().unwrap_or_else(|| Answer::body(200, text, up()))
    });
    let client = Client::start(args(&source, &receiver, &["--interval=100ms"])).await;
    for (_, line) in bad {
        let told = client.wait_for_log(line).await;
        assert!(told.contains("level=error") && told.contains("unable to forward results"), "{told}");
    }
    receiver.upload.wait_for(1).await;
    assert_eq!(client.metric("federate_requests_failed_total").await, failures);
    assert_eq!(
        client.metric(r#"metricsclient_http_requests_total{client="federate_from",status_code="401"}"#).await,
        1.0
    );
    assert_eq!(client.metric(r#"metricsclient_request_retrieve{client="federate_from",status_code="401"}"#).await, 1.0);
}

#[tokio::test]
async fn whoever_hangs_is_given_up_and_tried_again() {
    let (source, receiver) = (Source::start(|_: &Received| Answer::Hang).await, Receiver::start().await);
    let client = Client::start(args(&source, &receiver, &[EVERY])).await;
    let told = client.wait_for_log("no answer within 5s").await;
    assert!(told.contains("unable to forward results"), "{told}");
    receiver.upload.set_script(|_| Answer::Hang);
    source.set_script(|_| Answer::body(200, "text/plain; version=0.0.4", up()));
    client.wait_for_log("the upstream did not answer within 5 s").await;
    receiver.upload.set_script(|_| Answer::status(200));
    let uploads = receiver.upload.wait_for(2).await;
    assert_eq!(uploads[0].body, uploads[1].body);
}

#[tokio::test]
async fn a_receive_endpoint_is_shown_a_token_of_an_issuers() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let (source, receiver) = (Source::of_text(up()).await, Upstream::accepting().await);
    let flags = [
        format!("--from={}", source.url_of("")),
        format!("--to-write={}", receiver.url()),
        "--to-tenant-id=telemetry".to_owned(),
        format!("--oidc-issuer={}", port.url()),
        format!("--client-id={CLIENT}"),
        "--once".to_owned(),
    ];
    let mut command = Client::command();
    command.env("INFOGW_CLIENT_SECRET", SECRET).args(flags);
    let exit = support::process::run(command, b"").await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    let [write] = &receiver.received()[..] else { panic!("{:?}", receiver.received()) };
    assert_eq!(spelt_write(write), [r#"up{job="a"}"#]);
    assert_eq!(write.header("thanos-tenant"), Some("telemetry"));
    let token = write.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap();
    assert_eq!(issuer.introspect(token).await["client_id"], json!(CLIENT));
}

#[tokio::test]
async fn a_token_is_kept_and_another_one_is_got_when_it_is_refused() {
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    receiver.upload.set_script(|upload| match bearer(upload) {
        "Bearer token-1" => Answer::status(401),
        _ => Answer::status(200),
    });
    let client = Client::start(args(&source, &receiver, &[EVERY])).await;
    let uploads = receiver.upload.wait_for(4).await;
    let shown: Vec<_> = uploads[..4].iter().map(bearer).collect();
    assert_eq!(shown, ["Bearer token-1", "Bearer token-2", "Bearer token-2", "Bearer token-2"]);
    assert_eq!(receiver.authorize.count(), 2);
    assert_eq!(client.metric("federate_requests_failed_total").await, 0.0);
}

#[tokio::test]
async fn an_exchange_that_fails_holds_up_the_payload_and_nothing_else() {
    let files = Volume::new(&[("token", "one\n")]);
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    receiver.authorize.set_script(|request| match bearer(request) {
        "Bearer two" => Answer::json(200, &json!({ "token": "granted", "labels": { "_id": "c1" } })),
        _ => Answer::body(401, "text/plain", "this is not two\n"),
    });
    let mut args = args(&source, &receiver, &[EVERY]);
    args[3] = files.flag("--to-token-file", "token");
    let client = Client::start(args).await;
    let told = client.wait_for_log("trying again").await;
    assert!(told.contains("the token could not be exchanged: it answered 401: this is not two"), "{told}");
    // A file that is gone for a while is no reason to end; and what it holds then counts without a reload.
    std::fs::remove_file(files.path("token")).unwrap();
    client.wait_for_log("No such file or directory").await;
    std::fs::write(files.path("token"), "two\n").unwrap();
    receiver.upload.wait_for(1).await;
    assert_eq!(source.count(), 1, "what was scraped at first was pushed");
}

#[tokio::test]
async fn the_listener_shows_the_selection_before_it_is_pushed_and_how_it_goes() {
    let at = now();
    let text = format!("up{{job=\"a\"}} 1 {at}\nup{{job=\"old\"}} 1 1\n");
    let (source, receiver) = (Source::of_text(text).await, Receiver::start().await);
    receiver.upload.set_script(|_| Answer::Hang);
    let client = Client::start(args(&source, &receiver, &[EVERY])).await;
    receiver.upload.wait_for(1).await;
    let shown = client.get("/federate").await.expect_status(200);
    assert_eq!(shown.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(shown.text(), format!("# TYPE up untyped\nup{{_id=\"c1\",job=\"a\"}} 1 {at}\n"));
    assert_eq!(client.metric("federate_samples").await, 2.0);
    assert_eq!(client.metric("federate_filtered_samples").await, 1.0);
    assert_eq!(client.get("/healthz").await.expect_status(200).text(), "ok");
    assert!(client.get("/").await.expect_status(200).text().contains("/-/reload"));
    client.get("/nothing").await.expect_status(404);
    assert_eq!(http::send(hyper::Request::post(client.url("/federate")), "").await.status, 405);
}

#[tokio::test]
async fn the_listener_shows_what_is_written_and_that_nothing_is_left() {
    let at = now();
    let text = format!("up{{job=\"b\"}} NaN {at}\nup{{job=\"a\"}} 0.5 {}\n", at - 1);
    let (source, receiver) = (Source::of_text(text).await, Upstream::accepting().await);
    let flags =
        [format!("--from={}", source.url_of("")), format!("--to-write={}", receiver.url()), "--label=l=\"1".to_owned()];
    let client = Client::start(flags.iter().map(String::as_str).chain([EVERY])).await;
    receiver.wait_for(1).await;
    let shown = client.get("/federate").await.expect_status(200);
    let expected = format!(
        "# TYPE up untyped\nup{{job=\"a\",l=\"\\\"1\"}} 0.5 {}\nup{{job=\"b\",l=\"\\\"1\"}} NaN {at}\n",
        at - 1
    );
    assert_eq!(shown.text(), expected);

    source.set_script(|_| Answer::body(200, "text/plain; version=0.0.4", ""));
    client.wait_for_log("no metrics to send").await;
    assert_eq!(client.get("/federate").await.expect_status(200).text(), "");
}

#[tokio::test]
async fn files_are_read_again_when_asked_and_what_is_wrong_changes_nothing() {
    let files = Volume::new(&[("rules", "first\n\n")]);
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    let rules = files.flag("--match-file", "rules");
    let client = Client::start(args(&source, &receiver, &[EVERY, &rules])).await;
    let selectors = async |expected: &str| {
        let seen = source.count();
        eventually(expected, async || {
            let scrapes = source.received_after(seen);
            let queries: Vec<_> = scrapes.iter().filter_map(|scrape| scrape.uri.query()).collect();
            ensure(queries.last().is_some_and(|query| query.contains(expected)), || format!("{queries:?}"))
        })
        .await;
    };
    selectors("match%5B%5D=%7B__name__%3D%22up%22%7D&match%5B%5D=first").await;
    files.swap(&[("rules", "second\n")]);
    http::send(hyper::Request::post(client.url("/-/reload")), "").await.expect_status(200);
    selectors("match%5B%5D=second").await;
    files.swap(&[("rules", "second{\n")]);
    let refused = http::send(hyper::Request::post(client.url("/-/reload")), "").await.expect_status(500);
    assert!(refused.text().starts_with("not reloaded, the old stays: --match-file: `second{`"), "{refused:?}");
    selectors("match%5B%5D=second").await;
    files.swap(&[("rules", "third\n")]);
    client.signal("HUP").await;
    selectors("match%5B%5D=third").await;
    assert_eq!(http::get(&client.url("/-/reload")).await.status, 405);
}

#[tokio::test]
async fn each_of_a_fleet_pushes_first_at_a_time_of_its_own() {
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    let mut first = Vec::new();
    for id in ["--id=one", "--id=one", "--id=another"] {
        let client = Client::start(args(&source, &receiver, &[id, "--interval=1000h", "--log-level=debug"])).await;
        let line = client.wait_for_log("the first push is at a time of its own").await;
        first.push(logfmt(&line, "first").unwrap().to_owned());
    }
    assert_eq!(first[0], first[1], "it keeps its time");
    assert_ne!(first[0], first[2]);
    assert_eq!(source.count(), 0, "{first:?}");
}

#[tokio::test]
async fn proxy_variables_are_for_whoever_is_pushed_to() {
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    // One that takes every request itself.
    let proxy = Receiver::start().await;
    let mut command = Client::command();
    let authority = proxy.upload.address();
    let [_, _, token] = receiver.flags();
    command.env("HTTP_PROXY", format!("http://user:pass@{authority}")).args([
        format!("--from={}", source.url_of("")),
        "--to-write=http://receiver.invalid/write".to_owned(),
        token,
        "--once".to_owned(),
    ]);
    let exit = support::process::run(command, b"").await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    let [asked] = &proxy.upload.received()[..] else { panic!("{:?}", proxy.upload.received()) };
    assert_eq!(asked.uri.to_string(), "http://receiver.invalid/write");
    assert_eq!(asked.headers["proxy-authorization"], "Basic dXNlcjpwYXNz");
    assert_eq!(
        (bearer(asked), &asked.headers["content-type"]),
        ("Bearer pull-secret", &"application/x-protobuf".parse().unwrap())
    );
    assert_eq!(source.count(), 1, "the Prometheus is scraped directly");

    // So is an issuer.
    let discovery = json!({
        "issuer": "http://issuer.invalid",
        "token_endpoint": "http://issuer.invalid/token",
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    });
    proxy.upload.set_script(move |asked| match asked.uri.path() {
        "/.well-known/openid-configuration" => Answer::json(200, &discovery),
        "/token" => Answer::json(200, &json!({ "access_token": "issued", "token_type": "bearer", "expires_in": 3600 })),
        _ => Answer::status(204),
    });
    let mut command = Client::command();
    command.env("HTTP_PROXY", format!("http://user:pass@{authority}")).args([
        &format!("--from={}", source.url_of("")),
        "--to-write=http://receiver.invalid/write",
        "--oidc-issuer=http://issuer.invalid",
        "--client-id=me",
        "--client-secret=secret",
        "--once",
    ]);
    let exit = support::process::run(command, b"").await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    let asked: Vec<_> = proxy.upload.received().split_off(1);
    let hosts: Vec<_> = asked.iter().map(|asked| asked.uri.host().unwrap()).collect();
    assert_eq!(hosts, ["issuer.invalid", "issuer.invalid", "receiver.invalid"]);
    assert!(asked.iter().all(|asked| asked.headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"), "{asked:?}");
    assert_eq!(bearer(&asked[2]), "Bearer issued");

    // Nor is what is on this host asked of a proxy.
    let mut command = Client::command();
    command.env("HTTP_PROXY", format!("http://{authority}")).args(args(&source, &receiver, &["--once"]));
    let exit = support::process::run(command, b"").await;
    assert_eq!((exit.code(), proxy.upload.count(), receiver.upload.count()), (0, 4, 1), "{exit:?}");

    let mut command = Client::command();
    command.env("HTTPS_PROXY", "socks4://proxy.invalid").args([
        "--from=http://localhost:1",
        "--to-write=https://receiver.invalid/",
        "--once",
    ]);
    let exit = support::process::run(command, b"").await;
    assert_eq!(
        (exit.code(), exit.stderr.as_str()),
        (64, "error: HTTPS_PROXY: this is none of the proxies that can be used: http://, https:// and socks5://")
    );
}

#[tokio::test]
async fn what_is_pushed_by_https_goes_through_tunnels() {
    let (source, authority) = (Source::of_text(up()).await, Authority::new());
    let leaf =
        authority.issue(&CertificateParams::new(["receiver.invalid".to_owned(), "localhost".to_owned()]).unwrap());
    let receiver = Neighbour::start(&leaf, None).await;
    let files = Volume::new(&[("ca.crt", &authority.pem())]);
    for (scheme, shown) in [("http", None), ("https", Some(&leaf))] {
        let proxy = Proxy::to(receiver.address, shown).await;
        let mut command = Client::command();
        command.env("https_proxy", format!("{scheme}://user:pass@localhost:{}", proxy.address.port())).args([
            format!("--from={}", source.url_of("")),
            "--to-write=https://receiver.invalid/write".to_owned(),
            files.flag("--to-ca-file", "ca.crt"),
            "--once".to_owned(),
        ]);
        let asked = receiver.asked();
        let exit = support::process::run(command, b"").await;
        assert_eq!((exit.code(), receiver.asked()), (0, asked + 1), "{exit:?}");
        let [head] = &proxy.asked()[..] else { panic!("{:?}", proxy.asked()) };
        assert!(head.starts_with("CONNECT receiver.invalid:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnz\r\n"), "{head}");
    }
}

#[tokio::test]
async fn no_token_is_told_whoever_quotes_it() {
    const SECRETS: [&str; 3] = ["the-pull-secret-itself", "the-scraping-token-itself", "the-key-in-the-query"];
    let [pull, scraping, key] = SECRETS;
    let quoting = |status| {
        move |request: &Received| {
            let said = format!("I do not like {} of {}\n", bearer(request), request.uri);
            Answer::body(status, "text/plain", said)
        }
    };
    let (source, receiver) = (Source::of_text(up()).await, Receiver::start().await);
    let from = format!("--from={}", source.url_of(""));
    let from_token = format!("--from-token={scraping}");
    let write = format!("--to-write={}", receiver.upload.url_of(&format!("/write?key={key}")));
    let auth = format!("--to-auth={}", receiver.authorize.url_of(&format!("/authorize?key={key}")));
    let upload = format!("--to-upload={}", receiver.upload.url_of("/upload"));
    let token = format!("--to-token={pull}");
    for status in [400, 401, 403, 404, 429, 500] {
        receiver.upload.set_script(quoting(status));
        receiver.authorize.set_script(quoting(status));
        for to in [&[&write][..], &[&auth, &upload]] {
            let flags = [&[&from, &from_token, &token][..], to].concat();
            let flags = flags.into_iter().map(String::as_str).chain(["--once", "-v", "--log-level=debug"]);
            let exit = Client::run_to_exit(flags).await;
            let said = format!("{}{}", exit.stdout, exit.stderr);
            assert!(exit.code() != 0 && SECRETS.iter().all(|secret| !said.contains(secret)), "{status}: {said}");
        }
    }
    source.set_script(quoting(400));
    let exit = Client::run_to_exit([from.as_str(), &from_token, &write, &token, "--once"]).await;
    assert!(exit.code() == 69 && !exit.stderr.contains(scraping), "{exit:?}");
}
