//! Requests, bodies and an authorizer that take their time.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use infogw_layers::{
    authorize::{AuthorizeLayer, BearerToken, ClusterId, Identity, Secret},
    clock::ManualClock,
    conformance::pending,
    decode::{DecodeLimits, Decoder, MetricFamiliesDecoder, WriteRequestDecoder},
    payload::{MetricFamilies, WriteRequest},
    rate_limit::{Limiter, LocalLimiter, Permit, Quota, Refused},
    rejection::{Reason, Rejection},
};
use infogw_proto::prometheus::{Label, Sample, TimeSeries, WriteRequest as Message};
use prost::Message as _;
use tower::{Layer, ServiceExt, service_fn};

/// A body of single bytes, each of which is awaited.
pub(crate) struct Pieces {
    rest: Bytes,
    end: End,
    waited: bool,
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    Broken,
    Never,
}

impl Pieces {
    /// In as many pieces as are worth an await each: the first bytes one by one, then the rest.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Pieces { rest: Bytes::copy_from_slice(bytes), end: End::Whole, waited: false }
    }

    pub(crate) fn broken() -> Self {
        Pieces { end: End::Broken, ..Self::of(b"ab") }
    }

    pub(crate) fn endless() -> Self {
        Pieces { end: End::Never, ..Self::of(b"ab") }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if self.rest.is_empty() && matches!(self.end, End::Never) {
            return Poll::Pending;
        }
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() {
            return Poll::Ready(matches!(self.end, End::Broken).then_some(Err("connection reset")));
        }
        let piece = if self.rest.len() > 8 { self.rest.len() - 8 } else { 1 };
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }
}

/// Says what the token says, after a while.
pub(crate) async fn authorizer(token: Secret) -> Result<Arc<Identity>, Rejection> {
    pending(2).await;
    let reason = match token.expose() {
        "stalled" => std::future::pending().await,
        "unknown" => Reason::Unauthenticated,
        "refused" => Reason::AuthorizerRefused,
        "throttled" => Reason::AuthorizerThrottled,
        "client info" => Reason::ClientInfo,
        "unavailable" => Reason::AuthorizerUnavailable,
        _ => return Ok(identity()),
    };
    Err(Rejection::new(reason, "the token asked for it"))
}

pub(crate) fn identity() -> Arc<Identity> {
    Arc::new(Identity::of(ClusterId::new("c1").unwrap()))
}

pub(crate) fn bearer<B>(token: &str, body: B) -> Request<B> {
    Request::post("/").header("authorization", format!("Bearer {token}")).body(body).unwrap()
}

/// A request that is authorized as `cluster`. Only `AuthorizeLayer` makes a witness, so it has passed one.
pub(crate) fn witnessed<B>(cluster: &str, body: B) -> Request<B> {
    let authorizer = service_fn(async |token: Secret| {
        Ok::<_, Infallible>(Arc::new(Identity::of(ClusterId::new(token.expose()).unwrap())))
    });
    let passed = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&passed);
    let keep = service_fn(move |request: Request<B>| {
        *keep.lock().unwrap() = Some(request);
        async { Ok::<_, Infallible>(Response::new(())) }
    });
    let passing = AuthorizeLayer::new(BearerToken, authorizer).layer(keep).oneshot(bearer(cluster, body));
    // Nothing in it waits.
    assert!(pin!(passing).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    passed.lock().unwrap().take().unwrap()
}

/// A string that no other call gives.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("n{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A label value over the limit of the decoders here.
pub(crate) const TOO_LONG: &str = "this is far too long";

const LIMITS: DecodeLimits = DecodeLimits {
    body: 10_000,
    decoded: 10_000,
    series: 10,
    samples: usize::MAX,
    labels: 10,
    label_name: 10,
    label_value: 10,
    unrepeatable: Vec::new(),
};

/// A series for each cluster named.
pub(crate) fn write_request(clusters: &[&str]) -> WriteRequest {
    let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
    let series = |cluster: &&str| TimeSeries {
        labels: vec![label("__name__", "up"), label("_id", cluster)],
        samples: vec![Sample { value: 1.0, timestamp: 1 }],
        ..Default::default()
    };
    let message = Message { timeseries: clusters.iter().map(series).collect(), ..Default::default() };
    WriteRequestDecoder::new(LIMITS).decode_message(message.encode_to_vec()).unwrap()
}

/// A snappy block of `series` series.
pub(crate) fn block(series: usize) -> Vec<u8> {
    block_of(series, 0)
}

/// As [`block`], with so many samples in each.
pub(crate) fn block_of(series: usize, samples: usize) -> Vec<u8> {
    let one = TimeSeries { samples: vec![Sample { value: 1.0, timestamp: 1 }; samples], ..Default::default() };
    let message = Message { timeseries: vec![one; series], ..Default::default() };
    snap::raw::Encoder::new().compress_vec(&message.encode_to_vec()).unwrap()
}

/// A series for each cluster named.
pub(crate) fn families(clusters: &[&str]) -> MetricFamilies {
    let text: String = clusters.iter().map(|cluster| format!("up{{_id=\"{cluster}\"}} 1 {}\n", now())).collect();
    let (head, ()) = Request::new(()).into_parts();
    let decoder = MetricFamiliesDecoder::new(LIMITS).clock(ManualClock::new());
    decoder.decode(decoder.negotiate(&head).unwrap(), text.into()).unwrap()
}

/// What a [`ManualClock`] shows, as a sample's timestamp.
pub(crate) fn now() -> String {
    ManualClock::START.as_millis().to_string()
}

/// A limiter that is asked over a wire, as it were.
#[derive(Default)]
pub(crate) struct SlowLimiter(Arc<LocalLimiter>);

impl SlowLimiter {
    /// The key that it never decides about.
    pub(crate) const STALLED: &str = "stalled";
}

impl Limiter for SlowLimiter {
    type Permit = Permit;
    type Taking = Pin<Box<dyn Future<Output = Result<Permit, Refused>> + Send>>;
    type GivingBack = Pin<Box<dyn Future<Output = bool> + Send>>;
    const WAITS: bool = true;

    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> Self::Taking {
        let (local, key, quota) = (Arc::clone(&self.0), key.to_vec(), *quota);
        Box::pin(async move {
            if key == Self::STALLED.as_bytes() {
                std::future::pending::<()>().await;
            }
            pending(2).await;
            local.check(local.key(&key), cost, &quota, now)
        })
    }

    fn give_back(&self, permit: Permit, floor: Duration, now: Duration) -> Self::GivingBack {
        let local = Arc::clone(&self.0);
        Box::pin(async move {
            pending(2).await;
            local.refund(permit, floor, now)
        })
    }
}
