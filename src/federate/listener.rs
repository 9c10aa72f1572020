//! The client's listener: health, metrics, and what was selected last.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use infogw_layers::{encode::TEXT, respond};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use super::{Federate, FederateFlags, Settings};
use crate::{
    admin::{self, Guard, Readiness},
    config::Connections,
    gateway::StartError,
    server::{self, Ending, Listener},
};

const PATHS: &[&str] = &["/", "/federate", "/metrics", "/healthz", "/healthz/ready", "/-/reload"];
const ENDING: Ending = Ending { farewell: Duration::ZERO, grace: Duration::from_secs(2) };

/// Has the files that flags name read again.
#[derive(Debug, Clone)]
pub struct Reloader {
    flags: FederateFlags,
    client: Federate,
    /// One at a time: the last one counts.
    turn: Arc<Mutex<()>>,
}

impl Reloader {
    /// Of the files that `flags` name, for `client`.
    pub fn new(flags: FederateFlags, client: Federate) -> Self {
        Reloader { flags, client, turn: Arc::default() }
    }

    /// Has what they hold put in force; on a fault the old stays. Either is logged, and comes about whether it is waited for or not.
    ///
    /// # Errors
    /// The fault.
    pub async fn reload(&self) -> Result<(), Vec<String>> {
        let reloader = self.clone();
        let reloading = tokio::spawn(async move { reloader.read().await });
        reloading.await.unwrap_or_else(|error| Err(vec![error.to_string()]))
    }

    async fn read(&self) -> Result<(), Vec<String>> {
        let _turn = self.turn.lock().await;
        let flags = self.flags.clone();
        let settings = tokio::task::spawn_blocking(|| Settings::new(flags)).await;
        let settings = settings.map_err(|error| error.to_string());
        let reloaded = settings.and_then(|settings| self.client.replace(settings.map_err(|error| error.to_string())?));
        match reloaded {
            Ok(()) => {
                tracing::info!("reloaded: what the files hold counts from the next scrape on");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "failed to reload: the old stays");
                Err(vec![error])
            }
        }
    }
}

/// A listener that is bound.
#[derive(Debug)]
pub struct FederateListener {
    listener: Listener,
    address: SocketAddr,
}

impl FederateListener {
    /// Binds the first of `addresses` that can be had.
    ///
    /// # Errors
    /// [`StartError::Bind`], if none can.
    pub async fn bind(addresses: &[SocketAddr]) -> Result<Self, StartError> {
        let bound = async {
            let tcp = TcpListener::bind(addresses).await?;
            let address = tcp.local_addr()?;
            Ok((tcp, address))
        };
        let (tcp, address) = bound.await.map_err(|error: io::Error| StartError::Bind { flag: "--listen", error })?;
        Ok(FederateListener { listener: Listener::plaintext(tcp).limits(Connections::internal()), address })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells of `reloader`'s client until `stop` turns true.
    pub async fn serve(self, reloader: Reloader, stop: watch::Receiver<bool>) {
        let (readiness, guard) = (Readiness::default(), Guard::this_host());
        server::serve(self.listener, stop, ENDING, move |request, peer| {
            let (reloader, readiness, guard) = (reloader.clone(), readiness.clone(), guard.clone());
            async move { answer(&request, &reloader, &readiness, (&guard, peer)).await }
        })
        .await;
    }
}

async fn answer<B>(
    request: &Request<B>,
    reloader: &Reloader,
    readiness: &Readiness,
    (guard, peer): (&Guard, SocketAddr),
) -> Response<Full<Bytes>> {
    let client = &reloader.client;
    match request.uri().path() {
        "/federate" => admin::reading(request, || match client.selection.text() {
            Ok(text) => admin::with_type(TEXT, text),
            Err(fault) => respond::answer(&fault),
        }),
        "/metrics" => admin::reading(request, || admin::exposed(client.metrics.expose(request.headers()))),
        "/-/reload" => admin::reload(request, || reloader.reload(), (guard, peer.ip())).await,
        _ => admin::common(request, readiness, PATHS),
    }
}
