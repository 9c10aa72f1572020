//! A policy sees the same series whether it stands before Translate or looks at what Translate made, and says what it does.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity, Writes},
    decode::WriteRequestDecoder,
    encode::Encode,
    enforce::{ClusterLabelCheck, EnforceLabelsLayer, Enforced, Explained, LabelPolicy},
    payload::{Keep, LabelSet, SeriesSet},
    rejection::Rejection,
    translate::Translate,
};
use infogw_proto::{client::LabelPair, prometheus as prom};
use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::{
    DELIMITED,
    expansion::{arbitrary_families, decoder, expand, stream},
    families, shown, write_request,
};

/// One of each kind of rule, and the parts of histograms and summaries.
const RULES: [&str; 9] = [
    "f0",
    "f1_bucket",
    "f1_sum",
    "f2_count",
    r#"{__name__=~"f[0-3]_bucket",le="1"}"#,
    r#"{quantile="0.5"}"#,
    r#"{__name__=~".+_(sum|count)"}"#,
    r#"{__name__!~".*_bucket",a="x"}"#,
    r#"f3{b=""}"#,
];

proptest! {
    #[test]
    fn enforce_sees_the_same_series_on_either_side_of_translate(
        mut all in arbitrary_families(),
        rules in vec(select(&RULES), 1..4),
        elide in prop::option::of("[a-c]"),
    ) {
        for (index, metric) in all.iter_mut().flat_map(|family| &mut family.metric).enumerate() {
            // One in four is another cluster's.
            let cluster = if index % 4 == 3 { "c2" } else { "c1" };
            metric.label.push(LabelPair { name: Some("_id".to_owned()), value: Some(cluster.to_owned()) });
        }
        let rules = rules.iter().map(|rule| rule.parse().unwrap());
        let policy = LabelPolicy::new("_id").allow(rules).unwrap().set([("b", "set")]).elide(elide);
        let policy = Arc::new(policy);
        let decoded = || families(&decoder(), DELIMITED, "", stream(&all).into()).unwrap();

        // The labels themselves.
        let expected: Vec<Vec<_>> = all.iter().flat_map(expand).map(|point| point.labels.into_iter().collect()).collect();
        prop_assert_eq!(shown(&mut decoded()), expected.clone());
        let translated = || {
            let (sent, _) = decoded().translate(None).encode().unwrap();
            WriteRequestDecoder::default().decode_block(sent).unwrap()
        };
        prop_assert_eq!(shown(&mut translated()), expected);

        // And what the layer makes of them.
        let (before, counted_before, told_before) = enforced(&policy, &c1(), decoded());
        let (after, counted_after, told_after) = enforced(&policy, &c1(), translated());
        prop_assert_eq!(before.translate(None).to_message(), after.to_message());
        prop_assert_eq!(counted_before, counted_after);
        prop_assert_eq!(told_before, told_after);
    }
}

proptest! {
    /// Series by series, byte for byte: what goes on, what is counted, and what the sender is told.
    #[test]
    fn explain_says_what_enforce_does(
        series in vec(arbitrary_series(), 0..12),
        policy in arbitrary_policy(),
        held in any::<bool>(),
    ) {
        let labels = if held { vec![("env".into(), "prod".into())] } else { Vec::new() };
        let (identity, policy) = (Identity { labels, ..c1() }, Arc::new(policy));
        let message = prom::WriteRequest { timeseries: series, ..Default::default() }.encode_to_vec();

        let mut explained = Vec::new();
        let mut asked = write_request(&message).unwrap();
        asked.try_edit(|labels| -> Result<Keep, Infallible> {
            let rest = message_of(&message, labels.index());
            explained.push((rest, policy.explain(&identity, labels)));
            Ok(Keep::Yes)
        }).unwrap();
        prop_assert_eq!(asked.to_message(), write_request(&message).unwrap().to_message(), "asking changes nothing");

        let (sent, [kept, dropped, missing, foreign], told) = enforced(&policy, &identity, write_request(&message).unwrap());
        let mut expected = prom::WriteRequest::default();
        let (mut refused, mut off_list, mut others) = (Vec::new(), 0, 0);
        for (series, explained) in explained {
            match explained {
                Explained::Kept { labels, foreign, .. } => {
                    others += usize::from(foreign);
                    let label = |(name, value): (Box<str>, Box<str>)| prom::Label { name: name.into(), value: value.into() };
                    let labels = labels.into_iter().map(label).collect();
                    expected.timeseries.push(prom::TimeSeries { labels, ..series });
                }
                Explained::Dropped => off_list += 1,
                Explained::Refused(offence) => refused.push(offence),
            }
        }
        prop_assert_eq!(sent.to_message(), expected.encode_to_vec());
        prop_assert_eq!((kept, dropped, missing + foreign >= refused.len() + others), (expected.timeseries.len(), off_list, true));
        let first = refused.first().map(|offence| format!("{offence}; {} of {} series refused", refused.len(), kept + dropped + refused.len()));
        prop_assert_eq!(told, first);
    }
}

fn message_of(message: &[u8], index: usize) -> prom::TimeSeries {
    prom::WriteRequest::decode(message).unwrap().timeseries.swap_remove(index)
}

/// A series, mostly of `c1`.
fn arbitrary_series() -> impl Strategy<Value = prom::TimeSeries> {
    let name = select(&["f0", "f1_bucket", "f1_sum", "f3", ""]);
    let others = vec((select(&["a", "b", "c", "env", "le"]), select(&["x", "set", "prod", "1", ""])), 0..5);
    let cluster = select(&["c1", "c1", "c1", "c2", "c3", ""]);
    (name, others, cluster, any::<f64>()).prop_map(|(name, others, cluster, value)| {
        let labels = others.into_iter().chain([("__name__", name), ("_id", cluster)]);
        let labels = labels.map(|(name, value)| prom::Label { name: name.into(), value: value.into() }).collect();
        prom::TimeSeries { labels, samples: std::vec![prom::Sample { value, timestamp: 1 }], ..Default::default() }
    })
}

fn arbitrary_policy() -> impl Strategy<Value = LabelPolicy> {
    use ClusterLabelCheck::{Count, Enforce, Off};
    let labels = || vec((select(&["a", "b", "region"]), select(&["x", "set", ""])), 0..3);
    (
        vec(select(&RULES), 0..4),
        select(&[Enforce, Count, Off]),
        labels(),
        vec(select(&["a", "c", "absent"]), 0..2),
        prop::option::weighted(0.2, Just(("a", "x"))),
        any::<bool>(),
    )
        .prop_map(|(rules, check, set, elide, require, delegated)| {
            let policy = LabelPolicy::new("_id").check(check).set(set).elide(elide).require(require);
            let policy = policy.allow(rules.iter().map(|rule| rule.parse().unwrap())).unwrap();
            let hosted = Writes::Also(Arc::new(HashSet::from(["c3".into()])));
            if delegated { policy.writes(hosted) } else { policy }
        })
}

#[test]
fn explain_names_the_first_rule_that_selects() {
    let rules = ["up", r#"{__name__=~"u.*"}"#, "down"].map(|rule| rule.parse().unwrap());
    let policy = LabelPolicy::new("_id").allow(rules).unwrap();
    let rule = |policy: &LabelPolicy, name: &str| {
        let labels = [("__name__", name), ("_id", "c1")].map(|(n, v)| prom::Label { name: n.into(), value: v.into() });
        let series = prom::TimeSeries { labels: labels.into(), ..Default::default() };
        let message = prom::WriteRequest { timeseries: std::vec![series], ..Default::default() }.encode_to_vec();
        let mut found = None;
        let explain = |labels: &mut LabelSet<'_>| -> Result<Keep, Infallible> {
            found = Some(policy.explain(&c1(), labels));
            Ok(Keep::Yes)
        };
        write_request(&message).unwrap().try_edit(explain).unwrap();
        match found.unwrap() {
            Explained::Kept { rule, .. } => Ok(rule),
            other => Err(other),
        }
    };
    let found = ["up", "uptime", "down", "other"].map(|name| rule(&policy, name));
    assert_eq!(found, [Ok(Some(0)), Ok(Some(1)), Ok(Some(2)), Err(Explained::Dropped)]);
    assert_eq!(rule(&policy.allow_all(), "other"), Ok(None));
}

fn c1() -> Identity {
    Identity::of(ClusterId::new("c1").unwrap())
}

/// What [`EnforceLabelsLayer`] makes of a payload of `identity`; what it counted; and what it would tell the sender.
fn enforced<P: SeriesSet + Send + 'static>(
    policy: &Arc<LabelPolicy>,
    identity: &Identity,
    payload: P,
) -> (P, [usize; 4], Option<String>) {
    let identity = Arc::new(identity.clone());
    let (inside, counts) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new([0; 4])));
    let (put, count) = (inside.clone(), counts.clone());
    let observe =
        move |seen: &Enforced<'_>| *count.lock().unwrap() = [seen.kept, seen.dropped, seen.missing, seen.foreign];
    let service = ServiceBuilder::new()
        .layer(AuthorizeLayer::new(
            |_: &Request<P>| Ok::<_, Rejection>(()),
            service_fn(move |()| std::future::ready(Ok::<_, Infallible>(Arc::clone(&identity)))),
        ))
        .layer(EnforceLabelsLayer::new(policy.clone()).observed_by(observe))
        .service(service_fn(move |request: Request<P>| {
            *put.lock().unwrap() = Some(request.into_body());
            async { Ok::<_, Infallible>(Response::new(())) }
        }));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(service.oneshot(Request::new(payload))).unwrap();
    let mut payload = inside.lock().unwrap().take().unwrap();
    let told = payload.refused().rejection().map(|rejection| rejection.detail().to_owned());
    let counts = *counts.lock().unwrap();
    (payload, counts, told)
}
