//! The layers around the HTTP client that asks a neighbour.

use std::{num::NonZeroU32, time::Duration};

use criterion::Criterion;
use http::{Request, Response};
use infogw_layers::{
    circuit::{Circuit, CircuitLayer},
    client_credentials::{BearerLayer, Issued, TokenRequest, TokenSource},
    clock::SystemClock,
    rejection::{Reason, Rejection},
    retry::RetryOutages,
};
use tower::{Layer, retry::RetryLayer, service_fn};

use crate::{
    measure::{Group, Load, hand_back, prepare},
    telemetry,
};

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "client");
    let request = || Request::new(());

    let circuit = Circuit::new(NonZeroU32::MIN, Duration::from_secs(1));
    let refusal = Rejection::new(Reason::AuthorizerUnavailable, "the authorizer is down");
    let closed = CircuitLayer::new(circuit, refusal).layer(service_fn(hand_back));
    group.service("CircuitLayer, closed", Load::Request, &closed, request);

    let answered = async |request: Request<()>| Ok::<_, Rejection>(Response::new(request));
    let retry = RetryLayer::new(RetryOutages::new(3)).layer(service_fn(answered));
    group.service("RetryOutages, no outage", Load::Request, &retry, request);

    let issuer = service_fn(async |_: TokenRequest| Issued::bearer(&telemetry::cluster(1), None));
    let tokens = prepare(async {
        let tokens = TokenSource::spawn(issuer, SystemClock, ());
        tokens.token().await.expect("issued");
        tokens
    });
    let bearer = BearerLayer::new(tokens).layer(service_fn(hand_back));
    group.service("BearerLayer, token at hand", Load::Request, &bearer, request);
}
