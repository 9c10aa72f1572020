//! What a push costs: a scrape of 10,000 series, a tenth of them too old, one label hashed, pushed; beside the floor of the same work.
//!
//! `cargo bench --bench federate`: CPU of the process for each push, by the operating system's accounting, and the most memory that it
//! held; without a listener, and with one that would show the selection. The floor is a process that scrapes the same, parses it with
//! prost, encodes it with prost and pushes it, and looks at nothing. Each pushes round after round, in turns A B C A B C; the first
//! rounds do not count. `-- --test` does it for an instant.

#![allow(missing_docs, clippy::disallowed_methods)]

#[path = "end_to_end/process.rs"]
#[allow(dead_code)]
mod process;

use std::{
    convert::Infallible,
    error::Error,
    io::Write as _,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use infogw_proto::client::{LabelPair, Metric, MetricFamily, MetricType, Untyped};
use process::{Cores, Process};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const SERIES: usize = 10_000;
const FAMILIES: usize = 100;
const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// Between two pushes.
const PAUSE: Duration = Duration::from_millis(10);

fn main() -> Outcome<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [role, server] = &arguments[..]
        && role == "floor"
    {
        return Builder::new_current_thread().enable_all().build()?.block_on(floor(server));
    }
    let test = arguments.iter().any(|argument| argument == "--test");
    let (rounds, pushes) = if test { (1, 2) } else { (5, 100) };
    let runtime = Runtime::new()?;
    let pushed = Arc::new(AtomicU64::new(0));
    let server = runtime.block_on(serve(Arc::clone(&pushed)))?;

    let client = |listen: String| {
        let mut client = Command::new(env!("CARGO_BIN_EXE_infogw-proxy"));
        client.args(["federate", "--limit-bytes=0", "--interval=10ms", "--to-token=t", "--id=c1", "--log-level=error"]);
        client.args(["--anonymize-labels=instance", "--anonymize-salt=salt"]);
        client.args([format!("--from=http://{server}"), format!("--to=http://{server}"), format!("--listen={listen}")]);
        client
    };
    let mut floor = Command::new(std::env::current_exe()?);
    floor.args(["floor", &server.to_string()]);
    let listens = client(process::free_address()?.to_string());
    let subjects = [("floor", floor), ("federate", client(String::new())), ("federate, with a listener", listens)];
    let mut measured = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for ((_, command), measured) in subjects.iter().zip(&mut measured) {
            let process = Process::start(command, Cores::Any, None)?;
            wait(&pushed, 5);
            process.forget_peak()?;
            let before = process.cpu()?;
            let made = wait(&pushed, pushes);
            measured.push(((process.cpu()? - before) * 1e3 / made as f64, process.peak()? / 1024.0 / 1024.0));
        }
    }
    if test {
        return Ok(());
    }
    println!("A scrape of {SERIES} series, {} bytes; {rounds} turns of {pushes} pushes; medians\n", scrape().len());
    println!("| | CPU ms a push | to the floor | peak MiB | to the floor |\n| --- | --- | --- | --- | --- |");
    let medians =
        measured.map(|turns| [median(turns.iter().map(|turn| turn.0)), median(turns.iter().map(|turn| turn.1))]);
    for ((name, _), [cpu, peak]) in subjects.iter().zip(medians) {
        let [floor_cpu, floor_peak] = medians[0];
        println!("| {name} | {cpu:.2} | {:.2} | {peak:.1} | {:.2} |", cpu / floor_cpu, peak / floor_peak);
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Waits until so many more were pushed; says how many it saw.
fn wait(pushed: &AtomicU64, more: u64) -> u64 {
    let before = pushed.load(Ordering::Relaxed);
    loop {
        let made = pushed.load(Ordering::Relaxed) - before;
        if made >= more {
            return made;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a Prometheus gives: every series untyped, with labels as clusters have them; each tenth is two days old.
fn scrape() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    let pair = |name: &str, value: String| LabelPair { name: Some(name.to_owned()), value: Some(value) };
    let metric = |n: usize| Metric {
        label: vec![
            pair("endpoint", "https-metrics".to_owned()),
            pair("instance", format!("10.0.{}.{}:9100", n / 250 % 250, n % 250)),
            pair("job", "kube-state-metrics".to_owned()),
            pair("namespace", "openshift-monitoring".to_owned()),
            pair("pod", format!("kube-state-metrics-{}", n % 1000)),
            pair("prometheus", "openshift-monitoring/k8s".to_owned()),
            pair("service", "kube-state-metrics".to_owned()),
        ],
        untyped: Some(Untyped { value: Some(n as f64 * 0.37) }),
        timestamp_ms: Some(if n.is_multiple_of(10) { now - 2 * 86_400_000 } else { now }),
        ..Metric::default()
    };
    let mut stream = Vec::new();
    for family in 0..FAMILIES {
        let family = MetricFamily {
            name: Some(format!("cluster:metric_{family:03}:sum")),
            r#type: Some(MetricType::Untyped as i32),
            metric: (0..SERIES / FAMILIES).map(|n| metric(family * SERIES / FAMILIES + n)).collect(),
            ..MetricFamily::default()
        };
        stream.extend(family.encode_length_delimited_to_vec());
    }
    stream
}

/// The Prometheus and the gateway.
async fn serve(pushed: Arc<AtomicU64>) -> Outcome<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let scrape = Bytes::from(scrape());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (scrape, pushed) = (scrape.clone(), Arc::clone(&pushed));
            let answer = service_fn(move |request: Request<Incoming>| {
                let (scrape, pushed) = (scrape.clone(), Arc::clone(&pushed));
                async move {
                    let body = match request.uri().path() {
                        "/federate" => scrape,
                        "/authorize" => r#"{"token":"t","expiresInSeconds":3600,"labels":{"_id":"c1"}}"#.into(),
                        _ => {
                            let _ = request.into_body().collect().await;
                            pushed.fetch_add(1, Ordering::Relaxed);
                            Bytes::new()
                        }
                    };
                    let response = Response::builder().header(header::CONTENT_TYPE, PROTOBUF).body(Full::new(body));
                    Ok::<_, Infallible>(response.unwrap_or_default())
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Ok(address)
}

/// Scrapes, parses, encodes and pushes, for ever.
async fn floor(server: &str) -> Outcome<()> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    loop {
        let scrape = Request::get(format!("http://{server}/federate")).body(Full::default())?;
        let body = client.request(scrape).await?.into_body().collect().await?.to_bytes();
        let (mut rest, mut families) = (&body[..], Vec::new());
        while !rest.is_empty() {
            families.push(MetricFamily::decode_length_delimited(&mut rest)?);
        }
        let mut stream = Vec::new();
        for family in &families {
            family.encode_length_delimited(&mut stream)?;
        }
        let mut frames = snap::write::FrameEncoder::new(Vec::new());
        frames.write_all(&stream)?;
        let body = frames.into_inner().map_err(|error| error.to_string())?;
        let push = Request::post(format!("http://{server}/upload")).body(Full::new(body.into()))?;
        client.request(push).await?.into_body().collect().await?;
        tokio::time::sleep(PAUSE).await;
    }
}
