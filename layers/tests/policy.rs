//! What holds for whom.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Request};
use infogw_layers::{
    authorize::{AuthorizeLayer, ClusterId, Identity, Writes},
    clock::{Clock, ManualClock},
    decode::DecodeLimits,
    enforce::LabelPolicy,
    policy::{Denial, Endpoint, Exempt, LivePolicy, Overrides, Policy, PolicyLayer, Setting, Size, Tenant, Terms},
    rate_limit::Quota,
    rejection::{Reason, Rejection},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

fn common() -> Terms {
    let quota = Quota::one_per(Duration::from_secs(60));
    let terms = Terms::new(LabelPolicy::new("_id").set([("a", "1")]), DecodeLimits::default());
    Terms { request_quota: quota, sample_quota: quota, ..terms }
}

fn sender(cluster: &str, account: Option<&str>) -> Identity {
    Identity { account: account.map(Arc::from), ..Identity::of(ClusterId::new(cluster).unwrap()) }
}

fn limit(size: Size, limit: usize) -> (Endpoint, Setting) {
    (Endpoint::Receive, Setting::Limit(size, limit))
}

#[test]
fn what_is_said_of_the_cluster_goes_over_what_is_said_of_its_account_key_by_key() {
    let mut overrides = Overrides::default();
    overrides.account("a1", [limit(Size::Series, 10), limit(Size::Labels, 10)]);
    overrides.cluster("c1", [limit(Size::Labels, 20), limit(Size::Samples, 20)]);
    let policy = Policy::new(common(), common()).overrides(overrides);
    let sizes = |endpoint, cluster, account| {
        let terms = policy.terms(endpoint, &sender(cluster, account));
        [terms.limits.series, terms.limits.labels, terms.limits.samples]
    };
    let [series, labels, samples] = [20_000, 128, usize::MAX];
    for (cluster, account, expected) in [
        ("c1", Some("a1"), [10, 20, 20]),
        ("c1", None, [series, 20, 20]),
        ("c1", Some("a2"), [series, 20, 20]),
        ("c2", Some("a1"), [10, 10, samples]),
        ("c2", None, [series, labels, samples]),
        // An account's id is no cluster's.
        ("a1", Some("c1"), [series, labels, samples]),
    ] {
        assert_eq!(sizes(Endpoint::Receive, cluster, account), expected, "{cluster} {account:?}");
        assert_eq!(sizes(Endpoint::Upload, cluster, account), [series, labels, samples], "{cluster} {account:?}");
    }
}

#[test]
fn whoever_has_no_override_gets_the_common_terms_themselves() {
    let mut overrides = Overrides::default();
    overrides.cluster("c1", [limit(Size::Series, 10)]);
    let policy = Policy::new(common(), common()).overrides(overrides);
    for endpoint in Endpoint::ALL {
        let terms = policy.terms(endpoint, &sender("c2", Some("a1")));
        assert!(Arc::ptr_eq(&terms, policy.common(endpoint)), "nothing was made anew");
    }
}

#[test]
fn what_is_exempt_is_so_whatever_else_is_said() {
    let all = Exempt { rates: true, sizes: true, allowlist: true };
    let quota = Quota::one_per(Duration::from_secs(1));
    let require: Arc<[_]> = [("env".into(), "prod".into())].into();
    for settings in [
        [Setting::Exempt(all), Setting::SampleQuota(quota), Setting::Limit(Size::Series, 1)],
        [Setting::SampleQuota(quota), Setting::Limit(Size::Series, 1), Setting::Exempt(all)],
    ] {
        let terms = common().with(settings.iter().chain([&Setting::Require(Arc::clone(&require))]));
        assert_eq!((terms.request_quota, terms.sample_quota), (None, None));
        assert!(terms.limits.series > 20_000 && terms.limits.decoded > 16 << 20, "{:?}", terms.limits);
        assert_eq!(terms.limits.unrepeatable, [Box::from("env")], "whose series it is must still be said once");
    }
    // The later word of two counts, whole.
    let terms = common().with(&[Setting::Exempt(all), Setting::Exempt(Exempt::default())]);
    assert!(terms.sample_quota.is_some() && terms.limits.series == 20_000);
}

/// Each key by itself: a limit of the cluster goes over what its account is exempt from, and over nothing else.
#[test]
fn a_limit_of_the_cluster_goes_over_what_its_account_is_exempt_from() {
    let quota = Quota::one_per(Duration::from_secs(1000));
    let all = Exempt { rates: true, sizes: true, allowlist: true };
    let at = |setting| (Endpoint::Receive, setting);
    let mut overrides = Overrides::default();
    overrides.account("a1", [at(Setting::Exempt(all)), at(Setting::SampleQuota(quota)), limit(Size::Labels, 7)]);
    overrides.cluster("c1", [at(Setting::RequestQuota(quota)), limit(Size::Series, 5)]);
    overrides.cluster("c2", [at(Setting::Exempt(Exempt::default()))]);
    let policy = Policy::new(common(), common()).overrides(overrides);
    let of = |cluster| {
        let terms = policy.terms(Endpoint::Receive, &sender(cluster, Some("a1")));
        (terms.request_quota, terms.sample_quota, terms.limits.series, terms.limits.labels)
    };
    assert_eq!(of("c1"), (quota, None, 5, usize::MAX));
    assert_eq!(
        of("c2"),
        (common().request_quota, quota, 20_000, 7),
        "exempt from nothing, so its account's limits hold"
    );
    assert_eq!(of("c3").0, None);
}

/// What a service inside finds in the extensions.
type Found = (usize, bool, Option<HeaderValue>);

async fn ask(policy: &LivePolicy, clock: &ManualClock, cluster: &'static str) -> Result<Found, Rejection> {
    let service = ServiceBuilder::new()
        .layer(AuthorizeLayer::new(
            |request: &Request<&'static str>| Ok::<_, Rejection>(*request.body()),
            service_fn(async |name: &'static str| Ok::<_, Rejection>(Arc::new(sender(name, None)))),
        ))
        .layer(PolicyLayer::new(policy.clone(), Endpoint::Receive).clock(clock.clone()))
        .service(service_fn(async |request: Request<&'static str>| {
            let extensions = request.extensions();
            let limits: &Arc<DecodeLimits> = extensions.get().unwrap();
            let labels: &Arc<LabelPolicy> = extensions.get().unwrap();
            let terms: &Arc<Terms> = extensions.get().unwrap();
            let tenant = terms.tenant.as_ref().map(|tenant| tenant.header.clone());
            Ok::<_, Rejection>((limits.series, Arc::ptr_eq(labels, &terms.labels), tenant))
        }));
    service.oneshot(Request::new(cluster)).await
}

#[tokio::test]
async fn the_layers_inside_find_what_holds() {
    let tenant = Tenant { header: HeaderValue::from_static("gold"), uri: None };
    let mut overrides = Overrides::default();
    overrides.cluster(
        "c1",
        [
            limit(Size::Series, 10),
            (Endpoint::Receive, Setting::Tenant(tenant.into())),
            (Endpoint::Receive, Setting::Writes(Writes::Any)),
        ],
    );
    let policy = LivePolicy::new(Policy::new(common(), common()).overrides(overrides));
    let clock = ManualClock::new();
    let gold = Some(HeaderValue::from_static("gold"));
    assert_eq!(ask(&policy, &clock, "c1").await.unwrap(), (10, true, gold));
    assert_eq!(ask(&policy, &clock, "c2").await.unwrap(), (20_000, true, None));

    policy.replace(Policy::new(common(), common()));
    assert_eq!(ask(&policy, &clock, "c1").await.unwrap(), (20_000, true, None), "from the next request on");
}

/// Freeing a million overrides takes long, and no request waits for that.
#[test]
fn an_old_policy_is_freed_by_whoever_replaces_it_not_by_a_request_that_looks_something_up() {
    let made = || {
        let settings = Arc::new([limit(Size::Series, 10)]);
        let mut overrides = Overrides::default();
        overrides.cluster("c1", Arc::clone(&settings) as Arc<[_]>);
        (Policy::new(common(), common()).overrides(overrides), Arc::downgrade(&settings))
    };
    let (first, mut old) = made();
    let (policy, done) = (LivePolicy::new(first), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let clock = ManualClock::new();
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(runtime.block_on(ask(&policy, &clock, "c1")).unwrap().0, 10);
                }
            });
        }
        let mut outlived = 0;
        for _ in 0..3_000 {
            let (next, its) = made();
            policy.replace(next);
            outlived += usize::from(std::mem::replace(&mut old, its).strong_count() > 0);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(outlived, 0, "freed before it was replaced for good");
    });
}

#[tokio::test]
async fn who_is_denied_hears_why_and_until_when() {
    let clock = ManualClock::new();
    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    let denied = |until| Setting::Denial(Some(Denial { reason: "unpaid since May".into(), until }.into()));
    let mut overrides = Overrides::default();
    overrides.cluster("forever", [(Endpoint::Receive, denied(None))]);
    overrides.cluster("until", [(Endpoint::Receive, denied(Some(until)))]);
    overrides.cluster("over", [(Endpoint::Receive, denied(Some(clock.now())))]);
    overrides.cluster("forgiven", [(Endpoint::Receive, denied(None)), (Endpoint::Receive, Setting::Denial(None))]);
    // What has run out says nothing: what was said before it counts again.
    let over = || denied(Some(clock.now()));
    overrides.cluster("again", [(Endpoint::Receive, denied(None)), (Endpoint::Receive, over())]);
    let beyond = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40));
    overrides.cluster("beyond", [(Endpoint::Receive, denied(beyond))]);
    let policy = LivePolicy::new(Policy::new(common(), common()).overrides(overrides));
    for (cluster, detail) in [
        ("again", "cluster `again` may not write here, for good: unpaid since May"),
        ("beyond", "cluster `beyond` may not write here, for good: unpaid since May"),
        ("forever", "cluster `forever` may not write here, for good: unpaid since May"),
        ("until", "cluster `until` may not write here, until 2100-01-01T00:00:00Z: unpaid since May"),
    ] {
        let refused = ask(&policy, &clock, cluster).await.unwrap_err();
        assert_eq!((refused.reason(), refused.status().as_u16()), (Reason::Denied, 403));
        assert_eq!(refused.detail(), detail);
    }
    for cluster in ["over", "forgiven", "other"] {
        assert!(ask(&policy, &clock, cluster).await.is_ok(), "{cluster}");
    }
}
