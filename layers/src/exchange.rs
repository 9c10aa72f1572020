//! A client's own token for one of the gateway's: telemeter's exchange at `/authorize`.
//!
//! - [`TokenExchange`] shows the client's own token, and keeps what it is given until 15 seconds before that ends, or until it is
//!   refused. It is one of those that [`BearerLayer`](crate::client_credentials::BearerLayer) takes tokens from.
//! - [`GrantedLabelsLayer`] sets the labels that the gateway wants on every series of a payload.
//!
//! Nobody asks before somebody pushes, and there is one call for all who do at once. That a call fails is for whoever pushes to bear:
//! [`RetryUntilTaken`](crate::retry::RetryUntilTaken) goes around both.
//!
//! ```
//! use infogw_layers::{client_credentials::BearerLayer, exchange::TokenExchange, rejection::BoxError};
//! use bytes::Bytes;
//! use http::{Request, Response, header::AUTHORIZATION};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! // In real life an HTTP client. This one is the gateway, which says what it was shown.
//! let http = service_fn(async |request: Request<Full<Bytes>>| {
//!     let body = match request.uri().path() {
//!         "/authorize" => r#"{"version":1,"token":"t0ken","expiresInSeconds":300,"labels":{"_id":"c1"}}"#.into(),
//!         _ => Bytes::copy_from_slice(request.headers()[AUTHORIZATION].as_bytes()),
//!     };
//!     Ok::<_, BoxError>(Response::new(Full::new(body)))
//! });
//!
//! let exchange = TokenExchange::new(http, "http://localhost/authorize?id=c1".parse()?, "pull-secret".into());
//! let client = ServiceBuilder::new().layer(BearerLayer::new(exchange.clone())).service(http);
//! let response = client.oneshot(Request::post("http://localhost/upload").body(Full::default())?).await?;
//! # use http_body_util::BodyExt;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "Bearer t0ken");
//! assert_eq!(exchange.granted().await?.labels[..], [("_id".into(), "c1".into())]);
//! # Ok(()) }
//! ```

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use serde::Deserialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    client::ApiClient,
    client_credentials::{ClientSecret, KeptToken, Token, Tokens, bearer},
    describe::{Describe, Row},
    payload::{Keep, SeriesSet},
    rejection::{Reason, Rejection, excerpt, repeats, repeats_query, retry_after},
};

const NAME: &str = "TokenExchange";
/// The longest answer that is read, in bytes; telemeter-client's.
const LONGEST_ANSWER: usize = 16 * 1024;
/// How long a call may take: telemeter-client's.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long before its end a token is given up.
const LEEWAY: Duration = Duration::from_secs(15);
/// A token that lives for less is kept until it is refused, as telemeter-client has it.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// No token is kept longer, whatever is said.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// What a gateway granted.
#[derive(Debug, Clone)]
pub struct Granted {
    /// To be shown with what is pushed.
    pub token: Token,
    /// Name and value of each label that every series must carry.
    pub labels: Arc<[(Box<str>, Box<str>)]>,
}

/// Exchanges tokens over the HTTP client `C`, and keeps what it gets. Clones share it.
pub struct TokenExchange<C> {
    client: C,
    uri: Uri,
    token: ClientSecret,
    deadline: Duration,
    /// Held during a call: whoever else asks then waits for its outcome.
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    generation: u64,
    granted: Option<Granted>,
}

impl<C: Clone> Clone for TokenExchange<C> {
    fn clone(&self) -> Self {
        let TokenExchange { client, uri, token, deadline, kept } = self;
        let (client, uri, token) = (client.clone(), uri.clone(), token.clone());
        TokenExchange { client, uri, token, deadline: *deadline, kept: Arc::clone(kept) }
    }
}

/// Without the URL's query, which names the cluster and may hold more.
impl<C> fmt::Debug for TokenExchange<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenExchange").field("path", &self.uri.path()).finish_non_exhaustive()
    }
}

/// What of the answer counts; telemeter's `TokenResponse`.
#[derive(Deserialize)]
struct TokenResponse {
    token: String,
    #[serde(default, rename = "expiresInSeconds")]
    expires_in_seconds: i64,
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

impl<C> TokenExchange<C> {
    /// Shows `token` at `uri` through `client`. A call has 30 seconds, as in telemeter-client.
    pub fn new(client: C, uri: Uri, token: ClientSecret) -> Self {
        TokenExchange { client, uri, token, deadline: DEADLINE, kept: Arc::default() }
    }

    /// Gives a call `deadline`.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        TokenExchange { deadline, ..self }
    }
}

impl<C: ApiClient> TokenExchange<C> {
    /// What was granted, as long as it is valid; or what a call brings now.
    ///
    /// # Errors
    /// [`Reason::CredentialsUnavailable`]: the token cannot be read, nobody answers, or the answer is none. Its line says which, and
    /// never holds a token.
    pub async fn granted(&self) -> Result<Granted, Rejection> {
        let mut kept = self.kept.lock().await;
        if let Some(granted) = kept.granted.as_ref().filter(|granted| granted.token.is_usable()) {
            return Ok(granted.clone());
        }
        self.renew(&mut kept).await
    }

    /// As [`granted`](Self::granted), but not with the token `refused`.
    ///
    /// # Errors
    /// As [`granted`](Self::granted).
    pub async fn granted_but_not(&self, refused: &Token) -> Result<Granted, Rejection> {
        let mut kept = self.kept.lock().await;
        let newer = |granted: &&Granted| granted.token.is_usable() && granted.token.is_newer_than(refused);
        if let Some(granted) = kept.granted.as_ref().filter(newer) {
            return Ok(granted.clone());
        }
        self.renew(&mut kept).await
    }

    async fn renew(&self, kept: &mut Kept) -> Result<Granted, Rejection> {
        kept.granted = None;
        let asked = Instant::now();
        let answer = timeout(self.deadline, self.ask()).await;
        let answer = answer.unwrap_or_else(|_| Err(unavailable(format!("no answer within {:?}", self.deadline))));
        let Answered { authorization, life, labels } = answer.map_err(|rejection| rejection.by(NAME))?;
        kept.generation += 1;
        let token = Token::new(kept.generation, authorization, asked + life);
        let granted = Granted { token, labels };
        kept.granted = Some(granted.clone());
        Ok(granted)
    }

    async fn ask(&self) -> Result<Answered, Rejection> {
        let shown = KeptToken::new(self.token.clone(), "the token to exchange").token().await?;
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, shown.authorization().clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.client.clone().oneshot(request).await.map_err(|error| {
            // A layer over the client may refuse by itself.
            error.into().downcast().map_or_else(|_| unavailable("it cannot be reached"), |rejection| *rejection)
        })?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| {
            match error.is::<LengthLimitError>() {
                true => unavailable(format!("its answer is longer than {LONGEST_ANSWER} bytes")),
                false => unavailable("its answer broke off"),
            }
        })?;
        read(head.status, &head.headers, &body.to_bytes(), |line| {
            shown.is_in(line) || repeats_query(line, self.uri.query())
        })
    }
}

/// What an answer grants, and for how long.
struct Answered {
    authorization: HeaderValue,
    life: Duration,
    labels: Arc<[(Box<str>, Box<str>)]>,
}

/// What the answer grants.
fn read(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    holds_secret: impl Fn(&str) -> bool,
) -> Result<Answered, Rejection> {
    if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
        let said = String::from_utf8_lossy(body);
        let line = said.trim_start().lines().next().unwrap_or_default();
        let detail = match line {
            "" => format!("it answered {}", status.as_u16()),
            // Some servers quote what they were sent.
            line if holds_secret(line) => format!("it answered {}, in words that hold a secret", status.as_u16()),
            line => format!("it answered {}: {}", status.as_u16(), line.chars().take(256).collect::<String>()),
        };
        let rejection = unavailable(detail);
        return Err(match retry_after(headers) {
            Some(wait) => rejection.retry_after(wait),
            None => rejection,
        });
    }
    // What could not be read is not shown: it may hold the token.
    let response: TokenResponse =
        serde_json::from_slice(body).map_err(|_| unavailable("its answer is not JSON with a `token`"))?;
    if response.token.is_empty() {
        return Err(unavailable("its answer has an empty `token`"));
    }
    let life =
        u64::try_from(response.expires_in_seconds).map(Duration::from_secs).unwrap_or_default().min(LONGEST_LIFE);
    let life = if life < SHORTEST_LIFE { LONGEST_LIFE } else { life - LEEWAY };
    let labels = response.labels.unwrap_or_default();
    if let Some((name, _)) = labels.iter().find(|(name, value)| repeats(value, &response.token) || name.is_empty()) {
        return Err(unavailable(format!("its answer has a label `{}` that is none", excerpt(name))));
    }
    let authorization = bearer(&response.token).map_err(|_| unavailable("its `token` cannot stand in a header"))?;
    Ok(Answered { authorization, life, labels: labels.into_iter().collect() })
}

fn unavailable(why: impl fmt::Display) -> Rejection {
    Rejection::new(Reason::CredentialsUnavailable, format!("the token could not be exchanged: {why}"))
}

impl<C: ApiClient> Tokens for TokenExchange<C> {
    async fn token(&self) -> Result<Token, Rejection> {
        Ok(self.granted().await?.token)
    }

    async fn replace(&self, refused: &Token) -> Result<Option<Token>, Rejection> {
        Ok(Some(self.granted_but_not(refused).await?.token))
    }
}

/// Asks for what is [granted](TokenExchange::granted): for layers around it, such as retries.
impl<C: ApiClient> Service<()> for TokenExchange<C> {
    type Response = Granted;
    type Error = Rejection;
    /// Boxed: there is one for each push.
    type Future = Pin<Box<dyn Future<Output = Result<Granted, Rejection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let exchange = self.clone();
        Box::pin(async move { exchange.granted().await })
    }
}

/// Sets the labels that came with a token on every series, over what is there.
///
/// `G` says what they are: a [`TokenExchange`], or what goes around one.
#[derive(Debug, Clone)]
pub struct GrantedLabelsLayer<G> {
    granted: G,
}

impl<G> GrantedLabelsLayer<G> {
    /// Sets the labels of `granted`.
    pub fn new(granted: G) -> Self {
        GrantedLabelsLayer { granted }
    }
}

impl<S, G: Clone> Layer<S> for GrantedLabelsLayer<G> {
    type Service = GrantedLabels<S, G>;

    fn layer(&self, inner: S) -> Self::Service {
        GrantedLabels { inner, granted: self.granted.clone() }
    }
}

/// The service that [`GrantedLabelsLayer`] makes.
#[derive(Debug, Clone)]
pub struct GrantedLabels<S, G> {
    inner: S,
    granted: G,
}

impl<S, G, P> Service<Request<P>> for GrantedLabels<S, G>
where
    S: Service<Request<P>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Rejection>,
    G: Service<(), Response = Granted> + Clone + Send + 'static,
    G::Future: Send,
    G::Error: Into<Rejection>,
    P: SeriesSet + Send + 'static,
{
    type Response = S::Response;
    type Error = Rejection;
    /// Boxed: there is one for each push.
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Rejection>> + Send>>;

    /// Always ready: the service inside is asked once the labels are here.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<P>) -> Self::Future {
        let GrantedLabels { inner, granted } = self.clone();
        Box::pin(async move {
            // Where nothing is left there is nothing to push, and nobody to be asked.
            if request.body().series() > 0 {
                let Granted { labels, .. } = granted.oneshot(()).await.map_err(Into::into)?;
                let set = request.body_mut().try_edit(|series| {
                    for (name, value) in &*labels {
                        series.set(name, value);
                    }
                    Ok::<_, Infallible>(Keep::Yes)
                });
                set.map_err(Rejection::from)?;
            }
            inner.oneshot(request).await.map_err(Into::into)
        })
    }
}

impl<S, G, P> Describe<Request<P>> for GrantedLabels<S, G>
where
    S: Describe<Request<P>>,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<P>>("GrantedLabelsLayer", &[Reason::CredentialsUnavailable]));
        S::describe(rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rejection::BoxError;
    use bytes::Bytes;
    use http::Response;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tower::service_fn;

    /// What a gateway answers the n-th call with, from 1; it wants the token `own`.
    fn exchange(
        answer: impl Fn(u64) -> Response<String> + Clone + Send + Sync + 'static,
    ) -> TokenExchange<
        impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync,
    > {
        let calls = Arc::new(AtomicU64::new(0));
        let gateway = service_fn(move |request: Request<Full<Bytes>>| {
            assert_eq!((request.method(), request.uri().query()), (&Method::POST, Some("id=c1")));
            assert_eq!(request.headers()[header::AUTHORIZATION], "Bearer own");
            let response = answer(calls.fetch_add(1, Ordering::Relaxed) + 1);
            async move { Ok::<_, BoxError>(response.map(|body| Full::new(Bytes::from(body)))) }
        });
        TokenExchange::new(gateway, "http://localhost/authorize?id=c1".parse().unwrap(), "own".into())
    }

    fn grants(seconds: i64) -> impl Fn(u64) -> Response<String> + Clone + Send + Sync + 'static {
        move |call| {
            let labels = format!(r#"{{"_id":"c{call}"}}"#);
            Response::new(format!(
                r#"{{"version":1,"token":"t{call}","expiresInSeconds":{seconds},"labels":{labels}}}"#
            ))
        }
    }

    fn shown(granted: &Granted) -> &str {
        granted.token.authorization().to_str().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_kept_until_15_seconds_before_its_end() {
        let exchange = exchange(grants(300));
        let first = exchange.granted().await.unwrap();
        assert_eq!((shown(&first), &*first.labels), ("Bearer t1", &[("_id".into(), "c1".into())][..]));
        tokio::time::advance(Duration::from_secs(284)).await;
        assert_eq!(shown(&exchange.clone().granted().await.unwrap()), "Bearer t1");
        tokio::time::advance(Duration::from_secs(2)).await;
        let second = exchange.granted().await.unwrap();
        assert_eq!((shown(&second), &*second.labels[0].1), ("Bearer t2", "c2"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_less_than_a_minute_is_kept_until_it_is_refused() {
        for life in [59, 0, -1] {
            let exchange = exchange(grants(life));
            let first = exchange.granted().await.unwrap();
            tokio::time::advance(Duration::from_secs(3600)).await;
            assert_eq!(shown(&exchange.granted().await.unwrap()), "Bearer t1");
            // Of all who find it refused one asks.
            let (one, other) =
                tokio::join!(exchange.granted_but_not(&first.token), exchange.granted_but_not(&first.token));
            assert_eq!((shown(&one.unwrap()), shown(&other.unwrap())), ("Bearer t2", "Bearer t2"));
        }
    }

    #[tokio::test]
    async fn what_is_no_grant_is_told_in_one_line_without_tokens() {
        let answered = |status: u16, body: &'static str| {
            move |_| {
                let response = Response::builder().status(status).header(header::RETRY_AFTER, "7");
                response.body(body.to_owned()).unwrap()
            }
        };
        for (status, body, expected) in [
            (401, "no such token\nat all", "it answered 401: no such token"),
            (403, "", "it answered 403"),
            (302, "", "it answered 302"),
            (503, "busy", "it answered 503: busy"),
            (400, "I know no `own`", "it answered 400, in words that hold a secret"),
            (200, "hello", "its answer is not JSON with a `token`"),
            (200, r#"{"token":""}"#, "its answer has an empty `token`"),
            (200, "{\"token\":\"a\\nb\"}", "its `token` cannot stand in a header"),
            (200, r#"{"token":"secret","labels":{"a":"secret"}}"#, "its answer has a label `a` that is none"),
        ] {
            let exchange = exchange(answered(status, body));
            let rejection = exchange.granted().await.unwrap_err();
            assert_eq!(rejection.detail(), format!("the token could not be exchanged: {expected}"));
            assert_eq!((rejection.status().as_u16(), rejection.layer()), (503, Some(NAME)));
            let wait = (status != 200).then(|| Duration::from_secs(7));
            assert_eq!(rejection.wait(), wait, "{body}");
        }
        let long = exchange(|_| Response::new("x".repeat(LONGEST_ANSWER + 1))).granted().await.unwrap_err();
        assert!(long.detail().ends_with("its answer is longer than 16384 bytes"), "{long}");
        // Numbers and nulls that Go's decoder takes.
        let plain = exchange(|_| Response::new(r#"{"token":"t","labels":null}"#.to_owned())).granted().await.unwrap();
        assert!(plain.labels.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_hangs_is_given_up() {
        let hangs =
            service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Full<Bytes>>, BoxError>>());
        let exchange = TokenExchange::new(hangs, "http://localhost/".parse().unwrap(), "own".into());
        let rejection = exchange.granted().await.unwrap_err();
        assert_eq!(rejection.detail(), "the token could not be exchanged: no answer within 30s");
    }

    #[tokio::test]
    async fn labels_are_set_over_what_is_there_and_asked_for_only_where_there_are_series() {
        use crate::payload::WriteRequest;
        let asked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&asked);
        let exchange = exchange(move |call| {
            counted.store(call, Ordering::Relaxed);
            grants(300)(call)
        });
        let seen = service_fn(async |mut request: Request<WriteRequest>| {
            let mut ids = Vec::new();
            request
                .body_mut()
                .try_edit(|series| {
                    ids.push(series.value("_id").to_owned());
                    Ok::<_, Infallible>(Keep::Yes)
                })
                .unwrap();
            Ok::<_, Rejection>(ids)
        });
        let service = GrantedLabelsLayer::new(exchange).layer(seen);
        assert!(service.clone().oneshot(Request::new(WriteRequest::default())).await.unwrap().is_empty());
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        #[cfg(feature = "decode")]
        {
            // _id="x", and no label at all but the name.
            let message = b"\x0a\x18\x0a\x08\x0a\x03_id\x12\x01x\x0a\x0c\x0a\x08__name__\x12\x00\x0a\x10\x0a\x0e\x0a\x08__name__\x12\x02up";
            let payload = crate::decode::WriteRequestDecoder::default().decode_message(message.to_vec()).unwrap();
            assert_eq!(service.oneshot(Request::new(payload)).await.unwrap(), ["c1", "c1"]);
        }
    }
}
