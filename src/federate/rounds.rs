//! Round after round.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest;
use infogw_layers::rejection::{Reason, Rejection};
use tokio::{sync::watch, time::sleep};

use super::{metrics::Metrics, stack::Stack};
use crate::server;

/// From the first round that fails to the next one, and the longest that ever is: telemeter-client's minute. Both before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Scrapes and pushes; a push may take until it is taken.
///
/// # Errors
/// Why nothing was pushed.
pub(super) async fn round(stack: &Stack, metrics: &Metrics) -> Result<(), Rejection> {
    metrics.attempts.inc();
    let pushed = async { stack.push(stack.scrape().await?).await };
    match stack.traces.of("round", pushed).await {
        Ok(()) => {
            metrics.succeeded();
            Ok(())
        }
        Err(rejection) => {
            metrics.failed.inc();
            Err(rejection)
        }
    }
}

/// Goes on until `stop` turns true. A round is gone through with the stack that it began with; a new one counts from the next round on,
/// which it brings about where the last one failed.
pub(super) async fn run(mut stacks: watch::Receiver<Arc<Stack>>, metrics: &Metrics, mut stop: watch::Receiver<bool>) {
    let first = {
        let stack = stacks.borrow();
        spread(stack.id.as_deref(), stack.interval)
    };
    tracing::debug!(?first, "the first push is at a time of its own");
    let mut pause = first;
    let mut failed = 0;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = stacks.changed(), if failed > 0 => {}
            () = server::told(&mut stop) => return,
        }
        let stack = Arc::clone(&stacks.borrow_and_update());
        let outcome = tokio::select! {
            outcome = round(&stack, metrics) => outcome,
            () = server::told(&mut stop) => return,
        };
        pause = match outcome {
            Ok(()) => {
                failed = 0;
                stack.interval
            }
            Err(rejection) => {
                failed += 1;
                // A server counts what it refuses as well.
                let pause = match rejection.reason() {
                    Reason::UpstreamRefused => stack.interval,
                    _ => backoff(failed).min(stack.interval).max(rejection.wait().unwrap_or_default()),
                };
                let (reason, layer) = (rejection.reason(), rejection.layer().unwrap_or_default());
                metrics.failures.tell(&rejection, || {
                    tracing::error!(err = %rejection, %reason, layer, next = ?pause, "unable to forward results");
                });
                pause
            }
        };
    }
}

fn backoff(failed: u32) -> Duration {
    let (first, longest) = BACKOFF;
    let pause = first.saturating_mul(1 << (failed - 1).min(16)).min(longest);
    pause.mul_f64(0.5 + 0.5 * fastrand::f64())
}

/// When in the interval the first push is: by a hash of the id, so that a fleet that starts as one does not push as one, and each
/// member of it keeps its time.
fn spread(id: Option<&str>, interval: Duration) -> Duration {
    let share = match id {
        Some(id) => {
            let hash = digest::digest(&digest::SHA256, id.as_bytes());
            let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
            u32::from_be_bytes(first) as f64 / f64::from(u32::MAX)
        }
        None => fastrand::f64(),
    };
    interval.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_spread_over_the_interval() {
        let interval = Duration::from_secs(100);
        let mut tenths = [0; 10];
        for id in 0..1000 {
            let id = format!("cluster-{id}");
            let at = spread(Some(&id), interval);
            assert_eq!(at, spread(Some(&id), interval), "each keeps its time");
            assert!(at <= interval);
            tenths[(at.as_secs() / 10).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| count > 60), "{tenths:?}");
        assert!(spread(None, interval) <= interval);
    }

    #[test]
    fn failing_rounds_are_a_minute_apart_at_most() {
        for (failed, seconds) in [(1, 5), (2, 10), (4, 40), (5, 60), (100, 60)] {
            let pause = backoff(failed);
            let bound = Duration::from_secs(seconds);
            assert!(pause >= bound / 2 && pause <= bound, "{failed}: {pause:?}");
        }
    }
}
