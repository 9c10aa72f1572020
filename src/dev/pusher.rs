//! The clusters that push, each with a [push client](crate::federate) of its own: most of them as they should, a few to show what the
//! gateway does about it.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use infogw_layers::rejection::Rejection;

use super::{authorizer, report, source};
use crate::{
    federate::{Federate, FederateFlags, Settings},
    gateway::StartError,
    proxy::Proxies,
};

/// One cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) id: &'static str,
    pub(super) protocol: Protocol,
    /// Seconds from one push to the next.
    every: u64,
    pub(super) habit: Habit,
}

/// How a cluster's series get to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Scraped as delimited protobuf.
    UploadProtobuf,
    /// Scraped as text.
    UploadText,
    RemoteWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Proper,
    /// Has a token that the authorizer does not know.
    WrongToken,
    /// Has series of another cluster among its own.
    Forges(&'static str),
}

const fn cluster(id: &'static str, protocol: Protocol, every: u64, habit: Habit) -> Cluster {
    Cluster { id, protocol, every, habit }
}

/// A cluster may upload once in 5 seconds. `hasty` does not care, and is slowed down: its client obeys `Retry-After`.
pub(super) const CLUSTERS: &[Cluster] = &[
    cluster("remote-write-1", Protocol::RemoteWrite, 2, Habit::Proper),
    cluster("upload-protobuf-1", Protocol::UploadProtobuf, 6, Habit::Proper),
    cluster("upload-text-1", Protocol::UploadText, 6, Habit::Proper),
    cluster("remote-write-2", Protocol::RemoteWrite, 3, Habit::Proper),
    cluster("impostor", Protocol::RemoteWrite, 5, Habit::Forges("remote-write-1")),
    cluster("stranger", Protocol::RemoteWrite, 5, Habit::WrongToken),
    cluster("hasty", Protocol::UploadProtobuf, 2, Habit::Proper),
    cluster("upload-protobuf-2", Protocol::UploadProtobuf, 6, Habit::Proper),
];

impl Cluster {
    /// Its client, from the source to the gateway at these addresses.
    pub(super) fn client(&self, source: SocketAddr, gateway: SocketAddr) -> Result<Federate, StartError> {
        // No proxy is between what is all on loopback.
        let settings = Settings::through(Proxies::none(), self.flags(source, gateway))
            .map_err(|error| StartError::Environment(error.to_string()))?;
        let (id, told) = (self.id, Mutex::new(BTreeSet::new()));
        Federate::observed_by(settings, move |rejection: &Rejection| {
            let line = rejection.to_string();
            // Told once for each status, which is before the colon: that it happens again is in the lines that follow.
            let kind = line.split(": ").next().unwrap_or_default().to_owned();
            if told.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
                report::print(&format!("{id} was told: {line}\n"));
            }
        })
    }

    fn flags(&self, source: SocketAddr, gateway: SocketAddr) -> FederateFlags {
        let pull_secret =
            if self.habit == Habit::WrongToken { "somebody-elses-pull-secret" } else { authorizer::TOKEN };
        let flags = FederateFlags {
            from: Some(format!("http://{source}{}", source::path(self.id))),
            matches: vec![r#"{__name__=~".+"}"#.to_owned()],
            id: Some(self.id.to_owned()),
            interval: Some(format!("{}s", self.every)),
            // Nothing: the default renames.
            rename: vec![",".to_owned()],
            listen: Some(String::new()),
            ..FederateFlags::default()
        };
        match self.protocol {
            Protocol::UploadProtobuf | Protocol::UploadText => {
                FederateFlags { to: Some(format!("http://{gateway}")), to_token: Some(pull_secret.to_owned()), ..flags }
            }
            Protocol::RemoteWrite => {
                let composite = serde_json::json!({ "authorization_token": pull_secret, "cluster_id": self.id });
                FederateFlags {
                    to_write: Some(format!("http://{gateway}/metrics/v1/receive")),
                    to_token: Some(BASE64_STANDARD.encode(composite.to_string())),
                    ..flags
                }
            }
        }
    }
}
