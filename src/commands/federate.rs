//! `infogw-proxy federate`: pushes a selection of a Prometheus' metrics.

use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Exit, Failure, print};
use crate::{
    federate::{
        Federate, FederateFlags, Settings,
        listener::{FederateListener, Reloader},
    },
    log,
    scrape::endpoint,
};

/// What else the process ends by.
pub const EXITS: [(Exit, &str); 3] = [
    Exit::USAGE_WITH_FILES,
    (Exit::Data, "--once: what was pushed is refused, or what was scraped is no selection of metrics"),
    (
        Exit::Unavailable,
        "--once, --dry-run: somebody cannot be reached or does not let us in; an address cannot be had",
    ),
];

/// Pushes until it is told to stop, or does once what is asked for.
///
/// # Errors
/// [`Exit::Usage`] for wrong flags; [`Exit::Unavailable`] for an address that cannot be had; and what `--once` and `--dry-run` meet.
pub fn run(
    flags: FederateFlags,
    until_told_to_stop: impl FnOnce() -> std::io::Result<watch::Receiver<bool>>,
) -> Result<Exit, Failure> {
    let flags = flags.with_environment()?;
    let settings = Settings::new(flags.clone())?;
    log::init(settings.log_level());
    // One thread does what a client has to do.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if flags.dry_run {
            print(&Federate::dry_run(settings).await?)?;
            return Ok(Exit::Done);
        }
        settings.warn();
        if flags.once {
            Federate::once(settings).await?;
            return Ok(Exit::Done);
        }
        serve(flags, settings, until_told_to_stop()?).await
    })
}

async fn serve(mut flags: FederateFlags, settings: Settings, stop: watch::Receiver<bool>) -> Result<Exit, Failure> {
    let listener = match settings.listen() {
        Some(addresses) => Some(FederateListener::bind(addresses).await?),
        None => None,
    };
    let (from, to) = (endpoint(settings.from()), endpoint(settings.to()));
    let listen = listener.as_ref().map(|listener| listener.address().to_string()).unwrap_or_default();
    // Where it listens stays, whatever its name comes to stand for.
    flags.listen = Some(listen.clone());
    let client = Federate::new(settings)?;
    let reloader = Reloader::new(flags, client.clone());
    let mut hangup = signal(SignalKind::hangup())?;
    tracing::info!(from, to, listen, "starting infogw-proxy federate");
    let again = reloader.clone();
    let reloading = async move {
        while hangup.recv().await.is_some() {
            // What comes of it is logged.
            let _ = again.reload().await;
        }
    };
    let listening_stop = stop.clone();
    let listening = async {
        if let Some(listener) = listener {
            listener.serve(reloader, listening_stop).await;
        }
    };
    tokio::select! {
        // Whoever is being told something is told all of it.
        _ = async { tokio::join!(client.run(stop), listening) } => {}
        () = reloading => {}
    }
    Ok(Exit::Done)
}
