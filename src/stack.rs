//! The ordering: each stack from the outside in, as a request meets it.
//!
//! The stacks' table in the [crate docs](crate) is checked against these types by a test.

use std::{convert::Infallible, num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{Either, Full};
use infogw_layers::{
    authorize::{
        AuthorizeLayer, BearerToken, ClusterCredential, Identity, Secret,
        cache::{CacheConfig, CacheLayer, SharedGrants},
        single_flight::SingleFlightLayer,
        token::TokenAuthorizer,
        tollbooth::{self, Tollbooth},
    },
    circuit::{Circuit, CircuitLayer},
    client_credentials::{BearerLayer, TokenSource},
    decode::{DecodeLayer, MetricFamiliesDecoder, WriteRequestDecoder},
    describe::{Describe, DescribePredicate},
    drain::DrainLayer,
    encode::EncodeLayer,
    enforce::EnforceLabelsLayer,
    observe::ObserveLayer,
    rate_limit::{LocalLimiter, PerCluster, RateLimitLayer, SamplesPerCluster, shared::SharedLimiter},
    rejection::{BoxError, Reason, Rejection},
    respond::RespondLayer,
    retry::RetryOutages,
    translate::TranslateLayer,
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    filter::{FilterLayer, Predicate},
    limit::ConcurrencyLimitLayer,
    load_shed::LoadShedLayer,
    service_fn,
    timeout::{TimeoutLayer, error::Elapsed},
    util::{self, BoxCloneSyncService},
};

use crate::{
    admin::metrics::{
        Handler, Metrics,
        limiter::{Limit, LimitCounters},
    },
    client::Clients,
    config::{Authorizer, Config},
    forward::{Forward, Success},
    identity::{Sender, SenderAuthorizer, SenderSource},
    registration::{IssueToken, RegistrationCredential, RegistrationDecoder},
    stores,
};

/// `POST /upload`: metric families of a cluster that has a token of ours.
pub fn upload<B: RequestBody>(config: &Config, metrics: &'static Metrics, clients: &Clients) -> impl Stack<B> {
    let handler = metrics.handler("upload");
    let forward = forward(config, metrics, clients, handler, Success::Ok);
    ServiceBuilder::new()
        // Outermost: sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by(handler))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // Before whatever is charged to or checked against an identity.
        .layer(AuthorizeLayer::new(BearerToken, token_authorizer(config, metrics, handler)))
        // Knows the cluster, and comes before the body costs memory and time. Outside the limit below: what that sheds is refunded.
        .layer(limit(Limit::Upload, config.rates.upload.map(PerCluster), config, metrics))
        // Turns the body into a payload: before whatever looks at series.
        .layer(DecodeLayer::new(MetricFamiliesDecoder::new(config.upload_limits.clone())))
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Needs a payload and an identity. Before Translate: what is dropped here is not translated.
        .layer(EnforceLabelsLayer::new(config.rules.upload.clone()).observed_by(handler))
        // Needs families; Encode needs a write request.
        .layer(TranslateLayer::new().stamp().observed_by(handler))
        // Last: nothing behind it changes the payload.
        .layer(EncodeLayer::new().when_empty(StatusCode::OK))
        .service(forward)
}

/// `POST /metrics/v1/receive`: remote write of a cluster that brings its own credentials.
pub fn receive<B: RequestBody>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    authorizer: &Circuit,
) -> impl Stack<B> {
    let handler = metrics.handler("receive");
    let forward = forward(config, metrics, clients, handler, Success::AsUpstream);
    ServiceBuilder::new()
        // Outermost: sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by(handler))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // Before whatever is checked against an identity, and before the body costs memory and time.
        .layer(AuthorizeLayer::new(
            SenderSource::new(config),
            sender_authorizer(config, metrics, clients, authorizer, handler),
        ))
        // Knows the cluster, and comes before the body costs memory and time.
        .layer(limit(Limit::ReceiveRequests, config.rates.receive_requests.map(PerCluster), config, metrics))
        // Turns the body into a payload: before whatever looks at series.
        .layer(DecodeLayer::new(WriteRequestDecoder::new(config.receive_limits.clone())))
        // Needs to know the samples, and comes before the policy drops some: charged is what was received. Outside the limit below:
        // what that sheds is refunded.
        .layer(limit(Limit::ReceiveSamples, config.rates.receive_samples.map(SamplesPerCluster), config, metrics))
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Needs a payload and an identity.
        .layer(EnforceLabelsLayer::new(config.rules.receive.clone()).observed_by(handler))
        // Last: nothing behind it changes the payload. It tells the sender what was refused once the rest is written.
        .layer(EncodeLayer::new())
        .service(forward)
}

/// `POST /authorize`: a cluster registers and gets a token. The same layers in another order: the credential's cluster stands in
/// the body.
pub fn authorize<B: RequestBody>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    authorizer: &Circuit,
) -> impl Stack<B> {
    let handler = metrics.handler("authorize");
    let issue = IssueToken::new(
        config.keys.signer().clone(),
        config.token_lifetime,
        config.partition_label.clone(),
        config.required_labels.clone(),
    );
    let registering =
        SingleFlightLayer::new(REGISTRATIONS).layer(registrations(config, metrics, clients, authorizer, true));
    ServiceBuilder::new()
        // Outermost: sees each request once, whoever answers it.
        .layer(ObserveLayer::new(handler))
        // Around whatever may refuse without having read the body, and around Respond, because it waits for the answer.
        .layer(drain())
        // Around whatever refuses, inside what looks at answers only.
        .layer(RespondLayer::new().observed_by(handler))
        // Costs nothing, so it comes before whatever costs.
        .layer(FilterLayer::new(PostOnly))
        // Before Authorize: the cluster to authorize may stand in the form.
        .layer(DecodeLayer::new(RegistrationDecoder))
        // Sheds directly outside the limit, or requests would queue for it. Inside Decode, or a slow body would hold a permit.
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(config.in_flight.get()))
        // Not cached: for the authorizer the call is a registration.
        .layer(AuthorizeLayer::new(RegistrationCredential, registering))
        .service(issue)
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

/// What a leaf answers, or what [`RespondLayer`] answers in its place.
pub type Answer = Either<Full<Bytes>, Full<Bytes>>;

/// A request body that the stacks can read.
pub trait RequestBody: Body<Data: Send, Error: Into<BoxError> + Send> + Unpin + Send + 'static {}

impl<B> RequestBody for B where B: Body<Data: Send, Error: Into<BoxError> + Send> + Unpin + Send + 'static {}

/// A refused sender may still send this much, for this long, and get its answer.
pub fn drain() -> DrainLayer {
    DrainLayer::new(1 << 20, Duration::from_secs(2))
}

/// So many failures of Redis in a row, and it is left alone for so long: requests then wait for nothing.
const REDIS_FAILURES: NonZeroU32 = NonZeroU32::new(3).unwrap();
const REDIS_LEFT_ALONE: Duration = Duration::from_secs(1);

type LocalLimit<C> = RateLimitLayer<C, Arc<LocalLimiter>, LimitCounters>;
type SharedLimit<C> = RateLimitLayer<C, SharedLimiter, LimitCounters>;

/// A limit of its own, shared between replicas where there is a Redis. What fails here is given back: of uploads down to one a
/// minute; of remote write all of it, since a sender whose retries were counted would hear 429, which a stock one takes for the end
/// of its data.
fn limit<C>(
    limit: Limit,
    charge: Option<C>,
    config: &Config,
    metrics: &Metrics,
) -> util::Either<LocalLimit<C>, SharedLimit<C>> {
    let local = Arc::new(LocalLimiter::new());
    let floor = match limit {
        Limit::Upload => Duration::from_secs(60),
        Limit::ReceiveRequests | Limit::ReceiveSamples => Duration::ZERO,
    };
    let layer = RateLimitLayer::optional(charge)
        .limiter(Arc::clone(&local))
        .refund_floor(floor)
        .observed_by(metrics.limiter.limit(limit, &local));
    let Some(redis) = stores::rate_limit(&config.stores) else {
        return util::Either::Left(layer);
    };
    let observer = metrics.limiter.shared(limit);
    let keys = format!("infogw:ratelimit:{}", limit.name());
    let shared = SharedLimiter::builder(redis, &keys, &config.keys.derive_secret("rate limits"), local)
        .circuit(Circuit::observed_by(REDIS_FAILURES, REDIS_LEFT_ALONE, observer.clone()))
        .observed_by(observer)
        .build();
    util::Either::Right(layer.limiter(shared))
}

fn forward(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    handler: Handler,
    success: Success,
) -> Forward<impl ApiClient + use<>, Handler> {
    let tenant: Option<HeaderValue> = match success {
        Success::Ok => Some(config.tenant.clone()),
        Success::AsUpstream => config.receive_tenant.clone(),
    };
    let client = ObserveLayer::new(metrics.client("forward", config.verbose)).layer(clients.forward.clone());
    let client = showing(clients.credentials.clone(), client, |_| true);
    Forward::new(client, config.forward_url.clone(), tenant, success, handler)
}

/// Shows our own token, if there is one to show. Outside of what counts: each attempt is a request.
fn showing(tokens: Option<TokenSource>, client: impl ApiClient, is_about_us: fn(&HeaderMap) -> bool) -> impl ApiClient {
    let layer = tokens.map(|tokens| BearerLayer::new(tokens).where_about_us(is_about_us));
    ServiceBuilder::new().option_layer(layer).map_err(Into::<BoxError>::into).service(client)
}

/// A client whose requests are counted.
pub trait ApiClient:
    Service<Request<Full<Bytes>>, Response = Response<hyper::body::Incoming>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<C> ApiClient for C where
    C: Service<Request<Full<Bytes>>, Response = Response<hyper::body::Incoming>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Calls to the authorizer for those who register, at once.
const REGISTRATIONS: usize = 512;
/// How long an authorization may take, retries and all: telemeter-server's time.
const AUTHORIZATION: Duration = Duration::from_secs(20);
/// How long one call has. A second one fits in.
const CALL: Duration = Duration::from_secs(9);
const CALLS: u32 = 3;
/// Calls in a row that fail before the authorizer is left alone, and for how long.
const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();
const LEFT_ALONE: Duration = Duration::from_secs(5);

type Authorizing<C> = BoxCloneSyncService<C, Arc<Identity>, Rejection>;

/// Whether the authorizer may be asked: one for all routes, since it is one authorizer.
pub fn authorizer_circuit(metrics: &'static Metrics) -> Circuit {
    Circuit::observed_by(FAILURES, LEFT_ALONE, metrics.authorizer_circuit())
}

/// Verifies tokens of ours, each once.
fn token_authorizer(config: &Config, metrics: &'static Metrics, handler: Handler) -> Authorizing<Secret> {
    let verifier = config.keys.verifier().clone();
    let verify = TokenAuthorizer::new(verifier.clone(), config.partition_label.as_str());
    let verify = verify.map_request(|(_generation, token): (u64, Secret)| token);
    let cache = CacheLayer::new(CacheConfig {
        // To verify one again would not renew it.
        grant_life: config.token_lifetime,
        refresh_ahead: false,
        grace: Duration::ZERO,
        shared: None,
        ..config.authorizations.clone()
    });
    metrics.cache("tokens", cache.handle());
    // Kept for the keys it was verified with: what others said of it does not count.
    let cached = cache.observed_by(handler).layer(verify).map_request(move |token| (verifier.generation(), token));
    BoxCloneSyncService::new(cached.map_response(|identity: Arc<Identity>| {
        tracing::info!(cluster = identity.cluster.as_str(), "cluster ID");
        identity
    }))
}

/// Takes verified certificates at their word, asks the registrations about cluster credentials, and keeps what they say. What a
/// cluster may write for others is looked up each time, so that a reload counts at once.
fn sender_authorizer(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    circuit: &Circuit,
    handler: Handler,
) -> Authorizing<Sender> {
    let asking = registrations(config, metrics, clients, circuit, false);
    let cache =
        CacheLayer::new(CacheConfig { shared: shared_grants(config, metrics), ..config.authorizations.clone() });
    metrics.cache("authorizer", cache.handle());
    let authorizer = SenderAuthorizer::new(cache.observed_by(handler).layer(asking), &metrics.identity);
    let rules = config.rules.clone();
    BoxCloneSyncService::new(authorizer.map_response(move |identity| rules.delegate(identity)))
}

/// Where replicas that have the same key, and ask the same authorizer, share what it grants.
fn shared_grants(config: &Config, metrics: &'static Metrics) -> Option<SharedGrants> {
    let Authorizer::Registrations(uri) = &config.authorizer else { return None };
    let store = stores::authorizations(&config.stores, metrics)?;
    let secret = config.keys.derive_secret(&format!("authorizations by {uri}"));
    Some(SharedGrants::new(store, "infogw:authorization:", &secret, config.stores.expire))
}

/// The authorizer that flags name.
fn registrations(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    circuit: &Circuit,
    needs_account: bool,
) -> Authorizing<ClusterCredential> {
    match &config.authorizer {
        Authorizer::AcceptAny => BoxCloneSyncService::new(service_fn(async |credential: ClusterCredential| {
            let cluster = credential.cluster().clone();
            Ok(Arc::new(Identity { account: Some(cluster.as_str().into()), ..Identity::of(cluster) }))
        })),
        Authorizer::Nobody => BoxCloneSyncService::new(service_fn(async |_| {
            Err(Rejection::new(
                Reason::ClientInfo,
                "no tokens are taken or issued here: show a client certificate and send remote write to /metrics/v1/receive",
            ))
        })),
        Authorizer::Registrations(uri) => {
            let client = ServiceBuilder::new()
                // Around the timeout: whoever does not answer in time is not there.
                .layer(CircuitLayer::new(circuit.clone(), tollbooth::unavailable()))
                .layer(TimeoutLayer::new(CALL))
                .layer(ObserveLayer::new(metrics.client("authorize", config.verbose)))
                .service(clients.authorize.clone());
            // Around the circuit: that we have no token is not the authorizer's failure.
            let client = showing(clients.credentials.clone(), client, tollbooth::is_about_caller);
            let tollbooth = Tollbooth::new(client, uri.clone());
            let tollbooth = if needs_account { tollbooth.needs_account() } else { tollbooth };
            let patient = ServiceBuilder::new()
                .map_err(|error: BoxError| match error.downcast::<Rejection>() {
                    // The cluster cannot be asked about, for whatever reason.
                    Ok(rejection) if rejection.reason() == Reason::CredentialsUnavailable => tollbooth::unavailable(),
                    Ok(rejection) => *rejection,
                    Err(error) if error.is::<Elapsed>() => tollbooth::unavailable(),
                    Err(error) => error.into(),
                })
                // Around the retries: whoever waits, waits for all of them.
                .layer(TimeoutLayer::new(AUTHORIZATION))
                .retry(RetryOutages::new(CALLS).unless_open(circuit.clone()))
                .service(tollbooth);
            BoxCloneSyncService::new(patient)
        }
    }
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
        Err(rejection.with_header(header::ALLOW, HeaderValue::from_static("POST")).into())
    }
}

impl DescribePredicate for PostOnly {
    const REASONS: &'static [Reason] = &[Reason::Method];
    const NAME: &'static str = "FilterLayer (POST)";
}
