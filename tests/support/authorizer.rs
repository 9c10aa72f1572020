//! The authorizer: UHC's cluster registrations, scripted.

use hyper::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::server::{Answer, Received, Server};

/// A scripted authorizer. Contract: `POST`, JSON `{"cluster_id","authorization_token",...}`; 200 or 201 with an `account_id`.
pub type Authorizer = Server<Registration>;

/// One call to the authorizer.
#[derive(Debug, Clone)]
pub struct Registration {
    pub method: Method,
    pub headers: HeaderMap,
    /// Null where the body is not JSON.
    pub body: Value,
}

impl Registration {
    /// The cluster that is asked about, empty where there is none.
    pub fn cluster_id(&self) -> &str {
        self.body["cluster_id"].as_str().unwrap_or_default()
    }

    /// The token that it came with, empty where there is none.
    pub fn authorization_token(&self) -> &str {
        self.body["authorization_token"].as_str().unwrap_or_default()
    }
}

impl From<Received> for Registration {
    fn from(received: Received) -> Self {
        let body = serde_json::from_slice(&received.body).unwrap_or_default();
        Self { method: received.method, headers: received.headers, body }
    }
}

impl Authorizer {
    /// Grants everything that is well-formed, as account `account-of-CLUSTER`; 400 to the rest.
    pub async fn granting() -> Self {
        Self::start(grant).await
    }

    /// What `--authorize` is given.
    pub fn url(&self) -> String {
        self.url_of("/api/accounts_mgmt/v1/cluster_registrations")
    }
}

/// The answer of an authorizer that knows every cluster.
pub fn grant(registration: &Registration) -> Answer {
    let cluster = registration.cluster_id();
    let complete = !cluster.is_empty() && !registration.authorization_token().is_empty();
    if registration.method != Method::POST || !complete {
        return Answer::json(400, &json!({ "kind": "Error", "reason": "incomplete registration" }));
    }
    let account = format!("account-of-{cluster}");
    Answer::json(201, &json!({ "cluster_id": cluster, "account_id": account, "expires_at": "2100-01-01T00:00:00Z" }))
}

/// A port that refuses connections. It stays taken, so that no other test's server can turn up on it.
pub struct Refusing {
    bound: TcpSocket,
}

impl Refusing {
    /// Takes a free loopback port and never listens on it.
    pub fn new() -> Self {
        let bound = TcpSocket::new_v4().expect("a socket");
        bound.bind(([127, 0, 0, 1], 0).into()).expect("a loopback port is free");
        Self { bound }
    }

    /// A URL there.
    pub fn url(&self) -> String {
        format!("http://{}/", self.bound.local_addr().expect("a bound socket has an address"))
    }
}
