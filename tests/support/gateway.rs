//! The gateway as its users run it: the binary, its flags, its ports, its logs.

use std::ffi::OsStr;

use hyper::{
    Request,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use tokio::process::Command;

use super::{
    http::{self, Reply},
    process::{Exit, Process, logfmt},
};

/// A running gateway on free loopback ports.
pub struct Gateway {
    process: Process,
    external: String,
    internal: String,
}

impl Gateway {
    /// Starts it with `args` and waits until it listens.
    pub async fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Self::command();
        command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0"]).args(args);
        Self::start_command(command).await
    }

    /// Starts it as `command` says, which has to let it choose its ports, and waits until it listens.
    pub async fn start_command(command: Command) -> Self {
        let process = Process::spawn(command);
        let line = process.wait_for_log(r#"msg="starting infogw-proxy""#).await;
        let address = |key| match logfmt(&line, key) {
            Some(address) => address.to_owned(),
            None => panic!("no {key}= in {line}"),
        };
        Self { external: address("external"), internal: address("internal"), process }
    }

    /// Runs it with `args`, and no others, until it ends by itself: wrong flags, `--version`.
    pub async fn run_to_exit<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Exit {
        let mut command = Self::command();
        command.args(args);
        Process::spawn(command).exit().await
    }

    /// The binary under test, without arguments.
    pub fn command() -> Command {
        Command::new(env!("CARGO_BIN_EXE_infogw-proxy"))
    }

    /// The URL of `path` on the public listener.
    pub fn public(&self, path: &str) -> String {
        format!("http://{}{path}", self.external)
    }

    /// The URL of `path` on the internal listener.
    pub fn internal(&self, path: &str) -> String {
        format!("http://{}{path}", self.internal)
    }

    /// The public listener's `HOST:PORT`.
    pub fn public_address(&self) -> &str {
        &self.external
    }

    /// The internal listener's `HOST:PORT`.
    pub fn internal_address(&self) -> &str {
        &self.internal
    }

    /// The first log line that holds `needle`, be it written already or still to come.
    pub async fn wait_for_log(&self, needle: &str) -> String {
        self.process.wait_for_log(needle).await
    }

    /// The log lines so far.
    pub fn logs(&self) -> Vec<String> {
        self.process.logs()
    }

    /// The value of this series on `/metrics`, 0 where there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let metrics = http::get(&self.internal("/metrics")).await.expect_status(200);
        let found = metrics.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.map_or(0.0, |value| value.parse().expect("a metric's value is a number"))
    }

    /// The sum of the series of this name on `/metrics`, 0 where there is none.
    pub async fn metrics(&self, name: &str) -> f64 {
        let metrics = http::get(&self.internal("/metrics")).await.expect_status(200);
        let of_that_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        metrics.text().lines().filter(of_that_name).filter_map(value).sum()
    }

    /// Sends the signal called `name`, such as `HUP`.
    pub async fn signal(&self, name: &str) {
        self.process.signal(name).await;
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory that it has now, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).expect("a running process has a status");
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
        value.and_then(|value| value.parse::<u64>().ok()).expect("the status tells it in kB") * 1024
    }

    /// The descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(path).expect("a running process has descriptors").count()
    }

    /// Waits for it to end by itself, or for a signal that was sent.
    pub async fn exit(mut self) -> Exit {
        self.process.exit().await
    }

    /// Kills it, by SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) -> Exit {
        self.process.kill().await
    }

    /// Asks it to stop, by SIGTERM, and waits until it has.
    pub async fn stop(mut self) -> Exit {
        self.process.signal("TERM").await;
        self.process.exit().await
    }

    /// `POST /authorize?id=CLUSTER` with this token.
    pub async fn authorize(&self, cluster: &str, token: &str) -> Reply {
        let url = self.public(&format!("/authorize?{}", http::query_string([("id", cluster)])));
        http::send(Request::post(url).header(AUTHORIZATION, format!("Bearer {token}")), Bytes::new()).await
    }

    /// The upload token that `/authorize` issues to this cluster.
    pub async fn upload_token(&self, cluster: &str, token: &str) -> String {
        let reply = self.authorize(cluster, token).await.expect_status(200);
        reply.json()["token"].as_str().unwrap_or_else(|| panic!("no token in {reply:?}")).to_owned()
    }

    /// `POST /upload`; an empty `encoding` sends no `Content-Encoding`.
    pub async fn upload(&self, token: &str, content_type: &str, encoding: &str, body: impl Into<Bytes>) -> Reply {
        let mut request = Request::post(self.public("/upload"))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(CONTENT_TYPE, content_type);
        if !encoding.is_empty() {
            request = request.header(CONTENT_ENCODING, encoding);
        }
        http::send(request, body).await
    }

    /// `POST /metrics/v1/receive` with a remote-write 1.0 body and a stock sender's headers.
    pub async fn receive(&self, composite_token: &str, body: impl Into<Bytes>) -> Reply {
        let request = Request::post(self.public("/metrics/v1/receive"))
            .header(AUTHORIZATION, format!("Bearer {composite_token}"))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(CONTENT_ENCODING, "snappy")
            .header("X-Prometheus-Remote-Write-Version", "0.1.0");
        http::send(request, body).await
    }
}
