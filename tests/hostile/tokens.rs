//! Credentials that are nearly right, or right twice. Which claims hold is tested with the tokens.

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

use crate::{
    fixtures,
    row::{Row, Rows},
    support::{
        payload::{composite_token, snappy_block},
        world::{PULL_SECRET, now},
    },
    table::{Route, Sent},
    wire::good,
};

pub(crate) fn rows(upload_token: &str) -> Vec<Row> {
    [composite(), jose_headers(), claim_sets(), signatures(upload_token)].into_iter().flatten().collect()
}

/// A good remote write with this behind `Bearer`.
fn receive(token: String) -> (Route, impl FnOnce(Sent) -> Sent + Send + 'static) {
    let change = move |sent: Sent| sent.with("authorization", &format!("Bearer {token}")).body(snappy_block(&good()));
    (Route::Receive, change)
}

/// A good upload with this behind `Bearer`.
fn upload(token: String) -> (Route, impl FnOnce(Sent) -> Sent + Send + 'static) {
    (Route::Upload, move |sent: Sent| sent.with("authorization", &format!("Bearer {token}")))
}

fn composite() -> Vec<Row> {
    let mut rows = Rows::of("composite tokens");
    let good = r#"{"authorization_token":"pull-secret","cluster_id":"c1"}"#;
    let encoded = BASE64_STANDARD.encode(good);
    for (case, token) in [
        ("a word", "secret".to_owned()),
        ("one character", "e".to_owned()),
        ("padding alone", "====".to_owned()),
        ("padding within", format!("{}=={}", &encoded[..8], &encoded[8..])),
        ("a space within", format!("{} {}", &encoded[..8], &encoded[8..])),
        ("letters of base64url", format!("{}-_{}", &encoded[..8], &encoded[8..])),
        ("bits left over", "e31".to_owned()),
        ("JSON as it is", good.to_owned()),
    ] {
        rows.sent(case, receive(token), 401, "is not ");
    }
    rows.sent("base64 without its padding", receive(encoded.trim_end_matches('=').to_owned()), 200, "")
        .reaches_as_sent();
    let ambiguous = "must stand there once, in lower case";
    for (case, json, says) in [
        ("not JSON", "pull-secret", "does not parse"),
        ("nothing", "", ""),
        ("half of it", &good[..30], "does not parse"),
        ("null", "null", "must be strings"),
        ("an array", r#"["pull-secret","c1"]"#, "must be strings"),
        ("a string", r#""c1""#, "must be strings"),
        ("two objects", &format!("{good}{good}"), "does not parse"),
        ("a comment", &format!("{good}//"), "does not parse"),
        ("a mark of byte order", &format!("\u{feff}{good}"), "does not parse"),
        ("a comma too many", &good.replace('}', ",}"), "does not parse"),
        ("half a surrogate", &good.replace("c1", r"\ud800"), ""),
        ("no cluster", r#"{"authorization_token":"pull-secret"}"#, "needs authorization_token and cluster_id"),
        ("no token", r#"{"cluster_id":"c1"}"#, "needs authorization_token and cluster_id"),
        ("an empty token", &good.replace("pull-secret", ""), "empty authorization_token"),
        ("an empty cluster", &good.replace("c1", ""), "bad cluster_id"),
        ("a cluster of 257 bytes", &good.replace("c1", &"c".repeat(257)), "bad cluster_id"),
        ("a cluster with a NUL", &good.replace("c1", r"c1\u0000"), "bad cluster_id"),
        ("a cluster with a newline", &good.replace("c1", r"c1\n"), "bad cluster_id"),
        ("a cluster that is a number", &good.replace(r#""c1""#, "1"), "must be strings"),
        ("a cluster that is null", &good.replace(r#""c1""#, "null"), "must be strings"),
        ("clusters in an array", &good.replace(r#""c1""#, r#"["c1"]"#), "must be strings"),
        ("two clusters", &good.replace('}', r#","cluster_id":"c2"}"#), ambiguous),
        ("the same cluster twice", &good.replace('}', r#","cluster_id":"c1"}"#), ambiguous),
        ("two tokens", &good.replace('}', r#","authorization_token":"x"}"#), ambiguous),
        ("a second cluster in capitals", &good.replace('}', r#","CLUSTER_ID":"c2"}"#), ambiguous),
        ("a second cluster with an escape", &good.replace('}', r#","cluster\u005fid":"c2"}"#), ambiguous),
        ("a second cluster with a long s", &good.replace('}', ",\"clu\u{17f}ter_id\":\"c2\"}"), ambiguous),
        ("a key twice where nobody looks", &good.replace('}', r#","x":[{"a":1,"a":2}]}"#), ambiguous),
        ("the cluster in capitals alone", &good.replace("cluster_id", "Cluster_Id"), ambiguous),
    ] {
        rows.sent(case, receive(BASE64_STANDARD.encode(json)), 401, says);
    }
    rows.sent("bytes that are not UTF-8", receive(BASE64_STANDARD.encode(b"{\"cluster_id\":\"\xff\"}")), 401, "");
    let nested = |depth: usize| good.replace('}', &format!(r#","x":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth)));
    rows.sent("an array 100 deep", receive(BASE64_STANDARD.encode(nested(100))), 200, "").reaches_as_sent();
    // As deep as this nobody's reader has to go, ours or the authorizer's.
    rows.sent("an array 20,000 deep", receive(BASE64_STANDARD.encode(nested(20_000))), 401, "does not parse");
    rows.sent("arrays that do not end", receive(BASE64_STANDARD.encode("[".repeat(45_000))), 401, "");
    rows.sent("objects that do not end", receive(BASE64_STANDARD.encode(r#"{"x":"#.repeat(8_000))), 401, "");
    let refused = "label `_id` is `c1`, this sender writes";
    for cluster in ["c2", "C1", "c1 ", " c1", "c1\u{200b}", "\u{441}1", "*", ".*", "c1,c2", "c1\"}"] {
        rows.sent(format!("as {cluster:?}"), receive(composite_token(PULL_SECRET, cluster)), 400, refused);
    }
    rows.all()
}

/// A token with this header and these claims, signed by this key.
fn signed(header: &str, claims: &str, key: &EncodingKey) -> String {
    let message = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = crypto::sign(message.as_bytes(), key, Algorithm::ES256).unwrap();
    format!("{message}.{signature}")
}

/// The gateway's own key.
fn key() -> EncodingKey {
    EncodingKey::from_ec_pem(fixtures::P256_PKCS8.as_bytes()).unwrap()
}

fn claims() -> Value {
    let at = now() / 1000;
    json!({
        "iss": "telemeter.selfsigned",
        "aud": "telemeter-client",
        "sub": "account",
        "exp": at + 3600,
        "telemeter.openshift.io": { "labels": { "_id": "c1" } },
    })
}

const UP: [&str; 1] = ["up{_id=\"c1\"} 1@now"];
const HEADER: &str = r#"{"alg":"ES256","typ":"JWT"}"#;

/// Which key it is, and how it is to be used, is not the token's to say.
fn jose_headers() -> Vec<Row> {
    let mut rows = Rows::of("headers of tokens");
    let pair = rcgen::KeyPair::generate().unwrap();
    let stranger = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let point = rcgen::PublicKeyData::der_bytes(&pair);
    let jwk = json!({
        "kty": "EC",
        "crv": "P-256",
        "x": BASE64_URL_SAFE_NO_PAD.encode(&point[1..33]),
        "y": BASE64_URL_SAFE_NO_PAD.encode(&point[33..]),
    });
    for (name, value) in [
        ("kid", json!("../../../../dev/null")),
        ("kid", json!("/proc/self/environ")),
        ("kid", json!("' OR 1=1 --")),
        ("kid", json!(7)),
        ("jku", json!("http://127.0.0.1:1/keys")),
        ("x5u", json!("http://127.0.0.1:1/certificate")),
        ("x5c", json!(["AAAA"])),
        ("jwk", jwk),
        ("zip", json!("DEF")),
        ("cty", json!("JWT")),
    ] {
        let header = json!({ "alg": "ES256", name: value }).to_string();
        let says = format!("{name} of {value}");
        rows.sent(
            format!("{says}, another's key"),
            upload(signed(&header, &claims().to_string(), &stranger)),
            401,
            "signature",
        );
        rows.sent(says, upload(signed(&header, &claims().to_string(), &key())), 200, "").reaches(UP);
    }
    for (case, header, says) in [
        ("no algorithm", r#"{"typ":"JWT"}"#, "not a JWT"),
        ("an empty algorithm", r#"{"alg":""}"#, "`alg`"),
        ("none", r#"{"alg":"none"}"#, "`alg`"),
        ("nOnE", r#"{"alg":"nOnE"}"#, "`alg`"),
        ("HS256", r#"{"alg":"HS256"}"#, "`alg`"),
        ("RS256", r#"{"alg":"RS256"}"#, "`alg`"),
        ("es256", r#"{"alg":"es256"}"#, "`alg`"),
        ("ES256 and a NUL", r#"{"alg":"ES256\u0000"}"#, "`alg`"),
        ("ES256K", r#"{"alg":"ES256K"}"#, "`alg`"),
        ("an algorithm that is null", r#"{"alg":null}"#, "not a JWT"),
        ("a list of algorithms", r#"{"alg":["ES256","none"]}"#, "not a JWT"),
        ("two algorithms", r#"{"alg":"none","alg":"ES256"}"#, "not a JWT"),
        ("two algorithms, one escaped", r#"{"alg":"ES256","\u0061lg":"none"}"#, "not a JWT"),
        ("an extension", r#"{"alg":"ES256","crit":["b64"],"b64":false}"#, "`crit`"),
        ("no extension, but asked for", r#"{"alg":"ES256","crit":[]}"#, "`crit`"),
        ("an extension that is null", r#"{"alg":"ES256","crit":null}"#, "`crit`"),
        ("an array", r#"["ES256"]"#, "not a JWT"),
        ("nothing", "", "not a JWT"),
        ("two objects", r#"{"alg":"ES256"}{}"#, "not a JWT"),
        ("a word", "ES256", "not a JWT"),
        (
            "objects 1,000 deep",
            &format!(r#"{{"alg":"ES256","x":{}1{}}}"#, r#"{"a":"#.repeat(1_000), "}".repeat(1_000)),
            "",
        ),
        (
            "arrays 1,000 deep",
            &format!(r#"{{"alg":"ES256","x":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000)),
            "not a JWT",
        ),
    ] {
        rows.sent(case, upload(signed(header, &claims().to_string(), &key())), 401, says);
    }
    rows.all()
}

/// Claims that the gateway's own key has signed, and that are none.
fn claim_sets() -> Vec<Row> {
    let mut rows = Rows::of("claims of tokens");
    let good = claims().to_string();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims.to_string()
    };
    let labels = |labels: Value| with("telemeter.openshift.io", json!({ "labels": labels }));
    for (case, claims) in [
        ("nothing", String::new()),
        ("an array", "[]".to_owned()),
        ("two objects", format!("{good}{good}")),
        ("two accounts", good.replacen('{', r#"{"sub":"other","#, 1)),
        ("two clusters", good.replace(r#""_id":"c1""#, r#""_id":"c2","_id":"c1""#)),
        ("two sets of labels", good.replacen('{', r#"{"telemeter.openshift.io":{"labels":{"_id":"c2"}},"#, 1)),
        ("a cluster that is a number", labels(json!({ "_id": 1 }))),
        ("clusters in an array", labels(json!({ "_id": ["c1"] }))),
        ("a cluster that is null", labels(json!({ "_id": null }))),
        ("a cluster with a newline", labels(json!({ "_id": "c1\n" }))),
        ("a cluster of 257 bytes", labels(json!({ "_id": "c".repeat(257) }))),
        ("the cluster in capitals", labels(json!({ "_ID": "c1" }))),
        ("labels in an array", labels(json!([["_id", "c1"]]))),
        ("an end that is text", with("exp", json!("4102444800"))),
        ("an end before all time", with("exp", json!(-1))),
        ("an end after all time", with("exp", json!(1e300))),
        ("an end that is null", with("exp", Value::Null)),
        ("a beginning after all time", with("nbf", json!(1e300))),
        ("an account that is a number", with("sub", json!(1))),
        ("an audience that is an object", with("aud", json!({ "telemeter-client": true }))),
        ("arrays 1,000 deep", good.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(1_000), "]".repeat(1_000)), 1)),
    ] {
        rows.sent(case, upload(signed(HEADER, &claims, &key())), 401, "get a new one from /authorize");
    }
    for cluster in ["c2", "C1", "c1 ", "\u{441}1"] {
        let token = signed(HEADER, &labels(json!({ "_id": cluster })), &key());
        rows.sent(format!("as {cluster:?}"), upload(token), 400, "label `_id` is `c1`, this sender writes");
    }
    let bound = labels(json!({ "_id": "c1", "env": "prod" }));
    rows.sent("a label that the series lacks", upload(signed(HEADER, &bound, &key())), 400, "label `env` is missing");
    rows.all()
}

fn signatures(good: &str) -> Vec<Row> {
    let mut rows = Rows::of("signatures of tokens");
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    let by = |signature: &[u8]| format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
    // The order of P-256: a number that is 0 to whom does not look.
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&order[2 * at..2 * at + 2], 16).unwrap()).collect();
    let one = [vec![0; 31], vec![1]].concat();
    let der = [&[0x30, 0x44, 0x02, 0x20][..], &bytes[..32], &[0x02, 0x20], &bytes[32..]].concat();
    let mut damaged = bytes.clone();
    damaged[5] ^= 1;
    for (case, token) in [
        ("stripped", format!("{message}.")),
        ("stripped with its dot", message.to_owned()),
        ("zeros", by(&[0; 64])),
        ("zero and one", by(&[vec![0; 32], one.clone()].concat())),
        ("one and zero", by(&[one, vec![0; 32]].concat())),
        ("the order, twice", by(&order.repeat(2))),
        ("ones", by(&[0xff; 64])),
        ("its halves exchanged", by(&[&bytes[32..], &bytes[..32]].concat())),
        ("one bit changed", by(&damaged)),
        ("a byte less", by(&bytes[..63])),
        ("a byte more", by(&[&bytes[..], &[0]].concat())),
        ("in DER", by(&der)),
        ("with padding", format!("{message}.{}", BASE64_URL_SAFE.encode(&bytes))),
        ("twice", format!("{good}.{signature}")),
        ("of something else", format!("{header}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(claims().to_string()))),
        ("without claims", format!("{header}..{signature}")),
        ("without a header", format!(".{payload}.{signature}")),
        ("dots", "..".to_owned()),
        ("a dot", ".".to_owned()),
        ("a space within", format!("{message} .{signature}")),
        ("over 8 KiB", format!("{header}.{}.{signature}", "A".repeat(8 << 10))),
        ("50 kB", "A.".repeat(25_000)),
        ("a composite token", composite_token(PULL_SECRET, "c1")),
    ] {
        rows.sent(case, upload(token), 401, "send the one that /authorize answered")
            .says_also("get a new one from /authorize");
    }
    rows.all()
}
