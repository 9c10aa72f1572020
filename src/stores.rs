//! The engines that replicas share, as the gateway uses them: each call bounded, counted, and never worse than a miss.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use infogw_layers::{
    circuit::Circuit,
    store::{
        Bounded, Circuits, Store,
        memcached::Memcached,
        redis::{RedisConnection, RedisStore},
    },
};

use crate::{admin::metrics::Metrics, config::Stores};

/// So many failures in a row, and a store is left alone for so long.
const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How long memcached may take to answer.
const MEMCACHED_DEADLINE: Duration = Duration::from_millis(50);

/// Where authorizations are shared: memcached if there is one, else Redis if there is. It begins to connect when it is first asked.
pub fn authorizations(config: &Stores, metrics: &'static Metrics) -> Option<Arc<dyn Store>> {
    match (&config.memcached, &config.redis) {
        (Some(memcached), _) => {
            let store = Memcached::new(memcached.servers.iter().cloned());
            let store = match memcached.interval {
                Some(interval) => store.refresh_every(interval),
                None => store,
            };
            Some(bounded("memcached", store, MEMCACHED_DEADLINE, false, metrics))
        }
        (None, Some(redis)) => {
            Some(bounded("redis", RedisStore::new(redis.clone()), config.redis_timeout, redis.is_cluster(), metrics))
        }
        (None, None) => None,
    }
}

/// Where the rate limit is shared. The limiter bounds its calls itself, as it has something to fall back on.
pub fn rate_limit(config: &Stores) -> Option<RedisConnection> {
    config.redis.clone()
}

fn bounded(
    name: &'static str,
    store: impl Store,
    deadline: Duration,
    is_cluster: bool,
    metrics: &'static Metrics,
) -> Arc<dyn Store> {
    let observer = metrics.stores.store(name);
    let circuit = || Circuit::observed_by(FAILURES, LEFT_ALONE, observer.clone());
    // One master that is dead says nothing of the others.
    let circuits = if is_cluster { Circuits::by_slots(circuit) } else { circuit().into() };
    Arc::new(Bounded::new(store).deadline(deadline).circuit(circuits).observed_by(observer))
}
