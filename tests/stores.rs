//! The engines that replicas share, as they are: redis-server and memcached, killed, stopped, and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use infogw_layers::store::{
    Store, StoreError,
    redis::{RedisConfig, RedisConnection, RedisMode, RedisStore},
};
use support::{Memcached, RedisServer, ensure, eventually};

const MINUTE: Duration = Duration::from_secs(60);

fn redis(url: &str) -> RedisStore {
    RedisStore::new(RedisConnection::new(&RedisConfig::new(&[url], RedisMode::Single).unwrap()).unwrap())
}

/// Writes and reads until both work.
async fn works(store: &impl Store) {
    let value = Bytes::from_static(b"back");
    let seen = async || {
        store.set("app:works", value.clone(), MINUTE).await.map_err(|error| error.to_string())?;
        let got = store.get("app:works").await.map_err(|error| error.to_string())?;
        ensure(got.as_ref() == Some(&value), || format!("{got:?}"))
    };
    eventually("the store works", seen).await;
}

#[tokio::test]
async fn redis_keeps_values_for_their_time() {
    let server = RedisServer::start().await;
    let store = redis(&server.url());
    assert_eq!(store.get("app:k").await.unwrap(), None);
    store.set("app:k", Bytes::from_static(b"v\r\n\0"), MINUTE).await.unwrap();
    assert_eq!(store.get("app:k").await.unwrap().unwrap(), "v\r\n\0");
    assert_eq!(server.cli(&["TTL", "app:k"]).await, "60");
}

#[tokio::test]
async fn redis_comes_back_from_the_dead() {
    let mut server = RedisServer::start().await;
    let store = redis(&server.url());
    works(&store).await;
    server.kill().await;
    let error = store.get("app:k").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    server.restart().await;
    works(&store).await;
}

#[tokio::test]
async fn fixture_memcached() {
    let mut server = Memcached::start().await;
    assert_eq!(server.say("get a").await, ["END"]);
    server.restart().await;
    assert_eq!(server.say("get a").await, ["END"]);
}
