//! Overload of any kind: connections, heads, bodies and answers that never end, streams that are reset, and more bytes than there
//! is room for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{io::ErrorKind, sync::Arc, time::Duration};

use hyper::Request;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{
    Answer, World, ensure, eventually, http,
    payload::{composite_token, series, write_body},
    within,
    world::{PULL_SECRET, now},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Slow connections of the large test; fewer where this process may not open as many.
const SLOW: usize = 10_000;

/// As many descriptors as the system gives this process.
fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most as usize)
}

async fn connect(world: &World) -> TcpStream {
    within("a connection", TcpStream::connect(world.gateway.public_address())).await.unwrap()
}

/// One whose answers soon fill what there is for them on the way.
async fn connect_to_read_little(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = world.gateway.public_address().parse().unwrap();
    within("a connection", socket.connect(address)).await.unwrap()
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n";

/// What comes until the connection ends.
async fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = within("the end of the connection", stream.read_to_end(&mut rest)).await;
    String::from_utf8_lossy(&rest).into_owned()
}

fn up(cluster: &str) -> Vec<u8> {
    write_body(vec![series(&[("__name__", "up"), ("_id", cluster)], &[(1.0, now())])])
}

/// A body of so many bytes, all of which arrive as such: nothing compresses it.
fn large(cluster: &str, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    let labels: Vec<_> =
        (0..bytes / 256).map(|_| (0..200).map(|_| random.alphanumeric()).collect::<String>()).collect();
    let all = labels.iter().map(|label| series(&[("__name__", "up"), ("_id", cluster), ("a", label)], &[(1.0, now())]));
    write_body(all.collect())
}

/// Ten thousand that send their heads a byte at a time, or their bodies, or never read their answers: others are served as if they
/// were not there, memory stays within the budget and a fixed part, and all of it is back when they have gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_hold_up_nobody() {
    const BUDGET: u64 = 64 << 20;
    // What a connection takes besides, with its buffers as they are.
    const CONNECTION: u64 = 48 << 10;
    let slow = SLOW.min(descriptors().saturating_sub(500));
    let budget = BUDGET.to_string();
    let world = World::with(&[
        "--limit-connections-per-peer=0",
        &format!("--limit-buffered-bytes={budget}"),
        "--header-timeout=5m",
        "--body-timeout=5m",
    ])
    .await;
    let token = composite_token(PULL_SECRET, "c1");
    world.gateway.receive(&token, up("c1")).await.expect_status(200);
    let before = (world.gateway.memory(), world.gateway.descriptors());

    let head = format!(
        "POST /metrics/v1/receive HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n\
         content-type: application/x-protobuf\r\ncontent-encoding: snappy\r\ncontent-length: 100000\r\n\r\n"
    );
    let unread = "GET / HTTP/1.1\r\nhost: gateway\r\n\r\n".repeat(200);
    let mut streams = Vec::with_capacity(slow);
    for i in 0..slow {
        let mut stream = if i % 3 < 2 { connect(&world).await } else { connect_to_read_little(&world).await };
        match i % 3 {
            0 => {}
            1 => stream.write_all(head.as_bytes()).await.unwrap(),
            // As much as is taken.
            _ => drop(stream.try_write(unread.as_bytes())),
        }
        streams.push(stream);
    }
    let open = |at_least: usize| {
        let world = &world;
        async move || {
            let open = world.gateway.metric(r#"infogw_connections{listener="public"}"#).await;
            ensure(open >= at_least as f64, || format!("{open} connections"))
        }
    };
    eventually("all connections are open", open(slow)).await;
    let (stop, stopped) = watch::channel(false);
    let dribble = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_secs(2));
        for byte in head.bytes().cycle() {
            pace.tick().await;
            if *stopped.borrow() {
                break;
            }
            for stream in streams.iter_mut().enumerate().filter(|(i, _)| i % 3 < 2).map(|(_, stream)| stream) {
                // To whom the gateway has answered something else no longer reads.
                let _ = stream.try_write(&[byte]);
            }
        }
        streams
    });

    // Those who behave: twenty clusters, one request after the other.
    let world = Arc::new(world);
    let mut clusters = JoinSet::new();
    for cluster in 0..20 {
        let world = Arc::clone(&world);
        clusters.spawn(async move {
            let cluster = format!("good-{cluster}");
            let token = composite_token(PULL_SECRET, &cluster);
            for _ in 0..10 {
                world.gateway.receive(&token, up(&cluster)).await.expect_status(200);
            }
        });
    }
    while let Some(served) = clusters.join_next().await {
        served.unwrap();
    }
    assert_eq!(world.upstream.received().len(), 1 + 200);
    let open = world.gateway.metric(r#"infogw_connections{listener="public"}"#).await;
    assert!(open >= slow as f64, "{open} of {slow} connections are left");
    let buffered = world.gateway.metric(r#"infogw_buffered_bytes{budget="requests"}"#).await;
    assert!(buffered > 0.0 && buffered <= BUDGET as f64, "{buffered} bytes of slow bodies");
    let (most, peak) = (before.0 + BUDGET + slow as u64 * CONNECTION, world.gateway.peak_memory());
    assert!(peak < most, "{peak} bytes of memory, more than {most}");

    stop.send_replace(true);
    drop(dribble.await.unwrap());
    eventually("descriptors are back", async || {
        let (before, now) = (before.1, world.gateway.descriptors());
        ensure(now <= before + 50, || format!("{now} descriptors, {before} before"))
    })
    .await;
    // What is freed goes back to the system when threads come by that had it.
    eventually("memory is back", async || {
        for _ in 0..20 {
            world.gateway.receive(&token, up("c1")).await.expect_status(200);
        }
        let (before, now) = (before.0, world.gateway.memory());
        ensure(now < before + (32 << 20), || format!("{now} bytes, {before} before"))
    })
    .await;
    assert_eq!(world.gateway.metric(r#"infogw_buffered_bytes{budget="requests"}"#).await, 0.0);
}

#[tokio::test]
async fn a_peer_has_so_many_connections() {
    let world = World::with(&["--limit-connections-per-peer=2"]).await;
    let (first, _second) = (connect(&world).await, connect(&world).await);
    let mut third = connect(&world).await;
    assert_eq!(rest(&mut third).await, "");
    assert_eq!(world.gateway.metric(r#"infogw_connections_refused_total{listener="public"}"#).await, 1.0);
    assert_eq!(world.gateway.metric(r#"infogw_connections{listener="public"}"#).await, 2.0);
    drop(first);
    eventually("a place is free again", async || {
        let mut next = connect(&world).await;
        next.write_all(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n").await.unwrap();
        let answer = rest(&mut next).await;
        ensure(answer.starts_with("HTTP/1.1 200"), || answer)
    })
    .await;
}

#[tokio::test]
async fn connections_wait_for_a_place() {
    let world = World::with(&["--limit-connections=1"]).await;
    let mut first = connect(&world).await;
    let mut second = connect(&world).await;
    let ask = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n";
    second.write_all(ask).await.unwrap();
    first.write_all(ask).await.unwrap();
    assert!(rest(&mut first).await.starts_with("HTTP/1.1 200"));
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_bodies_take_together_is_bounded() {
    let world = World::with(&["--limit-buffered-bytes=150000"]).await;
    let (release, _) = watch::channel(false);
    let held = Answer::status(200).held(&release);
    world.upstream.set_script(move |_| held.clone());
    let body = large("c1", 100_000);
    assert!((75_000..131_072).contains(&body.len()), "{}", body.len());
    let token = composite_token(PULL_SECRET, "c1");
    let first = async { world.gateway.receive(&token, body.clone()).await };
    let others = async {
        world.upstream.wait_for(1).await;
        // It is held until the upstream has answered.
        let buffered = world.gateway.metric(r#"infogw_buffered_bytes{budget="requests"}"#).await;
        assert!(buffered >= body.len() as f64, "{buffered}");
        let refused = world.gateway.receive(&token, body.clone()).await.expect_status(503);
        assert!(refused.reason().starts_with("overloaded: this gateway buffers as much as it may, 150000 bytes"));
        assert!((5..=7).contains(&refused.retry_after().unwrap()), "{refused:?}");
        // There is room for a small one.
        let small = tokio::spawn({
            let request = Request::post(world.gateway.public("/metrics/v1/receive"))
                .header("authorization", format!("Bearer {token}"))
                .header("content-type", "application/x-protobuf")
                .header("content-encoding", "snappy");
            async move { http::send(request, up("c1")).await }
        });
        world.upstream.wait_for(2).await;
        release.send_replace(true);
        small.await.unwrap().expect_status(200);
    };
    let (first, ()) = tokio::join!(first, others);
    first.expect_status(200);
    assert_eq!(world.gateway.metric(r#"infogw_buffered_bytes{budget="requests"}"#).await, 0.0);
    world.gateway.receive(&token, body).await.expect_status(200);
}

#[tokio::test]
async fn heads_are_bounded() {
    let world = World::with(&["--limit-header-bytes=10000", "--limit-headers=20"]).await;
    for (head, what) in [
        (format!("GET /healthz HTTP/1.1\r\nhost: gateway\r\nx: {}\r\n\r\n", "x".repeat(60_000)), "bytes"),
        (format!("GET /healthz?{} HTTP/1.1\r\nhost: gateway\r\n\r\n", "x".repeat(60_000)), "bytes of a path"),
        (format!("GET /healthz HTTP/1.1\r\nhost: gateway\r\n{}\r\n", "x: y\r\n".repeat(20)), "headers"),
    ] {
        let mut stream = connect(&world).await;
        // Whoever is refused may hear of it before it has sent all.
        let _ = stream.write_all(head.as_bytes()).await;
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "), "{what}: {answer}");
    }
    let mut stream = connect(&world).await;
    let head =
        format!("GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(7000));
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let world = World::with(&["--header-timeout=300ms", "--body-timeout=300ms", "--idle-timeout=300ms"]).await;
    // A head that does not end.
    let mut stream = connect(&world).await;
    stream.write_all(b"POST /upload HTTP/1.1\r\nhost: ").await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
    // Nothing after an answer.
    let mut stream = connect(&world).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n").await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200 "));
    // A body that does not end.
    let mut stream = connect(&world).await;
    let head = format!(
        "POST /metrics/v1/receive HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\nx",
        composite_token(PULL_SECRET, "c1")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("body_timeout: the body did not arrive"),
        "{answer}"
    );
    assert!(answer.contains("retry-after: "), "{answer}");
}

/// Each of its requests would be one in flight, for as long as it likes.
#[tokio::test]
async fn who_takes_no_answers_is_hung_up_on() {
    let world = World::with(&["--header-timeout=300ms"]).await;
    let stream = connect_to_read_little(&world).await;
    let requests = HEALTH.repeat(100);
    eventually("the end of the connection", async || {
        let sent = stream.try_write(requests.as_bytes());
        let ended = sent.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock);
        ensure(ended, || format!("{sent:?}"))
    })
    .await;
    assert_eq!(world.gateway.metric(r#"infogw_connections{listener="public"}"#).await, 0.0);
}

/// CVE-2023-44487 and CVE-2019-9514: streams that are opened and reset at once.
#[tokio::test]
async fn streams_that_are_reset_end_their_connection() {
    let world = World::with(&["--limit-stream-resets=10"]).await;
    let mut stream = connect(&world).await;
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
    };
    // `:method: GET`, `:path: /`, `:scheme: http` of HPACK's static table.
    let headers = [0x82, 0x84, 0x86];
    let mut attack = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    for id in (1..2000).step_by(2) {
        attack.extend(frame(1, 0x05, id, &headers));
        attack.extend(frame(3, 0, id, &8u32.to_be_bytes()));
    }
    let _ = stream.write_all(&attack).await;
    let mut answer = Vec::new();
    let _ = within("the end of the connection", stream.read_to_end(&mut answer)).await;
    let (mut rest, mut last) = (&answer[..], None);
    while let Some((head, behind)) = rest.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = &behind[..len.min(behind.len())];
        if head[3] == 7 {
            last = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
        }
        rest = &behind[payload.len()..];
    }
    // ENHANCE_YOUR_CALM.
    assert_eq!(last, Some(0xb), "{answer:02x?}");
    world.gateway.receive(&composite_token(PULL_SECRET, "c1"), up("c1")).await.expect_status(200);
}
