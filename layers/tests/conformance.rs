//! Every layer, under the conformance kit; and what happens at which time, with clocks that stand still.
#![cfg(all(
    feature = "authorize",
    feature = "cache",
    feature = "decode",
    feature = "drain",
    feature = "edit",
    feature = "encode",
    feature = "enforce",
    feature = "observe",
    feature = "rate-limit",
    feature = "respond",
    feature = "test-util",
    feature = "translate"
))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "conformance/fixtures.rs"]
mod fixtures;
#[path = "conformance/time.rs"]
mod time;
#[path = "conformance/violations.rs"]
mod violations;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use http::{Request, Response};
use infogw_layers::{
    authorize::{
        AuthorizeLayer, BearerToken, Identity, Secret,
        cache::{CacheConfig, CacheLayer},
        single_flight::SingleFlightLayer,
    },
    circuit::{Circuit, CircuitLayer},
    clock::ManualClock,
    conformance::{Conformance, Second},
    decode::{DecodeLayer, DecodeLimits, MetricFamiliesDecoder, WriteRequestDecoder},
    drain::DrainLayer,
    edit::{EditLayer, SetLabels},
    encode::EncodeLayer,
    enforce::{EnforceLabelsLayer, LabelPolicy, OnOffence},
    observe::ObserveLayer,
    payload::{MetricFamilies, Offence, SeriesSet},
    policy::{Denial, Endpoint, LivePolicy, Overrides, Policy, PolicyLayer, RequestQuota, SampleQuota, Setting, Terms},
    rate_limit::{Due, PerCluster, Quota, RateLimitLayer, SamplesPerCluster},
    rejection::{Reason, Rejection},
    respond::RespondLayer,
    translate::TranslateLayer,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_test::mock;

use fixtures::{Pieces, SlowLimiter, authorizer, bearer, families, unique, witnessed, write_request};

const MINUTE: Duration = Duration::from_secs(60);

fn unit() -> Response<()> {
    Response::new(())
}

#[tokio::test]
async fn observe() {
    Conformance::computing(ObserveLayer::new(()), || Request::new(()), unit).check().await;
}

#[tokio::test(start_paused = true)]
async fn drain() {
    let layer = || DrainLayer::new(1000, Duration::from_secs(1));
    Conformance::computing(layer(), || Request::new(Pieces::of(b"0123456789")), unit).check().await;
    // The answer waits for the drain's time, and nothing inside waits with it.
    Conformance::computing(layer(), || Request::new(Pieces::endless()), unit).readiness().await;
}

#[tokio::test]
async fn respond() {
    let layer = RespondLayer::new();
    Conformance::waiting(layer, || Request::new(()), || Response::new("done".to_owned()))
        .refusal_in(|response| (response.status() == 503).then_some(Reason::UpstreamUnavailable))
        .check()
        .await;
}

#[tokio::test]
async fn authorize() {
    let layer = AuthorizeLayer::new(BearerToken, service_fn(authorizer));
    Conformance::waiting(layer, || bearer("c1", ()), unit)
        .refuses(Reason::Unauthenticated, || Request::new(()))
        .refuses(Reason::Unauthenticated, || bearer("unknown", ()))
        .refuses(Reason::AuthorizerRefused, || bearer("refused", ()))
        .refuses(Reason::AuthorizerThrottled, || bearer("throttled", ()))
        .refuses(Reason::ClientInfo, || bearer("client info", ()))
        .refuses(Reason::AuthorizerUnavailable, || bearer("unavailable", ()))
        .stalls_on(|| bearer("stalled", ()))
        .check()
        .await;
}

#[tokio::test]
async fn cache() {
    let layer = CacheLayer::<Identity>::new(CacheConfig::default()).clock(ManualClock::new());
    let conformance = Conformance::waiting(layer, || Secret::new(unique()), fixtures::identity);
    conformance.readiness().await;
    conformance.clones().await;
    conformance.cancellation().await;
    let alike = || {
        let token = unique();
        [Secret::new(token.clone()), Secret::new(token)]
    };
    conformance.sharing(alike, Second::Answered).await;
}

#[tokio::test]
async fn single_flight() {
    let conformance = Conformance::waiting(SingleFlightLayer::new(512), || Secret::new(unique()), fixtures::identity);
    conformance.readiness().await;
    conformance.clones().await;
    conformance.cancellation().await;
}

#[tokio::test]
async fn circuit() {
    let open = Circuit::new(NonZeroU32::MIN, MINUTE);
    let Ok(attempt) = open.admit(Duration::ZERO) else { panic!("a new circuit is closed") };
    attempt.failed(Duration::ZERO);
    let refusal = Rejection::new(Reason::AuthorizerUnavailable, "left alone");
    let (inner, mut handle) = mock::pair::<Request<()>, Response<()>>();
    let clock = ManualClock::new();
    let service = CircuitLayer::new(open, refusal).clock(clock.clone()).layer(inner);
    let refused = Rejection::from(service.clone().oneshot(Request::new(())).await.unwrap_err());
    assert_eq!((refused.reason(), refused.wait()), (Reason::AuthorizerUnavailable, Some(MINUTE)));
    assert!(handle.poll_request().is_pending());

    let answered = |status: u16| Response::builder().status(status).body(()).unwrap();
    for (status, closes) in [(503, false), (504, false), (502, false), (500, true), (404, true), (200, true)] {
        clock.advance(MINUTE);
        let probe = tokio::spawn(service.clone().oneshot(Request::new(())));
        handle.next_request().await.unwrap().1.send_response(answered(status));
        assert_eq!(probe.await.unwrap().unwrap().status(), status);
        if closes {
            let next = tokio::spawn(service.clone().oneshot(Request::new(())));
            handle.next_request().await.unwrap().1.send_error("hung up");
            assert_eq!(next.await.unwrap().unwrap_err().to_string(), "hung up");
        }
        let refused = service.clone().oneshot(Request::new(())).await.unwrap_err();
        assert_eq!(Rejection::from(refused).wait(), Some(MINUTE), "{status}");
    }
}

#[tokio::test]
async fn rate_limit() {
    let once = Quota::one_per(MINUTE).unwrap();
    let charge = move |request: &Request<u32>| {
        let key = request.headers().get("host")?.as_bytes().to_vec();
        Some(Due { key, cost: *request.body(), quota: once })
    };
    let from = |host: String, cost| Request::builder().header("host", host).body(cost).unwrap();
    let conformance =
        Conformance::computing(RateLimitLayer::new(charge).clock(ManualClock::new()), move || from(unique(), 1), unit)
            .refuses(Reason::OverBurst, move || from(unique(), 2))
            .refuses(Reason::Internal, || Request::new(1));
    conformance.check().await;
    let alike = || {
        let host = unique();
        [from(host.clone(), 1), from(host, 1)]
    };
    conformance.sharing(alike, Second::Refused(Reason::RateLimited)).await;

    let per_cluster = RateLimitLayer::new(PerCluster(once)).clock(ManualClock::new());
    let conformance = Conformance::computing(per_cluster, || witnessed(&unique(), ()), unit)
        .refuses(Reason::Internal, || Request::new(()));
    conformance.check().await;
    let alike = || {
        let cluster = unique();
        [witnessed(&cluster, ()), witnessed(&cluster, ())]
    };
    conformance.sharing(alike, Second::Refused(Reason::RateLimited)).await;

    let layer = || RateLimitLayer::new(SamplesPerCluster(once)).clock(ManualClock::new());
    Conformance::computing(layer(), || witnessed(&unique(), write_request(&["c1"])), unit)
        .refuses(Reason::OverBurst, || witnessed(&unique(), write_request(&["c1", "c1"])))
        .refuses(Reason::Internal, || Request::new(write_request(&["c1"])))
        .check()
        .await;

    // By terms: those without a quota let all pass, those with one are as above.
    let under = |quota, cluster: &str| {
        let terms = Terms::new(LabelPolicy::new("_id"), DecodeLimits::default());
        let mut request = witnessed(cluster, write_request(&["c1", "c1"]));
        request.extensions_mut().insert(Arc::new(Terms { request_quota: quota, sample_quota: quota, ..terms }));
        request
    };
    let by_terms = RateLimitLayer::new(RequestQuota).clock(ManualClock::new());
    Conformance::computing(by_terms.clone(), move || under(None, "c1"), unit)
        .refuses(Reason::Internal, || witnessed("c1", write_request(&["c1"])))
        .check()
        .await;
    let conformance = Conformance::computing(by_terms, move || under(Some(once), &unique()), unit);
    let alike = move || {
        let cluster = unique();
        [under(Some(once), &cluster), under(Some(once), &cluster)]
    };
    conformance.sharing(alike, Second::Refused(Reason::RateLimited)).await;
    let by_terms = RateLimitLayer::new(SampleQuota).clock(ManualClock::new());
    Conformance::computing(by_terms, move || under(None, "c1"), unit)
        .refuses(Reason::OverBurst, move || under(Some(once), "c1"))
        .check()
        .await;
}

#[tokio::test]
async fn policy() {
    let terms = Terms::new(LabelPolicy::new("_id"), DecodeLimits::default());
    let mut overrides = Overrides::default();
    let denial = Denial { reason: "unpaid".into(), until: None };
    overrides.cluster("c2", [(Endpoint::Receive, Setting::Denial(Some(denial.into())))]);
    let policy = LivePolicy::new(Policy::new(terms.clone(), terms).overrides(overrides));
    let layer = PolicyLayer::new(policy, Endpoint::Receive);
    Conformance::computing(layer, || witnessed("c1", ()), unit)
        .refuses(Reason::Denied, || witnessed("c2", ()))
        .refuses(Reason::Internal, || Request::new(()))
        .check()
        .await;
}

/// A limiter that takes its time must not hold the readiness inside meanwhile.
#[tokio::test]
async fn rate_limit_by_a_limiter_that_waits() {
    let once = Quota::one_per(MINUTE).unwrap();
    let layer =
        RateLimitLayer::new(PerCluster(once)).limiter(Arc::new(SlowLimiter::default())).clock(ManualClock::new());
    let conformance = Conformance::waiting(layer, || witnessed(&unique(), ()), unit)
        .refuses(Reason::Internal, || Request::new(()))
        .stalls_on(|| witnessed(SlowLimiter::STALLED, ()));
    conformance.check().await;
    let alike = || {
        let cluster = unique();
        [witnessed(&cluster, ()), witnessed(&cluster, ())]
    };
    conformance.sharing(alike, Second::Refused(Reason::RateLimited)).await;
}

#[tokio::test(start_paused = true)]
async fn decode_write_requests() {
    let limits = DecodeLimits { body: 1000, series: 2, samples: 3, ..DecodeLimits::default() };
    let layer = DecodeLayer::new(WriteRequestDecoder::new(limits)).timeout(Duration::from_secs(1));
    let send = |body| Request::new(body);
    Conformance::waiting(layer, move || send(Pieces::of(&fixtures::block(2))), unit)
        .refuses(Reason::MediaType, || {
            Request::post("/").header("content-type", "text/html").body(Pieces::of(b"")).unwrap()
        })
        .refuses(Reason::Encoding, || {
            Request::post("/").header("content-encoding", "gzip").body(Pieces::of(b"")).unwrap()
        })
        .refuses(Reason::TooLarge, move || send(Pieces::of(&[0; 1001])))
        .refuses(Reason::TooManySeries, move || send(Pieces::of(&fixtures::block(3))))
        .refuses(Reason::TooManySamples, move || send(Pieces::of(&fixtures::block_of(1, 4))))
        .refuses(Reason::Body, move || send(Pieces::broken()))
        .refuses(Reason::BodyTimeout, move || send(Pieces::endless()))
        .refuses(Reason::Malformed, move || send(Pieces::of(b"not snappy")))
        .stalls_on(move || send(Pieces::endless()))
        .check()
        .await;
}

#[tokio::test(start_paused = true)]
async fn decode_metric_families() {
    let limits = DecodeLimits { decoded: 100, series: 2, labels: 1, ..DecodeLimits::default() };
    let decoder = MetricFamiliesDecoder::new(limits).clock(ManualClock::new());
    let layer = DecodeLayer::new(decoder).timeout(Duration::from_secs(1));
    let send = |text: &str| Request::new(Pieces::of(text.replace("NOW", &fixtures::now()).as_bytes()));
    Conformance::waiting(layer, move || send("up 1 NOW\n"), unit)
        .refuses(Reason::MediaType, || {
            Request::post("/").header("content-type", "text/html").body(Pieces::of(b"")).unwrap()
        })
        .refuses(Reason::Encoding, || {
            Request::post("/").header("content-encoding", "gzip").body(Pieces::of(b"")).unwrap()
        })
        .refuses(Reason::TooLarge, move || send(&"#\n".repeat(51)))
        .refuses(Reason::TooManySeries, move || send(&"up 1 NOW\n".repeat(3)))
        .refuses(Reason::Body, || Request::new(Pieces::broken()))
        .refuses(Reason::BodyTimeout, || Request::new(Pieces::endless()))
        .refuses(Reason::Malformed, move || send("up one NOW\n"))
        .refuses(Reason::InvalidSeries, move || send("up{a=\"b\",c=\"d\"} 1 NOW\n"))
        .refuses(Reason::Timestamp, move || send("up 1\n"))
        .stalls_on(|| Request::new(Pieces::endless()))
        .check()
        .await;
}

/// A request that nobody gave limits is not decoded without.
#[tokio::test]
async fn decode_within_the_requests_own_limits() {
    fn limited<B>(body: B, series: usize, samples: usize) -> Request<B> {
        let mut request = Request::new(body);
        request.extensions_mut().insert(Arc::new(DecodeLimits { series, samples, ..DecodeLimits::default() }));
        request
    }
    let send = |series, samples| limited(Pieces::of(&fixtures::block_of(2, 2)), series, samples);
    Conformance::waiting(DecodeLayer::new(WriteRequestDecoder::per_request()), move || send(2, 4), unit)
        .refuses(Reason::TooManySeries, move || send(1, 4))
        .refuses(Reason::TooManySamples, move || send(2, 3))
        .refuses(Reason::Internal, || Request::new(Pieces::of(&fixtures::block_of(2, 2))))
        .check()
        .await;
    let decoder = MetricFamiliesDecoder::per_request().clock(ManualClock::new());
    let text = || Pieces::of("up 1 NOW\n".repeat(2).replace("NOW", &fixtures::now()).as_bytes());
    Conformance::waiting(DecodeLayer::new(decoder), move || limited(text(), 2, 2), unit)
        .refuses(Reason::TooManySeries, move || limited(text(), 1, 2))
        .refuses(Reason::TooManySamples, move || limited(text(), 2, 1))
        .refuses(Reason::Internal, move || Request::new(text()))
        .check()
        .await;
}

#[tokio::test]
async fn enforce() {
    let layer = || EnforceLabelsLayer::new(LabelPolicy::new("_id").on_offence(OnOffence::RefuseRequest));
    Conformance::computing(layer(), || witnessed("c1", write_request(&["c1", "c1"])), unit)
        .refuses(Reason::ClusterLabel, || witnessed("c1", write_request(&["c1", "c2"])))
        .refuses(Reason::ClusterLabel, || witnessed("c1", write_request(&[""])))
        .refuses(Reason::InvalidSeries, || witnessed("c1", write_request(&["c1", fixtures::TOO_LONG])))
        .tells_of("DecodeLayer", Reason::InvalidSeries)
        .refuses(Reason::Internal, || Request::new(write_request(&["c1"])))
        .check()
        .await;
    Conformance::computing(layer(), || witnessed("c1", families(&["c1", "c1"])), unit)
        .refuses(Reason::ClusterLabel, || witnessed("c1", families(&["c1", "c2"])))
        .refuses(Reason::ClusterLabel, || witnessed("c1", families(&[""])))
        .refuses(Reason::Internal, || Request::new(families(&["c1"])))
        .check()
        .await;
}

#[tokio::test]
async fn translate() {
    Conformance::computing(TranslateLayer::new(), || Request::new(families(&["c1"])), unit).check().await;
}

#[tokio::test]
async fn edit() {
    let layer = || EditLayer::new(SetLabels::new([("_id", "c1")]));
    Conformance::computing(layer(), || Request::new(families(&["c2"])), unit).check().await;
    Conformance::computing(layer(), || Request::new(write_request(&["c2"])), unit).check().await;
}

#[tokio::test]
async fn encode_families() {
    Conformance::computing(EncodeLayer::delimited(), || Request::new(families(&["c1"])), unit)
        .refuses(Reason::ClusterLabel, || {
            let mut nothing = MetricFamilies::default();
            let offence = || Offence::new(Reason::ClusterLabel, 0, "up", "it is another cluster's");
            nothing.refused().add("EnforceLabelsLayer", offence);
            Request::new(nothing)
        })
        .tells_of("EnforceLabelsLayer", Reason::ClusterLabel)
        .check()
        .await;
}

#[tokio::test]
async fn encode() {
    Conformance::computing(EncodeLayer::new(), || Request::new(write_request(&["c1"])), unit)
        .refuses(Reason::InvalidSeries, || Request::new(write_request(&[fixtures::TOO_LONG])))
        .refuses(Reason::ClusterLabel, || {
            let mut request = write_request(&[]);
            let offence = || Offence::new(Reason::ClusterLabel, 0, "up", "it is another cluster's");
            request.refused().add("EnforceLabelsLayer", offence);
            Request::new(request)
        })
        .tells_of("DecodeLayer", Reason::InvalidSeries)
        .tells_of("EnforceLabelsLayer", Reason::ClusterLabel)
        .check()
        .await;
}
