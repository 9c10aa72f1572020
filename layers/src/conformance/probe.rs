//! The service inside: it hands out readiness as permits and counts what becomes of them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tower_service::Service;

use crate::{
    describe::{Describe, Row},
    rejection::{Reason, Rejection},
};

/// What it fails with when it is told to.
pub(super) const INSIDE_FAILED: Reason = Reason::UpstreamUnavailable;

/// The service that a layer is checked around. Takes any request.
pub struct Probe<Res> {
    inside: Inside,
    answer: Arc<dyn Fn() -> Res + Send + Sync>,
    permit: Option<Permit>,
    hesitated: u32,
}

/// As for any service, a clone is not ready because the original is.
impl<Res> Clone for Probe<Res> {
    fn clone(&self) -> Self {
        self.inside.probe(&self.answer)
    }
}

impl<Res> Probe<Res> {
    pub(super) const NAME: &'static str = "Probe";

    fn failure(detail: &'static str) -> Rejection {
        Rejection::new(INSIDE_FAILED, detail).by(Self::NAME)
    }
}

impl<Res, Req> Service<Req> for Probe<Res> {
    type Response = Res;
    type Error = Rejection;
    type Future = ProbeFuture<Res, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        if self.permit.is_some() {
            return Poll::Ready(Ok(()));
        }
        let mut counts = self.inside.lock();
        if counts.readiness_fails {
            return Poll::Ready(Err(Self::failure("the inner service is broken")));
        }
        if self.hesitated < counts.hesitation {
            self.hesitated += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if counts.admitted >= counts.capacity {
            counts.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        counts.admitted += 1;
        self.permit = Some(Permit(self.inside.clone()));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let permit = self.permit.take();
        let answer = (self.answer)();
        self.hesitated = 0;
        let mut counts = self.inside.lock();
        counts.calls += 1;
        counts.in_flight += 1;
        counts.unready_calls += usize::from(permit.is_none());
        let outcome = match counts.calls_fail {
            true => Err(Self::failure("the inner service failed")),
            false => Ok(answer),
        };
        let left = counts.hesitation;
        ProbeFuture { outcome: Some(outcome), left, _request: request, _permit: permit, inside: self.inside.clone() }
    }
}

impl<Res, Req> Describe<Req> for Probe<Res> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Req>(Self::NAME, &[]));
    }
}

/// The future of [`Probe`]. Holds the request and the permit until it is dropped.
pub struct ProbeFuture<Res, Req> {
    outcome: Option<Result<Res, Rejection>>,
    left: u32,
    _request: Req,
    _permit: Option<Permit>,
    inside: Inside,
}

/// Nothing in it is ever pinned.
impl<Res, Req> Unpin for ProbeFuture<Res, Req> {}

impl<Res, Req> Future for ProbeFuture<Res, Req> {
    type Output = Result<Res, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left > 0 {
            self.left -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                self.inside.lock().late_polls += 1;
                Poll::Pending
            }
        }
    }
}

impl<Res, Req> Drop for ProbeFuture<Res, Req> {
    fn drop(&mut self) {
        self.inside.lock().in_flight -= 1;
    }
}

/// What is known about all probes of one check, and what they shall do.
#[derive(Clone, Default)]
pub(super) struct Inside(Arc<Mutex<Counts>>);

struct Counts {
    capacity: usize,
    admitted: usize,
    waiting: Vec<Waker>,
    hesitation: u32,
    readiness_fails: bool,
    calls_fail: bool,
    calls: usize,
    in_flight: usize,
    unready_calls: usize,
    late_polls: usize,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            capacity: usize::MAX,
            admitted: 0,
            waiting: Vec::new(),
            hesitation: 0,
            readiness_fails: false,
            calls_fail: false,
            calls: 0,
            in_flight: 0,
            unready_calls: 0,
            late_polls: 0,
        }
    }
}

impl Inside {
    pub(super) fn probe<Res>(&self, answer: &Arc<dyn Fn() -> Res + Send + Sync>) -> Probe<Res> {
        Probe { inside: self.clone(), answer: Arc::clone(answer), permit: None, hesitated: 0 }
    }

    /// Lets at most `capacity` probes be ready or called at a time.
    pub(super) fn admit(&self, capacity: usize) {
        let mut counts = self.lock();
        counts.capacity = capacity;
        counts.waiting.drain(..).for_each(Waker::wake);
    }

    /// Makes each readiness and each call take `polls` polls more.
    pub(super) fn hesitate(&self, polls: u32) {
        self.lock().hesitation = polls;
    }

    pub(super) fn fail_readiness(&self, fail: bool) {
        self.lock().readiness_fails = fail;
    }

    pub(super) fn fail_calls(&self, fail: bool) {
        self.lock().calls_fail = fail;
    }

    /// Probes that are ready, and calls whose future is still there.
    pub(super) fn admitted(&self) -> usize {
        self.lock().admitted
    }

    pub(super) fn calls(&self) -> usize {
        self.lock().calls
    }

    /// tower's contract: a service is called once for each time that it was ready; a future is not polled once it is done.
    pub(super) fn assert_sound(&self) {
        let counts = self.lock();
        let (unready, late) = (counts.unready_calls, counts.late_polls);
        drop(counts);
        assert_eq!(unready, 0, "the inner service was called without having been ready");
        assert_eq!(late, 0, "the inner service's future was polled again after it was done");
    }

    pub(super) fn assert_none_in_flight(&self) {
        let in_flight = self.lock().in_flight;
        assert_eq!(in_flight, 0, "a future was dropped, and that of the inner service was not");
    }

    /// No service and no future is left that could hold anything.
    pub(super) fn assert_idle(&self) {
        self.assert_sound();
        self.assert_none_in_flight();
        let admitted = self.admitted();
        assert_eq!(admitted, 0, "readiness of the inner service was kept after what asked for it was gone");
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One admission; given back when it is dropped.
struct Permit(Inside);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        counts.admitted -= 1;
        let waiting = std::mem::take(&mut counts.waiting);
        drop(counts);
        waiting.into_iter().for_each(Waker::wake);
    }
}
