//! Neighbours that fail in every way there is: what senders hear, how often neighbours are asked, and that all is well afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    Act, Authorizer, Faulty, Gateway, Reply, Upstream, ensure, eventually,
    payload::{composite_token, series, write_body},
    tls::{Authority, Neighbour, Volume},
    world::{PULL_SECRET, TEXT, now},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const MADE: &str = r#"infogw_forward_retries_total{result="made"}"#;
const OVER_BUDGET: &str = r#"infogw_forward_retries_total{result="over_budget"}"#;
/// What the machine may take on top of a deadline while other tests run.
const SLACK: Duration = Duration::from_secs(4);

/// What a neighbour does, and what comes of it.
struct Row {
    case: &'static str,
    act: Act,
    status: u16,
    says: &'static str,
    /// How often the neighbour is asked.
    asked: usize,
    within: Duration,
}

fn row(case: &'static str, act: Act, status: u16, says: &'static str, asked: usize) -> Row {
    Row { case, act, status, says, asked, within: Duration::from_secs(2) }
}

impl Row {
    fn within(self, seconds: u64) -> Self {
        Row { within: Duration::from_secs(seconds), ..self }
    }

    /// A sender can try it again, is told when, and was not kept waiting.
    fn check(&self, reply: &Reply, elapsed: Duration, asked: usize) {
        let case = self.case;
        assert_eq!(reply.status, self.status, "{case}: {reply:?}");
        assert!(reply.reason().contains(self.says), "{case}: {reply:?}");
        assert!(reply.retry_after().is_some(), "{case}: {reply:?}");
        assert!(elapsed < self.within + SLACK, "{case}: {elapsed:?}");
        assert_eq!(asked, self.asked, "{case}: requests to the neighbour");
    }
}

fn up() -> Vec<u8> {
    write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])])
}

/// More than is sent at once.
fn large() -> Vec<u8> {
    let name = |n: u64| format!("m{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    write_body((0..2_500).map(|n| series(&[("__name__", &name(n)), ("_id", "c1")], &[(n as f64, now())])).collect())
}

async fn gateway(authorize: &str, forward: &str) -> Gateway {
    Gateway::start(["--authorize", authorize, "--forward-url", forward]).await
}

async fn write(gateway: &Gateway, body: Vec<u8>) -> Reply {
    gateway.receive(&composite_token(PULL_SECRET, "c1"), body).await
}

fn trickled_refusal() -> Act {
    Act::raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 90\r\n\r\nout of order sample").trickled()
}

/// Whatever the upstream does to a request, the sender hears within the deadline of 5 s to come back, and the next one gets through.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails() {
    let cut = |bytes: &str| Act::raw(bytes).then_resets();
    let rows = [
        row("reset in the request", Act::reset_in_request(), 502, "cannot be reached", 1),
        row("reset before the answer", cut(""), 502, "cannot be reached", 1),
        row("reset in the status", cut("HTTP/1.1 20"), 502, "cannot be reached", 1),
        row("reset in the headers", cut("HTTP/1.1 200 OK\r\nContent-Le"), 502, "cannot be reached", 1),
        row(
            "reset in a refusal's body",
            cut("HTTP/1.1 500 No\r\nContent-Length: 90\r\n\r\nhalf"),
            503,
            "answered 500",
            1,
        ),
        row("closed before the answer", Act::raw("").then_closes(), 502, "cannot be reached", 1),
        row("hangs", Act::hang(), 504, "within 5 s", 1).within(5),
        row("one byte a second", Act::raw(OK).trickled(), 504, "within 5 s", 1).within(5),
        row("a refusal of one byte a second", trickled_refusal(), 504, "within 5 s", 1).within(5),
        row("garbage", Act::raw("\x16\x03\x01 this is no HTTP\r\n\r\n").then_closes(), 502, "cannot be reached", 1),
        row("garbage after a status", Act::raw("HTTP/1.1 200 OK\r\n\x00: \x01\r\n\r\n"), 502, "cannot be reached", 1),
        row("two lengths", Act::raw("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n"), 502, "cannot be reached", 1),
        row("500", Act::status(500, ""), 503, "answered 500", 1),
        row("502", Act::status(502, ""), 503, "answered 502", 1),
        row("504", Act::status(504, ""), 503, "answered 504", 1),
        row("429", Act::status(429, ""), 503, "answered 429", 1),
        row("429 for a moment", Act::status(429, "Retry-After: 0"), 503, "answered 429", 1),
        row("503", Act::status(503, ""), 503, "answered 503", 3),
        row("503 for a moment", Act::status(503, "Retry-After: 0"), 503, "answered 503", 3),
        row("503 for a second", Act::status(503, "Retry-After: 1"), 503, "answered 503", 3).within(3),
        row("503 for too long", Act::status(503, "Retry-After: 3"), 503, "answered 503", 1),
        row("503, then closed", Act::status(503, "Connection: close").then_closes(), 503, "answered 503", 3),
    ];
    let authorizer = Authorizer::granting().await;
    let mut running = JoinSet::new();
    for row in rows {
        let authorize = authorizer.url();
        running.spawn(async move {
            let act = row.act.clone();
            let upstream = Faulty::start(move |_| act.clone());
            let gateway = gateway(&authorize, &upstream.url()).await;
            let started = Instant::now();
            let reply = write(&gateway, large()).await;
            row.check(&reply, started.elapsed(), upstream.requests());
            assert_eq!(gateway.metric(MADE).await, (row.asked - 1) as f64, "{}", row.case);
            let counted = gateway.metric(r#"telemeter_forward_requests_total{result="error"}"#).await;
            assert_eq!(counted, 1.0, "{}: one request, however often it is tried", row.case);

            upstream.set_script(|_| Act::raw(OK));
            assert_eq!(write(&gateway, up()).await.status, 200, "{}: afterwards", row.case);
            assert_eq!(upstream.requests(), row.asked + 1, "{}: afterwards", row.case);
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// A success is one whatever follows its status: to send it again would write it twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_fails_after_it_has_taken_the_data() {
    let authorizer = Authorizer::granting().await;
    let started = "HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nhalf";
    for act in [Act::raw(started).then_resets(), Act::raw(started), Act::raw(OK).then_resets()] {
        let upstream = Faulty::start(move |_| act.clone());
        let gateway = gateway(&authorizer.url(), &upstream.url()).await;
        for n in 1..=3 {
            write(&gateway, up()).await.expect_status(200);
            assert_eq!(upstream.requests(), n);
        }
    }
}

/// Nobody listens: each of three attempts is refused. Once somebody does, requests get through.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_connections() {
    let authorizer = Authorizer::granting().await;
    let mut upstream = Faulty::refusing(|_| Act::raw(OK));
    let (authorize, forward) = (authorizer.url(), upstream.url());
    let gateway = Gateway::start(["--authorize", &authorize, "--forward-url", &forward, "--log-level=debug"]).await;
    let token = gateway.upload_token("c1", PULL_SECRET).await;
    let line = format!("up{{_id=\"c1\"}} 1 {}\n", now());
    let started = Instant::now();
    let row = row("refused", Act::hang(), 502, "cannot be reached", 0);
    row.check(&gateway.upload(&token, TEXT, "", line).await, started.elapsed(), 0);
    row.check(&write(&gateway, up()).await, started.elapsed(), 0);
    assert_eq!(gateway.metric(MADE).await, 4.0);
    let logs = gateway.logs();
    let refused: Vec<_> = logs.iter().filter(|line| line.contains("connecting failed")).collect();
    assert_eq!(refused.len(), 6, "three attempts for each of two requests");
    // One a second is told to whoever does not debug.
    assert!(refused[0].contains("level=warn"), "{refused:?}");

    upstream.listen();
    write(&gateway, up()).await.expect_status(200);
    assert_eq!(upstream.requests(), 1);
}

/// The sender notices nothing of an upstream that is back at the second or third attempt.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_flaps() {
    let authorizer = Authorizer::granting().await;
    for (failures, header, wait) in [(1, "", 0), (2, "", 0), (1, "Retry-After: 1", 1)] {
        let script = move |before| if before < failures { Act::status(503, header) } else { Act::raw(OK) };
        let upstream = Faulty::start(script);
        let gateway = gateway(&authorizer.url(), &upstream.url()).await;
        let started = Instant::now();
        write(&gateway, large()).await.expect_status(200);
        assert!(started.elapsed() >= Duration::from_secs(wait), "what the upstream asks for is heeded");
        assert_eq!(upstream.requests(), failures + 1);
        assert_eq!(gateway.metric(MADE).await, failures as f64);
        assert_eq!(gateway.metric(r#"telemeter_forward_requests_total{result="success"}"#).await, 1.0);
        let attempts = gateway.metric(r#"client_api_requests_total{client="forward",code="503",method="post"}"#).await;
        assert_eq!(attempts, failures as f64, "each attempt is a request of the client");
    }
}

/// What is sent again is what was sent: the same body, headers and tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_the_same_request() {
    let authorizer = Authorizer::granting().await;
    let upstream = Upstream::start(|_| support::Answer::status(503)).await;
    let url = upstream.url_of("/{tenant}/receive");
    let flags = ["--authorize", &authorizer.url(), "--forward-url", &url, "--receive-tenant-id", "r1"];
    let gateway = Gateway::start(flags).await;
    write(&gateway, up()).await.expect_status(503);
    let writes = upstream.received();
    assert_eq!(writes.len(), 3);
    for write in &writes {
        assert_eq!(write.uri.path(), "/r1/receive");
        assert_eq!(
            (&write.method, &write.headers, &write.body),
            (&writes[0].method, &writes[0].headers, &writes[0].body)
        );
        assert_eq!(write.header("thanos-tenant"), Some("r1"));
        assert_eq!(write.header("content-encoding"), Some("snappy"));
        assert_eq!(write.series("up").len(), 1);
    }
}

/// However long an outage is, the upstream gets few requests more than it would without retries, over both routes together.
#[tokio::test(flavor = "multi_thread")]
async fn retries_do_not_multiply_an_outage() {
    const REQUESTS: usize = 150;
    let authorizer = Authorizer::granting().await;
    let upstream = Faulty::start(|_| Act::raw(OK));
    let gateway = gateway(&authorizer.url(), &upstream.url()).await;
    let token = gateway.upload_token("c1", PULL_SECRET).await;
    write(&gateway, up()).await.expect_status(200);
    upstream.set_script(|_| Act::status(503, ""));
    let started = Instant::now();
    for n in 0..REQUESTS {
        let line = format!("up{{_id=\"c1\"}} 1 {}\n", now());
        let reply = if n == 0 { gateway.upload(&token, TEXT, "", line).await } else { write(&gateway, up()).await };
        reply.expect_status(503);
    }
    // One in a second, which can be spent ten seconds ahead.
    let afforded = 1..=10 + started.elapsed().as_secs() as usize + 1;
    let retries = upstream.requests() - 1 - REQUESTS;
    assert!(afforded.contains(&retries), "{retries} retries of {REQUESTS}");
    assert_eq!(gateway.metric(MADE).await, retries as f64);
    let over_budget = gateway.metric(OVER_BUDGET).await;
    assert!(over_budget >= (REQUESTS - retries) as f64 - 1.0, "{over_budget}");
}

/// A connection that the upstream has closed or reset while nobody used it fails nobody.
#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_are_not_used_again() {
    let authorizer = Authorizer::granting().await;
    let closes = Faulty::start(|_| Act::raw(OK).then_closes());
    let resets = Faulty::start(|_| Act::raw(OK).then_resets());
    let closing = gateway(&authorizer.url(), &closes.url()).await;
    let resetting = gateway(&authorizer.url(), &resets.url()).await;
    for n in 1..=30 {
        write(&closing, up()).await.expect_status(200);
        // The gateway closes its side as well, and keeps nothing half open.
        closes.wait_until_closed(n).await;
        write(&resetting, up()).await.expect_status(200);
        assert_eq!((closes.requests(), resets.requests()), (n, n));
    }
    assert_eq!((closing.metric(MADE).await, resetting.metric(MADE).await), (0.0, 0.0));
}

/// Passes bytes on, until it is told to be silent: connections that are there by then stay open and pass nothing any more, as when a
/// machine is switched off or a balancer has forgotten them.
struct Splice {
    address: SocketAddr,
    silenced: watch::Sender<usize>,
    opened: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Splice {
    async fn to(neighbour: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silenced, opened) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let (told, count) = (silenced.subscribe(), Arc::clone(&opened));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                let mut told = told.clone();
                connections.spawn(async move {
                    let mut there = TcpStream::connect(neighbour).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => return,
                        silent = told.wait_for(|silenced| *silenced >= number) => drop(silent),
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, silenced, opened, _accepting: accepting }
    }

    /// From now on nothing is heard of the connections that are open.
    fn silence(&self) {
        self.silenced.send_replace(self.opened.load(Ordering::SeqCst));
    }
}

/// A peer that is gone without a word: one request finds out, in its five seconds, and those behind it get through.
#[tokio::test(flavor = "multi_thread")]
async fn connections_whose_peer_is_gone_are_not_used_again() {
    let (authorizer, upstream) = (Authorizer::granting().await, Upstream::accepting().await);
    let splice = Splice::to(upstream.address()).await;
    let gateway = gateway(&authorizer.url(), &format!("http://{}/receive", splice.address)).await;
    for gone in 1..=2 {
        write(&gateway, up()).await.expect_status(200);
        splice.silence();
        let started = Instant::now();
        let late = row("gone", Act::hang(), 504, "within 5 s", 0).within(5);
        late.check(&write(&gateway, up()).await, started.elapsed(), 0);
        for _ in 0..5 {
            write(&gateway, up()).await.expect_status(200);
        }
        assert_eq!(splice.opened.load(Ordering::SeqCst), gone + 1, "a connection for each that was lost");
    }
    assert_eq!(upstream.count(), 12);
}

/// Over HTTP/2 all requests share the connection: they hear to come back until its pings are missed, which takes eight seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_connection_whose_peer_is_gone_is_given_up() {
    let authority = Authority::new();
    let (authorizer, upstream) = (Authorizer::granting().await, Neighbour::start(&authority.server(), None).await);
    let ca = Volume::new(&[("ca.crt", &authority.pem())]);
    let splice = Splice::to(upstream.address).await;
    let (authorize, forward) = (authorizer.url(), format!("https://localhost:{}/receive", splice.address.port()));
    let flags = ["--authorize", &authorize, "--forward-url", &forward, &ca.flag("--forward-tls-ca-crt", "ca.crt")];
    let gateway = Gateway::start(flags).await;
    write(&gateway, up()).await.expect_status(200);
    splice.silence();
    let mut refused = 0;
    let done = eventually("a new connection", async || {
        let started = Instant::now();
        let reply = write(&gateway, up()).await;
        assert!(started.elapsed() < Duration::from_secs(5) + SLACK, "{reply:?}");
        if reply.status != 200 {
            assert!(matches!(reply.status.as_u16(), 502 | 504) && reply.retry_after().is_some(), "{reply:?}");
            refused += 1;
        }
        ensure(reply.status == 200, || format!("{reply:?}"))
    });
    done.await;
    assert!(refused > 0, "the connection was silent");
    for _ in 0..5 {
        write(&gateway, up()).await.expect_status(200);
    }
    assert_eq!((upstream.asked(), splice.opened.load(Ordering::SeqCst)), (7, 2));
}

/// The same of the authorizer, within 20 s: nobody is refused for good because it is ill.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_that_fails() {
    let cut = |bytes: &str| Act::raw(bytes).then_resets();
    let down = "authorizer_unavailable";
    let rows = [
        row("reset in the request", Act::reset_in_request(), 503, down, 3),
        row("reset before the answer", cut(""), 503, down, 3),
        row("reset in the headers", cut("HTTP/1.1 200 OK\r\nContent-Le"), 503, down, 3),
        row("reset in the body", cut("HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{\"account_id\":"), 503, down, 3),
        row("closed before the answer", Act::raw("").then_closes(), 503, down, 3),
        row("hangs", Act::hang(), 503, down, 3).within(20),
        row("one byte a second", Act::json(200, &json!({ "account_id": "a" })).trickled(), 503, down, 3).within(20),
        row("garbage", Act::raw("\x16\x03\x01 this is no HTTP\r\n\r\n").then_closes(), 503, down, 3),
        row("500", Act::status(500, ""), 503, down, 3),
        row("503", Act::status(503, ""), 503, down, 3),
        row("503 for long", Act::status(503, "Retry-After: 60"), 503, down, 3),
    ];
    let upstream = Upstream::accepting().await;
    let mut running = JoinSet::new();
    for row in rows {
        let forward = upstream.url();
        running.spawn(async move {
            let act = row.act.clone();
            let authorizer = Faulty::start(move |_| act.clone());
            let gateway = gateway(&authorizer.url(), &forward).await;
            let started = Instant::now();
            let reply = write(&gateway, up()).await;
            row.check(&reply, started.elapsed(), authorizer.requests());

            authorizer.set_script(|_| Act::json(201, &json!({ "account_id": "a" })));
            assert_eq!(write(&gateway, up()).await.status, 200, "{}: afterwards", row.case);
            assert_eq!(authorizer.requests(), row.asked + 1, "{}: afterwards", row.case);
            write(&gateway, up()).await.expect_status(200);
            assert_eq!(authorizer.requests(), row.asked + 1, "{}: it is known now", row.case);
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

/// An authorizer that nobody can connect to, or that fails at first.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_that_comes_back() {
    let upstream = Upstream::accepting().await;
    let granted = || Act::json(201, &json!({ "account_id": "a" }));
    let mut refusing = Faulty::refusing(move |_| granted());
    let one = gateway(&refusing.url(), &upstream.url()).await;
    let started = Instant::now();
    let down = row("refused", Act::hang(), 503, "authorizer_unavailable", 0);
    down.check(&write(&one, up()).await, started.elapsed(), refusing.requests());
    refusing.listen();
    write(&one, up()).await.expect_status(200);

    let flapping = Faulty::start(move |before| if before < 2 { Act::status(503, "") } else { granted() });
    let other = gateway(&flapping.url(), &upstream.url()).await;
    write(&other, up()).await.expect_status(200);
    assert_eq!(flapping.requests(), 3);
}
