//! Bodies to payloads, bounded before anything is spent on them.
//!
//! [`DecodeLayer`] turns the body of a request into what its [`Decoder`] makes of it. The media type is judged before the body is
//! read, the body is counted as it arrives, and what it claims to become is checked before that is allocated.
//!
//! ```
//! use infogw_layers::{decode::{DecodeLayer, WriteRequestDecoder}, payload::{SeriesSet, WriteRequest}};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::rejection::Rejection> {
//! let service = ServiceBuilder::new()
//!     .layer(DecodeLayer::new(WriteRequestDecoder::default()))
//!     .service(service_fn(async |request: http::Request<WriteRequest>| {
//!         Ok::<_, std::convert::Infallible>(http::Response::new(request.body().series()))
//!     }));
//! // A snappy block of six bytes: one series, up{}.
//! let body = http_body_util::Full::new(bytes::Bytes::from_static(
//!     b"\x12\x44\x0a\x10\x0a\x0e\x0a\x08__name__\x12\x02up"));
//! let answer = service.oneshot(http::Request::post("/").body(body).unwrap()).await?;
//! assert_eq!(answer.into_body(), 1);
//! # Ok(()) }
//! ```

mod error;
mod families;
mod fields;
mod label;
mod limits;
mod metric_families;
mod native_histogram;
mod received;
mod snappy;
pub mod text;
mod turns;
mod write_request;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, header, request::Parts};
use http_body::{Body, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    budget::{BufferBudget, Reservation},
    describe::{Describe, Row},
    payload::LARGEST_PAYLOAD,
    rejection::{Reason, Rejection},
};

pub use error::DecodeError;
pub use limits::DecodeLimits;
pub use metric_families::MetricFamiliesDecoder;
use received::Received;
use turns::Waiting;
pub use turns::{RefuseWhileLong, Turns};
pub use write_request::WriteRequestDecoder;

pub(crate) const NAME: &str = "DecodeLayer";

/// Makes a payload of a body.
pub trait Decoder {
    /// What comes out.
    type Payload;
    /// What the request's head says of the body.
    type Format;
    /// Every reason that [`Self::negotiate`] and [`Self::decode`] can refuse with, a whole body or series of it.
    const REASONS: &'static [Reason];

    /// Judges the head, before the body is read.
    ///
    /// # Errors
    /// [`DecodeError::MediaType`] or [`DecodeError::Encoding`] for a body that this decoder does not take; what else can be said now.
    fn negotiate(&self, head: &Parts) -> Result<Self::Format, DecodeError>;

    /// The longest body of this format to receive, in bytes on the wire.
    fn body_limit(&self, format: &Self::Format) -> usize;

    /// Decodes a whole body.
    ///
    /// # Errors
    /// What is wrong with the body.
    fn decode(&self, format: Self::Format, body: Bytes) -> Result<Self::Payload, DecodeError>;
}

/// Decodes request bodies.
#[derive(Debug)]
pub struct DecodeLayer<D> {
    decoder: Arc<D>,
    timeout: Duration,
    turns: Option<Turns>,
    budget: Option<BufferBudget>,
}

impl<D> DecodeLayer<D> {
    /// Decodes with `decoder`. A body has 30 seconds to arrive.
    pub fn new(decoder: D) -> Self {
        DecodeLayer { decoder: Arc::new(decoder), timeout: Duration::from_secs(30), turns: None, budget: None }
    }

    /// Decodes a body, and calls what is inside, when it is the request's turn.
    #[must_use]
    pub fn turns(self, turns: Turns) -> Self {
        DecodeLayer { turns: Some(turns), ..self }
    }

    /// Keeps of bodies what `budget` has room for, until their requests are answered; refuses the others.
    #[must_use]
    pub fn budget(self, budget: impl Into<Option<BufferBudget>>) -> Self {
        DecodeLayer { budget: budget.into(), ..self }
    }

    /// Gives a body `timeout` to arrive.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        DecodeLayer { timeout, ..self }
    }
}

impl<D> Clone for DecodeLayer<D> {
    fn clone(&self) -> Self {
        let DecodeLayer { decoder, timeout, turns, budget } = self;
        DecodeLayer { decoder: Arc::clone(decoder), timeout: *timeout, turns: turns.clone(), budget: budget.clone() }
    }
}

impl<S, D> Layer<S> for DecodeLayer<D> {
    type Service = Decode<S, D>;

    fn layer(&self, inner: S) -> Self::Service {
        Decode { inner, layer: self.clone() }
    }
}

/// The service that [`DecodeLayer`] makes.
#[derive(Debug)]
pub struct Decode<S, D> {
    inner: S,
    layer: DecodeLayer<D>,
}

impl<S: Clone, D> Clone for Decode<S, D> {
    fn clone(&self) -> Self {
        Decode { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, D, B> Service<Request<B>> for Decode<S, D>
where
    D: Decoder,
    S: Service<Request<D::Payload>> + Clone,
    S::Error: Into<Rejection>,
    B: Body,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = DecodeFuture<S, D, B>;

    /// Always ready: the service inside is asked once the body is here. Asked before, it would hold a permit of a concurrency
    /// limit while a slow sender dribbles.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let DecodeLayer { decoder, timeout, turns, budget } = &self.layer;
        let (head, body) = request.into_parts();
        let state = match begin(&**decoder, &head, &body.size_hint(), budget.as_ref()) {
            Err(rejection) => State::refused(rejection),
            Ok((format, received)) => State::Receiving {
                body,
                deadline: sleep(*timeout),
                timeout: *timeout,
                received,
                turns: turns.clone(),
                work: Some(Work { head, format, decoder: Arc::clone(decoder), inner: self.inner.clone() }),
            },
        };
        DecodeFuture { state, _reserved: None }
    }
}

impl<S, D, B> Describe<Request<B>> for Decode<S, D>
where
    D: Decoder,
    S: Describe<Request<D::Payload>>,
{
    fn describe(rows: &mut Vec<Row>) {
        let reasons = [&[Reason::TooLarge, Reason::Body, Reason::BodyTimeout, Reason::Overloaded], D::REASONS].concat();
        rows.push(Row::new::<Request<B>>(NAME, &reasons));
        S::describe(rows);
    }
}

/// What can be said before the body is read.
fn begin<D: Decoder>(
    decoder: &D,
    head: &Parts,
    declared: &SizeHint,
    budget: Option<&BufferBudget>,
) -> Result<(D::Format, Received), Rejection> {
    let format = decoder.negotiate(head)?;
    let limit = decoder.body_limit(&format).min(LARGEST_PAYLOAD);
    if declared.lower() > limit as u64 {
        return Err(DecodeError::TooLarge { what: "body", size: declared.exact(), limit }.into());
    }
    let declared = declared.exact().map_or(0, |size| size as usize);
    Ok((format, Received::new(limit, declared, budget)?))
}

/// What is to be done once the body is here.
struct Work<S, D: Decoder> {
    head: Parts,
    format: D::Format,
    decoder: Arc<D>,
    inner: S,
}

impl<S: Service<Request<D::Payload>>, D: Decoder> Work<S, D> {
    fn begin<B>(self, body: Bytes) -> State<S, D, B> {
        let Work { head, format, decoder, inner } = self;
        match decoder.decode(format, body) {
            Ok(payload) => State::Calling { inner: Oneshot::new(inner, Request::from_parts(head, payload)) },
            Err(error) => State::refused(error),
        }
    }
}

pin_project! {
    /// The future of [`Decode`].
    #[project = DecodeFutureProj]
    pub struct DecodeFuture<S: Service<Request<D::Payload>>, D: Decoder, B> {
        #[pin]
        state: State<S, D, B>,
        // Until the answer: what goes on is as large as what came, or the same.
        _reserved: Option<Reservation>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<D::Payload>>, D: Decoder, B> {
        Receiving {
            #[pin]
            body: B,
            #[pin]
            deadline: Sleep,
            timeout: Duration,
            received: Received,
            turns: Option<Turns>,
            work: Option<Work<S, D>>,
        },
        Waiting {
            turn: Waiting,
            received: Bytes,
            work: Option<Work<S, D>>,
        },
        Calling {
            #[pin]
            inner: Oneshot<S, Request<D::Payload>>,
        },
        Refused {
            rejection: Option<Rejection>,
        },
    }
}

impl<S: Service<Request<D::Payload>>, D: Decoder, B> State<S, D, B> {
    fn refused(why: impl Into<Rejection>) -> Self {
        State::Refused { rejection: Some(why.into()) }
    }
}

impl<S, D, B> Future for DecodeFuture<S, D, B>
where
    D: Decoder,
    S: Service<Request<D::Payload>>,
    S::Error: Into<Rejection>,
    B: Body,
{
    type Output = Result<S::Response, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let DecodeFutureProj { mut state, _reserved } = self.project();
        // Held until this poll ends: then what is inside waits for others.
        let mut _turn = None;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Calling { inner } => return inner.poll(cx).map_err(Into::into),
                StateProj::Refused { rejection } => match rejection.take() {
                    Some(rejection) => return Poll::Ready(Err(rejection)),
                    // Polled again after completion, which futures need not bear.
                    None => return Poll::Pending,
                },
                StateProj::Waiting { turn, received, work } => {
                    _turn = ready!(Pin::new(turn).poll(cx));
                    match work.take() {
                        Some(work) => work.begin(std::mem::take(received)),
                        None => return Poll::Pending,
                    }
                }
                StateProj::Receiving { body, deadline, timeout, received, turns, work } => match body.poll_frame(cx) {
                    Poll::Pending => {
                        ready!(deadline.poll(cx));
                        State::refused(DecodeError::Timeout(*timeout))
                    }
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data().map(|data| received.push(data)) {
                        // Trailers say nothing that counts here.
                        Ok(Ok(())) | Err(_) => continue,
                        Ok(Err(error)) => State::refused(error),
                    },
                    Poll::Ready(Some(Err(_))) => State::refused(DecodeError::Body),
                    Poll::Ready(None) => {
                        let (received, reserved) = received.finish();
                        *_reserved = reserved;
                        match (work.take(), turns.as_ref().map(Turns::join)) {
                            (None, _) => return Poll::Pending,
                            (Some(work), None) => work.begin(received),
                            (work, Some(Ok(turn))) => State::Waiting { turn, received, work },
                            (_, Some(Err(rejection))) => State::refused(rejection.by(NAME)),
                        }
                    }
                },
            };
            state.set(next);
        }
    }
}

/// The media type and those of its parameters that `params` names, as they are spelt; `None` without the header.
fn media_type<'h>(headers: &'h HeaderMap, params: &mut [(&str, Option<&'h str>)]) -> Option<&'h str> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or("?");
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next()?;
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        for (wanted, found) in params.iter_mut() {
            if name.trim().eq_ignore_ascii_case(wanted) {
                *found = Some(value.trim().trim_matches('"'));
            }
        }
    }
    Some(essence)
}

/// The content encoding; "" without the header. Several headers are several encodings, which nobody takes.
fn content_encoding(headers: &HeaderMap) -> &str {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    match (values.next(), values.next()) {
        (None, _) => "",
        (Some(value), None) => value.to_str().map_or("?", str::trim),
        (Some(_), Some(_)) => "several encodings",
    }
}

#[cfg(test)]
mod tests {
    use super::{received::BELIEVED, *};
    use crate::payload::WriteRequest;
    use http_body::Frame;
    use http_body_util::Full;
    use std::{convert::Infallible, task::Waker};
    use tokio::sync::{mpsc, oneshot};
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    /// A body whose chunks come when the test says so, and that says it has so many bytes.
    struct Slow(mpsc::UnboundedReceiver<Bytes>, u64);

    impl Body for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }

    fn refusal(answer: Poll<Result<(), Rejection>>) -> Reason {
        match answer {
            Poll::Ready(Err(rejection)) => rejection.reason(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_arrives_is_kept_within_the_budget_until_the_answer() {
        let budget = BufferBudget::new(8 * BELIEVED);
        let (answer, answered) = oneshot::channel::<()>();
        let answered = Arc::new(std::sync::Mutex::new(Some(answered)));
        let service = ServiceBuilder::new()
            .layer(DecodeLayer::new(WriteRequestDecoder::default()).budget(budget.clone()))
            .service(service_fn(move |_: Request<WriteRequest>| {
                let answered = answered.lock().unwrap().take();
                async move {
                    if let Some(answered) = answered {
                        let _ = answered.await;
                    }
                    Ok::<_, Infallible>(())
                }
            }));
        let mut context = Context::from_waker(Waker::noop());
        let push = |declared| {
            let (send, chunks) = mpsc::unbounded_channel();
            (send, Box::pin(service.clone().oneshot(Request::new(Slow(chunks, declared)))))
        };

        // Believed no further than that; and then what has come of it.
        let (send, mut large) = push(1 << 20);
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert_eq!(budget.reserved(), BELIEVED);
        send.send(Bytes::from(vec![0; BELIEVED])).unwrap();
        send.send(Bytes::from(vec![0; 1])).unwrap();
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert_eq!(budget.reserved(), 8 * BELIEVED);
        send.send(Bytes::from(vec![0; 8 * BELIEVED])).unwrap();
        assert_eq!(refusal(large.as_mut().poll(&mut context)), Reason::Overloaded);
        drop(large);
        assert_eq!(budget.reserved(), 0);

        // Whole, and not answered yet.
        let (send, mut small) = push(1);
        send.send(Bytes::from_static(b"\0")).unwrap();
        drop(send);
        assert!(small.as_mut().poll(&mut context).is_pending());
        assert_eq!(budget.reserved(), 1);
        // Nobody asks for a body that has no place: this one never comes.
        let other = budget.reserve(7 * BELIEVED).unwrap();
        let (_send, mut unread) = push(BELIEVED as u64);
        assert_eq!(refusal(unread.as_mut().poll(&mut context)), Reason::Overloaded);
        drop(other);
        answer.send(()).unwrap();
        small.await.unwrap();
        assert_eq!(budget.reserved(), 0);

        // Without a budget there is none.
        let free = DecodeLayer::new(WriteRequestDecoder::default())
            .layer(service_fn(async |_: Request<WriteRequest>| Ok::<_, Infallible>(())));
        free.oneshot(Request::new(Full::new(Bytes::from_static(b"\0")))).await.unwrap();
    }
}
