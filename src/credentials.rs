//! The gateway's own token, which both neighbours are shown: one for all, from the issuer that flags name.

use std::sync::atomic::{AtomicBool, Ordering};

use infogw_layers::{
    client::ApiClient,
    client_credentials::{ClientCredentials, TokenEvent, TokenSource},
    clock::SystemClock,
    observe::{Exchange, Observe, ObserveLayer},
};
use tower::ServiceBuilder;

use crate::{admin::metrics::OidcMetrics, config::Oidc, traces::Traces};

/// Begins to get tokens, and tells `requests` of what that takes. The issuer need not be up.
pub fn token_source(
    oidc: &Oidc,
    client: impl ApiClient,
    requests: impl for<'a> Observe<Exchange<'a>> + Clone + Send + Sync + 'static,
    traces: &Traces,
    metrics: OidcMetrics,
) -> TokenSource {
    let client =
        ServiceBuilder::new().layer(ObserveLayer::new(requests)).option_layer(traces.client("oauth")).service(client);
    let issuer =
        ClientCredentials::new(client, oidc.issuer.clone(), oidc.client_id.as_str(), oidc.client_secret.clone());
    let issuer = match &oidc.audience {
        Some(audience) => issuer.audience(audience.as_str()),
        None => issuer,
    };
    TokenSource::spawn(
        issuer,
        SystemClock,
        Log { issuer: oidc.issuer.as_str().to_owned(), calm: false.into(), metrics },
    )
}

/// Counts and logs.
struct Log {
    issuer: String,
    /// The last attempt gave a token.
    calm: AtomicBool,
    metrics: OidcMetrics,
}

impl Observe<TokenEvent<'_>> for Log {
    fn observe(&self, event: &TokenEvent<'_>) {
        self.metrics.observe(event);
        let issuer = &self.issuer;
        match event {
            TokenEvent::Issued { expires_at, .. } => {
                let expires = humantime::format_rfc3339_seconds(*expires_at);
                // What happens all the time is not told all the time.
                if self.calm.swap(true, Ordering::Relaxed) {
                    tracing::debug!(issuer, %expires, "got a new token");
                } else {
                    tracing::info!(issuer, %expires, "got a token to show to authorizer and upstream");
                }
            }
            TokenEvent::Failed { error, retry_in } => {
                self.calm.store(false, Ordering::Relaxed);
                tracing::warn!(issuer, %error, ?retry_in, "no new token to show to authorizer and upstream");
            }
            _ => {}
        }
    }
}
