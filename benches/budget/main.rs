//! What a request costs the gateway's own code, in allocations and in instructions: held against `recorded.json`, a step up fails.
//!
//! `cargo bench --bench budget` measures and compares; `-- --record` writes what it measures as the new record, and
//! `-- --allocations` leaves out the instructions, which need valgrind. The stacks are built as the gateway builds them, and driven in
//! one thread. Nobody listens, the upstream is a function that takes everything, and the sender is known: neither sockets nor HTTP
//! nor TLS count, and nothing is logged.
//!
//! Allocations are those of one request, once caches are warm: how many, how many bytes together, and how many bytes at a time (beside
//! the body as it came). What grows is allocated anew, and counts again. Their number should depend neither on series nor on labels;
//! by how much it does is recorded, too.
//! Instructions are counted by callgrind, in a process of its own for each case. They hold the system's allocator, not the gateway's,
//! and a few for each allocation that is counted. The record is of x86-64.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod callgrind;
mod cases;
mod gateway;
mod record;
#[path = "../telemetry/mod.rs"]
mod telemetry;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    cases::{Case, GROWTHS, Growth},
    gateway::{Gateway, Kind},
    record::{Figures, Record, Report},
    telemetry::Shape,
};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Parser)]
#[command(about = "What a request costs in allocations and instructions, beside what is recorded")]
struct Arguments {
    /// What callgrind runs.
    #[command(subcommand)]
    role: Option<Role>,
    /// Writes what is measured as the new record.
    #[arg(long)]
    record: bool,
    /// Counts allocations alone.
    #[arg(long, conflicts_with = "record")]
    allocations: bool,
    /// Sends each request once, and measures nothing.
    #[arg(long)]
    test: bool,
    /// cargo adds it to benches, and not where it tests them: what is built for tests is another program.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Answer { request: Kind, series: usize, labels: usize, requests: usize },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.role {
        Some(Role::Answer { request, series, labels, requests }) => {
            callgrind::run(Case { request, shape: Shape { series, labels } }, requests)
        }
        None if arguments.test || !arguments.bench => Case::all().try_for_each(answer_one),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer_one(case: Case) -> Outcome<()> {
    let gateway = Gateway::new(case)?;
    gateway.answer(gateway.request());
    Ok(())
}

fn measure(arguments: &Arguments) -> Outcome<()> {
    let recorded = Record::read();
    let mut report = Report::new(if arguments.record { recorded.unwrap_or_default() } else { recorded? });
    for request in Kind::ALL {
        let allocations = |shape| allocations(Case { request, shape });
        for case in Case::of(request) {
            let instructions = case.counts_instructions() && !arguments.allocations;
            let instructions = instructions.then(|| callgrind::instructions(case)).transpose()?;
            report.add(case.to_string(), Figures { instructions, ..allocations(case.shape)? });
        }
        for Growth { name, from, to } in GROWTHS {
            let [from, to] = [allocations(from)?, allocations(to)?].map(|figures| figures.allocations);
            let more = to.zip(from).map(|(to, from)| to.saturating_sub(from));
            report.add(format!("{}, {name}", request.name()), Figures { allocations: more, ..Figures::default() });
        }
    }
    if arguments.record { report.record() } else { report.verdict() }
}

/// Requests that come first: they fill caches, and set up what is set up once.
pub(crate) const WARM_UP: usize = 8;
/// Requests whose allocations are counted.
const COUNTED: usize = 15;

/// Of the median request: once in a while the cache of authorizations does its housekeeping in one.
fn allocations(case: Case) -> Outcome<Figures> {
    let gateway = Gateway::new(case)?;
    let mut counted: Vec<_> = (0..WARM_UP + COUNTED)
        .map(|_| {
            let request = gateway.request();
            allocation_counter::measure(|| gateway.answer(request))
        })
        .skip(WARM_UP)
        .collect();
    counted.sort_unstable_by_key(|counted| (counted.count_total, counted.bytes_total));
    let median = counted[COUNTED / 2];
    Ok(Figures {
        allocations: Some(median.count_total),
        allocated: Some(median.bytes_total),
        peak: Some(median.bytes_max),
        instructions: None,
    })
}
