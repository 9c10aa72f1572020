//! What the tree of a regular expression shows at a glance.

use regex_syntax::hir::{Class, Hir, HirKind};

/// Samples longer than this are not worth their while, in bytes.
const MAX_SAMPLE: usize = 2048;

/// Longer texts tell no more, in bytes.
const MAX_REQUIRED: usize = 64;

/// Which of the strings that an expression matches.
#[derive(Clone, Copy)]
enum Taste {
    /// The first branch, the lowest character, no more repetitions than must be.
    Least,
    /// The last branch, the highest character, one repetition more.
    Other,
}

/// Up to two strings that the expression probably matches: what it asserts in between is left to
/// be checked.
pub(super) fn samples(tree: &Hir) -> impl Iterator<Item = String> {
    [Taste::Least, Taste::Other].into_iter().filter_map(|taste| {
        let mut sample = Vec::new();
        write(tree, taste, &mut sample)?;
        String::from_utf8(sample).ok()
    })
}

fn write(tree: &Hir, taste: Taste, sample: &mut Vec<u8>) -> Option<()> {
    match tree.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => sample.extend_from_slice(&literal.0),
        HirKind::Class(Class::Unicode(class)) => {
            let ranges = class.ranges();
            let c = match taste {
                Taste::Least => ranges.first()?.start(),
                Taste::Other => ranges.last()?.end(),
            };
            sample.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        HirKind::Class(Class::Bytes(_)) => return None,
        HirKind::Repetition(repeat) => {
            let times = match taste {
                Taste::Least => repeat.min,
                Taste::Other => repeat.max.unwrap_or(u32::MAX).min(repeat.min.saturating_add(1)),
            };
            for _ in 0..times {
                write(&repeat.sub, taste, sample)?;
            }
        }
        HirKind::Capture(capture) => write(&capture.sub, taste, sample)?,
        HirKind::Concat(parts) => parts.iter().try_for_each(|part| write(part, taste, sample))?,
        HirKind::Alternation(branches) => {
            let branch = match taste {
                Taste::Least => branches.first(),
                Taste::Other => branches.last(),
            };
            write(branch?, taste, sample)?;
        }
    }
    (sample.len() <= MAX_SAMPLE).then_some(())
}

/// A text that is part of every string that the expression matches: the longest one that is easily
/// seen.
pub(super) fn required(tree: &Hir) -> Option<Vec<u8>> {
    match tree.kind() {
        HirKind::Literal(literal) => literal.0.get(..literal.0.len().min(MAX_REQUIRED)).map(<[u8]>::to_vec),
        HirKind::Repetition(repeat) if repeat.min > 0 => match repeat.sub.kind() {
            HirKind::Literal(literal) => {
                let repeated = literal.0.iter().cycle().take(literal.0.len().saturating_mul(repeat.min as usize));
                Some(repeated.take(MAX_REQUIRED).copied().collect())
            }
            _ => required(&repeat.sub),
        },
        HirKind::Capture(capture) => required(&capture.sub),
        HirKind::Concat(parts) => {
            // The first of the longest: names differ in front rather than in `_total`.
            parts.iter().filter_map(required).reduce(|best, text| if text.len() > best.len() { text } else { best })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::go_regex;
    use super::*;

    #[test]
    fn samples_are_two_of_the_strings() {
        for (source, expected) in [
            ("ab", &["ab", "ab"][..]),
            ("a|b|c", &["a", "c"]),
            ("x[a-c]+y", &["xay", "xccy"]),
            ("(?:ab?){2,3}", &["aa", "ababab"]),
            ("a*", &["", "a"]),
            (r"[^\x00-\x{10FFFF}]|a", &["a"]),
            (r"a[^\x00-\x{10FFFF}]", &[]),
            (".", &["\0", "\u{10ffff}"]),
        ] {
            let tree = go_regex::parse(source).unwrap();
            assert_eq!(samples(&tree).collect::<Vec<_>>(), expected, "{source}");
        }
        let long = go_regex::parse("(?:a{1000}){1}(?:bbbbb){1000}").unwrap();
        assert_eq!(samples(&long).count(), 0);
    }

    #[test]
    fn required_is_in_every_match() {
        for (source, expected) in [
            (".+_cpu1_[a-z]+_total", Some("_cpu1_")),
            ("job_[0-9]+", Some("job_")),
            ("(?:abc)+d", Some("abc")),
            ("a(?:bc){2,}[d-f]", Some("bcbc")),
            ("a{1000}b", Some(&"a".repeat(MAX_REQUIRED))),
            ("(abc)*d", Some("d")),
            ("(abc){0,2}", None),
            ("a|b", None),
            ("(?i)ab", None),
            ("", None),
            (".*", None),
        ] {
            let tree = go_regex::parse(source).unwrap();
            assert_eq!(required(&tree), expected.map(|text: &str| text.into()), "{source}");
        }
        let long = go_regex::parse(&"é".repeat(100)).unwrap();
        assert_eq!(required(&long).map(|text| text.len()), Some(MAX_REQUIRED));
    }
}
