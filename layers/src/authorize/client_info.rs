//! A client certificate's subject in headers that a TLS-terminating balancer sets, as rhelemeter-server takes it.
//!
//! The balancer verifies the client's certificate and proves itself with a shared secret. What it says goes to the same
//! [authorizer](super::certificate::CertificateAuthorizer) as a certificate of our own listener's.
//!
//! ```
//! use infogw_layers::authorize::{AuthorizeLayer, Authorized, Identity, certificate::CertificateAuthorizer};
//! use infogw_layers::authorize::client_info::{ClientInfo, ClientInfoHeaders};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let json = br#"{"secret": "s3cret", "config": {"secret_header": "x-secret", "common_name_header": "x-common-name"}}"#;
//! let service = ServiceBuilder::new()
//!     .layer(AuthorizeLayer::new(ClientInfoHeaders::new(ClientInfo::from_json(json)?), CertificateAuthorizer::new()))
//!     .service(service_fn(async |request: http::Request<()>| {
//!         let who = request.extensions().get::<Authorized<Identity>>().unwrap();
//!         Ok::<_, std::convert::Infallible>(format!("{} of {:?}", who.cluster, who.account))
//!     }));
//! let request = http::Request::post("/").header("x-secret", "s3cret").header("x-common-name", "/O=1234567/CN=c1").body(())?;
//! assert_eq!(service.oneshot(request).await?, r#"c1 of Some("1234567")"#);
//! # Ok(()) }
//! ```

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use serde::Deserialize;

use super::{
    CredentialSource, Secret,
    certificate::{CertificateError, ClientCertificate},
};
use crate::rejection::{Reason, Rejection};

/// How a balancer proves itself, and where it says whom it speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientInfo {
    secret: Secret,
    secret_header: HeaderName,
    common_name_header: HeaderName,
}

/// What is wrong with the JSON. It never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientInfoError {
    /// It does not parse, or something in it is of another type.
    #[error(
        "line {line}, column {column}: this is not {{\"secret\":…,\"config\":{{\"secret_header\":…,\"common_name_header\":…}}}}"
    )]
    Json {
        /// From 1 up.
        line: usize,
        /// From 1 up, in bytes.
        column: usize,
    },
    /// Something that must be there is not, or is empty.
    #[error("{0} must be set")]
    Unset(&'static str),
    /// It is not the name of a header.
    #[error("{0} is not the name of a header")]
    HeaderName(&'static str),
    /// The secret cannot arrive in a header as it is.
    #[error("secret cannot stand in a header: it is not plain ASCII, or begins or ends with white space")]
    Secret,
    /// Both headers are the same one.
    #[error("secret_header and common_name_header are the same")]
    SameHeader,
}

impl ClientInfo {
    /// Reads rhelemeter-server's `--client-info-data-file`: `secret`, `config.secret_header`, `config.common_name_header`. Other keys,
    /// such as `config.issuer_header`, are ignored, as there.
    ///
    /// # Errors
    /// [`ClientInfoError`].
    pub fn from_json(json: &[u8]) -> Result<Self, ClientInfoError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            secret: String,
            #[serde(default)]
            config: Headers,
        }
        #[derive(Deserialize, Default)]
        struct Headers {
            #[serde(default)]
            secret_header: String,
            #[serde(default)]
            common_name_header: String,
        }
        // serde's own message may quote what it found.
        let File { secret, config } = serde_json::from_slice(json)
            .map_err(|error| ClientInfoError::Json { line: error.line(), column: error.column() })?;
        let header = |key, value: &str| match value {
            "" => Err(ClientInfoError::Unset(key)),
            _ => HeaderName::try_from(value).map_err(|_| ClientInfoError::HeaderName(key)),
        };
        let secret_header = header("secret_header", &config.secret_header)?;
        let common_name_header = header("common_name_header", &config.common_name_header)?;
        if secret_header == common_name_header {
            return Err(ClientInfoError::SameHeader);
        }
        if secret.is_empty() {
            return Err(ClientInfoError::Unset("secret"));
        }
        if HeaderValue::from_str(&secret).is_err() || secret.trim() != secret || !secret.is_ascii() {
            return Err(ClientInfoError::Secret);
        }
        Ok(ClientInfo { secret: Secret::new(secret), secret_header, common_name_header })
    }

    fn certificate(&self, headers: &HeaderMap) -> Result<ClientCertificate, Rejection> {
        let ClientInfo { secret, secret_header, common_name_header } = self;
        let given = only(headers, secret_header)?
            .ok_or_else(|| refuse(format!("the secret must be sent in header `{secret_header}`")))?;
        // Takes as long whatever they differ in, save their lengths.
        verify_slices_are_equal(given, secret.expose().as_bytes())
            .map_err(|_| refuse(format!("the secret in header `{secret_header}` is wrong")))?;
        let subject = only(headers, common_name_header)?.ok_or_else(|| {
            refuse(format!("the subject of the client's certificate must be sent in header `{common_name_header}`"))
        })?;
        let subject = std::str::from_utf8(subject).map_err(|_| SubjectError::Shape).and_then(|text| text.parse());
        let subject: Subject = subject.map_err(|error| refuse(format!("header `{common_name_header}`: {error}")))?;
        Ok(subject.0)
    }
}

/// The value of the one header of this name. An empty one is none.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h [u8]>, Rejection> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(HeaderValue::as_bytes).filter(|value| !value.is_empty())),
        // Which of them counts would be anyone's guess.
        (_, Some(_)) => Err(refuse(format!("header `{name}` must be sent once"))),
    }
}

fn refuse(detail: String) -> Rejection {
    Rejection::new(Reason::ClientInfo, detail)
}

/// The certificate whose subject stands in the headers that a [`ClientInfo`] names; 403 with [`Reason::ClientInfo`] where the secret or
/// the subject is missing, wrong, or there twice.
///
/// A subject is `/O=ACCOUNT/CN=CLUSTER`, as OpenSSL prints it on one line, or `/O = ACCOUNT, /CN = CLUSTER`. The CN comes last and is of
/// letters, digits and dashes, as in rhelemeter-server; the O may be missing; other attributes are ignored. Repeated CN or O are refused.
///
/// Clones share the `ClientInfo`, which can be replaced while requests pass.
#[derive(Debug, Clone)]
pub struct ClientInfoHeaders(Arc<ArcSwap<ClientInfo>>);

impl ClientInfoHeaders {
    /// Believes what `info` says.
    pub fn new(info: ClientInfo) -> Self {
        ClientInfoHeaders(Arc::new(ArcSwap::from_pointee(info)))
    }

    /// Believes what `info` says from now on. Returns whether that is anything new.
    pub fn replace(&self, info: ClientInfo) -> bool {
        let new = **self.0.load() != info;
        if new {
            self.0.store(Arc::new(info));
        }
        new
    }

    /// Whether `headers` hold a secret, right or wrong: whether their sender says that it is a balancer.
    pub fn are_in(&self, headers: &HeaderMap) -> bool {
        headers.contains_key(&self.0.load().secret_header)
    }
}

impl<B> CredentialSource<B> for ClientInfoHeaders {
    type Credential = Arc<ClientCertificate>;

    fn credential(&self, request: &Request<B>) -> Result<Arc<ClientCertificate>, Rejection> {
        self.0.load().certificate(request.headers()).map(Arc::new)
    }
}

/// A subject in one line.
#[derive(Debug, PartialEq, Eq)]
struct Subject(ClientCertificate);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum SubjectError {
    #[error("the subject must be like `/O=ACCOUNT/CN=CLUSTER` and end with a CN of letters, digits and dashes")]
    Shape,
    #[error("the subject has more than one CN or O")]
    Ambiguous,
    #[error("the subject's CN or O is over 256 bytes or holds control characters or slashes")]
    Unfit,
}

impl std::str::FromStr for Subject {
    type Err = SubjectError;

    fn from_str(line: &str) -> Result<Self, SubjectError> {
        let attributes = line.strip_prefix('/').ok_or(SubjectError::Shape)?;
        let (mut organization, mut common_name) = (None, None);
        let mut rest = attributes.split('/').peekable();
        while let Some(attribute) = rest.next() {
            // `/O = 1234567, /CN = ...`: the comma parts it from the next.
            let attribute = attribute.trim_matches(' ');
            let attribute =
                if rest.peek().is_some() { attribute.strip_suffix(',').unwrap_or(attribute) } else { attribute };
            // Without a `=` it is the rest of a value that holds slashes.
            let slashed = rest.next_if(|next| !next.contains('=')).is_some();
            while rest.next_if(|next| !next.contains('=')).is_some() {}
            let (name, value) = attribute.split_once('=').ok_or(SubjectError::Shape)?;
            let slot = match name.trim_matches(' ') {
                "O" => &mut organization,
                "CN" => &mut common_name,
                _ => continue,
            };
            if slashed {
                return Err(SubjectError::Unfit);
            }
            let last = rest.peek().is_none();
            if slot.replace((value.trim_matches(' '), last)).is_some() {
                return Err(SubjectError::Ambiguous);
            }
        }
        let common_name = match common_name {
            Some((name, true)) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => name,
            _ => return Err(SubjectError::Shape),
        };
        let organization = organization.map(|(organization, _)| organization);
        ClientCertificate::new(organization, common_name).map(Subject).map_err(|error| match error {
            CertificateError::NoCommonName => SubjectError::Shape,
            _ => SubjectError::Unfit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(subject: &str) -> Result<(Option<String>, String), SubjectError> {
        let Subject(certificate) = subject.parse()?;
        Ok((certificate.organization().map(str::to_owned), certificate.common_name().to_string()))
    }

    #[test]
    fn subjects_are_read_as_openssl_and_the_manual_write_them() {
        let account = |name: &str| Some(name.to_owned());
        for (subject, organization, common_name) in [
            ("/O=test-O/CN=test-CN", account("test-O"), "test-CN"),
            (
                "/O = 1234567, /CN = 1234567-9b7c-48f6-8d5b-7654321",
                account("1234567"),
                "1234567-9b7c-48f6-8d5b-7654321",
            ),
            ("/O= 1 , /CN =c1", account("1"), "c1"),
            ("/CN=c1", None, "c1"),
            ("/O=/CN=c1", None, "c1"),
            ("/C=US/ST=NC/O=Red Hat, Inc./OU=R/D/emailAddress=a@b/CN=c1", account("Red Hat, Inc."), "c1"),
            ("/O=a=b/CN=c1", account("a=b"), "c1"),
            ("/OU=x/O=1/OU=y/CN=c1", account("1"), "c1"),
        ] {
            assert_eq!(read(subject), Ok((organization, common_name.to_owned())), "{subject}");
        }
    }

    #[test]
    fn subjects_that_are_ambiguous_or_name_nobody_are_refused() {
        for (error, subjects) in [
            (
                SubjectError::Shape,
                &[
                    "invalid",
                    "/",
                    "//",
                    "",
                    "/O=1",
                    "/O=1/CN=",
                    "O=1/CN=c1",
                    "CN=c0/O=1/CN=c1",
                    "CN=c1,O=1",
                    "/CN=c1/O=1",
                    "/CN=c1/OU=x",
                    "/O=1/CN=c1,",
                    "/O=1/CN=c 1",
                    "/O=1/CN=c.1",
                    "/O=1/CN=c1, O=2",
                    "/O=1/CN=ü",
                    "/O=1/cn=c1",
                    "/O=1,CN=c1",
                    "/O=1/CN=c1=c2",
                ][..],
            ),
            (
                SubjectError::Ambiguous,
                &["/O=1/CN=c1/CN=c2", "/O=1/CN=c1/CN=c1", "/O=1/O=2/CN=c1", "/CN=c2/O=1/CN=c1", "/O=1, /O = 1, /CN=c1"],
            ),
            (
                SubjectError::Unfit,
                &["/O=a/b/CN=c1", "/O=a//CN=c1", "/O=a\tb/CN=c1", "/O=1/CN=c1/c2", "/O=1/CN=c1/", "/O=1/CN"],
            ),
        ] {
            for subject in subjects {
                assert_eq!(read(subject), Err(error), "{subject}");
            }
        }
        assert_eq!(read(&format!("/O={}/CN=c1", "o".repeat(257))), Err(SubjectError::Unfit));
        assert_eq!(read(&format!("/CN={}", "c".repeat(257))), Err(SubjectError::Unfit));
        assert_eq!(read(&format!("{}CN=c1", "/".repeat(60_000))), Err(SubjectError::Shape));
    }

    #[test]
    fn the_file_is_rhelemeters() {
        let full = br#"{"secret":"a b,c","config":{"secret_header":"X-Secret","common_name_header":"x-cn","issuer_header":"x-i"},"more":[]}"#;
        let info = ClientInfo::from_json(full).unwrap();
        assert_eq!(
            (info.secret.expose(), info.secret_header.as_str(), info.common_name_header.as_str()),
            ("a b,c", "x-secret", "x-cn")
        );
        assert!(!format!("{info:?}").contains("a b,c"));

        for (json, says) in [
            (r#"{}"#, "secret_header must be set"),
            (r#"{"secret":"s3cret"}"#, "secret_header must be set"),
            (r#"{"secret":"s3cret","config":{"secret_header":"x-s"}}"#, "common_name_header must be set"),
            (r#"{"config":{"secret_header":"x-s","common_name_header":"x-c"}}"#, "secret must be set"),
            (r#"{"secret":"","config":{"secret_header":"x-s","common_name_header":"x-c"}}"#, "secret must be set"),
            (
                r#"{"secret":"s3cret\n","config":{"secret_header":"x-s","common_name_header":"x-c"}}"#,
                "secret cannot stand",
            ),
            (
                r#"{"secret":" s3cret","config":{"secret_header":"x-s","common_name_header":"x-c"}}"#,
                "secret cannot stand",
            ),
            (
                r#"{"secret":"s3crét","config":{"secret_header":"x-s","common_name_header":"x-c"}}"#,
                "secret cannot stand",
            ),
            (
                r#"{"secret":"s3cret","config":{"secret_header":"x s","common_name_header":"x-c"}}"#,
                "secret_header is not",
            ),
            (r#"{"secret":"s3cret","config":{"secret_header":"x-s","common_name_header":"X-S"}}"#, "are the same"),
            ("{\n \"secret\": 7}", "line 2, column 12: this is not"),
            (r#"{"secret":"s3cret","secret":"s3cret2"}"#, "line 1"),
            (r#"{"config":"s3cret"}"#, "line 1"),
            ("s3cret", "line 1"),
            ("", "line 1"),
        ] {
            let error = ClientInfo::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("s3cr"), "{json}: {error}");
        }
    }

    #[test]
    fn headers_can_be_replaced_while_requests_pass() {
        let json = |secret: &str| {
            format!(r#"{{"secret":"{secret}","config":{{"secret_header":"x-s","common_name_header":"x-cn"}}}}"#)
        };
        let info = |secret: &str| ClientInfo::from_json(json(secret).as_bytes()).unwrap();
        let headers = ClientInfoHeaders::new(info("one"));
        let sent = |secret: &str| {
            let request = Request::builder().header("x-s", secret).header("x-cn", "/CN=c1").body(()).unwrap();
            headers.credential(&request).is_ok()
        };
        assert!(sent("one") && !sent("two") && !sent("on") && !sent("ones"));
        assert!(!headers.clone().replace(info("one")));
        assert!(headers.clone().replace(info("two")));
        assert!(sent("two") && !sent("one"));
    }
}
