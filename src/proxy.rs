//! Connections through a proxy, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say, or none.
//!
//! To an https:// server they are tunnels (RFC 9110, section 9.3.6), to an http:// one the proxy is asked for the whole URL. A proxy is
//! an http:// or socks5:// one.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            Connected, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use infogw_layers::rejection::BoxError;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use crate::client::Resolver;

/// Which proxy a URL is reached through.
#[derive(Clone)]
pub struct Proxies(Option<Arc<Matcher>>);

/// Without credentials.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

impl Proxies {
    /// Every URL is reached directly.
    pub fn none() -> Self {
        Proxies(None)
    }

    /// As this process's environment says: upper case and lower case, the former first.
    pub fn of_environment() -> Self {
        Proxies(Some(Arc::new(Matcher::from_env())))
    }

    /// The proxy for `url`, if there is one.
    pub(crate) fn intercept(&self, url: &Uri) -> Option<Intercept> {
        self.0.as_ref()?.intercept(url)
    }

    /// What to show the proxy with each request for `url`; in a tunnel it is shown once, on the way.
    pub fn authorization(&self, url: &Uri) -> Option<HeaderValue> {
        let intercept = self.intercept(url).filter(|_| url.scheme_str() == Some("http"))?;
        intercept.basic_auth().cloned()
    }

    /// Whether `url` can be reached.
    ///
    /// # Errors
    /// What kind of proxy it is that it cannot be reached through.
    pub fn check(&self, url: &Uri) -> Result<(), String> {
        match self.intercept(url).as_ref().map(|intercept| intercept.uri().scheme_str().unwrap_or_default()) {
            None | Some("http" | "socks5" | "socks5h") => Ok(()),
            Some(other) => Err(format!("an {other}:// proxy is not supported; name an http:// or socks5:// one")),
        }
    }
}

type Tcp = TokioIo<TcpStream>;

/// A connection that is being made.
pub(crate) type Connecting = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

/// Connects to `url` through a proxy.
pub(crate) fn connect(
    intercept: &Intercept,
    mut tcp: HttpConnector<Resolver>,
    tls: Arc<ClientConfig>,
    url: Uri,
) -> Connecting {
    let proxy = intercept.uri().clone();
    if proxy.scheme_str().is_some_and(|scheme| scheme.starts_with("socks")) {
        let mut socks = SocksV5::new(proxy, tcp);
        if let Some((user, password)) = intercept.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        let connecting = HttpsConnector::from((socks, tls)).call(url);
        return Box::pin(async move { Ok(Connection::direct(connecting.await?)) });
    }
    if url.scheme_str() == Some("https") {
        let mut tunnel = Tunnel::new(proxy, tcp);
        if let Some(auth) = intercept.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = HttpsConnector::from((tunnel, tls)).call(url);
        return Box::pin(async move { Ok(Connection::direct(connecting.await?)) });
    }
    let connecting = tcp.call(proxy);
    Box::pin(async move { Ok(Connection { io: MaybeHttpsStream::Http(connecting.await?), asks_proxy: true }) })
}

/// A connection to a server, or to a proxy that is asked for what is on a server.
#[derive(Debug)]
pub struct Connection {
    io: MaybeHttpsStream<Tcp>,
    asks_proxy: bool,
}

impl Connection {
    pub(crate) fn direct(io: MaybeHttpsStream<Tcp>) -> Self {
        Connection { io, asks_proxy: false }
    }
}

impl hyper_util::client::legacy::connect::Connection for Connection {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.asks_proxy)
    }
}

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
