//! Flags as an operator gives them: a wrong one is one line and exit code 64 before anything listens, a right one does what the
//! contract says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

/// Keys of every kind.
#[allow(dead_code)]
#[path = "../layers/tests/jwt/fixtures.rs"]
mod fixtures;
mod support;

use std::{io::Write as _, net::TcpListener};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use support::{
    Gateway, World, http,
    payload::{composite_token, series, write_body},
    process::Exit,
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tempfile::NamedTempFile;

/// What there must be.
const GOOD: [&str; 2] = ["--authorize=http://localhost/", "--forward-url=http://localhost/"];

/// Flags that are accepted now: those of the contract, and ours.
const ACCEPTED: &[&str] = &[
    "--listen",
    "--listen-internal",
    "--tls-crt",
    "--tls-key",
    "--tls-ca-crt",
    "--internal-tls-crt",
    "--internal-tls-key",
    "--forward-tls-ca-crt",
    "--forward-tls-crt",
    "--forward-tls-key",
    "--authorize-tls-ca-crt",
    "--authorize-tls-crt",
    "--authorize-tls-key",
    "--authorize",
    "--forward-url",
    "--tenant-id",
    "--tenant-key",
    "--partition-label",
    "--label",
    "--elide-label",
    "--receive-label",
    "--receive-elide-label",
    "--required-label",
    "--whitelist",
    "--whitelist-file",
    "--limit-bytes",
    "--limit-receive-bytes",
    "--ratelimit",
    "--limit-receive-requests-per-second",
    "--limit-receive-requests-burst",
    "--limit-receive-samples-per-second",
    "--limit-receive-samples-burst",
    "--shared-key",
    "--client-info-data-file",
    "--client-info-subject-label",
    "--token-expire-seconds",
    "--log-level",
    "--verbose",
    "--receive-tenant-id",
    "--cluster-label-check",
    "--policy",
    "--insecure-accept-any-token",
    "--limit-receive-decoded-bytes",
    "--limit-series",
    "--limit-labels",
    "--limit-label-name-bytes",
    "--limit-label-value-bytes",
    "--limit-receive-label-name-bytes",
    "--limit-receive-label-value-bytes",
    "--limit-in-flight",
    "--limit-connections",
    "--limit-connections-per-peer",
    "--limit-buffered-bytes",
    "--limit-header-bytes",
    "--limit-headers",
    "--limit-streams",
    "--limit-stream-resets",
    "--header-timeout",
    "--body-timeout",
    "--idle-timeout",
    "--shutdown-grace",
    "--internal-token-file",
    "--memcached",
    "--memcached-expire",
    "--memcached-interval",
    "--redis",
    "--redis-mode",
    "--redis-sentinel-master",
    "--redis-password",
    "--redis-password-file",
    "--redis-sentinel-password",
    "--redis-sentinel-password-file",
    "--redis-tls-ca-crt",
    "--redis-tls-crt",
    "--redis-tls-key",
    "--oidc-issuer",
    "--client-id",
    "--client-secret",
    "--client-secret-file",
    "--oidc-audience",
    "--oidc-tls-ca-crt",
    "--internal.tracing.service-name",
    "--internal.tracing.endpoint",
    "--internal.tracing.endpoint-type",
    "--internal.tracing.sampling-fraction",
    "--help",
    "--version",
    "-v",
];

/// Flags of telemeter-server that are no part of the contract.
const NOT_TAKEN: &[&str] = &["--receive-ratelimit"];

#[tokio::test]
async fn a_wrong_flag_is_one_line_and_64() {
    let wrong: &[(&[&str], &str)] = &[
        (&["--nope"], "'--nope'"),
        (&["-x"], "'-x'"),
        (&["extra"], "unexpected argument 'extra' found"),
        (&["dev"], "the subcommand 'dev' cannot be used with"),
        (&["--listen"], "a value is required for '--listen"),
        (&["--listen=nowhere"], "--listen: `nowhere` is not an address like 0.0.0.0:9003"),
        (&["--listen=127.0.0.1:port"], "--listen: `127.0.0.1:port` is not an address"),
        (&["--listen-internal=127.0.0.1"], "--listen-internal: `127.0.0.1` is not an address"),
        (&["--authorize=registrations"], "--authorize: `registrations` is not an http:// or https:// URL"),
        (&["--authorize=ftp://localhost/"], "--authorize: `ftp://localhost/`"),
        (&["--authorize=http://local host/"], "--authorize: `http://local host/` is not a URL"),
        (&["--authorize=http://h:99999/"], "--authorize: `http://h:99999/` has no port from 0 to 65535"),
        (&["--authorize=http://[::1]:abc/"], "--authorize: `http://[::1]:abc/` has no port"),
        (&["--authorize=http://user:secret@h/"], "--authorize: a URL with a user or password is not taken"),
        (&["--authorize=user:secret@h"], "--authorize: a URL with a user or password is not taken"),
        (&["--authorize=http://user:secret@local host/"], "--authorize: the value is not a URL"),
        (&["--authorize="], "--authorize is required"),
        (&["--insecure-accept-any-token"], "--authorize and --insecure-accept-any-token exclude each other"),
        (&["--forward-url="], "--forward-url is required"),
        (&["--forward-url=/receive"], "--forward-url: `/receive`"),
        (&["--forward-url=http://h:/"], "--forward-url: `http://h:/` has no port"),
        (&["--forward-url=https://secret@h/"], "--forward-url: a URL with a user or password is not taken"),
        (&["--forward-url=/user:secret@h"], "--forward-url: the value is not an http:// or https:// URL"),
        (
            &["--tenant-id=a\nb"],
            "--tenant-id: `a b` cannot name a tenant: it stands in a header, so printable ASCII it is",
        ),
        (&["--receive-tenant-id=a\u{7f}"], "--receive-tenant-id: "),
        (&["--shared-key=/nonexistent"], "--shared-key: /nonexistent: No such file"),
        (&["--shared-key=/dev/null"], "--shared-key: /dev/null: holds no private key"),
        (&["--client-info-data-file=/nonexistent"], "--client-info-data-file: /nonexistent: No such file"),
        (&["--client-info-subject-label=a b"], "--client-info-subject-label: `a b`"),
        (&["--client-info-subject-label=cluster"], "`cluster` is not the --partition-label, `_id`"),
        (&["--token-expire-seconds=day"], "--token-expire-seconds: `day` is not a whole number from 0 up"),
        (&["--token-expire-seconds=-1"], "--token-expire-seconds: `-1`"),
        (&["--token-expire-seconds=0"], "--token-expire-seconds: a token lives 1 second to 10 years"),
        (&["--token-expire-seconds=999999999999"], "--token-expire-seconds: a token lives"),
        (&["--partition-label=1d"], "--partition-label: `1d` is not a label name"),
        (&["--required-label=env"], "--required-label: `env` is not name=value"),
        (&["--required-label=_id=c1"], "--required-label: `_id` is the --partition-label"),
        (&["--required-label=a=b,env="], "--required-label: `env` has no value"),
        (&["--label=a=b,_id=c1"], "--label: `_id` is the --partition-label"),
        (&["--elide-label=_id"], "--elide-label: `_id` is the --partition-label"),
        (&["--receive-label=id=c1", "--partition-label=id"], "--receive-label: `id` is the --partition-label"),
        (&["--receive-elide-label=_id"], "--receive-elide-label: `_id` is the --partition-label"),
        (&["--label=a=b,region"], "--label: `region` is not name=value"),
        (&["--label=a-b=c"], "--label: `a-b` is not a label name"),
        (&["--receive-label==c"], "--receive-label: `` is not a label name"),
        (&["--elide-label=a b"], "--elide-label: `a b` is not a label name"),
        (&["--receive-elide-label=a.b"], "--receive-elide-label: `a.b` is not a label name"),
        (&["--whitelist=up{"], "--whitelist: `up{`: column 4"),
        (&["--whitelist=up{\nx"], "--whitelist: `up{ x`"),
        (&["--whitelist={__name__=~\"(\"}"], "--whitelist: "),
        (&["--whitelist-file=/dev/null"], "--whitelist-file: no rule in /dev/null; "),
        (&["--whitelist-file=/nonexistent"], "--whitelist-file: /nonexistent: No such file"),
        (&["--cluster-label-check=maybe"], "--cluster-label-check: `maybe` is none of enforce, count, off"),
        (&["--policy=/nonexistent"], "--policy: /nonexistent: No such file"),
        (&["--tls-crt=c"], "--tls-crt: a certificate needs its key; give --tls-key, too"),
        (&["--tls-key=k"], "--tls-key: a key needs its certificate; give --tls-crt, too"),
        (
            &["--tls-ca-crt=c"],
            "--tls-ca-crt: clients show certificates over TLS alone; give --tls-crt and --tls-key, too",
        ),
        (&["--tls-crt=/nonexistent", "--tls-key=/nonexistent"], "--tls-crt: /nonexistent: No such file"),
        (&["--tls-crt=/dev/null", "--tls-key=/nonexistent"], "--tls-crt: /dev/null: holds no certificate in PEM"),
        (&["--internal-tls-crt=c"], "--internal-tls-crt: a certificate needs its key; give --internal-tls-key, too"),
        (&["--internal-tls-key=k"], "--internal-tls-key: a key needs its certificate; give --internal-tls-crt, too"),
        (&["--forward-tls-crt=c"], "--forward-tls-crt: a certificate needs its key; give --forward-tls-key, too"),
        (&["--forward-tls-key=k"], "--forward-tls-key: a key needs its certificate; give --forward-tls-crt, too"),
        (&["--authorize-tls-crt=c"], "--authorize-tls-crt: a certificate needs its key; give --authorize-tls-key, too"),
        (&["--authorize-tls-key=k"], "--authorize-tls-key: a key needs its certificate; give --authorize-tls-crt, too"),
        (&["--forward-tls-ca-crt=c"], "--forward-tls-ca-crt: this is for an https:// --forward-url, and there is none"),
        (
            &["--authorize-tls-ca-crt=c"],
            "--authorize-tls-ca-crt: this is for an https:// --authorize, and there is none",
        ),
        (
            &["--forward-tls-ca-crt=/nonexistent", "--forward-url=https://localhost/"],
            "--forward-tls-ca-crt: /nonexistent: No such file",
        ),
        (&["--ratelimit=5"], "--ratelimit: `5` is not a duration; write it like 4m30s"),
        (&["--ratelimit=-5s"], "--ratelimit: `-5s`"),
        (&["--ratelimit=1d"], "--ratelimit: `1d`"),
        (
            &["--limit-receive-requests-per-second=often"],
            "--limit-receive-requests-per-second: `often` is not a number a second, such as 5 or 0.1",
        ),
        (&["--limit-receive-requests-per-second=-1"], "--limit-receive-requests-per-second: `-1` is not a number"),
        (&["--limit-receive-samples-per-second=1e3"], "--limit-receive-samples-per-second: `1e3` is not a number"),
        (&["--limit-receive-samples-per-second=1.5.0"], "--limit-receive-samples-per-second: `1.5.0` is not a number"),
        (
            &["--limit-receive-samples-per-second=1000000001"],
            "--limit-receive-samples-per-second: 1000000001 a second is not from 0 to 1000000000; 0 is unlimited",
        ),
        (
            &["--limit-receive-samples-per-second=0.0000001"],
            "at 0.0000001 a second, a burst of 10000 takes centuries to come back",
        ),
        (
            &["--limit-receive-requests-burst=5"],
            "--limit-receive-requests-burst: without --limit-receive-requests-per-second there is no limit",
        ),
        (
            &["--limit-receive-samples-per-second=1", "--limit-receive-samples-burst=0"],
            "--limit-receive-samples-burst: `0` is not a whole number from 1 up",
        ),
        (&["--limit-bytes=500k"], "--limit-bytes: `500k` is not a whole number"),
        (&["--limit-receive-bytes=-1"], "--limit-receive-bytes: `-1`"),
        (&["--limit-receive-decoded-bytes=x"], "--limit-receive-decoded-bytes: `x`"),
        (&["--limit-series=x"], "--limit-series: `x`"),
        (&["--limit-series=4194305"], "--limit-series: at most 4194304 series"),
        (&["--limit-labels=1.5"], "--limit-labels: `1.5`"),
        (&["--limit-label-name-bytes=x"], "--limit-label-name-bytes: `x`"),
        (&["--limit-label-value-bytes=x"], "--limit-label-value-bytes: `x`"),
        (&["--limit-receive-label-name-bytes=x"], "--limit-receive-label-name-bytes: `x`"),
        (&["--limit-receive-label-value-bytes=x"], "--limit-receive-label-value-bytes: `x`"),
        (&["--limit-in-flight=0"], "--limit-in-flight: at least 1"),
        (&["--limit-connections=0"], "--limit-connections: 0 is not from 1 to 1048576"),
        (&["--limit-connections-per-peer=some"], "--limit-connections-per-peer: `some` is not a whole number"),
        (&["--limit-buffered-bytes=-1"], "--limit-buffered-bytes: `-1` is not a whole number"),
        (&["--limit-header-bytes=100"], "--limit-header-bytes: 100 is not from 8192 to 16777216"),
        (&["--limit-headers=0"], "--limit-headers: 0 is not from 1 to 10000"),
        (&["--limit-streams=0"], "--limit-streams: 0 is not from 1"),
        (&["--limit-stream-resets=0"], "--limit-stream-resets: 0 is not from 1"),
        (&["--header-timeout=0s"], "--header-timeout: `0s` is not more than 0 and at most 24h"),
        (&["--body-timeout=30"], "--body-timeout: "),
        (&["--shutdown-grace=0s"], "--shutdown-grace: `0s` is not more than 0 and at most 24h"),
        (&["--idle-timeout=25h"], "--idle-timeout: `25h` is not more than 0 and at most 24h"),
        (&["--shared-key=-----BEGIN PRIVATE KEY-----\nsecret"], "--shared-key: this is what the file should hold"),
        (&["--redis-password=secret"], "--redis-password is nothing without --redis"),
        (
            &["--redis=redis://:secret@a", "--redis-password=secret"],
            "--redis-password: the URL has a password already; give one of them",
        ),
        (
            &["--redis=redis://a", "--redis-password=secret", "--redis-password-file=f"],
            "--redis-password and --redis-password-file exclude each other",
        ),
        (&["--redis=redis://a", "--redis-password-file=/nowhere"], "--redis-password-file: /nowhere: No such file"),
        (
            &["--redis=redis://a", "--redis-sentinel-password=secret"],
            "--redis-sentinel-password is for --redis-mode=sentinel",
        ),
        (&["--internal-token-file=/nowhere"], "--internal-token-file: /nowhere: "),
        (&["--log-level=loud"], "--log-level: `loud` is none of debug, info, warn, error"),
        (&["--internal.tracing.endpoint-type=zipkin"], "`zipkin` is none of agent, collector, otel"),
        (&["--internal.tracing.endpoint=http://jaeger:14268"], "HOST:PORT of a Jaeger agent"),
        (&["--internal.tracing.sampling-fraction=all"], "this is not a number from 0 to 1"),
        (&["--verbose=perhaps"], "'perhaps'"),
    ];
    let taken = Taken::new();
    for (flags, says) in wrong {
        let exit = taken.run(flags).await;
        assert_refused(&exit, flags, says);
        assert!(!exit.stderr.contains("secret"), "{exit:?}");
    }
    for flag in NOT_TAKEN {
        assert_refused(&taken.run(&[flag, "x"]).await, &[flag], &format!("'{flag}'"));
        assert_refused(&taken.run(&[&format!("{flag}=x")]).await, &[flag], &format!("'{flag}'"));
    }
    assert_refused(&Gateway::run_to_exit([""; 0]).await, &[], "--authorize is required");

    // All of these were found before anything listened: what is right fails at the address.
    let exit = taken.run(&[]).await;
    assert_eq!((exit.code(), exit.stderr.lines().count()), (69, 1), "{exit:?}");
    assert!(exit.stderr.contains("--listen: Address already in use"), "{exit:?}");
}

#[tokio::test]
async fn two_listeners_have_two_addresses() {
    let taken = Taken::new();
    let port = taken.public.local_addr().unwrap().port();
    for (listen, internal) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "localhost"), ("", ""), ("127.0.0.1", "")] {
        let flags = [format!("--listen={listen}:{port}"), format!("--listen-internal={internal}:{port}")];
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        assert_refused(&taken.run(&flags).await, &flags, "--listen and --listen-internal: ");
    }
}

#[tokio::test]
async fn a_wrong_line_in_a_file_is_named() {
    let taken = Taken::new();
    for (flag, text, line) in
        [("--whitelist-file", "# rules\n\nup\n{broken\n", 4), ("--policy", "upload:\n  allowlst: [up]\n", 2)]
    {
        let file = file(text.as_bytes());
        let path = file.path().display();
        let flag = format!("{flag}={path}");
        assert_refused(&taken.run(&[&flag]).await, &[&flag], &format!("{path}:{line}:"));
    }
}

#[tokio::test]
async fn a_key_that_cannot_sign_is_refused() {
    let taken = Taken::new();
    for (key, says) in [
        (fixtures::P256_PUBLIC, "holds no private key"),
        (fixtures::ENCRYPTED_PKCS8, "encrypted"),
        (fixtures::ENCRYPTED_SEC1, "encrypted"),
        (fixtures::RSA_1024_PKCS1, "2048 to 8192 bits"),
        (fixtures::P224_PKCS8, "P-256, P-384 or P-521"),
        (fixtures::ED25519_PKCS8, "P-256, P-384 or P-521"),
    ] {
        let file = file(key.as_bytes());
        let flag = format!("--shared-key={}", file.path().display());
        let exit = taken.run(&[&flag]).await;
        assert_refused(&exit, &[&flag], says);
        assert!(exit.stderr.starts_with("error: --shared-key: "), "{exit:?}");
    }
}

#[tokio::test]
async fn help_and_version() {
    let exit = Gateway::run_to_exit(["--version"]).await;
    let version = format!("infogw-proxy {}", env!("CARGO_PKG_VERSION"));
    assert_eq!((exit.code(), exit.stdout.trim(), exit.stderr.as_str()), (0, version.as_str(), ""));

    let exit = Gateway::run_to_exit(["--help"]).await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""));
    let words = |text: &str| -> Vec<_> {
        text.split(|c: char| c.is_whitespace() || ",=[]<>".contains(c)).map(str::to_owned).collect()
    };
    let told = words(&exit.stdout);
    for flag in ACCEPTED {
        assert!(told.iter().any(|word| word == flag), "{flag} is not in the help");
    }
    for flag in NOT_TAKEN {
        assert!(!told.iter().any(|word| word == flag), "{flag} is in the help");
    }
    for default in ["0.0.0.0:9003", "localhost:9004", "_id", "4m30s", "512000", "131072", "86400", "info"] {
        assert!(exit.stdout.contains(&format!("[default: {default}]")), "{default}");
    }
    for variable in ["$INFOGW_CLIENT_SECRET", "$INFOGW_REDIS_PASSWORD", "$INFOGW_REDIS_SENTINEL_PASSWORD"] {
        assert!(exit.stdout.contains(variable), "{variable}");
    }
    for told in [
        "  dev ",
        "  token ",
        "  completions ",
        "Exit codes:\n  0   done\n  64  a flag, or a file that it names, is wrong\n  69  ",
    ] {
        assert!(exit.stdout.contains(told), "{told}");
    }
}

#[tokio::test]
async fn empty_means_unset() {
    // Neither without a value, nor needed here.
    const OTHERS: [&str; 8] = [
        "-v",
        "--help",
        "--version",
        "--insecure-accept-any-token",
        "--authorize",
        "--forward-url",
        "--listen",
        "--listen-internal",
    ];
    let empty: Vec<_> = ACCEPTED.iter().filter(|flag| !OTHERS.contains(flag)).map(|flag| format!("{flag}=")).collect();
    let empty: Vec<_> = empty.iter().map(String::as_str).collect();
    let world = World::with(&empty).await;
    // The defaults are in force.
    let answer = world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200).json();
    assert_eq!((&answer["expiresInSeconds"], &answer["labels"]), (&json!(86_400), &json!({ "_id": "c1" })));
    world.upload("c1", &format!("any{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    assert_eq!(world.forwarded().header("thanos-tenant"), Some("FB870BF3-9F3A-44FF-9BF7-D7A047A52F43"));
    assert!(world.upload("c1", "").await.expect_status(429).retry_after() >= Some(240));
}

#[tokio::test]
async fn a_scalar_given_twice_takes_the_last_value() {
    let flags = [
        "--log-level=loud",
        "--log-level=debug",
        "--tenant-id=first",
        "--tenant-id",
        "last",
        "--ratelimit=x",
        "--ratelimit=0",
        "--token-expire-seconds=1",
        "--token-expire-seconds=",
    ];
    let world = World::with(&flags).await;
    let answer = world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200).json();
    assert_eq!(answer["expiresInSeconds"], json!(86_400), "the last value is empty, which is unset");
    for _ in 0..2 {
        world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
    }
    assert_eq!(world.upstream.received()[1].header("thanos-tenant"), Some("last"));

    let wrong_last = ["--authorize=http://localhost/", "--authorize=nowhere"];
    assert_refused(&Taken::new().run(&wrong_last).await, &wrong_last, "--authorize: `nowhere`");
}

#[tokio::test]
async fn verbose_logs_outgoing_requests_at_debug() {
    for (flags, logged) in [
        (&["--log-level=debug", "-v"][..], true),
        (&["--log-level=debug", "--verbose=true"], true),
        (&["--log-level=debug", "-v", "--verbose=false"], false),
        (&["--log-level=debug"], false),
        (&["-v"], false),
    ] {
        let world = World::with(flags).await;
        world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
        let logs = world.gateway.stop().await.stderr;
        for client in ["authorize", "forward"] {
            let line = logs
                .lines()
                .find(|line| line.contains("outgoing request") && line.contains(&format!("client={client}")));
            assert_eq!(line.is_some(), logged, "{flags:?}: {client}\n{logs}");
            assert!(line.is_none_or(|line| line.contains("level=debug") && line.contains("method=POST")), "{line:?}");
        }
    }
}

#[tokio::test]
async fn durations_are_gos() {
    for (ratelimit, waits) in
        [("1h", 3590..=5400), ("1.5m", 88..=136), ("1m30s", 88..=136), ("90000ms", 88..=136), ("+90s", 88..=136)]
    {
        let world = World::with(&["--ratelimit", ratelimit]).await;
        let upload = async || world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await;
        upload().await.expect_status(200);
        let wait = upload().await.expect_status(429).retry_after().expect("a wait");
        assert!(waits.contains(&wait), "{ratelimit}: {wait} s");
    }
    for off in ["0", "0s"] {
        let world = World::with(&["--ratelimit", off]).await;
        for _ in 0..3 {
            world.upload("c1", &format!("up{{_id=\"c1\"}} 1 {}\n", now())).await.expect_status(200);
        }
    }
}

#[tokio::test]
async fn rules_hold_commas_and_add_up() {
    let rules = file(b"# from the file\n\n   {__name__=\"c\",x!=\"2\"}   \n#{__name__=\"d\"}\n");
    let path = rules.path().display().to_string();
    let world =
        World::with(&["--whitelist", r#"{__name__="a",x="1"}"#, "--whitelist", "b", "--whitelist-file", &path]).await;
    let offered = ["a", "b", "c", "d"]
        .iter()
        .flat_map(|name| ["1", "2"].map(|x| series(&[("__name__", name), ("_id", "c1"), ("x", x)], &[(1.0, now())])));
    world.receive("c1", offered.collect()).await.expect_status(200);
    let expected = [r#"a{_id="c1",x="1"}"#, r#"b{_id="c1",x="1"}"#, r#"b{_id="c1",x="2"}"#, r#"c{_id="c1",x="1"}"#];
    assert_eq!(spelt(&world.forwarded()), expected);
}

#[tokio::test]
async fn labels_are_comma_separated_and_repeatable() {
    let flags = [
        "--label=a=1,b=2",
        "--label",
        "c=3",
        "--elide-label=x",
        "--elide-label",
        "y",
        "--required-label=env=prod,tier=1",
        "--partition-label=cluster",
        "--token-expire-seconds=60",
    ];
    let world = World::with(&flags).await;
    let answer = world.gateway.authorize("c1", PULL_SECRET).await.expect_status(200).json();
    assert_eq!(answer["labels"], json!({ "cluster": "c1", "env": "prod", "tier": "1" }));
    assert_eq!(answer["expiresInSeconds"], json!(60));

    let upload = async |labels: &str| world.upload("c1", &format!("up{{{labels}}} 1 {}\n", now())).await;
    let good = r#"cluster="c1",env="prod",tier="1",x="x",y="y",z="z",a="0""#;
    upload(good).await.expect_status(200);
    let passed = r#"up{a="1",b="2",c="3",cluster="c1",env="prod",tier="1",z="z"}"#;
    assert_eq!(spelt(&world.forwarded()), [passed]);

    for (cluster, labels, says) in [
        ("c2", r#"cluster="c2",env="test",tier="1""#, "label `env` is `test`, this sender must have `prod`"),
        ("c3", r#"cluster="c3",env="prod""#, "label `tier` is missing, this sender must have it"),
    ] {
        let refused = world.upload(cluster, &format!("up{{{labels}}} 1 {}\n", now())).await.expect_status(400);
        assert!(refused.reason().contains(says), "{refused:?}");
    }
}

#[tokio::test]
async fn the_tenant_key_names_the_tenant_in_logs() {
    let world = World::with(&["--log-level=debug", "--tenant-key=tenant"]).await;
    let token = json!({ "authorization_token": PULL_SECRET, "cluster_id": "c1", "tenant": "t-7" }).to_string();
    let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
    world.gateway.receive(&BASE64_STANDARD.encode(token), body.clone()).await.expect_status(200);
    world.gateway.wait_for_log("tenant=t-7 cluster=c1").await;
    world.gateway.receive(&composite_token(PULL_SECRET, "c2"), body).await.expect_status(400);
}

#[tokio::test]
async fn both_listeners_are_where_flags_say() {
    let world = World::with(&["--listen=[::1]:0", "--listen-internal=:0"]).await;
    assert!(world.gateway.public_address().starts_with("[::1]:"), "{}", world.gateway.public_address());
    http::get(&world.gateway.public("/healthz")).await.expect_status(200);
    let port = world.gateway.internal("").rsplit(':').next().unwrap().to_owned();
    http::get(&format!("http://127.0.0.1:{port}/healthz")).await.expect_status(200);
}

/// Each form of key: the tokens that it signs are those of its algorithm, and are accepted.
#[tokio::test]
async fn keys_in_every_form_sign() {
    for (pem, algorithm) in [
        (fixtures::RSA_PKCS1, "RS256"),
        (fixtures::RSA_PKCS8, "RS256"),
        (fixtures::P256_SEC1, "ES256"),
        (fixtures::P256_PKCS8, "ES256"),
        (fixtures::P384_SEC1, "ES384"),
        (fixtures::P384_PKCS8, "ES384"),
        (fixtures::P521_SEC1, "ES512"),
        (fixtures::P521_PKCS8, "ES512"),
    ] {
        for key in [pem.as_bytes().to_vec(), der(pem)] {
            let key = file(&key);
            let world = World::with(&["--shared-key", &key.path().display().to_string()]).await;
            assert!(
                !world.gateway.logs().iter().any(|line| line.contains("--shared-key")),
                "{:?}",
                world.gateway.logs()
            );
            let token = world.token("c1").await;
            let header = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&header).unwrap()["alg"], algorithm);
            let line = format!("up{{_id=\"c1\"}} 1 {}\n", now());
            world.gateway.upload(&token, TEXT, "", line).await.expect_status(200);
        }
    }
}

/// A pair of addresses that somebody else listens on.
struct Taken {
    public: TcpListener,
    internal: TcpListener,
}

impl Taken {
    fn new() -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        Taken { public: bind(), internal: bind() }
    }

    /// Runs the gateway there, with [`GOOD`] flags and then these.
    async fn run(&self, flags: &[&str]) -> Exit {
        let listen = format!("--listen={}", self.public.local_addr().unwrap());
        let internal = format!("--listen-internal={}", self.internal.local_addr().unwrap());
        let args = [listen.as_str(), internal.as_str()].into_iter().chain(GOOD).chain(flags.iter().copied());
        Gateway::run_to_exit(args).await
    }
}

#[track_caller]
fn assert_refused(exit: &Exit, flags: &[&str], says: &str) {
    assert_eq!(exit.code(), 64, "{flags:?}: {exit:?}");
    assert_eq!((exit.stderr.lines().count(), exit.stdout.as_str()), (1, ""), "{flags:?}: {exit:?}");
    assert!(
        exit.stderr.starts_with("error: ") && exit.stderr.contains(says),
        "{flags:?}: {says:?} is not in {:?}",
        exit.stderr
    );
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(content).expect("a temporary file takes a few bytes");
    file
}

/// The bytes of the last block of a PEM file.
fn der(pem: &str) -> Vec<u8> {
    let block = pem.trim_end().rsplit("-----BEGIN ").next().unwrap();
    let base64: String = block.lines().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    BASE64_STANDARD.decode(base64).expect("PEM holds base64")
}
