//! How often.

use std::{num::NonZeroU32, time::Duration};

use criterion::Criterion;
use infogw_layers::rate_limit::{PerCluster, Quota, RateLimitLayer, SamplesPerCluster};
use tower::{Layer, service_fn};

use crate::{
    inputs::{Pushed, authorized, identity},
    measure::{Group, Load, call, hand_back},
};

/// Nobody reaches it.
const UNREACHED: Quota = Quota::per_second(NonZeroU32::MAX, NonZeroU32::MAX);
const ONCE: Quota = Quota::one_per(Duration::from_secs(24 * 60 * 60)).unwrap();

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "limit");
    let request = |keys| move || authorized(identity(fastrand::u64(..keys)), ());
    let granted = RateLimitLayer::new(PerCluster(UNREACHED)).layer(service_fn(hand_back));
    group.service("RateLimitLayer, one key", Load::Request, &granted, request(1));
    group.service("RateLimitLayer, 10000 keys", Load::Request, &granted, request(10_000));

    let limited = RateLimitLayer::new(PerCluster(ONCE)).layer(service_fn(hand_back));
    call(&mut limited.clone(), request(1)()).expect("the first");
    group.measure_workers("RateLimitLayer, one key over its quota", Load::Request, request(1), || {
        let mut service = limited.clone();
        move |request| call(&mut service, request).expect_err("refused")
    });

    let pushed = Pushed::new(500);
    let samples = RateLimitLayer::new(SamplesPerCluster(UNREACHED)).layer(service_fn(hand_back));
    group.service("RateLimitLayer, samples of 500 series", Load::Request, &samples, || {
        authorized(identity(fastrand::u64(..10_000)), pushed.write_request())
    });
}
