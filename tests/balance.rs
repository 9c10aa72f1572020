//! An upstream of several addresses, as the gateway's client of it sees them: 127.0.0.1 and its neighbours, under one name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{HeaderMap, Request, StatusCode};
use infogw_layers::store::memcached::Resolve;
use infogw_proxy::{
    admin::metrics::Metrics,
    balance::Pace,
    client::Clients,
    config::{Config, Flags},
    retry::Retries,
};
use rcgen::CertificateParams;
use support::{
    Act, Faulty, ensure, eventually,
    tls::{Authority, Neighbour, Volume},
};
use tokio::{sync::watch, task::JoinSet};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const PACE: Pace = Pace { every: Duration::from_millis(20), patience: Duration::from_millis(80) };

/// What the name stands for; nothing while it cannot be looked up.
#[derive(Clone, Default)]
struct Names {
    found: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    lookups: Arc<AtomicUsize>,
}

impl Names {
    fn set(&self, upstreams: &[&Faulty]) {
        self.set_addresses(upstreams.iter().map(|upstream| upstream.address()).collect());
    }

    fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.found.lock().unwrap() = Some(addresses);
    }

    /// From now on, and at least twice.
    async fn fail(&self) {
        *self.found.lock().unwrap() = None;
        let before = self.lookups.load(Ordering::Relaxed);
        let failed = || self.lookups.load(Ordering::Relaxed) >= before + 3;
        eventually("lookups", async || ensure(failed(), || "fewer".to_owned())).await;
    }
}

impl Resolve for Names {
    fn resolve<'a>(&'a self, _: &'a str) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let found = self.found.lock().unwrap().clone().ok_or_else(|| io::Error::other("no such name"));
        Box::pin(async move { found })
    }
}

/// The gateway's client, following [`Names`].
struct Sender {
    clients: Clients,
    metrics: &'static Metrics,
    names: Names,
    url: String,
    _following: JoinSet<()>,
}

impl Sender {
    fn new(port: u16) -> Self {
        Self::with(format!("http://localhost:{port}/receive"), Flags::default())
    }

    fn with(url: String, flags: Flags) -> Self {
        let flags = Flags {
            listen: Some("127.0.0.1:0".to_owned()),
            listen_internal: Some("127.0.0.1:0".to_owned()),
            insecure_accept_any_token: true,
            forward_url: Some(url.clone()),
            ..flags
        };
        let config = Config::new(flags).unwrap();
        let (clients, metrics) = (Clients::new(&config).unwrap(), Metrics::new().unwrap());
        let (names, mut following) = (Names::default(), JoinSet::new());
        let found = metrics.upstream.clone();
        clients.forward.follow(config.upstream.uri(), names.clone(), PACE, &mut following, found);
        Sender { clients, metrics, names, url, _following: following }
    }

    /// What one request is answered.
    fn request(&self) -> impl Future<Output = Result<StatusCode, String>> + Send + 'static {
        let request = Request::post(&self.url).body(Full::new(Bytes::from_static(b"body"))).unwrap();
        let client = self.clients.forward.clone();
        async move {
            let until = Instant::now() + Duration::from_secs(2);
            // A budget of its own: what is looked at here is where requests go, not how many.
            let answer = Retries::default().answer(client, request, until, &()).await;
            answer.map(|response| response.status()).map_err(|error| error.to_string())
        }
    }

    async fn send_ok(&self, requests: usize) {
        for n in 0..requests {
            assert_eq!(self.request().await, Ok(StatusCode::OK), "request {n}");
        }
    }

    /// Waits until so many addresses take part, and so many do not.
    async fn until(&self, up: usize, down: usize) {
        let expected = [("up", up), ("down", down)]
            .map(|(state, n)| format!("infogw_upstream_addresses{{state=\"{state}\"}} {n}"));
        eventually("addresses", async || {
            let (_, text) = self.metrics.expose(&HeaderMap::new()).unwrap();
            let text = String::from_utf8(text).unwrap();
            let seen: Vec<_> = text.lines().filter(|line| line.starts_with("infogw_upstream_addresses{")).collect();
            ensure(expected.iter().all(|line| seen.contains(&line.as_str())), || format!("{seen:?}"))
        })
        .await;
    }
}

/// Three that answer, on one port, and a sender that knows them all.
async fn three() -> ([Faulty; 3], Sender) {
    let first = Faulty::start(|_| Act::raw(OK));
    let port = first.address().port();
    let [second, third] = [2, 3].map(|n| {
        let mut other = Faulty::refusing_at(([127, 0, 0, n], port).into(), |_| Act::raw(OK));
        other.listen();
        other
    });
    let sender = Sender::new(port);
    sender.names.set(&[&first, &second, &third]);
    sender.until(3, 0).await;
    ([first, second, third], sender)
}

#[tokio::test]
async fn several_addresses_share_the_load() {
    let (upstreams, sender) = three().await;
    sender.send_ok(300).await;
    let shares = upstreams.each_ref().map(Faulty::requests);
    assert_eq!(shares.iter().sum::<usize>(), 300);
    assert!(shares.iter().all(|share| (50..=150).contains(share)), "{shares:?}");
    let hosts: BTreeSet<_> = upstreams.iter().flat_map(Faulty::hosts).collect();
    assert_eq!(hosts, [sender.url.split('/').nth(2).unwrap().to_owned()].into(), "they are asked for by their name");

    // Who is busy gets less: while one request is held at the first, the others go elsewhere.
    let (release, held) = watch::channel(false);
    let [first, ..] = &upstreams;
    first.set_script(move |_| Act::raw(OK).held(&held));
    let mut sent = JoinSet::new();
    while first.requests() == shares[0] {
        let before = total(&upstreams);
        sent.spawn(sender.request());
        arrived(&upstreams, before + 1).await;
    }
    sender.send_ok(50).await;
    assert_eq!(first.requests(), shares[0] + 1);
    release.send_replace(true);
    while let Some(answer) = sent.join_next().await {
        assert_eq!(answer.unwrap(), Ok(StatusCode::OK));
    }
}

/// An address that dies is left out, and no request fails for it, neither when it goes nor while it is away. It gets its share again
/// once it is back.
#[tokio::test]
async fn a_dead_address_is_left_out_and_comes_back() {
    let ([first, second, third], sender) = three().await;
    sender.send_ok(30).await;
    // Its port stays taken, and refuses.
    let mut third = Faulty::refusing_at(third.stop().await, |_| Act::raw(OK));
    sender.send_ok(100).await;
    sender.until(2, 1).await;
    sender.send_ok(100).await;

    third.listen();
    sender.until(3, 0).await;
    sender.send_ok(100).await;
    assert!((15..=60).contains(&third.requests()), "{} of 100", third.requests());
    let away = first.requests() + second.requests();
    assert!(away + third.requests() >= 300, "{away}");
}

/// Who hangs up at once says nothing of the upstream.
#[tokio::test]
async fn impatient_senders_leave_nobody_out() {
    let (upstreams, sender) = three().await;
    let (release, held) = watch::channel(false);
    for upstream in &upstreams {
        let held = held.clone();
        upstream.set_script(move |_| Act::raw(OK).held(&held));
    }
    for _ in 0..120 {
        let before = total(&upstreams);
        let mut sent = JoinSet::new();
        sent.spawn(sender.request());
        arrived(&upstreams, before + 1).await;
        sent.shutdown().await;
    }
    // Had five of them been enough to leave an address out, the others would have got no more.
    let shares = upstreams.each_ref().map(Faulty::requests);
    assert!(shares.iter().all(|share| (15..=70).contains(share)), "{shares:?}");
    release.send_replace(true);
    sender.send_ok(10).await;
}

/// One that takes connections and answers nothing looks idle. It is found out after a few requests.
#[tokio::test]
async fn an_address_that_is_ill_is_left_out() {
    for (act, failing) in [(Act::reset_in_request(), "resets"), (Act::hang(), "hangs"), (Act::status(502, ""), "502")] {
        let (upstreams, sender) = three().await;
        let [first, ..] = &upstreams;
        first.set_script(move |_| act.clone());
        let mut failed = 0;
        for _ in 0..200 {
            let answer = tokio::time::timeout(Duration::from_millis(100), sender.request()).await;
            failed += usize::from(answer != Ok(Ok(StatusCode::OK)));
        }
        // Five, and five for each time that it was taken for well again, after a longer pause each time.
        assert!((5..=20).contains(&failed), "{failing}: {failed} of 200");
        first.set_script(|_| Act::raw(OK));
        sender.until(3, 0).await;
        let before = first.requests();
        sender.send_ok(60).await;
        assert!(first.requests() > before, "{failing}: it is back");
    }
}

/// Where most of them fail it is something behind them that does: nobody gets the load of all.
#[tokio::test]
async fn those_that_answer_are_left_out_no_further_than_to_half() {
    let (upstreams, sender) = three().await;
    upstreams.iter().for_each(|upstream| upstream.set_script(|_| Act::status(503, "")));
    let (stop, stopped) = watch::channel(false);
    let sending = async {
        while !*stopped.borrow() {
            assert_eq!(sender.request().await, Ok(StatusCode::SERVICE_UNAVAILABLE));
        }
    };
    let looking = async {
        sender.until(2, 1).await;
        let before = upstreams.each_ref().map(Faulty::requests);
        arrived(&upstreams, before.iter().sum::<usize>() + 60).await;
        let shares = upstreams.iter().zip(before).map(|(upstream, before)| upstream.requests() - before);
        let mut shares: Vec<_> = shares.collect();
        shares.sort_unstable();
        assert!(shares[1] >= 10, "{shares:?}");
        stop.send_replace(true);
    };
    tokio::join!(sending, looking);
    upstreams.iter().for_each(|upstream| upstream.set_script(|_| Act::raw(OK)));
    sender.until(3, 0).await;
    sender.send_ok(30).await;
}

/// New addresses join, and those that are gone leave once their requests have ended. While the name cannot be looked up, those that
/// were found stay; where there is but one, or none can be connected to, it is the system's to find one.
#[tokio::test]
async fn the_name_is_followed() {
    let ([first, second, third], sender) = three().await;
    let (release, held) = watch::channel(false);
    first.set_script(move |_| Act::raw(OK).held(&held));
    let mut sent = JoinSet::new();
    while first.requests() == 0 {
        let before = second.requests() + third.requests();
        sent.spawn(sender.request());
        let arrived = || first.requests() + second.requests() + third.requests() > before;
        eventually("a request", async || ensure(arrived(), || "none".to_owned())).await;
    }
    sender.names.set(&[&second, &third]);
    sender.until(2, 0).await;
    sender.send_ok(50).await;
    assert_eq!(first.requests(), 1, "it is gone");
    release.send_replace(true);
    while let Some(answer) = sent.join_next().await {
        assert_eq!(answer.unwrap(), Ok(StatusCode::OK), "its request has ended as it should");
    }

    sender.names.fail().await;
    let mut before = second.requests() + third.requests();
    sender.send_ok(50).await;
    sender.until(2, 0).await;
    assert_eq!(second.requests() + third.requests(), before + 50);

    first.set_script(|_| Act::raw(OK));
    sender.names.set(&[&first, &second]);
    eventually("the first is back", async || {
        sender.send_ok(1).await;
        ensure(first.requests() > 1, || "it gets nothing".to_owned())
    })
    .await;
    before = third.requests();
    sender.send_ok(50).await;
    assert_eq!(third.requests(), before);

    // One alone: what the system finds for `localhost` is the first.
    sender.names.set(&[&second]);
    sender.until(0, 0).await;
    before = second.requests();
    sender.send_ok(10).await;
    assert_eq!(second.requests(), before);

    // None of several can be connected to.
    let refusing =
        [second.stop().await, third.stop().await].map(|address| Faulty::refusing_at(address, |_| Act::raw(OK)));
    sender.names.set(&[&refusing[0], &refusing[1]]);
    sender.until(0, 2).await;
    sender.send_ok(10).await;
}

/// Over TLS an address proves that it is what the URL names, and not that it is itself. One that cannot gets nothing.
#[tokio::test]
async fn certificates_are_of_the_name() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let leaf = authority.server();
    let first = Neighbour::start(&leaf, None).await;
    let at = |n| ([127, 0, 0, n], first.address.port()).into();
    let second = Neighbour::start_at(at(2), &leaf, None).await;
    let of_address = authority.issue(&CertificateParams::new(["127.0.0.3".to_owned()]).unwrap());
    let third = Neighbour::start_at(at(3), &of_address, None).await;
    let fourth = Neighbour::start_at(at(4), &strangers.server(), None).await;
    let ca = Volume::new(&[("ca.crt", &authority.pem())]);
    let mut flags = Flags::default();
    flags.tls.forward_tls_ca_crt = Some(ca.path("ca.crt").display().to_string());
    let sender = Sender::with(first.url.clone(), flags);
    sender.names.set_addresses([&first, &second, &third, &fourth].map(|upstream| upstream.address).to_vec());
    eventually("both", async || {
        sender.send_ok(10).await;
        let asked = [first.asked(), second.asked()];
        ensure(asked.iter().all(|asked| *asked > 10), || format!("{asked:?}"))
    })
    .await;
    assert_eq!((third.asked(), fourth.asked()), (0, 0));
}

fn total(upstreams: &[Faulty]) -> usize {
    upstreams.iter().map(Faulty::requests).sum()
}

async fn arrived(upstreams: &[Faulty], requests: usize) {
    eventually("requests", async || {
        ensure(total(upstreams) >= requests, || format!("{} of {requests}", total(upstreams)))
    })
    .await;
}
