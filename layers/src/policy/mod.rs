//! What holds for whom: one policy, with exceptions by account and cluster, replaced while requests pass.
//!
//! [`PolicyLayer`] stands directly inside [`AuthorizeLayer`](crate::authorize::AuthorizeLayer). It takes the policy in force once
//! for a request and puts what holds for its sender into the request's extensions, where the layers inside find it:
//!
//! | extension | read by |
//! | --- | --- |
//! | `Arc<DecodeLimits>` | [`WriteRequestDecoder::per_request`](crate::decode::WriteRequestDecoder::per_request) and its sibling |
//! | `Arc<LabelPolicy>` | [`EnforceLabelsLayer::per_request`](crate::enforce::EnforceLabelsLayer::per_request) |
//! | `Arc<Terms>` | [`RequestQuota`], [`SampleQuota`], and who forwards |
//!
//! So a request ends under the policy it began with, whatever is put in force meanwhile.
//!
//! ```
//! use infogw_layers::{
//!     authorize::{AuthorizeLayer, ClusterId, Identity},
//!     decode::DecodeLimits,
//!     enforce::LabelPolicy,
//!     policy::{Endpoint, LivePolicy, Overrides, Policy, PolicyLayer, RequestQuota, Setting, Terms},
//!     rate_limit::{Quota, RateLimitLayer},
//!     rejection::Rejection,
//! };
//! use std::{sync::Arc, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let mut overrides = Overrides::default();
//! let once = Setting::RequestQuota(Quota::one_per(Duration::from_secs(60)));
//! overrides.cluster("chatty", [(Endpoint::Receive, once)]);
//! let terms = Terms::new(LabelPolicy::new("_id"), DecodeLimits::default());
//! let policy = LivePolicy::new(Policy::new(terms.clone(), terms).overrides(overrides));
//!
//! // Whoever says to be somebody is: do not do this at home.
//! let service = ServiceBuilder::new()
//!     .layer(AuthorizeLayer::new(
//!         |request: &http::Request<&'static str>| Ok::<_, Rejection>(*request.body()),
//!         service_fn(async |name: &'static str| Ok::<_, Rejection>(Arc::new(Identity::of(ClusterId::new(name).unwrap())))),
//!     ))
//!     .layer(PolicyLayer::new(policy, Endpoint::Receive))
//!     .layer(RateLimitLayer::new(RequestQuota))
//!     .service(service_fn(async |_: http::Request<&'static str>| Ok::<_, Rejection>(http::Response::new(()))));
//! let statuses = async |name| {
//!     let ask = || service.clone().oneshot(http::Request::new(name));
//!     [ask().await.is_ok(), ask().await.is_ok()]
//! };
//! assert_eq!(statuses("calm").await, [true, true]);
//! assert_eq!(statuses("chatty").await, [true, false]);
//! # }
//! ```

mod overrides;
mod quotas;
mod terms;

use std::{
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    authorize::{Authorized, Identity},
    clock::{Clock, SystemClock},
    describe::{Describe, Row},
    future::CallOrRefuse,
    rejection::{Reason, Rejection},
};

pub use overrides::{Endpoint, Overrides};
pub use quotas::{RequestQuota, SampleQuota};
pub use terms::{Denial, Exempt, Setting, Size, Tenant, Terms};

const NAME: &str = "PolicyLayer";

/// How long a lookup takes at most, of a thread that has to wait for a processor.
const LOOKUP: Duration = Duration::from_millis(1);
/// After this many whoever still holds an old policy looks nothing up.
const LOOKUPS: usize = 1_000;

/// What holds for everyone at each endpoint, and what holds for some instead.
#[derive(Debug)]
pub struct Policy {
    /// For [`Endpoint::Upload`] and [`Endpoint::Receive`].
    terms: [Arc<Terms>; 2],
    overrides: Overrides,
}

impl Policy {
    /// What holds for everyone.
    pub fn new(upload: Terms, receive: Terms) -> Self {
        Policy { terms: [Arc::new(upload), Arc::new(receive)], overrides: Overrides::default() }
    }

    /// With exceptions.
    #[must_use]
    pub fn overrides(self, overrides: Overrides) -> Self {
        Policy { overrides, ..self }
    }

    /// For how many accounts and clusters something else holds.
    pub fn exceptions(&self) -> usize {
        self.overrides.len()
    }

    /// What holds for everyone at `endpoint` who is not excepted.
    pub fn common(&self, endpoint: Endpoint) -> &Arc<Terms> {
        let [upload, receive] = &self.terms;
        match endpoint {
            Endpoint::Upload => upload,
            Endpoint::Receive => receive,
        }
    }

    /// What holds for `identity` at `endpoint`: what is said of its cluster over what is said of its account over what is common.
    pub fn terms(&self, endpoint: Endpoint, identity: &Identity) -> Arc<Terms> {
        let common = self.common(endpoint);
        let Some(said) = self.overrides.find(identity) else { return Arc::clone(common) };
        let here = said.map(|settings| settings.iter().filter(|(at, _)| *at == endpoint).map(|(_, setting)| setting));
        let [account, cluster] = here;
        let is_exemption = |setting: &&Setting| matches!(setting, Setting::Exempt(_));
        let own_exemption = cluster.clone().any(|setting| is_exemption(&setting));
        let mut terms = Terms::clone(common);
        terms.apply(account.filter(|setting| !own_exemption || !is_exemption(setting)));
        terms.apply(cluster);
        Arc::new(terms)
    }
}

/// The policy in force, to be replaced while requests pass. Clones share it.
#[derive(Debug, Clone)]
pub struct LivePolicy(Arc<ArcSwap<Policy>>);

impl LivePolicy {
    /// Starts with `policy`.
    pub fn new(policy: Policy) -> Self {
        LivePolicy(Arc::new(ArcSwap::from_pointee(policy)))
    }

    /// Puts `policy` in force. What was counted under the old one counts on.
    ///
    /// Frees the old one before it returns, which takes long for one of many overrides, and waits for the lookups in it that are
    /// under way: no request is ever the one that frees it. So call this where it is no harm to block.
    pub fn replace(&self, policy: impl Into<Arc<Policy>>) {
        let mut old = self.0.swap(policy.into());
        for _ in 0..LOOKUPS {
            match Arc::try_unwrap(old) {
                Ok(old) => return drop(old),
                Err(held) => old = held,
            }
            #[expect(clippy::disallowed_methods, reason = "where blocking is no harm, as it says above")]
            thread::sleep(LOOKUP);
        }
    }

    /// The policy in force. Whoever keeps it longer than a second after it was replaced is the one that frees it.
    pub fn load(&self) -> Arc<Policy> {
        self.0.load_full()
    }
}

/// Lets a request pass under the policy in force.
#[derive(Debug, Clone)]
pub struct PolicyLayer<K = SystemClock> {
    policy: LivePolicy,
    endpoint: Endpoint,
    clock: K,
}

impl PolicyLayer {
    /// Holds requests to `endpoint` to `policy`.
    pub fn new(policy: LivePolicy, endpoint: Endpoint) -> Self {
        PolicyLayer { policy, endpoint, clock: SystemClock }
    }
}

impl<K> PolicyLayer<K> {
    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> PolicyLayer<D> {
        PolicyLayer { policy: self.policy, endpoint: self.endpoint, clock }
    }
}

impl<S, K: Clone> Layer<S> for PolicyLayer<K> {
    type Service = UnderPolicy<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        UnderPolicy { inner, layer: self.clone() }
    }
}

/// The service that [`PolicyLayer`] makes.
#[derive(Debug, Clone)]
pub struct UnderPolicy<S, K = SystemClock> {
    inner: S,
    layer: PolicyLayer<K>,
}

impl<K: Clock> PolicyLayer<K> {
    fn terms<B>(&self, request: &Request<B>) -> Result<Arc<Terms>, Rejection> {
        let Some(identity) = request.extensions().get::<Authorized<Identity>>() else {
            return Err(Rejection::internal("nobody was authorized for this request"));
        };
        // Held for the lookup only: what it found outlives the policy.
        let terms = self.policy.0.load().terms(self.endpoint, identity);
        if terms.denials.is_empty() {
            return Ok(terms);
        }
        let now = self.clock.now();
        match terms.denials.iter().rev().find(|denial| denial.holds(now)) {
            None => Ok(terms),
            Some(denial) => Err(denial.rejection(identity)),
        }
    }
}

impl<S, K, B> Service<Request<B>> for UnderPolicy<S, K>
where
    K: Clock,
    S: Service<Request<B>>,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = CallOrRefuse<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.layer.terms(&request) {
            Err(rejection) => CallOrRefuse::refuse(rejection.by(NAME)),
            Ok(terms) => {
                let extensions = request.extensions_mut();
                extensions.insert(Arc::clone(&terms.limits));
                extensions.insert(Arc::clone(&terms.labels));
                extensions.insert(terms);
                CallOrRefuse::call(self.inner.call(request))
            }
        }
    }
}

impl<S: Describe<Request<B>>, K, B> Describe<Request<B>> for UnderPolicy<S, K> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<B>>(NAME, &[Reason::Denied, Reason::Internal]));
        S::describe(rows);
    }
}
