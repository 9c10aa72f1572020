//! Why a text is refused, in one line for its sender.

use std::fmt::{self, Write};

/// Why a text was not parsed to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError<E> {
    /// Not the text format.
    #[error("line {line}: {detail}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to change: one line, at most some 300 bytes, of the input 64 at most.
        detail: String,
    },
    /// A sample has too many labels.
    #[error("line {line}: the sample has {labels} labels, at most {max_labels} are taken; drop some")]
    TooManyLabels {
        /// The line, from 1.
        line: usize,
        /// How many it has, its name not counted.
        labels: usize,
        /// The most that a sample may have, its name not counted.
        max_labels: usize,
    },
    /// The sink refused.
    #[error("line {line}: {error}")]
    Sink {
        /// The line, from 1.
        line: usize,
        /// The sink's reason.
        error: E,
    },
}

impl<E> TextError<E> {
    /// The line that was refused, from 1.
    pub fn line(&self) -> usize {
        match self {
            TextError::Malformed { line, .. }
            | TextError::TooManyLabels { line, .. }
            | TextError::Sink { line, .. } => *line,
        }
    }

    pub(super) fn malformed(line: usize, detail: impl Into<String>) -> Self {
        TextError::Malformed { line, detail: detail.into() }
    }
}

/// What is wrong with a line, whichever it is.
pub(super) enum Fault<E> {
    Malformed(String),
    /// So many.
    TooManyLabels(usize),
    Sink(E),
}

impl<E> Fault<E> {
    #[cold]
    pub(super) fn malformed(detail: fmt::Arguments<'_>) -> Self {
        Fault::Malformed(detail.to_string())
    }

    #[cold]
    pub(super) fn at(self, number: usize, line: &str, max_labels: usize) -> TextError<E> {
        match self {
            Fault::Malformed(mut detail) => {
                if line.ends_with('\r') {
                    detail.push_str(" (this line ends with `\\r\\n`; end lines with `\\n` alone)");
                }
                TextError::malformed(number, detail)
            }
            Fault::TooManyLabels(labels) => TextError::TooManyLabels { line: number, labels, max_labels },
            Fault::Sink(error) => TextError::Sink { line: number, error },
        }
    }
}

/// Input in a message: in backquotes, control characters escaped, cut off. A message has two of these at most.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 32;

        f.write_char('`')?;
        let mut length = 0;
        for (at, c) in self.0.char_indices() {
            // Quotes and backslashes are legible as they are, and escaped again they would mislead about escapes.
            let plain = matches!(c, '"' | '\'' | '\\');
            length += if plain { 1 } else { c.escape_debug().map(char::len_utf8).sum() };
            if length > LONGEST && at > 0 {
                f.write_str("...")?;
                break;
            }
            if plain { f.write_char(c)? } else { write!(f, "{}", c.escape_debug())? }
        }
        f.write_char('`')
    }
}

/// What stands where something else was expected.
pub(super) struct Found<'a>(pub(super) &'a str);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the end of the line") } else { Quoted(self.0).fmt(f) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_short_and_legible() {
        let cases = [
            ("", "``"),
            ("a\"b\\", "`a\"b\\`"),
            ("a\tb\r\u{7}\u{1b}[2J", r"`a\tb\r\u{7}\u{1b}[2J`"),
            ("é\u{202e}", r"`é\u{202e}`"),
            ("abcdefghijklmnopqrstuvwxyz0123456789", "`abcdefghijklmnopqrstuvwxyz012345...`"),
            (r#""\\"\\"\\"\\"\\"\\"\\"\\"\\"\\"\\"#, r#"`"\\"\\"\\"\\"\\"\\"\\"\\"\\"\\"\...`"#),
            ("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", r"`\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0...`"),
        ];
        for (input, quoted) in cases {
            assert_eq!(Quoted(input).to_string(), quoted);
        }
    }

    #[test]
    fn carriage_returns_are_named() {
        let fault = Fault::<std::convert::Infallible>::malformed(format_args!("no")).at(3, "x 1\r", 9);
        assert_eq!(fault.to_string(), "line 3: no (this line ends with `\\r\\n`; end lines with `\\n` alone)");
    }
}
