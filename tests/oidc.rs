//! The gateway's own token: from a certified OpenID provider, and from fakes where that one would not misbehave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use support::{
    Answer, Gateway, Issuer, Reply, Server, World, authorizer, ensure, eventually, http,
    issuer::{CLIENT, Port, SECRET},
    payload::{composite_token, series, write_body},
    server::Received,
    tls::Authority,
    world::{PULL_SECRET, now},
};
use tokio::task::JoinSet;

/// A gateway that shows tokens of the issuer at `url`.
async fn world(url: &str, more: &[&str]) -> World {
    let (id, secret) = (format!("--client-id={CLIENT}"), format!("--client-secret={SECRET}"));
    let mut flags = vec!["--oidc-issuer", url, &id, &secret];
    flags.extend(more);
    World::with(&flags).await
}

/// Pushes as a cluster that is granted already, or will be.
async fn push(world: &World, cluster: &str) -> Reply {
    world.receive(cluster, vec![series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])]).await
}

/// The tokens that the upstream was shown, one a request.
fn shown_upstream(world: &World) -> Vec<String> {
    world.upstream.received().iter().map(|write| token(write.header("authorization")).to_owned()).collect()
}

fn token(authorization: Option<&str>) -> &str {
    authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_else(|| panic!("{authorization:?}"))
}

async fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let metrics = http::get(&gateway.internal("/metrics")).await;
    metrics.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// 503, to be tried again, with this in its line.
#[track_caller]
fn assert_unavailable(reply: Reply, says: &str) {
    let reply = reply.expect_status(503);
    assert!(reply.retry_after().is_some_and(|seconds| seconds > 0), "{reply:?}");
    assert!(reply.reason().contains(says), "{reply:?}");
}

const NO_TOKEN: &str = "no valid token of its own";
const NO_AUTHORIZER: &str = "the authorizer does not answer as it should";

#[tokio::test]
async fn both_neighbours_are_shown_a_token_of_the_issuers() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let world = world(&port.url(), &["--oidc-audience=observatorium", "--log-level=debug", "-v"]).await;
    push(&world, "c1").await.expect_status(200);
    world.upload("c2", &format!("up{{_id=\"c2\"}} 1 {}\n", now())).await.expect_status(200);

    let shown = shown_upstream(&world);
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0], shown[1]);
    let registrations = world.authorizer.received();
    assert_eq!(registrations.len(), 2, "from receive and from /authorize");
    for registration in registrations {
        assert_eq!(token(registration.headers.get("authorization").map(|value| value.to_str().unwrap())), shown[0]);
        assert_eq!(registration.authorization_token(), PULL_SECRET, "the cluster's own token is in the body");
    }
    let said = issuer.introspect(&shown[0]).await;
    assert_eq!((&said["active"], &said["client_id"]), (&json!(true), &json!(CLIENT)), "{said}");
    let issued = issuer.events("issued");
    assert_eq!(issued.len(), 1);
    assert_eq!(issued[0]["audience"], "observatorium");

    let metric = async |series: &str| metric(&world.gateway, series).await;
    assert_eq!(metric(r#"client_api_requests_total{client="oauth",code="200",method="get"}"#).await, Some(1.0));
    assert_eq!(metric(r#"client_api_requests_total{client="oauth",code="200",method="post"}"#).await, Some(1.0));
    assert_eq!(metric(r#"infogw_oidc_token_refreshes_total{result="success"}"#).await, Some(1.0));
    assert_eq!(metric(r#"infogw_oidc_token_refreshes_total{result="error"}"#).await, Some(0.0));
    let issued_at = metric("infogw_oidc_token_issued_timestamp_seconds").await.unwrap();
    let expires_at = metric("infogw_oidc_token_expiry_timestamp_seconds").await.unwrap();
    assert_eq!(expires_at - issued_at, 600.0);
    assert!((issued_at - now() as f64 / 1000.0).abs() < 30.0);
    let logs = world.gateway.logs().join("\n");
    assert!(logs.contains("got a token") && !logs.contains(SECRET) && !logs.contains(&shown[0]), "{logs}");
}

#[tokio::test]
async fn without_an_issuer_none_is_shown() {
    let world = World::with(&["--oidc-issuer=", "--client-id=", "--client-secret=", "--oidc-audience="]).await;
    push(&world, "c1").await.expect_status(200);
    assert_eq!(world.forwarded().header("authorization"), None);
    assert!(world.authorizer.received()[0].headers.get("authorization").is_none());
    assert_eq!(metric(&world.gateway, "infogw_oidc_token_expiry_timestamp_seconds").await, None);

    // telemeter-server passes over the others, and its manifests may give them.
    let world = World::with(&["--oidc-issuer=", "--client-id=gateway", "--client-secret=hidden"]).await;
    world.gateway.wait_for_log("no --oidc-issuer: --client-id").await;
    push(&world, "c1").await.expect_status(200);
    assert_eq!(world.forwarded().header("authorization"), None);
}

#[tokio::test]
async fn the_secret_may_be_in_a_file_and_in_the_form() {
    let port = Port::new();
    let _issuer = Issuer::start(&port, &[("AUTH_METHOD", "client_secret_post")]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{SECRET}\n")).unwrap();
    let file = format!("--client-secret-file={}", file.path().display());
    let world = World::with(&["--oidc-issuer", &port.url(), "--client-id", CLIENT, &file]).await;
    push(&world, "c1").await.expect_status(200);
    assert_eq!(shown_upstream(&world).len(), 1);
}

#[tokio::test]
async fn the_issuer_may_have_an_authority_of_its_own() {
    let authority = Authority::new();
    let leaf = authority.server();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (crt, key) = (file("tls.crt", leaf.pem()), file("tls.key", leaf.key_pem()));
    let port = Port::new();
    let issuer = Issuer::start(&port, &[("TLS_CRT", &crt), ("TLS_KEY", &key)]).await;
    let trusting = world(&port.tls_url(), &[&format!("--oidc-tls-ca-crt={}", file("ca.crt", authority.pem()))]).await;
    push(&trusting, "c1").await.expect_status(200);
    assert_eq!(issuer.events("issued").len(), 1);

    let another = format!("--oidc-tls-ca-crt={}", file("another.crt", Authority::new().pem()));
    let wary = world(&port.tls_url(), &[&another]).await;
    let line = wary.gateway.wait_for_log("no new token").await;
    assert!(line.contains("invalid peer certificate"), "{line}");
    assert_unavailable(push(&wary, "c1").await, NO_AUTHORIZER);
    assert_eq!(issuer.events("issued").len(), 1);
}

#[tokio::test]
async fn one_token_serves_requests_that_come_at_once() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let world = Arc::new(world(&port.url(), &[]).await);
    let pushing = |n: usize| {
        let world = Arc::clone(&world);
        async move { push(&world, &format!("c{n}")).await }
    };
    for reply in (0..50).map(pushing).collect::<JoinSet<_>>().join_all().await {
        reply.expect_status(200);
    }
    assert_eq!(BTreeSet::from_iter(shown_upstream(&world)).len(), 1);
    assert_eq!(issuer.events("issued").len(), 1);
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[("TOKEN_SECONDS", "10")]).await;
    let world = world(&port.url(), &[]).await;
    for n in 1..=3 {
        issuer.wait_for(n, "issued").await;
        eventually("the token in use is the newest", async || {
            push(&world, "c1").await.expect_status(200);
            let tokens = BTreeSet::from_iter(shown_upstream(&world)).len();
            ensure(tokens >= n, || format!("{tokens} tokens"))
        })
        .await;
        let newest = shown_upstream(&world).pop().unwrap();
        assert_eq!(issuer.introspect(&newest).await["active"], true);
    }
}

#[tokio::test]
async fn an_issuer_that_dies_is_missed_once_the_token_expires() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[("TOKEN_SECONDS", "20")]).await;
    let world = world(&port.url(), &[]).await;
    push(&world, "c1").await.expect_status(200);
    drop(issuer);

    push(&world, "c1").await.expect_status(200);
    let lost = eventually("the token expires", async || {
        let reply = push(&world, "c1").await;
        ensure(reply.status == 503, || format!("{}", reply.status))?;
        Ok(reply)
    });
    assert_unavailable(lost.await, NO_TOKEN);
    let (forwarded, asked) = (world.upstream.received().len(), world.authorizer.received().len());
    assert_unavailable(push(&world, "c1").await, NO_TOKEN);
    assert_unavailable(world.gateway.authorize("c1", PULL_SECRET).await, NO_AUTHORIZER);
    assert_unavailable(push(&world, "new").await, NO_AUTHORIZER);
    assert_eq!(world.upstream.received().len(), forwarded, "nothing goes upstream without a token");
    assert_eq!(world.authorizer.received().len(), asked, "nor to the authorizer");
    http::get(&world.gateway.public("/healthz/ready")).await.expect_status(200);
    let rejections = r#"infogw_rejections_total{layer="forward",reason="credentials_unavailable",route="receive"}"#;
    assert!(metric(&world.gateway, rejections).await.unwrap() >= 2.0);

    let _issuer = Issuer::start(&port, &[]).await;
    eventually("it recovers by itself", async || {
        let reply = push(&world, "c1").await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
    world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200);
}

#[tokio::test]
async fn the_gateway_starts_while_its_issuer_is_down() {
    let port = Port::new();
    let world = world(&port.url(), &[]).await;
    world.gateway.wait_for_log("cannot be reached").await;
    http::get(&world.gateway.public("/healthz")).await.expect_status(200);
    http::get(&world.gateway.public("/healthz/ready")).await.expect_status(200);
    assert_unavailable(push(&world, "c1").await, NO_AUTHORIZER);
    assert_unavailable(world.gateway.authorize("c1", PULL_SECRET).await, NO_AUTHORIZER);
    assert_eq!(metric(&world.gateway, "infogw_oidc_token_expiry_timestamp_seconds").await, Some(0.0));
    world.assert_nothing_forwarded();
    assert!(world.authorizer.received().is_empty());

    let _issuer = Issuer::start(&port, &[]).await;
    eventually("it gets a token by itself", async || {
        let reply = push(&world, "c1").await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_token_that_the_upstream_refuses_is_replaced_once() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let world = world(&port.url(), &[]).await;
    push(&world, "c1").await.expect_status(200);
    let first = shown_upstream(&world).remove(0);
    let refused = format!("Bearer {first}");
    world.upstream.set_script(move |write| {
        Answer::status(if write.header("authorization") == Some(&refused) { 401 } else { 200 })
    });
    push(&world, "c1").await.expect_status(200);
    let shown = shown_upstream(&world);
    assert_eq!((shown.len(), &shown[1], shown[1] != shown[2]), (3, &first, true));
    let writes = world.upstream.received();
    assert_eq!(writes[1].body, writes[2].body);
    assert_eq!(issuer.events("issued").len(), 2);
}

#[tokio::test]
async fn an_upstream_that_refuses_every_token_makes_no_storm() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let world = Arc::new(world(&port.url(), &[]).await);
    world.upstream.set_script(|_| Answer::status(401));
    let refused = push(&world, "c1").await.expect_status(502);
    assert!(
        refused.retry_after().is_some() && refused.reason().contains("answered 401 to this gateway"),
        "{refused:?}"
    );
    assert_eq!(world.upstream.received().len(), 2, "one attempt, one more with another token");
    assert_eq!(issuer.events("issued").len(), 2);

    let pushing = |n: usize| {
        let world = Arc::clone(&world);
        async move { push(&world, &format!("c{n}")).await }
    };
    for reply in (0..30).map(pushing).collect::<JoinSet<_>>().join_all().await {
        reply.expect_status(502);
    }
    // All that came within ten seconds of the replacement were sent once; this machine may be slower than that.
    let (issued, sent) = (issuer.events("issued").len(), world.upstream.received().len());
    assert!(issued <= 3, "{issued} tokens for 31 requests");
    assert!(sent == 32 || issued == 3, "{sent} attempts with {issued} tokens");
}

#[tokio::test]
async fn bad_cluster_tokens_make_no_calls_to_the_issuer() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[]).await;
    let world = world(&port.url(), &[]).await;
    world.authorizer.set_script(|_| Answer::json(401, &json!({ "kind": "Error" })));
    for n in 0..20 {
        push(&world, &format!("c{n}")).await.expect_status(401);
        world.gateway.authorize(&format!("c{n}"), PULL_SECRET).await.expect_status(401);
    }
    assert_eq!(issuer.events("issued").len(), 1);
    assert_eq!(world.authorizer.received().len(), 40, "each is asked about once");
}

#[tokio::test]
async fn a_401_of_the_authorizers_about_us_is_answered_with_another_token() {
    for about_us in [
        Answer::json(401, &json!({})).header("www-authenticate", r#"Bearer error="invalid_token""#),
        Answer::html(401, "<h1>Jwt is expired</h1>"),
    ] {
        let port = Port::new();
        let issuer = Issuer::start(&port, &[]).await;
        let world = world(&port.url(), &[]).await;
        push(&world, "c1").await.expect_status(200);
        let refused = format!("Bearer {}", shown_upstream(&world)[0]);
        let answer = about_us.clone();
        world.authorizer.set_script(move |registration| {
            if registration.headers["authorization"] == *refused {
                answer.clone()
            } else {
                authorizer::grant(registration)
            }
        });
        push(&world, "c2").await.expect_status(200);
        assert_eq!(world.authorizer.received().len(), 3);
        assert_eq!(issuer.events("issued").len(), 2);

        // Once more at most in ten seconds, whatever comes.
        world.authorizer.set_script(move |_| about_us.clone());
        for n in 0..10 {
            // Nobody's data is dropped for a token of ours, and no grant taken back.
            let reply = world.gateway.authorize(&format!("d{n}"), PULL_SECRET).await.expect_status(503);
            assert!(reply.retry_after().is_some(), "{reply:?}");
            push(&world, "c1").await.expect_status(200);
        }
        assert!(issuer.events("issued").len() <= 3);
    }
}

#[tokio::test]
async fn a_wrong_secret_is_told_in_the_log_and_not_to_senders() {
    let port = Port::new();
    let issuer = Issuer::start(&port, &[("CLIENT_SECRET", "another-one")]).await;
    let world = world(&port.url(), &[]).await;
    let line = world.gateway.wait_for_log("no new token").await;
    assert!(line.starts_with("level=warn ") && line.contains("the issuer refuses a token: invalid_client"), "{line}");
    assert!(line.contains(&format!("issuer={}", port.url())) && line.contains("retry_in="), "{line}");
    assert_unavailable(push(&world, "c1").await, NO_AUTHORIZER);
    issuer.wait_for(3, "refused").await;
    let errors = metric(&world.gateway, r#"infogw_oidc_token_refreshes_total{result="error"}"#).await.unwrap();
    assert!(errors >= 2.0, "{errors}");
    let logs = world.gateway.logs().join("\n");
    assert!(!logs.contains(SECRET) && !logs.contains("another-one"), "{logs}");
    assert!(issuer.events("issued").is_empty());
}

/// An issuer that a real one would not be: it answers its configuration and its tokens by these.
async fn fake(
    configuration: impl Fn(Value) -> Answer + Send + Sync + 'static,
    token: impl Fn() -> Answer + Send + Sync + 'static,
) -> Server<Received> {
    Server::start(move |request: &Received| match request.uri.path() {
        "/.well-known/openid-configuration" => {
            let issuer = format!("http://{}", request.headers["host"].to_str().unwrap());
            configuration(json!({ "issuer": issuer, "token_endpoint": format!("{issuer}/token") }))
        }
        _ => token(),
    })
    .await
}

fn a_token() -> Answer {
    Answer::json(200, &json!({ "access_token": "t", "token_type": "Bearer", "expires_in": 300 }))
}

#[tokio::test]
async fn an_issuer_that_misbehaves_is_one_that_is_down() {
    type Script = Box<dyn Fn(Value) -> Answer + Send + Sync>;
    type Case = (Script, fn() -> Answer, &'static str);
    let well: fn() -> Script = || Box::new(|configuration| Answer::json(200, &configuration));
    let another: Script = Box::new(|mut configuration| {
        configuration["issuer"] = json!("https://issuer.example");
        Answer::json(200, &configuration)
    });
    let huge = || Answer::body(200, "application/json", "[".repeat(1 << 20));
    let cases: Vec<Case> = vec![
        (another, a_token, "is that of `https://issuer.example`"),
        (Box::new(move |_| huge()), a_token, "configuration answer is longer than 65536 bytes"),
        (Box::new(|_| Answer::html(200, "<h1>Welcome</h1>")), a_token, "configuration answer makes no sense"),
        (Box::new(|_| Answer::status(302).header("location", "http://127.0.0.1:1/")), a_token, "endpoint answered 302"),
        (Box::new(|_| Answer::Close), a_token, "cannot be reached"),
        (well(), || Answer::body(200, "application/json", "[".repeat(1 << 20)), "token answer is longer than"),
        (well(), || Answer::html(503, "<h1>Sorry</h1>"), "token endpoint answered 503"),
        (well(), || Answer::json(200, &json!({ "access_token": "t\r\nx: y", "token_type": "Bearer" })), "in a header"),
        (well(), || Answer::Close, "cannot be reached"),
    ];
    for (configuration, token, says) in cases {
        let issuer = fake(configuration, token).await;
        let world = world(&issuer.url_of(""), &[]).await;
        let line = world.gateway.wait_for_log("no new token").await;
        assert!(line.contains(says), "{line}");
        assert_unavailable(push(&world, "c1").await, NO_AUTHORIZER);
        world.assert_nothing_forwarded();
    }
}

#[tokio::test]
async fn nobody_waits_long_for_an_issuer_that_hangs() {
    let issuer = fake(|_| Answer::Hang, a_token).await;
    let world = world(&issuer.url_of(""), &[]).await;
    issuer.wait_for(1).await;
    let started = std::time::Instant::now();
    assert_unavailable(push(&world, "c1").await, NO_AUTHORIZER);
    let waited = started.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(10)).contains(&waited), "{waited:?}");
    assert_eq!(issuer.received().len(), 1);
}

#[tokio::test]
async fn a_token_of_unknown_life_is_used_for_some_minutes() {
    let issuer = fake(
        |configuration| Answer::json(200, &configuration),
        || Answer::json(200, &json!({ "access_token": "t0ken", "token_type": "bearer" })),
    )
    .await;
    let world = world(&issuer.url_of(""), &[]).await;
    push(&world, "c1").await.expect_status(200);
    assert_eq!(shown_upstream(&world), ["t0ken"]);
    let issued_at = metric(&world.gateway, "infogw_oidc_token_issued_timestamp_seconds").await.unwrap();
    let expires_at = metric(&world.gateway, "infogw_oidc_token_expiry_timestamp_seconds").await.unwrap();
    assert_eq!(expires_at - issued_at, 300.0);
}

#[tokio::test]
async fn a_wrong_flag_is_one_line_and_64() {
    const ISSUER: &str = "--oidc-issuer=http://localhost/";
    let empty = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(empty.path(), "\n").unwrap();
    let empty = format!("--client-secret-file={}", empty.path().display());
    for (flags, says) in [
        (&[ISSUER][..], "--oidc-issuer needs --client-id"),
        (&[ISSUER, "--client-id="], "--oidc-issuer needs --client-id"),
        (&[ISSUER, "--client-id=a"], "--oidc-issuer needs --client-secret-file or --client-secret"),
        (&[ISSUER, "--client-id=a", "--client-secret="], "--oidc-issuer needs --client-secret-file or --client-secret"),
        (
            &[ISSUER, "--client-id=a", "--client-secret=hidden", "--client-secret-file=/dev/null"],
            "--client-secret and --client-secret-file exclude each other",
        ),
        (
            &[ISSUER, "--client-id=a", "--client-secret-file=/nonexistent"],
            "--client-secret-file: /nonexistent: No such",
        ),
        (&[ISSUER, "--client-id=a", &empty], "holds no secret"),
        (&["--oidc-tls-ca-crt=c"], "--oidc-tls-ca-crt is of no use without --oidc-issuer"),
        (&[&empty], "--client-secret-file is of no use without --oidc-issuer"),
        (
            &[ISSUER, "--client-id=a", "--client-secret=hidden", "--oidc-tls-ca-crt=c"],
            "--oidc-tls-ca-crt: this is for an https:// --oidc-issuer, and there is none",
        ),
        (&["--oidc-issuer=issuer", "--client-id=a", "--client-secret=hidden"], "--oidc-issuer: `issuer`: an issuer is"),
        (&["--oidc-issuer=http://a/?b", "--client-id=a", "--client-secret=hidden"], "without user, query and fragment"),
        (&["--oidc-issuer=http://u:hidden@a/", "--client-id=a"], "--oidc-issuer: the value: an issuer is"),
    ] {
        let good = ["--authorize=http://localhost/", "--forward-url=http://localhost/"];
        let exit = Gateway::run_to_exit(good.iter().chain(flags)).await;
        assert_eq!((exit.code(), exit.stderr.lines().count()), (64, 1), "{flags:?}: {exit:?}");
        assert!(exit.stderr.contains(says) && !exit.stderr.contains("hidden"), "{flags:?}: {exit:?}");
    }
}

/// The composite token is taken by its own header; here it must not get past the gateway.
#[tokio::test]
async fn the_clients_own_token_goes_nowhere() {
    let port = Port::new();
    let _issuer = Issuer::start(&port, &[]).await;
    let world = world(&port.url(), &[]).await;
    let composite = composite_token(PULL_SECRET, "c1");
    let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
    world.gateway.receive(&composite, body).await.expect_status(200);
    let write = world.forwarded();
    assert_eq!(write.headers.get_all("authorization").iter().count(), 1);
    assert!(!format!("{write:?}").contains(&composite));
}
