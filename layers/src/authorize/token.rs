//! An authorizer that verifies our own tokens.
//!
//! ```
//! use infogw_layers::authorize::{Secret, jwt::{SigningKey, TokenSigner, TokenVerifier}, token::TokenAuthorizer};
//! use tower::ServiceExt;
//! use std::{collections::BTreeMap, time::{Duration, SystemTime}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = SigningKey::generate()?;
//! let authorizer = TokenAuthorizer::new(TokenVerifier::new(vec![key.verifying_key()]), "_id");
//! let labels = BTreeMap::from([("_id".to_owned(), "c1".to_owned())]);
//! let token = TokenSigner::new(key).sign("account", &labels, Duration::from_secs(60), SystemTime::now())?;
//! assert_eq!(authorizer.oneshot(Secret::new(token)).await?.cluster.as_str(), "c1");
//! # Ok(()) }
//! ```

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    ClusterId, Identity, Secret,
    credential::unauthenticated,
    jwt::{Claims, LEEWAY, TokenVerifier},
};
use crate::{
    clock::{Clock, SystemClock},
    rejection::Rejection,
};

/// Takes the identity from a verified token: the cluster from the label that carries it, and the labels that bind its series.
///
/// Verifying an ES256 signature takes some 60 us, so put a [cache](super::cache) over it: the identity says when it ends.
/// The cache must forget it when a key is removed, too: see [`TokenVerifier::generation`].
#[derive(Debug, Clone)]
pub struct TokenAuthorizer<C = SystemClock> {
    verifier: TokenVerifier,
    cluster_label: Box<str>,
    clock: C,
}

impl TokenAuthorizer {
    /// Verifies with `verifier`; the cluster's id is the token's label `cluster_label`.
    pub fn new(verifier: TokenVerifier, cluster_label: impl Into<Box<str>>) -> Self {
        TokenAuthorizer { verifier, cluster_label: cluster_label.into(), clock: SystemClock }
    }
}

impl<C> TokenAuthorizer<C> {
    /// Reads the time from `clock`.
    pub fn clock<D: Clock>(self, clock: D) -> TokenAuthorizer<D> {
        TokenAuthorizer { verifier: self.verifier, cluster_label: self.cluster_label, clock }
    }
}

impl<C: Clock> TokenAuthorizer<C> {
    fn identify(&self, token: &Secret) -> Result<Arc<Identity>, Rejection> {
        let claims = self.verifier.verify(token.expose(), self.clock.now());
        self.identity(claims.map_err(|error| unauthenticated(error.to_string()))?).map(Arc::new)
    }
}

impl<C> TokenAuthorizer<C> {
    /// Who `claims` say it is, once they are known to hold.
    ///
    /// # Errors
    /// [`Reason::Unauthenticated`](crate::rejection::Reason::Unauthenticated) if they name no cluster.
    pub fn identity(&self, claims: Claims) -> Result<Identity, Rejection> {
        let cluster = claims.labels.get(&*self.cluster_label).map_or("", String::as_str);
        let cluster = ClusterId::new(cluster).map_err(|_| {
            unauthenticated(format!(
                "the token names no cluster in `{}`: get a new one from /authorize",
                self.cluster_label
            ))
        })?;
        Ok(Identity {
            account: Some(claims.subject.into()),
            labels: claims.labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            expires_at: claims.expires_at.checked_add(LEEWAY),
            ..Identity::of(cluster)
        })
    }
}

impl<C: Clock> Service<Secret> for TokenAuthorizer<C> {
    type Response = Arc<Identity>;
    type Error = Rejection;
    type Future = Ready<Result<Arc<Identity>, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, token: Secret) -> Self::Future {
        ready(self.identify(&token))
    }
}
