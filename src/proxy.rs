//! Connections through a proxy, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say, or none. As in Go's `http.ProxyFromEnvironment`, lower
//! case counts where upper case is unset, and what is on this host is reached directly.
//!
//! To an https:// server they are tunnels (RFC 9110, section 9.3.6), to an http:// one the proxy is asked for the whole URL. A proxy is
//! an http://, https:// or socks5:// one.

use std::{
    fmt, io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::{
            self,
            connect::{
                Connected, HttpConnector,
                proxy::{SocksV5, Tunnel},
            },
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

    /// As this process's environment says.
    ///
    /// # Errors
    /// A variable that holds no proxy that can be used; it is not quoted, as it may hold a password.
    pub fn of_environment() -> Result<Self, String> {
        Proxies::of_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
        let proxy = |names| match first(names) {
            None => Ok(String::new()),
            Some((name, value)) => {
                let scheme = value.split_once("://").map_or("http", |(scheme, _)| scheme);
                let known = matches!(scheme, "http" | "https" | "socks5" | "socks5h");
                let usable = Matcher::builder().all(value.clone()).build();
                match usable.intercept(&Uri::from_static("http://anywhere.invalid/")) {
                    Some(_) if known => Ok(value),
                    _ => Err(format!(
                        "{name}: this is none of the proxies that can be used: http://, https:// and socks5://"
                    )),
                }
            }
        };
        let builder = Matcher::builder().http(proxy(["HTTP_PROXY", "http_proxy"])?);
        let builder = builder.https(proxy(["HTTPS_PROXY", "https_proxy"])?);
        let not = first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
        Ok(Proxies(Some(Arc::new(builder.no(not).build()))))
    }

    /// The proxy for `url`, if there is one.
    pub(crate) fn intercept(&self, url: &Uri) -> Option<Intercept> {
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if here { None } else { self.0.as_ref()?.intercept(url) }
    }

    /// What to show the proxy with each request for `url`; in a tunnel it is shown once, on the way.
    pub fn authorization(&self, url: &Uri) -> Option<HeaderValue> {
        let intercept = self.intercept(url).filter(|_| url.scheme_str() == Some("http"))?;
        intercept.basic_auth().cloned()
    }
}

type Tcp = TokioIo<TcpStream>;

/// A connection that is being made.
pub(crate) type Connecting = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

/// Connects to `url` through a proxy.
pub(crate) fn connect(
    intercept: &Intercept,
    tcp: HttpConnector<Resolver>,
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
    // What it is asked is HTTP/1.1, whatever the server behind it speaks.
    let mut to_proxy = ClientConfig::clone(&tls);
    to_proxy.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut to_proxy = HttpsConnector::from((tcp, Arc::new(to_proxy)));
    if url.scheme_str() == Some("https") {
        let mut tunnel = Tunnel::new(proxy, to_proxy);
        if let Some(auth) = intercept.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = HttpsConnector::from((tunnel, tls)).call(url);
        return Box::pin(async move { Ok(Connection { way: Way::Tunnel(Box::new(connecting.await?)) }) });
    }
    let connecting = to_proxy.call(proxy);
    Box::pin(async move { Ok(Connection { way: Way::Asking(connecting.await?) }) })
}

/// A connection to a server, or to a proxy that is asked for what is on a server.
pub struct Connection {
    way: Way,
}

enum Way {
    Direct(MaybeHttpsStream<Tcp>),
    /// To a proxy.
    Asking(MaybeHttpsStream<Tcp>),
    /// Through a proxy.
    Tunnel(Box<MaybeHttpsStream<MaybeHttpsStream<Tcp>>>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

/// What carries bytes both ways.
trait Stream: Read + Write + legacy::connect::Connection + Unpin {}

impl<T: Read + Write + legacy::connect::Connection + Unpin> Stream for T {}

impl Connection {
    pub(crate) fn direct(io: MaybeHttpsStream<Tcp>) -> Self {
        Connection { way: Way::Direct(io) }
    }

    fn stream(&self) -> &dyn Stream {
        match &self.way {
            Way::Direct(io) | Way::Asking(io) => io,
            Way::Tunnel(io) => &**io,
        }
    }

    fn stream_mut(self: Pin<&mut Self>) -> Pin<&mut dyn Stream> {
        match &mut self.get_mut().way {
            Way::Direct(io) | Way::Asking(io) => Pin::new(io),
            Way::Tunnel(io) => Pin::new(&mut **io),
        }
    }
}

impl legacy::connect::Connection for Connection {
    fn connected(&self) -> Connected {
        self.stream().connected().proxy(matches!(self.way, Way::Asking(_)))
    }
}

impl Read for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream_mut().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream_mut().poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, String> {
        Proxies::of_variables(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn what_is_on_this_host_or_excepted_is_reached_directly() {
        let set = [
            ("HTTP_PROXY", "proxy:3128"),
            ("https_proxy", "http://u:p@tls:1"),
            ("NO_PROXY", "near.example,10.0.0.0/8"),
        ];
        let proxies = proxies(&set).unwrap();
        let through = |url: &str| {
            let url: Uri = url.parse().unwrap();
            let intercept = proxies.intercept(&url)?;
            Some((intercept.uri().host()?.to_owned(), intercept.uri().port_u16()?))
        };
        for (url, expected) in [
            ("http://far.example/", Some(("proxy", 3128))),
            ("https://far.example/", Some(("tls", 1))),
            ("https://a.near.example/", None),
            ("http://10.1.2.3/", None),
            ("http://localhost:9003/", None),
            ("http://127.0.0.1:9003/", None),
            ("http://[::1]:9003/", None),
        ] {
            assert_eq!(through(url), expected.map(|(host, port)| (host.to_owned(), port)), "{url}");
        }
    }

    #[test]
    fn a_variable_that_names_no_usable_proxy_is_an_error_that_does_not_quote_it() {
        for value in ["socks4://user:hush@proxy", "ftp://hush", "http://hush hush"] {
            let error = proxies(&[("HTTPS_PROXY", value)]).unwrap_err();
            assert!(error.starts_with("HTTPS_PROXY: ") && !error.contains("hush"), "{error}");
        }
        assert!(proxies(&[("ALL_PROXY", "ftp://nobody.looks")]).is_ok());
    }
}
