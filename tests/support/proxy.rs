//! A proxy that makes tunnels.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::tls::{Leaf, acceptor};

/// Leads whoever asks for a tunnel to one server, whatever it asks for.
pub struct Proxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// To `server`; over TLS where there is a certificate.
    pub async fn to(server: SocketAddr, leaf: Option<&Leaf>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let (heads, acceptor) = (Arc::clone(&asked), leaf.map(acceptor));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (heads, acceptor) = (Arc::clone(&heads), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => tunnel(stream, server, &heads).await,
                        Some(acceptor) => {
                            // A client that does not trust us hangs up.
                            if let Ok(stream) = acceptor.accept(stream).await {
                                tunnel(stream, server, &heads).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, _accepting: accepting }
    }

    /// The heads of the requests, as they came.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn tunnel(mut client: impl AsyncRead + AsyncWrite + Unpin, server: SocketAddr, heads: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
    let mut server = TcpStream::connect(server).await.unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
