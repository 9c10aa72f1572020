use std::sync::Arc;

use http::Request;

use super::Terms;
use crate::{
    payload::SeriesSet,
    rate_limit::{Charge, Charged, ClusterKey, PerCluster, Quota, SamplesPerCluster},
};

/// As [`PerCluster`], out of the quota that [`PolicyLayer`](super::PolicyLayer) found for the request; free where it found none.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestQuota;

/// As [`SamplesPerCluster`], out of the quota that [`PolicyLayer`](super::PolicyLayer) found for the request; free where it found
/// none.
#[derive(Debug, Clone, Copy, Default)]
pub struct SampleQuota;

impl<B> Charge<Request<B>> for RequestQuota {
    type Key = ClusterKey;

    fn charge(&self, request: &Request<B>) -> Charged<ClusterKey> {
        charge(request, |terms| terms.request_quota, PerCluster)
    }
}

impl<P: SeriesSet> Charge<Request<P>> for SampleQuota {
    type Key = ClusterKey;
    const UNIT: &'static str = <SamplesPerCluster as Charge<Request<P>>>::UNIT;
    const TOO_MUCH: &'static str = <SamplesPerCluster as Charge<Request<P>>>::TOO_MUCH;

    fn charge(&self, request: &Request<P>) -> Charged<ClusterKey> {
        charge(request, |terms| terms.sample_quota, SamplesPerCluster)
    }
}

fn charge<B, C: Charge<Request<B>, Key = ClusterKey>>(
    request: &Request<B>,
    quota: impl Fn(&Terms) -> Option<Quota>,
    by: impl Fn(Quota) -> C,
) -> Charged<ClusterKey> {
    match request.extensions().get::<Arc<Terms>>() {
        None => Charged::Unknown,
        Some(terms) => quota(terms).map_or(Charged::Free, |quota| by(quota).charge(request)),
    }
}
