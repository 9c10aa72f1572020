//! PromQL's string literals, which are Go's with single quotes allowed: from source to value and
//! back.

use std::fmt;

use super::error::{Fault, show};

/// A string literal as written, quotes included.
#[derive(Clone, Copy)]
pub(super) struct Literal<'t> {
    /// Everything from the opening quote on; the literal ends within.
    text: &'t str,
}

impl<'t> Literal<'t> {
    /// Whether a literal can start with this character.
    pub(super) fn opens_with(c: char) -> bool {
        matches!(c, '"' | '\'' | '`')
    }

    pub(super) fn new(text: &'t str) -> Self {
        Self { text }
    }

    /// The value, and how many bytes of source it took. Faults count from the opening quote.
    pub(super) fn decode(self) -> Result<(String, usize), Fault> {
        let mut value = Vec::new();
        let length = self.walk(&mut value, usize::MAX)?;
        let value = String::from_utf8(value).map_err(|_| {
            Fault::new(0, "the escapes in this string give bytes that are not UTF-8; no label value holds such")
        })?;
        Ok((value, length))
    }

    /// Where in the source the byte `offset` of the value comes from.
    pub(super) fn source_of(self, offset: usize) -> usize {
        self.walk(&mut Vec::new(), offset).unwrap_or(0)
    }

    /// Decodes into `value` until that is `limit` bytes long or the literal ends, and says how
    /// far it read.
    fn walk(self, value: &mut Vec<u8>, limit: usize) -> Result<usize, Fault> {
        let mut chars = self.text.chars();
        let quote = chars.next().unwrap_or('"');
        loop {
            let at = self.text.len() - chars.as_str().len();
            if value.len() >= limit {
                return Ok(at);
            }
            match chars.next() {
                None => return Err(unterminated(quote)),
                Some('\n') if quote != '`' => return Err(unterminated(quote)),
                Some(c) if c == quote => return Ok(at + c.len_utf8()),
                // Prometheus refuses it, as it could not be told from broken UTF-8.
                Some(char::REPLACEMENT_CHARACTER) => {
                    return Err(Fault::new(
                        at,
                        "U+FFFD stands for a broken character; write \\ufffd in quotes if it is meant",
                    ));
                }
                Some('\\') if quote != '`' => {
                    let rest = chars.as_str();
                    let (length, decoded) = unescape(rest, quote).map_err(|problem| Fault::new(at, problem))?;
                    match decoded {
                        Decoded::Byte(byte) => value.push(byte),
                        Decoded::Char(c) => push_char(value, c),
                    }
                    chars = rest.get(length..).unwrap_or("").chars();
                }
                Some(c) => push_char(value, c),
            }
        }
    }
}

fn unterminated(quote: char) -> Fault {
    Fault::new(0, format!("this string does not end; close it with {quote}"))
}

fn push_char(value: &mut Vec<u8>, c: char) {
    value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

enum Decoded {
    /// `\x` and octal escapes give bytes, several of which may make one character.
    Byte(u8),
    Char(char),
}

/// Reads what follows a backslash: its length and what it stands for.
fn unescape(rest: &str, quote: char) -> Result<(usize, Decoded), String> {
    let Some(kind) = rest.chars().next() else {
        return Err("a backslash ends the input; close the string after it".into());
    };
    let plain = |c| Ok((kind.len_utf8(), Decoded::Char(c)));
    match kind {
        'a' => plain('\x07'),
        'b' => plain('\x08'),
        'f' => plain('\x0c'),
        'n' => plain('\n'),
        'r' => plain('\r'),
        't' => plain('\t'),
        'v' => plain('\x0b'),
        '\\' => plain('\\'),
        _ if kind == quote => plain(quote),
        '0'..='7' => number(rest, 0, 3, 8),
        'x' => number(rest, 1, 2, 16),
        'u' => number(rest, 1, 4, 16),
        'U' => number(rest, 1, 8, 16),
        _ => Err(format!(
            "unknown escape {}; write \\\\ for a backslash, or put the string in backquotes",
            show(format!("\\{kind}"))
        )),
    }
}

/// Reads an escape of exactly `digits` digits, which start `skip` bytes into `rest`.
fn number(rest: &str, skip: usize, digits: usize, radix: u32) -> Result<(usize, Decoded), String> {
    let length = skip + digits;
    let text = rest.get(skip..length).unwrap_or("");
    let valid = text.len() == digits && text.chars().all(|c| c.is_digit(radix));
    let code = u32::from_str_radix(text, radix).ok().filter(|_| valid);
    let Some(code) = code else {
        let kind: String = rest.chars().take(1).collect();
        let base = if radix == 8 { "octal" } else { "hex" };
        let shown = show(format!("\\{kind}"));
        return Err(format!("escape {shown} takes exactly {digits} {base} digits"));
    };
    // Two-digit hex and octal are bytes, the others code points.
    let decoded =
        if digits <= 3 { u8::try_from(code).ok().map(Decoded::Byte) } else { char::from_u32(code).map(Decoded::Char) };
    let decoded = decoded.ok_or_else(|| format!("escape {} is out of range", show(format!("\\{rest}"))))?;
    Ok((length, decoded))
}

/// Writes `value` as a double-quoted literal on one line, which decodes to the same value.
pub(super) fn write_quoted(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in value.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            '\'' => f.write_str("'")?,
            c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
            c if is_plain(c) => write!(f, "{c}")?,
            c if u32::from(c) <= 0xffff => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "\\U{:08x}", u32::from(c))?,
        }
    }
    f.write_str("\"")
}

/// Whether a character can be written as itself: printable, and accepted by [`Literal`].
fn is_plain(c: char) -> bool {
    c != char::REPLACEMENT_CHARACTER && c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<(String, usize), String> {
        Literal::new(text).decode().map_err(|fault| format!("{}: {}", fault.at, fault.problem))
    }

    #[test]
    fn decodes_as_prometheus_does() {
        for (source, value) in [
            (r#""""#, ""),
            (r#"'it\'s "so"'"#, r#"it's "so""#),
            (r#""a\a\b\f\n\r\t\v\\\"""#, "a\x07\x08\x0c\n\r\t\x0b\\\""),
            (r#""\x41\101\u00e9\U0001F600""#, "AAé😀"),
            (r#""\xc3\xa9""#, "é"),
            (r"`a\d\`", r"a\d\"),
            ("`two\nlines`", "two\nlines"),
            (r#""\ufffd""#, "\u{fffd}"),
        ] {
            assert_eq!(decode(source), Ok((value.into(), source.len())), "{source}");
        }
        assert_eq!(decode(r#""a"}"#), Ok(("a".into(), 3)));
    }

    #[test]
    fn refuses_what_prometheus_refuses() {
        for (source, start) in [
            (r#""abc"#, "0: this string does not end"),
            ("\"a\nb\"", "0: this string does not end"),
            (r#""ab\"#, "3: a backslash ends the input"),
            (r#""\d""#, r"1: unknown escape `\d`; write \\ for"),
            (r#""\'""#, r"1: unknown escape `\'`"),
            (r#"'\"'"#, r#"1: unknown escape `\"`"#),
            (r#""\x4""#, r"1: escape `\x` takes exactly 2 hex digits"),
            (r#""\x+4""#, r"1: escape `\x` takes exactly 2 hex digits"),
            (r#""\18""#, r"1: escape `\1` takes exactly 3 octal digits"),
            (r#""\400""#, r"1: escape `\400"),
            (r#""\ud800""#, r"1: escape `\ud800"),
            (r#""\U00110000""#, r"1: escape `\U00110000"),
            (r#""\xff""#, "0: the escapes in this string give bytes"),
            ("\"\u{fffd}\"", "1: U+FFFD stands for a broken character"),
        ] {
            let problem = decode(source).expect_err(source);
            assert!(problem.starts_with(start), "{source}: {problem}");
            assert!(!problem.contains('\n'), "{source}: {problem:?}");
        }
    }

    #[test]
    fn finds_the_source_of_a_byte() {
        let literal = Literal::new(r#""a\\d\u00e9(""#);
        assert_eq!(literal.decode().unwrap().0, "a\\dé(");
        let sources: Vec<_> = (0..6).map(|offset| literal.source_of(offset)).collect();
        assert_eq!(sources, [1, 2, 4, 5, 11, 11]);
    }
}
