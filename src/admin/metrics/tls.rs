//! Certificates and handshakes.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};
use rustls::pki_types::UnixTime;

use super::register;

/// Metrics of TLS.
#[derive(Debug)]
pub struct TlsMetrics {
    expiry: IntGaugeVec,
    reloads: IntCounterVec,
    handshake_failures: IntCounterVec,
}

impl TlsMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expiry = Opts::new(
            "infogw_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in seconds since 1970: a listener's, or what a client of ours shows.",
        );
        let reloads = Opts::new(
            "infogw_certificate_reloads_total",
            "Changes of a listener's or a client's TLS files, taken over (success) or found broken (error).",
        );
        let handshake_failures = Opts::new(
            "infogw_tls_handshake_failures_total",
            "Connections that were no more than a failed TLS handshake, by listener.",
        );
        Ok(TlsMetrics {
            expiry: register(registry, IntGaugeVec::new(expiry, &["certificate"])?)?,
            reloads: register(registry, IntCounterVec::new(reloads, &["certificate", "result"])?)?,
            handshake_failures: register(registry, IntCounterVec::new(handshake_failures, &["listener"])?)?,
        })
    }

    /// Handles for a listener's or a client's certificate.
    pub fn certificate(&self, name: &'static str) -> CertificateMetrics {
        let reloads = ["success", "error"].map(|result| self.reloads.with_label_values(&[name, result]));
        CertificateMetrics { name, expiry: self.expiry.clone(), reloads }
    }

    /// Counts connections of a listener that fail in the handshake.
    pub fn handshake_failures(&self, listener: &'static str) -> IntCounter {
        self.handshake_failures.with_label_values(&[listener])
    }
}

/// One certificate's handles.
#[derive(Debug)]
pub struct CertificateMetrics {
    name: &'static str,
    /// By name, when it is known: without a certificate there is none to end.
    expiry: IntGaugeVec,
    /// Success, error.
    reloads: [IntCounter; 2],
}

impl CertificateMetrics {
    /// The certificate in use ends then.
    pub fn expires(&self, not_after: UnixTime) {
        self.expiry.with_label_values(&[self.name]).set(not_after.as_secs().cast_signed());
    }

    /// Changed files were taken over.
    pub fn reloaded(&self) {
        self.reloads[0].inc();
    }

    /// Changed files were broken.
    pub fn not_reloaded(&self) {
        self.reloads[1].inc();
    }
}
