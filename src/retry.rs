//! A forward that reached nobody, or that the upstream says it did not take, is tried again.
//!
//! That is one of which nothing was sent, and one that was answered with 503: some of its replicas may have taken that, which do not
//! mind the same samples again. Whatever else goes wrong is the sender's to try again. Retries are paid for out of what the upstream has answered, so that they are never more than a part of
//! its load, and next to nothing while it is down.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy;
use infogw_layers::{
    client::ApiClient,
    observe::Observe,
    rejection::{BoxError, retry_after},
    retry::Attempts,
};
use smallvec::SmallVec;
use tokio::time::sleep_until;
use tower::{ServiceExt, retry::budget::TpsBudget};

/// One, and two more.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Retries in ten seconds are at most this share of what was answered in them, and this many in each second besides.
const SHARE: f32 = 0.2;
const A_SECOND: u32 = 1;

/// What retries to the upstream are paid from. Clones share it: there is one in a process.
#[derive(Debug, Clone)]
pub struct Retries(Attempts);

impl Default for Retries {
    fn default() -> Self {
        let budget = TpsBudget::new(Duration::from_secs(10), A_SECOND, SHARE);
        Retries(Attempts::new(ATTEMPTS, FIRST_PAUSE, Arc::new(budget)))
    }
}

impl Retries {
    /// No attempt is made again here: whoever pushes has its own way of that.
    pub fn none() -> Self {
        Retries(Attempts::new(1, FIRST_PAUSE, Arc::default()))
    }
}

/// What became of an attempt that may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It is.
    Made,
    /// It is not: there were too many already.
    OverBudget,
}

impl Retries {
    /// What `client` answers `request`. No retry begins after `until`.
    ///
    /// # Errors
    /// The client's, of the last attempt.
    pub async fn answer<C: ApiClient>(
        &self,
        client: C,
        mut request: Request<Full<Bytes>>,
        until: Instant,
        observer: &(impl Observe<Retry> + Sync),
    ) -> Result<Response<C::Body>, BoxError> {
        let mut attempts = self.0.clone();
        let kept = Kept::new(&request);
        loop {
            let answer = client.clone().oneshot(request).await.map_err(Into::into);
            let asked = match &answer {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    retry_after(response.headers()).unwrap_or_default()
                }
                Err(error) if is_unsent(&**error) => Duration::ZERO,
                Ok(_) => {
                    attempts.answered();
                    return answer;
                }
                Err(_) => return answer,
            };
            let Some(pause) = attempts.failed() else { return answer };
            let at = Instant::now() + pause.max(asked);
            if at > until {
                return answer;
            }
            if !attempts.pay() {
                observer.observe(&Retry::OverBudget);
                return answer;
            }
            observer.observe(&Retry::Made);
            drop(answer);
            sleep_until(at.into()).await;
            request = kept.request();
        }
    }
}

/// Whether nothing of the request has left: nobody was reached, or hyper gives it back.
fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    let canceled = |error: &legacy::Error| {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
        cause.is_some_and(hyper::Error::is_canceled)
    };
    error.downcast_ref::<legacy::Error>().is_some_and(|error| error.is_connect() || canceled(error))
}

/// What is needed to send a request again. Most are not, so to keep this allocates nothing.
struct Kept {
    uri: Uri,
    headers: SmallVec<[(HeaderName, HeaderValue); 6]>,
    body: Full<Bytes>,
}

impl Kept {
    fn new(request: &Request<Full<Bytes>>) -> Self {
        let headers = request.headers().iter().map(|(name, value)| (name.clone(), value.clone()));
        Kept { uri: request.uri().clone(), headers: headers.collect(), body: request.body().clone() }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().extend(self.headers.iter().cloned());
        request
    }
}
