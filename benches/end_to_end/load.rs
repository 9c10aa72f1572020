//! The load generator: clusters that push, each over HTTP/1.1.
//!
//! It writes `begin` when the warm-up is over, and what it counted when the time has run out.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    io::Write as _,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::mpsc, task::LocalSet};
use tokio_rustls::TlsConnector;

use crate::{
    Outcome,
    telemetry::{self, Shape},
    tls,
};

/// What to send, how often, and how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) target: SocketAddr,
    /// Of the listener, where it speaks TLS.
    pub(crate) certificate: Option<String>,
    pub(crate) endpoint: Endpoint,
    pub(crate) series: usize,
    pub(crate) labels: usize,
    pub(crate) clusters: u64,
    pub(crate) arrivals: Arrivals,
    /// Every cluster sends something small first.
    pub(crate) introduce: bool,
    pub(crate) warm_up: f64,
    pub(crate) seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Endpoint {
    Receive,
    Upload,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Arrivals {
    /// On each connection, as soon as the answer to the last one is there.
    Closed { connections: usize },
    /// So many a second, at random, on whatever connection is free.
    Open { rate: f64, connections: usize },
    /// One on each connection, all at once.
    Once { connections: usize },
    /// One on each connection, one after the other; then nothing, until the process is killed.
    ThenIdle { connections: usize },
}

/// What became of the requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) seconds: f64,
    pub(crate) accepted: Latencies,
    /// 503 and 429.
    pub(crate) refused: Latencies,
    /// Those that wait for their answer, or for a connection, as the time runs out: how long they have.
    pub(crate) unanswered: Latencies,
    /// How long after they were due those that were answered had been sent: what of their latencies is this process's.
    pub(crate) late: Latencies,
    /// Any other answer, or none.
    pub(crate) failed: u64,
    /// Bytes of one body.
    pub(crate) body: usize,
    pub(crate) decoded: usize,
}

/// Milliseconds from when a request was due to the end of its answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Latencies {
    pub(crate) requests: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Latencies {
    fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |share: f64| {
            let rank = (latencies.len() as f64 * share).ceil() as usize;
            latencies.get(rank.saturating_sub(1)).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        Latencies { requests: latencies.len() as u64, p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

pub(crate) fn run(spec: &str) -> Outcome<()> {
    let spec: Spec = serde_json::from_str(spec)?;
    // A task that panics takes its connection with it, and what is counted then is another load.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(1);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, drive(spec))
}

async fn drive(spec: Spec) -> Outcome<()> {
    let tls = spec.certificate.as_deref().map(tls::client).transpose()?;
    let target = Target { address: spec.target, tls };
    let bodies = Bodies::new(&spec, &target).await?;
    if spec.introduce {
        introduce(&spec, &target).await?;
    }
    let load = Rc::new(Load {
        bodies,
        target,
        counting: Cell::new(false),
        found: RefCell::default(),
        waiting: RefCell::default(),
        under_way: RefCell::default(),
        sent: Cell::new(0),
        random: RefCell::new(fastrand::Rng::with_seed(7)),
    });
    match spec.arrivals {
        Arrivals::Closed { connections } => {
            for _ in 0..connections {
                tokio::task::spawn_local(Rc::clone(&load).without_pause());
            }
        }
        Arrivals::Open { rate, connections } => {
            let free = load.target.connections(connections).await?;
            tokio::task::spawn_local(Rc::clone(&load).at_random(free, rate));
        }
        Arrivals::Once { connections } => return load.once(&spec, connections).await,
        Arrivals::ThenIdle { connections } => {
            let mut held = load.target.connections(connections).await?;
            for connection in &mut held {
                load.send(connection, Instant::now()).await;
            }
            say("begin")?;
            std::future::pending::<()>().await;
        }
    }
    tokio::time::sleep(Duration::from_secs_f64(spec.warm_up)).await;
    let began = Instant::now();
    load.counting.set(true);
    say("begin")?;
    tokio::time::sleep(Duration::from_secs_f64(spec.seconds)).await;
    load.tell(&spec, began.elapsed().as_secs_f64())
}

fn say(line: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

struct Load {
    bodies: Bodies,
    target: Target,
    /// Whether what ends is counted.
    counting: Cell<bool>,
    found: RefCell<Found>,
    /// When requests were due that cannot be sent yet, and those under way, by number.
    waiting: RefCell<VecDeque<Instant>>,
    under_way: RefCell<HashMap<u64, Instant>>,
    sent: Cell<u64>,
    random: RefCell<fastrand::Rng>,
}

#[derive(Default)]
struct Found {
    accepted: Vec<Duration>,
    refused: Vec<Duration>,
    late: Vec<Duration>,
    failed: u64,
}

impl Load {
    async fn without_pause(self: Rc<Self>) {
        let mut connection = None;
        loop {
            self.send(&mut connection, Instant::now()).await;
        }
    }

    async fn once(self: Rc<Self>, spec: &Spec, connections: usize) -> Outcome<()> {
        let free = self.target.connections(connections).await?;
        let began = Instant::now();
        self.counting.set(true);
        say("begin")?;
        let sent = free.into_iter().map(|mut connection| {
            let load = Rc::clone(&self);
            tokio::task::spawn_local(async move { load.send(&mut connection, began).await })
        });
        for sent in sent.collect::<Vec<_>>() {
            sent.await?;
        }
        self.tell(spec, began.elapsed().as_secs_f64())
    }

    /// A thread of its own waits for each: the runtime's timers tell milliseconds only, and what comes in lumps waits longer.
    async fn at_random(self: Rc<Self>, mut free: Vec<Option<Connection>>, rate: f64) {
        let (due, mut dues) = mpsc::unbounded_channel();
        thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(11);
            let mut next = Instant::now();
            loop {
                // Exponential pauses: arrivals that know nothing of each other.
                next += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
                thread::sleep(next.saturating_duration_since(Instant::now()));
                if due.send(next).is_err() {
                    return;
                }
            }
        });
        let (freed, mut frees) = mpsc::unbounded_channel();
        loop {
            tokio::select! {
                due = dues.recv() => self.waiting.borrow_mut().extend(due),
                connection = frees.recv() => free.extend(connection),
            }
            let mut waiting = self.waiting.borrow_mut();
            let sendable = waiting.len().min(free.len());
            let connections = free.drain(free.len() - sendable..);
            for (due, mut connection) in waiting.drain(..sendable).zip(connections) {
                let (load, freed) = (Rc::clone(&self), freed.clone());
                tokio::task::spawn_local(async move {
                    load.send(&mut connection, due).await;
                    let _ = freed.send(connection);
                });
            }
        }
    }

    /// Sends one request and counts its answer; connects first where that must be.
    async fn send(&self, connection: &mut Option<Connection>, due: Instant) {
        let number = self.sent.replace(self.sent.get() + 1);
        self.under_way.borrow_mut().insert(number, due);
        let late = due.elapsed();
        let status = self.exchange(connection).await;
        self.under_way.borrow_mut().remove(&number);
        let latency = due.elapsed();
        if status.is_err() {
            *connection = None;
        }
        if !self.counting.get() {
            return;
        }
        let mut found = self.found.borrow_mut();
        found.late.push(late);
        match status {
            Ok(status) if status.is_success() => found.accepted.push(latency),
            Ok(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) => found.refused.push(latency),
            failed => {
                // One says what is wrong.
                if found.failed == 0 {
                    match failed {
                        Ok(status) => eprintln!("answered {status}"),
                        Err(error) => eprintln!("failed: {error}"),
                    }
                }
                found.failed += 1;
            }
        }
    }

    async fn exchange(&self, connection: &mut Option<Connection>) -> Outcome<StatusCode> {
        // One that the server closed after its last answer is as good as none.
        if connection.as_mut().is_some_and(|open| open.is_closed()) {
            *connection = None;
        }
        let open = match connection {
            Some(open) => open,
            None => connection.insert(self.target.connect().await?),
        };
        let request = self.bodies.request(&mut self.random.borrow_mut());
        open.ready().await?;
        let response = open.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        Ok(status)
    }

    fn tell(&self, spec: &Spec, seconds: f64) -> Outcome<()> {
        let Found { accepted, refused, late, failed } = self.found.take();
        let unanswered =
            self.under_way.borrow().values().chain(&*self.waiting.borrow()).map(Instant::elapsed).collect();
        let unanswered = Latencies::of(unanswered);
        let [accepted, refused, late] = [accepted, refused, late].map(Latencies::of);
        let (body, decoded) = (self.bodies.body_len(), self.bodies.decoded_len(spec));
        say(&serde_json::to_string(&Counted { seconds, accepted, refused, unanswered, late, failed, body, decoded })?)
    }
}

type Connection = SendRequest<Full<Bytes>>;

struct Target {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    async fn connect(&self) -> Outcome<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => {
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::task::spawn_local(connection);
                sender
            }
            Some(tls) => {
                let name = ServerName::try_from("localhost")?;
                let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::task::spawn_local(connection);
                sender
            }
        })
    }

    async fn connections(&self, count: usize) -> Outcome<Vec<Option<Connection>>> {
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            open.push(Some(self.connect().await?));
        }
        Ok(open)
    }
}

/// A small request of each cluster, so that it is known.
async fn introduce(spec: &Spec, target: &Target) -> Outcome<()> {
    let template = Rc::new(Template::new(Shape { series: 1, labels: 2 })?);
    let next = Rc::new(RefCell::new(0..spec.clusters));
    let mut lanes = Vec::new();
    for _ in 0..32 {
        let (mut connection, template, next) = (target.connect().await?, Rc::clone(&template), Rc::clone(&next));
        lanes.push(tokio::task::spawn_local(async move {
            loop {
                let Some(n) = next.borrow_mut().next() else { return Outcome::Ok(()) };
                connection.ready().await?;
                let response = connection.send_request(template.request(n)).await?;
                if !response.status().is_success() {
                    return Err(format!("cluster {n} was not let in: {}", response.status()).into());
                }
                response.into_body().collect().await?;
            }
        }));
    }
    for lane in lanes {
        lane.await??;
    }
    Ok(())
}

/// The requests of all clusters.
enum Bodies {
    Receive { template: Template, clusters: u64 },
    Upload(Vec<Upload>),
}

struct Upload {
    token: HeaderValue,
    body: Bytes,
}

/// Clusters that upload: their bodies are all made beforehand.
const UPLOADERS: u64 = 64;

impl Bodies {
    async fn new(spec: &Spec, target: &Target) -> Outcome<Self> {
        let shape = Shape { series: spec.series, labels: spec.labels };
        if spec.endpoint == Endpoint::Receive {
            return Ok(Bodies::Receive { template: Template::new(shape)?, clusters: spec.clusters });
        }
        let mut connection = target.connect().await?;
        let mut uploads = Vec::new();
        for n in 0..spec.clusters.min(UPLOADERS) {
            let cluster = telemetry::cluster(n);
            let request = Request::post(format!("/authorize?id={cluster}"))
                .header(header::HOST, "localhost")
                .header(header::AUTHORIZATION, "Bearer a-token-of-the-cluster")
                .body(Full::default())?;
            connection.ready().await?;
            let response = connection.send_request(request).await?;
            let issued: serde_json::Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
            let token = issued["token"].as_str().ok_or("no token was issued")?;
            uploads.push(Upload {
                token: format!("Bearer {token}").try_into()?,
                body: telemetry::upload(&cluster, shape, now()).into(),
            });
        }
        Ok(Bodies::Upload(uploads))
    }

    fn request(&self, random: &mut fastrand::Rng) -> Request<Full<Bytes>> {
        match self {
            Bodies::Receive { template, clusters } => template.request(random.u64(0..*clusters)),
            Bodies::Upload(uploads) => {
                let Upload { token, body } = &uploads[random.usize(0..uploads.len())];
                let mut request = Request::new(Full::new(body.clone()));
                *request.method_mut() = http::Method::POST;
                *request.uri_mut() = http::Uri::from_static("/upload");
                let headers = request.headers_mut();
                headers.insert(header::HOST, HeaderValue::from_static("localhost"));
                headers.insert(header::AUTHORIZATION, token.clone());
                let families =
                    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(families));
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
                request
            }
        }
    }

    fn body_len(&self) -> usize {
        match self {
            Bodies::Receive { template, .. } => template.body.len(),
            Bodies::Upload(uploads) => uploads[0].body.len(),
        }
    }

    fn decoded_len(&self, spec: &Spec) -> usize {
        let shape = Shape { series: spec.series, labels: spec.labels };
        match self {
            Bodies::Receive { .. } => {
                prost::Message::encoded_len(&telemetry::write_request(&telemetry::cluster(0), shape, now()))
            }
            Bodies::Upload(_) => telemetry::families(&telemetry::cluster(0), shape, now()).len(),
        }
    }
}

/// A remote-write body into which a cluster's id can be written without compressing anew: what of an id stands in the block as a literal
/// is replaced, and what repeats it are copies.
struct Template {
    body: Vec<u8>,
    /// Where bytes of the id stand, and which.
    literals: Vec<(usize, usize)>,
}

/// As long as an id, and without anything in it that a compressor could find elsewhere.
const PLACEHOLDER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZghijklmnop";

impl Template {
    fn new(shape: Shape) -> Outcome<Self> {
        let (at, id) = (now(), telemetry::cluster(77));
        let body = telemetry::remote_write(PLACEHOLDER, shape, at);
        let decoded = snap::raw::Decoder::new().decompress_vec(&body)?;
        let mut byte_of_id = vec![None; decoded.len()];
        for (at, _) in decoded.windows(PLACEHOLDER.len()).enumerate().filter(|(_, w)| *w == PLACEHOLDER.as_bytes()) {
            (0..PLACEHOLDER.len()).for_each(|byte| byte_of_id[at + byte] = Some(byte));
        }
        let mut literals = Vec::new();
        for (from, to, len) in literals_of(&body) {
            literals.extend((0..len).filter_map(|n| Some((from + n, byte_of_id[to + n]?))));
        }
        let template = Template { body, literals };
        let written = snap::raw::Decoder::new().decompress_vec(&template.of(&id))?;
        if written != prost::Message::encode_to_vec(&telemetry::write_request(&id, shape, at)) {
            return Err("an id cannot be written into this body".into());
        }
        Ok(template)
    }

    fn of(&self, id: &str) -> Vec<u8> {
        let mut body = self.body.clone();
        for &(at, byte) in &self.literals {
            body[at] = id.as_bytes()[byte];
        }
        body
    }

    fn request(&self, cluster: u64) -> Request<Full<Bytes>> {
        let id = telemetry::cluster(cluster);
        let composite =
            BASE64_STANDARD.encode(format!(r#"{{"authorization_token":"a-token-of-{id}","cluster_id":"{id}"}}"#));
        let mut request = Request::new(Full::new(self.of(&id).into()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("/metrics/v1/receive");
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        headers.insert(header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {composite}")).expect("ASCII"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("Prometheus/3.7.0"));
        headers.insert("x-prometheus-remote-write-version", HeaderValue::from_static("0.1.0"));
        request
    }
}

/// The literals of a snappy block: where each stands in it, where it comes to stand when decompressed, and its length in bytes
/// (format_description.txt of snappy, section 2).
fn literals_of(block: &[u8]) -> Vec<(usize, usize, usize)> {
    let mut at = block.iter().take_while(|byte| **byte >= 0x80).count() + 1;
    let (mut to, mut literals) = (0, Vec::new());
    while let Some(&tag) = block.get(at) {
        let upper = usize::from(tag >> 2);
        match tag & 3 {
            0 => {
                let extra = upper.saturating_sub(59);
                let little_endian = block[at + 1..=at + extra].iter().rev();
                let len =
                    if extra == 0 { upper } else { little_endian.fold(0, |len, byte| len << 8 | usize::from(*byte)) };
                literals.push((at + 1 + extra, to, len + 1));
                to += len + 1;
                at += 2 + extra + len;
            }
            1 => {
                to += (upper & 7) + 4;
                at += 2;
            }
            kind => {
                to += upper + 1;
                at += if kind == 2 { 3 } else { 5 };
            }
        }
    }
    literals
}

/// Milliseconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
