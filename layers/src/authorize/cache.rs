//! Keeps what an authorizer granted.
//!
//! A layer over any authorizer. Grants are kept under a keyed hash of the credential, never the credential itself, for a set time
//! and never past the identity's own end. Refusals and outages are not kept.
//!
//! ```
//! use infogw_layers::authorize::{ClusterId, Identity, Secret, cache::CacheLayer};
//! use tower::{Layer, ServiceExt, service_fn};
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let calls = Arc::new(AtomicU32::new(0));
//! let counted = calls.clone();
//! let cached = CacheLayer::new(1_000, Duration::from_secs(300)).layer(service_fn(move |_: Secret| {
//!     counted.fetch_add(1, Ordering::Relaxed);
//!     async { Ok::<_, std::convert::Infallible>(Arc::new(Identity::of(ClusterId::new("c1").unwrap()))) }
//! }));
//! for _ in 0..3 {
//!     cached.clone().oneshot(Secret::new("token")).await?;
//! }
//! assert_eq!(calls.load(Ordering::Relaxed), 1);
//! # Ok(()) }
//! ```

use std::{
    hash::{BuildHasher, Hash, RandomState},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use moka::sync::Cache;
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use super::Identity;
use crate::{
    clock::{Clock, SystemClock},
    observe::Observe,
};

/// Something that does not hold for ever.
pub trait Expires {
    /// When it ends, if it does.
    fn expires_at(&self) -> Option<SystemTime>;
}

impl Expires for Identity {
    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

/// What the cache did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheEvent {
    /// A grant was at hand.
    Hit,
    /// The authorizer had to be asked.
    Miss,
    /// What it granted was kept.
    Write,
}

/// Keeps grants in memory.
pub struct CacheLayer<I, C = SystemClock, O = ()> {
    grants: Grants<I>,
    clock: C,
    observer: O,
}

/// The store. Two keyed hashes make a key of 128 bits: nobody can find a token whose key is another's.
struct Grants<I> {
    store: Cache<u128, Arc<I>>,
    keys: Arc<[RandomState; 2]>,
}

impl<I> Clone for Grants<I> {
    fn clone(&self) -> Self {
        Grants { store: self.store.clone(), keys: Arc::clone(&self.keys) }
    }
}

impl<I> Grants<I> {
    fn key(&self, credential: &impl Hash) -> u128 {
        let [high, low] = &*self.keys;
        u128::from(high.hash_one(credential)) << 64 | u128::from(low.hash_one(credential))
    }
}

impl<I: Send + Sync + 'static> CacheLayer<I> {
    /// Keeps at most `capacity` grants, each for `time_to_live`.
    pub fn new(capacity: u64, time_to_live: Duration) -> Self {
        let store = Cache::builder().max_capacity(capacity).time_to_live(time_to_live).build();
        let keys = Arc::new([RandomState::new(), RandomState::new()]);
        CacheLayer { grants: Grants { store, keys }, clock: SystemClock, observer: () }
    }
}

impl<I, C, O> CacheLayer<I, C, O> {
    /// Judges by `clock` when an identity ends.
    pub fn clock<D: Clock>(self, clock: D) -> CacheLayer<I, D, O> {
        CacheLayer { grants: self.grants, clock, observer: self.observer }
    }

    /// Tells `observer` of each read and write.
    pub fn observed_by<P>(self, observer: P) -> CacheLayer<I, C, P> {
        CacheLayer { grants: self.grants, clock: self.clock, observer }
    }
}

impl<A, I, C: Clone, O: Clone> Layer<A> for CacheLayer<I, C, O> {
    type Service = Cached<A, I, C, O>;

    fn layer(&self, authorizer: A) -> Self::Service {
        Cached { authorizer, grants: self.grants.clone(), clock: self.clock.clone(), observer: self.observer.clone() }
    }
}

/// The authorizer that [`CacheLayer`] makes.
pub struct Cached<A, I, C = SystemClock, O = ()> {
    authorizer: A,
    grants: Grants<I>,
    clock: C,
    observer: O,
}

impl<A: Clone, I, C: Clone, O: Clone> Clone for Cached<A, I, C, O> {
    fn clone(&self) -> Self {
        Cached {
            authorizer: self.authorizer.clone(),
            grants: self.grants.clone(),
            clock: self.clock.clone(),
            observer: self.observer.clone(),
        }
    }
}

impl<A, I, C, O, Cred> Service<Cred> for Cached<A, I, C, O>
where
    A: Service<Cred, Response = Arc<I>> + Clone,
    I: Expires + Send + Sync + 'static,
    C: Clock,
    O: Observe<CacheEvent> + Clone,
    Cred: Hash,
{
    type Response = Arc<I>;
    type Error = A::Error;
    type Future = CachedFuture<A, I, Cred, O>;

    /// Always ready: a hit needs no authorizer.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), A::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, credential: Cred) -> Self::Future {
        let key = self.grants.key(&credential);
        let now = self.clock.now();
        let grant = self.grants.store.get(&key).filter(|grant| grant.expires_at().is_none_or(|end| now < end));
        self.observer.observe(if grant.is_some() { &CacheEvent::Hit } else { &CacheEvent::Miss });
        match grant {
            Some(grant) => CachedFuture::Hit { grant: Some(grant) },
            None => CachedFuture::Miss {
                asking: Oneshot::new(self.authorizer.clone(), credential),
                grants: self.grants.clone(),
                key,
                observer: self.observer.clone(),
            },
        }
    }
}

pin_project! {
    /// The future of [`Cached`].
    #[project = CachedProj]
    pub enum CachedFuture<A: Service<Cred>, I, Cred, O> {
        /// The grant is at hand.
        #[doc(hidden)]
        Hit { grant: Option<Arc<I>> },
        /// The authorizer is asked.
        #[doc(hidden)]
        Miss {
            #[pin]
            asking: Oneshot<A, Cred>,
            grants: Grants<I>,
            key: u128,
            observer: O,
        },
    }
}

impl<A, I, Cred, O> Future for CachedFuture<A, I, Cred, O>
where
    A: Service<Cred, Response = Arc<I>>,
    I: Send + Sync + 'static,
    O: Observe<CacheEvent>,
{
    type Output = Result<Arc<I>, A::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CachedProj::Hit { grant } => grant.take().map_or(Poll::Pending, |grant| Poll::Ready(Ok(grant))),
            CachedProj::Miss { asking, grants, key, observer } => {
                let grant = ready!(asking.poll(cx))?;
                grants.store.insert(*key, Arc::clone(&grant));
                observer.observe(&CacheEvent::Write);
                Poll::Ready(Ok(grant))
            }
        }
    }
}
