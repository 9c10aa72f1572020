//! The keys of our tokens: the first one signs, all of them verify.
//!
//! A key is rotated without an outage by giving the next one as second (`--shared-key A --shared-key B`), then putting it first, and
//! leaving the old one out once its last token has expired. That may be done in the files, too: they are read again when they change
//! and on SIGHUP.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use infogw_layers::authorize::jwt::{KeyError, SigningKey, TokenSigner, TokenVerifier, VerifyingKey};
use tokio::task::JoinSet;

use crate::{admin::metrics::keys::KeyMetrics, watch::Followed};

/// The keys in force. Clones share them.
#[derive(Debug, Clone)]
pub struct Keyring {
    files: Arc<[PathBuf]>,
    followed: Followed,
    signer: TokenSigner,
    verifier: TokenVerifier,
    takers: Takers,
}

/// Why there are no keys, or no new ones: one line, which never holds any of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file holds no key that can sign.
    #[error("{}: {error}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyError,
    },
    /// No file was given, and none could be generated.
    #[error("{0}")]
    Generation(KeyError),
}

impl Keyring {
    /// The keys in `files`, one in each; without files a generated one.
    ///
    /// # Errors
    /// The first file that cannot be read or holds no key.
    pub fn new(files: Vec<PathBuf>) -> Result<Self, KeyringError> {
        // Before they are read, so that what changes meanwhile is told.
        let followed = Followed::new(&files);
        let (first, all) = if files.is_empty() {
            let key = SigningKey::generate().map_err(KeyringError::Generation)?;
            let public = key.verifying_key();
            (key, vec![public])
        } else {
            read(&files)?
        };
        Ok(Keyring {
            files: files.into(),
            followed,
            signer: TokenSigner::new(first),
            verifier: TokenVerifier::new(all),
            takers: Takers::default(),
        })
    }

    /// Signs with the first key.
    pub fn signer(&self) -> &TokenSigner {
        &self.signer
    }

    /// Verifies with all keys.
    pub fn verifier(&self) -> &TokenVerifier {
        &self.verifier
    }

    /// A secret that every replica with the same first key has: see [`SigningKey::derive_secret`].
    pub fn derive_secret(&self, context: &str) -> [u8; 32] {
        self.signer.derive_secret(context)
    }

    /// Has `take` told of [that secret](Self::derive_secret) whenever the first key changes, so that replicas whose keys are rotated
    /// in their files go on sharing.
    pub fn on_new_secret(&self, context: String, take: impl Fn(&[u8; 32]) + Send + Sync + 'static) {
        self.takers.lock().push((context, Box::new(take)));
    }

    /// Whether the keys were given, so that other replicas have them, too.
    pub fn is_shared(&self) -> bool {
        !self.files.is_empty()
    }

    /// How many keys there are. One that was given twice counts once.
    pub fn count(&self) -> usize {
        self.verifier.keys().len()
    }

    /// Follows the files in one of `tasks`: new keys are put in force, broken ones are logged and the old ones stay.
    pub fn follow(&self, tasks: &mut JoinSet<()>, metrics: &'static KeyMetrics) {
        metrics.count(self.count());
        if !self.is_shared() {
            return;
        }
        let (reading, keyring) = (self.clone(), self.clone());
        let tell = move |reloaded: Result<bool, String>| {
            // Before the log line: whoever has read that finds it counted.
            metrics.count(keyring.count());
            metrics.reloaded(&reloaded);
            match &reloaded {
                Ok(true) => tracing::info!(keys = keyring.count(), "reloaded the shared keys"),
                Ok(false) => tracing::debug!("the shared keys are the same as before"),
                Err(error) => tracing::error!(%error, "the shared keys were not reloaded; the old ones stay"),
            }
        };
        self.followed.follow(tasks, move || reading.reload(), tell);
    }

    /// The files, to be read again when somebody asks.
    pub fn followed(&self) -> &Followed {
        &self.followed
    }

    /// Reads the files again and puts what they hold in force. Returns whether that is anything new.
    ///
    /// # Errors
    /// As [`new`](Self::new). The old keys stay.
    pub fn reload(&self) -> Result<bool, KeyringError> {
        if !self.is_shared() {
            return Ok(false);
        }
        let (first, all) = read(&self.files)?;
        if *self.verifier.keys() == all {
            return Ok(false);
        }
        // The verifier first: nobody gets a token that is not taken.
        self.verifier.replace(all);
        self.signer.replace(first);
        for (context, take) in &*self.takers.lock() {
            take(&self.derive_secret(context));
        }
        Ok(true)
    }
}

type Taker = (String, Box<dyn Fn(&[u8; 32]) + Send + Sync>);

/// Who is told of new secrets.
#[derive(Clone, Default)]
struct Takers(Arc<Mutex<Vec<Taker>>>);

impl Takers {
    fn lock(&self) -> MutexGuard<'_, Vec<Taker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Takers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lock().iter().map(|(context, _)| context)).finish()
    }
}

/// The first key, and the public halves of all, each once.
fn read(files: &[PathBuf]) -> Result<(SigningKey, Vec<VerifyingKey>), KeyringError> {
    let (mut first, mut all) = (None, Vec::new());
    for path in files {
        let data = std::fs::read(path).map_err(|error| KeyringError::File { path: path.clone(), error })?;
        let key = SigningKey::from_pem_or_der(&data);
        let key = key.map_err(|error| KeyringError::Key { path: path.clone(), error })?;
        let public = key.verifying_key();
        if !all.contains(&public) {
            all.push(public);
        }
        first.get_or_insert(key);
    }
    let first = first.ok_or(KeyringError::Generation(KeyError::Missing))?;
    Ok((first, all))
}
