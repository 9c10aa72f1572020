//! The layers around all others.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    time::Duration,
};

use bytes::Bytes;
use criterion::Criterion;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use infogw_layers::{
    drain::{DrainLayer, Drained},
    observe::{Exchange, ObserveLayer},
    rejection::{Reason, Rejection},
    respond::RespondLayer,
};
use tower::{Layer, Service, ServiceBuilder, service_fn};

use crate::{
    inputs::{REMOTE_WRITE, request},
    measure::{Group, Load, hand_back},
};

type Body = Full<Bytes>;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "outer");
    measure(&mut group, "no layer", &service_fn(hand_back));
    measure(&mut group, "ObserveLayer", &ObserveLayer::new(status).layer(service_fn(hand_back)));
    measure(&mut group, "RespondLayer, a response", &RespondLayer::new().layer(service_fn(hand_back)));
    measure(&mut group, "RespondLayer, a rejection", &RespondLayer::new().layer(service_fn(refuse)));
    let drain = DrainLayer::new(1 << 20, Duration::from_secs(2));
    measure(&mut group, "DrainLayer, body read", &drain.layer(service_fn(read)));
    measure(&mut group, "DrainLayer, body unread", &drain.layer(service_fn(async |_| Ok::<_, Infallible>(()))));
    let three = ServiceBuilder::new().layer(ObserveLayer::new(status)).layer(drain).layer(RespondLayer::new());
    measure(&mut group, "ObserveLayer, DrainLayer, RespondLayer, body read", &three.service(service_fn(read)));
}

fn measure<S>(group: &mut Group<'_>, name: &str, service: &S)
where
    S: Service<Request<Body>, Error = Infallible> + Clone + Sync,
{
    let body = Bytes::from_static(&[0; 32 * 1024]);
    group.service(name, Load::Request, service, || request(&REMOTE_WRITE, Full::new(body.clone())));
}

/// Who observes looks at the status at least.
fn status(exchange: &Exchange<'_>) {
    std::hint::black_box(exchange.status);
}

async fn read(request: Request<Drained<Body>>) -> Result<Response<Bytes>, Infallible> {
    Ok(Response::new(request.into_body().collect().await?.to_bytes()))
}

fn refuse(_: Request<Body>) -> Ready<Result<Response<Body>, Rejection>> {
    ready(Err(Rejection::new(Reason::TooManySeries, "the request has 20001 series, at most 20000 are taken")))
}
