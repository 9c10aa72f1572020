//! A real Prometheus: as the sender in front of the gateway, as the receiver behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use hyper::{
    Request,
    body::Bytes,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE},
    http::request::Builder,
};
use infogw_proto::prometheus::TimeSeries;
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    http::{self, Reply, query_string},
    payload::snappy_block,
    process::{Process, logfmt},
    stores::free_port,
    tls::{Authority, ClientOptions, TlsClient, Volume},
};

/// A running Prometheus with an empty database of its own, on a free loopback port. It takes remote write, keeps exemplars and
/// native histograms.
pub struct Prometheus {
    address: SocketAddr,
    /// Where it serves TLS: who trusts it.
    tls: Option<TlsClient>,
    // In this order: the process has to be gone before what it writes to is removed.
    process: Process,
    directory: TempDir,
}

/// A series as the query API shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub labels: BTreeMap<String, String>,
    pub points: Vec<Point>,
}

/// A sample or a native histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    /// A sample is a string, the shortest decimal that reads back as the same bits; a native histogram is an object.
    pub value: Value,
}

impl Prometheus {
    /// Starts one whose configuration may name its own address, and waits until it works by it.
    ///
    /// The configuration is YAML, of which JSON is a part.
    pub async fn start(config: impl FnOnce(SocketAddr) -> Value) -> Self {
        let directory = empty_directory();
        write_config(directory.path(), &json!({}));
        let (process, address) = launch(directory.path(), ([127, 0, 0, 1], 0).into()).await;

        // Its port is its own choice, so what depends on it can only be told now.
        let prometheus = Self { address, tls: None, process, directory };
        prometheus.reload(&config(address)).await;
        prometheus
    }

    /// Starts one that serves TLS with this certificate of `authority`, on a port that it keeps through its deaths.
    pub async fn start_tls(authority: &Authority, certificate: &Volume, config: &Value) -> Self {
        let directory = empty_directory();
        write_config(directory.path(), config);
        let (cert, key) = (certificate.path("tls.crt"), certificate.path("tls.key"));
        let web = json!({ "tls_server_config": { "cert_file": cert, "key_file": key } });
        std::fs::write(web_config_file(directory.path()), web.to_string()).expect("a temporary directory takes a file");
        let (process, address) = launch(directory.path(), ([127, 0, 0, 1], free_port()).into()).await;
        let tls = Some(TlsClient::new(authority, &ClientOptions::default()));
        Self { address, tls, process, directory }
    }

    /// Kills it, by SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Sends the signal called `name`, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        self.process.signal(name).await;
    }

    /// Starts it again, after it was killed, with its database and on its port, and waits until it works.
    pub async fn restart(&mut self) {
        (self.process, _) = launch(self.directory.path(), self.address).await;
    }

    /// Starts one that scrapes nothing: it holds what it is sent.
    pub async fn receiver() -> Self {
        Self::start(|_| json!({})).await
    }

    /// Puts another configuration into force.
    pub async fn reload(&self, config: &Value) {
        write_config(self.directory.path(), config);
        self.send(Request::post("/-/reload"), Bytes::new()).await;
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `path` here.
    pub fn url(&self, path: &str) -> String {
        match &self.tls {
            None => format!("http://{}{path}", self.address),
            Some(_) => format!("https://localhost:{}{path}", self.address.port()),
        }
    }

    /// Where it takes remote write.
    pub fn remote_write_url(&self) -> String {
        self.url("/api/v1/write")
    }

    /// The first log line that holds `needle`, be it written already or still to come.
    pub async fn wait_for_log(&self, needle: &str) -> String {
        self.process.wait_for_log(needle).await
    }

    /// The log lines so far.
    pub fn logs(&self) -> Vec<String> {
        self.process.logs()
    }

    /// What `promql` gives now, sorted by labels: one point a series for an instant vector, all points for a range selector.
    pub async fn query(&self, promql: &str) -> Vec<Series> {
        let data = self.api("query", &[("query", promql)]).await;
        let series = data["result"].as_array().unwrap_or_else(|| panic!("no result in {data}"));
        let mut series: Vec<_> = series.iter().map(Series::from_json).collect();
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        series
    }

    /// The number that `promql`, which selects one series at most, gives now.
    pub async fn number(&self, promql: &str) -> Option<f64> {
        let series = self.query(promql).await;
        assert!(series.len() <= 1, "{promql} gives more than one series: {series:?}");
        let value = series.first()?.points.first()?.value.as_str();
        Some(
            value
                .unwrap_or_else(|| panic!("{series:?} is not a number"))
                .parse()
                .expect("a sample's value is a number"),
        )
    }

    /// The label sets of all series that it holds, stale ones too, that one of these selectors matches.
    pub async fn series(&self, selectors: &[&str]) -> BTreeSet<BTreeMap<String, String>> {
        let selectors: Vec<_> = selectors.iter().map(|&selector| ("match[]", selector)).collect();
        let data = self.api("series", &selectors).await;
        data.as_array().into_iter().flatten().map(labels).collect()
    }

    /// The exemplars of `promql`'s series in the last hour, each as its labels and value.
    pub async fn exemplars(&self, promql: &str) -> Vec<(BTreeMap<String, String>, String)> {
        let now = self.number("vector(time())").await.expect("one number");
        let (start, end) = ((now - 3600.0).to_string(), (now + 60.0).to_string());
        let data = self.api("query_exemplars", &[("query", promql), ("start", &start), ("end", &end)]).await;
        let series = data.as_array().into_iter().flatten();
        let exemplars = series.flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        exemplars.map(|exemplar| (labels(&exemplar["labels"]), text(&exemplar["value"]))).collect()
    }

    /// The sum of the series of this name on its own `/metrics`. Panics where there are none: a misspelt counter is not zero.
    pub async fn counter(&self, name: &str) -> f64 {
        let exposition = self.send(Request::get("/metrics"), Bytes::new()).await;
        let of_that_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let values: Vec<_> = exposition.text().lines().filter(of_that_name).filter_map(value).collect();
        assert!(!values.is_empty(), "no {name} on {}", self.url("/metrics"));
        values.iter().sum()
    }

    /// Its `/federate` for these selectors, in the format that `accept` asks for.
    pub async fn federate(&self, accept: &str, selectors: &[&str]) -> Reply {
        let query = query_string(selectors.iter().map(|selector| ("match[]", *selector)));
        self.send(Request::get(format!("/federate?{query}")).header(ACCEPT, accept), Bytes::new()).await
    }

    /// All that it has from `start` to `end`, both in milliseconds and inclusive, as it was written: stale markers, and NaNs by their
    /// bits. It sends no sign of zero.
    pub async fn remote_read(&self, start: i64, end: i64) -> Vec<TimeSeries> {
        let any = LabelMatcher { kind: MATCHES, name: "__name__".to_owned(), value: ".+".to_owned() };
        let read = ReadRequest { queries: vec![ReadQuery { start, end, matchers: vec![any] }] };
        let request = Request::post("/api/v1/read")
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(CONTENT_ENCODING, "snappy")
            .header("X-Prometheus-Remote-Read-Version", "0.1.0");
        let reply = self.send(request, snappy_block(&read.encode_to_vec())).await;
        let answer = snap::raw::Decoder::new().decompress_vec(&reply.body).expect("a snappy block");
        let answer = ReadResponse::decode(&*answer).expect("an answer to a read request");
        answer.results.into_iter().flat_map(|result| result.timeseries).collect()
    }

    /// Sends `request`, whose target is a path, and expects 200.
    async fn send(&self, request: Builder, body: impl Into<Bytes>) -> Reply {
        let reply = match &self.tls {
            None => {
                let path = request.uri_ref().expect("the test's request has a path").to_string();
                http::send(request.uri(self.url(&path)), body).await
            }
            Some(client) => {
                let mut connection = client.connect(&self.address.to_string()).await.expect("it serves TLS");
                connection.send(request, body).await.expect("an answer")
            }
        };
        reply.expect_status(200)
    }

    async fn api(&self, endpoint: &str, parameters: &[(&str, &str)]) -> Value {
        let query = query_string(parameters.iter().copied());
        let reply = self.send(Request::get(format!("/api/v1/{endpoint}?{query}")), Bytes::new()).await;
        reply.json()["data"].take()
    }
}

impl Series {
    /// The metric's name.
    pub fn name(&self) -> &str {
        self.labels.get("__name__").map_or("", String::as_str)
    }

    fn from_json(series: &Value) -> Self {
        // An instant vector has `value` or `histogram`; a matrix `values`, `histograms` or both.
        let one = ["value", "histogram"].iter().filter_map(|&key| series.get(key));
        let many = ["values", "histograms"].iter().filter_map(|&key| series[key].as_array()).flatten();
        let mut points: Vec<_> = one.chain(many).map(Point::from_json).collect();
        points.sort_by_key(|point| point.timestamp);
        Self { labels: labels(&series["metric"]), points }
    }
}

impl Point {
    fn from_json(point: &Value) -> Self {
        let seconds = point[0].as_f64().unwrap_or_else(|| panic!("no timestamp in {point}"));
        Self { timestamp: (seconds * 1000.0).round() as i64, value: point[1].clone() }
    }
}

/// Remote read, as far as it is used: `prompb/remote.proto` of Prometheus.
#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<ReadQuery>,
}

#[derive(Clone, PartialEq, Message)]
struct ReadQuery {
    #[prost(int64, tag = "1")]
    start: i64,
    #[prost(int64, tag = "2")]
    end: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<LabelMatcher>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelMatcher {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

/// `=~`.
const MATCHES: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<ReadResult>,
}

#[derive(Clone, PartialEq, Message)]
struct ReadResult {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

fn empty_directory() -> TempDir {
    TempDir::with_prefix("infogw-prometheus-").expect("a temporary directory")
}

/// Runs it on what is in this directory, and waits until it works.
async fn launch(directory: &Path, address: SocketAddr) -> (Process, SocketAddr) {
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config_file(directory)))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--web.enable-lifecycle")
        .arg("--web.enable-remote-write-receiver")
        .arg("--enable-feature=exemplar-storage,native-histograms");
    let web_config = web_config_file(directory);
    if web_config.exists() {
        command.arg(format!("--web.config.file={}", web_config.display()));
    }
    let process = Process::spawn(command).showing(|line| !line.contains("level=info"));
    let line = process.wait_for_log(r#"msg="Listening on""#).await;
    let address = logfmt(&line, "address").and_then(|address| address.parse().ok());
    let address = address.unwrap_or_else(|| panic!("no address= in {line}"));
    process.wait_for_log(r#"msg="Server is ready to receive web requests.""#).await;
    (process, address)
}

fn web_config_file(directory: &Path) -> PathBuf {
    directory.join("web.yml")
}

fn write_config(directory: &Path, config: &Value) {
    std::fs::write(config_file(directory), config.to_string()).expect("a temporary directory takes a file");
}

fn config_file(directory: &Path) -> String {
    directory.join("prometheus.yml").display().to_string()
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    object.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}
