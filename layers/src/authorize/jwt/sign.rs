use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::{AUDIENCE, ISSUER, LABELS_CLAIM, MAX_DATE, MAX_TOKEN_BYTES, SigningKey};

/// Issues tokens. Clones share the key, which can be replaced while they are at work.
#[derive(Debug, Clone)]
pub struct TokenSigner(Arc<ArcSwap<Pen>>);

#[derive(Debug)]
struct Pen {
    key: SigningKey,
    /// Encoded once: it depends on the key alone.
    header: String,
}

impl TokenSigner {
    /// A signer with this key.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Pen::new(key))))
    }

    /// Signs with `key` from now on. Give it to the verifiers first.
    pub fn replace(&self, key: SigningKey) {
        self.0.store(Arc::new(Pen::new(key)));
    }

    /// [`SigningKey::derive_secret`] of the key that signs now.
    #[must_use]
    pub fn derive_secret(&self, context: &str) -> [u8; 32] {
        self.0.load().key.derive_secret(context)
    }

    /// A token for `subject` that holds from `now` for `lifetime` and binds what is written with it to `labels`.
    ///
    /// Dates are whole seconds, cut and not rounded. It computes, RSA longest, and never waits.
    ///
    /// # Errors
    /// [`SignError::TooLong`] is the client's, where subject or labels are its own; the others are the server's.
    pub fn sign(
        &self,
        subject: &str,
        labels: &BTreeMap<String, String>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, SignError> {
        let issued = now.duration_since(UNIX_EPOCH).map_err(|_| SignError::Date)?;
        let expires = issued.checked_add(lifetime).filter(|date| *date <= MAX_DATE).ok_or(SignError::Date)?;
        let claims = json!({
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "iat": issued.as_secs(),
            "nbf": issued.as_secs(),
            "exp": expires.as_secs(),
            LABELS_CLAIM: {"labels": labels},
        });
        let pen = self.0.load();
        let mut token = format!("{}.{}", pen.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = pen.key.sign(token.as_bytes()).ok_or(SignError::Key)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > MAX_TOKEN_BYTES { Err(SignError::TooLong) } else { Ok(token) }
    }
}

impl Pen {
    fn new(key: SigningKey) -> Self {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": key.algorithm().name(), "typ": "JWT"}).to_string());
        Self { key, header }
    }
}

/// Why no token was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No verifier would take it.
    #[error("the token would be over {MAX_TOKEN_BYTES} bytes: give a shorter cluster id or fewer labels")]
    TooLong,
    /// `now` is before 1970, or the token would outlive the year 9999.
    #[error("the token's dates are out of range: check the server's clock and the lifetime of its tokens")]
    Date,
    /// The cryptographic library failed.
    #[error("the server's key could not sign the token: try again")]
    Key,
}
