//! `infogw-proxy token`: what it makes a running gateway takes, and what it says of a token is what the gateway says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Keys of every kind.
#[allow(dead_code)]
#[path = "../layers/tests/jwt/fixtures.rs"]
mod fixtures;
mod support;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use support::{
    Gateway, World,
    payload::{composite_token, series, write_body},
    process::{self, Exit},
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tempfile::NamedTempFile;

#[tokio::test]
async fn a_made_upload_token_is_the_one_that_authorize_issues() {
    for (key, more) in [
        (fixtures::P256_PKCS8, &["--required-label=env=prod,tier=a=b"][..]),
        (fixtures::RSA_PKCS1, &["--partition-label=cluster", "--required-label=env=prod"]),
    ] {
        let key = file(key);
        let shared = format!("--shared-key={}", key.path().display());
        let flags: Vec<_> = more.iter().copied().chain([shared.as_str(), "--ratelimit=0"]).collect();
        let world = World::with(&flags).await;
        // The same flags, but for the name of one.
        let more: Vec<_> = more.iter().map(|flag| flag.replace("--required-label", "--label")).collect();
        let made = |expiry: &'static str| {
            let args = ["token", "upload", &shared, "--cluster=c1", "--account=account-of-c1", expiry];
            let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).chain(more.clone()).collect();
            async move { succeeded(run(&args, b"").await) }
        };
        let token = made("--expires-in-seconds=").await;

        let (mut ours, mut issued) = (claims_of(&token), claims_of(&world.token("c1").await));
        for (claims, life) in
            [(&mut ours, 86_400), (&mut issued, 86_400), (&mut claims_of(&made("--expires-in-seconds=60").await), 60)]
        {
            let mut date = |name: &str| claims.as_object_mut().unwrap().remove(name).unwrap().as_i64().unwrap();
            let (issued, not_before, expires) = (date("iat"), date("nbf"), date("exp"));
            assert_eq!((not_before - issued, expires - issued), (0, life));
            assert!((now() / 1000 - issued).abs() < 30, "{issued}");
        }
        assert_eq!(ours, issued);

        let labels = ours["telemeter.openshift.io"]["labels"].as_object().unwrap();
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let series = format!("up{{{}}}", labels.join(","));
        world.gateway.upload(&token, TEXT, "", format!("{series} 1 {}\n", now())).await.expect_status(200);
        assert_eq!(spelt(&world.forwarded()), [series]);
        world.gateway.upload(&token, TEXT, "", format!("up{{_id=\"c2\"}} 1 {}\n", now())).await.expect_status(400);
    }
}

#[tokio::test]
async fn a_made_receive_token_is_taken_and_reaches_the_authorizer() {
    let world = World::start().await;
    let secret = file(&format!("{PULL_SECRET}\n"));
    let from_file = format!("--token-file={}", secret.path().display());
    let ways: [(&[&str], &str); 4] = [
        (&[&from_file], ""),
        (&["--token-file", "-"], PULL_SECRET),
        (&["--token=-", "--token-file="], " pull-secret\r\n"),
        (&["--token", PULL_SECRET], ""),
    ];
    for (way, input) in ways {
        let args = [&["token", "receive", "--cluster", "c1"], way].concat();
        assert_eq!(succeeded(run(&args, input.as_bytes()).await), composite_token(PULL_SECRET, "c1"), "{way:?}");
    }
    let args = ["token", "receive", "--cluster=c1", &from_file, "--field=org=a=b,c", "--field", "tenant="];
    let token = succeeded(run(&args, b"").await);
    let up = series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())]);
    world.gateway.receive(&token, write_body(vec![up])).await.expect_status(200);
    assert_eq!(spelt(&world.forwarded()), [r#"up{_id="c1"}"#]);
    let asked = &world.authorizer.received()[0].body;
    let expected = json!({ "authorization_token": PULL_SECRET, "cluster_id": "c1", "org": "a=b,c", "tenant": "" });
    assert_eq!(*asked, expected);
}

#[tokio::test]
async fn an_issued_token_is_read() {
    let [key, other] = [fixtures::P256_PKCS8, fixtures::P384_PKCS8].map(file);
    let (path, other) = (key.path().display().to_string(), other.path().display().to_string());
    let shared = format!("--shared-key={path}");
    let world = World::with(&[&shared, "--required-label=env=prod"]).await;
    let answer = world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200);
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let claims = claims_of(&token);
    let date = |name: &str| rfc3339(claims[name].as_u64().unwrap());
    let (issued, expires) = (date("iat"), date("exp"));

    // As it is, as a header has it, as `/authorize` answers it; and from a file.
    let header = format!("authorization: bearer {token}");
    for input in [token.as_bytes(), header.as_bytes(), &answer.body] {
        let read = succeeded(run(&["token", "read", "--shared-key", &other, &shared], input).await);
        let (said, left) = read.split_once(" (in 23h 59m ").expect("an end");
        let valid = left.split_once('\n').unwrap().1;
        let expected = format!(
            "\
kind:                upload, a JWT of /authorize
algorithm:           ES256
signature:           verified by {path}
issuer:              telemeter.selfsigned
audience:            telemeter-client
subject:             account-of-c1
cluster:             c1
labels:              _id=\"c1\", env=\"prod\"
issued:              {issued}
not before:          {issued}
expires:             {expires}"
        );
        assert_eq!((said, valid), (expected.as_str(), "valid now:           yes"));
    }
    let here = file(&token);
    let read = succeeded(run(&["token", "read", here.path().to_str().unwrap(), "-o", "json"], b"").await);
    let expected = json!({
        "kind": "upload",
        "algorithm": "ES256",
        "signature": "not_verified",
        "issuer": "telemeter.selfsigned",
        "audience": "telemeter-client",
        "subject": "account-of-c1",
        "cluster": "c1",
        "labels": { "_id": "c1", "env": "prod" },
        "issued_at": issued,
        "not_before": issued,
        "expires_at": expires,
        "valid_now": null,
    });
    assert_eq!(serde_json::from_str::<Value>(&read).unwrap(), expected);
    let verified = succeeded(run(&["token", "read", "-ojson", &shared], token.as_bytes()).await);
    assert_eq!(serde_json::from_str::<Value>(&verified).unwrap()["valid_now"], true);
    let read = succeeded(run(&["token", "read"], token.as_bytes()).await);
    assert!(
        read.contains("signature:           not verified\n")
            && read.contains("valid now:           yes, if its signature"),
        "{read}"
    );
}

/// Each of these is sent to a gateway, too.
#[tokio::test]
async fn what_upload_refuses_is_told_in_the_gateways_words() {
    let key = file(fixtures::P256_PKCS8);
    let shared = format!("--shared-key={}", key.path().display());
    let world = World::with(&[&shared, "--ratelimit=0"]).await;
    let at = now() / 1000;
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    let mut incomplete = claims();
    incomplete.as_object_mut().unwrap().remove("exp");
    let good = signed(&claims());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let header = good.split('.').next().unwrap();
    let part = |json: &Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
    let tampered = with("telemeter.openshift.io", json!({ "labels": { "_id": "c2" } }));
    let made = |key: &'static str| async move {
        let key = file(key);
        let key = format!("--shared-key={}", key.path().display());
        succeeded(run(&["token", "upload", &key, "--cluster=c1", "--account=a"], b"").await)
    };

    let bad = [
        ("tampered", format!("{header}.{}.{signature}", part(&tampered)), "wrong", "signature"),
        ("cut short", head.to_owned() + "." + &signature[..20], "wrong", "signature"),
        (
            "another key of the kind",
            Gateway::start(["--insecure-accept-any-token", "--forward-url=http://localhost/"])
                .await
                .upload_token("c1", "x")
                .await,
            "wrong",
            "signature",
        ),
        ("a key of another kind", made(fixtures::RSA_PKCS8).await, "wrong", "alg"),
        ("no algorithm", format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims())), "wrong", "alg"),
        ("expired", signed(&with("exp", json!(at - 120))), "verified", "expired"),
        ("not valid yet", signed(&with("nbf", json!(at + 120))), "verified", "not valid yet"),
        ("another issuer", signed(&with("iss", json!("https://sso.example.com"))), "verified", "issuer"),
        ("another audience", signed(&with("aud", json!(["federate", "x"]))), "verified", "audience"),
        ("no end", signed(&incomplete), "verified", "exp"),
        ("no cluster", signed(&with("telemeter.openshift.io", json!({ "labels": {} }))), "verified", "`_id`"),
        ("labels that are none", signed(&with("telemeter.openshift.io", json!(7))), "verified", "claim"),
        (
            "extensions",
            format!("{}.{}.{signature}", part(&json!({ "alg": "ES256", "crit": ["x"] })), part(&claims())),
            "not_verified",
            "crit",
        ),
        ("padded", format!("{good}=="), "not_verified", "JWT"),
        ("a part too many", format!("{good}.x"), "not_verified", "JWT"),
        ("too long", signed(&with("jti", json!("x".repeat(8000)))), "not_verified", "over"),
    ];
    for (case, token, signature, says) in bad {
        let answer = world.gateway.upload(&token, TEXT, "", String::new()).await.expect_status(401);
        assert!(answer.reason().contains(says), "{case}: {answer:?}");

        let exit = run(&["token", "read", &shared, "-ojson"], token.as_bytes()).await;
        let read: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|_| panic!("{case}: {exit:?}"));
        assert_eq!((exit.code(), exit.stderr.as_str()), (1, ""), "{case}: {exit:?}");
        assert_eq!(read["refused"], json!(answer.reason()), "{case}");
        assert_eq!((&read["signature"], &read["valid_now"]), (&json!(signature), &json!(false)), "{case}");

        let exit = run(&["token", "read", &shared], token.as_bytes()).await;
        let last = exit.stdout.lines().last().unwrap_or_default();
        assert_eq!(
            (exit.code(), last),
            (1, format!("valid now:           no: {}", answer.reason()).as_str()),
            "{case}"
        );

        // Who has no key is told all that takes none to tell.
        let exit = run(&["token", "read", "-ojson"], token.as_bytes()).await;
        let without: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|_| panic!("{case}: {exit:?}"));
        assert_eq!(without["signature"], "not_verified", "{case}");
        let takes_a_key = signature == "wrong" && case != "no algorithm";
        let valid = if takes_a_key { Value::Null } else { json!(false) };
        assert_eq!(without["valid_now"], valid, "{case}");
        let (code, refused) = if takes_a_key { (0, &Value::Null) } else { (1, &read["refused"]) };
        assert_eq!((exit.code(), &without["refused"]), (code, refused), "{case}");
    }
    let exit = run(&["token", "read", "--partition-label=cluster"], good.as_bytes()).await;
    assert!(
        exit.code() == 1 && exit.stdout.contains("no: unauthenticated: the token names no cluster in `cluster`"),
        "{exit:?}"
    );
    let expired = signed(&with("exp", json!(at - 3600 - 90)));
    let exit = run(&["token", "read"], expired.as_bytes()).await;
    assert!(
        exit.stdout.contains(&format!("{} (1h 1m 3", rfc3339(at as u64 - 3690))) && exit.stdout.contains("s ago)\n"),
        "{exit:?}"
    );
}

#[tokio::test]
async fn what_receive_refuses_is_told_in_the_gateways_words() {
    let world = World::start().await;
    for (case, object, says) in [
        ("no cluster", json!({ "authorization_token": PULL_SECRET }), "it needs"),
        ("a bad cluster", json!({ "authorization_token": PULL_SECRET, "cluster_id": "a\nb" }), "bad cluster_id"),
        ("a number", json!({ "authorization_token": PULL_SECRET, "cluster_id": 7 }), "must be strings"),
        ("two clusters", json!({ "authorization_token": PULL_SECRET, "cluster_id": "c1", "Cluster_ID": "c2" }), "once"),
        ("an empty token", json!({ "authorization_token": "", "cluster_id": "c1", "more": PULL_SECRET }), "empty"),
    ] {
        let token = BASE64_STANDARD.encode(object.to_string());
        let answer = world.gateway.receive(&token, write_body(Vec::new())).await.expect_status(401);
        assert!(answer.reason().contains(says), "{case}: {answer:?}");
        let exit = run(&["token", "read", "--output=json"], token.as_bytes()).await;
        let read: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|_| panic!("{case}: {exit:?}"));
        assert_eq!((exit.code(), &read["refused"]), (1, &json!(answer.reason())), "{case}");
        assert_eq!(read["valid_now"], false, "{case}");
        assert!(!exit.stdout.contains(PULL_SECRET), "{exit:?}");
    }
}

#[tokio::test]
async fn a_receive_token_is_read_and_its_secrets_are_hidden() {
    let object = json!({ "authorization_token": PULL_SECRET, "cluster_id": "c1", "org": "hidden-org", "n": 7 });
    let token = format!("Bearer {}", BASE64_STANDARD.encode(object.to_string()).trim_end_matches('='));
    let hidden = "\
kind:                receive, a composite of cluster and token
cluster:             c1
authorization token: hidden: --show-secrets shows it
other fields:        n, org
valid now:           yes, if the authorizer grants it";
    assert_eq!(succeeded(run(&["token", "read"], token.as_bytes()).await), hidden);
    let shown =
        hidden.replace("hidden: --show-secrets shows it", PULL_SECRET).replace("n, org", "n=7, org=\"hidden-org\"");
    assert_eq!(succeeded(run(&["token", "read", "--show-secrets"], token.as_bytes()).await), shown);
    let json = |read: String| serde_json::from_str::<Value>(&read).unwrap();
    let hidden = json!({ "kind": "receive", "cluster": "c1", "fields": ["n", "org"], "valid_now": null });
    assert_eq!(json(succeeded(run(&["token", "read", "-o=json"], token.as_bytes()).await)), hidden);
    let shown = json!({ "kind": "receive", "cluster": "c1", "authorization_token": PULL_SECRET, "fields": { "n": 7, "org": "hidden-org" }, "valid_now": null });
    assert_eq!(json(succeeded(run(&["token", "read", "-o=json", "--show-secrets"], token.as_bytes()).await)), shown);
}

#[tokio::test]
async fn what_is_no_token_is_65_and_hostile_ones_do_no_harm() {
    let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let nested = format!("{{\"a\":{}", "[".repeat(20_000));
    let bad: [Vec<u8>; 12] = [
        "".into(),
        " \n".into(),
        "Bearer ".into(),
        "nonsense".into(),
        "a.b.c".into(),
        "...".into(),
        b"\xff\xfe".into(),
        "two words".into(),
        r#"{"version":1}"#.into(),
        BASE64_STANDARD.encode("[]").into(),
        format!("{}.{}.x", part(b"{}"), part(nested.as_bytes())).into(),
        BASE64_STANDARD.encode(nested).into(),
    ];
    for input in bad {
        let exit = run(&["token", "read"], &input).await;
        failed(&exit, 65, "stdin: is no token");
    }
    failed(&run(&["token", "read", "/dev/zero"], b"").await, 65, "/dev/zero: over 65536 bytes");
    failed(&run(&["token", "read"], &b"a".repeat(1 << 20)).await, 65, "stdin: over 65536 bytes");
    failed(&run(&["token", "read", "/nonexistent"], b"").await, 66, "/nonexistent: No such file");

    // What it says reaches a terminal as text.
    let evil = json!({ "alg": "\u{1b}]0;owned\u{7}", "typ": "JWT" });
    let claims = json!({ "sub": "a\u{1b}[2Jb\nc\u{202e}d", "exp": 1e300, "iat": "now", "aud": [[1], {}], "iss": null });
    let token = format!("{}.{}.", part(evil.to_string().as_bytes()), part(claims.to_string().as_bytes()));
    let exit = run(&["token", "read"], token.as_bytes()).await;
    assert_eq!((exit.code(), exit.stdout.lines().count()), (1, 12), "{exit:?}");
    assert!(!exit.stdout.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{exit:?}");
    assert!(exit.stdout.contains(r"a\u{1b}[2Jb\nc\u{202e}d") && exit.stdout.contains("1e+300"), "{exit:?}");
}

#[tokio::test]
async fn what_is_wrong_is_one_line_and_its_code() {
    let (key, secret, empty, two) = (file(fixtures::P256_PKCS8), file(PULL_SECRET), file("\n"), file("one\ntwo\n"));
    let [key, secret, empty, two] = [&key, &secret, &empty, &two].map(|file| file.path().display().to_string());
    let upload = format!("upload --shared-key={key} --cluster=c1 --account=a");
    let receive = format!("receive --cluster=c1 --token-file={secret}");
    let (long, longer) = ("x".repeat(300), "x".repeat(9000));
    let wrong = [
        ("upload", "", 64, "not provided: --shared-key <FILE>, --cluster <ID>, --account <ID>"),
        ("upload --cluster=c1 --account=a --shared-key=", "", 64, "--shared-key is required"),
        (
            "upload --cluster=c1 --account=a --shared-key=",
            "/nonexistent",
            66,
            "--shared-key: /nonexistent: No such file",
        ),
        ("upload --cluster=c1 --account=a --shared-key=", &two, 65, "holds no private key"),
        (&upload, "--cluster=", 64, "--cluster: a cluster id is 1 to 256 bytes"),
        (&upload, &format!("--cluster={long}"), 64, "--cluster: a cluster id is 1 to 256 bytes"),
        (&upload, "--account=", 64, "--account: "),
        (&upload, &format!("--account={longer}"), 64, "over 8192 bytes"),
        (&upload, "--partition-label=a-b", 64, "--partition-label: `a-b` is not a label name"),
        (&upload, "--label=env", 64, "--label: `env` is not name=value"),
        (&upload, "--label=env=", 64, "--label: `env` has no value"),
        (&upload, "--label=_id=c2", 64, "--label: `_id` is the --partition-label"),
        (&upload, "--expires-in-seconds=0", 64, "--expires-in-seconds: a token lives 1 second to 10 years"),
        (&upload, "--expires-in-seconds=1d", 64, "--expires-in-seconds: `1d` is not a whole number"),
        (&receive, "--token-file=", 64, "--token-file is required"),
        (&receive, "--token=x", 64, "--token-file and --token exclude each other"),
        (&receive, "--token-file=/nonexistent", 66, "/nonexistent: No such file"),
        (&receive, "--token-file=/dev/zero", 65, "/dev/zero: over 32768 bytes"),
        (&receive, &format!("--token-file={empty}"), 65, "--token-file: holds no token"),
        (&receive, &format!("--token-file={two}"), 65, "--token-file: holds more than a token"),
        (&receive, "--field=org", 64, "--field: not key=value"),
        (&receive, "--field=Cluster_ID=c2", 64, "--field: the key `Cluster_ID` is"),
        (&receive, "--field=clu\u{17f}ter_id=c2", 64, "is not plain ASCII"),
        (&receive, "--field=a=1 --field=a=2", 64, "--field: `a` is given twice"),
        ("read", "--output=yaml", 64, "[possible values: text, json]"),
        ("read", "--partition-label=1", 64, "--partition-label: `1`"),
        ("read", "--shared-key=/nonexistent", 66, "--shared-key: /nonexistent: No such file"),
    ];
    for (args, last, code, says) in wrong {
        let args = format!("token {args}{}{last}", if args.ends_with('=') { "" } else { " " });
        let exit = run(&args.split_whitespace().collect::<Vec<_>>(), b"").await;
        failed(&exit, code, says);
        assert!(!exit.stderr.contains(PULL_SECRET), "{exit:?}");
    }
}

#[tokio::test]
async fn help_tells_flags_and_exit_codes() {
    for (command, told) in [
        (
            "upload",
            &["--shared-key", "--cluster", "--account", "--partition-label", "--label", "--expires-in-seconds"][..],
        ),
        ("receive", &["--cluster", "--token-file", "--token", "--field"]),
        (
            "read",
            &[
                "[FILE]",
                "--shared-key",
                "--partition-label",
                "--output",
                "--show-secrets",
                "  1   the gateway would refuse",
            ],
        ),
    ] {
        let help = succeeded(run(&["token", command, "--help"], b"").await);
        for told in told.iter().chain(&["Exit codes:\n  0   done\n", "  64  a flag is wrong\n"]) {
            assert!(help.contains(told), "{command}: {told:?} is not in {help}");
        }
    }
}

async fn run<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> Exit {
    let mut command = Gateway::command();
    command.args(args);
    process::run(command, input).await
}

/// What it printed.
#[track_caller]
fn succeeded(exit: Exit) -> String {
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""), "{exit:?}");
    exit.stdout
}

#[track_caller]
fn failed(exit: &Exit, code: u8, says: &str) {
    assert_eq!((exit.code(), exit.stdout.as_str(), exit.stderr.lines().count()), (code.into(), "", 1), "{exit:?}");
    assert!(exit.stderr.starts_with("error: ") && exit.stderr.contains(says), "{says:?}: {exit:?}");
}

fn file(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
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

/// These claims, signed by another implementation.
fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(fixtures::P256_PKCS8.as_bytes()).unwrap();
    encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
}

fn claims_of(token: &str) -> Value {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

fn rfc3339(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).to_string()
}
