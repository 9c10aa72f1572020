//! A payload to the bytes of a request: remote write, or metric families as telemeter's `/upload` takes them.
//!
//! [`EncodeLayer`] hands on what was received, untouched, when nothing was changed on the way, and encodes anew otherwise. The
//! request that goes on has the headers of its [`Format`] and none of the sender's. When the rest is written it tells the sender of
//! series that were [refused](crate::payload::Refused) on the way; a payload with nothing left is answered here.
//!
//! ```
//! use http_body_util::Full;
//! use infogw_layers::{encode::EncodeLayer, payload::WriteRequest};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::rejection::Rejection> {
//! let service = ServiceBuilder::new()
//!     .layer(EncodeLayer::new())
//!     .service(service_fn(async |_: http::Request<Full<bytes::Bytes>>| -> Result<http::Response<String>, std::convert::Infallible> {
//!         unreachable!("there is nothing to forward")
//!     }));
//! assert_eq!(service.oneshot(http::Request::new(WriteRequest::default())).await?.status(), 204);
//! # Ok(()) }
//! ```

mod families;
mod native_histogram;
mod text;

use std::{
    cell::RefCell,
    io,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    budget::{BufferBudget, Reservation},
    describe::{Describe, Row},
    payload::{Buffer, MetricFamilies, Refused, SeriesSet, WriteRequest},
    rejection::{Reason, Rejection},
};

pub use text::TEXT;

const NAME: &str = "EncodeLayer";

/// What a body is written as.
pub trait Format {
    /// The headers of a request with such a body.
    fn headers() -> HeaderMap;
}

/// Remote write 1.0: `prometheus.WriteRequest` in a snappy block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteWrite {}

/// What telemeter-client pushes and `/upload` takes: delimited `io.prometheus.client.MetricFamily` in snappy's framed format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delimited {}

/// A payload that can be written as `F`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be encoded as `{F}`",
    label = "this body is no payload of that format",
    note = "for remote write put `DecodeLayer` with a `WriteRequestDecoder`, or `TranslateLayer`, outside `EncodeLayer`",
    note = "`EncodeLayer::delimited()` writes metric families as they are"
)]
pub trait Encode<F: Format = RemoteWrite>: SeriesSet {
    /// The bytes to send, and whether they are those that were received.
    ///
    /// # Errors
    /// Whatever the compressor says of a payload that is too large for it.
    fn encode(&self) -> io::Result<(Bytes, bool)>;
}

impl Format for RemoteWrite {
    /// Remote write 1.0 specification, "Protocol".
    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        let version = HeaderName::from_static("x-prometheus-remote-write-version");
        headers.insert(version, HeaderValue::from_static("0.1.0"));
        headers
    }
}

impl Format for Delimited {
    /// As telemeter-client sends them.
    fn headers() -> HeaderMap {
        const DELIMITED: &str =
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(DELIMITED));
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        headers
    }
}

impl Encode for WriteRequest {
    fn encode(&self) -> io::Result<(Bytes, bool)> {
        match self.received() {
            Some(received) => Ok((received.clone(), true)),
            None => Ok((compress(&self.to_message())?, false)),
        }
    }
}

/// By name, and those of a name by time: `/upload` takes the samples of a family in ascending order. Each is an untyped metric, or a
/// native histogram in a family of its own.
impl Encode<Delimited> for MetricFamilies {
    fn encode(&self) -> io::Result<(Bytes, bool)> {
        Ok((families::frames(self)?, false))
    }
}

/// A snappy block, and no more memory than that: it lives until the upstream has answered.
fn compress(message: &[u8]) -> Result<Bytes, snap::Error> {
    thread_local! {
        // For its hash table.
        static ENCODER: RefCell<snap::raw::Encoder> = RefCell::new(snap::raw::Encoder::new());
    }
    let mut block = Buffer::of_len(snap::raw::max_compress_len(message.len()));
    let len = ENCODER.with_borrow_mut(|encoder| encoder.compress(message, &mut block))?;
    block.truncate(len);
    Ok(Bytes::copy_from_slice(&block))
}

/// What was encoded: an extension of the request that goes on, for whoever forwards and counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Series in it.
    pub series: usize,
    /// Samples in it, native histograms among them.
    pub samples: u64,
    /// Its size in bytes on the wire.
    pub bytes: usize,
    /// It is what was received, untouched.
    pub untouched: bool,
}

/// Encodes payloads as `F`.
#[derive(Debug, Clone)]
pub struct EncodeLayer<F = RemoteWrite> {
    when_empty: StatusCode,
    budget: Option<BufferBudget>,
    format: PhantomData<F>,
}

impl EncodeLayer {
    /// Encodes payloads as remote write 1.0; one with nothing left is answered with 204.
    pub fn new() -> Self {
        Self::default()
    }
}

impl EncodeLayer<Delimited> {
    /// Encodes payloads as delimited metric families in snappy frames; one with nothing left is answered with 204.
    pub fn delimited() -> Self {
        Self::default()
    }
}

impl<F> Default for EncodeLayer<F> {
    fn default() -> Self {
        EncodeLayer { when_empty: StatusCode::NO_CONTENT, budget: None, format: PhantomData }
    }
}

impl<F> EncodeLayer<F> {
    /// Answers a payload with nothing left with `status`.
    #[must_use]
    pub fn when_empty(self, status: StatusCode) -> Self {
        EncodeLayer { when_empty: status, ..self }
    }

    /// Keeps what `budget` has room for, besides what was received, until it is written; refuses the rest.
    #[must_use]
    pub fn budget(self, budget: impl Into<Option<BufferBudget>>) -> Self {
        EncodeLayer { budget: budget.into(), ..self }
    }
}

impl<S, F: Clone> Layer<S> for EncodeLayer<F> {
    type Service = Encoding<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Encoding { inner, layer: self.clone() }
    }
}

/// The service that [`EncodeLayer`] makes.
#[derive(Debug, Clone)]
pub struct Encoding<S, F = RemoteWrite> {
    inner: S,
    layer: EncodeLayer<F>,
}

impl<S, F, P, B> Service<Request<P>> for Encoding<S, F>
where
    F: Format,
    P: Encode<F>,
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Into<Rejection>,
    B: Default,
{
    type Response = Response<B>;
    type Error = Rejection;
    type Future = EncodeFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<P>) -> Self::Future {
        let (mut head, mut payload) = request.into_parts();
        let refused = std::mem::take(payload.refused());
        let done = |outcome| EncodeFuture { state: State::Done { outcome: Some(outcome) } };
        if payload.series() == 0 {
            let mut empty = Response::new(B::default());
            *empty.status_mut() = self.layer.when_empty;
            return done(refused.rejection().map_or(Ok(empty), Err));
        }
        let Ok((body, untouched)) = payload.encode() else {
            return done(Err(Rejection::internal("the payload could not be compressed").by(NAME)));
        };
        let (series, samples, bytes) = (payload.series(), payload.samples(), body.len());
        // What was received has its place already.
        let budget = self.layer.budget.as_ref().filter(|_| !untouched);
        let reserved = match budget.map(|budget| budget.reserve(bytes)).transpose() {
            Ok(reserved) => reserved,
            Err(rejection) => return done(Err(rejection.by(NAME))),
        };
        head.extensions.insert(Encoded { series, samples, bytes, untouched });
        // What was decoded is not needed while the upstream works.
        drop(payload);
        head.headers = F::headers();
        let inner = self.inner.call(Request::from_parts(head, Full::new(body)));
        EncodeFuture { state: State::Calling { inner, refused, _reserved: reserved } }
    }
}

impl<S, F, P> Describe<Request<P>> for Encoding<S, F>
where
    F: Format,
    P: Encode<F>,
    S: Describe<Request<Full<Bytes>>>,
{
    fn describe(rows: &mut Vec<Row>) {
        // What it tells of series was refused by others.
        rows.push(Row::new::<Request<P>>(NAME, &[Reason::Internal, Reason::Overloaded]));
        S::describe(rows);
    }
}

pin_project! {
    /// The future of [`Encoding`].
    pub struct EncodeFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Calling {
            #[pin]
            inner: F,
            refused: Refused,
            _reserved: Option<Reservation>,
        },
        Done {
            outcome: Option<Result<Response<B>, Rejection>>,
        },
    }
}

impl<F, B, E> Future for EncodeFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<Rejection>,
{
    type Output = Result<Response<B>, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Calling { inner, refused, .. } => {
                let response = ready!(inner.poll(cx)).map_err(Into::into)?;
                // Only what was written can be told of as written: a failure goes first, so that a sender retries it all.
                let told = refused.rejection().filter(|_| response.status().is_success());
                Poll::Ready(told.map_or(Ok(response), Err))
            }
            // `None`: polled again after completion, which futures need not bear.
            StateProj::Done { outcome } => outcome.take().map_or(Poll::Pending, Poll::Ready),
        }
    }
}
