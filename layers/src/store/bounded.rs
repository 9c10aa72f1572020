//! Bounds on what a store may cost.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::Semaphore, time::timeout};

use super::{Circuits, Store, StoreError, StoreFuture};
use crate::{
    circuit::Circuit,
    clock::{Clock, SystemClock},
    observe::Observe,
};

/// A store whose calls end within a deadline, of which only so many are under way at once, and which is left alone for a while when it
/// fails several times in a row. Whatever is wrong with the store inside, a call costs no more than that.
///
/// ```
/// use bytes::Bytes;
/// use infogw_layers::store::{Bounded, Store, StoreError, StoreFuture};
/// use std::time::Duration;
///
/// /// A server that took the question and went silent.
/// struct Silent;
/// impl Store for Silent {
///     fn get<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Bytes>> {
///         Box::pin(std::future::pending())
///     }
///     fn set<'a>(&'a self, _: &'a str, _: Bytes, _: Duration) -> StoreFuture<'a, ()> {
///         Box::pin(std::future::pending())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let store = Bounded::new(Silent);
/// for _ in 0..5 {
///     assert_eq!(store.get("key").await, Err(StoreError::TimedOut));
/// }
/// assert_eq!(store.get("key").await, Err(StoreError::LeftAlone), "at once");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bounded<S, O = (), C = SystemClock> {
    store: S,
    deadline: Duration,
    in_flight: Arc<Semaphore>,
    circuits: Circuits,
    observer: O,
    clock: C,
}

/// How a call ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Called<'a> {
    /// What was asked.
    pub operation: Operation,
    /// What came of it.
    pub outcome: Outcome<'a>,
    /// How long that took.
    pub elapsed: Duration,
}

/// What a store can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// For a value.
    Get,
    /// To keep one.
    Set,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A value was there.
    Hit,
    /// None was.
    Miss,
    /// It was kept.
    Written,
    /// The store failed.
    Failed(&'a StoreError),
    /// The store was not asked: too many calls were under way, or it is being left alone.
    Skipped(&'a StoreError),
}

impl<S: Store> Bounded<S> {
    /// 50 ms a call, 256 calls at once, and left alone for a second after 5 failures in a row.
    pub fn new(store: S) -> Self {
        const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();
        Bounded {
            store,
            deadline: Duration::from_millis(50),
            in_flight: Arc::new(Semaphore::new(256)),
            circuits: Circuit::new(FAILURES, Duration::from_secs(1)).into(),
            observer: (),
            clock: SystemClock,
        }
    }
}

impl<S, O, C> Bounded<S, O, C> {
    /// Gives a call so long.
    pub fn deadline(self, deadline: Duration) -> Self {
        Bounded { deadline, ..self }
    }

    /// Lets so many calls be under way at once.
    pub fn in_flight(self, calls: usize) -> Self {
        Bounded { in_flight: Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS))), ..self }
    }

    /// Leaves the store alone when `circuit` says so: a [`Circuit`] for all keys, or [`Circuits`].
    pub fn circuit(self, circuit: impl Into<Circuits>) -> Self {
        Bounded { circuits: circuit.into(), ..self }
    }

    /// Tells `observer` how each call ended. Of a call that its caller gave up, nothing is told.
    pub fn observed_by<P>(self, observer: P) -> Bounded<S, P, C> {
        let Bounded { store, deadline, in_flight, circuits, clock, .. } = self;
        Bounded { store, deadline, in_flight, circuits, observer, clock }
    }

    /// Reads the circuit's time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> Bounded<S, O, D> {
        let Bounded { store, deadline, in_flight, circuits, observer, .. } = self;
        Bounded { store, deadline, in_flight, circuits, observer, clock }
    }
}

impl<S: Store, O, C: Clock> Bounded<S, O, C>
where
    O: for<'a> Observe<Called<'a>>,
{
    async fn bounded<T>(
        &self,
        operation: Operation,
        key: &str,
        call: StoreFuture<'_, T>,
        done: fn(&T) -> Outcome<'static>,
    ) -> Result<T, StoreError> {
        let started = self.clock.monotonic();
        let result = self.attempt(key, call).await;
        let elapsed = self.clock.monotonic().saturating_sub(started);
        let outcome = match &result {
            Ok(answer) => done(answer),
            Err(error @ (StoreError::LeftAlone | StoreError::Busy)) => Outcome::Skipped(error),
            Err(error) => Outcome::Failed(error),
        };
        self.observer.observe(&Called { operation, outcome, elapsed });
        result
    }

    async fn attempt<T>(&self, key: &str, call: StoreFuture<'_, T>) -> Result<T, StoreError> {
        let Ok(_permit) = self.in_flight.try_acquire() else { return Err(StoreError::Busy) };
        let attempt = self.circuits.of(key).and_then(|circuit| circuit.admit(self.clock.monotonic()).ok());
        let Some(attempt) = attempt else { return Err(StoreError::LeftAlone) };
        let result = timeout(self.deadline, call).await.unwrap_or(Err(StoreError::TimedOut));
        match &result {
            Ok(_) => attempt.succeeded(),
            // These say nothing of the store: it was not asked, or not all of it.
            Err(StoreError::Busy | StoreError::LeftAlone | StoreError::Invalid(_)) => drop(attempt),
            Err(_) => attempt.failed(self.clock.monotonic()),
        }
        result
    }
}

impl<S: Store, O, C: Clock> Store for Bounded<S, O, C>
where
    O: for<'a> Observe<Called<'a>> + Send + Sync + 'static,
{
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        let done = |value: &Option<Bytes>| if value.is_some() { Outcome::Hit } else { Outcome::Miss };
        Box::pin(self.bounded(Operation::Get, key, self.store.get(key), done))
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()> {
        Box::pin(self.bounded(Operation::Set, key, self.store.set(key, value, life), |()| Outcome::Written))
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::sync::Notify;

    /// Answers as it was told last; counts what reaches it.
    #[derive(Default)]
    struct Scripted {
        answer: Mutex<Option<Result<Option<Bytes>, StoreError>>>,
        asked: AtomicUsize,
        released: Notify,
    }

    impl Scripted {
        fn answers(&self, answer: Result<Option<Bytes>, StoreError>) {
            *self.answer.lock().unwrap() = Some(answer);
        }
    }

    impl Store for Scripted {
        fn get<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Bytes>> {
            Box::pin(async {
                self.asked.fetch_add(1, Ordering::Relaxed);
                let answer = self.answer.lock().unwrap().clone();
                match answer {
                    Some(answer) => answer,
                    None => {
                        self.released.notified().await;
                        Ok(None)
                    }
                }
            })
        }

        fn set<'a>(&'a self, key: &'a str, _: Bytes, _: Duration) -> StoreFuture<'a, ()> {
            Box::pin(async move { self.get(key).await.map(drop) })
        }
    }

    fn failed() -> Result<Option<Bytes>, StoreError> {
        Err(StoreError::Unavailable("down".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_within_the_deadline() {
        let store = Bounded::new(Scripted::default());
        let started = tokio::time::Instant::now();
        assert_eq!(store.get("k").await, Err(StoreError::TimedOut));
        assert_eq!(store.set("k", Bytes::new(), Duration::ZERO).await, Err(StoreError::TimedOut));
        assert_eq!(started.elapsed(), 2 * Duration::from_millis(50));
    }

    #[tokio::test]
    async fn past_so_many_at_once_calls_fail_at_once() {
        let inner = Arc::new(Scripted::default());
        let store = Arc::new(Bounded::new(Arc::clone(&inner)).in_flight(3).deadline(Duration::from_secs(60)));
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.get("k").await })
            })
            .collect();
        while inner.asked.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.get("k").await, Err(StoreError::Busy));
        inner.released.notify_waiters();
        for call in calls {
            assert_eq!(call.await.unwrap(), Ok(None));
        }
        inner.answers(Ok(None));
        assert_eq!(store.get("k").await, Ok(None));
    }

    #[tokio::test]
    async fn a_store_that_fails_is_left_alone_and_then_tried_by_one() {
        let (inner, clock) = (Arc::new(Scripted::default()), ManualClock::new());
        let store = Bounded::new(Arc::clone(&inner)).clock(clock.clone());
        inner.answers(failed());
        for _ in 0..100 {
            assert!(store.get("k").await.is_err());
        }
        assert_eq!(inner.asked.load(Ordering::Relaxed), 5);
        clock.advance(Duration::from_secs(1));
        assert_eq!(store.get("k").await, failed());
        assert_eq!(store.get("k").await, Err(StoreError::LeftAlone));
        inner.answers(Ok(None));
        clock.advance(Duration::from_secs(1));
        for _ in 0..10 {
            assert_eq!(store.get("k").await, Ok(None));
        }
        assert_eq!(inner.asked.load(Ordering::Relaxed), 16);
    }

    #[tokio::test]
    async fn what_was_not_asked_says_nothing_of_the_store() {
        let inner = Arc::new(Scripted::default());
        let store = Bounded::new(Arc::clone(&inner));
        for error in [StoreError::LeftAlone, StoreError::Invalid("no key".into())] {
            inner.answers(Err(error.clone()));
            for _ in 0..100 {
                assert_eq!(store.get("k").await, Err(error.clone()));
            }
        }
        assert_eq!(inner.asked.load(Ordering::Relaxed), 200);
    }

    #[tokio::test]
    async fn each_call_is_told_with_its_outcome() {
        let (inner, told) = (Arc::new(Scripted::default()), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&told);
        let store = Bounded::new(Arc::clone(&inner)).observed_by(move |called: &Called<'_>| {
            seen.lock().unwrap().push(format!("{:?} {:?}", called.operation, called.outcome));
        });
        inner.answers(Ok(Some(Bytes::new())));
        store.get("k").await.unwrap();
        store.set("k", Bytes::new(), Duration::ZERO).await.unwrap();
        inner.answers(Ok(None));
        store.get("k").await.unwrap();
        inner.answers(failed());
        let _ = store.get("k").await;
        inner.answers(Err(StoreError::LeftAlone));
        let _ = store.set("k", Bytes::new(), Duration::ZERO).await;
        let expected =
            ["Get Hit", "Set Written", "Get Miss", "Get Failed(Unavailable(\"down\"))", "Set Skipped(LeftAlone)"];
        assert_eq!(*told.lock().unwrap(), expected);
    }
}
