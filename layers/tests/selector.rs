//! Selectors as a whole: what parses, what matches, and that a set is the "or" of its selectors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use infogw_layers::enforce::selector::{Labels, Selector, SelectorError, SelectorSet};
use proptest::prelude::*;

#[derive(Debug, Clone, Default)]
struct Series(BTreeMap<String, String>);

impl Labels for Series {
    fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

fn series(labels: &[(&str, &str)]) -> Series {
    let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    Series(labels.iter().map(own).collect())
}

fn parse(text: &str) -> Result<Selector, SelectorError> {
    text.parse()
}

/// `{l=~"..."}`, with the pattern in backquotes, and a second matcher so that any pattern will do.
fn with_regex(pattern: &str) -> String {
    format!("{{l=~`{pattern}`,other=\"\",__name__=\"up\"}}")
}

#[test]
fn canonical_forms() {
    for (text, canonical) in [
        ("up", "up"),
        (" up \n# that is all\n", "up"),
        ("up{}", "up"),
        ("up { } # nothing", "up"),
        (":a:b:", ":a:b:"),
        (r#"{__name__="up"}"#, "up"),
        (r#"{"up"}"#, "up"),
        (r#"{'up', job="a",}"#, r#"up{job="a"}"#),
        ("{job=`a`, job='a'}", r#"{job="a"}"#),
        (r#"up{job!~"a|b" , job =~ "c.*", a!="x"}"#, r#"up{a!="x",job=~"c.*",job!~"a|b"}"#),
        (r#"{"http.requests","http.method"="GET"}"#, r#"{__name__="http.requests","http.method"="GET"}"#),
        (r#"{__name__="a",__name__=~".*"}"#, r#"{__name__="a",__name__=~".*"}"#),
        (r#"{"a","b"}"#, r#"{__name__="a",__name__="b"}"#),
        (r#"{__name__="",job="a"}"#, r#"{__name__="",job="a"}"#),
        (r#"{""="",job="a"}"#, r#"{""="",job="a"}"#),
        ("{a=\"\\x41\\u00e9\\n\\\"\\\\'\"}", r#"{a="Aé\n\"\\'"}"#),
        ("{a='\x07\u{202e}\\ufffd\\U000e0001'}", "{a=\"\\x07\\u202e\\ufffd\\U000e0001\"}"),
        (r#"{__name__="bool"}"#, r#"{__name__="bool"}"#),
        (r#"{__name__="1st"}"#, r#"{__name__="1st"}"#),
        // Keywords are names where no expression could stand.
        ("sum", "sum"),
        ("offset{by='x', on='y', bool='z', inf='1'}", r#"offset{bool="z",by="x",inf="1",on="y"}"#),
        ("a{b='1'#c\r,#,}\n}", r#"a{b="1"}"#),
    ] {
        let selector = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(selector.to_string(), canonical, "{text}");
        assert_eq!(parse(canonical).as_ref(), Ok(&selector), "{text}");
    }
}

#[test]
fn refusals_say_where_and_what_to_change() {
    for (text, message) in [
        ("", "column 1: expected a metric name or {label=\"value\"}, found the end"),
        ("1st", "column 1: a metric name cannot start with a digit; put `1st` in quotes"),
        ("on", "column 1: `on` is a PromQL keyword or number; put it in quotes"),
        ("NaN{a='b'}", "column 1: `NaN` is a PromQL keyword"),
        ("é", "column 1: expected a metric name"),
        ("up[5m]", "column 3: `[5m]` follows the selector; remove it"),
        ("up offset 5m", "column 4: `offset 5m` follows the selector"),
        ("up or down", "column 4: `or down` follows the selector"),
        ("up{a='b'}}", "column 10: `}` follows"),
        ("up{", "column 4: expected a label name, a metric name in quotes or `}`, found the end"),
        ("up{,}", "column 4: expected a label name"),
        ("up{a='b',,}", "column 10: expected a label name"),
        ("up{a}", "column 5: expected =, !=, =~ or !~, found `}`"),
        ("up{a==\"b\"}", "column 6: expected a value in quotes, found `=`"),
        ("up{a=b}", "column 6: expected a value in quotes, found `b`"),
        ("up{a:b='c'}", "column 5: expected =, !=, =~ or !~, found `:`"),
        ("up{a='b' c='d'}", "column 10: expected `,` or `}`, found `c`"),
        ("up{a='b'", "column 9: expected `,` or `}`, found the end"),
        ("up{a='b}", "column 6: this string does not end; close it with '"),
        ("up{a=\"\\d\"}", "column 7: unknown escape `\\d`; write \\\\ for a backslash"),
        ("up{a='b',__name__='x'}", "column 10: the metric name is set twice: drop this, or the `up`"),
        ("up{__name__!='x'}", "column 4: the metric name is set twice"),
        ("up{'x'}", "column 4: the metric name is set twice"),
        ("{}", "column 1: this selects series that lack the labels it names; add a matcher"),
        (" {a='',b=~'.*',c!='x',d!~'y'}", "column 2: this selects series that lack"),
        ("{__name__=''}", "column 1: this selects series that lack"),
        // Into the pattern, through the quotes and their escapes.
        ("up{a=~`b(c`}", "column 9: regular expression: this group does not end"),
        (r#"up{a=~"\\d\u002b(?=x)"}"#, "column 17: regular expression: `(?=x` looks around"),
        ("\u{feff}up", "column 1: expected a metric name"),
        ("up\u{a0}", "column 3: `\\u{a0}` follows"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.starts_with(message), "{text}\n{error}");
    }
}

#[test]
fn an_absent_label_is_the_empty_string() {
    let up = series(&[("__name__", "up"), ("job", "api")]);
    for (text, expected) in [
        ("up", true),
        ("down", false),
        ("up{job='api'}", true),
        ("up{job='web'}", false),
        ("up{job!='web'}", true),
        ("up{job!=''}", true),
        ("up{zone=''}", true),
        ("up{zone!=''}", false),
        ("up{zone!='a'}", true),
        ("up{zone=~''}", true),
        ("up{zone=~'.*'}", true),
        ("up{zone=~'.+'}", false),
        ("up{zone=~'a|'}", true),
        ("up{zone!~'a'}", true),
        ("up{zone!~'a|'}", false),
        ("up{zone!~'.*'}", false),
        ("{job=~'ap'}", false),
        ("{job=~'a.i'}", true),
        ("{job=~'api',__name__!~'up.+'}", true),
        ("{'up',__name__='down'}", false),
    ] {
        let selector = parse(text).unwrap();
        assert_eq!(selector.matches(&up), expected, "{text}");
        assert_eq!(SelectorSet::new([selector]).unwrap().matches(&up), expected, "{text}");
    }
}

#[test]
fn a_set_finds_selectors_by_every_path() {
    let rules = [
        "exact",
        "guarded{l='1'}",
        "guarded{l='2'}",
        "{__name__=~'one|two'}",
        "{__name__=~'pre:.*'}",
        "{__name__=~'pre:fix:.+',l='3'}",
        "{__name__=~'pre:fox:.+',l='3'}",
        "{__name__=~'more_.+'}",
        "{__name__=~'.*_total'}",
        "{__name__=~'.*_sum',l=~'4|5'}",
        "{job='api'}",
        "{zone!=''}",
        "{tier!~'|test.*'}",
    ];
    let set = SelectorSet::new(rules.iter().map(|rule| parse(rule).unwrap())).unwrap();
    assert_eq!((set.len(), set.is_empty()), (rules.len(), false));
    assert_eq!(set.selectors().first(), parse("exact").ok().as_ref());
    for (labels, expected) in [
        (&[("__name__", "exact")][..], true),
        (&[("__name__", "exact_")], false),
        (&[("__name__", "guarded")], false),
        (&[("__name__", "guarded"), ("l", "2")], true),
        (&[("__name__", "two")], true),
        (&[("__name__", "pre:")], true),
        // Its own prefix asks for more, and the one before that in order is a sibling.
        (&[("__name__", "pre:fox:x")], true),
        (&[("__name__", "pre")], false),
        (&[("__name__", "more_")], false),
        (&[("__name__", "more_x")], true),
        (&[("__name__", "x_total")], true),
        (&[("__name__", "x_sum")], false),
        (&[("__name__", "x_sum"), ("l", "5")], true),
        (&[("__name__", "x"), ("job", "api")], true),
        (&[("__name__", "x"), ("zone", "z")], true),
        (&[("__name__", "x"), ("tier", "prod")], true),
        (&[("__name__", "x"), ("tier", "test1")], false),
        (&[], false),
    ] {
        assert_eq!(set.matches(&series(labels)), expected, "{labels:?}");
    }
    let empty = SelectorSet::new([]).unwrap();
    assert!(empty.is_empty() && !empty.matches(&series(&[("__name__", "up")])));
}

#[test]
fn a_set_finds_the_first_that_matches_as_given() {
    let rules = ["down", "{job='api'}", "up", "{__name__=~'u.*'}", "up", "{__name__=~'.*p'}"];
    let set = SelectorSet::new(rules.iter().map(|rule| parse(rule).unwrap())).unwrap();
    for (labels, expected) in [
        (&[("__name__", "up")][..], Some(2)),
        (&[("__name__", "up"), ("job", "api")], Some(1)),
        (&[("__name__", "cp")], Some(5)),
        (&[("__name__", "cpu")], None),
        (&[], None),
    ] {
        assert_eq!(set.find(&series(labels)), expected, "{labels:?}");
    }
    assert_eq!(SelectorSet::new([]).unwrap().find(&series(&[("__name__", "up")])), None);
}

#[test]
fn selectors_that_share_a_name_are_told_apart_by_another_label() {
    let rules = (0..2_000).map(|i| parse(&format!("up{{instance='i{i}',job=~'a|b'}}")).unwrap());
    let set = SelectorSet::new(rules).unwrap();
    for (instance, job, expected) in [("i1999", "b", true), ("i1999", "c", false), ("x", "a", false)] {
        let labels = [("__name__", "up"), ("instance", instance), ("job", job)];
        assert_eq!(set.matches(&series(&labels)), expected);
    }
}

/// The deviations of `promql-parser` 0.11 that we know of; here we side with Prometheus 3.16.
#[test]
fn where_promql_parser_differs_from_prometheus() {
    for (text, accepted) in [
        // Keywords it knows no metric by.
        ("anchored", true),
        ("smoothed", true),
        // An extension of its own.
        ("{a='b' or c='d'}", false),
        ("{a='\u{fffd}'}", false),
        // Expressions are those of Rust's `regex`, so other things parse and some mean something
        // else: `selector_regex` has those.
        (r"{a=~`\Qb\E`}", true),
        ("{a=~'(?x)a'}", false),
        (r"{a=~`\u{61}`}", false),
        ("{a=~'a{1001}'}", false),
        ("{a=~'a++'}", false),
        // Prometheus takes bytes that are not UTF-8, but has no series with such a value.
        (r"up{a='\xff'}", false),
    ] {
        assert_eq!(parse(text).is_ok(), accepted, "{text}");
    }
}

const NAMES: &[&str] = &["up", "up:sum", "up:sum:rate", "node_cpu", "sum", "a"];
const LABELS: &[&str] = &["__name__", "job", "zone", "on"];
const VALUES: &[&str] = &["", "a", "ab", "b", "up", "up:sum", "node_cpu", "é", "a|b"];

/// Patterns that Go and Rust read alike, as far as values have no newline.
fn pattern() -> impl Strategy<Value = String> {
    let atom = prop::sample::select(vec![
        "", "a", "ab", "b", "up", "up:", "node_", ".", ".*", ".+", "[a-c]", "[^a]", "é", "^", "$", "s?", "(?i)A",
        "a{2}",
    ])
    .prop_map(String::from);
    atom.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.join("|")),
            2 => inner.clone().prop_map(|part| format!("({part})")),
            1 => inner.prop_map(|part| format!("(?:{part})?")),
        ]
    })
}

fn matcher() -> impl Strategy<Value = String> {
    let label = prop::sample::select(LABELS);
    let value = prop::sample::select(VALUES).prop_map(String::from);
    prop_oneof![
        (label.clone(), prop::sample::select(&["=", "!="][..]), value),
        (label, prop::sample::select(&["=~", "!~"][..]), pattern()),
    ]
    .prop_map(|(label, op, value)| format!("{label}{op}'{value}'"))
}

/// Selectors in every shape; not all of them parse.
fn selector() -> impl Strategy<Value = String> {
    let name = prop_oneof![2 => Just(""), 3 => prop::sample::select(NAMES)];
    (name, prop::collection::vec(matcher(), 0..3), any::<bool>()).prop_map(|(name, matchers, comma)| {
        let comma = if comma && !matchers.is_empty() { "," } else { "" };
        format!("{name}{{{}{comma}}}", matchers.join(","))
    })
}

fn any_series() -> impl Strategy<Value = Series> {
    let name = prop_oneof![prop::sample::select(NAMES), prop::sample::select(VALUES)];
    let values = prop::sample::select(VALUES);
    (name, prop::collection::vec((prop::sample::select(LABELS), values), 0..4)).prop_map(|(name, mut labels)| {
        labels.push(("__name__", name));
        series(&labels)
    })
}

/// What `promql-parser` makes of a text: `None` if it is no plain vector selector there.
///
/// It is a sound oracle for the strategies here, not for all texts: see
/// [`where_promql_parser_differs_from_prometheus`].
fn oracle(text: &str) -> Option<promql_parser::parser::VectorSelector> {
    match promql_parser::parser::parse(text) {
        Ok(promql_parser::parser::Expr::VectorSelector(selector))
            if selector.offset.is_none() && selector.at.is_none() =>
        {
            Some(selector)
        }
        _ => None,
    }
}

fn oracle_matches(selector: &promql_parser::parser::VectorSelector, series: &Series) -> bool {
    let name = selector.name.as_deref();
    name.is_none_or(|name| series.value("__name__") == name)
        && selector.matchers.matchers.iter().all(|matcher| matcher.is_match(series.value(&matcher.name)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn promql_parser_agrees(text in selector(), all in prop::collection::vec(any_series(), 8)) {
        let theirs = oracle(&text);
        let ours = parse(&text);
        prop_assert_eq!(ours.is_ok(), theirs.is_some(), "{:?} {:?}", ours, theirs);
        if let (Ok(ours), Some(theirs)) = (ours, theirs) {
            for series in all {
                prop_assert_eq!(ours.matches(&series), oracle_matches(&theirs, &series), "{:?}", series);
            }
        }
    }

    #[test]
    fn promql_parser_agrees_on_what_parses(
        mut pieces in prop::collection::vec(prop::sample::select(&[
            "up", "sum", "BOOL", "on", "inf", "by", ":", "a", "1", "_", "{", "}", "{", "}", ",", "=",
            "!=", "=~", "!~", "'a'", "\"b\"", "`c`", "'a.b'", "''", "'\\n'", "'\\q'", "'\\x41'", "'", " ", "\t",
            "\n", "#c\n", "#", "é", "~", "!", "[5m]", " offset 5m", "@ 1", "(", ")", "'a'", "=", "a", "a='b'", "a='b'",
        ][..]), 1..8),
        wrap in any::<bool>(),
    ) {
        if wrap {
            pieces.insert(0, "{");
            pieces.push("}");
        }
        let text = pieces.concat();
        prop_assert_eq!(parse(&text).is_ok(), oracle(&text).is_some(), "{:?} {:?}", text, parse(&text));
    }

    #[test]
    fn a_set_matches_if_any_selector_does(
        texts in prop::collection::vec(selector(), 0..20),
        all in prop::collection::vec(any_series(), 20),
    ) {
        let selectors: Vec<Selector> = texts.iter().filter_map(|text| parse(text).ok()).collect();
        let set = SelectorSet::new(selectors.clone()).unwrap();
        prop_assert_eq!(set.selectors(), &selectors[..]);
        for series in all {
            let expected = selectors.iter().any(|selector| selector.matches(&series));
            prop_assert_eq!(set.matches(&series), expected, "{:?}", series);
            let first = (0..selectors.len()).find(|&at| selectors[at].matches(&series));
            prop_assert_eq!(set.find(&series), first, "{:?}", series);
        }
    }

    #[test]
    fn canonical_forms_are_stable(text in selector(), value in "\\PC*|[\\x00-\\x7f]*|.*") {
        if let Ok(selector) = parse(&text) {
            let canonical = selector.to_string();
            let again = parse(&canonical).unwrap();
            prop_assert_eq!(&again, &selector);
            prop_assert_eq!(again.to_string(), canonical);
        }
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\u{fffd}', "\\ufffd");
        let selector = parse(&format!("{{\"{quoted}\"!=\"{quoted}\",a=\"b\"}}")).unwrap();
        prop_assert!(selector.matchers().iter().any(|m| m.value() == value && m.name() == value));
        let canonical = selector.to_string();
        prop_assert!(!canonical.contains(char::is_control), "{:?}", canonical);
        prop_assert_eq!(parse(&canonical), Ok(selector));
    }

    #[test]
    fn any_text_gives_a_selector_or_one_line(
        text in "[a-c\\[\\](){}|*+?\\\\^$.:=!~'\"`,#0-9 \\nQEpPxié-]{0,40}|.*",
        bare in any::<bool>(),
    ) {
        let text = if bare { text } else { with_regex(&text) };
        if let Err(error) = parse(&text) {
            let message = error.to_string();
            prop_assert!(!message.contains(char::is_control), "{:?}", message);
            let SelectorError::Selector { column, .. } = error else { panic!("{message}") };
            prop_assert!((1..=text.len() + 1).contains(&column) && text.is_char_boundary(column - 1));
        }
    }
}
