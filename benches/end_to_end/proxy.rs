//! What the gateway is measured by: a reverse proxy of hyper-util that looks at nothing, with the gateway's settings of client and
//! server; and the same with the body decompressed.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{Outcome, tls};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    upstream: Uri,
    #[arg(long)]
    decompress: bool,
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    #[arg(long)]
    key: Option<PathBuf>,
}

type HttpClient = Client<HttpConnector, Either<Incoming, Full<Bytes>>>;

#[tokio::main]
pub(crate) async fn run(arguments: Arguments) -> Outcome<()> {
    let tls = match (&arguments.certificate, &arguments.key) {
        (Some(certificate), Some(key)) => Some(TlsAcceptor::from(Arc::new(tls::server(certificate, key)?))),
        _ => None,
    };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let client: HttpClient = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(tcp);
    let listener = TcpListener::bind(arguments.listen).await?;
    let arguments = Arc::new(arguments);
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let (client, tls, arguments) = (client.clone(), tls.clone(), Arc::clone(&arguments));
        tokio::spawn(async move {
            match tls {
                None => exchange(stream, client, arguments).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => exchange(stream, client, arguments).await,
                    Err(error) => eprintln!("TLS handshake: {error}"),
                },
            }
        });
    }
}

async fn exchange<S>(stream: S, client: HttpClient, arguments: Arc<Arguments>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| pass(request, client.clone(), Arc::clone(&arguments)));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(None);
    // A client that hangs up is no news.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn pass(
    request: Request<Incoming>,
    client: HttpClient,
    arguments: Arc<Arguments>,
) -> Outcome<Response<Incoming>> {
    let (head, body) = request.into_parts();
    let body = match arguments.decompress {
        false => Either::Left(body),
        true => {
            let body = body.collect().await?.to_bytes();
            std::hint::black_box(snap::raw::Decoder::new().decompress_vec(&body)?);
            Either::Right(Full::new(body))
        }
    };
    let mut headers = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
        if let Some(value) = head.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let mut request = Request::post(arguments.upstream.clone()).body(body)?;
    *request.headers_mut() = headers;
    Ok(client.request(request).await?)
}
