//! `infogw-proxy check`: what it prints is what a gateway goes by, and what it warns of is so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use clap::{Args, Command as Clap};
use infogw_proxy::config::Flags;
use serde_json::{Value, json};
use support::{
    Gateway,
    process::{self, Exit},
};
use tempfile::TempDir;

/// What there must be.
const LEAST: [&str; 2] = ["--insecure-accept-any-token", "--forward-url=http://localhost:1/receive"];

/// Files for one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(TempDir::new().unwrap())
    }

    /// The path of a file with this text.
    fn with(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

async fn check<S: AsRef<str>>(args: &[S]) -> Exit {
    let mut command = Gateway::command();
    command.arg("check").args(args.iter().map(AsRef::as_ref));
    process::run(command, b"").await
}

fn args(more: &[&str]) -> Vec<String> {
    LEAST.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
}

/// The configuration that is printed with these flags.
async fn printed(more: &[&str]) -> Value {
    let exit = check(&args(more)).await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    serde_saphyr::from_str(&exit.stdout).unwrap()
}

/// The warnings for a policy file with this text, as `policy.yaml`, without those of every gateway without keys.
async fn warnings(text: &str, more: &[&str]) -> Vec<String> {
    warnings_with(text, &[&LEAST, more].concat()).await
}

async fn warnings_with(text: &str, flags: &[&str]) -> Vec<String> {
    let files = Files::new();
    let path = files.with("policy.yaml", text);
    let exit = check(&[&[format!("--policy={path}").as_str()], flags].concat()).await;
    assert_eq!(exit.code(), 0, "{exit:?}");
    let lines =
        exit.stderr.lines().map(|line| line.strip_prefix("warning: ").expect(line).replace(&path, "policy.yaml"));
    lines.filter(|line| !line.starts_with("--insecure-accept") && !line.starts_with("no --shared-key")).collect()
}

#[tokio::test]
async fn every_flag_is_printed_with_its_value_or_its_default() {
    let flags = printed(&[]).await["flags"].clone();
    let flags = flags.as_object().unwrap();
    let arguments = Flags::augment_args(Clap::new("")).get_arguments().cloned().collect::<Vec<_>>();
    assert_eq!(flags.len(), arguments.len(), "{flags:?}");
    for argument in arguments {
        let name = argument.get_long().unwrap();
        let value = flags.get(name).unwrap_or_else(|| panic!("no {name}"));
        let help = argument.get_help().unwrap().to_string().replace('\n', " ");
        let default = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(['.', ']']));
        let expected = match (name, default) {
            ("insecure-accept-any-token", None) => json!(true),
            ("verbose", None) => json!(false),
            ("forward-url", None) => json!("http://localhost:1/receive"),
            // What the default is, is told in words.
            ("client-info-subject-label", Some(_)) => json!("_id"),
            ("shared-key", Some(_)) => json!([]),
            ("limit-receive-requests-burst" | "limit-receive-samples-burst", Some(_)) => json!(null),
            ("receive-tenant-id", None) => json!(null),
            ("internal.tracing.service-name", None) => json!("telemeter-server"),
            (_, Some(default)) => serde_json::from_str(default).unwrap_or_else(|_| json!(default)),
            (_, None) if value.is_array() => json!([]),
            (_, None) => json!(null),
        };
        assert_eq!(*value, expected, "{name}");
    }

    let given = [
        "--listen=:1",
        "--listen=:2",
        "--listen-internal=",
        "--whitelist=up",
        "--whitelist=",
        "--whitelist={a=\"b\"}",
        "--limit-receive-samples-per-second=2000",
        "--limit-receive-requests-per-second=.5",
        "--label=a=b,c=d",
        "-v",
    ];
    let flags = &printed(&given).await["flags"];
    for (name, expected) in [
        ("listen", json!(":2")),
        ("listen-internal", json!("localhost:9004")),
        ("whitelist", json!(["up", "{a=\"b\"}"])),
        ("limit-receive-samples-per-second", json!(2000)),
        ("limit-receive-samples-burst", json!(20_000)),
        ("limit-receive-requests-per-second", json!(0.5)),
        ("limit-receive-requests-burst", json!(5)),
        ("label", json!(["a=b,c=d"])),
        ("verbose", json!(true)),
    ] {
        assert_eq!(flags[name], expected, "{name}");
    }
}

/// Who gives each flag the value that is shown as its default has the configuration of who gives none.
#[tokio::test]
async fn the_defaults_that_are_shown_are_those_in_force() {
    let default = printed(&[]).await;
    let given = default["flags"].as_object().unwrap().iter().filter_map(|(name, value)| match value {
        // What is nothing without another flag.
        _ if name.starts_with("redis-") || name.starts_with("limit-receive-requests-") => None,
        Value::String(text) => Some(format!("--{name}={text}")),
        Value::Number(number) => Some(format!("--{name}={number}")),
        _ => None,
    });
    let given: Vec<_> = given.collect();
    assert!(given.len() > 20, "{given:?}");
    let given: Vec<_> = given.iter().map(String::as_str).collect();
    let with_all = printed(&given).await;
    assert_eq!(with_all["policy"]["upload"], default["policy"]["upload"]);
    assert_eq!(with_all["policy"]["tenants"], default["policy"]["tenants"]);
    // A rate of 0 is a limit that is said: to be none.
    let mut receive = default["policy"]["receive"].clone();
    receive["limits"]["sample_rate"] = json!({ "per_second": 0.0 });
    assert_eq!(with_all["policy"]["receive"], receive);
}

const POLICY: &str = "
upload:
  allowlist: [up, '{__name__=~\"cluster:.+\"}']
  set: {version: 1.10, region: 'yes'}
  limits: {interval: 90s, samples: 5}
receive:
  require: {env: prod}
  limits: {sample_rate: {per_second: 0.3}, request_rate: {per_second: 0}}
tenants: {receive: '007', accounts: {1234: {header: a, url: \"b: c\"}}, clusters: {c1: '1_000'}}
overrides:
  accounts: {1234: {receive: {limits: {series: 7}}}}
  clusters:
    0x10: {denied: no, writes_for: [1, 'null']}
    c2: {denied: {reason: 'a # b', until: 2099-12-01T00:00:00.5Z}, exempt: [rates]}
";

#[tokio::test]
async fn the_printed_policy_is_a_policy_file_with_the_same_hash_and_a_gateway_shows_it() {
    let files = Files::new();
    let rules = files.with("rules.txt", "# rules\nup{job=\"a\"}\n");
    let policy = files.with("policy.yaml", POLICY);
    let with_flags = args(&[
        &format!("--policy={policy}"),
        &format!("--whitelist-file={rules}"),
        "--whitelist=x:y",
        "--elide-label=replica",
        "--required-label=env=a\tb",
        "--limit-bytes=0",
        "--tenant-id=a b",
        "--receive-label=x=~,y=",
    ]);
    let exit = check(&with_flags).await;
    let yaml: Value = serde_saphyr::from_str(&exit.stdout).unwrap();
    let json = check(&[with_flags.clone(), vec!["--output=json".to_owned()]].concat()).await;
    assert_eq!(serde_json::from_str::<Value>(&json.stdout).unwrap(), yaml);
    let hash = yaml["policy_hash"].as_str().unwrap();
    assert_eq!(yaml["policy"]["receive"]["allowlist"], json!(["x:y", "up{job=\"a\"}"]));
    assert_eq!(yaml["policy"]["upload"]["set"], json!({ "version": "1.10", "region": "yes" }));
    assert_eq!(yaml["policy"]["upload"]["limits"]["decoded_bytes"], 0);

    // As somebody would cut it out, and as JSON, which is YAML.
    let text: String =
        exit.stdout.lines().skip_while(|line| *line != "policy:").skip(1).map(|line| format!("{line}\n")).collect();
    let text = text.split("policy_hash:").next().unwrap();
    for text in [text, &yaml["policy"].to_string()] {
        let alone = printed(&[&format!("--policy={}", files.with("printed.yaml", text))]).await;
        assert_eq!((alone["policy_hash"].as_str(), &alone["policy"]), (Some(hash), &yaml["policy"]), "{text}");
    }

    let gateway = Gateway::start(&with_flags).await;
    assert_eq!(gateway.metric(&format!("infogw_policy_info{{hash=\"{hash}\"}}")).await, 1.0);
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let files = Files::new();
    let secret = files.with("secret", "hush");
    let ways: [&[&str]; 4] = [
        &["--oidc-issuer=https://i.example", "--client-id=me", "--client-secret=hush"],
        &["--oidc-issuer=https://i.example", "--client-id=me", &format!("--client-secret-file={secret}")],
        &[
            "--redis=redis://me:hu,sh@a:1/2,redis://me:hu,sh@b:1/2",
            "--redis-mode=sentinel",
            "--redis-sentinel-master=m",
            "--redis-sentinel-password=hush",
        ],
        &["--redis=redis+unix:///a?db=3&user=me&pass=hush"],
    ];
    let mut shown = Vec::new();
    for way in ways {
        for output in ["yaml", "json"] {
            let exit = check(&args(&[way, &["-o", output]].concat())).await;
            assert_eq!(exit.code(), 0, "{exit:?}");
            assert!(
                !exit.stdout.contains("hush") && !exit.stdout.contains("hu,sh") && !exit.stderr.contains("hush"),
                "{exit:?}"
            );
        }
        shown.push(printed(way).await["flags"].clone());
    }
    assert_eq!(shown[0]["client-secret"], "<hidden>");
    assert_eq!((&shown[1]["client-secret"], &shown[1]["client-secret-file"]), (&json!(null), &json!(secret)));
    assert_eq!(shown[2]["redis"], json!(["redis://me:<hidden>@a:1/2", "redis://me:<hidden>@b:1/2"]));
    assert_eq!(shown[2]["redis-sentinel-password"], "<hidden>");
    assert_eq!(shown[3]["redis"], json!(["redis+unix:///a?db=3&user=<hidden>&pass=<hidden>"]));

    let exit = check(&[
        "--forward-url=http://localhost:1/{tenant}/?token=hush&tenant={tenant}&hush&mixed={tenant}hush",
        "--receive-tenant-id=t",
        "--authorize=https://localhost:2/a?key=hush=",
    ])
    .await;
    assert!(exit.code() == 0 && !exit.stdout.contains("hush") && !exit.stderr.contains("hush"), "{exit:?}");
    let flags = serde_saphyr::from_str::<Value>(&exit.stdout).unwrap()["flags"].clone();
    let forward = "http://localhost:1/{tenant}/?token=<hidden>&tenant={tenant}&<hidden>&mixed=<hidden>";
    assert_eq!(flags["forward-url"], forward);
    assert_eq!(flags["authorize"], "https://localhost:2/a?key=<hidden>");
}

/// The same line and exit code as the gateway's.
#[tokio::test]
async fn what_keeps_a_gateway_from_starting_is_told_alike() {
    let files = Files::new();
    let broken = format!("--policy={}", files.with("broken.yaml", "upload:\n  allowlist: [up, 'up{']\n"));
    let no_key = format!("--shared-key={}", files.with("key.pem", "none"));
    let missing = format!("--tls-crt={}", files.0.path().join("missing").display());
    for wrong in [
        &["--listen=nowhere"][..],
        &["--limit-series=-1"],
        &[&broken],
        &[&no_key],
        &[&missing, "--tls-key=x"],
        &["--policy=/nowhere/policy.yaml"],
        &["--no-such-flag"],
        &["--redis=redis://:hush@a,redis://b"],
    ] {
        let (checked, started) = (check(&args(wrong)).await, Gateway::run_to_exit(args(wrong)).await);
        assert_eq!((checked.code(), checked.stdout.as_str()), (64, ""), "{checked:?}");
        assert_eq!((started.code(), started.stderr), (64, checked.stderr));
    }
    let nothing = check::<&str>(&[]).await;
    assert_eq!((nothing.code(), nothing.stderr.lines().count()), (64, 1), "{nothing:?}");
    // No addresses are taken: one may be in use by the very gateway that is checked.
    let gateway = Gateway::start(args(&[])).await;
    let listen = format!("--listen={}", gateway.public_address());
    assert_eq!(check(&args(&[&listen])).await.code(), 0);
}

#[tokio::test]
async fn warnings_can_be_denied() {
    let files = Files::new();
    let policy =
        format!("--policy={}", files.with("policy.yaml", "upload: {allowlist: [up]}\nreceive: {allowlist: [up]}\n"));
    let key = format!("--shared-key={}", files.with("key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem()));
    let authorize = "--authorize=http://localhost:1";
    let fine = ["--forward-url=http://localhost:1", authorize, &policy, &key, "--deny-warnings"];
    let exit = check(&fine).await;
    assert_eq!((exit.code(), exit.stderr.as_str()), (0, ""));
    let printed = exit.stdout;
    for (warned, code) in [(&["--limit-series=9"][..], 1), (&["--whitelist=x"], 1), (&["--deny-warnings=x"], 64)] {
        let exit = check(&[&fine[..], warned].concat()).await;
        assert_eq!(
            (exit.code(), exit.stderr.lines().count(), exit.stdout.is_empty()),
            (code, 1, code == 64),
            "{exit:?}"
        );
    }
    assert!(!printed.is_empty());
    let help = check(&["--help"]).await;
    assert!(help.stdout.contains("\n  1   there is something to warn of, and --deny-warnings is given\n"), "{help:?}");
    assert!(
        help.stdout.contains("\n  64  a flag, or a file that it names, is wrong\n")
            && help.stdout.contains("--limit-series"),
        "{help:?}"
    );
}

#[tokio::test]
async fn rules_are_looked_into_and_told_with_their_places() {
    let text = "
upload:
  allowlist:
    - up
    - up{job=\"api\"}
    - '{__name__=~\"node_(load1)\"}'
    - errors{code=~\"4..\",code=~\"5..\"}
    - 'up{}'
    - lost{_id=\"\"}
receive:
  allowlist: [x, 'x{a!=\"b\"}']
overrides:
  clusters:
    c1: {receive: {allowlist: [z, z]}}
    c2: {receive: {allowlist: [z, z]}}
";
    let expected = [
        "policy.yaml:5:7: rule `up{job=\"api\"}` is contained in `up` (policy.yaml:4:7)",
        "policy.yaml:6:7: rule `{__name__=~\"node_(load1)\"}` needs no regular expression: write `node_load1`",
        "policy.yaml:7:7: rule `errors{code=~\"4..\",code=~\"5..\"}` can never match: no value of label `code` meets all it asks for",
        "policy.yaml:8:7: rule `up` repeats `up` (policy.yaml:4:7)",
        "policy.yaml:9:7: rule `lost{_id=\"\"}` can never match: no value of label `_id` meets all it asks for",
        "policy.yaml:11:18: rule `x{a!=\"b\"}` is contained in `x` (policy.yaml:11:15)",
        "policy.yaml:14:35: rule `z` repeats `z` (policy.yaml:14:32)",
    ];
    assert_eq!(warnings(text, &[]).await, expected);

    let files = Files::new();
    let rules = files.with("rules.txt", "\n# kept\na\na{b=\"c\"}\n");
    let exit = check(&args(&["--whitelist=a{b=~\"c.\"}", &format!("--whitelist-file={rules}")])).await;
    let expected = format!(
        "warning: --whitelist: rule `a{{b=~\"c.\"}}` is contained in `a` ({rules}:3)\n\
         warning: {rules}:4: rule `a{{b=\"c\"}}` is contained in `a` ({rules}:3)\n"
    );
    assert!(exit.stderr.starts_with(&expected), "{exit:?}");
}

/// Who shares a list must all be able to do without a rule of it.
#[tokio::test]
async fn rules_are_looked_into_by_who_is_held_to_them() {
    let never = "can never match: no value of label";
    let ruled_out = "can never match: `require` demands another value of label `env`";
    let rows: &[(&str, &[&str], &[String])] = &[
        // What `require` rules out.
        (
            "receive: {require: {env: prod}, allowlist: ['up{env=\"dev\"}', foo, 'foo{env!~\"p.*\"}', 'bar{env=\"prod\"}', 'up{env=\"\"}']}",
            &["--whitelist=a"],
            &[
                format!("policy.yaml:1:45: rule `up{{env=\"dev\"}}` {ruled_out}"),
                format!("policy.yaml:1:67: rule `foo{{env!~\"p.*\"}}` {ruled_out}"),
                format!("policy.yaml:1:105: rule `up{{env=\"\"}}` {ruled_out}"),
            ],
        ),
        ("receive: {require: {env: prod}}", &["--whitelist=up{env=\"dev\"}", "--whitelist=foo"], &[]),
        (
            "receive: {require: {env: prod}, allowlist: ['up{env=\"dev\"}', foo]}\noverrides: {clusters: {c1: {receive: {require: {}}}}}",
            &["--whitelist=a"],
            &[],
        ),
        (
            "receive: {require: {env: prod}}\noverrides:\n  accounts: {a1: {receive: {require: {env: dev}, allowlist: [a, 'up{env=\"prod\"}']}}}\n  clusters: {c1: {receive: {allowlist: [b, 'up{env=\"dev\"}']}}}",
            &["--whitelist=a"],
            &[format!("policy.yaml:3:65: rule `up{{env=\"prod\"}}` {ruled_out}")],
        ),
        (
            "receive: {require: {env: prod}}\noverrides:\n  accounts: {a1: {receive: {require: {env: dev}, allowlist: [a, 'up{env=\"prod\"}']}}}\n  clusters: {c1: {receive: {require: {env: prod}}}}",
            &["--whitelist=a"],
            &["policy.yaml:4:14: the override of cluster `c1` changes nothing: it says what holds anyway".to_owned()]
                [..0],
        ),
        // A list of which nothing is left is not one to remove rules from.
        (
            "upload: {allowlist: ['up{_id=\"\"}', 'up{_id=\"\"}', 'a{b=\"\",b=\"c\"}']}\nreceive: {require: {env: prod}, allowlist: ['up{env=\"dev\"}', 'up{a=\"\",a=\"b\"}']}",
            &[],
            &[
                "policy.yaml:1:21: no rule of this allowlist can ever match, so no series passes".to_owned(),
                "policy.yaml:2:44: no rule of this allowlist can ever match, so no series passes".to_owned(),
            ],
        ),
    ];
    for (text, flags, expected) in rows {
        assert_eq!(warnings(text, flags).await, *expected, "{text}");
    }

    // The endpoints' series may carry different labels.
    let files = Files::new();
    let data =
        json!({ "config": { "secret_header": "x-secret", "common_name_header": "x-cn" }, "secret": "s".repeat(32) });
    let client_info = format!("--client-info-data-file={}", files.with("client-info.json", &data.to_string()));
    let flags = ["--forward-url=http://localhost:1", "--client-info-subject-label=cn", &client_info];
    let shared = ["--whitelist=up{_id=\"\"}", "--whitelist=up{cn=\"\"}", "--whitelist=up{a=\"\",a=\"b\"}"];
    assert_eq!(
        warnings_with("{}", &[flags, shared].concat()).await,
        [format!("--whitelist: rule `up{{a=\"\",a=\"b\"}}` {never} `a` meets all it asks for")]
    );
    let text = "upload: {allowlist: [a, 'up{_id=\"\"}', 'up{cn=\"\"}']}\nreceive: {allowlist: [b, 'up{_id=\"\"}', 'up{cn=\"\"}']}";
    assert_eq!(
        warnings_with(text, &flags).await,
        [
            format!("policy.yaml:1:25: rule `up{{_id=\"\"}}` {never} `_id` meets all it asks for"),
            format!("policy.yaml:2:40: rule `up{{cn=\"\"}}` {never} `cn` meets all it asks for"),
        ]
    );
}

#[tokio::test]
async fn what_is_seldom_meant_is_told() {
    let rows: &[(&str, &[&str], &[&str])] = &[
        (
            "upload: {allowlist: [a]}",
            &[],
            &["/metrics/v1/receive: no --whitelist, --whitelist-file, or allowlist in a --policy: every series passes"],
        ),
        // Flags that the file stands in place of.
        ("upload: {limits: {series: 20000}}", &["--whitelist=a", "--limit-series=20000"], &[]),
        (
            "upload: {limits: {series: 20000, interval: 1m}}\nreceive: {limits: {series: 20000}}\ntenants: {upload: a}",
            &["--whitelist=a", "--limit-series=20000", "--ratelimit=5m", "--tenant-id=b", "--receive-tenant-id="],
            &[
                "policy.yaml: `tenants.upload` in place of --tenant-id, which has no effect",
                "policy.yaml: `upload.limits.series` and `receive.limits.series` in place of --limit-series, which has no effect",
                "policy.yaml: `upload.limits.interval` in place of --ratelimit, which has no effect",
            ],
        ),
        // Labels.
        (
            "upload: {set: {a: b, c: '', d: e},\n  elide: [x, a]}",
            &["--whitelist=a"],
            &[
                "policy.yaml:1:15: label `a` is set, and removed by `elide` (policy.yaml:2:14)",
                "policy.yaml:1:15: label `c` is set to nothing, which removes it: `elide` says so",
            ],
        ),
        (
            "overrides: {clusters: {c1: {receive: {elide: [a, b]}}}}",
            &["--whitelist=a", "--receive-label=a=b"],
            &["--receive-label: label `a` is set, and removed by `elide` (policy.yaml:1:47)"],
        ),
        // An account may say otherwise of its clusters.
        (
            "overrides:\n  accounts: {a1: {receive: {set: {c: d}}}}\n  clusters: {c1: {receive: {elide: [a]}}, c2: {upload: {set: {x: y}}}}",
            &["--whitelist=a", "--receive-label=a=b", "--elide-label=x"],
            &["policy.yaml:3:62: label `x` is set, and removed by `elide` (--elide-label)"],
        ),
        // Limits.
        (
            "receive: {limits: {samples: 9999, sample_rate: {per_second: 1, burst: 10}}}",
            &["--whitelist=a", "--limit-series=5"],
            &[
                "policy.yaml: `receive.limits.samples` lets 9999 samples pass; senders of this fleet may pack 10000 samples into a request, and such a one may be refused for ever",
                "--limit-series: it lets 5 series pass; senders of this fleet may pack 10000 samples into a request, and such a one may be refused for ever",
                "policy.yaml: `receive.limits.sample_rate` lets 10 samples at once pass; senders of this fleet may pack 10000 samples into a request, and such a one may be refused for ever",
            ],
        ),
        ("receive: {limits: {samples: 10000, sample_rate: {per_second: 0, burst: 10}}}", &["--whitelist=a"], &[]),
        (
            "overrides:\n  accounts:\n    a1: {receive: {limits: {samples: 1}}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:3:5: `receive.limits.samples` in the override of account `a1` lets 1 samples pass; senders of this fleet may pack 10000 samples into a request, and such a one may be refused for ever",
            ],
        ),
        // Overrides.
        (
            "overrides:\n  clusters:\n    c3: {}\n    c2: {upload: {limits: {series: 20000, samples: 0}}}\n    c1: {upload: {limits: {series: 20000, samples: 0}}}\n    c4: {exempt: [], denied: false}",
            &["--whitelist=a"],
            &[
                "policy.yaml:3:5: the override of cluster `c3` says nothing",
                "policy.yaml:4:5: the override of cluster `c2`, and of 1 more, changes nothing: it says what holds anyway",
                "policy.yaml:6:5: the override of cluster `c4` changes nothing: it says what holds anyway",
            ],
        ),
        // What goes over the account's does something, and so do the account's other keys then.
        (
            "overrides:\n  accounts: {a1: {upload: {limits: {series: 3}}, denied: x}}\n  clusters: {c1: {upload: {limits: {series: 20000}}}}",
            &["--whitelist=a"],
            &["policy.yaml:2:14: the override of account `a1` has `denied`, so `upload.limits.series` has no effect"],
        ),
        (
            "overrides:\n  accounts: {a1: {upload: {limits: {series: 3}}, denied: x}}\n  clusters: {c2: {denied: false}}",
            &["--whitelist=a"],
            &[],
        ),
        (
            "overrides:\n  accounts: {a1: {upload: {limits: {series: 3}}, exempt: [sizes]}}\n  clusters: {c1: {denied: false}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:2:14: the override of account `a1` has `exempt`, so `upload.limits.series` has no effect",
                "policy.yaml:3:14: the override of cluster `c1` changes nothing: it says what holds anyway",
            ],
        ),
        (
            "overrides:\n  accounts: {a1: {exempt: [sizes]}}\n  clusters: {c1: {upload: {limits: {series: 20000}}}, c2: {upload: {elide: []}}}",
            &["--whitelist=a"],
            &["policy.yaml:3:55: the override of cluster `c2` changes nothing: it says what holds anyway"],
        ),
        (
            "overrides:\n  accounts: {a1: {upload: {limits: {series: 3}}, exempt: [sizes]}}\n  clusters: {c1: {exempt: []}}",
            &["--whitelist=a"],
            &[],
        ),
        (
            "overrides:\n  clusters:\n    c1: {exempt: [rates, allowlist], receive: {allowlist: [b], limits: {sample_rate: {per_second: 5}, series: 10000}}, upload: {limits: {interval: 1s}}}\n    c2: {exempt: [sizes], receive: {limits: {sample_rate: {per_second: 5}, body_bytes: 10000}}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:3:5: the override of cluster `c1` has `exempt`, so `receive.allowlist` and `receive.limits.sample_rate` and `upload.limits.interval` have no effect",
                "policy.yaml:4:5: the override of cluster `c2` has `exempt`, so `receive.limits.body_bytes` has no effect",
            ],
        ),
        // What does not hold is warned of once.
        (
            "overrides:\n  accounts:\n    a1: {exempt: [rates, sizes, allowlist], receive: {allowlist: [b, b], limits: {sample_rate: {per_second: 5, burst: 5}, series: 10}}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:3:5: the override of account `a1` has `exempt`, so `receive.allowlist` and `receive.limits.sample_rate` and `receive.limits.series` have no effect",
            ],
        ),
        (
            "overrides:\n  clusters:\n    c1: {exempt: [rates], receive: {limits: {sample_rate: {per_second: 5, burst: 5}, series: 10}}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:3:5: the override of cluster `c1` has `exempt`, so `receive.limits.sample_rate` has no effect",
                "policy.yaml:3:5: `receive.limits.series` in the override of cluster `c1` lets 10 series pass; senders of this fleet may pack 10000 samples into a request, and such a one may be refused for ever",
            ],
        ),
        (
            "overrides: {clusters: {c1: {denied: {reason: x, until: 2020-01-01T00:00:00Z}}, c2: {denied: {reason: x, until: 2100-01-01T00:00:00Z}}}}",
            &["--whitelist=a"],
            &["policy.yaml:1:24: the override of cluster `c1` denies until 2020-01-01T00:00:00Z, which is past"],
        ),
        (
            "overrides: {clusters: {c1: {writes_for: [c2, c1]}, c2: {writes_for: [c2, c1]}, c3: {writes_for: ['*']}}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:1:24: cluster `c1` writes for itself anyway: leave it out of `writes_for`",
                "policy.yaml:1:52: cluster `c2` writes for itself anyway: leave it out of `writes_for`",
            ],
        ),
        // Tenants.
        (
            "tenants: {upload: {header: a, url: b}, receive: c,\n  accounts: {a1: {header: d, url: e}, a2: f}}",
            &["--whitelist=a"],
            &[
                "policy.yaml:1:19: tenants.upload has a `url` of its own, and --forward-url has no `{tenant}` to stand for it",
                "policy.yaml:2:14: the tenant of account `a1` has a `url` of its own, and --forward-url has no `{tenant}` to stand for it",
            ],
        ),
        (
            "tenants: {upload: {header: a, url: b}, receive: c}",
            &["--whitelist=a", "--forward-url=http://localhost:1/{tenant}"],
            &[],
        ),
        (
            "tenants: {upload: a, receive: a, clusters: {c1: a, c2: b}}",
            &["--whitelist=a"],
            &["policy.yaml:1:45: the tenant of cluster `c1` is everyone's"],
        ),
        ("tenants: {upload: a, receive: a, accounts: {a1: b}, clusters: {c1: a}}", &["--whitelist=a"], &[]),
    ];
    let mut wrong = Vec::new();
    for (text, flags, expected) in rows {
        let told = warnings(text, flags).await;
        if told != *expected {
            wrong.push(format!(
                "{text}\n  told:\n    {}\n  not:\n    {}",
                told.join("\n    "),
                expected.join("\n    ")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each key of an account's override by itself: what a cluster says against `denied` or `exempt` is where the others begin to count.
#[tokio::test]
async fn keys_that_are_not_said_to_have_no_effect_have_one() {
    let files = Files::new();
    let rows = [
        ("denied: x", "{}", true),
        ("denied: x", "{denied: false}", false),
        ("exempt: [allowlist]", "{}", true),
        ("exempt: [allowlist]", "{exempt: []}", false),
    ];
    let mut wrong = Vec::new();
    for (account, cluster, idle) in rows {
        let override_of = |rules: &str| {
            let rules = if rules.is_empty() { String::new() } else { format!(", receive: {{allowlist: [{rules}]}}") };
            format!("overrides: {{accounts: {{a1: {{{account}{rules}}}}}, clusters: {{c1: {cluster}}}}}")
        };
        let told = warnings(&override_of("b"), &["--whitelist=a"]).await;
        let is_told = told.iter().any(|line| line.ends_with("so `receive.allowlist` has no effect"));
        let explained = |text: String| {
            let policy = format!("--policy={}", files.with("explained.yaml", &text));
            async move {
                let mut command = Gateway::command();
                command.args(["explain", "-", "--cluster=c1", "--account=a1", "--whitelist=a", &policy]).args(LEAST);
                let told = process::run(command, b"a{_id=\"c1\"} 1\nb{_id=\"c1\"} 1\n").await.stdout;
                let line = |start: &str| told.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
                let (forwarded, answer) = (line("forwarded "), line("answer "));
                // Where nothing goes on, it makes no difference what would.
                let kept = told.lines().filter(|line| line.starts_with("kept ") && !forwarded.contains(" 0 series"));
                let kept: Vec<_> = kept.map(|line| line.split(" by ").next().unwrap().to_owned()).collect();
                (kept, forwarded, answer)
            }
        };
        let makes_no_difference = explained(override_of("")).await == explained(override_of("b")).await;
        if (is_told, makes_no_difference) != (idle, idle) {
            wrong.push(format!("{account}, {cluster}: told {is_told}, no difference {makes_no_difference}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_schema_and_an_example_are_printed_alone() {
    let schema = check(&["--print-schema"]).await;
    assert_eq!((schema.code(), schema.stderr.as_str()), (0, ""));
    let schema: Value = serde_json::from_str(&schema.stdout).unwrap();
    let example = check(&["--print-example"]).await.stdout;
    jsonschema::validate(&schema, &serde_saphyr::from_str(&example).unwrap()).unwrap();
    assert_eq!(warnings(&example, &[]).await, [""; 0]);
    assert_eq!(check(&["--print-schema", "--print-example"]).await.code(), 64);
    assert_eq!(check(&["--print-example", "--label=a=b"]).await.code(), 64);
}
