//! The neighbours in one process: a receive endpoint that throws away what it gets, and an authorizer that grants everything.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::Outcome;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
}

/// Where it takes remote write at once, and where it takes its time.
pub(crate) const AT_ONCE: &str = "/receive";
pub(crate) const SLOWLY: &str = "/slow";
/// How long that is: less than a gateway waits.
pub(crate) const SLOW: Duration = Duration::from_secs(3);
/// Where it authorizes.
pub(crate) const AUTHORIZE: &str = "/authorize";

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(arguments: &Arguments) -> Outcome<()> {
    let listener = TcpListener::bind(arguments.listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        tokio::spawn(
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer)),
        );
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let (status, answer) = match path.as_str() {
        AUTHORIZE => (StatusCode::CREATED, r#"{"account_id":"27zvH2sgyZ1xWmE3w9tqKQ1xUqz"}"#),
        SLOWLY => {
            tokio::time::sleep(SLOW).await;
            (StatusCode::NO_CONTENT, "")
        }
        _ => (StatusCode::NO_CONTENT, ""),
    };
    let mut response = Response::new(Full::from(answer));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
