//! The rate limits of the stacks, shared between replicas where there is a Redis.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use infogw_layers::{
    circuit::Circuit,
    rate_limit::{LocalLimiter, RateLimitLayer, shared::SharedLimiter},
};
use tower::util::Either;

use crate::{
    admin::metrics::{
        Metrics,
        limiter::{Limit, LimitCounters},
    },
    config::Config,
    stores,
};

/// So many failures of Redis in a row, and it is left alone for so long: requests then wait for nothing.
const REDIS_FAILURES: NonZeroU32 = NonZeroU32::new(3).unwrap();
const REDIS_LEFT_ALONE: Duration = Duration::from_secs(1);

/// A limit in this process's memory.
pub type LocalLimit<C> = RateLimitLayer<C, Arc<LocalLimiter>, LimitCounters>;
/// A limit in Redis.
pub type SharedLimit<C> = RateLimitLayer<C, SharedLimiter, LimitCounters>;

/// A limit of its own, shared between replicas where there is a Redis. What fails here is given back: of uploads down to one a
/// minute; of remote write all of it, since a sender whose retries were counted would hear 429, which a stock one takes for the end
/// of its data.
pub fn limit<C>(
    limit: Limit,
    charge: Option<C>,
    config: &Config,
    metrics: &Metrics,
) -> Either<LocalLimit<C>, SharedLimit<C>> {
    let local = Arc::new(LocalLimiter::new());
    let floor = match limit {
        Limit::Upload => Duration::from_secs(60),
        Limit::ReceiveRequests | Limit::ReceiveSamples => Duration::ZERO,
    };
    let layer = RateLimitLayer::optional(charge)
        .limiter(Arc::clone(&local))
        .refund_floor(floor)
        .observed_by(metrics.limiter.limit(limit, &local));
    let Some(redis) = stores::rate_limit(&config.stores) else {
        return Either::Left(layer);
    };
    let observer = metrics.limiter.shared(limit);
    let keys = format!("infogw:ratelimit:{}", limit.name());
    let shared = SharedLimiter::builder(redis, &keys, &config.keys.derive_secret("rate limits"), local)
        .circuit(Circuit::observed_by(REDIS_FAILURES, REDIS_LEFT_ALONE, observer.clone()))
        .observed_by(observer)
        .build();
    Either::Right(layer.limiter(shared))
}
