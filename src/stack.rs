//! The ordering: each stack from the outside in, as a request meets it.
//!
//! The stacks' table in the [crate docs](crate) is checked against these types by a test.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{Either, Full};
use infogw_layers::{
    authorize::{AuthorizeLayer, Authorized, BearerToken, Identity},
    circuit::Circuit,
    client::ApiClient,
    decode::{DecodeLayer, MetricFamiliesDecoder, WriteRequestDecoder},
    describe::{Describe, DescribePredicate},
    drain::DrainLayer,
    encode::EncodeLayer,
    enforce::EnforceLabelsLayer,
    observe::ObserveLayer,
    policy::{Endpoint, PolicyLayer, RequestQuota, SampleQuota},
    rejection::{BoxError, Reason, Rejection, shed_above},
    respond::RespondLayer,
    trace::{self, Refusals},
    translate::TranslateLayer,
};
use opentelemetry::KeyValue;
use tower::{
    Service, ServiceBuilder,
    filter::{FilterLayer, Predicate},
    limit::ConcurrencyLimitLayer,
    load_shed::LoadShedLayer,
};

use crate::{
    admin::metrics::{Handler, Metrics, limiter::Limit},
    authorizers,
    client::{Clients, showing},
    config::Config,
    forward::{Forward, Success},
    identity::SenderSource,
    limits::Limits,
    registration::{IssueToken, RegistrationCredential, RegistrationDecoder},
};

/// `POST /upload`: metric families of a cluster that has a token of ours.
pub fn upload<B: RequestBody>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients<impl ApiClient>,
    limits: &Limits,
) -> impl Stack<B> {
    let handler = metrics.handler("upload");
    let forward = forward(config, metrics, clients, handler, Success::Ok);
    let stack = ServiceBuilder::new()
        // Outermost: all that a request brings about belongs to its trace.
        .option_layer(clients.traces.server("/upload"))
        // Sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by((handler, Refusals)))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // The same; what it refuses would only be late. Before the body is read, so that refusing costs next to nothing.
        .layer(FilterLayer::new(limits.turns().refuse_while_long()))
        // Before whatever keeps the head for longer than it takes to look at it.
        .layer(limits.heads())
        // Before whatever is charged to or checked against an identity.
        .layer(AuthorizeLayer::new(BearerToken, authorizers::tokens(config, metrics, handler)))
        // Needs an identity, and comes before whatever may refuse it.
        .map_request(note_cluster)
        // Needs an identity. Everything inside finds here what holds for it: one policy for the whole request.
        .layer(PolicyLayer::new(config.policy.live().clone(), Endpoint::Upload))
        // Knows the quota, and comes before the body costs memory and time. Outside the limit below: what that sheds is refunded.
        .layer(limits.layer(Limit::Upload, RequestQuota))
        // Turns the body into a payload: before whatever looks at series. Around all work on it, which waits its turn.
        .layer(
            DecodeLayer::new(MetricFamiliesDecoder::per_request())
                .timeout(config.connections.body_timeout)
                .budget(limits.budget().cloned())
                .turns(limits.turns().clone()),
        )
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .map_err(shed_above(config.in_flight.get()))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Needs a payload and an identity. Before Translate: what is dropped here is not translated.
        .layer(EnforceLabelsLayer::per_request().observed_by(handler))
        // Needs families; Encode needs a write request.
        .layer(TranslateLayer::new().stamp().observed_by(handler))
        // Last: nothing behind it changes the payload.
        .layer(EncodeLayer::new().budget(limits.budget().cloned()).when_empty(StatusCode::OK))
        .service(forward);
    described::<B, _>(handler, stack)
}

/// `POST /metrics/v1/receive`: remote write of a cluster that brings its own credentials.
pub fn receive<B: RequestBody>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients<impl ApiClient>,
    circuit: &Circuit,
    limits: &Limits,
) -> impl Stack<B> {
    let handler = metrics.handler("receive");
    let forward = forward(config, metrics, clients, handler, Success::AsUpstream);
    let stack = ServiceBuilder::new()
        // Outermost: all that a request brings about belongs to its trace.
        .option_layer(clients.traces.server("/metrics/v1/receive"))
        // Sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by((handler, Refusals)))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // The same; what it refuses would only be late. Before the body is read, so that refusing costs next to nothing.
        .layer(FilterLayer::new(limits.turns().refuse_while_long()))
        // Before whatever keeps the head for longer than it takes to look at it.
        .layer(limits.heads())
        // Before whatever is checked against an identity, and before the body costs memory and time.
        .layer(AuthorizeLayer::new(
            SenderSource::new(config),
            authorizers::senders(config, metrics, clients, circuit, handler),
        ))
        // Needs an identity, and comes before whatever may refuse it.
        .map_request(note_cluster)
        // Needs an identity. Everything inside finds here what holds for it: one policy for the whole request.
        .layer(PolicyLayer::new(config.policy.live().clone(), Endpoint::Receive))
        // Knows the quota, and comes before the body costs memory and time.
        .layer(limits.layer(Limit::ReceiveRequests, RequestQuota))
        // Turns the body into a payload: before whatever looks at series. Around all work on it, which waits its turn.
        .layer(
            DecodeLayer::new(WriteRequestDecoder::per_request())
                .timeout(config.connections.body_timeout)
                .budget(limits.budget().cloned())
                .turns(limits.turns().clone()),
        )
        // Needs to know the samples, and comes before the policy drops some: charged is what was received. Outside the limit below:
        // what that sheds is refunded.
        .layer(limits.layer(Limit::ReceiveSamples, SampleQuota))
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .map_err(shed_above(config.in_flight.get()))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Needs a payload and an identity.
        .layer(EnforceLabelsLayer::per_request().observed_by(handler))
        // Last: nothing behind it changes the payload. It tells the sender what was refused once the rest is written.
        .layer(EncodeLayer::new().budget(limits.budget().cloned()))
        .service(forward);
    described::<B, _>(handler, stack)
}

/// `POST /authorize`: a cluster registers and gets a token. The same layers in another order: the credential's cluster stands in
/// the body.
pub fn authorize<B: RequestBody>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    circuit: &Circuit,
    limits: &Limits,
) -> impl Stack<B> {
    let handler = metrics.handler("authorize");
    let issue = IssueToken::new(config.keys.signer().clone(), config.token_lifetime, config.partition_label.clone());
    let stack = ServiceBuilder::new()
        // Outermost: all that a request brings about belongs to its trace.
        .option_layer(clients.traces.server("/authorize"))
        // Sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by((handler, Refusals)))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // Before whatever keeps the head for longer than it takes to look at it.
        .layer(limits.heads())
        // Before Authorize: the cluster to authorize may stand in the form.
        .layer(
            DecodeLayer::new(RegistrationDecoder)
                .timeout(config.connections.body_timeout)
                .budget(limits.budget().cloned()),
        )
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .map_err(shed_above(config.in_flight.get()))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Not cached: for the authorizer the call is a registration.
        .layer(AuthorizeLayer::new(RegistrationCredential, authorizers::registering(config, metrics, clients, circuit)))
        // Needs an identity, and comes before whatever may refuse it.
        .map_request(note_cluster)
        // Needs an identity. Says who may have no token, and which labels a token holds its cluster to.
        .layer(PolicyLayer::new(config.policy.live().clone(), Endpoint::Upload))
        .service(issue);
    described::<B, _>(handler, stack)
}

/// What a route's stack is: it answers everything, and can say what it is made of.
pub trait Stack<B>:
    Service<Request<B>, Response = Response<Answer>, Error = Infallible, Future: Send>
    + Describe<Request<B>>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S, B> Stack<B> for S where
    S: Service<Request<B>, Response = Response<Answer>, Error = Infallible, Future: Send>
        + Describe<Request<B>>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// What the layers of `stack` can refuse with is counted from 0 on.
fn described<B, S: Stack<B>>(handler: Handler, stack: S) -> S {
    let mut rows = Vec::new();
    S::describe(&mut rows);
    handler.describe(&rows);
    stack
}

/// What a leaf answers, or what [`RespondLayer`] answers in its place.
pub type Answer = Either<Full<Bytes>, Full<Bytes>>;

/// A request body that the stacks can read.
pub trait RequestBody: Body<Data: Send, Error: Into<BoxError> + Send> + Unpin + Send + 'static {}

impl<B> RequestBody for B where B: Body<Data: Send, Error: Into<BoxError> + Send> + Unpin + Send + 'static {}

/// A refused sender may still send this much, for this long, and get its answer.
pub fn drain() -> DrainLayer {
    DrainLayer::new(1 << 20, Duration::from_secs(2))
}

fn forward<C: ApiClient>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients<C>,
    handler: Handler,
    success: Success,
) -> Forward<impl ApiClient + use<C>, Handler> {
    let client = ServiceBuilder::new()
        .layer(ObserveLayer::new(metrics.client("forward", config.verbose)))
        .option_layer(clients.traces.client("forward"))
        .service(clients.forward.clone());
    let client = showing(clients.credentials.clone(), client, |_| true);
    Forward::new(client, config.upstream.uri().clone(), success, clients.retries.clone(), handler)
}

/// Says on a request's span whose it is.
fn note_cluster<B>(request: Request<B>) -> Request<B> {
    if let Some(identity) = request.extensions().get::<Authorized<Identity>>() {
        trace::note(|span| {
            span.set_attribute(KeyValue::new("infogw.cluster", identity.cluster.as_str().to_owned()));
        });
    }
    request
}

/// Every route takes POST alone.
#[derive(Debug, Clone, Copy)]
struct PostOnly;

impl<B> Predicate<Request<B>> for PostOnly {
    type Request = Request<B>;

    fn check(&mut self, request: Request<B>) -> Result<Request<B>, BoxError> {
        if request.method() == Method::POST {
            return Ok(request);
        }
        let rejection = Rejection::new(Reason::Method, "only POST is taken here");
        Err(rejection.by(Self::NAME).with_header(header::ALLOW, HeaderValue::from_static("POST")).into())
    }
}

impl DescribePredicate for PostOnly {
    const REASONS: &'static [Reason] = &[Reason::Method];
    const NAME: &'static str = "PostOnly";
}
