//! A certified OpenID provider, npm's oidc-provider, as a process.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::Request;
use serde_json::Value;
use tokio::{net::TcpSocket, process::Command, sync::OnceCell};

use super::{http, process::Process};

/// The one client's id.
pub const CLIENT: &str = "gateway";
/// Its secret.
pub const SECRET: &str = "s3cret-of-the-gateway";

/// A port for an issuer to be started on, and started again. Nobody listens on it in between, and nobody else gets it.
pub struct Port {
    bound: TcpSocket,
}

impl Port {
    /// Takes a free loopback port.
    pub fn new() -> Self {
        let bound = TcpSocket::new_v4().expect("a socket");
        // Both sockets have to say so for the issuer's to share the port with one that does not listen.
        bound.set_reuseaddr(true).expect("an option that every socket has");
        bound.bind(([127, 0, 0, 1], 0).into()).expect("a loopback port is free");
        Self { bound }
    }

    fn number(&self) -> u16 {
        self.bound.local_addr().expect("a bound socket has an address").port()
    }

    /// The issuer there over TLS.
    pub fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.number())
    }

    /// The issuer there, what `--oidc-issuer` is given.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.number())
    }
}

/// A running issuer. It knows one client, and forgets its tokens when dropped.
pub struct Issuer {
    process: Process,
    url: String,
}

impl Issuer {
    /// Starts it on `port`, with `settings` as `tests/oidc/issuer.js` explains them, and waits until it listens.
    pub async fn start(port: &Port, settings: &[(&str, &str)]) -> Self {
        let mut command = Command::new("node");
        command.arg("issuer.js").current_dir(installed().await);
        command.env("PORT", port.number().to_string()).env("CLIENT_SECRET", SECRET);
        command.envs(settings.iter().copied());
        let process = Process::spawn(command);
        process
            .wait_until_printed("that it listens", |lines| lines.iter().any(|line| line.contains("listening")))
            .await;
        Self { process, url: port.url() }
    }

    /// What happened, as it says it.
    pub fn events(&self, event: &str) -> Vec<Value> {
        events(&self.process.printed(), event)
    }

    /// What happened once it was at least `n` times.
    pub async fn wait_for(&self, n: usize, event: &str) -> Vec<Value> {
        let what = format!("{n} times {event}");
        self.process.wait_until_printed(&what, |lines| events(lines, event).len() >= n).await;
        self.events(event)
    }

    /// What it says about a token (RFC 7662). Only where the client proves itself by basic authentication.
    pub async fn introspect(&self, token: &str) -> Value {
        let credentials = BASE64_STANDARD.encode(format!("{CLIENT}:{SECRET}"));
        let request = Request::post(format!("{}/token/introspection", self.url))
            .header("authorization", format!("Basic {credentials}"))
            .header("content-type", "application/x-www-form-urlencoded");
        http::send(request, http::query_string([("token", token)])).await.expect_status(200).json()
    }
}

fn events(lines: &[String], event: &str) -> Vec<Value> {
    let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|line| line["event"] == event).collect()
}

/// The folder with the issuer and all it needs: under target/, by what it is made from, installed once.
async fn installed() -> &'static Path {
    // A failure is kept, too: the registry is not asked again by each test.
    static INSTALLED: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    INSTALLED.get_or_init(install).await.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

async fn install() -> Result<PathBuf, String> {
    const FILES: [&str; 3] = ["package.json", "package-lock.json", "issuer.js"];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oidc");
    let mut made_from = DefaultHasher::new();
    for file in FILES {
        fs::read(source.join(file)).expect("the issuer's files are in the tree").hash(&mut made_from);
    }
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tmp.join(format!("oidc-{:016x}", made_from.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    // Beside, then renamed: whoever finds the folder finds it whole, also where several test processes come at once.
    let making = tempfile::tempdir_in(tmp).expect("target/ can be written to");
    for file in FILES {
        fs::copy(source.join(file), making.path().join(file)).expect("target/ can be written to");
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=2", "--fetch-timeout=30000"])
        .current_dir(making.path());
    let output = npm.output().await.expect("npm can be run");
    if !output.status.success() {
        return Err(format!("npm ci: {}", String::from_utf8_lossy(&output.stderr)));
    }
    if let Err(error) = fs::rename(making.path(), &folder) {
        assert!(folder.exists(), "{}: {error}", folder.display());
    }
    Ok(folder)
}
