//! What ended in an outage is tried again.
//!
//! [`RetryOutages`] is a policy for tower's `RetryLayer`: a [`Rejection`] with a status of 5xx is an outage; any other is an answer, and
//! stands. Attempts are few, spaced by a jittered backoff, and paid for out of a budget that all clones of the policy share, so that
//! retries are a part of the calls and not a storm of their own. Whoever waits for all of them wants a deadline around this.
//!
//! [`Attempts`] is what it counts, spaces and pays them with, for whoever decides otherwise what is tried again.
//!
//! ```
//! use infogw_layers::{rejection::{Reason, Rejection}, retry::RetryOutages};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Rejection> {
//! let calls = Arc::new(AtomicU32::new(0));
//! let flaky = service_fn(move |_: &str| {
//!     let call = calls.fetch_add(1, Ordering::Relaxed);
//!     async move { if call == 0 { Err(Rejection::new(Reason::AuthorizerUnavailable, "down")) } else { Ok(call) } }
//! });
//! assert_eq!(ServiceBuilder::new().retry(RetryOutages::new(3)).service(flaky).oneshot("").await?, 1);
//! # Ok(()) }
//! ```

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Sleep, sleep};
use tower::retry::{
    Policy,
    budget::{Budget, TpsBudget},
};

use crate::{
    circuit::Circuit,
    rejection::{Reason, Rejection},
};

/// The first pause, before jitter; it doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often one call is tried: few times, spaced, and paid for. A clone is another call's, which shares the budget.
#[derive(Clone)]
pub struct Attempts {
    most: u32,
    failed: u32,
    first_pause: Duration,
    budget: Arc<TpsBudget>,
}

impl Attempts {
    /// At most so many in all. The first pause is `first_pause` before jitter, and each one twice as long as that before.
    pub fn new(most: u32, first_pause: Duration, budget: Arc<TpsBudget>) -> Self {
        Attempts { most, failed: 0, first_pause, budget }
    }

    /// One has failed: how long to pause before the next, if there is one left. It is still to be [paid](Self::pay) for.
    pub fn failed(&mut self) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        if self.failed >= self.most {
            return None;
        }
        let pause = self.first_pause.saturating_mul(1 << (self.failed - 1).min(16)).min(LONGEST_PAUSE);
        // Half to all of it: those that failed together do not come back together.
        Some(pause.mul_f64(0.5 + 0.5 * fastrand::f64()))
    }

    /// Pays for one more, if the budget has as much.
    pub fn pay(&self) -> bool {
        self.budget.withdraw()
    }

    /// One was answered, which pays into the budget.
    pub fn answered(&self) {
        self.budget.deposit();
    }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempts").field("most", &self.most).finish_non_exhaustive()
    }
}

/// Tries outages again, a few times.
#[derive(Debug, Clone)]
pub struct RetryOutages {
    attempts: Attempts,
    circuit: Option<Circuit>,
}

impl RetryOutages {
    /// At most so many `attempts` in all. Retries add a fifth to the calls, and may be ten a second whatever the calls.
    pub fn new(attempts: u32) -> Self {
        RetryOutages { attempts: Attempts::new(attempts, FIRST_PAUSE, Arc::default()), circuit: None }
    }

    /// Does not try again while `circuit` is open: it would be refused at once.
    #[must_use]
    pub fn unless_open(self, circuit: Circuit) -> Self {
        RetryOutages { circuit: Some(circuit), ..self }
    }
}

impl<Req: Clone, Res> Policy<Req, Res, Rejection> for RetryOutages {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, Rejection>) -> Option<Sleep> {
        match result {
            // A token of ours was waited for already, and is got in the background.
            Err(rejection) if rejection.reason() == Reason::CredentialsUnavailable => None,
            Err(rejection) if rejection.status().is_server_error() => {
                let pause = self.attempts.failed()?;
                let futile = self.circuit.as_ref().is_some_and(Circuit::is_open);
                (!futile && self.attempts.pay()).then(|| sleep(pause))
            }
            _ => {
                self.attempts.answered();
                None
            }
        }
    }

    fn clone_request(&mut self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        num::NonZeroU32,
        sync::atomic::{AtomicU32, Ordering},
    };
    use tokio::time::Instant;
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    async fn calls_made(policy: RetryOutages, reason: Reason) -> u32 {
        let calls = AtomicU32::new(0);
        let failing = service_fn(async |()| {
            calls.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(Rejection::new(reason, ""))
        });
        let rejection = ServiceBuilder::new().retry(policy).service(failing).oneshot(()).await.unwrap_err();
        assert_eq!(rejection.reason(), reason);
        calls.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn outages_are_tried_again_and_answers_are_not() {
        let began = Instant::now();
        assert_eq!(calls_made(RetryOutages::new(3), Reason::AuthorizerUnavailable).await, 3);
        assert!(began.elapsed() >= FIRST_PAUSE + FIRST_PAUSE / 2, "two pauses, the second twice as long");
        for reason in [
            Reason::AuthorizerRefused,
            Reason::Unauthenticated,
            Reason::AuthorizerThrottled,
            Reason::CredentialsUnavailable,
        ] {
            assert_eq!(calls_made(RetryOutages::new(3), reason).await, 1, "{reason}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_paid_for() {
        let policy = RetryOutages::new(2);
        let mut failing = tokio::task::JoinSet::new();
        for _ in 0..1_000 {
            failing.spawn(calls_made(policy.clone(), Reason::AuthorizerUnavailable));
        }
        let calls: u32 = failing.join_all().await.into_iter().sum();
        assert!((1_001..1_500).contains(&calls), "{calls}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_circuit_is_not_tried_again() {
        let circuit = Circuit::new(NonZeroU32::MIN, Duration::from_secs(10));
        circuit.admit(Duration::ZERO).unwrap().failed(Duration::ZERO);
        let policy = RetryOutages::new(3).unless_open(circuit);
        assert_eq!(calls_made(policy, Reason::AuthorizerUnavailable).await, 1);
    }
}
