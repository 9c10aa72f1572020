//! The tokens that `/authorize` issues and `/upload` accepts: JWTs (RFC 7519) in JWS compact form (RFC 7515), signed
//! with RS256, ES256, ES384 or ES512 (RFC 7518, section 3.1).
//!
//! Their claims are telemeter-server's, so that given the same key each accepts what the other issued.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::time::{Duration, SystemTime};
//!
//! use infogw_layers::authorize::jwt::{SigningKey, TokenError, TokenSigner, TokenVerifier};
//!
//! let key = SigningKey::generate()?;
//! let verifier = TokenVerifier::new(vec![key.verifying_key()]);
//! let signer = TokenSigner::new(key);
//!
//! let day = Duration::from_secs(86_400);
//! let now = SystemTime::now();
//! let labels = BTreeMap::from([("_id".to_owned(), "c1".to_owned())]);
//! let token = signer.sign("account-7", &labels, day, now)?;
//!
//! let claims = verifier.verify(&token, now)?;
//! assert_eq!(claims.subject, "account-7");
//! assert_eq!(claims.labels, labels);
//! assert_eq!(verifier.verify(&token, now + 2 * day), Err(TokenError::Expired));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod key;
mod sign;
mod verify;

use std::time::Duration;

pub use self::key::{Algorithm, KeyError, SigningKey, VerifyingKey};
pub use self::sign::{SignError, TokenSigner};
pub use self::verify::{Claims, TokenError, TokenVerifier, read_unverified};

/// The `iss` claim of every token.
pub const ISSUER: &str = "telemeter.selfsigned";

/// The `aud` claim of every token.
pub const AUDIENCE: &str = "telemeter-client";

/// How far the clocks of issuer and verifier may be apart, either way (go-jose's `DefaultLeeway`).
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The longest token issued or accepted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The claim that carries the labels. Its derive in `verify` has to spell it out.
const LABELS_CLAIM: &str = "telemeter.openshift.io";

/// The last second of the year 9999, since the Unix epoch. Dates end well before `SystemTime` does, so that adding a
/// leeway or a lifetime to one cannot overflow.
const MAX_DATE: Duration = Duration::from_secs(253_402_300_799);
