//! Which of many selectors may match a series, found without asking each.

use std::collections::{BTreeSet, HashMap};

use super::super::crowds::Crowds;
use super::super::matcher::Accepts;
use super::super::{Labels, Selector};
use super::analyst::Example;
use super::work::{GaveUp, Work};

/// Selectors by a value or prefix that they cannot match without.
#[derive(Default)]
pub(super) struct Candidates<'s> {
    labels: HashMap<&'s str, Filed<'s>>,
    /// Those that ask for neither.
    others: Vec<usize>,
}

#[derive(Default)]
struct Filed<'s> {
    values: HashMap<&'s str, Vec<usize>>,
    prefixes: HashMap<&'s str, Vec<usize>>,
    /// Of the prefixes.
    lengths: BTreeSet<usize>,
}

impl<'s> Candidates<'s> {
    pub(super) fn new(selectors: &[(usize, &'s Selector)]) -> Self {
        let alone: Vec<&Selector> = selectors.iter().map(|(_, selector)| *selector).collect();
        let crowds = Crowds::count(&alone);
        let mut candidates = Self::default();
        for &(index, selector) in selectors {
            let key = crowds.best_label(selector).map(|matcher| (matcher.name(), matcher.accepts()));
            let Some((label, Accepts::Listed { values, prefixes })) = key else {
                candidates.others.push(index);
                continue;
            };
            let filed = candidates.labels.entry(label).or_default();
            for value in values {
                filed.values.entry(value).or_default().push(index);
            }
            for (text, _) in prefixes {
                filed.prefixes.entry(text).or_default().push(index);
                filed.lengths.insert(text.len());
            }
        }
        candidates
    }

    /// In order, those that may match; all others do not.
    pub(super) fn of(&self, example: &Example<'_>, work: &mut Work) -> Result<Vec<usize>, GaveUp> {
        work.spend(1 + self.others.len())?;
        let mut found = self.others.clone();
        for (label, filed) in example.labels().filter_map(|(name, _)| self.labels.get_key_value(name)) {
            let value = example.value(label);
            found.extend(filed.values.get(value).into_iter().flatten());
            for prefix in filed.lengths.iter().map_while(|&length| (length <= value.len()).then(|| value.get(..length)))
            {
                found.extend(prefix.and_then(|prefix| filed.prefixes.get(prefix)).into_iter().flatten());
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}
