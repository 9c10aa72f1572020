//! A token of our own on what we send: the client-credentials grant (RFC 6749, section 4.4), the token shared and kept fresh.
//!
//! - [`ClientCredentials`] gets a token from an OpenID issuer: a service over any HTTP client.
//! - [`TokenSource`] holds one token for all who need it. A task of its own gets the first one, gets the next one ahead of expiry,
//!   and goes on trying while the issuer is down, for which the old token stays in use as long as it is valid. It takes any
//!   service that issues tokens.
//! - [`BearerLayer`] goes around an HTTP client: sends the token along, and after a 401 gets another one and tries once more. It takes
//!   any [`Tokens`]; [`KeptToken`] is one that somebody else renews.
//!
//! ```
//! use infogw_layers::client_credentials::{BearerLayer, ClientCredentials, TokenSource};
//! use infogw_layers::{clock::SystemClock, rejection::BoxError};
//! use bytes::Bytes;
//! use http::{Request, Response, header::AUTHORIZATION};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), BoxError> {
//! // In real life an HTTP client. This one is the issuer as well, and the upstream, which says what it was shown.
//! let http = service_fn(async |request: Request<Full<Bytes>>| {
//!     let shown = request.headers().get(AUTHORIZATION).map_or(Bytes::new(), |shown| Bytes::copy_from_slice(shown.as_bytes()));
//!     let body: Bytes = match request.uri().path() {
//!         "/.well-known/openid-configuration" => {
//!             r#"{"issuer":"https://issuer.example","token_endpoint":"https://issuer.example/token"}"#.into()
//!         }
//!         "/token" => r#"{"access_token":"t0ken","token_type":"Bearer","expires_in":300}"#.into(),
//!         _ => shown,
//!     };
//!     Ok::<_, BoxError>(Response::new(Full::new(body)))
//! });
//!
//! let issuer = ClientCredentials::new(http, "https://issuer.example".parse()?, "gateway", "s3cret");
//! let tokens = TokenSource::spawn(issuer, SystemClock, ());
//! let client = ServiceBuilder::new().layer(BearerLayer::new(tokens)).service(http);
//!
//! let response = client.oneshot(Request::post("https://upstream.example/push").body(Full::default())?).await?;
//! # use http_body_util::BodyExt;
//! assert_eq!(response.into_body().collect().await?.to_bytes(), "Bearer t0ken");
//! # Ok(()) }
//! ```

mod bearer;
mod issuer;
mod kept;
mod source;

pub use bearer::{Bearer, BearerLayer, Tokens};
pub use issuer::{ClientCredentials, ClientSecret, InvalidIssuer, Issued, IssuerError, IssuerUrl, TokenRequest};
pub use kept::KeptToken;
#[cfg(feature = "exchange")]
pub(crate) use kept::bearer;
pub use source::{Token, TokenEvent, TokenSource, TokenUnavailable};
