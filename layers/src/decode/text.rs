//! The Prometheus text exposition format 0.0.4, read sample by sample.
//!
//! [`parse`] pushes what it reads into a [`TextSink`], which decides what to keep and how. A sample's name and labels are borrowed
//! from the text; only label values with escapes are copied, into buffers that serve the next sample again. So the steady state
//! allocates nothing.
//!
//! What is accepted, and what it means, is what `expfmt.TextParser` of prometheus/common 0.67 does with legacy names, apart from
//! this:
//! - A label name twice in one sample is passed on, so that the sink can decide; there it is refused.
//! - Histograms and summaries stay the series that they are written as, and all of them are passed on. What keeps them histograms
//!   holds nevertheless: `le` and `quantile` are numbers, and of a histogram only the sum can be negative.
//! - Hexadecimal floats are read, as Go's `strconv.ParseFloat` does; there they are refused.
//! - UTF-8 is asked of the whole text, there of label values alone.
//! - Quoted names, which are of text format 1.0.0, are refused. So is a line that begins with its labels, which there gives the
//!   metric of the line before another value, and so are backslashes in a type, which are ignored there.
//!
//! ```
//! use infogw_layers::decode::text::{FamilyKind, Label, TextSink, parse};
//!
//! #[derive(Default)]
//! struct Ready(Vec<String>);
//!
//! impl TextSink for Ready {
//!     type Error = std::convert::Infallible;
//!
//!     fn family(&mut self, _name: &str, _kind: FamilyKind) -> Result<(), Self::Error> {
//!         Ok(())
//!     }
//!
//!     fn sample(
//!         &mut self,
//!         _name: &str,
//!         labels: &[Label<'_>],
//!         value: f64,
//!         _timestamp_ms: Option<i64>,
//!     ) -> Result<(), Self::Error> {
//!         self.0.extend(labels.iter().filter(|label| label.name == "pod" && value == 1.0).map(|label| label.value.to_owned()));
//!         Ok(())
//!     }
//! }
//!
//! let mut ready = Ready::default();
//! parse(b"# TYPE ready gauge\nready{pod=\"a\"} 1 1562168610163\nready{pod=\"b\"} 0\n", 64, &mut ready).unwrap();
//! assert_eq!(ready.0, ["a"]);
//!
//! let refused = parse(b"ready{pod=\"a\"} yes\n", 64, &mut ready).unwrap_err();
//! assert_eq!(refused.to_string(), "line 1: `yes` is not a number; write the sample's value as a float");
//! ```

mod float;
mod refusal;

use std::collections::HashMap;

use memchr::{memchr, memchr_iter, memchr2};

use self::float::FloatError;
pub use self::refusal::TextError;
use self::refusal::{Fault, Found, Quoted};

/// What a family's `# TYPE` line says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FamilyKind {
    /// `counter`
    Counter,
    /// `gauge`
    Gauge,
    /// `untyped`, or no `# TYPE` line.
    Untyped,
    /// `histogram`: samples `x_bucket`, `x_sum` and `x_count` of the family `x`. Also `gaugehistogram` and `gauge_histogram`,
    /// which expfmt tolerates, and whose samples are named alike.
    Histogram,
    /// `summary`: samples `x`, `x_sum` and `x_count` of the family `x`.
    Summary,
}

/// One label of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label<'a> {
    /// `[a-zA-Z_][a-zA-Z0-9_]*`, never `__name__`.
    pub name: &'a str,
    /// The value without its escapes. May be empty.
    pub value: &'a str,
}

/// Takes what [`parse`] reads, in the text's order.
///
/// A text that turns out malformed has been pushed up to the fault: what the sink took before is to be thrown away.
pub trait TextSink {
    /// Why a sink refuses. The parse ends with it, as [`TextError::Sink`].
    type Error;

    /// A family begins: the samples until the next call belong to it.
    ///
    /// Called ahead of the first sample, hence never for a family without samples. Where expfmt merges the samples of a family
    /// that other families interrupt, here the family begins again, with the same name and kind.
    ///
    /// # Errors
    /// The sink's own.
    fn family(&mut self, name: &str, kind: FamilyKind) -> Result<(), Self::Error>;

    /// A sample of the current family. `name` is the sample's own, such as `x_bucket` in the family `x`. Labels come in the order
    /// written, unsorted, with repeated names and empty values. `timestamp_ms` is in milliseconds since the epoch.
    ///
    /// A histogram's or summary's samples come as written; that each has the `le` or `quantile` it needs is not checked.
    ///
    /// # Errors
    /// The sink's own.
    fn sample(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        value: f64,
        timestamp_ms: Option<i64>,
    ) -> Result<(), Self::Error>;
}

/// Parses a whole text into `sink`. A sample has at most `max_labels` labels besides its name.
///
/// Beyond what the sink keeps, this holds one small record for each distinct name and buffers for one sample: a small multiple of
/// the text at worst, which the caller bounds.
///
/// # Errors
/// [`TextError`], at the first line that is malformed, has too many labels, or that the sink refuses. A last line without a newline
/// is malformed, because the text may have been cut off there.
pub fn parse<S: TextSink>(text: &[u8], max_labels: usize, sink: &mut S) -> Result<(), TextError<S::Error>> {
    let text = utf8(text)?;
    let mut parser = Parser {
        sink,
        max_labels,
        families: Families::default(),
        current: None,
        labels: Vec::new(),
        unescaped: Vec::new(),
    };
    let mut rest = text;
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let Some(end) = memchr(b'\n', rest.as_bytes()) else {
            return match skip_blanks(rest) {
                "" => Ok(()),
                _ => Err(TextError::malformed(number, "the text ends inside this line; end every line with a newline")),
            };
        };
        let (line, newline_on) = split(rest, end);
        rest = split(newline_on, 1).1;
        parser.line(line).map_err(|fault| fault.at(number, line, max_labels))?;
    }
    Ok(())
}

fn utf8<E>(text: &[u8]) -> Result<&str, TextError<E>> {
    std::str::from_utf8(text).map_err(|error| {
        let valid = text.get(..error.valid_up_to()).unwrap_or_default();
        TextError::malformed(1 + memchr_iter(b'\n', valid).count(), "not UTF-8; send the text as UTF-8")
    })
}

struct Parser<'t, 's, S> {
    sink: &'s mut S,
    max_labels: usize,
    families: Families<'t>,
    current: Option<Current<'t>>,
    /// Empty between samples; kept for its room.
    labels: Vec<Label<'static>>,
    /// One buffer for each value with escapes in a sample, so that labels can borrow from some while others are written.
    unescaped: Vec<String>,
}

/// The family that the sink was told last, and the name that the last sample had in it.
#[derive(Clone, Copy)]
struct Current<'t> {
    sample: &'t str,
    family: &'t str,
    kind: FamilyKind,
}

impl<'t, S: TextSink> Parser<'t, '_, S> {
    fn line(&mut self, line: &'t str) -> Result<(), Fault<S::Error>> {
        let line = skip_blanks(line);
        match line.as_bytes().first() {
            None => Ok(()),
            Some(b'#') => self.comment(split(line, 1).1),
            Some(_) => self.sample(line),
        }
    }

    fn comment(&mut self, comment: &'t str) -> Result<(), Fault<S::Error>> {
        let comment = skip_blanks(comment);
        let (keyword, rest) = split_token(comment);
        let is_type = match keyword {
            "TYPE" => true,
            "HELP" => false,
            _ => return Ok(()),
        };
        let rest = skip_blanks(rest);
        let (name, rest) = split_name(rest, is_metric_name_byte);
        // expfmt lets a line pass that ends here, with a name or without.
        if rest.is_empty() {
            return Ok(());
        }
        if name.is_empty() || !rest.starts_with(BLANKS) {
            let found = Found(comment);
            return Err(Fault::malformed(format_args!(
                "expected `# {keyword} NAME ...`, found {found} after `#`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"
            )));
        }
        let declared = self.families.declared(self.families.owner(name));
        match skip_blanks(rest) {
            "" => Ok(()),
            kind if is_type => declare_kind(declared, name, kind),
            help => declare_help(declared, name, help),
        }
    }

    fn sample(&mut self, line: &'t str) -> Result<(), Fault<S::Error>> {
        let (name, rest) = split_name(line, is_metric_name_byte);
        if name.is_empty() {
            let found = Found(line);
            return Err(Fault::malformed(format_args!(
                "expected a metric name, found {found}; names are [a-zA-Z_:][a-zA-Z0-9_:]*"
            )));
        }
        let family = self.enter(name)?;
        let rest = skip_blanks(rest);

        if memchr(b'\\', rest.as_bytes()).is_some() {
            self.make_room_for_escapes(rest);
        }
        let mut labels = emptied(std::mem::take(&mut self.labels));
        let rest = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest, family.kind, self.max_labels, &mut self.unescaped, &mut labels)?,
            None => rest,
        };
        let (value, timestamp_ms) = read_point(skip_blanks(rest))?;
        if family.kind == FamilyKind::Histogram && value < 0.0 && name.strip_prefix(family.family) != Some("_sum") {
            let name = Quoted(name);
            return Err(Fault::malformed(format_args!("{name} is negative; of a histogram only the sum can be")));
        }
        self.sink.sample(name, &labels, value, timestamp_ms).map_err(Fault::Sink)?;
        self.labels = emptied(labels);
        Ok(())
    }

    /// Makes as many buffers as there can be labels with an escape: `a="\n"` is the shortest, and the last may be cut short.
    #[cold]
    fn make_room_for_escapes(&mut self, labels: &str) {
        let backslashes = memchr_iter(b'\\', labels.as_bytes()).count();
        let most = backslashes.min(labels.len() / 6 + 1).min(self.max_labels);
        if self.unescaped.len() < most {
            self.unescaped.resize_with(most, String::new);
        }
    }

    /// Finds the family of a sample, and tells the sink if another one was the last.
    fn enter(&mut self, sample: &'t str) -> Result<Current<'t>, Fault<S::Error>> {
        // A name that had a sample never changes its family, so most samples need no look into the map.
        if let Some(current) = self.current
            && current.sample == sample
        {
            return Ok(current);
        }
        let family = self.families.owner(sample);
        // From its first sample on a family has a kind, and a `# TYPE` line comes too late.
        let kind = *self.families.declared(family).kind.get_or_insert(FamilyKind::Untyped);
        if self.current.is_none_or(|current| current.family != family) {
            self.sink.family(family, kind).map_err(Fault::Sink)?;
        }
        let current = Current { sample, family, kind };
        self.current = Some(current);
        Ok(current)
    }
}

/// Every family named so far, in whichever kind of line.
#[derive(Default)]
struct Families<'t>(HashMap<&'t str, Declared>);

#[derive(Default)]
struct Declared {
    kind: Option<FamilyKind>,
    has_help: bool,
}

impl<'t> Families<'t> {
    /// The family that `name` belongs to: its own if there is one already, else the histogram or summary that it is a part of.
    fn owner(&self, name: &'t str) -> &'t str {
        use FamilyKind::{Histogram, Summary};
        const PARTS: [(&str, &[FamilyKind]); 3] =
            [("_bucket", &[Histogram]), ("_count", &[Histogram, Summary]), ("_sum", &[Histogram, Summary])];

        let Some((base, kinds)) = PARTS.iter().find_map(|(part, kinds)| Some((name.strip_suffix(part)?, kinds))) else {
            return name;
        };
        let kind = self.0.get(base).and_then(|declared| declared.kind);
        match kind {
            Some(kind) if kinds.contains(&kind) && !self.0.contains_key(name) => base,
            _ => name,
        }
    }

    fn declared(&mut self, family: &'t str) -> &mut Declared {
        self.0.entry(family).or_default()
    }
}

fn declare_kind<E>(declared: &mut Declared, name: &str, kind: &str) -> Result<(), Fault<E>> {
    const KINDS: [(&str, FamilyKind); 7] = [
        ("counter", FamilyKind::Counter),
        ("gauge", FamilyKind::Gauge),
        ("untyped", FamilyKind::Untyped),
        ("histogram", FamilyKind::Histogram),
        ("summary", FamilyKind::Summary),
        ("gaugehistogram", FamilyKind::Histogram),
        ("gauge_histogram", FamilyKind::Histogram),
    ];
    if declared.kind.is_some() {
        let name = Quoted(name);
        return Err(Fault::malformed(format_args!(
            "{name} has a type or samples already; write one `# TYPE` line a family, before its samples"
        )));
    }
    let Some(&(_, kind)) = KINDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(kind)) else {
        let kind = Quoted(kind);
        return Err(Fault::malformed(format_args!(
            "{kind} is not a type; write counter, gauge, histogram, summary or untyped, nothing behind it"
        )));
    };
    declared.kind = Some(kind);
    Ok(())
}

fn declare_help<E>(declared: &mut Declared, name: &str, help: &str) -> Result<(), Fault<E>> {
    if declared.has_help {
        let name = Quoted(name);
        return Err(Fault::malformed(format_args!("{name} has a help text already; write one `# HELP` line a family")));
    }
    let mut rest = help;
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        (_, rest) = escape(split(rest, at).1)?;
    }
    declared.has_help = true;
    Ok(())
}

/// Reads the labels behind a `{`, and gives what follows their `}`.
fn read_labels<'l, E>(
    mut rest: &'l str,
    kind: FamilyKind,
    max_labels: usize,
    unescaped: &'l mut [String],
    labels: &mut Vec<Label<'l>>,
) -> Result<&'l str, Fault<E>> {
    let mut unescaped = unescaped.iter_mut();
    let bound = match kind {
        FamilyKind::Histogram => Some("le"),
        FamilyKind::Summary => Some("quantile"),
        FamilyKind::Counter | FamilyKind::Gauge | FamilyKind::Untyped => None,
    };
    loop {
        rest = skip_blanks(rest);
        if let Some(behind) = rest.strip_prefix('}') {
            return Ok(behind);
        }
        if labels.len() >= max_labels {
            return Err(Fault::TooManyLabels(labels.len() + count_labels(rest).max(1)));
        }
        let name;
        (name, rest) = read_label_name(rest)?;
        let label;
        (label, rest) = read_label_value(name, rest, &mut unescaped)?;
        if bound == Some(name) && float::parse(label.value).is_err() {
            let value = Quoted(label.value);
            return Err(Fault::malformed(format_args!(
                "label `{name}` is {value}, not a number; write a float, or +Inf"
            )));
        }
        labels.push(label);
        rest = skip_blanks(rest);
        match rest.as_bytes().first() {
            Some(b',') => rest = split(rest, 1).1,
            Some(b'}') => {}
            _ => {
                let (name, found) = (Quoted(name), Found(rest));
                return Err(Fault::malformed(format_args!(
                    "expected `,` or `}}` behind the value of label {name}, found {found}; escape a quote in a value as `\\\"`"
                )));
            }
        }
    }
}

/// How many values in quotes there are up to the closing brace, for a message.
#[cold]
fn count_labels(text: &str) -> usize {
    let (mut values, mut quoted, mut bytes) = (0, false, text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            // What it escapes is no quote.
            b'\\' if quoted => drop(bytes.next()),
            b'"' => {
                values += usize::from(quoted);
                quoted = !quoted;
            }
            b'}' if !quoted => break,
            _ => {}
        }
    }
    values
}

/// Reads a name and its `=`.
fn read_label_name<E>(text: &str) -> Result<(&str, &str), Fault<E>> {
    let (name, rest) = split_name(text, is_label_name_byte);
    if name.is_empty() {
        let found = Found(text);
        return Err(Fault::malformed(format_args!(
            "expected a label name or `}}`, found {found}; names are [a-zA-Z_][a-zA-Z0-9_]*"
        )));
    }
    let rest = skip_blanks(rest);
    let Some(rest) = rest.strip_prefix('=') else {
        let (name, found) = (Quoted(name), Found(rest));
        return Err(Fault::malformed(format_args!("expected `=` behind the label name {name}, found {found}")));
    };
    if name == "__name__" {
        return Err(Fault::malformed(format_args!(
            "`__name__` is not a label; write the metric's name in front of the labels"
        )));
    }
    Ok((name, rest))
}

/// Reads a value in its quotes.
fn read_label_value<'l, E>(
    name: &'l str,
    text: &'l str,
    unescaped: &mut std::slice::IterMut<'l, String>,
) -> Result<(Label<'l>, &'l str), Fault<E>> {
    let text = skip_blanks(text);
    let Some(mut rest) = text.strip_prefix('"') else {
        let (name, found) = (Quoted(name), Found(text));
        return Err(Fault::malformed(format_args!("expected a quoted value for label {name}, found {found}")));
    };
    let unclosed = || {
        let name = Quoted(name);
        Fault::malformed(format_args!(
            "the value of label {name} has no closing quote on this line; write a newline in it as `\\n`"
        ))
    };
    let special = |text: &str| memchr2(b'"', b'\\', text.as_bytes()).ok_or_else(unclosed);

    let (value, at_special) = split(rest, special(rest)?);
    if let Some(behind) = at_special.strip_prefix('"') {
        return Ok((Label { name, value }, behind));
    }
    // Cannot run out: there are as many buffers as labels that need one.
    let buffer = unescaped.next().ok_or_else(|| Fault::malformed(format_args!("too many values with escapes")))?;
    buffer.clear();
    loop {
        let (plain, at_special) = split(rest, special(rest)?);
        buffer.push_str(plain);
        if let Some(behind) = at_special.strip_prefix('"') {
            return Ok((Label { name, value: buffer }, behind));
        }
        let escaped;
        (escaped, rest) = escape(at_special)?;
        buffer.push(escaped);
    }
}

/// Reads the escape at the start of `text`.
fn escape<E>(text: &str) -> Result<(char, &str), Fault<E>> {
    let (sequence, rest) = split(text, 2);
    match sequence {
        "\\\\" => Ok(('\\', rest)),
        "\\\"" => Ok(('"', rest)),
        "\\n" => Ok(('\n', rest)),
        _ => Err(Fault::malformed(format_args!(
            "a backslash that begins no escape; write `\\\\`, `\\\"` or `\\n`, and a backslash itself as `\\\\`"
        ))),
    }
}

/// Reads a value and maybe a timestamp, up to the end of the line.
fn read_point<E>(text: &str) -> Result<(f64, Option<i64>), Fault<E>> {
    let (token, rest) = split_token(text);
    let value = float::parse(token).map_err(|error| {
        let found = Found(token);
        match error {
            FloatError::OutOfRange => Fault::malformed(format_args!("{found} is too large for a 64-bit float")),
            FloatError::NotANumber if token.is_empty() => {
                Fault::malformed(format_args!("expected the sample's value, found {found}"))
            }
            FloatError::NotANumber => {
                Fault::malformed(format_args!("{found} is not a number; write the sample's value as a float"))
            }
        }
    })?;
    if rest.is_empty() {
        return Ok((value, None));
    }
    let (token, rest) = split_token(skip_blanks(rest));
    let Ok(timestamp_ms) = token.parse() else {
        let found = Found(token);
        return Err(Fault::malformed(format_args!(
            "expected a timestamp behind the value, found {found}; write whole milliseconds since the epoch, or end the line"
        )));
    };
    if !rest.is_empty() {
        let found = Found(rest);
        return Err(Fault::malformed(format_args!("expected the end of the line behind the timestamp, found {found}")));
    }
    Ok((value, Some(timestamp_ms)))
}

const BLANKS: [char; 2] = [' ', '\t'];

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_metric_name_byte(byte: u8) -> bool {
    is_label_name_byte(byte) || byte == b':'
}

fn is_label_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[inline]
fn skip_blanks(text: &str) -> &str {
    if text.as_bytes().first().is_some_and(|&first| is_blank(first)) { text.trim_start_matches(BLANKS) } else { text }
}

/// What stands in front of the first blank, and the rest from there.
fn split_token(text: &str) -> (&str, &str) {
    split_while(text, |byte| !is_blank(byte))
}

/// The name is empty if there is none: a digit can be in a name, but not begin it.
fn split_name(text: &str, belongs: impl Fn(u8) -> bool) -> (&str, &str) {
    if text.as_bytes().first().is_some_and(u8::is_ascii_digit) { ("", text) } else { split_while(text, belongs) }
}

fn split_while(text: &str, belongs: impl Fn(u8) -> bool) -> (&str, &str) {
    split(text, text.bytes().position(|byte| !belongs(byte)).unwrap_or(text.len()))
}

/// Never panics: what cannot be split stays whole.
#[inline]
fn split(text: &str, at: usize) -> (&str, &str) {
    text.split_at_checked(at).unwrap_or((text, ""))
}

/// Empties a vector for labels of another lifetime. std collects in place here, so that the allocation is kept.
fn emptied<'b>(mut labels: Vec<Label<'_>>) -> Vec<Label<'b>> {
    labels.clear();
    labels.into_iter().map_while(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptied_labels_keep_their_room() {
        let mut labels = Vec::with_capacity(17);
        labels.push(Label { name: "a", value: "b" });
        let (room, place) = (labels.capacity(), labels.as_ptr().addr());
        let emptied: Vec<Label<'static>> = emptied(labels);
        assert_eq!((emptied.len(), emptied.capacity(), emptied.as_ptr().addr()), (0, room, place));
    }

    #[test]
    fn split_takes_any_offset() {
        assert_eq!(split("aé", 1), ("a", "é"));
        assert_eq!(split("aé", 2), ("aé", ""));
        assert_eq!(split("aé", 9), ("aé", ""));
    }

    #[test]
    fn parts_belong_to_their_family_unless_they_are_one() {
        let mut families = Families::default();
        families.declared("h").kind = Some(FamilyKind::Histogram);
        families.declared("s").kind = Some(FamilyKind::Summary);
        families.declared("c").kind = Some(FamilyKind::Counter);
        families.declared("h_sum");
        let cases = [
            ("h_bucket", "h"),
            ("h_count", "h"),
            ("h_sum", "h_sum"),
            ("s_sum", "s"),
            ("s_bucket", "s_bucket"),
            ("c_sum", "c_sum"),
            ("h_sum_count", "h_sum_count"),
            ("_sum", "_sum"),
            ("h", "h"),
            ("other", "other"),
        ];
        for (name, family) in cases {
            assert_eq!(families.owner(name), family, "{name}");
        }
    }
}
