//! What every layer here keeps to, as checks that run over any layer.
//!
//! tower's types cannot say it: that a service is called only once it was ready, that readiness is not held while something else
//! is waited for, that clones do not use up each other's readiness, that a future can be dropped at any await, that a refusal
//! costs the service inside nothing. [`Conformance`] checks it around an inner service of its own, which counts what happens to
//! it and hands out readiness as permits, as a concurrency limit does.
//!
//! ```
//! use infogw_layers::{conformance::{Conformance, pending}, rejection::{Reason, Rejection}};
//! use tower::{BoxError, filter::AsyncFilterLayer};
//!
//! /// Refuses `DELETE`, after some thought.
//! async fn no_deletes(request: http::Request<()>) -> Result<http::Request<()>, BoxError> {
//!     pending(2).await;
//!     if request.method() == http::Method::DELETE {
//!         return Err(Rejection::new(Reason::Method, "use POST").into());
//!     }
//!     Ok(request)
//! }
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let conformance = Conformance::computing(
//!     AsyncFilterLayer::new(no_deletes),
//!     || http::Request::new(()),
//!     || http::Response::new(()),
//! )
//! .refuses(Reason::Method, || http::Request::delete("/").body(()).unwrap());
//! conformance.readiness().await;
//! conformance.clones().await;
//! conformance.cancellation().await;
//! conformance.refusals().await;
//! // All of these at once, where the service can also describe itself: conformance.check().await
//! # }
//! ```

mod probe;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{sync::Notify, task::yield_now, time::timeout};
use tower_layer::Layer;
use tower_service::Service;

pub use self::probe::Probe;
use self::probe::{INSIDE_FAILED, Inside};
use crate::{
    describe::Describe,
    rejection::{Reason, Rejection},
};

/// A layer, the requests to check it with, and the checks. They panic where the layer does not keep to one, and run in a tokio
/// runtime with its timer on.
///
/// A layer that needs others to be checked at all, such as one that looks for a witness, is checked as a stack with them:
/// `ServiceBuilder::into_inner` gives a layer.
pub struct Conformance<L, Req, Res, Out> {
    layer: L,
    readiness: Readiness,
    passing: Request<Req>,
    refused: Vec<(Reason, Request<Req>)>,
    stalling: Option<Request<Req>>,
    answer: Arc<dyn Fn() -> Res + Send + Sync>,
    refusal_in: fn(&Out) -> Option<Reason>,
    told: Vec<(&'static str, Reason)>,
}

type Request<Req> = Box<dyn Fn() -> Req>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Own,
    Forwarded,
}

/// What becomes of the second of two requests that are alike, where state is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// It is refused.
    Refused(Reason),
    /// It is answered without the service inside.
    Answered,
}

impl<L, Req, Res, Out> Conformance<L, Req, Res, Out>
where
    L: Layer<Probe<Res>>,
    L::Service: Service<Req, Response = Out> + Clone,
    <L::Service as Service<Req>>::Error: Into<Rejection>,
{
    /// A layer that waits for something before it calls inside: it is always ready, and asks for the readiness inside when it gets
    /// there. `passing` makes requests that reach the inner service, which gives `answer`.
    pub fn waiting(
        layer: L,
        passing: impl Fn() -> Req + 'static,
        answer: impl Fn() -> Res + Send + Sync + 'static,
    ) -> Self {
        Self::new(layer, Readiness::Own, passing, answer)
    }

    /// A layer that calls inside at once or not at all: its readiness is that of the service inside.
    pub fn computing(
        layer: L,
        passing: impl Fn() -> Req + 'static,
        answer: impl Fn() -> Res + Send + Sync + 'static,
    ) -> Self {
        Self::new(layer, Readiness::Forwarded, passing, answer)
    }

    fn new(
        layer: L,
        readiness: Readiness,
        passing: impl Fn() -> Req + 'static,
        answer: impl Fn() -> Res + Send + Sync + 'static,
    ) -> Self {
        let (passing, answer) = (Box::new(passing), Arc::new(answer));
        Conformance {
            layer,
            readiness,
            passing,
            refused: Vec::new(),
            stalling: None,
            answer,
            refusal_in: |_| None,
            told: Vec::new(),
        }
    }

    /// The layer refuses what `request` makes, with `reason`.
    #[must_use]
    pub fn refuses(mut self, reason: Reason, request: impl Fn() -> Req + 'static) -> Self {
        self.refused.push((reason, Box::new(request)));
        self
    }

    /// What `request` makes never gets as far as the inner service: a body without end, an authorizer that does not answer.
    #[must_use]
    pub fn stalls_on(self, request: impl Fn() -> Req + 'static) -> Self {
        Conformance { stalling: Some(Box::new(request)), ..self }
    }

    /// How to tell refusals among responses, for a layer that turns errors into them.
    #[must_use]
    pub fn refusal_in(self, refusal_in: fn(&Out) -> Option<Reason>) -> Self {
        Conformance { refusal_in, ..self }
    }

    /// It also tells the sender what `layer`, which is outside it, refused of a payload with `reason`.
    #[must_use]
    pub fn tells_of(mut self, layer: &'static str, reason: Reason) -> Self {
        self.told.push((layer, reason));
        self
    }

    /// All that holds for every layer.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn check(&self)
    where
        L::Service: Describe<Req>,
    {
        self.readiness().await;
        self.clones().await;
        self.cancellation().await;
        self.refusals().await;
        self.description().await;
    }

    /// A layer that waits is ready at once and holds no readiness of the inner service while it waits. One that computes is ready
    /// when the inner service is, and not ready or failed when that is. Either way no error inside is lost.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn readiness(&self) {
        let (inside, mut service) = self.service();
        inside.admit(0);
        let ready = poll_now(&mut service);
        match self.readiness {
            Readiness::Own => {
                assert!(matches!(ready, Poll::Ready(Ok(()))), "a layer that waits is ready when nothing inside is");
                assert_eq!(inside.admitted(), 0, "it holds the inner service's readiness before it has a request");
                // Ready by itself, it has to wait inside its future, and to be woken there.
                let mut future = pin!(service.call((self.passing)()));
                let early = drive(future.as_mut(), Some(50)).await;
                assert!(early.is_none(), "it answered without the inner service, or called it before it was ready");
                assert_eq!(inside.calls(), 0, "it called the inner service before that was ready");
                inside.admit(1);
                self.assert_passed(drive(future, None).await);
            }
            Readiness::Forwarded => {
                assert!(ready.is_pending(), "a layer that computes is not ready when the inner service is not");
                inside.admit(1);
                assert!(matches!(poll_now(&mut service), Poll::Ready(Ok(()))), "ready as the inner service is");
                assert_eq!(inside.admitted(), 1, "it says it is ready but never asked the inner service");
                self.assert_passed(drive(pin!(service.call((self.passing)())), None).await);
            }
        }
        inside.assert_sound();

        // An inner service whose readiness fails, and one whose call fails.
        let (inside, mut service) = self.service();
        inside.fail_readiness(true);
        match (self.readiness, poll_now(&mut service)) {
            (Readiness::Forwarded, Poll::Ready(Err(error))) => {
                let rejection = error.into();
                assert_eq!(rejection.reason(), INSIDE_FAILED);
                assert_eq!(rejection.layer(), Some(Probe::<Res>::NAME), "it says that it refused what failed inside");
            }
            (Readiness::Forwarded, _) => panic!("the inner service's readiness failed, and that was lost"),
            (Readiness::Own, _) => {
                let outcome = drive(pin!(service.call((self.passing)())), None).await;
                assert_eq!(self.reason(outcome), Some(INSIDE_FAILED), "the inner service's readiness failed");
            }
        }
        inside.fail_readiness(false);
        inside.fail_calls(true);
        let mut service = self.layer.layer(inside.probe(&self.answer));
        let outcome = self.serve(&mut service, (self.passing)()).await;
        if let Some(Err(error)) = outcome {
            let rejection = error.into();
            assert_eq!(rejection.reason(), INSIDE_FAILED, "the call of the inner service failed");
            assert_eq!(rejection.layer(), Some(Probe::<Res>::NAME), "it says that it refused what failed inside");
        } else {
            assert_eq!(self.reason(outcome), Some(INSIDE_FAILED), "the call of the inner service failed");
        }
        inside.assert_sound();

        if let Some(stalling) = &self.stalling {
            let (inside, mut service) = self.service();
            inside.admit(1);
            let mut another = service.clone();
            assert!(poll_now(&mut service).is_ready());
            let mut stalled = pin!(service.call(stalling()));
            for _ in 0..50 {
                assert!(poll_once(stalled.as_mut()).is_pending(), "what was to stall did not");
            }
            assert_eq!(
                inside.admitted(),
                0,
                "it holds the inner service's readiness while it waits for something else"
            );
            self.assert_passed(self.serve(&mut another, (self.passing)()).await);
            assert_eq!(inside.calls(), 1);
            inside.assert_sound();
        }
    }

    /// A clone has no part in the readiness of the service it was made from, and a future none in the life of its service.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn clones(&self) {
        let (inside, mut service) = self.service();
        inside.admit(1);
        assert!(poll_now(&mut service).is_ready());
        let mut clone = service.clone();
        if self.readiness == Readiness::Forwarded {
            assert!(poll_now(&mut clone).is_pending(), "the clone is ready by the readiness of the original");
        }
        // The original is still ready, and the clone becomes so once the original is done.
        self.assert_passed(drive(pin!(service.call((self.passing)())), None).await);
        drop(service);
        self.assert_passed(self.serve(&mut clone, (self.passing)()).await);
        self.assert_passed(self.serve(&mut clone, (self.passing)()).await);
        assert_eq!(inside.calls(), 3);

        let future = {
            ready(&mut clone).await;
            clone.call((self.passing)())
        };
        drop(clone);
        self.assert_passed(drive(pin!(future), None).await);
        inside.assert_idle();
    }

    /// Futures can be dropped between any two polls, and services between readiness and call: nothing stays behind inside, and the
    /// next request is served, by the same service and by clones.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn cancellation(&self) {
        let (inside, mut service) = self.service();
        inside.admit(1);
        inside.hesitate(2);
        let fresh = service.clone();

        let mut unused = service.clone();
        ready(&mut unused).await;
        drop(unused);
        inside.assert_idle();

        for requests in self.refused.iter().map(|(_, request)| request).chain([&self.passing]).chain(&self.stalling) {
            for polls in 0..100 {
                ready(&mut service).await;
                let outcome = drive(pin!(service.call(requests())), Some(polls)).await;
                inside.assert_none_in_flight();
                let done = outcome.is_some();
                // The service may be ready once more, and so may hold what it needs for that; a clone has nothing to wait for.
                drop(outcome);
                self.assert_passed(self.serve(&mut service, (self.passing)()).await);
                drop(std::mem::replace(&mut service, fresh.clone()));
                inside.assert_idle();
                self.assert_passed(self.serve(&mut fresh.clone(), (self.passing)()).await);
                inside.assert_idle();
                if done {
                    break;
                }
            }
        }
    }

    /// What is refused never reaches the inner service, is refused for the reason that was foretold, and leaves the service fit
    /// for the next request.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn refusals(&self) {
        let (inside, mut service) = self.service();
        // A refusal that loses the readiness it was given would block the next request.
        inside.admit(1);
        for (reason, request) in &self.refused {
            let before = inside.calls();
            let outcome = self.serve(&mut service, request()).await;
            assert_eq!(self.reason(outcome), Some(*reason), "refused for another reason than foretold, or not at all");
            assert_eq!(
                inside.calls(),
                before,
                "the inner service was called for a request that was refused ({reason})"
            );
            self.assert_passed(self.serve(&mut service, (self.passing)()).await);
            assert_eq!(inside.calls(), before + 1);
            inside.assert_sound();
        }
    }

    /// The layer's rows end with the service inside. Whatever it was seen to refuse with bears the name of one of them, and a reason
    /// that this row lists.
    ///
    /// # Panics
    /// If the layer does not conform.
    pub async fn description(&self)
    where
        L::Service: Describe<Req>,
    {
        let mut rows = Vec::new();
        <L::Service as Describe<Req>>::describe(&mut rows);
        let inner = rows.pop();
        assert_eq!(inner.map(|row| row.layer), Some(Probe::<Res>::NAME), "the services inside are described last");
        assert!(!rows.is_empty(), "the layer does not describe itself");
        let (_, mut service) = self.service();
        for (_, request) in &self.refused {
            let Some(Err(error)) = self.serve(&mut service, request()).await else { continue };
            let rejection = error.into();
            let reason = rejection.reason();
            let Some(layer) = rejection.layer() else {
                panic!("refuses with {reason:?}, and does not say which layer it is")
            };
            let described = rows.iter().any(|row| row.layer == layer && row.reasons.contains(&reason));
            assert!(
                described || self.told.contains(&(layer, reason)),
                "refuses as {layer} with {reason:?}, which its description does not name"
            );
        }
    }

    /// State is shared by whatever must share it: of two requests that are alike the second is treated as `second` says, whether it
    /// comes to the same service, to a clone, or to another service of the same layer. `alike` makes a pair.
    ///
    /// # Panics
    /// If the state is not shared.
    pub async fn sharing(&self, alike: impl Fn() -> [Req; 2], second: Second) {
        let (inside, service) = self.service();
        let same = service.clone();
        let elsewhere = self.layer.layer(inside.probe(&self.answer));
        for mut other in [same, elsewhere] {
            let [one, two] = alike();
            self.assert_passed(self.serve(&mut service.clone(), one).await);
            let before = inside.calls();
            let outcome = self.reason(self.serve(&mut other, two).await);
            let expected = match second {
                Second::Refused(reason) => Some(reason),
                Second::Answered => None,
            };
            assert_eq!((outcome, inside.calls()), (expected, before), "state is not shared");
        }
    }

    fn service(&self) -> (Inside, L::Service) {
        let inside = Inside::default();
        let service = self.layer.layer(inside.probe(&self.answer));
        (inside, service)
    }

    async fn serve(&self, service: &mut L::Service, request: Req) -> Outcome<L::Service, Req> {
        ready(service).await;
        drive(pin!(service.call(request)), None).await
    }

    fn reason(&self, outcome: Option<Result<Out, impl Into<Rejection>>>) -> Option<Reason> {
        match outcome {
            Some(Ok(response)) => (self.refusal_in)(&response),
            Some(Err(error)) => Some(error.into().reason()),
            None => panic!("the request was not answered"),
        }
    }

    fn assert_passed(&self, outcome: Option<Result<Out, impl Into<Rejection>>>) {
        assert_eq!(self.reason(outcome), None, "a request that has to pass was refused");
    }
}

type Outcome<S, Req> = Option<Result<<S as Service<Req>>::Response, <S as Service<Req>>::Error>>;

/// Is not ready at the first `times` polls, and wakes its task each time: for authorizers and bodies that take a while.
pub async fn pending(mut times: u32) {
    poll_fn(|cx| match times {
        0 => Poll::Ready(()),
        _ => {
            times -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

async fn ready<S: Service<Req>, Req>(service: &mut S) {
    let ready = drive(pin!(poll_fn(|cx| service.poll_ready(cx))), None).await;
    assert!(matches!(ready, Some(Ok(()))), "the service does not become ready");
}

fn poll_now<S: Service<Req>, Req>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls as an executor does, only when woken. With a number of `polls`, that many and no more, woken or not: both is allowed.
async fn drive<F: Future>(mut future: Pin<&mut F>, polls: Option<u32>) -> Option<F::Output> {
    /// Far longer than anything here takes; a paused clock jumps there at once.
    const LOST: Duration = Duration::from_secs(10);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut left = polls.unwrap_or(u32::MAX);
    while left > 0 {
        left -= 1;
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        match polls {
            Some(_) => yield_now().await,
            None => assert!(
                timeout(LOST, woken.0.notified()).await.is_ok(),
                "the future is pending, and nothing woke its task"
            ),
        }
    }
    None
}

#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}
