//! Tokens at `/upload`: what one gateway issues holds at another with the same key, and nobody else's does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Keys of every kind.
#[allow(dead_code)]
#[path = "../layers/tests/jwt/fixtures.rs"]
mod fixtures;
mod support;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hyper::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header, decode, encode};
use serde_json::{Value, json};
use support::{
    Reply, World,
    world::{TEXT, now, spelt},
};
use tempfile::NamedTempFile;

#[tokio::test]
async fn a_token_of_one_gateway_holds_at_another_with_the_same_key() {
    let key = key();
    let shared = ["--shared-key", key.path().to_str().unwrap()];
    let (one, other, stranger) = (World::with(&shared).await, World::with(&shared).await, World::start().await);
    let token = one.token("c1").await;
    upload(&other, &token).await.expect_status(200);
    assert_eq!(spelt(&other.forwarded()), [r#"up{_id="c1"}"#]);
    refused(&upload(&stranger, &token).await, "");
    stranger.assert_nothing_forwarded();
}

/// What telemeter's clients and servers read in it.
#[tokio::test]
async fn an_issued_token_says_what_the_contract_says() {
    let key = key();
    let world = World::with(&["--shared-key", key.path().to_str().unwrap(), "--required-label=env=prod"]).await;
    let before = now() / 1000;
    let token = world.token("c1").await;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    let issued = claims["iat"].as_i64().expect("iat is a number");
    assert!((before..=now() / 1000).contains(&issued), "{claims}");
    let expected = json!({
        "iss": "telemeter.selfsigned",
        "aud": "telemeter-client",
        "sub": "account-of-c1",
        "iat": issued,
        "nbf": issued,
        "exp": issued + 86_400,
        "telemeter.openshift.io": { "labels": { "_id": "c1", "env": "prod" } },
    });
    assert_eq!(claims, expected);

    // Another implementation verifies it.
    let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
    validation.set_audience(&["telemeter-client"]);
    let public = jsonwebtoken::DecodingKey::from_ec_pem(fixtures::P256_PUBLIC.as_bytes()).unwrap();
    decode::<Value>(&token, &public, &validation).expect("a valid token");
}

#[tokio::test]
async fn tokens_made_elsewhere_hold_if_they_are_right() {
    let key = key();
    let flags = ["--shared-key", key.path().to_str().unwrap(), "--ratelimit=0"];
    let world = World::with(&flags).await;
    let at = now() / 1000;
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    let good = [
        ("as it is", claims()),
        ("an array of audiences", with("aud", json!(["another", "telemeter-client"]))),
        ("expired within the leeway", with("exp", json!(at - 30))),
        ("not valid yet within the leeway", with("nbf", json!(at + 30))),
        ("issued within the leeway", with("iat", json!(at + 30))),
        ("a date that is not whole", with("exp", json!(at as f64 + 1.5))),
        ("more claims", with("jti", json!("x"))),
    ];
    for (case, claims) in good {
        let reply = upload(&world, &signed(&claims)).await;
        assert_eq!(reply.status, 200, "{case}: {reply:?}");
    }

    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let before = world.upstream.received().len();
    let bad = [
        ("another issuer", with("iss", json!("telemeter.other")), "issuer"),
        ("no issuer", without("iss"), "iss"),
        ("another audience", with("aud", json!("federate")), "audience"),
        ("other audiences", with("aud", json!(["federate"])), "audience"),
        ("no audience", without("aud"), "aud"),
        ("expired", with("exp", json!(at - 120)), "expired"),
        ("no end", without("exp"), "exp"),
        ("not valid yet", with("nbf", json!(at + 120)), "not valid yet"),
        ("issued in the future", with("iat", json!(at + 120)), "not valid yet"),
        ("no labels", without("telemeter.openshift.io"), "`_id`"),
        ("no cluster", with("telemeter.openshift.io", json!({ "labels": { "env": "prod" } })), "`_id`"),
        ("an empty cluster", with("telemeter.openshift.io", json!({ "labels": { "_id": "" } })), "`_id`"),
    ];
    for (case, claims, says) in bad {
        let reply = upload(&world, &signed(&claims)).await;
        assert_eq!(reply.status, 401, "{case}: {reply:?}");
        refused(&reply, says);
    }
    assert_eq!(world.upstream.received().len(), before, "nothing of it went upstream");
}

#[tokio::test]
async fn other_keys_and_algorithms_are_refused() {
    let key = key();
    let world = World::with(&["--shared-key", key.path().to_str().unwrap(), "--ratelimit=0"]).await;
    let public = fixtures::P256_PUBLIC.as_bytes();
    let hmac =
        |algorithm, secret| encode(&Header::new(algorithm), &claims(), &EncodingKey::from_secret(secret)).unwrap();
    let rsa = EncodingKey::from_rsa_pem(fixtures::RSA_PKCS1.as_bytes()).unwrap();
    let p384 = EncodingKey::from_ec_pem(fixtures::P384_PKCS8.as_bytes()).unwrap();
    let good = signed(&claims());
    let (signed_part, signature) = good.rsplit_once('.').unwrap();
    let unsigned = |alg: &str| format!("{}.{}", part(&json!({ "alg": alg, "typ": "JWT" })), part(&claims()));
    let mut tampered = claims();
    tampered["telemeter.openshift.io"] = json!({ "labels": { "_id": "c2" } });
    let header = good.split('.').next().unwrap();
    let stranger = World::start().await.token("c1").await;

    let bad = [
        ("HS256 with the public key for a secret", hmac(Algorithm::HS256, public)),
        ("HS256 with some secret", hmac(Algorithm::HS256, b"secret")),
        ("HS512", hmac(Algorithm::HS512, public)),
        ("RS256, for a key that is P-256", encode(&Header::new(Algorithm::RS256), &claims(), &rsa).unwrap()),
        ("ES384, for a key that is P-256", encode(&Header::new(Algorithm::ES384), &claims(), &p384).unwrap()),
        ("another P-256 key", stranger),
        ("none", format!("{}.", unsigned("none"))),
        ("None", format!("{}.", unsigned("None"))),
        ("none with a signature", format!("{}.{signature}", unsigned("none"))),
        ("ES256 without a signature", format!("{signed_part}.")),
        ("two parts", signed_part.to_owned()),
        ("tampered claims", format!("{header}.{}.{signature}", part(&tampered))),
        ("another spelling of the signature", format!("{good}=")),
        ("a part too many", format!("{good}.x")),
        ("too long", format!("{good}{}", "A".repeat(9000))),
    ];
    for (case, token) in bad {
        let reply = upload(&world, &token).await;
        assert_eq!(reply.status, 401, "{case}: {reply:?}");
        refused(&reply, "");
        assert!(!reply.text().contains(signature), "{case}: {reply:?}");
    }
    world.assert_nothing_forwarded();
    upload(&world, &good).await.expect_status(200);
}

/// Verifying is slow, so what was verified is kept, but no longer than the token lives.
#[tokio::test]
async fn a_verified_token_is_remembered_until_it_expires() {
    let key = key();
    let world = World::with(&["--shared-key", key.path().to_str().unwrap(), "--ratelimit=0"]).await;
    let reads = async || {
        let metrics = support::http::get(&world.gateway.internal("/metrics")).await;
        let read = |result: &str| {
            let line = format!("infogw_token_cache_reads_total{{result=\"{result}\"}} ");
            metrics.text().lines().find_map(|found| found.strip_prefix(line.as_str())).unwrap().parse::<u64>().unwrap()
        };
        (read("hit"), read("miss"))
    };
    // Its end, with the leeway, is five seconds away.
    let mut claims = claims();
    claims["exp"] = json!(now() / 1000 - 55);
    let token = signed(&claims);
    upload(&world, &token).await.expect_status(200);
    assert_eq!(reads().await, (0, 1));
    upload(&world, &token).await.expect_status(200);
    assert_eq!(reads().await, (1, 1));
    support::eventually("the token to expire", async || {
        let reply = upload(&world, &token).await;
        support::ensure(reply.status == 401, || format!("{reply:?}"))
    })
    .await;
}

/// A, then A and B, B and A, B alone: through its files, while the gateway runs. What it issues is verified elsewhere at each step, and
/// what is signed elsewhere is accepted there as long as its key is one of them.
#[tokio::test]
async fn keys_are_rotated_in_their_files() {
    let [a, b] = [Pair::new(), Pair::new()];
    let [first, second] = [file(&a.private), file(&a.private)];
    let [first_path, second_path] = [&first, &second].map(|file| file.path().to_str().unwrap().to_owned());
    let flags = ["--shared-key", &first_path, "--shared-key=", "--shared-key", &second_path, "--ratelimit=0"];
    let world = World::with(&flags).await;
    let [by_a, by_b] = [a.signed(&claims()), b.signed(&claims())];
    let accepted = async |token: &str| upload(&world, token).await.expect_status(200);
    let refused_now = async |token: &str| refused(&upload(&world, token).await, "signature");
    let keys = async |count: u64, reloads: u64| {
        support::eventually("new keys", async || {
            let found = metrics(&world).await;
            let found = (found("infogw_token_keys"), found(r#"infogw_token_key_reloads_total{result="success"}"#));
            // Two files that change one after the other may be seen twice.
            support::ensure(found.0 == count && found.1 >= reloads, || format!("{found:?}"))
        })
        .await;
    };

    keys(1, 0).await;
    let first_token = world.token("c1").await;
    assert!(a.verifies(&first_token) && !b.verifies(&first_token));
    accepted(&first_token).await;
    accepted(&by_a).await;
    refused_now(&by_b).await;

    std::fs::write(&second_path, &b.private).unwrap();
    keys(2, 1).await;
    let second_token = world.token("c1").await;
    assert!(a.verifies(&second_token));
    for token in [&first_token, &by_a, &second_token, &by_b] {
        accepted(token).await;
    }

    std::fs::write(&first_path, &b.private).unwrap();
    std::fs::write(&second_path, &a.private).unwrap();
    // B alone may be in force in between, with as many keys still counted: only what they do tells.
    let third_token = support::eventually("B to sign, and both to verify", async || {
        let token = world.token("c1").await;
        support::ensure(b.verifies(&token) && !a.verifies(&token), || format!("not signed by B: {token}"))?;
        let reply = upload(&world, &by_a).await;
        support::ensure(reply.status == 200, || format!("{reply:?}"))?;
        Ok(token)
    })
    .await;
    for token in [&first_token, &by_a, &second_token, &by_b, &third_token] {
        accepted(token).await;
    }

    // A broken file changes nothing.
    std::fs::write(&second_path, "-----BEGIN PRIVATE KEY-----\nno").unwrap();
    let logged = world.gateway.wait_for_log("the shared keys were not reloaded").await;
    assert!(logged.starts_with("level=error") && logged.contains("the old ones stay"), "{logged}");
    assert!(logged.contains(&second_path) && logged.contains("holds no private key"), "{logged}");
    accepted(&by_a).await;
    assert_eq!((metrics(&world).await)(r#"infogw_token_key_reloads_total{result="error"}"#), 1);

    // Tokens of a key that was removed end with it, also those that were verified before.
    std::fs::write(&second_path, &b.private).unwrap();
    keys(1, 3).await;
    for token in [&first_token, &by_a, &second_token] {
        refused_now(token).await;
    }
    for token in [&by_b, &third_token, &world.token("c1").await] {
        accepted(token).await;
    }
}

#[tokio::test]
async fn sighup_reads_the_keys_again() {
    let [a, b] = [Pair::new(), Pair::new()];
    // A link to elsewhere: the system tells nothing of it.
    let (here, elsewhere) = (tempfile::tempdir().unwrap(), file(&a.private));
    let path = here.path().join("key.pem");
    std::os::unix::fs::symlink(elsewhere.path(), &path).unwrap();
    let world = World::with(&["--shared-key", path.to_str().unwrap()]).await;
    std::fs::write(elsewhere.path(), &b.private).unwrap();
    let told = std::time::Instant::now();
    world.gateway.signal("HUP").await;
    world.gateway.wait_for_log("msg=\"reloaded the shared keys\" keys=1").await;
    assert!(told.elapsed() < std::time::Duration::from_secs(10), "not by the signal");
    assert!(b.verifies(&world.token("c1").await));
}

#[tokio::test]
async fn without_a_key_there_is_one_that_stays() {
    let world = World::with(&["--ratelimit=0"]).await;
    let token = world.token("c1").await;
    let reload = Request::post(world.gateway.internal("/-/reload"));
    support::http::send(reload, Vec::new()).await.expect_status(200);
    upload(&world, &token).await.expect_status(200);
    assert_eq!((metrics(&world).await)("infogw_token_keys"), 1);
}

/// A key as another implementation has it.
struct Pair {
    private: String,
    public: String,
}

impl Pair {
    fn new() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        Pair { private: pair.serialize_pem(), public: pair.public_key_pem() }
    }

    fn signed(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ec_pem(self.private.as_bytes()).unwrap();
        encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
    }

    fn verifies(&self, token: &str) -> bool {
        let mut validation = jsonwebtoken::Validation::new(Algorithm::ES256);
        validation.set_audience(&["telemeter-client"]);
        let public = jsonwebtoken::DecodingKey::from_ec_pem(self.public.as_bytes()).unwrap();
        decode::<Value>(token, &public, &validation).is_ok()
    }
}

/// Reads one series of the metrics as they are now.
async fn metrics(world: &World) -> impl Fn(&str) -> u64 + use<> {
    let text = support::http::get(&world.gateway.internal("/metrics")).await.text().to_owned();
    move |series| {
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in {text}"))
    }
}

fn file(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

/// A file with the P-256 key.
fn key() -> NamedTempFile {
    let key = NamedTempFile::new().unwrap();
    std::fs::write(key.path(), fixtures::P256_PKCS8).unwrap();
    key
}

/// What `/authorize` says of the cluster `c1`.
fn claims() -> Value {
    let at = now() / 1000;
    json!({
        "iss": "telemeter.selfsigned",
        "aud": "telemeter-client",
        "sub": "account",
        "iat": at,
        "nbf": at,
        "exp": at + 3600,
        "telemeter.openshift.io": { "labels": { "_id": "c1" } },
    })
}

/// These claims, signed with the gateway's key by another implementation.
fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(fixtures::P256_PKCS8.as_bytes()).unwrap();
    encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
}

fn part(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

async fn upload(world: &World, token: &str) -> Reply {
    world.gateway.upload(token, TEXT, "", format!("up{{_id=\"c1\"}} 1 {}\n", now())).await
}

#[track_caller]
fn refused(reply: &Reply, says: &str) {
    assert_eq!((reply.status.as_u16(), reply.header("www-authenticate")), (401, Some("Bearer")), "{reply:?}");
    assert!(reply.reason().contains(says) && reply.reason().contains("/authorize"), "{says:?}: {reply:?}");
}
