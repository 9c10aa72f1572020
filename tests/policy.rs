//! The policy file: what it says of whom, and that it can be replaced while the gateway runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::Request;
use infogw_proto::prometheus::TimeSeries;
use support::{
    Reply, World, Write, eventually, http,
    payload::{composite_token, series, write_body},
    within,
    world::{PULL_SECRET, TEXT, now, spelt},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A gateway that is given a policy file.
struct Governed {
    world: World,
    file: PathBuf,
    _directory: TempDir,
}

impl Governed {
    async fn by(policy: &str, flags: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("policy.yaml");
        fs::write(&file, policy).unwrap();
        let flag = format!("--policy={}", file.display());
        let world = World::with(&[&[flag.as_str()], flags].concat()).await;
        Governed { world, file, _directory: directory }
    }

    /// Puts another text in the file's place, as editors and mounted volumes do.
    fn write(&self, policy: &str) {
        let new = self.file.with_extension("new");
        fs::write(&new, policy).unwrap();
        fs::rename(&new, &self.file).unwrap();
    }

    async fn reload(&self) -> Reply {
        http::send(Request::post(self.world.gateway.internal("/-/reload")), Vec::new()).await
    }

    async fn replace(&self, policy: &str) {
        self.write(policy);
        self.reload().await.expect_status(200);
    }

    async fn receive(&self, cluster: &str, series: Vec<TimeSeries>) -> Reply {
        self.world.receive(cluster, series).await
    }

    /// What of these series of `cluster` goes upstream by remote write.
    async fn passes(&self, cluster: &str, names: &[&str]) -> Vec<String> {
        let before = self.world.upstream.received().len();
        let offered = names.iter().map(|name| named(name, cluster)).collect();
        let reply = self.receive(cluster, offered).await;
        assert!(reply.status.is_success(), "{reply:?}");
        self.world.upstream.received()[before..].iter().flat_map(spelt).collect()
    }

    async fn metric(&self, series: &str) -> f64 {
        self.world.gateway.metric(series).await
    }

    /// The hash that `infogw_policy_info` shows; there is one at any time.
    async fn hash(&self) -> String {
        let metrics = http::get(&self.world.gateway.internal("/metrics")).await;
        let infos: Vec<_> =
            metrics.text().lines().filter_map(|line| line.strip_prefix("infogw_policy_info{hash=\"")).collect();
        let [info] = infos[..] else { panic!("not one policy: {infos:?}") };
        info.strip_suffix("\"} 1").unwrap().to_owned()
    }
}

fn named(name: &str, cluster: &str) -> TimeSeries {
    series(&[("__name__", name), ("_id", cluster)], &[(1.0, now())])
}

/// A series with so many samples.
fn samples(cluster: &str, count: i64) -> Vec<TimeSeries> {
    let samples: Vec<_> = (0..count).map(|n| (1.0, now() - count + n)).collect();
    vec![series(&[("__name__", "up"), ("_id", cluster)], &samples)]
}

#[tokio::test]
async fn a_key_in_the_file_goes_over_its_flag_and_over_nothing_else() {
    let flags = [
        "--whitelist=up",
        "--label=a=flag",
        "--elide-label=b",
        "--receive-label=a=flag",
        "--receive-elide-label=b",
        "--receive-tenant-id=flag",
    ];
    let policy = "receive: {allowlist: ['{__name__=~\"up|down\"}'], set: {c: file}}\ntenants: {upload: file}";
    let governed = Governed::by(policy, &flags).await;
    let labelled = |name| series(&[("__name__", name), ("_id", "c1"), ("b", "x")], &[(1.0, now())]);
    let offered = ["up", "down", "other"].map(labelled).to_vec();
    governed.receive("c1", offered).await.expect_status(200);
    let write = governed.world.upstream.received().remove(0);
    // `set` is whole: nothing of the flag's is left.
    assert_eq!(spelt(&write), [r#"up{_id="c1",c="file"}"#, r#"down{_id="c1",c="file"}"#]);
    assert_eq!(write.header("thanos-tenant"), Some("flag"));

    let text = format!("up{{_id=\"c1\",b=\"x\"}} 1 {0}\ndown{{_id=\"c1\"}} 1 {0}\n", now());
    governed.world.upload("c1", &text).await.expect_status(200);
    let write = governed.world.upstream.received().remove(1);
    assert_eq!(spelt(&write), [r#"up{_id="c1",a="flag"}"#], "the file says nothing of uploads");
    assert_eq!(write.header("thanos-tenant"), Some("file"));
}

#[tokio::test]
async fn some_are_excepted() {
    let policy = "
receive:
  allowlist: [up]
  require: {env: prod}
  limits: {samples: 5, labels: 4, sample_rate: {per_second: 0.001, burst: 100}}
overrides:
  accounts:
    account-of-rich: {receive: {limits: {samples: 10}, require: {}}}
    account-of-poor: {denied: unpaid, receive: {require: {}}}
    account-of-kin: {denied: unpaid, receive: {require: {}}}
  clusters:
    own: {receive: {allowlist: [up, down], require: {}}}
    free: {exempt: [rates, sizes, allowlist], receive: {require: {}}}
    kin: {denied: false}
    gone: {denied: {reason: moved away, until: 2100-01-01T00:00:00Z}}
    back: {denied: {reason: moved away, until: 2000-01-01T00:00:00Z}, receive: {require: {}}}
";
    let governed = Governed::by(policy, &[]).await;
    // What is required is required.
    let refused = governed.receive("c1", vec![named("up", "c1")]).await.expect_status(400);
    assert!(refused.text().contains("label `env` is missing"), "{refused:?}");
    let prod = series(&[("__name__", "up"), ("_id", "c1"), ("env", "prod")], &[(1.0, now())]);
    governed.receive("c1", vec![prod]).await.expect_status(200);

    for (cluster, passing) in [
        ("own", &["up", "down"][..]),
        ("free", &["up", "down", "other"]),
        ("rich", &["up"]),
        ("kin", &["up"]),
        ("back", &["up"]),
    ] {
        let expected: Vec<_> = passing.iter().map(|name| format!("{name}{{_id={cluster:?}}}")).collect();
        assert_eq!(governed.passes(cluster, &["up", "down", "other"]).await, expected, "{cluster}");
    }
    for (cluster, count, told) in [
        ("own", 6, Some("too_many_samples: ")),
        ("rich", 10, None),
        ("rich", 11, Some("too_many_samples: ")),
        ("free", 101, None),
    ] {
        let reply = governed.receive(cluster, samples(cluster, count)).await;
        match told {
            None => drop(reply.expect_status(200)),
            Some(told) => {
                assert!(reply.text().starts_with(told), "{cluster} {count}: {reply:?}");
                assert_eq!(reply.status, 413);
            }
        }
    }
    let labels = [("__name__", "up"), ("_id", "free"), ("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")];
    governed.receive("free", vec![series(&labels, &[(1.0, now())])]).await.expect_status(200);

    for (cluster, why) in [("poor", "for good: unpaid"), ("gone", "until 2100-01-01T00:00:00Z: moved away")] {
        let told = format!("denied: cluster `{cluster}` may not write here, {why}\n");
        let refused = governed.receive(cluster, vec![named("up", cluster)]).await.expect_status(403);
        assert_eq!(refused.text(), told);
        // It gets no token either.
        let refused = governed.world.gateway.authorize(cluster, PULL_SECRET).await.expect_status(403);
        assert_eq!(refused.text(), told);
    }
    let counted = |route| format!("infogw_rejections_total{{layer=\"policy\",reason=\"denied\",route=\"{route}\"}}");
    assert_eq!(governed.metric(&counted("receive")).await, 2.0);
    assert_eq!(governed.metric(&counted("authorize")).await, 2.0);
    assert_eq!(governed.metric("infogw_policy_overrides").await, 8.0);
}

#[tokio::test]
async fn uploads_have_exceptions_too() {
    let policy = "
upload: {require: {env: prod}, limits: {interval: 1h}}
overrides:
  accounts:
    account-of-c3: {upload: {limits: {interval: 0s}}}
  clusters:
    c1: {upload: {require: {env: test, tier: gold}, limits: {interval: 0s}}}
";
    let governed = Governed::by(policy, &[]).await;
    for (cluster, labels) in [
        ("c1", serde_json::json!({ "_id": "c1", "env": "test", "tier": "gold" })),
        ("c2", serde_json::json!({ "_id": "c2", "env": "prod" })),
    ] {
        let issued = governed.world.gateway.authorize(cluster, PULL_SECRET).await.expect_status(200);
        assert_eq!(issued.json()["labels"], labels);
    }
    let upload = async |cluster: &str, token: &str, labels: &str| {
        let text = format!("up{{_id={cluster:?},{labels}}} 1 {}\n", now());
        governed.world.gateway.upload(token, TEXT, "", text).await
    };
    let (c1, c2) = (governed.world.token("c1").await, governed.world.token("c2").await);
    let gold = r#"env="test",tier="gold""#;
    upload("c1", &c1, gold).await.expect_status(200);
    upload("c1", &c1, gold).await.expect_status(200);
    upload("c1", &c1, r#"env="test""#).await.expect_status(400);
    upload("c2", &c2, r#"env="prod""#).await.expect_status(200);
    let refused = upload("c2", &c2, r#"env="prod""#).await.expect_status(429);
    assert!(refused.text().starts_with("rate_limited: "), "{refused:?}");

    // A token names the account, too.
    let c3 = governed.world.token("c3").await;
    upload("c3", &c3, r#"env="prod""#).await.expect_status(200);
    upload("c3", &c3, r#"env="prod""#).await.expect_status(200);

    // Whoever has a token is still denied.
    governed.replace("overrides: {clusters: {c1: {denied: gone}}}").await;
    upload("c1", &c1, gold).await.expect_status(403);
}

#[tokio::test]
async fn a_tenant_is_a_header_and_a_part_of_the_url() {
    let policy = "
tenants:
  receive: common
  accounts: {account-of-c1: gold, account-of-c2: gold}
  clusters:
    c2: {header: 0fc2, url: silver/1}
overrides:
  clusters: {c2: {receive: {set: {seen: both}}}}
";
    let upstream = support::Upstream::accepting().await;
    let url = upstream.url_of("/api/{tenant}/receive").replace("%7B", "{").replace("%7D", "}");
    let governed = Governed::by(policy, &["--forward-url", &url]).await;
    for (cluster, header, path) in [
        ("c1", "gold", "/api/gold/receive"),
        ("c2", "0fc2", "/api/silver%2F1/receive"),
        ("c3", "common", "/api/common/receive"),
    ] {
        governed.receive(cluster, vec![named("up", cluster)]).await.expect_status(200);
        let write = upstream.received().pop().unwrap();
        assert_eq!((write.header("thanos-tenant"), write.uri.path()), (Some(header), path), "{cluster}");
        assert_eq!(spelt(&write)[0].contains("seen"), cluster == "c2", "what is said of its tenant takes nothing away");

        let text = format!("up{{_id={cluster:?}}} 1 {}\n", now());
        governed.world.upload(cluster, &text).await.expect_status(200);
        let write = upstream.received().pop().unwrap();
        let default = "FB870BF3-9F3A-44FF-9BF7-D7A047A52F43";
        let expected = match cluster {
            "c3" => (Some(default), format!("/api/{default}/receive")),
            _ => (Some(header), path.to_owned()),
        };
        assert_eq!((write.header("thanos-tenant"), write.uri.path().to_owned()), expected, "{cluster}");
    }
    let told = governed.world.gateway.logs();
    assert!(told.iter().all(|line| !line.contains("level=error")), "{told:?}");

    governed.write("tenants: {clusters: {c1: gold}}");
    let refused = governed.reload().await.expect_status(500);
    assert!(refused.text().contains("remote write of who is not listed has none"), "{refused:?}");
}

#[tokio::test]
async fn what_changes_is_read_again_by_itself() {
    let governed = Governed::by("receive: {allowlist: [up]}", &[]).await;
    assert_eq!(governed.passes("c1", &["up", "down"]).await, [r#"up{_id="c1"}"#]);
    let first = governed.hash().await;
    governed.write("receive: {allowlist: [down]}");
    governed.world.gateway.wait_for_log("msg=\"reloaded the policy\"").await;
    assert_eq!(governed.passes("c1", &["up", "down"]).await, [r#"down{_id="c1"}"#]);
    assert_ne!(governed.hash().await, first);
    assert_eq!(governed.metric("infogw_policy_reloads_total{result=\"success\"}").await, 1.0);

    // What it says counts, not how it is written.
    governed.write("# as before\nreceive:\n  allowlist:\n    - up\n");
    eventually("the first policy again", async || match governed.hash().await {
        hash if hash == first => Ok(()),
        hash => Err(hash),
    })
    .await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told_by_place() {
    let governed = Governed::by("receive: {allowlist: [up]}", &[]).await;
    let (hash, since) =
        (governed.hash().await, governed.metric("infogw_policy_last_reload_success_timestamp_seconds").await);
    assert!((since - now() as f64 / 1000.0).abs() < 60.0, "{since}");
    assert_eq!(governed.metric("infogw_policy_last_reload_successful").await, 1.0);

    for (broken, place, why) in [
        ("receive:\n  allowlist: [up, 'down{']\n", "2:19", "`down{`"),
        ("receive: {allowlists: [up]}\n", "1:11", "unknown field `allowlists`"),
        ("", "1:1", "empty"),
    ] {
        governed.write(broken);
        let refused = governed.reload().await.expect_status(500);
        let told = format!("{}:{place}: ", governed.file.display());
        assert!(refused.text().contains(&told) && refused.text().contains(why), "{refused:?}");
        assert_eq!(refused.text().lines().count(), 1);
        let logged = governed.world.gateway.wait_for_log(why).await;
        assert!(logged.starts_with("level=error") && logged.contains("not reloaded"), "{logged}");

        assert_eq!(governed.passes("c1", &["up", "down"]).await, [r#"up{_id="c1"}"#]);
        assert_eq!(governed.hash().await, hash);
        assert_eq!(governed.metric("infogw_policy_last_reload_successful").await, 0.0);
        assert_eq!(governed.metric("infogw_policy_last_reload_success_timestamp_seconds").await, since);
        assert!(governed.metric("infogw_policy_reloads_total{result=\"error\"}").await >= 1.0);
    }
    fs::remove_file(&governed.file).unwrap();
    let refused = governed.reload().await.expect_status(500);
    assert!(refused.text().contains("No such file"), "{refused:?}");

    governed.replace("receive: {allowlist: [down]}").await;
    assert_eq!(governed.passes("c1", &["up", "down"]).await, [r#"down{_id="c1"}"#]);
    assert_eq!(governed.metric("infogw_policy_last_reload_successful").await, 1.0);
}

#[tokio::test]
async fn reload_is_posted() {
    let governed = Governed::by("{}", &[]).await;
    let reload = governed.world.gateway.internal("/-/reload");
    let refused = http::get(&reload).await.expect_status(405);
    assert_eq!(refused.header("allow"), Some("POST, PUT"));
    http::send(Request::put(&reload), Vec::new()).await.expect_status(200);
    let public = Request::post(governed.world.gateway.public("/-/reload"));
    http::send(public, Vec::new()).await.expect_status(404);
}

#[tokio::test]
async fn what_was_taken_stays_taken_when_limits_change() {
    let policy = |burst: u32| format!("receive: {{limits: {{request_rate: {{per_second: 0.001, burst: {burst}}}}}}}");
    let governed = Governed::by(&policy(2), &[]).await;
    let statuses = async |cluster: &str, count| {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(governed.receive(cluster, vec![named("up", cluster)]).await.status.as_u16());
        }
        statuses
    };
    assert_eq!(statuses("c1", 3).await, [200, 200, 429]);
    // One more at once, and those two are still gone.
    governed.replace(&policy(3)).await;
    assert_eq!(statuses("c1", 2).await, [200, 429]);
    assert_eq!(statuses("c2", 4).await, [200, 200, 200, 429]);
    // Off, for some, and on again.
    governed.replace(&format!("{}\noverrides: {{clusters: {{c1: {{exempt: [rates]}}}}}}", policy(3))).await;
    assert_eq!(statuses("c1", 2).await, [200, 200]);
    assert_eq!(statuses("c2", 1).await, [429]);
    governed.replace(&policy(3)).await;
    assert_eq!(statuses("c1", 1).await, [429]);

    // Of another rate, what stays is the time until it is earned back, at most that of the new burst.
    let rate =
        |per_second: &str| format!("receive: {{limits: {{request_rate: {{per_second: {per_second}, burst: 3}}}}}}");
    governed.replace(&rate("0.1")).await;
    let refused = governed.receive("c1", vec![named("up", "c1")]).await.expect_status(429);
    assert!(refused.retry_after().is_some_and(|wait| wait <= 15), "{refused:?}");
    assert_eq!(statuses("c3", 2).await, [200, 200]);
    governed.replace(&rate("0.001")).await;
    assert_eq!(statuses("c3", 3).await, [200, 200, 429], "the twenty seconds that it owed stay twenty seconds");
}

/// A pipe in the file's place would hold up whoever reads it.
#[tokio::test]
async fn what_is_no_file_is_not_read_and_told() {
    let governed = Governed::by("receive: {allowlist: [up]}", &[]).await;
    fs::remove_file(&governed.file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&governed.file).status().unwrap();
    assert!(made.success());
    let refused = governed.reload().await.expect_status(500);
    assert!(refused.text().contains("is not a regular file"), "{refused:?}");
    assert_eq!(governed.metric("infogw_policy_last_reload_successful").await, 0.0);
    assert!(governed.metric("infogw_policy_reloads_total{result=\"error\"}").await >= 1.0);
    assert_eq!(governed.passes("c1", &["up", "down"]).await, [r#"up{_id="c1"}"#]);
}

/// What a policy called `name` makes of a request, throughout the stack: which series pass, what is set on them, whose they become.
fn called(name: &str) -> String {
    format!(
        "
receive:
  allowlist: ['{{for=\"{name}\"}}']
  set: {{policy: {name}}}
  elide: [not_{name}]
tenants: {{receive: {name}}}
"
    )
}

/// A request of which each policy takes another part.
fn for_either(cluster: &str) -> Vec<TimeSeries> {
    let of =
        |name, other| series(&[("__name__", "up"), ("_id", cluster), ("for", name), (other, "x")], &[(1.0, now())]);
    vec![of("a", "not_a"), of("b", "not_b")]
}

/// The policy that this request went under, all the way.
fn went_under(write: &Write) -> &'static str {
    let name = match write.header("thanos-tenant") {
        Some("a") => "a",
        Some("b") => "b",
        other => panic!("whose is this: {other:?}"),
    };
    let spelt = spelt(write);
    let whole = spelt.len() == 1 && spelt[0].ends_with(&format!("\",for={name:?},policy={name:?}}}"));
    assert!(whole, "a mix of two policies: {spelt:?}");
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_are_seen_by_nobody() {
    const SENDERS: usize = 8;
    const RELOADS: usize = 40;
    let governed = Arc::new(Governed::by(&called("a"), &[]).await);
    let done = Arc::new(AtomicBool::new(false));
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..SENDERS {
        let (governed, done) = (governed.clone(), done.clone());
        senders.spawn(async move {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                governed.receive("c1", for_either("c1")).await.expect_status(200);
                sent += 1;
            }
            sent
        });
    }
    for reload in 1..=RELOADS {
        let name = ["a", "b"][reload % 2];
        governed.replace(&called(name)).await;
        let before = governed.world.upstream.received().len();
        let late = format!("late-{reload}");
        governed.receive(&late, for_either(&late)).await.expect_status(200);
        let received = governed.world.upstream.received();
        let write = received.iter().find(|write| spelt(write)[0].contains(&late)).unwrap();
        assert_eq!(went_under(write), name, "it is in force once that is answered");
        // Under each there is load.
        governed.world.upstream.wait_for(before + 2 * SENDERS).await;
    }
    done.store(true, Ordering::Relaxed);
    let sent: usize = senders.join_all().await.into_iter().sum();
    let received = governed.world.upstream.received();
    assert_eq!(received.len(), sent + RELOADS, "each was answered 200 and is there once");
    let under_a = received.iter().filter(|write| went_under(write) == "a").count();
    assert!(under_a > RELOADS && received.len() - under_a > RELOADS, "{under_a} of {sent}");
}

/// It has its terms before its body is read, and keeps them.
#[tokio::test]
async fn a_request_in_flight_ends_under_the_policy_it_began_with() {
    let governed = Governed::by(&called("a"), &[]).await;
    let body = write_body(for_either("c1"));
    let mut connection = TcpStream::connect(governed.world.gateway.public_address()).await.unwrap();
    let head = format!(
        "POST /metrics/v1/receive HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\ncontent-encoding: snappy\r\n\
         content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        composite_token(PULL_SECRET, "c1"),
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    // The body is asked for by whoever decodes it.
    let mut asked = [0; 25];
    within("the gateway to ask for the body", connection.read_exact(&mut asked)).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");

    governed.replace(&called("b")).await;
    assert_eq!(governed.passes("c1", &["up"]).await, [""; 0], "the other one is in force");
    governed.receive("c1", for_either("c1")).await.expect_status(200);

    connection.write_all(&body).await.unwrap();
    let mut answer = String::new();
    within("the answer", connection.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let received = governed.world.upstream.received();
    assert_eq!(received.iter().map(went_under).collect::<Vec<_>>(), ["b", "a"]);
}
