//! The text parser, from outside: what it accepts, what it refuses and in which words, and that nothing panics.

#![cfg(feature = "decode")]

use infogw_layers::decode::text::{FamilyKind, Label, TextError, TextSink, parse};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const MAX_LABELS: usize = 8;

#[derive(Debug, Clone, PartialEq)]
enum Event {
    Family(String, FamilyKind),
    Sample { name: String, labels: Vec<(String, String)>, bits: u64, timestamp_ms: Option<i64> },
}

/// Keeps what it is told, until it has had enough.
struct Recorder {
    events: Vec<Event>,
    most: usize,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("that was enough")]
struct Enough;

impl Recorder {
    fn push(&mut self, event: Event) -> Result<(), Enough> {
        if self.events.len() == self.most {
            return Err(Enough);
        }
        self.events.push(event);
        Ok(())
    }
}

impl TextSink for Recorder {
    type Error = Enough;

    fn family(&mut self, name: &str, kind: FamilyKind) -> Result<(), Enough> {
        self.push(Event::Family(name.to_owned(), kind))
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        value: f64,
        timestamp_ms: Option<i64>,
    ) -> Result<(), Enough> {
        let labels = labels.iter().map(|label| (label.name.to_owned(), label.value.to_owned())).collect();
        self.push(Event::Sample { name: name.to_owned(), labels, bits: value.to_bits(), timestamp_ms })
    }
}

fn record(text: &[u8]) -> Result<Vec<Event>, TextError<Enough>> {
    let mut recorder = Recorder { events: Vec::new(), most: usize::MAX };
    parse(text, MAX_LABELS, &mut recorder).map(|()| recorder.events)
}

/// The events in words, as the tables below have them.
fn told(text: &str) -> Result<Vec<String>, String> {
    let events = record(text.as_bytes()).map_err(|error| error.to_string())?;
    Ok(events.iter().map(in_words).collect())
}

fn in_words(event: &Event) -> String {
    match event {
        Event::Family(name, kind) => format!("{kind:?} {name}"),
        Event::Sample { name, labels, bits, timestamp_ms } => {
            let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            let timestamp = timestamp_ms.map(|timestamp_ms| format!(" @{timestamp_ms}")).unwrap_or_default();
            format!("{name}[{}] {:?}{timestamp}", labels.join(" "), f64::from_bits(*bits))
        }
    }
}

const ACCEPTED: &[(&str, &[&str])] = &[
    // Lines.
    ("", &[]),
    ("\n \n\t\n", &[]),
    ("x 1\n", &["Untyped x", "x[] 1.0"]),
    ("x 1\n \t", &["Untyped x", "x[] 1.0"]),
    ("x 1\n\n  \ny 2\n", &["Untyped x", "x[] 1.0", "Untyped y", "y[] 2.0"]),
    ("\t x\t 1 \t 5\n", &["Untyped x", "x[] 1.0 @5"]),
    (":a_B:9 1\n_ 2\n", &["Untyped :a_B:9", ":a_B:9[] 1.0", "Untyped _", "_[] 2.0"]),
    // A blank is needed only where the name would not end without it.
    ("x{}1\nx+1\nx.5\n", &["Untyped x", "x[] 1.0", "x[] 1.0", "x[] 0.5"]),
    // Labels.
    ("x{} 1\n", &["Untyped x", "x[] 1.0"]),
    ("x {\t} 1\n", &["Untyped x", "x[] 1.0"]),
    ("x{a=\"1\",} 1\n", &["Untyped x", "x[a=\"1\"] 1.0"]),
    ("x { a\t= \"1\" , b =\"2\"\t, } 1\n", &["Untyped x", "x[a=\"1\" b=\"2\"] 1.0"]),
    ("x{b=\"\",a=\"\"} 1\n", &["Untyped x", "x[b=\"\" a=\"\"] 1.0"]),
    ("x{a=\"}, # =\t{\"} 1\n", &["Untyped x", "x[a=\"}, # =\\t{\"] 1.0"]),
    ("x{a=\"é∞\u{1f4c8}\"} 1\n", &["Untyped x", "x[a=\"é∞\u{1f4c8}\"] 1.0"]),
    ("x{a=\"\\\\\\\"\\n\"} 1\n", &["Untyped x", "x[a=\"\\\\\\\"\\n\"] 1.0"]),
    (
        "x{a=\"\\\\\",b=\"-\",c=\"-\\n-\\n\"} 1\nx{d=\"\\\"\"} 1\n",
        &["Untyped x", "x[a=\"\\\\\" b=\"-\" c=\"-\\n-\\n\"] 1.0", "x[d=\"\\\"\"] 1.0"],
    ),
    ("x{le=\"no number\",quantile=\"\"} 1\n", &["Untyped x", "x[le=\"no number\" quantile=\"\"] 1.0"]),
    // Values and timestamps.
    ("x NaN\nx -Inf\nx +infinity\n", &["Untyped x", "x[] NaN", "x[] -inf", "x[] inf"]),
    ("x 1e5 -9223372036854775808\nx -0 +7\n", &["Untyped x", "x[] 100000.0 @-9223372036854775808", "x[] -0.0 @7"]),
    // Comments.
    ("#\n# \n#x\n# any thing {\n#\\\n#\r\n#\t#\n", &[]),
    ("# HELP\n# HELP x\n# TYPE\n# TYPE \t\n# TYPE x\n# TYPE x \n# HELP x \nx 1\n", &["Untyped x", "x[] 1.0"]),
    ("# help x a\n# help x \\a\n# TYPES x y\n", &[]),
    ("# HELP x \\\\ \\n \\\" \" {\r\nx 1\n", &["Untyped x", "x[] 1.0"]),
    ("# TYPE x counter\n# HELP x after its type\nx 1\n", &["Counter x", "x[] 1.0"]),
    ("#TYPE x gauge\n #\tTYPE\ty\tGauge\nx 1\ny 1\n", &["Gauge x", "x[] 1.0", "Gauge y", "y[] 1.0"]),
    ("# TYPE x untyped\nx 1\n# HELP x after its samples\n", &["Untyped x", "x[] 1.0"]),
    ("# TYPE x gauge\n# TYPE y counter\n# HELP z nothing\n", &[]),
    // Families.
    ("x 1\ny 1\nx 2\n", &["Untyped x", "x[] 1.0", "Untyped y", "y[] 1.0", "Untyped x", "x[] 2.0"]),
    ("x 1\n# TYPE y gauge\nx 2\n", &["Untyped x", "x[] 1.0", "x[] 2.0"]),
    (
        "# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_sum 4.5\nh_count 3\n",
        &["Histogram h", "h_bucket[le=\"1\"] 2.0", "h_bucket[le=\"+Inf\"] 3.0", "h_sum[] 4.5", "h_count[] 3.0"],
    ),
    ("# TYPE h histogram\nh_sum -1\nh_count -0\n", &["Histogram h", "h_sum[] -1.0", "h_count[] -0.0"]),
    (
        "# TYPE g gaugehistogram\ng_bucket{le=\"1\"} 2\n# TYPE k GAUGE_HISTOGRAM\nk_count 1\n",
        &["Histogram g", "g_bucket[le=\"1\"] 2.0", "Histogram k", "k_count[] 1.0"],
    ),
    (
        "# TYPE s summary\ns{quantile=\"0.5\"} -2\ns_sum -4.5\ns_count 3\ns_bucket 1\n",
        &[
            "Summary s",
            "s[quantile=\"0.5\"] -2.0",
            "s_sum[] -4.5",
            "s_count[] 3.0",
            "Untyped s_bucket",
            "s_bucket[] 1.0",
        ],
    ),
    ("# TYPE c counter\nc_sum 1\nc 1\n", &["Untyped c_sum", "c_sum[] 1.0", "Counter c", "c[] 1.0"]),
    // A name that was a family before the histogram stays one.
    (
        "h_count 1\n# TYPE h histogram\nh_count 2\nh_sum 3\n",
        &["Untyped h_count", "h_count[] 1.0", "h_count[] 2.0", "Histogram h", "h_sum[] 3.0"],
    ),
    (
        "# HELP s_sum of its own\n# TYPE s summary\ns_sum 1\ns_count 2\n",
        &["Untyped s_sum", "s_sum[] 1.0", "Summary s", "s_count[] 2.0"],
    ),
];

/// Accepted here, not by expfmt: see the module's list.
const ACCEPTED_HERE: &[(&str, &[&str])] = &[
    ("x{a=\"1\",a=\"1\",a=\"2\"} 1\n", &["Untyped x", "x[a=\"1\" a=\"1\" a=\"2\"] 1.0"]),
    ("x 0x1p-2\n", &["Untyped x", "x[] 0.25"]),
];

const BAD_ESCAPE: &str =
    "line 1: a backslash that begins no escape; write `\\\\`, `\\\"` or `\\n`, and a backslash itself as `\\\\`";

const REFUSED: &[(&str, &str)] = &[
    // Lines.
    ("x 1", "line 1: the text ends inside this line; end every line with a newline"),
    ("x 1\nx 2\n# comment", "line 3: the text ends inside this line; end every line with a newline"),
    (
        "x 1\r\n",
        "line 1: `1\\r` is not a number; write the sample's value as a float (this line ends with `\\r\\n`; end lines with `\\n` alone)",
    ),
    // Names.
    ("\n5x 1\n", "line 2: expected a metric name, found `5x 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    ("é 1\n", "line 1: expected a metric name, found `é 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    ("{a=\"1\"} 1\n", "line 1: expected a metric name, found `{a=\"1\"} 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    ("x.y 1\n", "line 1: `.y` is not a number; write the sample's value as a float"),
    // Labels.
    ("x{\n", "line 1: expected a label name or `}`, found the end of the line; names are [a-zA-Z_][a-zA-Z0-9_]*"),
    ("x{,} 1\n", "line 1: expected a label name or `}`, found `,} 1`; names are [a-zA-Z_][a-zA-Z0-9_]*"),
    ("x{a=\"1\",,} 1\n", "line 1: expected a label name or `}`, found `,} 1`; names are [a-zA-Z_][a-zA-Z0-9_]*"),
    ("x{1a=\"1\"} 1\n", "line 1: expected a label name or `}`, found `1a=\"1\"} 1`; names are [a-zA-Z_][a-zA-Z0-9_]*"),
    ("x{a:b=\"1\"} 1\n", "line 1: expected `=` behind the label name `a`, found `:b=\"1\"} 1`"),
    ("x{a} 1\n", "line 1: expected `=` behind the label name `a`, found `} 1`"),
    ("x{__name__=\"y\"} 1\n", "line 1: `__name__` is not a label; write the metric's name in front of the labels"),
    ("x{a=1} 1\n", "line 1: expected a quoted value for label `a`, found `1} 1`"),
    ("x{a=\n", "line 1: expected a quoted value for label `a`, found the end of the line"),
    ("x{a='1'} 1\n", "line 1: expected a quoted value for label `a`, found `'1'} 1`"),
    (
        "x{a=\"1\n\"} 1\n",
        "line 1: the value of label `a` has no closing quote on this line; write a newline in it as `\\n`",
    ),
    (
        "x{a=\"\\\\\n",
        "line 1: the value of label `a` has no closing quote on this line; write a newline in it as `\\n`",
    ),
    ("x{a=\"\\\n", BAD_ESCAPE),
    ("x{a=\"\\t\"} 1\n", BAD_ESCAPE),
    ("x{a=\"\\é\"} 1\n", BAD_ESCAPE),
    (
        "x{a=\"1\" b=\"2\"} 1\n",
        "line 1: expected `,` or `}` behind the value of label `a`, found `b=\"2\"} 1`; escape a quote in a value as `\\\"`",
    ),
    (
        "x{a=\"1\"\n",
        "line 1: expected `,` or `}` behind the value of label `a`, found the end of the line; escape a quote in a value as `\\\"`",
    ),
    // Values and timestamps.
    ("x\n", "line 1: expected the sample's value, found the end of the line"),
    ("x{}\t\n", "line 1: expected the sample's value, found the end of the line"),
    ("x one\n", "line 1: `one` is not a number; write the sample's value as a float"),
    ("x 1_000\n", "line 1: `1_000` is not a number; write the sample's value as a float"),
    ("x 1\u{a0}2\n", "line 1: `1\\u{a0}2` is not a number; write the sample's value as a float"),
    ("x -1e999\n", "line 1: `-1e999` is too large for a 64-bit float"),
    (
        "x 1 \n",
        "line 1: expected a timestamp behind the value, found the end of the line; write whole milliseconds since the epoch, or end the line",
    ),
    (
        "x 1 1.5\n",
        "line 1: expected a timestamp behind the value, found `1.5`; write whole milliseconds since the epoch, or end the line",
    ),
    (
        "x 1 9223372036854775808\n",
        "line 1: expected a timestamp behind the value, found `9223372036854775808`; write whole milliseconds since the epoch, or end the line",
    ),
    ("x 1 2 \n", "line 1: expected the end of the line behind the timestamp, found ` `"),
    ("x 1 2 # {} 3\n", "line 1: expected the end of the line behind the timestamp, found ` # {} 3`"),
    // Comments.
    (
        "# HELP 5x a\n",
        "line 1: expected `# HELP NAME ...`, found `HELP 5x a` after `#`; names are [a-zA-Z_:][a-zA-Z0-9_:]*",
    ),
    ("# TYPE 5\n", "line 1: expected `# TYPE NAME ...`, found `TYPE 5` after `#`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    (
        "# TYPE x{} gauge\n",
        "line 1: expected `# TYPE NAME ...`, found `TYPE x{} gauge` after `#`; names are [a-zA-Z_:][a-zA-Z0-9_:]*",
    ),
    (
        "# TYPE x info\n",
        "line 1: `info` is not a type; write counter, gauge, histogram, summary or untyped, nothing behind it",
    ),
    (
        "# TYPE x gauge \n",
        "line 1: `gauge ` is not a type; write counter, gauge, histogram, summary or untyped, nothing behind it",
    ),
    (
        "# TYPE x gauge\n# TYPE x gauge\n",
        "line 2: `x` has a type or samples already; write one `# TYPE` line a family, before its samples",
    ),
    (
        "x 1\n# TYPE x untyped\n",
        "line 2: `x` has a type or samples already; write one `# TYPE` line a family, before its samples",
    ),
    (
        "# TYPE h histogram\n# TYPE h_sum counter\n",
        "line 2: `h_sum` has a type or samples already; write one `# TYPE` line a family, before its samples",
    ),
    ("# HELP x a\n# HELP x a\n", "line 2: `x` has a help text already; write one `# HELP` line a family"),
    ("# HELP x \\a\n", BAD_ESCAPE),
    ("# HELP x a\\\n", BAD_ESCAPE),
    // Histograms and summaries.
    ("# TYPE h histogram\nh_bucket{le=\"\"} 1\n", "line 2: label `le` is ``, not a number; write a float, or +Inf"),
    (
        "# TYPE h histogram\nh_bucket{le=\"1e999\"} 1\n",
        "line 2: label `le` is `1e999`, not a number; write a float, or +Inf",
    ),
    (
        "# TYPE s summary\ns{quantile=\"p50\"} 1\n",
        "line 2: label `quantile` is `p50`, not a number; write a float, or +Inf",
    ),
    (
        "# TYPE h histogram\nh_bucket{le=\"1\"} -1\n",
        "line 2: `h_bucket` is negative; of a histogram only the sum can be",
    ),
    ("# TYPE h histogram\nh_count -Inf\n", "line 2: `h_count` is negative; of a histogram only the sum can be"),
];

/// Refused here, not by expfmt: see the module's list.
const REFUSED_HERE: &[(&str, &str)] = &[
    ("x 1\n{a=\"1\"} 1\n", "line 2: expected a metric name, found `{a=\"1\"} 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    (
        "{\"x\",a=\"1\"} 1\n",
        "line 1: expected a metric name, found `{\"x\",a=\"1\"} 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*",
    ),
    ("\"x\" 1\n", "line 1: expected a metric name, found `\"x\" 1`; names are [a-zA-Z_:][a-zA-Z0-9_:]*"),
    (
        "x{\"a\"=\"1\"} 1\n",
        "line 1: expected a label name or `}`, found `\"a\"=\"1\"} 1`; names are [a-zA-Z_][a-zA-Z0-9_]*",
    ),
    (
        "# TYPE x ga\\uge\n",
        "line 1: `ga\\uge` is not a type; write counter, gauge, histogram, summary or untyped, nothing behind it",
    ),
    ("# TYPE h histogram\nh_bucket -1\n", "line 2: `h_bucket` is negative; of a histogram only the sum can be"),
];

#[test]
fn accepts() {
    for (text, events) in ACCEPTED.iter().chain(ACCEPTED_HERE) {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        assert_eq!(told(text), Ok(events), "{text:?}");
    }
}

#[test]
fn refuses() {
    for (text, line) in REFUSED.iter().chain(REFUSED_HERE) {
        assert_eq!(told(text), Err((*line).to_owned()), "{text:?}");
    }
}

#[test]
fn nan_has_the_bits_of_prometheus() {
    let events = record(b"x nAn\n");
    let bits = 0x7ff8_0000_0000_0001;
    let sample = Event::Sample { name: "x".to_owned(), labels: Vec::new(), bits, timestamp_ms: None };
    assert_eq!(events, Ok(vec![Event::Family("x".to_owned(), FamilyKind::Untyped), sample]));
}

#[test]
fn refuses_other_encodings() {
    let cases: [(&[u8], usize); 3] =
        [(b"x{a=\"\xff\"} 1\n", 1), (b"x 1\n\n# \xc3\nx 2\n", 3), (b"x 1\nx{a=\"\xed\xa0\x80\"} 1\n", 2)];
    for (text, line) in cases {
        let detail = "not UTF-8; send the text as UTF-8".to_owned();
        assert_eq!(record(text), Err(TextError::Malformed { line, detail }));
    }
}

#[test]
fn bounds_the_labels_of_a_sample() {
    let with = |labels: usize, value: &str| {
        let labels: Vec<_> = (0..labels).map(|i| format!("l{i}=\"{value}\"")).collect();
        record(format!("x 1\nx{{{},}} 1\n", labels.join(",")).as_bytes())
    };
    for value in ["", "v", "\\n"] {
        assert!(with(MAX_LABELS, value).is_ok());
        assert_eq!(
            with(MAX_LABELS + 1, value),
            Err(TextError::TooManyLabels { line: 2, labels: MAX_LABELS + 1, max_labels: MAX_LABELS })
        );
    }
    // The bound holds ahead of what is wrong behind it.
    let text = format!("x{{{}!", "a=\"\\n\",".repeat(100_000));
    let error = record(format!("{text}\n").as_bytes()).map_err(|error| error.to_string());
    assert_eq!(error, Err("line 1: the sample has 100000 labels, at most 8 are taken; drop some".to_owned()));

    let mut none = Recorder { events: Vec::new(), most: usize::MAX };
    assert_eq!(parse(b"x 1\nx{} 1\n", 0, &mut none), Ok(()));
    let error = parse(b"x{a=\"1\"} 1\n", 0, &mut none);
    assert_eq!(error, Err(TextError::TooManyLabels { line: 1, labels: 1, max_labels: 0 }));
    assert_eq!(parse(b"x{a=\"\\n\",b=\"\\n\"} 1\n", usize::MAX, &mut none), Ok(()));
    // They are counted, not read: quotes and braces in values are none.
    for (labels, text) in
        [(3, r#"x{a="}",b="\"}",c=""} 1"#), (3, r#"x{a="",b="",c="",} 1"#), (1, "x{a"), (1, r#"x{a="",b"#)]
    {
        let error = parse(format!("{text}\n").as_bytes(), 0, &mut none);
        assert_eq!(error, Err(TextError::TooManyLabels { line: 1, labels, max_labels: 0 }), "{text}");
    }
}

#[test]
fn ends_with_the_sinks_error() {
    let text = b"# TYPE x gauge\nx 1\n\nx 2\n";
    for (most, line) in [(0, 2), (1, 2), (2, 4)] {
        let mut recorder = Recorder { events: Vec::new(), most };
        let error = parse(text, MAX_LABELS, &mut recorder);
        assert_eq!(error, Err(TextError::Sink { line, error: Enough }));
        assert_eq!(recorder.events.len(), most);
    }
    assert_eq!(TextError::Sink { line: 4, error: Enough }.to_string(), "line 4: that was enough");
}

/// What `/federate` of a cluster's Prometheus answers.
#[test]
fn reads_a_federation() {
    let text = r#"# TYPE ALERTS untyped
ALERTS{alertname="Watchdog",alertstate="firing",instance="",prometheus="monitoring/k8s"} 1 1700000010163
# TYPE cluster:cpu_usage_cores:sum untyped
cluster:cpu_usage_cores:sum{instance="",prometheus="monitoring/k8s"} 1.6920000000000686 1700000016662
cluster:cpu_usage_cores:sum{instance="b",prometheus="monitoring/k8s"} 2.41496064e+10 1700000016662
"#;
    let expected = [
        r#"Untyped ALERTS"#,
        r#"ALERTS[alertname="Watchdog" alertstate="firing" instance="" prometheus="monitoring/k8s"] 1.0 @1700000010163"#,
        r#"Untyped cluster:cpu_usage_cores:sum"#,
        r#"cluster:cpu_usage_cores:sum[instance="" prometheus="monitoring/k8s"] 1.6920000000000686 @1700000016662"#,
        r#"cluster:cpu_usage_cores:sum[instance="b" prometheus="monitoring/k8s"] 24149606400.0 @1700000016662"#,
    ];
    assert_eq!(told(text), Ok(expected.map(str::to_owned).to_vec()));
}

#[derive(Debug, Clone)]
struct Family {
    name: String,
    kind: FamilyKind,
    /// Whether it is written without a `# TYPE` line, if that says the same.
    bare: bool,
    help: Option<String>,
}

#[derive(Debug, Clone)]
struct Sample {
    family: Index,
    /// Which of the names that the family's kind allows.
    part: Index,
    labels: Vec<(String, String)>,
    bound: f64,
    value: f64,
    timestamp_ms: Option<i64>,
}

fn families() -> impl Strategy<Value = Vec<Family>> {
    use FamilyKind::{Counter, Gauge, Histogram, Summary, Untyped};

    let kind = select(vec![Counter, Gauge, Untyped, Histogram, Summary]);
    let family = ("[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", kind, any::<bool>(), proptest::option::of(string()));
    vec(family, 1..5).prop_map(|families| {
        // The number makes names distinct, and none of them a part of another.
        let numbered = families.into_iter().enumerate();
        numbered.map(|(i, (name, kind, bare, help))| Family { name: format!("{name}_{i}"), kind, bare, help }).collect()
    })
}

fn sample() -> impl Strategy<Value = Sample> {
    let label = ("l_[a-zA-Z0-9_]{0,8}", string());
    (any::<Index>(), any::<Index>(), vec(label, 0..6), float(), float(), proptest::option::of(any::<i64>())).prop_map(
        |(family, part, labels, bound, value, timestamp_ms)| Sample {
            family,
            part,
            labels,
            bound,
            value,
            timestamp_ms,
        },
    )
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9./-]{0,20}", "[\\\\\"\n\r\t #{},=a-zé]{0,12}", any::<String>()]
}

fn float() -> impl Strategy<Value = f64> {
    let special = select(vec![0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::from_bits(0x7ff8_0000_0000_0001)]);
    let bits = any::<u64>().prop_map(f64::from_bits).prop_filter("the text has one NaN", |float| !float.is_nan());
    prop_oneof![bits, special, (-100_000i32..100_000).prop_map(f64::from)]
}

/// Writes families and samples as a text, and what a sink must be told of it.
struct Writer<'a> {
    text: String,
    events: Vec<Event>,
    blanks: std::iter::Cycle<std::slice::Iter<'a, &'static str>>,
}

impl Writer<'_> {
    fn blank(&mut self) {
        self.text.push_str(self.blanks.next().unwrap_or(&""));
    }

    fn put(&mut self, token: &str) {
        self.text.push_str(token);
        self.blank();
    }

    fn declare(&mut self, family: &Family) {
        if let Some(help) = &family.help {
            // Leading blanks would not be part of it, and an empty one is none.
            let help = format!("{} h{}", family.name, escaped(help).replace("\\\"", "\""));
            self.comment("HELP", &help);
        }
        if !(family.bare && family.kind == FamilyKind::Untyped) {
            let kind = format!("{:?}", family.kind);
            self.comment("TYPE", &format!("{} {}", family.name, if family.bare { kind } else { kind.to_lowercase() }));
        }
        self.comment("any", "comment");
    }

    fn comment(&mut self, keyword: &str, rest: &str) {
        self.blank();
        self.put("#");
        self.text.push_str(&format!("{keyword} {rest}\n"));
    }

    fn sample(&mut self, family: &Family, sample: &Sample) {
        let (parts, bound): (&[&str], _) = match family.kind {
            FamilyKind::Histogram => (&["_bucket", "_sum", "_count"], Some("le")),
            FamilyKind::Summary => (&["", "_sum", "_count"], Some("quantile")),
            _ => (&[""], None),
        };
        let part = *sample.part.get(parts);
        let name = format!("{}{part}", family.name);
        let value =
            if bound == Some("le") && part != "_sum" && sample.value < 0.0 { -sample.value } else { sample.value };
        let mut labels = sample.labels.clone();
        labels.extend(bound.map(|name| (name.to_owned(), sample.bound.to_string())));

        self.blank();
        self.put(&name);
        if labels.is_empty() {
            self.text.push(' ');
        } else {
            self.put("{");
            for (i, (name, value)) in labels.iter().enumerate() {
                self.put(name);
                self.put("=");
                self.put(&format!("\"{}\"", escaped(value)));
                if i + 1 < labels.len() || value.len() % 2 == 0 {
                    self.put(",");
                }
            }
            self.put("}");
        }
        self.text.push_str(&if value.fract() == 0.0 { value.to_string() } else { format!("{value:E}") });
        if let Some(timestamp_ms) = sample.timestamp_ms {
            self.text.push('\t');
            self.blank();
            self.text.push_str(&timestamp_ms.to_string());
        }
        self.text.push('\n');
        self.events.push(Event::Sample { name, labels, bits: value.to_bits(), timestamp_ms: sample.timestamp_ms });
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn written(families: &[Family], samples: &[Sample], blanks: &[&'static str]) -> (String, Vec<Event>) {
    let mut writer = Writer { text: String::new(), events: Vec::new(), blanks: blanks.iter().cycle() };
    let mut declared = Vec::new();
    let mut last = None;
    for sample in samples {
        let at = sample.family.index(families.len());
        let Some(family) = families.get(at) else { continue };
        if !declared.contains(&at) {
            declared.push(at);
            writer.declare(family);
        }
        if last != Some(at) {
            last = Some(at);
            writer.events.push(Event::Family(family.name.clone(), family.kind));
        }
        writer.sample(family, sample);
    }
    (writer.text, writer.events)
}

fn texts() -> impl Strategy<Value = (String, Vec<Event>)> {
    let blanks = vec(select(vec!["", " ", "\t", "  \t"]), 1..9);
    (families(), vec(sample(), 0..12), blanks)
        .prop_map(|(families, samples, blanks)| written(&families, &samples, &blanks))
}

/// What holds for every refusal.
fn check_refusal(text: &[u8], error: &TextError<Enough>) -> Result<(), TestCaseError> {
    let lines = text.iter().filter(|&&byte| byte == b'\n').count() + 1;
    prop_assert!((1..=lines).contains(&error.line()), "{error} of {lines}");
    let words = error.to_string();
    prop_assert!(words.len() <= 400 && !words.contains(char::is_control), "{words:?}");
    Ok(())
}

proptest! {
    #[test]
    fn reads_back_what_was_written((text, events) in texts()) {
        prop_assert_eq!(record(text.as_bytes()), Ok(events), "{}", text);
    }

    #[test]
    fn a_cut_inside_a_line_is_refused((text, _) in texts(), at in any::<Index>()) {
        let cut = text.as_bytes().get(..at.index(text.len() + 1)).unwrap_or_default();
        let last_line = cut.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        let ends_in_line = last_line.iter().any(|byte| !matches!(byte, b' ' | b'\t'));
        match record(cut) {
            Ok(_) => prop_assert!(!ends_in_line),
            Err(error) => {
                prop_assert!(ends_in_line);
                check_refusal(cut, &error)?;
            }
        }
    }

    #[test]
    fn changed_bytes_never_panic(
        (text, _) in texts(),
        changes in vec((any::<Index>(), select(b" \t\n\r\"\\{}=,#_1e\0\xc3".to_vec())), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes.splice(at..=at, [byte]);
            }
        }
        if let Err(error) = record(&bytes) {
            check_refusal(&bytes, &error)?;
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..200),
        tokens in "([xy_:]|[{}=,\"\\\\# \t\n\r]|# TYPE |# HELP |[01.eE+-]|\\PC){0,60}",
    ) {
        for text in [bytes, tokens.into_bytes()] {
            if let Err(error) = record(&text) {
                check_refusal(&text, &error)?;
            }
        }
    }
}
