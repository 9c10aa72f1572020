//! Whom a TLS-terminating balancer says that it speaks for.

use std::path::{Path, PathBuf};

use clap::Args;
use infogw_layers::authorize::client_info::{ClientInfo, ClientInfoHeaders};
use tokio::task::JoinSet;

use super::{Authorizer, ConfigError, given, label_name, path, wrong};
use crate::{admin::metrics::identity::IdentityMetrics, watch::Followed};

/// Flags of identity from client certificates, rhelemeter-server's.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Identity")]
pub struct ClientInfoFlags {
    /// JSON file with the secret and the names of the headers by which a TLS-terminating balancer hands on client certificates'
    /// subjects; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub client_info_data_file: Option<String>,
    /// Label that carries the common name of a client certificate [default: the partition label].
    #[arg(long, value_name = "NAME")]
    pub client_info_subject_label: Option<String>,
}

impl ClientInfoFlags {
    /// The file, if one is given, and the label that received series carry their cluster in.
    pub(super) fn read(
        self,
        authorizer: &Authorizer,
        partition_label: &str,
    ) -> Result<(Option<ClientInfoFile>, String), ConfigError> {
        let file = path("--client-info-data-file", self.client_info_data_file)?.map(ClientInfoFile::new).transpose()?;
        let label = match given(self.client_info_subject_label) {
            None => partition_label.to_owned(),
            Some(label) => label_name("--client-info-subject-label", label)?,
        };
        if label != partition_label && *authorizer != Authorizer::Nobody {
            return wrong!(
                "--client-info-subject-label: `{label}` is not the --partition-label, `{partition_label}`, in which clusters with \
                 tokens are named; give the same, or leave out --authorize"
            );
        }
        Ok((file, label))
    }
}

/// The headers in force, and the file that names them.
#[derive(Debug, Clone)]
pub struct ClientInfoFile {
    path: PathBuf,
    followed: Followed,
    headers: ClientInfoHeaders,
}

impl ClientInfoFile {
    fn new(path: String) -> Result<Self, ConfigError> {
        let path = PathBuf::from(path);
        // Before it is read, so that what changes meanwhile is told.
        let followed = Followed::new([&path]);
        let headers = ClientInfoHeaders::new(read(&path)?);
        Ok(ClientInfoFile { path, followed, headers })
    }

    /// The headers in force.
    pub fn headers(&self) -> &ClientInfoHeaders {
        &self.headers
    }

    /// Follows the file in one of `tasks`: what it says is put in force; if it is broken, that is logged and the old one stays.
    pub fn follow(&self, tasks: &mut JoinSet<()>, metrics: &'static IdentityMetrics) {
        let file = self.clone();
        let tell = |reloaded: Result<bool, String>| {
            // Before the log line: whoever has read that finds it counted.
            metrics.reloaded(&reloaded);
            match &reloaded {
                Ok(true) => tracing::info!("reloaded the client-info data"),
                Ok(false) => tracing::debug!("the client-info data are the same as before"),
                Err(error) => tracing::error!(%error, "the client-info data were not reloaded; the old ones stay"),
            }
        };
        self.followed.follow(tasks, move || read(&file.path).map(|read| file.headers.replace(read)), tell);
    }

    /// The files, to be read again when somebody asks.
    pub fn followed(&self) -> &Followed {
        &self.followed
    }
}

fn read(path: &Path) -> Result<ClientInfo, ConfigError> {
    let wrong = |error: String| ConfigError(format!("--client-info-data-file: {}: {error}", path.display()));
    let json = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    ClientInfo::from_json(&json).map_err(|error| wrong(error.to_string()))
}
