//! Who sends remote write: a certificate says so, a balancer's headers, or a token.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use infogw_layers::{
    authorize::{
        ClusterCredential, CompositeToken, CredentialSource, Identity,
        certificate::{CertificateAuthorizer, ClientCertificate, VerifiedCertificate},
        client_info::ClientInfoHeaders,
    },
    observe::Observe,
    rejection::Rejection,
};
use tower::{Service, ServiceExt as _};

use crate::config::{Authorizer, ClientInfoFile, Config};

/// What said who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A client certificate that the listener verified.
    Certificate,
    /// A balancer's headers.
    Headers,
    /// A cluster's token, which the authorizer was asked about.
    Token,
}

impl Source {
    /// Every one there is.
    pub const ALL: [Source; 3] = [Source::Certificate, Source::Headers, Source::Token];

    /// The name, as metrics spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Source::Certificate => "certificate",
            Source::Headers => "headers",
            Source::Token => "token",
        }
    }
}

/// What a sender shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// Somebody else has verified who it is.
    Verified(Source, Arc<ClientCertificate>),
    /// A token that is still to be verified.
    Token(ClusterCredential),
}

/// Reads who sends a request, in this order: where a request carries a balancer's secret, that must be right and its headers say it,
/// since balancers may have certificates, too; else the connection's certificate, if it has one; else the composite token.
#[derive(Debug, Clone)]
pub struct SenderSource {
    headers: Option<ClientInfoHeaders>,
    tokens: bool,
    /// Names the tenant in logs (`--tenant-key`).
    tenant_key: Option<Arc<str>>,
}

impl SenderSource {
    /// The sources that `config` has.
    pub fn new(config: &Config) -> Self {
        SenderSource {
            headers: config.client_info.as_ref().map(ClientInfoFile::headers).cloned(),
            tokens: config.authorizer != Authorizer::Nobody,
            tenant_key: config.tenant_key.as_deref().map(Arc::from),
        }
    }

    fn token<B>(&self, request: &Request<B>) -> Result<ClusterCredential, Rejection> {
        let credential = CompositeToken.credential(request)?;
        if let Some(key) = &self.tenant_key
            && tracing::enabled!(tracing::Level::DEBUG)
        {
            let tenant = credential.field(key).unwrap_or_default();
            tracing::debug!(tenant, cluster = credential.cluster().as_str(), "receive request");
        }
        Ok(credential)
    }
}

impl<B> CredentialSource<B> for SenderSource {
    type Credential = Sender;

    fn credential(&self, request: &Request<B>) -> Result<Sender, Rejection> {
        let by_headers = |headers: &ClientInfoHeaders| {
            headers.credential(request).map(|certificate| Sender::Verified(Source::Headers, certificate))
        };
        match &self.headers {
            Some(headers) if headers.are_in(request.headers()) => return by_headers(headers),
            _ => {}
        }
        if let Some(certificate) = VerifiedCertificate::find(request)? {
            return Ok(Sender::Verified(Source::Certificate, certificate));
        }
        match &self.headers {
            _ if self.tokens => self.token(request).map(Sender::Token),
            // It is refused for what it lacks.
            Some(headers) => by_headers(headers),
            None => VerifiedCertificate.credential(request).map(|it| Sender::Verified(Source::Certificate, it)),
        }
    }
}

/// The authorizer of [`Sender`]s: it takes what was verified as it is, and asks `tokens` about the rest.
#[derive(Debug, Clone)]
pub struct SenderAuthorizer<A, O> {
    tokens: A,
    observer: O,
}

impl<A, O> SenderAuthorizer<A, O> {
    /// Asks `tokens` about tokens, and tells `observer` what said who it was.
    pub fn new(tokens: A, observer: O) -> Self {
        SenderAuthorizer { tokens, observer }
    }
}

impl<A, O> Service<Sender> for SenderAuthorizer<A, O>
where
    A: Service<ClusterCredential, Response = Arc<Identity>, Error = Rejection> + Clone + Send + 'static,
    A::Future: Send,
    O: Observe<Source> + Clone + Send + 'static,
{
    type Response = Arc<Identity>;
    type Error = Rejection;
    type Future = Pin<Box<dyn Future<Output = Result<Arc<Identity>, Rejection>> + Send>>;

    /// Always ready: a certificate needs nobody to ask.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, sender: Sender) -> Self::Future {
        let SenderAuthorizer { tokens, observer } = self.clone();
        Box::pin(async move {
            let (source, identity) = match sender {
                Sender::Verified(source, certificate) => {
                    (source, CertificateAuthorizer::new().oneshot(certificate).await?)
                }
                Sender::Token(credential) => (Source::Token, tokens.oneshot(credential).await?),
            };
            observer.observe(&source);
            Ok(identity)
        })
    }
}
