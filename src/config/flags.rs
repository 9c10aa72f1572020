//! The flags as they are written, before they mean anything.

use std::fmt;

use clap::{ArgAction, Args};

use super::{
    AuthorizationFlags, ClientInfoFlags, ConnectionFlags, OidcFlags, PolicyFlags, StoreFlags, TlsFlags, TracingFlags,
    show::ShownFlags,
};

/// Flags of the gateway. An empty value is the same as none; a flag that takes one value takes the last one given.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Listeners")]
pub struct Flags {
    /// Public address [default: 0.0.0.0:9003].
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Address for health and metrics [default: localhost:9004].
    #[arg(long, value_name = "ADDRESS")]
    pub listen_internal: Option<String>,

    /// File that holds the token to be shown by whoever reloads through the internal address, which without one is for this host alone,
    /// and for what a proxy on this host lets through.
    #[arg(long, value_name = "FILE")]
    pub internal_token_file: Option<String>,

    /// TLS of listeners and clients.
    #[command(flatten)]
    pub tls: TlsFlags,

    /// The authorizer: UHC's cluster registrations.
    #[arg(long, value_name = "URL", help_heading = "Identity")]
    pub authorize: Option<String>,
    /// Take any token of any cluster instead of asking an authorizer. For tests only.
    #[arg(long, help_heading = "Identity")]
    pub insecure_accept_any_token: bool,
    /// Private key that signs the issued tokens, PEM or DER: PKCS#1, PKCS#8 or SEC1; RSA, P-256, P-384 or P-521; repeatable: the
    /// first signs, all verify; read again when it changes [default: a generated P-256 key, so that tokens end with this process].
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    pub shared_key: Vec<String>,
    /// Life of an issued token [default: 86400].
    #[arg(long, value_name = "SECONDS", help_heading = "Identity")]
    pub token_expire_seconds: Option<String>,
    /// Label that carries the cluster id [default: _id].
    #[arg(long, value_name = "NAME", help_heading = "Identity")]
    pub partition_label: Option<String>,
    /// Identity from client certificates.
    #[command(flatten)]
    pub client_info: ClientInfoFlags,
    /// Key in the composite token whose value names the tenant in logs.
    #[arg(long, value_name = "KEY", help_heading = "Identity")]
    pub tenant_key: Option<String>,

    /// How authorizations are kept.
    #[command(flatten)]
    pub authorization: AuthorizationFlags,

    /// Where remote-write requests go: a receive endpoint. `{tenant}` in its path or query stands for the sender's tenant.
    #[arg(long, value_name = "URL", help_heading = "Upstream")]
    pub forward_url: Option<String>,

    /// Credentials of our own.
    #[command(flatten)]
    pub oidc: OidcFlags,

    /// What may be written, and where it goes.
    #[command(flatten)]
    pub policy: PolicyFlags,

    /// Most requests at work at once, each route by itself; past it they are refused with 503 [default: 1024].
    #[arg(long, value_name = "REQUESTS", help_heading = "Limits")]
    pub limit_in_flight: Option<String>,

    /// What connections may hold, and for how long.
    #[command(flatten)]
    pub connections: ConnectionFlags,

    /// What replicas share.
    #[command(flatten)]
    pub stores: StoreFlags,

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

    /// Where spans of requests go.
    #[command(flatten)]
    pub tracing: TracingFlags,
}

/// As they may be [shown](ShownFlags).
impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", ShownFlags::new(self))
    }
}

/// `-v`, `-v=false`: what Go's `strconv.ParseBool` takes, and the empty value.
pub(crate) fn go_bool(value: &str) -> Result<bool, &'static str> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(false),
        _ => Err("this is neither true nor false"),
    }
}
