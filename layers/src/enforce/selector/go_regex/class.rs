//! Character classes: brackets, and the named sets.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

use super::super::error::{Fault, show};
use super::Parser;

/// Inclusive ranges of ASCII characters.
type Ascii = &'static [(char, char)];

const DIGIT: Ascii = &[('0', '9')];
const WORD: Ascii = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];

/// The set of `\d`, `\s` or `\w`. Unlike `[[:space:]]`, `\s` leaves out the vertical tab.
pub(super) fn perl(kind: char) -> Option<Ascii> {
    match kind {
        'd' => Some(DIGIT),
        's' => Some(&[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')]),
        'w' => Some(WORD),
        _ => None,
    }
}

/// The set of `[:name:]`.
fn posix(name: &str) -> Option<Ascii> {
    Some(match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => DIGIT,
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => WORD,
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    })
}

/// The set of `\p{name}`: a general category by its short or long name, a script by its long one,
/// `Any`, `Assigned` or `ASCII`. As in Go, case, spaces, `_` and `-` do not count.
pub(super) fn unicode(name: &str) -> Option<ClassUnicode> {
    let separator = |c| matches!(c, ' ' | '_' | '-');
    let plain: String = name.chars().filter(|c| !separator(*c)).collect();
    let plain = plain.to_ascii_lowercase();
    // `regex-syntax` also knows other properties, skips a leading "is" and takes scripts' codes.
    if plain.is_empty() || !plain.chars().all(|c| c.is_ascii_alphanumeric()) || plain.starts_with("is") {
        return None;
    }
    // Go knows the surrogates' category, though no text holds any.
    if matches!(plain.as_str(), "cs" | "surrogate") {
        return Some(ClassUnicode::empty());
    }
    property("gc", &plain).or_else(|| {
        let by_name = plain.len() != 4 || FOUR_LETTER_SCRIPTS.contains(&plain.as_str());
        by_name.then(|| property("sc", &plain)).flatten()
    })
}

/// Scripts whose name has the length of a code.
const FOUR_LETTER_SCRIPTS: [&str; 9] = ["ahom", "cham", "kawi", "lisu", "miao", "modi", "newa", "thai", "toto"];

fn property(kind: &str, value: &str) -> Option<ClassUnicode> {
    let hir = regex_syntax::parse(&format!("\\p{{{kind}={value}}}")).ok()?;
    match hir.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        // A class of one character comes as that.
        HirKind::Literal(literal) => {
            let mut chars = std::str::from_utf8(&literal.0).ok()?.chars();
            let only = chars.next()?;
            Some(ClassUnicode::new([ClassUnicodeRange::new(only, only)]))
        }
        _ => None,
    }
}

impl Parser<'_> {
    /// Reads `[...]`.
    pub(super) fn bracketed_class(&mut self) -> Result<ClassUnicode, Fault> {
        let start = self.at;
        self.bump();
        let negated = self.eat("^");
        let mut ranges = Vec::new();
        let mut first = true;
        // A `]` in front is a character.
        while first || !self.rest().starts_with(']') {
            first = false;
            if self.peek().is_none() {
                return Err(Fault::new(
                    start,
                    "this class does not end; close it with `]`, or write `\\[` for the character",
                ));
            }
            let at = self.at;
            if let Some(class) = self.posix_class()? {
                self.count_ranges(class.ranges().len(), at)?;
                ranges.extend_from_slice(class.ranges());
            } else if let Some(class) = self.class_escape()? {
                self.count_ranges(class.ranges().len(), at)?;
                ranges.extend_from_slice(class.ranges());
            } else {
                ranges.extend(self.range()?);
            }
        }
        self.bump();
        // Named sets, negated or not, hold all cases of their characters already.
        let mut class = self.folded(ranges);
        if negated {
            class.negate();
        }
        Ok(class)
    }

    /// Reads `[:alpha:]` or `[:^alpha:]`, inside a class.
    fn posix_class(&mut self) -> Result<Option<ClassUnicode>, Fault> {
        let Some(inner) = self.rest().strip_prefix("[:") else {
            return Ok(None);
        };
        // Without an end it is just a bracket and a colon.
        let end = (self.at + 2 <= self.last_posix_end).then(|| inner.find(":]")).flatten();
        let Some(end) = end else { return Ok(None) };
        let name = inner.get(..end).unwrap_or("");
        let (plain, negated) = match name.strip_prefix('^') {
            Some(plain) => (plain, true),
            None => (name, false),
        };
        let ranges = posix(plain).ok_or_else(|| {
            Fault::new(
                self.at,
                format!("{} is no class; RE2 has [:alpha:], [:digit:] and such", show(format!("[:{name}:]"))),
            )
        })?;
        self.at += end + 4;
        Ok(Some(self.group_class(ranges, negated)))
    }

    /// Reads a character or a range, inside a class. Empty if it holds surrogates only.
    fn range(&mut self) -> Result<Option<ClassUnicodeRange>, Fault> {
        let at = self.at;
        let low = self.class_char()?;
        // A `-` in front of the closing bracket is a character.
        let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
        // At the very end the class lacks its bracket, which the caller reports.
        if !is_range || self.rest() == "-" {
            return Ok(scalars(low, low));
        }
        self.bump();
        let high = self.class_char()?;
        if high < low {
            let written = show(self.pattern.get(at..self.at).unwrap_or(""));
            return Err(Fault::new(at, format!("{written} has its ends the wrong way round")));
        }
        Ok(scalars(low, high))
    }

    fn class_char(&mut self) -> Result<u32, Fault> {
        if self.rest().starts_with('\\') {
            return self.char_escape();
        }
        Ok(self.bump().map_or(0, u32::from))
    }

    /// A named ASCII set, in either case if so flagged: `(?i)\w` has U+017F, which folds to `s`.
    pub(super) fn group_class(&self, ranges: Ascii, negated: bool) -> ClassUnicode {
        let ranges = ranges.iter().map(|&(low, high)| ClassUnicodeRange::new(low, high));
        let mut class = self.folded(ranges.collect());
        if negated {
            class.negate();
        }
        class
    }

    /// The ranges as a class, with all cases of their characters if so flagged.
    pub(super) fn folded(&self, ranges: Vec<ClassUnicodeRange>) -> ClassUnicode {
        let mut class = ClassUnicode::new(ranges);
        if self.flags.fold {
            // Fails only where the case tables are compiled out; they are a default feature.
            let _ = class.try_case_fold_simple();
        }
        class
    }
}

/// The range without surrogates, which Go can name but no text holds.
fn scalars(low: u32, high: u32) -> Option<ClassUnicodeRange> {
    const SURROGATES: std::ops::RangeInclusive<u32> = 0xd800..=0xdfff;
    let low = if SURROGATES.contains(&low) { 0xe000 } else { low };
    let high = if SURROGATES.contains(&high) { 0xd7ff } else { high };
    let (low, high) = (char::from_u32(low)?, char::from_u32(high)?);
    (low <= high).then(|| ClassUnicodeRange::new(low, high))
}
