//! What ended in an outage is tried again.
//!
//! [`RetryOutages`] is a policy for tower's `RetryLayer`: a [`Rejection`] with a status of 5xx is an outage; any other is an answer, and
//! stands. Attempts are few, spaced by a jittered backoff, and paid for out of a budget that all clones of the policy share, so that
//! retries are a part of the calls and not a storm of their own. Whoever waits for all of them wants a deadline around this.
//!
//! [`RetryUntilTaken`] is one for whoever pushes, and has nobody who would push again: it goes on until what is pushed is taken, refused
//! for what it is, or too old.
//!
//! [`Attempts`] is what the first one counts, spaces and pays them with, for whoever decides otherwise what is tried again.
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

use http::StatusCode;
use tokio::time::{Instant, Sleep, sleep};
use tower::retry::{
    Policy,
    budget::{Budget, TpsBudget},
};

use crate::{
    circuit::Circuit,
    observe::Observe,
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

/// A push that failed.
#[derive(Debug, Clone, Copy)]
pub struct PushFailed<'a> {
    /// Why.
    pub rejection: &'a Rejection,
    /// Attempts so far.
    pub attempts: u32,
    /// When the next attempt is.
    pub next: Next,
}

/// What becomes of a push that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is tried again after this time.
    Retry(Duration),
    /// Never: it was refused for what it is.
    Refused,
    /// Never: it would be too old.
    TooOld,
    /// Never: it is tried [once](RetryUntilTaken::once).
    Never,
}

/// Tries a push until it is taken. A [`Rejection`] with a status of 5xx, 408 or 429 says that it may be taken later; any other that it
/// never will.
///
/// Pauses double, are jittered, and grow up to `longest`; none is shorter than what the rejection [asks for](Rejection::wait).
#[derive(Debug, Clone)]
pub struct RetryUntilTaken<O = ()> {
    longest: Duration,
    keep_for: Duration,
    observer: O,
    failed: u32,
    since: Option<Instant>,
}

/// The first pause is a part of the longest one, but no longer than this.
const FIRST_PAUSE_OF_PUSHES: Duration = Duration::from_secs(10);
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

impl RetryUntilTaken {
    /// Pauses for `longest` at most, unless asked to, and gives up what would be pushed more than `keep_for` after it was first tried.
    pub fn new(longest: Duration, keep_for: Duration) -> Self {
        RetryUntilTaken { longest, keep_for, observer: (), failed: 0, since: None }
    }

    /// Tries once.
    pub fn once() -> Self {
        RetryUntilTaken::new(Duration::ZERO, Duration::ZERO)
    }
}

impl<O> RetryUntilTaken<O> {
    /// Tells `observer` of each attempt that fails.
    #[must_use]
    pub fn observed_by<P>(self, observer: P) -> RetryUntilTaken<P> {
        let RetryUntilTaken { longest, keep_for, observer: _, failed, since } = self;
        RetryUntilTaken { longest, keep_for, observer, failed, since }
    }

    fn next(&mut self, rejection: &Rejection) -> Next {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.failed = self.failed.saturating_add(1);
        let status = rejection.status();
        let later = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if !status.is_server_error() && !later {
            return Next::Refused;
        }
        let first = FIRST_PAUSE_OF_PUSHES.min(self.longest / 8);
        let pause = first.saturating_mul(1 << (self.failed - 1).min(16)).min(self.longest);
        let pause = pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        // Who was asked to come back at one time does not come back as one.
        let asked = rejection.wait().unwrap_or_default().mul_f64(1.0 + 0.1 * fastrand::f64());
        let pause = pause.max(asked).max(SHORTEST_PAUSE);
        match since.elapsed() + pause {
            _ if self.keep_for.is_zero() => Next::Never,
            then if then > self.keep_for => Next::TooOld,
            _ => Next::Retry(pause),
        }
    }
}

impl<Req: Clone, Res, O> Policy<Req, Res, Rejection> for RetryUntilTaken<O>
where
    O: for<'a> Observe<PushFailed<'a>>,
{
    type Future = Sleep;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, Rejection>) -> Option<Sleep> {
        let rejection = result.as_ref().err()?;
        let next = self.next(rejection);
        self.observer.observe(&PushFailed { rejection, attempts: self.failed, next });
        match next {
            Next::Retry(pause) => Some(sleep(pause)),
            Next::Refused | Next::TooOld | Next::Never => None,
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

    /// What becomes of a push that is answered so, one after the other; the last answer stands for all that follow.
    async fn pushed(policy: RetryUntilTaken, answers: Vec<Result<(), Rejection>>) -> (Vec<Next>, Duration) {
        let (told, calls) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
        let seen = Arc::clone(&told);
        let policy =
            policy.observed_by(Arc::new(move |failed: &PushFailed<'_>| seen.lock().unwrap().push(failed.next)));
        let server = service_fn(move |()| {
            let call = calls.fetch_add(1, Ordering::Relaxed) as usize;
            let answer = answers[call.min(answers.len() - 1)].clone();
            async move { answer }
        });
        let began = Instant::now();
        let _ = ServiceBuilder::new().retry(policy).service(server).oneshot(()).await;
        let told = told.lock().unwrap().clone();
        (told, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_is_tried_until_it_is_taken() {
        let down = || Err(Rejection::new(Reason::UpstreamUnavailable, "down"));
        let policy = RetryUntilTaken::new(Duration::from_secs(270), Duration::from_secs(86_400));
        let (told, took) =
            pushed(policy.clone(), vec![down(), down(), down(), down(), down(), down(), down(), Ok(())]).await;
        let bounds = [10, 20, 40, 80, 160, 270, 270];
        assert_eq!(told.len(), bounds.len());
        for (next, bound) in told.iter().zip(bounds) {
            let Next::Retry(pause) = next else { panic!("{next:?}") };
            let bound = Duration::from_secs(bound);
            assert!(*pause >= bound / 2 && *pause <= bound, "{pause:?} of {bound:?}");
        }
        assert!(took >= Duration::from_secs(425) && took < Duration::from_secs(851), "{took:?}");

        // As it was asked, and a little longer.
        let asked = Err(Rejection::new(Reason::RateLimited, "slow down").retry_after(Duration::from_secs(100)));
        let (told, _) = pushed(policy.clone(), vec![asked, Ok(())]).await;
        assert!(matches!(told[..], [Next::Retry(pause)] if (100..=110).contains(&pause.as_secs())), "{told:?}");
        // For what it is.
        let refused = Err(Rejection::new(Reason::UpstreamRefused, "out of order"));
        assert_eq!(pushed(policy, vec![refused]).await.0, [Next::Refused]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_be_too_old_is_given_up() {
        let down = Err(Rejection::new(Reason::UpstreamUnavailable, "down"));
        let policy = RetryUntilTaken::new(Duration::from_secs(60), Duration::from_secs(3600));
        let (told, took) = pushed(policy, vec![down]).await;
        assert_eq!(told.last(), Some(&Next::TooOld));
        assert!(took > Duration::from_secs(3500) && took <= Duration::from_secs(3600), "{took:?}");
    }
}
