//! An authorizer that speaks the protocol of UHC's cluster registrations.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::serve::{bounded, reply};

/// Where it takes registrations.
pub(super) const PATH: &str = "/api/accounts_mgmt/v1/cluster_registrations";
/// The one token it knows, and whose it is.
pub(super) const TOKEN: &str = "dev-pull-secret";
const ACCOUNT: &str = "dev-account";

/// The longest registration, in bytes.
const LONGEST: usize = 64 * 1024;
/// Most clusters it remembers, and the longest id of one.
const CLUSTERS: usize = 1024;
const LONGEST_ID: usize = 1024;

/// The clusters that registered.
#[derive(Debug, Default)]
pub(super) struct Authorizer {
    clusters: Mutex<HashSet<String>>,
}

/// What is sent; `account_id` is empty there, and not asked for.
#[derive(Deserialize)]
struct Registration {
    cluster_id: String,
    authorization_token: String,
}

impl Authorizer {
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        if head.uri.path() != PATH {
            return refuse(StatusCode::NOT_FOUND, "registrations are taken elsewhere");
        }
        if head.method != Method::POST {
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST is taken here");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        match bounded(body, LONGEST).await {
            Some(body) => self.register(&body),
            None => refuse(StatusCode::PAYLOAD_TOO_LARGE, "a registration is at most 64 KiB"),
        }
    }

    /// 201 the first time, 200 after it.
    fn register(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let Ok(Registration { cluster_id, authorization_token }) = serde_json::from_slice(body) else {
            return refuse(StatusCode::BAD_REQUEST, "send {\"cluster_id\", \"authorization_token\", \"account_id\"}");
        };
        if authorization_token != TOKEN {
            return refuse(StatusCode::UNAUTHORIZED, "no account has this token");
        }
        if cluster_id.is_empty() || cluster_id.len() > LONGEST_ID {
            return refuse(StatusCode::BAD_REQUEST, "a cluster's id has 1 to 1024 bytes");
        }
        let granted = json!({ "cluster_id": cluster_id, "account_id": ACCOUNT });
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let status = match clusters.contains(&cluster_id) {
            true => StatusCode::OK,
            false if clusters.len() >= CLUSTERS => {
                return refuse(StatusCode::FORBIDDEN, "no more clusters can register; restart `dev`");
            }
            false => {
                clusters.insert(cluster_id);
                StatusCode::CREATED
            }
        };
        reply(status, "application/json", granted.to_string())
    }
}

/// UHC's errors are JSON: that tells its refusal from a router's page.
fn refuse(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    let error = json!({ "kind": "Error", "id": status.as_str(), "reason": reason });
    reply(status, "application/json", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_registers_once_and_an_unknown_token_never_does() {
        let authorizer = Authorizer::default();
        let status = |cluster: &str, token: &str| {
            let body = json!({ "cluster_id": cluster, "authorization_token": token, "account_id": "" });
            authorizer.register(body.to_string().as_bytes()).status().as_u16()
        };
        assert_eq!([status("a", TOKEN), status("a", TOKEN), status("b", TOKEN)], [201, 200, 201]);
        assert_eq!([status("a", "other"), status("", TOKEN), status(&"x".repeat(2000), TOKEN)], [401, 400, 400]);
        assert_eq!(authorizer.register(b"{}").status(), 400);
        for cluster in 2..CLUSTERS {
            assert_eq!(status(&cluster.to_string(), TOKEN), 201);
        }
        assert_eq!([status("one too many", TOKEN), status("a", TOKEN)], [403, 200]);
    }
}
