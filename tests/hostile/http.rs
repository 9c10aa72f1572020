//! HTTP that two readers read differently, and paths and methods that are nearly right.

use crate::{
    row::{
        Answered::{self, Bare, Line},
        Row, Rows, SENDER,
    },
    support::{
        payload::{composite_token, snappy_block},
        world::PULL_SECRET,
    },
    table::{Route, Sent},
    wire::good,
};

pub(crate) fn rows(upload_token: &str) -> Vec<Row> {
    [lengths(), chunks(), heads(), request_lines(), targets(), headers(upload_token)].into_iter().flatten().collect()
}

const NONE: &[Answered] = &[Bare(400)];

/// A remote write of the sender's, but for how its body ends.
fn head(framing: &str) -> Vec<u8> {
    let token = composite_token(PULL_SECRET, SENDER);
    format!("POST /metrics/v1/receive HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\n{framing}\r\n\r\n")
        .into()
}

fn body() -> Vec<u8> {
    snappy_block(&good())
}

fn length() -> usize {
    body().len()
}

/// A whole request, in order, which is the last one on its connection. Where it is smuggled, it must not be seen.
fn whole() -> Vec<u8> {
    [head(&format!("Connection: close\r\nContent-Length: {}", length())), body()].concat()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

/// Two lengths, or a length and chunks: what one reader takes for a body is a request to another.
fn lengths() -> Vec<Row> {
    let mut rows = Rows::of("smuggling");
    let own = format!("Content-Length: {}", length());
    rows.raw("two requests, in order", [head(&own), body(), whole()].concat(), &[Line(200), Line(200)])
        .reaches_in_requests(2);
    for (case, second) in [
        ("a shorter length behind the own", "0".to_owned()),
        ("a longer length behind the own", (length() + whole().len()).to_string()),
    ] {
        let framing = format!("{own}\r\nContent-Length: {second}");
        rows.raw(case, [head(&framing), body(), whole()].concat(), NONE);
        let framing = format!("Content-Length: {second}\r\n{own}");
        rows.raw(&format!("{case}, before it"), [head(&framing), body(), whole()].concat(), NONE);
    }
    let framing = format!("{own}\r\n{own}\r\nConnection: close");
    rows.raw("the same length twice", [head(&framing), body()].concat(), &[Line(200)]).reaches_in_requests(1);
    for length in [
        format!("{0}, {0}", length()),
        format!("+{}", length()),
        format!("-{}", length()),
        format!("{:#x}", length()),
        format!("{}.0", length()),
        format!("{} 1", length()),
        "1e1".to_owned(),
        String::new(),
        "18446744073709551616".to_owned(),
        "18446744073709551615".to_owned(),
        "\u{661}".to_owned(),
    ] {
        let case = format!("a length of {length:?}");
        // The largest one that there is no room to count to.
        let answer: &[_] = if length == "18446744073709551615" { &[Bare(431)] } else { NONE };
        rows.raw(&case, [head(&format!("Content-Length: {length}")), body(), whole()].concat(), answer);
    }
    // Chunks count, as RFC 9112 says in section 6.1, and nothing that follows does.
    let in_chunks = chunked(&body());
    let both = "Transfer-Encoding: chunked";
    for length in [0, 5, in_chunks.len() + whole().len()] {
        for framing in [format!("Content-Length: {length}\r\n{both}"), format!("{both}\r\nContent-Length: {length}")] {
            let bytes = [head(&framing), in_chunks.clone(), whole()].concat();
            rows.raw(&format!("{framing:?}"), bytes, &[Line(200)]).reaches_in_requests(1);
        }
    }
    // To whom the length counts, this ends within the first chunk, and a request begins there.
    let framing = format!("{both}\r\nContent-Length: 4");
    rows.raw("a request in a chunk", [head(&framing), chunked(&whole())].concat(), &[Line(400)]);
    for coding in [
        "xchunked",
        "chunked, identity",
        "identity",
        "chunked, chunked, gzip",
        "chunked;q=0",
        "\"chunked\"",
        "chunked\u{b}",
        "chun\0ked",
        "chunked\r\nTransfer-Encoding: identity",
        "\r\n chunked",
        "",
        "chunked,",
    ] {
        let framing = format!("Transfer-Encoding: {coding}");
        rows.raw(&format!("{framing:?}"), [head(&framing), in_chunks.clone(), whole()].concat(), NONE);
        let framing = format!("{own}\r\nTransfer-Encoding: {coding}");
        rows.raw(&format!("{framing:?}"), [head(&framing), body(), whole()].concat(), NONE);
    }
    // The parser takes these for chunks, as it looks at the last one.
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked", "chunked\r\nTransfer-Encoding: chunked"] {
        let framing = format!("Transfer-Encoding: {coding}");
        rows.raw(&format!("{framing:?}"), [head(&framing), in_chunks.clone(), whole()].concat(), &[Line(400)]);
    }
    let framing = "Transfer-Encoding: Chunked\r\nConnection: close";
    rows.raw("chunks in capitals", [head(framing), in_chunks.clone()].concat(), &[Line(200)]).reaches_in_requests(1);
    for framing in [
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer Encoding: chunked",
        "Transfer-Encoding\0: chunked",
        "X: y\rTransfer-Encoding: chunked",
    ] {
        let framing = format!("{own}\r\n{framing}");
        rows.raw(&format!("{framing:?}"), [head(&framing), in_chunks.clone(), whole()].concat(), NONE);
    }
    // What does not arrive in whole is not written, and a request that was to come is none.
    let longer = head(&format!("Content-Length: {}", length() + 1));
    rows.ended("a length of one more than there is", [longer.clone(), body()].concat(), &[Line(400)]);
    rows.ended("half a body", [head(&own), body()[..20].to_vec()].concat(), &[Line(400)]);
    rows.ended(
        "chunks that do not end",
        [head(both), in_chunks[..in_chunks.len() - 5].to_vec()].concat(),
        &[Line(400)],
    );
    rows.ended("half a head", &head(&own)[..60], &[]);
    let longer = [longer, body(), whole()].concat();
    rows.raw("a body that takes the next request's first letter", longer, &[Line(400), Line(405)]);
    let old = String::from_utf8(head(both)).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    rows.raw("chunks in HTTP/1.0", [old.as_bytes(), &in_chunks, &whole()].concat(), NONE);
    rows.all()
}

/// Chunks that are none. The gateway has read the head, and says what is wrong with the body.
fn chunks() -> Vec<Row> {
    let mut rows = Rows::of("chunks");
    let head = || head("Transfer-Encoding: chunked");
    for (case, chunks) in [
        ("a size over 64 bits", &b"fffffffffffffffff\r\nabc"[..]),
        ("a size below 0", b"-1\r\nabc"),
        ("a size with a prefix", b"0x3\r\nabc\r\n0\r\n\r\n"),
        ("a size with a sign", b"+3\r\nabc\r\n0\r\n\r\n"),
        ("no size", b"\r\nabc\r\n0\r\n\r\n"),
        ("a size of letters", b"xyz\r\nabc\r\n0\r\n\r\n"),
        ("a size that another line ends", b"3\rabc\r\n0\r\n\r\n"),
        ("more than its size", b"3\r\nabcdef\r\n0\r\n\r\n"),
        ("less than its size", b"5\r\nabc\r\n0\r\n\r\n"),
        ("a newline in an extension", b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    ] {
        rows.raw(case, [&head()[..], chunks, &whole()].concat(), &[Line(400)]);
    }
    let extension = [b"3;", "a".repeat(100_000).as_bytes(), b"\r\nabc\r\n0\r\n\r\n"].concat();
    rows.raw("an extension of 100 kB", [head(), extension].concat(), &[Line(400)]);
    let trailers = [&b"0\r\n"[..], "X: y\r\n".repeat(20_000).as_bytes(), b"\r\n"].concat();
    rows.raw("trailers of 120 kB", [head(), trailers].concat(), &[Line(400)]);
    // Who sends it is said in the head.
    let trailers = "0\r\nAuthorization: Bearer x\r\nContent-Length: 7\r\n\r\n";
    let body = [format!("{:x}\r\n", length()).as_bytes(), &body(), b"\r\n", trailers.as_bytes()].concat();
    rows.raw("credentials in the trailers", [head(), body, whole()].concat(), &[Line(200), Line(200)])
        .reaches_in_requests(2);
    rows.all()
}

fn heads() -> Vec<Row> {
    let mut rows = Rows::of("heads");
    let own = format!("Content-Length: {}\r\nConnection: close", length());
    let with = |line: &str| [head(&format!("{own}\r\n{line}")), body(), whole()].concat();
    for line in
        ["X: y\r\n z", "X: y\r\n\tz", " X: y", "X", ": y", "X y", "X\u{e4}: y", "X: y\0z", "X: y\rz", "X: y\u{7f}"]
    {
        rows.raw(&format!("{line:?}"), with(line), NONE);
    }
    rows.raw("two hosts", with("Host: other"), &[Line(400)]);
    let hostless = String::from_utf8_lossy(&head(&own)).replace("Host: gateway\r\n", "");
    rows.raw("no host", [hostless.as_bytes(), &body()].concat(), &[Line(400)]);
    rows.raw("101 lines", with(&["X: y"; 101].join("\r\n")), &[Bare(431)]);
    rows.raw("a line of 1 MB", with(&format!("X: {}", "y".repeat(1 << 20))), &[Bare(431)]);
    rows.raw("an upgrade", with("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"), &[Line(200)])
        .reaches_in_requests(1);
    rows.raw("noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", NONE);
    rows.raw("an empty line and noise", b"\r\n\0\0\0\0\r\n\r\n", NONE);
    rows.all()
}

fn request_lines() -> Vec<Row> {
    let mut rows = Rows::of("request lines");
    let rest = String::from_utf8(head(&format!("Content-Length: {}\r\nConnection: close", length()))).unwrap();
    let rest = rest.split_once("\r\n").unwrap().1.to_owned();
    let with = |line: &str| [line.as_bytes(), b"\r\n", rest.as_bytes(), &body()].concat();
    for line in [
        "POST http://other/metrics/v1/receive HTTP/1.1",
        "POST https://u:p@[::1]:9/metrics/v1/receive?x=/upload HTTP/1.1",
    ] {
        rows.raw(line, with(line), &[Line(200)]).reaches_in_requests(1);
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "post", "POSTS", "PURGE", "!"] {
        let line = format!("{method} /metrics/v1/receive HTTP/1.1");
        // The answer to HEAD has no body.
        rows.raw(&line, with(&line), if method == "HEAD" { &[Bare(405)] } else { &[Line(405)] });
    }
    for line in ["OPTIONS * HTTP/1.1", "CONNECT gateway:9003 HTTP/1.1", "POST * HTTP/1.1", "POST gateway:9003 HTTP/1.1"]
    {
        rows.raw(line, with(line), &[Line(404)]);
    }
    for line in [
        "POST /metrics/v1/receive",
        "POST /metrics/v1/receive HTTP/1.2",
        "POST /metrics/v1/receive HTTP/2.0",
        "POST /metrics/v1/receive HTTP/1.1 ",
        "POST /metrics/v1/receive http/1.1",
        "POST /metrics/v1/receive\u{b}HTTP/1.1",
        "POST /metrics/v1/re ceive HTTP/1.1",
        "POST  HTTP/1.1",
        "POST metrics/v1/receive HTTP/1.1",
        "PO\0ST /metrics/v1/receive HTTP/1.1",
        "POST /metrics/v1/receive\0 HTTP/1.1",
        "(POST) /metrics/v1/receive HTTP/1.1",
        " POST /metrics/v1/receive HTTP/1.1",
    ] {
        rows.raw(&format!("{line:?}"), with(line), NONE);
    }
    // More than a head may be.
    rows.raw("a path of 200,000 bytes", with(&format!("POST /{} HTTP/1.1", "x".repeat(200_000))), &[Bare(431)]);
    rows.all()
}

fn targets() -> Vec<Row> {
    let mut rows = Rows::of("targets");
    for target in [
        "/metrics/v1/receive/",
        "//metrics/v1/receive",
        "/metrics//v1/receive",
        "/./metrics/v1/receive",
        "/upload/../metrics/v1/receive",
        "/upload/%2e%2e/metrics/v1/receive",
        "/metrics/v1/%72eceive",
        "/metrics%2fv1%2freceive",
        "/metrics/v1/receive%00",
        "/metrics/v1/receive%20",
        "/metrics/v1/receive;a=b",
        "/metrics/v1/receive.",
        "/METRICS/v1/receive",
        "/metrics/v1",
        "/metrics",
        "/status",
        "/-/reload",
        "/debug/pprof/",
        "/",
        "/healthz/../upload",
    ] {
        // What is there for everybody is there for GET.
        let status = if target == "/" { 405 } else { 404 };
        rows.sent(
            target,
            (Route::Receive, move |sent: Sent| sent.target(target)),
            status,
            if status == 404 { "404 page not found" } else { "only GET" },
        );
    }
    let target = |sent: Sent| sent.target("/metrics/v1/receive?/upload&id=c2").body(snappy_block(&good()));
    rows.sent("another path in the query", (Route::Receive, target), 200, "").reaches_as_sent();
    rows.all()
}

fn headers(upload_token: &str) -> Vec<Row> {
    let mut rows = Rows::of("headers");
    let mut refused = |case: &str, name: &'static str, values: &[&str], status: u16, says: &str| {
        let values: Vec<_> = values.iter().map(|&value| value.to_owned()).collect();
        let sent = move |sent: Sent| values.iter().fold(sent.without(name), |sent, value| sent.also(name, value));
        rows.sent(case, (Route::Receive, sent), status, says);
    };
    let bearer = format!("Bearer {}", composite_token(PULL_SECRET, SENDER));
    let stranger = format!("Bearer {}", composite_token(PULL_SECRET, "c2"));
    refused("two credentials", "authorization", &[&bearer, &stranger], 401, "send one Authorization header");
    refused("the same credentials twice", "authorization", &[&bearer, &bearer], 401, "send one Authorization header");
    refused("two credentials in a list", "authorization", &[&format!("{bearer}, {stranger}")], 401, "base64");
    refused("another scheme", "authorization", &[&bearer.replace("Bearer", "Basic")], 401, "only bearer authorization");
    refused("a scheme alone", "authorization", &["Bearer"], 401, "only bearer authorization");
    refused(
        "a tab behind the scheme",
        "authorization",
        &[&bearer.replace(' ', "\t")],
        401,
        "only bearer authorization",
    );
    refused("bytes that are not ASCII", "authorization", &["Bearer \u{e4}"], 401, "");
    refused("an upload's token", "authorization", &[&format!("Bearer {upload_token}")], 401, "base64");
    refused("two encodings", "content-encoding", &["snappy", "snappy"], 415, "several encodings");
    refused("a list of encodings", "content-encoding", &["snappy, snappy"], 415, "snappy (block format)");
    refused("an encoding that is not ASCII", "content-encoding", &["sn\u{e4}ppy"], 415, "snappy (block format)");
    refused("no encoding at all", "content-encoding", &["identity"], 415, "snappy (block format)");
    refused("a type that is not ASCII", "content-type", &["application/x-protobuf\u{e4}"], 415, "remote write 1.0");
    refused("a type of 2,000 bytes", "content-type", &[&"x".repeat(2_000)], 415, "remote write 1.0");
    // What is the gateway's to say upstream nobody else says: each row looks at the headers of what arrives.
    let spoofed = |sent: Sent| {
        let sent =
            sent.also("thanos-tenant", "other").also("x-scope-orgid", "other").also("x-forwarded-for", "127.0.0.1");
        sent.also("connection", "content-type")
            .also("x-prometheus-remote-write-version", "9")
            .body(snappy_block(&good()))
    };
    rows.sent("a tenant of its own choice", (Route::Receive, spoofed), 200, "").reaches_as_sent();
    rows.all()
}
