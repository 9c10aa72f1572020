//! How long what the authorizer said is kept.

use std::time::Duration;

use clap::Args;
use infogw_layers::authorize::cache::CacheConfig;

use super::{ConfigError, duration, given, number, wrong};

/// The flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Identity")]
pub struct AuthorizationFlags {
    /// How long a grant of the authorizer is kept; it is asked for again before that [default: 1h].
    #[arg(long, value_name = "DURATION")]
    pub authorize_cache_ttl: Option<String>,
    /// How long a refusal of the authorizer is kept; 0 keeps none [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub authorize_cache_refusal_ttl: Option<String>,
    /// How long an expired grant serves on while the authorizer is down; 0 turns it off [default: 24h].
    #[arg(long, value_name = "DURATION")]
    pub authorize_cache_grace: Option<String>,
    /// Memory for the authorizer's grants, and as much for verified upload tokens; a cluster takes about 410 bytes [default: 419430400].
    #[arg(long, value_name = "BYTES")]
    pub authorize_cache_bytes: Option<String>,
}

impl AuthorizationFlags {
    /// The cache that they ask for. Whether replicas share it, other flags say.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn parse(self) -> Result<CacheConfig, ConfigError> {
        let defaults = CacheConfig::default();
        let duration = |flag: &str, value, default| match given(value) {
            None => Ok(default),
            Some(value) => duration::parse(&value).map_err(|error| ConfigError(format!("{flag}: {error}"))),
        };
        let grant_life = duration("--authorize-cache-ttl", self.authorize_cache_ttl, defaults.grant_life)?;
        if grant_life < Duration::from_secs(1) {
            return wrong!("--authorize-cache-ttl: a grant is kept for 1s at least");
        }
        let max_bytes =
            number("--authorize-cache-bytes", self.authorize_cache_bytes, defaults.max_bytes as usize)? as u64;
        if max_bytes < 1 << 20 {
            return wrong!("--authorize-cache-bytes: at least 1048576 bytes");
        }
        Ok(CacheConfig {
            grant_life,
            refusal_life: duration(
                "--authorize-cache-refusal-ttl",
                self.authorize_cache_refusal_ttl,
                defaults.refusal_life,
            )?,
            grace: duration("--authorize-cache-grace", self.authorize_cache_grace, defaults.grace)?,
            max_bytes,
            ..defaults
        })
    }
}
