//! Key-value stores that replicas share, on engines people already run.
//!
//! A [`Store`] keeps bytes under a key for a time. `RedisStore` (feature `redis`) and `Memcached` (feature `memcached`) are stores
//! over the network; anything else that keeps bytes can be one:
//!
//! ```
//! use bytes::Bytes;
//! use infogw_layers::store::{Store, StoreFuture};
//! use std::{collections::HashMap, sync::{Arc, Mutex}, time::Duration};
//!
//! /// Keeps everything, and for ever: for tests.
//! #[derive(Default)]
//! struct Memory(Mutex<HashMap<String, Bytes>>);
//!
//! impl Store for Memory {
//!     fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
//!         Box::pin(async { Ok(self.0.lock().unwrap().get(key).cloned()) })
//!     }
//!     fn set<'a>(&'a self, key: &'a str, value: Bytes, _life: Duration) -> StoreFuture<'a, ()> {
//!         Box::pin(async {
//!             self.0.lock().unwrap().insert(key.to_owned(), value);
//!             Ok(())
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), infogw_layers::store::StoreError> {
//! let store: Arc<dyn Store> = Arc::new(Memory::default());
//! store.set("app:key", Bytes::from_static(b"value"), Duration::from_secs(60)).await?;
//! assert_eq!(store.get("app:key").await?.as_deref(), Some(&b"value"[..]));
//! # Ok(()) }
//! ```

mod bounded;
mod circuits;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "redis")]
pub mod redis;

pub use bounded::{Bounded, Called, Operation, Outcome};
pub use circuits::Circuits;

use std::{borrow::Cow, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

/// What a store does takes this shape; boxed, since each crosses the network.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Longest value that is kept or believed, in bytes.
pub const MAX_VALUE: usize = 8 * 1024;

/// A key-value store that replicas share.
///
/// A future may be dropped at any time: the call was then made or not, and later calls are none the worse.
pub trait Store: Send + Sync + 'static {
    /// The value under `key`, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>>;

    /// Keeps `value`, 1 byte to [`MAX_VALUE`], under `key` for `life`, in whole seconds, at least one.
    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()>;
}

/// Why a store did not do what it was asked. None of them holds a key, a value or a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached, or it is there and refuses.
    #[error("unavailable: {0}")]
    Unavailable(Cow<'static, str>),
    /// It did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// It said what it must not say.
    #[error("protocol: {0}")]
    Protocol(Cow<'static, str>),
    /// It was not asked, for this cannot be asked.
    #[error("invalid: {0}")]
    Invalid(Cow<'static, str>),
    /// It was not asked: too many calls are under way.
    #[error("too many calls at once")]
    Busy,
    /// It was not asked: it failed several times in a row and is left alone for a while.
    #[error("left alone after failures in a row")]
    LeftAlone,
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        (**self).get(key)
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()> {
        (**self).set(key, value, life)
    }
}

/// How long a server may take to answer. Less than a [`Bounded`] call has: who finds a server silent shall be the client, which then
/// gives up the connection.
#[cfg(any(feature = "redis", feature = "memcached"))]
const RESPONSE: Duration = Duration::from_millis(40);

/// `life` as stores count it.
#[cfg(any(feature = "redis", feature = "memcached"))]
fn whole_seconds(life: Duration) -> u64 {
    life.as_secs().max(1)
}

#[cfg(any(feature = "redis", feature = "memcached"))]
fn check_value(value: &[u8]) -> Result<(), StoreError> {
    if (1..=MAX_VALUE).contains(&value.len()) {
        Ok(())
    } else {
        Err(StoreError::Invalid(format!("a value is 1 to {MAX_VALUE} bytes").into()))
    }
}
