//! Grants that replicas share.

use std::collections::BTreeMap;

use bytes::Bytes;
use infogw_layers::{
    authorize::cache::SharedGrants,
    store::{Store, StoreError, StoreFuture},
};

use super::*;

/// What is kept, and for how long.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, (Bytes, Duration)>>);

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.0.lock().unwrap().get(key).map(|(value, _)| value.clone())) })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, life: Duration) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.0.lock().unwrap().insert(key.to_owned(), (value, life));
            Ok(())
        })
    }
}

struct Broken;

impl Store for Broken {
    fn get<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        Box::pin(async { Err(StoreError::TimedOut) })
    }

    fn set<'a>(&'a self, _: &'a str, _: Bytes, _: Duration) -> StoreFuture<'a, ()> {
        Box::pin(async { Err(StoreError::TimedOut) })
    }
}

const SECRET: [u8; 32] = [7; 32];

fn replica(store: Arc<dyn Store>, secret: [u8; 32], clock: &ManualClock) -> World {
    let shared = Some(SharedGrants::new(store, "test:", &secret, 3 * LIFE));
    World::at(CacheConfig { shared, ..config() }, clock.clone())
}

fn replicas<const N: usize>(store: &Arc<Memory>) -> [World; N] {
    let clock = ManualClock::new();
    std::array::from_fn(|_| replica(Arc::clone(store) as Arc<dyn Store>, SECRET, &clock))
}

#[tokio::test(start_paused = true)]
async fn what_one_was_granted_the_others_need_not_ask_for() {
    let store = Arc::new(Memory::default());
    let [mut first, mut second] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    assert_eq!(second.ask("c1").await.unwrap().unwrap(), identity("c1"));
    second.nobody_asks();
    assert_eq!(second.events(), [CacheEvent::Miss, CacheEvent::SharedHit]);
    assert_eq!(store.0.lock().unwrap().values().next().unwrap().1, 2 * LIFE, "as long as it can be of use");

    // It ages from when it was granted, wherever it went.
    second.clock.advance(LIFE);
    let asking = second.ask("c1");
    second.asked().await.send_error(rejection(Reason::AuthorizerRefused));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerRefused);
}

#[tokio::test(start_paused = true)]
async fn one_refresh_does_for_all() {
    let store = Arc::new(Memory::default());
    let [mut first, mut second] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    second.ask("c1").await.unwrap().unwrap();

    first.clock.advance(LIFE / 10 * 9 + SECOND);
    first.at_once("c1").await.unwrap();
    first.asked().await.send_response(identity("c1"));
    first.settle().await;
    second.at_once("c1").await.unwrap();
    second.settle().await;
    second.nobody_asks();
    second.clock.advance(LIFE / 2);
    second.at_once("c1").await.unwrap();
    second.settle().await;
    second.nobody_asks();
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_an_expired_grant_of_another_serves_too() {
    let store = Arc::new(Memory::default());
    let [mut first, mut second] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    second.clock.advance(LIFE + SECOND);
    let asking = second.ask("c1");
    second.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(asking.await.unwrap().unwrap(), identity("c1"));
    assert_eq!(second.events().last(), Some(&CacheEvent::Stale { waited: true }));
    assert_eq!(second.at_once("c1").await.unwrap(), identity("c1"));

    second.clock.advance(LIFE);
    let [mut third] = replicas(&store);
    third.clock.advance(2 * LIFE + SECOND);
    let asking = third.ask("c1");
    third.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable, "its grace is over, too");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_the_grant_back_from_all_who_do_not_have_it_yet() {
    let store = Arc::new(Memory::default());
    let [mut first, mut second] = replicas(&store);
    first.granted("c1").await;
    first.clock.advance(LIFE);
    let asking = first.ask("c1");
    first.asked().await.send_error(rejection(Reason::AuthorizerRefused));
    asking.await.unwrap().unwrap_err();
    first.settle().await;
    let asking = second.ask("c1");
    second.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable);
}

/// Who can write to the store can make misses, and nothing else.
#[tokio::test(start_paused = true)]
async fn what_does_not_verify_is_a_miss() {
    let store = Arc::new(Memory::default());
    let [mut first] = replicas(&store);
    for token in ["c1", "c2"] {
        first.granted(token).await;
    }
    first.settle().await;
    let honest = store.0.lock().unwrap().clone();
    let swapped: Vec<_> = honest.values().rev().cloned().collect();
    let change = |change: &dyn Fn(&mut Vec<u8>)| -> Vec<_> {
        let changed = |(value, life): &(Bytes, Duration)| {
            let mut value = value.to_vec();
            change(&mut value);
            (Bytes::from(value), *life)
        };
        honest.values().map(changed).collect()
    };
    let mut tampered = vec![
        swapped,
        change(&|value| value.clear()),
        change(&|value| value.truncate(10)),
        change(&|value| value.push(0)),
        change(&|value| value.extend([0; 9000])),
    ];
    tampered.extend((0..honest.values().next().unwrap().0.len()).map(|at| change(&|value| value[at] ^= 1)));
    for values in tampered {
        *store.0.lock().unwrap() = honest.keys().cloned().zip(values).collect();
        let [mut other] = replicas(&store);
        for token in ["c1", "c2"] {
            let asking = other.ask(token);
            other.asked().await.send_error(rejection(Reason::AuthorizerRefused));
            assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerRefused);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_learns_neither_token_nor_cluster_and_another_secret_shares_nothing() {
    let store = Arc::new(Memory::default());
    let [mut first] = replicas(&store);
    first.granted("s3cret-token").await;
    first.settle().await;
    for (key, _) in store.0.lock().unwrap().iter() {
        assert!(key.starts_with("test:") && key.len() == 5 + 64, "{key}");
        assert!(!key.contains("s3cret"));
    }
    let mut stranger = replica(Arc::clone(&store) as Arc<dyn Store>, [8; 32], &ManualClock::new());
    stranger.granted("s3cret-token").await;
    assert_eq!(store.0.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_a_miss() {
    let mut world = replica(Arc::new(Broken), SECRET, &ManualClock::new());
    world.granted("c1").await;
    world.settle().await;
    assert_eq!(world.at_once("c1").await.unwrap(), identity("c1"));
}

/// An authorizer that says when to come back is not asked again before, however often a known cluster comes.
#[tokio::test(start_paused = true)]
async fn throttled_the_authorizer_is_left_alone_while_a_shared_grant_serves() {
    let store = Arc::new(Memory::default());
    let [mut first] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    first.clock.advance(LIFE);
    let asking = first.ask("c1");
    let throttled = rejection(Reason::AuthorizerThrottled).retry_after(10 * SECOND);
    first.asked().await.send_error(throttled);
    asking.await.unwrap().unwrap();
    for _ in 0..50 {
        assert_eq!(first.ask("c1").await.unwrap().unwrap(), identity("c1"));
    }
    first.nobody_asks();

    let [mut second] = replicas(&store);
    second.clock.advance(LIFE);
    let asking = second.ask("c1");
    let throttled = rejection(Reason::AuthorizerThrottled).retry_after(10 * SECOND);
    second.asked().await.send_error(throttled);
    assert_eq!(asking.await.unwrap().unwrap(), identity("c1"));
    for _ in 0..50 {
        assert_eq!(second.ask("c1").await.unwrap().unwrap(), identity("c1"));
    }
    second.nobody_asks();
}

/// The write that would have taken it back was lost.
#[tokio::test(start_paused = true)]
async fn a_grant_that_was_taken_back_does_not_come_back_from_the_store() {
    let store = Arc::new(Memory::default());
    let [mut first, mut second] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    let old = store.0.lock().unwrap().clone();
    first.clock.advance(LIFE / 10 * 9 + SECOND);
    first.at_once("c1").await.unwrap();
    first.asked().await.send_error(rejection(Reason::AuthorizerRefused));
    first.settle().await;
    *store.0.lock().unwrap() = old;

    first.clock.advance(MINUTE);
    let asking = first.ask("c1");
    first.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    assert_eq!(reason(asking.await.unwrap()), Reason::AuthorizerUnavailable);

    // Once it is granted again, to whomever, that counts.
    second.clock.advance(LIFE);
    let asking = second.ask("c1");
    second.asked().await.send_response(identity("c1"));
    asking.await.unwrap().unwrap();
    second.settle().await;
    assert_eq!(first.ask("c1").await.unwrap().unwrap(), identity("c1"));
    first.nobody_asks();
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_an_older_grant_of_the_store_replaces_no_newer_one() {
    let store = Arc::new(Memory::default());
    let [mut first] = replicas(&store);
    first.granted("c1").await;
    first.settle().await;
    let old = store.0.lock().unwrap().clone();
    first.clock.advance(LIFE);
    first.granted("c1").await;
    first.settle().await;
    *store.0.lock().unwrap() = old;

    first.clock.advance(LIFE / 10 * 9 + SECOND);
    first.at_once("c1").await.unwrap();
    first.asked().await.send_error(rejection(Reason::AuthorizerUnavailable));
    first.settle().await;
    first.clock.advance(LIFE);
    assert_eq!(first.at_once("c1").await.unwrap(), identity("c1"), "within the newer one's grace");
}

#[tokio::test(start_paused = true)]
async fn a_grant_from_far_in_the_future_is_none() {
    for (ahead, shared) in [(MINUTE, true), (MINUTE + SECOND, false)] {
        let store = Arc::new(Memory::default());
        let (fast, right) = (ManualClock::new(), ManualClock::new());
        fast.advance(ahead);
        let mut first = replica(Arc::clone(&store) as Arc<dyn Store>, SECRET, &fast);
        first.granted("c1").await;
        first.settle().await;
        let mut second = replica(Arc::clone(&store) as Arc<dyn Store>, SECRET, &right);
        if shared {
            assert_eq!(second.ask("c1").await.unwrap().unwrap(), identity("c1"));
            second.nobody_asks();
        } else {
            second.granted("c1").await;
        }
    }
}

/// As when the first signing key changes.
#[tokio::test(start_paused = true)]
async fn the_secret_can_be_replaced_at_work() {
    let store: Arc<dyn Store> = Arc::new(Memory::default());
    let grants = SharedGrants::new(Arc::clone(&store), "test:", &SECRET, 3 * LIFE);
    let mut first = World::new(CacheConfig { shared: Some(grants.clone()), ..config() });
    grants.set_secret(&[8; 32]);
    first.granted("c1").await;
    first.settle().await;
    let mut old = replica(Arc::clone(&store), SECRET, &ManualClock::new());
    old.granted("c1").await;
    let mut new = replica(store, [8; 32], &ManualClock::new());
    assert_eq!(new.ask("c1").await.unwrap().unwrap(), identity("c1"));
    new.nobody_asks();
}
