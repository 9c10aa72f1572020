use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use serde::{
    Deserialize,
    de::{Error as _, MapAccess, Visitor},
};

use super::{ClusterId, json};
use crate::rejection::{Reason, Rejection};

/// A token. It is never printed, not by `Debug` either. To compare two takes as long whatever they differ in, save their lengths.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.bytes().zip(other.0.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b));
        // Not to be known before the end.
        self.0.len() == other.0.len() && std::hint::black_box(differing) == 0
    }
}

impl Eq for Secret {}

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Secret {
    /// Keeps `secret`.
    pub fn new(secret: impl Into<Box<str>>) -> Self {
        Secret(secret.into())
    }

    /// The token itself, to be verified or sent on; never to be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Reads a credential from a request. Any `Fn(&Request<B>) -> Result<C, Rejection>` does.
pub trait CredentialSource<B> {
    /// What an authorizer takes.
    type Credential;

    /// The credential of `request`.
    ///
    /// # Errors
    /// [`Reason::Unauthenticated`] if there is none, or none that can be read.
    fn credential(&self, request: &Request<B>) -> Result<Self::Credential, Rejection>;
}

impl<B, C, F> CredentialSource<B> for F
where
    F: Fn(&Request<B>) -> Result<C, Rejection>,
{
    type Credential = C;

    fn credential(&self, request: &Request<B>) -> Result<C, Rejection> {
        self(request)
    }
}

/// `Authorization: Bearer TOKEN` (RFC 6750), the token taken as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct BearerToken;

impl<B> CredentialSource<B> for BearerToken {
    type Credential = Secret;

    fn credential(&self, request: &Request<B>) -> Result<Secret, Rejection> {
        bearer(request.headers()).map(Secret::new)
    }
}

/// `Authorization: Bearer base64({"authorization_token": ..., "cluster_id": ...})`: what telemeter's remote-write clients send.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompositeToken;

impl<B> CredentialSource<B> for CompositeToken {
    type Credential = ClusterCredential;

    fn credential(&self, request: &Request<B>) -> Result<ClusterCredential, Rejection> {
        let refuse = |what| unauthenticated(format!("the bearer token {what}"));
        let token = bearer(request.headers())?;
        let json = LENIENT.decode(token.trim_end_matches('=')).map_err(|_| {
            refuse("is not base64; send base64 of {\"authorization_token\":…,\"cluster_id\":…}".to_owned())
        })?;
        // serde's own message names places and keys, never values.
        let composite: Composite<'_> = serde_json::from_slice(&json).map_err(|error| {
            let what = if error.is_data() { data_fault(&error) } else { "it does not parse" };
            refuse(format!("is not the JSON object it should be: {what}"))
        })?;
        let cluster =
            ClusterId::new(&composite.cluster_id).map_err(|error| refuse(format!("has a bad cluster_id: {error}")))?;
        if composite.authorization_token.is_empty() {
            return Err(refuse("has an empty authorization_token".to_owned()));
        }
        let token = Secret::new(&*composite.authorization_token);
        Ok(ClusterCredential { cluster, token, body: Bytes::from(json) })
    }
}

/// Standard alphabet, padded or not: clients differ.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// A cluster and the proof that it may speak as itself: the JSON that a cluster authorizer takes.
///
/// Two of the same cluster and token are equal, and hash alike, however their JSON is spelt: nobody makes many out of one.
#[derive(Clone)]
pub struct ClusterCredential {
    cluster: ClusterId,
    token: Secret,
    body: Bytes,
}

impl PartialEq for ClusterCredential {
    fn eq(&self, other: &Self) -> bool {
        (&self.cluster, &self.token) == (&other.cluster, &other.token)
    }
}

impl Eq for ClusterCredential {}

impl Hash for ClusterCredential {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.cluster, &self.token).hash(state);
    }
}

impl ClusterCredential {
    /// `cluster` with its pull-secret token, as a registration asks for it.
    pub fn registration(cluster: ClusterId, token: &Secret) -> Self {
        #[derive(serde::Serialize)]
        struct Registration<'a> {
            cluster_id: &'a str,
            authorization_token: &'a str,
            account_id: &'a str,
        }
        let registration =
            Registration { cluster_id: cluster.as_str(), authorization_token: token.expose(), account_id: "" };
        // Strings always serialise.
        let body = serde_json::to_vec(&registration).unwrap_or_default();
        ClusterCredential { cluster, token: token.clone(), body: body.into() }
    }

    /// The cluster that is claimed.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The JSON to send to the authorizer. It holds a secret.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The string under `key` in the JSON, for logs: `--tenant-key`. Never the token.
    pub fn field(&self, key: &str) -> Option<String> {
        if key.eq_ignore_ascii_case("authorization_token") {
            return None;
        }
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&self.body).ok()?;
        object.get(key)?.as_str().map(str::to_owned)
    }
}

impl fmt::Debug for ClusterCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCredential").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The composite token, read so that no other JSON reader can see another cluster in it: the authorizer gets the very bytes, and
/// Go's reader takes the last of repeated keys and any letter case.
struct Composite<'a> {
    cluster_id: Cow<'a, str>,
    authorization_token: Cow<'a, str>,
}

const AMBIGUOUS: &str = "ambiguous key";
const INCOMPLETE: &str = "incomplete";

fn data_fault(error: &serde_json::Error) -> &'static str {
    let text = error.to_string();
    if text.starts_with(AMBIGUOUS) || text.starts_with(json::REPEATED) {
        "authorization_token and cluster_id must stand there once, in lower case, among plain ASCII keys that do not repeat"
    } else if text.starts_with(INCOMPLETE) {
        "it needs authorization_token and cluster_id"
    } else {
        "authorization_token and cluster_id must be strings"
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Composite<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Composite<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Composite<'de>, M::Error> {
                let (mut cluster_id, mut authorization_token) = (None, None);
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    let slot = match &*key {
                        "cluster_id" => &mut cluster_id,
                        "authorization_token" => &mut authorization_token,
                        // Go folds case, beyond ASCII too.
                        other
                            if !other.is_ascii()
                                || other.eq_ignore_ascii_case("cluster_id")
                                || other.eq_ignore_ascii_case("authorization_token") =>
                        {
                            return Err(M::Error::custom(AMBIGUOUS));
                        }
                        _ => {
                            // Looked through: the authorizer's reader gets it, too.
                            map.next_value::<json::Unique>()?;
                            continue;
                        }
                    };
                    if slot.replace(map.next_value::<Cow<'de, str>>()?).is_some() {
                        return Err(M::Error::custom(AMBIGUOUS));
                    }
                }
                match (cluster_id, authorization_token) {
                    (Some(cluster_id), Some(authorization_token)) => Ok(Composite { cluster_id, authorization_token }),
                    _ => Err(M::Error::custom(INCOMPLETE)),
                }
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The token behind `Bearer`. Several `Authorization` headers are none: which of them counts would be anyone's guess.
fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(unauthenticated("send one Authorization header: `Bearer TOKEN`"));
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    });
    token.ok_or_else(|| unauthenticated("only bearer authorization is taken: `Authorization: Bearer TOKEN`"))
}

/// 401 with the challenge that RFC 9110 asks for.
pub(super) fn unauthenticated(detail: impl Into<Cow<'static, str>>) -> Rejection {
    Rejection::new(Reason::Unauthenticated, detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::BASE64_STANDARD;

    fn composite(json: &str) -> Result<ClusterCredential, Rejection> {
        let header = format!("Bearer {}", BASE64_STANDARD.encode(json));
        CompositeToken.credential(&Request::builder().header(header::AUTHORIZATION, header).body(()).unwrap())
    }

    #[test]
    fn a_composite_token_names_one_cluster_to_every_reader() {
        let json = r#"{"authorization_token":"s3cret","cluster_id":"c1","tenant":"t"}"#;
        let credential = composite(json).unwrap();
        assert_eq!(credential.cluster().as_str(), "c1");
        assert_eq!(credential.body(), json, "the authorizer gets the bytes as they are");
        assert_eq!(credential.field("tenant").as_deref(), Some("t"));
        assert_eq!(credential.field("authorization_token"), None);
        assert!(!format!("{credential:?}").contains("s3cret"));

        let spelt = [
            r#"{"cluster_id":"c1","authorization_token":"s3cret"}"#,
            r#"{"authorization_token":"s3\u0063ret","cluster_id":"c1","n":7}"#,
        ];
        for alike in spelt {
            assert_eq!(composite(alike).unwrap(), credential, "{alike}");
        }
        assert_ne!(composite(r#"{"authorization_token":"other","cluster_id":"c1"}"#).unwrap(), credential);
        assert_ne!(composite(r#"{"authorization_token":"s3cret","cluster_id":"c2"}"#).unwrap(), credential);

        for refused in [
            r#"{"authorization_token":"s3cret","cluster_id":"c1","cluster_id":"c2"}"#,
            r#"{"authorization_token":"s3cret","cluster_id":"c1","Cluster_ID":"c2"}"#,
            "{\"authorization_token\":\"s3cret\",\"cluster_id\":\"c1\",\"clu\u{17f}ter_id\":\"c2\"}",
            r#"{"authorization_token":"s3cret","cluster_id":"c1","cluster\u005fid":"c2"}"#,
            r#"{"authorization_token":"s3cret"}"#,
            r#"{"authorization_token":"","cluster_id":"c1"}"#,
            r#"{"authorization_token":"s3cret","cluster_id":""}"#,
            r#"{"authorization_token":"s3cret","cluster_id":7}"#,
            r#"{"authorization_token":"s3cret","cluster_id":"a\nb"}"#,
            r#"["s3cret"]"#,
            "s3cret",
            r#"{"authorization_token":"s3cret","cluster_id":"c1"}x"#,
            r#"{"authorization_token":"s3cret","cluster_id":"c1","x":{"y":1,"y":2}}"#,
            &format!(
                r#"{{"authorization_token":"s3cret","cluster_id":"c1","x":{}{}}}"#,
                "[".repeat(200),
                "]".repeat(200)
            ),
        ] {
            let rejection = composite(refused).unwrap_err();
            assert_eq!(rejection.status(), 401, "{refused}");
            assert!(!rejection.detail().contains("s3cret"), "{rejection}");
        }
    }

    #[test]
    fn one_bearer_header_or_none() {
        let with = |values: &[&str]| {
            let mut request = Request::builder();
            for value in values {
                request = request.header(header::AUTHORIZATION, *value);
            }
            BearerToken.credential(&request.body(()).unwrap()).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(with(&["bearer abc"]).unwrap(), "abc");
        for refused in [&[][..], &["Bearer"], &["Bearer "], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            let rejection = with(refused).unwrap_err();
            assert_eq!(rejection.status(), 401, "{refused:?}");
            assert!(rejection.header().is_some_and(|(name, _)| name == header::WWW_AUTHENTICATE));
        }
    }
}
