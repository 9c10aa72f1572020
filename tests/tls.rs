//! TLS on the listeners: what is agreed on, whose certificates are shown to whom, and files that change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use http_body_util::{Empty, Full};
use hyper::{Request, Response, http::request::Builder};
use infogw_layers::authorize::certificate::{CertificateError, ClientCertificate};
use infogw_proxy::{
    server::{self, Ending, Listener},
    tls::{KeyPair, Live, PemFile, ServerFiles},
};
use prometheus::IntCounter;
use rcgen::{CertificateParams, date_time_ymd};
use rustls::{HandshakeKind, SupportedProtocolVersion, version};
use serde_json::json;
use support::{
    Gateway, Prometheus, Reply, World, ensure, eventually, http,
    payload::{composite_token, series, write_body},
    process::{Exit, Process},
    tls::{Authority, ClientOptions, Leaf, TlsClient, TlsConnection, Volume},
    within,
    world::{PULL_SECRET, now},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

const H1: ClientOptions<'static> = ClientOptions { shows: None, alpn: &["http/1.1"], versions: &[] };
const H2: ClientOptions<'static> = ClientOptions { shows: None, alpn: &["h2"], versions: &[] };

const TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// Flags of a public listener with these files.
fn public(files: &Volume) -> [String; 2] {
    [files.flag("--tls-crt", "tls.crt"), files.flag("--tls-key", "tls.key")]
}

async fn world(flags: &[String]) -> World {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    World::with(&flags).await
}

async fn connect(world: &World, client: &TlsClient) -> TlsConnection {
    client.connect(world.gateway.public_address()).await.expect("a connection")
}

async fn push(connection: &mut TlsConnection) -> Result<Reply, String> {
    let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
    let request = Request::post("/metrics/v1/receive")
        .header("authorization", format!("Bearer {}", composite_token(PULL_SECRET, "c1")))
        .header("content-type", "application/x-protobuf")
        .header("content-encoding", "snappy");
    connection.send(request, body).await
}

fn get(path: &str) -> Builder {
    Request::get(path)
}

/// Fails unless the metrics have this line.
async fn counted(gateway: &Gateway, line: &str) -> Result<(), String> {
    let metrics = http::get(&gateway.internal("/metrics")).await;
    let name = line.split('{').next().unwrap_or(line);
    let found: Vec<_> = metrics.text().lines().filter(|found| found.starts_with(name)).collect();
    ensure(found.contains(&line), || format!("not {line} but {found:#?}"))
}

#[tokio::test]
async fn remote_write_over_both_versions_of_each() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let world = world(&public(&files)).await;
    let mut pushed = 0;
    for (alpn, agreed) in [
        (&["h2"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.0", "http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        for versions in [&[], TLS12, TLS13] {
            let client = TlsClient::new(&authority, &ClientOptions { alpn, versions, ..Default::default() });
            let mut connection = connect(&world, &client).await;
            assert_eq!(connection.alpn.as_deref(), agreed, "{alpn:?}");
            push(&mut connection).await.unwrap().expect_status(200);
            push(&mut connection).await.unwrap().expect_status(200);
            pushed += 2;
            assert_eq!(world.upstream.received().len(), pushed);
        }
    }
    // The other listener is as it was, and so is the one that it has nothing to agree on with.
    http::get(&world.gateway.internal("/healthz")).await.expect_status(200);
    let client = TlsClient::new(&authority, &ClientOptions { alpn: &["spdy/3"], ..Default::default() });
    assert!(client.connect(world.gateway.public_address()).await.is_err());
    // Who expects plaintext gets no answer to a request.
    let request = Request::get(world.gateway.public("/healthz")).body(Empty::new()).unwrap();
    http::try_send(request).await.unwrap_err();
    eventually("both are counted", async || {
        counted(&world.gateway, r#"infogw_tls_handshake_failures_total{listener="public"} 2"#).await
    })
    .await;
}

#[tokio::test]
async fn older_versions_are_refused() {
    let files = Volume::of(&Authority::new().server());
    let world = world(&public(&files)).await;
    // By hand: client libraries know nothing any more of TLS 1.1 and 1.0. The one of 1.2 shows that the rest of the hello is right.
    for minor in [3, 2, 1] {
        let suites = [0, 4, 0xc0, 0x2b, 0xc0, 0x2f];
        let (groups, signatures) = ([0, 10, 0, 4, 0, 2, 0, 23], [0, 13, 0, 4, 0, 2, 4, 3]);
        let hello = [&[3, minor][..], &[7; 32], &[0], &suites, &[1, 0], &[0, 16], &groups, &signatures].concat();
        let length = hello.len() as u8;
        let record = [&[0x16, 3, 1, 0, length + 4, 1, 0, 0, length], &hello[..]].concat();
        let mut stream = TcpStream::connect(world.gateway.public_address()).await.unwrap();
        stream.write_all(&record).await.unwrap();
        let mut answer = [0; 7];
        within("an answer", stream.read_exact(&mut answer)).await.unwrap();
        if minor == 3 {
            assert_eq!((answer[0], answer[5]), (0x16, 2), "no ServerHello: {answer:x?}");
        } else {
            // A fatal alert, protocol_version (RFC 5246, section 7.2).
            assert_eq!((answer[0], &answer[5..]), (0x15, &[2, 70][..]), "{answer:x?}");
        }
    }
}

#[tokio::test]
async fn a_stock_sender_pushes_over_tls() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let files = Volume::of(&servers.server());
    let ca = Volume::new(&[("ca.crt", &clients.pem())]);
    let world = world(&[&public(&files)[..], &[ca.flag("--tls-ca-crt", "ca.crt")]].concat()).await;
    let leaf = clients.client("a", "c1");
    let senders = Volume::new(&[("ca.crt", &servers.pem()), ("tls.crt", &leaf.pem()), ("tls.key", &leaf.key_pem())]);
    let url = format!("https://{}/metrics/v1/receive", world.gateway.public_address());
    let _sender = Prometheus::start(|own| {
        json!({
            "global": { "scrape_interval": "250ms", "external_labels": { "_id": "c1" } },
            "scrape_configs": [{ "job_name": "own", "static_configs": [{ "targets": [own.to_string()] }] }],
            "remote_write": [{
                "url": url,
                "authorization": { "type": "Bearer", "credentials": composite_token(PULL_SECRET, "c1") },
                "tls_config": {
                    "ca_file": senders.path("ca.crt"),
                    "cert_file": senders.path("tls.crt"),
                    "key_file": senders.path("tls.key"),
                    "server_name": "localhost",
                },
                "queue_config": { "batch_send_deadline": "100ms" },
                "metadata_config": { "send": false },
            }],
        })
    })
    .await;
    let writes = world.upstream.wait_for(1).await;
    assert!(!writes[0].request().timeseries.is_empty());
}

#[tokio::test]
async fn new_files_for_new_connections_and_the_open_ones_stay() {
    let authority = Authority::new();
    let (old, new) = (authority.server(), authority.server());
    let files = Volume::of(&old);
    let world = world(&public(&files)).await;
    let (h1, h2) = (TlsClient::new(&authority, &H1), TlsClient::new(&authority, &H2));
    let mut open = [connect(&world, &h1).await, connect(&world, &h2).await];
    for connection in &mut open {
        assert_eq!(connection.server, *old.der());
        push(connection).await.unwrap().expect_status(200);
    }
    files.swap_to(&new);
    world.gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=public"#).await;
    for connection in &mut open {
        push(connection).await.unwrap().expect_status(200);
    }
    for client in [&h1, &h2] {
        let mut connection = connect(&world, client).await;
        // Had a session been taken up, the old certificate would show.
        assert_eq!((&connection.server, connection.handshake), (new.der(), HandshakeKind::Full));
        push(&mut connection).await.unwrap().expect_status(200);
    }
    counted(&world.gateway, r#"infogw_certificate_reloads_total{certificate="public",result="success"} 1"#)
        .await
        .unwrap();
    counted(&world.gateway, r#"infogw_certificate_reloads_total{certificate="public",result="error"} 0"#)
        .await
        .unwrap();
}

#[tokio::test]
async fn sighup_reads_the_files_again() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let world = world(&public(&files)).await;
    // They have not changed, so it can only be the signal.
    world.gateway.signal("HUP").await;
    world.gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=public"#).await;
    let line = r#"infogw_certificate_reloads_total{certificate="public",result="success"} 1"#;
    counted(&world.gateway, line).await.unwrap();
}

/// As a shell makes them, `--tls-key <(...)`: they are read once, and their writers do not come again.
#[tokio::test]
async fn pipes_hold_up_neither_reloads_nor_the_end() {
    let authority = Authority::new();
    let leaf = authority.server();
    let files = Volume::of(&leaf);
    let pipes = tempfile::tempdir().unwrap();
    let pipe = |name: &str, contents: String| {
        let path = pipes.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let written = path.clone();
        std::thread::spawn(move || fs::write(written, contents));
        path.display().to_string()
    };
    let (key, rules) = (pipe("key", leaf.key_pem()), pipe("rules", "up\n".to_owned()));
    let flags = [files.flag("--tls-crt", "tls.crt"), format!("--tls-key={key}"), format!("--whitelist-file={rules}")];
    let World { gateway, upstream: _upstream, authorizer: _authorizer } = world(&flags).await;
    let line = gateway.wait_for_log("this is not a regular file").await;
    assert!(line.starts_with("level=warn ") && line.contains(&format!("path={key}")), "{line}");
    gateway.signal("HUP").await;
    let mut connection = TlsClient::new(&authority, &H2).connect(gateway.public_address()).await.unwrap();
    push(&mut connection).await.unwrap().expect_status(200);
    // The end takes seconds, so that by then the rules' pipe is waited for.
    gateway.signal("TERM").await;
    assert_eq!(gateway.exit().await.code(), 0);
}

#[tokio::test]
async fn sessions_are_taken_up_unless_certificates_would_not_be_verified_again() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let leaf = authority.client("a", "c1");
    fs::write(files.path("ca.crt"), authority.pem()).unwrap();
    let with_clients = [&public(&files)[..], &[files.flag("--tls-ca-crt", "ca.crt")]].concat();
    for (flags, shows, expected) in [
        (&public(&files)[..], None, HandshakeKind::Resumed),
        (&with_clients, None, HandshakeKind::Full),
        (&with_clients, Some(&leaf), HandshakeKind::Full),
    ] {
        let world = world(flags).await;
        for versions in [TLS12, TLS13] {
            let client = TlsClient::new(&authority, &ClientOptions { shows, versions, ..H1 });
            for kind in [HandshakeKind::Full, expected, expected] {
                let mut connection = connect(&world, &client).await;
                assert_eq!(connection.handshake, kind, "{flags:?}");
                // Tickets come with the first answer.
                push(&mut connection).await.unwrap().expect_status(200);
            }
        }
    }
}

#[tokio::test]
async fn broken_files_are_logged_and_the_old_ones_stay() {
    let authority = Authority::new();
    let (old, other, new) = (authority.server(), authority.server(), authority.server());
    let files = Volume::of(&old);
    let world = world(&public(&files)).await;
    let client = TlsClient::new(&authority, &H1);
    let (crt, key) = (files.path("tls.crt"), files.path("tls.key"));
    let (crt, key) = (crt.display(), key.display());
    let broken = [
        ((old.pem(), other.key_pem()), format!("--tls-key: {key}: the key does not fit the certificate in {crt}")),
        ((String::new(), old.key_pem()), format!("--tls-crt: {crt}: holds no certificate in PEM")),
        ((old.pem().replace("-----END", "END"), old.key_pem()), format!("--tls-crt: {crt}: is not well-formed PEM")),
        ((old.pem(), old.key_pem()[..60].to_owned()), format!("--tls-key: {key}: holds no private key in PEM")),
    ];
    for (i, ((crt, key), says)) in broken.iter().enumerate() {
        files.swap(&[("tls.crt", crt), ("tls.key", key)]);
        let line = world.gateway.wait_for_log(says).await;
        let begins = r#"msg="the TLS files were not reloaded; the old ones stay" certificate=public error="#;
        assert!(line.starts_with("level=error ") && line.contains(begins), "{line}");
        assert!(!line.contains("BEGIN") && !line.contains(&old.key_pem()[40..60]), "{line}");
        let errors = format!(r#"infogw_certificate_reloads_total{{certificate="public",result="error"}} {}"#, i + 1);
        counted(&world.gateway, &errors).await.unwrap();
        let mut connection = connect(&world, &client).await;
        push(&mut connection).await.unwrap().expect_status(200);
        assert_eq!(connection.server, *old.der());
    }
    // A file that has gone is as good as broken.
    files.swap(&[("tls.crt", &old.pem())]);
    world.gateway.wait_for_log(&format!("--tls-key: {key}: No such file")).await;
    files.swap_to(&new);
    world.gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=public"#).await;
    assert_eq!(connect(&world, &client).await.server, *new.der());
}

#[tokio::test]
async fn broken_files_are_not_started_with() {
    let authority = Authority::new();
    let (leaf, other) = (authority.server(), authority.server());
    let good = Volume::of(&leaf);
    let files = Volume::new(&[
        ("other.key", &other.key_pem()),
        ("garbage.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("garbage.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ]);
    let (crt, key) = ("--tls-crt", "--tls-key");
    let ca = files.flag("--tls-ca-crt", "garbage.crt");
    for (flags, says) in [
        ([good.flag(crt, "tls.crt"), files.flag(key, "other.key")], "does not fit the certificate"),
        ([good.flag(crt, "tls.key"), good.flag(key, "tls.crt")], "tls.key: holds no certificate"),
        ([files.flag(crt, "garbage.crt"), good.flag(key, "tls.key")], "garbage.crt: the first certificate is not"),
        ([good.flag(crt, "tls.crt"), files.flag(key, "garbage.key")], "garbage.key: not a usable private key"),
    ] {
        assert_refused(&run(&flags).await, says);
        let internal = flags.map(|flag| flag.replacen("--tls-", "--internal-tls-", 1));
        assert_refused(&run(&internal).await, says);
        let forward = internal.map(|flag| flag.replacen("--internal-", "--forward-", 1));
        assert_refused(&run(&[&forward[..], &["--forward-url=https://localhost/".to_owned()]].concat()).await, says);
    }
    assert_refused(&run(&[&public(&good)[..], &[ca]].concat()).await, "--tls-ca-crt: ");
}

async fn run(flags: &[String]) -> Exit {
    let mut command = Gateway::command();
    command.args(["--listen=127.0.0.1:0", "--listen-internal=127.0.0.1:0"]);
    command.args(["--authorize=http://localhost/", "--forward-url=http://localhost/"]).args(flags);
    Process::spawn(command).exit().await
}

#[track_caller]
fn assert_refused(exit: &Exit, says: &str) {
    assert_eq!((exit.code(), exit.stderr.lines().count(), exit.stdout.as_str()), (64, 1, ""), "{exit:?}");
    assert!(exit.stderr.starts_with("error: --") && exit.stderr.contains(says), "{says:?} is not in {exit:?}");
}

#[tokio::test]
async fn the_internal_listener_has_its_own() {
    let authority = Authority::new();
    let not_after = 4_070_908_800_u64;
    let leaf = issue_until(&authority, 2099);
    let files = Volume::of(&leaf);
    let flags = public(&files).map(|flag| flag.replacen("--tls-", "--internal-tls-", 1));
    let world = world(&flags).await;
    world.receive("c1", vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]).await.expect_status(200);
    let client = TlsClient::new(&authority, &H2);
    let mut connection = client.connect(world.gateway.internal_address()).await.unwrap();
    let metrics = connection.send(get("/metrics"), "").await.unwrap().expect_status(200);
    for line in [
        format!(r#"infogw_certificate_expiry_timestamp_seconds{{certificate="internal"}} {not_after}"#),
        r#"infogw_certificate_reloads_total{certificate="internal",result="success"} 0"#.to_owned(),
        r#"infogw_certificate_reloads_total{certificate="internal",result="error"} 0"#.to_owned(),
        r#"infogw_tls_handshake_failures_total{listener="internal"} 0"#.to_owned(),
    ] {
        assert!(metrics.text().lines().any(|found| found == line), "no {line} in\n{}", metrics.text());
    }
    for absent in [r#"certificate="public""#, r#"certificate="forward""#, r#"failures_total{listener="public""#] {
        assert!(!metrics.text().contains(absent), "{absent} in\n{}", metrics.text());
    }

    let new = issue_until(&authority, 1999);
    files.swap_to(&new);
    let line = world.gateway.wait_for_log(r#"msg="this certificate has expired" certificate=internal"#).await;
    assert!(line.contains("level=warn") && line.ends_with("expired=1999-01-01T00:00:00Z"), "{line}");
    let metrics = connection.send(get("/metrics"), "").await.unwrap().expect_status(200);
    let line = r#"infogw_certificate_expiry_timestamp_seconds{certificate="internal"} 915148800"#;
    assert!(metrics.text().lines().any(|found| found == line), "no {line} in\n{}", metrics.text());
}

/// A server's certificate that ends with this year's first second.
fn issue_until(authority: &Authority, year: i32) -> Leaf {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = date_time_ymd(year, 1, 1);
    authority.issue(&params)
}

#[tokio::test]
async fn clients_may_show_certificates_of_the_right_authority() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let files = Volume::of(&servers.server());
    let ca = Volume::new(&[("ca.crt", &clients.pem())]);
    let world = world(&[&public(&files)[..], &[ca.flag("--tls-ca-crt", "ca.crt")]].concat()).await;
    let (known, strange) = (clients.client("a", "c1"), strangers.client("a", "c1"));
    let mut expired = CertificateParams::default();
    expired.not_after = date_time_ymd(2020, 1, 1);
    let expired = clients.issue(&expired);

    let attempt = async |shows: Option<&Leaf>, versions| {
        let client = TlsClient::new(&servers, &ClientOptions { shows, versions, ..H2 });
        // TLS 1.3 tells a client only after it has begun to speak.
        push(&mut client.connect(world.gateway.public_address()).await?).await
    };
    let mut failures = 0;
    for versions in [TLS12, TLS13] {
        attempt(None, versions).await.unwrap().expect_status(200);
        attempt(Some(&known), versions).await.unwrap().expect_status(200);
        for refused in [&strange, &expired] {
            attempt(Some(refused), versions).await.unwrap_err();
            failures += 1;
        }
    }
    let line = format!(r#"infogw_tls_handshake_failures_total{{listener="public"}} {failures}"#);
    eventually("each is counted", async || counted(&world.gateway, &line).await).await;
    assert_eq!(world.upstream.received().len(), 4);

    // The other way round, once the authorities change.
    ca.swap(&[("ca.crt", &strangers.pem())]);
    world.gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=public"#).await;
    attempt(Some(&strange), TLS13).await.unwrap().expect_status(200);
    attempt(Some(&known), TLS13).await.unwrap_err();
    // A broken list is no open door.
    ca.swap(&[("ca.crt", "")]);
    world.gateway.wait_for_log("holds no certificate in PEM").await;
    attempt(Some(&known), TLS13).await.unwrap_err();
    attempt(Some(&strange), TLS13).await.unwrap().expect_status(200);
}

#[tokio::test]
async fn requests_know_whom_their_connection_is_from() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let ca = Volume::new(&[("ca.crt", &authority.pem())]);
    let file = |flag, path| PemFile { flag, path };
    let live = Live::new(ServerFiles {
        name: "public",
        pair: KeyPair {
            certificate: file("--tls-crt", files.path("tls.crt")),
            key: file("--tls-key", files.path("tls.key")),
        },
        client_ca: Some(file("--tls-ca-crt", ca.path("ca.crt"))),
    });
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let failures = IntCounter::new("failures", "failures").unwrap();
    let listener = Listener::tls(tcp, live.unwrap().current(), failures);
    let (_stop, stopped) = watch::channel(false);
    let ending = Ending { farewell: Duration::ZERO, grace: Duration::ZERO };
    let serving = server::serve(listener, stopped, ending, async |request, _| {
        let who = request.extensions();
        let who = match (who.get::<Arc<ClientCertificate>>(), who.get::<CertificateError>()) {
            (Some(who), None) => format!("{} of {:?}", who.common_name(), who.organization()),
            (None, Some(error)) => error.to_string(),
            (None, None) => "nobody".to_owned(),
            both => panic!("{both:?}"),
        };
        Response::new(Full::from(who))
    });
    let asking = async {
        let leaves = [authority.client("a1", "c1"), authority.client("a2", "c2"), authority.issue(&nameless())];
        let leaves = leaves.iter().map(Some).chain([None]);
        for (shows, says) in leaves.zip([r#"c1 of Some("a1")"#, r#"c2 of Some("a2")"#, "has no common name", "nobody"])
        {
            for options in [H1, H2] {
                let client = TlsClient::new(&authority, &ClientOptions { shows, ..options });
                let mut connection = client.connect(&address).await.unwrap();
                for _ in 0..2 {
                    let reply = connection.send(get("/"), "").await.unwrap().expect_status(200);
                    assert!(reply.text().contains(says), "{says}: {reply:?}");
                }
            }
        }
    };
    tokio::select! {
        () = asking => {}
        () = serving => panic!("the server ended"),
    }
}

fn nameless() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

#[tokio::test]
async fn who_never_speaks_stops_nobody_and_is_hung_up_on() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let world = world(&public(&files)).await;
    let mut silent = Vec::new();
    for n in 0..64 {
        let mut stream = TcpStream::connect(world.gateway.public_address()).await.unwrap();
        // Half of them begin: a record that never comes to its end.
        if n % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        }
        silent.push(stream);
    }
    let mut connection = connect(&world, &TlsClient::new(&authority, &H2)).await;
    push(&mut connection).await.unwrap().expect_status(200);
    for stream in &mut silent {
        // An end or a reset.
        let read = within("the gateway hangs up", stream.read(&mut [0; 1])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    eventually("all are counted", async || {
        counted(&world.gateway, r#"infogw_tls_handshake_failures_total{listener="public"} 64"#).await
    })
    .await;
}

#[tokio::test]
async fn an_orderly_end_waits_for_requests_and_not_for_handshakes() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let World { gateway, upstream, authorizer: _authorizer } = world(&public(&files)).await;
    let released = watch::Sender::new(false);
    let held = support::Answer::status(200).held(&released);
    upstream.set_script(move |_| held.clone());
    let client = TlsClient::new(&authority, &H1);
    let _silent = TcpStream::connect(gateway.public_address()).await.unwrap();
    let _idle = client.connect(gateway.public_address()).await.unwrap();
    let mut busy = client.connect(gateway.public_address()).await.unwrap();
    let answered = async {
        let reply = push(&mut busy).await;
        (reply, Instant::now())
    };
    let ended = async {
        upstream.wait_for(1).await;
        gateway.signal("TERM").await;
        gateway.wait_for_log("shutting down").await;
        // By then the listener is closed and whoever has nothing to say has been sent away: the request alone is left.
        let closed = async || match TcpStream::connect(gateway.public_address()).await {
            Ok(_) => Err("it listens".to_owned()),
            Err(_) => Ok(()),
        };
        eventually("the listener is closed", closed).await;
        released.send_replace(true);
        gateway.exit().await
    };
    let ((reply, at), exit) = tokio::join!(answered, ended);
    reply.unwrap().expect_status(200);
    assert_eq!(exit.code(), 0);
    // The handshake that never ends would have seven seconds more, and the connections twenty.
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
}
