//! What overrides cost: time and memory of reading them, of reading them again while they are in force, and time of a request that
//! has none, one, or two.
//!
//! `cargo bench --bench policy [OVERRIDES]`. A process of its own reads each file, as the gateway does. Seconds are those of the
//! clock, and those that a processor worked, which MB/s go by. Memory is the resident set above that of no override, as the system
//! counts it, so it holds the allocator's waste. A request is one that has been authorized, and takes its way through `PolicyLayer`
//! alone; rounds with different numbers of overrides take turns. `--test` does it all with few overrides, and says nothing of the
//! cost.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    convert::Infallible,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    future::{Ready, ready},
    hint::black_box,
    path::Path,
    process,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use http::Request;
use infogw_layers::{
    authorize::{
        AuthorizeLayer, ClusterCredential, ClusterId, Identity, Secret,
        cache::{CacheConfig, CacheLayer},
    },
    policy::{Endpoint, LivePolicy, PolicyLayer},
    rejection::Rejection,
};
use infogw_proxy::config::{
    ConfigError,
    policy::{PolicyFlags, PolicySources, Subject, Upstream},
};
use tower::{Layer, Service, ServiceExt, service_fn};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Clusters that ask, at most: more than what the processor's caches hold of their overrides.
const ASKING: usize = 10_000;

/// No policy holds a cluster from this number on.
const STRANGER: usize = 1 << 40;

/// As UHC has them: a UUID, and 27 characters.
fn id(n: usize) -> String {
    let mixed = (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:08x}-{:04x}-4000-8000-{n:012x}", mixed >> 32, mixed & 0xffff)
}

fn account(n: usize) -> String {
    id(n).chars().filter(|c| *c != '-').take(27).collect()
}

/// How overrides are written.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    Flow,
    Block,
}

/// How many settings there are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Four, which all share.
    Tiers,
    /// Every one is another.
    Different,
}

const CASES: [(Kind, Style, &str); 4] = [
    (Kind::Tiers, Style::Flow, "a few tiers, flow style"),
    (Kind::Tiers, Style::Block, "a few tiers, block style"),
    (Kind::Different, Style::Flow, "all different, flow style"),
    (Kind::Different, Style::Block, "all different, block style"),
];

/// Keys from the outside in; the innermost with its value.
fn settings(kind: Kind, n: usize) -> (Vec<&'static str>, Vec<String>) {
    let rate = vec!["receive", "limits", "sample_rate"];
    match (kind, n % 4) {
        (Kind::Different, _) => (rate, vec![format!("per_second: {}", 1_000 + n)]),
        (Kind::Tiers, 0) => (rate, vec!["per_second: 5000".into()]),
        (Kind::Tiers, 1) => (rate, vec!["per_second: 20000".into(), "burst: 100000".into()]),
        (Kind::Tiers, 2) => (vec!["receive", "limits"], vec!["series: 50000".into()]),
        (Kind::Tiers, _) => (vec!["upload", "limits"], vec!["interval: 1m".into()]),
    }
}

/// A policy file: so many clusters, and an account for each 100 of them.
fn file(clusters: usize, kind: Kind, style: Style) -> String {
    let mut text = "{}\n".to_owned();
    if clusters == 0 {
        return text;
    }
    text = "overrides:\n".to_owned();
    for (section, ids) in [
        ("clusters", (0..clusters).map(id as fn(usize) -> String)),
        ("accounts", (0..clusters.div_ceil(100)).map(account as fn(usize) -> String)),
    ] {
        writeln!(text, "  {section}:").unwrap();
        for (n, id) in ids.enumerate() {
            let (keys, values) = settings(kind, n);
            match style {
                Style::Flow => {
                    let close = "}".repeat(keys.len() + 1);
                    writeln!(text, "    {id}: {{{}: {{{}{close}", keys.join(": {"), values.join(", ")).unwrap();
                }
                Style::Block => {
                    writeln!(text, "    {id}:").unwrap();
                    for (depth, line) in keys.iter().map(|key| format!("{key}:")).enumerate() {
                        writeln!(text, "{:1$}{line}", "", 6 + 2 * depth).unwrap();
                    }
                    for line in values {
                        writeln!(text, "{:1$}{line}", "", 6 + 2 * keys.len()).unwrap();
                    }
                }
            }
        }
    }
    text
}

fn sources(path: &Path) -> Outcome<PolicySources> {
    let flags = PolicyFlags { policy: Some(path.to_str().unwrap().to_owned()), ..PolicyFlags::default() };
    let subject = Subject {
        partition_label: "_id".to_owned(),
        receive_label: "_id".to_owned(),
        receive_label_flag: "--partition-label",
        upstream: Upstream::new("--forward-url", "http://localhost/receive")?,
    };
    Ok(PolicySources::new(flags, subject)?)
}

/// Bytes that the system counts for this process under `key`.
fn memory(key: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("memory");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().expect("kilobytes") * 1024.0
}

/// Seconds that a processor has worked for this thread.
fn processor() -> f64 {
    let statistics = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    statistics.split(' ').next().and_then(|time| time.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

/// The most that was resident since `forget_peak`.
fn peak() -> f64 {
    memory("VmHWM")
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("Linux");
}

/// What reading a file costs; printed for the process that asked.
fn read(path: &Path) -> Outcome<()> {
    let empty = path.with_extension("empty");
    fs::write(&empty, "{}\n")?;
    let live = LivePolicy::new(sources(&empty)?.read()?.policy);
    let sources = sources(path)?;
    let before = memory("VmRSS");
    let mut overrides = 0;
    let mut once = || {
        forget_peak();
        let (began, worked) = (Instant::now(), processor());
        let read = sources.read()?;
        overrides = read.overrides();
        live.replace(read.policy);
        drop(read.document);
        let seconds = [began.elapsed().as_secs_f64(), processor() - worked];
        Ok::<_, ConfigError>([seconds[0], seconds[1], peak() - before, memory("VmRSS") - before])
    };
    let mut numbers = once()?.to_vec();
    // In another thread, as the gateway does it.
    numbers.extend(thread::scope(|scope| scope.spawn(once).join().expect("no panic"))?);
    let numbers: Vec<_> = numbers.iter().map(f64::to_string).collect();
    println!("{overrides} {}", numbers.join(" "));
    Ok(())
}

/// The same in a process of its own.
fn reading(path: &Path) -> Outcome<Vec<f64>> {
    let process = process::Command::new(env::current_exe()?).arg("--read").arg(path).output()?;
    if !process.status.success() {
        return Err(String::from_utf8_lossy(&process.stderr).into());
    }
    String::from_utf8(process.stdout)?.split_whitespace().map(|number| Ok(number.parse()?)).collect()
}

/// Requests that have been authorized.
async fn authorized(identities: Vec<Identity>) -> Vec<Request<()>> {
    let kept = Mutex::new(Vec::new());
    for identity in identities.into_iter().map(Arc::new) {
        let service = AuthorizeLayer::new(
            |_: &Request<()>| Ok::<_, Rejection>(()),
            service_fn(|()| ready(Ok::<_, Infallible>(Arc::clone(&identity)))),
        )
        .layer(service_fn(|request: Request<()>| {
            kept.lock().unwrap().push(request);
            ready(Ok::<_, Infallible>(()))
        }));
        service.oneshot(Request::new(())).await.expect("authorized");
    }
    kept.into_inner().unwrap()
}

/// Who asks: `n` is one of the clusters with an override.
const SENDERS: [(&str, Sender); 3] = [
    ("no override", |n| identity(STRANGER + n, STRANGER + n)),
    ("its cluster's", |n| identity(n, STRANGER + n)),
    ("its cluster's and its account's", |n| identity(n, n / 100)),
];

type Sender = fn(usize) -> Identity;

fn identity(cluster: usize, its_account: usize) -> Identity {
    let cluster = ClusterId::new(&id(cluster)).unwrap();
    Identity { account: Some(account(its_account).into()), ..Identity::of(cluster) }
}

fn pass(_: Request<()>) -> Ready<Result<(), Infallible>> {
    ready(Ok(()))
}

/// Nanoseconds that each of `requests` takes through `service`.
async fn through<R>(service: &mut impl Service<R>, requests: Vec<R>) -> f64 {
    let count = requests.len() as f64;
    let began = Instant::now();
    for request in requests {
        let _ = black_box(service.call(request).await);
    }
    began.elapsed().as_nanos() as f64 / count
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Nanoseconds a request through the layer with each of `policies`, of so many clusters; and of a hit of the authorization cache.
async fn requests(policies: &[(usize, LivePolicy)], rounds: usize) -> Outcome<()> {
    let columns: Vec<_> = policies.iter().map(|(clusters, _)| format!("{clusters:>12}")).collect();
    println!("\n{:34}{:>12}{}", "ns a request, with overrides", "no layer", columns.join(""));
    for (sender, identity) in SENDERS {
        let mut times = vec![Vec::new(); policies.len() + 1];
        let mut asking = Vec::new();
        for (clusters, _) in policies {
            let picked = (0..ASKING).map(|n| identity(n * 7_919 % (*clusters).max(1))).collect();
            asking.push(authorized(picked).await);
        }
        for _ in 0..rounds {
            times[0].push(through(&mut service_fn(pass), asking[0].clone()).await);
            for (at, ((_, policy), requests)) in policies.iter().zip(&asking).enumerate() {
                let mut service = PolicyLayer::new(policy.clone(), Endpoint::Receive).layer(service_fn(pass));
                times[at + 1].push(through(&mut service, requests.clone()).await);
            }
        }
        let times: Vec<_> = times.into_iter().map(median).collect();
        let first = times[1];
        let of = |ns: &f64| format!("{ns:6.0} {:4.2}x", ns / first);
        println!("{sender:34}{}", times.iter().map(of).collect::<Vec<_>>().join(""));
    }

    let credential = |n| ClusterCredential::registration(ClusterId::new(&id(n)).unwrap(), &Secret::new(account(n)));
    let grant =
        async |credential: ClusterCredential| Ok::<_, Rejection>(Arc::new(Identity::of(credential.cluster().clone())));
    let mut cached = CacheLayer::new(CacheConfig::default()).layer(service_fn(grant));
    let credentials: Vec<_> = (0..ASKING).map(credential).collect();
    let mut times = Vec::new();
    for _ in 0..=rounds {
        times.push(through(&mut cached, credentials.clone()).await);
    }
    println!("{:34}{:6.0}", "a hit of the authorization cache", median(times));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [flag, path] = &arguments[..]
        && flag == "--read"
    {
        return read(Path::new(path));
    }
    // cargo adds a `--bench` of its own.
    let quick = arguments.iter().any(|argument| argument == "--test");
    let most = arguments.iter().find_map(|argument| argument.parse().ok());
    let most = most.unwrap_or(if quick { 1_000 } else { 1_000_000 });
    let mut sizes = vec![100, 10_000, most];
    sizes.retain(|size| *size <= most);
    sizes.dedup();

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("policy.yaml");
    println!(
        "{:28}{:>10}{:>8}{:>8}{:>8}{:>7}{:>9}{:>9}{:>7}{:>9}{:>8}{:>9}{:>9}",
        "",
        "overrides",
        "MB",
        "s",
        "CPU s",
        "MB/s",
        "peak MB",
        "kept MB",
        "bytes",
        "again s",
        "CPU s",
        "peak MB",
        "kept MB"
    );
    for (kind, style, name) in CASES {
        for &clusters in &sizes {
            let text = file(clusters, kind, style);
            fs::write(&path, &text)?;
            let megabytes = text.len() as f64 / 1e6;
            drop(text);
            let [overrides, seconds, worked, peak, kept, again, worked_again, peak_again, kept_again] =
                reading(&path)?[..]
            else {
                return Err("nine numbers were to come".into());
            };
            let first = format!("{seconds:>8.3}{worked:>8.3}{:>7.0}{:>9.1}", megabytes / worked, peak / 1e6);
            let kept = format!("{:>9.1}{:>7.0}", kept / 1e6, kept / overrides);
            let again = format!("{again:>9.3}{worked_again:>8.3}{:>9.1}{:>9.1}", peak_again / 1e6, kept_again / 1e6);
            println!("{name:28}{overrides:>10}{megabytes:>8.2}{first}{kept}{again}");
        }
    }

    let mut policies = Vec::new();
    for clusters in [0].into_iter().chain(sizes) {
        fs::write(&path, file(clusters, Kind::Tiers, Style::Flow))?;
        policies.push((clusters, LivePolicy::new(sources(&path)?.read()?.policy)));
    }
    requests(&policies, if quick { 3 } else { 101 }).await
}
