//! How many a second.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    time::Duration,
};

use infogw_layers::rate_limit::Quota;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{said, without_null};

/// How many samples senders of this fleet may pack into a request, as they are configured: a burst below that would refuse such a
/// request for ever.
pub(in crate::config) const SAMPLES_PER_SEND: u32 = 10_000;
/// A burst is what the rate gives in so many seconds: a scrape's worth of requests comes at once, and then nothing until the next.
const BURST_SECONDS: f64 = 10.0;
/// Quotas count whole nanoseconds.
const HIGHEST_RATE: f64 = 1e9;

/// So many a second, and so many at once: `LEAST_BURST` at least, unless a burst is given.
#[derive(Debug, Clone, Copy)]
pub struct Rate<const LEAST_BURST: u32> {
    /// 0 is unlimited.
    pub per_second: f64,
    /// At once.
    pub burst: NonZeroU32,
    /// None is unlimited.
    pub quota: Option<Quota>,
}

/// Remote-write requests.
pub type RequestRate = Rate<1>;
/// Samples: a burst below what a stock sender packs into a request would refuse such a request for ever.
pub type SampleRate = Rate<{ SAMPLES_PER_SEND }>;

impl<const LEAST_BURST: u32> Rate<LEAST_BURST> {
    /// The least that a burst is where nobody says it.
    pub const LEAST_BURST: u32 = LEAST_BURST;

    /// So many a second.
    ///
    /// # Errors
    /// A rate or burst that no quota can have.
    pub fn new(per_second: f64, burst: Option<NonZeroU32>) -> Result<Self, String> {
        Ok(match quota(per_second, burst, LEAST_BURST)? {
            // A burst of what is unlimited says nothing.
            (None, _) => Rate { per_second: 0.0, burst: NonZeroU32::MIN, quota: None },
            (quota, burst) => Rate { per_second, burst, quota },
        })
    }
}

impl<const LEAST_BURST: u32> PartialEq for Rate<LEAST_BURST> {
    fn eq(&self, other: &Self) -> bool {
        (self.per_second.to_bits(), self.burst) == (other.per_second.to_bits(), other.burst)
    }
}

impl<const LEAST_BURST: u32> Eq for Rate<LEAST_BURST> {}

impl<const LEAST_BURST: u32> Hash for Rate<LEAST_BURST> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.per_second.to_bits(), self.burst).hash(state);
    }
}

/// So many a second, and so many at once.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename = "Rate", deny_unknown_fields)]
#[schemars(transform = without_null)]
struct WrittenRate {
    /// May have decimals: 0.1 is one in ten seconds. 0 is unlimited.
    #[schemars(range(min = 0, max = 1e9))]
    per_second: f64,
    /// How many at once; without, what the rate gives in 10 seconds, and of samples at least 10000.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    #[schemars(range(min = 1, max = 4294967295u32))]
    burst: Option<NonZeroU32>,
}

impl<'de, const LEAST_BURST: u32> Deserialize<'de> for Rate<LEAST_BURST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let WrittenRate { per_second, burst } = WrittenRate::deserialize(deserializer)?;
        Rate::new(per_second, burst).map_err(D::Error::custom)
    }
}

impl<const LEAST_BURST: u32> Serialize for Rate<LEAST_BURST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let burst = self.quota.map(|_| self.burst);
        WrittenRate { per_second: self.per_second, burst }.serialize(serializer)
    }
}

impl<const LEAST_BURST: u32> JsonSchema for Rate<LEAST_BURST> {
    fn schema_name() -> Cow<'static, str> {
        WrittenRate::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        WrittenRate::json_schema(generator)
    }
}

/// The quota of so many a second, and its burst. Without a rate there is no quota.
fn quota(per_second: f64, burst: Option<NonZeroU32>, least_burst: u32) -> Result<(Option<Quota>, NonZeroU32), String> {
    if per_second == 0.0 {
        return Ok((None, burst.unwrap_or(NonZeroU32::MIN)));
    }
    if !(0.0..=HIGHEST_RATE).contains(&per_second) {
        return Err(format!("{per_second} a second is not from 0 to {HIGHEST_RATE}; 0 is unlimited"));
    }
    // Casts of floats saturate.
    let default = (per_second * BURST_SECONDS).ceil() as u32;
    let burst = burst.unwrap_or(NonZeroU32::new(default.max(least_burst)).unwrap_or(NonZeroU32::MIN));
    // Rounded up, so that the rate is never exceeded.
    let period = Duration::from_nanos((1e9 / per_second).ceil() as u64);
    match Quota::new(period, burst) {
        Some(quota) => Ok((Some(quota), burst)),
        None => Err(format!("at {per_second} a second, a burst of {burst} takes centuries to come back")),
    }
}
