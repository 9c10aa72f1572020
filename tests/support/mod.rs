//! Black-box test support: the gateway as a process, and the world around it.
//!
//! ```text
//! sender ──► Gateway ──► Upstream        scripted; or Prometheus::receiver(), the real one
//!               └──────► Authorizer      scripted
//! ```
//!
//! - [`Gateway`], [`Prometheus`], [`RedisServer`] and [`Memcached`] are processes on ports of their own choosing. They die with
//!   the value.
//! - [`federate::Client`] is the push client, likewise.
//! - [`Authorizer`], [`Upstream`] and [`Target`] are [`Server`]s in this process: they record each request and answer by a script,
//!   which can be swapped while they run. [`Faulty`] is either of the first two, broken below HTTP.
//! - Nothing here sleeps for a guessed time: what happens is awaited, for at most [`DEADLINE`]. A wait that runs out panics with
//!   what it saw last, and a process whose test panics prints its logs.
//!
//! A test file starts with `mod support;` and uses what it needs of it.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code, unreachable_pub, unused_imports)]
// A failed expectation in a test is the test's failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod authorizer;
pub mod faulty;
pub mod federate;
pub mod gateway;
pub mod h2;
pub mod http;
pub mod issuer;
pub mod payload;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod server;
pub mod stores;
pub mod target;
pub mod tls;
pub mod upstream;
pub mod world;

use std::time::Duration;

pub use authorizer::{Authorizer, Registration};
pub use faulty::{Act, Faulty};
pub use gateway::Gateway;
pub use http::Reply;
pub use issuer::Issuer;
pub use prometheus::Prometheus;
pub use server::{Answer, Server};
pub use stores::{Memcached, RedisServer};
pub use target::Target;
pub use upstream::{Upstream, Write};
pub use world::World;

/// How long any one thing may take before its test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long to leave a process alone before asking it again. Only for state that cannot be subscribed to.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// What `future` gives, or a panic that names `what` was awaited.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// Asks `probe` until it gives a value. Its `Err` says what it saw instead, for the panic's message.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    eventually_in(DEADLINE, what, probe).await
}

/// The same where that may take longer.
pub async fn eventually_in<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut seen = String::from("nothing: the first probe is still running");
    let asked = async {
        loop {
            match probe().await {
                Ok(value) => return value,
                Err(instead) => seen = instead,
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {limit:?}; seen last: {seen}"),
    }
}

/// `condition` as a probe's answer: `Err(seen)` where it does not hold.
pub fn ensure(condition: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(seen()) }
}
