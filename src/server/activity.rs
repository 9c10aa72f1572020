//! What goes on on a connection, and when too little of it does.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::{sync::watch, time::sleep};

use super::{FIRST_WORDS, LAST_WORDS, Phase, places::Crowd, reached};
use crate::config::Connections;

/// The requests and answers of one connection. Counted without waking anybody.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
    http2: AtomicBool,
    /// Bytes that have come in, and how many had when the last request ended.
    read: AtomicU64,
    read_by_then: AtomicU64,
    /// Bytes that have gone out, and whether more would if the client took them.
    written: AtomicU64,
    write_pending: AtomicBool,
    /// All is said, and what the client still sends is thrown away.
    lingers: AtomicBool,
    /// Answers that have not left, by when they were made: in this tick of [`stalled`](Self::stalled), or the one before it.
    ticks: AtomicUsize,
    unsent: [AtomicU32; 2],
}

impl Activity {
    /// A request has arrived. It ends when what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// So many bytes have come in.
    pub(super) fn has_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes have gone out, or none for now as the client does not take them.
    pub(super) fn has_written(&self, written: &Poll<io::Result<usize>>) {
        self.write_pending.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn begins_to_linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    /// As far as is known.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Waits until the connection has had no request for too long: since it was made, or as an idle one; and [`LAST_WORDS`] after the
    /// listener has closed. A head that does not get on, or a client that takes no answers, is too long in between: for
    /// `header_timeout` to twice that.
    pub(super) async fn ceased(&self, mut phases: watch::Receiver<Phase>, limits: &Connections, crowd: &Crowd) {
        tokio::select! {
            () = self.stalled(limits, crowd) => return,
            () = reached(&mut phases, Phase::Closed) => {}
        }
        // Whoever has just connected may need some turns for TLS and a head.
        sleep(if self.has_begun() { LAST_WORDS } else { FIRST_WORDS }).await;
        let mut seen = None;
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            if seen == Some(begun) && !self.is_at_work(begun) {
                return;
            }
            seen = Some(begun);
            sleep(LAST_WORDS).await;
        }
    }

    /// Whether there is a request without an answer, an answer that has not left, or a client that is read to its end.
    fn is_at_work(&self, begun: u64) -> bool {
        begun != self.ended.load(Ordering::Relaxed)
            || self.write_pending.load(Ordering::Relaxed)
            || self.lingers.load(Ordering::Relaxed)
            || self.unsent.iter().any(|unsent| unsent.load(Ordering::Relaxed) > 0)
    }

    async fn stalled(&self, limits: &Connections, crowd: &Crowd) {
        let tick = limits.header_timeout.min(limits.idle_timeout);
        let (mut seen, mut idle, mut within_head, mut stuck_at) = (0, Duration::ZERO, false, None);
        loop {
            sleep(tick).await;
            let stuck = self.write_pending.load(Ordering::Relaxed).then(|| self.written.load(Ordering::Relaxed));
            if self.has_old_answers() || stuck.is_some() && stuck == stuck_at {
                return;
            }
            stuck_at = stuck;
            let (ended, begun) = (self.ended.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed));
            if begun != ended || begun != seen {
                (seen, idle, within_head) = (begun, Duration::ZERO, false);
                continue;
            }
            idle += tick;
            let patience = match begun {
                0 => limits.header_timeout,
                // Others wait for its place.
                _ if crowd.is_full() => tick,
                _ => limits.idle_timeout,
            };
            let head_goes_on = self.is_within_head();
            if idle >= patience || within_head && head_goes_on {
                return;
            }
            within_head = head_goes_on;
        }
    }

    /// Whether something has come in that is no request yet. What comes in over HTTP/2 may be other than that.
    fn is_within_head(&self) -> bool {
        !self.is_http2() && self.read.load(Ordering::Relaxed) > self.read_by_then.load(Ordering::Relaxed)
    }

    /// Begins another tick. Whether there are answers of before the last one.
    fn has_old_answers(&self) -> bool {
        let next = self.ticks.load(Ordering::Relaxed) + 1;
        let old = self.unsent.get(next % 2).is_some_and(|unsent| unsent.load(Ordering::Relaxed) > 0);
        self.ticks.store(next, Ordering::Relaxed);
        old
    }
}

/// A request that was begun; it ends when this is dropped.
pub(super) struct InFlight(Arc<Activity>);

impl InFlight {
    /// It ends with `response`, which is unsent until its body is dropped.
    pub(super) fn answered(self, response: Response<Full<Bytes>>) -> Response<Unsent> {
        let tick = self.0.ticks.load(Ordering::Relaxed) % 2;
        if let Some(unsent) = self.0.unsent.get(tick) {
            unsent.fetch_add(1, Ordering::Relaxed);
        }
        response.map(|body| Unsent { body, activity: Arc::clone(&self.0), tick })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Activity { ended, read, read_by_then, .. } = &*self.0;
        read_by_then.store(read.load(Ordering::Relaxed), Ordering::Relaxed);
        ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer's body that has not left.
pub(super) struct Unsent {
    body: Full<Bytes>,
    activity: Arc<Activity>,
    tick: usize,
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(unsent) = self.activity.unsent.get(self.tick) {
            unsent.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Body for Unsent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::places::Places;
    use std::num::NonZeroUsize;
    use tokio::time::{Instant, timeout};

    const TICK: Duration = Duration::from_secs(30);

    fn limits() -> Connections {
        Connections { header_timeout: TICK, idle_timeout: 10 * TICK, ..Connections::default() }
    }

    /// How long it takes until it is too long, if it ever is; `meanwhile` is called in the middle of each tick.
    async fn ticks(activity: &Arc<Activity>, full: bool, mut meanwhile: impl FnMut(u32)) -> Option<u32> {
        let places = Places::new(NonZeroUsize::MIN, None);
        let _taken = if full { Some(places.free().await) } else { None };
        let (limits, crowd, began) = (limits(), places.crowd(), Instant::now());
        let stalled = activity.stalled(&limits, &crowd);
        tokio::pin!(stalled);
        if timeout(TICK / 2, &mut stalled).await.is_ok() {
            return Some(0);
        }
        for tick in 1..40 {
            meanwhile(tick);
            if timeout(TICK, &mut stalled).await.is_ok() {
                return Some((began.elapsed().as_secs_f64() / TICK.as_secs_f64()) as u32);
            }
        }
        None
    }

    fn request(activity: &Arc<Activity>) -> Response<Unsent> {
        activity.has_read(100);
        activity.begin(Version::HTTP_11).answered(Response::default())
    }

    #[tokio::test(start_paused = true)]
    async fn new_ones_have_a_head_s_time_and_others_an_idle_one_s() {
        let activity = Arc::default();
        assert_eq!(ticks(&activity, false, |_| {}).await, Some(1));
        let activity = Arc::default();
        let idle = ticks(&activity, false, |tick| {
            if tick == 1 {
                drop(request(&activity));
            }
        })
        .await;
        assert_eq!(idle, Some(11));
        // Every now and then one more.
        let activity = Arc::default();
        assert_eq!(
            ticks(&activity, false, |tick| if tick % 9 == 1 {
                drop(request(&activity));
            })
            .await,
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_make_room_where_there_is_none() {
        let activity = Arc::default();
        assert_eq!(
            ticks(&activity, true, |tick| if tick == 1 {
                drop(request(&activity));
            })
            .await,
            Some(2)
        );
        let activity = Arc::default();
        assert_eq!(ticks(&activity, true, |_| drop(request(&activity))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_on_an_old_connection_too() {
        let activity = Arc::default();
        let cut = ticks(&activity, false, |tick| match tick {
            1 => drop(request(&activity)),
            tick => activity.has_read(usize::from(tick > 2)),
        });
        assert_eq!(cut.await, Some(4));
        // Over HTTP/2 it may be anything.
        let activity: Arc<Activity> = Arc::default();
        let pings = ticks(&activity, false, |tick| match tick {
            1 => drop(activity.begin(Version::HTTP_2).answered(Response::default())),
            _ => activity.has_read(17),
        });
        assert_eq!(pings.await, Some(11));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_waited_for_and_answers_that_nobody_takes_are_not() {
        let activity = Arc::default();
        let mut held = None;
        let waits = ticks(&activity, false, |tick| {
            if tick == 1 {
                held = Some(activity.begin(Version::HTTP_2));
            }
        });
        assert_eq!(waits.await, None);
        drop(held);
        // However many others are taken.
        let activity = Arc::default();
        let mut stuck = Vec::new();
        let cut = ticks(&activity, false, |tick| {
            let answer = request(&activity);
            if tick == 3 {
                stuck.push(answer);
            }
        });
        assert_eq!(cut.await, Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_nothing_has_requests_in_vain() {
        let activity: Arc<Activity> = Arc::default();
        let mut held = None;
        let cut = ticks(&activity, false, |tick| match tick {
            1 => held = Some(activity.begin(Version::HTTP_11)),
            2 => activity.has_written(&Poll::Pending),
            _ => {}
        });
        assert_eq!(cut.await, Some(3));
        // Slowly is something else.
        let activity: Arc<Activity> = Arc::default();
        let slow = ticks(&activity, false, |tick| {
            if tick == 1 {
                held = Some(activity.begin(Version::HTTP_11));
            }
            activity.has_written(&Poll::Ready(Ok(1)));
            activity.has_written(&Poll::Pending);
        });
        assert_eq!(slow.await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_what_is_under_way() {
        let places = Places::new(NonZeroUsize::MIN, None);
        let crowd = places.crowd();
        let ceased = async |activity: &Arc<Activity>, within: Duration| {
            let phases = watch::Sender::new(Phase::Closed);
            timeout(within, activity.ceased(phases.subscribe(), &limits(), &crowd)).await.is_ok()
        };
        let activity: Arc<Activity> = Arc::default();
        assert!(!ceased(&activity, FIRST_WORDS).await && ceased(&activity, 2 * FIRST_WORDS).await, "a new one");
        let answer = request(&activity);
        assert!(!ceased(&activity, 20 * LAST_WORDS).await, "an answer has not left");
        drop(answer);
        assert!(ceased(&activity, 3 * LAST_WORDS).await, "an idle one");
        activity.has_written(&Poll::Pending);
        assert!(!ceased(&activity, 20 * LAST_WORDS).await, "bytes have not left");
        activity.has_written(&Poll::Ready(Ok(1)));
        activity.begins_to_linger();
        assert!(!ceased(&activity, 20 * LAST_WORDS).await, "its client is read to its end");
    }
}
