use std::{
    mem::size_of,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderName, HeaderValue, Request, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{BufferBudget, Reservation};
use crate::{
    describe::{Describe, Row},
    future::CallOrRefuse,
    rejection::{Reason, Rejection},
};

const NAME: &str = "HeadLayer";

/// What a request takes besides its head and body, in bytes: the futures of its stack, and a connection's part for it.
const REQUEST: usize = 8 << 10;
/// What a header takes besides its bytes, in bytes: `HeaderMap` keeps it, a link to others of its name, and room for as many again.
const HEADER: usize = 2 * (size_of::<HeaderName>() + size_of::<HeaderValue>() + 4 * size_of::<usize>());

/// Bounds the heads of requests: the headers of each, and what they take of a budget until they are answered.
///
/// HTTP/1 bounds the number of headers by itself; HTTP/2 does not, and a header that is sent often costs its sender a byte.
#[derive(Debug, Clone)]
pub struct HeadLayer {
    headers: usize,
    budget: Option<BufferBudget>,
}

impl HeadLayer {
    /// A request may have so many headers.
    pub fn new(headers: usize) -> Self {
        HeadLayer { headers, budget: None }
    }

    /// Lets through what `budget` has room for, until it is answered; refuses the others.
    #[must_use]
    pub fn budget(self, budget: impl Into<Option<BufferBudget>>) -> Self {
        HeadLayer { budget: budget.into(), ..self }
    }

    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Reservation>, Rejection> {
        let headers = request.headers();
        if headers.len() > self.headers {
            let detail =
                format!("the request has {} headers, at most {} are taken; send fewer", headers.len(), self.headers);
            return Err(
                Rejection::new(Reason::TooLarge, detail).with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            );
        }
        let Some(budget) = &self.budget else { return Ok(None) };
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let headers: usize = headers.iter().map(|(name, value)| HEADER + name.as_str().len() + value.len()).sum();
        budget.reserve(REQUEST + target + headers).map(Some)
    }
}

impl<S> Layer<S> for HeadLayer {
    type Service = Head<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Head { inner, layer: self.clone() }
    }
}

/// The service that [`HeadLayer`] makes.
#[derive(Debug, Clone)]
pub struct Head<S> {
    inner: S,
    layer: HeadLayer,
}

impl<S, B> Service<Request<B>> for Head<S>
where
    S: Service<Request<B>>,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = HeadFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.layer.admit(&request) {
            Ok(reserved) => HeadFuture { inner: CallOrRefuse::call(self.inner.call(request)), _reserved: reserved },
            Err(rejection) => HeadFuture { inner: CallOrRefuse::refuse(rejection.by(NAME)), _reserved: None },
        }
    }
}

impl<S: Describe<Request<B>>, B> Describe<Request<B>> for Head<S> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<B>>(NAME, &[Reason::TooLarge, Reason::Overloaded]));
        S::describe(rows);
    }
}

pin_project! {
    /// The future of [`Head`].
    #[derive(Debug)]
    pub struct HeadFuture<F> {
        #[pin]
        inner: CallOrRefuse<F>,
        _reserved: Option<Reservation>,
    }
}

impl<F, R, E> Future for HeadFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<Rejection>,
{
    type Output = Result<R, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use tower::{ServiceBuilder, service_fn};

    fn request(headers: usize) -> Request<()> {
        let mut request = Request::new(());
        for _ in 0..headers {
            request.headers_mut().append("age", HeaderValue::from_static("1"));
        }
        request
    }

    #[test]
    fn heads_are_bounded_one_by_one_and_together() {
        let budget = BufferBudget::new(3 * REQUEST);
        let mut service = ServiceBuilder::new()
            .layer(HeadLayer::new(10).budget(budget.clone()))
            .service(service_fn(|_: Request<()>| std::future::pending::<Result<(), Rejection>>()));
        let mut context = Context::from_waker(Waker::noop());
        let mut send = |headers| {
            let mut answer = Box::pin(service.call(request(headers)));
            let refused = match answer.as_mut().poll(&mut context) {
                Poll::Ready(Err(rejection)) => Some((rejection.reason(), rejection.status().as_u16())),
                _ => None,
            };
            (answer, refused)
        };
        let (first, refused) = send(10);
        assert_eq!((refused, budget.reserved()), (None, REQUEST + 1 + 10 * (HEADER + 4)));
        assert_eq!(send(11).1, Some((Reason::TooLarge, 431)));
        let (_second, refused) = send(0);
        assert_eq!(refused, None);
        assert_eq!(send(0).1, Some((Reason::Overloaded, 503)));
        drop(first);
        assert_eq!(budget.reserved(), REQUEST + 1);
    }
}
