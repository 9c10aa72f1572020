//! The receive stack in an axum app: the route beside it is axum's own.
//!
//! `cargo run -p infogw-layers --example axum_stack`: it serves on a free port, pushes to itself and prints the answers.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use infogw_layers::{
    authorize::{AuthorizeLayer, BearerToken, ClusterId, Identity, Secret},
    decode::{DecodeLayer, WriteRequestDecoder},
    encode::EncodeLayer,
    enforce::{EnforceLabelsLayer, LabelPolicy},
    rejection::{Reason, Rejection},
    respond::RespondLayer,
};
use tower::{ServiceBuilder, service_fn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let authorizer = service_fn(async |token: Secret| match token.expose() {
        "c1-token" => Ok(Arc::new(Identity::of(ClusterId::new("c1").map_err(|_| Rejection::internal("bad id"))?))),
        _ => Err(Rejection::new(Reason::Unauthenticated, "this token is not known; ask for another")),
    });
    let policy = LabelPolicy::new("_id").allow(["{__name__=~\"up|cluster:.*\"}".parse()?])?;
    let receive = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(AuthorizeLayer::new(BearerToken, authorizer))
        .layer(DecodeLayer::new(WriteRequestDecoder::default()))
        .layer(EnforceLabelsLayer::new(policy))
        .layer(EncodeLayer::new())
        // In real life an HTTP client to a receive endpoint.
        .service(service_fn(async |request: Request<Full<Bytes>>| {
            println!("forwarded with {:?}", request.headers());
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
    let receive = ServiceBuilder::new().map_response(|response: Response<_>| response.map(Body::new)).service(receive);
    let app = Router::new().route("/", get(async || "hello\n")).route_service("/receive", receive);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    // up{_id="c1"} and up{_id="c2"}: a cluster writes its own series, and is told of the other one.
    let body = snap::raw::Encoder::new().compress_vec(&message(&["c1", "c2"]))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    for (token, expected) in [("c1-token", 400), ("another", 401)] {
        let request = Request::post(format!("http://{address}/receive"))
            .header("authorization", format!("Bearer {token}"))
            .body(Full::from(body.clone()))?;
        let answer = client.request(request).await?;
        let status = answer.status();
        print!("{status} {}", String::from_utf8_lossy(&answer.collect().await?.to_bytes()));
        assert_eq!(status, expected);
    }
    Ok(())
}

fn message(clusters: &[&str]) -> Vec<u8> {
    use infogw_proto::prometheus::{Label, TimeSeries, WriteRequest};
    let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
    let series = |cluster: &&str| TimeSeries {
        labels: vec![label("__name__", "up"), label("_id", cluster)],
        ..TimeSeries::default()
    };
    prost::Message::encode_to_vec(&WriteRequest {
        timeseries: clusters.iter().map(series).collect(),
        ..WriteRequest::default()
    })
}
