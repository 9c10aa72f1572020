//! What a list of selectors says, without any series: which can never match, which say what
//! another says already, which could be written without a regular expression.
//!
//! Answers are proven, by automata where regular expressions leave no other way, and bounded: a
//! question that would take too long, or too much memory, stays open, and nothing is said then.
//! How much is too much does not depend on the machine.
//!
//! ```
//! use infogw_layers::enforce::selector::{Selector, analysis::{Finding, findings}};
//!
//! let rules = ["up", r#"up{job="api"}"#, r#"{__name__=~"node_(load1)"}"#, r#"errors{code=~"4..",code=~"5.."}"#];
//! let rules: Vec<Selector> = rules.iter().map(|rule| rule.parse()).collect::<Result<_, _>>()?;
//!
//! assert!(rules[0].contains(&rules[1]));
//! assert!(rules[3].never_matches());
//! let found = findings(&rules, &[]);
//! assert_eq!(found[0], Finding::Contained { this: 1, by: 0 });
//! assert_eq!(found[1].to_string(), "selector 3 needs no regular expression: write node_load1");
//! assert_eq!(found[2].to_string(), "selector 4 can never match: no value of label \"code\" meets all it asks for");
//! # Ok::<(), infogw_layers::enforce::selector::SelectorError>(())
//! ```

mod analyst;
mod candidates;
mod condition;
mod finding;
mod hints;
mod machine;
mod product;
mod simplify;
mod solver;
mod work;

pub use finding::{Finding, findings};

use super::Selector;
use analyst::{Analyst, Witness};

impl Selector {
    /// Whether no series matches, whatever its labels: `up{job="a",job="b"}`, `{a=~"b.*",a!~".+"}`.
    ///
    /// True only if that is proven; false may also mean that a proof would take too long.
    pub fn never_matches(&self) -> bool {
        matches!(Analyst::for_one_question(&[]).witness(self), Ok(Witness::Impossible { .. }))
    }

    /// Whether every series that `other` matches is one that `self` matches, too. So it is for any
    /// `self` if `other` [never matches](Self::never_matches).
    ///
    /// True only if that is proven; false may also mean that a proof would take too long.
    pub fn contains(&self, other: &Selector) -> bool {
        let mut analyst = Analyst::for_one_question(&[]);
        matches!(analyst.counterexample(self, other), Ok(None))
            || matches!(analyst.witness(other), Ok(Witness::Impossible { .. }))
    }

    /// The same selector with fewer regular expressions, if any of them can go: one that accepts a
    /// single string is an `=`, one that excludes a single string a `!=`, and one that accepts every
    /// string says nothing.
    ///
    /// ```
    /// use infogw_layers::enforce::selector::Selector;
    ///
    /// let selector: Selector = r#"{__name__=~"^up$",job!~"a",zone=~".*"}"#.parse()?;
    /// assert_eq!(selector.simplified(), Some(r#"up{job!="a"}"#.parse()?));
    /// # Ok::<(), infogw_layers::enforce::selector::SelectorError>(())
    /// ```
    pub fn simplified(&self) -> Option<Selector> {
        simplify::simplified(self, &mut Analyst::for_one_question(&[]))
    }
}
