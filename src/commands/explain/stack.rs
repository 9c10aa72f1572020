//! The gateway's layers, as far as they judge what a request holds: the order is [theirs](crate::stack).

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use infogw_layers::{
    authorize::AuthorizeLayer,
    decode::{DecodeLayer, MetricFamiliesDecoder, WriteRequestDecoder},
    encode::{EncodeLayer, Encoded},
    enforce::EnforceLabelsLayer,
    payload::{SeriesSet as _, WriteRequest},
    policy::{Endpoint, LivePolicy, PolicyLayer, SampleQuota},
    rate_limit::RateLimitLayer,
    rejection::Rejection,
    respond,
    translate::TranslateLayer,
};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};

use super::{input::Input, sender::Sender};

/// What comes of a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// What refuses it, and the line that its sender reads.
    pub(super) refusal: Option<(Rejection, String)>,
    /// What goes on to the upstream, which is taken to take it.
    pub(super) forwarded: Option<Encoded>,
    /// What comes to be counted against the quotas: nothing of a request that is refused before.
    pub(super) charged: Charged,
}

/// Requests and samples.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Charged {
    pub(super) requests: u64,
    pub(super) samples: u64,
}

pub(super) async fn answer(policy: &LivePolicy, sender: &Sender<'_>, input: &Input, body: Bytes) -> Answer {
    let forwarded = Arc::new(OnceLock::new());
    let upstream = {
        let forwarded = Arc::clone(&forwarded);
        service_fn(move |request: Request<Full<Bytes>>| {
            if let Some(encoded) = request.extensions().get::<Encoded>() {
                let _ = forwarded.set(*encoded);
            }
            ready(Ok::<_, Infallible>(Response::new(())))
        })
    };
    let identity = Arc::new(sender.identity.clone());
    let known = AuthorizeLayer::new(
        |_: &Request<Full<Bytes>>| Ok::<_, Rejection>(()),
        service_fn(move |()| ready(Ok::<_, Infallible>(Arc::clone(&identity)))),
    );
    let [requests, samples] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let count_request = {
        let requests = Arc::clone(&requests);
        move |request: Request<Full<Bytes>>| {
            requests.fetch_add(1, Relaxed);
            request
        }
    };
    let count_samples = {
        let samples = Arc::clone(&samples);
        move |request: Request<WriteRequest>| {
            samples.fetch_add(request.body().samples(), Relaxed);
            request
        }
    };
    let under_policy = ServiceBuilder::new()
        .layer(known)
        .layer(PolicyLayer::new(policy.clone(), input.endpoint))
        .map_request(count_request);
    let request = Request::from_parts(input.head(), Full::new(body));
    let answered = match input.endpoint {
        Endpoint::Upload => {
            let decoder = MetricFamiliesDecoder::per_request();
            let decoder = if input.scraped { decoder.stamp_missing() } else { decoder };
            let stack = under_policy
                .layer(DecodeLayer::new(decoder))
                .layer(EnforceLabelsLayer::per_request())
                .layer(TranslateLayer::new().stamp())
                .layer(EncodeLayer::new().when_empty(StatusCode::OK))
                .service(upstream);
            stack.oneshot(request).await
        }
        Endpoint::Receive => {
            let stack = under_policy
                .layer(DecodeLayer::new(WriteRequestDecoder::per_request()))
                .map_request(count_samples)
                // Full: what is refused is what could never pass.
                .layer(RateLimitLayer::new(SampleQuota))
                .layer(EnforceLabelsLayer::per_request())
                .layer(EncodeLayer::new())
                .service(upstream);
            stack.oneshot(request).await
        }
    };
    let (status, refusal) = match answered {
        Ok(response) => (response.status(), None),
        Err(rejection) => {
            let line = match respond::answer(&rejection).into_body().collect().await {
                Ok(line) => String::from_utf8_lossy(&line.to_bytes()).trim_end().to_owned(),
                Err(never) => match never {},
            };
            (rejection.status(), Some((rejection, line)))
        }
    };
    let charged = Charged { requests: requests.load(Relaxed), samples: samples.load(Relaxed) };
    Answer { status, refusal, forwarded: forwarded.get().copied(), charged }
}
