//! The upstream's name as the running gateway looks it up: where it leads to changes.
//!
//! Debian's `libnss-wrapper` has one process resolve by a hosts file of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    fs::{self, File},
    time::{Duration, SystemTime},
};

use support::{
    Act, Authorizer, Faulty, Gateway, ensure, eventually,
    payload::{composite_token, series, write_body},
    world::{PULL_SECRET, now},
};
use tempfile::TempDir;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const NAME: &str = "upstream.test";

/// Where [`NAME`] leads to.
struct Hosts {
    directory: TempDir,
    changes: u64,
}

impl Hosts {
    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("hosts")
    }

    fn set(&mut self, upstreams: &[&Faulty]) {
        let line = |upstream: &&Faulty| format!("{} {NAME}\n", upstream.address().ip());
        let new = self.directory.path().join("new");
        fs::write(&new, upstreams.iter().map(line).collect::<String>()).unwrap();
        // A change within a second would not be seen.
        self.changes += 1;
        let changed = SystemTime::now() + Duration::from_secs(2 * self.changes);
        File::options().append(true).open(&new).unwrap().set_modified(changed).unwrap();
        fs::rename(new, self.path()).unwrap();
    }
}

/// A sender, which tries again when it is told to.
struct Sender {
    gateway: Gateway,
    acknowledged: usize,
    refused: usize,
}

impl Sender {
    /// Whether a write was acknowledged. If it was not, it can be done again.
    async fn write(&mut self) -> Result<(), String> {
        let body = write_body(vec![series(&[("__name__", "up"), ("_id", "c1")], &[(1.0, now())])]);
        let reply = self.gateway.receive(&composite_token(PULL_SECRET, "c1"), body).await;
        if reply.status == 200 {
            self.acknowledged += 1;
            return Ok(());
        }
        assert!(matches!(reply.status.as_u16(), 502..=504) && reply.retry_after().is_some(), "{reply:?}");
        self.refused += 1;
        Err(format!("{reply:?}"))
    }

    async fn write_all(&mut self, writes: usize) {
        for n in 0..writes {
            self.write().await.unwrap_or_else(|refused| panic!("write {n}: {refused}"));
        }
    }

    async fn until_up(&self, addresses: usize) {
        eventually("the addresses", async || {
            let up = self.gateway.metric(r#"infogw_upstream_addresses{state="up"}"#).await;
            ensure(up == addresses as f64, || format!("{up} are up"))
        })
        .await;
    }
}

/// To another address, to two, to none while they answer and while they do not, and back. Whatever was acknowledged has arrived.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_moves() {
    let authorizer = Authorizer::granting().await;
    // Whatever has this port at one address has it at its neighbours.
    let port = Faulty::refusing(|_| Act::hang());
    let [first, second, third] = [2, 3, 4].map(|n| {
        let mut upstream = Faulty::refusing_at(([127, 0, 0, n], port.address().port()).into(), |_| Act::raw(OK));
        upstream.listen();
        upstream
    });
    let mut hosts = Hosts { directory: TempDir::new().unwrap(), changes: 0 };
    hosts.set(&[&first]);
    let mut command = Gateway::command();
    command.args(["--listen", "127.0.0.1:0", "--listen-internal", "127.0.0.1:0", "--authorize", &authorizer.url()]);
    command.args(["--forward-url", &format!("http://{NAME}:{}/receive", first.address().port())]);
    command.env("LD_PRELOAD", "libnss_wrapper.so").env("NSS_WRAPPER_HOSTS", hosts.path());
    let gateway = Gateway::start_command(command).await;
    let mut sender = Sender { gateway, acknowledged: 0, refused: 0 };
    sender.write_all(5).await;
    assert_eq!(first.requests(), 5);

    // It goes, and the name leads elsewhere: each new connection asks.
    let mut arrived = first.requests();
    hosts.set(&[&second]);
    let address = first.stop().await;
    let mut first = Faulty::refusing_at(address, |_| Act::raw(OK));
    eventually("the second", async || sender.write().await).await;
    sender.write_all(5).await;
    assert_eq!(second.requests(), 6);

    // To two: both get a share.
    hosts.set(&[&second, &third]);
    sender.until_up(2).await;
    sender.write_all(50).await;
    assert!(third.requests() >= 10, "{} of 50", third.requests());
    assert_eq!(arrived + second.requests() + third.requests(), sender.acknowledged);

    // To none: those that were found stay.
    hosts.set(&[]);
    sender.gateway.wait_for_log("the upstream was not looked up").await;
    sender.write_all(20).await;
    sender.until_up(2).await;
    // Until they are gone, too.
    arrived += second.requests() + third.requests();
    let dead = [second.stop().await, third.stop().await].map(|address| Faulty::refusing_at(address, |_| Act::raw(OK)));
    eventually("both are left out", async || {
        sender.write().await.expect_err("nobody is there");
        let up = sender.gateway.metric(r#"infogw_upstream_addresses{state="up"}"#).await;
        ensure(up == 0.0, || format!("{up} are up"))
    })
    .await;

    // And back to where it was.
    hosts.set(&[&first]);
    first.listen();
    eventually("the first", async || sender.write().await).await;
    sender.write_all(5).await;
    assert_eq!(arrived + first.requests(), sender.acknowledged, "{} were refused", sender.refused);
    assert_eq!(dead.map(|dead| dead.requests()), [0, 0]);
}
