//! When to stop asking a neighbour that does not answer.
//!
//! A [`Circuit`] counts failures in a row. At a set number it opens: nobody is let through for a set time, so that callers hear at
//! once what they would otherwise wait for, and a neighbour that struggles is left alone. Then one attempt is let through at a time,
//! until one succeeds. [`CircuitLayer`] puts one before an HTTP client.
//!
//! Nothing in here waits, and nothing reads a clock: the caller says what time it is.
//!
//! ```
//! use infogw_layers::circuit::Circuit;
//! use std::{num::NonZeroU32, time::Duration};
//!
//! let second = Duration::from_secs(1);
//! let circuit = Circuit::new(NonZeroU32::new(2).unwrap(), 10 * second);
//! for _ in 0..2 {
//!     circuit.admit(Duration::ZERO).expect("closed").failed(Duration::ZERO);
//! }
//! assert_eq!(circuit.admit(second).unwrap_err(), 9 * second);
//!
//! let probe = circuit.admit(10 * second).expect("one is let through");
//! assert!(circuit.admit(10 * second).is_err(), "and no other");
//! probe.succeeded();
//! assert!(circuit.admit(10 * second).is_ok());
//! ```

use std::{
    fmt,
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Response;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::{Clock, SystemClock},
    observe::Observe,
    rejection::{BoxError, Rejection},
};

/// Whether a neighbour may be asked. Clones share their state.
#[derive(Clone)]
pub struct Circuit(Arc<Inner>);

struct Inner {
    failures: NonZeroU32,
    open_for: Duration,
    observer: Box<dyn Observe<CircuitState> + Send + Sync>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Failures in a row.
    failed: u32,
    /// Since it opened: when the next attempt may be made.
    open_until: Option<Duration>,
    /// One is under way.
    probing: bool,
}

/// What an observer is told when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Everybody is let through.
    Closed,
    /// Nobody, or one at a time.
    Open,
}

impl Circuit {
    /// Opens after so many `failures` in a row, for `open_for`.
    pub fn new(failures: NonZeroU32, open_for: Duration) -> Self {
        Self::observed_by(failures, open_for, ())
    }

    /// As [`Self::new`]; tells `observer` when it opens and closes.
    pub fn observed_by(
        failures: NonZeroU32,
        open_for: Duration,
        observer: impl Observe<CircuitState> + Send + Sync + 'static,
    ) -> Self {
        Circuit(Arc::new(Inner { failures, open_for, observer: Box::new(observer), progress: Mutex::default() }))
    }

    /// Lets an attempt through at `now`.
    ///
    /// # Errors
    /// While open: how long to stay away.
    pub fn admit(&self, now: Duration) -> Result<Attempt, Duration> {
        let mut progress = self.0.progress();
        let probe = match progress.open_until {
            None => false,
            Some(until) if now < until => return Err(until - now),
            Some(_) if progress.probing => return Err(self.0.open_for),
            Some(_) => {
                progress.probing = true;
                true
            }
        };
        Ok(Attempt { circuit: self.clone(), probe })
    }

    /// Whether attempts are kept away, or were until a probe succeeds.
    pub fn is_open(&self) -> bool {
        self.0.progress().open_until.is_some()
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit").field("progress", &*self.0.progress()).finish_non_exhaustive()
    }
}

impl Inner {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Each change is of independent numbers: a panic elsewhere leaves nothing half done.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that was let through. Dropped without a word, it says nothing of the neighbour.
#[derive(Debug)]
#[must_use = "say how it ended"]
pub struct Attempt {
    circuit: Circuit,
    probe: bool,
}

impl Attempt {
    /// The neighbour answered.
    pub fn succeeded(self) {
        let closed = {
            let mut progress = self.circuit.0.progress();
            progress.failed = 0;
            progress.open_until.take().is_some()
        };
        if closed {
            self.circuit.0.observer.observe(&CircuitState::Closed);
        }
    }

    /// The neighbour did not answer, or not as it should; this was found out at `now`.
    pub fn failed(self, now: Duration) {
        let inner = &self.circuit.0;
        let opened = {
            let mut progress = inner.progress();
            progress.failed = progress.failed.saturating_add(1);
            let opened = progress.open_until.is_none() && progress.failed >= inner.failures.get();
            // Those that were let through before it opened, and fail later, do not keep it open for longer. Nor does a probe open it
            // again if one of those has succeeded meanwhile.
            if opened || (self.probe && progress.open_until.is_some()) {
                progress.open_until = Some(now.saturating_add(inner.open_for));
            }
            opened
        };
        if opened {
            inner.observer.observe(&CircuitState::Open);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.probe {
            self.circuit.0.progress().probing = false;
        }
    }
}

/// Puts a [`Circuit`] before an HTTP client. An error is a failure, such as that of a timeout inside, and so are 502, 503 and 504: nobody
/// is there. Any other answer shows that the neighbour is there, also a 500: what one request brings about is not to be held against
/// the others.
#[derive(Debug, Clone)]
pub struct CircuitLayer<C = SystemClock> {
    circuit: Circuit,
    /// What those hear who are kept away.
    refusal: Rejection,
    clock: C,
}

impl CircuitLayer {
    /// While `circuit` is open, refuses with `refusal`, which then says how long to stay away.
    pub fn new(circuit: Circuit, refusal: Rejection) -> Self {
        CircuitLayer { circuit, refusal, clock: SystemClock }
    }
}

impl<C> CircuitLayer<C> {
    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> CircuitLayer<D> {
        CircuitLayer { circuit: self.circuit, refusal: self.refusal, clock }
    }
}

impl<S, C: Clone> Layer<S> for CircuitLayer<C> {
    type Service = CircuitService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitService { inner, layer: self.clone() }
    }
}

/// The service that [`CircuitLayer`] makes.
#[derive(Debug, Clone)]
pub struct CircuitService<S, C = SystemClock> {
    inner: S,
    layer: CircuitLayer<C>,
}

impl<S, C, Req, B> Service<Req> for CircuitService<S, C>
where
    S: Service<Req, Response = Response<B>>,
    S::Error: Into<BoxError>,
    C: Clock,
{
    type Response = S::Response;
    /// The client's, or the [`Rejection`] while open.
    type Error = BoxError;
    type Future = CircuitFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let CircuitLayer { circuit, refusal, clock } = &self.layer;
        match circuit.admit(clock.monotonic()) {
            Ok(attempt) => {
                let attempt = Some((attempt, clock.clone()));
                CircuitFuture::Attempting { inner: self.inner.call(request), attempt }
            }
            Err(wait) => CircuitFuture::Open { refusal: Some(refusal.clone().retry_after(wait)) },
        }
    }
}

pin_project! {
    /// The future of [`CircuitService`].
    #[project = CircuitProj]
    #[derive(Debug)]
    pub enum CircuitFuture<F, C> {
        /// Let through.
        #[doc(hidden)]
        Attempting {
            #[pin]
            inner: F,
            attempt: Option<(Attempt, C)>,
        },
        /// Kept away.
        #[doc(hidden)]
        Open { refusal: Option<Rejection> },
    }
}

impl<F, C, B, E> Future for CircuitFuture<F, C>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    C: Clock,
{
    type Output = Result<Response<B>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CircuitProj::Attempting { inner, attempt } => {
                let result = ready!(inner.poll(cx)).map_err(Into::into);
                if let Some((attempt, clock)) = attempt.take() {
                    match &result {
                        Ok(response) if !matches!(response.status().as_u16(), 502..=504) => attempt.succeeded(),
                        _ => attempt.failed(clock.monotonic()),
                    }
                }
                Poll::Ready(result)
            }
            // `None`: polled again after completion, which futures need not bear.
            CircuitProj::Open { refusal } => {
                refusal.take().map_or(Poll::Pending, |refusal| Poll::Ready(Err(refusal.into())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const SECOND: Duration = Duration::from_secs(1);

    fn circuit() -> Circuit {
        Circuit::new(NonZeroU32::new(3).unwrap(), 10 * SECOND)
    }

    fn open(circuit: &Circuit, now: Duration) {
        for _ in 0..3 {
            circuit.admit(now).unwrap().failed(now);
        }
        assert!(circuit.is_open());
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let circuit = circuit();
        for _ in 0..10 {
            circuit.admit(SECOND).unwrap().failed(SECOND);
            circuit.admit(SECOND).unwrap().failed(SECOND);
            drop(circuit.admit(SECOND).unwrap());
            circuit.admit(SECOND).unwrap().succeeded();
        }
        assert!(!circuit.is_open());
        open(&circuit, SECOND);
    }

    #[test]
    fn a_probe_that_fails_keeps_it_open_as_long_again_and_one_that_is_dropped_makes_way() {
        let circuit = circuit();
        open(&circuit, Duration::ZERO);
        drop(circuit.admit(10 * SECOND).unwrap());
        circuit.admit(10 * SECOND).unwrap().failed(12 * SECOND);
        assert_eq!(circuit.admit(15 * SECOND).unwrap_err(), 7 * SECOND);
        circuit.admit(22 * SECOND).unwrap().succeeded();
        open(&circuit, 22 * SECOND);
    }

    /// A hundred callers that wait for one hang fail long after it opened.
    #[test]
    fn late_failures_do_not_keep_it_open() {
        let circuit = circuit();
        let late = circuit.admit(Duration::ZERO).unwrap();
        open(&circuit, Duration::ZERO);
        late.failed(9 * SECOND);
        assert!(circuit.admit(10 * SECOND).is_ok());
    }

    #[test]
    fn a_late_success_closes_it() {
        let circuit = circuit();
        let late = circuit.admit(Duration::ZERO).unwrap();
        open(&circuit, Duration::ZERO);
        late.succeeded();
        assert!(circuit.admit(SECOND).is_ok());
    }

    /// Or it would be open, and nobody told.
    #[test]
    fn a_probe_that_fails_after_a_late_success_is_one_failure() {
        let circuit = circuit();
        let late = circuit.admit(Duration::ZERO).unwrap();
        open(&circuit, Duration::ZERO);
        let probe = circuit.admit(10 * SECOND).unwrap();
        late.succeeded();
        probe.failed(11 * SECOND);
        assert!(!circuit.is_open());
    }

    #[test]
    fn changes_are_told_once() {
        #[derive(Clone, Default)]
        struct Count(Arc<[AtomicU32; 2]>);
        impl Observe<CircuitState> for Count {
            fn observe(&self, state: &CircuitState) {
                self.0[usize::from(*state == CircuitState::Open)].fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Count::default();
        let circuit = Circuit::observed_by(NonZeroU32::new(3).unwrap(), 10 * SECOND, count.clone());
        open(&circuit, Duration::ZERO);
        circuit.admit(10 * SECOND).unwrap().failed(10 * SECOND);
        circuit.admit(20 * SECOND).unwrap().succeeded();
        circuit.admit(20 * SECOND).unwrap().succeeded();
        assert_eq!([0, 1].map(|i| count.0[i].load(Ordering::Relaxed)), [1, 1]);
    }
}
