//! A gateway between a scripted authorizer and a scripted upstream.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    Authorizer, Gateway, Reply, Upstream, Write,
    payload::{composite_token, write_body},
};
use infogw_proto::prometheus::TimeSeries;

/// What clusters prove themselves with here.
pub const PULL_SECRET: &str = "pull-secret";

/// Text 0.0.4, as a `Content-Type`.
pub const TEXT: &str = "text/plain; version=0.0.4";

/// Everything that a request meets.
pub struct World {
    pub gateway: Gateway,
    pub authorizer: Authorizer,
    pub upstream: Upstream,
}

impl World {
    /// With the flags that there must be: everyone is granted, everything is taken.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more flags.
    pub async fn with(flags: &[&str]) -> Self {
        let (authorizer, upstream) = (Authorizer::granting().await, Upstream::accepting().await);
        let (authorize, forward) = (authorizer.url(), upstream.url());
        let mut args = vec!["--authorize", authorize.as_str(), "--forward-url", forward.as_str()];
        args.extend(flags);
        Self { gateway: Gateway::start(args).await, authorizer, upstream }
    }

    /// A token for `/upload`.
    pub async fn token(&self, cluster: &str) -> String {
        self.gateway.upload_token(cluster, PULL_SECRET).await
    }

    /// Uploads text as this cluster, with a new token.
    pub async fn upload(&self, cluster: &str, text: &str) -> Reply {
        let token = self.token(cluster).await;
        self.gateway.upload(&token, TEXT, "", text.to_owned()).await
    }

    /// Remote-writes as this cluster.
    pub async fn receive(&self, cluster: &str, series: Vec<TimeSeries>) -> Reply {
        self.gateway.receive(&composite_token(PULL_SECRET, cluster), write_body(series)).await
    }

    /// The one request that has reached the upstream.
    #[track_caller]
    pub fn forwarded(&self) -> Write {
        let mut writes = self.upstream.received();
        assert_eq!(writes.len(), 1, "not one request upstream: {writes:?}");
        writes.remove(0)
    }

    /// Checks that nothing has reached the upstream.
    #[track_caller]
    pub fn assert_nothing_forwarded(&self) {
        let writes = self.upstream.received();
        assert!(writes.is_empty(), "reached the upstream: {writes:?}");
    }
}

/// Now, in milliseconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

/// The series of a write, spelt `name{label="value",...}` with the labels in their order.
pub fn spelt(write: &Write) -> Vec<String> {
    let spell = |series: &TimeSeries| {
        let named = |label: &&infogw_proto::prometheus::Label| label.name == "__name__";
        let name = series.labels.iter().find(named).map_or("", |label| label.value.as_str());
        let others = series.labels.iter().filter(|label| !named(label));
        let others: Vec<_> = others.map(|label| format!("{}={:?}", label.name, label.value)).collect();
        format!("{name}{{{}}}", others.join(","))
    };
    write.request().timeseries.iter().map(spell).collect()
}
