//! A policy sees the same series whether it stands before Translate or looks at what Translate made.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity},
    decode::WriteRequestDecoder,
    encode::Encode,
    enforce::{EnforceLabelsLayer, Enforced, LabelPolicy},
    payload::SeriesSet,
    rejection::Rejection,
    translate::Translate,
};
use infogw_proto::client::LabelPair;
use proptest::{collection::vec, prelude::*, sample::select};
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::{
    DELIMITED,
    expansion::{arbitrary_families, decoder, expand, stream},
    families, shown,
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
        let (before, counted_before, told_before) = enforced(&policy, decoded());
        let (after, counted_after, told_after) = enforced(&policy, translated());
        prop_assert_eq!(before.translate(None).to_message(), after.to_message());
        prop_assert_eq!(counted_before, counted_after);
        prop_assert_eq!(told_before, told_after);
    }
}

/// What [`EnforceLabelsLayer`] makes of a payload of the cluster `c1`; what it counted; and what it would tell the sender.
fn enforced<P: SeriesSet + Send + 'static>(policy: &Arc<LabelPolicy>, payload: P) -> (P, [usize; 4], Option<String>) {
    let (inside, counts) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new([0; 4])));
    let (put, count) = (inside.clone(), counts.clone());
    let observe =
        move |seen: &Enforced<'_>| *count.lock().unwrap() = [seen.kept, seen.dropped, seen.missing, seen.foreign];
    let service = ServiceBuilder::new()
        .layer(AuthorizeLayer::new(
            |_: &Request<P>| Ok::<_, Rejection>(()),
            service_fn(async |()| Ok::<_, Infallible>(Arc::new(Identity::of(ClusterId::new("c1").unwrap())))),
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
