use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response, StatusCode, header};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use super::{Token, TokenSource};
use crate::{
    describe::{Describe, Row},
    rejection::{BoxError, Reason, Rejection},
};

const NAME: &str = "BearerLayer";

/// Sends the token along with each request of an HTTP client.
///
/// After a 401 the request is sent once more, with another token, if the source has or gets one. What is answered then stands.
///
/// The answer has the [`Token`] among its extensions, so that whoever passes on what it says can [tell](Token::is_in) if that is the
/// token: servers quote what they were sent.
#[derive(Debug, Clone)]
pub struct BearerLayer<T = TokenSource> {
    tokens: T,
    is_about_us: fn(&HeaderMap) -> bool,
}

/// Where tokens come from.
pub trait Tokens: Clone + Send + Sync + 'static {
    /// The token to show now.
    fn token(&self) -> impl Future<Output = Result<Token, Rejection>> + Send;

    /// Another one than `refused`, which was answered with 401, if there is or comes one.
    ///
    /// # Errors
    /// Why none comes, where that tells more than the 401.
    fn replace(&self, refused: &Token) -> impl Future<Output = Result<Option<Token>, Rejection>> + Send;
}

impl Tokens for TokenSource {
    async fn token(&self) -> Result<Token, Rejection> {
        Ok(TokenSource::token(self).await?)
    }

    async fn replace(&self, refused: &Token) -> Result<Option<Token>, Rejection> {
        Ok(TokenSource::replace(self, refused).await)
    }
}

impl<T> BearerLayer<T> {
    /// Sends tokens of `tokens`.
    pub fn new(tokens: T) -> Self {
        BearerLayer { tokens, is_about_us: |_| true }
    }

    /// Takes a 401 for a word on our token only where its headers say so, for neighbours who also judge the credentials of others.
    #[must_use]
    pub fn where_about_us(self, is_about_us: fn(&HeaderMap) -> bool) -> Self {
        BearerLayer { is_about_us, ..self }
    }
}

impl<S, T: Clone> Layer<S> for BearerLayer<T> {
    type Service = Bearer<S, T>;

    fn layer(&self, inner: S) -> Bearer<S, T> {
        Bearer { inner, tokens: self.tokens.clone(), is_about_us: self.is_about_us }
    }
}

/// The service that [`BearerLayer`] makes. Its error is the client's own, or a boxed [`Rejection`] where there is no token.
#[derive(Debug, Clone)]
pub struct Bearer<S, T = TokenSource> {
    inner: S,
    tokens: T,
    is_about_us: fn(&HeaderMap) -> bool,
}

impl<S, T, B, R> Service<Request<B>> for Bearer<S, T>
where
    T: Tokens,
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Clone + Send + 'static,
    R: Send,
{
    type Response = Response<R>;
    type Error = BoxError;
    /// Boxed: there is one for each request over the network.
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

    /// Ready at once: a permit of the client must not be held while a token is waited for.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Bearer { inner, tokens, is_about_us } = self.clone();
        Box::pin(async move {
            let token = tokens.token().await.map_err(|rejection| rejection.by(NAME))?;
            let again = request.clone();
            authorize(&mut request, &token);
            let response = inner.clone().oneshot(request).await.map_err(Into::into)?;
            if response.status() != StatusCode::UNAUTHORIZED || !is_about_us(response.headers()) {
                return Ok(shown(response, token));
            }
            let Some(token) = tokens.replace(&token).await.map_err(|rejection| rejection.by(NAME))? else {
                return Ok(shown(response, token));
            };
            drop(response);
            let mut request = again;
            authorize(&mut request, &token);
            let response = inner.oneshot(request).await.map_err(Into::into)?;
            Ok(shown(response, token))
        })
    }
}

/// Puts the token beside the answer to it.
fn shown<R>(mut response: Response<R>, token: Token) -> Response<R> {
    response.extensions_mut().insert(token);
    response
}

fn authorize<B>(request: &mut Request<B>, token: &Token) {
    request.headers_mut().insert(header::AUTHORIZATION, token.authorization().clone());
}

impl<S: Describe<Request<B>>, T, B> Describe<Request<B>> for Bearer<S, T> {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<B>>(NAME, &[Reason::CredentialsUnavailable]));
        S::describe(rows);
    }
}
