//! Parse arguments, start, wait for the signal, drain.

use std::{io, num::NonZeroUsize, process::ExitCode, time::Duration};

use infogw_proxy::{
    commands::{Command, CommandLine, Exit, Failure, check, completions, explain, federate, token},
    config::{Config, Connections, Flags},
    dev,
    gateway::{self, Gateway},
    log,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Bodies of some hundred kilobytes come and go: page faults stood in the profile with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long files may still be read once all is served.
const LAST_READS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let exit = run().unwrap_or_else(|failure| failure.tell());
    ExitCode::from(exit.code())
}

fn run() -> Result<Exit, Failure> {
    let CommandLine { command, flags } = CommandLine::read()?;
    match command {
        None => run_gateway(flags),
        Some(Command::Dev) => Runtime::new()?.block_on(async {
            dev::run(until_told_to_stop()?).await?;
            Ok(Exit::Done)
        }),
        Some(Command::Check(args)) => check::run(*args),
        Some(Command::Federate(flags)) => federate::run(*flags, until_told_to_stop),
        Some(Command::Token(command)) => token::run(command),
        Some(Command::Explain(args)) => explain::run(*args),
        Some(Command::Completions(args)) => completions::run(&args),
    }
}

fn run_gateway(flags: Flags) -> Result<Exit, Failure> {
    // A task can take as long as a payload is worked on: what is ready is looked for more often than after 61 of them.
    let runtime = Builder::new_multi_thread().enable_all().event_interval(16).build()?;
    let mut config = Config::new(flags.with_environment()?)?;
    log::init(config.log_level);
    fit_descriptors(&mut config);
    let served = runtime.block_on(serve(&config));
    // A read that hangs, of a pipe or of a file system that has gone, holds up nobody.
    runtime.shutdown_timeout(LAST_READS);
    served.map(|()| Exit::Done)
}

/// Takes as many descriptors as the system lets this process have, as Go's runtime does: most services are started with 1024. Where
/// these are too few for all connections, there are fewer of them: the requests on them need some, too.
fn fit_descriptors(config: &mut Config) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { limit };
    let Some(descriptors) = now.current else { return };
    let (most, in_flight) = (config.connections.most, config.in_flight.get());
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let left = NonZeroUsize::new(connections_of(descriptors, in_flight)).unwrap_or(NonZeroUsize::MIN);
    if left < most {
        config.connections.most = left;
        tracing::warn!(
            descriptors,
            connections = left.get(),
            "--limit-connections is more than this process may open, and lowered: raise its limit of open files"
        );
    }
}

/// How many connections there can be, where each request may have one to the upstream, and before that one to the authorizer. There are
/// no more requests than connections, but for those of HTTP/2.
fn connections_of(descriptors: usize, in_flight: usize) -> usize {
    // The internal listener, files, stores.
    let left = descriptors.saturating_sub(Connections::internal().most.get() + 64);
    left.saturating_sub(2 * in_flight).max(left / 3)
}

async fn serve(config: &Config) -> Result<(), Failure> {
    let gateway = Gateway::bind(config).await?;
    let (public, internal) = (gateway.public_address()?, gateway.internal_address()?);
    gateway::warn_about(config);
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = until_told_to_stop()?;
    tracing::info!(external = %public, internal = %internal, "starting infogw-proxy");
    let reloader = gateway.reloader();
    let serving = gateway.serve(stop);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            () = &mut serving => return Ok(()),
            // What comes of it is logged.
            _ = hangup.recv() => drop(reloader.reload()),
        }
    }
}

/// Turns true on the first SIGTERM or SIGINT; the second one ends the process at once.
fn until_told_to_stop() -> io::Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
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
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_few_connections_and_not_none() {
        for (descriptors, expected) in [(1_048_576, 1_046_208), (20_000, 17_632), (4096, 1728), (1024, 234), (256, 0)] {
            assert_eq!(connections_of(descriptors, 1024), expected, "{descriptors}");
        }
    }
}
