//! How often.
//!
//! [`RateLimitLayer`] charges every request against a quota. Whom and how much a [`Charge`] says, so the same layer can limit by
//! identity or by a header before the body is read, or by what a decoded payload holds. Where the count is kept a [`Limiter`] says:
//! in this process, or in Redis for several. An attempt that ends in a 5xx is given back, so that an outage of ours is not the
//! sender's; so is one that another rate limit inside refuses, so that neither trips the other.
//!
//! ```
//! use infogw_layers::rate_limit::{Due, Quota, RateLimitLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::rejection::Rejection> {
//! let one_a_minute = Quota::one_per(Duration::from_secs(60)).unwrap();
//! let by_host = move |request: &http::Request<()>| {
//!     Some(Due { key: request.headers().get("host")?.as_bytes().to_vec(), cost: 1, quota: one_a_minute })
//! };
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(by_host))
//!     .service(service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new(()))));
//! let request = || http::Request::builder().header("host", "a").body(()).unwrap();
//! assert!(service.clone().oneshot(request()).await.is_ok());
//! assert_eq!(service.oneshot(request()).await.unwrap_err().status(), 429);
//! # Ok(()) }
//! ```

pub mod limiter;
#[cfg(feature = "rate-limit-redis")]
pub mod shared;

use std::{
    fmt::Write as _,
    future::{Ready, ready},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Response;
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::{Clock, SystemClock},
    describe::{Describe, Row},
    observe::Observe,
    rejection::{Reason, Rejection},
};

pub use limiter::{Key, LocalLimiter, Permit, Quota, Refused};

const NAME: &str = "RateLimitLayer";

/// What a request owes.
#[derive(Debug, Clone)]
pub struct Due<K> {
    /// Who is charged. Kept as a keyed hash only.
    pub key: K,
    /// How much.
    pub cost: u32,
    /// Out of what.
    pub quota: Quota,
}

/// What a [`Charge`] says of a request.
#[derive(Debug, Clone)]
pub enum Charged<K> {
    /// It owes this.
    Due(Due<K>),
    /// It is not limited.
    Free,
    /// It cannot be told, and the request is refused.
    Unknown,
}

impl<K> From<Option<Due<K>>> for Charged<K> {
    fn from(due: Option<Due<K>>) -> Self {
        due.map_or(Charged::Unknown, Charged::Due)
    }
}

/// Says whom a request is charged to, and how much. Any `Fn(&R) -> Option<Due<K>>` does; its `None` is [`Charged::Unknown`].
pub trait Charge<R> {
    /// The key's bytes.
    type Key: AsRef<[u8]>;
    /// One of what is counted, as a sender reads it: "over the rate limit of 10 requests at once".
    const UNIT: &'static str = "request";
    /// What a sender can do whose request costs more than the quota ever has to give.
    const TOO_MUCH: &'static str = "send less at a time";

    /// What `request` owes.
    fn charge(&self, request: &R) -> Charged<Self::Key>;
}

impl<R, K: AsRef<[u8]>, F: Fn(&R) -> Option<Due<K>>> Charge<R> for F {
    type Key = K;

    fn charge(&self, request: &R) -> Charged<K> {
        self(request).into()
    }
}

/// One unit per request, charged to the cluster that was authorized.
#[cfg(feature = "authorize")]
#[derive(Debug, Clone, Copy)]
pub struct PerCluster(pub Quota);

#[cfg(feature = "authorize")]
impl<B> Charge<http::Request<B>> for PerCluster {
    type Key = ClusterKey;

    fn charge(&self, request: &http::Request<B>) -> Charged<ClusterKey> {
        ClusterKey::of(request).map(|key| Due { key, cost: 1, quota: self.0 }).into()
    }
}

/// One unit per sample of a decoded payload, native histograms among them, charged to the cluster that was authorized.
///
/// Charged are the samples that were received and decoded, whatever the label rules then drop: a sender is limited by what it sends,
/// and a reload of the rules changes nobody's limit. A payload of metadata alone costs nothing.
#[cfg(feature = "authorize")]
#[derive(Debug, Clone, Copy)]
pub struct SamplesPerCluster(pub Quota);

#[cfg(feature = "authorize")]
impl<P: crate::payload::SeriesSet> Charge<http::Request<P>> for SamplesPerCluster {
    type Key = ClusterKey;
    const UNIT: &'static str = "sample";
    const TOO_MUCH: &'static str = "set max_samples_per_send to at most that";

    fn charge(&self, request: &http::Request<P>) -> Charged<ClusterKey> {
        // What 32 bits do not hold is above every burst.
        let cost = u32::try_from(request.body().samples()).unwrap_or(u32::MAX);
        ClusterKey::of(request).map(|key| Due { key, cost, quota: self.0 }).into()
    }
}

/// A cluster as a key.
#[cfg(feature = "authorize")]
#[derive(Debug, Clone)]
pub struct ClusterKey(crate::authorize::ClusterId);

#[cfg(feature = "authorize")]
impl ClusterKey {
    /// The cluster that [`AuthorizeLayer`](crate::authorize::AuthorizeLayer) found.
    fn of<B>(request: &http::Request<B>) -> Option<Self> {
        let identity = request.extensions().get::<crate::authorize::Authorized<crate::authorize::Identity>>()?;
        Some(ClusterKey(identity.cluster.clone()))
    }
}

#[cfg(feature = "authorize")]
impl AsRef<[u8]> for ClusterKey {
    fn as_ref(&self) -> &[u8] {
        self.0.as_str().as_bytes()
    }
}

/// Where is counted what each key took.
///
/// The times are readings of one clock in this process, since any fixed start.
pub trait Limiter {
    /// What was granted, for a refund.
    type Permit;
    /// The decision.
    type Taking: Future<Output = Result<Self::Permit, Refused>>;
    /// Whether a refund changed anything.
    type GivingBack: Future<Output = bool> + Send + 'static;
    /// Whether decisions take time. If not, the layer's readiness is that of the service inside, and `Taking` is ready when first
    /// polled. If so, the layer gives back in a tokio task of its own: no answer waits for it, and no sender that hangs up ends it.
    /// The limiter bounds how many of these there are.
    const WAITS: bool;

    /// Takes `cost` out of what `quota` leaves `key` at `now`, all of it or nothing.
    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> Self::Taking;

    /// Gives back what an attempt took, so far as the next attempt of cost 1 is not allowed sooner than `floor` after it.
    fn give_back(&self, permit: Self::Permit, floor: Duration, now: Duration) -> Self::GivingBack;
}

impl<L: Limiter> Limiter for Arc<L> {
    type Permit = L::Permit;
    type Taking = L::Taking;
    type GivingBack = L::GivingBack;
    const WAITS: bool = L::WAITS;

    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> L::Taking {
        L::try_take(self, key, cost, quota, now)
    }

    fn give_back(&self, permit: L::Permit, floor: Duration, now: Duration) -> L::GivingBack {
        L::give_back(self, permit, floor, now)
    }
}

impl Limiter for LocalLimiter {
    type Permit = Permit;
    type Taking = Ready<Result<Permit, Refused>>;
    type GivingBack = Ready<bool>;
    const WAITS: bool = false;

    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> Self::Taking {
        ready(LocalLimiter::check(self, self.key(key), cost, quota, now))
    }

    fn give_back(&self, permit: Permit, floor: Duration, now: Duration) -> Self::GivingBack {
        ready(LocalLimiter::refund(self, permit, floor, now))
    }
}

/// What an observer of a [`RateLimitLayer`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimitEvent {
    /// A request came too soon.
    TooSoon,
    /// A request cost more than the quota ever has to give.
    TooMuch,
    /// An attempt that ended in a 5xx, or that a limit inside refused, was given back.
    Refunded,
}

/// Limits rates.
#[derive(Debug, Clone)]
pub struct RateLimitLayer<C, L = Arc<LocalLimiter>, O = (), K = SystemClock> {
    charge: C,
    limiter: L,
    refund_floor: Duration,
    observer: O,
    clock: K,
}

impl<C> RateLimitLayer<C> {
    /// Charges what `charge` says, in a limiter of its own in this process's memory.
    pub fn new(charge: C) -> Self {
        let limiter = Arc::new(LocalLimiter::new());
        RateLimitLayer { charge, limiter, refund_floor: Duration::from_secs(60), observer: (), clock: SystemClock }
    }
}

impl<C, L, O, K> RateLimitLayer<C, L, O, K> {
    /// Counts in `limiter`. Two limits need two limiters, or keys that hold the limit's name.
    pub fn limiter<M: Limiter>(self, limiter: M) -> RateLimitLayer<C, M, O, K> {
        let RateLimitLayer { charge, refund_floor, observer, clock, .. } = self;
        RateLimitLayer { charge, limiter, refund_floor, observer, clock }
    }

    /// A refunded attempt keeps the next one of cost 1 away for `floor`: 60 seconds unless set.
    ///
    /// That is for quotas of one in several minutes: an outage then does not become a storm of attempts. A quota that allows
    /// another attempt within `floor` gives nothing back; with a floor of zero, all is given back, however many attempts of one key
    /// are under way.
    #[must_use]
    pub fn refund_floor(self, floor: Duration) -> Self {
        RateLimitLayer { refund_floor: floor, ..self }
    }

    /// Tells `observer` of refusals and refunds.
    pub fn observed_by<P>(self, observer: P) -> RateLimitLayer<C, L, P, K> {
        let RateLimitLayer { charge, limiter, refund_floor, clock, .. } = self;
        RateLimitLayer { charge, limiter, refund_floor, observer, clock }
    }

    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> RateLimitLayer<C, L, O, D> {
        let RateLimitLayer { charge, limiter, refund_floor, observer, .. } = self;
        RateLimitLayer { charge, limiter, refund_floor, observer, clock }
    }
}

impl<S, C: Clone, L: Clone, O: Clone, K: Clone> Layer<S> for RateLimitLayer<C, L, O, K> {
    type Service = RateLimit<S, C, L, O, K>;

    /// Services of clones of one layer share one limiter.
    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}

/// The service that [`RateLimitLayer`] makes.
#[derive(Debug, Clone)]
pub struct RateLimit<S, C, L = Arc<LocalLimiter>, O = (), K = SystemClock> {
    inner: S,
    layer: RateLimitLayer<C, L, O, K>,
}

impl<S, C, L, O, K, R, B> Service<R> for RateLimit<S, C, L, O, K>
where
    C: Charge<R>,
    L: Limiter + Clone,
    O: Observe<RateLimitEvent> + Clone + Send + 'static,
    K: Clock,
    S: Service<R, Response = Response<B>> + Clone,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = RateLimitFuture<S, L, O, K, R>;

    /// That of the service inside where the limiter decides at once. Where it waits, always ready: asked before the decision, the
    /// service inside would hold a permit of a concurrency limit meanwhile.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        if L::WAITS { Poll::Ready(Ok(())) } else { self.inner.poll_ready(cx).map_err(Into::into) }
    }

    fn call(&mut self, request: R) -> Self::Future {
        let RateLimitLayer { charge, limiter, refund_floor, observer, clock } = &self.layer;
        let clone = self.inner.clone();
        // The one that is ready, where readiness was asked for.
        let inner = if L::WAITS { clone } else { mem::replace(&mut self.inner, clone) };
        let state = match charge.charge(&request) {
            Charged::Free => calling::<S, L, R>(inner, request),
            Charged::Unknown => State::refused(Rejection::internal("nobody can be charged for this request").by(NAME)),
            Charged::Due(Due { key, cost, quota }) => State::Taking {
                taking: limiter.try_take(key.as_ref(), cost, &quota, clock.monotonic()),
                rest: Some(Rest { inner, request, cost, quota, refusal: refusal::<C, R> }),
            },
        };
        let refund = Refund { limiter: limiter.clone(), permit: None, floor: *refund_floor, clock: clock.clone() };
        RateLimitFuture { state, refund, observer: observer.clone() }
    }
}

impl<S: Describe<R>, C, L, O, K, R> Describe<R> for RateLimit<S, C, L, O, K> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<R>(NAME, &[Reason::RateLimited, Reason::OverBurst, Reason::Internal]));
        S::describe(rows);
    }
}

/// The answer to a refused attempt, in the charge's words.
fn refusal<C: Charge<R>, R>(refused: &Refused, cost: u32, quota: &Quota) -> Rejection {
    let (unit, burst) = (C::UNIT, quota.burst());
    let s = if burst.get() == 1 { "" } else { "s" };
    match refused {
        Refused::Later { retry_after } => {
            let period = quota.period();
            let earned = match period.as_secs() {
                // A rate of 3, say, has a period that is rounded up.
                0 => {
                    let rate = format!("{:.1}", 1.0 / period.as_secs_f64());
                    format!("{} more a second", rate.trim_end_matches(".0"))
                }
                _ => format!("one more every {period:?}"),
            };
            let mut detail = format!("over the rate limit of {burst} {unit}{s} at once and {earned}");
            if cost > 1 {
                // Writing to a String cannot fail.
                let _ = write!(detail, "; this is {cost} {unit}s");
            }
            Rejection::new(Reason::RateLimited, detail).retry_after(*retry_after)
        }
        Refused::Never { cost, .. } => Rejection::new(
            Reason::OverBurst,
            format!(
                "{cost} {unit}s in one request are more than the {burst} that the rate limit allows at once; {}",
                C::TOO_MUCH
            ),
        ),
    }
}

fn calling<S: Service<R>, L: Limiter, R>(mut inner: S, request: R) -> State<S, L, R> {
    if L::WAITS {
        State::Waiting { inner: Oneshot::new(inner, request) }
    } else {
        State::Calling { inner: inner.call(request) }
    }
}

/// What a check decides about.
struct Rest<S, R> {
    inner: S,
    request: R,
    cost: u32,
    quota: Quota,
    refusal: fn(&Refused, u32, &Quota) -> Rejection,
}

/// What a refund takes.
struct Refund<L: Limiter, K> {
    limiter: L,
    permit: Option<L::Permit>,
    floor: Duration,
    clock: K,
}

pin_project! {
    /// The future of [`RateLimit`]. It gives an attempt back that ends in a 5xx or at a limit inside. One that is cancelled stays charged: a client that
    /// hangs up gets nothing free.
    pub struct RateLimitFuture<S: Service<R>, L: Limiter, O, K, R> {
        #[pin]
        state: State<S, L, R>,
        refund: Refund<L, K>,
        observer: O,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<R>, L: Limiter, R> {
        Taking {
            #[pin]
            taking: L::Taking,
            rest: Option<Rest<S, R>>,
        },
        /// The service inside was ready.
        Calling {
            #[pin]
            inner: S::Future,
        },
        /// The service inside has yet to become ready.
        Waiting {
            #[pin]
            inner: Oneshot<S, R>,
        },
        GivingBack {
            #[pin]
            giving_back: L::GivingBack,
            result: Option<Result<S::Response, Rejection>>,
        },
        Refused {
            rejection: Option<Rejection>,
        },
    }
}

impl<S: Service<R>, L: Limiter, R> State<S, L, R> {
    fn refused(rejection: Rejection) -> Self {
        State::Refused { rejection: Some(rejection) }
    }
}

impl<S, L, O, K, R, B> Future for RateLimitFuture<S, L, O, K, R>
where
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Rejection>,
    L: Limiter,
    O: Observe<RateLimitEvent> + Clone + Send + 'static,
    K: Clock,
{
    type Output = Result<S::Response, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let result = match this.state.as_mut().project() {
                StateProj::Taking { taking, rest } => {
                    let next = match (ready!(taking.poll(cx)), rest.take()) {
                        (Ok(permit), Some(Rest { inner, request, .. })) => {
                            this.refund.permit = Some(permit);
                            calling(inner, request)
                        }
                        (Err(refused), Some(Rest { cost, quota, refusal, .. })) => {
                            this.observer.observe(&match refused {
                                Refused::Later { .. } => RateLimitEvent::TooSoon,
                                Refused::Never { .. } => RateLimitEvent::TooMuch,
                            });
                            State::refused(refusal(&refused, cost, &quota).by(NAME))
                        }
                        // Polled again after completion, which futures need not bear.
                        (_, None) => return Poll::Pending,
                    };
                    this.state.set(next);
                    continue;
                }
                StateProj::Calling { inner } => ready!(inner.poll(cx)).map_err(Into::into),
                StateProj::Waiting { inner } => ready!(inner.poll(cx)).map_err(Into::into),
                StateProj::GivingBack { giving_back, result } => {
                    if ready!(giving_back.poll(cx)) {
                        this.observer.observe(&RateLimitEvent::Refunded);
                    }
                    return result.take().map_or(Poll::Pending, Poll::Ready);
                }
                StateProj::Refused { rejection } => {
                    return rejection.take().map_or(Poll::Pending, |rejection| Poll::Ready(Err(rejection)));
                }
            };
            let is_free = match &result {
                Ok(response) => response.status().is_server_error(),
                // By a limit inside: what one refuses, the other does not count.
                Err(rejection) => {
                    rejection.status().is_server_error()
                        || matches!(rejection.reason(), Reason::RateLimited | Reason::OverBurst)
                }
            };
            let Refund { limiter, permit, floor, clock } = this.refund;
            let Some(permit) = permit.take().filter(|_| is_free) else {
                return Poll::Ready(result);
            };
            let giving_back = limiter.give_back(permit, *floor, clock.monotonic());
            if L::WAITS {
                let observer = this.observer.clone();
                tokio::spawn(async move {
                    if giving_back.await {
                        observer.observe(&RateLimitEvent::Refunded);
                    }
                });
                return Poll::Ready(result);
            }
            this.state.set(State::GivingBack { giving_back, result: Some(result) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn a_refusal_says_what_was_configured() {
        type ByAnything = fn(&()) -> Option<Due<[u8; 0]>>;
        for (rate, earned) in [
            (0.5, "one more every 2s"),
            (1.0, "one more every 1s"),
            (1.5, "1.5 more a second"),
            (2.5, "2.5 more a second"),
            (3.0, "3 more a second"),
            (7.0, "7 more a second"),
            (10.0, "10 more a second"),
            (10_000.0, "10000 more a second"),
        ] {
            let period = Duration::from_nanos((1e9_f64 / rate).ceil() as u64);
            let quota = Quota::new(period, NonZeroU32::MIN).unwrap();
            let refused = Refused::Later { retry_after: Duration::from_millis(100) };
            let said = format!("over the rate limit of 1 request at once and {earned}");
            assert_eq!(refusal::<ByAnything, ()>(&refused, 1, &quota).detail(), said);
            let said = format!("{said}; this is 7 requests");
            assert_eq!(refusal::<ByAnything, ()>(&refused, 7, &quota).detail(), said);
        }
    }
}
