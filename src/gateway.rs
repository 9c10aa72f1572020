//! A gateway's life: bind, serve, reload, drain.

use std::{borrow::Cow, io, net::SocketAddr, time::Duration};

use infogw_layers::store::memcached::Dns;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    admin::{self, Guard, Readiness, metrics::Metrics},
    balance::Pace,
    client::{CONNECT, Clients, client},
    config::{Authorizer, Config, Connections},
    credentials::token_source,
    reload::Reloader,
    route::Router,
    server::{self, Ending, Listener},
    tls::{Live, ServerFiles},
    traces::Traces,
};

/// How long the public listener still answers once the end has come: with 503, and so does readiness, so that whoever balances the
/// load looks elsewhere before connections are refused.
const FAREWELL: Duration = Duration::from_secs(2);
/// How the internal listener ends, once the public one has.
const INTERNAL: Ending = Ending { farewell: Duration::ZERO, grace: Duration::from_secs(2) };

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be had.
    #[error("{flag}: {error}")]
    Bind {
        /// Which flag names it.
        flag: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// Something that the process needs is not there.
    #[error("{0}")]
    Environment(String),
}

/// A gateway that is bound but does not serve yet.
#[derive(Debug)]
pub struct Gateway {
    router: Router,
    public: Listener,
    internal: Listener,
    readiness: Readiness,
    guard: Guard,
    metrics: &'static Metrics,
    reloader: Reloader,
    /// How long requests in flight have at the end.
    grace: Duration,
    /// Those who follow files.
    followers: JoinSet<()>,
    traces: Traces,
}

impl Gateway {
    /// Builds the stacks and binds both listeners.
    ///
    /// # Errors
    /// [`StartError`]. Authorizer and upstream need not be up.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let metrics = Metrics::new().map_err(|error| StartError::Environment(error.to_string()))?;
        let environment = StartError::Environment;
        let mut clients = Clients::new(config).map_err(environment)?;
        clients.traces = Traces::new(config.tracing.as_ref()).map_err(environment)?;
        let mut followers = JoinSet::new();
        config.tls.follow(&mut followers, &metrics.tls);
        config.keys.follow(&mut followers, &metrics.keys);
        metrics.policy.in_force(&config.policy.status());
        config.policy.follow(&mut followers, &config.policy_sources, |reloaded| metrics.policy.reloaded(reloaded));
        if let Some(client_info) = &config.client_info {
            client_info.follow(&mut followers, &metrics.identity);
        }
        if let Some(oidc) = &config.oidc {
            oidc.tls.follow(&mut followers, &metrics.tls);
            let client = client(&oidc.tls, Some(oidc.issuer.configuration()), CONNECT).map_err(environment)?;
            let counted = metrics.oidc().map_err(|error| environment(error.to_string()))?;
            let requests = metrics.client("oauth", config.verbose);
            clients.credentials = Some(token_source(oidc, client, requests, &clients.traces, counted));
        }
        clients.forward.follow(config.upstream.uri(), Dns, Pace::default(), &mut followers, metrics.upstream.clone());
        let readiness = Readiness::default();
        Ok(Gateway {
            router: Router::new(config, metrics, &clients, readiness.clone()),
            public: listener(bind("--listen", &config.listen).await?, config.tls.public.as_ref(), metrics)
                .limits(config.connections.clone())
                .counted(metrics.connections.listener("public")),
            internal: listener(
                bind("--listen-internal", &config.listen_internal).await?,
                config.tls.internal.as_ref(),
                metrics,
            )
            .limits(Connections::internal())
            .counted(metrics.connections.listener("internal")),
            readiness,
            guard: Guard::new(config.internal_token_file.clone()),
            metrics,
            reloader: Reloader::new(config),
            grace: config.connections.shutdown_grace,
            followers,
            traces: clients.traces,
        })
    }

    /// Where the public listener is.
    ///
    /// # Errors
    /// The system's.
    pub fn public_address(&self) -> io::Result<SocketAddr> {
        self.public.address()
    }

    /// Where the internal listener is.
    ///
    /// # Errors
    /// The system's.
    pub fn internal_address(&self) -> io::Result<SocketAddr> {
        self.internal.address()
    }

    /// Has its files read again.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves until `stop` turns true and requests in flight have ended. The internal listener goes last: it tells what goes on.
    pub async fn serve(self, mut stop: watch::Receiver<bool>) {
        let Gateway {
            router,
            public,
            internal,
            readiness,
            guard,
            metrics,
            reloader,
            grace,
            followers: _followers,
            traces,
        } = self;
        let (stop_public, public_stopped) = watch::channel(false);
        let (stop_internal, internal_stopped) = watch::channel(false);
        let ready = readiness.clone();
        let internal = server::serve(internal, internal_stopped, INTERNAL, move |request, peer| {
            let (ready, reloader, guard) = (ready.clone(), reloader.clone(), guard.clone());
            async move { admin::internal(&request, &ready, metrics, &reloader, (&guard, peer.ip())).await }
        });
        let internal = tokio::spawn(internal);
        let ending = Ending { farewell: FAREWELL, grace };
        let public = server::serve(public, public_stopped, ending, move |request, _| router.clone().answer(request));
        let public = tokio::spawn(public);
        server::told(&mut stop).await;
        readiness.end();
        let _ = stop_public.send(true);
        let _ = public.await;
        let _ = stop_internal.send(true);
        // Both have two seconds, and the same ones.
        let _ = tokio::join!(internal, traces.end());
    }
}

/// Says what a reader of the log must know about this configuration.
pub fn warn_about(config: &Config) {
    for Warning { route, text } in warnings(config) {
        tracing::warn!(route, "{text}");
    }
    if config.authorizer == Authorizer::Nobody {
        tracing::info!(
            "no --authorize: client certificates alone say which cluster it is, and /authorize issues no tokens"
        );
    }
}

/// Something that is allowed, and seldom meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it matters, unless everywhere.
    pub route: Option<&'static str>,
    /// What, and why it matters.
    pub text: Cow<'static, str>,
}

/// What whoever runs this configuration should know.
pub fn warnings(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |route, text: &'static str| warnings.push(Warning { route, text: text.into() });
    let [upload, receive] = config.policy.status().rules;
    for (route, rules) in [("/upload", upload), ("/metrics/v1/receive", receive)] {
        if rules == 0 {
            warn(Some(route), "no --whitelist, --whitelist-file, or allowlist in a --policy: every series passes");
        }
    }
    if config.authorizer == Authorizer::AcceptAny {
        warn(None, "--insecure-accept-any-token: anyone gets in as any cluster");
    }
    if config.authorizer != Authorizer::Nobody && !config.keys.is_shared() {
        warn(None, "no --shared-key: tokens are signed with a generated key and end with this process");
    }
    if config.oidc_idle {
        warn(
            None,
            "no --oidc-issuer: --client-id, --client-secret and --oidc-audience are of no use, and no token is shown",
        );
    }
    for (flag, given) in
        [("--redis", config.stores.redis.is_some()), ("--memcached", config.stores.memcached.is_some())]
    {
        if given && !config.keys.is_shared() {
            let text =
                format!("{flag} without --shared-key: this process shares nothing with others, which have other keys");
            warnings.push(Warning { route: None, text: text.into() });
        }
    }
    warnings
}

/// Binds the first of `addresses` that can be had.
async fn bind(flag: &'static str, addresses: &[SocketAddr]) -> Result<TcpListener, StartError> {
    TcpListener::bind(addresses).await.map_err(|error| StartError::Bind { flag, error })
}

fn listener(tcp: TcpListener, tls: Option<&Live<ServerFiles>>, metrics: &Metrics) -> Listener {
    match tls {
        None => Listener::plaintext(tcp),
        Some(tls) => Listener::tls(tcp, tls.current(), metrics.tls.handshake_failures(tls.source().name)),
    }
}
