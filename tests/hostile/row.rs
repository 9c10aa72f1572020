//! One row: a request, its answer, and what reaches the upstream.

use infogw_proto::prometheus::Label;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    go::go_labels,
    support::{
        World, Write, h2,
        payload::snappy_block,
        within,
        world::{TEXT, now},
    },
    table::{Route, Sent, TENANT, check_headers},
};

/// Whose requests these are, unless a row says otherwise.
pub(crate) const SENDER: &str = "c1";

/// Delimited metric families, as a `Content-Type`.
pub(crate) const DELIMITED: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// The time of samples in remote write, which nobody changes.
pub(crate) const AT: i64 = 1_700_000_000_000;

pub(crate) struct Row {
    area: &'static str,
    case: String,
    request: Request,
    status: u16,
    /// Any of these.
    says: Vec<String>,
    reaches: Reaches,
}

enum Request {
    /// A good one, and then changed.
    Of(Route, Box<dyn FnOnce(Sent) -> Sent + Send>),
    /// These bytes on a connection of their own, and the answers that come back before it is closed.
    Raw { bytes: Vec<u8>, ended: bool, answers: &'static [Answered] },
    /// These frames on a connection of HTTP/2, and what is heard of its streams.
    Frames { bytes: Vec<u8>, heard: &'static [Heard] },
}

/// What is heard on a connection of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A stream's answer.
    Status(u32, u16),
    /// Its end, as an error.
    Reset(u32, u32),
    /// The connection's end, as an error.
    Goaway(u32),
}

/// An answer on a raw connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// By the gateway: one line of text, where it refuses.
    Line(u16),
    /// By the HTTP parser, to what is no request: without a body.
    Bare(u16),
}

enum Reaches {
    Nothing,
    /// The body as it was sent.
    AsSent,
    /// One request with these series, spelt as [`spelt`] does.
    Series(Vec<String>),
    /// So many requests, each with `up` of the sender.
    Requests(usize),
}

/// Rows of one area are made by this.
pub(crate) struct Rows {
    area: &'static str,
    rows: Vec<Row>,
}

impl Rows {
    pub(crate) fn of(area: &'static str) -> Self {
        Rows { area, rows: Vec::new() }
    }

    fn push(&mut self, case: impl Into<String>, request: Request, status: u16, says: &str) -> &mut Row {
        let (case, says) = (case.into(), vec![says.to_owned()]);
        self.rows.push(Row { area: self.area, case, request, status, says, reaches: Reaches::Nothing });
        self.rows.last_mut().unwrap()
    }

    /// A good request, changed.
    pub(crate) fn sent(
        &mut self,
        case: impl Into<String>,
        (route, change): (Route, impl FnOnce(Sent) -> Sent + Send + 'static),
        status: u16,
        says: &str,
    ) -> &mut Row {
        self.push(case, Request::Of(route, Box::new(change)), status, says)
    }

    /// Remote write of this body.
    pub(crate) fn block(&mut self, case: impl Into<String>, body: Vec<u8>, status: u16, says: &str) -> &mut Row {
        self.sent(case, (Route::Receive, |sent: Sent| sent.body(body)), status, says)
    }

    /// Remote write of this message.
    pub(crate) fn message(
        &mut self,
        case: impl Into<String>,
        message: impl AsRef<[u8]>,
        status: u16,
        says: &str,
    ) -> &mut Row {
        self.block(case, snappy_block(message.as_ref()), status, says)
    }

    /// An upload of this body, as delimited metric families.
    pub(crate) fn families(&mut self, case: impl Into<String>, body: Vec<u8>, status: u16, says: &str) -> &mut Row {
        self.sent(case, (Route::Upload, |sent: Sent| sent.with("content-type", DELIMITED).body(body)), status, says)
    }

    /// An upload of this text, in which `{NOW}` is now.
    pub(crate) fn text(&mut self, case: impl Into<String>, text: &str, status: u16, says: &str) -> &mut Row {
        let text = text.replace("{NOW}", &now().to_string());
        self.sent(case, (Route::Upload, |sent: Sent| sent.with("content-type", TEXT).body(text)), status, says)
    }

    /// An upload of this body, as text in frames.
    pub(crate) fn frames(&mut self, case: impl Into<String>, body: Vec<u8>, status: u16, says: &str) -> &mut Row {
        let framed = |sent: Sent| sent.with("content-encoding", "snappy").body(body);
        self.sent(case, (Route::Upload, framed), status, says)
    }

    /// These bytes on a connection.
    pub(crate) fn raw(&mut self, case: &str, bytes: impl AsRef<[u8]>, answers: &'static [Answered]) -> &mut Row {
        let bytes = bytes.as_ref().to_owned();
        self.push(case, Request::Raw { bytes, ended: false, answers }, 0, "")
    }

    /// These bytes on a connection, and then its end.
    pub(crate) fn ended(&mut self, case: &str, bytes: impl AsRef<[u8]>, answers: &'static [Answered]) -> &mut Row {
        let bytes = bytes.as_ref().to_owned();
        self.push(case, Request::Raw { bytes, ended: true, answers }, 0, "")
    }

    /// These frames on a connection of HTTP/2.
    pub(crate) fn streams(&mut self, case: impl Into<String>, bytes: Vec<u8>, heard: &'static [Heard]) -> &mut Row {
        self.push(case, Request::Frames { bytes, heard }, 0, "")
    }

    pub(crate) fn all(self) -> Vec<Row> {
        self.rows
    }
}

impl Row {
    /// What reaches the upstream, series by series.
    pub(crate) fn reaches<S: Into<String>>(&mut self, series: impl IntoIterator<Item = S>) {
        self.reaches = Reaches::Series(series.into_iter().map(Into::into).collect());
    }

    pub(crate) fn reaches_as_sent(&mut self) {
        self.reaches = Reaches::AsSent;
    }

    /// One request, whole.
    pub(crate) fn reaches_as_written(&mut self) {
        self.reaches_in_requests(1);
    }

    pub(crate) fn reaches_in_requests(&mut self, count: usize) {
        self.reaches = Reaches::Requests(count);
    }

    /// Or this, where one refusal is as good as another.
    pub(crate) fn says_also(&mut self, says: &str) {
        self.says.push(says.to_owned());
    }

    pub(crate) fn case(&self) -> String {
        format!("{}: {}", self.area, self.case)
    }

    pub(crate) async fn check(self, world: &World, upload_token: &str) {
        let case = self.case();
        let before = world.upstream.count();
        let (mut body, mut tenant) = (Vec::new(), None);
        match self.request {
            Request::Of(route, change) => {
                let sent = change(Sent::good(route, SENDER, upload_token));
                tenant = (route == Route::Upload).then_some(TENANT);
                body.clone_from(&sent.body);
                let reply = sent.send(world.gateway.public_address()).await;
                assert_eq!(reply.status, self.status, "{case}: {reply:?}");
                if self.status >= 400 {
                    // Where there is no route, there is nobody whose reasons are counted.
                    let line = if self.status == 404 { reply.text() } else { reply.reason() };
                    assert!(
                        self.says.iter().any(|says| line.contains(says)),
                        "{case}: not {:?} but {line:?}",
                        self.says
                    );
                }
            }
            Request::Raw { bytes, ended, answers: expected } => {
                let answer = exchange(&case, world.gateway.public_address(), &bytes, ended).await;
                assert_eq!(answers(&answer), expected, "{case}: {}", String::from_utf8_lossy(&answer));
            }
            Request::Frames { bytes, heard: expected } => {
                let heard = within(&case, hear(world.gateway.public_address(), &bytes, expected.len())).await;
                assert_eq!(heard, expected, "{case}");
            }
        }
        let writes = world.upstream.received_after(before);
        for write in &writes {
            check_headers(write, tenant);
        }
        match self.reaches {
            Reaches::Nothing => assert!(writes.is_empty(), "{case}: reached the upstream: {writes:?}"),
            Reaches::AsSent => {
                let [write] = &writes[..] else { panic!("{case}: {} requests upstream", writes.len()) };
                assert!(write.body == body, "{case}: another body upstream: {:?}", write.decoded);
                by_go(write);
            }
            Reaches::Series(expected) => {
                let [write] = &writes[..] else { panic!("{case}: {} requests upstream", writes.len()) };
                assert_eq!(spelt(write), expected, "{case}");
            }
            Reaches::Requests(count) => {
                assert_eq!(writes.len(), count, "{case}: {writes:?}");
                let up = format!("up{{_id={SENDER:?}}} 1@{AT}");
                assert!(writes.iter().all(|write| spelt(write) == [&*up]), "{case}: {writes:?}");
            }
        }
    }
}

/// The labels of each series as Go reads them, which is what prost reads, too. All of them are the sender's.
fn by_go(write: &Write) -> Vec<Vec<Label>> {
    let message = snap::raw::Decoder::new().decompress_vec(&write.body).expect("a snappy block");
    let by_go = go_labels(&message).expect("Go reads it");
    let by_prost = &write.request().timeseries;
    assert!(by_prost.iter().map(|series| &series.labels).eq(by_go.iter()), "{by_prost:?}, to Go {by_go:?}");
    for labels in &by_go {
        let ids: Vec<_> = labels.iter().filter(|label| label.name == "_id").map(|label| &*label.value).collect();
        assert_eq!(ids, [SENDER], "{labels:?}");
    }
    by_go
}

/// Each series as `name{label="value",...} value@milliseconds ...`. A NaN is its bits, and the time of an upload is `now`.
pub(crate) fn spelt(write: &Write) -> Vec<String> {
    let spell = |(labels, series): (&Vec<Label>, &infogw_proto::prometheus::TimeSeries)| {
        let (name, others): (Vec<_>, Vec<_>) = labels.iter().partition(|label| label.name == "__name__");
        let name: String = name.iter().map(|label| &*label.value).collect();
        let others: Vec<_> = others.iter().map(|label| format!("{}={:?}", label.name, label.value)).collect();
        let mut spelt = format!("{name}{{{}}}", others.join(","));
        for sample in &series.samples {
            let age = now() - sample.timestamp;
            let time = if (0..60_000).contains(&age) { "now".to_owned() } else { sample.timestamp.to_string() };
            spelt += &format!(" {}@{time}", number(sample.value));
        }
        spelt
    };
    by_go(write).iter().zip(&write.request().timeseries).map(spell).collect()
}

/// A double, so that different bits are spelt differently.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() { format!("NaN:{:016x}", value.to_bits()) } else { value.to_string() }
}

/// What is answered to these bytes until the connection is closed.
async fn exchange(case: &str, gateway: &str, bytes: &[u8], ended: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    // Who is refused early may be closed before all is written.
    let _ = stream.write_all(bytes).await;
    if ended {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    // A reset is an end like another.
    let _ = within(case, stream.read_to_end(&mut answer)).await;
    answer
}

/// What is heard of these frames: so much, and what comes besides before a ping that follows is answered.
async fn hear(gateway: &str, bytes: &[u8], least: usize) -> Vec<Heard> {
    let mut connection = h2::Connection::new(TcpStream::connect(gateway).await.unwrap()).await.unwrap();
    // Whoever is hung up on may hear of it before all is sent.
    let _ = connection.send(bytes).await;
    let (mut heard, mut pinged) = (Vec::new(), false);
    loop {
        if heard.len() >= least && !pinged {
            pinged = true;
            let _ = connection.send(h2::frame(h2::PING, 0, 0, b"the rest")).await;
        }
        // A reset is an end like another.
        let Ok(Some(frame)) = connection.next_of_note().await else { return heard };
        match (frame.status(), frame.reset(), frame.goaway()) {
            (Some(status), ..) => heard.push(Heard::Status(frame.stream, status)),
            // Of a body that nobody needs: its answer is there.
            (_, Some(h2::NO_ERROR), _) => {}
            (_, Some(error), _) => heard.push(Heard::Reset(frame.stream, error)),
            (.., Some((_, error))) => heard.push(Heard::Goaway(error)),
            _ if frame.kind == h2::PING && frame.payload == b"the rest" => return heard,
            _ => {}
        }
    }
}

/// The answers in a stream, each of which knows its length.
fn answers(mut stream: &[u8]) -> Vec<Answered> {
    let mut answers = Vec::new();
    while !stream.is_empty() {
        let end = stream.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head") + 4;
        let head = std::str::from_utf8(&stream[..end]).expect("a head of text").to_ascii_lowercase();
        let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
        // The answer to HEAD says how long its body would be.
        let length = if stream.len() == end { 0 } else { length };
        let body = &stream[end..end + length];
        if status >= 400 && body.is_empty() {
            answers.push(Answered::Bare(status));
        } else {
            assert!(status < 300 || body.len() > 10 && body.ends_with(b"\n"), "{status} without a line: {body:?}");
            answers.push(Answered::Line(status));
        }
        stream = &stream[end + length..];
    }
    answers
}
