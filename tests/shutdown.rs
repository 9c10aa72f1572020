//! The end: what those hear who are connected, busy or about to ask when the gateway is told to stop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Version, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use support::{
    Answer, Gateway, World, ensure, eventually, h2, http,
    payload::{composite_token, series, write_body},
    tls::{Authority, ClientOptions, TlsClient, Volume},
    within,
    world::{PULL_SECRET, now},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};

/// How long the gateway answers with 503 before it takes no more connections.
const FAREWELL: Duration = Duration::from_secs(2);

fn up() -> Vec<u8> {
    write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])])
}

/// A remote write in HTTP/1.1, head and body.
fn push() -> Vec<u8> {
    let (token, body) = (composite_token(PULL_SECRET, "c1"), up());
    let head = format!(
        "POST /metrics/v1/receive HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// An answer of HTTP/1.1: its head in lower case, and its body.
#[derive(Debug)]
struct Answered {
    head: String,
    body: Vec<u8>,
}

impl Answered {
    fn status(&self) -> &str {
        &self.head[9..12]
    }

    /// Whether it says that it is the last one.
    fn closes(&self) -> bool {
        self.head.contains("\r\nconnection: close\r\n")
    }

    /// Something that a sender can do with: done, or to be done again.
    fn check(&self) {
        match self.status() {
            "200" => {}
            "503" => assert!(self.head.contains("\r\nretry-after: ") && self.body.ends_with(b" s\n"), "{self:?}"),
            _ => panic!("{self:?}"),
        }
    }
}

/// One whole answer; nothing where the connection ends, as it should, before the first byte of one. A reset, or an end within an
/// answer, is an error.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Answered>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.expect("a length")];
    stream.read_exact(&mut body).await?;
    Ok(Some(Answered { head, body }))
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How senders reach the gateway.
#[derive(Clone)]
struct Way {
    address: String,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Way {
    /// A connection, or nothing where nobody listens any more. Whoever is connected has a handshake, too.
    async fn connect(&self) -> Option<Pin<Box<dyn Stream>>> {
        let stream = match TcpStream::connect(&self.address).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
            Err(error) => panic!("a connection: {error}"),
        };
        stream.set_nodelay(true).unwrap();
        let Some(tls) = &self.tls else { return Some(Box::pin(stream)) };
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
        Some(Box::pin(stream.expect("a handshake")))
    }
}

/// What senders have seen.
#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    refused: AtomicUsize,
    /// Requests on a connection that had been idle for long, and was closed when they were written.
    unlucky: AtomicUsize,
    /// Readiness has ended.
    ending: AtomicBool,
}

impl Tally {
    fn count(&self, status: &str, late: bool) {
        assert!(!late || status == "503", "{status} after the end of readiness");
        let counter = if status == "200" { &self.done } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Request after request over HTTP/1.1, until nobody listens.
async fn http1(way: Way, tally: Arc<Tally>) {
    while let Some(mut stream) = way.connect().await {
        let mut idle: Option<Instant> = None;
        loop {
            let late = tally.ending.load(Ordering::Relaxed);
            let written = stream.write_all(&push()).await;
            let answered = within("an answer", answer(&mut stream)).await.expect("no reset, and no half answer");
            let Some(answered) = answered else {
                // A sender that was held up for as long as the farewell takes has not been told.
                let slept = idle.is_some_and(|since| since.elapsed() >= FAREWELL / 2);
                assert!(slept, "a connection was closed without notice");
                tally.unlucky.fetch_add(1, Ordering::Relaxed);
                break;
            };
            written.expect("a request");
            answered.check();
            tally.count(answered.status(), late);
            assert!(!late || answered.closes(), "{answered:?}");
            if answered.closes() {
                // Nothing comes behind it.
                assert_eq!(within("an end", stream.read(&mut [0; 1])).await.expect("no reset"), 0);
                break;
            }
            idle = Some(Instant::now());
        }
    }
}

/// The same over HTTP/2, with several streams.
async fn http2(way: Way, tally: Arc<Tally>) {
    while let Some(stream) = way.connect().await {
        let (sender, connection) = http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
        let mut tasks = JoinSet::new();
        tasks.spawn(async { connection.await.expect("the connection ends as it should") });
        for _ in 0..4 {
            let (mut sender, tally) = (sender.clone(), Arc::clone(&tally));
            tasks.spawn(async move {
                loop {
                    let late = tally.ending.load(Ordering::Relaxed);
                    let request = Request::post("http://localhost/metrics/v1/receive")
                        .version(Version::HTTP_2)
                        .header("authorization", format!("Bearer {}", composite_token(PULL_SECRET, "c1")));
                    let request = request.body(Full::from(up())).unwrap();
                    // What it has not sent, the connection gives back.
                    if sender.ready().await.is_err() {
                        return;
                    }
                    let sent = within("an answer", sender.try_send_request(request)).await;
                    let response = match sent {
                        Ok(response) => response,
                        Err(mut error) => match error.take_message() {
                            Some(_unsent) => return,
                            // Or says so in other words: a stream that a GOAWAY leaves out was not looked at (RFC 9113, section 6.8).
                            None => {
                                let error = format!("{:?}", error.into_error());
                                assert!(error.contains("GoAway(b\"\", NO_ERROR, Remote)"), "not answered: {error}");
                                return;
                            }
                        },
                    };
                    let retriable = response.headers().contains_key("retry-after");
                    let (status, body) = (response.status(), whole(response.into_body()).await);
                    assert!(status == 200 || status == 503 && retriable && body.ends_with(b" s\n"), "{status}");
                    tally.count(status.as_str(), late);
                }
            });
        }
        drop(sender);
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn whole(body: Incoming) -> Bytes {
    within("a body", body.collect()).await.expect("a whole answer").to_bytes()
}

/// Under full load: whatever a sender begins is answered, with 200 or a 503 that says when to come back, until connections are
/// refused. What was acknowledged has arrived, and nothing else has.
async fn under_load(flags: &[String], way: impl Fn(&Gateway, &'static str) -> Way) {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let World { gateway, upstream, authorizer: _authorizer } = World::with(&flags).await;
    upstream.set_script(|_| {
        let release = watch::Sender::new(false);
        let held = Answer::status(200).held(&release);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            release.send_replace(true);
        });
        held
    });
    let (tally, mut senders) = (Arc::new(Tally::default()), JoinSet::new());
    for _ in 0..16 {
        senders.spawn(http1(way(&gateway, "http/1.1"), Arc::clone(&tally)));
    }
    for _ in 0..4 {
        senders.spawn(http2(way(&gateway, "h2"), Arc::clone(&tally)));
    }
    eventually("the load", async || {
        let done = tally.done.load(Ordering::Relaxed);
        ensure(done >= 500, || format!("{done} requests"))
    })
    .await;
    gateway.signal("TERM").await;
    let ready = gateway.internal("/healthz/ready");
    eventually("the end of readiness", async || {
        let reply = http::get(&ready).await;
        ensure(reply.status == 503 && reply.retry_after().is_some(), || format!("{reply:?}"))
    })
    .await;
    tally.ending.store(true, Ordering::Relaxed);
    while let Some(ended) = within("the end of the load", senders.join_next()).await {
        ended.unwrap();
    }
    let exit = gateway.exit().await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    assert!(!exit.stderr.contains("did not end in time"), "{exit:?}");
    let (done, refused) = (tally.done.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed));
    let unlucky = tally.unlucky.load(Ordering::Relaxed);
    assert!(refused > 0, "nobody has asked during the farewell");
    assert_eq!(upstream.count(), done, "{refused} were refused, {unlucky} were unlucky");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_over_plaintext() {
    under_load(&[], |gateway, _| Way { address: gateway.public_address().to_owned(), tls: None }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_over_tls() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let flags = [files.flag("--tls-crt", "tls.crt"), files.flag("--tls-key", "tls.key")];
    let client = |alpn| TlsClient::new(&authority, &ClientOptions { alpn: &[alpn], ..Default::default() }).config();
    let (one, two) = (client("http/1.1"), client("h2"));
    let way = |gateway: &Gateway, alpn| Way {
        address: gateway.public_address().to_owned(),
        tls: Some(Arc::clone(if alpn == "h2" { &two } else { &one })),
    };
    under_load(&flags, way).await;
}

/// A gateway whose upstream answers once the sender turns true.
async fn holding(flags: &[&str]) -> (World, watch::Sender<bool>) {
    let world = World::with(flags).await;
    let release = watch::Sender::new(false);
    let held = Answer::status(200).held(&release);
    world.upstream.set_script(move |_| held.clone());
    (world, release)
}

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.public_address()).await.unwrap()
}

/// A remote write in HTTP/2, on this stream.
fn ask(stream: u32) -> Vec<u8> {
    let token = format!("Bearer {}", composite_token(PULL_SECRET, "c1"));
    let path = "/metrics/v1/receive";
    let head = h2::fields([(":method", "POST"), (":scheme", "http"), (":path", path), ("authorization", &token)]);
    let head = h2::frame(h2::HEADERS, h2::END_HEADERS, stream, &head);
    [head, h2::frame(h2::DATA, h2::END_STREAM, stream, &up())].concat()
}

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// HTTP/1.1: each answer says so. Who asks nothing is closed as it should be, and only once nobody can connect any more.
#[tokio::test]
async fn connections_of_http1_are_told() {
    let (World { gateway, upstream, authorizer: _authorizer }, release) = holding(&[]).await;
    let [mut idle, mut asks, mut busy] = [connect(&gateway).await, connect(&gateway).await, connect(&gateway).await];
    for stream in [&mut idle, &mut asks] {
        stream.write_all(HEALTH).await.unwrap();
        let answered = within("health", answer(stream)).await.unwrap().unwrap();
        assert!(answered.status() == "200" && !answered.closes(), "{answered:?}");
    }
    busy.write_all(&push()).await.unwrap();
    upstream.wait_for(1).await;
    let told = Instant::now();
    gateway.signal("TERM").await;
    gateway.wait_for_log("shutting down").await;

    eventually("the end of readiness", async || {
        let reply = http::get(&gateway.public("/healthz/ready")).await;
        ensure(reply.status == 503 && reply.header("connection") == Some("close"), || format!("{reply:?}"))
    })
    .await;
    asks.write_all(&push()).await.unwrap();
    let late = within("a refusal", answer(&mut asks)).await.unwrap().unwrap();
    assert!(late.status() == "503" && late.closes(), "{late:?}");
    late.check();
    assert_eq!(within("an end", asks.read(&mut [0; 1])).await.unwrap(), 0);
    // Who is as well as before says so, and that it is the last time.
    let mut new = connect(&gateway).await;
    new.write_all(HEALTH).await.unwrap();
    let healthy = within("health", answer(&mut new)).await.unwrap().unwrap();
    assert!(healthy.status() == "200" && healthy.closes(), "{healthy:?}");

    assert_eq!(within("an end", idle.read(&mut [0; 1])).await.expect("no reset"), 0);
    assert!(told.elapsed() >= FAREWELL, "closed after {:?}", told.elapsed());
    let refused = TcpStream::connect(gateway.public_address()).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    release.send_replace(true);
    let done = within("an answer", answer(&mut busy)).await.unwrap().unwrap();
    assert!(done.status() == "200" && done.closes(), "{done:?}");
    assert_eq!(within("an end", busy.read(&mut [0; 1])).await.unwrap(), 0);
    assert_eq!(gateway.exit().await.code(), 0);
    assert_eq!(upstream.count(), 1);
}

/// HTTP/2: by GOAWAY at once, first of no stream in particular and then of the last one, and whatever was begun is answered.
#[tokio::test]
async fn connections_of_http2_are_told() {
    let (World { gateway, upstream, authorizer: _authorizer }, release) = holding(&[]).await;
    let mut busy = h2::Connection::new(connect(&gateway).await).await.unwrap();
    busy.send(ask(1)).await.unwrap();
    upstream.wait_for(1).await;
    gateway.signal("TERM").await;

    let next = async |connection: &mut h2::Connection<TcpStream>| {
        within("a frame", connection.next_of_note()).await.expect("no reset").expect("a frame")
    };
    let told = next(&mut busy).await;
    assert_eq!(told.goaway(), Some((0x7fff_ffff, h2::NO_ERROR)), "{told:?}");
    let ping = next(&mut busy).await;
    assert_eq!((ping.kind, ping.flags & h2::ACK), (h2::PING, 0), "{ping:?}");
    // It was on its way when the gateway said so, and is heard.
    busy.send(ask(3)).await.unwrap();
    let late = next(&mut busy).await;
    assert_eq!((late.stream, late.status()), (3, Some(503)), "{late:?}");
    let line = next(&mut busy).await;
    assert!(
        String::from_utf8_lossy(&line.payload).starts_with("overloaded: this gateway is shutting down"),
        "{line:?}"
    );
    busy.send(h2::frame(h2::PING, h2::ACK, 0, &ping.payload)).await.unwrap();
    let told = next(&mut busy).await;
    assert_eq!(told.goaway(), Some((3, h2::NO_ERROR)), "{told:?}");

    // Whoever comes now gets an answer, and is told.
    let mut new = h2::Connection::new(connect(&gateway).await).await.unwrap();
    new.send(ask(1)).await.unwrap();
    let mut seen = [false; 2];
    while seen != [true; 2] {
        let frame = next(&mut new).await;
        seen[0] |= frame.status() == Some(503);
        seen[1] |= frame.goaway() == Some((0x7fff_ffff, h2::NO_ERROR));
    }

    release.send_replace(true);
    let done = next(&mut busy).await;
    assert_eq!((done.stream, done.status()), (1, Some(200)), "{done:?}");
    while let Some(frame) = within("an end", busy.next_of_note()).await.expect("no reset") {
        assert!(frame.kind == h2::DATA, "{frame:?}");
    }
    drop(new);
    assert_eq!(gateway.exit().await.code(), 0);
    assert_eq!(upstream.count(), 1);
}

/// A request that does not end is refused when its time is over, be it that the upstream hangs or that its body does not come.
#[tokio::test]
async fn requests_that_do_not_end_are_refused() {
    let (World { gateway, upstream, authorizer: _authorizer }, _release) = holding(&["--shutdown-grace=100ms"]).await;
    let [mut hangs, mut stalls] = [connect(&gateway).await, connect(&gateway).await];
    let request = push();
    hangs.write_all(&request).await.unwrap();
    stalls.write_all(&request[..request.len() - 5]).await.unwrap();
    let mut streams = h2::Connection::new(connect(&gateway).await).await.unwrap();
    streams.send(ask(1)).await.unwrap();
    upstream.wait_for(2).await;
    let told = Instant::now();
    gateway.signal("TERM").await;
    for stream in [&mut hangs, &mut stalls] {
        let refused = within("a refusal", answer(stream)).await.unwrap().unwrap();
        assert!(refused.status() == "503" && refused.closes(), "{refused:?}");
        refused.check();
        assert_eq!(within("an end", stream.read(&mut [0; 1])).await.expect("no reset"), 0);
    }
    let mut status = None;
    while let Some(frame) = within("a frame", streams.next_of_note()).await.expect("no reset") {
        status = status.or(frame.status());
    }
    assert_eq!(status, Some(503));
    assert!(told.elapsed() >= FAREWELL, "over after {:?}", told.elapsed());
    drop((hangs, stalls, streams));
    let exit = gateway.exit().await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    assert!(exit.stderr.contains("requests in flight did not end in time"), "{exit:?}");
}

/// Whoever asks twice does not want to wait.
#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let (World { gateway, upstream, authorizer: _authorizer }, _release) = holding(&[]).await;
        let mut busy = connect(&gateway).await;
        busy.write_all(&push()).await.unwrap();
        upstream.wait_for(1).await;
        gateway.signal("TERM").await;
        gateway.wait_for_log("shutting down").await;
        gateway.signal(second).await;
        let exit = gateway.exit().await;
        assert_eq!(exit.code(), 1, "{exit:?}");
        assert!(!exit.stderr.contains("did not end in time"), "{exit:?}");
    }
}
