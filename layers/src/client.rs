//! What a layer or an authorizer calls a neighbour with.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower_service::Service;

use crate::rejection::BoxError;

/// An HTTP client, with whatever layers are around it: [`Request<Full<Bytes>>`] to [`Response<Body>`](Self::Body).
///
/// Every service like that is one, hyper-util's legacy client among them, and tower's `BoxCloneSyncService` where it is boxed.
pub trait ApiClient:
    Service<Request<Full<Bytes>>, Response = Response<Self::Body>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of its answers.
    type Body: Body<Data: Send, Error: Into<BoxError>> + Send + 'static;
}

impl<C, B> ApiClient for C
where
    C: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    type Body = B;
}
