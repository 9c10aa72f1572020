//! Path to stack.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::{
    admin::{self, Readiness, metrics::Metrics},
    client::HttpClient,
    config::Config,
    stack::{self, Answer, Stack},
};

/// A route: one box, whatever the layers.
type Route = BoxCloneSyncService<Request<Incoming>, Response<Answer>, Infallible>;

/// The public listener's routes.
#[derive(Debug, Clone)]
pub struct Router {
    authorize: Route,
    upload: Route,
    receive: Route,
    readiness: Readiness,
}

impl Router {
    /// The three stacks, and health.
    pub fn new(config: &Config, metrics: &'static Metrics, client: &HttpClient, readiness: Readiness) -> Self {
        fn boxed(stack: impl Stack<Incoming>) -> Route {
            BoxCloneSyncService::new(stack)
        }
        Router {
            authorize: boxed(stack::authorize(config, metrics, client)),
            upload: boxed(stack::upload(config, metrics, client)),
            receive: boxed(stack::receive(config, metrics, client)),
            readiness,
        }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let route = match request.uri().path() {
            "/metrics/v1/receive" => self.receive,
            "/upload" => self.upload,
            "/authorize" => self.authorize,
            _ => return admin::common(&request, &self.readiness, admin::PUBLIC_PATHS),
        };
        match route.oneshot(request).await {
            Ok(response) => response.map(Either::into_inner),
            Err(never) => match never {},
        }
    }
}
