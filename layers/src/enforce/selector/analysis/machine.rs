//! Automata that read a value byte by byte: those of regular expressions, built as far as they
//! are walked, and those of lists.

use std::{collections::HashMap, sync::Arc};

use regex_automata::hybrid::{LazyStateID, dfa};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::{Anchored, Input, MatchKind};

use super::super::{go_regex, pattern};
use super::work::{GaveUp, Work};

/// The most memory that the program of one expression may take here, in bytes.
const PROGRAM_LIMIT: usize = 4 << 20;

/// What it takes to find that out, in units of work.
pub(super) const TOO_LARGE_COST: usize = 1_000_000;

/// The most memory that the states of one expression may take, in bytes.
const STATES_LIMIT: usize = 4 << 20;

/// A state; each machine counts its own.
pub(super) type State = u32;

/// Nothing is accepted any more, whatever follows.
pub(super) const DEAD: State = 0;

/// Everything is accepted, whatever follows. Only lists say so.
pub(super) const ALL: State = 1;

pub(super) enum Machine {
    Regex(Box<Lazy>),
    List(Trie),
}

impl Machine {
    pub(super) fn start(&mut self) -> Result<State, GaveUp> {
        match self {
            Self::Regex(lazy) => lazy.start(),
            Self::List(_) => Ok(Trie::ROOT),
        }
    }

    /// Bytes of one class lead to the same state from everywhere.
    pub(super) fn class(&self, byte: u8) -> usize {
        match self {
            Self::Regex(lazy) => lazy.class(byte),
            Self::List(trie) => trie.class(byte),
        }
    }

    /// Makes sure that [`next`](Self::next) knows what follows `state`.
    pub(super) fn expand(&mut self, state: State, work: &mut Work) -> Result<(), GaveUp> {
        match self {
            Self::Regex(lazy) => lazy.expand(state, work),
            Self::List(_) => Ok(()),
        }
    }

    pub(super) fn next(&self, state: State, byte: u8) -> State {
        match self {
            Self::Regex(lazy) => lazy.next(state, byte),
            Self::List(trie) => trie.next(state, byte),
        }
    }

    /// Whether a value that ends here is accepted.
    pub(super) fn accepts(&self, state: State) -> bool {
        match self {
            Self::Regex(lazy) => lazy.nodes.get(state as usize).is_some_and(|node| node.accepts),
            Self::List(trie) => trie.nodes.get(state as usize).is_some_and(|node| node.accepts),
        }
    }
}

/// A regular expression that must match the whole value.
///
/// `regex-automata` finds the states; what it found is kept beside it by number, which costs a
/// look-up where asking it again costs a lot more.
pub(super) struct Lazy {
    dfa: dfa::DFA,
    cache: dfa::Cache,
    /// One byte of each class, in order.
    bytes: Arc<[u8]>,
    nodes: Vec<Node>,
    numbers: HashMap<LazyStateID, State, foldhash::fast::RandomState>,
    start: Option<State>,
}

struct Node {
    id: Option<LazyStateID>,
    accepts: bool,
    /// What it takes in memory beyond the least, which tells how dear it is to leave: it stands for
    /// a set of states of the program.
    size: usize,
    /// What follows, by class; empty until somebody asks.
    row: Box<[State]>,
}

impl Lazy {
    /// An expression as written in a selector; `None` if it is too large.
    pub(super) fn new(source: &str) -> Option<Self> {
        let tree = pattern::whole(go_regex::parse(source).ok()?);
        let config = thompson::Config::new().nfa_size_limit(Some(PROGRAM_LIMIT)).which_captures(WhichCaptures::None);
        let nfa = thompson::Compiler::new().configure(config).build_from_hir(&tree).ok()?;
        let config = dfa::DFA::config()
            .match_kind(MatchKind::All)
            .cache_capacity(STATES_LIMIT)
            .skip_cache_capacity_check(true)
            // Numbers stay valid: it fails rather than forgets.
            .minimum_cache_clear_count(Some(0));
        let dfa = dfa::DFA::builder().configure(config).build_from_nfa(nfa).ok()?;
        let cache = dfa.create_cache();
        let bytes = dfa.byte_classes().representatives(0..=u8::MAX).filter_map(|unit| unit.as_u8()).collect();
        let dead = Node { id: None, accepts: false, size: 0, row: Box::default() };
        Some(Self { dfa, cache, bytes, nodes: vec![dead], numbers: HashMap::default(), start: None })
    }

    /// What it took to make it, in units of work.
    pub(super) fn cost(&self) -> usize {
        self.dfa.get_nfa().states().len() * 8
    }

    /// In bytes, roughly.
    pub(super) fn memory(&self) -> usize {
        let rows = self.nodes.len() * (self.bytes.len() * size_of::<State>() + size_of::<Node>());
        self.dfa.get_nfa().memory_usage() + self.dfa.memory_usage() + self.cache.memory_usage() + rows
    }

    fn start(&mut self) -> Result<State, GaveUp> {
        if let Some(start) = self.start {
            return Ok(start);
        }
        let input = Input::new("").anchored(Anchored::Yes);
        let before = self.cache.memory_usage();
        let id = self.dfa.start_state_forward(&mut self.cache, &input).map_err(|_| GaveUp)?;
        let start = self.number(id, before)?;
        self.start = Some(start);
        Ok(start)
    }

    fn class(&self, byte: u8) -> usize {
        usize::from(self.dfa.byte_classes().get(byte))
    }

    fn expand(&mut self, state: State, work: &mut Work) -> Result<(), GaveUp> {
        let Some(Node { id: Some(id), row, size, .. }) = self.nodes.get(state as usize) else {
            return Ok(());
        };
        if !row.is_empty() {
            return Ok(());
        }
        let id = *id;
        work.spend(self.bytes.len() * (8 + size))?;
        let mut row = Vec::with_capacity(self.bytes.len());
        for &byte in &*Arc::clone(&self.bytes) {
            let before = self.cache.memory_usage();
            let next = self.dfa.next_state(&mut self.cache, id, byte).map_err(|_| GaveUp)?;
            row.push(self.number(next, before)?);
        }
        if let Some(node) = self.nodes.get_mut(state as usize) {
            node.row = row.into();
        }
        Ok(())
    }

    fn next(&self, state: State, byte: u8) -> State {
        let row = self.nodes.get(state as usize).map_or(&[][..], |node| &node.row);
        row.get(self.class(byte)).copied().unwrap_or(DEAD)
    }

    /// The number of a state, where so much memory was in use before it was found.
    fn number(&mut self, id: LazyStateID, before: usize) -> Result<State, GaveUp> {
        if id.is_dead() {
            return Ok(DEAD);
        }
        if let Some(&number) = self.numbers.get(&id) {
            return Ok(number);
        }
        let least = (size_of::<State>() << self.dfa.byte_classes().stride2()) + 64;
        let size = self.cache.memory_usage().saturating_sub(before + least);
        let end = self.dfa.next_eoi_state(&mut self.cache, id).map_err(|_| GaveUp)?;
        let number = State::try_from(self.nodes.len()).map_err(|_| GaveUp)?;
        self.nodes.push(Node { id: Some(id), accepts: end.is_match(), size, row: Box::default() });
        self.numbers.insert(id, number);
        Ok(number)
    }
}

/// A list of values and prefixes.
pub(super) struct Trie {
    nodes: Vec<Branch>,
    children: HashMap<(State, u8), State, foldhash::fast::RandomState>,
    /// The class of each byte: those that occur have one of their own.
    classes: Vec<u16>,
}

#[derive(Clone, Copy, Default)]
struct Branch {
    accepts: bool,
    /// Whatever follows is accepted, as long as something does.
    open: bool,
}

impl Trie {
    const ROOT: State = 2;

    pub(super) fn new() -> Self {
        let all = Branch { accepts: true, open: true };
        Self {
            nodes: vec![Branch::default(), all, Branch::default()],
            children: HashMap::default(),
            classes: vec![0; 256],
        }
    }

    pub(super) fn value(&mut self, text: &str, work: &mut Work) -> Result<(), GaveUp> {
        let at = self.walk(text, work)?;
        if let Some(branch) = self.nodes.get_mut(at as usize) {
            branch.accepts = true;
        }
        Ok(())
    }

    /// Whatever starts with `text`, itself only if it need not be `longer`.
    pub(super) fn prefix(&mut self, text: &str, longer: bool, work: &mut Work) -> Result<(), GaveUp> {
        let at = self.walk(text, work)?;
        if let Some(branch) = self.nodes.get_mut(at as usize) {
            branch.accepts |= !longer;
            branch.open = true;
        }
        Ok(())
    }

    fn walk(&mut self, text: &str, work: &mut Work) -> Result<State, GaveUp> {
        work.spend(text.len() * 4)?;
        let mut at = Self::ROOT;
        for byte in text.bytes() {
            let new = State::try_from(self.nodes.len()).map_err(|_| GaveUp)?;
            let next = *self.children.entry((at, byte)).or_insert(new);
            if next == new {
                self.nodes.push(Branch::default());
            }
            if let Some(class) = self.classes.get_mut(usize::from(byte)) {
                *class = u16::from(byte) + 1;
            }
            at = next;
        }
        Ok(at)
    }

    fn class(&self, byte: u8) -> usize {
        self.classes.get(usize::from(byte)).copied().unwrap_or(0).into()
    }

    fn next(&self, state: State, byte: u8) -> State {
        match self.nodes.get(state as usize) {
            Some(Branch { open: true, .. }) => ALL,
            _ => self.children.get(&(state, byte)).copied().unwrap_or(DEAD),
        }
    }
}
