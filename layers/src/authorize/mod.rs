//! Who is calling.
//!
//! [`AuthorizeLayer`] reads a credential from the request, asks an authorizer, and marks the request with [`Authorized`]: the
//! witness that layers behind it look for, and that only this layer can make. An authorizer is a [`Service`] from credential to
//! identity, so a cache, a timeout or a retry is a layer over it like any other.
//!
//! | credential | read by | authorizer | feature |
//! | --- | --- | --- | --- |
//! | a cluster's own token | [`CompositeToken`] | [`tollbooth`]: UHC's cluster registrations | `tollbooth` |
//! | a token of ours | [`BearerToken`] | [`token`]: a signed JWT | `jwt` |
//! | a client certificate | [`certificate::VerifiedCertificate`] | [`certificate`]: its subject | `certificate` |
//! | the same, shown to a balancer | [`client_info::ClientInfoHeaders`] | [`certificate`] | `client-info` |
//!
//! ```
//! use infogw_layers::authorize::{AuthorizeLayer, Authorized, BearerToken, ClusterId, Identity, Secret};
//! use infogw_layers::rejection::{Reason, Rejection};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Rejection> {
//! let authorizer = service_fn(async |token: Secret| match token.expose() {
//!     "open sesame" => Ok(Arc::new(Identity::of(ClusterId::new("c1").unwrap()))),
//!     _ => Err(Rejection::new(Reason::Unauthenticated, "this token is not known; ask for another")),
//! });
//! let service = ServiceBuilder::new()
//!     .layer(AuthorizeLayer::new(BearerToken, authorizer))
//!     .service(service_fn(async |request: http::Request<()>| {
//!         let who = request.extensions().get::<Authorized<Identity>>().unwrap();
//!         Ok::<_, std::convert::Infallible>(http::Response::new(who.cluster.to_string()))
//!     }));
//! let request = http::Request::post("/").header("authorization", "Bearer open sesame").body(()).unwrap();
//! assert_eq!(service.oneshot(request).await?.into_body(), "c1");
//! # Ok(()) }
//! ```

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "certificate")]
pub mod certificate;
#[cfg(feature = "client-info")]
pub mod client_info;
mod credential;
mod identity;
mod json;
#[cfg(feature = "jwt")]
pub mod jwt;
#[cfg(feature = "single-flight")]
pub mod single_flight;
#[cfg(feature = "jwt")]
pub mod token;
#[cfg(feature = "tollbooth")]
pub mod tollbooth;

use std::{
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::Request;
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    describe::{Describe, Row},
    rejection::{Reason, Rejection},
};

pub use credential::{BearerToken, ClusterCredential, CompositeToken, CredentialSource, Secret};
pub use identity::{ClusterId, Identity, InvalidClusterId, Writes};

/// The witness that a request was authorized as `I`. Only [`AuthorizeLayer`] makes one.
///
/// ```compile_fail
/// use infogw_layers::authorize::{Authorized, ClusterId, Identity};
/// let forged = Authorized(std::sync::Arc::new(Identity::of(ClusterId::new("c1").unwrap())));
/// ```
#[derive(Debug)]
pub struct Authorized<I>(Arc<I>);

impl<I> Clone for Authorized<I> {
    fn clone(&self) -> Self {
        Authorized(Arc::clone(&self.0))
    }
}

impl<I> Deref for Authorized<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.0
    }
}

/// Lets a request pass once an authorizer has said who sent it.
#[derive(Debug, Clone)]
pub struct AuthorizeLayer<C, A> {
    source: C,
    authorizer: A,
}

impl<C, A> AuthorizeLayer<C, A> {
    /// Reads credentials with `source` and asks `authorizer`, a service from credential to `Arc<I>`.
    pub fn new(source: C, authorizer: A) -> Self {
        AuthorizeLayer { source, authorizer }
    }
}

impl<S, C: Clone, A: Clone> Layer<S> for AuthorizeLayer<C, A> {
    type Service = Authorize<S, C, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorize { inner, source: self.source.clone(), authorizer: self.authorizer.clone() }
    }
}

/// The service that [`AuthorizeLayer`] makes.
#[derive(Debug, Clone)]
pub struct Authorize<S, C, A> {
    inner: S,
    source: C,
    authorizer: A,
}

impl<S, C, A, B, I> Service<Request<B>> for Authorize<S, C, A>
where
    C: CredentialSource<B>,
    A: Service<C::Credential, Response = Arc<I>> + Clone,
    A::Error: Into<Rejection>,
    I: Send + Sync + 'static,
    S: Service<Request<B>> + Clone,
    S::Error: Into<Rejection>,
{
    type Response = S::Response;
    type Error = Rejection;
    type Future = AuthorizeFuture<S, A, C::Credential, B>;

    /// Always ready: authorizer and service inside are asked when their turn comes, so that neither is held while the other
    /// works.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = match self.source.credential(&request) {
            Err(rejection) => State::Refused { rejection: Some(rejection.by(NAME)) },
            Ok(credential) => State::Authorizing {
                authorizing: Oneshot::new(self.authorizer.clone(), credential),
                rest: Some((request, self.inner.clone())),
            },
        };
        AuthorizeFuture { state }
    }
}

impl<S, C, A, B> Describe<Request<B>> for Authorize<S, C, A>
where
    S: Describe<Request<B>>,
{
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<B>>(NAME, REASONS));
        S::describe(rows);
    }
}

const NAME: &str = "AuthorizeLayer";
const REASONS: &[Reason] = &[
    Reason::Unauthenticated,
    Reason::ClientInfo,
    Reason::AuthorizerRefused,
    Reason::AuthorizerThrottled,
    Reason::AuthorizerUnavailable,
    Reason::Internal,
];

pin_project! {
    /// The future of [`Authorize`].
    pub struct AuthorizeFuture<S: Service<Request<B>>, A: Service<C>, C, B> {
        #[pin]
        state: State<S, A, C, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<B>>, A: Service<C>, C, B> {
        Authorizing {
            #[pin]
            authorizing: Oneshot<A, C>,
            rest: Option<(Request<B>, S)>,
        },
        Calling {
            #[pin]
            inner: Oneshot<S, Request<B>>,
        },
        Refused {
            rejection: Option<Rejection>,
        },
    }
}

impl<S, A, C, B, I> Future for AuthorizeFuture<S, A, C, B>
where
    A: Service<C, Response = Arc<I>>,
    A::Error: Into<Rejection>,
    I: Send + Sync + 'static,
    S: Service<Request<B>>,
    S::Error: Into<Rejection>,
{
    type Output = Result<S::Response, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Calling { inner } => return inner.poll(cx).map_err(Into::into),
                StateProj::Refused { rejection } => match rejection.take() {
                    Some(rejection) => return Poll::Ready(Err(rejection)),
                    // Polled again after completion, which futures need not bear.
                    None => return Poll::Pending,
                },
                StateProj::Authorizing { authorizing, rest } => match (ready!(authorizing.poll(cx)), rest.take()) {
                    (Ok(identity), Some((mut request, inner))) => {
                        request.extensions_mut().insert(Authorized(identity));
                        State::Calling { inner: Oneshot::new(inner, request) }
                    }
                    (Err(error), _) => State::Refused { rejection: Some(error.into().relayed_by(NAME)) },
                    (Ok(_), None) => return Poll::Pending,
                },
            };
            state.set(next);
        }
    }
}
