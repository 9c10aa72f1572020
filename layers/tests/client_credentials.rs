//! The token that all share, by a clock that stands still between events; and the grant that gets it.
#![cfg(all(feature = "client-credentials", feature = "test-util"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "client_credentials/bearer.rs"]
mod bearer;
#[path = "client_credentials/grant.rs"]
mod grant;
#[path = "client_credentials/model.rs"]
mod model;
#[path = "client_credentials/scripted.rs"]
mod scripted;

use std::time::Duration;

use infogw_layers::{
    client_credentials::{Token, TokenSource, TokenUnavailable},
    clock::ManualClock,
    rejection::{Reason, Rejection},
};
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};

use scripted::{Call, Issuer};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn source(issuer: &Issuer) -> TokenSource {
    TokenSource::spawn(issuer.clone(), ManualClock::new(), ())
}

fn shown(token: &Token) -> &str {
    token.authorization().to_str().unwrap()
}

/// What a hundred get at once, who were answered 401.
async fn storm(tokens: &TokenSource, refused: &Token) -> Vec<Option<Token>> {
    let replace = |_| {
        let (tokens, refused) = (tokens.clone(), refused.clone());
        async move { tokens.replace(&refused).await }
    };
    (0..100).map(replace).collect::<JoinSet<_>>().join_all().await
}

#[tokio::test(start_paused = true)]
async fn one_call_serves_all_who_wait_whoever_hangs_up() {
    let issuer = Issuer::taking(seconds(1), |_| Call::Issue(Some(seconds(100))));
    let tokens = source(&issuer);
    let waiting = |_| {
        let tokens = tokens.clone();
        async move { tokens.token().await }
    };
    // The first to come is among those who leave.
    let leaving: JoinSet<_> = (0..40).map(waiting).collect();
    sleep(Duration::from_millis(100)).await;
    let staying: JoinSet<_> = (0..10).map(waiting).collect();
    sleep(Duration::from_millis(400)).await;
    drop(leaving);
    for token in staying.join_all().await {
        assert_eq!(shown(&token.unwrap()), "Bearer token-1");
    }
    assert_eq!(issuer.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_replaced_ahead_of_its_end() {
    let issuer = Issuer::taking(Duration::ZERO, |_| Call::Issue(Some(seconds(100))));
    let tokens = source(&issuer);
    let start = Instant::now();
    while start.elapsed() < seconds(1000) {
        tokens.token().await.expect("there is a valid token at any time");
        sleep(Duration::from_millis(100)).await;
    }
    let calls = issuer.calls();
    assert!(calls.len() > 10, "{calls:?}");
    let mut gaps: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (seconds(70)..=seconds(86)).contains(gap)), "{gaps:?}");
    gaps.sort_unstable();
    gaps.dedup_by_key(|gap| gap.as_millis());
    assert!(gaps.len() > 3, "replicas would ask all at once: {gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_bridged_while_the_token_is_valid_and_told_at_once_after() {
    let issuer = Issuer::taking(Duration::ZERO, |call| match call {
        1 => Call::Issue(Some(seconds(100))),
        _ => Call::Fail,
    });
    let tokens = source(&issuer);
    let start = Instant::now();
    let until = loop {
        match tokens.token().await {
            Ok(token) => assert_eq!(shown(&token), "Bearer token-1"),
            Err(TokenUnavailable) => break start.elapsed(),
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert!((seconds(90)..seconds(91)).contains(&until), "up to a tenth before its end: {until:?}");
    assert_eq!(start.elapsed(), until, "nobody waits for an issuer that is known to fail");

    let rejection = Rejection::from(TokenUnavailable);
    assert_eq!((rejection.status().as_u16(), rejection.reason()), (503, Reason::CredentialsUnavailable));
    assert!(rejection.wait().is_some());

    sleep(seconds(100)).await;
    let gaps: Vec<_> = issuer.calls().windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 6, "it goes on trying: {gaps:?}");
    for (n, gap) in gaps.iter().enumerate() {
        let base = Duration::from_millis(500 << n.min(5)).min(seconds(10));
        let longest = (base * 2).min(seconds(10)) * 3 / 2 + Duration::from_millis(1);
        assert!((base..=longest).contains(gap), "backoff {n}: {gap:?} is not in {base:?}..={longest:?}");
    }
    let longest: Vec<_> = gaps.iter().skip(5).collect();
    assert!(longest.len() > 1 && longest.iter().any(|gap| *gap != longest[0]), "replicas come back as one: {gaps:?}");

    issuer.set(|_| Call::Issue(None));
    sleep(seconds(16)).await;
    tokens.token().await.expect("it comes back by itself");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_an_issuer_that_hangs() {
    let issuer = Issuer::taking(Duration::ZERO, |_| Call::Hang);
    let tokens = source(&issuer);
    let start = Instant::now();
    assert_eq!(tokens.token().await.unwrap_err(), TokenUnavailable);
    assert_eq!(start.elapsed(), seconds(2));
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_401_makes_one_call_and_none_for_ten_seconds() {
    let issuer = Issuer::taking(Duration::from_millis(100), |_| Call::Issue(Some(seconds(3600))));
    let tokens = source(&issuer);
    let first = tokens.token().await.unwrap();
    let replaced = storm(&tokens, &first).await;
    assert!(replaced.iter().all(|token| token.as_ref().is_some_and(|token| shown(token) == "Bearer token-2")));
    assert_eq!(issuer.calls().len(), 2);

    let (second, start) = (tokens.token().await.unwrap(), Instant::now());
    assert!(storm(&tokens, &second).await.iter().all(Option::is_none), "the last one was replaced just now");
    assert!(
        storm(&tokens, &first).await.iter().all(Option::is_some),
        "but who still has the one before gets the new one"
    );
    assert_eq!((issuer.calls().len(), start.elapsed()), (2, Duration::ZERO), "none of this takes time");

    // A notice that came too early must not count later, without a 401.
    sleep(seconds(20)).await;
    assert_eq!(issuer.calls().len(), 2);
    assert!(storm(&tokens, &second).await.iter().all(Option::is_some));
    assert_eq!(issuer.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_another_token_and_hangs_up_cancels_nothing() {
    let issuer = Issuer::taking(seconds(1), |_| Call::Issue(Some(seconds(3600))));
    let tokens = source(&issuer);
    let first = tokens.token().await.unwrap();
    assert!(timeout(Duration::from_millis(100), tokens.replace(&first)).await.is_err());
    let start = Instant::now();
    assert_eq!(shown(&tokens.replace(&first).await.unwrap()), "Bearer token-2");
    assert_eq!(start.elapsed(), Duration::from_millis(900), "it joins the call that is under way");
    assert_eq!(issuer.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_401_while_the_issuer_is_down_makes_one_more_attempt_and_keeps_the_token() {
    let issuer = Issuer::taking(Duration::ZERO, |call| match call {
        1 => Call::Issue(Some(seconds(3600))),
        _ => Call::Fail,
    });
    let tokens = source(&issuer);
    let first = tokens.token().await.unwrap();
    for _ in 0..3 {
        assert!(storm(&tokens, &first).await.iter().all(Option::is_none));
    }
    assert_eq!(issuer.calls().len(), 2);
    assert_eq!(shown(&tokens.token().await.unwrap()), "Bearer token-1");
}

#[tokio::test(start_paused = true)]
async fn a_401_at_the_moment_a_new_token_is_due_makes_no_call_of_its_own() {
    // Which of the two the task sees first is random.
    for _ in 0..20 {
        let issuer =
            Issuer::taking(Duration::ZERO, |call| Call::Issue(Some(seconds(if call == 1 { 1 } else { 3600 }))));
        let tokens = source(&issuer);
        let first = tokens.token().await.unwrap();
        // So short a life is replaced after the shortest rest.
        sleep(seconds(1)).await;
        assert_eq!(shown(&tokens.replace(&first).await.unwrap()), "Bearer token-2");
        sleep(seconds(60)).await;
        assert_eq!(issuer.calls().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_outage_is_met_with_short_waits_again() {
    let issuer = Issuer::taking(Duration::ZERO, |call| match call {
        6 => Call::Issue(Some(seconds(100))),
        _ => Call::Fail,
    });
    let _tokens = source(&issuer);
    sleep(seconds(150)).await;
    let calls = issuer.calls();
    let (before, after) = (calls[5] - calls[4], calls[7] - calls[6]);
    assert!(before >= seconds(8) && after <= seconds(2), "{before:?}, then {after:?}");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_source() {
    for answer in [Call::Issue(None), Call::Fail, Call::Hang] {
        let issuer = Issuer::taking(Duration::ZERO, move |_| answer);
        let tokens = source(&issuer);
        let _ = tokens.token().await;
        drop(tokens.clone());
        sleep(seconds(1)).await;
        assert!(issuer.handles() > 1, "a clone's end ends nothing");
        drop(tokens);
        sleep(seconds(1)).await;
        assert_eq!(issuer.handles(), 1, "after {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_panics_is_one_that_is_down() {
    let issuer = Issuer::taking(Duration::ZERO, |_| panic!("as scripted"));
    let tokens = source(&issuer);
    assert_eq!(tokens.token().await.unwrap_err(), TokenUnavailable);
    issuer.set(|_| Call::Issue(None));
    sleep(seconds(2)).await;
    tokens.token().await.expect("it comes back by itself");
}

#[tokio::test(start_paused = true)]
async fn lives_that_are_missing_short_or_endless_are_bounded() {
    // Said, calls in an hour at least and at most.
    for (said, least, most) in [
        (None, 12, 19),
        (Some(Duration::ZERO), 12, 19),
        (Some(seconds(1)), 3500, 3601),
        (Some(Duration::from_nanos(1)), 3500, 3601),
        (Some(Duration::MAX), 1, 1),
        (Some(seconds(7200)), 1, 1),
    ] {
        let issuer = Issuer::taking(Duration::ZERO, move |_| Call::Issue(said));
        let tokens = source(&issuer);
        for _ in 0..3600 {
            sleep(seconds(1)).await;
        }
        let calls = issuer.calls().len();
        assert!((least..=most).contains(&calls), "{said:?}: {calls} calls in an hour");
        drop(tokens);
        advance(seconds(1)).await;
    }
}
