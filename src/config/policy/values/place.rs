//! Where something is said.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    path::Path,
    sync::Arc,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;

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
