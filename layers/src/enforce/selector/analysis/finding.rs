//! What there is to say of a list of selectors.

use std::{collections::HashMap, fmt};

use super::super::Selector;
use super::analyst::{Analyst, Example, Witness};
use super::candidates::Candidates;
use super::simplify::simplified;
use super::work::{GaveUp, Work};

/// The work that each look at a list of selectors may take, and what the one before it left.
const PER_PHASE: u64 = 60_000_000;

/// More series that one selector matches than this save no more questions than they cost.
const MAX_EXAMPLES: usize = 8;

/// Something about one of several selectors that its author should know. Selectors are numbered as
/// in the list: from 0 in the fields, from 1 in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// No series matches.
    NeverMatches {
        /// The selector.
        this: usize,
        /// The label of which no value will do.
        label: Box<str>,
    },
    /// It says what an earlier one says, perhaps in another order.
    Repeats {
        /// The later selector.
        this: usize,
        /// The first of its kind.
        first: usize,
    },
    /// Whatever it matches is matched by another one, too.
    Contained {
        /// The selector that makes no difference.
        this: usize,
        /// One that matches all that it does, and more unless it comes first.
        by: usize,
    },
    /// It has a regular expression that stands for `=`, for `!=` or for nothing.
    CouldBeExact {
        /// The selector.
        this: usize,
        /// What says the same.
        instead: Selector,
    },
    /// Last in the list if at all: this much could not be looked into within the bounds.
    Unknown {
        /// How many selectors might have deserved another finding.
        selectors: usize,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |index: &usize| index.saturating_add(1);
        match self {
            Self::NeverMatches { this, label } => {
                write!(
                    f,
                    "selector {} can never match: no value of label {label:?} meets all it asks for",
                    number(this)
                )
            }
            Self::Repeats { this, first } => write!(f, "selector {} repeats selector {}", number(this), number(first)),
            Self::Contained { this, by } => {
                write!(
                    f,
                    "selector {} makes no difference: selector {} matches all that it does",
                    number(this),
                    number(by)
                )
            }
            Self::CouldBeExact { this, instead } => {
                write!(f, "selector {} needs no regular expression: write {instead}", number(this))
            }
            Self::Unknown { selectors } => {
                write!(f, "{selectors} selectors were not looked into: together they are too complex")
            }
        }
    }
}

/// What there is to say of these selectors, each by itself and as a list joined by "or", in order;
/// at most one finding a selector, the gravest. `always_present` names labels that no series lacks,
/// such as the label of the cluster.
///
/// Whatever is found to repeat or to be contained can be removed, all of it at once, and the list
/// matches what it did.
///
/// Takes seconds at most, and memory in proportion; see [`Finding::Unknown`].
pub fn findings(selectors: &[Selector], always_present: &[&str]) -> Vec<Finding> {
    findings_within(PER_PHASE, selectors, always_present)
}

fn findings_within(per_phase: u64, selectors: &[Selector], always_present: &[&str]) -> Vec<Finding> {
    let mut list = List {
        selectors,
        analyst: Analyst::new(always_present, Work::new(per_phase)),
        found: vec![None; selectors.len()],
        unknown: vec![false; selectors.len()],
    };
    let examples = list.look_at_each();
    list.analyst.solver.work().put_back(&Work::new(per_phase));
    list.compare(&examples);
    list.analyst.solver.work().put_back(&Work::new(per_phase));
    list.simplify();
    list.into_findings()
}

struct List<'s> {
    selectors: &'s [Selector],
    analyst: Analyst<'s>,
    found: Vec<Option<Finding>>,
    unknown: Vec<bool>,
}

impl<'s> List<'s> {
    /// Finds repeated selectors and those that never match; of each other one, a series that it
    /// matches.
    fn look_at_each(&mut self) -> Vec<Option<Example<'s>>> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut examples = Vec::with_capacity(self.selectors.len());
        for (this, selector) in self.selectors.iter().enumerate() {
            let first = *seen.entry(selector.to_string()).or_insert(this);
            let witness = (first == this).then(|| self.analyst.witness(selector));
            let mut example = None;
            match witness {
                None => self.report(this, Finding::Repeats { this, first }),
                Some(Ok(Witness::Impossible { label })) => {
                    self.report(this, Finding::NeverMatches { this, label: label.into() });
                }
                Some(Ok(Witness::Example(found))) => example = Some(found),
                Some(Err(GaveUp)) => self.give_up(this),
            }
            examples.push(example);
        }
        examples
    }

    /// Finds selectors that others contain.
    fn compare(&mut self, examples: &[Option<Example<'s>>]) {
        let matching = self.selectors.iter().enumerate().zip(examples);
        let matching: Vec<(usize, &Selector)> =
            matching.filter(|(_, example)| example.is_some()).map(|(selector, _)| selector).collect();
        let candidates = Candidates::new(&matching);
        for (this, example) in examples.iter().enumerate() {
            let Some(example) = example else { continue };
            match self.container(this, example, &candidates) {
                Ok(Some(by)) => self.report(this, Finding::Contained { this, by }),
                Ok(None) => {}
                Err(GaveUp) => self.give_up(this),
            }
        }
        self.name_those_that_stay();
    }

    /// A selector that contains `this` one, which matches `example`.
    fn container(
        &mut self,
        this: usize,
        example: &Example<'s>,
        candidates: &Candidates<'s>,
    ) -> Result<Option<usize>, GaveUp> {
        let Some(inner) = self.selectors.get(this) else { return Ok(None) };
        let mut gave_up = None;
        // What disproved one candidate disproves others, too.
        let mut examples = vec![example.clone()];
        let possible = candidates.of(example, self.analyst.solver.work())?;
        for (by, outer) in possible.into_iter().filter_map(|by| Some((by, self.selectors.get(by)?))) {
            self.analyst.solver.work().spend(examples.len() * (6 + 2 * outer.matchers().len()))?;
            if by == this || !examples.iter().all(|example| outer.matches(example)) {
                continue;
            }
            match self.analyst.counterexample(outer, inner) {
                Ok(Some((label, value))) if examples.len() < MAX_EXAMPLES => examples.push(example.with(label, value)),
                Ok(Some(_)) => {}
                // If each contains the other, or might, the earlier one stays: no two may be said
                // to make no difference because of each other.
                Ok(None) if by < this => return Ok(Some(by)),
                Ok(None) => match self.analyst.counterexample(inner, outer) {
                    Ok(Some(_)) => return Ok(Some(by)),
                    Ok(None) => {}
                    Err(error) => gave_up = Some(error),
                },
                Err(error) => gave_up = Some(error),
            }
        }
        gave_up.map_or(Ok(None), Err)
    }

    /// A container may be contained itself: then its container is named.
    fn name_those_that_stay(&mut self) {
        let container = |found: &[Option<Finding>], this: usize| match found.get(this) {
            Some(Some(Finding::Contained { by, .. })) => Some(*by),
            _ => None,
        };
        for start in 0..self.found.len() {
            let mut chain = vec![start];
            while let Some(by) = chain.last().and_then(|&this| container(&self.found, this)) {
                chain.push(by);
            }
            let Some(by) = chain.pop() else { continue };
            for this in chain {
                self.report(this, Finding::Contained { this, by });
            }
        }
    }

    /// Finds regular expressions that need not be.
    fn simplify(&mut self) {
        for (this, selector) in self.selectors.iter().enumerate() {
            if self.found.get(this).is_some_and(Option::is_none)
                && let Some(instead) = simplified(selector, &mut self.analyst)
            {
                self.report(this, Finding::CouldBeExact { this, instead });
            }
        }
    }

    fn report(&mut self, this: usize, finding: Finding) {
        if let Some(found) = self.found.get_mut(this) {
            *found = Some(finding);
        }
    }

    fn give_up(&mut self, this: usize) {
        if let Some(unknown) = self.unknown.get_mut(this) {
            *unknown = true;
        }
    }

    fn into_findings(self) -> Vec<Finding> {
        let open = self.found.iter().zip(&self.unknown).filter(|(found, unknown)| found.is_none() && **unknown).count();
        let rest = (open > 0).then_some(Finding::Unknown { selectors: open });
        self.found.into_iter().flatten().chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: impl IntoIterator<Item = String>) -> Vec<Selector> {
        texts.into_iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_left_when_the_work_is_done_is_told() {
        let mut texts: Vec<String> =
            (1..12).map(|i| format!("{{a=~'(x|y)*x(x|y){{{i}}}',a=~'(x|y)*y(x|y){{7}}'}}")).collect();
        texts.extend(["up".into(), "up".into(), "down{a='1',a='2'}".into(), "up{a='1'}".into()]);
        let selectors = parse(texts);
        let all = findings_within(u64::MAX, &selectors[..8], &[]);
        assert_eq!(all, [Finding::NeverMatches { this: 6, label: "a".into() }]);
        let none = findings_within(0, &selectors, &[]);
        assert_eq!(none, [Finding::Repeats { this: 12, first: 11 }, Finding::Unknown { selectors: 14 }]);
        for per_phase in (0..18).map(|bits| 1 << bits) {
            let found = findings_within(per_phase, &selectors, &[]);
            assert!(found.contains(&Finding::Repeats { this: 12, first: 11 }));
            let told = |finding: &Finding| match finding {
                Finding::NeverMatches { this, .. } => [6, 13].contains(this),
                Finding::Contained { this: 14, by: 11 } | Finding::Repeats { .. } | Finding::Unknown { .. } => true,
                _ => false,
            };
            assert!(found.iter().all(told), "{per_phase}: {found:?}");
            assert_eq!(found, findings_within(per_phase, &selectors, &[]), "the same at any time");
        }
    }

    #[test]
    fn no_two_make_no_difference_because_of_each_other() {
        let texts = ["[ab]+c?", "(a|b)+c?", "(b|a)+(c|)", "[a-b]+c?|a"];
        let selectors = parse(texts.map(|text| format!("{{a=~'{text}'}}")));
        for per_phase in (0..8_000).step_by(10) {
            let found = findings_within(per_phase, &selectors, &[]);
            let gone = found.iter().filter(|finding| matches!(finding, Finding::Contained { .. })).count();
            assert!(gone < selectors.len(), "{per_phase}: {found:?}");
        }
        assert_eq!(findings_within(u64::MAX, &selectors, &[]).len(), 3);
    }
}
