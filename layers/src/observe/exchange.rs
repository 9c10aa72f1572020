use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, Uri};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::Observe;
use crate::describe::{Describe, Row};

/// One request and the status it was answered with. One that is dropped before its answer, because the client hung up, counts
/// as answered with 499: nginx's "client closed request".
#[derive(Debug)]
pub struct Exchange<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's target.
    pub uri: &'a Uri,
    /// The answer's status.
    pub status: StatusCode,
    /// From the call until the response's head was ready, or the client hung up.
    pub elapsed: Duration,
    /// The request's approximate size in bytes, as Prometheus' Go client computes it: target, method, headers, and the body as
    /// its `Content-Length` declares it.
    pub request_bytes: u64,
}

/// Reports every exchange to an observer.
#[derive(Debug, Clone)]
pub struct ObserveLayer<O> {
    observer: O,
}

impl<O> ObserveLayer<O> {
    /// Reports to `observer`.
    pub fn new(observer: O) -> Self {
        ObserveLayer { observer }
    }
}

impl<S, O: Clone> Layer<S> for ObserveLayer<O> {
    type Service = Observed<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner, observer: self.observer.clone() }
    }
}

/// The service that [`ObserveLayer`] makes.
#[derive(Debug, Clone)]
pub struct Observed<S, O> {
    inner: S,
    observer: O,
}

impl<S, O, B, R> Service<Request<B>> for Observed<S, O>
where
    S: Service<Request<B>, Response = Response<R>>,
    O: for<'a> Observe<Exchange<'a>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ObserveFuture<S::Future, O>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let unreported = Unreported {
            method: request.method().clone(),
            uri: request.uri().clone(),
            status: StatusCode::from_u16(499).ok(),
            started: Instant::now(),
            request_bytes: approximate_size(&request),
            observer: self.observer.clone(),
            observe: |observer, exchange| observer.observe(exchange),
        };
        ObserveFuture { inner: self.inner.call(request), unreported: Some(unreported) }
    }
}

impl<S: Describe<Req>, O, Req> Describe<Req> for Observed<S, O> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Req>("ObserveLayer", &[]));
        S::describe(rows);
    }
}

fn approximate_size<B>(request: &Request<B>) -> u64 {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let declared = request.headers().get(http::header::CONTENT_LENGTH);
    let body: u64 = declared.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    body.saturating_add((target + request.method().as_str().len() + headers) as u64)
}

pin_project! {
    /// The future of [`Observed`].
    #[derive(Debug)]
    pub struct ObserveFuture<F, O> {
        #[pin]
        inner: F,
        unreported: Option<Unreported<O>>,
    }
}

impl<F, O, R, E> Future for ObserveFuture<F, O>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let Some(mut unreported) = this.unreported.take() {
            unreported.status = result.as_ref().ok().map(Response::status);
        }
        Poll::Ready(result)
    }
}

/// An exchange that is reported once it is dropped.
#[derive(Debug)]
struct Unreported<O> {
    method: Method,
    uri: Uri,
    /// None: there was an error in place of an answer, which is not reported.
    status: Option<StatusCode>,
    started: Instant,
    request_bytes: u64,
    observer: O,
    /// [`Observe::observe`]. `Drop` may ask no more of `O` than the future does, and `pin_project!` takes no bound over lifetimes.
    observe: fn(&O, &Exchange<'_>),
}

impl<O> Drop for Unreported<O> {
    fn drop(&mut self) {
        let Some(status) = self.status else { return };
        let exchange = Exchange {
            method: &self.method,
            uri: &self.uri,
            status,
            elapsed: self.started.elapsed(),
            request_bytes: self.request_bytes,
        };
        (self.observe)(&self.observer, &exchange);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::{Ready, pending, ready},
        sync::{Arc, Mutex},
        task::Waker,
    };
    use tower::service_fn;

    type Answer = Result<Response<()>, &'static str>;

    /// What is reported of a call that is polled `polls` times and dropped.
    fn reported<F: Future<Output = Answer>>(inner: impl FnMut(Request<()>) -> F, polls: usize) -> Vec<(u16, u64)> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let see = seen.clone();
        let observer = move |exchange: &Exchange<'_>| {
            assert_eq!((exchange.method, exchange.uri.path()), (&Method::POST, "/upload"));
            see.lock().unwrap().push((exchange.status.as_u16(), exchange.request_bytes));
        };
        let mut service = ObserveLayer::new(observer).layer(service_fn(inner));
        let request = Request::post("/upload").header("content-length", "1000").body(()).unwrap();
        let mut call = Box::pin(service.call(request));
        for _ in 0..polls {
            let _ = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        drop(call);
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn every_exchange_is_reported_once() {
        let teapot = |_| ready(Ok(Response::builder().status(418).body(()).unwrap()));
        let bytes = ("/upload".len() + "POST".len() + "content-length".len() + "1000".len() + 1000) as u64;
        assert_eq!(reported(teapot, 1), [(418, bytes)]);
        assert_eq!(reported(teapot, 0), [(499, bytes)], "dropped before it was polled");
        assert_eq!(reported(|_| pending::<Answer>(), 3), [(499, bytes)], "the client hung up");
        let fails = |_| -> Ready<Answer> { ready(Err("no answer")) };
        assert_eq!(reported(fails, 1), [], "neither answered nor hung up");
    }
}
