//! One layer alone in plain hyper: a rate limit by the sender's `X-Team` header, over somebody else's service.
//!
//! `cargo run -p infogw-layers --example one_layer`: it serves on a free port, sends itself two requests and prints the answers.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use infogw_layers::{
    rate_limit::{Due, Quota, RateLimitLayer},
    respond::RespondLayer,
};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let one_a_minute = Quota::one_per(Duration::from_secs(60)).ok_or("not a quota")?;
    let by_team = move |request: &Request<hyper::body::Incoming>| {
        let key = request.headers().get("x-team")?.as_bytes().to_vec();
        Some(Due { key, cost: 1, quota: one_a_minute })
    };
    let service = ServiceBuilder::new()
        .layer(RespondLayer::new())
        .layer(RateLimitLayer::new(by_team))
        .service(service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello\n"))))));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let http = Builder::new(TokioExecutor::new());
                // A client that hangs up is its own trouble.
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });

    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    for expected in [200, 429] {
        let request = Request::get(format!("http://{address}/")).header("x-team", "blue").body(Empty::new())?;
        let answer = client.request(request).await?;
        let (status, wait) = (answer.status(), answer.headers().get("retry-after").cloned());
        print!("{status} {wait:?} {}", String::from_utf8_lossy(&answer.collect().await?.to_bytes()));
        assert_eq!(status, expected);
    }
    Ok(())
}
