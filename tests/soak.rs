//! Nothing lost: a Prometheus writes through two gateways into another one, while whatever is between and around them is killed and
//! comes back, certificates rotate, and connections break. In the end each sample that the policy admits is there, bit by bit.
//!
//! ```text
//! target ──► Prometheus ══TLS══► one address ══TLS══► two gateways ══TLS══► Prometheus
//! scripted   its WAL             splices TCP,           ├─► authorizer        is killed, too
//!                                breaks connections     ├─► memcached
//!                                                       └─► Redis
//! ```
//!
//! All but the first Prometheus are killed, by SIGKILL, in an order that `SOAK_SEED` gives: each in each round, some two at a time.
//! Some are frozen besides, and gateways stopped by SIGTERM. There are two such senders: one over HTTP/1.1, one over HTTP/2 and with
//! native histograms. What they have is read by remote read, in which stale markers and NaNs keep their bits.
//!
//! With the tests it runs for [`SECONDS`]; for an hour, and with what it counts:
//!
//! ```console
//! $ SOAK_SECONDS=3600 cargo test --release --test soak -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "soak/fleet.rs"]
mod fleet;
#[path = "soak/record.rs"]
mod record;
mod support;
#[path = "soak/telemetry.rs"]
mod telemetry;
#[path = "soak/vip.rs"]
mod vip;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use fastrand::Rng;
use fleet::{Fleet, Piece, Side};
use record::{Labels, Record};
use serde_json::{Value, json};
use support::{
    Prometheus, Target, ensure, eventually, eventually_in,
    payload::composite_token,
    world::{PULL_SECRET, now},
};
use telemetry::Application;
use tokio::time::{sleep, timeout};
use vip::Vip;

/// How long everything is killed for, unless `SOAK_SECONDS` says so.
const SECONDS: u64 = 90;
/// At least this often each.
const ROUNDS: usize = 2;
/// How long senders may take for what has piled up.
const CATCHING_UP: Duration = Duration::from_secs(180);
/// How much is compared at once, in milliseconds.
const WINDOW: i64 = 60_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost() {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    let length = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SECONDS));
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SOAK_SEED={seed} SOAK_SECONDS={}", length.as_secs());
    let mut rng = Rng::with_seed(seed);

    let mut fleet = Fleet::start().await;
    let vip = Vip::start(&fleet.addresses(), rng.fork()).await;
    let began = now();
    let senders = [
        Sender::start("c1", false, Application { workers: 200, native_histograms: 0 }, &vip, &fleet, rng.fork()).await,
        Sender::start("c2", true, Application { workers: 20, native_histograms: 7 }, &vip, &fleet, rng.fork()).await,
    ];
    let chaos = wreak(&mut fleet, &vip, &mut rng, length).await;
    for sender in &senders {
        sender.finish().await;
    }
    let ended = now();

    for sender in &senders {
        let total = sender.compare(&fleet.receiver, began, ended).await;
        let told = async |what: &str| {
            let samples = format!("prometheus_remote_storage_samples_{what}_total");
            let histograms = format!("prometheus_remote_storage_histograms_{what}_total");
            sender.prometheus.counter(&samples).await + sender.prometheus.counter(&histograms).await
        };
        let (failed, retried, dropped) = (told("failed").await, told("retried").await, told("dropped").await);
        println!("{}: {total:?}, {retried} sent again, {failed} refused the second time", sender.cluster);
        assert!(retried > 0.0, "it noticed nothing");
        assert_eq!(dropped, 0.0, "{}", sender.prometheus.logs().join("\n"));
        // Histograms are not taken out of order: where an answer was lost, the same request is refused when it comes again, and the
        // sender counts it as failed, though all of it is there.
        if !sender.has_histograms {
            assert_eq!(failed, 0.0, "{}", sender.prometheus.logs().join("\n"));
        }
    }
    for (what, times) in &chaos.done {
        println!("{times} times: {what}");
    }
    for gateway in [0, 1] {
        let (counted, connections) = (fleet.counted(gateway).await.0, vip.connections(gateway));
        let under_requests = chaos.under_requests[gateway];
        println!(
            "gateway {gateway}: {counted:?}, {under_requests} times killed while it owed an answer, {connections}"
        );
        assert!(under_requests > 0 && counted["forwarded"] > 0, "gateway {gateway} was not hit while it worked");
    }
    println!("{} connections that no gateway took", vip.refused());
}

/// A cluster's Prometheus, and what it scrapes.
struct Sender {
    cluster: &'static str,
    prometheus: Prometheus,
    target: Target,
    has_histograms: bool,
    /// Its configuration without targets.
    config: Value,
}

impl Sender {
    /// One that writes over HTTP/2, which is one connection, or over HTTP/1.1, which are several.
    async fn start(
        cluster: &'static str,
        http2: bool,
        application: Application,
        vip: &Vip,
        fleet: &Fleet,
        rng: Rng,
    ) -> Self {
        let target = Target::start(telemetry::script(rng, application)).await;
        let config = json!({
            "global": { "external_labels": { "_id": cluster } },
            "remote_write": [{
                "url": format!("https://localhost:{}/metrics/v1/receive", vip.port()),
                "authorization": { "type": "Bearer", "credentials": composite_token(PULL_SECRET, cluster) },
                "tls_config": { "ca_file": fleet.ca_file() },
                "remote_timeout": "10s",
                "enable_http2": http2,
                "send_native_histograms": true,
                "queue_config": {
                    // Not more at times: a queue that is closed for another number of shards may give up what is in it.
                    "min_shards": 4,
                    "max_shards": 4,
                    "max_samples_per_send": 60,
                    "batch_send_deadline": "100ms",
                    "max_backoff": "1s",
                },
            }],
        });
        // Its queue sends what is scraped once it has begun to follow the WAL.
        let prometheus = Prometheus::start(|_| config.clone()).await;
        prometheus.wait_for_log(r#"msg="Replaying WAL""#).await;
        let has_histograms = application.native_histograms > 0;
        let sender = Self { cluster, prometheus, target, has_histograms, config };
        sender.scrape(&[sender.target.address()]).await;
        sender
    }

    /// From now on, scrapes these.
    async fn scrape(&self, targets: &[SocketAddr]) {
        let mut config = self.config.clone();
        config["scrape_configs"] = json!([{
            "job_name": "soak",
            "scrape_interval": "500ms",
            "scrape_timeout": "500ms",
            "static_configs": [{ "targets": targets }],
        }]);
        self.prometheus.reload(&config).await;
    }

    /// Scrapes nothing more, with which each series ends, and waits until it has sent all.
    async fn finish(&self) {
        self.scrape(&[]).await;
        eventually("the end of all series", async || {
            let alive = self.prometheus.query(r#"count({__name__=~".+"})"#).await;
            ensure(alive.is_empty(), || format!("{alive:?}"))
        })
        .await;
        eventually_in(CATCHING_UP, "the end of a sender's queue", async || {
            let told = async |what: &str| self.prometheus.counter(&format!("prometheus_remote_storage_{what}")).await;
            let pending = told("samples_pending").await + told("histograms_pending").await;
            let read = told("highest_timestamp_in_seconds").await;
            let sent = told("queue_highest_sent_timestamp_seconds").await;
            ensure(pending == 0.0 && sent >= read, || format!("{pending} pending, {sent} of {read}"))
        })
        .await;
    }

    /// Holds all that the receiver has of this cluster against what is here and the policy admits, window by window.
    async fn compare(&self, receiver: &Prometheus, began: i64, ended: i64) -> Total {
        let mut total = Total::default();
        let mut series = BTreeSet::new();
        let mut awkward = telemetry::AWKWARD.to_vec();
        // Neither here nor there is it read.
        awkward.retain(|&bits| bits != (-0.0_f64).to_bits());
        for start in (began..=ended).step_by(WINDOW as usize) {
            let end = start + WINDOW - 1;
            let scraped = self.prometheus.remote_read(start, end).await;
            total.dropped += Record::new(scraped.clone(), Some).samples();
            let expected = Record::new(scraped, Fleet::policy);
            // What is under way has a while to arrive; what is lost will not.
            let arrived = eventually("what a sender has at the receiver", async || {
                let own = |labels: Labels| (labels.get("_id")? == self.cluster).then_some(labels);
                let arrived = Record::new(receiver.remote_read(start, end).await, own);
                let difference = expected.difference(&arrived);
                ensure(difference.is_empty(), || difference).map(|()| arrived)
            })
            .await;
            total.dropped -= expected.samples();
            total.samples += arrived.samples();
            series.extend(arrived.series().cloned());
            for bits in arrived.values() {
                total.stale += usize::from(bits == telemetry::STALE);
                awkward.retain(|awkward| *awkward != bits);
            }
            total.native_histograms += self.compare_histograms(receiver, end).await;
        }
        total.series = series.len();
        assert!(awkward.is_empty(), "these did not come from the target: {awkward:x?}");
        assert!(total.dropped > 0 && total.stale > 0 && total.samples > 5_000, "{total:?}");
        assert_eq!(total.native_histograms > 0, self.has_histograms, "{total:?}");
        total
    }

    /// Holds all native histograms of the window that ends here against each other, and counts them. Remote read does not give them;
    /// the query API does, without the ends of series.
    async fn compare_histograms(&self, receiver: &Prometheus, end: i64) -> usize {
        let at = format!("[{}ms] @ {}.{:03}", WINDOW - 1, end / 1000, end % 1000);
        let mut expected = self.prometheus.query(&format!(r#"{{__name__=~"soak_size_.+"}}{at}"#)).await;
        for series in &mut expected {
            series.labels.insert("_id".to_owned(), self.cluster.to_owned());
            series.labels = Fleet::policy(series.labels.clone()).expect("it is admitted");
        }
        expected.sort_by(|a, b| a.labels.cmp(&b.labels));
        eventually("a sender's histograms at the receiver", async || {
            let own = format!(r#"{{__name__=~"soak_size_.+",_id="{}"}}{at}"#, self.cluster);
            let arrived = receiver.query(&own).await;
            ensure(arrived == expected, || format!("{arrived:?}, the sender has {expected:?}"))
        })
        .await;
        expected.iter().map(|series| series.points.len()).sum()
    }
}

/// What was compared of one sender.
#[derive(Debug, Default)]
struct Total {
    series: usize,
    samples: usize,
    /// How many of them are the ends of series.
    stale: usize,
    native_histograms: usize,
    /// What was scraped besides, and the policy drops.
    dropped: usize,
}

/// What was done.
#[derive(Default)]
struct Chaos {
    done: BTreeMap<String, usize>,
    /// For each gateway: how often it was killed while it owed an answer.
    under_requests: [usize; 2],
}

enum Blow {
    Kill(Vec<Piece>),
    Freeze(Piece),
    Update(usize),
    Rotate(Side),
}

/// Deals blows for so long, each in each round, in any order.
async fn wreak(fleet: &mut Fleet, vip: &Vip, rng: &mut Rng, length: Duration) -> Chaos {
    let began = Instant::now();
    let mut chaos = Chaos::default();
    for round in 0.. {
        let mut blows: Vec<_> = Piece::ALL.map(|piece| Blow::Kill(vec![piece])).into();
        blows.push(Blow::Kill(rng.choose_multiple(Piece::ALL, 2)));
        // The receiver, because it takes what it was sent before, when nobody listens any more.
        blows.extend([Piece::Receiver, Piece::ALL[rng.usize(..Piece::ALL.len())]].map(Blow::Freeze));
        blows.push(Blow::Update(rng.usize(..2)));
        blows.extend([Side::Gateways, Side::Receiver].map(Blow::Rotate));
        rng.shuffle(&mut blows);
        for blow in blows {
            if round >= ROUNDS && began.elapsed() >= length {
                return chaos;
            }
            chaos.deal(blow, fleet, vip, rng).await;
            pause(rng, 2_000).await;
        }
    }
    chaos
}

impl Chaos {
    async fn deal(&mut self, blow: Blow, fleet: &mut Fleet, vip: &Vip, rng: &mut Rng) {
        match blow {
            Blow::Kill(pieces) => {
                if pieces.len() > 1 {
                    self.count("two killed at once");
                }
                for &piece in &pieces {
                    self.kill(piece, fleet, vip).await;
                }
                for &piece in &pieces {
                    pause(rng, 3_000).await;
                    fleet.restart(piece).await;
                }
            }
            Blow::Freeze(piece) => {
                self.count(&format!("{piece:?} frozen"));
                fleet.freeze(piece).await;
                pause(rng, 8_000).await;
                fleet.thaw(piece).await;
            }
            Blow::Update(gateway) => {
                self.count("a gateway stopped by SIGTERM");
                fleet.update(gateway).await;
            }
            Blow::Rotate(side) => {
                self.count(&format!("a certificate of {side:?} replaced"));
                fleet.rotate(side).await;
            }
        }
    }

    /// A gateway is killed under a request, if there is one within some seconds; what it needs, while there is.
    async fn kill(&mut self, piece: Piece, fleet: &mut Fleet, vip: &Vip) {
        self.count(&format!("{piece:?} killed"));
        match piece.gateway() {
            None => {
                let asked = async {
                    tokio::select! { () = vip.asked(0) => {}, () = vip.asked(1) => {} }
                };
                let _ = timeout(Duration::from_secs(5), asked).await;
            }
            Some(gateway) => {
                fleet.remember(gateway).await;
                let asked = timeout(Duration::from_secs(10), vip.asked(gateway)).await;
                self.under_requests[gateway] += usize::from(asked.is_ok());
            }
        }
        fleet.kill(piece).await;
    }

    fn count(&mut self, what: &str) {
        *self.done.entry(what.to_owned()).or_default() += 1;
    }
}

/// Up to so many milliseconds, now and then none.
async fn pause(rng: &mut Rng, most: u64) {
    let length = if rng.u8(..4) == 0 { 0 } else { rng.u64(..most) };
    sleep(Duration::from_millis(length)).await;
}

#[tokio::test]
#[ignore = "the authorizer of the other test, which runs this one as a process to be killed"]
async fn authorizer_process() {
    fleet::serve_authorizer().await;
}
