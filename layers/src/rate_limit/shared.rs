//! One rate limit for several processes, kept in Redis or Valkey (6.0 and up).
//!
//! A [`SharedLimiter`] decides by one atomic script a request, with the arithmetic of [`LocalLimiter`], so that all processes that
//! ask the same Redis together allow what one would. What time it is Redis says: the processes' clocks may differ.
//!
//! **Without Redis** the local limiter decides: when Redis fails, does not answer within the deadline (50 ms), or has not for some
//! times in a row, in which case it is asked once in a while only. No request fails for it.
//! - The local limiter knows of each key what Redis said last, so a key that was over the limit still is. As long as Redis is gone,
//!   N processes can allow N times the quota.
//! - What it grants meanwhile, Redis is told with the next check of the key: whichever debt is larger counts, so that the end of an
//!   outage is no second burst.
//! - A check that was too late may have been charged in Redis all the same. Where the local limiter granted it, too, that is the
//!   same debt, counted once; it cannot be given back there. Where it did not, the key has paid for an attempt that was refused, and
//!   waits longer by its cost.
//! - In a cluster a check may be sent again whose answer was lost with its connection, and is then charged twice.
//! - A refund that does not reach Redis is lost: the attempt stays charged there.
//!
//! **Keys** are `PREFIX:HASH`, by HMAC-SHA-256 cut to 128 bits, and hold `seconds.nanoseconds` of the arrival time, and
//! where something was given back, of how much, and until when that matters. Whoever reads them learns no name. Each expires a second after its state is of no more use; should Redis evict one, that key has its burst back
//! early. A script is about one key, so a cluster does as well.
//!
//! ```no_run
//! use infogw_layers::{
//!     rate_limit::{Due, Quota, RateLimitLayer, shared::SharedLimiter},
//!     store::redis::{RedisConfig, RedisConnection, RedisMode},
//! };
//! use std::{sync::Arc, time::Duration};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connection = RedisConnection::new(&RedisConfig::new(&["redis://localhost"], RedisMode::Single)?)?;
//! let secret = [7; 32]; // the same in every process, and known to nobody else
//! let limiter = SharedLimiter::builder(connection, "app:by-host", &secret, Arc::default()).build();
//!
//! let one_a_minute = Quota::one_per(Duration::from_secs(60)).unwrap();
//! let by_host = move |request: &http::Request<()>| {
//!     Some(Due { key: request.headers().get("host")?.as_bytes().to_vec(), cost: 1, quota: one_a_minute })
//! };
//! let layer = RateLimitLayer::new(by_host).limiter(limiter);
//! # Ok(()) }
//! ```

use std::{
    fmt::{self, Write as _},
    future::ready,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use redis::{FromRedisValue, RedisError, Script, ScriptInvocation, aio::ConnectionLike};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    Limiter,
    limiter::{self, Key, LocalLimiter, Permit, Quota, Refused},
};
use crate::{
    circuit::Circuit,
    observe::Observe,
    store::{Circuits, redis::RedisConnection},
};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_millis(50);
/// So many failures in a row, and Redis is left alone for so long.
const FAILURES: NonZeroU32 = NonZeroU32::new(3).unwrap();
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How long state that has passed is kept: as long as a reading of the clock may be late.
const KEEP: Duration = Duration::from_secs(1);
/// How many refunds may be under way.
const REFUNDS: usize = 1_024;
/// Longer than any test with a time of its own takes.
const KEEP_UNTIMED: Duration = Duration::from_secs(3_600);

/// A script, behind the arithmetic that all of them use.
macro_rules! script {
    ($path:literal) => {
        Script::new(concat!(include_str!("shared/arithmetic.lua"), include_str!($path)))
    };
}

/// A rate limiter whose state is in Redis; see the [module](self). Clones are one limiter.
///
/// It runs on any connection of the `redis` crate that is cheap to clone.
pub struct SharedLimiter<C = RedisConnection>(Arc<Inner<C>>);

/// Makes a [`SharedLimiter`].
pub struct SharedLimiterBuilder<C = RedisConnection>(Inner<C>);

struct Inner<C> {
    connection: C,
    prefix: Box<str>,
    secret: ArcSwap<hmac::Key>,
    take: Script,
    give_back: Script,
    restore: Script,
    circuits: Circuits,
    refunds: Arc<Semaphore>,
    deadline: Duration,
    observer: Box<dyn Observe<SharedEvent> + Send + Sync>,
    /// Where Redis' own clock is not to be used: in tests.
    time: Option<Box<dyn Fn() -> Duration + Send + Sync>>,
    /// What Redis said last, and what was granted without it.
    local: Arc<LocalLimiter>,
    /// What was granted without Redis, as long as that has not been told.
    untold: LocalLimiter,
}

/// What an observer of a [`SharedLimiter`] is told.
#[derive(Debug)]
pub enum SharedEvent {
    /// Redis decided.
    Answered,
    /// The local limiter decided in its place.
    FellBack(Fallback),
    /// A refund did not reach Redis, and the attempt stays charged.
    RefundLost(Fallback),
}

/// Why Redis did not decide.
#[derive(Debug)]
pub enum Fallback {
    /// It did not answer in time.
    TimedOut,
    /// It could not be asked, or it refused.
    Failed(RedisError),
    /// It had not answered for some time, and was not asked.
    CircuitOpen,
    /// It has not answered to many refunds that are under way, and was not asked for this one.
    Busy,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fallback::TimedOut => f.write_str("it did not answer in time"),
            Fallback::Failed(error) => write!(f, "{error}"),
            Fallback::CircuitOpen => f.write_str("it is left alone for a while"),
            Fallback::Busy => f.write_str("too many refunds are under way"),
        }
    }
}

impl<C> SharedLimiter<C> {
    /// A limiter whose state is under keys that begin with `prefix`, which names the limit: two limits need two.
    ///
    /// Keys are hashed with `secret`, which has to be the same in all processes that share. Without Redis, `local` decides, which is
    /// for this limiter alone.
    pub fn builder(
        connection: C,
        prefix: &str,
        secret: &[u8; 32],
        local: Arc<LocalLimiter>,
    ) -> SharedLimiterBuilder<C> {
        SharedLimiterBuilder(Inner {
            connection,
            prefix: prefix.into(),
            secret: ArcSwap::from_pointee(hmac::Key::new(hmac::HMAC_SHA256, secret)),
            take: script!("shared/take.lua"),
            give_back: script!("shared/give_back.lua"),
            restore: script!("shared/restore.lua"),
            circuits: Circuit::new(FAILURES, LEFT_ALONE).into(),
            refunds: Arc::new(Semaphore::new(REFUNDS)),
            deadline: DEADLINE,
            observer: Box::new(()),
            time: None,
            untold: local.sibling(),
            local,
        })
    }
}

impl<C> SharedLimiter<C> {
    /// Hashes keys with `secret` from now on. What was granted until now is given back under the old one.
    ///
    /// State under the old secret is found no more, and expires: each key has its whole burst once again. So do all processes with
    /// another secret than this one's, until they have it, too.
    pub fn set_secret(&self, secret: &[u8; 32]) {
        self.0.secret.store(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    }
}

impl<C> SharedLimiterBuilder<C> {
    /// Asks through `circuit`, which limits on the same Redis can share: a [`Circuit`] for all keys, or [`Circuits`]. Otherwise each
    /// has one of its own, which opens for a second after three failures in a row.
    #[must_use]
    pub fn circuit(self, circuit: impl Into<Circuits>) -> Self {
        SharedLimiterBuilder(Inner { circuits: circuit.into(), ..self.0 })
    }

    /// How long Redis may take to answer: 50 ms unless set.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        SharedLimiterBuilder(Inner { deadline, ..self.0 })
    }

    /// Tells `observer` who decided.
    #[must_use]
    pub fn observed_by(self, observer: impl Observe<SharedEvent> + Send + Sync + 'static) -> Self {
        SharedLimiterBuilder(Inner { observer: Box::new(observer), ..self.0 })
    }

    /// Takes the time from `time` instead of Redis, where state is then kept for an hour longer than it need be.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn time(self, time: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        SharedLimiterBuilder(Inner { time: Some(Box::new(time)), ..self.0 })
    }

    /// The limiter.
    pub fn build(self) -> SharedLimiter<C> {
        SharedLimiter(Arc::new(self.0))
    }
}

impl<C> Clone for SharedLimiter<C> {
    fn clone(&self) -> Self {
        SharedLimiter(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for SharedLimiter<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { prefix, deadline, circuits, .. } = &*self.0;
        f.debug_struct("SharedLimiter")
            .field("prefix", prefix)
            .field("deadline", deadline)
            .field("circuits", circuits)
            .finish_non_exhaustive()
    }
}

/// What a [`SharedLimiter`] granted.
#[derive(Debug)]
#[must_use = "keep it for as long as the attempt may need a refund, or drop it to let the attempt count"]
pub struct SharedPermit(Option<Granted>);

/// `None` of it: an attempt that cost nothing.
#[derive(Debug)]
struct Granted {
    /// In the local limiter, which is as Redis is.
    local: Permit,
    by: By,
}

#[derive(Debug)]
enum By {
    Redis(RedisPermit),
    Local {
        /// What is to be told.
        untold: Permit,
        /// Redis was asked, and was not heard in time.
        unheard: bool,
    },
}

/// As [`Permit`], by Redis' time.
#[derive(Debug)]
struct RedisPermit {
    key: String,
    before: Duration,
    end: Duration,
    granted: Duration,
    spare: Duration,
    refunded: Duration,
}

impl RedisPermit {
    /// The arrival time after a refund with a floor, which may be past `end`: then there is nothing to give back.
    fn restored(&self, floor: Duration) -> Duration {
        self.granted.saturating_add(floor).saturating_add(self.spare).max(self.before)
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Limiter for SharedLimiter<C> {
    type Permit = SharedPermit;
    type Taking = Pin<Box<dyn Future<Output = Result<SharedPermit, Refused>> + Send>>;
    type GivingBack = Pin<Box<dyn Future<Output = bool> + Send>>;
    const WAITS: bool = true;

    fn try_take(&self, key: &[u8], cost: u32, quota: &Quota, now: Duration) -> Self::Taking {
        let Some(charge) = quota.charge(cost) else {
            return Box::pin(ready(Err(Refused::Never { cost, burst: quota.burst() })));
        };
        if charge == 0 {
            return Box::pin(ready(Ok(SharedPermit(None))));
        }
        let (inner, quota) = (Arc::clone(&self.0), *quota);
        let (key, redis_key) = (inner.local.key(key), inner.redis_key(key));
        Box::pin(async move {
            let granted = inner.take(key, redis_key, cost, Duration::from_nanos(charge), &quota, now).await;
            granted.map(|granted| SharedPermit(Some(granted)))
        })
    }

    fn give_back(&self, permit: SharedPermit, floor: Duration, now: Duration) -> Self::GivingBack {
        let SharedPermit(Some(Granted { local, by })) = permit else {
            return Box::pin(ready(false));
        };
        let here = self.0.local.refund(local, floor, now);
        match by {
            By::Local { untold, unheard } => {
                self.0.untold.refund(untold, floor, now);
                if unheard && here {
                    self.0.observer.observe(&SharedEvent::RefundLost(Fallback::TimedOut));
                }
                Box::pin(ready(here && !unheard))
            }
            By::Redis(permit) if !floor.is_zero() && permit.restored(floor) >= permit.end => Box::pin(ready(false)),
            By::Redis(permit) => {
                let inner = Arc::clone(&self.0);
                let Ok(place) = Arc::clone(&inner.refunds).try_acquire_owned() else {
                    inner.observer.observe(&SharedEvent::RefundLost(Fallback::Busy));
                    return Box::pin(ready(false));
                };
                Box::pin(async move {
                    let _place = place;
                    inner.give_back(&permit, floor, now).await
                })
            }
        }
    }
}

impl<C: ConnectionLike + Clone> Inner<C> {
    /// `PREFIX:HASH`, the hash in hexadecimal.
    fn redis_key(&self, key: &[u8]) -> String {
        let hash = hmac::sign(&self.secret.load(), key);
        let mut text = String::with_capacity(self.prefix.len() + 33);
        text.push_str(&self.prefix);
        text.push(':');
        for byte in hash.as_ref().iter().take(16) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    async fn take(
        &self,
        key: Key,
        redis_key: String,
        cost: u32,
        charge: Duration,
        quota: &Quota,
        now: Duration,
    ) -> Result<Granted, Refused> {
        let whole = Duration::from_nanos(quota.whole());
        let untold = self.untold.arrival(key, now);
        let known = untold.map_or(Duration::ZERO, |arrival| limiter::debt(arrival, now));
        let mut take = self.take.key(&redis_key);
        self.arguments(&mut take, &[charge, whole, known]);
        let answer: Answer = match self.ask(&redis_key, &take, now).await {
            Ok(answer) => answer,
            Err(fallback) => {
                // It may be charged there all the same, now or later.
                let unheard = matches!(fallback, Fallback::TimedOut);
                self.observer.observe(&SharedEvent::FellBack(fallback));
                let local = self.local.check(key, cost, quota, now)?;
                return Ok(Granted { by: By::Local { untold: self.untold.copy(&local), unheard }, local });
            }
        };
        self.observer.observe(&SharedEvent::Answered);
        if let Some(arrival) = untold {
            self.untold.forget(key, arrival);
        }
        match answer {
            Answer::Granted { now: granted, before, end, refunded } => {
                let debt = end.saturating_sub(granted).max(self.owed(key, now));
                let local = self.local.set_granted(key, cost, quota, debt, now);
                let spare = whole.saturating_sub(quota.period());
                Ok(Granted {
                    local,
                    by: By::Redis(RedisPermit { key: redis_key, before, end, granted, spare, refunded }),
                })
            }
            Answer::Refused { retry_after } => {
                let debt = whole.saturating_add(retry_after).saturating_sub(charge).max(self.owed(key, now));
                self.local.set_debt(key, debt, now);
                Err(Refused::Later { retry_after })
            }
        }
    }

    /// What was granted without Redis while it was asked for something else. It does not know of that.
    fn owed(&self, key: Key, now: Duration) -> Duration {
        self.untold.arrival(key, now).map_or(Duration::ZERO, |arrival| limiter::debt(arrival, now))
    }

    async fn give_back(&self, permit: &RedisPermit, floor: Duration, now: Duration) -> bool {
        let RedisPermit { key, before, end, granted, refunded, .. } = permit;
        let mut give_back;
        if floor.is_zero() {
            give_back = self.give_back.key(key);
            self.arguments(&mut give_back, &[*before, *end, *granted, *refunded]);
        } else {
            give_back = self.restore.key(key);
            self.arguments(&mut give_back, &[*end, permit.restored(floor), *refunded]);
        }
        match self.ask(key, &give_back, now).await {
            Ok(changed) => changed,
            Err(fallback) => {
                self.observer.observe(&SharedEvent::RefundLost(fallback));
                false
            }
        }
    }

    /// What all scripts take: these, how long to keep state that has passed, and the time unless it is Redis' own.
    fn arguments(&self, script: &mut ScriptInvocation<'_>, times: &[Duration]) {
        for time in times {
            script.arg(time.as_secs()).arg(time.subsec_nanos());
        }
        script.arg(if self.time.is_some() { KEEP_UNTIMED } else { KEEP }.as_millis() as u64);
        if let Some(time) = &self.time {
            let time = time();
            script.arg(time.as_secs()).arg(time.subsec_nanos());
        }
    }

    /// What Redis says, within the deadline; `now` is the time here.
    async fn ask<T: FromRedisValue>(
        &self,
        key: &str,
        invocation: &ScriptInvocation<'_>,
        now: Duration,
    ) -> Result<T, Fallback> {
        let attempt = self.circuits.of(key).and_then(|circuit| circuit.admit(now).ok());
        let attempt = attempt.ok_or(Fallback::CircuitOpen)?;
        let asked = Instant::now();
        let mut connection = self.connection.clone();
        // The library loads the script where Redis does not know it.
        let answer = timeout(self.deadline, invocation.invoke_async(&mut connection)).await;
        let fallback = match answer {
            Ok(Ok(answer)) => {
                attempt.succeeded();
                return Ok(answer);
            }
            Ok(Err(error)) if !error.is_timeout() => Fallback::Failed(error),
            _ => Fallback::TimedOut,
        };
        attempt.failed(now.saturating_add(asked.elapsed()));
        Err(fallback)
    }
}

/// What `take.lua` returns.
enum Answer {
    Granted { now: Duration, before: Duration, end: Duration, refunded: Duration },
    Refused { retry_after: Duration },
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: redis::Value) -> Result<Self, redis::ParsingError> {
        let numbers: Vec<i64> = FromRedisValue::from_redis_value(value)?;
        let time = |seconds: i64, nanos: i64| match (u64::try_from(seconds), u32::try_from(nanos)) {
            (Ok(seconds), Ok(nanos @ ..=999_999_999)) => Ok(Duration::new(seconds, nanos)),
            _ => Err(redis::ParsingError::from("this is no time")),
        };
        match *numbers.as_slice() {
            [1, now_s, now_n, before_s, before_n, end_s, end_n, refunded_s, refunded_n] => Ok(Answer::Granted {
                now: time(now_s, now_n)?,
                before: time(before_s, before_n)?,
                end: time(end_s, end_n)?,
                refunded: time(refunded_s, refunded_n)?,
            }),
            [0, wait_s, wait_n] => Ok(Answer::Refused { retry_after: time(wait_s, wait_n)? }),
            _ => Err(redis::ParsingError::from("this is not what the script returns")),
        }
    }
}
