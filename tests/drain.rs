//! Refusals that come before a body is read: whoever is in the middle of sending it, or sends all of it before it reads, gets them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{pin::Pin, sync::Arc, time::Duration};

use hyper::Request;
use rustls::pki_types::ServerName;
use support::{
    World,
    payload::composite_token,
    tls::{Authority, ClientOptions, TlsClient, Volume},
    within,
    world::PULL_SECRET,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// What is read of a refused body, before the answer goes out.
const DRAINED: usize = 1 << 20;

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    AtOnce,
    /// In eight parts, a tenth of a second apart.
    Slowly,
    /// In one chunk, its length not being told before.
    Chunked,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Sends everything, then reads the answer and the end behind it.
async fn exchange(stream: &mut dyn Stream, token: &str, length: usize, pace: Pace) -> String {
    let framing = match pace {
        Pace::Chunked => format!("transfer-encoding: chunked\r\n\r\n{length:x}"),
        _ => format!("content-length: {length}\r\n"),
    };
    let head = "POST /metrics/v1/receive HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: snappy";
    let head = format!("{head}\r\nauthorization: Bearer {token}\r\n{framing}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let body = vec![7; length];
    for part in body.chunks(length / 8) {
        stream.write_all(part).await.expect("all of the body");
        stream.flush().await.expect("all of the body");
        if pace == Pace::Slowly {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    if pace == Pace::Chunked {
        stream.write_all(b"\r\n0\r\n\r\n").await.expect("all of the body");
    }
    let (mut answer, mut piece) = (String::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut piece).await.unwrap_or_else(|error| panic!("{error} behind {answer:?}"));
        answer += std::str::from_utf8(&piece[..read]).unwrap();
        // Where all of the body was read, the connection lives on.
        let whole = answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n'));
        if read == 0 || whole && !answer.contains("\r\nconnection: close\r\n") && length < DRAINED {
            return answer;
        }
    }
}

#[tokio::test]
async fn refusals_reach_whoever_is_sending() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let (crt, key) = (files.flag("--tls-crt", "tls.crt"), files.flag("--tls-key", "tls.key"));
    let plain = World::start().await;
    let secure = World::with(&[&crt, &key]).await;
    let client = TlsClient::new(&authority, &ClientOptions { alpn: &["http/1.1"], ..Default::default() });
    let good = composite_token(PULL_SECRET, "c1");
    for (token, says) in [(&*good, "413 ;too_large: "), ("bad", "401 ;unauthenticated: ")] {
        let (status, line) = says.split_once(';').unwrap();
        for (length, pace) in [
            (DRAINED / 2, Pace::AtOnce),
            (DRAINED / 2, Pace::Slowly),
            (DRAINED / 2, Pace::Chunked),
            (8 * DRAINED, Pace::AtOnce),
            (8 * DRAINED, Pace::Slowly),
            (8 * DRAINED, Pace::Chunked),
        ] {
            for world in [&plain, &secure] {
                let tcp = TcpStream::connect(world.gateway.public_address()).await.unwrap();
                let mut stream: Pin<Box<dyn Stream>> = if std::ptr::eq(world, &plain) {
                    Box::pin(tcp)
                } else {
                    let name = ServerName::try_from("localhost").unwrap();
                    Box::pin(TlsConnector::from(client.config()).connect(name, tcp).await.unwrap())
                };
                let case = format!("{token}, {length} bytes, {pace:?}, TLS: {}", std::ptr::eq(world, &secure));
                let answer = within(&case, exchange(&mut stream, token, length, pace)).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{case}: {answer}");
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(body.starts_with(line) && body.ends_with('\n'), "{case}: {answer}");
            }
        }
    }
    plain.assert_nothing_forwarded();
    secure.assert_nothing_forwarded();
}

/// HTTP/2 stops the one stream, and the others and those to come go on.
#[tokio::test]
async fn refusals_reach_whoever_is_sending_over_http2() {
    let authority = Authority::new();
    let files = Volume::of(&authority.server());
    let world = World::with(&[&files.flag("--tls-crt", "tls.crt"), &files.flag("--tls-key", "tls.key")]).await;
    let client = Arc::new(TlsClient::new(&authority, &ClientOptions { alpn: &["h2"], ..Default::default() }));
    let mut connection = client.connect(world.gateway.public_address()).await.unwrap();
    let good = composite_token(PULL_SECRET, "c1");
    for length in [DRAINED / 2, 8 * DRAINED] {
        for (token, status, says) in [(&*good, 413, "too_large: "), ("bad", 401, "unauthenticated: ")] {
            let request = Request::post("/metrics/v1/receive")
                .header("content-encoding", "snappy")
                .header("authorization", format!("Bearer {token}"));
            let refused = connection.send(request, vec![7; length]).await.unwrap().expect_status(status);
            assert!(refused.reason().starts_with(says), "{refused:?}");
        }
    }
    connection.send(Request::get("/healthz"), "").await.unwrap().expect_status(200);
    world.assert_nothing_forwarded();
}
