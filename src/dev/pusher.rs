//! The clusters that push: most of them as they should, a few to show what the gateway does about it.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    api::{Answer, Api},
    authorizer, formats, report,
    telemetry::{Family, Telemetry},
};
use crate::server;

/// One cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    id: &'static str,
    protocol: Protocol,
    every: Duration,
    habit: Habit,
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    UploadProtobuf,
    UploadText,
    RemoteWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Proper,
    /// Has a token that the authorizer does not know.
    WrongToken,
    /// Writes series of another cluster among its own.
    Forges(&'static str),
}

const fn cluster(id: &'static str, protocol: Protocol, every: u64, habit: Habit) -> Cluster {
    Cluster { id, protocol, every: Duration::from_secs(every), habit }
}

/// A cluster may upload once in 5 seconds; `hasty` does not care.
pub(super) const CLUSTERS: [Cluster; 8] = [
    cluster("remote-write-1", Protocol::RemoteWrite, 2, Habit::Proper),
    cluster("upload-protobuf-1", Protocol::UploadProtobuf, 6, Habit::Proper),
    cluster("upload-text-1", Protocol::UploadText, 6, Habit::Proper),
    cluster("remote-write-2", Protocol::RemoteWrite, 3, Habit::Proper),
    cluster("impostor", Protocol::RemoteWrite, 5, Habit::Forges("remote-write-1")),
    cluster("stranger", Protocol::RemoteWrite, 5, Habit::WrongToken),
    cluster("hasty", Protocol::UploadProtobuf, 2, Habit::Proper),
    cluster("upload-protobuf-2", Protocol::UploadProtobuf, 6, Habit::Proper),
];

/// Pushes the cluster's telemetry until `stop` turns true. It begins by its `number`, so that they do not all push at once.
pub(super) async fn push(api: Api, cluster: &'static Cluster, number: u32, mut stop: watch::Receiver<bool>) {
    let mut pusher = Pusher { api, cluster, upload_token: None };
    let mut telemetry = Telemetry::new(cluster.id);
    let mut told = BTreeSet::new();
    let mut ticks = interval_at(Instant::now() + number * Duration::from_millis(200), cluster.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = server::told(&mut stop) => return,
        }
        // Not to be interrupted: a request in flight ends.
        let answer = pusher.send(telemetry.scrape()).await;
        // Told once for each status: that it happens again is in the lines that follow.
        if !answer.is_success() && told.insert(answer.status) {
            report::print(&format!("{} was answered {answer}\n", cluster.id));
        }
    }
}

struct Pusher {
    api: Api,
    cluster: &'static Cluster,
    upload_token: Option<String>,
}

impl Pusher {
    async fn send(&mut self, mut families: Vec<Family>) -> Answer {
        let Cluster { id, protocol, habit, .. } = *self.cluster;
        if let Habit::Forges(victim) = habit {
            forge(&mut families, victim);
        }
        let now = now_ms();
        match protocol {
            Protocol::RemoteWrite => {
                self.api.remote_write(id, self.pull_secret(), formats::remote_write(&families, now)).await
            }
            Protocol::UploadProtobuf => {
                let content_type =
                    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
                self.upload(content_type, formats::protobuf(&families, now)).await
            }
            Protocol::UploadText => self.upload("text/plain; version=0.0.4", formats::text(&families, now)).await,
        }
    }

    async fn upload(&mut self, content_type: &str, body: Vec<u8>) -> Answer {
        let token = match self.upload_token.take() {
            Some(token) => token,
            None => match self.api.upload_token(self.cluster.id, self.pull_secret()).await {
                Ok(token) => token,
                Err(answer) => return answer,
            },
        };
        let answer = self.api.upload(&token, content_type, "snappy", body).await;
        // An expired token is given up, and the next push gets another one.
        self.upload_token = Some(token).filter(|_| answer.status != Some(http::StatusCode::UNAUTHORIZED));
        answer
    }

    fn pull_secret(&self) -> &'static str {
        if self.cluster.habit == Habit::WrongToken { "somebody-elses-pull-secret" } else { authorizer::TOKEN }
    }
}

/// Adds the first family once more, in the victim's name.
fn forge(families: &mut Vec<Family>, victim: &str) {
    let Some(mut forged) = families.first().cloned() else { return };
    for series in &mut forged.series {
        for (name, value) in &mut series.labels {
            match *name {
                "_id" => victim.clone_into(value),
                "pod" => "forged".clone_into(value),
                _ => {}
            }
        }
    }
    families.push(forged);
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
