use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Reads a JSON object that names no key twice at any depth: two readers of `{"sub":"a","sub":"b"}` may disagree on who
/// that is, and RFC 7515, section 4, and RFC 7519, section 4, allow to refuse it.
///
/// Depth is bounded as [`Unique`] bounds it.
#[cfg(feature = "jwt")]
pub(super) fn object<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, serde_json::Error> {
    // On its own, since a derived `Deserialize` takes an array for a struct and sees no repeats among keys it ignores.
    match serde_json::from_slice(json)? {
        Unique::Object => serde_json::from_slice(json),
        Unique::Other => Err(serde_json::Error::custom("not an object")),
    }
}

/// What an error begins with that says that a key was named twice.
pub(super) const REPEATED: &str = "repeated key";

/// Any JSON value in which no object names a key twice. serde_json bounds its depth, at 128, as it does not for what it ignores.
pub(super) enum Unique {
    Object,
    Other,
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key) {
                return Err(A::Error::custom(REPEATED));
            }
            map.next_value::<Unique>()?;
        }
        Ok(Unique::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unique, A::Error> {
        while seq.next_element::<Unique>()?.is_some() {}
        Ok(Unique::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique::Other)
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique::Other)
    }
}

#[cfg(all(test, feature = "jwt"))]
mod tests {
    use serde::de::IgnoredAny;

    use super::object;

    fn is_object(json: &str) -> bool {
        object::<IgnoredAny>(json.as_bytes()).is_ok()
    }

    #[test]
    fn objects_only() {
        assert!(is_object(r#" {"a":[1,-1,0.5,true,null,"x",{"a":{"a":1}}],"b":{}} "#));
        for json in ["", "[]", "1", "null", r#""a""#, "{}{}", "{", r#"{"a":1,}"#, r#"{"a":"#] {
            assert!(!is_object(json), "{json}");
        }
        assert!(object::<IgnoredAny>(b"{\"a\":\"\xff\"}").is_err(), "not UTF-8");
    }

    #[test]
    fn repeated_keys_are_refused_at_any_depth_and_in_any_spelling() {
        for json in
            [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"\u0061":1}"#, r#"{"x":{"a":1,"a":1}}"#, r#"{"x":[1,{"a":1,"a":1}]}"#]
        {
            assert!(!is_object(json), "{json}");
        }
        assert!(is_object(r#"{"a":{"b":1},"b":{"a":1},"A":1}"#));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(is_object(&nested(64)));
        assert!(!is_object(&nested(200)));
        assert!(!is_object(&format!(r#"{{"a":{}"#, "[".repeat(100_000))));
        assert!(!is_object(&r#"{"a":"#.repeat(100_000)));
    }
}
