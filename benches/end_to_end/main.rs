//! What the whole gateway costs, beside a proxy that looks at nothing.
//!
//! `cargo bench --bench end_to_end` drives, over loopback, in turns:
//!
//! 1. `bare`: a reverse proxy of hyper-util with the gateway's client and server settings, which passes bytes on;
//! 2. `floor`: the same, which also decompresses the body and throws away what comes out;
//! 3. `receive`: the gateway's remote write, where nothing is to be changed;
//! 4. `rewrite`: the same where a label is elided and a fifth of the series is dropped;
//! 5. `upload`: the gateway's `/upload` of the same series;
//! 6. with `--against PATH`, any telemeter-server that takes the contract's flags, on both endpoints.
//!
//! Load generator and upstream are processes of their own, on the second core; what is measured has the first one for itself
//! (`--unpinned`: all share all). Each subject has a warm-up and then takes its turn once a round; figures are medians over the rounds.
//! CPU is user and system time of the server's process by the system's accounting, and requests a second are what is reached when
//! `--connections` always have a request under way. Latency is measured at random arrivals over `--open-connections`, from when a request
//! was due, at half of saturation: of the rate at which they would keep a core busy, or of what was reached where that is less. At twice
//! that rate what is accepted and what is refused is told apart.
//!
//! `--subjects` picks what is driven of these, `--sections` what is run: `table` and `overload` by default; `series`, `rules` and `clusters`
//! vary one number each, `memory` counts what connections and requests in flight hold, `slow` has 10,000 slow connections beside those
//! that behave, `all` is all. `--json FILE` writes the figures as well.
//! `-- --test` runs it all for an instant and says nothing of the cost.

// Turns last a while, and a child process that begins to listen tells nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod load;
mod process;
mod proxy;
mod report;
mod sections;
mod slow;
mod subject;
#[path = "../telemetry/mod.rs"]
mod telemetry;
mod tls;
mod upstream;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{report::Report, telemetry::RULES};

/// The gateway's: what is measured beside it has no other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Parser)]
#[command(about = "What the whole gateway costs, beside a proxy that looks at nothing")]
struct Arguments {
    /// What this process is.
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: Plan,
    /// cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// What to run.
    #[arg(long, value_delimiter = ',', default_value = "table,overload")]
    sections: Vec<Section>,
    /// Of the table and the overload: what is driven.
    #[arg(long, value_delimiter = ',', default_value = "bare,floor,receive,rewrite,upload")]
    subjects: Vec<subject::Kind>,
    /// Series of a request.
    #[arg(long, default_value_t = 500)]
    series: usize,
    /// Labels of a series besides its name.
    #[arg(long, default_value_t = 10)]
    labels: usize,
    /// Rules of the allowlist.
    #[arg(long, default_value_t = RULES)]
    rules: usize,
    /// Clusters that push.
    #[arg(long, default_value_t = 100)]
    clusters: u64,
    /// Connections that always have a request under way.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Connections that requests at random arrivals are spread over.
    #[arg(long, default_value_t = 1000)]
    open_connections: usize,
    /// The public listeners speak TLS.
    #[arg(long)]
    tls: bool,
    /// Turns that each subject takes.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a turn is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// All processes share all cores.
    #[arg(long)]
    unpinned: bool,
    /// A telemeter-server to compare with.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Where to write the figures, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Runs everything for an instant.
    #[arg(long)]
    test: bool,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// CPU, rate, latency, memory of each subject, and their ratios.
    Table,
    /// The gateway at twice saturation.
    Overload,
    /// 1 to 10,000 series a request.
    Series,
    /// 200 to 10,000 rules.
    Rules,
    /// 100 to 1,000,000 known clusters.
    Clusters,
    /// Idle connections and requests in flight.
    Memory,
    /// Latency beside 10,000 slow connections.
    Slow,
    /// All of them.
    All,
}

/// The processes of a run, which this binary is, too.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Load { spec: String },
    #[command(hide = true)]
    Upstream(upstream::Arguments),
    #[command(hide = true)]
    Proxy(proxy::Arguments),
    #[command(hide = true)]
    Slow(slow::Arguments),
}

impl Plan {
    pub(crate) fn has(&self, section: Section) -> bool {
        self.sections.iter().any(|&wanted| wanted == section || wanted == Section::All)
    }
}

fn main() -> ExitCode {
    let Arguments { role, mut plan, .. } = Arguments::parse();
    let done = match role {
        Some(Role::Load { spec }) => load::run(&spec),
        Some(Role::Upstream(arguments)) => upstream::run(&arguments),
        Some(Role::Proxy(arguments)) => proxy::run(arguments),
        Some(Role::Slow(arguments)) => slow::run(&arguments),
        None => {
            if plan.test {
                (plan.rounds, plan.seconds, plan.sections) = (1, 0.1, vec![Section::All]);
            }
            measure(&plan)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(plan: &Plan) -> Outcome<()> {
    let mut report = Report::new(plan);
    sections::run(plan, &mut report)?;
    if let Some(path) = &plan.json {
        report.write(path)?;
    }
    Ok(())
}
