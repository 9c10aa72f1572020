//! The authorizers behind the stacks, each a stack of layers itself: who is asked, how long, how often, and what is kept.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use infogw_layers::{
    authorize::{
        ClusterCredential, Identity, Secret,
        cache::{CacheConfig, CacheLayer, SharedGrants},
        single_flight::SingleFlightLayer,
        token::TokenAuthorizer,
        tollbooth::{self, Tollbooth},
    },
    circuit::{Circuit, CircuitLayer},
    observe::ObserveLayer,
    rejection::{BoxError, Reason, Rejection},
    retry::RetryOutages,
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, service_fn,
    timeout::{TimeoutLayer, error::Elapsed},
    util::BoxCloneSyncService,
};

use crate::{
    admin::metrics::{Handler, Metrics},
    client::{Clients, showing},
    config::{Authorizer, Config},
    identity::{Sender, SenderAuthorizer},
    shared::Shared,
    stores,
};

/// Calls for those who register, at once.
const REGISTERING: usize = 512;
/// How long an authorization may take, retries and all: telemeter-server's time.
const AUTHORIZATION: Duration = Duration::from_secs(20);
/// How long one call has. A second one fits in.
const CALL: Duration = Duration::from_secs(9);
const CALLS: u32 = 3;
/// Calls in a row that fail before the authorizer is left alone, and for how long.
const FAILURES: NonZeroU32 = NonZeroU32::new(5).unwrap();
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// An authorizer of those who bring a credential `C`.
pub type Authorizing<C> = Shared<BoxCloneSyncService<C, Arc<Identity>, Rejection>>;

fn authorizing<C, S>(authorizer: S) -> Authorizing<C>
where
    S: Service<C, Response = Arc<Identity>, Error = Rejection, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    Shared::new(BoxCloneSyncService::new(authorizer))
}

/// Whether the authorizer may be asked: one for all routes, since it is one authorizer.
pub fn circuit(metrics: &'static Metrics) -> Circuit {
    Circuit::observed_by(FAILURES, LEFT_ALONE, metrics.authorizer_circuit())
}

/// Verifies tokens of ours, each once.
pub fn tokens(config: &Config, metrics: &'static Metrics, handler: Handler) -> Authorizing<Secret> {
    let verifier = config.keys.verifier().clone();
    let verify = TokenAuthorizer::new(verifier.clone(), config.partition_label.as_str());
    let verify = verify.map_request(|(_generation, token): (u64, Secret)| token);
    let cache = CacheLayer::new(CacheConfig {
        // To verify one again would not renew it.
        grant_life: config.token_lifetime,
        refresh_ahead: false,
        grace: Duration::ZERO,
        // Verifying is no call, and waits for nobody.
        calls: usize::MAX,
        shared: None,
        ..config.authorizations.clone()
    });
    metrics.cache("tokens", cache.handle());
    // Kept for the keys it was verified with: what others said of it does not count.
    let cached = cache.observed_by(handler).layer(verify).map_request(move |token| (verifier.generation(), token));
    authorizing(cached.map_response(|identity: Arc<Identity>| {
        tracing::info!(cluster = identity.cluster.as_str(), "cluster ID");
        identity
    }))
}

/// Asks about those who register, once at a time and never from memory: for the authorizer each call is a registration.
pub fn registering(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients,
    circuit: &Circuit,
) -> Authorizing<ClusterCredential> {
    let asking = registrations(config, metrics, clients, circuit, true);
    authorizing(SingleFlightLayer::new(REGISTERING).layer(asking))
}

/// Takes verified certificates at their word, asks the registrations about cluster credentials, and keeps what they say.
pub fn senders<F>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients<F>,
    circuit: &Circuit,
    handler: Handler,
) -> Authorizing<Sender> {
    let asking = registrations(config, metrics, clients, circuit, false);
    let cache =
        CacheLayer::new(CacheConfig { shared: shared_grants(config, metrics), ..config.authorizations.clone() });
    metrics.cache("authorizer", cache.handle());
    authorizing(SenderAuthorizer::new(cache.observed_by(handler).layer(asking), &metrics.identity))
}

/// Where replicas that have the same key, and ask the same authorizer, share what it grants.
fn shared_grants(config: &Config, metrics: &'static Metrics) -> Option<SharedGrants> {
    let Authorizer::Registrations(uri) = &config.authorizer else { return None };
    let store = stores::authorizations(&config.stores, metrics)?;
    let context = format!("authorizations by {uri}");
    let secret = config.keys.derive_secret(&context);
    let shared = SharedGrants::new(store, "infogw:authorization:", &secret, config.stores.expire);
    let following = shared.clone();
    config.keys.on_new_secret(context, move |secret| following.set_secret(secret));
    Some(shared)
}

/// The authorizer that flags name.
fn registrations<F>(
    config: &Config,
    metrics: &'static Metrics,
    clients: &Clients<F>,
    circuit: &Circuit,
    needs_account: bool,
) -> Authorizing<ClusterCredential> {
    match &config.authorizer {
        Authorizer::AcceptAny => authorizing(service_fn(async |credential: ClusterCredential| {
            let cluster = credential.cluster().clone();
            Ok(Arc::new(Identity { account: Some(cluster.as_str().into()), ..Identity::of(cluster) }))
        })),
        Authorizer::Nobody => authorizing(service_fn(async |_| {
            Err(Rejection::new(
                Reason::ClientInfo,
                "no tokens are taken or issued here: show a client certificate and send remote write to /metrics/v1/receive",
            ))
        })),
        Authorizer::Registrations(uri) => {
            let requests = metrics.client("authorize", config.verbose);
            let client = ServiceBuilder::new()
                // Around the timeout: whoever does not answer in time is not there.
                .layer(CircuitLayer::new(circuit.clone(), tollbooth::unavailable()))
                // Around the whole answer: one that ends in mid-word is none.
                .layer(TimeoutLayer::new(CALL))
                .and_then(whole)
                .layer(ObserveLayer::new(requests))
                .option_layer(clients.traces.client("authorize"))
                .service(clients.authorize.clone());
            // Around the circuit: that we have no token is not the authorizer's failure.
            let client = showing(clients.credentials.clone(), client, tollbooth::is_about_caller);
            let tollbooth = Tollbooth::new(client, uri.clone());
            let tollbooth = if needs_account { tollbooth.needs_account() } else { tollbooth };
            let tollbooth = if clients.credentials.is_some() { tollbooth.shows_credentials() } else { tollbooth };
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
            authorizing(patient)
        }
    }
}

/// The longest answer of the authorizer that is read, in bytes.
const LONGEST_ANSWER: usize = 32 * 1024;

/// The answer with its body.
async fn whole(answer: Response<Incoming>) -> Result<Response<Full<Bytes>>, BoxError> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, Full::new(body)))
}
