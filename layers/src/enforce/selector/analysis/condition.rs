//! What is asked of a label's value.

use std::borrow::Cow;

use super::super::matcher::{MatchOp, Matcher};
use super::super::pattern::{Pattern, Shape};

/// What no selector asks for by name, as a guess.
pub(super) const UNUSUAL: &str = "\u{e000}";

/// What is asked of a value.
#[derive(Clone, Copy)]
pub(super) struct Condition<'m> {
    test: Test<'m>,
    /// Whether the test shall pass.
    holds: bool,
}

#[derive(Clone, Copy)]
enum Test<'m> {
    Equals(&'m str),
    /// A regular expression, and how it is written.
    Matches(&'m Pattern, &'m str),
}

impl<'m> Test<'m> {
    fn key(&self) -> (bool, &'m str) {
        match self {
            Self::Equals(text) => (false, text),
            Self::Matches(_, source) => (true, source),
        }
    }
}

impl<'m> Condition<'m> {
    /// `matcher` holds.
    pub(super) fn meets(matcher: &'m Matcher) -> Self {
        let test = match matcher.pattern() {
            Some(pattern) => Test::Matches(pattern, matcher.value()),
            None => Test::Equals(matcher.value()),
        };
        Self { test, holds: matches!(matcher.op(), MatchOp::Equal | MatchOp::Regex) }
    }

    /// `matcher` does not hold.
    pub(super) fn fails(matcher: &'m Matcher) -> Self {
        Self::meets(matcher).negated()
    }

    /// The value is another one.
    pub(super) fn is_not(value: &'m str) -> Self {
        Self { test: Test::Equals(value), holds: false }
    }

    /// Whether the test shall pass.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// What tells tests apart.
    pub(super) fn key(&self) -> (bool, &'m str) {
        self.test.key()
    }

    fn negated(self) -> Self {
        Self { holds: !self.holds, ..self }
    }

    pub(super) fn is_met_by(&self, value: &str) -> bool {
        let passes = match self.test {
            Test::Equals(text) => text == value,
            Test::Matches(pattern, _) => pattern.is_match(value),
        };
        passes == self.holds
    }

    /// What it takes to ask, in units of work: prefixes are tried one by one.
    pub(super) fn cost(&self) -> usize {
        match self.test {
            Test::Matches(pattern, _) => match pattern.shape() {
                Shape::Listed { prefixes, .. } => 1 + prefixes.len() / 4,
                Shape::Regex(_) => 8,
            },
            Test::Equals(_) => 1,
        }
    }

    /// The regular expression, if the test is no list.
    pub(super) fn source(&self) -> Option<&'m str> {
        match self.test {
            Test::Matches(pattern, source) if matches!(pattern.shape(), Shape::Regex(_)) => Some(source),
            _ => None,
        }
    }

    /// Values and prefixes, if the test is a list of them.
    pub(super) fn list(&self) -> Option<List<'m>> {
        match self.test {
            Test::Equals(text) => Some(List { values: vec![text], prefixes: Vec::new() }),
            Test::Matches(pattern, _) => match pattern.shape() {
                Shape::Listed { values, prefixes } => Some(List {
                    values: values.iter().map(|value| &**value).collect(),
                    prefixes: prefixes.iter().map(|prefix| (&*prefix.text, prefix.longer)).collect(),
                }),
                Shape::Regex(_) => None,
            },
        }
    }
}

pub(super) struct List<'m> {
    pub(super) values: Vec<&'m str>,
    /// And whether something must follow.
    pub(super) prefixes: Vec<(&'m str, bool)>,
}

impl List<'_> {
    /// Some that it has: all, if there are no prefixes.
    pub(super) fn guesses(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let values = self.values.iter().map(|&value| value.into());
        let bare = self.prefixes.iter().filter(|(_, longer)| !longer).map(|&(text, _)| text.into());
        let longer = self.prefixes.iter().map(|(text, _)| Cow::Owned(format!("{text}{UNUSUAL}")));
        values.chain(bare).chain(longer)
    }

    pub(super) fn is_everything(&self) -> bool {
        self.prefixes.contains(&("", false))
    }
}
