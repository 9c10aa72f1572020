//! The embedded world.

use tokio::sync::watch;

use crate::gateway::StartError;

/// Runs it.
///
/// # Errors
/// [`StartError`].
pub async fn run(_: watch::Receiver<bool>) -> Result<(), StartError> {
    Ok(())
}
