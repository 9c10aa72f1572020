//! PromQL series selectors, such as `up{job=~"api|web"}`: which series a policy names.
//!
//! The grammar is that of `ParseMetricSelector` in Prometheus 3 (a vector selector without range,
//! `offset` and `@`), and a selector means here what it means there: a matcher sees an absent
//! label as the empty string, a regular expression is Go's RE2, holds for the whole value, and
//! its `.` matches a newline too. A selector whose every matcher accepts the empty string is
//! refused, as is a metric name given both before and inside the braces.
//!
//! Selectors come from configuration, yet are bounded: parsing does not recurse, and an expression
//! that nests more than 100 deep or takes more than 10 MiB compiled is refused. So are strings
//! whose escapes give bytes that are not UTF-8, which Prometheus takes though no series has them.
//!
//! ```
//! use infogw_layers::enforce::selector::{Labels, Selector, SelectorSet};
//!
//! struct Series(&'static [(&'static str, &'static str)]);
//!
//! impl Labels for Series {
//!     fn value(&self, name: &str) -> &str {
//!         self.0.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
//!     }
//! }
//!
//! let rules = ["cluster_version", r#"alerts{alertstate="firing"}"#, r#"{__name__=~"cluster:usage:.*"}"#];
//! let rules: Vec<Selector> = rules.iter().map(|rule| rule.parse()).collect::<Result<_, _>>()?;
//! let allowed = SelectorSet::new(rules)?;
//!
//! assert!(allowed.matches(&Series(&[("__name__", "cluster_version"), ("type", "current")])));
//! assert!(allowed.matches(&Series(&[("__name__", "cluster:usage:pods")])));
//! assert!(!allowed.matches(&Series(&[("__name__", "alerts"), ("alertstate", "pending")])));
//! # Ok::<(), infogw_layers::enforce::selector::SelectorError>(())
//! ```

pub mod analysis;
mod crowds;
mod error;
mod go_regex;
mod label_index;
mod literal;
mod matcher;
mod parse;
mod pattern;
mod set;

use std::{fmt, str::FromStr, sync::Arc};

pub use error::SelectorError;
pub use matcher::{MatchOp, Matcher};
pub use set::SelectorSet;

/// The label that holds a series' metric name.
pub(crate) const METRIC_NAME: &str = "__name__";

/// The labels of one series, as matchers look at them.
pub trait Labels {
    /// The value of the label `name`, or `""` if the series has no such label: to PromQL the two
    /// are the same.
    fn value(&self, name: &str) -> &str;

    /// The bytes of [`value`](Self::value), for labels that would have to be checked anew to be a string.
    fn bytes(&self, name: &str) -> &[u8] {
        self.value(name).as_bytes()
    }
}

impl<L: Labels + ?Sized> Labels for &L {
    fn value(&self, name: &str) -> &str {
        (**self).value(name)
    }

    fn bytes(&self, name: &str) -> &[u8] {
        (**self).bytes(name)
    }
}

/// A series selector: matchers that must all hold.
///
/// Cheap to clone. Selectors are equal when their canonical forms are; [`Display`](fmt::Display)
/// writes that form (matchers sorted, repeats dropped, values in double quotes), which parses to
/// an equal selector.
///
/// ```
/// use infogw_layers::enforce::selector::Selector;
///
/// let selector: Selector = r#"{ job!='a', __name__ = `up`, "http.method"=~"GET|PUT", }"#.parse()?;
/// assert_eq!(selector.to_string(), r#"up{"http.method"=~"GET|PUT",job!="a"}"#);
/// # Ok::<(), infogw_layers::enforce::selector::SelectorError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector(Arc<[Matcher]>);

impl Selector {
    /// Whether every matcher holds for these labels. Does not allocate once warm: a regular
    /// expression keeps scratch space between calls.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.0.iter().all(|matcher| matcher.matches(labels.value(matcher.name())))
    }

    /// The matchers in canonical order: those on the metric name first, then by label name.
    pub fn matchers(&self) -> &[Matcher] {
        &self.0
    }

    fn new(mut matchers: Vec<Matcher>) -> Self {
        matchers.sort_unstable_by(|a, b| a.canonical_key().cmp(&b.canonical_key()));
        matchers.dedup();
        Self(matchers.into())
    }

    /// The metric name, if it can be written before the braces: PromQL then takes no second
    /// matcher on the name.
    fn bare_name(&self) -> Option<&str> {
        let (first, rest) = self.0.split_first()?;
        let only = rest.first().is_none_or(|next| next.name() != METRIC_NAME);
        let bare =
            first.name() == METRIC_NAME && first.op() == MatchOp::Equal && parse::is_bare_metric_name(first.value());
        (only && bare).then_some(first.value())
    }
}

/// Parses one selector; see the [module](self) for the grammar.
///
/// # Errors
/// One line with the byte column (from 1) and what to change.
impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        parse::selector(text).map(Self::new)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.bare_name();
        let rest = self.0.get(usize::from(name.is_some())..).unwrap_or(&[]);
        f.write_str(name.unwrap_or(""))?;
        if rest.is_empty() {
            return Ok(());
        }
        for (i, matcher) in rest.iter().enumerate() {
            f.write_str(if i == 0 { "{" } else { "," })?;
            matcher.fmt(f)?;
        }
        f.write_str("}")
    }
}
