//! The flags as they are written, before they mean anything: telemeter-client's, and ours.

use std::fmt;

use clap::{ArgAction, Args};

use crate::config::{ConfigError, OidcFlags, TracingFlags, go_bool, is_given, variable};

/// For --from-token.
pub(crate) const FROM_TOKEN: &str = "INFOGW_FROM_TOKEN";
/// For --to-token.
pub(crate) const TO_TOKEN: &str = "INFOGW_TO_TOKEN";
/// For --anonymize-salt.
pub(crate) const ANONYMIZE_SALT: &str = "INFOGW_ANONYMIZE_SALT";

/// Flags of `federate`. An empty value is the same as none; a flag that takes one value takes the last one given.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "From", args_override_self = true)]
pub struct FederateFlags {
    /// Prometheus to federate from; without a path, its /federate.
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Authorities that its certificate may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE")]
    pub from_ca_file: Option<String>,
    /// Bearer token to show it; whoever may list processes sees it, so prefer --from-token-file, or $INFOGW_FROM_TOKEN.
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub from_token: Option<String>,
    /// File that holds that token; read for each scrape.
    #[arg(long, value_name = "FILE")]
    pub from_token_file: Option<String>,
    /// Certificate chain to show it, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<String>,
    /// Private key of that certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<String>,
    /// PromQL selector of series to federate; repeatable [default: {__name__="up"}].
    #[arg(long = "match", value_name = "SELECTOR", allow_hyphen_values = true)]
    pub matches: Vec<String>,
    /// File with a selector a line, in addition to --match.
    #[arg(long, value_name = "FILE")]
    pub match_file: Option<String>,
    /// Largest scrape; 0 is unlimited [default: 204800].
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<String>,

    /// Gateway to push to, by its /authorize and /upload.
    #[arg(long, value_name = "URL", help_heading = "To")]
    pub to: Option<String>,
    /// Where to upload [default: /upload of --to].
    #[arg(long, value_name = "URL", help_heading = "To")]
    pub to_upload: Option<String>,
    /// Where to exchange the token [default: /authorize of --to, with --id].
    #[arg(long, value_name = "URL", help_heading = "To")]
    pub to_auth: Option<String>,
    /// Where to remote-write instead: a receive endpoint.
    #[arg(long, value_name = "URL", help_heading = "To")]
    pub to_write: Option<String>,
    /// Bearer token to exchange, or with --to-write to show; whoever may list processes sees it, so prefer --to-token-file, or
    /// $INFOGW_TO_TOKEN.
    #[arg(long, value_name = "TOKEN", help_heading = "To", allow_hyphen_values = true)]
    pub to_token: Option<String>,
    /// File that holds that token; read whenever it is used.
    #[arg(long, value_name = "FILE", help_heading = "To")]
    pub to_token_file: Option<String>,
    /// THANOS-TENANT of what --to-write sends; none unless given.
    #[arg(long, value_name = "TENANT", help_heading = "To")]
    pub to_tenant_id: Option<String>,
    /// Authorities that the certificate of whoever is pushed to may be of, PEM, besides the system's roots.
    #[arg(long, value_name = "FILE", help_heading = "To")]
    pub to_ca_file: Option<String>,
    /// This cluster's id.
    #[arg(long, value_name = "ID", help_heading = "To", allow_hyphen_values = true)]
    pub id: Option<String>,
    /// From one push to the next; Go's duration [default: 4m30s].
    #[arg(long, value_name = "DURATION", help_heading = "To")]
    pub interval: Option<String>,

    /// A token for --to-write from an OpenID issuer.
    #[command(flatten)]
    pub oidc: OidcFlags,

    /// Label to set on each series, name=value; repeatable, comma-separated.
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Series")]
    pub label: Vec<String>,
    /// Metric to rename, old=new; repeatable, comma-separated [default: ALERTS=alerts].
    #[arg(long, value_name = "OLD=NEW", help_heading = "Series")]
    pub rename: Vec<String>,
    /// Label whose values are replaced by hashes; repeatable, comma-separated.
    #[arg(long, value_name = "NAME", help_heading = "Series")]
    pub anonymize_labels: Vec<String>,
    /// Secret that goes into these hashes; whoever may list processes sees it, so prefer --anonymize-salt-file, or
    /// $INFOGW_ANONYMIZE_SALT.
    #[arg(long, value_name = "SALT", help_heading = "Series", allow_hyphen_values = true)]
    pub anonymize_salt: Option<String>,
    /// File that holds that secret.
    #[arg(long, value_name = "FILE", help_heading = "Series")]
    pub anonymize_salt_file: Option<String>,

    /// Address for health, metrics and the last selection; empty is none [default: localhost:9002].
    #[arg(long, value_name = "ADDRESS", help_heading = "Process")]
    pub listen: Option<String>,
    /// Push once and end; the exit code tells.
    #[arg(long, help_heading = "Process")]
    pub once: bool,
    /// Scrape once, print what would be pushed, after every transformation, and end.
    #[arg(long, help_heading = "Process")]
    pub dry_run: bool,
    /// debug, info, warn or error [default: info].
    #[arg(long, value_name = "LEVEL", help_heading = "Logs")]
    pub log_level: Option<String>,
    /// Log outgoing requests at debug, without bodies or credentials.
    #[arg(
        short,
        long,
        help_heading = "Logs",
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        value_parser = go_bool
    )]
    pub verbose: bool,
    /// Where spans of its requests go.
    #[command(flatten)]
    pub tracing: TracingFlags,
}

/// Without secrets, and without URLs and files, which may hold some.
impl fmt::Debug for FederateFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FederateFlags").field("id", &self.id).field("interval", &self.interval).finish_non_exhaustive()
    }
}

impl FederateFlags {
    /// With the secrets of this process's environment, where neither flag nor file gives one and something needs it.
    ///
    /// # Errors
    /// A variable that is no text.
    pub fn with_environment(mut self) -> Result<Self, ConfigError> {
        let anonymizes = self.anonymize_labels.iter().any(|name| !name.is_empty());
        let has_issuer = is_given(&self.oidc.oidc_issuer);
        for (value, file, name, needed) in [
            (&mut self.from_token, &self.from_token_file, FROM_TOKEN, true),
            (&mut self.to_token, &self.to_token_file, TO_TOKEN, !has_issuer),
            (&mut self.anonymize_salt, &self.anonymize_salt_file, ANONYMIZE_SALT, anonymizes),
        ] {
            if needed && !is_given(value) && !is_given(file) {
                *value = variable(name)?;
            }
        }
        self.oidc.with_secret(variable)?;
        Ok(self)
    }
}
