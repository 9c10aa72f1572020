//! Who is calling, and what holds for it.

use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::AsDer as _,
    rsa,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use criterion::Criterion;
use http::Request;
use infogw_layers::{
    authorize::{
        AuthorizeLayer, BearerToken, ClusterCredential, CompositeToken, CredentialSource, Identity, Secret,
        cache::{CacheConfig, CacheLayer},
        certificate::{CertificateAuthorizer, ClientCertificate, VerifiedCertificate},
        client_info::{ClientInfo, ClientInfoHeaders},
        jwt::{SigningKey, TokenSigner, TokenVerifier},
        single_flight::SingleFlightLayer,
        token::TokenAuthorizer,
    },
    decode::DecodeLimits,
    enforce::LabelPolicy,
    policy::{Endpoint, LivePolicy, Overrides, Policy, PolicyLayer, Setting, Size, Terms},
    rejection::Rejection,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{
    inputs::{authorized, identity, request},
    measure::{Group, Load, hand_back, prepare},
    telemetry,
};

/// Clusters of a fleet, more than what the processor's caches hold of them.
const FLEET: u64 = 10_000;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "authorize");
    credentials(&mut group);
    known(&mut group);
    tokens(&mut group);
    policies(&mut group);
}

/// The layer itself: reading a credential, for an authorizer that knows without looking.
fn credentials(group: &mut Group<'_>) {
    thread_local! {
        // Threads that share one would wait for its count of references.
        static ANYBODY: Arc<Identity> = Arc::new(identity(1));
    }
    fn at_once<C>(_: C) -> Ready<Result<Arc<Identity>, Rejection>> {
        ready(Ok(ANYBODY.with(Arc::clone)))
    }
    layer(group, "AuthorizeLayer, bearer token", BearerToken, service_fn(at_once), || bearer(&composite(1)));
    layer(group, "AuthorizeLayer, composite token", CompositeToken, service_fn(at_once), || bearer(&composite(1)));

    let certificate = |n| ClientCertificate::new(Some("1234567"), &telemetry::cluster(n)).unwrap();
    layer(group, "AuthorizeLayer, client certificate", VerifiedCertificate, CertificateAuthorizer::new(), || {
        let mut request = Request::new(());
        request.extensions_mut().insert(Arc::new(certificate(1)));
        request
    });
    let info =
        r#"{"secret": "s3cret", "config": {"secret_header": "x-secret", "common_name_header": "x-common-name"}}"#;
    let info = ClientInfoHeaders::new(ClientInfo::from_json(info.as_bytes()).unwrap());
    layer(group, "AuthorizeLayer, client info", info, CertificateAuthorizer::new(), || {
        let subject = format!("/O=1234567/CN={}", telemetry::cluster(1));
        request(&[("x-secret", "s3cret"), ("x-common-name", &subject)], ())
    });
}

/// Authorizers that keep, or share, what another one says.
fn known(group: &mut Group<'_>) {
    async fn registered(credential: ClusterCredential) -> Result<Arc<Identity>, Rejection> {
        Ok(Arc::new(Identity { account: Some("1234567".into()), ..Identity::of(credential.cluster().clone()) }))
    }
    let credential = |n| CompositeToken.credential(&bearer(&composite(n))).unwrap();
    let mut cached = CacheLayer::new(CacheConfig::default()).layer(service_fn(registered));
    prepare(async {
        for n in 0..FLEET {
            cached.call(credential(n)).await.unwrap();
        }
    });
    group.service("CacheLayer, a hit, one cluster", Load::Request, &cached, || credential(1));
    group.service("CacheLayer, a hit, 10000 clusters", Load::Request, &cached, || credential(fastrand::u64(..FLEET)));
    layer(group, "AuthorizeLayer, composite token, a hit", CompositeToken, cached, || {
        bearer(&composite(fastrand::u64(..FLEET)))
    });

    let shared = SingleFlightLayer::new(512).layer(service_fn(registered));
    group.service_that_waits("SingleFlightLayer, one cluster", &shared, || credential(1));
    group.service_that_waits("SingleFlightLayer, 10000 clusters", &shared, || credential(fastrand::u64(..FLEET)));
}

/// Tokens of ours.
fn tokens(group: &mut Group<'_>) {
    let labels = BTreeMap::from([("_id".to_owned(), telemetry::cluster(1))]);
    let signed = |key: SigningKey| {
        let verifier = TokenVerifier::new(vec![key.verifying_key()]);
        let lifetime = Duration::from_secs(12 * 60 * 60);
        (verifier, TokenSigner::new(key).sign("1234567", &labels, lifetime, SystemTime::now()).unwrap())
    };
    for key in signing_keys() {
        let name = format!("TokenVerifier, {}", key.algorithm().name());
        let (verifier, token) = signed(key);
        group.measure(&name, Load::Request, SystemTime::now, |now| verifier.verify(&token, now).unwrap());
    }

    let (verifier, token) = signed(SigningKey::generate().unwrap());
    let authorizer = TokenAuthorizer::new(verifier, "_id");
    layer(group, "AuthorizeLayer, token of ours, verified", BearerToken, authorizer.clone(), || bearer(&token));
    let cached = CacheLayer::new(CacheConfig { refresh_ahead: false, ..CacheConfig::default() }).layer(authorizer);
    prepare(cached.clone().oneshot(Secret::new(&*token))).unwrap();
    layer(group, "AuthorizeLayer, token of ours, a hit", BearerToken, cached, || bearer(&token));
}

/// One for each algorithm.
fn signing_keys() -> [SigningKey; 4] {
    let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap().as_der().unwrap();
    let curves = [&ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P521_SHA512_FIXED_SIGNING];
    let [p384, p521] = curves.map(|curve| EcdsaKeyPair::generate(curve).unwrap().to_pkcs8v1().unwrap());
    let read = |der: &[u8]| SigningKey::from_pem_or_der(der).unwrap();
    [read(rsa.as_ref()), SigningKey::generate().unwrap(), read(p384.as_ref()), read(p521.as_ref())]
}

fn policies(group: &mut Group<'_>) {
    let terms = Terms::new(LabelPolicy::new("_id"), DecodeLimits::default());
    let mut overrides = Overrides::default();
    for n in 0..FLEET {
        overrides.cluster(telemetry::cluster(n), [(Endpoint::Receive, Setting::Limit(Size::Series, 50_000))]);
    }
    let policy = LivePolicy::new(Policy::new(terms.clone(), terms).overrides(overrides));
    let service = PolicyLayer::new(policy, Endpoint::Receive).layer(service_fn(hand_back));
    let mut measure = |name, first| {
        group.service(name, Load::Request, &service, || authorized(identity(first + fastrand::u64(..FLEET)), ()));
    };
    measure("PolicyLayer, one of 10000 overrides", 0);
    measure("PolicyLayer, none of 10000 overrides", FLEET);
}

/// [`AuthorizeLayer`] of these parts.
fn layer<C, A>(group: &mut Group<'_>, name: &str, source: C, authorizer: A, request: impl Fn() -> Request<()> + Sync)
where
    C: CredentialSource<()> + Clone + Sync,
    A: Service<C::Credential, Response = Arc<Identity>, Error: Into<Rejection>> + Clone + Sync,
{
    let service = AuthorizeLayer::new(source, authorizer).layer(service_fn(hand_back));
    group.service(name, Load::Request, &service, request);
}

fn bearer(token: &str) -> Request<()> {
    request(&[("authorization", &format!("Bearer {token}"))], ())
}

/// What cluster `n` brings to remote write.
fn composite(n: u64) -> String {
    let token = STANDARD.encode(format!("{:048x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    STANDARD.encode(format!(r#"{{"authorization_token":"{token}","cluster_id":"{}"}}"#, telemetry::cluster(n)))
}
