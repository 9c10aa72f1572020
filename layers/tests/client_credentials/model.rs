//! Whatever happens in whatever order, what was promised holds.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, sleep};

use super::{
    Token,
    scripted::{Call, Issuer},
    seconds, source,
};

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Time goes on, in tenths of a second.
    Wait(u16),
    /// The upstream answers 401 to the token that somebody uses.
    Refuse,
    /// The same to one that was in use before.
    RefuseOld,
    /// Somebody asks, and hangs up after a while: tenths of a second.
    Cancelled(u8),
    Issuer(Answers),
}

#[derive(Debug, Clone, Copy)]
enum Answers {
    Well,
    Down,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u16..300).prop_map(Step::Wait),
        4 => Just(Step::Refuse),
        1 => Just(Step::RefuseOld),
        2 => (0u8..30).prop_map(Step::Cancelled),
        1 => prop_oneof![Just(Step::Issuer(Answers::Well)), Just(Step::Issuer(Answers::Down))],
    ]
}

const LIFE: Duration = seconds(60);
/// How long a call to the issuer takes.
const CALL: Duration = Duration::from_millis(300);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_order_of_events_breaks_a_promise(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(&steps));
    }
}

/// The issuer itself panics where two calls overlap.
async fn run(steps: &[Step]) {
    let issuer = Issuer::taking(CALL, |_| Call::Issue(Some(LIFE)));
    let tokens = source(&issuer);
    let start = Instant::now();
    let (mut old, mut refusals, mut down) = (None::<Token>, 0, false);
    for step in steps {
        match *step {
            Step::Wait(tenths) => sleep(Duration::from_millis(u64::from(tenths) * 100)).await,
            Step::Issuer(Answers::Well) => {
                down = false;
                issuer.set(|_| Call::Issue(Some(LIFE)));
            }
            Step::Issuer(Answers::Down) => {
                down = true;
                issuer.set(|_| Call::Fail);
            }
            Step::Cancelled(tenths) => {
                let (tokens, old) = (tokens.clone(), old.clone());
                let asking = async move {
                    let _ = tokens.token().await;
                    if let Some(old) = old {
                        tokens.replace(&old).await;
                    }
                };
                let _ = tokio::time::timeout(Duration::from_millis(u64::from(tenths) * 100), asking).await;
            }
            Step::Refuse => {
                let asked = Instant::now();
                if let Ok(token) = tokens.token().await {
                    refusals += 1;
                    if let Some(new) = tokens.replace(&token).await {
                        assert_ne!(super::shown(&new), super::shown(&token), "it is another one");
                    }
                    old = Some(token);
                }
                assert!(asked.elapsed() <= seconds(4), "nobody waits longer than twice two seconds");
            }
            Step::RefuseOld => {
                if let Some(old) = &old {
                    tokens.replace(old).await;
                    refusals += 1;
                }
            }
        }
        if let Ok(token) = tokens.token().await {
            // The Nth token came with the Nth call.
            let call: usize = super::shown(&token).trim_start_matches("Bearer token-").parse().unwrap();
            let age = issuer.calls()[call - 1].elapsed();
            assert!(age < LIFE, "a token of {age:?} was given out");
        }
    }
    let (calls, elapsed) = (issuer.calls(), start.elapsed());
    let in_any = |window: Duration| {
        calls.iter().map(|&from| calls.iter().filter(|&&at| at >= from && at < from + window).count()).max().unwrap()
    };
    // In ten seconds: one forced, one due, and what backoff adds during an outage: at 0, 0.5, 1.5, 3.5 and 7.5 s, twice if a
    // token came in between.
    assert!(in_any(seconds(10)) <= 12, "{} calls in ten seconds", in_any(seconds(10)));
    let never_down = !steps.iter().any(|step| matches!(step, Step::Issuer(Answers::Down)));
    if never_down {
        let due = elapsed.as_secs_f64() / (LIFE.as_secs_f64() * 0.7) + 1.0;
        let forced = (elapsed.as_secs_f64() / 10.0 + 1.0).min(f64::from(refusals) + steps.len() as f64);
        assert!(calls.len() as f64 <= due.ceil() + forced.ceil(), "{} calls in {elapsed:?}", calls.len());
        tokens.token().await.expect("an issuer that is well always has one");
    }
    if !down {
        sleep(seconds(16)).await;
        tokens.token().await.expect("it comes back by itself");
    }
}
