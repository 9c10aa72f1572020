//! Regular expressions in selectors are Go's RE2, not those of Rust's `regex`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use infogw_layers::enforce::selector::{Labels, Selector, SelectorError};

/// A series of name `up` with one more label, `l`.
struct Up<'v>(&'v str);

impl Labels for Up<'_> {
    fn value(&self, name: &str) -> &str {
        match name {
            "__name__" => "up",
            "l" => self.0,
            _ => "",
        }
    }
}

fn parse(text: &str) -> Result<Selector, SelectorError> {
    text.parse()
}

/// `{l=~"..."}`, with the pattern in backquotes, and a second matcher so that any pattern will do.
fn with_regex(pattern: &str) -> String {
    format!("{{l=~`{pattern}`,other=\"\",__name__=\"up\"}}")
}

fn regex_matches(pattern: &str, value: &str) -> bool {
    let selector = parse(&with_regex(pattern)).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    selector.matches(&Up(value))
}

/// Where Go's RE2 and Rust's `regex` read the same text differently, with what Prometheus 3.16
/// answers.
#[test]
fn regular_expressions_mean_what_go_means() {
    for (pattern, matching, other) in [
        // Prometheus lets the dot match a newline; a flag turns it off.
        ("a.b", &["a\nb", "axb"][..], &["ab"][..]),
        ("(?-s)a.b", &["axb"], &["a\nb"]),
        ("(?-s:a.)b.", &["axb\n"], &["a\nbx"]),
        ("a$", &["a"], &["a\n"]),
        ("(?m)a$\n^b", &["a\nb"], &["a"]),
        // Perl and POSIX classes and word boundaries are ASCII.
        (r"\d", &["1"], &["٣"]),
        (r"\D", &["٣", "x"], &["1"]),
        (r"\w", &["a", "_"], &["é"]),
        (r"\W", &["é"], &["a"]),
        (r"\s", &[" ", "\x0c"], &["\u{a0}", "\x0b"]),
        ("[[:space:]]", &["\x0b"], &["\u{a0}"]),
        (r"é\ba", &["éa"], &[]),
        (r"a\Bb", &["ab"], &[]),
        (r"é\B", &["é"], &[]),
        ("[[:^alpha:][:digit:]]", &["é", "1"], &["a"]),
        // Case folding is Unicode's nevertheless, and comes before negation.
        ("(?i)k", &["k", "K", "\u{212a}"], &[]),
        (r"(?i)\w", &["\u{17f}"], &["é"]),
        (r"(?i)\W", &["é"], &["\u{17f}"]),
        ("(?i)[^k]", &["x"], &["K", "\u{212a}"]),
        ("(?i)a(?-i)b", &["Ab"], &["AB"]),
        ("(?i:a)b", &["Ab"], &["aB"]),
        (r"(?i)\PL", &["1"], &["a"]),
        // Braces that are no repetition are text.
        ("a{,3}", &["a{,3}"], &["aaa"]),
        ("a{", &["a{"], &[]),
        ("a{b}", &["a{b}"], &[]),
        ("a{01}", &["a{01}"], &["a"]),
        ("a{1,2", &["a{1,2"], &["a"]),
        ("a{ 1}", &["a{ 1}"], &["a"]),
        ("a}]", &["a}]"], &[]),
        ("a{2,}", &["aa", "aaa"], &["a"]),
        // Classes have no operators and do not nest.
        ("[a&&b]", &["a", "&", "b"], &[]),
        ("[+--a]", &["+", ",", "-", "a"], &["b"]),
        ("[a~~b]", &["~"], &[]),
        ("[[a]b]", &["[b]", "ab]"], &["a", "b"]),
        ("[]a]", &["]", "a"], &[]),
        ("[^]a]", &["b"], &["]", "a"]),
        ("[a-]", &["a", "-"], &[]),
        (r"[\d-z]", &["1", "-", "z"], &["m"]),
        ("[[:a]", &["[", ":", "a"], &[]),
        ("[[=a=]]", &["a]", "=]"], &["a"]),
        (r"[^\x00-\x{10FFFF}]|a", &["a"], &["b"]),
        (r"[\x{d7ff}-\x{e000}]", &["\u{d7ff}", "\u{e000}"], &["a"]),
        (r"\x{d800}|a", &["a"], &["b"]),
        // Escapes that Rust lacks or reads otherwise.
        (r"\Qa.b|\E.", &["a.b|c"], &["axb"]),
        (r"\Qa.b", &["a.b"], &["axb"]),
        (r"ab\Qcd\E+", &["abcdd"], &["abcdcd"]),
        (r"\101\0", &["A\0"], &[]),
        (r"\12", &["\n"], &[]),
        (r"\_\-\ \<\&", &["_- <&"], &[]),
        (r"\x{000000000041}\x42", &["AB"], &[]),
        (r"a\z", &["a"], &["a\n"]),
        (r"\pN\p{Greek}\p{^Lu}", &["1αa"], &["1αA"]),
        (r"\p{Zl}\P{^Lu}", &["\u{2028}A"], &["\u{2028}a"]),
        (r"[\pN\P{L}a]", &["1", "-", "a"], &["b"]),
        (r"\p{Cs}|a", &["a"], &["b"]),
        // Flags and groups.
        ("(?)(?ii-s)a", &["A"], &[]),
        ("(?U)a+b*?", &["aab", "a"], &[""]),
        ("(?P<n>a)(?<n>b)(?P<1>c)", &["abc"], &[]),
        ("a(?i)*b", &["aaB", "b"], &["Ab"]),
        ("(|a)*", &["", "aa"], &["b"]),
        ("^*a$+", &["a"], &["^a"]),
        ("(?:.+)?b", &["b", "xb"], &["x"]),
        ("(a{2}){0}(?:b{2}){2}", &["bbbb"], &["bb", "aabbbb"]),
        ("(?:(?:a{1000}){0}b?){1000}", &["bb"], &["a"]),
        ("a|b|", &["a", "b", ""], &["c"]),
        ("^foo.*bar$|^a$", &["foobar", "foo\nbar", "a"], &["foo", "xa"]),
    ] {
        for value in matching {
            assert!(regex_matches(pattern, value), "{pattern} {value:?}");
        }
        for value in other {
            assert!(!regex_matches(pattern, value), "{pattern} {value:?}");
        }
    }
}

#[test]
fn what_go_refuses_is_refused() {
    for (pattern, offset, message) in [
        ("a(?=b)", 1, "`(?=b` looks around, which RE2 cannot"),
        ("(?<!a)b", 0, "`(?<!` looks around"),
        (r"(a)\1", 3, r"`\1` refers back"),
        (r"\8", 0, r"`\8` refers back"),
        ("(?P=n)", 0, "`(?P=` is no group of RE2"),
        ("(?x)a b", 0, "`(?x)` is no group"),
        ("(?u)a", 0, "`(?u)` is no group"),
        ("(?R)", 0, "`(?R)` is no group"),
        ("(?i-)a", 0, "`(?i-` is no group"),
        ("(?>a)", 0, "`(?>a` is no group"),
        ("(?P<a-b>c)", 0, "a group's name is"),
        ("(?<>c)", 0, "a group's name is"),
        ("(?P<<n>c)", 0, "a group's name is"),
        ("a*+", 2, "`+` repeats a repetition"),
        ("a**", 2, "`*` repeats a repetition"),
        ("a{2}{3}", 4, "`{3}` repeats a repetition"),
        ("a{1001}", 1, "`{1001}` repeats more than 1000 times"),
        ("a{99999999999}", 1, "`{99999999999}` repeats more than 1000 times"),
        ("a{3,2}", 1, "`{3,2}` has its bounds the wrong way round"),
        ("(?:a{101}){10}", 10, "repetitions within one another make more than 1000"),
        ("*a", 0, "`*` has nothing to repeat"),
        ("a|?", 2, "`?` has nothing to repeat"),
        ("({2})", 1, "`{2}` has nothing to repeat"),
        ("(a", 0, "this group does not end"),
        ("a)(b", 1, "`)` closes no group"),
        ("x[a", 1, "this class does not end"),
        ("[]", 0, "this class does not end"),
        ("[a-", 0, "this class does not end"),
        ("[b-a]", 1, "`b-a` has its ends the wrong way round"),
        (r"[a-\d]", 3, r"`\d` is no escape"),
        ("[[:foo:]]", 1, "`[:foo:]` is no class"),
        (r"a\", 1, "ends with a backslash"),
        (r"\C", 0, r"`\C` matches single bytes"),
        (r"\Z", 0, r"`\Z` is no escape of RE2"),
        (r"\u{61}", 0, r"`\u` is no escape"),
        (r"\é", 0, r"`\é` is no escape"),
        (r"[\b]", 1, r"`\b` is no escape"),
        (r"\x{110000}", 0, r"`\x` takes two hex digits"),
        (r"\x{61", 0, r"`\x` takes"),
        (r"\x+1", 0, r"`\x` takes"),
        (r"\p{Foo}", 0, "`Foo` is no Unicode category or script"),
        (r"\p{Greek", 0, "the name of this class does not end"),
        (r"\p", 0, "`` is no Unicode category"),
        // Properties that Rust has and RE2 has not.
        (r"\p{Alphabetic}", 0, "`Alphabetic` is no"),
        (r"\p{Grek}", 0, "`Grek` is no"),
        (r"\p{IsGreek}", 0, "`IsGreek` is no"),
        (r"\p{sc=Greek}", 0, "`sc=Greek` is no"),
    ] {
        let text = with_regex(pattern);
        let error = parse(&text).expect_err(&text).to_string();
        let column = "{l=~`".len() + offset + 1;
        let expected = format!("column {column}: regular expression: {message}");
        assert!(error.starts_with(&expected), "{pattern}\n{error}\n{expected}");
    }
}

#[test]
fn large_expressions_are_refused_not_built() {
    let nested = |depth: usize| format!("{}a{}", "(?:".repeat(depth), ")*".repeat(depth));
    for (pattern, problem) in [
        (nested(10_000), "nests more than"),
        ("(".repeat(100_000), "this group does not end"),
        ("(?:a?){1000}".replace('a', r"\pL\PL\pN"), "takes more than 10 MiB compiled"),
        (r"\pL".repeat(1_000), "too many character classes"),
        (r"[\pL\pM\pN]".repeat(1_000), "too many character classes"),
    ] {
        let error = parse(&with_regex(&pattern)).expect_err("too large").to_string();
        assert!(error.contains(problem), "{error}");
    }
    // Just inside, on a test's stack, and dense in what could be quadratic.
    assert!(regex_matches(&nested(49), "aaa"));
    assert!(regex_matches(&format!("[{}x]*", "[:".repeat(50_000)), ":[:"));
    assert!(regex_matches(&format!("(?i){}", "a{,".repeat(5_000)), &"A{,".repeat(5_000)));
}
