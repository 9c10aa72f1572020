//! Metric families as text.

use std::fmt::{self, Write as _};

use super::families::{Kind, sorted};
use crate::{
    float::go_float,
    payload::{LabelBlock, MetricFamilies},
};

/// The content type of the text that [`MetricFamilies`] are displayed as.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text exposition format 0.0.4, each sample with its timestamp: by name, and those of a name by time. What the format cannot say is
/// a comment: native histograms, and names beyond `[a-zA-Z_:][a-zA-Z0-9_:]*`.
impl fmt::Display for MetricFamilies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut typed) = (String::new(), None);
        for entry in sorted(self) {
            let labels = LabelBlock(entry.point.labels.of(&self.side));
            let own = || labels.pairs().filter(|(name, _)| *name != "__name__");
            let name = std::str::from_utf8(entry.name).unwrap_or_default();
            if entry.kind != Kind::Untyped {
                f.write_str("# a native histogram, which is not of this format: ")?;
            } else if !is_name(name, ":_") || !own().all(|(name, _)| is_name(name, "_")) {
                f.write_str("# a name that is not of this format: ")?;
            } else if typed != Some(name) {
                typed = Some(name);
                writeln!(f, "# TYPE {name} untyped")?;
            }
            Escaped(name).fmt(f)?;
            for (index, (name, value)) in own().enumerate() {
                let separator = if index == 0 { '{' } else { ',' };
                write!(f, "{separator}{}=\"{}\"", Escaped(name), Escaped(value))?;
            }
            if own().next().is_some() {
                f.write_char('}')?;
            }
            if entry.kind == Kind::Untyped {
                go_float(&mut number, f64::from_bits(entry.point.value));
                write!(f, " {number}")?;
            }
            writeln!(f, " {}", entry.point.timestamp)?;
        }
        Ok(())
    }
}

/// Whether `name` is one of letters, digits and `others`, and begins with no digit.
fn is_name(name: &str, others: &str) -> bool {
    let belongs = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(belongs)
}

/// A label's value as it stands between its quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['\\', '\n', '"']) {
            let (plain, escape) = match part.as_bytes().last() {
                Some(b'\\') => (part.strip_suffix('\\'), "\\\\"),
                Some(b'\n') => (part.strip_suffix('\n'), "\\n"),
                Some(b'"') => (part.strip_suffix('"'), "\\\""),
                _ => (None, ""),
            };
            f.write_str(plain.unwrap_or(part))?;
            f.write_str(escape)?;
        }
        Ok(())
    }
}
