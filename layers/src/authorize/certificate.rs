//! An authorizer that takes the identity from a client certificate: the subject's O is the account, its CN the cluster, as in
//! rhelemeter-server.
//!
//! Whoever terminates TLS verifies the chain, reads the subject once a connection with [`ClientCertificate::from_der`], and puts
//! it into the extensions of each request: as `Arc<ClientCertificate>`, or as the [`CertificateError`] where it cannot be read.
//! A connection may outlive its certificate, so the end of that is looked at with each request.
//!
//! ```
//! use infogw_layers::authorize::{AuthorizeLayer, Authorized, Identity};
//! use infogw_layers::authorize::certificate::{CertificateAuthorizer, ClientCertificate, VerifiedCertificate};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let key = rcgen::KeyPair::generate()?;
//! # let mut params = rcgen::CertificateParams::default();
//! # params.distinguished_name.push(rcgen::DnType::OrganizationName, "1234567");
//! # params.distinguished_name.push(rcgen::DnType::CommonName, "c1");
//! # let der = params.self_signed(&key)?.der().to_vec();
//! let service = ServiceBuilder::new()
//!     .layer(AuthorizeLayer::new(VerifiedCertificate, CertificateAuthorizer::new()))
//!     .service(service_fn(async |request: http::Request<()>| {
//!         let who = request.extensions().get::<Authorized<Identity>>().unwrap();
//!         Ok::<_, std::convert::Infallible>(format!("{} of {:?}", who.cluster, who.account))
//!     }));
//! // In real life `der` is what rustls verified: the first of `peer_certificates()`.
//! let certificate = Arc::new(ClientCertificate::from_der(&der)?);
//! let request = http::Request::post("/").extension(certificate).body(())?;
//! assert_eq!(service.oneshot(request).await?, r#"c1 of Some("1234567")"#);
//! # Ok(()) }
//! ```

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Request, header};
use tower_service::Service;
use x509_parser::{
    certificate::X509CertificateParser,
    nom::Parser as _,
    x509::{AttributeTypeAndValue, X509Name},
};

use super::{ClusterId, CredentialSource, Identity};
use crate::{
    clock::{Clock, SystemClock},
    rejection::{Reason, Rejection},
};

/// The largest certificate that is read, in bytes.
const LARGEST: usize = 64 * 1024;
/// The longest organization, in bytes. RFC 5280 has 64 characters.
const LONGEST_ORGANIZATION: usize = 256;

/// Who a client certificate is for, the parts of its subject that make an identity, and until when. That the certificate was
/// verified is for the maker of this to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    organization: Option<Arc<str>>,
    common_name: ClusterId,
    expires_at: Option<SystemTime>,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is not the DER of an X.509 certificate, or over 64 KiB.
    #[error("the client certificate cannot be read")]
    Malformed,
    /// The subject has no CN.
    #[error("the client certificate's subject has no common name (CN); it must be the cluster's id")]
    NoCommonName,
    /// The subject has several CN, or several O: two readers may each take another one.
    #[error("the client certificate's subject has more than one CN or O; give it one of each")]
    Ambiguous,
    /// The CN is no cluster id, or the O is over 256 bytes or holds control characters; or one of them is not a PrintableString or
    /// UTF8String, as RFC 5280 has it.
    #[error("the client certificate's CN or O is not 1 to 256 bytes of plain text without control characters")]
    Unfit,
}

impl From<CertificateError> for Rejection {
    fn from(error: CertificateError) -> Self {
        Rejection::new(Reason::ClientInfo, error.to_string())
    }
}

impl ClientCertificate {
    /// Reads subject and end of the certificate `der`. Nothing is verified here.
    ///
    /// # Errors
    /// [`CertificateError`]. None of them holds any of the input.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > LARGEST {
            return Err(CertificateError::Malformed);
        }
        let parsed = X509CertificateParser::new().with_deep_parse_extensions(false).parse(der);
        match parsed {
            Ok(([], certificate)) => {
                let expires_at = end(certificate.validity().not_after.timestamp());
                Ok(ClientCertificate { expires_at, ..Self::from_name(certificate.subject())? })
            }
            _ => Err(CertificateError::Malformed),
        }
    }

    fn from_name(subject: &X509Name<'_>) -> Result<Self, CertificateError> {
        let common_name = only(subject.iter_common_name())?.ok_or(CertificateError::NoCommonName)?;
        Self::new(only(subject.iter_organization())?, common_name)
    }

    /// A certificate for `common_name`, of `organization`; an empty one is none. Nothing is known of its end.
    ///
    /// # Errors
    /// [`CertificateError::NoCommonName`] and [`CertificateError::Unfit`].
    pub fn new(organization: Option<&str>, common_name: &str) -> Result<Self, CertificateError> {
        if common_name.is_empty() {
            return Err(CertificateError::NoCommonName);
        }
        let organization = organization.filter(|organization| !organization.is_empty());
        if organization.is_some_and(|it| it.len() > LONGEST_ORGANIZATION || it.chars().any(char::is_control)) {
            return Err(CertificateError::Unfit);
        }
        let common_name = ClusterId::new(common_name).map_err(|_| CertificateError::Unfit)?;
        Ok(ClientCertificate { organization: organization.map(Arc::from), common_name, expires_at: None })
    }

    /// The subject's O: the account.
    pub fn organization(&self) -> Option<&str> {
        self.organization.as_deref()
    }

    /// The subject's CN: the cluster's id.
    pub fn common_name(&self) -> &ClusterId {
        &self.common_name
    }

    /// The first moment at which it is not valid any more, if its end is known.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

/// Certificates are valid through the second of their notAfter (RFC 5280, section 4.1.2.5). One before 1970 is as good as 1970.
fn end(not_after: i64) -> Option<SystemTime> {
    let not_after = Duration::from_secs(not_after.max(0).unsigned_abs());
    SystemTime::UNIX_EPOCH.checked_add(not_after + Duration::from_secs(1))
}

/// The text of the one attribute there is, if there is any.
fn only<'a>(
    mut attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>,
) -> Result<Option<&'a str>, CertificateError> {
    match (attributes.next(), attributes.next()) {
        (None, _) => Ok(None),
        (Some(attribute), None) => attribute.as_str().map(Some).map_err(|_| CertificateError::Unfit),
        (Some(_), Some(_)) => Err(CertificateError::Ambiguous),
    }
}

/// The certificate that stands in the request's extensions.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifiedCertificate;

impl VerifiedCertificate {
    /// The certificate of `request`, if it came with one.
    ///
    /// # Errors
    /// [`Reason::ClientInfo`] if it came with one that names nobody.
    pub fn find<B>(request: &Request<B>) -> Result<Option<Arc<ClientCertificate>>, Rejection> {
        let extensions = request.extensions();
        match (extensions.get::<CertificateError>(), extensions.get::<Arc<ClientCertificate>>()) {
            (Some(error), _) => Err((*error).into()),
            (None, certificate) => Ok(certificate.cloned()),
        }
    }
}

impl<B> CredentialSource<B> for VerifiedCertificate {
    type Credential = Arc<ClientCertificate>;

    fn credential(&self, request: &Request<B>) -> Result<Arc<ClientCertificate>, Rejection> {
        Self::find(request)?.ok_or_else(|| {
            Rejection::new(
                Reason::Unauthenticated,
                "send this over TLS with a client certificate that names the cluster",
            )
        })
    }
}

/// Takes the identity from a certificate that has not expired. It asks nobody, so there is nothing to cache.
#[derive(Debug, Clone, Copy, Default)]
pub struct CertificateAuthorizer<C = SystemClock> {
    clock: C,
}

impl CertificateAuthorizer {
    /// By the machine's clock.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<C> CertificateAuthorizer<C> {
    /// With another clock.
    #[must_use]
    pub fn clock<D: Clock>(self, clock: D) -> CertificateAuthorizer<D> {
        CertificateAuthorizer { clock }
    }
}

impl<C: Clock> Service<Arc<ClientCertificate>> for CertificateAuthorizer<C> {
    type Response = Arc<Identity>;
    type Error = Rejection;
    type Future = Ready<Result<Arc<Identity>, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, certificate: Arc<ClientCertificate>) -> Self::Future {
        let ClientCertificate { organization: account, common_name, expires_at } = &*certificate;
        let since = expires_at.and_then(|end| self.clock.now().duration_since(end).ok());
        if let Some(since) = since {
            let since = since.as_secs();
            let expired = format!("the client certificate has expired {since} s ago; connect again with a new one");
            let rejection = Rejection::new(Reason::Unauthenticated, expired);
            return ready(Err(rejection.with_header(header::CONNECTION, HeaderValue::from_static("close"))));
        }
        let identity = Identity::of(common_name.clone());
        ready(Ok(Arc::new(Identity { account: account.clone(), expires_at: *expires_at, ..identity })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, date_time_ymd};

    /// A certificate with these subject attributes.
    fn der(subject: Vec<(DnType, DnValue)>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind, value);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn utf8(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn the_subject_names_account_and_cluster() {
        let printable = DnValue::PrintableString("1234567".try_into().unwrap());
        let with_all = der(vec![
            (DnType::CountryName, utf8("US")),
            (DnType::OrganizationName, printable),
            (DnType::OrganizationalUnitName, utf8("u")),
            (DnType::CommonName, utf8("c1/ü, CN=c2")),
        ]);
        let certificate = ClientCertificate::from_der(&with_all).unwrap();
        assert_eq!(certificate.organization(), Some("1234567"));
        assert_eq!(certificate.common_name().as_str(), "c1/ü, CN=c2", "a value is taken as it is");

        for no_account in [vec![], vec![(DnType::OrganizationName, utf8(""))]] {
            let subject = no_account.into_iter().chain([(DnType::CommonName, utf8("c1"))]).collect();
            assert_eq!(ClientCertificate::from_der(&der(subject)).unwrap().organization(), None);
        }
    }

    #[test]
    fn subjects_that_name_nobody_are_refused() {
        let bmp = |text: &str| DnValue::BmpString(text.try_into().unwrap());
        let cn = || (DnType::CommonName, utf8("c1"));
        // rcgen keeps one value of each of its own types.
        let another = |last, text: &str| (DnType::CustomDnType(vec![2, 5, 4, last]), utf8(text));
        let rows = [
            (vec![(DnType::OrganizationName, utf8("o"))], CertificateError::NoCommonName),
            (vec![], CertificateError::NoCommonName),
            (vec![(DnType::CommonName, utf8(""))], CertificateError::NoCommonName),
            (vec![cn(), another(3, "c2")], CertificateError::Ambiguous),
            (vec![cn(), another(3, "c1")], CertificateError::Ambiguous),
            (vec![cn(), another(10, "a"), (DnType::OrganizationName, utf8("b"))], CertificateError::Ambiguous),
            (vec![(DnType::CommonName, utf8("c\n1"))], CertificateError::Unfit),
            (vec![(DnType::CommonName, utf8(&"c".repeat(257)))], CertificateError::Unfit),
            (vec![(DnType::CommonName, bmp("c1"))], CertificateError::Unfit),
            (vec![cn(), (DnType::OrganizationName, utf8("o\u{7}"))], CertificateError::Unfit),
            (vec![cn(), (DnType::OrganizationName, utf8(&"o".repeat(257)))], CertificateError::Unfit),
            (vec![cn(), (DnType::OrganizationName, bmp("o"))], CertificateError::Unfit),
        ];
        for (subject, error) in rows {
            let shown = format!("{subject:?}");
            assert_eq!(ClientCertificate::from_der(&der(subject)), Err(error), "{shown}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let good = der(vec![(DnType::OrganizationName, utf8("o")), (DnType::CommonName, utf8("c1"))]);
        let refused = |der: &[u8]| assert_eq!(ClientCertificate::from_der(der), Err(CertificateError::Malformed));
        for end in 0..good.len() {
            refused(&good[..end]);
        }
        refused(&[&good[..], &[0]].concat());
        refused(&vec![0x30; LARGEST + 1]);
        refused(&vec![0x30; LARGEST]);
        refused(&[0x30, 0x80].repeat(LARGEST / 2));
        // Whatever a broken one is taken for, it is taken for something.
        for at in 0..good.len() {
            for value in [0, 1, 0x1e, 0x30, 0x7f, 0x80, 0x84, 0xa0, 0xff] {
                let mut broken = good.clone();
                broken[at] = value;
                let _ = ClientCertificate::from_der(&broken);
            }
        }
    }

    #[tokio::test]
    async fn an_expired_one_is_refused() {
        let certificate = |year, seconds| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "c1");
            params.not_after = date_time_ymd(year, 1, 1) + Duration::from_secs(seconds);
            let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            Arc::new(ClientCertificate::from_der(der.der()).unwrap())
        };
        let clock = ManualClock::new();
        let mut authorizer = CertificateAuthorizer::new().clock(clock.clone());
        let ten_seconds = certificate(2026, 10);
        let identity = authorizer.call(Arc::clone(&ten_seconds)).await.unwrap();
        assert_eq!(identity.expires_at, Some(clock.now() + Duration::from_secs(11)), "the last second counts");
        clock.advance(Duration::from_millis(10_999));
        authorizer.call(Arc::clone(&ten_seconds)).await.unwrap();
        clock.advance(Duration::from_millis(1));
        for expired in [ten_seconds, certificate(1960, 0)] {
            let refused = authorizer.call(expired).await.unwrap_err();
            assert_eq!((refused.status().as_u16(), refused.reason()), (401, Reason::Unauthenticated));
            assert_eq!(refused.header(), Some(&(header::CONNECTION, HeaderValue::from_static("close"))));
        }
        // What a balancer says of one has no end.
        let told = Arc::new(ClientCertificate::new(None, "c1").unwrap());
        assert_eq!(authorizer.call(told).await.unwrap().expires_at, None);
    }

    #[test]
    fn without_a_certificate_there_is_no_identity() {
        let request = Request::new(());
        assert_eq!(VerifiedCertificate.credential(&request).unwrap_err().status(), 401);
        let request = Request::builder().extension(CertificateError::Ambiguous).body(()).unwrap();
        let rejection = VerifiedCertificate.credential(&request).unwrap_err();
        assert_eq!((rejection.status().as_u16(), rejection.reason()), (403, Reason::ClientInfo));
        assert!(rejection.detail().contains("more than one CN"), "{rejection}");
    }
}
