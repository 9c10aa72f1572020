use std::{fs, sync::Arc};

use infogw_layers::{
    authorize::{ClusterId, Identity},
    policy::{Endpoint, Terms},
};
use tempfile::TempDir;

use super::{PolicyFlags, PolicySources, ReadPolicy, Subject, Upstream};

fn subject(url: &str) -> Subject {
    Subject {
        partition_label: "_id".to_owned(),
        receive_label: "_id".to_owned(),
        receive_label_flag: "--partition-label",
        upstream: Upstream::new("--forward-url", url).unwrap(),
    }
}

/// What flags and a policy file of this text say together; the error without the file's path.
fn read_with(flags: PolicyFlags, url: &str, text: &str) -> Result<ReadPolicy, String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("policy.yaml");
    fs::write(&path, text).unwrap();
    let flags = PolicyFlags { policy: Some(path.to_str().unwrap().to_owned()), ..flags };
    let sources = PolicySources::new(flags, subject(url)).map_err(|error| error.to_string())?;
    sources.read().map_err(|error| error.to_string().replace(path.to_str().unwrap(), "policy.yaml"))
}

pub(super) fn read(text: &str) -> Result<ReadPolicy, String> {
    read_with(PolicyFlags::default(), "http://localhost/receive", text)
}

fn terms(policy: &ReadPolicy, endpoint: Endpoint, cluster: &str, account: Option<&str>) -> Arc<Terms> {
    let identity = Identity { account: account.map(Arc::from), ..Identity::of(ClusterId::new(cluster).unwrap()) };
    policy.policy.terms(endpoint, &identity)
}

/// What is wrong with a file, and what is told of it.
pub(super) const FAULTS: &[(&str, &str)] = &[
    ("", "policy.yaml:1:1: the policy file is empty"),
    ("# nothing\n", "policy.yaml:1:1: the policy file is empty"),
    ("upload: [", "policy.yaml:1:9: "),
    ("upload:\n  allowlist: [up\n", "policy.yaml:"),
    ("upload:\n\tlimits: {}\n", "policy.yaml:2:2: tabs"),
    ("uploads: {}", "policy.yaml:1:1: unknown field `uploads`"),
    ("upload:\n  limits:\n    request_rate: {per_second: 1}\n", "policy.yaml:3:5: unknown field `request_rate`"),
    ("upload: {}\nupload: {}\n", "policy.yaml:2:1: duplicate"),
    ("overrides:\n  clusters:\n    c1: {}\n    \"c1\": {}\n", "policy.yaml:4:5: duplicate"),
    ("overrides:\n  accounts:\n    b: {}\n    a: {}\n    b: {exempt: [rates]}\n", "policy.yaml:5:5: duplicate"),
    ("tenants:\n  clusters:\n    c1: a\n    c1: a\n", "policy.yaml:4:5: duplicate"),
    ("tenants:\n  upload: {header: a, url: b, header: c}\n", "policy.yaml:2:31: duplicate"),
    ("receive:\n  set: {a: x, b: y, a: x}\n", "policy.yaml:2:21: duplicate"),
    ("upload:\n  require: {a: x, \"a\": y}\n", "policy.yaml:2:19: duplicate"),
    ("overrides:\n  clusters:\n    c1: {exempt: [rates], exempt: []}\n", "policy.yaml:3:27: duplicate"),
    ("overrides:\n  clusters:\n    c1: {denied: {reason: a, reason: b}}\n", "policy.yaml:3:30: duplicate"),
    ("receive:\n  limits:\n    sample_rate: {per_second: 1, per_second: 1}\n", "policy.yaml:3:34: duplicate"),
    ("upload:\n  allowlist:\n    - up\n    - up{\n", "policy.yaml:4:7: `up{`: "),
    ("upload:\n  allowlist: []\n", "policy.yaml:2:14: an allowlist without a rule"),
    ("upload:\n  allowlist: up\n", "policy.yaml:2:14: "),
    ("upload:\n  elide: [a-b]\n", "policy.yaml:2:11: `a-b` is not a label name"),
    ("upload:\n  elide: [a, _id]\n", "policy.yaml:2:14: `_id` is the --partition-label"),
    ("receive:\n  set: {_id: c1}\n", "policy.yaml:2:8: `_id` is the --partition-label"),
    ("receive:\n  set: {a b: c1}\n", "policy.yaml:2:9: `a b` is not a label name"),
    ("upload:\n  require: {_id: c1}\n", "policy.yaml:2:12: `_id` is the --partition-label"),
    ("upload:\n  require: {env: \"\"}\n", "policy.yaml:2:12: `env` has no value"),
    ("receive:\n  cluster_label_check: of\n", "policy.yaml:2:24: unknown variant `of`"),
    ("upload:\n  limits: {interval: 5}\n", "policy.yaml:2:22: `5` is not a duration"),
    ("upload:\n  limits: {series: -1}\n", "policy.yaml:2:20: "),
    ("upload:\n  limits: {series: 4194305}\n", "policy.yaml:2:20: at most 4194304 series"),
    ("upload:\n  limits: {labels: 1.5}\n", "policy.yaml:2:20: "),
    ("receive:\n  limits:\n    sample_rate: {per_second: -1}\n", "policy.yaml:3:18: -1 a second is not from 0 to"),
    ("receive:\n  limits:\n    sample_rate: {per_second: .nan}\n", "policy.yaml:3:18: NaN a second is not from 0 to"),
    ("receive:\n  limits:\n    sample_rate: {burst: 1}\n", "policy.yaml:3:19: missing field `per_second`"),
    (
        "receive:\n  limits:\n    sample_rate: {per_second: 1, burst: 0}\n",
        "policy.yaml:3:34: invalid value: integer `0`",
    ),
    ("tenants:\n  upload: {header: a}\n", "policy.yaml:2:12: missing field `url`"),
    ("tenants:\n  clusters:\n    c1: \"a\\nb\"\n", "policy.yaml:3:9: `a\\nb` cannot name a tenant"),
    ("overrides:\n  clusters:\n    \"\": {}\n", "policy.yaml:3:5: an id is 1 to 256 bytes"),
    ("overrides:\n  clusters:\n    c1: {denied: true}\n", "policy.yaml:3:18: say why"),
    ("overrides:\n  clusters:\n    c1: {denied: \"\"}\n", "policy.yaml:3:18: a reason has 1 to 512 bytes"),
    ("overrides:\n  clusters:\n    c1: {denied: {reason: x, until: May}}\n", "policy.yaml:3:37: `May` is not a moment"),
    ("overrides:\n  clusters:\n    c1: {exempt: [rate]}\n", "policy.yaml:3:19: unknown variant `rate`"),
    ("overrides:\n  clusters:\n    c1: {writes_for: [\"*\", h1]}\n", "policy.yaml:3:22: `*` is any cluster"),
    (
        "overrides:\n  accounts:\n    a1: {receive: {elide: [_id]}}\n",
        "policy.yaml:3:28: `_id` is the --partition-label",
    ),
    ("overrides:\n  clusters:\n    c1: {denied: \"a\\nb\"}\n", "policy.yaml:3:18: a reason is one line"),
    ("a: &a [x, x]\nb: *a\n", "policy.yaml:1:1: unknown field `a`"),
];

/// Every kind of fault is told with its line and column, and with what to change.
#[test]
fn faults_are_told_where_they_stand() {
    let mut wrong = Vec::new();
    for (text, told) in FAULTS {
        let error = read(text).err().unwrap_or_default();
        if !error.starts_with(told) || error.contains('\n') {
            wrong.push(format!("{text:?}:\n  {error}\n  {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let url = "http://localhost/{tenant}/receive";
    for (text, told) in [
        ("{}", "--forward-url has `{tenant}`"),
        ("tenants:\n  receive: a\n  clusters: {c0: b, c1: ..}\n", "policy.yaml:3:21: tenant `..`"),
        ("tenants: {receive: ..}\n", "policy.yaml:1:20: tenant `..`"),
    ] {
        let error = read_with(PolicyFlags::default(), url, text).unwrap_err();
        assert!(error.starts_with(told), "{error}");
    }
}

/// Default, flag, file, account, cluster: whoever says it last in this row.
#[test]
fn the_most_specific_word_counts() {
    let flags = |labels: &str| PolicyFlags { limit_labels: Some(labels.to_owned()), ..PolicyFlags::default() };
    let file = "receive: {limits: {labels: 3}}\n";
    let account = "overrides:\n  accounts:\n    a1: {receive: {limits: {labels: 4}}}\n";
    let cluster = "  clusters:\n    c1: {receive: {limits: {labels: 5, series: 7}}}\n";
    let labels = |flags, text: &str, cluster, account| {
        let policy = read_with(flags, "http://localhost/receive", text).unwrap();
        terms(&policy, Endpoint::Receive, cluster, account).limits.labels
    };
    let all = [file, account, cluster].concat();
    assert_eq!(labels(flags(""), "{}", "c1", None), 128);
    assert_eq!(labels(flags("2"), "{}", "c1", None), 2);
    assert_eq!(labels(flags("2"), file, "c1", Some("a1")), 3);
    assert_eq!(labels(flags("2"), &[file, account].concat(), "c1", Some("a1")), 4);
    assert_eq!(labels(flags("2"), &all, "c1", Some("a1")), 5);
    assert_eq!(labels(flags("2"), &all, "c2", Some("a1")), 4);
    assert_eq!(labels(flags("2"), &all, "c2", Some("a2")), 3);
    // What the cluster's override does not say its account's does.
    let policy = read_with(flags("2"), "http://localhost/receive", &all).unwrap();
    let both = terms(&policy, Endpoint::Receive, "c1", Some("a1"));
    assert_eq!((both.limits.labels, both.limits.series, both.limits.decoded), (5, 7, 16 << 20));
    assert_eq!(terms(&policy, Endpoint::Upload, "c1", Some("a1")).limits.labels, 2, "nothing is said of uploads");
}

#[test]
fn a_hash_is_of_what_is_said_and_not_of_how_or_where() {
    let hash = |flags: &[&str], text: &str| {
        let whitelist = flags.iter().map(|&rule| rule.to_owned()).collect();
        let flags = PolicyFlags { whitelist, ..PolicyFlags::default() };
        read_with(flags, "http://localhost/receive", text).unwrap().hash
    };
    let rules = "upload: {allowlist: [up]}\nreceive: {allowlist: [up]}";
    let same = hash(&[], rules);
    assert_eq!(same.len(), 16);
    assert_eq!(hash(&["up"], "{}"), same, "a flag");
    assert_eq!(hash(&["down"], rules), same, "a flag that the file goes over");
    assert_eq!(
        hash(&[], "# rules\nreceive:\n  allowlist:\n  - '{__name__=\"up\"}'\nupload: {allowlist: [up]}\n"),
        same
    );
    assert_ne!(hash(&[], "upload: {allowlist: [up]}\nreceive: {allowlist: [up, down]}"), same);
    assert_ne!(hash(&[], &format!("{rules}\noverrides: {{clusters: {{c1: {{denied: x}}}}}}")), same);
    let clusters = |one: &str, other: &str| hash(&[], &format!("overrides: {{clusters: {{{one}, {other}}}}}"));
    let (c1, c2) = ("c1: {denied: x}", "c2: {exempt: [rates]}");
    assert_eq!(clusters(c1, c2), clusters(c2, c1));
}

#[test]
fn overrides_and_tenants_of_one_id_are_one_exception() {
    let text = "
tenants: {clusters: {a: gold, c: gold, e: silver}}
overrides: {clusters: {b: {denied: x}, c: {denied: x}, d: {denied: x}}}
";
    let policy = read(text).unwrap();
    assert_eq!(policy.overrides(), 5);
    let found = |cluster| {
        let terms = terms(&policy, Endpoint::Receive, cluster, None);
        (!terms.denials.is_empty(), terms.tenant.as_ref().map(|tenant| tenant.header.to_str().unwrap().to_owned()))
    };
    let (gold, silver) = (Some("gold".to_owned()), Some("silver".to_owned()));
    for (cluster, expected) in [
        ("a", (false, gold.clone())),
        ("b", (true, None)),
        ("c", (true, gold)),
        ("d", (true, None)),
        ("e", (false, silver)),
        ("f", (false, None)),
    ] {
        assert_eq!(found(cluster), expected, "{cluster}");
    }
}

/// Ids that YAML would take for numbers are ids.
#[test]
fn ids_are_text() {
    let policy =
        read("overrides: {accounts: {1234: {denied: x}, 0x10: {denied: x}, 1e3: {denied: x}, true: {denied: x}}}")
            .unwrap();
    for account in ["1234", "0x10", "1e3", "true"] {
        assert!(terms(&policy, Endpoint::Receive, "c1", Some(account)).denials.len() == 1, "{account}");
    }
    // A tenant in other spelling would be another one.
    for number in ["1234", "007", "0x10", "1e3", "true"] {
        let error = read(&format!("tenants: {{receive: {number}}}")).unwrap_err();
        assert!(error.contains("in quotes, if it looks like a number"), "{error}");
        assert!(read(&format!("tenants: {{receive: '{number}'}}")).is_ok());
    }
}

/// What the README shows is a policy.
#[test]
fn the_readme_shows_a_policy() {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("\n## Policy\n").unwrap();
    let (_, block) = section.split_once("```yaml\n").unwrap();
    let (text, _) = block.split_once("```").unwrap();
    let policy = read_with(PolicyFlags::default(), "http://localhost/{tenant}/receive", text).unwrap();
    assert_eq!((policy.overrides(), policy.rules()), (5, [0, 2]));
}

/// A tier that is written once, and named by many.
#[test]
fn anchors_may_be_used_by_many() {
    use std::fmt::Write as _;
    let mut text = "overrides:\n  clusters:\n    c: &tier {receive: {allowlist: [a, b, c, d, e, f, g, h], limits: {series: 5, samples: 6}}}\n".to_owned();
    for n in 0..60_000 {
        writeln!(text, "    c{n}: *tier").unwrap();
    }
    let policy = read(&text).unwrap();
    assert_eq!(policy.overrides(), 60_001);
    assert_eq!(terms(&policy, Endpoint::Receive, "c59999", None).limits.series, 5);
}
