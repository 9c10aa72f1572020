//! A neighbour that breaks: HTTP/1.1 by hand, since no library answers as wrongly as this.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::within;

/// What is done about a request.
#[derive(Debug, Clone)]
pub struct Act {
    /// Whether its body is read.
    reads: bool,
    writes: Vec<u8>,
    /// One byte, and so long until the next.
    pace: Option<Duration>,
    /// What is waited for before that.
    held: Option<watch::Receiver<bool>>,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Waits for the next request.
    Keep,
    /// Says that it says no more, and waits until the other side has closed.
    Close,
    /// Resets the connection.
    Reset,
    /// Says nothing more.
    Hang,
}

impl Act {
    /// Answers with `bytes`, whatever they are.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { reads: true, writes: bytes.into(), pace: None, held: None, then: Then::Keep }
    }

    /// Answers with a status and, perhaps, a header; without a body.
    pub fn status(status: u16, header: &str) -> Self {
        let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
        Self::raw(format!("HTTP/1.1 {status} Scripted\r\n{header}Content-Length: 0\r\n\r\n"))
    }

    /// Answers in JSON.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length:");
        Self::raw(format!("{head} {}\r\n\r\n{body}", body.len()))
    }

    /// Says nothing.
    pub fn hang() -> Self {
        Self { then: Then::Hang, ..Self::raw("") }
    }

    /// Resets the connection in the midst of the request.
    pub fn reset_in_request() -> Self {
        Self { reads: false, then: Then::Reset, ..Self::raw("") }
    }

    /// The same, and then resets the connection.
    pub fn then_resets(self) -> Self {
        Self { then: Then::Reset, ..self }
    }

    /// The same, and then closes the connection as it should be.
    pub fn then_closes(self) -> Self {
        Self { then: Then::Close, ..self }
    }

    /// The same, once `released` turns true.
    pub fn held(self, released: &watch::Receiver<bool>) -> Self {
        Self { held: Some(released.clone()), ..self }
    }

    /// The same, one byte a second.
    pub fn trickled(self) -> Self {
        Self { pace: Some(Duration::from_secs(1)), ..self }
    }
}

type Script = dyn Fn(usize) -> Act + Send + Sync;

/// The neighbour. It stops, and its connections with it, when dropped.
pub struct Faulty {
    address: SocketAddr,
    shared: Arc<Shared>,
    refusing: Option<TcpSocket>,
    accepting: JoinSet<()>,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    /// The heads of requests, in lower case.
    requests: Mutex<Vec<String>>,
    /// Connections that were closed as they should be, by both sides.
    closed: watch::Sender<usize>,
}

impl Faulty {
    /// Refuses connections on a loopback port that nobody else can get, until it is told to [listen](Self::listen). `script` is
    /// asked for each request, with the number of those that came before.
    pub fn refusing(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self::refusing_at(([127, 0, 0, 1], 0).into(), script)
    }

    /// The same at an address that is known to be free.
    pub fn refusing_at(address: SocketAddr, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Connections of one that was here before may still be closing. A port that the system chooses must be nobody else's.
        socket.set_reuseaddr(address.port() != 0).expect("an option that all systems have");
        socket.bind(address).expect("the address is free");
        let shared =
            Shared { script: Mutex::new(Arc::new(script)), requests: Mutex::default(), closed: watch::Sender::new(0) };
        Self {
            address: socket.local_addr().expect("a bound socket has an address"),
            shared: Arc::new(shared),
            refusing: Some(socket),
            accepting: JoinSet::new(),
        }
    }

    /// Listens from the start.
    pub fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let mut faulty = Self::refusing(script);
        faulty.listen();
        faulty
    }

    /// Refuses no more.
    pub fn listen(&mut self) {
        if let Some(socket) = self.refusing.take() {
            let listener = socket.listen(1024).expect("a bound socket listens");
            self.accepting.spawn(accept(listener, Arc::clone(&self.shared)));
        }
    }

    /// Is no more: its port can be taken, and its connections are closed.
    pub async fn stop(mut self) -> SocketAddr {
        self.accepting.shutdown().await;
        self.address
    }

    /// From the next request on, acts by `script`.
    pub fn set_script(&self, script: impl Fn(usize) -> Act + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL here.
    pub fn url(&self) -> String {
        format!("http://{}/there", self.address)
    }

    /// How many requests have arrived, or begun to.
    pub fn requests(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// What the requests' `Host` was, in lower case.
    pub fn hosts(&self) -> Vec<String> {
        let host = |head: &String| head.lines().find_map(|line| Some(line.strip_prefix("host:")?.trim().to_owned()));
        self.shared.requests.lock().unwrap().iter().filter_map(host).collect()
    }

    /// Waits until both sides have closed so many connections.
    pub async fn wait_until_closed(&self, connections: usize) {
        let mut closed = self.shared.closed.subscribe();
        let awaited = closed.wait_for(|closed| *closed >= connections);
        within("the end of the connections", awaited).await.expect("the sender is there");
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _peer)) = listener.accept() => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move { serve(stream, &shared).await });
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let Some(head) = read_head(&mut stream).await? else { return Ok(()) };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let before = {
            let mut requests = shared.requests.lock().unwrap();
            requests.push(head);
            requests.len() - 1
        };
        let script = Arc::clone(&shared.script.lock().unwrap());
        let mut act = script(before);
        if act.reads {
            stream.read_exact(&mut vec![0; length.unwrap_or(0)]).await?;
        }
        if let Some(released) = &mut act.held {
            released.wait_for(|released| *released).await.map_err(io::Error::other)?;
        }
        match act.pace {
            None => stream.write_all(&act.writes).await?,
            Some(pace) => {
                for byte in act.writes {
                    stream.write_all(&[byte]).await?;
                    tokio::time::sleep(pace).await;
                }
            }
        }
        match act.then {
            Then::Keep => {}
            Then::Hang => std::future::pending().await,
            // Dropped without lingering, a socket sends a reset.
            Then::Reset => return stream.set_zero_linger(),
            Then::Close => {
                stream.shutdown().await?;
                while stream.read(&mut [0; 1024]).await? > 0 {}
                shared.closed.send_modify(|closed| *closed += 1);
                return Ok(());
            }
        }
    }
}

/// A request's head in lower case, read to the byte, or nothing where the connection ends instead.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte.to_ascii_lowercase()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
