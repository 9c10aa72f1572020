//! The token that authorizer and upstream are shown.

use std::time::{SystemTime, UNIX_EPOCH};

use infogw_layers::{client_credentials::TokenEvent, observe::Observe};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{Metrics, each, register};

/// Handles for the token's metrics.
#[derive(Debug, Clone)]
pub struct OidcMetrics {
    issued_at: IntGauge,
    expires_at: IntGauge,
    /// Success, error.
    refreshes: [IntCounter; 2],
}

impl Metrics {
    /// Registers the token's metrics. Only where there is an issuer: an expiry of 0 says that there is no token.
    ///
    /// # Errors
    /// If this was called before.
    pub fn oidc(&self) -> Result<OidcMetrics, prometheus::Error> {
        OidcMetrics::new(&self.registry)
    }
}

impl OidcMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        Ok(OidcMetrics {
            issued_at: gauge(
                "infogw_oidc_token_issued_timestamp_seconds",
                "When the token shown to authorizer and upstream was asked for; 0 while there was none.",
            )?,
            expires_at: gauge(
                "infogw_oidc_token_expiry_timestamp_seconds",
                "When the token shown to authorizer and upstream expires; 0 while there was none.",
            )?,
            refreshes: each(
                &register(
                    registry,
                    IntCounterVec::new(
                        Opts::new("infogw_oidc_token_refreshes_total", "Attempts to get a token from the OIDC issuer."),
                        &["result"],
                    )?,
                )?,
                ["success", "error"],
            ),
        })
    }
}

impl Observe<TokenEvent<'_>> for OidcMetrics {
    fn observe(&self, event: &TokenEvent<'_>) {
        let [success, error] = &self.refreshes;
        match event {
            TokenEvent::Issued { issued_at, expires_at } => {
                success.inc();
                self.issued_at.set(seconds(*issued_at));
                self.expires_at.set(seconds(*expires_at));
            }
            TokenEvent::Failed { .. } => error.inc(),
            _ => {}
        }
    }
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
