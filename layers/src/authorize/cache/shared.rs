//! A second level that replicas share.

use std::{
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use bytes::Bytes;

use super::Cacheable;
use crate::{clock::Clock, store::Store};

/// Grants in a [`Store`] that replicas share.
///
/// A key is an HMAC of the credential, and a value ends in one: who can read the store learns neither token nor cluster, and who can
/// write to it can neither make up a grant nor move one to another credential. Replicas share what they are given the same secret for.
/// Whatever does not verify, or is not answered, is a miss. Give it a store that bounds how long it waits.
#[derive(Clone)]
pub struct SharedGrants {
    store: Arc<dyn Store>,
    prefix: Box<str>,
    secrets: Arc<ArcSwap<Secrets>>,
    longest: Duration,
}

/// What keys and seals are made with.
struct Secrets {
    keys: hmac::Key,
    seals: hmac::Key,
}

impl Secrets {
    fn new(secret: &[u8; 32]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived =
            |purpose: &str| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, purpose.as_bytes()).as_ref());
        Secrets { keys: derived("keys"), seals: derived("seals") }
    }
}

/// The layout's; another one is a miss.
const VERSION: u8 = 1;
/// Bytes of an HMAC-SHA256 that are kept: 128 bits.
const SEAL: usize = 16;
/// Version, time.
const HEAD: usize = 9;
/// How far ahead of ours another replica's clock may be.
const SKEW: Duration = Duration::from_secs(60);

/// A grant that a replica left.
pub(super) struct Left<I> {
    pub(super) identity: Arc<I>,
    pub(super) packed: Bytes,
    pub(super) age: Duration,
}

impl SharedGrants {
    /// Grants under keys that begin with `prefix`, each kept for `longest` at most.
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<Box<str>>, secret: &[u8; 32], longest: Duration) -> Self {
        let secrets = Arc::new(ArcSwap::from_pointee(Secrets::new(secret)));
        SharedGrants { store, prefix: prefix.into(), secrets, longest }
    }

    /// From now on shares with those who have this secret. Clones follow.
    pub fn set_secret(&self, secret: &[u8; 32]) {
        self.secrets.store(Arc::new(Secrets::new(secret)));
    }

    pub(super) async fn read<I, C>(&self, credential: &C, clock: &impl Clock) -> Option<Left<I>>
    where
        I: Cacheable<C>,
        C: Hash,
    {
        let key = self.key(credential);
        let value = self.store.get(&key).await.ok()??;
        let (sealed, seal) = value.split_at_checked(value.len().checked_sub(SEAL)?)?;
        verify_slices_are_equal(&self.seal(&key, sealed), seal).ok()?;
        let granted = match sealed.first_chunk::<HEAD>()? {
            [VERSION, time @ ..] => {
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::from_be_bytes(*time)))?
            }
            _ => return None,
        };
        let packed = value.slice(HEAD..sealed.len());
        let identity = I::unpack(&packed, credential)?;
        if identity.expires_at().is_some_and(|end| end <= clock.now()) {
            return None;
        }
        let age = match clock.now().duration_since(granted) {
            Ok(age) => age,
            // Another replica's clock may be a little ahead of ours. One that is far ahead would have grants live for ever.
            Err(ahead) if ahead.duration() <= SKEW => Duration::ZERO,
            Err(_) => return None,
        };
        Some(Left { identity: Arc::new(identity), packed, age })
    }

    /// Leaves a grant for the others, for as long as it can be of use. Nobody waits for it.
    pub(super) fn write(&self, credential: &impl Hash, packed: &[u8], useful: Duration, clock: &impl Clock) {
        let granted = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let granted = u64::try_from(granted.as_millis()).unwrap_or(u64::MAX);
        let key = self.key(credential);
        let mut value = Vec::with_capacity(HEAD + packed.len() + SEAL);
        value.push(VERSION);
        value.extend(granted.to_be_bytes());
        value.extend(packed);
        let seal = self.seal(&key, &value);
        value.extend(seal);
        self.set(key, value.into(), useful.min(self.longest));
    }

    /// Takes a grant back: stores can overwrite, not all can remove.
    pub(super) fn forget(&self, credential: &impl Hash) {
        self.set(self.key(credential), Bytes::from_static(&[0]), Duration::from_secs(1));
    }

    fn set(&self, key: String, value: Bytes, life: Duration) {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            // The store tells its own observer what went wrong. The others ask the authorizer themselves.
            let _ = store.set(&key, value, life).await;
        });
    }

    fn key(&self, credential: &impl Hash) -> String {
        let mut hasher = Signing(hmac::Context::with_key(&self.secrets.load().keys));
        credential.hash(&mut hasher);
        let mut key = String::from(&*self.prefix);
        for byte in hasher.0.sign().as_ref() {
            let _ = write!(key, "{byte:02x}");
        }
        key
    }

    fn seal(&self, key: &str, value: &[u8]) -> [u8; SEAL] {
        let mut context = hmac::Context::with_key(&self.secrets.load().seals);
        context.update(key.as_bytes());
        context.update(value);
        let mut seal = [0; SEAL];
        seal.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
        seal
    }
}

impl fmt::Debug for SharedGrants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedGrants")
            .field("prefix", &self.prefix)
            .field("longest", &self.longest)
            .finish_non_exhaustive()
    }
}

/// Signs what is hashed. Replicas that hash otherwise, built by another compiler say, miss each other's grants.
struct Signing(hmac::Context);

impl Hasher for Signing {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}
