//! The HTTP clients that call the authorizer and the upstream.

use std::{
    error::Error,
    future::ready,
    io, iter,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use bytes::Bytes;
use http::{HeaderMap, Uri};
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioTimer},
};
use infogw_layers::{
    client::ApiClient,
    client_credentials::{BearerLayer, TokenSource},
    rejection::BoxError,
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tower::{Service, ServiceBuilder};

use crate::{
    balance::{self, Balanced},
    config::Config,
    log::Seldom,
    proxy::{self, Connection, Proxies},
    retry::Retries,
    shared::Shared,
    tls::{ClientFiles, Current, Live},
    traces::Traces,
};

/// A client over pooled connections, plaintext or TLS, HTTP/1.1 or h2 as ALPN says.
pub type HttpClient = Client<Connector, Full<Bytes>>;

/// One client for each neighbour. They heed no proxy variables (but for [`client_through`]) and follow no redirects.
#[derive(Debug, Clone)]
pub struct Clients<F = Balanced> {
    /// Calls the authorizer.
    pub authorize: HttpClient,
    /// Calls the upstream.
    pub forward: F,
    /// What retries to the upstream are paid from.
    pub retries: Retries,
    /// The token that both are shown, if flags name an issuer.
    pub credentials: Option<TokenSource>,
    /// Spans of requests and calls.
    pub traces: Traces,
}

/// As telemeter-server has it.
pub const CONNECT: Duration = Duration::from_secs(10);
/// The time for connecting is divided among a name's addresses, and the whole of a forward has five seconds: a dead first address
/// must leave time for the second.
const CONNECT_UPSTREAM: Duration = Duration::from_secs(3);

impl Clients {
    /// Clients with the TLS of `config`.
    ///
    /// # Errors
    /// If there are no roots to trust where the URL is https.
    pub fn new(config: &Config) -> Result<Self, String> {
        let upstream = client(&config.tls.forward, Some(config.upstream.uri()), CONNECT_UPSTREAM)?;
        let tls = config.tls.forward.clone();
        Ok(Clients {
            authorize: client(&config.tls.authorize, config.authorizer.url(), CONNECT)?,
            forward: Balanced::new(upstream, move |address| {
                built(&tls, Resolver::Pinned(address), balance::CONNECT, Proxies::none())
            }),
            retries: Retries::default(),
            credentials: None,
            traces: Traces::default(),
        })
    }
}

/// A client that will call `url`. Connecting has this time, and the TLS handshake as long again.
///
/// # Errors
/// If the URL is https and there are no roots to trust.
pub fn client(tls: &Live<ClientFiles>, url: Option<&Uri>, connect: Duration) -> Result<HttpClient, String> {
    client_through(Proxies::none(), tls, url, connect)
}

/// As [`client`], through whichever of `proxies` the URL is for.
///
/// # Errors
/// As [`client`]'s.
pub fn client_through(
    proxies: Proxies,
    tls: &Live<ClientFiles>,
    url: Option<&Uri>,
    connect: Duration,
) -> Result<HttpClient, String> {
    if tls.source().trusts_nobody() && url.is_some_and(|url| url.scheme_str() == Some("https")) {
        return Err("no trusted root certificates were found; install them or set SSL_CERT_FILE".to_owned());
    }
    Ok(built(tls, Resolver::System(GaiResolver::new()), connect, proxies))
}

fn built(tls: &Live<ClientFiles>, resolver: Resolver, connect: Duration, proxies: Proxies) -> HttpClient {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    // A connection that died unheard while nobody used it is found out within 8 s.
    tcp.set_keepalive(Some(Duration::from_secs(5)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(1)));
    tcp.set_keepalive_retries(Some(3));
    let connector = Connector { tcp, tls: tls.current(), limit: 2 * connect, proxies, told: Arc::default() };
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(60));
    // All requests share one connection of h2, and those that time out leave it as it is: one that died unheard, as when a balancer
    // forgets it, would fail them all for as long as the kernel hopes.
    builder
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(Duration::from_secs(5))
        .http2_keep_alive_timeout(Duration::from_secs(3))
        .http2_keep_alive_while_idle(true);
    builder.build(connector)
}

/// Where names lead.
#[derive(Debug, Clone)]
pub(crate) enum Resolver {
    /// To what the system says.
    System(GaiResolver),
    /// Each to this address.
    Pinned(SocketAddr),
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        match self {
            Resolver::System(system) => {
                let found = system.call(name);
                Box::pin(async move { Ok(found.await?.collect::<Vec<_>>().into_iter()) })
            }
            Resolver::Pinned(address) => Box::pin(ready(Ok(vec![*address].into_iter()))),
        }
    }
}

/// Makes each connection by the TLS configuration that is in force.
#[derive(Debug, Clone)]
pub struct Connector {
    tcp: HttpConnector<Resolver>,
    tls: Current<ClientConfig>,
    /// Whoever waits for a connection may have gone, and the server may never speak.
    limit: Duration,
    proxies: Proxies,
    told: Arc<Seldom>,
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let host = url.host().unwrap_or_default().to_owned();
        let connecting: proxy::Connecting = match self.proxies.intercept(&url) {
            None => {
                let direct = HttpsConnector::from((self.tcp.clone(), self.tls.load_full())).call(url);
                Box::pin(async move { Ok(Connection::direct(direct.await?)) })
            }
            Some(intercept) => proxy::connect(&intercept, self.tcp.clone(), self.tls.load_full(), url),
        };
        let connected = timeout(self.limit, connecting);
        let told = Arc::clone(&self.told);
        Box::pin(async move {
            let connected = connected.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
            // Whoever asked tells its sender no more than that nobody was reached.
            connected.inspect_err(|error| {
                let error = chain(&**error);
                match told.pass() {
                    Some(held_back) => tracing::warn!(host, error, held_back, "connecting failed"),
                    None => tracing::debug!(host, error, "connecting failed"),
                }
            })
        })
    }
}

/// The error and its causes.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Shows our own token, if there is one to show. Outside of what counts: each attempt is a request.
pub fn showing<C: ApiClient>(
    tokens: Option<TokenSource>,
    client: C,
    is_about_us: fn(&HeaderMap) -> bool,
) -> impl ApiClient<Body = C::Body> {
    let layer = tokens.map(|tokens| BearerLayer::new(tokens).where_about_us(is_about_us));
    ServiceBuilder::new().layer_fn(Shared::new).option_layer(layer).map_err(Into::<BoxError>::into).service(client)
}
