//! The push client as its users run it, and a Prometheus and a gateway for it under the test's control.

use std::{ffi::OsStr, sync::atomic::AtomicUsize};

use infogw_proto::client::MetricFamily;
use serde_json::json;
use tokio::process::Command;

use super::{
    Gateway, eventually,
    http::{self, Reply},
    payload::undelimited,
    process::{Exit, Process, logfmt},
    server::{Answer, Received, Server},
};

/// A running client.
pub struct Client {
    process: Process,
    listen: String,
}

impl Client {
    /// Starts it with `args` and waits until it listens.
    pub async fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Self::command();
        command.args(["--listen", "127.0.0.1:0"]).args(args);
        Self::start_command(command).await
    }

    /// Starts it as `command` says, which has to let it choose its port, and waits until it listens.
    pub async fn start_command(command: Command) -> Self {
        let process = Process::spawn(command);
        let line = process.wait_for_log(r#"msg="starting infogw-proxy federate""#).await;
        let listen = logfmt(&line, "listen").expect("it says where it listens").to_owned();
        Self { process, listen }
    }

    /// Runs it with `args`, and no others, until it ends by itself.
    pub async fn run_to_exit<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Exit {
        let mut command = Self::command();
        command.args(args);
        Process::spawn(command).exit().await
    }

    /// `infogw-proxy federate`, without arguments.
    pub fn command() -> Command {
        let mut command = Gateway::command();
        command.arg("federate");
        command
    }

    /// What it answers to a GET of `path`.
    pub async fn get(&self, path: &str) -> Reply {
        http::get(&self.url(path)).await
    }

    /// The URL of `path` on its listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// The value of this series on `/metrics`, 0 where there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let metrics = self.get("/metrics").await.expect_status(200);
        let found = metrics.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().expect("a metric's value is a number"))
    }

    /// Waits until this series on `/metrics` is at least `least`.
    pub async fn wait_for_metric(&self, series: &str, least: f64) {
        eventually(series, async || {
            let value = self.metric(series).await;
            super::ensure(value >= least, || value.to_string())
        })
        .await;
    }

    /// The first log line that holds `needle`, be it written already or still to come.
    pub async fn wait_for_log(&self, needle: &str) -> String {
        self.process.wait_for_log(needle).await
    }

    /// The log lines so far.
    pub fn logs(&self) -> Vec<String> {
        self.process.logs()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }

    /// Sends the signal called `name`, such as `HUP`.
    pub async fn signal(&self, name: &str) {
        self.process.signal(name).await;
    }

    /// Tells it to stop, and waits for that.
    pub async fn stop(mut self) -> Exit {
        self.process.signal("TERM").await;
        self.process.exit().await
    }
}

/// A scripted Prometheus.
pub type Source = Server<Received>;

impl Source {
    /// Answers `/federate` with this text.
    pub async fn of_text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::start(move |_| Answer::body(200, "text/plain; version=0.0.4; charset=utf-8", text.clone())).await
    }
}

/// A scripted gateway: issues tokens that say which one they are, with a label, and takes uploads.
pub struct Receiver {
    pub authorize: Server<Received>,
    pub upload: Server<Received>,
}

impl Receiver {
    pub async fn start() -> Self {
        Self::labelling("_id", "c1").await
    }

    /// With this label in its tokens.
    pub async fn labelling(name: &'static str, value: &'static str) -> Self {
        let issued = AtomicUsize::new(0);
        let authorize = Server::start(move |_: &Received| {
            let n = 1 + issued.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let token = format!("token-{n}");
            Answer::json(
                200,
                &json!({ "version": 1, "token": token, "expiresInSeconds": 3600, "labels": { name: value } }),
            )
        });
        let upload = Server::start(|_: &Received| Answer::status(200));
        Self { authorize: authorize.await, upload: upload.await }
    }

    /// The flags that have a client push here.
    pub fn flags(&self) -> [String; 3] {
        [
            format!("--to-auth={}", self.authorize.url_of("/authorize?id=c1")),
            format!("--to-upload={}", self.upload.url_of("/upload")),
            "--to-token=pull-secret".to_owned(),
        ]
    }
}

/// The families of an upload.
pub fn families(upload: &Received) -> Vec<MetricFamily> {
    let mut stream = Vec::new();
    let mut frames = snap::read::FrameDecoder::new(&*upload.body);
    std::io::Read::read_to_end(&mut frames, &mut stream).expect("framed snappy");
    undelimited(&stream)
}

/// The series of an upload, spelt `name{label="value",...} value timestamp`, labels sorted.
pub fn spelt(upload: &Received) -> Vec<String> {
    let mut spelt = Vec::new();
    for family in families(upload) {
        for metric in &family.metric {
            let mut labels: Vec<_> =
                metric.label.iter().map(|pair| format!("{}={:?}", pair.name(), pair.value())).collect();
            labels.sort();
            let value = metric.untyped.as_ref().expect("untyped, as in /federate").value();
            spelt.push(format!("{}{{{}}} {value} {}", family.name(), labels.join(","), metric.timestamp_ms()));
        }
    }
    spelt
}
