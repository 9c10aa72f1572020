//! How `dev` itself talks to the gateway: for the token to push by hand, and for what is reported.

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode, header, request::Builder};
use http_body_util::{BodyExt, Full, Limited};

use crate::client::HttpClient;

/// How long the gateway may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes: the gateway's metrics are the longest.
const LONGEST_ANSWER: usize = 1 << 20;

/// A way to the gateway.
#[derive(Debug)]
pub(super) struct Api {
    client: HttpClient,
    gateway: SocketAddr,
}

/// What the gateway answered, or why it did not.
pub(super) struct Answer {
    pub(super) status: Option<StatusCode>,
    pub(super) body: String,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = self.body.lines().next().unwrap_or_default();
        match self.status {
            Some(status) => write!(f, "{}: {line}", status.as_u16()),
            None => write!(f, "no answer: {line}"),
        }
    }
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.is_success())
    }
}

impl Api {
    pub(super) fn new(client: HttpClient, gateway: SocketAddr) -> Self {
        Api { client, gateway }
    }

    /// `POST /authorize`: a token for `/upload`.
    pub(super) async fn upload_token(&self, cluster: &str, token: &str) -> Result<String, Answer> {
        let id: String = form_urlencoded::byte_serialize(cluster.as_bytes()).collect();
        let request = Request::post(format!("http://{}/authorize?id={id}", self.gateway))
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        let answer = self.send(request).await;
        let parsed = serde_json::from_str::<serde_json::Value>(&answer.body).unwrap_or_default();
        match parsed.get("token").and_then(|token| token.as_str()) {
            Some(token) if answer.is_success() => Ok(token.to_owned()),
            _ => Err(answer),
        }
    }

    /// `GET url`.
    pub(super) async fn read(&self, url: &str) -> Answer {
        self.send(Request::get(url)).await
    }

    async fn send(&self, request: Builder) -> Answer {
        let unanswered = |why: String| Answer { status: None, body: why };
        let request = match request.body(Full::default()) {
            Ok(request) => request,
            Err(error) => return unanswered(error.to_string()),
        };
        let answered = tokio::time::timeout(DEADLINE, async {
            let (head, body) = self.client.request(request).await.map_err(|error| error.to_string())?.into_parts();
            let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
            Ok((head.status, body.to_bytes()))
        });
        match answered.await {
            Ok(Ok((status, body))) => {
                Answer { status: Some(status), body: String::from_utf8_lossy(&body).into_owned() }
            }
            Ok(Err(why)) => unanswered(why),
            Err(_elapsed) => unanswered(format!("not within {} seconds", DEADLINE.as_secs())),
        }
    }
}
