//! An issuer that does as it is told.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use infogw_layers::{
    client_credentials::{Issued, TokenRequest},
    rejection::BoxError,
};
use tokio::time::Instant;
use tower::Service;

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// A token with this life, `token-N` for the Nth call.
    Issue(Option<Duration>),
    Fail,
    Hang,
}

type Script = Box<dyn Fn(usize) -> Call + Send>;

/// Answers the Nth call, counted from 1, by its script. Panics if two calls overlap. Clones share all.
#[derive(Clone)]
pub(crate) struct Issuer(Arc<Shared>);

struct Shared {
    takes: Duration,
    script: Mutex<Script>,
    calls: Mutex<Vec<Instant>>,
    /// Held during a call.
    busy: tokio::sync::Mutex<()>,
}

impl Issuer {
    pub(crate) fn taking(takes: Duration, script: impl Fn(usize) -> Call + Send + 'static) -> Self {
        let script: Mutex<Script> = Mutex::new(Box::new(script));
        Issuer(Arc::new(Shared { takes, script, calls: Mutex::default(), busy: tokio::sync::Mutex::default() }))
    }

    pub(crate) fn set(&self, script: impl Fn(usize) -> Call + Send + 'static) {
        *self.0.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Box::new(script);
    }

    /// When each call began.
    pub(crate) fn calls(&self) -> Vec<Instant> {
        self.0.calls.lock().unwrap().clone()
    }

    pub(crate) fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Service<TokenRequest> for Issuer {
    type Response = Issued;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Issued, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: TokenRequest) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let _busy = shared.busy.try_lock().expect("one call at a time");
            let call = {
                let mut calls = shared.calls.lock().unwrap();
                calls.push(Instant::now());
                calls.len()
            };
            let answer = (shared.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner))(call);
            tokio::time::sleep(shared.takes).await;
            match answer {
                Call::Issue(life) => Ok(Issued::bearer(&format!("token-{call}"), life)?),
                Call::Fail => Err("down".into()),
                Call::Hang => std::future::pending().await,
            }
        })
    }
}
