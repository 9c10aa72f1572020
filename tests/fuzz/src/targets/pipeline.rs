use std::{
    cell::RefCell,
    collections::HashSet,
    convert::Infallible,
    future::ready,
    sync::{Arc, LazyLock, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity, Writes},
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder, WriteRequestDecoder},
    encode::EncodeLayer,
    enforce::{ClusterLabelCheck, EnforceLabelsLayer, LabelPolicy, OnOffence},
    rejection::{Reason, Rejection},
    translate::{Translate as _, TranslateLayer},
};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};

use super::{NOW, OLDEST, StandingClock, limits, metric_families};
use crate::{
    families, go,
    mutate::LONG,
    oracle::{self, Labels},
};

/// From the body to what is forwarded. The first byte says which route, policy and limits.
pub fn pipeline(data: &[u8]) {
    let Some((mode, input)) = data.split_first() else { return };
    let rules = &RULES[usize::from(mode >> 2) % RULES.len()];
    let tight = mode & 0x80 != 0;
    let route = match mode & 3 {
        0 => Route::Receive,
        1 => Route::Delimited,
        2 => Route::Text,
        _ if mode & 0x40 == 0 => Route::ReceiveFrom,
        _ => Route::Framed,
    };
    let (answer, forwarded) = send(rules, route, tight, input);
    let arrived = match arrived(route, tight, input, &answer) {
        Some(arrived) => arrived,
        None => {
            assert!(forwarded.is_none(), "what is not taken goes nowhere");
            return oracle::assert_one_line(answer.expect_err("it was not taken"));
        }
    };
    // What is made of families was held to its limits as it was expanded.
    let limits = match route {
        Route::Receive | Route::ReceiveFrom => limits(tight),
        Route::Delimited | Route::Framed | Route::Text => UNLIMITED,
    };
    let kept: Vec<_> = arrived.timeseries.iter().map(|series| rules.judge(series, &limits)).collect();
    let refused = kept.iter().filter(|kept| matches!(kept, Verdict::Refuse)).count();
    // In an upload everything is refused for one series.
    let nothing = refused > 0 && rules.on_offence == OnOffence::RefuseRequest;
    let timeseries: Vec<_> = kept
        .into_iter()
        .filter_map(|kept| if let Verdict::Keep(series) = kept { Some(series) } else { None })
        .collect();
    match forwarded {
        None => assert!(nothing || timeseries.is_empty()),
        Some((headers, body)) => {
            assert!(!nothing);
            assert_eq!(headers["content-encoding"], "snappy");
            assert_eq!(headers["content-type"], "application/x-protobuf");
            let message = oracle::unblock(&body).expect("it is a block");
            for series in go::unmarshal(&message).expect("Go reads what goes on").timeseries {
                rules.assert_allowed(&series);
            }
            oracle::assert_reads_as(&message, &go::WriteRequest { timeseries, ..arrived });
        }
    }
    match answer {
        Ok(status) => assert!(refused == 0 && status.is_success(), "{status}"),
        Err(rejection) => {
            assert!(refused > 0, "{rejection:?}");
            oracle::assert_one_line(rejection);
        }
    }
}

const UNLIMITED: DecodeLimits = DecodeLimits {
    body: usize::MAX,
    decoded: usize::MAX,
    series: usize::MAX,
    samples: usize::MAX,
    labels: usize::MAX,
    label_name: usize::MAX,
    label_value: usize::MAX,
    unrepeatable: Vec::new(),
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Route {
    /// Remote write of a message.
    Receive,
    /// Remote write of a body as it arrives.
    ReceiveFrom,
    Delimited,
    Framed,
    Text,
}

type Forwarded = Arc<Mutex<Option<(HeaderMap, Bytes)>>>;

/// What a sender hears, and what is forwarded.
fn send(
    rules: &Rules,
    route: Route,
    tight: bool,
    input: &[u8],
) -> (Result<StatusCode, Rejection>, Option<(HeaderMap, Bytes)>) {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> =
            RefCell::new(tokio::runtime::Builder::new_current_thread().enable_time().build().expect("there is a thread"));
    }
    let forwarded = Forwarded::default();
    let seen = Arc::clone(&forwarded);
    let upstream = service_fn(move |request: Request<Full<Bytes>>| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            *seen.lock().expect("one thread") = Some((head.headers, body));
            Ok::<_, Infallible>(Response::new(()))
        }
    });
    let identity = Arc::new(rules.identity.clone());
    let authorizer = service_fn(move |()| ready(Ok::<_, Rejection>(Arc::clone(&identity))));
    let authorize = AuthorizeLayer::new(|_: &Request<Full<Bytes>>| Ok(()), authorizer);
    let enforce = EnforceLabelsLayer::new(Arc::clone(&rules.policy));
    let receive = matches!(route, Route::Receive | Route::ReceiveFrom);
    let content_type = match route {
        Route::Receive | Route::ReceiveFrom => "application/x-protobuf",
        Route::Delimited | Route::Framed => metric_families::DELIMITED,
        Route::Text => "text/plain",
    };
    let (encoding, body) = match route {
        Route::Receive => ("snappy", oracle::block(input)),
        Route::ReceiveFrom | Route::Framed => ("snappy", Bytes::copy_from_slice(input)),
        Route::Delimited | Route::Text => ("identity", Bytes::copy_from_slice(input)),
    };
    let request = Request::post("/").header("content-type", content_type).header("content-encoding", encoding);
    let request = request.body(Full::new(body)).expect("it is a request");
    let answer = RUNTIME.with_borrow(|runtime| {
        if receive {
            let stack = ServiceBuilder::new()
                .layer(authorize)
                .layer(DecodeLayer::new(WriteRequestDecoder::new(limits(tight))))
                .layer(enforce)
                .layer(EncodeLayer::new())
                .service(upstream);
            runtime.block_on(stack.oneshot(request))
        } else {
            let stack = ServiceBuilder::new()
                .layer(authorize)
                .layer(DecodeLayer::new(MetricFamiliesDecoder::new(limits(tight)).clock(StandingClock)))
                .layer(enforce)
                .layer(TranslateLayer::new().clock(StandingClock).stamp())
                .layer(EncodeLayer::new().when_empty(StatusCode::OK))
                .service(upstream);
            runtime.block_on(stack.oneshot(request))
        }
    });
    let forwarded = forwarded.lock().expect("one thread").take();
    (answer.map(|answer| answer.status()), forwarded)
}

/// What arrived, as others read it, with the time that it is stamped with; `None` if it is refused whole.
fn arrived(
    route: Route,
    tight: bool,
    input: &[u8],
    answer: &Result<StatusCode, Rejection>,
) -> Option<go::WriteRequest> {
    let receive = matches!(route, Route::Receive | Route::ReceiveFrom);
    if let Err(rejection) = answer {
        let whole = match rejection.reason() {
            Reason::Malformed
            | Reason::TooLarge
            | Reason::TooManySeries
            | Reason::TooManySamples
            | Reason::Timestamp => true,
            Reason::InvalidSeries => !receive,
            _ => false,
        };
        if whole {
            return None;
        }
    }
    let stamped = |mut series: go::TimeSeries| {
        let now = NOW.as_millis() as i64;
        series.samples.iter_mut().for_each(|it| it.timestamp = now);
        series.histograms.iter_mut().for_each(|it| it.timestamp = now);
        series
    };
    let of_families = |stream: &[u8]| {
        let read = families::read(stream).expect("prost reads what is taken");
        let series = families::expand(&read, &limits(tight), OLDEST).expect("it is as it should be");
        go::WriteRequest { timeseries: series.into_iter().map(stamped).collect(), metadata: Vec::new() }
    };
    Some(match route {
        Route::Receive => go::unmarshal(input).expect("Go reads what is taken"),
        Route::ReceiveFrom => {
            go::unmarshal(&oracle::unblock(input).expect("it was taken")).expect("Go reads what is taken")
        }
        Route::Delimited => of_families(input),
        Route::Framed => of_families(&oracle::unframed(input).expect("it was taken")),
        Route::Text => {
            let text =
                metric_families::decode(tight, "text/plain", "", Bytes::copy_from_slice(input)).expect("it was taken");
            let read = go::unmarshal(&text.translate(None).to_message()).expect("Go reads it");
            go::WriteRequest { timeseries: read.timeseries.into_iter().map(stamped).collect(), ..read }
        }
    })
}

/// A policy, and what it says in other words.
struct Rules {
    policy: Arc<LabelPolicy>,
    identity: Identity,
    check: ClusterLabelCheck,
    on_offence: OnOffence,
    /// Labels that must be there.
    require: &'static [(&'static str, &'static str)],
    clusters: &'static [&'static str],
    allows: fn(&Labels) -> bool,
    set: &'static [(&'static str, &'static str)],
    elide: &'static [&'static str],
}

enum Verdict {
    Keep(go::TimeSeries),
    Drop,
    Refuse,
}

static RULES: LazyLock<[Rules; 4]> = LazyLock::new(|| {
    [
        Rules::new(&[], &["c1"], &[], |_| true, &[], &[]),
        Rules::new(
            &[],
            &["c1"],
            &["up", r#"{__name__=~"a.*",job!="x"}"#, r#"{job=~"b|c.*",env!="",replica=""}"#],
            |labels| {
                let value = |name: &str| labels.get(name).map_or("", String::as_str);
                value("__name__") == "up"
                    || value("__name__").starts_with('a') && value("job") != "x"
                    || (value("job") == "b" || value("job").starts_with('c'))
                        && value("env") != ""
                        && value("replica") == ""
            },
            &[("region", "eu"), ("a", LONG)],
            &["replica"],
        ),
        Rules::new(
            &[("env", "prod"), ("_id", "c1")],
            &["c1", "c2"],
            &[r#"{__name__=~".+",__name__!="down",a!~"b+"}"#],
            |labels| {
                let value = |name: &str| labels.get(name).map_or("", String::as_str);
                let some_b = !value("a").is_empty() && value("a").bytes().all(|byte| byte == b'b');
                value("__name__") != "down" && !some_b && !value("__name__").is_empty()
            },
            &[("b", ""), ("", "x"), ("region", "eu")],
            &["job", "a"],
        )
        .refusing_requests(),
        Rules::new(&[], &["c1"], &["{job!=\"\"}"], |labels| labels.contains_key("job"), &[("_id", "c1")], &["job"])
            .counting(),
    ]
});

impl Rules {
    fn new(
        require: &'static [(&'static str, &'static str)],
        clusters: &'static [&'static str],
        allowlist: &[&str],
        allows: fn(&Labels) -> bool,
        set: &'static [(&'static str, &'static str)],
        elide: &'static [&'static str],
    ) -> Self {
        let selectors = allowlist.iter().map(|rule| rule.parse().expect("it is a selector"));
        let policy = LabelPolicy::new("_id").allow(selectors).expect("they are few");
        let policy = policy.set(set.iter().copied()).elide(elide.iter().copied());
        // Half by the identity, half by the policy.
        let (of_identity, of_policy) = require.split_at(require.len() / 2);
        let policy = policy.require(of_policy.iter().copied());
        let others: HashSet<Box<str>> = clusters.iter().skip(1).map(|cluster| (*cluster).into()).collect();
        let identity = Identity {
            labels: of_identity.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            writes: if others.is_empty() { Writes::Own } else { Writes::Also(Arc::new(others)) },
            ..Identity::of(ClusterId::new(clusters[0]).expect("it is an id"))
        };
        let (check, on_offence) = Default::default();
        Rules { policy: Arc::new(policy), identity, check, on_offence, require, clusters, allows, set, elide }
    }

    fn refusing_requests(self) -> Self {
        let policy = (*self.policy).clone().on_offence(OnOffence::RefuseRequest);
        Rules { policy: Arc::new(policy), on_offence: OnOffence::RefuseRequest, ..self }
    }

    fn counting(self) -> Self {
        let policy = (*self.policy).clone().check(ClusterLabelCheck::Count);
        Rules { policy: Arc::new(policy), check: ClusterLabelCheck::Count, ..self }
    }

    fn judge(&self, series: &go::TimeSeries, limits: &DecodeLimits) -> Verdict {
        let Some(mut labels) = oracle::canonical(&series.labels, limits) else { return Verdict::Refuse };
        let is = |(name, value): &(&str, &str)| *name == "_id" || labels.get(*name).is_some_and(|found| found == value);
        let ours = labels
            .get("_id")
            .is_some_and(|cluster| self.check == ClusterLabelCheck::Count || self.clusters.contains(&cluster.as_str()));
        if !ours || !self.require.iter().all(is) {
            return Verdict::Refuse;
        }
        if !(self.allows)(&labels) {
            return Verdict::Drop;
        }
        for (name, value) in self.set {
            labels.remove(*name);
            if !name.is_empty() && !value.is_empty() {
                labels.insert((*name).to_owned(), (*value).to_owned());
            }
        }
        for name in self.elide {
            labels.remove(*name);
        }
        Verdict::Keep(go::TimeSeries { labels: oracle::labels_of(labels), ..series.clone() })
    }

    /// What nobody may get past the policy, said again of what a receiver reads.
    fn assert_allowed(&self, series: &go::TimeSeries) {
        let values = |name: &str| -> Vec<&[u8]> {
            series.labels.iter().filter(|it| it.name == name.as_bytes()).map(|it| it.value.as_slice()).collect()
        };
        let [cluster] = values("_id")[..] else { panic!("{series:?}") };
        assert!(self.clusters.iter().any(|own| own.as_bytes() == cluster), "{series:?}");
        assert!(self.elide.iter().all(|name| values(name).is_empty()), "{series:?}");
        let kept = self.require.iter().filter(|(name, _)| *name != "_id" && !self.elide.contains(name));
        for (name, value) in kept.chain(self.set).filter(|(name, value)| !name.is_empty() && !value.is_empty()) {
            assert_eq!(values(name), [value.as_bytes()], "{series:?}");
        }
    }
}
