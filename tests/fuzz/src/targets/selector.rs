use std::collections::BTreeMap;

use infogw_layers::enforce::selector::{Labels, MatchOp, Matcher, Selector, SelectorSet};
use regex::Regex;

struct Series(BTreeMap<String, String>);

impl Labels for Series {
    fn value(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// Selectors, one a line; and behind an empty line series, each up to an empty line, their labels one a line as `name=value`.
pub fn selector(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (rules, series) = text.split_once("\n\n").unwrap_or((text, "a=b\nb=ab"));
    let mut selectors = Vec::new();
    for rule in rules.split('\n') {
        match rule.parse::<Selector>() {
            Err(error) => {
                let line = error.to_string();
                assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
            }
            Ok(selector) => {
                let shown = selector.to_string();
                assert!(!shown.contains(char::is_control), "{shown:?}");
                let again: Selector = shown.parse().unwrap_or_else(|error| panic!("{shown}: {error}"));
                assert_eq!((&again, again.to_string()), (&selector, shown));
                assert!(selector.matchers().iter().any(|matcher| !matcher.matches("")), "it selects everything");
                selectors.push(selector);
            }
        }
    }
    let Ok(set) = SelectorSet::new(selectors.clone()) else { return };
    let naive: Vec<Vec<Naive<'_>>> =
        selectors.iter().map(|selector| selector.matchers().iter().map(Naive::new).collect()).collect();
    for series in series.split("\n\n") {
        let labels = series.split('\n').filter_map(|line| line.split_once('='));
        let series = Series(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
        let mut any = None;
        for (i, (selector, naive)) in selectors.iter().zip(&naive).enumerate() {
            let matches = selector.matches(&series);
            if let Some(expected) = naive.iter().try_fold(true, |all, matcher| Some(all & matcher.matches(&series)?)) {
                assert_eq!(matches, expected, "{selector} {:?}", series.0);
            }
            any = any.or(matches.then_some(i));
        }
        assert_eq!((set.matches(&series), set.find(&series)), (any.is_some(), any), "{:?}", series.0);
    }
}

/// A matcher, as its definition says.
struct Naive<'m> {
    matcher: &'m Matcher,
    /// None: it is no regular expression, or none that both kinds of syntax read alike.
    regex: Option<Regex>,
}

impl<'m> Naive<'m> {
    fn new(matcher: &'m Matcher) -> Self {
        let is_regex = matches!(matcher.op(), MatchOp::Regex | MatchOp::NotRegex);
        // Classes, escapes and flags differ between Go and Rust.
        let plain = !matcher.value().contains(['\\', '[', '{']) && !matcher.value().contains("(?");
        let regex = (is_regex && plain).then(|| Regex::new(&format!("^(?s:{})$", matcher.value())).ok()).flatten();
        Naive { matcher, regex }
    }

    fn matches(&self, series: &Series) -> Option<bool> {
        let (value, wanted) = (series.value(self.matcher.name()), self.matcher.value());
        match self.matcher.op() {
            MatchOp::Equal => Some(value == wanted),
            MatchOp::NotEqual => Some(value != wanted),
            MatchOp::Regex => self.regex.as_ref().map(|regex| regex.is_match(value)),
            MatchOp::NotRegex => self.regex.as_ref().map(|regex| !regex.is_match(value)),
        }
    }
}
