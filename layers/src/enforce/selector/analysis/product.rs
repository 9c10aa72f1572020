//! Several automata at once: a value that they all agree on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::machine::{ALL, DEAD, Machine, State};
use super::work::{GaveUp, Work};

/// A machine, and whether it shall accept the value or refuse it.
pub(super) struct Term {
    pub(super) machine: Machine,
    pub(super) accept: bool,
}

impl Term {
    /// Whether no value that goes on from here can do.
    fn is_hopeless(&self, state: State) -> bool {
        match (&self.machine, self.accept) {
            (_, true) => state == DEAD,
            (Machine::List(_), false) => state == ALL,
            (Machine::Regex(_), false) => false,
        }
    }

    fn is_content(&self, state: State) -> bool {
        self.machine.accepts(state) == self.accept
    }
}

/// A shortest value on which every term is content; `None` if there is none. At least one term
/// must see to it that the value is UTF-8.
pub(super) fn shortest(terms: &mut [Term], work: &mut Work) -> Result<Option<Vec<u8>>, GaveUp> {
    let bytes = representatives(terms, work)?;
    let mut start = Vec::with_capacity(terms.len());
    for term in terms.iter_mut() {
        let state = term.machine.start()?;
        if term.is_hopeless(state) {
            return Ok(None);
        }
        start.push(state);
    }
    if is_content(terms, &start) {
        return Ok(Some(Vec::new()));
    }
    let mut seen: HashSet<Arc<[State]>, foldhash::fast::RandomState> = HashSet::default();
    let start: Arc<[State]> = start.into();
    seen.insert(Arc::clone(&start));
    // In order of discovery, which is that of length.
    let mut found: Vec<Found> = vec![Found { states: start, from: 0, byte: 0 }];
    let mut next = Vec::with_capacity(terms.len());
    let mut at = 0;
    while let Some(states) = found.get(at).map(|found| Arc::clone(&found.states)) {
        work.spend(bytes.len() * terms.len())?;
        for (term, &state) in terms.iter_mut().zip(&*states) {
            term.machine.expand(state, work)?;
        }
        for &byte in &bytes {
            if !step(terms, &states, byte, &mut next) || seen.contains(&*next) {
                continue;
            }
            work.spend(16 + terms.len())?;
            let states: Arc<[State]> = next.as_slice().into();
            seen.insert(Arc::clone(&states));
            found.push(Found { states, from: at, byte });
            if is_content(terms, &next) {
                return Ok(Some(path(&found)));
            }
        }
        at += 1;
    }
    Ok(None)
}

/// A combination of states, and how it was reached.
struct Found {
    states: Arc<[State]>,
    from: usize,
    byte: u8,
}

/// What follows `states`; false if that is hopeless.
fn step(terms: &[Term], states: &[State], byte: u8, next: &mut Vec<State>) -> bool {
    next.clear();
    next.extend(terms.iter().zip(states).map(|(term, &state)| term.machine.next(state, byte)));
    !terms.iter().zip(&*next).any(|(term, &state)| term.is_hopeless(state))
}

fn is_content(terms: &[Term], states: &[State]) -> bool {
    terms.iter().zip(states).all(|(term, &state)| term.is_content(state))
}

/// The bytes that lead to the last one found.
fn path(found: &[Found]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = found.len().saturating_sub(1);
    while let Some(step) = found.get(at).filter(|_| at > 0) {
        bytes.push(step.byte);
        at = step.from;
    }
    bytes.reverse();
    bytes
}

/// One byte of each class that some machine tells from the others. The lowest, as those are the
/// least likely to be in other selectors' expressions, too.
fn representatives(terms: &[Term], work: &mut Work) -> Result<Vec<u8>, GaveUp> {
    work.spend(256 * terms.len())?;
    let mut class_of: Vec<usize> = vec![0; 256];
    for term in terms {
        let mut joint: HashMap<(usize, usize), usize, foldhash::fast::RandomState> = HashMap::default();
        for (byte, class) in (0..=u8::MAX).zip(&mut class_of) {
            let next = joint.len();
            *class = *joint.entry((*class, term.machine.class(byte))).or_insert(next);
        }
    }
    let mut seen = HashSet::new();
    Ok((0..=u8::MAX).zip(class_of).filter(|(_, class)| seen.insert(*class)).map(|(byte, _)| byte).collect())
}
