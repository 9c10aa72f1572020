//! By which of its labels a selector is best found among many.

use std::collections::HashMap;

use super::matcher::{Accepts, Matcher};
use super::{METRIC_NAME, Selector};

/// How many selectors ask for the same value or prefix of a label.
pub(super) struct Crowds<'s>(HashMap<(&'s str, Key<'s>), usize>);

#[derive(PartialEq, Eq, Hash)]
enum Key<'s> {
    Value(&'s str),
    Prefix(&'s str),
}

impl<'s> Crowds<'s> {
    /// Up to so many selectors under one metric name or prefix are checked one after another,
    /// which is cheaper than to look at a second label of every series.
    const SMALL: usize = 16;

    pub(super) fn count(selectors: &[&'s Selector]) -> Self {
        let mut crowds = HashMap::new();
        for matcher in selectors.iter().flat_map(|selector| selector.matchers()) {
            for key in keys(matcher).into_iter().flatten() {
                *crowds.entry((matcher.name(), key)).or_default() += 1;
            }
        }
        Self(crowds)
    }

    /// The matcher that leaves the fewest selectors to be checked, if any can be filed under.
    pub(super) fn best_label(&self, selector: &'s Selector) -> Option<&'s Matcher> {
        let dear = |matcher: &&'s Matcher| match keys(matcher) {
            None => usize::MAX,
            Some(keys) => {
                let sizes = keys.into_iter().map(|key| self.0.get(&(matcher.name(), key)));
                let largest = sizes.flatten().max().copied().unwrap_or(0);
                let small = matcher.name() == METRIC_NAME && largest <= Self::SMALL;
                if small { 0 } else { largest }
            }
        };
        selector.matchers().iter().filter(|matcher| !matches!(matcher.accepts(), Accepts::Unlisted)).min_by_key(dear)
    }
}

/// What a matcher is filed under; `None` for what only a regular expression can tell.
fn keys(matcher: &Matcher) -> Option<Vec<Key<'_>>> {
    match matcher.accepts() {
        Accepts::Listed { values, prefixes } => {
            let prefixes = prefixes.into_iter().map(|(text, _)| Key::Prefix(text));
            Some(values.into_iter().map(Key::Value).chain(prefixes).collect())
        }
        Accepts::Regex(_) | Accepts::Unlisted => None,
    }
}
