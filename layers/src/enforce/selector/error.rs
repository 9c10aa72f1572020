//! The one error of this module.

use std::borrow::Cow;

/// Why selectors are refused, in one line that says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// One selector is wrong.
    #[error("column {column}: {problem}")]
    Selector {
        /// Where in the selector, in bytes from 1.
        column: usize,
        /// What is wrong there, and what to write instead.
        problem: Cow<'static, str>,
    },
    /// Selectors that are right one by one do not fit into one set.
    #[error("the regular expressions on label {label:?} are too large together: use fewer or simpler ones")]
    SetTooLarge {
        /// The label that they all look at.
        label: String,
    },
}

/// What is wrong at a byte offset of the text at hand.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) problem: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(at: usize, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { at, problem: problem.into() }
    }
}

impl From<Fault> for SelectorError {
    fn from(Fault { at, problem }: Fault) -> Self {
        Self::Selector { column: at.saturating_add(1), problem }
    }
}

/// How an error shows a character or a piece of input: on one line, whatever it is.
pub(super) fn show(piece: impl AsRef<str>) -> String {
    const LONGEST: usize = 32;
    let piece = piece.as_ref();
    let mut shown: String = piece.chars().take(LONGEST).flat_map(show_char).collect();
    if piece.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

// `escape_debug` would double backslashes and quotes too, and so not show what was written.
fn show_char(c: char) -> impl Iterator<Item = char> {
    let plain = matches!(c, '\\' | '"' | '\'');
    let escaped = (!plain).then(|| c.escape_debug());
    plain.then_some(c).into_iter().chain(escaped.into_iter().flatten())
}
