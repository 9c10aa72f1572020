//! Connections that take a place and never get on: heads and bodies that arrive a byte at a time, answers that nobody reads.
//!
//! It writes `begin` when all are open, and goes on until it is killed.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use clap::Args;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpSocket,
    time::{MissedTickBehavior, interval},
};

use crate::Outcome;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    connections: usize,
}

/// Each connection sends a byte a second: so many of these in turn, so that they do not come all at once.
const GROUPS: usize = 1000;

/// Requests whose answers are more than a small receive buffer and the other side's send buffer hold.
const UNREAD: usize = 500;
const SMALL: u32 = 4096;

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &Arguments) -> Outcome<()> {
    let token = "Bearer eyJhdXRob3JpemF0aW9uX3Rva2VuIjoieCIsImNsdXN0ZXJfaWQiOiJzbG93In0=";
    let head = format!(
        "POST /metrics/v1/receive HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\n\
         content-type: application/x-protobuf\r\ncontent-encoding: snappy\r\ncontent-length: 100000\r\n\r\n"
    );
    let unread = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(UNREAD);
    let mut streams = Vec::with_capacity(arguments.connections);
    for n in 0..arguments.connections {
        let socket = TcpSocket::new_v4()?;
        if n % 3 == 2 {
            socket.set_recv_buffer_size(SMALL)?;
        }
        let mut stream = socket.connect(arguments.target).await?;
        match n % 3 {
            0 => {}
            1 => stream.write_all(head.as_bytes()).await?,
            // As much as is taken: whoever is asked stops reading when it cannot answer.
            _ => drop(stream.try_write(unread.as_bytes())),
        }
        streams.push((n, stream));
    }
    println!("begin");
    std::io::stdout().flush()?;
    let mut pace = interval(Duration::from_secs(1) / GROUPS as u32);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for tick in 0.. {
        pace.tick().await;
        let byte = head.as_bytes()[(tick / GROUPS) % head.len()];
        for (n, stream) in streams.iter().skip(tick % GROUPS).step_by(GROUPS) {
            if n % 3 < 2 {
                // Whoever was hung up on is looked for by the bench, not here.
                let _ = stream.try_write(&[byte]);
            }
        }
    }
    Ok(())
}
