//! Who may not write, and why.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor},
};

use super::{Moment, PRINTABLE, said, without_null};

/// Why somebody may not write, if so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Denied {
    /// It may write, whatever its account's override says.
    No,
    /// It may not.
    Because {
        /// What the sender is told.
        reason: Box<str>,
        /// Until when; for good without.
        until: Option<Moment>,
    },
}

/// Why, and until when.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename = "Denial", deny_unknown_fields)]
#[schemars(transform = without_null)]
struct WrittenDenial {
    /// What the sender is told: one line.
    #[schemars(length(min = 1, max = 512), regex(pattern = PRINTABLE))]
    reason: Box<str>,
    /// Until when; for good without.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    until: Option<Moment>,
}

const LONGEST_REASON: usize = 512;

impl Denied {
    fn because<E: de::Error>(reason: &str, until: Option<Moment>) -> Result<Self, E> {
        // The whole answer has 1,024.
        if reason.is_empty() || reason.len() > LONGEST_REASON {
            return Err(E::custom(format!("a reason has 1 to {LONGEST_REASON} bytes")));
        }
        if reason.contains(char::is_control) {
            return Err(E::custom("a reason is one line: senders are told it as it is"));
        }
        Ok(Denied::Because { reason: reason.into(), until })
    }
}

impl<'de> Deserialize<'de> for Denied {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;

        impl<'de> Visitor<'de> for Expected {
            type Value = Denied;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a reason, `{reason: ..., until: ...}`, or false")
            }

            fn visit_bool<E: de::Error>(self, denied: bool) -> Result<Denied, E> {
                if denied { Err(E::custom("say why: write the reason in place of `true`")) } else { Ok(Denied::No) }
            }

            fn visit_str<E: de::Error>(self, reason: &str) -> Result<Denied, E> {
                Denied::because(reason, None)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Denied, A::Error> {
                let WrittenDenial { reason, until } =
                    Deserialize::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Denied::because(&reason, until)
            }
        }

        deserializer.deserialize_any(Expected)
    }
}

impl Serialize for Denied {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Denied::No => serializer.serialize_bool(false),
            Denied::Because { reason, until: None } => serializer.serialize_str(reason),
            Denied::Because { reason, until } => {
                WrittenDenial { reason: reason.clone(), until: *until }.serialize(serializer)
            }
        }
    }
}

impl JsonSchema for Denied {
    fn schema_name() -> Cow<'static, str> {
        "Denied".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let written = generator.subschema_for::<WrittenDenial>();
        json_schema!({
            "anyOf": [{ "const": false }, { "type": "string", "minLength": 1, "maxLength": LONGEST_REASON, "pattern": PRINTABLE }, written],
            "description": "Why it may not write, as its sender is told with 403; false where only its account may not."
        })
    }
}
