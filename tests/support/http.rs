//! A client for tests: one connection a request, the whole answer in memory.

use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    http::request::Builder,
};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use infogw_layers::rejection::Reason;

use super::within;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The seconds of `Retry-After`.
    pub fn retry_after(&self) -> Option<u64> {
        let value = self.header("retry-after")?;
        Some(value.parse().unwrap_or_else(|_| panic!("not seconds: {self:?}")))
    }

    /// The line of a refusal, at most 1,024 bytes, which is all that a stock sender reads: a reason from the list, what is wrong,
    /// and when to come back, as the header says.
    #[track_caller]
    pub fn reason(&self) -> &str {
        assert!(self.body.len() <= 1024, "{} bytes: {self:?}", self.body.len());
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"), "{self:?}");
        let line = self.text().strip_suffix('\n').unwrap_or_else(|| panic!("not a whole line: {self:?}"));
        assert!(!line.contains(char::is_control) && line.len() > 10, "not one line that says something: {self:?}");
        let known = |reason: &str| Reason::ALL.iter().any(|known| known.as_str() == reason);
        assert!(line.split_once(": ").is_some_and(|(reason, _)| known(reason)), "no reason from the list: {self:?}");
        let told =
            line.rsplit_once("; come back in ").and_then(|(_, told)| told.strip_suffix(" s")?.parse::<u64>().ok());
        // The header is jittered upwards.
        let wait = told.map(|told| told..=told + (told / 2).max(1));
        match (wait, self.retry_after()) {
            (None, None) => {}
            (Some(wait), Some(header)) => assert!(wait.contains(&header), "says two things of when: {self:?}"),
            _ => panic!("says one thing in its header, another in its line: {self:?}"),
        }
        line
    }

    /// Itself, or a panic that shows the whole answer.
    #[track_caller]
    pub fn expect_status(self, status: u16) -> Self {
        assert!(self.status == status, "expected {status}, got {self:?}");
        self
    }
}

/// GETs `url`.
pub async fn get(url: &str) -> Reply {
    send(Request::get(url), Bytes::new()).await
}

/// Sends `request` with `body` and its length.
pub async fn send(request: Builder, body: impl Into<Bytes>) -> Reply {
    let request = request.body(Full::new(body.into())).expect("the test's request is a valid one");
    let what = format!("{} {}", request.method(), request.uri());
    try_send(request).await.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Sends `request`, whose body may be of any length, pace and end. The error says what went wrong on the connection.
pub async fn try_send<B>(request: Request<B>) -> Result<Reply, String>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    // No pool: a connection that the other side is about to close must not fail a later request.
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let what = format!("an answer from {}", request.uri());
    let answered = async { read(client.request(request).await.map_err(|error| chain(&error))?).await };
    within(&what, answered).await
}

/// Reads an answer to its end.
pub async fn read(response: Response<Incoming>) -> Result<Reply, String> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
    Ok(Reply { status: head.status, headers: head.headers, body })
}

/// `pairs` as a query string, without the `?`.
pub fn query_string<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// hyper's messages leave out their causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
