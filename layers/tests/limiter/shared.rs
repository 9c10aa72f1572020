//! The shared limiter is the local one: side by side, against a real redis-server.

use std::{
    num::NonZeroU32,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use infogw_layers::{
    circuit::Circuit,
    rate_limit::{
        Limiter, LocalLimiter, Permit, Quota, Refused,
        shared::{Fallback, SharedEvent, SharedLimiter, SharedLimiterBuilder, SharedPermit},
    },
    store::redis::{RedisConfig, RedisConnection, RedisMode},
};
use proptest::{prelude::*, sample::Index};
use tempfile::TempDir;

use crate::{LATE, wait};

const SECRET: [u8; 32] = [7; 32];
/// What no test's server takes that long for.
const PATIENCE: Duration = Duration::from_secs(10);
/// 2026-11-24: where a double no longer holds nanoseconds.
const EPOCH: Duration = Duration::from_secs(1_795_500_000);

/// A redis-server on a Unix socket.
struct Redis {
    directory: TempDir,
    process: Child,
}

impl Redis {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let process = Self::spawn(directory.path());
        Redis { directory, process }
    }

    fn spawn(directory: &Path) -> Child {
        let socket = directory.join("socket");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).arg("--dir").arg(directory);
        let process = command.stdout(Stdio::null()).spawn().expect("redis-server is installed");
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not listen");
            std::thread::yield_now();
        }
        process
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.directory.path());
    }

    fn connection(&self) -> RedisConnection {
        let url = format!("redis+unix://{}", self.directory.path().join("socket").display());
        let config = RedisConfig::new(&[url], RedisMode::Single).unwrap();
        RedisConnection::new(&config.response_timeout(PATIENCE)).unwrap()
    }

    /// A limiter as one process has it, on its own connection.
    fn limiter(&self, prefix: &str) -> SharedLimiterBuilder {
        SharedLimiter::builder(self.connection(), prefix, &SECRET, Arc::default()).deadline(PATIENCE)
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut self.connection()).await.unwrap()
    }

    /// Every key, with its value and how many milliseconds it has to live.
    async fn state(&self) -> Vec<(String, String, u64)> {
        let mut state = Vec::new();
        for key in self.ask::<Vec<String>>(&["KEYS", "*"]).await {
            let (value, left) = (self.ask(&["GET", &key]).await, self.ask(&["PTTL", &key]).await);
            state.push((key, value, left));
        }
        state
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A time that tests set.
#[derive(Clone, Default)]
struct Time(Arc<Mutex<Duration>>);

impl Time {
    fn set(&self, now: Duration) {
        *self.0.lock().unwrap() = now;
    }

    fn read(&self) -> impl Fn() -> Duration + Send + Sync + 'static {
        let time = Arc::clone(&self.0);
        move || *time.lock().unwrap()
    }
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[derive(Debug, Clone)]
enum Step {
    /// By the quota's period in thousandths, and nanoseconds.
    Wait(u64, u64),
    /// A reading of the clock that is late, or gone back.
    Back(u64),
    Take {
        who: u8,
        cost: u32,
        replica: usize,
    },
    GiveBack {
        which: Index,
        floor: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_000_u64, 0..3_u64).prop_map(|(thousandths, nanos)| Step::Wait(thousandths, nanos)),
        1 => prop_oneof![0..LATE.as_nanos() as u64, any::<u32>().prop_map(|n| u64::from(n) * 1_000)].prop_map(Step::Back),
        8 => (0..2_u8, 1..8_u32, 0..2_usize).prop_map(|(who, cost, replica)| Step::Take { who, cost, replica }),
        4 => (any::<Index>(), prop_oneof![3 => Just(0), 1 => 0..5_000_u64]).prop_map(|(which, floor)| Step::GiveBack { which, floor }),
    ];
    prop::collection::vec(step, 0..80)
}

fn quotas() -> impl Strategy<Value = Quota> {
    let period = prop_oneof![1..20_u64, 1..2_000_000_000_u64, 1..400_000_000_000_000_u64];
    (period, 1..7_u32)
        .prop_map(|(period, burst)| Quota::new(Duration::from_nanos(period), NonZeroU32::new(burst).unwrap()).unwrap())
}

/// Any two replicas decide what one limiter in one process would: grants, waits to the nanosecond, and what refunds change.
#[test]
fn replicas_decide_as_one_local_limiter_does() {
    let redis = Redis::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let time = Time::default();
    let replicas = runtime.block_on(async { [(); 2].map(|()| redis.limiter("model").time(time.read()).build()) });
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let run = |(start, quota, steps): (u64, Quota, Vec<Step>)| {
        runtime.block_on(async {
            let run = unique();
            let model = LocalLimiter::new();
            let mut now = EPOCH + Duration::from_nanos(start);
            // A refund by a reading that is late is the local limiter's affair: Redis has one clock.
            let mut latest = now;
            let mut out: Vec<(Permit, SharedPermit, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Wait(thousandths, nanos) => {
                        now += quota.period() * thousandths as u32 / 1_000 + Duration::from_nanos(nanos);
                    }
                    Step::Back(nanos) => now -= Duration::from_nanos(nanos),
                    Step::Take { who, cost, replica } => {
                        latest = latest.max(now);
                        time.set(now);
                        let key = format!("{run}/{who}");
                        // The replicas' own clocks are another matter.
                        let here = Duration::from_secs(5 + replica as u64);
                        let expected = model.check(model.key(key.as_bytes()), cost, &quota, now);
                        match (expected, replicas[replica].try_take(key.as_bytes(), cost, &quota, here).await) {
                            (Ok(one), Ok(other)) => out.push((one, other, replica)),
                            (Err(one), Err(other)) => prop_assert_eq!(one, other),
                            // The local limiter may have swept what was of no more use before the clock went back, and what
                            // Redis keeps until its own clock says so. From here on they differ.
                            (Ok(_), Err(other)) if now + LATE < latest => {
                                prop_assert!(wait(&other) <= quota.period() * cost + LATE);
                                return Ok(());
                            }
                            (one, other) => prop_assert!(false, "{one:?}, but shared {other:?}"),
                        }
                    }
                    Step::GiveBack { which, floor } if !out.is_empty() => {
                        let (one, other, replica) = out.swap_remove(which.index(out.len()));
                        let floor = quota.period() * floor as u32 / 1_000;
                        latest = latest.max(now);
                        time.set(latest);
                        let changed = model.refund(one, floor, latest);
                        prop_assert_eq!(changed, replicas[replica].give_back(other, floor, Duration::ZERO).await);
                    }
                    Step::GiveBack { .. } => {}
                }
            }
            Ok(())
        })
    };
    runner.run(&(0..10_000_000_000_u64, quotas(), steps()), run).unwrap();
}

/// By Redis' clock, with several replicas at work at once: no window holds more than the quota, and a wait that was told is
/// enough.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_at_once_stay_within_the_quota() {
    let redis = Redis::start();
    let quota = Quota::new(Duration::from_millis(20), NonZeroU32::new(5).unwrap()).unwrap();
    let began = Instant::now();
    let replicas: Vec<_> = (0..4)
        .map(|_| {
            let limiter = redis.limiter("burst").build();
            tokio::spawn(async move {
                let mut granted = Vec::new();
                while began.elapsed() < Duration::from_millis(1_000) {
                    let asked = began.elapsed();
                    match limiter.try_take(b"a", 1, &quota, asked).await {
                        Ok(_) => granted.push((asked, began.elapsed())),
                        Err(refused) => tokio::time::sleep(wait(&refused) / 2).await,
                    }
                }
                granted
            })
        })
        .collect();
    let mut granted = Vec::new();
    for replica in replicas {
        granted.extend(replica.await.unwrap());
    }
    granted.sort();
    // When each was decided, only Redis knows: after it was asked and before it was answered.
    for (first, (asked, _)) in granted.iter().enumerate() {
        let mut last = *asked;
        for (count, (_, answered)) in granted[first..].iter().enumerate() {
            last = last.max(*answered);
            let earned = (last - *asked).as_nanos() / quota.period().as_nanos();
            assert!((count as u128) < u128::from(quota.burst().get()) + earned, "{count} of {granted:?}");
        }
    }
    // And the burst, at least, is.
    assert!(granted.len() >= quota.burst().get() as usize, "{}", granted.len());
}

#[tokio::test]
async fn a_wait_that_was_told_is_exact_by_redis_own_clock() {
    let redis = Redis::start();
    let limiter = redis.limiter("wait").build();
    let quota = Quota::one_per(Duration::from_secs(2)).unwrap();
    assert!(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.is_ok());
    let refused = limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.unwrap_err();
    let told = wait(&refused);
    assert!(told <= quota.period(), "{told:?}");
    tokio::time::sleep(told).await;
    assert!(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn redis_learns_no_names_and_its_memory_is_given_back() {
    let redis = Redis::start();
    let limiter = redis.limiter("app:upload").build();
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let permit = limiter.try_take(b"cluster-1", 1, &quota, Duration::ZERO).await.unwrap();
    let [(key, _, left)] = redis.state().await.try_into().unwrap();
    let hash = key.strip_prefix("app:upload:").unwrap();
    assert!(hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    assert!((265_000..=271_000).contains(&left), "{left}");
    // Another replica knows it by the same hash; one with another secret does not.
    let replica = redis.limiter("app:upload").build();
    assert!(replica.try_take(b"cluster-1", 1, &quota, Duration::ZERO).await.is_err());
    let stranger =
        SharedLimiter::builder(redis.connection(), "app:upload", &[8; 32], Arc::default()).deadline(PATIENCE).build();
    assert!(stranger.try_take(b"cluster-1", 1, &quota, Duration::ZERO).await.is_ok());
    // So is one with another limit.
    assert!(redis.limiter("app:other").build().try_take(b"cluster-1", 1, &quota, Duration::ZERO).await.is_ok());
    assert_eq!(redis.state().await.len(), 3);

    // A refund leaves no key that lives for ever.
    assert!(limiter.give_back(permit, Duration::ZERO, Duration::ZERO).await);
    let state = redis.state().await;
    let (.., left) = state.iter().find(|(other, ..)| *other == key).unwrap();
    assert!((1..=271_000).contains(left), "{left}");

    // State that has passed expires by itself.
    redis.ask::<()>(&["FLUSHALL"]).await;
    let quick = Quota::one_per(Duration::from_millis(1)).unwrap();
    assert!(limiter.try_take(b"cluster-1", 1, &quick, Duration::ZERO).await.is_ok());
    let deadline = Instant::now() + PATIENCE;
    while redis.ask::<u64>(&["DBSIZE"]).await > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Several requests of a sender under way, at two replicas, all of which an outage ends.
#[tokio::test]
async fn all_that_is_under_way_is_given_back() {
    let redis = Redis::start();
    let quota = Quota::new(Duration::from_secs(100), NonZeroU32::new(10_000).unwrap()).unwrap();
    let replicas = [(); 2].map(|()| redis.limiter("under way").build());
    for round in 0..3 {
        let mut permits = Vec::new();
        for n in 0..5 {
            permits.push(replicas[n % 2].try_take(b"a", 2_000, &quota, Duration::ZERO).await.unwrap());
        }
        assert!(replicas[0].try_take(b"a", 1, &quota, Duration::ZERO).await.is_err());
        if round == 1 {
            permits.reverse();
        }
        for (n, permit) in permits.into_iter().enumerate() {
            assert!(replicas[(n + round) % 2].give_back(permit, Duration::ZERO, Duration::ZERO).await);
        }
    }
    assert!(replicas[0].try_take(b"a", 10_000, &quota, Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn what_is_not_asked_of_redis() {
    let redis = Redis::start();
    let limiter = redis.limiter("none").build();
    let quota = Quota::new(Duration::from_secs(1), NonZeroU32::new(3).unwrap()).unwrap();
    let nothing = limiter.try_take(b"a", 0, &quota, Duration::ZERO).await.unwrap();
    assert!(!limiter.give_back(nothing, Duration::ZERO, Duration::ZERO).await);
    let never = limiter.try_take(b"a", 4, &quota, Duration::ZERO).await.unwrap_err();
    assert_eq!(never, Refused::Never { cost: 4, burst: quota.burst() });
    assert!(redis.state().await.is_empty());
}

#[tokio::test]
async fn somebody_elses_value_under_a_key_is_written_over() {
    let redis = Redis::start();
    let limiter = redis.limiter("odd").build();
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    drop(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.unwrap());
    let [(key, ..)] = redis.state().await.try_into().unwrap();
    redis.ask::<()>(&["SET", &key, "what is this"]).await;
    assert!(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.is_ok());
    assert!(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.is_err());
}

/// A limiter whose observer counts, and what it was told.
fn observed(builder: SharedLimiterBuilder) -> (SharedLimiter, Arc<Mutex<Vec<&'static str>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let limiter = builder.observed_by(move |event: &SharedEvent| {
        let told = match event {
            SharedEvent::Answered => "answered",
            SharedEvent::FellBack(Fallback::TimedOut) => "timed out",
            SharedEvent::FellBack(Fallback::Failed(_)) => "failed",
            SharedEvent::FellBack(Fallback::CircuitOpen | Fallback::Busy) => "open",
            SharedEvent::RefundLost(_) => "refund lost",
        };
        seen.lock().unwrap().push(told);
    });
    (limiter.build(), events)
}

/// The switch there and back: what Redis said last holds, and what was granted without it is told.
#[tokio::test]
async fn an_outage_is_no_burst_and_neither_is_its_end() {
    let mut redis = Redis::start();
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let circuit = Circuit::new(NonZeroU32::new(2).unwrap(), Duration::from_secs(1));
    let (limiter, events) = observed(redis.limiter("outage").circuit(circuit));
    let other = redis.limiter("outage").build();
    let second = Duration::from_secs(1);
    let take = async |limiter: &SharedLimiter, key: &str, now| limiter.try_take(key.as_bytes(), 1, &quota, now).await;

    drop(take(&limiter, "granted", second).await.unwrap());
    drop(take(&other, "granted elsewhere", second).await.unwrap());
    assert!(take(&limiter, "granted elsewhere", second).await.is_err());
    let refunded = take(&limiter, "refunded", second).await.unwrap();
    assert!(limiter.give_back(refunded, Duration::ZERO, second).await);
    let lost = take(&limiter, "lost", second).await.unwrap();
    redis.kill();

    // It knows what it was told, and by its own clock when that is over.
    let refused = take(&limiter, "granted", 2 * second).await.unwrap_err();
    assert!(wait(&refused) > 268 * second && wait(&refused) <= 269 * second, "{refused:?}");
    assert!(take(&limiter, "granted elsewhere", 2 * second).await.is_err());
    drop(take(&limiter, "refunded", 2 * second).await.unwrap());
    assert!(!limiter.give_back(lost, Duration::ZERO, 2 * second).await);
    // One that is refunded during the outage is, here.
    let within = take(&limiter, "within", 2 * second).await.unwrap();
    assert!(take(&limiter, "within", 2 * second).await.is_err());
    assert!(limiter.give_back(within, Duration::ZERO, 2 * second).await);
    assert_eq!(
        *events.lock().unwrap(),
        ["answered", "answered", "answered", "answered", "failed", "failed", "open", "refund lost", "open", "open"]
    );

    redis.restart();
    events.lock().unwrap().clear();
    // It comes back by itself, and nothing that was kept in this process alone is forgotten: this Redis knows nothing.
    let mut later = 5 * second;
    while events.lock().unwrap().last() != Some(&"answered") {
        assert!(take(&limiter, "refunded", later).await.is_err(), "granted without Redis");
        later += second;
        assert!(later < 100 * second);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = redis.limiter("outage").build();
    assert!(take(&other, "refunded", 2 * second).await.is_err(), "the other replica hears of it");
    assert!(take(&other, "within", 2 * second).await.is_ok());
    // From here on Redis alone decides: had it lost everything, the burst would be back.
    redis.ask::<()>(&["FLUSHALL"]).await;
    assert!(take(&limiter, "refunded", later).await.is_ok());
}

/// A check that was too late was made in Redis all the same, and is one debt there and here.
#[tokio::test]
async fn a_late_answer_is_charged_once() {
    let redis = Redis::start();
    let quota = Quota::new(Duration::from_secs(100), NonZeroU32::new(2).unwrap()).unwrap();
    // One that waits warms up the script; one that does not shares its connection.
    let connection = redis.connection();
    let shared = |deadline| {
        let builder = SharedLimiter::builder(connection.clone(), "late", &SECRET, Arc::default());
        observed(builder.deadline(deadline))
    };
    let ((patient, _), (limiter, events)) = (shared(PATIENCE), shared(Duration::from_millis(50)));
    let now = Duration::from_secs(1);
    drop(patient.try_take(b"other", 1, &quota, now).await.unwrap());
    redis.ask::<()>(&["CLIENT", "PAUSE", "1000", "ALL"]).await;
    let late = limiter.try_take(b"a", 1, &quota, now).await.unwrap();
    assert_eq!(*events.lock().unwrap(), ["timed out"]);
    // Here it can be given back; there, nobody knows what of.
    assert!(!limiter.give_back(late, Duration::ZERO, now).await);
    assert_eq!(*events.lock().unwrap(), ["timed out", "refund lost"]);
    drop(limiter.try_take(b"a", 1, &quota, now).await.unwrap());
    // Once Redis goes on, it has charged one, and hears of one.
    while redis.state().await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Two were charged, of which one is told again, and counts once.
    let refused = patient.try_take(b"a", 2, &quota, now).await.unwrap_err();
    assert!(wait(&refused) <= 2 * quota.period(), "charged three times: {refused:?}");
}

/// Redis answers a check, and meanwhile more was granted without it.
#[tokio::test]
async fn an_answer_does_not_hide_what_was_granted_while_it_was_waited_for() {
    let redis = Redis::start();
    let quota = Quota::new(Duration::from_secs(100), NonZeroU32::new(3).unwrap()).unwrap();
    let circuit = Circuit::new(NonZeroU32::MIN, Duration::from_secs(100));
    let (limiter, events) = observed(redis.limiter("meanwhile").circuit(circuit.clone()));
    let now = Duration::from_secs(1);
    drop(limiter.try_take(b"other", 1, &quota, now).await.unwrap());
    redis.ask::<()>(&["CLIENT", "PAUSE", "10000", "WRITE"]).await;
    let mut slow = limiter.try_take(b"a", 1, &quota, now);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut slow).await.is_err());
    circuit.admit(now).unwrap().failed(now);
    drop(limiter.try_take(b"a", 2, &quota, now).await.unwrap());
    redis.ask::<()>(&["CLIENT", "UNPAUSE"]).await;
    drop(slow.await.unwrap());
    circuit.admit(now).unwrap().failed(now);
    assert!(limiter.try_take(b"a", 2, &quota, now).await.is_err());
    assert_eq!(*events.lock().unwrap(), ["answered", "open", "answered", "open"]);
}

/// Keys were rotated: processes share again once all have the new secret, and nobody's refund is lost.
#[tokio::test]
async fn another_secret_is_taken_over_by_all() {
    let redis = Redis::start();
    let quota = Quota::one_per(Duration::from_secs(270)).unwrap();
    let [one, other] = [(); 2].map(|()| redis.limiter("rotated").build());
    let take = async |limiter: &SharedLimiter| limiter.try_take(b"a", 1, &quota, Duration::ZERO).await;
    let before = take(&one).await.unwrap();
    one.set_secret(&[8; 32]);
    drop(take(&one).await.unwrap());
    assert!(take(&other).await.is_err(), "under the old one");
    assert!(one.give_back(before, Duration::ZERO, Duration::ZERO).await);
    drop(take(&other).await.unwrap());
    other.set_secret(&[8; 32]);
    assert!(take(&other).await.is_err(), "what the one was granted under the new one");
    assert_eq!(redis.state().await.len(), 2);
}

#[tokio::test]
async fn dropped_checks_leave_the_limiter_fit() {
    let redis = Redis::start();
    let quota = Quota::new(Duration::from_secs(100), NonZeroU32::new(1_000).unwrap()).unwrap();
    let limiter = redis.limiter("dropped").build();
    for _ in 0..20 {
        let mut taking = limiter.try_take(b"a", 1, &quota, Duration::ZERO);
        let polled = tokio::time::timeout(Duration::from_micros(50), &mut taking).await;
        drop((polled, taking));
    }
    assert!(limiter.try_take(b"a", 1, &quota, Duration::ZERO).await.is_ok());
    let refused = limiter.try_take(b"a", 1_000, &quota, Duration::ZERO).await.unwrap_err();
    // The whole burst waits for what was charged: the last one, and any of those that were given up, each once.
    let charged = wait(&refused).as_nanos().div_ceil(quota.period().as_nanos());
    assert!((1..=21).contains(&charged), "{charged}");
}
