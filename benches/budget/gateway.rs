//! The gateway's stacks, driven without a network.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use infogw_proxy::{
    admin::metrics::Metrics,
    authorizers,
    client::Clients,
    config::{Config, Flags, RateFlags, policy::PolicyFlags},
    limits::Limits,
    stack::{self, Answer},
};
use tokio::runtime::{Builder, Runtime};
use tower::{ServiceExt as _, service_fn, util::BoxCloneSyncService};

use crate::{
    Outcome,
    cases::Case,
    telemetry::{self, NAMES, REPLICA, RULES},
};

/// What is asked of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Remote write that goes upstream as it came.
    Receive,
    /// Remote write of which a fifth of the series is dropped, and a label of the others.
    Rewrite,
    /// Metric families that lose a label.
    Upload,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Receive, Kind::Rewrite, Kind::Upload];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Receive => "receive",
            Kind::Rewrite => "rewrite",
            Kind::Upload => "upload",
        }
    }

    /// No limit is met, but all are looked at that can be without being met.
    fn flags(self) -> Flags {
        let kept = if self == Kind::Rewrite { NAMES * 4 / 5 } else { NAMES };
        let none = || Some("0".to_owned());
        let replica = || vec![REPLICA.to_owned()];
        let mut policy = PolicyFlags {
            whitelist: telemetry::rules(RULES, kept),
            limit_bytes: none(),
            limit_receive_bytes: none(),
            rates: RateFlags {
                ratelimit: none(),
                limit_receive_requests_per_second: Some("1000000".to_owned()),
                limit_receive_samples_per_second: Some("1000000000".to_owned()),
                ..RateFlags::default()
            },
            ..PolicyFlags::default()
        };
        match self {
            Kind::Receive => {}
            Kind::Rewrite => policy.receive_elide_label = replica(),
            Kind::Upload => policy.elide_label = replica(),
        }
        Flags {
            // Nothing listens, but names would be looked up.
            listen: Some("127.0.0.1:9003".to_owned()),
            listen_internal: Some("127.0.0.1:9004".to_owned()),
            // What it grants is kept as another authorizer's grants are.
            insecure_accept_any_token: true,
            forward_url: Some("http://127.0.0.1/receive".to_owned()),
            policy,
            ..Flags::default()
        }
    }
}

/// A gateway whose upstream takes everything at once, and a cluster that pushes the same over and over.
pub(crate) struct Gateway {
    runtime: Runtime,
    stack: BoxCloneSyncService<Request<Chunks>, Response<Answer>, Infallible>,
    path: &'static str,
    headers: HeaderMap,
    body: Bytes,
    /// What a request is answered with that went upstream.
    status: StatusCode,
}

impl Gateway {
    pub(crate) fn new(Case { request: kind, shape }: Case) -> Outcome<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let (config, metrics) = (Config::new(kind.flags())?, Metrics::new()?);
        let clients = Clients::new(&config)?;
        let (circuit, limits) = (authorizers::circuit(metrics), Limits::new(&config, metrics));

        let (cluster, now) = (telemetry::cluster(1), SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64);
        let (path, status, body, token) = match kind {
            Kind::Receive | Kind::Rewrite => {
                let token = format!(r#"{{"authorization_token":"a-token-of-{cluster}","cluster_id":"{cluster}"}}"#);
                let body = telemetry::remote_write(&cluster, shape, now);
                ("/metrics/v1/receive", StatusCode::NO_CONTENT, body, BASE64_STANDARD.encode(token))
            }
            Kind::Upload => {
                let register = Request::post(format!("/authorize?id={cluster}"))
                    .header(header::AUTHORIZATION, "Bearer a-token-of-the-cluster")
                    .body(Full::<Bytes>::default())?;
                let registered = stack::authorize(&config, metrics, &clients, &circuit, &limits).oneshot(register);
                let token = runtime.block_on(issued(registered))?;
                ("/upload", StatusCode::OK, telemetry::upload(&cluster, shape, now), token)
            }
        };
        let headers = headers(kind, &token, body.len())?;

        let Clients { authorize, retries, credentials, traces, .. } = clients;
        let clients = Clients { authorize, retries, credentials, traces, forward: service_fn(taken) };
        let stack = match kind {
            Kind::Upload => BoxCloneSyncService::new(stack::upload(&config, metrics, &clients, &limits)),
            _ => BoxCloneSyncService::new(stack::receive(&config, metrics, &clients, &circuit, &limits)),
        };
        Ok(Gateway { runtime, stack, path, headers, body: body.into(), status })
    }

    pub(crate) fn request(&self) -> Request<Chunks> {
        let mut request = Request::new(Chunks(self.body.clone()));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(self.path);
        request.headers_mut().clone_from(&self.headers);
        request
    }

    /// Answers `request` as the gateway's router has it done.
    pub(crate) fn answer(&self, request: Request<Chunks>) {
        let Ok(response) = self.runtime.block_on(self.stack.clone().oneshot(request));
        assert_eq!(response.status(), self.status, "the request did not go upstream");
    }
}

/// The token of an answer of `/authorize`.
async fn issued(answering: impl Future<Output = Result<Response<Answer>, Infallible>>) -> Outcome<String> {
    let Ok(answer) = answering.await;
    let body = answer.into_body().collect().await?.to_bytes();
    let issued: serde_json::Value = serde_json::from_slice(&body)?;
    Ok(issued["token"].as_str().ok_or("no token was issued")?.to_owned())
}

/// As a Prometheus sends them, or a telemeter-client.
fn headers(kind: Kind, token: &str, length: usize) -> Outcome<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::AUTHORIZATION, format!("Bearer {token}").try_into()?);
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("snappy"));
    let (content_type, agent) = match kind {
        Kind::Receive | Kind::Rewrite => {
            headers.insert("x-prometheus-remote-write-version", HeaderValue::from_static("0.1.0"));
            ("application/x-protobuf", "Prometheus/3.7.0")
        }
        Kind::Upload => (
            "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
            "Go-http-client/1.1",
        ),
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    Ok(headers)
}

/// The upstream.
async fn taken(_: Request<Full<Bytes>>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// A body as it arrives: of known length, and in chunks, each as long as a TLS record is at most.
pub(crate) struct Chunks(Bytes);

const CHUNK: usize = 16 * 1024;

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = self.0.len().min(CHUNK);
        Poll::Ready((len > 0).then(|| Ok(Frame::data(self.0.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
