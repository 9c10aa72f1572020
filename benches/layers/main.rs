//! What each layer and each decoder costs, by itself.
//!
//! `cargo bench --bench layers [FILTER]`. Everything is measured twice: *alone*, by one thread, and *contended*, by a thread on every
//! core at once, each with a clone of the one service. Times are those of one call as its thread saw it, so a layer whose state nobody
//! has to wait for takes as long contended as alone; throughput is that of all threads together. What goes in is made, and what comes
//! out is dropped, off the clock. The innermost service hands its request back, which the figures of `outer/no layer` are.
//!
//! What is decoded and encoded is measured beside the libraries that do a part of it, `snap` and `prost`, their throughput in the same
//! decoded bytes.
//!
//! `-- --test` does everything once and says nothing of the cost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod authorize;
mod client;
mod decode;
mod encode;
mod enforce;
mod inputs;
mod limit;
mod measure;
mod outer;
#[path = "../telemetry/mod.rs"]
mod telemetry;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .without_plots()
        .configure_from_args();
    for benches in [
        outer::benches,
        authorize::benches,
        client::benches,
        limit::benches,
        decode::benches,
        enforce::benches,
        encode::benches,
    ] {
        benches(&mut criterion);
    }
    criterion.final_summary();
}
