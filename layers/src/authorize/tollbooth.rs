//! An authorizer that asks UHC's cluster registrations, as telemeter-server does.
//!
//! One `POST` with the credential's JSON; 200 and 201 grant. What the authorizer says about the sender (a 4xx with JSON) is the
//! sender's; whatever else it says or fails to say, also a 4xx about how we asked (405, 415 and such), is an outage, which makes
//! senders retry, never a refusal.
//!
//! ```
//! use infogw_layers::authorize::{ClusterCredential, ClusterId, Secret, tollbooth::Tollbooth};
//! use http_body_util::Full;
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::rejection::Rejection> {
//! // In real life an HTTP client.
//! let registrations = service_fn(async |_: http::Request<Full<bytes::Bytes>>| {
//!     Ok::<_, std::io::Error>(http::Response::new(Full::<bytes::Bytes>::from(r#"{"account_id":"a1"}"#)))
//! });
//! let tollbooth = Tollbooth::new(registrations, "http://localhost/registrations".parse().unwrap());
//! let who = tollbooth.oneshot(ClusterCredential::registration(ClusterId::new("c1").unwrap(), &Secret::new("t"))).await?;
//! assert_eq!(who.account.as_deref(), Some("a1"));
//! # Ok(()) }
//! ```

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use tower::{ServiceExt, util::Oneshot};
use tower_service::Service;

use super::{ClusterCredential, Identity, credential::unauthenticated};
use crate::client::ApiClient;
use crate::rejection::{Reason, Rejection};

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 32 * 1024;

/// Asks a registration endpoint over the HTTP client `C`.
#[derive(Debug, Clone)]
pub struct Tollbooth<C> {
    client: C,
    uri: Uri,
    deadline: Duration,
    terms: Terms,
}

/// What makes an answer a fault of the authorizer, or of ours, that would otherwise be about the cluster.
#[derive(Debug, Clone, Copy, Default)]
struct Terms {
    needs_account: bool,
    shows_credentials: bool,
}

impl<C> Tollbooth<C> {
    /// Asks `uri` through `client`. An answer has 20 seconds, as in telemeter-server.
    pub fn new(client: C, uri: Uri) -> Self {
        Tollbooth { client, uri, deadline: Duration::from_secs(20), terms: Terms::default() }
    }

    /// Gives an answer `deadline`.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Tollbooth { deadline, ..self }
    }

    /// Takes a grant without an account for a fault of the authorizer: a token needs a subject.
    #[must_use]
    pub fn needs_account(self) -> Self {
        Tollbooth { terms: Terms { needs_account: true, ..self.terms }, ..self }
    }

    /// The client shows a token of our own, so a 401 that challenges whoever asked is about that one, and an outage: see
    /// [`is_about_caller`].
    #[must_use]
    pub fn shows_credentials(self) -> Self {
        Tollbooth { terms: Terms { shows_credentials: true, ..self.terms }, ..self }
    }
}

impl<C: ApiClient> Service<ClusterCredential> for Tollbooth<C> {
    type Response = Arc<Identity>;
    type Error = Rejection;
    /// Boxed: there is one for each call over the network, which costs a thousand times as much.
    type Future = Pin<Box<dyn Future<Output = Result<Arc<Identity>, Rejection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, credential: ClusterCredential) -> Self::Future {
        let mut request = Request::new(Full::new(credential.body().clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json.clone());
        request.headers_mut().insert(header::ACCEPT, json);

        let answering = self.client.clone().oneshot(request);
        let (deadline, terms) = (self.deadline, self.terms);
        Box::pin(async move {
            let answered = tokio::time::timeout(deadline, answer(answering));
            let (status, headers, body) = answered.await.unwrap_or_else(|_late| Err(unavailable()))?;
            judge(status, &headers, &body, &credential, terms)
        })
    }
}

async fn answer<C: ApiClient>(
    answering: Oneshot<C, Request<Full<Bytes>>>,
) -> Result<(StatusCode, HeaderMap, Bytes), Rejection> {
    // A layer over the client may refuse by itself, and knows when to come back.
    let refused = |error: C::Error| error.into().downcast().map_or_else(|_| unavailable(), |rejection| *rejection);
    let (head, body) = answering.await.map_err(refused)?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|_| unavailable())?.to_bytes();
    Ok((head.status, head.headers, body))
}

fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    credential: &ClusterCredential,
    terms: Terms,
) -> Result<Arc<Identity>, Rejection> {
    match status {
        StatusCode::OK | StatusCode::CREATED => {
            #[derive(Deserialize)]
            struct Registration {
                account_id: String,
            }
            let registration = serde_json::from_slice::<Registration>(body).ok();
            let account = registration.map(|r| r.account_id).filter(|account| !account.is_empty());
            if account.is_none() && terms.needs_account {
                return Err(unavailable());
            }
            let account = account.map(Arc::from);
            Ok(Arc::new(Identity { account, ..Identity::of(credential.cluster().clone()) }))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let wait = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let wait = Duration::from_secs(wait.unwrap_or(300).min(3600));
            Err(Rejection::new(Reason::AuthorizerThrottled, "the authorizer was asked about this cluster too often")
                .retry_after(wait))
        }
        StatusCode::UNAUTHORIZED if terms.shows_credentials && is_about_caller(headers) => Err(unavailable()),
        _ if status.is_client_error() && is_json(headers) && !is_about_us(status) => Err(refusal(status)),
        // 5xx, redirects, and 4xx that some router in between made up.
        _ => Err(unavailable()),
    }
}

/// A 4xx on how the question was asked, which is not up to the sender: it would drop its data for a fault of ours.
fn is_about_us(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::LENGTH_REQUIRED
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::MISDIRECTED_REQUEST
            | StatusCode::UPGRADE_REQUIRED
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}

fn refusal(status: StatusCode) -> Rejection {
    let detail = match status {
        StatusCode::UNAUTHORIZED => {
            return unauthenticated("the authorizer does not know this token; check the cluster's pull secret");
        }
        StatusCode::FORBIDDEN => "the authorizer forbids this cluster to send telemetry",
        StatusCode::NOT_FOUND => "the authorizer does not know this cluster",
        StatusCode::CONFLICT => {
            "the cluster id is in use under a different account or is not sufficiently random; check the cluster id"
        }
        _ => "the authorizer refused this cluster's credentials",
    };
    Rejection::new(Reason::AuthorizerRefused, detail).with_status(status)
}

/// What senders hear while the authorizer is down: 503, and to come back.
pub fn unavailable() -> Rejection {
    Rejection::new(Reason::AuthorizerUnavailable, "the authorizer does not answer as it should")
        .retry_after(Duration::from_secs(10))
}

/// Whether a 401 with these headers is about who asked, not about the cluster that was asked about: it challenges the caller
/// (RFC 9110, section 11.6.1), or is not the authorizer's JSON at all.
pub fn is_about_caller(headers: &HeaderMap) -> bool {
    headers.contains_key(header::WWW_AUTHENTICATE) || !is_json(headers)
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::{ClusterId, Secret};

    fn judged(
        status: u16,
        content_type: &'static str,
        body: &str,
        needs_account: bool,
    ) -> Result<Arc<Identity>, Rejection> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let credential = ClusterCredential::registration(ClusterId::new("c1").unwrap(), &Secret::new("s3cret"));
        let terms = Terms { needs_account, ..Terms::default() };
        judge(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), &credential, terms)
    }

    #[test]
    fn a_grant_names_the_cluster_and_perhaps_its_account() {
        for (status, body, account) in
            [(200, r#"{"account_id":"a1"}"#, Some("a1")), (201, r#"{"account_id":""}"#, None), (200, "", None)]
        {
            let identity = judged(status, "application/json", body, false).unwrap();
            assert_eq!((identity.cluster.as_str(), identity.account.as_deref()), ("c1", account));
            let needed =
                judged(status, "application/json", body, true).map_err(|rejection| rejection.status().as_u16());
            assert_eq!(needed.err(), account.is_none().then_some(503), "{body}");
        }
    }

    #[test]
    fn only_what_is_about_the_sender_is_a_refusal() {
        for status in [400, 401, 402, 403, 404, 409, 410, 412, 422, 451] {
            for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
                let rejection = judged(status, json, "{}", false).unwrap_err();
                assert_eq!(rejection.status(), status);
                let reason = if status == 401 { Reason::Unauthenticated } else { Reason::AuthorizerRefused };
                assert_eq!((rejection.reason(), rejection.wait()), (reason, None), "{status}");
                assert!(!rejection.detail().contains("s3cret"));
            }
            outage(status, "text/html");
        }
        for status in
            [405, 406, 407, 408, 411, 413, 414, 415, 421, 426, 431, 100, 202, 204, 302, 307, 500, 502, 503, 599]
        {
            outage(status, "application/json");
        }
    }

    fn outage(status: u16, content_type: &'static str) {
        let rejection = judged(status, content_type, "{}", false).unwrap_err();
        assert_eq!((rejection.status().as_u16(), rejection.reason()), (503, Reason::AuthorizerUnavailable), "{status}");
        assert!(rejection.wait().is_some(), "{status}: senders must come back");
    }

    #[test]
    fn a_challenge_is_about_our_own_token_where_we_show_one() {
        let challenged =
            [(header::CONTENT_TYPE, "application/json"), (header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")];
        let challenged = HeaderMap::from_iter(challenged.map(|(name, value)| (name, HeaderValue::from_static(value))));
        let credential = ClusterCredential::registration(ClusterId::new("c1").unwrap(), &Secret::new("t"));
        for (shows_credentials, expected) in [(true, 503), (false, 401)] {
            let terms = Terms { shows_credentials, ..Terms::default() };
            let rejection = judge(StatusCode::UNAUTHORIZED, &challenged, b"{}", &credential, terms).unwrap_err();
            assert_eq!(rejection.status(), expected);
        }
    }

    #[test]
    fn throttling_passes_on_how_long_to_wait() {
        for (after, seconds) in [(Some("7"), 7), (Some("99999"), 3600), (Some("soon"), 300), (None, 300)] {
            let mut headers = HeaderMap::new();
            if let Some(after) = after {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(after));
            }
            let credential = ClusterCredential::registration(ClusterId::new("c1").unwrap(), &Secret::new("t"));
            let rejection =
                judge(StatusCode::TOO_MANY_REQUESTS, &headers, b"", &credential, Terms::default()).unwrap_err();
            assert_eq!(rejection.reason(), Reason::AuthorizerThrottled);
            assert_eq!((rejection.status().as_u16(), rejection.wait()), (429, Some(Duration::from_secs(seconds))));
        }
    }
}
