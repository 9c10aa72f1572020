//! The limits that stacks share: rates, between replicas too where there is a Redis, and turns at the processors.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    thread,
    time::Duration,
};

use infogw_layers::{
    budget::{BufferBudget, HeadLayer},
    circuit::Circuit,
    decode::Turns,
    rate_limit::{LocalLimiter, RateLimitLayer, shared::SharedLimiter},
    store::Circuits,
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

/// No request waits for more work of the processors. At twice saturation half of what was accepted took 61 ms with this.
const LONGEST_QUEUE: Duration = Duration::from_millis(25);

/// What all limits count in.
#[derive(Clone)]
pub struct Limits {
    /// Each by itself, but through the same circuits, or a request would wait for Redis once for each limit.
    rates: Arc<[Limiter; Limit::ALL.len()]>,
    turns: Turns,
    budget: Option<BufferBudget>,
    /// Headers of a request.
    headers: usize,
}

struct Limiter {
    local: Arc<LocalLimiter>,
    shared: Option<SharedLimiter>,
    counters: LimitCounters,
}

/// What the keys of shared limits are hashed with is derived for this.
const SECRET: &str = "rate limits";

impl Limits {
    /// As the flags say.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        let redis = stores::rate_limit(&config.stores);
        let observer = metrics.limiter.circuit();
        let circuit = || Circuit::observed_by(REDIS_FAILURES, REDIS_LEFT_ALONE, observer.clone());
        // One master that is dead says nothing of the others.
        let circuits = match &redis {
            Some(redis) if redis.is_cluster() => Circuits::by_slots(circuit),
            _ => circuit().into(),
        };
        let secret = config.keys.derive_secret(SECRET);
        let rates = Arc::new(Limit::ALL.map(|limit| {
            let local = Arc::new(LocalLimiter::new());
            let shared = redis.clone().map(|redis| {
                let keys = format!("infogw:ratelimit:{}", limit.name());
                SharedLimiter::builder(redis, &keys, &secret, Arc::clone(&local))
                    .circuit(circuits.clone())
                    .deadline(config.stores.redis_timeout)
                    .observed_by(metrics.limiter.shared(limit))
                    .build()
            });
            let counters = metrics.limiter.limit(limit, &local);
            Limiter { local, shared, counters }
        }));
        // As many as tokio has workers.
        let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let budget = config.connections.buffered.map(|bytes| BufferBudget::new(bytes.get()));
        budget.iter().for_each(|budget| metrics.connections.budget(budget));
        let limits =
            Limits { rates, budget, headers: config.connections.headers, turns: Turns::new(processors, LONGEST_QUEUE) };
        // Replicas whose keys are rotated in their files go on counting together.
        for shared in limits.rates.iter().filter_map(|limiter| limiter.shared.clone()) {
            config.keys.on_new_secret(SECRET.to_owned(), move |secret| shared.set_secret(secret));
        }
        limits
    }

    /// How many headers a request may have, and what its head may take of the budget.
    pub fn heads(&self) -> HeadLayer {
        HeadLayer::new(self.headers).budget(self.budget.clone())
    }

    /// What requests may take of memory, all together.
    pub fn budget(&self) -> Option<&BufferBudget> {
        self.budget.as_ref()
    }

    /// The turns at the processors.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// The layer of one limit. What fails here is given back: of uploads down to one a minute; of remote write all of it, since a
    /// sender whose retries were counted would hear 429, which a stock one takes for the end of its data.
    pub fn layer<C>(&self, limit: Limit, charge: C) -> Either<LocalLimit<C>, SharedLimit<C>> {
        let Limiter { local, shared, counters } = &self.rates[limit as usize];
        let floor = match limit {
            Limit::Upload => Duration::from_secs(60),
            Limit::ReceiveRequests | Limit::ReceiveSamples => Duration::ZERO,
        };
        let layer =
            RateLimitLayer::new(charge).limiter(Arc::clone(local)).refund_floor(floor).observed_by(counters.clone());
        match shared {
            None => Either::Left(layer),
            Some(shared) => Either::Right(layer.limiter(shared.clone())),
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rates.iter().map(|limiter| &limiter.shared)).finish()
    }
}
