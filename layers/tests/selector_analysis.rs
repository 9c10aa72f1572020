//! What selectors say without any series: proofs against brute force, and bounds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use infogw_layers::enforce::selector::{
    Labels, Selector, SelectorSet,
    analysis::{Finding, findings},
};
use proptest::prelude::*;

#[derive(Debug, Clone, Default)]
struct Series(BTreeMap<String, String>);

impl Labels for Series {
    fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

fn parse(text: &str) -> Selector {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn parse_all(texts: &[&str]) -> Vec<Selector> {
    texts.iter().map(|text| parse(text)).collect()
}

/// One line each.
fn told(selectors: &[Selector], always_present: &[&str]) -> Vec<String> {
    findings(selectors, always_present).iter().map(Finding::to_string).collect()
}

#[test]
fn never_matches_is_proven() {
    for (text, never) in [
        ("up", false),
        ("up{job='a',job='b'}", true),
        ("{'a','b'}", true),
        ("up{a='x',a!='x'}", true),
        ("up{a='x',a!='y'}", false),
        ("up{a='x',a=~'x|y'}", false),
        ("up{a='x',a=~'y|z'}", true),
        ("up{a='x',a=~'x.+'}", true),
        ("up{a=~'b.*',a=~'c.*'}", true),
        ("up{a=~'b.*',a=~'bc.*'}", false),
        ("up{a=~'b.+',a=~'.'}", true),
        ("up{a=~'x',a!~'x|y'}", true),
        ("up{a=~'x|z',a!~'x|y'}", false),
        ("up{a=~'[a-c]+',a=~'[c-e]+'}", false),
        ("up{a=~'[a-c]+',a=~'[c-e]+',a!~'c*'}", true),
        ("up{a=~'(aa)+',a=~'(aaa)+'}", false),
        ("up{a=~'(aa)+',a=~'(aaa)+',a!~'(aaaaaa)+'}", true),
        // An absent label is the empty string.
        ("up{a='',a!=''}", true),
        ("up{a='',a=~'.+'}", true),
        ("up{a!~'.*'}", true),
        ("up{a!~'.+',a!=''}", true),
        ("up{a!~'.+'}", false),
        // No string at all, in several spellings.
        (r"up{a=~`[^\x00-\x{10FFFF}]`}", true),
        (r"up{a=~`a\bb`}", true),
        ("up{a=~'a$b'}", true),
        ("up{a=~'a^b|c'}", false),
        ("{__name__=~'a$b',job='x'}", true),
        // Go's dot matches a newline here, and only with that flag not.
        (r"up{a=~`(?-s).*`,a!~`[^\n]*`}", true),
        (r"up{a=~`.*`,a!~`[^\n]*`}", false),
        // Values are UTF-8: two bytes that make no character are none.
        (r"up{a!~`(?:[\x00-\x7f]|[^\x00-\x7f])*`}", true),
        ("up{a=~'(?i)k',a!~'[kK]'}", false),
        ("up{a=~'(?i)k',a!~'[kK\u{212a}]'}", true),
        (r"up{a=~`\w+`,a=~`é`}", true),
        (r"up{a=~`\pL`,a!~`\p{Ll}|\p{Lu}|\p{Lt}|\p{Lm}|\p{Lo}`}", true),
    ] {
        assert_eq!(parse(text).never_matches(), never, "{text}");
    }
}

#[test]
fn contains_is_proven() {
    for (outer, inner, contains) in [
        ("up", "up", true),
        ("up", "up{job='a'}", true),
        ("up{job='a'}", "up", false),
        ("up", "down", false),
        ("up{job!=''}", "up{job='a'}", true),
        ("up{job=~'.*'}", "up", true),
        ("up{job=~'.+'}", "up", false),
        ("up{job!='b'}", "up{job='a'}", true),
        ("up{job!='b'}", "up", false),
        ("up{job=''}", "up", false),
        ("up{job=''}", "up{job=''}", true),
        ("up{job!~'test.*'}", "up{job!~'t.*'}", true),
        ("up{job!~'t.*'}", "up{job!~'test.*'}", false),
        ("{__name__=~'.+'}", "up", true),
        ("{__name__!=''}", "{__name__=~'.+'}", true),
        ("{__name__=~'.+'}", "{__name__!=''}", true),
        ("{__name__=~'.+'}", "{job='a'}", false),
        ("{__name__=~'up|down'}", "up", true),
        ("{__name__=~'up|down|left'}", "{__name__=~'left|up'}", true),
        ("{__name__=~'up|down'}", "{__name__=~'left|up'}", false),
        ("{__name__=~'node_.*'}", "{__name__=~'node_cpu_.+'}", true),
        ("{__name__=~'node_.+'}", "{__name__=~'node_.*'}", false),
        ("{__name__=~'node_.+|node_'}", "{__name__=~'node_.*'}", true),
        ("{__name__=~'node_.*'}", "{__name__=~'node_[a-z]+_total'}", true),
        ("{__name__=~'node_[a-z_]+'}", "{__name__=~'node_(a|b)+_total'}", true),
        ("{__name__=~'node_[a-z]+'}", "{__name__=~'node_(a|b)+_total'}", false),
        ("{__name__=~'.*_total'}", "{__name__=~'node_.*_total'}", true),
        ("{__name__=~'node_.*_total'}", "{__name__=~'.*_total'}", false),
        ("{__name__=~'(aa)+'}", "{__name__=~'(aaaa)+'}", true),
        ("{__name__=~'(aaaa)+'}", "{__name__=~'(aa)+'}", false),
        ("{__name__=~'a|b+|c{3}'}", "{__name__=~'c{3}|b|a'}", true),
        // What several matchers of one label say together.
        ("up{a=~'b.*'}", "up{a=~'.*c|b+',a!~'.*c'}", true),
        ("up{a='b'}", "up{a=~'a|b',a=~'b|c'}", true),
        ("up{a='b'}", "up{a=~'a|b',a!='a'}", true),
        // Each may ask for what the other leaves open.
        ("up{a='1'}", "up{b='2'}", false),
        ("up{a=~'.*',b=~'.*'}", "up{c='3'}", true),
        // Nothing is contained in everything.
        ("up", "down{a='1',a='2'}", true),
        ("up", "down{a=~'b+',a=~'c+'}", true),
        ("up{a='1',a='2'}", "up", false),
    ] {
        assert_eq!(parse(outer).contains(&parse(inner)), contains, "{outer} {inner}");
    }
}

#[test]
fn regular_expressions_that_need_not_be() {
    for (text, simpler) in [
        ("up", None),
        ("up{job='a'}", None),
        ("{__name__=~'up'}", Some("up")),
        ("{__name__=~'^(?:up)$'}", Some("up")),
        ("{__name__=~'up|up'}", Some("up")),
        ("{__name__=~'(u)(p)'}", Some("up")),
        ("{__name__=~'up|down'}", None),
        ("{__name__=~'1st'}", Some("{__name__='1st'}")),
        ("up{job=~''}", Some("up{job=''}")),
        ("up{job!~''}", Some("up{job!=''}")),
        ("up{job!~'a'}", Some("up{job!='a'}")),
        ("up{job!~'^a$'}", Some("up{job!='a'}")),
        ("up{job!~'a|b'}", None),
        (r"up{job=~`a\.b`}", Some("up{job='a.b'}")),
        ("up{job=~'a.b'}", None),
        (r"up{job=~`a\b`}", Some("up{job='a'}")),
        ("up{job=~'a$|b$c'}", Some("up{job='a'}")),
        // The only way to say any metric, as the parser's own advice has it.
        ("{__name__=~'.+'}", None),
        ("up{job!~'.+'}", Some("up{job=''}")),
        ("up{job=~'.*'}", Some("up")),
        ("up{job=~'(?-s).*'}", None),
        ("up{job=~'.*',zone=~'a'}", Some("up{zone='a'}")),
        // Together, matchers may leave one value.
        ("up{job=~'a|b',job!='a'}", Some("up{job='b'}")),
        ("up{job=~'a.*',job='ab'}", Some("up{job='ab'}")),
        ("up{job=~'[ab]+',job=~'[bc]'}", Some("up{job='b'}")),
        ("up{job=~'a.*',job!~'ab'}", Some("up{job=~'a.*',job!='ab'}")),
        // One that never matches stays so.
        ("up{job=~'a',job=~'b'}", Some("up{job='a',job='b'}")),
    ] {
        assert_eq!(parse(text).simplified(), simpler.map(parse), "{text}");
    }
}

#[test]
fn a_list_is_told_what_its_author_should_know() {
    let rules = parse_all(&[
        "up",
        "up{job='a',job='b'}",
        "up{zone='z'}",
        "{__name__='up'}",
        "{__name__=~'node_(?:load1)'}",
        "{__name__=~'kube_.+'}",
        "{__name__=~'kube_pod_[a-z]+'}",
        "kube_pod_info",
        "{__name__=~'k+'}",
        "{__name__=~'kk*'}",
        "{job='a',zone='z'}",
        "{_id='',job='a'}",
        "{_id='',_id=~'.+'}",
    ]);
    assert_eq!(
        told(&rules, &["_id"]),
        [
            "selector 2 can never match: no value of label \"job\" meets all it asks for",
            "selector 3 makes no difference: selector 1 matches all that it does",
            "selector 4 repeats selector 1",
            "selector 5 needs no regular expression: write node_load1",
            "selector 7 makes no difference: selector 6 matches all that it does",
            "selector 8 makes no difference: selector 6 matches all that it does",
            "selector 10 makes no difference: selector 9 matches all that it does",
            "selector 12 can never match: no value of label \"_id\" meets all it asks for",
            "selector 13 can never match: no value of label \"_id\" meets all it asks for",
        ]
    );
}

#[test]
fn labels_that_are_always_there_count() {
    let rules = parse_all(&["up{_id=~'.+'}", "up", "{_id!=''}"]);
    assert_eq!(
        findings(&rules, &[]),
        [Finding::Contained { this: 0, by: 1 }],
        "without that label it matters whether `_id` is there"
    );
    assert_eq!(
        findings(&rules, &["_id"]),
        [Finding::Contained { this: 0, by: 2 }, Finding::Contained { this: 1, by: 2 }]
    );
    let named = parse_all(&["{__name__='',job='a'}", "{job='a'}", "{a!~'.+',job='b'}"]);
    assert_eq!(
        findings(&named, &["__name__", "a"]),
        [
            Finding::NeverMatches { this: 0, label: "__name__".into() },
            Finding::NeverMatches { this: 2, label: "a".into() },
        ]
    );
}

#[test]
fn of_those_that_say_the_same_one_stays() {
    // In a ring, each contains the next; the widest is neither first nor last.
    let rules = parse_all(&["{a=~'x|y'}", "{a=~'[xy]'}", "{a=~'(y|x)'}", "{a=~'x|y|z'}", "{a=~'[x-z]'}", "{a='x'}"]);
    let by = |this| Finding::Contained { this, by: 3 };
    assert_eq!(findings(&rules, &[]), [by(0), by(1), by(2), by(4), by(5)]);
}

#[test]
fn a_long_list_is_looked_into_as_a_whole() {
    let mut texts: Vec<String> = (0..900).map(|i| format!("metric_{i}_total")).collect();
    texts.extend((0..100).map(|i| format!("{{__name__=~'.+_{i}x_[a-z]+_total'}}")));
    texts.push("{__name__=~'metric_(?:10|20)_[a-z]+'}".into());
    texts.push("{__name__=~'a_77x_[a-f]{2,3}_total'}".into());
    texts.push("metric_7_total{job='a'}".into());
    let selectors: Vec<Selector> = texts.iter().map(|text| parse(text)).collect();
    let contained = |this, by| Finding::Contained { this, by };
    assert_eq!(
        findings(&selectors, &["_id"]),
        [contained(10, 1_000), contained(20, 1_000), contained(1_001, 977), contained(1_002, 7)]
    );
}

/// What is proven in the small is true at any size, but takes automata of as many states as there
/// are words of that length.
#[test]
fn what_would_take_too_long_stays_open() {
    let far = |n: usize| format!("(x|y)*x(x|y){{{n}}}");
    let split = |n: usize| format!("(x|y)*x(x|y){{{n}}}x|(x|y)*x(x|y){{{n}}}y");
    for (n, proven) in [(4, true), (40, false)] {
        let (outer, inner) = (format!("{{a=~'{}'}}", far(n + 1)), format!("{{a=~'{}'}}", split(n)));
        assert_eq!(parse(&outer).contains(&parse(&inner)), proven);
        let nothing = format!("{{a=~'{}',a!~'{}'}}", far(n + 1), split(n));
        assert_eq!(parse(&nothing).never_matches(), proven);
        assert_eq!(findings(&parse_all(&[&nothing]), &[]).len(), 1);
    }
    // So may the program of one expression.
    for (n, proven) in [(100, true), (8_000, false)] {
        let branches: Vec<String> = (0..n).map(|i| format!("n{i}.*x")).collect();
        let outer = parse(&format!("{{a=~'{}'}}", branches.join("|")));
        assert_eq!(outer.contains(&parse("{a=~'n77.*yx'}")), proven);
    }
    // One selector of very many matchers.
    let matchers: Vec<String> = (0..20_000).map(|i| format!("a!='{i}',l{i}!='x'")).collect();
    let wide = parse(&format!("up{{{}}}", matchers.join(",")));
    assert!(!wide.never_matches() && wide.simplified().is_none() && !wide.contains(&parse("up")));
    assert!(parse("up").contains(&wide));
}

const LABELS: &[&str] = &["__name__", "a", "b"];
const PRESENT: &[&[&str]] = &[&[], &["a"], &["__name__", "b"]];

/// What tells all selectors over [`small_pattern`] apart: every value of up to three characters,
/// of which two, `x` and `-`, stand for those no expression names, in words (`\b`) and between; and
/// of the longer ones, where only the first counts, one of each kind.
fn values() -> Vec<String> {
    let mut values = vec![String::new()];
    for length in 0..3 {
        let shorter: Vec<String> = values.iter().filter(|value| value.chars().count() == length).cloned().collect();
        values.extend(shorter.iter().flat_map(|value| ["a", "A", "b", "é", "x", "-"].map(|c| format!("{value}{c}"))));
    }
    values.extend(["aaaa", "xxxx"].map(String::from));
    values
}

/// Short expressions; none asks for more of a value of four characters than how it starts.
fn small_pattern() -> impl Strategy<Value = String> {
    let atom = prop::sample::select(vec!["", "a", "b", "é", ".", "[ab]", "[^a]", "a?", ".?", r"\b", r"\B", "^", "$"]);
    let word = prop::collection::vec(atom, 0..4).prop_map(|parts| parts.concat());
    let one =
        prop_oneof![5 => word, 1 => Just(".*".to_owned()), 1 => Just("a.*".to_owned()), 1 => Just("(?i:A)".to_owned())];
    prop::collection::vec(one, 1..3).prop_map(|parts| parts.join("|"))
}

fn selector(pattern: impl Strategy<Value = String>) -> impl Strategy<Value = Selector> {
    let exact = prop::sample::select(&["", "a", "b", "ab", "é"][..]).prop_map(String::from);
    let label = prop::sample::select(LABELS);
    let matcher = prop_oneof![
        (label.clone(), prop::sample::select(&["=", "!="][..]), exact),
        (label, prop::sample::select(&["=~", "!~"][..]), pattern),
    ];
    prop::collection::vec(matcher.prop_map(|(label, op, value)| format!("{label}{op}`{value}`")), 1..5)
        .prop_filter_map("selects everything", |matchers| format!("{{{}}}", matchers.join(",")).parse().ok())
}

/// For each label the values that the selector's matchers on it accept.
fn accepted(selector: &Selector, values: &[String]) -> Vec<Vec<bool>> {
    let on = |label: &&str| {
        let all = |value: &String| selector.matchers().iter().all(|m| m.name() != *label || m.matches(value));
        values.iter().map(all).collect()
    };
    LABELS.iter().map(on).collect()
}

/// Whether no series of these values matches.
fn is_empty(accepted: &[Vec<bool>]) -> bool {
    accepted.iter().any(|values| !values.contains(&true))
}

fn series() -> impl Strategy<Value = Series> {
    let value = prop_oneof![prop::sample::select(values()), "[abAé\n]{0,12}"];
    prop::collection::vec((prop::sample::select(LABELS), value), 0..4)
        .prop_map(|labels| Series(labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
}

/// Expressions of all sorts.
fn pattern() -> impl Strategy<Value = String> {
    let atom =
        prop::sample::select(vec!["a", "b", "ab", ".", ".*", ".+", "[ab]", "[^a]", "é", "^", "$", "", r"\b", "a{2}"])
            .prop_map(String::from);
    atom.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.join("|")),
            2 => inner.clone().prop_map(|part| format!("(?:{part})*")),
            1 => inner.prop_map(|part| format!("(?:{part})?")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Where all values that matter can be tried, the answers are not only sound but complete.
    #[test]
    fn brute_force_agrees(one in selector(small_pattern()), other in selector(small_pattern())) {
        let values = values();
        let (accepts, inner) = (accepted(&one, &values), accepted(&other, &values));
        prop_assert_eq!(one.never_matches(), is_empty(&accepts), "{}", one);
        let implied = inner.iter().zip(&accepts).all(|(inner, outer)| inner.iter().zip(outer).all(|(i, o)| !i || *o));
        prop_assert_eq!(one.contains(&other), implied || is_empty(&inner), "{} {}", one, other);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn no_series_disproves_an_answer(
        one in selector(pattern()),
        other in selector(pattern()),
        all in prop::collection::vec(series(), 40),
    ) {
        let (contains, never) = (one.contains(&other), one.never_matches());
        let simplified = one.simplified();
        for series in &all {
            prop_assert!(!contains || !other.matches(series) || one.matches(series), "{} {} {:?}", one, other, series);
            prop_assert!(!never || !one.matches(series), "{} {:?}", one, series);
            if let Some(simplified) = &simplified {
                prop_assert_eq!(one.matches(series), simplified.matches(series), "{} {} {:?}", one, simplified, series);
                prop_assert_eq!(&parse(&simplified.to_string()), simplified);
            }
        }
    }

    /// What `findings` says of pairs is what `contains` says; what it says can go can go.
    #[test]
    fn a_list_without_what_makes_no_difference_matches_the_same(
        mut selectors in prop::collection::vec(selector(pattern()), 1..12),
        all in prop::collection::vec(series(), 40),
        present in prop::sample::select(PRESENT),
    ) {
        selectors.extend(selectors.get(2).cloned());
        let found = findings(&selectors, present);
        let mut stays = vec![true; selectors.len()];
        for finding in &found {
            match finding {
                Finding::NeverMatches { this, label } => {
                    stays[*this] = false;
                    prop_assert!(present.contains(&&**label) || selectors[*this].never_matches());
                }
                Finding::Repeats { this, first } => {
                    stays[*this] = false;
                    prop_assert!(first < this && selectors[*first] == selectors[*this]);
                }
                Finding::Contained { this, by } => {
                    stays[*this] = false;
                    prop_assert!(!present.is_empty() || selectors[*by].contains(&selectors[*this]));
                }
                Finding::CouldBeExact { this, instead } => {
                    prop_assert_eq!(selectors[*this].simplified(), Some(instead.clone()));
                }
                other => prop_assert!(false, "{}", other),
            }
        }
        for (this, selector) in selectors.iter().enumerate().filter(|(this, _)| present.is_empty() && stays[*this]) {
            prop_assert!(!selector.never_matches());
            let by = selectors.iter().enumerate().find(|(by, s)| *by != this && stays[*by] && s.contains(selector));
            prop_assert!(by.is_none(), "{} {:?}", selector, by);
        }
        let stay = selectors.iter().zip(&stays).filter(|(_, stays)| **stays).map(|(selector, _)| selector.clone());
        let fewer = SelectorSet::new(stay).unwrap();
        let set = SelectorSet::new(selectors.clone()).unwrap();
        for series in all.iter().filter(|series| present.iter().all(|label| !series.value(label).is_empty())) {
            prop_assert_eq!(set.matches(series), fewer.matches(series), "{:?} {:?}", series, found);
        }
    }
}
