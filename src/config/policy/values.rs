//! The values that a policy file holds. Each is valid once it is there.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    ops::Deref,
    path::Path,
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
    de::{self, Error as _, MapAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::{
    super::{duration, is_label_name, rates},
    schema,
};

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// In what.
    pub source: Source,
    /// From 1; 0 where there are no lines.
    pub line: u64,
    /// In characters, from 1; 0 where only the line is known.
    pub column: u64,
}

/// What a [`Place`] is in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// Nobody said it: it is the default.
    #[default]
    Default,
    /// A flag.
    Flag(&'static str),
    /// A file that a flag names.
    File(Arc<Path>),
    /// The policy file.
    Policy,
}

impl fmt::Display for Place {
    /// `--whitelist`, `rules.txt:3`; of the policy file `12:5` alone, since it is the reader's to know which that is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Default => f.write_str("default"),
            Source::Flag(flag) => f.write_str(flag),
            Source::File(path) => write!(f, "{}:{}", path.display(), self.line),
            Source::Policy => write!(f, "{}:{}", self.line, self.column),
        }
    }
}

/// A value, and where it stands. Equal to any other with that value.
#[derive(Debug, Clone, Default)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

impl<T> At<T> {
    /// A value that `flag` gives.
    pub fn flag(flag: &'static str, value: T) -> Self {
        At { value, place: Place { source: Source::Flag(flag), line: 0, column: 0 } }
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

impl<T: Hash> Hash for At<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value.hash(state);
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::deserialize(deserializer)?;
        let (line, column) = (referenced.line(), referenced.column());
        Ok(At { value, place: Place { source: Source::Policy, line, column } })
    }
}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A key that is there says something.
pub(super) fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    match Option::deserialize(deserializer)? {
        None => Err(D::Error::custom("this key says nothing: give it a value, or leave it out")),
        said => Ok(said),
    }
}

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
    { "type": ["string", "integer"], "minLength": 1, "maxLength": 256, "pattern": schema::PRINTABLE },
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
pub type SampleRate = Rate<{ rates::SAMPLES_PER_SEND }>;

impl<const LEAST_BURST: u32> Rate<LEAST_BURST> {
    /// The least that a burst is where nobody says it.
    pub const LEAST_BURST: u32 = LEAST_BURST;

    /// So many a second.
    ///
    /// # Errors
    /// A rate or burst that no quota can have.
    pub fn new(per_second: f64, burst: Option<NonZeroU32>) -> Result<Self, String> {
        Ok(match rates::quota(per_second, burst, LEAST_BURST)? {
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
#[schemars(transform = schema::without_null)]
struct WrittenRate {
    /// May have decimals: 0.1 is one in ten seconds. 0 is unlimited.
    #[schemars(range(min = 0, max = 1e9))]
    per_second: f64,
    /// How many at once; without, what the rate gives in 10 seconds, and of samples at least 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
#[schemars(transform = schema::without_null)]
struct WrittenDenial {
    /// What the sender is told: one line.
    #[schemars(length(min = 1, max = 512), regex(pattern = schema::PRINTABLE))]
    reason: Box<str>,
    /// Until when; for good without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
            "anyOf": [{ "const": false }, { "type": "string", "minLength": 1, "maxLength": LONGEST_REASON, "pattern": schema::PRINTABLE }, written],
            "description": "Why it may not write, as its sender is told with 403; false where only its account may not."
        })
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
