//! Parse arguments, start, wait for the signal, drain.

use std::{process::ExitCode, time::Duration};

use clap::{
    CommandFactory as _,
    error::{ContextKind, ContextValue, ErrorKind},
};
use infogw_proxy::{
    config::{Command, CommandLine, Config, ConfigError},
    dev,
    gateway::{self, Gateway, StartError},
    log,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A wrong flag, `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// Something that the process needs is not to be had, `EX_UNAVAILABLE`.
const UNAVAILABLE: u8 = 69;

/// How long files may still be read once all is served.
const LAST_READS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, line }) => {
            // A flag's value may hold line breaks, and is quoted as it is.
            eprintln!("{}", line.replace(char::is_control, " "));
            ExitCode::from(code)
        }
    }
}

/// What ends the process early: one line and the exit code.
struct Failure {
    code: u8,
    line: String,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure { code: USAGE, line: format!("error: {error}") }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Failure { code: UNAVAILABLE, line: format!("error: {error}") }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure { code: UNAVAILABLE, line: format!("error: {error}") }
    }
}

fn run() -> Result<(), Failure> {
    let command_line = match CommandLine::read() {
        Ok(command_line) => command_line,
        Err(error) if error.use_stderr() => {
            return Err(Failure { code: USAGE, line: first_line(&error) });
        }
        Err(help_or_version) => {
            let _ = help_or_version.print();
            return Ok(());
        }
    };
    let dev = matches!(command_line.command, Some(Command::Dev));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if dev {
        return Ok(runtime.block_on(async { dev::run(until_told_to_stop()).await })?);
    }
    let config = Config::new(command_line.flags)?;
    log::init(config.log_level);
    let served = runtime.block_on(serve(&config));
    // A read that hangs, of a pipe or of a file system that has gone, holds up nobody.
    runtime.shutdown_timeout(LAST_READS);
    served
}

async fn serve(config: &Config) -> Result<(), Failure> {
    let gateway = Gateway::bind(config).await?;
    let (public, internal) = (gateway.public_address()?, gateway.internal_address()?);
    gateway::warn_about(config);
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = until_told_to_stop();
    tracing::info!(external = %public, internal = %internal, "starting infogw-proxy");
    let serving = gateway.serve(stop);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return Ok(()),
            _ = hangup.recv() => gateway::reload(config),
        }
    }
}

/// Turns true on the first SIGTERM or SIGINT; the second one ends the process at once.
fn until_told_to_stop() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            return;
        };
        for told in 0.. {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if told > 0 {
                std::process::exit(1);
            }
            tracing::info!("shutting down: requests in flight may end");
            let _ = stop.send(true);
        }
    });
    stopped
}

/// Clap explains itself over several lines; the first one says what is wrong.
fn first_line(error: &clap::Error) -> String {
    // After a flag clap takes any argument for a subcommand.
    if let (ErrorKind::ArgumentConflict, Some(ContextValue::String(argument))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
        && CommandLine::command().find_subcommand(argument).is_none()
    {
        return format!("error: unexpected argument '{argument}' found");
    }
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().trim_end();
    // "the following required arguments were not provided:" and its like go on in the next line.
    match (first.ends_with(':'), lines.next()) {
        (true, Some(next)) => format!("{first} {}", next.trim()),
        _ => first.to_owned(),
    }
}
