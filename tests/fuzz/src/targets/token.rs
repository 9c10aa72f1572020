use std::{
    collections::BTreeMap,
    fmt,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD, prelude::BASE64_STANDARD};
use http::{HeaderValue, Request, header};
use infogw_layers::authorize::{
    BearerToken, CompositeToken, CredentialSource as _,
    jwt::{AUDIENCE, ISSUER, LEEWAY, MAX_TOKEN_BYTES, SigningKey, TokenSigner, TokenVerifier, read_unverified},
};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::NOW;
use crate::oracle::assert_one_line;

static OURS: LazyLock<(TokenSigner, TokenVerifier)> = LazyLock::new(|| {
    let key = SigningKey::generate().expect("the system has randomness");
    let verifier = TokenVerifier::new(vec![key.verifying_key()]);
    (TokenSigner::new(key), verifier)
});

/// Tokens. The first byte says what follows: a JWT, one's header and claims, a composite token's JSON, or a whole header.
pub fn token(data: &[u8]) {
    let Some((mode, input)) = data.split_first() else { return };
    match mode % 4 {
        0 => {
            if let Ok(token) = str::from_utf8(input) {
                jwt(token);
            }
        }
        1 => {
            // Header and claims, up to the first byte that JSON cannot hold.
            let (head, claims) = input.split_at(input.iter().position(|byte| *byte == 0xff).unwrap_or(0));
            let claims = claims.strip_prefix(b"\xff").unwrap_or(claims);
            let head = if head.is_empty() { br#"{"alg":"ES256"}"# } else { head };
            jwt(&format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims)));
            signed(claims);
        }
        2 => composite(&format!("Bearer {}", BASE64_STANDARD.encode(input)).into_bytes()),
        _ => composite(input),
    }
}

fn jwt(token: &str) {
    let now = SystemTime::UNIX_EPOCH + NOW;
    // Nobody but the one who has the key makes a signature.
    OURS.1.verify(token, now).expect_err("it was not signed");
    let Ok(claims) = read_unverified(token, now) else { return };
    assert!(token.len() <= MAX_TOKEN_BYTES);
    let parts: Vec<_> = token.split('.').collect();
    let [head, payload, _] = parts[..] else { panic!("{token}") };
    let json = |part: &str| -> Value {
        let part = URL_SAFE_NO_PAD.decode(part).expect("it is base64");
        serde_json::from_slice(&part).expect("it is JSON")
    };
    let (head, payload) = (json(head), json(payload));
    assert!(head["crit"] == Value::Null && head.get("crit").is_none());
    assert!(["RS256", "ES256", "ES384", "ES512"].iter().any(|alg| head["alg"] == *alg));
    assert_eq!(payload["iss"], ISSUER);
    let for_us = |aud: &Value| aud == AUDIENCE;
    assert!(for_us(&payload["aud"]) || payload["aud"].as_array().is_some_and(|all| all.iter().any(for_us)));
    assert_eq!(payload["sub"], *claims.subject);
    let labels: BTreeMap<String, String> = match &payload["telemeter.openshift.io"]["labels"] {
        Value::Object(labels) => {
            let label = |(name, value): (&String, &Value)| (name.clone(), value.as_str().expect("a string").to_owned());
            labels.iter().map(label).collect()
        }
        _ => BTreeMap::new(),
    };
    assert_eq!(claims.labels, labels);
    assert!(claims.expires_at + LEEWAY >= now);
    assert!(claims.not_before.is_none_or(|from| from <= now + LEEWAY));
}

/// What we sign we read, whatever it says.
fn signed(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    // Signing takes a thousand times as long as all else here.
    if bytes.iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte)) != 7 {
        return;
    }
    let now = SystemTime::UNIX_EPOCH + NOW;
    let mut words = text.split(',');
    let subject = words.next().unwrap_or_default();
    let labels: BTreeMap<_, _> = words
        .filter_map(|word| word.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let Ok(token) = OURS.0.sign(subject, &labels, Duration::from_secs(60), now) else { return };
    let claims = OURS.1.verify(&token, now).expect("we signed it");
    assert_eq!((claims.subject.as_str(), &claims.labels), (subject, &labels));
    // Whatever is changed about it, it is no longer ours.
    let at = text.len() % token.len();
    let mut broken = token.into_bytes();
    broken[at] ^= 1;
    if let Ok(broken) = str::from_utf8(&broken) {
        OURS.1.verify(broken, now).expect_err("it was changed");
    }
}

/// The authorizer gets the very bytes: any reader must see the same cluster and token in them as we.
fn composite(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let request = Request::builder().header(header::AUTHORIZATION, value).body(()).expect("it is a request");
    if let Err(rejection) = BearerToken.credential(&request) {
        assert_one_line(rejection);
    }
    let credential = match CompositeToken.credential(&request) {
        Ok(credential) => credential,
        Err(rejection) => return assert_one_line(rejection),
    };
    assert!(!format!("{credential:?}").contains("authorization_token"));
    let Named { clusters, tokens } = serde_json::from_slice(credential.body()).expect("it is a JSON object");
    assert_eq!(clusters, [credential.cluster().as_str()]);
    assert!(matches!(&tokens[..], [token] if !token.is_empty()), "{tokens:?}");
    assert_eq!(credential.field("AUTHORIZATION_TOKEN"), None);
}

/// What a JSON object has under keys that somebody may take for the two that count: to Go's reader case is nothing, in any
/// script.
#[derive(Default)]
struct Named {
    clusters: Vec<String>,
    tokens: Vec<String>,
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Named;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Named, M::Error> {
                let mut named = Named::default();
                while let Some(key) = map.next_key::<String>()? {
                    // The long s and the sign for kelvin are the letters that fold to one of ASCII.
                    match key.replace('\u{17f}', "s").replace('\u{212a}', "k").to_lowercase().as_str() {
                        "cluster_id" => named.clusters.push(map.next_value()?),
                        "authorization_token" => named.tokens.push(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(named)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
