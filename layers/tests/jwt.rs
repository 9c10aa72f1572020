//! Issued tokens are accepted, forged, damaged and outdated ones are not, and other implementations agree.
#![cfg(feature = "jwt")]
#![allow(clippy::unwrap_used)]

#[path = "jwt/fixtures.rs"]
mod fixtures;
#[path = "jwt/refused.rs"]
mod refused;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use infogw_layers::authorize::jwt::{
    AUDIENCE, Algorithm, Claims, ISSUER, KeyError, MAX_TOKEN_BYTES, SignError, SigningKey, TokenError, TokenSigner,
    TokenVerifier,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const KEYS: [(Algorithm, &str, &str); 4] = [
    (Algorithm::Rs256, fixtures::RSA_PKCS1, fixtures::RSA_PKCS8),
    (Algorithm::Es256, fixtures::P256_SEC1, fixtures::P256_PKCS8),
    (Algorithm::Es384, fixtures::P384_SEC1, fixtures::P384_PKCS8),
    (Algorithm::Es512, fixtures::P521_SEC1, fixtures::P521_PKCS8),
];

/// What the tests take for the present, in seconds since the epoch.
const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn key(pem: &str) -> SigningKey {
    SigningKey::from_pem_or_der(pem.as_bytes()).unwrap()
}

/// The contents of the last block.
fn der(pem: &str) -> Vec<u8> {
    let (_, last) = pem.rsplit_once("-----BEGIN ").unwrap();
    let base64: String = last.lines().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(base64).unwrap()
}

fn verifier(pems: &[&str]) -> TokenVerifier {
    TokenVerifier::new(pems.iter().map(|pem| key(pem).verifying_key()).collect())
}

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("_id".to_owned(), "c1".to_owned()), ("größe".to_owned(), "\"\\\n\u{1f980}".to_owned())])
}

fn issue(pem: &str) -> String {
    TokenSigner::new(key(pem)).sign("account-7", &labels(), HOUR, at(NOW)).unwrap()
}

fn issued_claims() -> Claims {
    Claims { subject: "account-7".to_owned(), labels: labels(), not_before: Some(at(NOW)), expires_at: at(NOW) + HOUR }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "account-7", "iat": NOW, "nbf": NOW, "exp": NOW + 3_600,
        "telemeter.openshift.io": {"labels": {"_id": "c1"}}})
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn part(token: &str, index: usize) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(token.split('.').nth(index).unwrap()).unwrap()
}

// Keys

#[test]
fn every_form_of_every_key_signs_what_every_other_form_verifies() {
    for (algorithm, traditional, pkcs8) in KEYS {
        let forms = [traditional.as_bytes(), pkcs8.as_bytes(), &der(traditional), &der(pkcs8)];
        for signing in forms {
            let signing = SigningKey::from_pem_or_der(signing).unwrap();
            assert_eq!(signing.algorithm(), algorithm);
            let token = TokenSigner::new(signing).sign("account-7", &labels(), HOUR, at(NOW)).unwrap();
            for verifying in forms {
                let verifying = SigningKey::from_pem_or_der(verifying).unwrap().verifying_key();
                assert_eq!(verifying.algorithm(), algorithm);
                assert_eq!(TokenVerifier::new(vec![verifying]).verify(&token, at(NOW)), Ok(issued_claims()));
            }
        }
    }
}

#[test]
fn a_key_is_found_among_other_blocks_and_under_the_wrong_name() {
    let (public, private) = (fixtures::P256_PUBLIC, fixtures::P256_SEC1);
    let windows = private.replace('\n', "\r\n");
    let misnamed = fixtures::RSA_PKCS8.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let no_end_of_line = private.trim_end();
    for (pem, algorithm) in [
        (format!("some words\n{public}{private}"), Algorithm::Es256),
        (windows, Algorithm::Es256),
        (no_end_of_line.to_owned(), Algorithm::Es256),
        (misnamed, Algorithm::Rs256),
    ] {
        assert_eq!(key(&pem).algorithm(), algorithm);
    }
}

#[test]
fn a_sec1_key_that_leaves_its_curve_out_is_told_by_its_size() {
    for (scalar, algorithm) in [(32_u8, Algorithm::Es256), (48, Algorithm::Es384), (66, Algorithm::Es512)] {
        let mut der = vec![0x30, scalar + 5, 2, 1, 1, 4, scalar, 1];
        der.resize(usize::from(scalar) + 7, 0x5a);
        assert_eq!(SigningKey::from_pem_or_der(&der).unwrap().algorithm(), algorithm);
    }
}

#[test]
fn other_keys_are_refused_and_the_reason_names_what_to_give() {
    let ec = der(fixtures::P256_SEC1);
    let damaged_base64 = fixtures::P256_SEC1.replace("MHcCAQEE", "MHcC!QEE");
    let mut other_scalar = ec.clone();
    other_scalar[10] ^= 1;
    let no_end = fixtures::P256_PKCS8.replace("-----END", "");
    let cases: [(&[u8], KeyError); 17] = [
        (b"", KeyError::Missing),
        (b"secret", KeyError::Missing),
        (b"-----BEGIN ", KeyError::Missing),
        (fixtures::P256_PUBLIC.as_bytes(), KeyError::Missing),
        (&der(fixtures::P256_PUBLIC), KeyError::Missing),
        (damaged_base64.as_bytes(), KeyError::Missing),
        (no_end.as_bytes(), KeyError::Missing),
        (fixtures::ENCRYPTED_SEC1.as_bytes(), KeyError::Encrypted),
        (fixtures::ENCRYPTED_PKCS8.as_bytes(), KeyError::Encrypted),
        (fixtures::ED25519_PKCS8.as_bytes(), KeyError::Unsupported),
        (fixtures::P224_PKCS8.as_bytes(), KeyError::Unsupported),
        (fixtures::SECP256K1_SEC1.as_bytes(), KeyError::Unsupported),
        (&ec[..ec.len() - 1], KeyError::Unsupported),
        (&other_scalar, KeyError::Unsupported),
        (fixtures::RSA_1024_PKCS1.as_bytes(), KeyError::RsaSize),
        (fixtures::RSA_1024_PKCS8.as_bytes(), KeyError::RsaSize),
        (&der(fixtures::RSA_1024_PKCS8), KeyError::RsaSize),
    ];
    for (data, expected) in cases {
        let error = SigningKey::from_pem_or_der(data).unwrap_err();
        assert_eq!(error, expected, "{}", String::from_utf8_lossy(data));
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn debug_shows_the_algorithm_and_no_key() {
    for (algorithm, _, pem) in KEYS {
        let signing = key(pem);
        assert_eq!(format!("{signing:?}"), format!("SigningKey {{ algorithm: {algorithm:?}, .. }}"));
        assert_eq!(
            format!("{:?}", signing.verifying_key()),
            format!("VerifyingKey {{ algorithm: {algorithm:?}, .. }}")
        );
    }
}

#[test]
fn generated_keys_differ() {
    let (one, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    assert_eq!(one.algorithm(), Algorithm::Es256);
    let others = TokenVerifier::new(vec![other.verifying_key()]);
    let both = TokenVerifier::new(vec![other.verifying_key(), one.verifying_key()]);
    let token = TokenSigner::new(one).sign("account-7", &labels(), HOUR, at(NOW)).unwrap();
    assert_eq!(others.verify(&token, at(NOW)), Err(TokenError::Signature));
    assert_eq!(both.verify(&token, at(NOW)), Ok(issued_claims()), "keys are rotated by giving both");
}

// Issuing

#[test]
fn the_header_and_the_claims_are_the_contracts() {
    for (algorithm, _, pem) in KEYS {
        let token = issue(pem);
        let header: Value = serde_json::from_slice(&part(&token, 0)).unwrap();
        assert_eq!(header, json!({"alg": algorithm.name(), "typ": "JWT"}));
        let claims: Value = serde_json::from_slice(&part(&token, 1)).unwrap();
        assert_eq!(
            claims,
            json!({
                "iss": "telemeter.selfsigned", "aud": "telemeter-client", "sub": "account-7",
                "iat": NOW, "nbf": NOW, "exp": NOW + 3_600,
                "telemeter.openshift.io": {"labels": labels()},
            })
        );
    }
}

#[test]
fn dates_are_whole_seconds() {
    let now = at(NOW) + Duration::from_millis(700);
    let token =
        TokenSigner::new(key(fixtures::P256_SEC1)).sign("a", &labels(), Duration::from_millis(1_500), now).unwrap();
    let claims: Value = serde_json::from_slice(&part(&token, 1)).unwrap();
    assert_eq!((&claims["iat"], &claims["nbf"], &claims["exp"]), (&json!(NOW), &json!(NOW), &json!(NOW + 2)));
}

#[test]
fn a_token_that_no_verifier_would_take_is_not_issued() {
    let signer = TokenSigner::new(key(fixtures::P256_SEC1));
    let sign = |subject: &str, lifetime, now| signer.sign(subject, &BTreeMap::new(), lifetime, now);
    assert_eq!(sign("a", HOUR, UNIX_EPOCH - HOUR), Err(SignError::Date));
    assert_eq!(sign("a", Duration::MAX, at(NOW)), Err(SignError::Date));
    assert_eq!(sign("a", Duration::from_secs(300_000_000_000), at(NOW)), Err(SignError::Date));
    assert_eq!(sign(&"a".repeat(MAX_TOKEN_BYTES), HOUR, at(NOW)), Err(SignError::TooLong));

    let longest = (1..MAX_TOKEN_BYTES).rev().step_by(16).find_map(|size| sign(&"a".repeat(size), HOUR, at(NOW)).ok());
    let longest = longest.unwrap();
    assert!(longest.len() > MAX_TOKEN_BYTES - 64, "{}", longest.len());
    assert!(verifier(&[fixtures::P256_SEC1]).verify(&longest, at(NOW)).is_ok());
}

// Damage

#[test]
fn no_single_bit_can_be_flipped() {
    for (algorithm, _, pem) in KEYS {
        let (token, verifier) = (issue(pem), verifier(&[pem]));
        // All of them once; of the slow algorithms the last characters, where base64 has bits to spare.
        let start = if algorithm == Algorithm::Es256 { 0 } else { token.len() - 4 };
        for byte in start..token.len() {
            for bit in 0..8 {
                let mut flipped = token.clone().into_bytes();
                flipped[byte] ^= 1 << bit;
                if let Ok(flipped) = String::from_utf8(flipped) {
                    assert!(verifier.verify(&flipped, at(NOW)).is_err(), "{algorithm:?}: byte {byte}, bit {bit}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_single_bit_of_any_algorithm_can_be_flipped(
        which in 0..KEYS.len(),
        at_byte: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let pem = KEYS[which].2;
        let mut flipped = issue(pem).into_bytes();
        let byte = at_byte.index(flipped.len());
        flipped[byte] ^= 1 << bit;
        if let Ok(flipped) = String::from_utf8(flipped) {
            prop_assert!(verifier(&[pem]).verify(&flipped, at(NOW)).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_key(
        data: Vec<u8>,
        prefix in r"|-----BEGIN (EC |RSA |)PRIVATE KEY-----\n|0.\x02\x01[\x00\x01]",
    ) {
        prop_assert!(SigningKey::from_pem_or_der(&[prefix.as_bytes(), &data].concat()).is_err());
    }

    #[test]
    fn whatever_is_issued_is_accepted(
        subject in r"\PC{0,40}",
        labels in prop::collection::btree_map(".{0,20}", ".{0,20}", 0..8),
        lifetime in 0..100_000_u64,
        now in 0..200_000_000_000_u64,
    ) {
        let signer = TokenSigner::new(key(fixtures::P256_SEC1));
        let token = signer.sign(&subject, &labels, Duration::from_secs(lifetime), at(now)).unwrap();
        let expected = Claims { subject, labels, not_before: Some(at(now)), expires_at: at(now + lifetime) };
        prop_assert_eq!(verifier(&[fixtures::P256_SEC1]).verify(&token, at(now)), Ok(expected));
    }
}

// Other implementations

#[test]
fn jsonwebtoken_accepts_ours_and_we_accept_its() {
    use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};

    for (algorithm, name) in [
        (Algorithm::Rs256, jsonwebtoken::Algorithm::RS256),
        (Algorithm::Es256, jsonwebtoken::Algorithm::ES256),
        (Algorithm::Es384, jsonwebtoken::Algorithm::ES384),
    ] {
        let (_, _, pem) = KEYS.into_iter().find(|(one, ..)| *one == algorithm).unwrap();
        let (encoding, decoding) = if algorithm == Algorithm::Rs256 {
            let public = RsaKeyPair::from_pkcs8(&der(pem)).unwrap().public_key().as_ref().to_vec();
            (EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), DecodingKey::from_rsa_der(&public))
        } else {
            let curve = match algorithm {
                Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
                _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
            };
            let public = EcdsaKeyPair::from_pkcs8(curve, &der(pem)).unwrap().public_key().as_ref().to_vec();
            (EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(), DecodingKey::from_ec_der(&public))
        };

        // It reads the system's clock, so this one test does too.
        let now = SystemTime::now();
        let ours = TokenSigner::new(key(pem)).sign("account-7", &labels(), HOUR, now).unwrap();
        let mut validation = Validation::new(name);
        validation.validate_nbf = true;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp", "nbf"]);
        let theirs = jsonwebtoken::decode::<Value>(&ours, &decoding, &validation).unwrap();
        assert_eq!(theirs.claims["telemeter.openshift.io"]["labels"], json!(labels()), "{name:?}");

        let theirs = jsonwebtoken::encode(&Header::new(name), &claims(), &encoding).unwrap();
        assert_eq!(verifier(&[pem]).verify(&theirs, at(NOW)).unwrap().subject, "account-7", "{name:?}");
    }
}

#[test]
fn tokens_of_telemeter_server_are_accepted() {
    let issued = at(fixtures::TELEMETER_SERVER_NOW);
    for ((algorithm, _, pem), token) in KEYS.into_iter().zip(fixtures::TELEMETER_SERVER_TOKENS) {
        let expected = Claims {
            subject: "account-7".to_owned(),
            labels: BTreeMap::from([("_id".to_owned(), "c1".to_owned())]),
            not_before: Some(issued),
            expires_at: issued + 24 * HOUR,
        };
        assert_eq!(verifier(&[pem]).verify(token, issued), Ok(expected), "{algorithm:?}");
    }
}

#[test]
fn keys_are_rotated_under_signers_and_verifiers_at_work() {
    let [a, b] = [fixtures::P256_PKCS8, fixtures::RSA_PKCS8];
    let (signer, verifier) = (TokenSigner::new(key(a)), verifier(&[a]));
    let (other_signer, other_verifier) = (signer.clone(), verifier.clone());
    let sign = || other_signer.sign("account-7", &labels(), HOUR, at(NOW)).unwrap();
    let verify = |token: &str| other_verifier.verify(token, at(NOW)).map(drop);
    let put = |keys: &[&str]| {
        verifier.replace(keys.iter().map(|pem| key(pem).verifying_key()).collect());
        signer.replace(key(keys[0]));
    };
    let generation = verifier.generation();
    let by_a = sign();
    put(&[a, b]);
    let by_a_too = sign();
    put(&[b, a]);
    let by_b = sign();
    for token in [&by_a, &by_a_too, &by_b] {
        assert_eq!(verify(token), Ok(()));
    }
    put(&[b]);
    assert_eq!(verify(&by_a), Err(TokenError::Algorithm));
    assert_eq!(verify(&by_a_too), Err(TokenError::Algorithm));
    assert_eq!(verify(&by_b), Ok(()));
    assert_eq!((generation, other_verifier.generation()), (0, 3));
    assert_eq!(*other_verifier.keys(), [key(b).verifying_key()]);
}

#[test]
fn secrets_are_derived_from_the_key_whatever_file_it_is_in() {
    let mut secrets = std::collections::BTreeSet::new();
    for (_, one, other) in KEYS {
        let secret = key(one).derive_secret("cache");
        assert_eq!(secret, key(other).derive_secret("cache"));
        assert_eq!(secret, SigningKey::from_pem_or_der(&der(other)).unwrap().derive_secret("cache"));
        assert_eq!(secret, TokenSigner::new(key(one)).derive_secret("cache"));
        secrets.extend([secret, key(one).derive_secret("limits"), key(one).derive_secret("")]);
    }
    let generated = || SigningKey::generate().unwrap().derive_secret("cache");
    secrets.extend([generated(), generated()]);
    assert_eq!(secrets.len(), 14, "all of them differ");
}

/// Other replicas may be of another release: what is derived must not change.
#[test]
fn a_derived_secret_is_hmac_of_the_private_key() {
    // The private scalar stands in SEC1 (RFC 5915) behind 30 77 02 01 01 04 20.
    let sec1 = der(fixtures::P256_SEC1);
    assert_eq!(sec1[..7], [0x30, 0x77, 2, 1, 1, 4, 0x20]);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &sec1[7..39]);
    let expected = aws_lc_rs::hmac::sign(&key, b"cache");
    assert_eq!(self::key(fixtures::P256_PKCS8).derive_secret("cache"), expected.as_ref());
}
