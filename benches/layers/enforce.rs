//! Whose series, which series, which labels.

use criterion::Criterion;
use infogw_layers::{
    decode::{DecodeLimits, MetricFamiliesDecoder},
    enforce::{EnforceLabelsLayer, LabelPolicy},
    payload::SeriesSet,
};
use tower::{Layer, service_fn};

use crate::{
    inputs::{Pushed, SIZES, UPLOAD, authorized, decoded, identity},
    measure::{Group, call, hand_back},
    telemetry::{self, NAMES, REPLICA, RULES},
};

/// Names that are kept where a fifth is dropped.
const FOUR_FIFTHS: usize = NAMES * 4 / 5;

pub(crate) fn benches(criterion: &mut Criterion) {
    let mut group = Group::new(criterion, "enforce");
    let families = MetricFamiliesDecoder::new(DecodeLimits::default());
    let usual = Cases::new(RULES);
    for pushed in SIZES.map(Pushed::new) {
        usual.measure(&mut group, "remote write", &pushed, || pushed.write_request());
        usual.measure(&mut group, "upload", &pushed, || decoded(&families, &UPLOAD, &pushed.upload));
    }
    let pushed = Pushed::new(500);
    Cases::new(10_000).measure(&mut group, "remote write", &pushed, || pushed.write_request());
}

/// What so many rules make of a payload.
struct Cases {
    rules: usize,
    keeping: LabelPolicy,
    /// A fifth of the series is dropped, and a label of the others elided.
    rewriting: LabelPolicy,
}

impl Cases {
    fn new(rules: usize) -> Self {
        let keeping = |names| {
            let selectors = telemetry::rules(rules, names).into_iter().map(|rule| rule.parse().expect("a selector"));
            LabelPolicy::new("_id").allow(selectors).expect("compiles")
        };
        Cases { rules, keeping: keeping(NAMES), rewriting: keeping(FOUR_FIFTHS).elide([REPLICA]) }
    }

    fn measure<P: SeriesSet>(
        &self,
        group: &mut Group<'_>,
        endpoint: &str,
        pushed: &Pushed,
        payload: impl Fn() -> P + Sync,
    ) {
        for (what, policy, names) in [("all kept", &self.keeping, NAMES), ("rewritten", &self.rewriting, FOUR_FIFTHS)] {
            let service = EnforceLabelsLayer::new(policy.clone()).layer(service_fn(hand_back));
            let request = || authorized(identity(1), payload());
            let kept = call(&mut service.clone(), request()).expect("accepted").into_body().body().series();
            assert_eq!(kept, (pushed.series * names).div_ceil(NAMES), "{what}");
            let name = format!("EnforceLabelsLayer, {endpoint}, {what}, {} rules", self.rules);
            group.service(&name, pushed.load(), &service, request);
        }
    }
}
