//! Real Redis and memcached servers, each on a loopback port of its own that it keeps through its deaths.

use std::{net::TcpListener, path::Path};

use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream, process::Command};

use super::{
    ensure, eventually,
    process::{Exit, Process},
    within,
};

/// A running redis-server that keeps nothing on disk.
pub struct RedisServer(Server);

/// A running memcached.
pub struct Memcached(Server);

impl RedisServer {
    /// Starts one that anybody may use.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more options, such as `--requirepass`.
    pub async fn start_with(options: &[&str]) -> Self {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        RedisServer(Server::start(redis(options)).await)
    }

    /// Starts one whose options name its own port.
    pub async fn start_as(options: impl Fn(u16) -> Vec<String> + Send + 'static) -> Self {
        let command = move |port: u16, directory: &Path| redis(options(port))(port, directory);
        RedisServer(Server::start(command).await)
    }

    /// Its URL, without password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// What redis-cli prints for this command.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port().to_string()]).args(arguments).kill_on_drop(true);
        let output = within("redis-cli", command.output()).await.expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }
}

fn redis(options: Vec<String>) -> impl Fn(u16, &Path) -> Launch + Send {
    move |port, directory| {
        let mut command = Command::new("redis-server");
        // A configuration file, as a sentinel wants one that it can write to.
        let config = directory.join("redis.conf");
        std::fs::write(&config, "").expect("a temporary directory takes a file");
        command.arg(config).args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--dir"]).arg(directory).args(&options);
        let ready = |process: &Process| {
            process
                .printed()
                .iter()
                .any(|line| line.contains(" # Sentinel ID is") || line.contains("Ready to accept connections"))
        };
        Launch { command, ready: Box::new(ready) }
    }
}

impl Memcached {
    /// Starts one.
    pub async fn start() -> Self {
        let command = |port: u16, directory: &Path| {
            let listening = directory.join("listening");
            let _ = std::fs::remove_file(&listening);
            let mut command = Command::new("memcached");
            // It will not be root unless told so; anybody else it stays.
            command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-u", "root"]);
            command.env("MEMCACHED_PORT_FILENAME", &listening);
            Launch { command, ready: Box::new(move |_| listening.exists()) }
        };
        Memcached(Server::start(command).await)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Says `line` to it, and what it answers.
    pub async fn say(&self, line: &str) -> Vec<String> {
        use tokio::io::AsyncBufReadExt;
        let mut stream = TcpStream::connect(self.address()).await.expect("memcached listens");
        stream.write_all(format!("{line}\r\nmn\r\n").as_bytes()).await.expect("memcached reads");
        let mut lines = tokio::io::BufReader::new(stream).lines();
        let mut said = Vec::new();
        // `mn` is answered with `MN` once all before it is; but the crawler answers on its own, and ends so.
        let crawler = line.starts_with("lru_crawler");
        while let Some(line) = within("memcached's answer", lines.next_line()).await.expect("memcached answers") {
            if line == "MN" || (crawler && line == "END") {
                break;
            }
            said.push(line);
        }
        said
    }
}

macro_rules! server {
    ($($server:ident)*) => {$(
        impl $server {
            /// The port it listens on, or will again after a restart.
            pub fn port(&self) -> u16 {
                self.0.port
            }

            /// Kills it, by SIGKILL, and waits until it is gone.
            pub async fn kill(&mut self) {
                self.0.kill().await;
            }

            /// Starts it again on its port, empty. Kills it before if it still runs.
            pub async fn restart(&mut self) {
                self.0.restart().await;
            }

            /// Stops it, by SIGSTOP: its connections stay open, and nothing answers.
            pub async fn pause(&self) {
                self.0.process().signal("STOP").await;
            }

            /// Lets it go on.
            pub async fn resume(&self) {
                self.0.process().signal("CONT").await;
            }
        }
    )*};
}

server! { RedisServer Memcached }

/// How to start a server, and how to tell that it has.
struct Launch {
    command: Command,
    ready: Box<dyn Fn(&Process) -> bool + Send>,
}

struct Server {
    port: u16,
    // In this order: the process has to be gone before its directory is removed.
    process: Option<Process>,
    directory: TempDir,
    launch: Launcher,
}

type Launcher = Box<dyn Fn(u16, &Path) -> Launch + Send>;

impl Server {
    async fn start(launch: impl Fn(u16, &Path) -> Launch + Send + 'static) -> Self {
        let directory = TempDir::with_prefix("infogw-store-").expect("a temporary directory");
        let mut server = Server { port: 0, process: None, directory, launch: Box::new(launch) };
        // Another test's server may have taken the port since it was looked for.
        loop {
            server.port = free_port();
            match server.launch().await {
                Ok(()) => return server,
                Err(exit) if is_in_use(&exit) => {}
                Err(exit) => panic!("it did not start: {exit:?}"),
            }
        }
    }

    async fn launch(&mut self) -> Result<(), Exit> {
        let Launch { command, ready } = (self.launch)(self.port, self.directory.path());
        let mut process = Process::spawn(command);
        let ended = eventually("the server's start", async || {
            let ended = process.has_ended();
            ensure(ended || ready(&process), || format!("{:?}", process.logs())).map(|()| ended)
        })
        .await;
        if ended {
            return Err(process.exit().await);
        }
        self.process = Some(process);
        Ok(())
    }

    async fn restart(&mut self) {
        if self.process.is_some() {
            self.kill().await;
        }
        if let Err(exit) = self.launch().await {
            panic!("it did not start again: {exit:?}");
        }
    }

    async fn kill(&mut self) {
        self.process.take().expect("the server runs").kill().await;
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the server runs")
    }
}

fn is_in_use(exit: &Exit) -> bool {
    [&exit.stdout, &exit.stderr].iter().any(|output| output.to_lowercase().contains("already in use"))
}

/// A port that nobody listens on, below those that the system gives to outgoing connections: one of these would keep a server from
/// coming back.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
