//! The leaf of both stacks: to the receive endpoint.
//!
//! What the upstream says of the *data* is the sender's and is passed on; what it says of our credentials, our URL or the one
//! tenant we all share is ours, and so a 5xx that makes the sender come back.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use infogw_layers::{
    client::ApiClient,
    client_credentials::Token,
    describe::{Describe, Row},
    encode::Encoded,
    observe::Observe,
    policy::Terms,
    rejection::{BoxError, Reason, Rejection, repeats_query, retry_after},
};
use tower::Service;

use crate::retry::{Retries, Retry};

const NAME: &str = "Forward";
/// How long the upstream has for its answer: telemeter-server's time.
const DEADLINE: Duration = Duration::from_secs(5);
/// How much of that may be over when it is tried again: what is left has to be enough for an answer.
const RETRY_WITHIN: Duration = Duration::from_millis(2500);
/// How much of an answer is read, in bytes. The reason stands in its first line.
const LONGEST_ANSWER: usize = 4096;
/// How much of that line a sender hears, in characters.
const LONGEST_REASON: usize = 512;
/// How long the body of a success is waited for.
const TRAILING: Duration = Duration::from_millis(200);

/// Forwards encoded write requests over the HTTP client `C`.
#[derive(Clone)]
pub struct Forward<C, O> {
    client: C,
    uri: Uri,
    success: Success,
    retries: Retries,
    deadline: Duration,
    tells: Tells,
    observer: O,
}

/// Whom the outcome is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tells {
    /// A sender, whom what the upstream says of us is none of its business.
    Sender,
    /// Whoever runs this process.
    Operator,
}

impl<C, O> fmt::Debug for Forward<C, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward").field("success", &self.success).finish_non_exhaustive()
    }
}

/// What the sender hears of a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// 200, as telemeter's clients expect.
    Ok,
    /// The upstream's own 2xx.
    AsUpstream,
}

/// One forward, with all its attempts.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded {
    /// The upstream's status, unless it did not answer.
    pub status: Option<StatusCode>,
    /// How long it took.
    pub elapsed: Duration,
    /// Samples in the request.
    pub samples: u64,
}

impl<C, O> Forward<C, O> {
    /// Forwards through `client`: to `uri`, or as the request's tenant, if it has one, with `THANOS-TENANT` and to where that one's
    /// writes go.
    pub fn new(client: C, uri: Uri, success: Success, retries: Retries, observer: O) -> Self {
        Forward { client, uri, success, retries, deadline: DEADLINE, tells: Tells::Sender, observer }
    }

    /// Gives the upstream `deadline` for its answer.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Forward { deadline, ..self }
    }

    /// For whoever pushes what is its own: a refusal quotes what the upstream says, whatever it is about.
    #[must_use]
    pub fn for_operator(self) -> Self {
        Forward { tells: Tells::Operator, ..self }
    }
}

impl<C, O> Service<Request<Full<Bytes>>> for Forward<C, O>
where
    C: ApiClient,
    O: Observe<Forwarded> + Observe<Retry> + Clone + Send + Sync + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Rejection;
    /// Boxed: there is one for each request over the network.
    type Future = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Rejection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let samples = request.extensions().get::<Encoded>().map_or(0, |encoded| encoded.samples);
        let request = self.outgoing(request);
        let Forward { client, success, retries, observer, deadline, tells, uri } = self.clone();
        Box::pin(async move {
            let started = Instant::now();
            let answer = tokio::time::timeout(deadline, async {
                let answering = retries.answer(client, request, started + RETRY_WITHIN, &observer);
                let (head, body) = answering.await.map_err(Unanswered::because)?.into_parts();
                let reading = beginning(body);
                let body = match head.status.is_success() {
                    // It is one whatever follows. What follows is read all the same, or the connection could not be used again.
                    true => tokio::time::timeout(TRAILING, reading).await.unwrap_or_default(),
                    false => reading.await,
                };
                Ok((head, body))
            });
            let answer = answer.await.unwrap_or(Err(Unanswered::Late(deadline)));
            let status = answer.as_ref().ok().map(|(head, _)| head.status);
            observer.observe(&Forwarded { status, elapsed: started.elapsed(), samples });
            let (head, body) = answer.map_err(|error| Rejection::from(error).relayed_by(NAME))?;
            // Some upstreams quote what they were sent.
            let is_secret = |line: &str| {
                let token = head.extensions.get::<Token>();
                token.is_some_and(|token| token.is_in(line)) || repeats_query(line, uri.query())
            };
            judge(head.status, &head.headers, &body, tells, is_secret).map_err(|rejection| rejection.by(NAME))?;
            let mut response = Response::new(Full::default());
            *response.status_mut() = if success == Success::Ok { StatusCode::OK } else { head.status };
            Ok(response)
        })
    }
}

impl<C, O> Forward<C, O> {
    /// The headers are `EncodeLayer`'s: nothing of the sender's goes upstream.
    fn outgoing(&self, request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        let tenant = head.extensions.get::<Arc<Terms>>().and_then(|terms| terms.tenant.as_ref());
        *request.uri_mut() = tenant.and_then(|tenant| tenant.uri.as_ref()).unwrap_or(&self.uri).clone();
        *request.headers_mut() = head.headers;
        let agent = HeaderValue::from_static(concat!("infogw-proxy/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, agent);
        if let Some(tenant) = tenant {
            request.headers_mut().insert(HeaderName::from_static("thanos-tenant"), tenant.header.clone());
        }
        request
    }
}

impl<C, O> Describe<Request<Full<Bytes>>> for Forward<C, O> {
    fn describe(rows: &mut Vec<Row>) {
        let reasons = &[
            Reason::UpstreamRefused,
            Reason::UpstreamMisconfigured,
            Reason::UpstreamUnavailable,
            Reason::UpstreamUnreachable,
            Reason::UpstreamTimeout,
            // The client's own.
            Reason::CredentialsUnavailable,
        ];
        rows.push(Row::new::<Request<Full<Bytes>>>(NAME, reasons));
    }
}

/// The beginning of a body, as far as it comes.
pub(crate) async fn beginning<B: Body>(body: B) -> Vec<u8> {
    let mut body = std::pin::pin!(body);
    let mut read = Vec::new();
    while read.len() < LONGEST_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Ok(data) = frame.into_data() {
            read.put(data.take(LONGEST_ANSWER - read.len()));
        }
    }
    read
}

/// No answer.
#[derive(Debug)]
enum Unanswered {
    Unreachable,
    /// Not within this time.
    Late(Duration),
    /// It was not even asked.
    Unsent(Rejection),
}

impl Unanswered {
    fn because(error: BoxError) -> Self {
        error.downcast().map_or(Unanswered::Unreachable, |rejection| Unanswered::Unsent(*rejection))
    }
}

impl From<Unanswered> for Rejection {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Unsent(rejection) => rejection,
            Unanswered::Unreachable => Rejection::new(Reason::UpstreamUnreachable, "the upstream cannot be reached"),
            Unanswered::Late(deadline) => {
                let detail = format!("the upstream did not answer within {} s", deadline.as_secs());
                Rejection::new(Reason::UpstreamTimeout, detail)
            }
        }
    }
}

/// Whether the upstream took the data, and whose fault it is if not.
fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    tells: Tells,
    is_secret: impl Fn(&str) -> bool + Copy,
) -> Result<(), Rejection> {
    let code = status.as_u16();
    let said = || match first_line(body, is_secret) {
        Ok(line) if tells == Tells::Operator && !line.is_empty() => format!(": {line}"),
        _ => String::new(),
    };
    match code {
        200..300 => Ok(()),
        400 | 409 | 413 | 422 => {
            let detail = match first_line(body, is_secret) {
                Err(HoldsSecret) => format!("the upstream refused this with {code}, in words that hold a secret"),
                Ok(line) if line.is_empty() => format!("the upstream refused this with {code} and did not say why"),
                Ok(line) => format!("the upstream refused this: {line}"),
            };
            Err(Rejection::new(Reason::UpstreamRefused, detail).with_status(status))
        }
        429 | 500.. => {
            let rejection =
                Rejection::new(Reason::UpstreamUnavailable, format!("the upstream answered {code}{}", said()));
            Err(match retry_after(headers) {
                Some(wait) => rejection.retry_after(wait),
                None => rejection,
            })
        }
        _ => {
            let whom = if tells == Tells::Sender { " to this gateway" } else { "" };
            let detail = format!("the upstream answered {code}{whom}{}", said());
            Err(Rejection::new(Reason::UpstreamMisconfigured, detail).retry_after(Duration::from_secs(30)))
        }
    }
}

/// A line that nobody may be told.
pub(crate) struct HoldsSecret;

/// The line in which an upstream says why.
pub(crate) fn first_line(body: &[u8], is_secret: impl Fn(&str) -> bool) -> Result<String, HoldsSecret> {
    let text = String::from_utf8_lossy(body);
    let line = text.trim_start().lines().next().unwrap_or_default();
    // Looked for before anything is cut.
    if is_secret(line) { Err(HoldsSecret) } else { Ok(line.chars().take(LONGEST_REASON).collect()) }
}
