//! Keeps what an authorizer said.
//!
//! A layer over any authorizer that is slow and sometimes down:
//!
//! - **Grants** live for a set time and never past the identity's own end. One that is used is asked for again in the background before
//!   its time is over, so nobody waits for it. While the authorizer is down, an expired grant serves on for a time of grace.
//! - **Refusals** live for a short time in a store of their own, where they can push out no grant. **Outages** are not kept.
//! - **Concurrent requests** of one credential make one call, which goes on whoever hangs up. Calls for the unknown and refreshes of
//!   the known are bounded apart, so that a storm of bad tokens cannot starve the refreshes.
//! - **Replicas** can share grants in a [`Store`](crate::store::Store), see [`SharedGrants`]. What it does not answer is a miss.
//!
//! Keys are keyed hashes of the credential, which itself is never kept. Memory is bounded by weight; a grant is kept in as few bytes as
//! its [`Cacheable`] can make it, some 350 in all. It needs a tokio runtime.
//!
//! ```
//! use infogw_layers::authorize::{ClusterId, Identity, Secret, cache::{CacheConfig, CacheLayer}};
//! use infogw_layers::rejection::Rejection;
//! use tower::{Layer, ServiceExt, service_fn};
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Rejection> {
//! let calls = Arc::new(AtomicU32::new(0));
//! let counted = calls.clone();
//! let cached = CacheLayer::new(CacheConfig::default()).layer(service_fn(move |_: Secret| {
//!     counted.fetch_add(1, Ordering::Relaxed);
//!     async { Ok::<_, Rejection>(Arc::new(Identity::of(ClusterId::new("c1").unwrap()))) }
//! }));
//! for _ in 0..3 {
//!     cached.clone().oneshot(Secret::new("token")).await?;
//! }
//! assert_eq!(calls.load(Ordering::Relaxed), 1);
//! # Ok(()) }
//! ```

mod packed;
mod shared;

use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use moka::sync::Cache;
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::{sync::Semaphore, time::timeout};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use super::single_flight::{Flight, Flights, KeyedHash, busy};
use crate::{
    clock::{Clock, SystemClock},
    observe::Observe,
    rejection::{Reason, Rejection},
};

pub use shared::SharedGrants;

/// What an authorizer grants to those who bring a credential `C`, as a cache keeps it.
pub trait Cacheable<C>: Sized + Send + Sync + 'static {
    /// The fewest bytes that, with the same credential, say the same again.
    fn pack(&self, credential: &C) -> Vec<u8>;

    /// What [`pack`](Self::pack) made, again; `None` where these are not such bytes.
    fn unpack(bytes: &[u8], credential: &C) -> Option<Self>;

    /// When it ends, if it does.
    fn expires_at(&self) -> Option<SystemTime>;
}

/// How long what is kept, and how much of it.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// How long a grant lives.
    pub grant_life: Duration,
    /// How long a refusal lives.
    pub refusal_life: Duration,
    /// How long after its life a grant still serves while the authorizer is down.
    pub grace: Duration,
    /// Whether grants in use are asked for again when 7 to 9 tenths of their life are over: at another point for each, so that a fleet
    /// that came as one does not come back as one.
    pub refresh_ahead: bool,
    /// How long the owner of an expired grant waits for the authorizer before the grant serves on. Once one has waited in vain, nobody
    /// does until the authorizer answers again.
    pub patience: Duration,
    /// About how many bytes of memory grants may take.
    pub max_bytes: u64,
    /// Calls to the authorizer at once for those who have no grant.
    pub calls: usize,
    /// Calls at once for those who have one.
    pub refreshes: usize,
    /// Where replicas share grants.
    pub shared: Option<SharedGrants>,
}

impl Default for CacheConfig {
    /// An hour; refusals 30 seconds; a day of grace; 400 MiB, which is a million clusters and more; 512 calls and 64 refreshes; not shared.
    fn default() -> Self {
        CacheConfig {
            grant_life: Duration::from_secs(60 * 60),
            refusal_life: Duration::from_secs(30),
            grace: Duration::from_secs(24 * 60 * 60),
            refresh_ahead: true,
            patience: Duration::from_millis(500),
            max_bytes: 400 << 20,
            calls: 512,
            refreshes: 64,
            shared: None,
        }
    }
}

/// What the cache did. Every request begins with a hit, a refusal, a miss, or a stale grant that did not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheEvent {
    /// A grant was at hand.
    Hit,
    /// A refusal was at hand.
    RefusalHit,
    /// Nothing that held was at hand, so the request waits for what is found out.
    Miss,
    /// A request that had missed was served with what another replica had been granted.
    SharedHit,
    /// An expired grant served, because the authorizer was down.
    Stale {
        /// After it had missed and waited, or at once.
        waited: bool,
    },
    /// After a miss: too many calls were under way to make another, so the request was refused.
    Shed,
    /// An authorizer was asked, for whoever waits or in the background, and this came of it.
    Asked(Verdict),
    /// What it granted was kept.
    Write,
}

/// What an authorizer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Granted,
    /// No.
    Refused,
    /// Come back later.
    Throttled,
    /// Nothing, or nothing that makes sense.
    Outage,
}

impl Verdict {
    fn of<T>(outcome: &Result<T, Rejection>) -> Self {
        outcome.as_ref().map_or_else(Verdict::of_refusal, |_| Verdict::Granted)
    }

    fn of_refusal(rejection: &Rejection) -> Self {
        match rejection.reason() {
            Reason::AuthorizerThrottled => Verdict::Throttled,
            _ if rejection.status().is_client_error() => Verdict::Refused,
            _ => Verdict::Outage,
        }
    }
}

/// Keeps grants and refusals.
pub struct CacheLayer<I, C = SystemClock, O = ()> {
    kept: Arc<Kept<I>>,
    clock: C,
    observer: O,
}

/// What all services of a layer share.
struct Kept<I> {
    config: CacheConfig,
    hash: KeyedHash,
    grants: Cache<u128, Grant>,
    refusals: Cache<u128, Refusal>,
    /// What was found out, and where.
    flights: Flights<(Arc<I>, Found)>,
    /// When grants were taken back that a store may still hold: what it holds from before is no use.
    revoked: Cache<u128, i64>,
    calls: Arc<Semaphore>,
    refreshes: Arc<Semaphore>,
    /// For those who have a grant, while there is trouble: that it is over is found out by one at a time.
    probes: Arc<Semaphore>,
    /// The authorizer was heard of last when it did not answer, or not soon.
    trouble: AtomicBool,
}

#[derive(Debug, Clone)]
struct Grant {
    /// Inline as far as a grant of a cluster's own is long.
    packed: SmallVec<[u8; 36]>,
    /// By the monotonic clock, in milliseconds. Signed, because another replica may have got it before this process began.
    granted: i64,
}

/// Where a grant was found that was not at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The authorizer gave it.
    Asked,
    /// Another replica left it.
    Shared,
    /// Another replica left it, and it has expired.
    Stale,
}

#[derive(Debug, Clone)]
struct Refusal {
    rejection: Rejection,
    until: Duration,
}

/// What the store takes for a grant that fits inline, in bytes, measured with glibc's allocator.
const GRANT_BYTES: u32 = 360;
const REFUSAL_BYTES: u32 = 640;
/// What refusals may take.
const REFUSALS: u64 = 16 << 20;
/// How many grants that were taken back are remembered.
const REVOKED: u64 = 1 << 16;

impl<I: Send + Sync + 'static> CacheLayer<I> {
    /// An empty cache.
    pub fn new(config: CacheConfig) -> Self {
        let weight = |_: &u128, grant: &Grant| {
            let heap = if grant.packed.spilled() { grant.packed.capacity() + 16 } else { 0 };
            GRANT_BYTES.saturating_add(u32::try_from(heap).unwrap_or(u32::MAX))
        };
        // To be forgotten by time, not by what is said here: that is judged by our clock.
        let forgotten = config.grant_life.saturating_add(config.grace).min(Duration::from_secs(365 * 86_400));
        let grants = Cache::builder().weigher(weight).max_capacity(config.max_bytes).time_to_idle(forgotten).build();
        let weight = |_: &u128, refusal: &Refusal| {
            REFUSAL_BYTES.saturating_add(u32::try_from(refusal.rejection.detail().len()).unwrap_or(u32::MAX))
        };
        let refused = config.refusal_life.max(Duration::from_millis(1));
        let refusals = Cache::builder().weigher(weight).max_capacity(REFUSALS).time_to_live(refused).build();
        let places = |places: usize| Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let kept = Kept {
            calls: places(config.calls),
            refreshes: places(config.refreshes),
            revoked: Cache::builder().max_capacity(REVOKED).time_to_live(forgotten).build(),
            probes: Arc::new(Semaphore::new(1)),
            config,
            hash: KeyedHash::default(),
            grants,
            refusals,
            flights: Flights::default(),
            trouble: AtomicBool::new(false),
        };
        CacheLayer { kept: Arc::new(kept), clock: SystemClock, observer: () }
    }
}

impl<I, C, O> CacheLayer<I, C, O> {
    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> CacheLayer<I, D, O> {
        CacheLayer { kept: self.kept, clock, observer: self.observer }
    }

    /// Tells `observer` what the cache does.
    pub fn observed_by<P>(self, observer: P) -> CacheLayer<I, C, P> {
        CacheLayer { kept: self.kept, clock: self.clock, observer }
    }

    /// Tells how much it holds.
    pub fn handle(&self) -> CacheHandle {
        CacheHandle(self.kept.grants.clone())
    }
}

/// How much a cache holds.
#[derive(Clone)]
pub struct CacheHandle(Cache<u128, Grant>);

impl CacheHandle {
    /// Grants that are kept.
    pub fn entries(&self) -> u64 {
        // The store counts when it tidies up.
        self.0.run_pending_tasks();
        self.0.entry_count()
    }

    /// Bytes that they take, about.
    pub fn bytes(&self) -> u64 {
        self.0.weighted_size()
    }
}

impl fmt::Debug for CacheHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheHandle").field("entries", &self.entries()).finish_non_exhaustive()
    }
}

impl<I, C: fmt::Debug, O> fmt::Debug for CacheLayer<I, C, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer")
            .field("config", &self.kept.config)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl<I, C: Clone, O: Clone> Clone for CacheLayer<I, C, O> {
    fn clone(&self) -> Self {
        CacheLayer { kept: Arc::clone(&self.kept), clock: self.clock.clone(), observer: self.observer.clone() }
    }
}

impl<A, I, C: Clone, O: Clone> Layer<A> for CacheLayer<I, C, O> {
    type Service = Cached<A, I, C, O>;

    /// Services of clones of one layer share what is kept.
    fn layer(&self, authorizer: A) -> Self::Service {
        Cached { authorizer, layer: self.clone() }
    }
}

/// The authorizer that [`CacheLayer`] makes.
pub struct Cached<A, I, C = SystemClock, O = ()> {
    authorizer: A,
    layer: CacheLayer<I, C, O>,
}

impl<A: Clone, I, C: Clone, O: Clone> Clone for Cached<A, I, C, O> {
    fn clone(&self) -> Self {
        Cached { authorizer: self.authorizer.clone(), layer: self.layer.clone() }
    }
}

impl<A, I, C, O, Cred> Service<Cred> for Cached<A, I, C, O>
where
    A: Service<Cred, Response = Arc<I>, Error: Into<Rejection>, Future: Send> + Clone + Send + 'static,
    I: Cacheable<Cred>,
    C: Clock,
    O: Observe<CacheEvent> + Clone + Send + Sync + 'static,
    Cred: Hash + Clone + Send + Sync + 'static,
{
    type Response = Arc<I>;
    type Error = Rejection;
    type Future = CachedFuture<I>;

    /// Always ready: a hit needs no authorizer.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, credential: Cred) -> Self::Future {
        let CacheLayer { kept, clock, observer } = &self.layer;
        let key = kept.key(&credential);
        if let Some((identity, age)) = kept.grant(key, &credential, clock) {
            if age < kept.config.grant_life {
                if kept.config.refresh_ahead && age >= kept.refresh_after(key) {
                    let _ = self.look_up(key, credential, Asker::Known);
                }
                observer.observe(&CacheEvent::Hit);
                return CachedFuture::at_hand(Ok(identity));
            }
            if age < kept.longest() {
                let flight = self.look_up(key, credential, Asker::Known);
                return match flight.filter(|_| !kept.trouble.load(Ordering::Relaxed)) {
                    Some(flight) => {
                        observer.observe(&CacheEvent::Miss);
                        CachedFuture::waiting(self.found_out(flight, Some(identity)))
                    }
                    None => {
                        observer.observe(&CacheEvent::Stale { waited: false });
                        CachedFuture::at_hand(Ok(identity))
                    }
                };
            }
        }
        if let Some(rejection) = kept.refusal(key, clock) {
            observer.observe(&CacheEvent::RefusalHit);
            return CachedFuture::at_hand(Err(rejection));
        }
        observer.observe(&CacheEvent::Miss);
        match self.look_up(key, credential, Asker::Unknown) {
            Some(flight) => CachedFuture::waiting(self.found_out(flight, None)),
            None => {
                observer.observe(&CacheEvent::Shed);
                CachedFuture::at_hand(Err(busy(kept.config.calls)))
            }
        }
    }
}

/// On whose behalf the authorizer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// Has no grant.
    Unknown,
    /// Has one, fresh or expired.
    Known,
}

impl<A, I, C, O> Cached<A, I, C, O>
where
    C: Clock,
    O: Observe<CacheEvent> + Clone + Send + Sync + 'static,
    I: Send + Sync + 'static,
{
    /// Joins or starts the call for `key`, if there is a place for it.
    fn look_up<Cred>(&self, key: u128, credential: Cred, asker: Asker) -> Option<Flight<(Arc<I>, Found)>>
    where
        A: Service<Cred, Response = Arc<I>, Error: Into<Rejection>, Future: Send> + Clone + Send + 'static,
        I: Cacheable<Cred>,
        Cred: Hash + Clone + Send + Sync + 'static,
    {
        let CacheLayer { kept, clock, observer } = &self.layer;
        kept.flights.join_or_start(key, || {
            let places = match asker {
                Asker::Unknown => &kept.calls,
                Asker::Known if kept.trouble.load(Ordering::Relaxed) => &kept.probes,
                Asker::Known => &kept.refreshes,
            };
            let place = Arc::clone(places).try_acquire_owned().ok()?;
            let lookup = Lookup {
                kept: Arc::clone(kept),
                clock: clock.clone(),
                observer: observer.clone(),
                authorizer: self.authorizer.clone(),
                key,
                asker,
            };
            Some(async move {
                let outcome = lookup.run(credential).await;
                drop(place);
                outcome
            })
        })
    }

    /// What is found out. Where it is no word of the authorizer's, or does not come soon, an `expired` grant serves on.
    fn found_out(
        &self,
        flight: Flight<(Arc<I>, Found)>,
        expired: Option<Arc<I>>,
    ) -> impl Future<Output = Result<Arc<I>, Rejection>> + Send + use<A, I, C, O> {
        let CacheLayer { kept, observer, .. } = &self.layer;
        let (kept, observer) = (Arc::clone(kept), observer.clone());
        async move {
            let outcome = match &expired {
                None => Some(flight.outcome().await),
                Some(_) => timeout(kept.config.patience, flight.outcome()).await.ok(),
            };
            if outcome.is_none() {
                kept.trouble.store(true, Ordering::Relaxed);
            }
            match (outcome, expired) {
                (Some(Ok((identity, found))), _) => {
                    match found {
                        Found::Asked => {}
                        Found::Shared => observer.observe(&CacheEvent::SharedHit),
                        Found::Stale => observer.observe(&CacheEvent::Stale { waited: true }),
                    }
                    Ok(identity)
                }
                (Some(Err(rejection)), Some(_)) if Verdict::of_refusal(&rejection) == Verdict::Refused => {
                    Err(rejection)
                }
                (_, Some(expired)) => {
                    observer.observe(&CacheEvent::Stale { waited: true });
                    Ok(expired)
                }
                (Some(Err(rejection)), None) => Err(rejection),
                // Only those wait for a while who have something to fall back on.
                (None, None) => Err(busy(kept.config.calls)),
            }
        }
    }
}

impl<I: Send + Sync + 'static> Kept<I> {
    fn key(&self, credential: &impl Hash) -> u128 {
        self.hash.of(credential)
    }

    /// The grant under `key` and its age, unless it has come to its own end.
    fn grant<Cred>(&self, key: u128, credential: &Cred, clock: &impl Clock) -> Option<(Arc<I>, Duration)>
    where
        I: Cacheable<Cred>,
    {
        let grant = self.grants.get(&key)?;
        let identity = I::unpack(&grant.packed, credential)?;
        if identity.expires_at().is_some_and(|end| end <= clock.now()) {
            return None;
        }
        Some((Arc::new(identity), age(grant.granted, clock)))
    }

    fn refusal(&self, key: u128, clock: &impl Clock) -> Option<Rejection> {
        let Refusal { rejection, until } = self.refusals.get(&key)?;
        (clock.monotonic() < until).then_some(rejection)
    }

    /// The age of a grant past which it is no use at all.
    fn longest(&self) -> Duration {
        self.config.grant_life.saturating_add(self.config.grace)
    }

    /// The age of a grant at which it is asked for again: 7 to 9 tenths of its life, by its key.
    fn refresh_after(&self, key: u128) -> Duration {
        let spread = f64::from(key as u16) / f64::from(u16::MAX);
        self.config.grant_life.mul_f64(0.7 + 0.2 * spread)
    }

    fn keep(&self, key: u128, packed: &[u8], age: Duration, clock: &impl Clock) {
        self.refusals.invalidate(&key);
        self.grants.insert(key, Grant { packed: SmallVec::from_slice(packed), granted: self.granted(age, clock) });
    }

    /// When a grant of this age was granted, by the monotonic clock.
    fn granted(&self, age: Duration, clock: &impl Clock) -> i64 {
        millis(clock.monotonic()).saturating_sub(millis(age))
    }
}

fn age(granted: i64, clock: &impl Clock) -> Duration {
    Duration::from_millis(u64::try_from(millis(clock.monotonic()).saturating_sub(granted)).unwrap_or(0))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// One look-up, in a task of its own.
struct Lookup<A, I, C, O> {
    kept: Arc<Kept<I>>,
    clock: C,
    observer: O,
    authorizer: A,
    key: u128,
    asker: Asker,
}

impl<A, I, C: Clock, O: Observe<CacheEvent>> Lookup<A, I, C, O> {
    async fn run<Cred>(self, credential: Cred) -> Result<(Arc<I>, Found), Rejection>
    where
        A: Service<Cred, Response = Arc<I>, Error: Into<Rejection>>,
        I: Cacheable<Cred>,
        Cred: Hash + Clone,
    {
        let Lookup { kept, clock, observer, authorizer, key, asker } = self;
        // Whose age needs no call.
        let young = if asker == Asker::Known { kept.refresh_after(key) } else { kept.config.grant_life };
        let known = kept.grant(key, &credential, &clock);
        // The call before may have ended between the caller's look and this one.
        if let Some((identity, age)) = &known
            && *age < young
        {
            return Ok((Arc::clone(identity), Found::Asked));
        }
        if let Some(rejection) = kept.refusal(key, &clock) {
            return Err(rejection);
        }

        let shared = kept.config.shared.as_ref();
        let left = match shared {
            None => None,
            Some(shared) => shared.read::<I, Cred>(&credential, &clock).await,
        };
        // Of no use where it is older than what is known here, or than the authorizer's no.
        let left = left.filter(|left| {
            known.as_ref().is_none_or(|(_, age)| left.age < *age)
                && kept.revoked.get(&key).is_none_or(|revoked| kept.granted(left.age, &clock) > revoked)
        });
        if let Some(left) = &left
            && left.age < young
        {
            kept.keep(key, &left.packed, left.age, &clock);
            return Ok((Arc::clone(&left.identity), Found::Shared));
        }

        let outcome = authorizer.oneshot(credential.clone()).await.map_err(Into::into);
        let verdict = Verdict::of(&outcome);
        observer.observe(&CacheEvent::Asked(verdict));
        // Only by those who are known: a stranger's credential that makes the authorizer fail says nothing of it.
        let stranger = asker == Asker::Unknown && left.is_none();
        if verdict != Verdict::Outage || !stranger {
            kept.trouble.store(verdict == Verdict::Outage, Ordering::Relaxed);
        }
        let rejection = match outcome {
            Ok(identity) => {
                let packed = identity.pack(&credential);
                kept.keep(key, &packed, Duration::ZERO, &clock);
                observer.observe(&CacheEvent::Write);
                if let Some(shared) = shared {
                    shared.write(&credential, &packed, kept.longest(), &clock);
                }
                return Ok((identity, Found::Asked));
            }
            Err(rejection) => rejection,
        };
        if verdict == Verdict::Refused {
            kept.grants.invalidate(&key);
            if let Some(shared) = shared.filter(|_| !stranger) {
                kept.revoked.insert(key, kept.granted(Duration::ZERO, &clock));
                shared.forget(&credential);
            }
        }
        // Unknown here, but known to a replica: its expired grant serves, as ours would.
        let left = left.filter(|left| verdict != Verdict::Refused && left.age < kept.longest());
        if let Some(left) = &left {
            kept.keep(key, &left.packed, left.age, &clock);
        }
        if verdict != Verdict::Outage {
            let life = match (verdict, rejection.wait()) {
                (Verdict::Throttled, Some(wait)) => wait.min(kept.config.refusal_life),
                _ => kept.config.refusal_life,
            };
            let until = clock.monotonic().saturating_add(life);
            kept.refusals.insert(key, Refusal { rejection: rejection.clone(), until });
        }
        left.map(|left| (left.identity, Found::Stale)).ok_or(rejection)
    }
}

pin_project! {
    /// The future of [`Cached`].
    pub struct CachedFuture<I> {
        state: State<I>,
    }
}

type Outcome<I> = Result<Arc<I>, Rejection>;

enum State<I> {
    AtHand(Option<Outcome<I>>),
    /// Boxed: what is waited for takes a call over the network.
    Waiting(Pin<Box<dyn Future<Output = Outcome<I>> + Send>>),
}

impl<I> CachedFuture<I> {
    fn at_hand(outcome: Outcome<I>) -> Self {
        CachedFuture { state: State::AtHand(Some(outcome)) }
    }

    fn waiting(outcome: impl Future<Output = Outcome<I>> + Send + 'static) -> Self {
        CachedFuture { state: State::Waiting(Box::pin(outcome)) }
    }
}

impl<I> Future for CachedFuture<I> {
    type Output = Outcome<I>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<I>> {
        match self.project().state {
            // `None`: polled again after completion, which futures need not bear.
            State::AtHand(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
            State::Waiting(outcome) => Poll::Ready(ready!(outcome.as_mut().poll(cx))),
        }
    }
}
