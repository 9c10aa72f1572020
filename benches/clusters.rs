//! What a known cluster costs: memory of the authorization cache and the rate limiter together, and time of a hit, with a thousand
//! clusters and with a million.
//!
//! `cargo bench --bench clusters [CLUSTERS]`. Memory is the process's resident set, as the system counts it, so it holds the
//! allocator's waste; the mark is 400 MiB for a million clusters.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use infogw_layers::{
    authorize::{
        ClusterCredential, ClusterId, Identity, Secret,
        cache::{CacheConfig, CacheLayer},
    },
    rate_limit::{LocalLimiter, Quota},
    rejection::Rejection,
};
use tower::{Layer, Service, service_fn};

const MARK: f64 = 400.0 * 1024.0 * 1024.0 / 1e6;

/// As UHC has them: a UUID, and 27 characters.
fn credential(n: u64) -> ClusterCredential {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let id = format!("{:08x}-{:04x}-4000-8000-{n:012x}", mixed >> 32, mixed & 0xffff);
    ClusterCredential::registration(ClusterId::new(&id).unwrap(), &Secret::new(format!("{mixed:064x}")))
}

async fn authorize(credential: ClusterCredential) -> Result<Arc<Identity>, Rejection> {
    let account: String = credential.cluster().as_str().chars().filter(|c| *c != '-').take(27).collect();
    Ok(Arc::new(Identity { account: Some(account.into()), ..Identity::of(credential.cluster().clone()) }))
}

/// Resident bytes of this process.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("kilobytes") * 1024.0
}

/// Nanoseconds a hit and a decision of the limiter take, over clusters that are known.
async fn cost(
    cached: &mut impl Service<ClusterCredential, Error = Rejection>,
    limiter: &LocalLimiter,
    known: u64,
) -> [f64; 2] {
    const ROUNDS: u64 = 200_000;
    let picked: Vec<_> = (0..10_000).map(|n| credential(n * 7_919 % known)).collect();
    let many = |began: Instant| began.elapsed().as_nanos() as f64 / ROUNDS as f64;
    let began = Instant::now();
    for n in 0..ROUNDS {
        let _ = black_box(cached.call(picked[n as usize % picked.len()].clone()).await);
    }
    let hit = many(began);
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let began = Instant::now();
    for n in 0..ROUNDS {
        let id = picked[n as usize % picked.len()].cluster().as_str();
        let _ = black_box(limiter.check(limiter.key(id.as_bytes()), 1, &quota, Duration::ZERO));
    }
    [hit, many(began)]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // cargo adds a `--bench` of its own.
    let clusters = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000_u64);
    let few = 1_000.min(clusters);
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let cache = CacheLayer::new(CacheConfig { max_bytes: u64::MAX, ..CacheConfig::default() });
    let handle = cache.handle();
    let mut cached = cache.layer(service_fn(authorize));
    let limiter = LocalLimiter::new();

    let empty = resident();
    let [mut cache_bytes, mut limiter_bytes] = [0.0, 0.0];
    let mut with_few = [0.0; 2];
    for (from, to) in [(0, few), (few, clusters)] {
        let before = resident();
        for n in from..to {
            cached.call(credential(n)).await.expect("granted");
        }
        handle.entries();
        let between = resident();
        for n in from..to {
            let _ = limiter.check(limiter.key(credential(n).cluster().as_str().as_bytes()), 1, &quota, Duration::ZERO);
        }
        cache_bytes += between - before;
        limiter_bytes += resident() - between;
        if to == few {
            with_few = cost(&mut cached, &limiter, few).await;
        }
    }
    let with_all = cost(&mut cached, &limiter, clusters).await;

    let each = |bytes: f64| bytes / clusters as f64;
    let total = resident() - empty;
    println!(
        "clusters                       {clusters} (the cache counts {} in {} bytes)",
        handle.entries(),
        handle.bytes()
    );
    println!("authorization cache            {:6.1} bytes a cluster", each(cache_bytes));
    println!("limiter                        {:6.1} bytes a cluster", each(limiter_bytes));
    println!(
        "together                       {:6.1} bytes a cluster, {:.1} MiB in all: {:.2} of the mark of {MARK:.1}",
        each(total),
        total / 1024.0 / 1024.0,
        each(total) / MARK
    );
    for (what, few_ns, all_ns) in
        [("authorization, a hit", with_few[0], with_all[0]), ("limiter, a decision", with_few[1], with_all[1])]
    {
        println!("{what:30} {few_ns:6.0} ns with {few}, {all_ns:6.0} ns with {clusters}: {:.2} times", all_ns / few_ns);
    }
}
