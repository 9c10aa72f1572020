//! The same layers in another order: behind a trusted proxy the payload is decoded *before* anyone is authorized, and the rate
//! limit comes late and charges the samples that are left, instead of requests.
//!
//! `cargo run -p infogw-layers --example another_order`: it sends itself write requests and prints the answers.

use std::{convert::Infallible, num::NonZeroU32, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity},
    decode::{DecodeLayer, WriteRequestDecoder},
    encode::{EncodeLayer, Encoded},
    enforce::{EnforceLabelsLayer, LabelPolicy},
    payload::{SeriesSet, WriteRequest},
    rate_limit::{Due, Quota, RateLimitLayer},
    rejection::{Reason, Rejection},
    respond::RespondLayer,
};
use infogw_proto::prometheus::{self as remote_write, Label, Sample, TimeSeries};
use prost::Message;
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// Behind a proxy that has checked who calls, the cluster stands in a header.
fn cluster_header<B>(request: &Request<B>) -> Result<ClusterId, Rejection> {
    let header = request.headers().get("x-cluster").and_then(|value| value.to_str().ok()).unwrap_or_default();
    ClusterId::new(header).map_err(|_| Rejection::new(Reason::Unauthenticated, "name the cluster in X-Cluster"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let trusting = service_fn(async |cluster: ClusterId| Ok::<_, Infallible>(Arc::new(Identity::of(cluster))));
    let ten_samples = Quota::per_second(NonZeroU32::MIN, NonZeroU32::new(10).ok_or("zero")?);
    let by_samples = move |request: &Request<WriteRequest>| {
        let cost = u32::try_from(request.body().samples()).ok()?;
        Some(Due { key: "everyone", cost, quota: ten_samples })
    };
    let gateway = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(DecodeLayer::new(WriteRequestDecoder::default()))
        .layer(AuthorizeLayer::new(cluster_header, trusting))
        .layer(EnforceLabelsLayer::new(LabelPolicy::new("_id").elide(["replica"])))
        .layer(RateLimitLayer::new(by_samples))
        .layer(EncodeLayer::new())
        .service(service_fn(async |request: Request<Full<Bytes>>| {
            println!("forwarded: {:?}", request.extensions().get::<Encoded>());
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));

    for (series, expected) in [(8, StatusCode::OK), (8, StatusCode::TOO_MANY_REQUESTS)] {
        let answer = gateway.clone().oneshot(write_request(series)?).await?;
        println!("{series} samples: {}", answer.status());
        assert_eq!(answer.status(), expected);
    }
    Ok(())
}

fn write_request(series: u32) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error>> {
    let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
    let one = |i: u32| TimeSeries {
        labels: vec![label("__name__", "up"), label("_id", "c1"), label("job", &i.to_string()), label("replica", "a")],
        samples: vec![Sample { value: 1.0, timestamp: 1_767_225_600_000 }],
        ..TimeSeries::default()
    };
    let message = remote_write::WriteRequest { timeseries: (0..series).map(one).collect(), ..Default::default() };
    let body = snap::raw::Encoder::new().compress_vec(&message.encode_to_vec())?;
    Ok(Request::post("/").header("x-cluster", "c1").body(Full::from(body))?)
}
