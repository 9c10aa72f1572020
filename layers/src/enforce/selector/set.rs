//! Many selectors at once: does any match?

use std::collections::{BTreeMap, HashSet};

use super::crowds::Crowds;
use super::label_index::{Draft, LabelIndex};
use super::matcher::{Accepts, Matcher};
use super::{Labels, METRIC_NAME, Selector, SelectorError};

/// Selectors joined by "or", such as an allowlist.
///
/// What a check costs does not grow with the number of selectors, as long as they differ in the
/// metric names, values or prefixes that they ask for. Each selector is filed under one of its
/// labels, the metric name where that tells it apart from most others:
///
/// - a value (`=`, or a regular expression that is a list such as `a|b`) by hash,
/// - a prefix (`a.*`) by binary search,
/// - other regular expressions of one label all in one automaton, which is asked only if no value
///   or prefix has decided,
/// - the few that every value but some satisfies (`{job!~"|test.*"}`) one by one.
///
/// Only the selectors found there are then checked in full.
///
/// The automaton is built as values come, so a new value costs more than a known one: little for
/// expressions that start with text (`job_[a-z]+`) or end a wildcard with it (`.+:sum`), but
/// hundreds of microseconds with a thousand that begin with anything and go on with a class
/// (`.+_cpu_[a-z]+_total`), as all of those stay possible to the end.
pub struct SelectorSet {
    selectors: Box<[Selector]>,
    /// The metric name's first, as most series are decided there.
    indexes: Box<[LabelIndex]>,
    one_by_one: Box<[Selector]>,
}

impl SelectorSet {
    /// Compiles the selectors into one set. Repeated ones cost nothing.
    ///
    /// # Errors
    /// [`SelectorError::SetTooLarge`] if regular expressions that are each within bounds are not
    /// so together.
    pub fn new(selectors: impl IntoIterator<Item = Selector>) -> Result<Self, SelectorError> {
        let selectors: Box<[Selector]> = selectors.into_iter().collect();
        let mut seen = HashSet::new();
        let distinct: Vec<&Selector> = selectors.iter().filter(|selector| seen.insert(selector.to_string())).collect();
        let crowds = Crowds::count(&distinct);
        let mut drafts: BTreeMap<&str, Draft<'_>> = BTreeMap::new();
        let mut one_by_one = Vec::new();
        for selector in distinct {
            match crowds.best_label(selector) {
                Some(matcher) => file(drafts.entry(matcher.name()).or_default(), matcher, selector),
                None => one_by_one.push(selector.clone()),
            }
        }
        let mut indexes = drafts.into_iter().map(|(label, draft)| draft.build(label)).collect::<Result<Vec<_>, _>>()?;
        indexes.sort_by_key(|index| index.label() != METRIC_NAME);
        Ok(Self { selectors, indexes: indexes.into(), one_by_one: one_by_one.into() })
    }

    /// Whether any selector matches these labels; never, if the set is empty. Does not allocate
    /// once warm: regular expressions keep scratch space, bounded, for each thread.
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let indexes = self.indexes.iter();
        indexes.clone().any(|index| index.matches_listed(labels))
            || indexes.filter(|index| index.has_regexes()).any(|index| index.matches_regexes(labels))
            || self.one_by_one.iter().any(|s| s.matches(labels))
    }

    /// Which selector matches these labels, as an index into [`selectors`](Self::selectors): the first if several do. `None` where
    /// [`matches`](Self::matches) is false. Asks one after another: to explain, not to decide.
    pub fn find(&self, labels: &(impl Labels + ?Sized)) -> Option<usize> {
        self.selectors.iter().position(|selector| selector.matches(labels))
    }

    /// Whether there are no selectors at all.
    pub fn is_empty(&self) -> bool {
        self.selectors.is_empty()
    }

    /// How many selectors were given, repeated ones included.
    pub fn len(&self) -> usize {
        self.selectors.len()
    }

    /// The selectors as given.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }
}

impl std::fmt::Debug for SelectorSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SelectorSet").field(&self.selectors).finish()
    }
}

/// Files a selector under what this matcher of it accepts.
fn file<'s>(draft: &mut Draft<'s>, matcher: &'s Matcher, selector: &Selector) {
    match matcher.accepts() {
        Accepts::Listed { values, prefixes } => {
            for value in values {
                draft.value(value).add(selector);
            }
            for (text, longer) in prefixes {
                draft.prefix(text, longer).add(selector);
            }
        }
        Accepts::Regex(regex) => draft.regex(regex, selector),
        Accepts::Unlisted => {}
    }
}
