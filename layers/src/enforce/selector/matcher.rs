//! One matcher: a label, an operator and a value.

use std::fmt;

use super::error::Fault;
use super::literal::write_quoted;
use super::pattern::{Pattern, Shape};
use super::{METRIC_NAME, parse};

/// How a matcher compares a label's value with its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`: the regular expression matches the whole value.
    Regex,
    /// `!~`: it does not.
    NotRegex,
}

impl MatchOp {
    /// As PromQL writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// A condition on one label of a series.
#[derive(Clone)]
pub struct Matcher {
    name: Box<str>,
    op: MatchOp,
    value: Box<str>,
    /// What `value` means, if it is a regular expression.
    pattern: Option<Pattern>,
}

impl Matcher {
    /// The label that it looks at.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it compares.
    pub fn op(&self) -> MatchOp {
        self.op
    }

    /// What it compares with, unquoted: a string or a regular expression in Go's syntax.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether it holds for a series whose label has this value, `""` where the label is absent.
    pub fn matches(&self, value: &str) -> bool {
        let positive = match &self.pattern {
            None => *self.value == *value,
            Some(pattern) => pattern.is_match(value),
        };
        positive == matches!(self.op, MatchOp::Equal | MatchOp::Regex)
    }

    /// Faults count from the start of `value`.
    pub(super) fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, Fault> {
        let pattern = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(Pattern::new(value)?),
        };
        Ok(Self { name: name.into(), op, value: value.into(), pattern })
    }

    pub(super) fn equal(name: &str, value: &str) -> Self {
        Self { name: name.into(), op: MatchOp::Equal, value: value.into(), pattern: None }
    }

    pub(super) fn not_equal(name: &str, value: &str) -> Self {
        Self { op: MatchOp::NotEqual, ..Self::equal(name, value) }
    }

    /// The regular expression, if it is one.
    pub(super) fn pattern(&self) -> Option<&Pattern> {
        self.pattern.as_ref()
    }

    /// How the values it accepts can be found without asking it.
    pub(super) fn accepts(&self) -> Accepts<'_> {
        // An index is asked for the value a label has; that a label may be absent is not in it.
        if self.matches("") {
            return Accepts::Unlisted;
        }
        match (self.op, &self.pattern) {
            (MatchOp::Equal, _) => Accepts::values([&*self.value]),
            (MatchOp::Regex, Some(pattern)) => match pattern.shape() {
                Shape::Listed { values, prefixes } => Accepts::Listed {
                    values: values.iter().map(|value| &**value).collect(),
                    prefixes: prefixes.iter().map(|p| (&*p.text, p.longer)).collect(),
                },
                Shape::Regex(_) => Accepts::Regex(&self.value),
            },
            (MatchOp::NotEqual, _) => Accepts::Listed {
                values: Vec::new(),
                // It does not match the empty string, so its value is that: all others match.
                prefixes: vec![("", true)],
            },
            _ => Accepts::Unlisted,
        }
    }

    pub(super) fn canonical_key(&self) -> impl Ord + '_ {
        let on_name = *self.name == *METRIC_NAME;
        (!on_name, &*self.name, self.op, &*self.value)
    }
}

/// The values that a matcher accepts, as far as an index can list them.
pub(super) enum Accepts<'m> {
    /// These values and whatever starts with these prefixes (followed by more, if so marked);
    /// nothing else.
    Listed { values: Vec<&'m str>, prefixes: Vec<(&'m str, bool)> },
    /// Whatever this regular expression (as written) matches.
    Regex(&'m str),
    /// Too much, the empty string included.
    Unlisted,
}

impl<'m> Accepts<'m> {
    fn values(values: impl Into<Vec<&'m str>>) -> Self {
        Self::Listed { values: values.into(), prefixes: Vec::new() }
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.op, &self.value) == (&other.name, other.op, &other.value)
    }
}

impl Eq for Matcher {}

impl std::hash::Hash for Matcher {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.name, self.op, &self.value).hash(state);
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if parse::is_bare_label_name(&self.name) {
            f.write_str(&self.name)?;
        } else {
            write_quoted(f, &self.name)?;
        }
        f.write_str(self.op.as_str())?;
        write_quoted(f, &self.value)
    }
}

// The compiled pattern says nothing that the value does not.
impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matcher({self})")
    }
}
