use std::{
    error::Error,
    fmt, io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use oauth2::{
    AuthType, ClientId, RequestTokenError, TokenResponse as _, TokenUrl,
    basic::{BasicClient, BasicTokenType},
};
use serde::Deserialize;
use tower::ServiceExt;
use tower_service::Service;

use super::kept::bearer;
use crate::client::ApiClient;
use crate::rejection::{excerpt, repeats};

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// The request to a service that issues tokens: there is but one thing to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenRequest;

/// A token as it was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    pub(super) authorization: HeaderValue,
    pub(super) lifetime: Option<Duration>,
}

impl Issued {
    /// The bearer token `token`, which lives for `lifetime` from when it was asked for; none: the issuer did not say.
    ///
    /// # Errors
    /// [`IssuerError::Malformed`] if the token cannot stand in a header.
    pub fn bearer(token: &str, lifetime: Option<Duration>) -> Result<Self, IssuerError> {
        let authorization =
            bearer(token).map_err(|_| malformed("token", "its `access_token` cannot stand in a header"))?;
        Ok(Issued { authorization, lifetime })
    }
}

/// An issuer's identifier: an `http` or `https` URL without query, fragment and user (OpenID Connect Discovery 1.0, section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl {
    /// As it was written: it is compared letter by letter.
    text: Arc<str>,
    configuration: Uri,
}

/// Not an issuer's identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an issuer is an http:// or https:// URL without user, query and fragment")]
pub struct InvalidIssuer;

impl IssuerUrl {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where its configuration is.
    pub fn configuration(&self) -> &Uri {
        &self.configuration
    }

    fn is_https(&self) -> bool {
        self.configuration.scheme_str() == Some("https")
    }
}

impl FromStr for IssuerUrl {
    type Err = InvalidIssuer;

    fn from_str(text: &str) -> Result<Self, InvalidIssuer> {
        let configuration = format!("{}/.well-known/openid-configuration", text.trim_end_matches('/'));
        let configuration: Uri = configuration.parse().map_err(|_| InvalidIssuer)?;
        let http = matches!(configuration.scheme_str(), Some("http" | "https"));
        let host = configuration.host().is_some_and(|host| !host.is_empty());
        if http && host && !text.contains(['?', '#', '@']) {
            Ok(IssuerUrl { text: text.into(), configuration })
        } else {
            Err(InvalidIssuer)
        }
    }
}

/// What a client proves itself with.
#[derive(Clone)]
pub enum ClientSecret {
    /// The secret itself.
    Value(Arc<str>),
    /// A file that holds it, and perhaps a line end. Read for each token, so that a new secret counts from the next one on.
    File(PathBuf),
}

impl From<&str> for ClientSecret {
    fn from(secret: &str) -> Self {
        ClientSecret::Value(secret.into())
    }
}

impl ClientSecret {
    /// Reads it.
    ///
    /// # Errors
    /// The file's; one that is empty holds none.
    pub async fn read(&self) -> io::Result<String> {
        match self {
            ClientSecret::Value(secret) => Ok(secret.to_string()),
            ClientSecret::File(path) => {
                let text = tokio::fs::read_to_string(path).await?;
                match text.trim_end_matches(['\r', '\n']) {
                    // As when it is being replaced.
                    "" => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")),
                    secret => Ok(secret.to_owned()),
                }
            }
        }
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientSecret::Value(_) => f.write_str("ClientSecret"),
            ClientSecret::File(path) => write!(f, "ClientSecret in {}", path.display()),
        }
    }
}

/// Why there is no token. None of these holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssuerError {
    /// No connection, or it broke.
    #[error("the issuer cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the issuer did not answer within {0:?}")]
    Late(Duration),
    /// More than 64 KiB.
    #[error("the issuer's {0} answer is longer than {LONGEST_ANSWER} bytes")]
    TooLong(&'static str),
    /// A status that means nothing to us; redirects are not followed.
    #[error("the issuer's {0} endpoint answered {status}", status = .1.as_u16())]
    Status(&'static str, StatusCode),
    /// An answer that is not what its specification says.
    #[error("the issuer's {0} answer makes no sense: {1}")]
    Malformed(&'static str, String),
    /// The configuration is another issuer's (OpenID Connect Discovery 1.0, section 4.3).
    #[error("the configuration at `{asked}` is that of `{named}`; the two must be the same to the letter")]
    AnotherIssuer {
        /// Whom we asked.
        asked: String,
        /// Who answered.
        named: String,
    },
    /// The issuer takes no client secret.
    #[error("the issuer takes clients by neither client_secret_basic nor client_secret_post")]
    AuthMethod,
    /// The issuer said no (RFC 6749, section 5.2).
    #[error("the issuer refuses a token: {0}")]
    Refused(String),
    /// The client secret cannot be read.
    #[error("the client secret cannot be read: {0}")]
    Secret(io::Error),
}

fn malformed(answer: &'static str, why: impl Into<String>) -> IssuerError {
    IssuerError::Malformed(answer, why.into())
}

/// Gets tokens by the client-credentials grant (RFC 6749, section 4.4), over the HTTP client `C`.
///
/// The token endpoint and how it wants the secret come from the issuer's configuration (OpenID Connect Discovery 1.0, section 4),
/// which is kept until a grant fails. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientCredentials<C> {
    client: C,
    issuer: IssuerUrl,
    id: Arc<str>,
    secret: ClientSecret,
    audience: Option<Arc<str>>,
    deadline: Duration,
    endpoint: Arc<Mutex<Option<Endpoint>>>,
}

/// What of the configuration counts here.
#[derive(Debug, Clone)]
struct Endpoint {
    url: TokenUrl,
    auth: AuthType,
}

impl<C> ClientCredentials<C> {
    /// Asks `issuer` through `client`, as the client `id`. A token has 20 seconds to come, as in telemeter-server.
    pub fn new(client: C, issuer: IssuerUrl, id: impl Into<Arc<str>>, secret: impl Into<ClientSecret>) -> Self {
        ClientCredentials {
            client,
            issuer,
            id: id.into(),
            secret: secret.into(),
            audience: None,
            deadline: Duration::from_secs(20),
            endpoint: Arc::default(),
        }
    }

    /// Asks for a token for `audience`, a parameter that some issuers want.
    #[must_use]
    pub fn audience(self, audience: impl Into<Arc<str>>) -> Self {
        ClientCredentials { audience: Some(audience.into()), ..self }
    }

    /// Gives a token `deadline` to come, discovery included.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        ClientCredentials { deadline, ..self }
    }
}

impl<C: ApiClient> Service<TokenRequest> for ClientCredentials<C> {
    type Response = Issued;
    type Error = IssuerError;
    /// Boxed: there is one for each token.
    type Future = Pin<Box<dyn Future<Output = Result<Issued, IssuerError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), IssuerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, TokenRequest: TokenRequest) -> Self::Future {
        let asking = self.clone();
        Box::pin(async move {
            let issued = tokio::time::timeout(asking.deadline, asking.issue()).await;
            let issued = issued.unwrap_or(Err(IssuerError::Late(asking.deadline)));
            if issued.is_err() {
                asking.remember(None);
            }
            issued
        })
    }
}

impl<C: ApiClient> ClientCredentials<C> {
    async fn issue(&self) -> Result<Issued, IssuerError> {
        let endpoint = match self.remembered() {
            Some(endpoint) => endpoint,
            None => self.discover().await?,
        };
        let secret = self.secret.read().await.map_err(IssuerError::Secret)?;
        let client = BasicClient::new(ClientId::new(self.id.to_string()))
            .set_client_secret(oauth2::ClientSecret::new(secret.clone()))
            .set_auth_type(endpoint.auth.clone())
            .set_token_uri(endpoint.url.clone());
        let mut grant = client.exchange_client_credentials();
        if let Some(audience) = &self.audience {
            grant = grant.add_extra_param("audience", audience.to_string());
        }
        let http = self.client.clone();
        let send = move |request: oauth2::HttpRequest| {
            let answering = send(http.clone(), "token", request.map(Bytes::from));
            async move { Ok(answering.await?.map(with_number)) }
        };
        let token = grant.request_async(&send).await.map_err(|error| match error {
            RequestTokenError::Request(error) => error,
            RequestTokenError::ServerResponse(refusal) => {
                // Some issuers quote what they were sent.
                let sent = as_sent(&self.id, &secret);
                let told =
                    |text: &str| (!sent.iter().any(|form| repeats(text, form))).then(|| excerpt(text).into_owned());
                let code = told(refusal.error().as_ref()).unwrap_or_else(|| "it does not say why".to_owned());
                let description = refusal.error_description().and_then(|description| told(description));
                IssuerError::Refused(description.map_or(code.clone(), |why| format!("{code}: {why}")))
            }
            // What could not be read is not shown: it may hold the token.
            RequestTokenError::Parse(error, _) => malformed("token", format!("at `{}`", error.path())),
            RequestTokenError::Other(_) => malformed("token", "it is empty or not JSON"),
        })?;
        if *token.token_type() != BasicTokenType::Bearer {
            return Err(malformed("token", "it is not a bearer token"));
        }
        Issued::bearer(token.access_token().secret(), token.expires_in())
    }

    async fn discover(&self) -> Result<Endpoint, IssuerError> {
        #[derive(Deserialize)]
        struct Configuration {
            issuer: String,
            token_endpoint: String,
            token_endpoint_auth_methods_supported: Option<Vec<String>>,
        }
        const WHAT: &str = "configuration";
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.issuer.configuration.clone();
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = send(self.client.clone(), WHAT, request).await?;
        if response.status() != StatusCode::OK {
            return Err(IssuerError::Status(WHAT, response.status()));
        }
        let configuration: Configuration =
            serde_json::from_slice(response.body()).map_err(|error| malformed(WHAT, error.to_string()))?;
        if configuration.issuer != self.issuer.as_str() {
            let (asked, named) = (self.issuer.as_str().to_owned(), excerpt(&configuration.issuer).into_owned());
            return Err(IssuerError::AnotherIssuer { asked, named });
        }
        let url: Option<Uri> = configuration.token_endpoint.parse().ok();
        let secure_enough = |url: Uri| match url.scheme_str() {
            Some("https") => true,
            Some("http") => !self.issuer.is_https(),
            _ => false,
        };
        if !url.is_some_and(secure_enough) {
            return Err(malformed(WHAT, "its `token_endpoint` is not an https:// URL"));
        }
        let url = TokenUrl::new(configuration.token_endpoint);
        let url = url.map_err(|_| malformed(WHAT, "its `token_endpoint` is not a URL"))?;
        let methods = configuration.token_endpoint_auth_methods_supported;
        let takes = |method: &str| methods.as_ref().is_some_and(|methods| methods.iter().any(|m| m == method));
        let auth = if methods.is_none() || takes("client_secret_basic") {
            AuthType::BasicAuth
        } else if takes("client_secret_post") {
            AuthType::RequestBody
        } else {
            return Err(IssuerError::AuthMethod);
        };
        let endpoint = Endpoint { url, auth };
        self.remember(Some(endpoint.clone()));
        Ok(endpoint)
    }
}

impl<C> ClientCredentials<C> {
    fn remembered(&self) -> Option<Endpoint> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, endpoint: Option<Endpoint>) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = endpoint;
    }
}

/// The secret in each form in which it goes to the issuer: as it is, in a form, and in the header of basic authentication (RFC 6749,
/// section 2.3.1).
fn as_sent(id: &str, secret: &str) -> [String; 3] {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let in_form = encode(secret);
    let basic = BASE64_STANDARD.encode(format!("{}:{in_form}", encode(id)));
    [secret.to_owned(), in_form, basic]
}

/// One exchange. An error's body is only of use where it is JSON.
async fn send(
    client: impl ApiClient,
    what: &'static str,
    request: Request<Bytes>,
) -> Result<oauth2::HttpResponse, IssuerError> {
    let answer = client.oneshot(request.map(Full::new)).await;
    let (head, body) = answer.map_err(|error| IssuerError::Unreachable(chain(&*error.into())))?.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            IssuerError::TooLong(what)
        } else {
            IssuerError::Unreachable(chain(&*error))
        }
    })?;
    let body = body.to_bytes();
    if head.status.is_success() || serde_json::from_slice::<serde_json::Map<_, _>>(&body).is_ok() {
        Ok(Response::from_parts(head, body.to_vec()))
    } else {
        Err(IssuerError::Status(what, head.status))
    }
}

/// The token's answer with `expires_in` as a number (RFC 6749, section 5.1), which some issuers quote and Go's client takes so.
fn with_number(body: Vec<u8>) -> Vec<u8> {
    let Ok(mut answer) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&body) else {
        return body;
    };
    let Some(seconds) = answer.get("expires_in").and_then(|value| value.as_str()?.parse::<u64>().ok()) else {
        return body;
    };
    answer.insert("expires_in".to_owned(), seconds.into());
    serde_json::to_vec(&answer).unwrap_or(body)
}

/// The error with its causes, which HTTP clients leave out of their messages.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
