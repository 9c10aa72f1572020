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
    collections::BTreeMap,
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
use tokio::time::{sleep, timeout};
use vip::Vip;

/// How long everything is killed for, unless `SOAK_SECONDS` says so.
const SECONDS: u64 = 90;
/// At least this often each.
const ROUNDS: usize = 2;
/// How long senders may take for what has piled up. Those who were told to come back later do.
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
    let target = Target::start(telemetry::script(rng.fork())).await;
    let began = now();
    // Its queue sends what is scraped once it has begun to follow the WAL.
    let sender = Prometheus::start(|_| writing_to(&vip, &fleet)).await;
    sender.wait_for_log(r#"msg="Replaying WAL""#).await;
    sender.reload(&scraping(&[target.address()], writing_to(&vip, &fleet))).await;

    let chaos = wreak(&mut fleet, &vip, &mut rng, length).await;

    // The target is no more, and with it each series ends.
    sender.reload(&scraping(&[], writing_to(&vip, &fleet))).await;
    eventually("the end of all series at the sender", async || {
        let alive = sender.query(r#"count({__name__=~".+"})"#).await;
        ensure(alive.is_empty(), || format!("{alive:?}"))
    })
    .await;
    eventually_in(CATCHING_UP, "the end of the sender's queue", async || {
        let pending = sender.counter("prometheus_remote_storage_samples_pending").await;
        let read = sender.counter("prometheus_remote_storage_highest_timestamp_in_seconds").await;
        let sent = sender.counter("prometheus_remote_storage_queue_highest_sent_timestamp_seconds").await;
        ensure(pending == 0.0 && sent >= read, || format!("{pending} pending, {sent} of {read}"))
    })
    .await;
    let ended = now();

    let total = compare(&sender, &fleet.receiver, began, ended).await;
    for failures in ["failed", "dropped"] {
        let failures = format!("prometheus_remote_storage_samples_{failures}_total");
        assert_eq!(sender.counter(&failures).await, 0.0, "{failures}\n{}", sender.logs().join("\n"));
    }
    let retried = sender.counter("prometheus_remote_storage_samples_retried_total").await;
    let sent = sender.counter("prometheus_remote_storage_samples_total").await;

    println!("{} samples of {} series, {} of them stale markers", total.samples, total.series, total.stale);
    println!("{} samples that the policy drops; the sender sent {sent}, {retried} of them again", total.dropped);
    for (piece, times) in &chaos.killed {
        println!("{piece:?} was killed {times} times");
    }
    println!("{} times two at once; {:?}", chaos.pairs, chaos.rotated);
    for gateway in [0, 1] {
        let (counted, connections) = (fleet.counted(gateway).await, vip.connections(gateway));
        println!("gateway {gateway}: {:?}", counted.0);
        println!(
            "gateway {gateway}: {} connections, of which {} ended and {} were reset while an answer was due; so was one at {} of its deaths",
            connections.all, connections.unanswered, connections.reset, chaos.under_requests[gateway]
        );
        assert!(chaos.under_requests[gateway] > 0, "never killed under a request");
        assert!(counted.0["forwarded"] > 0);
    }
    println!("{} connections that no gateway took", vip.refused());
    assert!(retried > 0.0, "nobody noticed anything");
}

/// What the sender writes, and to whom.
fn writing_to(vip: &Vip, fleet: &Fleet) -> Value {
    json!({
        "global": { "external_labels": { "_id": "c1" } },
        "remote_write": [{
            "url": format!("https://localhost:{}/metrics/v1/receive", vip.port()),
            "authorization": { "type": "Bearer", "credentials": composite_token(PULL_SECRET, "c1") },
            "tls_config": { "ca_file": fleet.ca_file() },
            "remote_timeout": "10s",
            "enable_http2": false,
            "queue_config": {
                // Not more at times: a queue that is closed for another number of shards may give up what is in it.
                "min_shards": 4,
                "max_shards": 4,
                "max_samples_per_send": 60,
                "batch_send_deadline": "100ms",
                "max_backoff": "1s",
            },
        }],
    })
}

/// The same, and what is scraped.
fn scraping(targets: &[SocketAddr], mut config: Value) -> Value {
    config["scrape_configs"] = json!([{
        "job_name": "soak",
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "static_configs": [{ "targets": targets }],
    }]);
    config
}

/// What was done.
#[derive(Default)]
struct Chaos {
    killed: BTreeMap<Piece, usize>,
    rotated: BTreeMap<Side, usize>,
    pairs: usize,
    /// For each gateway: how often it was killed while it owed an answer.
    under_requests: [usize; 2],
}

enum Blow {
    Kill(Vec<Piece>),
    Rotate(Side),
}

/// Deals blows for so long, all of them in each round, in any order.
async fn wreak(fleet: &mut Fleet, vip: &Vip, rng: &mut Rng, length: Duration) -> Chaos {
    let began = Instant::now();
    let mut chaos = Chaos::default();
    let mut rounds = 0;
    loop {
        let mut blows: Vec<_> = Piece::ALL.iter().map(|&piece| Blow::Kill(vec![piece])).collect();
        blows.push(Blow::Kill(rng.choose_multiple(Piece::ALL, 2)));
        blows.extend([Side::Gateways, Side::Receiver].map(Blow::Rotate));
        rng.shuffle(&mut blows);
        for blow in blows {
            if rounds >= ROUNDS && began.elapsed() >= length {
                return chaos;
            }
            match blow {
                Blow::Rotate(side) => {
                    fleet.rotate(side).await;
                    *chaos.rotated.entry(side).or_default() += 1;
                }
                Blow::Kill(pieces) => {
                    chaos.pairs += usize::from(pieces.len() > 1);
                    for &piece in &pieces {
                        kill(fleet, vip, piece, &mut chaos).await;
                    }
                    for &piece in &pieces {
                        pause(rng, 0..3_000).await;
                        fleet.restart(piece).await;
                    }
                }
            }
            pause(rng, 0..2_000).await;
        }
        rounds += 1;
    }
}

/// A gateway is killed under a request, if there is one within some seconds; what it needs, while there is.
async fn kill(fleet: &mut Fleet, vip: &Vip, piece: Piece, chaos: &mut Chaos) {
    *chaos.killed.entry(piece).or_default() += 1;
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
            chaos.under_requests[gateway] += usize::from(asked.is_ok());
        }
    }
    fleet.kill(piece).await;
}

async fn pause(rng: &mut Rng, milliseconds: std::ops::Range<u64>) {
    sleep(Duration::from_millis(rng.u64(milliseconds))).await;
}

/// What was compared.
#[derive(Debug, Default)]
struct Total {
    samples: usize,
    stale: usize,
    series: usize,
    dropped: usize,
}

/// Holds all that the receiver has against what the sender has and the policy admits, window by window.
async fn compare(sender: &Prometheus, receiver: &Prometheus, began: i64, ended: i64) -> Total {
    let mut total = Total::default();
    let mut all = std::collections::BTreeSet::<Labels>::new();
    let mut awkward = telemetry::AWKWARD.to_vec();
    for start in (began..=ended).step_by(WINDOW as usize) {
        let end = start + WINDOW - 1;
        let scraped = sender.remote_read(start, end).await;
        let everything = Record::new(scraped.clone(), Some);
        let expected = Record::new(scraped, Fleet::policy);
        // What is under way has a while to arrive; what is lost will not.
        let arrived = eventually("what the sender has at the receiver", async || {
            let arrived = Record::new(receiver.remote_read(start, end).await, Some);
            let difference = expected.difference(&arrived);
            ensure(difference.is_empty(), || difference).map(|()| arrived)
        })
        .await;
        total.samples += arrived.samples();
        total.stale += arrived.count(telemetry::STALE);
        total.dropped += everything.samples() - expected.samples();
        awkward.retain(|bits| !arrived.values("soak_awkward").any(|value| value == *bits));
        all.extend(arrived.series().cloned());
    }
    total.series = all.len();
    awkward.retain(|&bits| bits != (-0.0_f64).to_bits());
    assert!(awkward.is_empty(), "the sender has not got {awkward:x?}");
    assert!(total.dropped > 0 && total.stale > 0 && total.samples > 10_000, "{total:?}");
    total
}

#[tokio::test]
#[ignore = "the authorizer of the other test, which runs this one as a process to be killed"]
async fn authorizer_process() {
    fleet::serve_authorizer().await;
}
