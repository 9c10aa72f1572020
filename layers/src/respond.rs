//! Rejections to responses: the one place that writes them.
//!
//! ```
//! use infogw_layers::{rejection::{Reason, Rejection}, respond::RespondLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let service = ServiceBuilder::new().layer(RespondLayer::new()).service(service_fn(async |_: http::Request<()>| {
//!     Err::<http::Response<String>, _>(Rejection::new(Reason::Malformed, "the body is not snappy; compress it"))
//! }));
//! let answer = service.oneshot(http::Request::new(())).await?;
//! assert_eq!(answer.status(), 400);
//! # Ok(()) }
//! ```

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    describe::{Describe, Row},
    observe::Observe,
    rejection::{FloorBoundary, Rejection},
};

/// The longest answer, in bytes: a stock sender reads no more of it.
pub const LONGEST_ANSWER: usize = 1024;

/// Turns every rejection of the service inside into a response.
///
/// The answer is one line of text of at most [`LONGEST_ANSWER`] bytes: the reason, what is wrong, and when to come back, as in
/// `rate_limited: over the rate limit of 1 request at once and one more every 270s; come back in 81 s`. `Retry-After` is jittered
/// upwards by up to a half, so that a fleet does not come back as one; whatever is a fault of ours (5xx) has one.
#[derive(Debug, Clone, Default)]
pub struct RespondLayer<O = ()> {
    observer: O,
}

impl RespondLayer {
    /// Writes answers.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<O> RespondLayer<O> {
    /// Also tells `observer` of each rejection.
    pub fn observed_by<P>(self, observer: P) -> RespondLayer<P> {
        RespondLayer { observer }
    }
}

impl<S, O: Clone> Layer<S> for RespondLayer<O> {
    type Service = Respond<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Respond { inner, observer: self.observer.clone() }
    }
}

/// The service that [`RespondLayer`] makes. It never fails.
#[derive(Debug, Clone)]
pub struct Respond<S, O = ()> {
    inner: S,
    observer: O,
}

impl<S, O, Req, B> Service<Req> for Respond<S, O>
where
    S: Service<Req, Response = Response<B>> + Clone,
    S::Error: Into<Rejection>,
    O: Observe<Rejection> + Clone,
{
    type Response = Response<Either<B, Full<Bytes>>>;
    type Error = Infallible;
    type Future = RespondFuture<S, Req, O>;

    /// Always ready: an inner service that is not ready, or whose readiness fails, is found out inside the future, where the
    /// failure can be answered.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        RespondFuture { inner: Oneshot::new(self.inner.clone(), request), observer: self.observer.clone() }
    }
}

impl<S: Describe<Req>, O, Req> Describe<Req> for Respond<S, O> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Req>("RespondLayer", &[]));
        S::describe(rows);
    }
}

pin_project! {
    /// The future of [`Respond`].
    pub struct RespondFuture<S: Service<Req>, Req, O> {
        #[pin]
        inner: Oneshot<S, Req>,
        observer: O,
    }
}

impl<S, Req, O, B> Future for RespondFuture<S, Req, O>
where
    S: Service<Req, Response = Response<B>>,
    S::Error: Into<Rejection>,
    O: Observe<Rejection>,
{
    type Output = Result<Response<Either<B, Full<Bytes>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match ready!(this.inner.poll(cx)) {
            Ok(response) => response.map(Either::Left),
            Err(error) => {
                let rejection = error.into();
                this.observer.observe(&rejection);
                answer(&rejection).map(Either::Right)
            }
        }))
    }
}

/// The response that tells a sender of `rejection`.
pub fn answer(rejection: &Rejection) -> Response<Full<Bytes>> {
    let wait = rejection.wait().or_else(|| rejection.status().is_server_error().then_some(DEFAULT_WAIT)).map(whole);
    let end = wait.map(|seconds| format!("; come back in {seconds} s\n")).unwrap_or_else(|| "\n".to_owned());
    let mut line = format!("{}: ", rejection.reason());
    line.extend(rejection.detail().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_ANSWER));
    line.truncate(line.floor_boundary(LONGEST_ANSWER - end.len()));
    line.push_str(&end);

    let mut response = Response::new(Full::from(line));
    *response.status_mut() = rejection.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(seconds) = wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(jittered(seconds)));
    }
    if let Some((name, value)) = rejection.header() {
        headers.insert(name, value.clone());
    }
    response
}

const DEFAULT_WAIT: Duration = Duration::from_secs(5);

/// Whole seconds, rounded up, at least one.
fn whole(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Up to a half more, at least one second of spread.
fn jittered(seconds: u64) -> u64 {
    seconds.saturating_add(fastrand::u64(0..=(seconds / 2).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection::Reason;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn answers_are_one_bounded_line() {
        for detail in ["x\r\ny".repeat(1000), "ü".repeat(5000), String::new()] {
            for (reason, end) in [(Reason::Malformed, "\n"), (Reason::Internal, "; come back in 5 s\n")] {
                let body = answer(&Rejection::new(reason, detail.clone())).collect().await.unwrap().to_bytes();
                let line = std::str::from_utf8(&body).unwrap();
                assert!(line.len() <= LONGEST_ANSWER, "{}", line.len());
                assert_eq!(line.matches(['\n', '\r']).count(), 1);
                assert!(line.starts_with(&format!("{reason}: ")) && line.ends_with(end), "{line}");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_says_why_and_for_how_long() {
        let line = async |rejection: Rejection| {
            String::from_utf8(answer(&rejection).collect().await.unwrap().to_bytes().to_vec()).unwrap()
        };
        let early = Rejection::new(Reason::RateLimited, "over the limit");
        assert_eq!(line(early.clone()).await, "rate_limited: over the limit\n");
        let wait = Duration::from_millis(60_001);
        assert_eq!(line(early.clone().retry_after(wait)).await, "rate_limited: over the limit; come back in 61 s\n");
        let now = early.retry_after(Duration::ZERO);
        assert_eq!(line(now).await, "rate_limited: over the limit; come back in 1 s\n");
    }

    #[test]
    fn retry_after_is_never_early_and_spread() {
        let seen: std::collections::HashSet<_> = (0..500)
            .map(|_| {
                let rejection = Rejection::new(Reason::RateLimited, "").retry_after(Duration::from_millis(60_001));
                let header =
                    answer(&rejection).headers()[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap();
                assert!((61..=91).contains(&header), "{header}");
                header
            })
            .collect();
        assert!(seen.len() > 10);
    }

    #[test]
    fn every_fault_of_ours_asks_to_come_back() {
        for &reason in Reason::ALL {
            let response = answer(&Rejection::new(reason, ""));
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                reason.status().is_server_error(),
                "{reason}"
            );
        }
    }
}
