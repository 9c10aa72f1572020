//! What a regular expression accepts, in the cheapest form that says it: most of those in
//! selectors are lists of values or prefixes (`a|b`, `cluster:(cpu|memory):.*`).

use std::collections::HashSet;

use regex_automata::MatchKind;
use regex_automata::meta::{Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::hir::literal::{ExtractKind, Extractor, Literal};
use regex_syntax::hir::{Dot, Hir, HirKind, Look};

use super::error::Fault;
use super::go_regex;

/// The most memory that one compiled expression may take, in bytes.
const SIZE_LIMIT: usize = 10 << 20;

/// What the lazy DFA of many expressions may take per thread, in bytes. With the default of 2 MiB
/// a thousand of them overflow it and fall back to a search that is far slower.
const SET_CACHE_CAPACITY: usize = 16 << 20;

/// The most values that one branch of an expression is spelled out into.
const MAX_VALUES: usize = 1024;

/// A regular expression in Go's syntax that must match the whole value.
#[derive(Clone)]
pub(super) struct Pattern(Shape);

#[derive(Clone)]
pub(super) enum Shape {
    /// These values and whatever starts with these prefixes.
    Listed { values: HashSet<Box<str>, foldhash::fast::RandomState>, prefixes: Box<[Prefix]> },
    /// Anything else.
    Regex(Regex),
}

/// `text.*` or `text.+`.
#[derive(Clone)]
pub(super) struct Prefix {
    pub(super) text: Box<str>,
    /// Whether something must follow.
    pub(super) longer: bool,
}

impl Prefix {
    fn is_match(&self, value: &str) -> bool {
        value.starts_with(&*self.text) && (!self.longer || value.len() > self.text.len())
    }
}

impl Pattern {
    /// Faults count from the start of `source`.
    pub(super) fn new(source: &str) -> Result<Self, Fault> {
        let hir = go_regex::parse(source)?;
        let shape = match listed(&hir) {
            Some(listed) => listed,
            None => Shape::Regex(compile(hir).ok_or_else(too_large)?),
        };
        Ok(Self(shape))
    }

    pub(super) fn is_match(&self, value: &str) -> bool {
        match &self.0 {
            Shape::Listed { values, prefixes } => {
                values.contains(value) || prefixes.iter().any(|prefix| prefix.is_match(value))
            }
            Shape::Regex(regex) => regex.is_match(value),
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.0
    }
}

fn too_large() -> Fault {
    Fault::new(0, format!("takes more than {} MiB compiled; use smaller repetitions or classes", SIZE_LIMIT >> 20))
}

/// Many expressions as one, which matches a whole value that any of them does. `None` if they are
/// too large together.
pub(super) fn compile_any<'s>(sources: impl IntoIterator<Item = &'s str>) -> Option<Regex> {
    let trees = sources.into_iter().map(go_regex::parse);
    let trees: Vec<Hir> = trees.map(|tree| tree.map(whole).ok()).collect::<Option<_>>()?;
    // Each was within the limit alone.
    let config = config(SIZE_LIMIT.saturating_mul(trees.len()))
        .match_kind(MatchKind::All)
        .hybrid_cache_capacity(SET_CACHE_CAPACITY);
    Regex::builder().configure(config).build_many_from_hir(&trees).ok()
}

fn compile(tree: Hir) -> Option<Regex> {
    Regex::builder().configure(config(SIZE_LIMIT)).build_from_hir(&whole(tree)).ok()
}

fn config(size_limit: usize) -> Config {
    Config::new().nfa_size_limit(Some(size_limit)).which_captures(WhichCaptures::None)
}

/// Anchored at both ends.
pub(super) fn whole(tree: Hir) -> Hir {
    Hir::concat(vec![Hir::look(Look::Start), tree, Hir::look(Look::End)])
}

/// The expression as a list, if every branch of it can be spelled out.
fn listed(hir: &Hir) -> Option<Shape> {
    // Anchors may stand around the branches as well as in each.
    let branches = if let [only] = without_anchors(hir)
        && let HirKind::Alternation(branches) = only.kind()
    {
        branches.as_slice()
    } else {
        std::slice::from_ref(hir)
    };
    let mut values = HashSet::default();
    let mut prefixes = Vec::new();
    for branch in branches {
        let parts = without_anchors(branch);
        if let [head @ .., tail] = parts
            && let Some(longer) = anything(tail)
        {
            let texts = spelled_out(head)?;
            prefixes.extend(texts.into_iter().map(|text| Prefix { text, longer }));
        } else {
            values.extend(spelled_out(parts)?);
        }
        // A list as long as its source is fine, one that explodes is not.
        if values.len() + prefixes.len() > branches.len() + MAX_VALUES {
            return None;
        }
    }
    Some(Shape::Listed { values, prefixes: prefixes.into() })
}

/// The parts of a branch, less a `^` in front and a `$` behind, which hold there anyway.
fn without_anchors(branch: &Hir) -> &[Hir] {
    let mut parts = match branch.kind() {
        HirKind::Concat(parts) => parts.as_slice(),
        _ => std::slice::from_ref(branch),
    };
    while let [first, rest @ ..] = parts
        && matches!(first.kind(), HirKind::Look(Look::Start))
    {
        parts = rest;
    }
    while let [rest @ .., last] = parts
        && matches!(last.kind(), HirKind::Look(Look::End))
    {
        parts = rest;
    }
    parts
}

/// For `.*` and `.+`, where the dot matches all: whether something must be there.
fn anything(hir: &Hir) -> Option<bool> {
    match hir.kind() {
        HirKind::Repetition(repeat)
            if repeat.max.is_none() && repeat.min <= 1 && *repeat.sub == Hir::dot(Dot::AnyChar) =>
        {
            Some(repeat.min == 1)
        }
        _ => None,
    }
}

/// All strings that these parts, one after another, match, if they are few.
fn spelled_out(parts: &[Hir]) -> Option<Vec<Box<str>>> {
    let hir = Hir::concat(parts.to_vec());
    // The extractor passes over assertions as if they always held.
    if !hir.properties().look_set().is_empty() {
        return None;
    }
    let strings = Extractor::new()
        .kind(ExtractKind::Prefix)
        .limit_class(64)
        .limit_repeat(16)
        .limit_literal_len(512)
        .limit_total(MAX_VALUES)
        .extract(&hir);
    // Infinite has no literals; one that was cut short is not exact.
    let strings = strings.literals()?;
    if !strings.iter().all(Literal::is_exact) {
        return None;
    }
    strings.iter().map(|literal| std::str::from_utf8(literal.as_bytes()).ok().map(Into::into)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list as text: values, then prefixes with `*` or `+`, sorted.
    fn list(source: &str) -> Option<String> {
        match Pattern::new(source).unwrap().0 {
            Shape::Regex(_) => None,
            Shape::Listed { values, prefixes } => {
                let mut all: Vec<String> = values.iter().map(|value| value.to_string()).collect();
                all.extend(
                    prefixes.iter().map(|prefix| format!("{}{}", prefix.text, if prefix.longer { '+' } else { '*' })),
                );
                all.sort();
                Some(all.join(" "))
            }
        }
    }

    #[test]
    fn lists_what_can_be_listed() {
        for (source, expected) in [
            ("", ""),
            ("up", "up"),
            ("a|b|c", "a b c"),
            ("api|web|", " api web"),
            ("(api|web)", "api web"),
            ("^(?:api|web)$", "api web"),
            ("^api$|^web.*$", "api web*"),
            ("x(a|bc)?", "x xa xbc"),
            ("(?i)ab", "AB Ab aB ab"),
            ("job_[0-2]", "job_0 job_1 job_2"),
            (".*", "*"),
            (".+", "+"),
            ("(.*)", "*"),
            ("cluster:.*", "cluster:*"),
            ("cluster:(cpu|memory):.+", "cluster:cpu:+ cluster:memory:+"),
            ("up|kube_.*|(node|pod)_.+", "kube_* node_+ pod_+ up"),
            (r"\Qa.b\E|c\.d", "a.b c.d"),
            (r"[^\x00-\x{10FFFF}]", ""),
        ] {
            assert_eq!(list(source).as_deref(), Some(expected), "{source}");
        }
    }

    #[test]
    fn leaves_the_rest_to_a_regex() {
        for source in [
            ".*_total",
            "a.*b",
            "(?-s)a.*",
            "a.*|.*b",
            r"a\b|b",
            "a$b",
            "[a-z]+",
            "a{2,9}",
            r"\pL",
            "[ab][ab][ab][ab][ab][ab][ab][ab][ab][ab][ab]",
        ] {
            assert_eq!(list(source), None, "{source}");
        }
    }

    #[test]
    fn a_long_list_stays_a_list() {
        let names: Vec<String> = (0..5000).map(|i| format!("name_{i}")).collect();
        let pattern = Pattern::new(&names.join("|")).unwrap();
        assert!(matches!(&pattern.0, Shape::Listed { values, .. } if values.len() == 5000));
        assert!(pattern.is_match("name_4999") && !pattern.is_match("name_5000"));
    }

    #[test]
    fn a_list_matches_as_its_regex_does() {
        let inputs = ["", "a", "ab", "abc", "b", "b\n", "bc", "xa", "\n", "é"];
        for source in ["", "a|", "a.*", "b.+|a", "(a|b).*", ".*", ".+", "ab?|é", "^a$|^b.*"] {
            let pattern = Pattern::new(source).unwrap();
            assert!(matches!(pattern.0, Shape::Listed { .. }), "{source}");
            let regex = compile(go_regex::parse(source).unwrap()).unwrap();
            for input in inputs {
                assert_eq!(pattern.is_match(input), regex.is_match(input), "{source} {input:?}");
            }
        }
    }
}
