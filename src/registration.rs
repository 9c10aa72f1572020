//! `POST /authorize`: a cluster registers and gets a token.

use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header, request::Parts};
use http_body_util::Full;
use infogw_layers::{
    authorize::{
        Authorized, BearerToken, ClusterCredential, ClusterId, CredentialSource, Identity,
        jwt::{SignError, TokenSigner},
    },
    clock::{Clock, SystemClock},
    decode::{DecodeError, Decoder},
    describe::{Describe, Row},
    policy::Terms,
    rejection::{Reason, Rejection},
};
use tower::Service;

/// Which cluster wants to register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its id.
    pub cluster: ClusterId,
}

/// Reads the cluster's id from the query or a url-encoded form, as Go's `ParseForm` does: the form's wins.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistrationDecoder;

/// What the head says: the id in the query, and whether the body is a form.
#[derive(Debug)]
pub struct Form {
    query: Option<String>,
    form: bool,
}

impl Decoder for RegistrationDecoder {
    type Payload = Registration;
    type Format = Form;
    const REASONS: &'static [Reason] = &[Reason::Malformed];

    fn negotiate(&self, head: &Parts) -> Result<Form, DecodeError> {
        let content_type =
            head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        Ok(Form {
            query: head.uri.query().and_then(|query| id_in(query.as_bytes())),
            form: essence.eq_ignore_ascii_case("application/x-www-form-urlencoded"),
        })
    }

    fn body_limit(&self, _: &Form) -> usize {
        4096
    }

    fn decode(&self, Form { query, form }: Form, body: Bytes) -> Result<Registration, DecodeError> {
        let id = if form { id_in(&body).or(query) } else { query };
        let id = id.filter(|id| !id.is_empty()).ok_or_else(|| {
            DecodeError::Malformed("send the cluster's id as `id`, in the query or a url-encoded form".to_owned())
        })?;
        let cluster =
            ClusterId::new(&id).map_err(|error| DecodeError::Malformed(format!("`id` is no cluster id: {error}")))?;
        Ok(Registration { cluster })
    }
}

fn id_in(form: &[u8]) -> Option<String> {
    form_urlencoded::parse(form).find(|(key, _)| key == "id").map(|(_, id)| id.into_owned())
}

/// The bearer token of a cluster that names itself in the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegistrationCredential;

impl CredentialSource<Registration> for RegistrationCredential {
    type Credential = ClusterCredential;

    fn credential(&self, request: &Request<Registration>) -> Result<ClusterCredential, Rejection> {
        let token = BearerToken.credential(request)?;
        Ok(ClusterCredential::registration(request.body().cluster.clone(), &token))
    }
}

const NAME: &str = "IssueToken";

/// Issues a token to a cluster that was authorized.
#[derive(Debug, Clone)]
pub struct IssueToken {
    inner: Arc<Issuer>,
}

#[derive(Debug)]
struct Issuer {
    signer: TokenSigner,
    lifetime: Duration,
    partition_label: String,
}

impl IssueToken {
    /// Tokens by `signer` that live for `lifetime`, and bind series to the cluster by `partition_label`, and to the labels that the
    /// request's [`Terms`] name.
    pub fn new(signer: TokenSigner, lifetime: Duration, partition_label: String) -> Self {
        IssueToken { inner: Arc::new(Issuer { signer, lifetime, partition_label }) }
    }
}

/// The answer, telemeter's `TokenResponse`.
#[derive(serde::Serialize)]
struct TokenResponse<'a> {
    version: u32,
    token: String,
    #[serde(rename = "expiresInSeconds")]
    expires_in_seconds: u64,
    labels: &'a BTreeMap<String, String>,
}

impl Issuer {
    fn issue(&self, identity: &Identity, terms: &Terms) -> Result<Response<Full<Bytes>>, Rejection> {
        let account =
            identity.account.as_deref().ok_or_else(|| Rejection::internal("the authorizer named no account"))?;
        let owned = |(name, value): &(Box<str>, Box<str>)| (name.to_string(), value.to_string());
        let mut labels: BTreeMap<_, _> = terms.token_labels.iter().map(owned).collect();
        labels.insert(self.partition_label.clone(), identity.cluster.to_string());
        let token =
            self.signer.sign(account, &labels, self.lifetime, SystemClock.now()).map_err(|error| match error {
                SignError::TooLong => Rejection::new(Reason::Malformed, error.to_string()),
                _ => Rejection::internal("the token could not be signed"),
            })?;
        let answer = TokenResponse { version: 1, token, expires_in_seconds: self.lifetime.as_secs(), labels: &labels };
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&answer).unwrap_or_default();
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

impl Service<Request<Registration>> for IssueToken {
    type Response = Response<Full<Bytes>>;
    type Error = Rejection;
    type Future = Ready<Result<Response<Full<Bytes>>, Rejection>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejection>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Registration>) -> Self::Future {
        let extensions = request.extensions();
        ready(match (extensions.get::<Authorized<Identity>>(), extensions.get::<Arc<Terms>>()) {
            (Some(identity), Some(terms)) => self.inner.issue(identity, terms).map_err(|rejection| rejection.by(NAME)),
            _ => Err(Rejection::internal("nobody was authorized for this request").by(NAME)),
        })
    }
}

impl Describe<Request<Registration>> for IssueToken {
    fn describe(rows: &mut Vec<Row>) {
        rows.push(Row::new::<Request<Registration>>(NAME, &[Reason::Malformed, Reason::Internal]));
    }
}
