//! A policy as it is written: the file's format. What a key leaves out is `None`, and somebody else says it.

use std::{
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    marker::PhantomData,
    sync::Arc,
};

use infogw_layers::enforce::ClusterLabelCheck;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::values::{
    At, Denied, ExemptFrom, Id, Interval, LabelName, Labels, Place, RequestRate, Rule, SampleRate, SeriesLimit,
    SizeLimit, Source, TenantName, WritesFor,
};
use super::{schema, values};

/// A structure all of whose keys may be left out, but not be there and say nothing: whoever has commented out what stood below a
/// key, the rules of an allowlist, say, does not mean that all shall pass. Each key by itself can be filled up from another such
/// structure.
macro_rules! keys {
    ($(#[$doc:meta])* $name:ident { $($(#[$key_doc:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(transform = values::without_null)]
        pub struct $name {
            $(
                $(#[$key_doc])*
                #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "values::said")]
                pub $key: Option<$type>,
            )*
        }

        impl Fill for $name {
            fn fill(self, other: Self) -> Self {
                $name { $($key: self.$key.fill(other.$key),)* }
            }
        }
    };
}

/// What may be said in several places, of which the first counts.
pub trait Fill {
    /// What is not said here is as it is there.
    #[must_use]
    fn fill(self, other: Self) -> Self;
}

/// Values are whole: nothing is merged within one.
macro_rules! whole {
    ($($(#[$doc:meta])* $type:ty),*) => { $(impl Fill for Option<$type> {
        fn fill(self, other: Self) -> Self {
            self.or(other)
        }
    })* };
}

whole!(
    At<Vec<At<Rule>>>,
    Vec<At<LabelName>>,
    At<Labels>,
    At<ClusterLabelCheckMode>,
    Interval,
    RequestRate,
    SampleRate,
    SizeLimit,
    SeriesLimit,
    At<Tenant>,
    ById<Tenant>,
    ById<Override>
);

/// Sections are merged key by key.
macro_rules! sections {
    ($($type:ty),*) => { $(impl Fill for Option<$type> {
        fn fill(self, other: Self) -> Self {
            match (self, other) {
                (Some(section), Some(other)) => Some(section.fill(other)),
                (section, other) => section.or(other),
            }
        }
    })* };
}

sections!(Upload, Receive, UploadLimits, ReceiveLimits, Tenants, Overrides);

keys! {
    /// What clusters may write, how much of it, and where it goes.
    Document {
        /// What holds for `/upload`.
        upload: Upload,
        /// What holds for `/metrics/v1/receive`.
        receive: Receive,
        /// Which tenant of the upstream a sender writes to.
        tenants: Tenants,
        /// What holds for some instead. Each key counts by itself: what is said of a cluster goes over what is said of its account,
        /// and that over what is said above.
        overrides: Overrides,
    }
}

keys! {
    /// What holds for `/upload`.
    Upload {
        /// Series that pass: those that any of these PromQL selectors selects; without, all. In place of --whitelist and
        /// --whitelist-file.
        #[schemars(schema_with = "schema::allowlist")]
        allowlist: At<Vec<At<Rule>>>,
        /// Labels that are removed. In place of --elide-label.
        elide: Vec<At<LabelName>>,
        /// Labels that are set, replacing what is there. In place of --label.
        #[schemars(schema_with = "schema::set_labels")]
        set: At<Labels>,
        /// Labels that go into issued tokens, and so must be on series with these values. A token is held to what it was issued with.
        /// In place of --required-label.
        #[schemars(schema_with = "schema::required_labels")]
        require: At<Labels>,
        /// How often, and how much.
        limits: UploadLimits,
    }
}

keys! {
    /// What holds for `/metrics/v1/receive`.
    Receive {
        /// Series that pass: those that any of these PromQL selectors selects; without, all. In place of --whitelist and
        /// --whitelist-file.
        #[schemars(schema_with = "schema::allowlist")]
        allowlist: At<Vec<At<Rule>>>,
        /// Labels that are removed. In place of --receive-elide-label.
        elide: Vec<At<LabelName>>,
        /// Labels that are set, replacing what is there. In place of --receive-label.
        #[schemars(schema_with = "schema::set_labels")]
        set: At<Labels>,
        /// Labels that must be on every series with these values.
        #[schemars(schema_with = "schema::required_labels")]
        require: At<Labels>,
        /// What happens to a series with another cluster's label. In place of --cluster-label-check.
        cluster_label_check: At<ClusterLabelCheckMode>,
        /// How often, and how much.
        limits: ReceiveLimits,
    }
}

keys! {
    /// How often, and how much in one request.
    UploadLimits {
        /// One upload per cluster in this time; 0s is unlimited. In place of --ratelimit.
        interval: Interval,
        /// Largest body, decoded. In place of --limit-bytes.
        decoded_bytes: SizeLimit,
        /// Most series. In place of --limit-series.
        series: SeriesLimit,
        /// Most samples.
        samples: SizeLimit,
        /// Most labels of a series, its name among them. In place of --limit-labels.
        labels: SizeLimit,
        /// Longest label name. In place of --limit-label-name-bytes.
        label_name_bytes: SizeLimit,
        /// Longest label value, and metric name. In place of --limit-label-value-bytes.
        label_value_bytes: SizeLimit,
    }
}

keys! {
    /// How often, and how much in one request.
    ReceiveLimits {
        /// Requests per cluster. In place of --limit-receive-requests-per-second and -burst.
        request_rate: RequestRate,
        /// Samples per cluster, native histograms among them. In place of --limit-receive-samples-per-second and -burst.
        sample_rate: SampleRate,
        /// Largest body, on the wire. In place of --limit-receive-bytes.
        body_bytes: SizeLimit,
        /// Largest body, decoded. In place of --limit-receive-decoded-bytes.
        decoded_bytes: SizeLimit,
        /// Most series. In place of --limit-series.
        series: SeriesLimit,
        /// Most samples, native histograms among them.
        samples: SizeLimit,
        /// Most labels of a series, its name among them. In place of --limit-labels.
        labels: SizeLimit,
        /// Longest label name. In place of --limit-receive-label-name-bytes.
        label_name_bytes: SizeLimit,
        /// Longest label value. In place of --limit-receive-label-value-bytes.
        label_value_bytes: SizeLimit,
    }
}

/// What happens to a series with another cluster's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClusterLabelCheckMode {
    /// It is refused.
    Enforce,
    /// It passes and is counted.
    Count,
    /// It passes.
    Off,
}

impl From<ClusterLabelCheckMode> for ClusterLabelCheck {
    fn from(mode: ClusterLabelCheckMode) -> Self {
        match mode {
            ClusterLabelCheckMode::Enforce => ClusterLabelCheck::Enforce,
            ClusterLabelCheckMode::Count => ClusterLabelCheck::Count,
            ClusterLabelCheckMode::Off => ClusterLabelCheck::Off,
        }
    }
}

keys! {
    /// Which tenant of the upstream a sender writes to: the value of THANOS-TENANT, and of `{tenant}` in --forward-url. What is said
    /// of a cluster goes over what is said of its account, and that over the endpoint's.
    Tenants {
        /// Everyone else's uploads. In place of --tenant-id.
        upload: At<Tenant>,
        /// Everyone else's remote write; none is sent without. In place of --receive-tenant-id.
        receive: At<Tenant>,
        /// By account.
        accounts: ById<Tenant>,
        /// By cluster.
        clusters: ById<Tenant>,
    }
}

/// A tenant of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// The header's value.
    pub header: TenantName,
    /// What stands for `{tenant}` in the URL.
    pub url: TenantName,
}

impl Tenant {
    /// The same name in both places.
    pub fn named(name: TenantName) -> Self {
        Tenant { header: name.clone(), url: name }
    }
}

/// A name for each place.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename = "TenantNames", deny_unknown_fields)]
struct WrittenTenant {
    /// Value of THANOS-TENANT.
    header: TenantName,
    /// What stands for `{tenant}` in --forward-url.
    url: TenantName,
}

impl<'de> Deserialize<'de> for Tenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;

        impl<'de> Visitor<'de> for Expected {
            type Value = Tenant;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tenant's name (in quotes, if it looks like a number), or `{header: ..., url: ...}`")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Tenant, E> {
                TenantName::deserialize(serde::de::value::StrDeserializer::new(name)).map(Tenant::named)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Tenant, A::Error> {
                let written = WrittenTenant::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Tenant { header: written.header, url: written.url })
            }
        }

        deserializer.deserialize_any(Expected)
    }
}

impl Serialize for Tenant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.header == self.url {
            return self.header.serialize(serializer);
        }
        WrittenTenant { header: self.header.clone(), url: self.url.clone() }.serialize(serializer)
    }
}

impl JsonSchema for Tenant {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tenant".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (name, names) = (generator.subschema_for::<TenantName>(), generator.subschema_for::<WrittenTenant>());
        json_schema!({
            "anyOf": [name, names],
            "description": "A name for both places, or one for each."
        })
    }
}

keys! {
    /// What holds for some.
    Overrides {
        /// By account.
        accounts: ById<Override>,
        /// By cluster.
        clusters: ById<Override>,
    }
}

keys! {
    /// What holds for one account or cluster. Each key replaces the whole of what it is named after.
    Override {
        /// At `/upload`.
        upload: Box<Upload>,
        /// At `/metrics/v1/receive`.
        receive: Box<Receive>,
        /// Which kinds of limit do not hold for it, whatever they are.
        exempt: Vec<ExemptFrom>,
        /// Why it may not write at all.
        denied: Denied,
        /// Whose series it may write besides its own.
        writes_for: WritesFor,
    }
}

// Boxed: there may be many of these that say little.
whole!(Box<Upload>, Box<Receive>, Vec<ExemptFrom>, Denied, WritesFor);

/// What is said of each id, sorted by it. Equal values are kept once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ById<V>(pub Arc<[(Arc<str>, Arc<V>)]>, Places);

/// Lines and columns in the policy file, of which there may be many. Whatever they are, they make no difference.
#[derive(Debug, Clone, Default)]
struct Places(Arc<[(u32, u32)]>);

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

impl Hash for Places {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<V> ById<V> {
    #[cfg(test)]
    pub(super) fn of(entries: std::collections::BTreeMap<Box<str>, V>) -> Self {
        ById(entries.into_iter().map(|(id, value)| (id.into(), Arc::new(value))).collect(), Places::default())
    }

    /// Where the id at `index` stands.
    pub fn place(&self, index: usize) -> Place {
        let Places(places) = &self.1;
        let (line, column) = places.get(index).copied().unwrap_or_default();
        Place { source: Source::Policy, line: line.into(), column: column.into() }
    }

    /// Where the first id stands of which this very value is said.
    pub(super) fn place_of(&self, value: &Arc<V>) -> Place {
        self.0
            .iter()
            .position(|(_, other)| Arc::ptr_eq(other, value))
            .map_or_else(Place::default, |index| self.place(index))
    }

    /// What is said of `id`.
    pub fn find(&self, id: &str) -> Option<&Arc<V>> {
        let at = self.0.binary_search_by(|(other, _)| (**other).cmp(id)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }
}

impl<'de, V: Deserialize<'de> + Eq + Hash> Deserialize<'de> for ById<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de> + Eq + Hash> Visitor<'de> for Entries<V> {
            type Value = ById<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("ids, and what holds for each")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ById<V>, A::Error> {
                let mut entries = Vec::new();
                let mut values = HashSet::with_hasher(foldhash::fast::RandomState::default());
                while let Some((At { value: Id(id), place }, value)) = map.next_entry::<At<Id>, V>()? {
                    let value = match values.get(&value) {
                        Some(known) => Arc::clone(known),
                        None => {
                            let value = Arc::new(value);
                            values.insert(Arc::clone(&value));
                            value
                        }
                    };
                    let place =
                        (place.line.try_into().unwrap_or(u32::MAX), place.column.try_into().unwrap_or(u32::MAX));
                    entries.push(((id, value), place));
                }
                entries.sort_unstable_by(|((one, _), at), ((other, _), and_at)| (one, at).cmp(&(other, and_at)));
                // The reader sees most of these, but takes `1` and `"1"` for two keys.
                for two in entries.windows(2) {
                    if let [((one, _), (line, column)), ((other, _), (and_line, and_column))] = two
                        && one == other
                    {
                        return Err(A::Error::custom(format!(
                            "`{one}` stands there twice, at {line}:{column} and {and_line}:{and_column}"
                        )));
                    }
                }
                let (entries, places): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
                Ok(ById(entries.into(), Places(places.into())))
            }
        }

        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl<V: Serialize> Serialize for ById<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, value)| (&**id, &**value)))
    }
}

impl<V: JsonSchema> JsonSchema for ById<V> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("{}ById", V::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<V>();
        json_schema!({
            "type": "object",
            "propertyNames": { "minLength": 1, "maxLength": 256, "pattern": values::PRINTABLE },
            "additionalProperties": value
        })
    }
}
