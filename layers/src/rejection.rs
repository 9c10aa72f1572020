//! The one error that a layer gives.
//!
//! Each layer's own small enum turns itself into a [`Rejection`]: a status, a [`Reason`] from a closed list, one line for the
//! sender, and when to come back. Which layer it was stands in it, too, under the name that the layer has in its
//! [description](crate::describe). [`RespondLayer`](crate::respond::RespondLayer) is the one place that writes it.
//!
//! ```
//! use infogw_layers::rejection::{Reason, Rejection};
//! use std::time::Duration;
//!
//! let busy = Rejection::new(Reason::Overloaded, "too many requests are being served").retry_after(Duration::from_secs(5));
//! assert_eq!(busy.status(), 503);
//! assert_eq!(busy.reason().as_str(), "overloaded");
//! ```

use std::{borrow::Cow, convert::Infallible, fmt, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};

/// tower's error type, which its own middleware gives.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident, $status:ident, $name:literal;)*) => {
        /// Why a request was refused. The list is closed: dashboards and alerts can count on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The name, in snake case, as metrics and logs spell it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// The status that this reason has unless the rejection says otherwise.
            pub const fn status(self) -> StatusCode {
                match self { $(Reason::$variant => StatusCode::$status,)* }
            }
        }
    };
}

reasons! {
    /// The method is not one that this path takes.
    Method, METHOD_NOT_ALLOWED, "method";
    /// No credentials, or none that can be read or verified.
    Unauthenticated, UNAUTHORIZED, "unauthenticated";
    /// A client certificate, or what a balancer says of one, that is wrong or names nobody.
    ClientInfo, FORBIDDEN, "client_info";
    /// A policy of ours denies this cluster.
    Denied, FORBIDDEN, "denied";
    /// The authorizer said no; the status is its own.
    AuthorizerRefused, FORBIDDEN, "authorizer_refused";
    /// The authorizer asks to come back later.
    AuthorizerThrottled, TOO_MANY_REQUESTS, "authorizer_throttled";
    /// The authorizer is down, slow, or does not speak its protocol.
    AuthorizerUnavailable, SERVICE_UNAVAILABLE, "authorizer_unavailable";
    /// This cluster came too often.
    RateLimited, TOO_MANY_REQUESTS, "rate_limited";
    /// This one request costs more than a rate limit ever has to give.
    OverBurst, PAYLOAD_TOO_LARGE, "over_burst";
    /// More requests than we can serve at once.
    Overloaded, SERVICE_UNAVAILABLE, "overloaded";
    /// A content type that this path does not take.
    MediaType, UNSUPPORTED_MEDIA_TYPE, "media_type";
    /// A content encoding that this path does not take.
    Encoding, UNSUPPORTED_MEDIA_TYPE, "encoding";
    /// The body is larger than allowed, as received or decoded.
    TooLarge, PAYLOAD_TOO_LARGE, "too_large";
    /// The body ended early or could not be read.
    Body, BAD_REQUEST, "body";
    /// The body did not arrive in time.
    BodyTimeout, SERVICE_UNAVAILABLE, "body_timeout";
    /// The body does not decode, or the head is not what HTTP asks for.
    Malformed, BAD_REQUEST, "malformed";
    /// More series in one request than allowed.
    TooManySeries, PAYLOAD_TOO_LARGE, "too_many_series";
    /// More samples in one request than allowed.
    TooManySamples, PAYLOAD_TOO_LARGE, "too_many_samples";
    /// Series that break a limit or the label rules.
    InvalidSeries, BAD_REQUEST, "invalid_series";
    /// Series without a timestamp, too old, or out of order.
    Timestamp, BAD_REQUEST, "timestamp";
    /// Series that do not carry the labels this identity must write.
    ClusterLabel, BAD_REQUEST, "cluster_label";
    /// There is no token to show to the upstream: its issuer is down, or refuses us.
    CredentialsUnavailable, SERVICE_UNAVAILABLE, "credentials_unavailable";
    /// The upstream refused the data; the status is its own.
    UpstreamRefused, BAD_REQUEST, "upstream_refused";
    /// The upstream refused us: our credentials, our URL.
    UpstreamMisconfigured, BAD_GATEWAY, "upstream_misconfigured";
    /// The upstream is overloaded or failing.
    UpstreamUnavailable, SERVICE_UNAVAILABLE, "upstream_unavailable";
    /// The upstream cannot be reached.
    UpstreamUnreachable, BAD_GATEWAY, "upstream_unreachable";
    /// The upstream did not answer in time.
    UpstreamTimeout, GATEWAY_TIMEOUT, "upstream_timeout";
    /// A fault of ours.
    Internal, INTERNAL_SERVER_ERROR, "internal";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal: what the sender is told, and what is counted.
#[derive(Debug, Clone)]
pub struct Rejection {
    status: StatusCode,
    reason: Reason,
    layer: Option<&'static str>,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// Boxed: few have one, and it is as large as all the rest.
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Rejection {
    /// A refusal with the status of `reason`. `detail` is the line that the sender reads: what is wrong and what to change; where
    /// a limit is broken the limit and the value; no secrets. The reason, and when to come back, are written around it.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        let (status, detail) = (reason.status(), detail.into());
        Rejection { status, reason, layer: None, detail, retry_after: None, header: None }
    }

    /// A fault of ours: 500, which every sender retries.
    pub fn internal(detail: &'static str) -> Self {
        Rejection::new(Reason::Internal, detail)
    }

    /// Refused by the layer of this name, unless a layer inside has named itself already.
    #[must_use]
    pub fn by(mut self, layer: &'static str) -> Self {
        self.layer.get_or_insert(layer);
        self
    }

    /// Refused by the layer of this name, whoever it heard it from: for a layer that asked somebody on its own account, such as an
    /// authorizer.
    #[must_use]
    pub fn relayed_by(self, layer: &'static str) -> Self {
        Rejection { layer: Some(layer), ..self }
    }

    /// With another status than the reason's own.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// Asks the sender to come back no sooner than after `wait`.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// With a header that the answer must carry, such as `Allow` or `WWW-Authenticate`.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason, from the closed list.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The layer that refused, by the name in its [row](crate::describe::Row).
    pub fn layer(&self) -> Option<&'static str> {
        self.layer
    }

    /// The line for the sender, without the reason and when to come back.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// How long the sender shall wait, before jitter.
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The extra header, if there is one.
    pub fn header(&self) -> Option<&(HeaderName, HeaderValue)> {
        self.header.as_deref()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Rejection {}

impl From<Infallible> for Rejection {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// tower's own middleware gives boxed errors: what it wrapped is taken out again, overload gets its reason.
impl From<BoxError> for Rejection {
    fn from(error: BoxError) -> Self {
        match error.downcast::<Rejection>() {
            Ok(rejection) => *rejection,
            Err(error) if error.is::<tower::load_shed::error::Overloaded>() => {
                overloaded("this gateway is busy with as many requests as it takes at once")
            }
            Err(_) => Rejection::internal("the request failed inside the gateway"),
        }
    }
}

fn overloaded(detail: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new(Reason::Overloaded, detail).retry_after(Duration::from_secs(5)).by(LOAD_SHED)
}

/// What tower's `LoadShedLayer` is called.
pub(crate) const LOAD_SHED: &str = "LoadShedLayer";

/// For `map_err` around tower's `LoadShedLayer`: the refusal says the limit, `at_once` requests.
///
/// ```
/// use infogw_layers::rejection::shed_above;
/// use tower::{ServiceBuilder, load_shed::error::Overloaded};
///
/// let rejection = shed_above(64)(Overloaded::new().into());
/// assert_eq!(rejection.detail(), "this gateway is busy with 64 requests, the most that it takes at once");
/// let _stack = ServiceBuilder::new().map_err(shed_above(64)).load_shed().concurrency_limit(64);
/// ```
pub fn shed_above(at_once: usize) -> impl Fn(BoxError) -> Rejection + Clone + Send + Sync + 'static {
    let s = if at_once == 1 { "" } else { "s" };
    move |error| match error.is::<tower::load_shed::error::Overloaded>() {
        true => overloaded(format!("this gateway is busy with {at_once} request{s}, the most that it takes at once")),
        false => error.into(),
    }
}

/// `text` as it may stand in a line for the sender: at most 64 bytes, control characters and backquotes replaced.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 64;
    let end = text.floor_boundary(LONGEST);
    let (shown, cut) = (text.get(..end).unwrap_or_default(), end < text.len());
    if !cut && !shown.contains(|c: char| c.is_control() || c == '`') {
        return Cow::Borrowed(shown);
    }
    let mut line: String = shown.chars().map(|c| if c.is_control() || c == '`' { '\u{fffd}' } else { c }).collect();
    if cut {
        line.push('…');
    }
    Cow::Owned(line)
}

/// Whether `text`, which somebody else wrote, repeats `secret`: all of it, or 16 bytes on end, as where a quote was cut short. Nothing
/// that does is to be passed on.
///
/// ```
/// use infogw_layers::rejection::repeats;
///
/// assert!(repeats("unknown client s3cret", "s3cret"));
/// assert!(repeats("bad token eyJhbGciOiJSUzI1Ni...", "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"));
/// assert!(!repeats("unknown client", "s3cret"));
/// ```
pub fn repeats(text: &str, secret: &str) -> bool {
    const TELLING: usize = 16;
    let window = secret.len().min(TELLING);
    let part_is_in = |(at, _)| text.get(at..at + window).is_some_and(|part| secret.contains(part));
    window > 0 && (text.contains(secret) || text.char_indices().any(part_is_in))
}

/// Whether `text` [`repeats`] a value of this query, which may be a key. What is shorter than 8 bytes may stand in any sentence.
pub fn repeats_query(text: &str, query: Option<&str>) -> bool {
    const SHORTEST: usize = 8;
    let values = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    values.filter(|value| value.len() >= SHORTEST).any(|value| repeats(text, value))
}

/// The longest `Retry-After` that is obeyed.
#[cfg(any(feature = "retry", feature = "exchange"))]
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What `Retry-After` asks for: seconds or an HTTP date (RFC 9110, section 10.2.3); an hour at most.
#[cfg(any(feature = "retry", feature = "exchange"))]
pub fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let value = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(value).ok()?;
            at.duration_since(std::time::SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

/// `str::floor_char_boundary`, which is newer than our MSRV.
pub(crate) trait FloorBoundary {
    /// The largest char boundary at or below `at`.
    fn floor_boundary(&self, at: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_boundary(&self, at: usize) -> usize {
        if at >= self.len() { self.len() } else { (0..=at).rev().find(|&i| self.is_char_boundary(i)).unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_snake_case() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn what_tower_wrapped_comes_out_again() {
        let inner = Rejection::new(Reason::Method, "use POST");
        assert_eq!(Rejection::from(BoxError::from(inner)).reason(), Reason::Method);
        let shed = BoxError::from(tower::load_shed::error::Overloaded::new());
        let shed = Rejection::from(shed);
        assert_eq!((shed.status().as_u16(), shed.layer()), (503, Some(LOAD_SHED)));
        assert_eq!(Rejection::from(BoxError::from("?")).status(), 500);
    }

    #[test]
    fn the_innermost_layer_that_names_itself_refused() {
        let refused = || Rejection::new(Reason::Method, "use POST");
        assert_eq!(refused().layer(), None);
        assert_eq!(refused().by("Inner").by("Outer").layer(), Some("Inner"));
        assert_eq!(refused().by("Inner").relayed_by("Outer").by("Outermost").layer(), Some("Outer"));
    }

    #[test]
    fn excerpts_are_short_and_printable() {
        assert_eq!(excerpt("up"), "up");
        assert_eq!(excerpt("a\nb`c"), "a\u{fffd}b\u{fffd}c");
        assert!(excerpt(&"ü".repeat(100)).len() <= 64 + '…'.len_utf8());
    }
}
