//! How often.
//!
//! [`RateLimitLayer`] charges every request against a quota, before its body is read. Whom and how much a [`Charge`] says, so the
//! same layer can limit by identity, by a header, or by what a decoded payload holds. An attempt that ends in a 5xx is given back,
//! down to one attempt a minute, so that an outage of ours is not the sender's.
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

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Response;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::{Clock, SystemClock},
    describe::{Describe, Row},
    future::CallOrRefuse,
    rejection::{Reason, Rejection},
};

pub use limiter::{Key, LocalLimiter, Permit, Quota, Refused};

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

/// Says whom a request is charged to, and how much. Any `Fn(&R) -> Option<Due<K>>` does.
pub trait Charge<R> {
    /// The key's bytes.
    type Key: AsRef<[u8]>;

    /// What `request` owes. `None` means that it cannot be told, and the request is refused.
    fn charge(&self, request: &R) -> Option<Due<Self::Key>>;
}

impl<R, K: AsRef<[u8]>, F: Fn(&R) -> Option<Due<K>>> Charge<R> for F {
    type Key = K;

    fn charge(&self, request: &R) -> Option<Due<K>> {
        self(request)
    }
}

/// One unit per request, charged to the cluster that was authorized.
#[cfg(feature = "authorize")]
#[derive(Debug, Clone, Copy)]
pub struct PerCluster(pub Quota);

#[cfg(feature = "authorize")]
impl<B> Charge<http::Request<B>> for PerCluster {
    type Key = ClusterKey;

    fn charge(&self, request: &http::Request<B>) -> Option<Due<ClusterKey>> {
        let identity = request.extensions().get::<crate::authorize::Authorized<crate::authorize::Identity>>()?;
        Some(Due { key: ClusterKey(identity.cluster.clone()), cost: 1, quota: self.0 })
    }
}

/// A cluster as a key.
#[cfg(feature = "authorize")]
#[derive(Debug, Clone)]
pub struct ClusterKey(crate::authorize::ClusterId);

#[cfg(feature = "authorize")]
impl AsRef<[u8]> for ClusterKey {
    fn as_ref(&self) -> &[u8] {
        self.0.as_str().as_bytes()
    }
}

/// Limits rates.
#[derive(Debug, Clone)]
pub struct RateLimitLayer<C, K = SystemClock> {
    /// None: nothing is limited.
    charge: Option<C>,
    limiter: Arc<LocalLimiter>,
    refund_floor: Duration,
    clock: K,
}

impl<C> RateLimitLayer<C> {
    /// Charges what `charge` says, in a limiter of its own.
    pub fn new(charge: C) -> Self {
        Self::optional(Some(charge))
    }

    /// As [`Self::new`]; without a charge everything passes, for a limit that can be turned off.
    pub fn optional(charge: Option<C>) -> Self {
        let limiter = Arc::new(LocalLimiter::new());
        RateLimitLayer { charge, limiter, refund_floor: Duration::from_secs(60), clock: SystemClock }
    }
}

impl<C, K> RateLimitLayer<C, K> {
    /// Reads the time from `clock`.
    pub fn clock<L: Clock>(self, clock: L) -> RateLimitLayer<C, L> {
        let RateLimitLayer { charge, limiter, refund_floor, .. } = self;
        RateLimitLayer { charge, limiter, refund_floor, clock }
    }
}

impl<S, C: Clone, K: Clone> Layer<S> for RateLimitLayer<C, K> {
    type Service = RateLimit<S, C, K>;

    /// Services of clones of one layer share one limiter.
    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, layer: self.clone() }
    }
}

/// The service that [`RateLimitLayer`] makes.
#[derive(Debug, Clone)]
pub struct RateLimit<S, C, K = SystemClock> {
    inner: S,
    layer: RateLimitLayer<C, K>,
}

impl<S, C, K, R, B> Service<R> for RateLimit<S, C, K>
where
    C: Charge<R>,
    K: Clock,
    S: Service<R, Response = Response<B>>,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = CallOrRefuse<RefundFuture<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let RateLimitLayer { charge, limiter, refund_floor, clock } = &self.layer;
        let mut refund = None;
        if let Some(charge) = charge {
            let Some(Due { key, cost, quota }) = charge.charge(&request) else {
                return CallOrRefuse::refuse(Rejection::internal("nobody can be charged for this request"));
            };
            match limiter.check(limiter.key(key.as_ref()), cost, &quota, clock.monotonic()) {
                Ok(permit) => refund = Some(Refund { limiter: Arc::clone(limiter), permit, floor: *refund_floor }),
                Err(refused) => return CallOrRefuse::refuse(refusal(&refused, &quota)),
            }
        }
        CallOrRefuse::call(RefundFuture { inner: self.inner.call(request), refund })
    }
}

impl<S: Describe<R>, C, K, R> Describe<R> for RateLimit<S, C, K> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<R>("RateLimitLayer", &[Reason::RateLimited, Reason::Internal]));
        S::describe(rows);
    }
}

fn refusal(refused: &Refused, quota: &Quota) -> Rejection {
    let (burst, period) = (quota.burst(), quota.period());
    match refused.retry_after() {
        Some(wait) => {
            let detail = format!(
                "over the rate limit of {burst} at once and one more every {period:?}; come back in {} s",
                wait.as_secs() + 1
            );
            Rejection::new(Reason::RateLimited, detail).retry_after(wait)
        }
        None => Rejection::new(
            Reason::RateLimited,
            format!("this is more than the {burst} that may come at once; send less"),
        ),
    }
}

struct Refund {
    limiter: Arc<LocalLimiter>,
    permit: Permit,
    floor: Duration,
}

pin_project! {
    /// Gives an attempt back when it ends in a 5xx. One that is cancelled stays charged: a client that hangs up gets nothing free.
    pub struct RefundFuture<F> {
        #[pin]
        inner: F,
        refund: Option<Refund>,
    }
}

impl<F, B, E> Future for RefundFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Rejection>,
{
    type Output = Result<Response<B>, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx)).map_err(Into::into);
        let status = match &result {
            Ok(response) => response.status(),
            Err(rejection) => rejection.status(),
        };
        if let Some(Refund { limiter, permit, floor }) = this.refund.take()
            && status.is_server_error()
        {
            limiter.refund(permit, floor);
        }
        Poll::Ready(result)
    }
}
