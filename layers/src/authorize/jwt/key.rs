use std::fmt;

use aws_lc_rs::encoding::{AsBigEndian as _, AsDer as _};
use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, VerificationAlgorithm,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject as _};

/// A private key that signs tokens.
pub struct SigningKey {
    pair: KeyPair,
    public: VerifyingKey,
    /// What secrets are derived from: the private key itself, in the one form it has whatever file it came in.
    root: hmac::Key,
}

enum KeyPair {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair),
}

impl SigningKey {
    /// Reads the first private key of a PEM file, or a DER file that is one: PKCS#1 (RSA), PKCS#8 (RSA or EC) or SEC1
    /// (EC).
    ///
    /// Other PEM blocks, such as the `EC PARAMETERS` that openssl writes in front, are skipped.
    ///
    /// # Errors
    /// [`KeyError`] says what kind of key to give instead; it never holds any of the input.
    pub fn from_pem_or_der(data: &[u8]) -> Result<Self, KeyError> {
        let pem = match PrivateKeyDer::from_pem_slice(data) {
            Ok(key) => Some(key),
            Err(pem::Error::NoItemsFound) => None,
            Err(_) => return Err(KeyError::missing(data)),
        };
        let der = pem.as_ref().map_or(data, PrivateKeyDer::secret_der);
        // By content and not by the PEM block's name, as in telemeter-server.
        match PrivateKeyDer::try_from(der).map_err(|_| KeyError::missing(data))? {
            PrivateKeyDer::Pkcs1(_) => Self::rsa(rsa::KeyPair::from_der(der).map_err(KeyError::rejected)?),
            PrivateKeyDer::Sec1(_) => Self::ec(der),
            PrivateKeyDer::Pkcs8(_) => match rsa::KeyPair::from_pkcs8(der).map_err(KeyError::rejected) {
                Ok(pair) => Self::rsa(pair),
                Err(KeyError::Unsupported) => Self::ec(der),
                Err(error) => Err(error),
            },
            _ => Err(KeyError::Unsupported),
        }
    }

    /// A new P-256 key, for a server that was given none: other replicas, and this one restarted, refuse its tokens.
    ///
    /// # Errors
    /// [`KeyError::Generation`] if the system has no randomness to give.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| KeyError::Generation)?;
        Self::new(Algorithm::Es256, KeyPair::Ec(pair))
    }

    /// What this key signs with; the kind of key decides.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.public.algorithm
    }

    /// The public half.
    #[must_use]
    pub fn verifying_key(&self) -> VerifyingKey {
        self.public.clone()
    }

    /// A secret that whoever has this key can derive, and nobody else: HMAC-SHA256 of `context` under the private key.
    ///
    /// Contexts keep uses apart: name each one of its own, such as `"cache keys v1"`. The secret is the same from PEM and DER, PKCS#1,
    /// PKCS#8 and SEC1. It does not sign, and tells nothing of the key; but never print or store it.
    #[must_use]
    pub fn derive_secret(&self, context: &str) -> [u8; 32] {
        let mut secret = [0; 32];
        // A tag of SHA-256 is as long.
        secret.copy_from_slice(hmac::sign(&self.root, context.as_bytes()).as_ref());
        secret
    }

    fn rsa(pair: rsa::KeyPair) -> Result<Self, KeyError> {
        Self::new(Algorithm::Rs256, KeyPair::Rsa(pair))
    }

    fn ec(der: &[u8]) -> Result<Self, KeyError> {
        // Smallest first: SEC1 may leave the curve out, and the scalar of a larger curve is out of range on a smaller.
        let curves: [(Algorithm, &'static EcdsaSigningAlgorithm); 3] = [
            (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED_SIGNING),
            (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED_SIGNING),
            (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED_SIGNING),
        ];
        for (algorithm, curve) in curves {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der) {
                return Self::new(algorithm, KeyPair::Ec(pair));
            }
        }
        Err(KeyError::Unsupported)
    }

    fn new(algorithm: Algorithm, pair: KeyPair) -> Result<Self, KeyError> {
        let public = match &pair {
            KeyPair::Rsa(pair) => pair.public_key().as_ref(),
            KeyPair::Ec(pair) => pair.public_key().as_ref(),
        };
        let public = ParsedPublicKey::new(algorithm.verification(), public).map_err(KeyError::rejected)?;
        let root = |private: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, private);
        let root = match &pair {
            KeyPair::Rsa(pair) => pair.as_der().map(|der| root(der.as_ref())),
            KeyPair::Ec(pair) => pair.private_key().as_be_bytes().map(|scalar| root(scalar.as_ref())),
        };
        let root = root.map_err(|_| KeyError::Unsupported)?;
        Ok(Self { pair, public: VerifyingKey { algorithm, public }, root })
    }

    /// The JWS signature of `message` (RFC 7518, sections 3.3 and 3.4), or nothing if the library failed.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.pair {
            KeyPair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            KeyPair::Ec(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
        }
    }
}

/// The algorithm alone: no key material in logs.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// The public half of a [`SigningKey`].
#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    public: ParsedPublicKey,
}

impl VerifyingKey {
    /// The one algorithm that this key verifies.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.public.verify_sig(message, signature).is_ok()
    }
}

/// The same key: it verifies the same signatures.
impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.public.as_ref() == other.public.as_ref()
    }
}

impl Eq for VerifyingKey {}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A signature algorithm of RFC 7518, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
}

impl Algorithm {
    /// Every one there is.
    pub const ALL: [Algorithm; 4] = [Self::Rs256, Self::Es256, Self::Es384, Self::Es512];

    /// The value of the `alg` header.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &ECDSA_P521_SHA512_FIXED,
        }
    }
}

/// Why there is no signing key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither PEM with a private key in it, nor the DER of one.
    #[error("holds no private key: give PEM or DER, as PKCS#1, PKCS#8 or SEC1")]
    Missing,
    /// PEM that needs a passphrase.
    #[error("the private key is encrypted: give it decrypted (`openssl pkey -in KEY -out PLAIN`)")]
    Encrypted,
    /// Neither RSA nor EC on one of the three curves, or its parts do not fit together.
    #[error("the private key is damaged or of another kind: give RSA, or EC on P-256, P-384 or P-521")]
    Unsupported,
    /// RSA, under 2048 or over 8192 bits.
    #[error("the RSA key is too small or too large: give one of 2048 to 8192 bits")]
    RsaSize,
    /// The system gave no randomness.
    #[error("a key could not be generated: the system gave no randomness")]
    Generation,
}

impl KeyError {
    fn missing(data: &[u8]) -> Self {
        const MARK: &[u8] = b"ENCRYPTED";
        if data.windows(MARK.len()).any(|window| window == MARK) { Self::Encrypted } else { Self::Missing }
    }

    fn rejected(rejected: KeyRejected) -> Self {
        match rejected.description_() {
            "TooSmall" | "TooLarge" => Self::RsaSize,
            _ => Self::Unsupported,
        }
    }
}
