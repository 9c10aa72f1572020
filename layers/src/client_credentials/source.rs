use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tower::{
    BoxError, ServiceExt,
    retry::backoff::{Backoff as _, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff as _},
    util::rng::HasherRng,
};
use tower_service::Service;

use super::{Issued, TokenRequest};
use crate::{
    clock::Clock,
    observe::Observe,
    rejection::{Reason, Rejection, repeats},
};

/// How long a request waits for a token that is on its way.
const PATIENCE: Duration = Duration::from_secs(2);
/// The life of a token whose issuer does not say.
const ASSUMED_LIFE: Duration = Duration::from_secs(5 * 60);
/// No token is kept longer, whatever its issuer says.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// After what share of its life a token is replaced; where in between is random, so that replicas do not ask at once.
const REFRESH: std::ops::Range<f64> = 0.7..0.85;
/// The shortest time from one token to the next, however short they live.
const SHORTEST_REST: Duration = Duration::from_secs(1);
/// How long before its end a token is not sent any more: it has to arrive, and clocks differ. At most a tenth of its life.
const LEEWAY: Duration = Duration::from_secs(10);
/// Tokens are replaced for a 401 no more often than this.
const BETWEEN_FORCED: Duration = Duration::from_secs(10);
/// From the first failure to the next attempt, and the longest that ever is. What is random comes on top: up to the same again, and
/// half of that.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// A token in use. Clones are the same token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Counts up from 1.
    generation: u64,
    authorization: HeaderValue,
    usable_until: Instant,
}

impl Token {
    /// `authorization` in use until then; `generation` counts up.
    pub(crate) fn new(generation: u64, authorization: HeaderValue, usable_until: Instant) -> Self {
        Token { generation, authorization, usable_until }
    }

    /// Whether it came after `other`.
    #[cfg(feature = "exchange")]
    pub(crate) fn is_newer_than(&self, other: &Token) -> bool {
        self.generation > other.generation
    }

    /// The value of `Authorization`, marked as sensitive.
    pub fn authorization(&self) -> &HeaderValue {
        &self.authorization
    }

    /// Whether `text` repeats it, or a part of it: see [`repeats`].
    pub fn is_in(&self, text: &str) -> bool {
        let token = self.authorization.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default();
        repeats(text, &String::from_utf8_lossy(token))
    }

    pub(crate) fn is_usable(&self) -> bool {
        Instant::now() < self.usable_until
    }
}

/// There is no valid token: the issuer is down, or refuses us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this gateway has no valid token of its own for now")]
pub struct TokenUnavailable;

impl From<TokenUnavailable> for Rejection {
    fn from(unavailable: TokenUnavailable) -> Self {
        Rejection::new(Reason::CredentialsUnavailable, unavailable.to_string()).retry_after(BACKOFF.1)
    }
}

/// What a [`TokenSource`]'s task did.
#[derive(Debug)]
#[non_exhaustive]
pub enum TokenEvent<'a> {
    /// There is a new token.
    Issued {
        /// When it was asked for, from which its life counts.
        issued_at: SystemTime,
        /// When it ends, by what its issuer said or what is assumed.
        expires_at: SystemTime,
    },
    /// There is none.
    Failed {
        /// Why.
        error: &'a BoxError,
        /// When the next attempt is, unless a 401 brings it forward.
        retry_in: Duration,
    },
}

/// One token for all who need it, kept fresh by a task of its own. Clones share it; the task ends with the last of them.
#[derive(Debug, Clone)]
pub struct TokenSource {
    state: watch::Receiver<State>,
    refused: Arc<Refused>,
}

#[derive(Debug, Default)]
struct State {
    token: Option<Token>,
    /// Attempts that have ended.
    attempts: u64,
    /// One is under way.
    asking: bool,
    /// No 401 brings an attempt before this.
    forcible_at: Option<Instant>,
}

impl State {
    fn usable(&self) -> Option<&Token> {
        self.token.as_ref().filter(|token| token.is_usable())
    }

    fn generation(&self) -> u64 {
        self.token.as_ref().map_or(0, |token| token.generation)
    }

    fn may_force(&self) -> bool {
        self.forcible_at.is_none_or(|at| at <= Instant::now())
    }
}

/// What the users of tokens tell the task.
#[derive(Debug, Default)]
struct Refused {
    /// The newest generation that was answered with 401.
    generation: AtomicU64,
    told: Notify,
}

impl TokenSource {
    /// Gets a token from `issuer` at once and whenever one is due, in a task of its own, and tells `observer` of each attempt.
    /// `clock` dates the tokens; what is due when is by tokio's time.
    ///
    /// # Panics
    /// Outside a tokio runtime with its timer on.
    pub fn spawn<S, C, O>(issuer: S, clock: C, observer: O) -> Self
    where
        S: Service<TokenRequest, Response = Issued> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        C: Clock,
        O: for<'a> Observe<TokenEvent<'a>> + Send + Sync + 'static,
    {
        let (sender, state) = watch::channel(State { asking: true, ..State::default() });
        let refused = Arc::<Refused>::default();
        let keeper = Keeper { issuer, clock, observer, state: sender, refused: Arc::clone(&refused) };
        tokio::spawn(keeper.keep());
        TokenSource { state, refused }
    }

    /// The token. Where there is no valid one but one is on its way, waits up to two seconds for it.
    ///
    /// # Errors
    /// [`TokenUnavailable`]: there is none.
    pub async fn token(&self) -> Result<Token, TokenUnavailable> {
        if let Some(token) = self.state.borrow().usable() {
            return Ok(token.clone());
        }
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| state.usable().is_some() || !state.asking);
        match timeout(PATIENCE, settled).await {
            Ok(Ok(state)) => state.usable().cloned().ok_or(TokenUnavailable),
            _ => Err(TokenUnavailable),
        }
    }

    /// A newer token than `refused`, which was answered with 401: one that came meanwhile, or one that is got now, by a single
    /// call for all who ask, waited for up to two seconds. None if there was such a call in the last ten seconds, or it fails.
    pub async fn replace(&self, refused: &Token) -> Option<Token> {
        let newer = |state: &State| state.usable().filter(|token| token.generation > refused.generation).cloned();
        let mut state = self.state.clone();
        let attempts = {
            let state = state.borrow();
            if let Some(token) = newer(&state) {
                return Some(token);
            }
            if !state.asking {
                if !state.may_force() {
                    return None;
                }
                self.refused.generation.fetch_max(refused.generation, Ordering::Relaxed);
                self.refused.told.notify_one();
            }
            state.attempts
        };
        let settled = state.wait_for(|state| state.attempts > attempts);
        match timeout(PATIENCE, settled).await {
            Ok(Ok(state)) => newer(&state),
            _ => None,
        }
    }
}

/// The task: whoever asks, there is one attempt at a time, which nobody who hangs up can cancel.
struct Keeper<S, C, O> {
    issuer: S,
    clock: C,
    observer: O,
    state: watch::Sender<State>,
    refused: Arc<Refused>,
}

impl<S, C, O> Keeper<S, C, O>
where
    S: Service<TokenRequest, Response = Issued> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    C: Clock,
    O: for<'a> Observe<TokenEvent<'a>> + Send + Sync + 'static,
{
    async fn keep(self) {
        let mut backoff = backoff();
        loop {
            let (asked, asked_at) = (Instant::now(), self.clock.now());
            let issued = tokio::select! {
                issued = self.ask() => issued,
                () = self.state.closed() => return,
            };
            let due = match issued {
                Ok(issued) => {
                    backoff = self::backoff();
                    self.put_in_use(issued, asked, asked_at)
                }
                Err(error) => {
                    let now = Instant::now();
                    let pause = backoff.as_mut().map_or(BACKOFF.1, |next| next.next_backoff().deadline() - now);
                    // tower's own jitter ends where the pause is longest, and replicas would come back as one.
                    let retry_in = pause.mul_f64(1.0 + 0.5 * fastrand::f64());
                    let due = now + retry_in;
                    self.settle(|_| {});
                    self.observer.observe(&TokenEvent::Failed { error: &error, retry_in });
                    due
                }
            };
            let forced = tokio::select! {
                () = sleep_until(due) => false,
                () = self.refusal() => true,
                () = self.state.closed() => return,
            };
            self.state.send_modify(|state| {
                state.asking = true;
                if forced {
                    state.forcible_at = Some(Instant::now() + BETWEEN_FORCED);
                }
            });
        }
    }

    /// In a task of its own, so that a panic is one failed attempt. Given up, it ends.
    async fn ask(&self) -> Result<Issued, BoxError> {
        let asking = self.issuer.clone().oneshot(TokenRequest);
        let mut attempt = JoinSet::new();
        attempt.spawn(async move { asking.await.map_err(Into::into) });
        match attempt.join_next().await {
            Some(Ok(issued)) => issued,
            // What it said may hold what was sent.
            Some(Err(_panic)) => Err("the attempt panicked".into()),
            None => Err("there was no attempt".into()),
        }
    }

    /// Says when the next token is due.
    fn put_in_use(&self, issued: Issued, asked: Instant, asked_at: SystemTime) -> Instant {
        // Go's client, too, takes 0 for nothing said.
        let said = issued.lifetime.filter(|life| !life.is_zero());
        let life = said.map_or(ASSUMED_LIFE, |life| life.min(LONGEST_LIFE));
        self.settle(|state| {
            state.token = Some(Token {
                generation: state.generation() + 1,
                authorization: issued.authorization,
                usable_until: asked + life - LEEWAY.min(life / 10),
            });
        });
        // Once it is in use: whatever an observer does, nobody waits for it.
        self.observer.observe(&TokenEvent::Issued { issued_at: asked_at, expires_at: asked_at + life });
        let share = REFRESH.start + fastrand::f64() * (REFRESH.end - REFRESH.start);
        (asked + life.mul_f64(share)).max(Instant::now() + SHORTEST_REST)
    }

    /// An attempt has ended.
    fn settle(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            change(state);
            state.attempts += 1;
            state.asking = false;
        });
    }

    /// The token that is in use was refused, and may be replaced for that.
    async fn refusal(&self) {
        loop {
            self.refused.told.notified().await;
            let state = self.state.borrow();
            if self.refused.generation.load(Ordering::Relaxed) >= state.generation() && state.may_force() {
                return;
            }
        }
    }
}

/// None where tower finds the times invalid, which they are not.
fn backoff() -> Option<ExponentialBackoff> {
    let (first, longest) = BACKOFF;
    ExponentialBackoffMaker::new(first, longest, 1.0, HasherRng::default()).ok().map(|mut maker| maker.make_backoff())
}
