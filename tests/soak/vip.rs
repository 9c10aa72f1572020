//! One address for several gateways, as a service has it: each connection goes to one that takes it, and does not last.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// How long a connection lasts, in milliseconds: then it is reset, whatever is on it. Without this all would stay with the gateway
/// that was not killed last.
const LIFE: std::ops::Range<u64> = 2_000..15_000;

/// The address. Its connections end with it.
pub(crate) struct Vip {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    backends: Vec<Backend>,
    rng: Mutex<Rng>,
    refused: AtomicUsize,
}

struct Backend {
    address: SocketAddr,
    connections: AtomicUsize,
    /// Connections on which the sender has spoken last: what it asked is not answered.
    asked: watch::Sender<usize>,
    /// Connections that ended so, for either end's sake.
    ended: AtomicUsize,
    reset: AtomicUsize,
}

/// What became of the connections to one gateway.
pub(crate) struct Connections {
    all: usize,
    /// Those that an end ended without an answer to what was asked.
    ended: usize,
    /// Those that were reset on the way, without an answer.
    reset: usize,
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connections { all, ended, reset } = self;
        write!(f, "{all} connections, {ended} of which ended and {reset} were reset while an answer was due")
    }
}

impl Vip {
    /// In front of these.
    pub(crate) async fn start(backends: &[SocketAddr], rng: Rng) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let backend = |&address: &SocketAddr| Backend {
            address,
            connections: AtomicUsize::new(0),
            asked: watch::Sender::new(0),
            ended: AtomicUsize::new(0),
            reset: AtomicUsize::new(0),
        };
        let backends = backends.iter().map(backend).collect();
        let shared = Arc::new(Shared { backends, rng: Mutex::new(rng), refused: AtomicUsize::new(0) });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, _accepting: accepting }
    }

    /// The port that senders know.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Waits until this gateway owes an answer.
    pub(crate) async fn asked(&self, backend: usize) {
        let mut asked = self.shared.backends[backend].asked.subscribe();
        asked.wait_for(|asked| *asked > 0).await.expect("the sender is there");
    }

    /// What became of the connections to this gateway.
    pub(crate) fn connections(&self, backend: usize) -> Connections {
        let backend = &self.shared.backends[backend];
        Connections {
            all: backend.connections.load(Ordering::Relaxed),
            ended: backend.ended.load(Ordering::Relaxed),
            reset: backend.reset.load(Ordering::Relaxed),
        }
    }

    /// Connections that no gateway took.
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((sender, _peer)) = listener.accept() => {
                connections.spawn(splice(sender, Arc::clone(&shared)));
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn splice(mut sender: TcpStream, shared: Arc<Shared>) {
    let (first, life) = {
        let mut rng = shared.rng.lock().unwrap();
        (rng.usize(..shared.backends.len()), Duration::from_millis(rng.u64(LIFE)))
    };
    let (before, behind) = shared.backends.split_at(first);
    for backend in behind.iter().chain(before) {
        if let Ok(mut gateway) = TcpStream::connect(backend.address).await {
            backend.connections.fetch_add(1, Ordering::Relaxed);
            let mut asked = Asked { backend, is: false };
            let ended = tokio::select! {
                _ended = pass(&mut sender, &mut gateway, &mut asked) => &backend.ended,
                () = sleep(life) => &backend.reset,
            };
            ended.fetch_add(usize::from(asked.is), Ordering::Relaxed);
            // Dropped without lingering, both are reset.
            let _ = (sender.set_zero_linger(), gateway.set_zero_linger());
            return;
        }
    }
    shared.refused.fetch_add(1, Ordering::Relaxed);
    let _ = sender.set_zero_linger();
}

/// Passes on what comes from either side, until one ends.
async fn pass(sender: &mut TcpStream, gateway: &mut TcpStream, asked: &mut Asked<'_>) -> io::Result<()> {
    let (mut there, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut from_sender, mut to_sender) = sender.split();
    let (mut from_gateway, mut to_gateway) = gateway.split();
    loop {
        tokio::select! {
            read = from_sender.read(&mut there) => match read? {
                0 => return Ok(()),
                n => {
                    to_gateway.write_all(&there[..n]).await?;
                    asked.set(true);
                }
            },
            read = from_gateway.read(&mut back) => match read? {
                0 => return Ok(()),
                n => {
                    to_sender.write_all(&back[..n]).await?;
                    asked.set(false);
                }
            },
        }
    }
}

/// Whether the sender has spoken last, on one connection.
struct Asked<'b> {
    backend: &'b Backend,
    is: bool,
}

impl Asked<'_> {
    fn set(&mut self, is: bool) {
        if self.is != is {
            self.is = is;
            self.backend.asked.send_modify(|asked| if is { *asked += 1 } else { *asked -= 1 });
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.set(false);
    }
}
