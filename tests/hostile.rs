//! Bad input: a table of what hostile clients send, held against one gateway. Each row says how it is answered and what of it reaches
//! the upstream.
//!
//! `hostile/row.rs` is what a row is, `hostile/wire.rs` how its bytes are spelt; the other files are the rows, by area. What each
//! decoder makes of noise is tested where the decoders are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../layers/tests/jwt/fixtures.rs"]
#[allow(dead_code, reason = "keys are shared")]
mod fixtures;
#[path = "../layers/tests/payload/go.rs"]
#[allow(dead_code, unreachable_pub, reason = "the fuzzers look at more of what it reads")]
mod go;
#[path = "hostile/http.rs"]
mod http;
#[path = "hostile/http2.rs"]
mod http2;
#[path = "hostile/labels.rs"]
mod labels;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/packing.rs"]
mod packing;
#[path = "hostile/row.rs"]
mod row;
mod support;
#[path = "contract/table.rs"]
#[allow(dead_code, reason = "its rows are the contract's; its requests are good ones, to begin with")]
mod table;
#[path = "hostile/tokens.rs"]
mod tokens;
#[path = "hostile/truncations.rs"]
mod truncations;
#[path = "hostile/values.rs"]
mod values;
#[path = "hostile/wire.rs"]
mod wire;

use std::sync::Arc;

use row::SENDER;
use support::{World, payload::series, world::now};
use tempfile::NamedTempFile;

/// What the gateway may have grown by once it has met everything here. Its own limit for one decoded body is 16 MiB.
const MOST_GROWTH: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input() {
    let key = NamedTempFile::new().unwrap();
    std::fs::write(key.path(), fixtures::P256_PKCS8).unwrap();
    let flags = ["--shared-key", key.path().to_str().unwrap(), "--ratelimit=0"];
    let world = Arc::new(World::with(&flags).await);
    good(&world).await;
    let before = world.gateway.peak_memory();

    let upload_token = world.token(SENDER).await;
    truncations::check(&world, &upload_token).await;
    let areas = [
        messages::rows(),
        labels::rows(),
        values::rows(),
        http::rows(&upload_token),
        http2::rows(),
        tokens::rows(&upload_token),
        // Last, because of what they weigh.
        packing::rows(),
    ];
    let mut failed = Vec::new();
    for row in areas.into_iter().flatten() {
        let (case, world, token) = (row.case(), Arc::clone(&world), upload_token.clone());
        // A row that fails does not keep the others from being looked at.
        if tokio::spawn(async move { row.check(&world, &token).await }).await.is_err() {
            failed.push(case);
        }
    }
    assert!(failed.is_empty(), "{} rows: {failed:#?}", failed.len());

    // It lives, and is not fat.
    good(&world).await;
    let grown = world.gateway.peak_memory() - before;
    assert!(grown < MOST_GROWTH, "the gateway has grown by {grown} bytes");
    let Ok(world) = Arc::try_unwrap(world) else { panic!("some request is still on its way") };
    let logs = world.gateway.stop().await;
    assert_eq!(logs.code(), 0);
    assert!(!logs.stderr.contains("panic"), "{}", logs.stderr);
    assert!(!logs.stderr.contains("level=error"), "{}", logs.stderr);
}

async fn good(world: &World) {
    let reached = world.upstream.count();
    world
        .receive(SENDER, vec![series(&[("__name__", "up"), ("_id", SENDER)], &[(1.0, now())])])
        .await
        .expect_status(200);
    world.upload(SENDER, &format!("up{{_id=\"{SENDER}\"}} 1 {}\n", now())).await.expect_status(200);
    assert_eq!(world.upstream.count(), reached + 2);
}
