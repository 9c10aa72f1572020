//! Whose series, which series, which labels.
//!
//! [`EnforceLabelsLayer`] holds a decoded payload against a [`LabelPolicy`] and the identity that
//! [`AuthorizeLayer`](crate::authorize::AuthorizeLayer) found: a cluster writes its own series, series off the allowlist are
//! dropped, labels are set and elided. Where nobody was authorized it refuses.
//!
//! ```
//! use infogw_layers::enforce::{EnforceLabelsLayer, LabelPolicy};
//! use infogw_layers::payload::WriteRequest;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let policy = LabelPolicy::new("_id").allow(["{__name__=~\"cluster:.*\"}".parse()?])?.elide(["prometheus_replica"]);
//! let service = ServiceBuilder::new()
//!     .layer(EnforceLabelsLayer::new(policy))
//!     .service(service_fn(async |_: http::Request<WriteRequest>| Ok::<_, std::convert::Infallible>(())));
//! let refused = service.oneshot(http::Request::new(WriteRequest::default())).await.unwrap_err();
//! assert_eq!(refused.status(), 500, "nobody was authorized");
//! # Ok(()) }
//! ```

mod policy;
pub mod selector;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    authorize::{Authorized, ClusterId, Identity},
    describe::{Describe, Row},
    future::CallOrRefuse,
    observe::Observe,
    payload::{Keep, SeriesSet},
    rejection::{Reason, Rejection},
};

pub use crate::edit::LabelPairs;
use policy::Verdict;
pub use policy::{ClusterLabelCheck, Explained, LabelNames, LabelPolicy, OnOffence};

const NAME: &str = "EnforceLabelsLayer";

/// What enforcing did to one payload.
#[derive(Debug)]
pub struct Enforced<'a> {
    /// The cluster that wrote it.
    pub cluster: &'a ClusterId,
    /// Series that go on.
    pub kept: usize,
    /// Series that the allowlist dropped.
    pub dropped: usize,
    /// Series refused for want of a label that must be there.
    pub missing: usize,
    /// Series refused, or under [`ClusterLabelCheck::Count`] only counted, because they are another cluster's; and series refused
    /// because a label of the identity has another value.
    pub foreign: usize,
}

/// Enforces a label policy.
#[derive(Debug, Clone)]
pub struct EnforceLabelsLayer<O = ()> {
    /// None: the request's own.
    policy: Option<Arc<LabelPolicy>>,
    observer: O,
}

impl EnforceLabelsLayer {
    /// Enforces `policy` on every request.
    pub fn new(policy: impl Into<Arc<LabelPolicy>>) -> Self {
        EnforceLabelsLayer { policy: Some(policy.into()), observer: () }
    }

    /// Enforces the `Arc<LabelPolicy>` that a layer outside put into the request's extensions, as
    /// [`PolicyLayer`](crate::policy::PolicyLayer) does. A request without one is refused.
    pub fn per_request() -> Self {
        EnforceLabelsLayer { policy: None, observer: () }
    }
}

impl<O> EnforceLabelsLayer<O> {
    /// Tells `observer` what was done to each payload.
    pub fn observed_by<P>(self, observer: P) -> EnforceLabelsLayer<P> {
        EnforceLabelsLayer { policy: self.policy, observer }
    }
}

impl<S, O: Clone> Layer<S> for EnforceLabelsLayer<O> {
    type Service = EnforceLabels<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        EnforceLabels { inner, layer: self.clone() }
    }
}

/// The service that [`EnforceLabelsLayer`] makes.
#[derive(Debug, Clone)]
pub struct EnforceLabels<S, O = ()> {
    inner: S,
    layer: EnforceLabelsLayer<O>,
}

impl<S, O, P> Service<Request<P>> for EnforceLabels<S, O>
where
    P: SeriesSet,
    O: for<'a> Observe<Enforced<'a>>,
    S: Service<Request<P>>,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = CallOrRefuse<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<P>) -> Self::Future {
        let Some(identity) = request.extensions().get::<Authorized<Identity>>().cloned() else {
            return CallOrRefuse::refuse(Rejection::internal("nobody was authorized for this request").by(NAME));
        };
        let Some(policy) = self.layer.policy.as_ref().or_else(|| request.extensions().get()).cloned() else {
            return CallOrRefuse::refuse(Rejection::internal("no label policy was found for this request").by(NAME));
        };
        match self.layer.enforce(&policy, &identity, request.body_mut()) {
            Ok(()) => CallOrRefuse::call(self.inner.call(request)),
            Err(rejection) => CallOrRefuse::refuse(rejection),
        }
    }
}

impl<S, O, P> Describe<Request<P>> for EnforceLabels<S, O>
where
    P: SeriesSet,
    S: Describe<Request<P>>,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<P>>(NAME, &[Reason::ClusterLabel, Reason::Internal]));
        S::describe(rows);
    }
}

impl<O: for<'a> Observe<Enforced<'a>>> EnforceLabelsLayer<O> {
    fn enforce<P: SeriesSet>(
        &self,
        policy: &LabelPolicy,
        identity: &Identity,
        payload: &mut P,
    ) -> Result<(), Rejection> {
        let mut refused = std::mem::take(payload.refused());
        let refused_before = refused.count();
        let (mut missing, mut foreign) = (0, 0);
        let edited = payload.try_edit(|labels| -> Result<Keep, std::convert::Infallible> {
            let decision = policy.apply(identity, labels);
            foreign += usize::from(decision.foreign);
            match decision.verdict {
                Verdict::Keep => return Ok(Keep::Yes),
                Verdict::Drop => {}
                verdict @ (Verdict::Foreign | Verdict::Missing(_) | Verdict::Wrong(..)) => {
                    missing += usize::from(matches!(verdict, Verdict::Missing(_)));
                    refused.add(NAME, || policy.offence(identity, labels, verdict));
                }
            }
            Ok(Keep::No)
        });
        let edited = match edited {
            Ok(edited) => edited,
            Err(never) => match never {},
        };
        self.observer.observe(&Enforced {
            cluster: &identity.cluster,
            kept: edited.kept,
            // The payload let go of what was refused, too.
            dropped: edited.dropped.saturating_sub(refused.count() - refused_before),
            missing,
            foreign,
        });
        let rejection = match policy.on_offence {
            OnOffence::RefuseRequest => refused.rejection(),
            OnOffence::RefuseSeries => None,
        };
        *payload.refused() = refused;
        rejection.map_or(Ok(()), Err)
    }
}

#[cfg(all(test, feature = "decode"))]
mod tests {
    use super::*;
    use crate::decode::{Decoder, MetricFamiliesDecoder};
    use std::sync::Mutex;

    /// Kept, dropped, missing and foreign series, and how many are refused.
    fn enforced(check: ClusterLabelCheck, identity: &Identity, text: &str) -> [usize; 5] {
        let (head, ()) = Request::new(()).into_parts();
        let decoder = MetricFamiliesDecoder::new(Default::default());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let text = text.replace("NOW", &now.to_string());
        let mut payload = decoder.decode(decoder.negotiate(&head).unwrap(), text.into()).unwrap();
        let counts = Mutex::new([0; 4]);
        let policy = LabelPolicy::new("_id").check(check).allow(["up".parse().unwrap()]).unwrap();
        let observer =
            |seen: &Enforced<'_>| *counts.lock().unwrap() = [seen.kept, seen.dropped, seen.missing, seen.foreign];
        EnforceLabelsLayer::per_request().observed_by(observer).enforce(&policy, identity, &mut payload).unwrap();
        let [kept, dropped, missing, foreign] = *counts.lock().unwrap();
        [kept, dropped, missing, foreign, payload.refused().count()]
    }

    #[test]
    fn what_is_refused_is_not_counted_as_dropped() {
        let series = [
            "up{_id=\"c1\",env=\"prod\"} 1 NOW",
            // Another cluster's; also off the allowlist.
            "up{_id=\"c2\",env=\"prod\"} 1 NOW",
            "down{_id=\"c2\",env=\"prod\"} 1 NOW",
            // The identity's label has another value, or is not there.
            "up{_id=\"c1\",env=\"test\"} 1 NOW",
            "up{_id=\"c1\"} 1 NOW",
            // Off the allowlist.
            "down{_id=\"c1\",env=\"prod\"} 1 NOW\n",
        ];
        let labels = vec![("env".into(), "prod".into())];
        let identity = Identity { labels, ..Identity::of(ClusterId::new("c1").unwrap()) };
        let rows = [
            (ClusterLabelCheck::Enforce, [1, 1, 1, 3, 4]),
            (ClusterLabelCheck::Count, [2, 2, 1, 3, 2]),
            (ClusterLabelCheck::Off, [2, 2, 1, 1, 2]),
        ];
        for (check, expected) in rows {
            assert_eq!(enforced(check, &identity, &series.join("\n")), expected, "{check:?}");
        }
    }
}
