//! What there is to say of allowlists.

use std::collections::HashSet;

use infogw_layers::enforce::selector::{
    Selector,
    analysis::{Finding, findings},
};

use crate::config::{
    PolicySources,
    policy::values::{At, Rule},
};

/// Looks at each list once, however many hold to it.
pub(super) struct Rules<'d> {
    sources: &'d PolicySources,
    seen: HashSet<(&'d [At<Rule>], &'d str)>,
}

impl<'d> Rules<'d> {
    pub(super) fn new(sources: &'d PolicySources) -> Self {
        Rules { sources, seen: HashSet::new() }
    }

    /// What to warn of in this list, for series that all carry `label`.
    pub(super) fn warnings(&mut self, rules: &'d [At<Rule>], label: &'d str) -> Vec<String> {
        if !self.seen.insert((rules, label)) {
            return Vec::new();
        }
        let selectors: Vec<Selector> = rules.iter().map(|rule| rule.value.0.clone()).collect();
        findings(&selectors, &[label]).iter().filter_map(|finding| self.told(rules, finding)).collect()
    }

    fn told(&self, rules: &[At<Rule>], finding: &Finding) -> Option<String> {
        let line = |this: usize, what: String| {
            let At { value: Rule(rule), place } = rules.get(this)?;
            Some(format!("{}: rule `{rule}` {what}", self.sources.place(place)))
        };
        let other = |index: usize| {
            let At { value: Rule(rule), place } = rules.get(index)?;
            Some(format!("`{rule}` ({})", self.sources.place(place)))
        };
        match finding {
            Finding::NeverMatches { this, label } => {
                line(*this, format!("can never match: no value of label `{label}` meets all it asks for"))
            }
            Finding::Repeats { this, first } => line(*this, format!("repeats {}", other(*first)?)),
            Finding::Contained { this, by } => line(*this, format!("is contained in {}", other(*by)?)),
            Finding::CouldBeExact { this, instead } => {
                line(*this, format!("needs no regular expression: write `{instead}`"))
            }
            Finding::Unknown { selectors } => {
                let place = &rules.first()?.place;
                Some(format!(
                    "{}: {selectors} of the {} rules from here on were not compared with all others: together they are too complex",
                    self.sources.place(place),
                    rules.len()
                ))
            }
            _ => None,
        }
    }
}
