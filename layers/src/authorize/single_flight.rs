//! Concurrent requests of one credential ask an authorizer once.
//!
//! A layer over any authorizer that keeps nothing: the first request of a credential makes the call, those that come while it is under
//! way wait for its outcome. The call goes on whoever hangs up. It needs a tokio runtime.
//!
//! ```
//! use infogw_layers::authorize::{ClusterId, Identity, Secret, single_flight::SingleFlightLayer};
//! use infogw_layers::rejection::Rejection;
//! use tower::{Layer, ServiceExt, service_fn};
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Rejection> {
//! let calls = Arc::new(AtomicU32::new(0));
//! let counted = calls.clone();
//! let authorizer = SingleFlightLayer::new(512).layer(service_fn(move |_: Secret| {
//!     counted.fetch_add(1, Ordering::Relaxed);
//!     async { Ok::<_, Rejection>(Arc::new(Identity::of(ClusterId::new("c1").unwrap()))) }
//! }));
//! let (first, second) = tokio::join!(
//!     authorizer.clone().oneshot(Secret::new("token")),
//!     authorizer.clone().oneshot(Secret::new("token")),
//! );
//! assert_eq!((first?, calls.load(Ordering::Relaxed)), (second?, 1));
//! # Ok(()) }
//! ```

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{Semaphore, watch};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use crate::rejection::{Reason, Rejection};

/// One call at a time for each credential.
#[derive(Debug)]
pub struct SingleFlightLayer<T> {
    hash: KeyedHash,
    flights: Flights<T>,
    calls: Arc<Semaphore>,
    most: usize,
}

impl<T> SingleFlightLayer<T> {
    /// At most `calls` calls are under way at once; those that would need another are refused with 503.
    pub fn new(calls: usize) -> Self {
        SingleFlightLayer {
            hash: KeyedHash::default(),
            flights: Flights::default(),
            calls: Arc::new(Semaphore::new(calls)),
            most: calls,
        }
    }
}

impl<T> Clone for SingleFlightLayer<T> {
    fn clone(&self) -> Self {
        let SingleFlightLayer { hash, flights, calls, most } = self;
        SingleFlightLayer { hash: hash.clone(), flights: flights.clone(), calls: Arc::clone(calls), most: *most }
    }
}

impl<A, T> Layer<A> for SingleFlightLayer<T> {
    type Service = SingleFlight<A, T>;

    /// Services of clones of one layer share their calls.
    fn layer(&self, authorizer: A) -> Self::Service {
        SingleFlight { authorizer, layer: self.clone() }
    }
}

/// The authorizer that [`SingleFlightLayer`] makes.
#[derive(Debug)]
pub struct SingleFlight<A, T> {
    authorizer: A,
    layer: SingleFlightLayer<T>,
}

impl<A: Clone, T> Clone for SingleFlight<A, T> {
    fn clone(&self) -> Self {
        SingleFlight { authorizer: self.authorizer.clone(), layer: self.layer.clone() }
    }
}

impl<A, T, C> Service<C> for SingleFlight<A, T>
where
    A: Service<C, Response = T, Future: Send> + Clone + Send + 'static,
    A::Error: Into<Rejection>,
    T: Clone + Send + Sync + 'static,
    C: Hash + Send + 'static,
{
    type Response = T;
    type Error = Rejection;
    /// Boxed: what is waited for takes a call over the network.
    type Future = Pin<Box<dyn Future<Output = Result<T, Rejection>> + Send>>;

    /// Always ready: whoever joins a call needs no other.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, credential: C) -> Self::Future {
        let SingleFlightLayer { hash, flights, calls, most } = &self.layer;
        let most = *most;
        let flight = flights.join_or_start(hash.of(&credential), || {
            let place = Arc::clone(calls).try_acquire_owned().ok()?;
            let asking = self.authorizer.clone().oneshot(credential);
            Some(async move {
                let outcome = asking.await.map_err(Into::into);
                drop(place);
                outcome
            })
        });
        Box::pin(async move {
            match flight {
                Some(flight) => flight.outcome().await,
                None => Err(busy(most)),
            }
        })
    }
}

/// More callers than places: the authorizer's being slow, not ours.
pub(super) fn busy(most: usize) -> Rejection {
    let detail = format!("{most} calls to the authorizer are under way, as many as there may be at once");
    Rejection::new(Reason::AuthorizerUnavailable, detail).retry_after(Duration::from_secs(10))
}

/// Keys for credentials: two keyed hashes make 128 bits, so nobody can find a token whose key is another's, and no token is kept.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyedHash(Arc<[RandomState; 2]>);

impl KeyedHash {
    pub(super) fn of(&self, credential: &impl Hash) -> u128 {
        let [high, low] = &*self.0;
        u128::from(high.hash_one(credential)) << 64 | u128::from(low.hash_one(credential))
    }
}

/// Calls under way, by key. There are no more of them than their starters let there be.
#[derive(Debug)]
pub(super) struct Flights<T>(Arc<Mutex<Airborne<T>>>);

type Airborne<T> = HashMap<u128, watch::Receiver<Option<Result<T, Rejection>>>>;

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Flights(Arc::default())
    }
}

impl<T> Clone for Flights<T> {
    fn clone(&self) -> Self {
        Flights(Arc::clone(&self.0))
    }
}

impl<T> Flights<T> {
    fn airborne(&self) -> MutexGuard<'_, Airborne<T>> {
        // A map of whole entries: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Joins the call of `key`, or starts what `start` gives in a task of its own. `None` where there is none to join and none starts.
    pub(super) fn join_or_start<F>(&self, key: u128, start: impl FnOnce() -> Option<F>) -> Option<Flight<T>>
    where
        F: Future<Output = Result<T, Rejection>> + Send + 'static,
    {
        let mut airborne = self.airborne();
        if let Some(outcome) = airborne.get(&key) {
            return Some(Flight(outcome.clone()));
        }
        let call = start()?;
        // The call is part of the trace of whoever came first.
        #[cfg(feature = "trace")]
        let call = opentelemetry::trace::FutureExt::with_current_context(call);
        let (landed, outcome) = watch::channel(None);
        airborne.insert(key, outcome.clone());
        drop(airborne);
        let landing = Landing { flights: self.clone(), key };
        tokio::spawn(async move {
            let outcome = call.await;
            drop(landing);
            let _ = landed.send(Some(outcome));
        });
        Some(Flight(outcome))
    }
}

/// Takes the call off the map, also if it panicked.
struct Landing<T> {
    flights: Flights<T>,
    key: u128,
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        self.flights.airborne().remove(&self.key);
    }
}

/// A call under way. Dropped, the call goes on.
pub(super) struct Flight<T>(watch::Receiver<Option<Result<T, Rejection>>>);

impl<T: Clone> Flight<T> {
    pub(super) async fn outcome(mut self) -> Result<T, Rejection> {
        let landed = self.0.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        landed.unwrap_or_else(|| Err(Rejection::internal("the call to the authorizer broke off")))
    }
}
