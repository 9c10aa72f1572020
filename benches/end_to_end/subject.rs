//! What is measured: a server of its own process, and how it is driven.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::{
    Outcome, Plan,
    load::{Arrivals, Counted, Endpoint, Spec},
    process::{Cores, Process, free_address},
    telemetry::{self, NAMES, REPLICA},
    tls, upstream,
};

/// A server is calm when it takes less than half of one processor for so long, which it must be within the other time.
const CALM_FOR: Duration = Duration::from_millis(500);
const CALM_WITHIN: Duration = Duration::from_secs(120);

/// What a subject does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Bare,
    Floor,
    Receive,
    Rewrite,
    Upload,
    /// A telemeter-server's.
    #[value(skip)]
    OtherReceive,
    #[value(skip)]
    OtherUpload,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Floor => "floor",
            Kind::Receive => "receive",
            Kind::Rewrite => "rewrite",
            Kind::Upload => "upload",
            Kind::OtherReceive => "other receive",
            Kind::OtherUpload => "other upload",
        }
    }

    /// What it is compared with of the other server's.
    pub(crate) fn counterpart(self) -> Option<Kind> {
        match self {
            Kind::Receive | Kind::Rewrite => Some(Kind::OtherReceive),
            Kind::Upload => Some(Kind::OtherUpload),
            _ => None,
        }
    }

    fn endpoint(self) -> Endpoint {
        match self {
            Kind::Upload | Kind::OtherUpload => Endpoint::Upload,
            _ => Endpoint::Receive,
        }
    }
}

/// What all subjects of a run share: the upstream, a certificate, files.
pub(crate) struct World {
    upstream: SocketAddr,
    _upstream: Process,
    tls: Option<tls::Files>,
    folder: TempDir,
    logs: TempDir,
    unpinned: bool,
}

impl World {
    pub(crate) fn new(plan: &Plan, tls: bool) -> Outcome<Self> {
        let upstream = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["upstream", "--listen", &upstream.to_string()]);
        let mut process = Process::start(&command, if plan.unpinned { Cores::Any } else { Cores::Helping }, None)?;
        process.listens(upstream)?;
        Ok(World {
            upstream,
            _upstream: process,
            tls: tls.then(tls::Files::new).transpose()?,
            folder: tempfile::tempdir()?,
            logs: tempfile::tempdir()?,
            unpinned: plan.unpinned,
        })
    }

    fn cores(&self, cores: Cores) -> Cores {
        if self.unpinned { Cores::Any } else { cores }
    }
}

/// How a subject is set up, where it matters.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) rules: usize,
    /// Its upstream takes its time.
    pub(crate) slow: bool,
    /// It hangs up on no slow connection as long as the bench lasts.
    pub(crate) patient: bool,
    pub(crate) against: Option<PathBuf>,
}

impl Setup {
    pub(crate) fn of(plan: &Plan) -> Self {
        Setup { rules: plan.rules, slow: false, patient: false, against: plan.against.clone() }
    }
}

/// One that runs.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) process: Process,
    address: SocketAddr,
    certificate: Option<String>,
    cores: Cores,
}

/// What a turn took.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    pub(crate) counted: Counted,
    /// Microseconds of CPU a request, whatever came of it.
    pub(crate) cpu: f64,
    /// Bytes.
    pub(crate) peak: f64,
}

impl Subject {
    pub(crate) fn start(kind: Kind, world: &World, setup: &Setup) -> Outcome<Self> {
        let (address, internal) = (free_address()?, free_address()?);
        let path = if setup.slow { upstream::SLOWLY } else { upstream::AT_ONCE };
        let forward = format!("http://{}{path}", world.upstream);
        let command = match kind {
            Kind::Bare | Kind::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["proxy", "--listen", &address.to_string(), "--upstream", &forward]);
                if kind == Kind::Floor {
                    command.arg("--decompress");
                }
                if let Some(tls) = &world.tls {
                    command.arg("--certificate").arg(&tls.certificate).arg("--key").arg(&tls.key);
                }
                command
            }
            _ => gateway(kind, world, setup, [address, internal], &forward)?,
        };
        // In a folder of its own: a gateway watches the one that its rules are in.
        let log = File::create(world.logs.path().join(format!("{}.log", kind.name())))?;
        let mut process = Process::start(&command, world.cores(Cores::Measured), Some(log))?;
        process.listens(address)?;
        let certificate = world.tls.as_ref().map(|tls| tls.certificate.display().to_string());
        Ok(Subject { kind, process, address, certificate, cores: world.cores(Cores::Helping) })
    }

    /// Starts driving it.
    pub(crate) fn load(&self, plan: &Plan, arrivals: Arrivals) -> Outcome<Process> {
        self.load_as(&Spec { warm_up: 0.3, ..self.spec(plan, arrivals) })
    }

    pub(crate) fn spec(&self, plan: &Plan, arrivals: Arrivals) -> Spec {
        Spec {
            target: self.address,
            certificate: self.certificate.clone(),
            endpoint: self.kind.endpoint(),
            series: plan.series,
            labels: plan.labels,
            clusters: plan.clusters,
            arrivals,
            introduce: false,
            warm_up: 0.5,
            seconds: plan.seconds,
        }
    }

    /// Opens slow connections to it, which last as long as the process that is returned, and waits until it has answered what it can
    /// of what they asked: such a flood is not what is measured.
    pub(crate) fn slow_connections(&self, connections: usize) -> Outcome<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["slow", "--target", &self.address.to_string(), "--connections", &connections.to_string()]);
        let mut process = Process::start(&command, self.cores, None)?;
        process.line()?;
        let calm = Instant::now() + CALM_WITHIN;
        loop {
            let before = self.process.cpu()?;
            thread::sleep(CALM_FOR);
            if self.process.cpu()? - before < CALM_FOR.as_secs_f64() / 2.0 {
                return Ok(process);
            }
            if Instant::now() > calm {
                return Err(format!("{} was not calm within {CALM_WITHIN:?}", self.kind.name()).into());
            }
        }
    }

    /// What it has open.
    pub(crate) fn descriptors(&self) -> Outcome<usize> {
        self.process.descriptors()
    }

    pub(crate) fn load_as(&self, spec: &Spec) -> Outcome<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["load", &serde_json::to_string(spec)?]);
        Process::start(&command, self.cores, None)
    }

    /// Drives it for a turn.
    pub(crate) fn turn(&self, plan: &Plan, arrivals: Arrivals) -> Outcome<Turn> {
        self.turn_of(&self.spec(plan, arrivals))
    }

    pub(crate) fn turn_of(&self, spec: &Spec) -> Outcome<Turn> {
        let mut load = self.load_as(spec)?;
        load.line()?;
        self.process.forget_peak()?;
        let before = self.process.cpu()?;
        let line = load.line()?;
        let cpu = self.process.cpu()? - before;
        let counted: Counted = serde_json::from_str(&line)?;
        if counted.failed > 0 {
            return Err(format!("{}: {} requests failed", self.kind.name(), counted.failed).into());
        }
        let answered = counted.accepted.requests + counted.refused.requests;
        Ok(Turn { cpu: cpu * 1e6 / answered.max(1) as f64, peak: self.process.peak()?, counted })
    }
}

/// The flags of the contract; of ours, only to the gateway.
fn gateway(kind: Kind, world: &World, setup: &Setup, listen: [SocketAddr; 2], forward: &str) -> Outcome<Command> {
    let other = matches!(kind, Kind::OtherReceive | Kind::OtherUpload);
    let program = match (&setup.against, other) {
        (Some(path), true) => path.as_path(),
        _ => Path::new(env!("CARGO_BIN_EXE_infogw-proxy")),
    };
    let kept = if kind == Kind::Rewrite { NAMES * 4 / 5 } else { NAMES };
    let allowlist = world.folder.path().join(format!("{}-{}.rules", kind.name(), setup.rules));
    fs::write(&allowlist, telemetry::rules(setup.rules, kept).join("\n"))?;
    let mut command = Command::new(program);
    let [public, internal] = listen.map(|address| address.to_string());
    let authorize = format!("http://{}{}", world.upstream, upstream::AUTHORIZE);
    command.args(["--listen", &public, "--listen-internal", &internal, "--authorize", &authorize]);
    // telemeter-server takes 0 for a limit of the body.
    let large = "1073741824";
    command.args(["--forward-url", forward, "--ratelimit", "0"]);
    command.args(["--limit-receive-bytes", large, "--limit-bytes", large]);
    command.arg("--whitelist-file").arg(allowlist);
    if let Some(tls) = &world.tls {
        command.arg("--tls-crt").arg(&tls.certificate).arg("--tls-key").arg(&tls.key);
    }
    if !other {
        // Limits that are looked at and not met.
        command.args(["--limit-receive-requests-per-second", "1000000"]);
        command.args(["--limit-receive-samples-per-second", "1000000000"]);
    }
    if setup.patient {
        command.args(["--limit-connections-per-peer=0", "--header-timeout=1h", "--body-timeout=1h"]);
    }
    match kind {
        Kind::Rewrite => drop(command.args(["--receive-elide-label", REPLICA])),
        Kind::Upload | Kind::OtherUpload => drop(command.args(["--elide-label", REPLICA])),
        _ => {}
    }
    Ok(command)
}
