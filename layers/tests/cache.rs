//! The authorization cache: who is asked, how often, and what is served when nobody answers.

#![cfg(all(feature = "cache", feature = "test-util"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cache/shared.rs"]
mod shared;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use infogw_layers::{
    authorize::{
        ClusterId, Identity, Secret,
        cache::{CacheConfig, CacheEvent, CacheHandle, CacheLayer, Verdict},
        single_flight::SingleFlightLayer,
    },
    clock::{Clock, ManualClock},
    rejection::{BoxError, Reason, Rejection},
};
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_test::mock::{self, Handle, SendResponse};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(1_000);

type Outcome = Result<Arc<Identity>, Rejection>;

/// A cache over an authorizer that the test speaks for.
struct World {
    clock: ManualClock,
    events: Arc<Mutex<Vec<CacheEvent>>>,
    authorizer: Handle<Secret, Arc<Identity>>,
    cached: BoxCloneSyncService<Secret, Arc<Identity>, Rejection>,
    handle: CacheHandle,
}

fn config() -> CacheConfig {
    CacheConfig { grant_life: LIFE, refusal_life: MINUTE, grace: LIFE, ..CacheConfig::default() }
}

fn identity(cluster: &str) -> Arc<Identity> {
    Arc::new(Identity::of(ClusterId::new(cluster).unwrap()))
}

fn rejection(reason: Reason) -> Rejection {
    Rejection::new(reason, "the test says so")
}

impl World {
    fn new(config: CacheConfig) -> Self {
        Self::at(config, ManualClock::new())
    }

    fn at(config: CacheConfig, clock: ManualClock) -> Self {
        let (mock, authorizer) = mock::pair();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let cache = CacheLayer::new(config);
        let handle = cache.handle();
        let observed = move |event: &CacheEvent| seen.lock().unwrap().push(*event);
        let cached = cache
            .clock(clock.clone())
            .observed_by(observed)
            .layer(mock.map_err(|error: BoxError| Rejection::from(error)));
        World { clock, events, authorizer, cached: BoxCloneSyncService::new(cached), handle }
    }

    fn ask(&self, token: &str) -> JoinHandle<Outcome> {
        tokio::spawn(self.cached.clone().oneshot(Secret::new(token)))
    }

    /// What is answered without waiting for anybody.
    async fn at_once(&self, token: &str) -> Outcome {
        let before = Instant::now();
        let outcome = self.ask(token).await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO, "waited");
        outcome
    }

    async fn asked(&mut self) -> SendResponse<Arc<Identity>> {
        self.authorizer.next_request().await.unwrap().1
    }

    async fn granted(&mut self, token: &str) {
        let asking = self.ask(token);
        self.asked().await.send_response(identity(token));
        assert_eq!(asking.await.unwrap().unwrap(), identity(token));
    }

    /// Lets everybody do what they can.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[track_caller]
    fn nobody_asks(&mut self) {
        let polled = self.authorizer.poll_request();
        assert!(polled.is_pending(), "the authorizer was asked");
    }

    fn events(&self) -> Vec<CacheEvent> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

#[track_caller]
fn reason(outcome: Outcome) -> Reason {
    outcome.unwrap_err().reason()
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_make_one_call_whoever_hangs_up() {
    let mut world = World::new(config());
    let mut asking: Vec<_> = (0..50).map(|_| world.ask("c1")).collect();
    let answer = world.asked().await;
    for gone in asking.drain(..10) {
        gone.abort();
    }
    world.nobody_asks();
    answer.send_response(identity("c1"));
    for one in asking {
        assert_eq!(one.await.unwrap().unwrap(), identity("c1"));
    }
    assert_eq!(world.at_once("c1").await.unwrap(), identity("c1"));
    world.nobody_asks();
}

/// The call's outcome is kept though nobody is left who waited for it.
#[tokio::test(start_paused = true)]
async fn a_call_goes_on_when_all_who_wait_have_gone() {
    let mut world = World::new(config());
    let asking = world.ask("c1");
    let answer = world.asked().await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    answer.send_response(identity("c1"));
    world.settle().await;
    assert_eq!(world.at_once("c1").await.unwrap(), identity("c1"));
    world.nobody_asks();
}

#[tokio::test(start_paused = true)]
async fn refusals_are_kept_for_a_short_time() {
    let mut world = World::new(config());
    for _ in 0..2 {
        let asking: Vec<_> = (0..30).map(|_| world.ask("bad")).collect();
        world.asked().await.send_error(rejection(Reason::Unauthenticated));
        for one in asking {
            assert_eq!(reason(one.await.unwrap()), Reason::Unauthenticated);
        }
        world.clock.advance(MINUTE - SECOND);
        for _ in 0..30 {
            assert_eq!(reason(world.at_once("bad").await), Reason::Unauthenticated);
        }
        world.nobody_asks();
        world.clock.advance(SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_is_kept_no_longer_than_it_lasts() {
    let mut world = World::new(config());
    for (wait, kept) in [(Some(10 * SECOND), 10 * SECOND), (Some(LIFE), MINUTE), (None, MINUTE)] {
        let asking = world.ask("c1");
        let throttled = rejection(Reason::AuthorizerThrottled);
        world.asked().await.send_error(wait.map_or(throttled.clone(), |wait| throttled.retry_after(wait)));
        assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerThrottled);
        world.clock.advance(kept - SECOND);
        assert_eq!(reason(world.at_once("c1").await), Reason::AuthorizerThrottled);
        world.nobody_asks();
        world.clock.advance(SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn outages_are_not_kept() {
    let mut world = World::new(config());
    for _ in 0..3 {
        let asking = world.ask("c1");
        world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
        assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable);
    }
    world.granted("c1").await;
    use CacheEvent::{Asked, Miss, Write};
    let outage = [Miss, Asked(Verdict::Outage)];
    let expected = [outage, outage, outage, [Miss, Asked(Verdict::Granted)]].concat();
    assert_eq!(world.events(), [expected, vec![Write]].concat());
}

#[tokio::test(start_paused = true)]
async fn a_grant_in_use_is_asked_for_again_before_its_time_is_over_and_nobody_waits() {
    let mut world = World::new(config());
    world.granted("c1").await;
    world.clock.advance(LIFE / 10 * 7 - SECOND);
    world.at_once("c1").await.unwrap();
    world.settle().await;
    world.nobody_asks();

    world.clock.advance(LIFE / 10 * 2 + 2 * SECOND);
    for _ in 0..10 {
        world.at_once("c1").await.unwrap();
    }
    let answer = world.asked().await;
    world.nobody_asks();
    answer.send_response(identity("c1"));
    world.settle().await;

    world.clock.advance(LIFE / 2);
    world.at_once("c1").await.unwrap();
    world.settle().await;
    world.nobody_asks();
}

/// A fleet that came as one does not come back as one.
#[tokio::test(start_paused = true)]
async fn refreshes_are_spread() {
    let mut world = World::new(config());
    let tokens: Vec<_> = (0..64).map(|n| format!("c{n}")).collect();
    for token in &tokens {
        world.granted(token).await;
    }
    world.clock.advance(LIFE / 10 * 8);
    for token in &tokens {
        world.at_once(token).await.unwrap();
    }
    world.settle().await;
    let mut asked = 0;
    while let std::task::Poll::Ready(Some((_, answer))) = world.authorizer.poll_request() {
        answer.send_response(identity("any"));
        asked += 1;
    }
    assert!((8..56).contains(&asked), "{asked} of 64 at half of the spread");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_a_refresh_ends_the_grant() {
    let mut world = World::new(config());
    world.granted("c1").await;
    world.clock.advance(LIFE / 10 * 9 + SECOND);
    world.at_once("c1").await.unwrap();
    world.asked().await.send_error(rejection(Reason::AuthorizerRefused));
    world.settle().await;
    assert_eq!(reason(world.at_once("c1").await), Reason::AuthorizerRefused);
    assert_eq!(world.handle.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_expired_grant_waits_for_the_authorizers_word() {
    let mut world = World::new(config());
    world.granted("c1").await;
    world.clock.advance(LIFE);
    let asking = world.ask("c1");
    let answer = world.asked().await;
    assert!(!asking.is_finished());
    answer.send_error(rejection(Reason::AuthorizerRefused));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerRefused);
}

#[tokio::test(start_paused = true)]
async fn while_the_authorizer_is_down_an_expired_grant_serves_for_its_grace_and_no_longer() {
    let mut world = World::new(config());
    world.granted("c1").await;
    world.clock.advance(LIFE);
    world.events();
    let asking = world.ask("c1");
    world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(asking.await.unwrap().unwrap(), identity("c1"));
    assert_eq!(
        world.events(),
        [CacheEvent::Miss, CacheEvent::Asked(Verdict::Outage), CacheEvent::Stale { waited: true }]
    );

    // From now on nobody waits; one at a time finds out whether it is over.
    for _ in 0..10 {
        assert_eq!(world.at_once("c1").await.unwrap(), identity("c1"));
    }
    assert_eq!(world.events(), [CacheEvent::Stale { waited: false }; 10]);
    world.asked().await.send_error(rejection(Reason::AuthorizerThrottled));
    world.settle().await;
    world.nobody_asks();

    world.clock.advance(LIFE - Duration::from_millis(1));
    let asking = world.ask("c1");
    world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(asking.await.unwrap().unwrap(), identity("c1"), "the last of its grace");
    world.clock.advance(Duration::from_millis(1));
    let asking = world.ask("c1");
    world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable);
}

#[tokio::test(start_paused = true)]
async fn without_grace_an_expired_grant_is_none() {
    let mut world = World::new(CacheConfig { grace: Duration::ZERO, ..config() });
    world.granted("c1").await;
    world.clock.advance(LIFE);
    let asking = world.ask("c1");
    world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable);
}

#[tokio::test(start_paused = true)]
async fn with_the_authorizer_hanging_known_clusters_keep_their_latency() {
    let mut world = World::new(config());
    for token in ["c1", "c2", "c3"] {
        world.granted(token).await;
    }
    world.clock.advance(LIFE / 10 * 9 + SECOND);
    world.at_once("c1").await.unwrap();
    let hanging = world.asked().await;
    world.at_once("c1").await.unwrap();

    // The first whose grant is over finds out; those after it need not.
    world.clock.advance(LIFE / 10);
    let before = Instant::now();
    assert_eq!(world.ask("c2").await.unwrap().unwrap(), identity("c2"));
    assert_eq!(before.elapsed(), config().patience);
    for token in ["c1", "c2", "c3"] {
        assert_eq!(world.at_once(token).await.unwrap(), identity(token));
    }
    // The answer ends it.
    hanging.send_response(identity("c1"));
    world.settle().await;
    assert_eq!(world.at_once("c1").await.unwrap(), identity("c1"));
}

/// A million known clusters do not queue a million calls to an authorizer that is down.
#[tokio::test(start_paused = true)]
async fn in_an_outage_one_refresh_at_a_time() {
    let mut world = World::new(config());
    let tokens: Vec<_> = (0..20).map(|n| format!("c{n}")).collect();
    for token in &tokens {
        world.granted(token).await;
    }
    world.clock.advance(LIFE / 10 * 9 + SECOND);
    world.at_once("c0").await.unwrap();
    world.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    world.settle().await;
    for token in &tokens {
        world.at_once(token).await.unwrap();
    }
    let probe = world.asked().await;
    world.nobody_asks();
    probe.send_response(identity("c0"));
    world.settle().await;
    for token in &tokens {
        world.at_once(token).await.unwrap();
    }
    world.settle().await;
    for _ in 1..tokens.len() {
        world.asked().await.send_response(identity("any"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_bad_tokens_cannot_starve_the_refreshes() {
    let mut world = World::new(CacheConfig { calls: 4, ..config() });
    world.granted("c1").await;
    let storm: Vec<_> = (0..4).map(|n| world.ask(&format!("bad{n}"))).collect();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(world.asked().await);
    }
    for n in 4..100 {
        let shed = world.at_once(&format!("bad{n}")).await.unwrap_err();
        assert_eq!((shed.status().as_u16(), shed.reason()), (503, Reason::AuthorizerUnavailable));
        assert!(shed.wait().is_some());
    }
    // Whoever asks what is being asked already needs no place.
    let joined = world.ask("bad0");

    world.clock.advance(LIFE / 10 * 9 + SECOND);
    world.at_once("c1").await.unwrap();
    world.asked().await.send_response(identity("c1"));
    for answer in held {
        answer.send_error(rejection(Reason::Unauthenticated));
    }
    for one in storm.into_iter().chain([joined]) {
        assert_eq!(reason(one.await.unwrap()), Reason::Unauthenticated);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_tokens_push_out_no_grant_and_grants_keep_to_their_bytes() {
    let mut world = World::new(CacheConfig { max_bytes: 100_000, ..config() });
    world.granted("c1").await;
    for n in 0..1_000 {
        let asking = world.ask(&format!("bad{n}"));
        world.asked().await.send_error(rejection(Reason::Unauthenticated));
        assert_eq!(reason(asking.await.unwrap()), Reason::Unauthenticated);
    }
    world.at_once("c1").await.unwrap();
    for n in 0..2_000 {
        world.granted(&format!("c{n}-of-many")).await;
    }
    assert!(world.handle.entries() <= 100_000 / 300 + 64, "{:?}", world.handle);
}

#[tokio::test(start_paused = true)]
async fn a_grant_ends_with_its_identity() {
    let mut world = World::new(config());
    for _ in 0..2 {
        let asking = world.ask("c1");
        let ends = Identity { expires_at: Some(world.clock.now() + 10 * SECOND), ..Identity::clone(&identity("c1")) };
        world.asked().await.send_response(Arc::new(ends));
        asking.await.unwrap().unwrap();
        world.clock.advance(10 * SECOND - Duration::from_millis(1));
        world.at_once("c1").await.unwrap();
        world.nobody_asks();
        world.clock.advance(Duration::from_millis(1));
    }
}

/// A bug in an authorizer is a 500 for those who wait, and no more.
#[tokio::test(start_paused = true)]
async fn a_panic_jams_nothing() {
    let failing = service_fn(async |token: Secret| -> Outcome {
        assert_ne!(token.expose(), "panic");
        Ok(identity("c1"))
    });
    let mut single = SingleFlightLayer::new(1).layer(failing);
    let mut cached = CacheLayer::new(CacheConfig { calls: 1, ..config() }).layer(failing);
    for _ in 0..3 {
        assert_eq!(single.call(Secret::new("panic")).await.unwrap_err().status(), 500);
        assert_eq!(cached.call(Secret::new("panic")).await.unwrap_err().status(), 500);
    }
    assert!(single.call(Secret::new("c1")).await.is_ok());
    assert!(cached.call(Secret::new("c1")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn single_flights_keep_nothing() {
    let (mock, mut authorizer) = mock::pair::<Secret, Arc<Identity>>();
    let single = SingleFlightLayer::new(2).layer(mock.map_err(|error: BoxError| Rejection::from(error)));
    let ask = |token: &str| tokio::spawn(single.clone().oneshot(Secret::new(token)));
    for _ in 0..2 {
        let asking: Vec<_> = (0..50).map(|_| ask("c1")).collect();
        let (_, answer) = authorizer.next_request().await.unwrap();
        asking[0].abort();
        answer.send_response(identity("c1"));
        for one in asking.into_iter().skip(1) {
            assert_eq!(one.await.unwrap().unwrap(), identity("c1"));
        }
        assert!(authorizer.poll_request().is_pending());
    }
    let held = [ask("c1"), ask("c2")];
    let (_, _first) = authorizer.next_request().await.unwrap();
    let (_, _second) = authorizer.next_request().await.unwrap();
    assert_eq!(reason(ask("c3").await.unwrap()), Reason::AuthorizerUnavailable);
    assert!(held.iter().all(|one| !one.is_finished()));
}
