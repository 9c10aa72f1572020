//! What there is to say of allowlists.

use std::collections::{HashMap, HashSet};

use infogw_layers::enforce::selector::{
    Selector,
    analysis::{Finding, findings},
};

use crate::config::{
    PolicySources,
    policy::values::{At, Labels, Rule},
};

type List<'d> = &'d [At<Rule>];

/// Looks at each list once, however many hold to it.
pub(super) struct Rules<'d> {
    sources: &'d PolicySources,
    uses: HashMap<List<'d>, HashSet<Use<'d>>>,
}

/// What is known of the series that come to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Use<'d> {
    /// They all carry this label.
    pub(super) label: &'d str,
    /// And these, with these values.
    pub(super) require: Option<&'d Labels>,
}

impl<'d> Rules<'d> {
    pub(super) fn new(sources: &'d PolicySources) -> Self {
        Rules { sources, uses: HashMap::new() }
    }

    /// Notes a use of this list, and tells whether it is the first.
    pub(super) fn note(&mut self, list: &'d At<Vec<At<Rule>>>, used: Use<'d>) -> bool {
        let uses = self.uses.entry(&list.value).or_default();
        uses.insert(used) && uses.len() == 1
    }

    /// What to warn of in this list: what is true wherever it is used.
    pub(super) fn warnings(&self, list: &At<Vec<At<Rule>>>) -> Vec<String> {
        let rules = &list.value;
        let Some(uses) = self.uses.get(rules.as_slice()) else { return Vec::new() };
        let labels: HashSet<&str> = uses.iter().map(|used| used.label).collect();
        // Where they are not the same, no label is on all series.
        let labels: Vec<&str> = labels.into_iter().collect();
        let always_present = if labels.len() == 1 { labels.as_slice() } else { &[] };
        let selectors: Vec<Selector> = rules.iter().map(|rule| rule.value.0.clone()).collect();
        let findings = findings(&selectors, always_present);
        let ruled_out: Vec<Option<&str>> = selectors.iter().map(|selector| ruled_out(selector, uses)).collect();

        let never: HashSet<usize> = findings.iter().filter_map(never_matches).collect();
        let repeats = findings.iter().filter_map(|finding| match finding {
            Finding::Repeats { this, first } if never.contains(first) => Some(*this),
            _ => None,
        });
        let never: HashSet<usize> = never.iter().copied().chain(repeats).collect();
        if ruled_out.iter().enumerate().all(|(this, ruled_out)| ruled_out.is_some() || never.contains(&this)) {
            let place = self.sources.place(&list.place);
            return vec![format!("{place}: no rule of this allowlist can ever match, so no series passes")];
        }
        let mut findings = findings.iter().peekable();
        let mut told = Vec::new();
        for (this, ruled_out) in ruled_out.into_iter().enumerate() {
            let finding = findings.next_if(|finding| about(finding) == Some(this));
            match ruled_out {
                Some(label) if !matches!(finding, Some(Finding::NeverMatches { .. } | Finding::Repeats { .. })) => {
                    told.extend(self.line(
                        rules,
                        this,
                        &format!("can never match: `require` demands another value of label `{label}`"),
                    ));
                }
                _ => told.extend(finding.and_then(|finding| self.told(rules, finding))),
            }
        }
        told.extend(findings.filter_map(|finding| self.told(rules, finding)));
        told
    }

    fn line(&self, rules: List<'_>, this: usize, what: &str) -> Option<String> {
        let At { value: Rule(rule), place } = rules.get(this)?;
        Some(format!("{}: rule `{rule}` {what}", self.sources.place(place)))
    }

    fn told(&self, rules: List<'_>, finding: &Finding) -> Option<String> {
        let line = |this: usize, what: String| self.line(rules, this, &what);
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

/// A label that is required with a value that the selector does not take, wherever it is used.
fn ruled_out<'d>(selector: &Selector, uses: &HashSet<Use<'d>>) -> Option<&'d str> {
    let clash = |used: &Use<'d>| {
        let required = selector.matchers().iter().filter_map(|matcher| {
            let (name, value) = used.require?.iter().find(|(name, _)| &*name.0 == matcher.name())?;
            (!matcher.matches(value)).then_some(&*name.0)
        });
        required.min()
    };
    let clashes: Option<Vec<&str>> = uses.iter().map(clash).collect();
    clashes?.into_iter().min()
}

fn never_matches(finding: &Finding) -> Option<usize> {
    match finding {
        Finding::NeverMatches { this, .. } => Some(*this),
        _ => None,
    }
}

fn about(finding: &Finding) -> Option<usize> {
    match finding {
        Finding::NeverMatches { this, .. }
        | Finding::Repeats { this, .. }
        | Finding::Contained { this, .. }
        | Finding::CouldBeExact { this, .. } => Some(*this),
        _ => None,
    }
}
