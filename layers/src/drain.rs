//! A bounded rest of a refused request is read, so that the answer arrives.
//!
//! A sender that is still writing when the connection closes sees a reset instead of the answer, and a stock Prometheus then
//! retries for ever what a 413 would have made it drop. So when the service inside answers without having read the whole body,
//! the rest is read and thrown away before the answer goes out, up to a number of bytes and a time. A body that was never asked
//! for while the sender waits for `100 Continue` is left alone.
//!
//! ```
//! use http_body_util::{BodyExt, Full};
//! use infogw_layers::drain::{DrainLayer, Drained};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::time::Duration;
//!
//! type Body = Full<bytes::Bytes>;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let service = ServiceBuilder::new()
//!     .layer(DrainLayer::new(64 * 1024, Duration::from_secs(1)))
//!     .service(service_fn(async |_unread: http::Request<Drained<Body>>| Ok::<_, std::convert::Infallible>(http::Response::new(()))));
//! service.oneshot(http::Request::new(Body::from("a long body"))).await?;
//! # Ok(()) }
//! ```

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{Request, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};
use tower_layer::Layer;
use tower_service::Service;

use crate::describe::{Describe, Row};

/// Reads what a refused request still sends, within bounds.
#[derive(Debug, Clone)]
pub struct DrainLayer {
    bytes: u64,
    time: Duration,
}

impl DrainLayer {
    /// Reads at most `bytes` more, for at most `time`, before the answer goes out. Past either, the connection is left to close.
    pub fn new(bytes: u64, time: Duration) -> Self {
        DrainLayer { bytes, time }
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Drain { inner, bounds: self.clone() }
    }
}

/// The service that [`DrainLayer`] makes.
#[derive(Debug, Clone)]
pub struct Drain<S> {
    inner: S,
    bounds: DrainLayer,
}

impl<S, B> Service<Request<B>> for Drain<S>
where
    S: Service<Request<Drained<B>>>,
    B: Body + Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = DrainFuture<S::Future, S::Response, S::Error, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (give_back, unread) = oneshot::channel();
        let untouched_is_unsent = request.headers().contains_key(header::EXPECT);
        let request =
            request.map(|body| Drained { body: Some(body), asked: !untouched_is_unsent, give_back: Some(give_back) });
        DrainFuture {
            state: State::Calling { inner: self.inner.call(request), unread: Some(unread) },
            bounds: self.bounds.clone(),
        }
    }
}

impl<S, B> Describe<Request<B>> for Drain<S>
where
    S: Describe<Request<Drained<B>>>,
    B: Body + Unpin,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<B>>("DrainLayer", &[]));
        S::describe(rows);
    }
}

/// A request body that is given back when it is dropped before its end.
#[derive(Debug)]
pub struct Drained<B: Body + Unpin> {
    body: Option<B>,
    /// Somebody asked for it, so the sender is or may be sending.
    asked: bool,
    give_back: Option<oneshot::Sender<B>>,
}

impl<B: Body + Unpin> Body for Drained<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.asked = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            // At its end, or broken: there is nothing left to read.
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body + Unpin> Drop for Drained<B> {
    fn drop(&mut self) {
        if let (Some(body), Some(give_back), true) = (self.body.take(), self.give_back.take(), self.asked)
            && !body.is_end_stream()
        {
            // Nobody waits for it when the exchange itself was cancelled.
            let _ = give_back.send(body);
        }
    }
}

pin_project! {
    /// The future of [`Drain`].
    pub struct DrainFuture<F, R, E, B> {
        #[pin]
        state: State<F, R, E, B>,
        bounds: DrainLayer,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R, E, B> {
        Calling {
            #[pin]
            inner: F,
            unread: Option<oneshot::Receiver<B>>,
        },
        Draining {
            result: Option<Result<R, E>>,
            body: B,
            left: u64,
            #[pin]
            deadline: Sleep,
        },
        Done,
    }
}

impl<F, R, E, B> Future for DrainFuture<F, R, E, B>
where
    F: Future<Output = Result<R, E>>,
    B: Body + Unpin,
{
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { inner, unread } => {
                    let result = ready!(inner.poll(cx));
                    let unread = unread.take();
                    // A completed future may still hold the body: dropping it gives the body back.
                    this.state.set(State::Done);
                    match unread.and_then(|mut unread| unread.try_recv().ok()) {
                        None => return Poll::Ready(result),
                        Some(body) => this.state.set(State::Draining {
                            result: Some(result),
                            body,
                            left: this.bounds.bytes,
                            deadline: sleep(this.bounds.time),
                        }),
                    }
                }
                StateProj::Draining { result, body, left, deadline } => {
                    let done = match Pin::new(body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            let read = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                            *left = left.saturating_sub(read);
                            *left == 0
                        }
                        Poll::Ready(_) => true,
                        Poll::Pending => {
                            ready!(deadline.poll(cx));
                            true
                        }
                    };
                    if done && let Some(result) = result.take() {
                        this.state.set(State::Done);
                        return Poll::Ready(result);
                    }
                }
                // Polled again after completion, which futures need not bear.
                StateProj::Done => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::Response;
    use http_body_util::BodyExt;
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };
    use tower::{ServiceBuilder, ServiceExt, service_fn};

    /// A body of `chunks` chunks that counts how many were read, then never ends.
    fn body(
        chunks: usize,
        read: &Arc<AtomicUsize>,
    ) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + Send + use<> {
        struct Chunks(usize, Arc<AtomicUsize>);
        impl Body for Chunks {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                if self.0 == 0 {
                    return Poll::Pending;
                }
                self.0 -= 1;
                self.1.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 10])))))
            }
        }
        Chunks(chunks, read.clone())
    }

    async fn refuse<B: Body + Unpin>(
        request: Request<Drained<B>>,
        read_first: usize,
    ) -> Result<Response<()>, Infallible> {
        let mut body = request.into_body();
        for _ in 0..read_first {
            let _ = body.frame().await;
        }
        Ok(Response::new(()))
    }

    async fn drained(request: Request<()>, chunks: usize, limit: u64, read_first: usize) -> usize {
        let read = Arc::default();
        let request = request.map(|()| body(chunks, &read));
        let service = ServiceBuilder::new()
            .layer(DrainLayer::new(limit, Duration::from_secs(1)))
            .service(service_fn(move |request| refuse(request, read_first)));
        service.oneshot(request).await.unwrap();
        read.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn reads_up_to_the_limit_and_no_longer_than_the_time() {
        assert_eq!(drained(Request::new(()), 5, 1000, 0).await, 5, "a body that stalls is given up after the time");
        assert_eq!(drained(Request::new(()), 50, 100, 0).await, 10, "no more than the limit");
        assert_eq!(drained(Request::new(()), 50, 100, 3).await, 13, "the rest of a body that was begun");
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_invite_a_body_that_waits_for_100_continue() {
        let expecting = || Request::builder().header(header::EXPECT, "100-continue").body(()).unwrap();
        assert_eq!(drained(expecting(), 5, 1000, 0).await, 0);
        assert_eq!(drained(expecting(), 5, 1000, 1).await, 5, "asked for, so it is on its way");
    }

    #[tokio::test]
    async fn is_done_once_it_has_answered() {
        let read = Arc::default();
        let mut service = DrainLayer::new(10, Duration::from_secs(1)).layer(service_fn(|request| refuse(request, 0)));
        let mut answer = std::pin::pin!(service.call(Request::new(body(5, &read))));
        assert!(answer.as_mut().await.is_ok());
        let again = answer.poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(again.is_pending());
        assert_eq!(read.load(Ordering::Relaxed), 1, "nothing is read once the answer is out");
    }
}
