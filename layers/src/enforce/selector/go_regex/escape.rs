//! Everything that starts with a backslash.

use regex_syntax::hir::{ClassUnicode, Hir, Look};

use super::super::error::{Fault, show};
use super::{Parser, class};

impl Parser<'_> {
    /// Reads an escape outside a class.
    pub(super) fn backslash(&mut self) -> Result<(), Fault> {
        let start = self.at;
        match self.rest().chars().nth(1) {
            Some('A') => self.assertion(2, Look::Start),
            Some('z') => self.assertion(2, Look::End),
            Some('b') => self.assertion(2, Look::WordAscii),
            Some('B') => self.assertion(2, Look::WordAsciiNegate),
            Some('Q') => self.verbatim()?,
            _ => match self.class_escape()? {
                Some(class) => self.push_class(class, start)?,
                None => match char::from_u32(self.char_escape()?) {
                    Some(c) => self.push_char(c)?,
                    // Go can name a surrogate, but no text holds one.
                    None => self.push(Hir::fail()),
                },
            },
        }
        Ok(())
    }

    /// Reads `\Q...\E`, or to the end without `\E`.
    fn verbatim(&mut self) -> Result<(), Fault> {
        self.at += 2;
        while !self.eat("\\E") {
            let Some(c) = self.bump() else { break };
            self.push_char(c)?;
        }
        Ok(())
    }

    /// Reads `\d`, `\pL` and their like, which are fine inside and outside brackets.
    pub(super) fn class_escape(&mut self) -> Result<Option<ClassUnicode>, Fault> {
        let start = self.at;
        let mut chars = self.rest().chars();
        if chars.next() != Some('\\') {
            return Ok(None);
        }
        let Some(kind) = chars.next() else {
            return Ok(None);
        };
        if matches!(kind, 'p' | 'P') {
            return self.unicode_class(start, kind == 'P').map(Some);
        }
        let Some(ranges) = class::perl(kind.to_ascii_lowercase()) else {
            return Ok(None);
        };
        self.at += 2;
        Ok(Some(self.group_class(ranges, kind.is_ascii_uppercase())))
    }

    /// Reads `\pN`, `\p{Greek}`, `\p{^Greek}` and the negations `\P`.
    fn unicode_class(&mut self, start: usize, negated: bool) -> Result<ClassUnicode, Fault> {
        self.at += 2;
        let rest = self.rest();
        let (name, length) = match rest.strip_prefix('{') {
            Some(braced) => {
                let end = braced
                    .find('}')
                    .ok_or_else(|| Fault::new(start, "the name of this class does not end; close it with `}`"))?;
                (braced.get(..end).unwrap_or(""), end + 2)
            }
            None => {
                let length = rest.chars().next().map_or(0, char::len_utf8);
                (rest.get(..length).unwrap_or(""), length)
            }
        };
        let (name, negated) = match name.strip_prefix('^') {
            Some(name) => (name, !negated),
            None => (name, negated),
        };
        let class = class::unicode(name).ok_or_else(|| {
            Fault::new(
                start,
                format!("{} is no Unicode category or script of RE2; use one such as L, Lu or Greek", show(name)),
            )
        })?;
        self.at += length;
        let mut class = self.folded(class.ranges().to_vec());
        if negated {
            class.negate();
        }
        Ok(class)
    }

    /// Reads an escape that stands for one code point, which may be a surrogate.
    pub(super) fn char_escape(&mut self) -> Result<u32, Fault> {
        let start = self.at;
        self.bump();
        let Some(c) = self.bump() else {
            return Err(Fault::new(start, "ends with a backslash; write `\\\\` for the character"));
        };
        let octal = self.peek().is_some_and(|next| next.is_digit(8));
        match c {
            'a' => Ok(0x07),
            'f' => Ok(0x0c),
            'n' => Ok(0x0a),
            'r' => Ok(0x0d),
            't' => Ok(0x09),
            'v' => Ok(0x0b),
            'x' => self.hex(start),
            '0' => Ok(self.octal(0)),
            '1'..='7' if octal => Ok(self.octal(c.to_digit(8).unwrap_or(0))),
            '1'..='9' => Err(Fault::new(start, format!("`\\{c}` refers back to a group, which RE2 cannot"))),
            'C' => Err(Fault::new(start, "`\\C` matches single bytes, which Go does not support; use `.`")),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(u32::from(c)),
            c => Err(Fault::new(
                start,
                format!(
                    "{} is no escape of RE2; drop the backslash, or double it if it is meant",
                    show(format!("\\{c}"))
                ),
            )),
        }
    }

    /// Up to two more octal digits.
    fn octal(&mut self, first: u32) -> u32 {
        let mut code = first;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else {
                break;
            };
            self.bump();
            code = code * 8 + digit;
        }
        code
    }

    /// `\x41` or `\x{41}`, behind the `x`.
    fn hex(&mut self, start: usize) -> Result<u32, Fault> {
        let rest = self.rest();
        let (digits, length) = match rest.strip_prefix('{') {
            Some(braced) => {
                let end = braced.find('}').unwrap_or(0);
                (braced.get(..end).unwrap_or(""), end + 2)
            }
            None => (rest.get(..2).unwrap_or(""), 2),
        };
        let code = digits
            .chars()
            .map(|c| c.to_digit(16))
            // Any number of leading zeros is fine.
            .try_fold(0u32, |code, digit| Some(code.saturating_mul(16).saturating_add(digit?)))
            .filter(|&code| !digits.is_empty() && code <= u32::from(char::MAX));
        let code = code.ok_or_else(|| {
            Fault::new(start, "`\\x` takes two hex digits, or a code point in braces up to \\x{10FFFF}")
        })?;
        self.at += length;
        Ok(code)
    }
}
