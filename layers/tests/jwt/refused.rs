//! Tokens that were forged with the very key, or without it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use infogw_layers::authorize::jwt::{
    Claims, LEEWAY, MAX_TOKEN_BYTES, SigningKey, TokenError, TokenVerifier, read_unverified,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{HOUR, NOW, at, claims, der, encode, fixtures, issue, part, verifier};

/// Signs whatever it is given with the P-256 key.
fn forge(header: &str, payload: &str) -> String {
    forge_ec(&ECDSA_P256_SHA256_FIXED_SIGNING, header, payload)
}

fn forge_ec(algorithm: &'static EcdsaSigningAlgorithm, header: &str, payload: &str) -> String {
    let signed = format!("{}.{}", encode(header), encode(payload));
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, &der(fixtures::P256_PKCS8)).unwrap();
    let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(signature))
}

fn forge_rsa(padding: &'static dyn RsaEncoding, header: &str) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims().to_string()));
    let pair = RsaKeyPair::from_pkcs8(&der(fixtures::RSA_PKCS8)).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(padding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", encode(signature))
}

const ES256: &str = r#"{"alg":"ES256"}"#;

/// Good claims but for one.
fn claims_with(name: &str, value: impl Into<Value>) -> String {
    let mut claims = claims();
    claims[name] = value.into();
    claims.to_string()
}

fn claims_without(name: &str) -> String {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name).unwrap();
    claims.to_string()
}

/// What the holder of the P-256 key makes of a token. Whoever has no key makes the same of it, but for what it takes a key to tell.
fn verify(token: &str) -> Result<Claims, TokenError> {
    let verified = verifier(&[fixtures::P256_SEC1]).verify(token, at(NOW));
    if !matches!(verified, Err(TokenError::Signature | TokenError::Algorithm)) {
        assert_eq!(read_unverified(token, at(NOW)), verified, "{token}");
    }
    verified
}

#[test]
fn without_a_key_all_but_the_signature_is_told() {
    let [good, expired] = [claims().to_string(), claims_with("exp", NOW - 61)];
    let others = |payload: &str| {
        TokenVerifier::new(vec![SigningKey::generate().unwrap().verifying_key()])
            .verify(&forge(ES256, payload), at(NOW))
    };
    assert_eq!((others(&good), others(&expired)), (Err(TokenError::Signature), Err(TokenError::Signature)));
    assert_eq!(read_unverified(&forge(ES256, &good), at(NOW)), verify_claims(&good));
    assert_eq!(read_unverified(&forge(ES256, &expired), at(NOW)), Err(TokenError::Expired));
    for alg in ["RS256", "ES384", "ES512"] {
        let header = json!({ "alg": alg }).to_string();
        assert!(read_unverified(&forge(&header, &good), at(NOW)).is_ok(), "{alg}");
    }
    for alg in ["none", "HS256", "es256", ""] {
        let header = json!({ "alg": alg }).to_string();
        assert_eq!(read_unverified(&forge(&header, &good), at(NOW)), Err(TokenError::Algorithm), "{alg}");
    }
}

fn verify_header(header: &str) -> Result<Claims, TokenError> {
    verify(&forge(header, &claims().to_string()))
}

fn verify_claims(payload: &str) -> Result<Claims, TokenError> {
    verify(&forge(ES256, payload))
}

#[test]
fn headers_that_change_nothing_are_ignored() {
    let evil = SigningKey::generate().unwrap();
    for extra in [
        r#""typ":"JWT""#,
        r#""kid":"../../x""#,
        r#""kid":"' OR 1=1 --""#,
        r#""kid":{"a":1}"#,
        r#""jwk":{"kty":"oct","k":"AA"}"#,
        r#""jku":"http://127.0.0.1:1/keys","x5u":"http://127.0.0.1:1/x""#,
        r#""x5c":["AAAA"],"x5t":"AAAA""#,
    ] {
        let header = format!(r#"{{"alg":"ES256",{extra}}}"#);
        assert!(verify_header(&header).is_ok(), "{header}");
        let payload = claims().to_string();
        let mine = forge(&header, &payload);
        let others = TokenVerifier::new(vec![evil.verifying_key()]);
        assert_eq!(others.verify(&mine, at(NOW)), Err(TokenError::Signature), "{header}");
    }
}

#[test]
fn a_key_that_the_token_brings_along_is_not_used() {
    let evil = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = evil.public_key().as_ref();
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])});
    let header =
        json!({"alg": "ES256", "jwk": jwk, "x5c": [STANDARD.encode(evil.public_key().as_der().unwrap().as_ref())]});
    let signed = format!("{}.{}", encode(header.to_string()), encode(claims().to_string()));
    let signature = evil.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    assert_eq!(verify(&format!("{signed}.{}", encode(signature))), Err(TokenError::Signature));
}

#[test]
fn only_the_keys_own_algorithm_is_accepted() {
    for alg in ["none", "None", "nOnE", "", "es256", "ES256 ", "ES384", "RS256", "HS256", "PS256", "EdDSA", "ES256K"] {
        let header = json!({ "alg": alg }).to_string();
        assert_eq!(verify_header(&header), Err(TokenError::Algorithm), "{alg}");
        let signed = format!("{}.{}", encode(&header), encode(claims().to_string()));
        assert_eq!(verify(&format!("{signed}.")), Err(TokenError::Algorithm), "{alg}, unsigned");
    }
    for header in [r#"{"typ":"JWT"}"#, "{}", r#"{"alg":null}"#, r#"{"alg":["ES256"]}"#, r#"{"alg":1}"#, r#"["ES256"]"#]
    {
        assert_eq!(verify_header(header), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn a_public_key_is_no_hmac_secret() {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der(fixtures::P256_PKCS8)).unwrap();
    let spki = pair.public_key().as_der().unwrap();
    for secret in [pair.public_key().as_ref(), spki.as_ref(), fixtures::P256_PUBLIC.as_bytes()] {
        for (alg, expected) in [("HS256", TokenError::Algorithm), ("ES256", TokenError::Signature)] {
            let signed = format!("{}.{}", encode(json!({ "alg": alg }).to_string()), encode(claims().to_string()));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
            assert_eq!(verify(&format!("{signed}.{}", encode(tag))), Err(expected));
        }
    }
}

#[test]
fn rsa_and_ec_do_not_stand_in_for_each_other() {
    let rsa = verifier(&[fixtures::RSA_PKCS8]);
    let both = verifier(&[fixtures::P256_SEC1, fixtures::RSA_PKCS8]);
    let rs256 = r#"{"alg":"RS256"}"#;
    assert!(rsa.verify(&forge_rsa(&RSA_PKCS1_SHA256, rs256), at(NOW)).is_ok());
    assert!(both.verify(&forge_rsa(&RSA_PKCS1_SHA256, rs256), at(NOW)).is_ok());
    assert!(both.verify(&issue(fixtures::P256_SEC1), at(NOW)).is_ok());

    let cases = [
        (&rsa, forge_rsa(&RSA_PKCS1_SHA256, ES256), TokenError::Algorithm),
        (&rsa, forge_rsa(&RSA_PSS_SHA256, r#"{"alg":"PS256"}"#), TokenError::Algorithm),
        (&rsa, forge_rsa(&RSA_PSS_SHA256, rs256), TokenError::Signature),
        (&rsa, issue(fixtures::P256_SEC1), TokenError::Algorithm),
        (&both, forge_rsa(&RSA_PKCS1_SHA256, ES256), TokenError::Signature),
        (&both, forge(rs256, &claims().to_string()), TokenError::Signature),
        (&both, issue(fixtures::P384_SEC1), TokenError::Algorithm),
    ];
    for (index, (verifier, token, expected)) in cases.into_iter().enumerate() {
        assert_eq!(verifier.verify(&token, at(NOW)), Err(expected), "case {index}");
    }
    assert_eq!(TokenVerifier::new(Vec::new()).verify(&issue(fixtures::P256_SEC1), at(NOW)), Err(TokenError::Algorithm));
}

#[test]
fn critical_extensions_are_refused() {
    for crit in [r#"["exp"]"#, r#"["b64"],"b64":false"#, "[]", "null", "0"] {
        let header = format!(r#"{{"alg":"ES256","crit":{crit}}}"#);
        assert_eq!(verify_header(&header), Err(TokenError::Critical), "{header}");
    }
}

#[test]
fn a_signature_is_the_one_of_these_bytes_in_this_encoding() {
    let token = issue(fixtures::P256_SEC1);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let asn1 = forge_ec(&ECDSA_P256_SHA256_ASN1_SIGNING, ES256, &claims().to_string());
    let twice = forge(ES256, &claims().to_string());
    let (_, other_signature) = twice.rsplit_once('.').unwrap();
    for token in [
        format!("{signed}."),
        format!("{signed}.{other_signature}"),
        format!("{signed}.{}", encode(&signature[..63])),
        format!("{signed}.{}", encode([&*signature, &[0]].concat())),
        format!("{signed}.{}", encode([0; 64])),
        asn1,
    ] {
        assert_eq!(verify(&token), Err(TokenError::Signature), "{token}");
    }
}

#[test]
fn other_shapes_than_strict_compact_form_are_refused() {
    let token = forge(ES256, &claims().to_string());
    assert!(verify(&token).is_ok());
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
    let flattened = json!({"protected": header, "payload": payload, "signature": signature}).to_string();
    let general =
        json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]}).to_string();
    let polyglot =
        json!({"fake": format!(".{payload}."), "protected": header, "payload": payload, "signature": signature});
    let padded = URL_SAFE.encode(part(&token, 2));
    let standard = STANDARD_NO_PAD.encode([0xfb_u8; 64]);
    assert!(padded.ends_with('=') && standard.contains('+'));
    for token in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        format!("{header}.{payload}"),
        format!(".{payload}.{signature}"),
        format!("{token}."),
        format!("{token}.{signature}"),
        format!("{header}.{payload}.{signature}.{signature}.{signature}"),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{header}.{payload}.{padded}"),
        format!("{header}.{payload}.{standard}"),
        format!("{header}.{payload}.{}", encode([0; 1]).replace('A', "B")),
        format!("{header}\u{e9}.{payload}.{signature}"),
        flattened,
        general,
        polyglot.to_string(),
    ] {
        assert_eq!(verify(&token), Err(TokenError::Malformed), "{token}");
    }
}

#[test]
fn size_is_checked_before_anything_else() {
    assert_eq!(verify(&".".repeat(MAX_TOKEN_BYTES)), Err(TokenError::Malformed));
    assert_eq!(verify(&".".repeat(MAX_TOKEN_BYTES + 1)), Err(TokenError::TooLong));
    let large = forge(ES256, &claims_with("sub", "a".repeat(MAX_TOKEN_BYTES)));
    assert_eq!(verify(&large), Err(TokenError::TooLong));
}

#[test]
fn repeated_and_nested_json_is_refused() {
    for header in [
        r#"{"alg":"ES256","alg":"ES256"}"#,
        r#"{"alg":"none","\u0061lg":"ES256"}"#,
        r#"{"alg":"ES256","kid":"a","kid":"b"}"#,
        r#"{"alg":"ES256","jwk":{"x":1,"x":2}}"#,
        &format!(r#"{{"alg":"ES256","x":{}{}}}"#, "[".repeat(500), "]".repeat(500)),
        r#"{"alg":"ES256"} {}"#,
    ] {
        assert_eq!(verify_header(header), Err(TokenError::Malformed), "{header}");
    }
    let claims = claims().to_string();
    let claims = claims.strip_suffix('}').unwrap();
    for payload in [
        format!(r#"{claims},"sub":"account-8"}}"#),
        format!(r#"{claims},"x":1,"x":1}}"#),
        claims.replace(r#""_id":"c1""#, r#""_id":"c1","_id":"c2""#) + "}",
        format!(r#"{claims},"x":{}{}}}"#, "[".repeat(500), "]".repeat(500)),
        format!("[{claims}}}]"),
        "null".to_owned(),
        String::new(),
    ] {
        assert_eq!(verify_claims(&payload), Err(TokenError::Claims), "{payload}");
    }
}

#[test]
fn issuer_and_audience_are_the_contracts() {
    for iss in ["", "telemeter.selfsigned ", "Telemeter.selfsigned", "https://issuer"] {
        assert_eq!(verify_claims(&claims_with("iss", iss)), Err(TokenError::Issuer), "{iss}");
    }
    for aud in [json!("telemeter-client"), json!(["telemeter-client"]), json!(["a", "telemeter-client", "b"])] {
        assert!(verify_claims(&claims_with("aud", aud.clone())).is_ok(), "{aud}");
    }
    for aud in [json!(""), json!("telemeter"), json!("telemeter-client,a"), json!([]), json!(["a", "b"])] {
        assert_eq!(verify_claims(&claims_with("aud", aud.clone())), Err(TokenError::Audience), "{aud}");
    }
    for aud in [json!({"telemeter-client": 1}), json!(["telemeter-client", 1]), json!([["telemeter-client"]]), json!(1)]
    {
        assert_eq!(verify_claims(&claims_with("aud", aud.clone())), Err(TokenError::Claims), "{aud}");
    }
}

#[test]
fn required_claims_are_required_and_typed() {
    for name in ["iss", "aud", "sub", "exp"] {
        assert_eq!(verify_claims(&claims_without(name)), Err(TokenError::Claims), "{name}");
        assert_eq!(verify_claims(&claims_with(name, Value::Null)), Err(TokenError::Claims), "{name}");
        assert_eq!(verify_claims(&claims_with(name, json!({}))), Err(TokenError::Claims), "{name}");
    }
    for telemeter in
        [json!("c1"), json!({"labels": {"_id": 1}}), json!({"labels": {"_id": null}}), json!({"labels": "c1"})]
    {
        let payload = claims_with("telemeter.openshift.io", telemeter);
        assert_eq!(verify_claims(&payload), Err(TokenError::Claims), "{payload}");
    }
}

#[test]
fn optional_claims_are_optional() {
    assert_eq!(verify_claims(&claims_without("nbf")).unwrap().not_before, None);
    assert!(verify_claims(&claims_without("iat")).is_ok());
    let none = BTreeMap::new();
    assert_eq!(verify_claims(&claims_without("telemeter.openshift.io")).unwrap().labels, none);
    assert_eq!(verify_claims(&claims_with("telemeter.openshift.io", json!({}))).unwrap().labels, none);
}

#[test]
fn dates_have_a_leeway_to_the_second() {
    let leeway = LEEWAY.as_secs();
    for (name, last, first, error) in [
        ("exp", NOW - leeway, NOW - leeway - 1, TokenError::Expired),
        ("nbf", NOW + leeway, NOW + leeway + 1, TokenError::NotYetValid),
        ("iat", NOW + leeway, NOW + leeway + 1, TokenError::NotYetValid),
    ] {
        assert!(verify_claims(&claims_with(name, last)).is_ok(), "{name}");
        assert_eq!(verify_claims(&claims_with(name, first)), Err(error), "{name}");
    }
    let token = forge(ES256, &claims_with("exp", NOW));
    let late = at(NOW + leeway) + Duration::from_millis(1);
    assert_eq!(verifier(&[fixtures::P256_SEC1]).verify(&token, late), Err(TokenError::Expired));
    let before_1970 = UNIX_EPOCH - HOUR;
    assert_eq!(verifier(&[fixtures::P256_SEC1]).verify(&token, before_1970), Err(TokenError::NotYetValid));
}

#[test]
fn dates_are_numbers_in_range() {
    let with_exp =
        |exp: &str| claims().to_string().replace(&format!(r#""exp":{}"#, NOW + 3_600), &format!(r#""exp":{exp}"#));
    for (exp, expires_at) in [
        ("1800003600", at(NOW) + HOUR),
        ("1800003600.0", at(NOW) + HOUR),
        ("1.8000036e9", at(NOW) + HOUR),
        ("1800003600.5", at(NOW) + HOUR + Duration::from_millis(500)),
        ("253402300799", at(253_402_300_799)),
    ] {
        assert_eq!(verify_claims(&with_exp(exp)).unwrap().expires_at, expires_at, "{exp}");
    }
    for exp in [
        "-1",
        "-1e300",
        "253402300800",
        "9007199254740993",
        "9223372036854775807",
        "18446744073709551615",
        "1e19",
        "1e300",
        "1e400",
        "-1e400",
        "123456789012345678901234567890",
        "NaN",
        "Infinity",
        r#""1800003600""#,
        "true",
        "[1800003600]",
    ] {
        assert_eq!(verify_claims(&with_exp(exp)), Err(TokenError::Claims), "{exp}");
    }
    assert_eq!(verify_claims(&with_exp("0")), Err(TokenError::Expired));
    assert_eq!(verify_claims(&claims_with("nbf", -1)), Err(TokenError::Claims));
    assert_eq!(verify_claims(&claims_with("iat", 1e300)), Err(TokenError::Claims));
}

#[test]
fn every_reason_is_one_line_of_its_own_that_says_what_to_do() {
    let reasons = [
        TokenError::TooLong,
        TokenError::Malformed,
        TokenError::Critical,
        TokenError::Algorithm,
        TokenError::Signature,
        TokenError::Claims,
        TokenError::Issuer,
        TokenError::Audience,
        TokenError::Expired,
        TokenError::NotYetValid,
    ]
    .map(|error| error.to_string());
    assert!(reasons.iter().all(|reason| reason.lines().count() == 1 && reason.contains("/authorize")), "{reasons:?}");
    assert_eq!(HashSet::from(reasons.clone()).len(), reasons.len());
}

proptest! {
    #[test]
    fn arbitrary_strings_are_refused(token in r"\PC*|[A-Za-z0-9_.-]{0,400}|ey[A-Za-z0-9_-]{1,9}(\.[A-Za-z0-9_-]*){2}") {
        prop_assert!(verify(&token).is_err());
    }

    /// Signed, so that the parser of claims is reached.
    #[test]
    fn arbitrary_signed_parts_are_refused(
        header in r#"\{"alg":"ES256"(,"(crit|kid|alg)":(1|\[\]|"x"))?\}"#,
        payload in ".{0,200}",
    ) {
        prop_assert!(verify(&forge(&header, &payload)).is_err());
    }

    #[test]
    fn arbitrary_dates_never_panic(exp: f64, nbf: i64, iat: u64, now: u64) {
        let mut payload = claims();
        payload["exp"] = json!(exp.abs());
        payload["nbf"] = json!(nbf);
        payload["iat"] = json!(iat);
        let now = UNIX_EPOCH.checked_add(Duration::from_secs(now)).unwrap_or(at(NOW));
        if let Ok(claims) = verifier(&[fixtures::P256_SEC1]).verify(&forge(ES256, &payload.to_string()), now) {
            prop_assert!(now <= claims.expires_at + LEEWAY);
        }
    }
}
