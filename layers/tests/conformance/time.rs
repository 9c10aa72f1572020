//! What happens when.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use infogw_layers::{
    clock::ManualClock,
    decode::{DecodeLayer, WriteRequestDecoder},
    drain::{DrainLayer, Drained},
    encode::EncodeLayer,
    payload::{SeriesSet, WriteRequest},
    rate_limit::{Due, Limiter, LocalLimiter, Quota, RateLimitEvent, RateLimitLayer},
    rejection::{Reason, Rejection},
    respond::RespondLayer,
};
use tokio::{
    sync::oneshot,
    time::{Instant, advance},
};
use tower::{Layer, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, load_shed::LoadShedLayer};
use tower_test::mock;

use crate::{
    MINUTE,
    fixtures::{Pieces, SlowLimiter, TOO_LONG, block, write_request},
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn a_body_has_its_time_and_no_more() {
    let (inner, mut handle) = mock::pair::<Request<WriteRequest>, Response<()>>();
    let service = DecodeLayer::new(WriteRequestDecoder::default()).timeout(30 * SECOND).layer(inner);
    let began = Instant::now();
    let rejection = service.clone().oneshot(Request::new(Pieces::endless())).await.unwrap_err();
    assert_eq!(began.elapsed(), 30 * SECOND);
    assert_eq!((rejection.reason(), rejection.status().as_u16()), (Reason::BodyTimeout, 503));
    assert_eq!(rejection.detail(), "the body did not arrive within 30 s");
    assert!(handle.poll_request().is_pending(), "the service inside was called");

    // One that makes it: from then on the time is the inner service's own.
    let (sender, late) = oneshot::channel();
    let mut answer = pin!(service.oneshot(Request::new(Late(Some(late)))));
    assert!(poll(answer.as_mut()).is_pending());
    advance(30 * SECOND - MILLISECOND).await;
    assert!(poll(answer.as_mut()).is_pending());
    sender.send(block(2)).unwrap();
    assert!(poll(answer.as_mut()).is_pending());
    let (request, respond) = handle.next_request().await.unwrap();
    assert_eq!(request.body().series(), 2);
    advance(60 * SECOND).await;
    assert!(poll(answer.as_mut()).is_pending());
    respond.send_response(Response::new(()));
    assert!(answer.await.is_ok());
}

/// With tower's own limit of one: while a body dribbles in, and while one is drained, others are served.
#[tokio::test(start_paused = true)]
async fn a_slow_sender_stops_nobody() {
    let (inner, mut handle) = mock::pair::<Request<WriteRequest>, Response<()>>();
    let service = ServiceBuilder::new()
        .layer(DrainLayer::new(1000, 10 * SECOND))
        .layer(RespondLayer::new())
        .layer(DecodeLayer::new(WriteRequestDecoder::default()).timeout(MINUTE))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(inner);
    let mut dribbling = pin!(service.clone().oneshot(Request::new(Pieces::endless())));
    let unread = Request::builder().header("content-type", "text/html").body(Pieces::endless()).unwrap();
    let mut draining = pin!(service.clone().oneshot(unread));
    for _ in 0..10 {
        assert!(poll(dribbling.as_mut()).is_pending() && poll(draining.as_mut()).is_pending());
    }
    for _ in 0..3 {
        let served = tokio::spawn(service.clone().oneshot(Request::new(Pieces::of(&block(1)))));
        handle.next_request().await.unwrap().1.send_response(Response::new(()));
        assert_eq!(served.await.unwrap().unwrap().status(), 200);
    }
    let began = Instant::now();
    assert_eq!(draining.await.unwrap().status(), 415);
    assert_eq!(began.elapsed(), 10 * SECOND, "the refusal waits for the drain's time");
    assert_eq!(dribbling.await.unwrap().status(), 503);
    assert_eq!(began.elapsed(), MINUTE + 10 * SECOND, "as does this one");
}

/// While the answer waits for the drain, the service inside is free again.
#[tokio::test(start_paused = true)]
async fn nothing_inside_is_held_while_a_body_is_drained() {
    let (inner, mut handle) = mock::pair::<Request<Drained<Pieces>>, Response<()>>();
    let layers = (DrainLayer::new(1000, 10 * SECOND), ConcurrencyLimitLayer::new(1));
    let service = layers.layer(inner);
    let began = Instant::now();
    let draining = tokio::spawn(service.clone().oneshot(Request::new(Pieces::endless())));
    handle.next_request().await.unwrap().1.send_response(Response::new(()));
    let second = tokio::spawn(service.oneshot(Request::new(Pieces::of(b""))));
    handle.next_request().await.unwrap().1.send_response(Response::new(()));
    second.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    draining.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), 10 * SECOND);
}

/// Told of them before that, or in place of a failure, a sender would not send the rest again.
#[tokio::test]
async fn refused_series_are_told_of_once_the_rest_is_written() {
    let rows = [
        (Ok(200), (Reason::InvalidSeries, 400)),
        (Ok(204), (Reason::InvalidSeries, 400)),
        (Err(Reason::UpstreamTimeout), (Reason::UpstreamTimeout, 504)),
    ];
    for (upstream, told) in rows {
        let rejection = encoded(upstream).await.unwrap_err();
        assert_eq!((rejection.reason(), rejection.status().as_u16()), told);
        if upstream.is_ok() {
            assert!(rejection.detail().ends_with("; 1 of 3 series refused"), "{rejection}");
        }
    }
    for failure in [302, 400, 429, 503] {
        assert_eq!(encoded(Ok(failure)).await.unwrap().status(), failure);
    }
}

/// What the sender of three series, one of which is refused, hears when the upstream ends with `upstream`.
async fn encoded(upstream: Result<u16, Reason>) -> Result<Response<()>, Rejection> {
    let (inner, mut handle) = mock::pair::<Request<Full<Bytes>>, Response<()>>();
    let request = Request::new(write_request(&["c1", TOO_LONG, "c2"]));
    let answer = tokio::spawn(EncodeLayer::new().layer(inner).oneshot(request));
    let (forwarded, respond) = handle.next_request().await.unwrap();
    assert!(!answer.is_finished(), "answered before the rest was written");
    let body = forwarded.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(WriteRequestDecoder::default().decode_block(body).unwrap().series(), 2, "the valid rest goes on");
    match upstream {
        Ok(status) => respond.send_response(Response::builder().status(status).body(()).unwrap()),
        Err(reason) => respond.send_error(Rejection::new(reason, "")),
    }
    answer.await.unwrap()
}

/// How an attempt ends, and after how many seconds the next may come.
#[tokio::test]
async fn an_attempt_that_fails_here_is_given_back_down_to_one_a_minute() {
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let status = |status: u16| Ok(StatusCode::from_u16(status).unwrap());
    let rejection = |reason| Err(Some(Rejection::new(reason, "")));
    let rows = [
        (status(200), 270),
        (status(400), 270),
        (status(429), 270),
        (status(500), 60),
        (status(503), 60),
        (rejection(Reason::ClusterLabel), 270),
        (rejection(Reason::UpstreamTimeout), 60),
        (rejection(Reason::Overloaded), 60),
        // The client hung up: it gets nothing free.
        (Err(None), 270),
    ];
    for (end, wait) in rows {
        let clock = ManualClock::new();
        let (inner, mut handle) = mock::pair::<Request<()>, Response<()>>();
        let charge = move |_: &Request<()>| Some(Due { key: "c1", cost: 1, quota });
        let service = RateLimitLayer::new(charge).clock(clock.clone()).layer(inner);
        let mut attempt = Box::pin(service.clone().oneshot(Request::new(())));
        assert!(poll(attempt.as_mut()).is_pending());
        let (_, respond) = handle.next_request().await.unwrap();
        let seen = format!("{end:?}");
        // An attempt is judged by when it began.
        clock.advance(10 * SECOND);
        match end {
            Ok(status) => {
                respond.send_response(Response::builder().status(status).body(()).unwrap());
                assert_eq!(attempt.await.unwrap().status(), status);
            }
            Err(Some(rejection)) => {
                respond.send_error(rejection);
                attempt.await.unwrap_err();
            }
            Err(None) => drop(attempt),
        }
        clock.advance(Duration::from_secs(wait - 10) - MILLISECOND);
        let early = service.clone().oneshot(Request::new(())).await.unwrap_err();
        assert_eq!((early.reason(), early.wait()), (Reason::RateLimited, Some(MILLISECOND)), "after {seen}");
        clock.advance(MILLISECOND);
        let mut again = pin!(service.clone().oneshot(Request::new(())));
        assert!(poll(again.as_mut()).is_pending(), "after {seen}");
        handle.next_request().await.unwrap().1.send_response(Response::new(()));
        assert!(again.await.is_ok());
    }
}

/// With a floor of zero, for quotas that allow several at once; by either kind of limiter, and the observer is told.
#[tokio::test]
async fn without_a_floor_a_failed_attempt_is_given_back_whole() {
    async fn check<L: Limiter<Taking: Send, GivingBack: Send, Permit: Send> + Clone + Send + 'static>(limiter: L) {
        let quota = Quota::new(SECOND, 10.try_into().unwrap()).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let (inner, mut handle) = mock::pair::<Request<u32>, Response<()>>();
        let charge = move |request: &Request<u32>| Some(Due { key: "c1", cost: *request.body(), quota });
        let layer = RateLimitLayer::new(charge).limiter(limiter).clock(ManualClock::new()).refund_floor(Duration::ZERO);
        let service = layer.observed_by(move |event: &RateLimitEvent| seen.lock().unwrap().push(*event)).layer(inner);
        for status in [503, 500, 200] {
            let attempt = tokio::spawn(service.clone().oneshot(Request::new(10)));
            let respond = handle.next_request().await.unwrap().1;
            respond.send_response(Response::builder().status(status).body(()).unwrap());
            assert_eq!(attempt.await.unwrap().unwrap().status(), status);
            // The answer need not wait for the refund.
            while status >= 500 && events.lock().unwrap().len() < 2 - usize::from(status == 503) {
                tokio::task::yield_now().await;
            }
        }
        let refused = service.clone().oneshot(Request::new(1)).await.unwrap_err();
        assert_eq!((refused.reason(), refused.wait()), (Reason::RateLimited, Some(SECOND)));
        let never = service.oneshot(Request::new(11)).await.unwrap_err();
        assert_eq!((never.reason(), never.status().as_u16(), never.wait()), (Reason::OverBurst, 413, None));
        use RateLimitEvent::{Refunded, TooMuch, TooSoon};
        assert_eq!(*events.lock().unwrap(), [Refunded, Refunded, TooSoon, TooMuch]);
    }
    check(Arc::new(LocalLimiter::new())).await;
    check(Arc::new(SlowLimiter::default())).await;
}

/// A limiter whose refunds never arrive.
#[derive(Clone, Default)]
struct Forgetful(Arc<LocalLimiter>);

impl Limiter for Forgetful {
    type Permit = <LocalLimiter as Limiter>::Permit;
    type Taking = <LocalLimiter as Limiter>::Taking;
    type GivingBack = std::future::Pending<bool>;
    const WAITS: bool = true;

    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> Self::Taking {
        self.0.try_take(key, cost, quota, now)
    }

    fn give_back(&self, _: Self::Permit, _: Duration, _: Duration) -> Self::GivingBack {
        std::future::pending()
    }
}

#[tokio::test]
async fn no_answer_waits_for_a_refund() {
    let quota = Quota::new(SECOND, 1.try_into().unwrap()).unwrap();
    let charge = move |_: &Request<()>| Some(Due { key: "c1", cost: 1, quota });
    let service = RateLimitLayer::new(charge)
        .limiter(Forgetful::default())
        .clock(ManualClock::new())
        .layer(tower::service_fn(async |_| Ok::<_, Infallible>(Response::builder().status(503).body(()).unwrap())));
    assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 503);
}

/// What a limit inside refuses, or fails at, is free; what the request itself is refused for is not.
#[tokio::test]
async fn a_request_that_another_limit_refuses_is_given_back() {
    for (reason, free) in [
        (Reason::RateLimited, true),
        (Reason::OverBurst, true),
        (Reason::Overloaded, true),
        (Reason::AuthorizerThrottled, false),
        (Reason::TooLarge, false),
    ] {
        let quota = Quota::new(SECOND, 1.try_into().unwrap()).unwrap();
        let charge = move |_: &Request<()>| Some(Due { key: "c1", cost: 1, quota });
        let layer = RateLimitLayer::new(charge).clock(ManualClock::new()).refund_floor(Duration::ZERO);
        let inner = tower::service_fn(move |_| async move { Err::<Response<()>, _>(Rejection::new(reason, "no")) });
        let service = layer.layer(inner);
        assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap_err().detail(), "no");
        let again = service.oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(again.detail() == "no", free, "{reason}");
    }
}

/// A body that arrives at once, some time.
struct Late(Option<oneshot::Receiver<Vec<u8>>>);

impl Body for Late {
    type Data = Bytes;
    type Error = oneshot::error::RecvError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(receiver) = &mut self.0 else { return Poll::Ready(None) };
        let body = ready!(Pin::new(receiver).poll(cx));
        self.0 = None;
        Poll::Ready(Some(body.map(|body| Frame::data(body.into()))))
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
