//! Upstream and authorizer over TLS: whom they are trusted by, and what they are shown.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use support::{
    Gateway, Reply, ensure, eventually, http,
    payload::{composite_token, series, write_body},
    process::Process,
    tls::{Authority, Neighbour, Volume},
    world::{PULL_SECRET, now},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A gateway between neighbours, whose system trusts `roots`.
async fn gateway(authorizer: &Neighbour, upstream: &Neighbour, roots: &str, flags: &[String]) -> Gateway {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), roots).unwrap();
    let mut command = Gateway::command();
    command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0"]);
    command.args(["--authorize", &authorizer.url, "--forward-url", &upstream.url]).args(flags);
    command.env("SSL_CERT_FILE", file.path()).env_remove("SSL_CERT_DIR");
    Gateway::start_command(command).await
}

async fn push(gateway: &Gateway) -> Reply {
    let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
    gateway.receive(&composite_token(PULL_SECRET, "c1"), body).await
}

#[tokio::test]
async fn neighbours_are_trusted_by_the_systems_roots() {
    let (authority, another) = (Authority::new(), Authority::new());
    let neighbour = Neighbour::start(&authority.server(), None).await;
    push(&gateway(&neighbour, &neighbour, &authority.pem(), &[]).await).await.expect_status(200);
    assert_eq!(neighbour.asked(), 2, "the authorizer and the upstream");

    let gateway = gateway(&neighbour, &neighbour, &another.pem(), &[]).await;
    let refused = push(&gateway).await.expect_status(503);
    assert!(refused.retry_after().is_some(), "{refused:?}");
    let line = gateway.wait_for_log(r#"msg="connecting failed" host=localhost error="#).await;
    assert!(line.contains("invalid peer certificate: "), "{line}");
    assert_eq!(neighbour.asked(), 2, "nothing is sent to whom we do not trust");
}

#[tokio::test]
async fn each_neighbour_has_its_own_authority_besides() {
    let (mine, system) = (Authority::new(), Authority::new());
    let files = Volume::new(&[("ca.crt", &mine.pem())]);
    let private = Neighbour::start(&mine.server(), None).await;
    let public = Neighbour::start(&system.server(), None).await;
    // What one is trusted by does not count for the other.
    let forward = [files.flag("--forward-tls-ca-crt", "ca.crt")];
    push(&gateway(&public, &private, &system.pem(), &forward).await).await.expect_status(200);
    push(&gateway(&private, &public, &system.pem(), &forward).await).await.expect_status(503);
    // Besides the system's roots, which are still trusted, and without which it does.
    push(&gateway(&public, &public, &system.pem(), &forward).await).await.expect_status(200);
    let both = [&forward[..], &[files.flag("--authorize-tls-ca-crt", "ca.crt")]].concat();
    push(&gateway(&private, &private, "", &both).await).await.expect_status(200);
}

#[tokio::test]
async fn without_anyone_to_trust_it_does_not_start() {
    let authority = Authority::new();
    let files = Volume::new(&[("ca.crt", &authority.pem())]);
    for (authorize, forward, flags) in [
        ("https://localhost/", "http://localhost/", vec![]),
        ("http://localhost/", "https://localhost/", vec![]),
        ("https://localhost/", "https://localhost/", vec![files.flag("--forward-tls-ca-crt", "ca.crt")]),
    ] {
        let mut command = Gateway::command();
        command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0"]);
        command.args(["--authorize", authorize, "--forward-url", forward]).args(&flags);
        command.env("SSL_CERT_FILE", "/nonexistent").env_remove("SSL_CERT_DIR");
        let exit = Process::spawn(command).exit().await;
        assert_eq!((exit.code(), exit.stderr.lines().count()), (69, 1), "{exit:?}");
        assert!(exit.stderr.contains("no trusted root certificates were found"), "{exit:?}");
    }
}

#[tokio::test]
async fn neighbours_are_shown_certificates_and_get_new_ones_without_a_restart() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let authorizer = Neighbour::start(&servers.server(), Some(&clients)).await;
    let upstream = Neighbour::start(&servers.server(), Some(&clients)).await;
    // One that is not let in, yet.
    let to_authorizer = Volume::of(&strangers.client("a", "gateway"));
    let to_upstream = Volume::of(&clients.client("a", "gateway to upstream"));
    let flags = [
        to_authorizer.flag("--authorize-tls-crt", "tls.crt"),
        to_authorizer.flag("--authorize-tls-key", "tls.key"),
        to_upstream.flag("--forward-tls-crt", "tls.crt"),
        to_upstream.flag("--forward-tls-key", "tls.key"),
    ];
    let gateway = gateway(&authorizer, &upstream, &servers.pem(), &flags).await;
    push(&gateway).await.expect_status(503);
    assert_eq!((authorizer.asked(), upstream.asked()), (0, 0));

    let renewed = clients.client("a", "gateway to authorizer");
    to_authorizer.swap_to(&renewed);
    gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=authorize"#).await;
    push(&gateway).await.expect_status(200);
    assert_eq!(authorizer.shown(), [renewed.der().clone()]);
    assert_eq!((authorizer.asked(), upstream.asked()), (1, 1));

    // The connection that is open stays, with what it was made with.
    let first = upstream.shown();
    to_upstream.swap_to(&clients.client("a", "gateway to upstream, again"));
    gateway.wait_for_log(r#"msg="reloaded the TLS files" certificate=forward"#).await;
    push(&gateway).await.expect_status(200);
    assert_eq!((upstream.asked(), upstream.shown()), (2, first));

    let metrics = http::get(&gateway.internal("/metrics")).await;
    for certificate in ["authorize", "forward"] {
        let reloads = format!("infogw_certificate_reloads_total{{certificate={certificate:?},result=\"success\"}} 1\n");
        assert!(metrics.text().contains(&reloads), "{}", metrics.text());
        let expiry = format!("infogw_certificate_expiry_timestamp_seconds{{certificate={certificate:?}}} ");
        assert!(metrics.text().contains(&expiry), "{}", metrics.text());
    }
}

#[tokio::test]
async fn without_a_certificate_nobody_is_let_in_who_must_show_one() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let open = Neighbour::start(&servers.server(), None).await;
    let strict = Neighbour::start(&servers.server(), Some(&clients)).await;
    push(&gateway(&strict, &open, &servers.pem(), &[]).await).await.expect_status(503);
    push(&gateway(&open, &strict, &servers.pem(), &[]).await).await.expect_status(502);
    assert_eq!(strict.asked(), 0);
}

#[tokio::test]
async fn a_new_authority_is_trusted_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let neighbour = Neighbour::start(&new.server(), None).await;
    let files = Volume::new(&[("ca.crt", &old.pem())]);
    let flags = [files.flag("--forward-tls-ca-crt", "ca.crt"), files.flag("--authorize-tls-ca-crt", "ca.crt")];
    let gateway = gateway(&neighbour, &neighbour, "", &flags).await;
    push(&gateway).await.expect_status(503);
    files.swap(&[("ca.crt", &(old.pem() + &new.pem()))]);
    eventually("the neighbour is trusted", async || {
        let reply = push(&gateway).await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
}

/// A balancer that forgets a connection resets nothing: what is sent on it is lost.
#[tokio::test]
async fn a_connection_that_died_unheard_is_given_up() {
    let authority = Authority::new();
    let neighbour = Neighbour::start(&authority.server(), None).await;
    let relay = Relay::before(&neighbour.url).await;
    let upstream = relay.url.clone();
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), authority.pem()).unwrap();
    let mut command = Gateway::command();
    command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0"]);
    command.args(["--authorize", &neighbour.url, "--forward-url", &upstream]);
    command.env("SSL_CERT_FILE", roots.path()).env_remove("SSL_CERT_DIR");
    let gateway = Gateway::start_command(command).await;
    push(&gateway).await.expect_status(200);

    relay.forget();
    eventually("another connection", async || {
        let reply = push(&gateway).await;
        ensure(reply.status == 200, || format!("{reply:?}"))
    })
    .await;
    assert!(relay.connections() > 1);
}

/// Passes connections on to a server, until told to forget those there are.
struct Relay {
    url: String,
    /// Those that were accepted before are silent.
    forgotten: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
}

impl Relay {
    async fn before(url: &str) -> Self {
        let port = url.trim_end_matches('/').rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        let forgotten = watch::Sender::new(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, told) = (Arc::clone(&accepted), forgotten.subscribe());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::Relaxed);
                let mut told = told.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let is_told = async { drop(told.wait_for(|forgotten| number < *forgotten).await) };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                        () = is_told => {}
                    }
                    // Neither passed on nor closed.
                    std::future::pending::<()>().await;
                });
            }
        });
        Relay { url, forgotten, accepted }
    }

    fn forget(&self) {
        self.forgotten.send_replace(self.connections());
    }

    fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}
