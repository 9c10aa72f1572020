//! Which values a label may have: a value that meets all conditions, or that there is none.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::super::go_regex;
use super::condition::{Condition, List, UNUSUAL};
use super::hints;
use super::machine::{Lazy, Machine, TOO_LARGE_COST, Trie};
use super::product::{Term, shortest};
use super::work::{GaveUp, Work};

/// The most work that one question may take: some fifty milliseconds.
const PER_QUESTION: u64 = 3_000_000;

/// What the automata that are kept for later questions may take together, in bytes.
const KEPT_LIMIT: usize = 64 << 20;

/// Any text at all, as the regular expression that says so.
const ANY: &str = ".*";

/// Answers questions about values, within bounds, and keeps the automata for the next one.
pub(super) struct Solver {
    work: Work,
    regexes: HashMap<Box<str>, Box<Lazy>, foldhash::fast::RandomState>,
    kept: usize,
    /// Those that no automaton is built for.
    too_large: HashSet<Box<str>, foldhash::fast::RandomState>,
    /// A string or two that each regular expression matches, probably.
    samples: HashMap<Box<str>, Box<[String]>, foldhash::fast::RandomState>,
}

impl Solver {
    /// For as many questions as `work` allows in all.
    pub(super) fn new(work: Work) -> Self {
        Self { work, regexes: HashMap::default(), kept: 0, too_large: HashSet::default(), samples: HashMap::default() }
    }

    /// What is left for further questions.
    pub(super) fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    /// A value that meets all conditions; `None`: there is none.
    pub(super) fn find(&mut self, conditions: &[Condition<'_>]) -> Result<Option<String>, GaveUp> {
        let mut work = self.work.take(PER_QUESTION);
        let found = self.search(conditions, &mut work);
        self.work.put_back(&work);
        if let Ok(Some(value)) = &found {
            debug_assert!(conditions.iter().all(|condition| condition.is_met_by(value)), "{value:?}");
        }
        found
    }

    /// The one value that meets all conditions, if it is just one.
    pub(super) fn only(&mut self, conditions: &[Condition<'_>]) -> Result<Option<String>, GaveUp> {
        let Some(value) = self.find(conditions)? else { return Ok(None) };
        let another = self.find(&[conditions, &[Condition::is_not(&value)]].concat())?;
        Ok(another.is_none().then_some(value))
    }

    fn search(&mut self, conditions: &[Condition<'_>], work: &mut Work) -> Result<Option<String>, GaveUp> {
        work.spend(16 + 4 * conditions.len())?;
        let (mut wanted, mut unwanted) = (HashMap::new(), HashMap::new());
        for condition in conditions {
            let side = if condition.holds() { &mut wanted } else { &mut unwanted };
            side.insert(condition.key(), *condition);
        }
        if wanted.keys().any(|key| unwanted.contains_key(key)) {
            return Ok(None);
        }
        let wanted = in_order(wanted);
        let unwanted = in_order(unwanted);
        if unwanted.iter().filter_map(Condition::list).any(|list| list.is_everything()) {
            return Ok(None);
        }
        // All but the empty string are unwanted.
        if unwanted.iter().filter_map(Condition::list).any(|list| list.prefixes.contains(&("", true))) {
            return least(["".into()], conditions, work);
        }
        let lists: Vec<List<'_>> = wanted.iter().filter_map(Condition::list).collect();
        let finite = lists.iter().filter(|list| list.prefixes.is_empty()).min_by_key(|list| list.values.len());
        if let Some(list) = finite {
            return least(list.values.iter().map(|&value| value.into()), conditions, work);
        }
        let mut guess = if wanted.is_empty() {
            least(["".into(), UNUSUAL.into()], conditions, work)?
        } else {
            least(lists.iter().flat_map(List::guesses), conditions, work)?
        };
        for source in wanted.iter().filter_map(Condition::source) {
            if guess.is_none() {
                let samples = self.samples(source, work)?.iter();
                guess = least(samples.map(|sample| sample.into()), conditions, work)?;
            }
        }
        if guess.is_some() {
            return Ok(guess);
        }
        let mut terms = Vec::new();
        let outcome = self.terms(&wanted, &unwanted, &mut terms, work).and_then(|()| shortest(&mut terms, work));
        self.keep(terms, &wanted, &unwanted);
        match outcome? {
            Some(value) => String::from_utf8(value).map(Some).map_err(|_| GaveUp),
            None => Ok(None),
        }
    }

    fn samples(&mut self, source: &str, work: &mut Work) -> Result<&[String], GaveUp> {
        if !self.samples.contains_key(source) {
            work.spend(source.len() * 10)?;
            let tree = go_regex::parse(source).map_err(|_| GaveUp)?;
            self.samples.insert(source.into(), hints::samples(&tree).collect());
        }
        Ok(self.samples.get(source).map_or(&[], |samples| samples))
    }

    /// Automata for the conditions. Those of regular expressions come first and in order: `keep`
    /// relies on that.
    fn terms(
        &mut self,
        wanted: &[Condition<'_>],
        unwanted: &[Condition<'_>],
        terms: &mut Vec<Term>,
        work: &mut Work,
    ) -> Result<(), GaveUp> {
        for (source, accept) in sources(wanted, unwanted) {
            let lazy = self.automaton(source, work)?;
            terms.push(Term { machine: Machine::Regex(lazy), accept });
        }
        for list in wanted.iter().filter_map(Condition::list).filter(|list| !list.is_everything()) {
            let mut trie = Trie::new();
            add(&mut trie, &list, work)?;
            terms.push(Term { machine: Machine::List(trie), accept: true });
        }
        let lists: Vec<List<'_>> = unwanted.iter().filter_map(Condition::list).collect();
        if !lists.is_empty() {
            let mut trie = Trie::new();
            for list in &lists {
                add(&mut trie, list, work)?;
            }
            terms.push(Term { machine: Machine::List(trie), accept: false });
        }
        Ok(())
    }

    fn automaton(&mut self, source: &str, work: &mut Work) -> Result<Box<Lazy>, GaveUp> {
        if let Some(lazy) = self.regexes.remove(source) {
            self.kept = self.kept.saturating_sub(lazy.memory());
            return Ok(lazy);
        }
        if self.too_large.contains(source) {
            return Err(GaveUp);
        }
        let Some(lazy) = Lazy::new(source) else {
            self.too_large.insert(source.into());
            work.spend(TOO_LARGE_COST)?;
            return Err(GaveUp);
        };
        work.spend(lazy.cost())?;
        Ok(Box::new(lazy))
    }

    /// Keeps the automata of regular expressions for other questions.
    fn keep(&mut self, terms: Vec<Term>, wanted: &[Condition<'_>], unwanted: &[Condition<'_>]) {
        for (term, (source, _)) in terms.into_iter().zip(sources(wanted, unwanted)) {
            if let Machine::Regex(lazy) = term.machine {
                let memory = lazy.memory();
                if self.kept.saturating_add(memory) > KEPT_LIMIT {
                    self.regexes.clear();
                    self.kept = 0;
                }
                self.kept += memory;
                self.regexes.insert(source.into(), lazy);
            }
        }
    }
}

/// Sorted, so that answers do not depend on how they were hashed.
fn in_order<'m>(conditions: HashMap<(bool, &'m str), Condition<'m>>) -> Vec<Condition<'m>> {
    let mut conditions: Vec<_> = conditions.into_iter().collect();
    conditions.sort_unstable_by_key(|(key, _)| *key);
    conditions.into_iter().map(|(_, condition)| condition).collect()
}

/// The least of `values` that meets all conditions.
fn least<'v>(
    values: impl IntoIterator<Item = Cow<'v, str>>,
    conditions: &[Condition<'_>],
    work: &mut Work,
) -> Result<Option<String>, GaveUp> {
    let cost = conditions.iter().map(Condition::cost).sum::<usize>();
    let mut least: Option<Cow<'v, str>> = None;
    for value in values {
        work.spend(cost * (1 + value.len() / 16))?;
        if least.as_ref().is_none_or(|least| value < *least) && conditions.iter().all(|c| c.is_met_by(&value)) {
            least = Some(value);
        }
    }
    Ok(least.map(Cow::into_owned))
}

/// The regular expressions that take an automaton, and whether each shall match. One always shall,
/// which keeps values to UTF-8.
fn sources<'m>(
    wanted: &[Condition<'m>],
    unwanted: &[Condition<'m>],
) -> impl Iterator<Item = (&'m str, bool)> + use<'m> {
    let mut wanted: Vec<&str> = wanted.iter().filter_map(Condition::source).collect();
    if wanted.is_empty() {
        wanted.push(ANY);
    }
    let unwanted: Vec<&str> = unwanted.iter().filter_map(Condition::source).collect();
    wanted.into_iter().map(|source| (source, true)).chain(unwanted.into_iter().map(|source| (source, false)))
}

fn add(trie: &mut Trie, list: &List<'_>, work: &mut Work) -> Result<(), GaveUp> {
    for value in &list.values {
        trie.value(value, work)?;
    }
    for (text, longer) in &list.prefixes {
        trie.prefix(text, *longer, work)?;
    }
    Ok(())
}
