//! The pieces around the two gateways, each of which can be killed and comes back where it was.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::PathBuf};

use rcgen::KeyPair;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::process::Command;

use super::record::Labels;
use crate::support::{
    Authorizer, Gateway, Memcached, Prometheus, RedisServer, authorizer, ensure, eventually,
    process::Process,
    stores::free_port,
    tls::{Authority, ClientOptions, TlsClient, Volume},
};

/// Which port an authorizer's process is to listen on.
const AUTHORIZER_PORT: &str = "SOAK_AUTHORIZER_PORT";

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Piece {
    FirstGateway,
    SecondGateway,
    Receiver,
    Authorizer,
    Redis,
    Memcached,
}

impl Piece {
    pub(crate) const ALL: [Piece; 6] =
        [Piece::FirstGateway, Piece::SecondGateway, Piece::Receiver, Piece::Authorizer, Piece::Redis, Piece::Memcached];

    /// Which of the gateways it is.
    pub(crate) fn gateway(self) -> Option<usize> {
        match self {
            Piece::FirstGateway => Some(0),
            Piece::SecondGateway => Some(1),
            _ => None,
        }
    }
}

/// Whose certificate is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Gateways,
    Receiver,
}

/// The gateways and all that they need.
pub(crate) struct Fleet {
    authority: Authority,
    ca: Volume,
    gateways_certificate: Volume,
    receiver_certificate: Volume,
    key: NamedTempFile,
    gateways: [Replica; 2],
    pub(crate) receiver: Prometheus,
    authorizer: Option<Process>,
    authorizer_port: u16,
    redis: RedisServer,
    memcached: Memcached,
}

struct Replica {
    address: SocketAddr,
    /// `None` while it is killed.
    running: Option<Gateway>,
    counted: Counted,
}

/// What a gateway told of itself, all of its lives together. What it did between the last question and its death is not in here.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counted(pub BTreeMap<&'static str, u64>);

/// Of the gateway's own metrics, what is counted.
const COUNTED: [(&str, &str); 6] = [
    ("forwarded", r#"telemeter_forward_requests_total{result="success"}"#),
    ("forwards that failed", r#"telemeter_forward_requests_total{result="error"}"#),
    ("forwards tried again", r#"infogw_forward_retries_total{result="made"}"#),
    ("grants found in memcached", r#"infogw_authorization_cache_served_total{from="shared"}"#),
    ("grants served stale", r#"infogw_authorization_cache_served_total{from="stale"}"#),
    // The sum of its labels.
    ("limits without Redis", "infogw_rate_limit_shared_fallbacks_total"),
];

impl Fleet {
    pub(crate) async fn start() -> Self {
        let authority = Authority::new();
        let ca = Volume::new(&[("ca.crt", &authority.pem())]);
        let [gateways_certificate, receiver_certificate] =
            [Volume::of(&authority.server()), Volume::of(&authority.server())];
        // A request that was taken, but whose answer was lost, is sent again. If series have several samples in it, all but their last
        // are out of order then; within this window they are found to be there already.
        let config = json!({ "storage": { "tsdb": { "out_of_order_time_window": "2h" } } });
        let receiver = Prometheus::start_tls(&authority, &receiver_certificate, &config).await;
        let key = NamedTempFile::new().unwrap();
        fs::write(key.path(), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let replica =
            || Replica { address: ([127, 0, 0, 1], free_port()).into(), running: None, counted: Counted::default() };
        let mut fleet = Self {
            authority,
            ca,
            gateways_certificate,
            receiver_certificate,
            key,
            gateways: [replica(), replica()],
            receiver,
            authorizer: None,
            authorizer_port: free_port(),
            redis: RedisServer::start().await,
            memcached: Memcached::start().await,
        };
        for piece in [Piece::Authorizer, Piece::FirstGateway, Piece::SecondGateway] {
            fleet.restart(piece).await;
        }
        fleet
    }

    /// Where the gateways are.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        self.gateways.each_ref().map(|gateway| gateway.address)
    }

    /// The authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.ca.path("ca.crt")
    }

    /// What the gateways are told to do to a series of the sender's; `None` drops it.
    pub(crate) fn policy(mut labels: Labels) -> Option<Labels> {
        let name = labels.get("__name__").map(String::as_str).unwrap_or_default();
        let private = labels.get("visibility").is_some_and(|value| value == "private");
        if name != "up" && (!name.starts_with("soak_") || private) {
            return None;
        }
        labels.remove("replica");
        labels.insert("region".to_owned(), "eu".to_owned());
        Some(labels)
    }

    fn gateway_command(&self, address: SocketAddr) -> Command {
        let mut command = Gateway::command();
        command
            .args(["--whitelist", r#"{__name__=~"soak_.*",visibility!="private"}"#, "--whitelist", "up"])
            .args(["--receive-elide-label=replica", "--receive-label=region=eu"])
            .args(["--listen", &address.to_string(), "--listen-internal", "127.0.0.1:0"])
            .arg(self.gateways_certificate.flag("--tls-crt", "tls.crt"))
            .arg(self.gateways_certificate.flag("--tls-key", "tls.key"))
            .args(["--forward-url", &self.receiver.remote_write_url()])
            .arg(self.ca.flag("--forward-tls-ca-crt", "ca.crt"))
            .args(["--authorize", &format!("http://127.0.0.1:{}/registrations", self.authorizer_port)])
            // Short, so that the authorizer is asked all the time, and is missed soon.
            .args(["--authorize-cache-ttl=1s", "--authorize-cache-grace=1s"])
            .args(["--memcached", &self.memcached.address(), "--redis", &self.redis.url()])
            // So high that they are never met.
            .args(["--limit-receive-requests-per-second=1000000", "--limit-receive-samples-per-second=100000000"])
            .arg("--shared-key")
            .arg(self.key.path());
        command
    }

    /// Kills it, by SIGKILL.
    pub(crate) async fn kill(&mut self, piece: Piece) {
        match piece {
            Piece::FirstGateway => self.gateways[0].kill().await,
            Piece::SecondGateway => self.gateways[1].kill().await,
            Piece::Receiver => self.receiver.kill().await,
            Piece::Authorizer => {
                self.authorizer.take().expect("the authorizer runs").kill().await;
            }
            Piece::Redis => self.redis.kill().await,
            Piece::Memcached => self.memcached.kill().await,
        }
    }

    /// Starts it again where it was.
    pub(crate) async fn restart(&mut self, piece: Piece) {
        match piece {
            Piece::FirstGateway | Piece::SecondGateway => {
                let nth = piece.gateway().expect("it is one");
                let command = self.gateway_command(self.gateways[nth].address);
                self.gateways[nth].running = Some(Gateway::start_command(command).await);
            }
            Piece::Receiver => self.receiver.restart().await,
            Piece::Authorizer => self.authorizer = Some(start_authorizer(self.authorizer_port).await),
            Piece::Redis => self.redis.restart().await,
            Piece::Memcached => self.memcached.restart().await,
        }
    }

    /// Leaves it its connections, but no time to do anything about them.
    pub(crate) async fn freeze(&self, piece: Piece) {
        self.signal(piece, "STOP").await;
    }

    /// Lets it go on.
    pub(crate) async fn thaw(&self, piece: Piece) {
        self.signal(piece, "CONT").await;
    }

    async fn signal(&self, piece: Piece, name: &str) {
        match piece {
            Piece::FirstGateway => self.gateways[0].running().signal(name).await,
            Piece::SecondGateway => self.gateways[1].running().signal(name).await,
            Piece::Receiver => self.receiver.signal(name).await,
            Piece::Authorizer => self.authorizer.as_ref().expect("the authorizer runs").signal(name).await,
            Piece::Redis if name == "STOP" => self.redis.pause().await,
            Piece::Redis => self.redis.resume().await,
            Piece::Memcached if name == "STOP" => self.memcached.pause().await,
            Piece::Memcached => self.memcached.resume().await,
        }
    }

    /// Stops this gateway as an update does, by SIGTERM, and starts it again.
    pub(crate) async fn update(&mut self, gateway: usize) {
        self.remember(gateway).await;
        let exit = self.gateways[gateway].running.take().expect("the gateway runs").stop().await;
        assert_eq!(exit.code(), 0, "{}", exit.stderr);
        let command = self.gateway_command(self.gateways[gateway].address);
        self.gateways[gateway].running = Some(Gateway::start_command(command).await);
    }

    /// Replaces a certificate by a new one of the same authority, and waits until it is shown.
    pub(crate) async fn rotate(&self, side: Side) {
        let leaf = self.authority.server();
        let (volume, addresses) = match side {
            Side::Gateways => (&self.gateways_certificate, self.addresses().to_vec()),
            Side::Receiver => (&self.receiver_certificate, vec![self.receiver.address()]),
        };
        volume.swap_to(&leaf);
        for address in addresses {
            eventually("the new certificate", async || {
                let client = TlsClient::new(&self.authority, &ClientOptions::default());
                let connection = client.connect(&address.to_string()).await?;
                ensure(connection.server == *leaf.der(), || format!("{address} shows the old one"))
            })
            .await;
        }
    }

    /// Asks the gateways that run what they have done, and gives that of this one.
    pub(crate) async fn counted(&mut self, gateway: usize) -> Counted {
        self.gateways[gateway].counted().await
    }

    /// Counts what this one did until now as of a life that is over.
    pub(crate) async fn remember(&mut self, gateway: usize) {
        let counted = self.gateways[gateway].counted().await;
        self.gateways[gateway].counted = counted;
    }
}

impl Replica {
    fn running(&self) -> &Gateway {
        self.running.as_ref().expect("the gateway runs")
    }

    async fn kill(&mut self) {
        self.running.take().expect("the gateway runs").kill().await;
    }

    async fn counted(&self) -> Counted {
        let mut counted = self.counted.clone();
        if let Some(gateway) = &self.running {
            for (what, series) in COUNTED {
                *counted.0.entry(what).or_default() += match series.contains('{') {
                    true => gateway.metric(series).await,
                    false => gateway.metrics(series).await,
                } as u64;
            }
        }
        counted
    }
}

/// This binary once more, as a process that can be killed.
async fn start_authorizer(port: u16) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
    command.args(["--ignored", "--exact", "authorizer_process", "--nocapture"]).env(AUTHORIZER_PORT, port.to_string());
    let process = Process::spawn(command);
    process
        .wait_until_printed("that it listens", |lines| lines.iter().any(|line| line.contains("the authorizer listens")))
        .await;
    process
}

/// The authorizer, in that process; in any other, nothing.
pub(crate) async fn serve_authorizer() {
    let Ok(port) = std::env::var(AUTHORIZER_PORT) else { return };
    let address = ([127, 0, 0, 1], port.parse().expect("a port")).into();
    let _authorizer = Authorizer::start_at(address, authorizer::grant).await;
    println!("the authorizer listens");
    std::future::pending::<()>().await;
}
