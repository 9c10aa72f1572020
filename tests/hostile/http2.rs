//! HTTP/2 that a reader of HTTP/1.1 behind it would read differently, and frames where none may be.

use crate::{
    row::{
        Heard::{self, Goaway, Reset, Status},
        Row, Rows, SENDER,
    },
    support::{
        h2::{
            CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PROTOCOL_ERROR, RST_STREAM, SETTINGS,
            WINDOW_UPDATE, fields, frame,
        },
        payload::{composite_token, snappy_block},
        world::PULL_SECRET,
    },
    wire::good,
};

pub(crate) fn rows() -> Vec<Row> {
    [heads(), bodies(), frames()].into_iter().flatten().collect()
}

const DONE: &[Heard] = &[Status(1, 200)];
const REFUSED: &[Heard] = &[Status(1, 400)];
const NOT_FOUND: &[Heard] = &[Status(1, 404)];
/// A malformed request is an error of its stream (RFC 9113, section 8.1.1).
const MALFORMED: &[Heard] = &[Reset(1, PROTOCOL_ERROR)];
const BROKEN: &[Heard] = &[Goaway(PROTOCOL_ERROR)];

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

fn field(name: &str, value: impl AsRef<[u8]>) -> (Vec<u8>, Vec<u8>) {
    (name.as_bytes().to_owned(), value.as_ref().to_owned())
}

/// The head of a remote write of the sender's.
fn head() -> Fields {
    let token = format!("Bearer {}", composite_token(PULL_SECRET, SENDER));
    vec![
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":authority", "gateway"),
        field(":path", "/metrics/v1/receive"),
        field("authorization", token),
    ]
}

fn without(name: &str) -> Fields {
    head().into_iter().filter(|(field, _)| field != name.as_bytes()).collect()
}

/// With this field behind the others.
fn also(name: &str, value: impl AsRef<[u8]>) -> Fields {
    [head(), vec![field(name, value)]].concat()
}

/// With another value.
fn with(name: &str, value: impl AsRef<[u8]>) -> Fields {
    let value = value.as_ref();
    let changed = |(field, old): (Vec<u8>, Vec<u8>)| {
        let new = if field == name.as_bytes() { value.to_owned() } else { old };
        (field, new)
    };
    head().into_iter().map(changed).collect()
}

/// With this field before the others.
fn first(name: &str, value: &str) -> Fields {
    [vec![field(name, value)], head()].concat()
}

fn body() -> Vec<u8> {
    snappy_block(&good())
}

fn open(stream: u32, head: Fields) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &fields(head))
}

/// A request on a stream.
fn request(stream: u32, head: Fields) -> Vec<u8> {
    [open(stream, head), frame(DATA, END_STREAM, stream, &body())].concat()
}

fn heads() -> Vec<Row> {
    let mut rows = Rows::of("fields of HTTP/2");
    rows.streams("as they should be", request(1, head()), DONE).reaches_as_written();
    rows.streams("no authority", request(1, without(":authority")), DONE).reaches_as_written();
    for name in [":method", ":scheme", ":path"] {
        rows.streams(format!("no {name}"), request(1, without(name)), MALFORMED);
    }
    for (name, value) in [
        (":path", "/metrics/v1/receive"),
        (":path", "/upload"),
        (":method", "POST"),
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gateway"),
        (":authority", "other"),
        (":status", "200"),
        (":protocol", "websocket"),
    ] {
        rows.streams(format!("{name} {value} before the others"), request(1, first(name, value)), MALFORMED);
        rows.streams(format!("{name} {value} behind the others"), request(1, also(name, value)), MALFORMED);
    }
    // The authority is whom it is for, and a host says the same or nothing.
    rows.streams("the authority as the host, too", request(1, also("host", "gateway")), DONE).reaches_as_written();
    rows.streams("the authority in capitals", request(1, also("host", "GATEWAY")), DONE).reaches_as_written();
    rows.streams("another host than the authority", request(1, also("host", "other")), REFUSED);
    rows.streams("another port", request(1, also("host", "gateway:80")), REFUSED);
    let hosts = [also("host", "gateway"), vec![field("host", "gateway")]].concat();
    rows.streams("two hosts", request(1, hosts), REFUSED);
    let host = [without(":authority"), vec![field("host", "gateway")]].concat();
    rows.streams("a host alone", request(1, host.clone()), DONE).reaches_as_written();
    rows.streams("two hosts alone", request(1, [host, vec![field("host", "other")]].concat()), REFUSED);
    for authority in ["", "a b", "gateway/upload", "gateway\r\nx: y", "\0"] {
        rows.streams(format!("the authority {authority:?}"), request(1, with(":authority", authority)), MALFORMED);
    }
    // What speaks of a connection has no place here.
    for (name, value) in [
        ("connection", "close"),
        ("connection", "authorization"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "chunked"),
        ("te", "trailers, gzip"),
    ] {
        rows.streams(format!("{name}: {value}"), request(1, also(name, value)), MALFORMED);
    }
    rows.streams("te: trailers", request(1, also("te", "trailers")), DONE).reaches_as_written();
    // What is no field at all ends the connection: the parser does not say where the next one begins.
    for name in
        [":unknown", ":", "X", "Authorization", "Content-Length", "Host", "x y", "x:", "x\r\ny", "x\0", "", "\u{e4}"]
    {
        rows.streams(format!("a field called {name:?}"), request(1, also(name, "y")), BROKEN);
    }
    for value in ["y\r\nhost: other", "y\n", "\0", "y\r", "\u{7f}"] {
        rows.streams(format!("a value {value:?}"), request(1, also("x", value)), BROKEN);
    }
    for path in [
        "",
        "/metrics/v1/receive HTTP/1.1\r\nhost: other\r\n\r\n",
        "/metrics/v1/receive HTTP/1.1",
        "/metrics/v1/receive\0",
        "/metrics/v1/receive\n",
        "metrics/v1/receive",
        "upload",
        "http://other/metrics/v1/receive",
        "http://gateway/metrics/v1/receive",
        "other/metrics/v1/receive",
    ] {
        rows.streams(format!("the path {path:?}"), request(1, with(":path", path)), MALFORMED);
    }
    for path in
        ["//metrics/v1/receive", "/upload/../metrics/v1/receive", "/metrics/v1/%72eceive", "/metrics/v1/receive/"]
    {
        rows.streams(format!("the path {path:?}"), request(1, with(":path", path)), NOT_FOUND);
    }
    for method in ["", "PO ST", "POST /upload HTTP/1.1\r\n", "POST\0"] {
        rows.streams(format!("the method {method:?}"), request(1, with(":method", method)), BROKEN);
    }
    rows.streams("a query alone", request(1, with(":path", "?/metrics/v1/receive")), &[Status(1, 405)]);
    rows.streams("another method", request(1, with(":method", "PUT")), &[Status(1, 405)]);
    rows.streams("a method in small letters", request(1, with(":method", "post")), &[Status(1, 405)]);
    rows.streams("CONNECT with a path", request(1, with(":method", "CONNECT")), MALFORMED);
    for scheme in ["ht tp", "http\r\n"] {
        rows.streams(format!("the scheme {scheme:?}"), request(1, with(":scheme", scheme)), MALFORMED);
    }
    // Nobody asks by what scheme it came.
    for scheme in ["", "file", "https"] {
        rows.streams(format!("the scheme {scheme:?}"), request(1, with(":scheme", scheme)), DONE).reaches_as_written();
    }
    rows.streams("two credentials", request(1, also("authorization", "Bearer x")), &[Status(1, 401)]);
    let long = fields(also("x", "y".repeat(100_000)));
    let mut pieces = long.chunks(16_384);
    let begun = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap());
    let rest =
        pieces.flat_map(|piece| frame(CONTINUATION, if piece.len() < 16_384 { END_HEADERS } else { 0 }, 1, piece));
    // Each costs its sender a byte.
    rows.streams(
        "101 fields of a name",
        request(1, [head(), vec![field("age", "1"); 101]].concat()),
        &[Status(1, 431)],
    );
    rows.streams("100 kB of fields", begun.into_iter().chain(rest).collect(), &[Status(1, 431)]);
    rows.all()
}

fn bodies() -> Vec<Row> {
    let mut rows = Rows::of("bodies of HTTP/2");
    let length = body().len();
    rows.streams("its length", request(1, also("content-length", length.to_string())), DONE).reaches_as_written();
    for lie in [0, 1, length - 1, length + 1, usize::MAX] {
        rows.streams(format!("a length of {lie}"), request(1, also("content-length", lie.to_string())), MALFORMED);
    }
    for lie in ["", "-1", "+1", "1, 1", "0x1", "18446744073709551616"] {
        rows.streams(format!("a length of {lie:?}"), request(1, also("content-length", lie)), MALFORMED);
    }
    let lengths = [also("content-length", length.to_string()), vec![field("content-length", "0")]].concat();
    rows.streams("two lengths", request(1, lengths), MALFORMED);
    // Whatever is in it is a body, and what stands behind its end is not looked at.
    let smuggled = b"POST /metrics/v1/receive HTTP/1.1\r\nhost: gateway\r\n\r\n";
    let inside = [open(1, head()), frame(DATA, END_STREAM, 1, smuggled)].concat();
    rows.streams(
        "a request of HTTP/1.1 in it",
        [inside, request(3, head())].concat(),
        &[Status(1, 400), Status(3, 200)],
    )
    .reaches_in_requests(1);
    let chunks = [format!("{length:x}\r\n").as_bytes(), &body(), b"\r\n0\r\n\r\n"].concat();
    rows.streams("chunks in it", [open(1, head()), frame(DATA, END_STREAM, 1, &chunks)].concat(), REFUSED);
    let begun = [open(1, head()), frame(DATA, 0, 1, &body())].concat();
    let trailers =
        |trailers: Fields| [begun.clone(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(trailers))].concat();
    // Nobody reads what is in them.
    let credentials = vec![field("authorization", "Bearer x"), field("content-length", "7")];
    rows.streams("credentials in the trailers", trailers(credentials), DONE).reaches_as_written();
    rows.streams("a path in the trailers", trailers(vec![field(":path", "/upload")]), DONE).reaches_as_written();
    let more = [begun.clone(), frame(HEADERS, END_HEADERS, 1, &fields([("x", "y")]))].concat();
    rows.streams("trailers that are not the end", more, MALFORMED);
    rows.streams("a reset in place of the end", [begun, frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat(), &[]);
    rows.all()
}

fn frames() -> Vec<Row> {
    let mut rows = Rows::of("frames of HTTP/2");
    let block = fields(head());
    rows.streams("data of no stream", frame(DATA, 0, 0, b"x"), BROKEN);
    rows.streams("data of a stream that is not there", frame(DATA, 0, 1, b"x"), BROKEN);
    rows.streams("a stream of the server's", request(2, head()), BROKEN);
    rows.streams("a stream before the last one", [open(3, head()), open(1, head())].concat(), BROKEN);
    rows.streams("a head of no stream", frame(HEADERS, END_HEADERS, 0, &block), BROKEN);
    let split = |between: Vec<u8>| {
        let (one, two) = block.split_at(20);
        let rest = frame(CONTINUATION, END_HEADERS, 1, two);
        [frame(HEADERS, 0, 1, one), between, rest, frame(DATA, END_STREAM, 1, &body())].concat()
    };
    rows.streams("a head in two", split(Vec::new()), DONE).reaches_as_written();
    rows.streams("a ping within a head", split(frame(PING, 0, 0, b"12345678")), BROKEN);
    rows.streams("another head within a head", split(frame(HEADERS, END_HEADERS, 3, &block)), BROKEN);
    rows.streams("a rest of another head", split(frame(CONTINUATION, 0, 3, b"")), BROKEN);
    rows.streams("a rest of no head", frame(CONTINUATION, END_HEADERS, 1, &block), BROKEN);
    let endless = [frame(HEADERS, 0, 1, &block), frame(CONTINUATION, 0, 1, b"").repeat(10_000)].concat();
    rows.streams("a head that does not end", endless, &[Goaway(11)]);
    rows.streams("more padding than there is", frame(DATA, 8, 1, &[9, 0]), BROKEN);
    rows.streams(
        "a head that depends on itself",
        frame(HEADERS, END_HEADERS | 0x20, 1, &[&[0, 0, 0, 1, 0][..], &block].concat()),
        MALFORMED,
    );
    rows.streams("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), BROKEN);
    rows.streams("a window over 31 bits", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), &[Goaway(3)]);
    rows.streams("settings of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), BROKEN);
    rows.streams("a frame over 16 KiB", frame(DATA, 0, 1, &[0; 16_385]), &[Goaway(6)]);
    rows.streams(
        "fields that refer to nothing",
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x80, 0x01]),
        BROKEN,
    );
    rows.streams("a field that breaks off", frame(HEADERS, END_HEADERS | END_STREAM, 1, &block[..20]), BROKEN);
    rows.streams(
        "a length that does not end",
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &[[0x7f].as_slice(), &[0xff; 20]].concat()),
        BROKEN,
    );
    rows.streams("HTTP/1.1 behind the preface", b"POST /metrics/v1/receive HTTP/1.1\r\n\r\n".to_vec(), &[Goaway(6)]);
    rows.all()
}
