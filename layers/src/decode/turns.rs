//! Turns at the processors: who has its body whole waits for one, and nobody begins to wait who would wait for too much.

use std::{
    num::NonZeroUsize,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, filter::Predicate};

use crate::{
    describe::DescribePredicate,
    rejection::{Reason, Rejection},
};

/// Nanoseconds of work after which whoever is first lets go of its thread: seldom enough to cost nothing, often enough for answers.
const LET_GO_AFTER: u64 = 1_000_000;

/// What overload of others' making lasts at least.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The queue for what payloads cost of the processors: as many are decoded, and worked on until they wait for others, as there are
/// processors; the rest wait in the order in which their bodies were whole. Clones are one queue, for all stacks of a process.
///
/// Without it everything that has arrived is worked on at once, answers and refusals wait behind it all, and under twice the load that
/// can be carried every request becomes too late to be of use. With it whoever would wait for more work than the bound is refused as
/// `overloaded`: before its body is read where [`RefuseWhileLong`] stands at the head of the stack, behind it otherwise.
///
/// The work is estimated: requests that wait, times what the last ones took of a processor (a moving average). What else a processor
/// does meanwhile, such as reading bodies and refusing, comes on top of it.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    free: Arc<Semaphore>,
    processors: NonZeroUsize,
    longest_wait: Duration,
    waiting: AtomicUsize,
    /// Nanoseconds that a turn takes.
    average: AtomicU64,
    /// Nanoseconds that turns have taken since someone let go.
    since_let_go: AtomicU64,
}

impl Turns {
    /// A queue for so many processors, in which nobody waits for more than `longest_wait` of each one's work.
    pub fn new(processors: NonZeroUsize, longest_wait: Duration) -> Self {
        let free = Arc::new(Semaphore::new(processors.get().min(Semaphore::MAX_PERMITS)));
        Turns(Arc::new(Queue {
            free,
            processors,
            longest_wait,
            waiting: AtomicUsize::new(0),
            average: AtomicU64::new(0),
            since_let_go: AtomicU64::new(LET_GO_AFTER),
        }))
    }

    /// For the head of a stack, inside whatever writes the answer: refuses requests while the queue is as long as it may get.
    pub fn refuse_while_long(&self) -> RefuseWhileLong {
        RefuseWhileLong(self.clone())
    }

    /// The work of each processor that whoever joins the queue now will wait for.
    fn wait(&self) -> Duration {
        let Queue { waiting, average, processors, .. } = &*self.0;
        let (waiting, average) = (waiting.load(Ordering::Relaxed) as u64, average.load(Ordering::Relaxed));
        Duration::from_nanos(waiting.saturating_mul(average) / processors.get() as u64)
    }

    fn is_long(&self) -> bool {
        self.wait() > self.0.longest_wait
    }

    /// A place in the queue, unless that is too long.
    ///
    /// Once in a while whoever is first lets go of its thread: what is ready to join does so meanwhile, or is refused, and answers
    /// that are ready go out. Work that is begun goes on to its end, so a queue would never be seen otherwise.
    pub(super) fn join(&self) -> Result<Waiting, Rejection> {
        if self.is_long() {
            return Err(self.rejection());
        }
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        let free = Arc::clone(&self.0.free);
        Ok(match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => {
                let lets_go = self.0.since_let_go.load(Ordering::Relaxed) >= LET_GO_AFTER;
                Waiting::First { permit: Some(permit), place, lets_go }
            }
            // The semaphore is never closed.
            Err(_) => Waiting::Behind { permit: Box::pin(async move { free.acquire_owned().await.ok() }), place },
        })
    }

    fn begin(&self, permit: OwnedSemaphorePermit) -> Turn {
        Turn { turns: self.clone(), began: processor_time(), _permit: permit }
    }

    fn rejection(&self) -> Rejection {
        let millis = self.0.longest_wait.as_millis();
        let detail = format!("this gateway has work for longer than {millis} ms, and takes no more until then");
        Rejection::new(Reason::Overloaded, detail).retry_after(RETRY_AFTER)
    }
}

/// Resolves to the turn.
pub(super) enum Waiting {
    First { permit: Option<OwnedSemaphorePermit>, place: Place, lets_go: bool },
    Behind { permit: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>, place: Place },
}

impl Future for Waiting {
    type Output = Option<Turn>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Turn>> {
        let (permit, place) = match self.get_mut() {
            Waiting::First { lets_go: lets_go @ true, place, .. } => {
                *lets_go = false;
                place.0.0.since_let_go.store(0, Ordering::Relaxed);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Waiting::First { permit, place, .. } => (permit.take(), place),
            Waiting::Behind { permit, place } => (ready!(permit.as_mut().poll(cx)), place),
        };
        Poll::Ready(permit.map(|permit| place.0.begin(permit)))
    }
}

/// A place in the queue.
pub(super) struct Place(Turns);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A turn; it ends when this is dropped, which is within the poll that it began in.
pub(super) struct Turn {
    turns: Turns,
    /// Of this thread's time.
    began: u64,
    _permit: OwnedSemaphorePermit,
}

/// Nanoseconds that this thread has had of a processor: that it was held up by others says nothing of the work.
#[cfg(unix)]
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds, whoever had the processor.
#[cfg(not(unix))]
fn processor_time() -> u64 {
    static SINCE: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    SINCE.elapsed().as_nanos() as u64
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Queue { average, since_let_go, .. } = &*self.turns.0;
        let (before, took) = (average.load(Ordering::Relaxed), processor_time().saturating_sub(self.began));
        // Of two at once one may be lost, which does no harm to an average.
        average.store(before - before / 16 + took / 16, Ordering::Relaxed);
        since_let_go.fetch_add(took, Ordering::Relaxed);
    }
}

/// Refuses requests while the queue is as long as it may get: a predicate for tower's `FilterLayer`.
#[derive(Debug, Clone)]
pub struct RefuseWhileLong(Turns);

impl<B> Predicate<Request<B>> for RefuseWhileLong {
    type Request = Request<B>;

    fn check(&mut self, request: Request<B>) -> Result<Request<B>, BoxError> {
        if self.0.is_long() { Err(self.0.rejection().by(Self::NAME).into()) } else { Ok(request) }
    }
}

impl DescribePredicate for RefuseWhileLong {
    const REASONS: &'static [Reason] = &[Reason::Overloaded];
    const NAME: &'static str = "RefuseWhileLong";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_processor(longest_wait: Duration, average: Duration) -> Turns {
        let turns = Turns::new(NonZeroUsize::MIN, longest_wait);
        turns.0.average.store(average.as_nanos() as u64, Ordering::Relaxed);
        turns
    }

    fn poll(waiting: &mut Waiting) -> Option<Turn> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(waiting).poll(&mut context) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    fn turn(turns: &Turns) -> Turn {
        let mut waiting = turns.join().unwrap();
        poll(&mut waiting).or_else(|| poll(&mut waiting)).expect("nobody was before it")
    }

    #[tokio::test]
    async fn whoever_is_first_lets_go_of_its_thread_once_in_a_while() {
        let turns = one_processor(Duration::from_secs(1), Duration::from_millis(1));
        let waits = || {
            let mut first = turns.join().unwrap();
            let waits = poll(&mut first).is_none();
            if waits {
                assert!(poll(&mut first).is_some());
            }
            waits
        };
        assert!(waits());
        assert!(!waits());
        turns.0.since_let_go.store(LET_GO_AFTER, Ordering::Relaxed);
        assert!(waits());
    }

    #[tokio::test]
    async fn turns_come_in_the_order_of_joining() {
        let turns = one_processor(Duration::from_secs(1), Duration::from_millis(1));
        let first = turn(&turns);
        let (mut second, mut third) = (turns.join().unwrap(), turns.join().unwrap());
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none());
        drop(first);
        assert!(poll(&mut third).is_none());
        let second = poll(&mut second).unwrap();
        drop(second);
        assert!(poll(&mut third).is_some());
    }

    #[tokio::test]
    async fn nobody_joins_a_queue_that_is_too_long() {
        let turns = one_processor(Duration::from_millis(10), Duration::from_millis(6));
        let mut filter = turns.refuse_while_long();
        let mut refuses = || filter.check(Request::new(())).is_err();
        let first = turn(&turns);
        // Each waits for those before it: none, 6 ms; the third would for 12.
        let places = [turns.join().unwrap(), turns.join().unwrap()];
        assert!(refuses());
        let rejection = turns.join().err().unwrap();
        assert_eq!((rejection.reason(), rejection.wait()), (Reason::Overloaded, Some(RETRY_AFTER)));
        // Whoever goes away makes room.
        drop(places);
        assert!(!refuses());
        drop(turns.join().unwrap());
        drop(first);
        drop(turn(&turns));
    }

    /// Through the layer: bodies that are whole wait behind a turn, and are answered in order.
    #[tokio::test]
    async fn bodies_wait_their_turn() {
        use crate::{
            decode::{DecodeLayer, WriteRequestDecoder},
            payload::WriteRequest,
        };
        use tower::{ServiceBuilder, ServiceExt};

        let turns = one_processor(Duration::from_millis(10), Duration::from_millis(6));
        let service = ServiceBuilder::new()
            .layer(DecodeLayer::new(WriteRequestDecoder::default()).turns(turns.clone()))
            .service(tower::service_fn(async |_: Request<WriteRequest>| Ok::<_, std::convert::Infallible>(())));
        let push = || {
            Box::pin(service.clone().oneshot(Request::new(http_body_util::Full::new(bytes::Bytes::from_static(b"\0")))))
        };
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut poll = |push: &mut Pin<Box<_>>| Future::poll(Pin::as_mut(push), &mut context);

        let other = turn(&turns);
        let (mut first, mut second, mut third) = (push(), push(), push());
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        match poll(&mut third) {
            Poll::Ready(Err(rejection)) => assert_eq!(rejection.reason(), Reason::Overloaded),
            waits => panic!("{waits:?}"),
        }
        drop(other);
        assert!(poll(&mut second).is_pending());
        assert!(matches!(poll(&mut first), Poll::Ready(Ok(()))));
        assert!(matches!(poll(&mut second), Poll::Ready(Ok(()))));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_average_follows_what_turns_take_of_a_processor() {
        let turns = one_processor(Duration::from_secs(1), Duration::from_secs(1));
        let average = || Duration::from_nanos(turns.0.average.load(Ordering::Relaxed));
        for _ in 0..200 {
            drop(turn(&turns));
        }
        let idle = average();
        assert!(idle < Duration::from_millis(100), "{idle:?}");
        // One that waits, takes nothing of it.
        let held = turn(&turns);
        std::thread::park_timeout(Duration::from_millis(300));
        drop(held);
        assert!(average() < idle + Duration::from_millis(300) / 16, "{:?}", average());
        let worked = turn(&turns);
        let began = processor_time();
        while processor_time() < began + 50_000_000 {}
        let before = average();
        drop(worked);
        assert!(average() >= before - before / 16 + Duration::from_millis(50) / 16, "{:?}", average());
    }
}
