//! Selectors by the values of one label.

use std::collections::{BTreeMap, HashMap};

use regex_automata::meta::Regex;

use super::pattern::compile_any;
use super::{Labels, Selector, SelectorError};

/// What a value of the label leaves to be checked.
#[derive(Default)]
pub(super) struct Rules {
    /// A selector asks for nothing but this label: it matches.
    always: bool,
    /// These ask for more.
    selectors: Vec<Selector>,
}

impl Rules {
    pub(super) fn add(&mut self, selector: &Selector) {
        if selector.matchers().len() == 1 {
            self.always = true;
            self.selectors = Vec::new();
        } else if !self.always {
            self.selectors.push(selector.clone());
        }
    }

    fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        self.always || self.selectors.iter().any(|s| s.matches(labels))
    }
}

/// All selectors of a set that are found by one label.
pub(super) struct LabelIndex {
    label: Box<str>,
    values: HashMap<Box<[u8]>, Rules, foldhash::fast::RandomState>,
    prefixes: Prefixes,
    /// Regular expressions that decide alone: any hit will do, so which one it is never has to
    /// be asked, which would allocate.
    alone: Option<Regex>,
    /// Regular expressions of `guarded`: no hit (the usual answer) spares asking each selector.
    guard: Option<Regex>,
    guarded: Vec<Selector>,
}

impl LabelIndex {
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// The cheap half: a hash and a binary search.
    pub(super) fn matches_listed(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.bytes(&self.label);
        // No selector is filed under an absent label.
        !value.is_empty()
            && (self.values.get(value).is_some_and(|r| r.matches(labels)) || self.prefixes.matches(value, labels))
    }

    pub(super) fn has_regexes(&self) -> bool {
        self.alone.is_some() || self.guard.is_some()
    }

    /// The dear half.
    pub(super) fn matches_regexes(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let value = labels.bytes(&self.label);
        let hit = |regex: &Option<Regex>| regex.as_ref().is_some_and(|r| r.is_match(value));
        !value.is_empty() && (hit(&self.alone) || hit(&self.guard) && self.guarded.iter().any(|s| s.matches(labels)))
    }
}

/// A [`LabelIndex`] while selectors are added.
#[derive(Default)]
pub(super) struct Draft<'s> {
    values: HashMap<Box<[u8]>, Rules, foldhash::fast::RandomState>,
    prefixes: BTreeMap<&'s str, PrefixRules>,
    alone: Vec<&'s str>,
    guard: Vec<&'s str>,
    guarded: Vec<Selector>,
}

impl<'s> Draft<'s> {
    pub(super) fn value(&mut self, value: &str) -> &mut Rules {
        self.values.entry(value.as_bytes().into()).or_default()
    }

    pub(super) fn prefix(&mut self, text: &'s str, longer: bool) -> &mut Rules {
        let rules = self.prefixes.entry(text).or_default();
        if longer { &mut rules.longer } else { &mut rules.any }
    }

    pub(super) fn regex(&mut self, regex: &'s str, selector: &Selector) {
        if selector.matchers().len() == 1 {
            self.alone.push(regex);
        } else {
            self.guard.push(regex);
            self.guarded.push(selector.clone());
        }
    }

    pub(super) fn build(self, label: &str) -> Result<LabelIndex, SelectorError> {
        Ok(LabelIndex {
            label: label.into(),
            values: self.values,
            prefixes: Prefixes::new(self.prefixes),
            alone: compile(label, self.alone)?,
            guard: compile(label, self.guard)?,
            guarded: self.guarded,
        })
    }
}

fn compile(label: &str, mut regexes: Vec<&str>) -> Result<Option<Regex>, SelectorError> {
    if regexes.is_empty() {
        return Ok(None);
    }
    regexes.sort_unstable();
    regexes.dedup();
    let regex = compile_any(regexes).ok_or_else(|| SelectorError::SetTooLarge { label: label.into() })?;
    Ok(Some(regex))
}

/// The selectors behind `text.*` and `text.+`.
#[derive(Default)]
struct PrefixRules {
    any: Rules,
    longer: Rules,
}

/// Prefixes in order, each linked to the longest other one that it starts with.
///
/// The last prefix that is not behind a value in order either starts it, or shares with it
/// whatever prefixes do: any that starts the value lies between, so starts that one too. Hence
/// one binary search and then links find them all, longest first.
struct Prefixes(Box<[Link]>);

struct Link {
    text: Box<str>,
    rules: PrefixRules,
    parent: Option<usize>,
}

impl Prefixes {
    fn new(sorted: BTreeMap<&str, PrefixRules>) -> Self {
        let mut links: Vec<Link> = Vec::with_capacity(sorted.len());
        for (text, rules) in sorted {
            let mut parent = links.len().checked_sub(1);
            while let Some(link) = parent.and_then(|at| links.get(at))
                && !text.starts_with(&*link.text)
            {
                parent = link.parent;
            }
            links.push(Link { text: text.into(), rules, parent });
        }
        Self(links.into())
    }

    fn matches(&self, value: &[u8], labels: &(impl Labels + ?Sized)) -> bool {
        let behind = self.0.partition_point(|link| link.text.as_bytes() <= value);
        let mut next = behind.checked_sub(1);
        while let Some(link) = next.and_then(|at| self.0.get(at)) {
            if value.starts_with(link.text.as_bytes()) {
                let longer = value.len() > link.text.len();
                if link.rules.any.matches(labels) || longer && link.rules.longer.matches(labels) {
                    return true;
                }
            }
            next = link.parent;
        }
        false
    }
}
