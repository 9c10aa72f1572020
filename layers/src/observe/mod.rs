//! What passed, for metrics and logs.
//!
//! A layer that has something to report takes an [`Observe`] of its own event; `()` observes nothing and costs nothing.
//! [`ObserveLayer`] reports each exchange of request and response.
//!
//! ```
//! use infogw_layers::observe::{Exchange, ObserveLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::sync::{Arc, atomic::{AtomicU16, Ordering}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), std::convert::Infallible> {
//! let last = Arc::new(AtomicU16::new(0));
//! let seen = last.clone();
//! let service = ServiceBuilder::new()
//!     .layer(ObserveLayer::new(move |exchange: &Exchange<'_>| seen.store(exchange.status.as_u16(), Ordering::Relaxed)))
//!     .service(service_fn(async |_: http::Request<()>| Ok::<_, std::convert::Infallible>(http::Response::new(()))));
//! service.oneshot(http::Request::new(())).await?;
//! assert_eq!(last.load(Ordering::Relaxed), 200);
//! # Ok(()) }
//! ```

#[cfg(feature = "observe")]
mod exchange;

#[cfg(feature = "observe")]
pub use exchange::{Exchange, ObserveFuture, ObserveLayer, Observed};

/// Takes note of events of type `E`. Any `Fn(&E)` does; so does `()`, which ignores them.
pub trait Observe<E> {
    /// Takes note of `event`. Called on the request's path: be quick.
    fn observe(&self, event: &E);
}

impl<E> Observe<E> for () {
    fn observe(&self, _: &E) {}
}

impl<E, O: Observe<E> + ?Sized> Observe<E> for std::sync::Arc<O> {
    fn observe(&self, event: &E) {
        (**self).observe(event);
    }
}

/// Both, in this order.
impl<E, A: Observe<E>, B: Observe<E>> Observe<E> for (A, B) {
    fn observe(&self, event: &E) {
        self.0.observe(event);
        self.1.observe(event);
    }
}

impl<E, F: Fn(&E)> Observe<E> for F {
    fn observe(&self, event: &E) {
        self(event);
    }
}
