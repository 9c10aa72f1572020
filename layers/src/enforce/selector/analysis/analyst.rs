//! Questions about whole selectors, put as questions about the values of single labels: labels
//! vary independently of each other.

use std::collections::BTreeMap;

use super::super::{Labels, METRIC_NAME, Matcher, Selector};
use super::condition::Condition;
use super::solver::Solver;
use super::work::{GaveUp, Work};

/// The most work on a question that somebody asks about one selector or two: a fraction of a
/// second.
const PER_SELECTOR: u64 = 10_000_000;

pub(super) struct Analyst<'p> {
    pub(super) solver: Solver,
    /// Labels that no series lacks.
    present: &'p [&'p str],
}

/// What matches a selector.
pub(super) enum Witness<'s> {
    /// These labels do, for example.
    Example(Example<'s>),
    /// Nothing does: no value of this label will do.
    Impossible { label: &'s str },
}

/// The labels of one series.
#[derive(Debug, Clone)]
pub(super) struct Example<'s>(BTreeMap<&'s str, String>);

impl<'s> Example<'s> {
    /// Those that the series has.
    pub(super) fn labels(&self) -> impl Iterator<Item = (&'s str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// The same but for one label.
    pub(super) fn with(&self, name: &'s str, value: String) -> Self {
        let mut labels = self.0.clone();
        labels.insert(name, value);
        Self(labels)
    }
}

impl Labels for Example<'_> {
    fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl<'p> Analyst<'p> {
    pub(super) fn new(present: &'p [&'p str], work: Work) -> Self {
        Self { solver: Solver::new(work), present }
    }

    pub(super) fn for_one_question(present: &'p [&'p str]) -> Self {
        Self::new(present, Work::new(PER_SELECTOR))
    }

    /// A series that `selector` matches.
    pub(super) fn witness<'s>(&mut self, selector: &'s Selector) -> Result<Witness<'s>, GaveUp>
    where
        'p: 's,
    {
        let mut values = BTreeMap::new();
        // That one label is too much to ask does not save the selector if another is impossible.
        let mut gave_up = None;
        let named = by_label(selector).map(|(label, _)| label);
        let present = self.present.iter().copied().filter(|label| on_label(selector, label).is_empty());
        for label in named.chain(present) {
            match self.solver.find(&self.conditions(selector, label)) {
                Ok(Some(value)) => drop(values.insert(label, value)),
                Ok(None) => return Ok(Witness::Impossible { label }),
                Err(error) => gave_up = Some(error),
            }
        }
        match gave_up {
            None => Ok(Witness::Example(Example(values))),
            Some(error) => Err(error),
        }
    }

    /// A label and a value of it that `inner` accepts and `outer` does not. `None` proves that
    /// `outer` contains `inner`; a value disproves it unless `inner` never matches.
    pub(super) fn counterexample<'s>(
        &mut self,
        outer: &'s Selector,
        inner: &'s Selector,
    ) -> Result<Option<(&'s str, String)>, GaveUp> {
        let mut gave_up = None;
        for (label, matchers) in by_label(outer) {
            let mut conditions = self.conditions(inner, label);
            for matcher in matchers {
                conditions.push(Condition::fails(matcher));
                match self.solver.find(&conditions) {
                    Ok(Some(value)) => return Ok(Some((label, value))),
                    Ok(None) => {}
                    Err(error) => gave_up = Some(error),
                }
                conditions.pop();
            }
        }
        gave_up.map_or(Ok(None), Err)
    }

    /// What a label's value must be for `selector` to match.
    fn conditions<'s>(&self, selector: &'s Selector, label: &str) -> Vec<Condition<'s>> {
        let present = self.present.contains(&label).then(|| Condition::is_not(""));
        on_label(selector, label).iter().map(Condition::meets).chain(present).collect()
    }
}

/// The matchers of each label.
pub(super) fn by_label(selector: &Selector) -> impl Iterator<Item = (&str, &[Matcher])> {
    let same = |a: &Matcher, b: &Matcher| a.name() == b.name();
    selector.matchers().chunk_by(same).filter_map(|matchers| Some((matchers.first()?.name(), matchers)))
}

fn on_label<'s>(selector: &'s Selector, label: &str) -> &'s [Matcher] {
    let matchers = selector.matchers();
    let start = matchers.partition_point(|matcher| order(matcher.name()) < order(label));
    let length = matchers.get(start..).unwrap_or(&[]).partition_point(|matcher| matcher.name() == label);
    matchers.get(start..start + length).unwrap_or(&[])
}

/// That of a selector's matchers.
fn order(label: &str) -> (bool, &str) {
    (label != METRIC_NAME, label)
}
