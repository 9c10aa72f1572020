//! From a selector's text to its matchers: one pass, no recursion.

use super::error::{Fault, show};
use super::literal::Literal;
use super::matcher::{MatchOp, Matcher};
use super::{METRIC_NAME, SelectorError};

/// Parses one selector into its matchers, in the order written.
pub(super) fn selector(text: &str) -> Result<Vec<Matcher>, SelectorError> {
    let mut cursor = Cursor { text, at: 0 };
    let matchers = cursor.selector()?;
    Ok(matchers)
}

/// Whether a metric name can stand before the braces without quotes.
pub(super) fn is_bare_metric_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| is_name_start(c) || c == ':')
        && chars.all(|c| is_name_part(c) || c == ':')
        && !is_reserved(name)
}

/// Whether a label name can stand without quotes.
pub(super) fn is_bare_label_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(is_name_start) && chars.all(is_name_part)
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_name_part(c: char) -> bool {
    is_name_start(c) || c.is_ascii_digit()
}

/// The words that PromQL reads as something else even where a metric name is due. Its other
/// keywords are fine there, and inside the braces all are.
fn is_reserved(name: &str) -> bool {
    const RESERVED: [&str; 8] = ["atan2", "bool", "group_left", "group_right", "ignoring", "inf", "nan", "on"];
    RESERVED.iter().any(|word| word.eq_ignore_ascii_case(name))
}

struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    fn selector(&mut self) -> Result<Vec<Matcher>, Fault> {
        self.skip_blank();
        let start = self.at;
        let name = self.take_while(|c| is_name_part(c) || c == ':');
        if !name.is_empty() && !is_bare_metric_name(name) {
            return Err(bad_metric_name(start, name));
        }
        let mut matchers = Vec::new();
        if !name.is_empty() {
            matchers.push(Matcher::equal(METRIC_NAME, name));
        }
        self.skip_blank();
        if self.eat('{') {
            self.matchers(name, &mut matchers)?;
        } else if name.is_empty() {
            return Err(self.unexpected("a metric name or {label=\"value\"}"));
        }
        self.skip_blank();
        if self.peek().is_some() {
            return Err(self.trailing());
        }
        if matchers.iter().all(|matcher| matcher.matches("")) {
            return Err(Fault::new(
                start,
                "this selects series that lack the labels it names; add a matcher that does not \
                 match the empty string, such as {__name__=~\".+\"} for any series",
            ));
        }
        Ok(matchers)
    }

    /// The matchers up to and with the closing brace; `name` is what stood before the braces.
    fn matchers(&mut self, name: &str, matchers: &mut Vec<Matcher>) -> Result<(), Fault> {
        loop {
            self.skip_blank();
            // Reached with nothing in between, or behind a trailing comma.
            if self.eat('}') {
                return Ok(());
            }
            let start = self.at;
            let matcher = self.matcher()?;
            if !name.is_empty() && matcher.name() == METRIC_NAME {
                return Err(Fault::new(
                    start,
                    format!("the metric name is set twice: drop this, or the {} before the braces", show(name)),
                ));
            }
            matchers.push(matcher);
            self.skip_blank();
            if self.eat('}') {
                return Ok(());
            }
            if !self.eat(',') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    /// `label op "value"`, where the label may be in quotes, or a metric name in quotes.
    fn matcher(&mut self) -> Result<Matcher, Fault> {
        let quoted = self.peek().is_some_and(Literal::opens_with);
        let label = if quoted {
            self.string()?.0
        } else if self.peek().is_some_and(is_name_start) {
            self.take_while(is_name_part).to_owned()
        } else {
            return Err(self.unexpected("a label name, a metric name in quotes or `}`"));
        };
        self.skip_blank();
        let Some(op) = self.operator() else {
            if quoted && matches!(self.peek(), Some(',' | '}') | None) {
                return Ok(Matcher::equal(METRIC_NAME, &label));
            }
            return Err(self.unexpected("=, !=, =~ or !~"));
        };
        self.skip_blank();
        if !self.peek().is_some_and(Literal::opens_with) {
            return Err(self.unexpected("a value in quotes"));
        }
        let (value, literal) = self.string()?;
        Matcher::new(&label, op, &value).map_err(|fault| {
            let at = literal.at + literal.text.source_of(fault.at);
            Fault::new(at, format!("regular expression: {}", fault.problem))
        })
    }

    fn operator(&mut self) -> Option<MatchOp> {
        // The two-character ones first, as `=` starts `=~`.
        let op = [MatchOp::Regex, MatchOp::NotRegex, MatchOp::NotEqual, MatchOp::Equal]
            .into_iter()
            .find(|op| self.rest().starts_with(op.as_str()))?;
        self.at += op.as_str().len();
        Some(op)
    }

    fn string(&mut self) -> Result<(String, Placed<'t>), Fault> {
        let at = self.at;
        let text = Literal::new(self.rest());
        let (value, length) = text.decode().map_err(|fault| Fault::new(at + fault.at, fault.problem))?;
        self.at += length;
        Ok((value, Placed { at, text }))
    }

    /// Skips white space, and comments up to the end of their line.
    fn skip_blank(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            if self.peek() != Some('#') {
                return;
            }
            self.take_while(|c| !matches!(c, '\n' | '\r'));
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or("")
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn unexpected(&self, wanted: &str) -> Fault {
        let found = match self.peek() {
            Some(c) => show(c.encode_utf8(&mut [0; 4])),
            None => "the end".into(),
        };
        Fault::new(self.at, format!("expected {wanted}, found {found}"))
    }

    fn trailing(&self) -> Fault {
        let rest = self.rest();
        Fault::new(
            self.at,
            format!(
                "{} follows the selector; remove it (ranges, offset, @ and operators select no series)",
                show(rest)
            ),
        )
    }
}

/// A literal and where it starts, to point into it later.
struct Placed<'t> {
    at: usize,
    text: Literal<'t>,
}

fn bad_metric_name(at: usize, name: &str) -> Fault {
    let shown = show(name);
    let problem = if is_reserved(name) {
        format!("{shown} is a PromQL keyword or number; put it in quotes, as in {{\"{name}\"}}")
    } else {
        format!("a metric name cannot start with a digit; put {shown} in quotes, as in {{\"name\"}}")
    };
    Fault::new(at, problem)
}
