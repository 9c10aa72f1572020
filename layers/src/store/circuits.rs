//! Circuits before servers that share the keys among them.

use std::sync::Arc;

use crate::circuit::Circuit;

/// Circuits by key: one for all keys; or in a Redis cluster one for each 256 of its 16,384 hash slots, so that keys on a master that
/// is dead are left alone, and those on other masters are not. Clones share their state.
#[derive(Debug, Clone)]
pub struct Circuits(Arc<[Circuit]>);

impl From<Circuit> for Circuits {
    fn from(circuit: Circuit) -> Self {
        Circuits(Arc::new([circuit]))
    }
}

impl Circuits {
    /// Those of a Redis cluster, each made by `circuit`.
    #[cfg(feature = "redis")]
    pub fn by_slots(circuit: impl FnMut() -> Circuit) -> Self {
        Circuits(std::iter::repeat_with(circuit).take(SLOTS / 256).collect())
    }

    /// The circuit for `key`.
    pub fn of(&self, key: &str) -> Option<&Circuit> {
        #[cfg(feature = "redis")]
        if self.0.len() > 1 {
            return self.0.get(slot(key) / 256);
        }
        let _ = key;
        self.0.first()
    }
}

#[cfg(feature = "redis")]
const SLOTS: usize = 16_384;

/// Where a cluster keeps `key`, as its specification says: by what stands between the first braces, if anything does.
#[cfg(feature = "redis")]
fn slot(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    usize::from(crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes())) % SLOTS
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;
    use std::{num::NonZeroU32, time::Duration};

    #[test]
    fn slots_are_those_of_redis() {
        // As CLUSTER KEYSLOT says.
        for (key, expected) in [
            ("", 0),
            ("foo", 12_182),
            ("bar", 5_061),
            ("{foo}bar", 12_182),
            ("a{foo}{bar}", 12_182),
            ("123456789", 12_739),
        ] {
            assert_eq!(slot(key), expected, "{key}");
        }
        assert_ne!(slot("{}foo"), slot("{}bar"), "an empty tag is none");
    }

    #[test]
    fn what_fails_for_some_keys_says_nothing_of_others() {
        let circuits = Circuits::by_slots(|| Circuit::new(NonZeroU32::MIN, Duration::from_secs(1)));
        circuits.of("foo").unwrap().admit(Duration::ZERO).unwrap().failed(Duration::ZERO);
        let open = |circuits: &Circuits, key: &str| circuits.of(key).unwrap().is_open();
        assert!(open(&circuits, "foo") && open(&circuits.clone(), "{foo}bar") && !open(&circuits, "bar"));
        let one = Circuits::from(Circuit::new(NonZeroU32::MIN, Duration::from_secs(1)));
        one.of("foo").unwrap().admit(Duration::ZERO).unwrap().failed(Duration::ZERO);
        assert!(open(&one, "foo") && open(&one, "bar"));
    }
}
