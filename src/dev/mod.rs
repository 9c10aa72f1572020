//! The embedded world: a gateway with an authorizer before it, a receive endpoint behind it and clusters that push, all in
//! this process and on loopback, to look at and to try. Each cluster is a [push client](crate::federate) that scrapes an embedded source
//! of telemetry. No flag of the gateway's reaches any of it.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), infogw_proxy::gateway::StartError> {
//! let (stop, stopped) = tokio::sync::watch::channel(false);
//! // Right away, as this is an example: it starts, and ends in order.
//! stop.send_replace(true);
//! infogw_proxy::dev::run(stopped).await
//! # }
//! ```

mod api;
mod authorizer;
mod formats;
mod pusher;
mod receive;
mod report;
mod serve;
mod source;
mod store;
mod telemetry;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    client::{CONNECT, client},
    config::{Config, Flags, PolicyFlags, RateFlags},
    gateway::{Gateway, StartError},
    log,
    server::{self, Ending},
};
use api::Api;
use authorizer::Authorizer;

use report::Report;
use source::Source;
use store::Store;

/// Where it listens if these are free: the gateway's usual ports, and the next one for what was received.
const PUBLIC_PORT: u16 = 9003;
const INTERNAL_PORT: u16 = 9004;
const RECEIVED_PORT: u16 = 9005;

/// How long requests in flight at the authorizer, the source and the receive endpoint have at the end.
const ENDING: Ending = Ending { farewell: Duration::ZERO, grace: Duration::from_secs(2) };

/// Upstream can tell by the tenant which protocol a series came by.
const UPLOAD_TENANT: &str = "dev-upload";
const REMOTE_WRITE_TENANT: &str = "dev-remote-write";

/// The cluster that the reader can push as, and its metric.
const BY_HAND: &str = "by-hand";
const BY_HAND_METRIC: &str = "pushed_by_hand";

/// Runs it until `stop` turns true or nobody reads the lines it prints. Then it ends in order: the clusters, the gateway once its
/// requests in flight have ended, and what the gateway depends on.
///
/// # Errors
/// [`StartError`], if there is no free port on loopback, or the gateway does not start.
pub async fn run(mut stop: watch::Receiver<bool>) -> Result<(), StartError> {
    log::init(tracing::Level::WARN);
    let store = Arc::new(Store::default());
    let (authorizer, authorizer_address) = bind("the embedded authorizer", 0).await?;
    let (received, received_address) = bind("the embedded receive endpoint", RECEIVED_PORT).await?;
    let (source, source_address) = bind("the embedded source of telemetry", 0).await?;
    let config = config(authorizer_address, received_address)?;
    let gateway = Gateway::bind(&config).await?;
    let environment = |error: std::io::Error| StartError::Environment(error.to_string());
    let public = gateway.public_address().map_err(environment)?;
    let internal = gateway.internal_address().map_err(environment)?;
    let api = Api::new(client(&config.tls.forward, None, CONNECT).map_err(StartError::Environment)?, public);
    let clients = pusher::CLUSTERS.iter().map(|cluster| cluster.client(source_address, public));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;

    let mut dependencies = Group::new();
    let registrations = Arc::new(Authorizer::default());
    dependencies.spawn(|stop| {
        server::serve(authorizer, stop, ENDING, move |request, _| Arc::clone(&registrations).answer(request))
    });
    let kept = Arc::clone(&store);
    dependencies.spawn(|stop| {
        server::serve(received, stop, ENDING, move |request, _| receive::answer(Arc::clone(&kept), request))
    });
    let telemetry = Source::new();
    dependencies.spawn(|stop| {
        server::serve(source, stop, ENDING, move |request, _| std::future::ready(telemetry.answer(&request)))
    });
    let mut gateways = Group::new();
    gateways.spawn(|stop| gateway.serve(stop));
    let token = api.upload_token(BY_HAND, authorizer::TOKEN).await.map_err(|answer| {
        StartError::Environment(format!("the embedded authorizer and gateway do not work together: {answer}"))
    })?;

    let mut clusters = Group::new();
    if report::print(&introduction(public, internal, received_address, &token)) {
        for client in clients {
            clusters.spawn(|stop| async move { client.run(stop).await });
        }
        let metrics = format!("http://{internal}/metrics");
        tokio::select! {
            () = Report::new(api, metrics, store).run() => {}
            () = server::told(&mut stop) => {}
        }
    }
    for group in [clusters, gateways, dependencies] {
        group.end().await;
    }
    Ok(())
}

/// What the gateway's flags would be, all of them on loopback.
fn config(authorizer: SocketAddr, received: SocketAddr) -> Result<Config, StartError> {
    let flags = Flags {
        listen: Some("127.0.0.1:0".to_owned()),
        listen_internal: Some("127.0.0.1:0".to_owned()),
        authorize: Some(format!("http://{authorizer}{}", authorizer::PATH)),
        forward_url: Some(format!("http://{received}{}", receive::PATH)),
        policy: PolicyFlags {
            tenant_id: Some(UPLOAD_TENANT.to_owned()),
            receive_tenant_id: Some(REMOTE_WRITE_TENANT.to_owned()),
            whitelist: telemetry::ALLOWLIST.iter().map(|&rule| rule.to_owned()).collect(),
            elide_label: vec!["prometheus_replica".to_owned()],
            rates: RateFlags { ratelimit: Some("5s".to_owned()), ..RateFlags::default() },
            ..PolicyFlags::default()
        },
        ..Flags::default()
    };
    let mut config = Config::new(flags).map_err(|error| StartError::Environment(error.to_string()))?;
    config.listen = preferred(PUBLIC_PORT).to_vec();
    config.listen_internal = preferred(INTERNAL_PORT).to_vec();
    Ok(config)
}

/// This port on loopback if it is free, else any.
fn preferred(port: u16) -> [SocketAddr; 2] {
    [port, 0].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

async fn bind(what: &'static str, port: u16) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(&preferred(port)[..]).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|error| StartError::Bind { flag: what, error })
}

fn introduction(public: SocketAddr, internal: SocketAddr, received: SocketAddr, token: &str) -> String {
    format!(
        "\
infogw-proxy dev: a gateway, what it depends on and clusters that push, all on loopback and in memory. Ctrl-C ends it.

  gateway          http://{public}/
  its metrics      http://{internal}/metrics
  received series  http://{received}/

Push a series by hand, once in 5 seconds, and find it at http://{received}/clusters/{BY_HAND}

  echo '{BY_HAND_METRIC}{{_id=\"{BY_HAND}\"}} 42' $(date +%s)000 | curl -sS -w '%{{http_code}}\\n' --noproxy '*' -H 'Authorization: Bearer {token}' -H 'Content-Type: text/plain' --data-binary @- http://{public}/upload

Each second: samples that passed by cluster, series dropped by the allowlist, requests refused by reason.

"
    )
}

/// Tasks that are told to end together.
struct Group {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Group {
    fn new() -> Self {
        Group { tasks: JoinSet::new(), stop: watch::Sender::new(false) }
    }

    fn spawn<R>(&mut self, task: impl FnOnce(watch::Receiver<bool>) -> R)
    where
        R: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.stop.subscribe()));
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}
