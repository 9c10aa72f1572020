//! Which of many selectors may match a series, found without asking each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aho_corasick::AhoCorasick;

use super::super::crowds::Crowds;
use super::super::matcher::Accepts;
use super::super::{Labels, Selector, go_regex};
use super::analyst::Example;
use super::hints;
use super::work::{GaveUp, Work};

/// Selectors by a value, a prefix or a part of a value that they cannot match without.
pub(super) struct Candidates<'s> {
    labels: BTreeMap<&'s str, Filed<'s>>,
    /// Those that ask for none of these.
    others: Vec<usize>,
}

#[derive(Default)]
struct Filed<'s> {
    values: HashMap<&'s str, Vec<usize>, foldhash::fast::RandomState>,
    prefixes: HashMap<&'s str, Vec<usize>, foldhash::fast::RandomState>,
    /// Of the prefixes.
    lengths: BTreeSet<usize>,
    parts: Option<Parts>,
}

struct Parts {
    finder: AhoCorasick,
    /// In the order of the finder's patterns.
    selectors: Vec<Vec<usize>>,
}

impl<'s> Candidates<'s> {
    pub(super) fn new(selectors: &[(usize, &'s Selector)]) -> Self {
        let alone: Vec<&Selector> = selectors.iter().map(|(_, selector)| *selector).collect();
        let crowds = Crowds::count(&alone);
        let mut parts: BTreeMap<&str, BTreeMap<Vec<u8>, Vec<usize>>> = BTreeMap::new();
        let mut candidates = Self { labels: BTreeMap::new(), others: Vec::new() };
        for &(index, selector) in selectors {
            match crowds.best_label(selector).map(|matcher| (matcher.name(), matcher.accepts())) {
                Some((label, Accepts::Listed { values, prefixes })) => {
                    let filed = candidates.labels.entry(label).or_default();
                    for value in values {
                        filed.values.entry(value).or_default().push(index);
                    }
                    for (text, _) in prefixes {
                        filed.prefixes.entry(text).or_default().push(index);
                        filed.lengths.insert(text.len());
                    }
                }
                Some((label, Accepts::Regex(source))) => match required(source) {
                    Some(part) => parts.entry(label).or_default().entry(part).or_default().push(index),
                    None => candidates.others.push(index),
                },
                Some((_, Accepts::Unlisted)) | None => candidates.others.push(index),
            }
        }
        for (label, parts) in parts {
            match AhoCorasick::new(parts.keys()) {
                Ok(finder) => {
                    let selectors = parts.into_values().collect();
                    candidates.labels.entry(label).or_default().parts = Some(Parts { finder, selectors });
                }
                Err(_) => candidates.others.extend(parts.into_values().flatten()),
            }
        }
        candidates
    }

    /// In order, those that may match; all others do not.
    pub(super) fn of(&self, example: &Example<'_>, work: &mut Work) -> Result<Vec<usize>, GaveUp> {
        work.spend(self.others.len())?;
        let mut found = self.others.clone();
        for (label, filed) in example.labels().filter_map(|(name, _)| self.labels.get_key_value(name)) {
            filed.add(example.value(label), &mut found, work)?;
        }
        work.spend(found.len())?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

impl Filed<'_> {
    fn add(&self, value: &str, found: &mut Vec<usize>, work: &mut Work) -> Result<(), GaveUp> {
        work.spend(value.len())?;
        found.extend(self.values.get(value).into_iter().flatten());
        for &length in self.lengths.range(..=value.len()) {
            let prefix = value.get(..length);
            found.extend(prefix.and_then(|prefix| self.prefixes.get(prefix)).into_iter().flatten());
        }
        if let Some(parts) = &self.parts {
            let mut hits = Vec::new();
            for hit in parts.finder.find_overlapping_iter(value) {
                work.spend(1)?;
                hits.push(hit.pattern().as_usize());
            }
            hits.sort_unstable();
            hits.dedup();
            found.extend(hits.into_iter().filter_map(|hit| parts.selectors.get(hit)).flatten());
        }
        Ok(())
    }
}

fn required(source: &str) -> Option<Vec<u8>> {
    let tree = go_regex::parse(source).ok()?;
    hints::required(&tree)
}
