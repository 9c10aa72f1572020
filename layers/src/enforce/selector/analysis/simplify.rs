//! Regular expressions that say what `=` and `!=` say.

use super::super::{MatchOp, Matcher, Selector};
use super::analyst::{Analyst, by_label};
use super::condition::Condition;
use super::solver::Solver;
use super::work::GaveUp;

/// The selector with fewer regular expressions, if some can go.
pub(super) fn simplified(selector: &Selector, analyst: &mut Analyst<'_>) -> Option<Selector> {
    let simpler = by_label(selector).flat_map(|(_, matchers)| on_label(matchers, &mut analyst.solver)).collect();
    Some(Selector::new(simpler)).filter(|simpler| simpler != selector)
}

fn on_label(matchers: &[Matcher], solver: &mut Solver) -> Vec<Matcher> {
    if !matchers.iter().any(is_regex) {
        return matchers.to_vec();
    }
    let conditions: Vec<Condition<'_>> = matchers.iter().map(Condition::meets).collect();
    if let (Ok(Some(value)), [first, ..]) = (solver.only(&conditions), matchers) {
        return vec![Matcher::equal(first.name(), &value)];
    }
    // What takes too long to simplify stays.
    let simpler = |matcher: &Matcher| matcher_alone(matcher, solver).unwrap_or_else(|GaveUp| Some(matcher.clone()));
    matchers.iter().filter_map(simpler).collect()
}

/// `None`: it always holds.
fn matcher_alone(matcher: &Matcher, solver: &mut Solver) -> Result<Option<Matcher>, GaveUp> {
    if !is_regex(matcher) {
        return Ok(Some(matcher.clone()));
    }
    if solver.find(&[Condition::fails(matcher)])?.is_none() {
        return Ok(None);
    }
    let simpler = match matcher.op() {
        MatchOp::NotRegex => {
            solver.only(&[Condition::fails(matcher)])?.map(|value| Matcher::not_equal(matcher.name(), &value))
        }
        _ => solver.only(&[Condition::meets(matcher)])?.map(|value| Matcher::equal(matcher.name(), &value)),
    };
    Ok(Some(simpler.unwrap_or_else(|| matcher.clone())))
}

fn is_regex(matcher: &Matcher) -> bool {
    matches!(matcher.op(), MatchOp::Regex | MatchOp::NotRegex)
}
