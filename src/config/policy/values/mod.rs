//! The values that a policy file holds. Each is valid once it is there.

mod denied;
mod place;
mod rate;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use infogw_layers::{
    authorize::ClusterId, enforce::selector::Selector, payload::MOST_SERIES, policy::Exempt, rate_limit::Quota,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::super::{duration, is_label_name};

pub use denied::Denied;
pub use place::{At, Place, Source};
pub use rate::{Rate, RequestRate, SampleRate};

/// A key that is there says something.
pub(super) fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Option::deserialize(deserializer)? {
        None => Err(D::Error::custom("this key says nothing: give it a value, or leave it out")),
        said => Ok(said),
    }
}

/// A key may be left out, but not say nothing.
pub(super) fn without_null(schema: &mut Schema) {
    let Some(properties) = schema.get_mut("properties").and_then(|properties| properties.as_object_mut()) else {
        return;
    };
    for property in properties.values_mut() {
        if let Some(types) = property.get_mut("type").and_then(|types| types.as_array_mut()) {
            types.retain(|name| name != "null");
            if let [only] = &types[..] {
                property["type"] = only.clone();
            }
        }
        if let Some(any) = property.get_mut("anyOf").and_then(|any| any.as_array_mut()) {
            any.retain(|schema| schema != &serde_json::json!({ "type": "null" }));
        }
    }
}

/// Text without control characters.
pub(super) const PRINTABLE: &str = r"^[^\x00-\x1f\x7f-\x9f]*$";

/// A value written as text: how it is read, shown, and described in the schema.
macro_rules! text {
    ($type:ident, $name:literal, $schema:tt, $read:expr, $show:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                let read: fn(&str) -> Result<$type, String> = $read;
                read(&text).map_err(D::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let show: fn(&$type) -> String = $show;
                serializer.serialize_str(&show(self))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// A rule of an allowlist.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule(pub Selector);

text!(
    Rule,
    "Rule",
    { "type": "string", "minLength": 1, "description": "A PromQL series selector, such as up or {__name__=~\"cluster:.*\"}." },
    |text| text.parse().map(Rule).map_err(|error| format!("`{text}`: {error}")),
    |rule| rule.0.to_string()
);

/// A label's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelName(pub Box<str>);

text!(
    LabelName,
    "LabelName",
    { "type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$" },
    |text| match is_label_name(text) {
        true => Ok(LabelName(text.into())),
        false => Err(format!("`{text}` is not a label name")),
    },
    |name| name.0.to_string()
);

/// Labels with their values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(transparent)]
pub struct Labels(BTreeMap<LabelName, String>);

impl Deref for Labels {
    type Target = BTreeMap<LabelName, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<(LabelName, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (LabelName, String)>>(labels: I) -> Self {
        Labels(labels.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels with their values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<LabelName, String>()? {
                    if let Some(value) = labels.insert(name, value) {
                        return Err(A::Error::custom(format!("a label is there twice, once with `{value}`")));
                    }
                }
                Ok(Labels(labels))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A time between two requests; none is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interval(pub Duration);

impl Interval {
    /// One in this time; zero is unlimited.
    pub fn quota(self) -> Option<Quota> {
        Quota::one_per(self.0)
    }
}

text!(
    Interval,
    "Interval",
    {
        "anyOf": [
            { "const": 0 },
            { "type": "string", "pattern": "^\\+?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$" }
        ],
        "description": "A duration as Go writes it, such as 4m30s; 0s is unlimited."
    },
    |text| duration::parse(text).map(Interval).map_err(|error| error.to_string()),
    |interval| duration::written(interval.0)
);

/// A moment, RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment(pub SystemTime);

text!(
    Moment,
    "Moment",
    { "type": "string", "pattern": "^(19[7-9][0-9]|[2-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]+)?Z$", "description": "A moment in UTC, such as 2026-12-01T00:00:00Z." },
    |text| humantime::parse_rfc3339(text).map(Moment).map_err(|_| format!("`{text}` is not a moment in UTC, such as 2026-12-01T00:00:00Z")),
    |moment| humantime::format_rfc3339(moment.0).to_string()
);

/// The id of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub Arc<str>);

text!(
    Id,
    "Id",
    // YAML takes an id of digits for a number, and editors with it.
    { "type": ["string", "integer"], "minLength": 1, "maxLength": 256, "pattern": PRINTABLE },
    |text| match ClusterId::new(text) {
        Ok(_) => Ok(Id(text.into())),
        Err(error) => Err(error.to_string().replace("a cluster id", "an id")),
    },
    |id| id.0.to_string()
);

/// What stands in a tenant header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TenantName(pub HeaderValue);

text!(
    TenantName,
    "TenantName",
    { "type": "string", "minLength": 1, "pattern": "^[!-~]([ -~]*[!-~])?$" },
    TenantName::new,
    |name| name.as_str().to_owned()
);

impl TenantName {
    /// `text` as a tenant's name.
    ///
    /// # Errors
    /// What cannot stand in a header.
    pub fn new(text: &str) -> Result<Self, String> {
        match HeaderValue::from_str(text) {
            // Receivers take blanks around a header's value off.
            Ok(header) if !text.is_empty() && !text.contains('\t') && text.trim() == text => Ok(TenantName(header)),
            _ => Err(format!(
                "`{text}` cannot name a tenant: it stands in a header, so printable ASCII it is, without blanks around it"
            )),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// A limit of a size; 0 is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SizeLimit(pub u32);

impl SizeLimit {
    /// The limit, where `usize::MAX` is none.
    pub fn or_max(self) -> usize {
        if self.0 == 0 { usize::MAX } else { self.0 as usize }
    }
}

impl JsonSchema for SizeLimit {
    fn schema_name() -> Cow<'static, str> {
        "SizeLimit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "description": "0 is unlimited." })
    }
}

/// The most series in a request; 0 is the most that a payload counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct SeriesLimit(pub u32);

impl SeriesLimit {
    /// The limit.
    pub fn or_max(self) -> usize {
        if self.0 == 0 { MOST_SERIES } else { self.0 as usize }
    }
}

impl<'de> Deserialize<'de> for SeriesLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = u32::deserialize(deserializer)?;
        if limit as usize > MOST_SERIES {
            return Err(D::Error::custom(format!("at most {MOST_SERIES} series")));
        }
        Ok(SeriesLimit(limit))
    }
}

impl JsonSchema for SeriesLimit {
    fn schema_name() -> Cow<'static, str> {
        "SeriesLimit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": MOST_SERIES, "description": "0 is that most." })
    }
}

/// Which limits do not hold for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExemptFrom {
    /// `interval`, `request_rate` and `sample_rate`.
    Rates,
    /// The other limits.
    Sizes,
    /// The allowlist: all series pass.
    Allowlist,
}

/// The kinds together.
pub fn exempt(kinds: &[ExemptFrom]) -> Exempt {
    Exempt {
        rates: kinds.contains(&ExemptFrom::Rates),
        sizes: kinds.contains(&ExemptFrom::Sizes),
        allowlist: kinds.contains(&ExemptFrom::Allowlist),
    }
}

/// Whose series a cluster may write besides its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WritesFor {
    /// These clusters'.
    Clusters(Vec<Id>),
    /// Any cluster's.
    Any,
}

/// What stands for any cluster.
const ANY: &str = "*";

impl<'de> Deserialize<'de> for WritesFor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let clusters = Vec::<Id>::deserialize(deserializer)?;
        let any = clusters.iter().any(|id| &*id.0 == ANY);
        match (any, clusters.len()) {
            (false, _) => Ok(WritesFor::Clusters(clusters)),
            (true, 1) => Ok(WritesFor::Any),
            (true, _) => Err(D::Error::custom("`*` is any cluster, so nothing else stands beside it")),
        }
    }
}

impl Serialize for WritesFor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            WritesFor::Clusters(clusters) => clusters.serialize(serializer),
            WritesFor::Any => [ANY].serialize(serializer),
        }
    }
}

impl JsonSchema for WritesFor {
    fn schema_name() -> Cow<'static, str> {
        "WritesFor".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let id = generator.subschema_for::<Id>();
        json_schema!({
            "anyOf": [
                { "type": "array", "items": { "const": ANY }, "minItems": 1, "maxItems": 1 },
                { "type": "array", "items": { "allOf": [id, { "not": { "const": ANY } }] } }
            ],
            "description": "Clusters whose series it may write besides its own by remote write; [\"*\"] is any."
        })
    }
}
