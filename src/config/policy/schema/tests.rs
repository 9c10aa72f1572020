use std::{
    cell::Cell,
    collections::BTreeMap,
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use infogw_layers::enforce::selector::Selector;
use jsonschema::Validator;
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{Index, select},
    string::string_regex,
    test_runner::{Config, TestRunner},
};
use schemars::{generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};

use super::{
    super::{
        document::{
            ById, ClusterLabelCheckMode, Document, Override, Overrides, Receive, ReceiveLimits, Tenant, Tenants,
            Upload, UploadLimits,
        },
        tests::{FAULTS, read},
        values::{
            At, Denied, ExemptFrom, Id, Interval, LabelName, Labels, Moment, Rate, Rule, SeriesLimit, SizeLimit,
            TenantName, WritesFor,
        },
        yaml,
    },
    *,
};

fn schema() -> Value {
    // Ranges say it, and some validators know no format called `uint32`.
    let without_formats = RecursiveTransform(|schema: &mut Schema| drop(schema.remove("format")));
    let generator = SchemaSettings::draft07().with_transform(without_formats).into_generator();
    let mut schema = generator.into_root_schema_for::<Document>();
    let repository = env!("CARGO_PKG_REPOSITORY").replace("github.com", "raw.githubusercontent.com");
    schema.insert("$id".to_owned(), json!(format!("{repository}/main/src/config/policy/policy.schema.json")));
    schema.insert("title".to_owned(), json!("Policy of infogw-proxy"));
    schema.into()
}

fn validator() -> Validator {
    jsonschema::validator_for(&serde_json::from_str(POLICY_SCHEMA).unwrap()).unwrap()
}

/// `UPDATE_SCHEMA=1` writes it anew.
#[test]
fn the_schema_that_ships_is_that_of_the_code() {
    let schema = format!("{:#}\n", schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/policy/policy.schema.json");
        std::fs::write(path, &schema).unwrap();
    }
    assert!(POLICY_SCHEMA == schema, "run this test with UPDATE_SCHEMA=1 and build again");
    assert!(jsonschema::draft7::meta::is_valid(&serde_json::from_str(&schema).unwrap()));
}

#[test]
fn the_example_is_what_both_take() {
    assert!(validator().is_valid(&serde_saphyr::from_str::<Value>(POLICY_EXAMPLE).unwrap()));
    read(POLICY_EXAMPLE).unwrap();
    let id = serde_json::from_str::<Value>(POLICY_SCHEMA).unwrap()["$id"].as_str().unwrap().to_owned();
    assert!(POLICY_EXAMPLE.starts_with(&format!("# yaml-language-server: $schema={id}\n")));
}

/// What no schema can say.
const BEYOND: &[&str] = &["`up{`: ", "is the --partition-label"];

#[test]
fn what_the_code_refuses_for_its_shape_the_schema_refuses() {
    let (validator, mut refused) = (validator(), 0);
    for (text, told) in FAULTS {
        // What is no YAML, an editor tells without a schema.
        let Ok(value) = serde_saphyr::from_str::<Value>(text) else { continue };
        let beyond = BEYOND.iter().any(|kind| told.contains(kind));
        assert_eq!(validator.is_valid(&value), beyond, "{text}: {told}");
        refused += usize::from(!beyond);
    }
    assert!(refused > 20, "{refused}");
}

/// Scalars that YAML takes for something else than text are what they look like; an editor takes the commonest.
#[test]
fn names_that_look_like_numbers_are_names() {
    let text = "
upload: {set: {version: 1.10, on: true}}
tenants: {accounts: {0123: '1_000'}, clusters: {c1: {header: 012, url: 1e3}}}
overrides:
  accounts: {1234: {}, 0x1F: {}}
  clusters: {1e3: {writes_for: [00, 1234, 1.0]}, true: {}}
";
    let document = read(text).unwrap().file;
    let shown = serde_json::to_value(&document).unwrap();
    let expected = json!({
        "upload": { "set": { "version": "1.10", "on": "true" } },
        "tenants": {
            "accounts": { "0123": "1_000" },
            "clusters": { "c1": { "header": "012", "url": "1e3" } },
        },
        "overrides": {
            "accounts": { "1234": {}, "0x1F": {} },
            "clusters": { "1e3": { "writes_for": ["00", "1234", "1.0"] }, "true": {} },
        },
    });
    assert_eq!(shown, expected);
    for text in ["upload: {set: {version: 1.10, a: true}}", "overrides: {clusters: {1: {writes_for: [2]}}}"] {
        assert!(validator().is_valid(&serde_saphyr::from_str::<Value>(text).unwrap()), "{text}");
    }
}

/// Each document can be written out, is what the schema takes, and reads back as it was.
#[test]
fn documents_are_read_as_they_are_written() {
    let validator = validator();
    proptest!(Config::with_cases(400), |(document in document())| {
        let value = serde_json::to_value(&document).unwrap();
        let refused: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        prop_assert!(refused.is_empty(), "{refused:?}");
        for text in [written(&document), value.to_string()] {
            let read = yaml::read(&text);
            prop_assert_eq!(read.as_ref(), Ok(&document), "{}", text);
        }
    });
}

fn written(document: &Document) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(document, options).unwrap()
}

/// What the code alone refuses.
const ALONE: &[&str] = &[
    // A label that only the flags know.
    "is the --partition-label",
    // `5.0` is a whole number to the schema.
    "invalid u32",
    // More than can be.
    "is not a duration",
    "takes centuries",
    "an id is 1 to 256 bytes",
    "a reason has 1 to 512 bytes",
    "is not a moment in UTC",
];

/// What is changed at random, and the schema still takes, the code takes.
#[test]
fn what_the_schema_takes_the_code_takes() {
    let (validator, taken, refused) = (validator(), Cell::new(0), Cell::new(0));
    let mutated = (document(), any::<Index>(), mutation());
    let mut runner = TestRunner::new(Config::with_cases(2000));
    let run = runner.run(&mutated, |(document, at, mutation)| {
        let mut value = serde_json::to_value(&document).unwrap();
        let mut paths = Vec::new();
        every_path(&value, String::new(), &mut paths);
        mutate(value.pointer_mut(at.get::<String>(&paths)).unwrap(), &mutation);
        let outcome = read(&value.to_string());
        if validator.is_valid(&value) {
            taken.set(taken.get() + 1);
            if let Err(error) = outcome {
                let alone = ALONE.iter().any(|kind| error.contains(kind)) || has_a_wrong_selector(&value);
                prop_assert!(alone, "{error}\n{value}");
            }
        } else {
            refused.set(refused.get() + 1);
        }
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    assert!(taken.get() > 200 && refused.get() > 200, "taken {taken:?}, refused {refused:?}");
}

fn has_a_wrong_selector(value: &Value) -> bool {
    let mut paths = Vec::new();
    every_path(value, String::new(), &mut paths);
    let rules =
        paths.iter().filter(|path| path.contains("/allowlist/")).filter_map(|path| value.pointer(path)?.as_str());
    rules.map(str::parse::<Selector>).any(|rule| rule.is_err())
}

#[derive(Debug, Clone)]
enum Mutation {
    Replace(Value),
    Add(String, Value),
    Remove(Index),
    Rename(Index, String),
    Wrap,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => json_value().prop_map(Mutation::Replace),
        1 => (key(), json_value()).prop_map(|(key, value)| Mutation::Add(key, value)),
        2 => any::<Index>().prop_map(Mutation::Remove),
        1 => (any::<Index>(), key()).prop_map(|(index, key)| Mutation::Rename(index, key)),
        1 => Just(Mutation::Wrap),
    ]
}

fn key() -> impl Strategy<Value = String> {
    let known =
        select(vec!["upload", "limits", "samples", "burst", "url", "until", "denied", "c1", "a b", "", "*", "1"]);
    known.prop_map(str::to_owned)
}

fn json_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        select(vec![json!(null), json!(true), json!(false), json!({}), json!([]), json!([""]), json!({"a": 1})]),
        select(vec![
            json!(0),
            json!(1),
            json!(-1),
            json!(5.0),
            json!(0.5),
            json!(1e30),
            json!(u64::MAX),
            json!(u32::MAX)
        ]),
        select(vec![
            "",
            "*",
            "up",
            "up{",
            "_id",
            "0",
            "1m",
            "1x",
            "enforce",
            "rates",
            "2026-12-01T00:00:00Z",
            "1969-12-31T23:59:59Z"
        ])
        .prop_map(Value::from),
        select(vec!["9999999h", "2026-02-30T00:00:00Z", "2026-12-01T00:00:60Z", "a\nb", "ü", "0x10", "null"])
            .prop_map(Value::from),
        text(0).prop_map(Value::from),
        (250..520usize).prop_map(|length| Value::from("ü".repeat(length))),
    ]
}

fn every_path(value: &Value, path: String, paths: &mut Vec<String>) {
    let mut below = |key: &str, value| {
        every_path(value, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), paths);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value)),
        _ => {}
    }
    paths.push(path);
}

fn mutate(value: &mut Value, mutation: &Mutation) {
    let nth = |map: &Map<String, Value>, index: &Index| map.keys().nth(index.index(map.len())).cloned().unwrap();
    match (mutation, value) {
        (Mutation::Replace(with), value) => *value = with.clone(),
        (Mutation::Add(key, added), Value::Object(map)) => drop(map.insert(key.clone(), added.clone())),
        (Mutation::Add(_, added), Value::Array(list)) => list.push(added.clone()),
        (Mutation::Remove(index), Value::Object(map)) if !map.is_empty() => drop(map.remove(&nth(map, index))),
        (Mutation::Remove(index), Value::Array(list)) if !list.is_empty() => drop(list.remove(index.index(list.len()))),
        (Mutation::Rename(index, key), Value::Object(map)) if !map.is_empty() => {
            let value = map.remove(&nth(map, index)).unwrap();
            map.insert(key.clone(), value);
        }
        (_, value) => *value = json!([value.take()]),
    }
}

/// Text, some of which YAML takes for something else.
fn text(shortest: usize) -> BoxedStrategy<String> {
    let odd = [
        "yes",
        "no",
        "null",
        "~",
        "true",
        "0x10",
        "007",
        "1_000",
        "1e3",
        "1.10",
        ".inf",
        "- a",
        "a: b",
        "# c",
        "a #b",
        "*",
        "&a",
        "!t",
        "%d",
        "@e",
        "`f",
        "{",
        "[",
        "'",
        "\"",
        " g ",
        "h,",
        "<<",
        "=",
        "?",
        "|",
        ">",
        "2026-12-01",
        "12:30:45",
        "\\n",
        "ü€😀",
    ];
    prop_oneof![
        select(odd.to_vec()).prop_map(str::to_owned),
        string_regex(&format!("\\PC{{{shortest},12}}")).unwrap(),
        "[ -~]{1,80}"
    ]
    .boxed()
}

fn label_name() -> impl Strategy<Value = LabelName> {
    prop_oneof!["[a-zA-Z_][a-zA-Z0-9_]{0,8}", select(vec!["yes", "null", "n"]).prop_map(str::to_owned)]
        .prop_filter("the cluster's", |name| name != "_id")
        .prop_map(|name| LabelName(name.into()))
}

fn at<T: Clone + std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = At<T>> {
    value.prop_map(|value| At::flag("", value))
}

fn labels(shortest: usize) -> impl Strategy<Value = Option<At<Labels>>> {
    option::of(at(btree_map(label_name(), text(shortest), 0..3).prop_map(Labels::from_iter)))
}

fn rules() -> impl Strategy<Value = Option<At<Vec<At<Rule>>>>> {
    let rules = ["up", "{__name__=~\"cluster:.*\"}", "{__name__=\"a b\",c!=\"\\n#\"}", "errors{code!~\"5..|\"}", "a:b"];
    let rule = select(rules.to_vec()).prop_map(|rule| Rule(rule.parse().unwrap()));
    option::of(at(vec(at(rule), 1..4)))
}

fn elide() -> impl Strategy<Value = Option<Vec<At<LabelName>>>> {
    option::of(vec(at(label_name()), 0..3))
}

fn size() -> impl Strategy<Value = Option<SizeLimit>> {
    option::of(any::<u32>().prop_map(SizeLimit))
}

fn series() -> impl Strategy<Value = Option<SeriesLimit>> {
    option::of((0..=4_194_304u32).prop_map(SeriesLimit))
}

fn rate<const LEAST: u32>() -> impl Strategy<Value = Option<Rate<LEAST>>> {
    let per_second = prop_oneof![select(vec![0.0, 0.1, 1.0 / 3.0, 5.0, 1e-4, 1e9]), 1e-3..1e9f64];
    option::of(
        (per_second, option::of(1..1000u32))
            .prop_map(|(per_second, burst)| Rate::new(per_second, burst.and_then(NonZeroU32::new)).unwrap()),
    )
}

fn upload() -> BoxedStrategy<Upload> {
    let interval = (0..40_000_000u64, 0..1000u64).prop_map(|(s, ms)| Interval(Duration::from_millis(s * 1000 + ms)));
    let interval = option::of(prop_oneof![interval, (0..100_000u64).prop_map(|s| Interval(Duration::from_secs(s)))]);
    let limits = (interval, size(), series(), size(), size(), size(), size()).prop_map(
        |(interval, decoded_bytes, series, samples, labels, label_name_bytes, label_value_bytes)| UploadLimits {
            interval,
            decoded_bytes,
            series,
            samples,
            labels,
            label_name_bytes,
            label_value_bytes,
        },
    );
    (rules(), elide(), labels(0), labels(1), option::of(limits))
        .prop_map(|(allowlist, elide, set, require, limits)| Upload { allowlist, elide, set, require, limits })
        .boxed()
}

fn receive() -> BoxedStrategy<Receive> {
    use ClusterLabelCheckMode::{Count, Enforce, Off};
    let limits = (rate(), rate(), size(), size(), series(), size(), size(), size(), size()).prop_map(
        |(request_rate, sample_rate, body_bytes, decoded_bytes, series, samples, labels, name, value)| ReceiveLimits {
            request_rate,
            sample_rate,
            body_bytes,
            decoded_bytes,
            series,
            samples,
            labels,
            label_name_bytes: name,
            label_value_bytes: value,
        },
    );
    let check = option::of(at(select(vec![Enforce, Count, Off])));
    (rules(), elide(), labels(0), labels(1), check, option::of(limits))
        .prop_map(|(allowlist, elide, set, require, cluster_label_check, limits)| Receive {
            allowlist,
            elide,
            set,
            require,
            cluster_label_check,
            limits,
        })
        .boxed()
}

fn id() -> BoxedStrategy<Box<str>> {
    text(1).prop_filter("none", |id| !id.chars().any(char::is_control)).prop_map(Into::into).boxed()
}

fn by_id<V: std::fmt::Debug>(value: impl Strategy<Value = V>) -> impl Strategy<Value = Option<ById<V>>> {
    // YAML compares keys that are numbers by their value.
    let distinct = |entries: &BTreeMap<Box<str>, V>| {
        let mut numbers: Vec<_> = entries.keys().filter_map(|id| number(id)).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len() == all
    };
    option::of(btree_map(id(), value, 0..4).prop_filter("the same number", distinct).prop_map(ById::of))
}

fn number(id: &str) -> Option<u64> {
    serde_saphyr::from_str(id).ok()
}

fn tenant() -> BoxedStrategy<Tenant> {
    let name = || {
        prop_oneof![
            "[!-~]|[!-~][ -~]{0,10}[!-~]",
            select(vec!["007", "1234", "1_000", "0x10", "1e3", "null", "yes"]).prop_map(str::to_owned)
        ]
        .prop_map(|name| TenantName::new(&name).unwrap())
    };
    prop_oneof![name().prop_map(Tenant::named), (name(), name()).prop_map(|(header, url)| Tenant { header, url })]
        .boxed()
}

fn overridden() -> BoxedStrategy<Override> {
    let moment = (0..253_402_300_799u64, 0..1_000_000_000u32)
        .prop_map(|(s, ns)| Moment(SystemTime::UNIX_EPOCH + Duration::new(s, ns)));
    let reason = text(1).prop_filter("one line", |text| !text.contains(char::is_control));
    let because = (reason, option::of(moment));
    let denied = option::of(prop_oneof![
        Just(Denied::No),
        because.prop_map(|(reason, until)| Denied::Because { reason: reason.into(), until })
    ]);
    let exempt = vec(select(vec![ExemptFrom::Rates, ExemptFrom::Sizes, ExemptFrom::Allowlist]), 0..3);
    let clusters = vec(id().prop_filter("any", |id| &**id != "*").prop_map(|id| Id(id.into())), 0..3);
    let writes_for = option::of(prop_oneof![Just(WritesFor::Any), clusters.prop_map(WritesFor::Clusters)]);
    (option::of(upload()), option::of(receive()), option::of(exempt), denied, writes_for)
        .prop_map(|(upload, receive, exempt, denied, writes_for)| Override {
            upload: upload.map(Box::new),
            receive: receive.map(Box::new),
            exempt,
            denied,
            writes_for,
        })
        .boxed()
}

fn document() -> BoxedStrategy<Document> {
    let placed = || option::of(tenant().prop_map(|value| At::flag("", value)));
    let tenants = (placed(), placed(), by_id(tenant()), by_id(tenant()))
        .prop_map(|(upload, receive, accounts, clusters)| Tenants { upload, receive, accounts, clusters });
    let overrides =
        (by_id(overridden()), by_id(overridden())).prop_map(|(accounts, clusters)| Overrides { accounts, clusters });
    (option::of(upload()), option::of(receive()), option::of(tenants), option::of(overrides))
        .prop_map(|(upload, receive, tenants, overrides)| Document { upload, receive, tenants, overrides })
        .boxed()
}
