use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny};

use super::{AUDIENCE, Algorithm, ISSUER, LEEWAY, MAX_DATE, MAX_TOKEN_BYTES, VerifyingKey};
use crate::authorize::json;

/// Checks tokens against a set of keys: more than one while keys are rotated. Without any it refuses every token.
///
/// Clones share the keys, which can be replaced while they are at work.
#[derive(Debug, Clone)]
pub struct TokenVerifier(Arc<Keys>);

#[derive(Debug)]
struct Keys {
    keys: ArcSwap<Vec<VerifyingKey>>,
    generation: AtomicU64,
}

impl TokenVerifier {
    /// A verifier that accepts what any of these keys signed.
    #[must_use]
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self(Arc::new(Keys { keys: ArcSwap::from_pointee(keys), generation: AtomicU64::new(0) }))
    }

    /// Accepts what any of `keys` signed from now on, and nothing else.
    pub fn replace(&self, keys: Vec<VerifyingKey>) {
        self.0.keys.store(Arc::new(keys));
        // After the keys: what is verified under a generation was verified by its keys or later ones.
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// How often the keys were replaced. What a token was found to be under another generation says nothing now: a cache of verdicts
    /// makes this a part of its key, and so forgets those of removed keys.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// The keys in force.
    #[must_use]
    pub fn keys(&self) -> Arc<Vec<VerifyingKey>> {
        self.0.keys.load_full()
    }

    /// What the token says, if one of the keys signed it and it holds at `now`, give or take [`LEEWAY`](super::LEEWAY).
    ///
    /// A key verifies its own algorithm and no other. Whatever the header names beside `alg` and `crit` (`kid`, `jwk`,
    /// `jku`, `x5c`, ...) is ignored. Nothing but the header is interpreted before a signature holds.
    ///
    /// # Errors
    /// [`TokenError`]; all of them are the client's to mend.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let parts = Parts::split(token)?;
        let header = parts.header()?;
        let keys = self.0.keys.load();
        let mut keys = keys.iter().filter(|key| key.algorithm().name() == header.alg).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::Algorithm);
        }
        if !keys.any(|key| key.verifies(parts.signed.as_bytes(), &parts.signature)) {
            return Err(TokenError::Signature);
        }
        parts.claims(now)
    }
}

/// What `token` says and whether it would hold at `now` if its signature does: [`TokenVerifier::verify`] without a key, to show
/// somebody what a token is. Anybody can write such a token, so that nobody may be let in by it.
///
/// # Errors
/// [`TokenError`], but never [`Signature`](TokenError::Signature); [`Algorithm`](TokenError::Algorithm) if no key at all is for its `alg`.
pub fn read_unverified(token: &str, now: SystemTime) -> Result<Claims, TokenError> {
    let parts = Parts::split(token)?;
    let header = parts.header()?;
    if !Algorithm::ALL.iter().any(|algorithm| algorithm.name() == header.alg) {
        return Err(TokenError::Algorithm);
    }
    parts.claims(now)
}

/// A token in its three parts, decoded.
struct Parts<'a> {
    signed: &'a str,
    header: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        Ok(Self { signed, header: decode(header)?, payload: decode(payload)?, signature: decode(signature)? })
    }

    fn header(&self) -> Result<Header<'_>, TokenError> {
        let header: Header<'_> = json::object(&self.header).map_err(|_| TokenError::Malformed)?;
        if header.crit { Err(TokenError::Critical) } else { Ok(header) }
    }

    fn claims(&self, now: SystemTime) -> Result<Claims, TokenError> {
        let payload: Payload = json::object(&self.payload).map_err(|_| TokenError::Claims)?;
        payload.check(now)
    }
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whom it was issued to: the account.
    pub subject: String,
    /// The labels that every series written with it must carry, by name. Empty if the token binds none.
    pub labels: BTreeMap<String, String>,
    /// When it begins to hold, if it says so; [`LEEWAY`](super::LEEWAY) not counted.
    pub not_before: Option<SystemTime>,
    /// When it ceases to hold, [`LEEWAY`](super::LEEWAY) not counted.
    pub expires_at: SystemTime,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over [`MAX_TOKEN_BYTES`](super::MAX_TOKEN_BYTES).
    #[error("the token is over {MAX_TOKEN_BYTES} bytes: send the one that /authorize answered, and nothing else")]
    TooLong,
    /// Not three parts of strict base64url without padding, or the first is not a JOSE header.
    #[error("the token is not a JWT in compact form: send the one that /authorize answered, unchanged")]
    Malformed,
    /// The header has `crit`, that is, extensions to be understood or refused (RFC 7515, section 4.1.11).
    #[error("the token asks for extensions (`crit`) that are not supported: get a new one from /authorize")]
    Critical,
    /// No key here is for the header's `alg`.
    #[error("the token's `alg` is not that of this server's key: get a new one from /authorize")]
    Algorithm,
    /// No key here made the signature.
    #[error("the token's signature is not this server's: get a new one from /authorize")]
    Signature,
    /// Signed by a key, but not a set of claims.
    #[error("a claim of the token (iss, aud, sub, exp) is missing or malformed: get a new one from /authorize")]
    Claims,
    /// Another `iss`.
    #[error("the token is of another issuer (`iss`): get a new one from /authorize")]
    Issuer,
    /// Another `aud`.
    #[error("the token is for another audience (`aud`): get a new one from /authorize")]
    Audience,
    /// `exp` has passed.
    #[error("the token has expired: get a new one from /authorize")]
    Expired,
    /// `nbf` or `iat` is yet to come.
    #[error("the token is not valid yet: check the clock, or get a new one from /authorize")]
    NotYetValid,
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    // This engine refuses padding and stray trailing bits, so that no two spellings are the same token.
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    /// Whether it is there, whatever it holds.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: Audience,
    sub: String,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    #[serde(rename = "telemeter.openshift.io", default)]
    telemeter: Telemeter,
}

impl Payload {
    /// The bounds are go-jose's: a token still holds at the very second that is [`LEEWAY`] away.
    fn check(self, now: SystemTime) -> Result<Claims, TokenError> {
        if self.iss != ISSUER {
            return Err(TokenError::Issuer);
        }
        if !self.aud.contains(AUDIENCE) {
            return Err(TokenError::Audience);
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if now > self.exp.0.saturating_add(LEEWAY) {
            return Err(TokenError::Expired);
        }
        if [&self.nbf, &self.iat].into_iter().flatten().any(|date| date.0 > now.saturating_add(LEEWAY)) {
            return Err(TokenError::NotYetValid);
        }
        Ok(Claims {
            subject: self.sub,
            labels: self.telemeter.labels,
            not_before: self.nbf.map(|date| UNIX_EPOCH + date.0),
            expires_at: UNIX_EPOCH + self.exp.0,
        })
    }
}

#[derive(Deserialize, Default)]
struct Telemeter {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// RFC 7519, section 4.1.3: one string or an array of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// Seconds since the epoch, whole or not (RFC 7519, section 2), up to [`MAX_DATE`].
#[derive(Clone, Copy)]
struct NumericDate(Duration);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let date = Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)?;
        if date > MAX_DATE { Err(D::Error::custom("after the year 9999")) } else { Ok(Self(date)) }
    }
}
