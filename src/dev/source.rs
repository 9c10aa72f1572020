//! What the clusters are scraped at: the `/federate` of each one's Prometheus, all on one listener.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{
    formats,
    pusher::{CLUSTERS, Cluster, Habit, Protocol},
    serve::reply,
    telemetry::{Family, Telemetry},
};
use crate::admin::metrics::accepts_protobuf;

const PROTOBUF: &str = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where the cluster's series are.
pub(super) fn path(cluster: &str) -> String {
    format!("/{cluster}/federate")
}

/// The telemetry of each cluster. It goes on with each scrape.
#[derive(Debug)]
pub(super) struct Source(Vec<(&'static Cluster, Mutex<Telemetry>)>);

impl Source {
    pub(super) fn new() -> Arc<Self> {
        let clusters = CLUSTERS.iter().map(|cluster| (cluster, Mutex::new(Telemetry::new(cluster.id))));
        Arc::new(Source(clusters.collect()))
    }

    /// Answers with all of a cluster's series, whatever the selectors: the clients ask for everything.
    pub(super) fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is taken here\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        let asked = request.uri().path();
        let Some((cluster, telemetry)) = self.0.iter().find(|(cluster, _)| path(cluster.id) == asked) else {
            return reply(StatusCode::NOT_FOUND, TEXT, "no cluster is here; `GET /CLUSTER/federate`\n");
        };
        let mut families = telemetry.lock().unwrap_or_else(PoisonError::into_inner).scrape();
        if let Habit::Forges(victim) = cluster.habit {
            forge(&mut families, victim);
        }
        let now = now_ms();
        // An old Prometheus has nothing but text.
        if cluster.protocol != Protocol::UploadText && accepts_protobuf(request.headers()) {
            reply(StatusCode::OK, PROTOBUF, formats::protobuf(&families, now))
        } else {
            reply(StatusCode::OK, TEXT, formats::text(&families, now))
        }
    }
}

/// Adds the series of the first family once more, in the victim's name.
fn forge(families: &mut [Family], victim: &str) {
    let Some(family) = families.first_mut() else { return };
    let mut forged = family.series.clone();
    for series in &mut forged {
        for (name, value) in &mut series.labels {
            match *name {
                "_id" => victim.clone_into(value),
                "pod" => "forged".clone_into(value),
                _ => {}
            }
        }
    }
    family.series.append(&mut forged);
}

fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
