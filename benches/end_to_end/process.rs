//! A process that is measured or that helps measuring: never outlives the run.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Lines},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::Outcome;

/// Ticks a second of `/proc/PID/stat`: what Linux shows to user space, whatever it counts in.
const TICKS: f64 = 100.0;

/// Cores that a process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// The one that is measured.
    Measured,
    /// The one beside it.
    Helping,
    /// All of them.
    Any,
}

pub(crate) struct Process {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Process {
    /// Its stderr goes to `log`, or to where ours goes.
    pub(crate) fn start(command: &Command, cores: Cores, log: Option<File>) -> Outcome<Self> {
        let mut pinned = match cores {
            Cores::Any => Command::new(command.get_program()),
            Cores::Measured | Cores::Helping => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", if cores == Cores::Measured { "0" } else { "1" }]).arg(command.get_program());
                taskset
            }
        };
        pinned.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(log) = log {
            pinned.stderr(log);
        }
        let mut child = pinned.spawn().map_err(|error| format!("{:?}: {error}", pinned.get_program()))?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        Ok(Process { child, lines })
    }

    /// The next line that it writes.
    pub(crate) fn line(&mut self) -> Outcome<String> {
        let line = self.lines.as_mut().and_then(Iterator::next);
        line.ok_or("a process of the bench ended early; its stderr says why")?.map_err(Into::into)
    }

    /// Waits until `address` takes connections.
    pub(crate) fn listens(&mut self, address: SocketAddr) -> Outcome<()> {
        let began = Instant::now();
        while let Err(error) = TcpStream::connect(address) {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("a process of the bench ended with {status}").into());
            }
            if began.elapsed() > Duration::from_secs(30) {
                return Err(format!("nothing listens on {address}: {error}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// It does nothing more until [`Self::resume`]; what it has open stays open.
    pub(crate) fn pause(&self) -> Outcome<()> {
        self.signal("STOP")
    }

    pub(crate) fn resume(&self) -> Outcome<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Outcome<()> {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status()?;
        if status.success() { Ok(()) } else { Err(format!("kill -s {name}: {status}").into()) }
    }

    /// Seconds of CPU that it has taken so far, in user space and in the kernel.
    pub(crate) fn cpu(&self) -> Outcome<f64> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The second field is the name, in parentheses, and may hold anything.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|ticks| ticks.parse::<f64>().ok()).ok_or("/proc/PID/stat");
        Ok((ticks(11)? + ticks(12)?) / TICKS)
    }

    /// Bytes of memory that it holds now.
    pub(crate) fn resident(&self) -> Outcome<f64> {
        self.status("VmRSS:")
    }

    /// Bytes of memory that it held at most since [`Self::forget_peak`].
    pub(crate) fn peak(&self) -> Outcome<f64> {
        self.status("VmHWM:")
    }

    pub(crate) fn forget_peak(&self) -> Outcome<()> {
        Ok(fs::write(self.proc("clear_refs"), "5")?)
    }

    /// Descriptors that it has open.
    pub(crate) fn descriptors(&self) -> Outcome<usize> {
        Ok(fs::read_dir(self.proc("fd"))?.count())
    }

    fn status(&self, key: &str) -> Outcome<f64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).ok_or("/proc/PID/status")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0)
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address on loopback that was free just now.
pub(crate) fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
