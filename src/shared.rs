//! A service that is cloned for the requests that reach it, and not for those that pass by.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower::{Service, util::Oneshot};

/// Clones share one service, and clone that for a request only. For what is dear to clone, deep in a stack whose layers clone
/// what is inside them for each request.
#[derive(Debug)]
pub struct Shared<S>(Arc<S>);

impl<S> Shared<S> {
    /// Shares `service`.
    pub fn new(service: S) -> Self {
        Shared(Arc::new(service))
    }
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Shared(Arc::clone(&self.0))
    }
}

impl<S, R> Service<R> for Shared<S>
where
    S: Service<R> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Oneshot<S, R>;

    /// Always ready: the clone of a request is asked within its future.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        Oneshot::new(S::clone(&self.0), request)
    }
}
