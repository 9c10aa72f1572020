//! The ordering: a scrape's answer from the outside in, as it becomes what is pushed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use infogw_layers::{
    client::ApiClient,
    client_credentials::{BearerLayer, Token},
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder},
    edit::EditLayer,
    encode::{Delimited, Encode, EncodeLayer},
    exchange::{Granted, GrantedLabelsLayer, TokenExchange},
    observe::ObserveLayer,
    payload::{MOST_SERIES, MetricFamilies, SeriesSet},
    rejection::{BoxError, Reason, Rejection},
    retry::RetryUntilTaken,
    translate::TranslateLayer,
};
use tokio::{task::JoinSet, time::timeout};
use tower::{Layer as _, Service, ServiceBuilder, ServiceExt as _, retry::RetryLayer, util::BoxCloneSyncService};

use super::{
    KEEP_FOR, Selection, Settings,
    metrics::{Metrics, Neighbour},
    settings::{Credentials, Destination},
};
use crate::{
    client::{self, CONNECT, client, client_through},
    credentials::token_source,
    forward::{Forward, HoldsSecret, Success, beginning, first_line},
    proxy::Proxies,
    retry::Retries,
    scrape::{ACCEPT, endpoint},
    tls::{ClientFiles, Live},
    traces::Traces,
};

/// How long a scrape's answer may take to begin, how long to arrive, and how long whoever is pushed to may take for an answer: the
/// interval, within these bounds. A federation of everything takes a while.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A client of HTTP with all that goes around it.
type HttpService = BoxCloneSyncService<Request<Full<Bytes>>, Response<Incoming>, BoxError>;
/// Takes a scrape's answer; answers as whoever was pushed to did.
type Push = BoxCloneSyncService<Request<Incoming>, Response<Full<Bytes>>, Rejection>;

/// What a stack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Push,
    /// Whatever fails is not tried again.
    PushOnce,
    /// Nothing is pushed.
    Show,
}

/// What one round goes through.
#[derive(Debug)]
pub(super) struct Stack {
    from: HttpService,
    request: Request<Full<Bytes>>,
    push: Push,
    patience: Duration,
    pub(super) interval: Duration,
    /// Which of a fleet it is.
    pub(super) id: Option<String>,
    /// Of each round a trace is made.
    pub(super) traces: Traces,
    /// Those who follow files.
    _followers: JoinSet<()>,
}

impl Stack {
    /// The stack that does as `settings` say.
    ///
    /// # Errors
    /// Where there are no roots to trust.
    pub(super) fn new(
        settings: Settings,
        purpose: Purpose,
        metrics: &Arc<Metrics>,
        selection: &Selection,
        traces: &Traces,
    ) -> Result<Self, String> {
        let mut followers = JoinSet::new();
        for tls in [&settings.from_tls, &settings.to_tls] {
            tls.follow(&mut followers, &metrics.tls);
        }
        let from = client(&settings.from_tls, Some(&settings.from), CONNECT)?;
        let from = ServiceBuilder::new()
            .layer(ObserveLayer::new(metrics.client(Neighbour::From, settings.verbose)))
            .option_layer(traces.client(Neighbour::From.name()))
            .service(from);
        let from = match settings.from_token.clone() {
            Some(token) => HttpService::new(BearerLayer::new(token).layer(from)),
            None => unshown(from),
        };
        let mut request = Request::new(Full::default());
        *request.uri_mut() = settings.from.clone();
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        let push = push(&settings, purpose, metrics, selection, traces, &mut followers)?;
        let Settings { interval, id, .. } = settings;
        let patience = patience(interval);
        Ok(Stack { from, request, push, patience, interval, id, traces: traces.clone(), _followers: followers })
    }

    /// Scrapes. What is answered is what the push begins with.
    pub(super) async fn scrape(&self) -> Result<Request<Incoming>, Rejection> {
        let failed = |reason, why: &dyn std::fmt::Display| {
            Rejection::new(reason, format!("{}: {why}", endpoint(self.request.uri()))).by(SCRAPING)
        };
        let answering = self.from.clone().oneshot(self.request.clone());
        let answer = timeout(self.patience, answering)
            .await
            .map_err(|_| failed(Reason::UpstreamTimeout, &format_args!("no answer within {:?}", self.patience)))?;
        let response = answer.map_err(|error| match error.downcast::<Rejection>() {
            Ok(rejection) => rejection.by(SCRAPING),
            Err(error) => failed(Reason::UpstreamUnreachable, &client::chain(&*error)),
        })?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let hint = match head.status.as_u16() {
                401 => ": it wants a token, or another one".to_owned(),
                403 => ": it does not let this client in".to_owned(),
                // Which selector it does not take.
                400 => {
                    let said = timeout(self.patience, beginning(body)).await.unwrap_or_default();
                    let token = head.extensions.get::<Token>();
                    let said = first_line(&said, |line| token.is_some_and(|token| token.is_in(line)));
                    said.map_or_else(|HoldsSecret| String::new(), |line| format!(": {line}"))
                }
                _ => String::new(),
            };
            let why = format!("the Prometheus answered {}{hint}", head.status.as_u16());
            return Err(failed(Reason::UpstreamMisconfigured, &why));
        }
        let mut request = Request::new(body);
        *request.headers_mut() = head.headers;
        Ok(request)
    }

    /// Pushes what was scraped.
    pub(super) async fn push(&self, scraped: Request<Incoming>) -> Result<(), Rejection> {
        let pushed = self.push.clone().oneshot(scraped).await;
        pushed
            .map(drop)
            .map_err(|rejection| if rejection.layer() == Some(DECODING) { of_scrape(&rejection) } else { rejection })
    }
}

/// Who refuses a scrape's body.
const DECODING: &str = "DecodeLayer";

/// What a gateway would tell the sender of a body, told of a scrape.
fn of_scrape(rejection: &Rejection) -> Rejection {
    let hint = match rejection.reason() {
        Reason::TooLarge => " (--limit-bytes; or select less with --match)",
        // That it breaks off says nothing of what it is.
        Reason::Body => return Rejection::new(Reason::UpstreamUnreachable, "the scrape broke off").by(SCRAPING),
        _ => "",
    };
    let detail = format!("what was scraped is not taken: {rejection}{hint}");
    Rejection::new(rejection.reason(), detail).with_status(rejection.status()).by(SCRAPING)
}

fn patience(interval: Duration) -> Duration {
    let (least, most) = PATIENCE;
    interval.clamp(least, most)
}

/// Who a failed scrape is said to be of.
pub(super) const SCRAPING: &str = "Scrape";
const AGENT: &str = concat!("infogw-proxy/", env!("CARGO_PKG_VERSION"));

/// From a scrape's answer to what whoever is pushed to answers.
fn push(
    settings: &Settings,
    purpose: Purpose,
    metrics: &Arc<Metrics>,
    selection: &Selection,
    traces: &Traces,
    followers: &mut JoinSet<()>,
) -> Result<Push, String> {
    let again = match purpose {
        Purpose::Push => RetryUntilTaken::new(settings.interval, KEEP_FOR),
        Purpose::PushOnce | Purpose::Show => RetryUntilTaken::once(),
    };
    let again = RetryLayer::new(again.observed_by(Arc::clone(metrics)));
    let client = |neighbour, url: &Uri| to(settings, metrics, traces, neighbour, url);
    let forward = |client: HttpService, url: &Uri| {
        let forward = Forward::new(client, url.clone(), Success::AsUpstream, Retries::none(), ());
        again.layer(forward.deadline(patience(settings.interval)).for_operator())
    };
    // Where nobody could look, nothing is kept.
    let shows = purpose == Purpose::Show || purpose == Purpose::Push && settings.listen.is_some();
    let shown = shows.then(|| selection.clone());
    let keep = {
        let shown = shown.clone();
        move |request: Request<Full<Bytes>>| {
            if let Some(selection) = &shown {
                selection.set(bytes_of(request.body()));
            }
            request
        }
    };
    // Needs families; nothing behind it changes the payload.
    let encode = ServiceBuilder::new().layer(EncodeLayer::delimited()).map_request(keep);
    Ok(match &settings.to {
        Destination::Upload { upload, authorize, token } => {
            let exchange =
                TokenExchange::new(client(Neighbour::Authorize, authorize)?, authorize.clone(), token.clone());
            let labels = Some(again.layer(exchange.clone()));
            if purpose == Purpose::Show {
                return Ok(payloads(settings, metrics, selection, labels, encode.service_fn(shown_only)));
            }
            let uploads = HttpService::new(BearerLayer::new(exchange).layer(client(Neighbour::To, upload)?));
            payloads(settings, metrics, selection, labels, encode.service(forward(uploads, upload)))
        }
        Destination::Write { url, credentials, tenant } => {
            let labels = None::<TokenExchange<HttpService>>;
            if purpose == Purpose::Show {
                return Ok(payloads(settings, metrics, selection, labels, encode.service_fn(shown_only)));
            }
            let writes = client(Neighbour::To, url)?;
            let writes = match credentials {
                Credentials::None => writes,
                Credentials::Token(token) => HttpService::new(BearerLayer::new(token.clone()).layer(writes)),
                Credentials::Oidc(oidc) => {
                    oidc.tls.follow(followers, &metrics.tls);
                    let issuer = through(&settings.proxies, &oidc.tls, oidc.issuer.configuration())?;
                    let requests = metrics.client(Neighbour::Issuer, settings.verbose);
                    let counted = metrics.oidc().map_err(|error| error.to_string())?;
                    let tokens = token_source(oidc, issuer, requests, traces, counted);
                    HttpService::new(BearerLayer::new(tokens).layer(writes))
                }
            };
            let tenant = tenant.clone();
            let write = ServiceBuilder::new()
                .map_request(move |request: Request<MetricFamilies>| {
                    // What writes to memory does not fail.
                    if let (Some(selection), Ok((frames, _))) = (&shown, Encode::<Delimited>::encode(request.body())) {
                        selection.set(frames);
                    }
                    request
                })
                // Encode needs a write request.
                .layer(TranslateLayer::new())
                // Nothing behind it changes the payload, and it sets the headers anew.
                .layer(EncodeLayer::new())
                .map_request(move |mut request: Request<Full<Bytes>>| {
                    if let Some(tenant) = &tenant {
                        request.headers_mut().insert(HeaderName::from_static("thanos-tenant"), tenant.clone());
                    }
                    request
                })
                .service(forward(writes, url));
            payloads(settings, metrics, selection, labels, write)
        }
    })
}

/// Turns the body of a scrape into a payload, and that into what is to be pushed.
fn payloads<G, S>(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    selection: &Selection,
    granted: Option<G>,
    inner: S,
) -> Push
where
    G: Service<(), Response = Granted, Error = Rejection, Future: Send> + Clone + Send + Sync + 'static,
    S: Service<Request<MetricFamilies>, Response = Response<Full<Bytes>>, Error = Rejection, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let limits = DecodeLimits {
        body: settings.limit,
        decoded: settings.limit,
        series: MOST_SERIES,
        labels: usize::MAX,
        ..DecodeLimits::default()
    };
    let (metrics, selection) = (Arc::clone(metrics), selection.clone());
    let stack = ServiceBuilder::new()
        // Bounds the scrape, and leaves out what is too old.
        .layer(
            DecodeLayer::new(MetricFamiliesDecoder::new(limits).drop_unusable()).timeout(patience(settings.interval)),
        )
        // Needs a payload. Before what the gateway grants, which goes over it.
        .layer(EditLayer::new(settings.edits.clone()))
        // Outside of whatever pushes, and asked where something is left to push.
        .option_layer(granted.map(GrantedLabelsLayer::new))
        // Sees what is pushed, before it is.
        .map_err(|error: BoxError| Rejection::from(error))
        .filter(move |mut request: Request<MetricFamilies>| {
            let families = request.body_mut();
            let received = families.refused().received();
            metrics.selected(received, families.series());
            if received == 0 {
                selection.set(Bytes::new());
                tracing::warn!("no metrics to send, doing nothing");
            } else if families.series() == 0 {
                return Err(nothing_left(received));
            }
            Ok(request)
        })
        .service(inner);
    Push::new(stack)
}

/// A Prometheus gives nothing that is older than minutes.
fn nothing_left(received: usize) -> Rejection {
    let detail = format!(
        "of {received} samples none is left: older than a day by the clock here, or without a valid name; compare the clocks"
    );
    Rejection::new(Reason::Timestamp, detail).by(SCRAPING)
}

/// The bytes of a body, which are all at hand.
fn bytes_of(body: &Full<Bytes>) -> Bytes {
    let frame = Pin::new(&mut body.clone()).poll_frame(&mut Context::from_waker(Waker::noop()));
    match frame {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

/// Takes what would be pushed, which is shown already.
async fn shown_only(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Rejection> {
    Ok(Response::default())
}

/// The client that calls whoever is pushed to, through a proxy if there is one.
fn to(
    settings: &Settings,
    metrics: &Metrics,
    traces: &Traces,
    neighbour: Neighbour,
    url: &Uri,
) -> Result<HttpService, String> {
    let client = through(&settings.proxies, &settings.to_tls, url)?;
    let client = ServiceBuilder::new()
        .layer(ObserveLayer::new(metrics.client(neighbour, settings.verbose)))
        .option_layer(traces.client(neighbour.name()))
        .service(client);
    Ok(unshown(client))
}

/// A client of `url` that shows the proxy on the way, if there is one, what it wants to be shown.
fn through(
    proxies: &Proxies,
    tls: &Live<ClientFiles>,
    url: &Uri,
) -> Result<impl ApiClient<Body = Incoming> + use<>, String> {
    let client = client_through(proxies.clone(), tls, Some(url), CONNECT)?;
    let proxies = proxies.clone();
    Ok(client.map_request(move |mut request: Request<Full<Bytes>>| {
        if let Some(authorization) = proxies.authorization(request.uri()) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization);
        }
        request
    }))
}

/// A client that shows nothing of its own.
fn unshown<C: ApiClient<Body = Incoming>>(client: C) -> HttpService {
    HttpService::new(client.map_err(Into::into))
}
