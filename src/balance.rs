//! The upstream's addresses, balanced by load.
//!
//! The host of `--forward-url` may be a name of several addresses, as that of a headless service is. The name is looked up again from
//! time to time, and while it stands for several, each request goes to the less busy one of two that are drawn. An address takes part
//! once it could be connected to, until it cannot, or has answered nothing of several requests in a row: it is then tried by ourselves,
//! less and less often, so that no request has to find out that it is back. Those that can be connected to are left out only while half
//! of all addresses stay: where most fail, those that are left would get the load of all. While no address takes part, and while there
//! is but one, a request goes to whatever the system finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_core::Stream;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, ResponseFuture};
use infogw_layers::{rejection::BoxError, store::memcached::Resolve};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{
    Service,
    balance::p2c::Balance,
    discover::Change,
    load::{CompleteOnResponse, PendingRequests},
};

use crate::{admin::metrics::upstream::UpstreamMetrics, client::HttpClient};

/// How addresses are followed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How often the name is looked up.
    pub every: Duration,
    /// What a request that is given up has waited for at least, to say something of its address: senders that hang up sooner are no
    /// fault of the upstream's.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { every: Duration::from_secs(10), patience: Duration::from_secs(2) }
    }
}

/// How long that may take.
const LOOKUP: Duration = Duration::from_secs(5);
/// How long connecting to one of several addresses may take: there has to be time for another. More than the second after which a
/// lost packet is sent again.
pub const CONNECT: Duration = Duration::from_millis(1500);
/// An address that cannot be connected to is tried again after this, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// One that took part for this long is well.
const WELL: Duration = Duration::from_secs(30);
/// So many requests in a row that nobody answered, and an address is left out: it may take connections, and be ill. Without this it
/// would look idle, and get more than its share.
const FAILURES: u32 = 5;
/// The most addresses that are used.
const MOST: usize = 256;
/// Failures that are not dealt with yet.
const PENDING: usize = 64;

type Answer = Result<Response<Incoming>, BoxError>;
type Changes = Change<SocketAddr, PendingRequests<Endpoint>>;
type Connect = Arc<dyn Fn(SocketAddr) -> HttpClient + Send + Sync>;

/// A client of the upstream, whatever its addresses. Clones share them.
#[derive(Clone)]
pub struct Balanced {
    plain: HttpClient,
    pool: Arc<Pool>,
}

struct Pool {
    /// There are several addresses, and one of them at least takes part.
    in_use: AtomicBool,
    balance: Mutex<Balance<Told, Request<Full<Bytes>>>>,
    changes: mpsc::Sender<Changes>,
    connect: Connect,
}

impl Balanced {
    /// Over `plain`, until [followed](Self::follow) addresses are several; then over clients that `connect` makes, each for one
    /// address.
    pub fn new(plain: HttpClient, connect: impl Fn(SocketAddr) -> HttpClient + Send + Sync + 'static) -> Self {
        // Every address may go, and as many be new.
        let (changes, told) = mpsc::channel(2 * MOST);
        let pool = Pool {
            in_use: AtomicBool::new(false),
            balance: Mutex::new(Balance::new(Told(told))),
            changes,
            connect: Arc::new(connect),
        };
        Balanced { plain, pool: Arc::new(pool) }
    }

    /// Looks up the host of `url` by `resolver`, now and from time to time, in one of `tasks`, if it is a name.
    pub fn follow(
        &self,
        url: &Uri,
        resolver: impl Resolve,
        pace: Pace,
        tasks: &mut JoinSet<()>,
        metrics: UpstreamMetrics,
    ) {
        let Some(host) = url.host() else { return };
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return;
        }
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        let (failed, failures) = mpsc::channel(PENDING);
        let follower = Follower {
            pool: Arc::clone(&self.pool),
            name: format!("{host}:{port}").into(),
            resolver: Arc::new(resolver),
            pace,
            addresses: BTreeMap::new(),
            failed,
            doing: JoinSet::new(),
            metrics,
        };
        tasks.spawn(follower.run(failures));
    }
}

impl fmt::Debug for Balanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balanced").field("in_use", &self.pool.in_use).finish_non_exhaustive()
    }
}

impl Service<Request<Full<Bytes>>> for Balanced {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Answering {
        if self.pool.in_use.load(Ordering::Relaxed)
            && let Some(mut balance) = self.pool.ready()
        {
            return Answering::Balanced(Box::pin(balance.call(request)));
        }
        Answering::Plain(self.plain.call(request))
    }
}

/// The future of [`Balanced`].
pub enum Answering {
    /// Of the client for whatever the system finds.
    Plain(ResponseFuture),
    /// Of that for one address.
    Balanced(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            Answering::Plain(answering) => Pin::new(answering).poll(cx).map_err(Into::into),
            Answering::Balanced(answering) => answering.as_mut().poll(cx),
        }
    }
}

impl Pool {
    /// With an endpoint to call, if there is one.
    fn ready(&self) -> Option<MutexGuard<'_, Balance<Told, Request<Full<Bytes>>>>> {
        let mut balance = self.balance.lock().unwrap_or_else(PoisonError::into_inner);
        // Endpoints are always ready: where none is, there is none to wait for.
        let ready = balance.poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(()))).then_some(balance)
    }

    /// Puts `change` into force. Requests that are under way at an address that goes end there.
    fn change(&self, change: Changes) {
        // There is room: each change is taken out at once.
        if self.changes.try_send(change).is_ok() {
            drop(self.ready());
        }
    }
}

/// What [`Balance`] is told.
struct Told(mpsc::Receiver<Changes>);

impl Stream for Told {
    type Item = Result<Changes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|change| change.map(Ok))
    }
}

/// A client for one address, which tells when that is ill.
struct Endpoint {
    client: HttpClient,
    health: Arc<Health>,
}

struct Health {
    address: SocketAddr,
    /// In a row.
    failures: AtomicU32,
    failed: mpsc::Sender<Failed>,
    patience: Duration,
}

/// An address failed.
enum Failed {
    /// It cannot be connected to.
    Unreachable(Arc<Health>),
    /// It leaves requests without an answer.
    Unanswering(Arc<Health>),
}

impl Health {
    fn new(address: SocketAddr, failed: mpsc::Sender<Failed>, patience: Duration) -> Arc<Self> {
        Arc::new(Health { address, failures: AtomicU32::new(0), failed, patience })
    }

    /// A request got no answer.
    fn failed(self: &Arc<Self>) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.tell(Failed::Unanswering);
        }
    }

    fn tell(self: &Arc<Self>, failed: fn(Arc<Self>) -> Failed) {
        // Where there is no room, others have told.
        let _ = self.failed.try_send(failed(Arc::clone(self)));
    }
}

/// A request that was not answered yet. One that is given up has failed, unless whoever gave it up did not wait.
struct Unanswered {
    health: Option<Arc<Health>>,
    since: Instant,
}

impl Unanswered {
    fn at(health: &Arc<Health>) -> Self {
        Unanswered { health: Some(Arc::clone(health)), since: Instant::now() }
    }

    /// As a circuit takes it: a 500 shows that somebody is there, the others do not.
    fn ended(mut self, answer: &Result<Response<Incoming>, legacy::Error>) {
        use StatusCode as Status;
        let Some(health) = self.health.take() else { return };
        match answer.as_ref().map(Response::status) {
            Ok(Status::BAD_GATEWAY | Status::SERVICE_UNAVAILABLE | Status::GATEWAY_TIMEOUT) => health.failed(),
            Ok(_) => health.failures.store(0, Ordering::Relaxed),
            Err(error) if error.is_connect() => health.tell(Failed::Unreachable),
            Err(_) => health.failed(),
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(health) = self.health.take()
            && self.since.elapsed() >= health.patience
        {
            health.failed();
        }
    }
}

impl Service<Request<Full<Bytes>>> for Endpoint {
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, legacy::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), legacy::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let (answering, unanswered) = (self.client.call(request), Unanswered::at(&self.health));
        Box::pin(async move {
            let answer = answering.await;
            unanswered.ended(&answer);
            answer
        })
    }
}

/// Follows the addresses.
struct Follower {
    pool: Arc<Pool>,
    name: Arc<str>,
    resolver: Arc<dyn Resolve>,
    pace: Pace,
    addresses: BTreeMap<SocketAddr, Address>,
    failed: mpsc::Sender<Failed>,
    doing: JoinSet<Done>,
    metrics: UpstreamMetrics,
}

struct Address {
    /// Since when it takes part, and what tells of it: what was sent before tells of what was there before.
    since: Option<(Instant, Arc<Health>)>,
    /// After which it is tried again.
    pause: Duration,
}

enum Done {
    LookedUp(io::Result<Vec<SocketAddr>>),
    Tried(SocketAddr, bool),
}

impl Follower {
    async fn run(mut self, mut failures: mpsc::Receiver<Failed>) {
        self.look_up(Duration::ZERO);
        loop {
            tokio::select! {
                Some(done) = self.doing.join_next() => match done {
                    Ok(Done::LookedUp(found)) => self.looked_up(found),
                    Ok(Done::Tried(address, reached)) => self.tried(address, reached),
                    // A lookup that panicked is not the last.
                    Err(error) if error.is_panic() => self.look_up(self.pace.every),
                    Err(_) => {}
                },
                Some(failed) = failures.recv() => self.failed(&failed),
            }
            let up = self.up();
            self.pool.in_use.store(up > 0, Ordering::Relaxed);
            self.metrics.addresses(up, self.addresses.len() - up);
        }
    }

    fn look_up(&mut self, after: Duration) {
        let (resolver, name) = (Arc::clone(&self.resolver), Arc::clone(&self.name));
        self.doing.spawn(async move {
            sleep(after).await;
            let found = timeout(LOOKUP, resolver.resolve(&name)).await;
            Done::LookedUp(found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
        });
    }

    fn looked_up(&mut self, found: io::Result<Vec<SocketAddr>>) {
        self.look_up(self.pace.every);
        let mut found: BTreeSet<_> = match found {
            Ok(found) if !found.is_empty() => found.into_iter().take(MOST).collect(),
            Ok(_) => return,
            // Those that were found before stay.
            Err(error) => return tracing::warn!(name = &*self.name, %error, "the upstream was not looked up"),
        };
        if found.len() == 1 {
            found.clear();
        }
        let gone: Vec<_> = self.addresses.keys().filter(|address| !found.contains(address)).copied().collect();
        for address in gone {
            tracing::info!(%address, "upstream: this address is gone");
            if self.addresses.remove(&address).is_some_and(|address| address.since.is_some()) {
                self.pool.change(Change::Remove(address));
            }
        }
        found.retain(|address| !self.addresses.contains_key(address));
        for address in found {
            tracing::info!(%address, "upstream: this address is new");
            self.addresses.insert(address, Address { since: None, pause: FIRST_PAUSE });
            self.attempt(address, Duration::ZERO);
        }
    }

    fn attempt(&mut self, address: SocketAddr, after: Duration) {
        self.doing.spawn(async move {
            sleep(after).await;
            Done::Tried(address, timeout(CONNECT, TcpStream::connect(address)).await.is_ok_and(|stream| stream.is_ok()))
        });
    }

    fn tried(&mut self, address: SocketAddr, reached: bool) {
        // It may have gone meanwhile, or come back and been tried twice.
        let Some(known) = self.addresses.get_mut(&address).filter(|known| known.since.is_none()) else { return };
        if reached {
            let health = Health::new(address, self.failed.clone(), self.pace.patience);
            known.since = Some((Instant::now(), Arc::clone(&health)));
            let endpoint = Endpoint { client: (self.pool.connect)(address), health };
            self.pool.change(Change::Insert(address, PendingRequests::new(endpoint, CompleteOnResponse::default())));
        } else {
            let after = known.back_off();
            self.attempt(address, after);
        }
    }

    /// How many take part.
    fn up(&self) -> usize {
        self.addresses.values().filter(|address| address.since.is_some()).count()
    }

    fn failed(&mut self, failed: &Failed) {
        let health = match failed {
            Failed::Unanswering(health) if 2 * self.up().saturating_sub(1) < self.addresses.len() => {
                health.failures.store(0, Ordering::Relaxed);
                return;
            }
            Failed::Unreachable(health) | Failed::Unanswering(health) => health,
        };
        let address = health.address;
        // Requests that fail together tell it once each.
        let Some(known) = self.addresses.get_mut(&address) else { return };
        let Some((since, _)) = known.since.take_if(|(_, current)| Arc::ptr_eq(current, health)) else { return };
        if since.elapsed() >= WELL {
            known.pause = FIRST_PAUSE;
        }
        let after = known.back_off();
        tracing::warn!(%address, "upstream: this address is left out");
        self.pool.change(Change::Remove(address));
        self.attempt(address, after);
    }
}

impl Address {
    /// Half to all of its pause, which is twice as long the next time.
    fn back_off(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (2 * pause).min(LONGEST_PAUSE);
        pause.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}
