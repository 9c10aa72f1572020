//! What the application exposes: series that stay, that come and go, and values that do not survive careless handling.

use std::sync::Mutex;

use fastrand::Rng;
use infogw_proto::client::MetricFamily;

use crate::support::{
    Answer,
    target::{Scrape, answer, counter, gauge, histogram, native_histogram},
};

/// The bits of what Prometheus writes where a series ends.
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// Bits that must arrive: NaNs of several payloads and both signs, infinities, subnormals, both zeros and what rounding would spoil.
/// Of -0.0, stock senders leave out the sign, as they do when they are read.
pub(crate) const AWKWARD: [u64; 16] = [
    0x7ff8_0000_0000_0001,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xfff8_dead_beef_0001,
    0x7ff0_0000_0000_0001,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x0000_0000_0000_0001,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x8000_0000_0000_0000,
    0x0000_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x3fd3_3333_3333_3334,
    0x433f_ffff_ffff_ffff,
];

/// What differs between applications.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Application {
    pub(crate) workers: usize,
    pub(crate) native_histograms: usize,
}

const AWKWARDS: usize = 48;
const FLICKERING: usize = 60;
const PODS: usize = 8;
const SECRETS: usize = 20;

/// How many scrapes a pod lives.
const POD_LIFE: u64 = 12;

/// Answers each scrape, one in forty by a reset: all series of the target end then, to begin anew with the next.
pub(crate) fn script(rng: Rng, application: Application) -> impl Fn(&Scrape) -> Answer + Send + Sync + 'static {
    let state = Mutex::new((rng, 0));
    move |_| {
        let (rng, scrapes) = &mut *state.lock().unwrap();
        *scrapes += 1;
        if rng.u8(..40) == 0 { Answer::Close } else { answer(&families(rng, *scrapes, application)) }
    }
}

fn families(rng: &mut Rng, n: u64, application: Application) -> Vec<MetricFamily> {
    let number = |i: usize| i.to_string();
    let counters = (0..application.workers).map(|i| {
        let (worker, count) = (number(i), n * (i as u64 + 1));
        let labels = [("worker", &*worker), ("replica", "a"), ("zone", "münchen \"1\"\\\n")];
        counter("soak_requests_total", &labels, count as f64, &[])
    });
    let awkward = (0..AWKWARDS).map(|i| {
        let value = f64::from_bits(AWKWARD[(n as usize + i) % AWKWARD.len()]);
        gauge("soak_awkward", &[("i", &number(i)), ("empty", "")], value)
    });
    let flickering: Vec<_> = (0..FLICKERING).filter(|_| rng.bool()).collect();
    let flickering =
        flickering.into_iter().map(|i| gauge("soak_flickering", &[("i", &number(i))], rng.f64() * f64::from(u32::MAX)));
    let flickering: Vec<_> = flickering.collect();
    let pods = (0..PODS).map(|i| gauge("soak_pod", &[("pod", &format!("{}-{i}", n / POD_LIFE))], rng.f64()));
    let pods: Vec<_> = pods.collect();
    let secrets = (0..SECRETS).map(|i| gauge("soak_secret", &[("visibility", "private"), ("i", &number(i))], n as f64));
    let latency = histogram("soak_latency_seconds", &[(0.1, n), (2.5, 2 * n), (10.0, 3 * n)], 4 * n, 0.7 * n as f64);
    // Each a family of its own, one of which is away at times.
    let sizes = (0..application.native_histograms).filter(|&i| n / 10 % 7 != i as u64);
    let sizes = sizes.map(|i| vec![native_histogram(&format!("soak_size_{i}_bytes"), &[1, 4 + n, 2], 10.5 * n as f64)]);
    let sizes: Vec<_> = sizes.collect();
    let groups: [Vec<MetricFamily>; 6] =
        [counters.collect(), awkward.collect(), flickering, pods, secrets.collect(), vec![latency]];
    let groups = groups.into_iter().chain(sizes);
    groups.filter_map(|group| group.into_iter().reduce(joined)).collect()
}

/// Both as one family.
fn joined(mut family: MetricFamily, other: MetricFamily) -> MetricFamily {
    family.metric.extend(other.metric);
    family
}
