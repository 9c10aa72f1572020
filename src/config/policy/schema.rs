//! The JSON Schema of a policy file, for editors and CI.
//!
//! What the gateway takes and the schema does not: numbers and booleans in other spellings than JSON's. What the schema takes and the
//! gateway does not, since no schema can say it: selectors that do not parse, the cluster's label among those to set, remove or require,
//! days that a month has not, ids over 256 bytes and reasons over 512 in fewer characters, numbers that are too large, and whole ones written `5.0`.

use schemars::{Schema, SchemaGenerator, json_schema};

use super::values::{LabelName, Rule};

/// The schema, JSON Schema draft 7: what editors know.
pub const POLICY_SCHEMA: &str = include_str!("policy.schema.json");
/// A policy file to begin with: each key, and what it is for.
pub const POLICY_EXAMPLE: &str = include_str!("example.yaml");

/// Rules, of which there must be one.
pub(super) fn allowlist(generator: &mut SchemaGenerator) -> Schema {
    let rule = generator.subschema_for::<Rule>();
    json_schema!({ "type": "array", "items": rule, "minItems": 1 })
}

/// Labels with any values.
pub(super) fn set_labels(generator: &mut SchemaGenerator) -> Schema {
    labels(generator, 0)
}

/// Labels with values that are not empty.
pub(super) fn required_labels(generator: &mut SchemaGenerator) -> Schema {
    labels(generator, 1)
}

fn labels(generator: &mut SchemaGenerator, shortest: usize) -> Schema {
    let name = generator.subschema_for::<LabelName>();
    json_schema!({
        "type": "object",
        "propertyNames": name,
        // YAML takes 1.10 for a number, and editors with it; it is read as it is written.
        "additionalProperties": { "type": ["string", "number", "boolean"], "minLength": shortest }
    })
}

#[cfg(test)]
mod tests;
