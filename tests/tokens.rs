//! Tokens at `/upload`: what one gateway issues holds at another with the same key, and nobody else's does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Keys of every kind.
#[allow(dead_code)]
#[path = "../layers/tests/jwt/fixtures.rs"]
mod fixtures;
mod support;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
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
