//! One call at a time: by one thread, and by one on every core.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, poll_fn, ready},
    hint::black_box,
    iter::repeat_with,
    pin::pin,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tower::Service;

/// Layers look up the runtime that they are in, for its timer.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// What one call gets through.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// A request, whatever is in it.
    Request,
    /// Series, and their size as decoded.
    Payload { series: usize, bytes: usize },
}

impl Load {
    fn throughput(self, threads: usize) -> Throughput {
        match self {
            Load::Request => Throughput::Elements(threads as u64),
            Load::Payload { series, bytes } => {
                Throughput::ElementsAndBytes { elements: (threads * series) as u64, bytes: (threads * bytes) as u64 }
            }
        }
    }

    fn name(self, how: &str) -> String {
        match self {
            Load::Request => how.to_owned(),
            Load::Payload { series, .. } => format!("{series} series, {how}"),
        }
    }

    /// Calls from one reading of the clock to the next: as many as hide what it costs, but no more than what stays in the processor's
    /// caches. A payload's memory is then used for the next one, as in a server.
    fn batch(self) -> usize {
        match self {
            Load::Request => 256,
            Load::Payload { bytes, .. } => (65_536 / bytes).clamp(1, 256),
        }
    }
}

/// Measurements on one theme.
pub(crate) struct Group<'c>(BenchmarkGroup<'c, WallTime>);

impl<'c> Group<'c> {
    pub(crate) fn new(criterion: &'c mut Criterion, theme: &str) -> Self {
        Group(criterion.benchmark_group(theme))
    }

    /// Measures `work` on what `input` makes for each call.
    pub(crate) fn measure<I, O>(
        &mut self,
        name: &str,
        load: Load,
        input: impl Fn() -> I + Sync,
        work: impl Fn(I) -> O + Sync,
    ) {
        self.measure_workers(name, load, input, || &work);
    }

    /// Measures what `worker` makes for each thread, on what `input` makes for each call.
    pub(crate) fn measure_workers<I, O, W: FnMut(I) -> O>(
        &mut self,
        name: &str,
        load: Load,
        input: impl Fn() -> I + Sync,
        worker: impl Fn() -> W + Sync,
    ) {
        let cores = thread::available_parallelism().unwrap().get();
        for (how, threads) in [("alone", 1), ("contended", cores)] {
            self.0.throughput(load.throughput(threads));
            self.0.bench_function(BenchmarkId::new(name, load.name(how)), |bencher| {
                bencher.iter_custom(|calls| timed(threads, calls as usize, load.batch(), &input, &worker));
            });
        }
    }

    /// Measures `service`, of which each thread has a clone, and which takes all that `request` makes.
    pub(crate) fn service<S, R>(&mut self, name: &str, load: Load, service: &S, request: impl Fn() -> R + Sync)
    where
        S: Service<R, Error: Debug> + Clone + Sync,
    {
        self.measure_workers(name, load, request, || {
            let mut service = service.clone();
            move |request| call(&mut service, request).expect("accepted")
        });
    }

    /// As [`Self::service`], for one that waits for tasks of its own: each thread runs those of its calls.
    pub(crate) fn service_that_waits<S, R>(&mut self, name: &str, service: &S, request: impl Fn() -> R + Sync)
    where
        S: Service<R, Error: Debug> + Clone + Sync,
    {
        self.measure_workers(name, Load::Request, request, || {
            let mut service = service.clone();
            let runtime = Builder::new_current_thread().build().unwrap();
            move |request| runtime.block_on(called(&mut service, request)).expect("accepted")
        });
    }
}

/// How long a thread has worked that makes so many calls while the others do the same.
fn timed<I, O, W: FnMut(I) -> O>(
    threads: usize,
    calls: usize,
    batch: usize,
    input: &(impl Fn() -> I + Sync),
    worker: &(impl Fn() -> W + Sync),
) -> Duration {
    let start = Start { threads, arrived: AtomicUsize::new(0) };
    let work = || {
        let _inside = RUNTIME.enter();
        let mut work = worker();
        let (mut inputs, mut outputs) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
        let (mut left, mut worked) = (calls, Duration::ZERO);
        while left > 0 {
            inputs.extend(repeat_with(input).take(batch.min(left)));
            left -= inputs.len();
            start.together();
            let began = Instant::now();
            outputs.extend(inputs.drain(..).map(|input| work(black_box(input))));
            worked += began.elapsed();
            black_box(&mut outputs).clear();
        }
        worked
    };
    let worked = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<Duration>()
    });
    worked / threads as u32
}

/// Where threads wait for each other, awake: what they begin together takes less time than to be woken.
struct Start {
    threads: usize,
    arrived: AtomicUsize,
}

impl Start {
    fn together(&self) {
        let place = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = place - place % self.threads + self.threads;
        while self.arrived.load(Ordering::Acquire) < all {
            thread::yield_now();
        }
    }
}

/// One call of a service that has everything at hand.
pub(crate) fn call<S: Service<R>, R>(service: &mut S, request: R) -> Result<S::Response, S::Error> {
    match pin!(called(service, request)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits for something"),
    }
}

async fn called<S: Service<R>, R>(service: &mut S, request: R) -> Result<S::Response, S::Error> {
    poll_fn(|context| service.poll_ready(context)).await?;
    service.call(request).await
}

/// The innermost service: nothing that came through the layers is dropped on the clock.
pub(crate) fn hand_back<B>(request: Request<B>) -> Ready<Result<Response<Request<B>>, Infallible>> {
    ready(Ok(Response::new(request)))
}

/// Waits for what is made once, before it is measured.
pub(crate) fn prepare<T>(preparing: impl Future<Output = T>) -> T {
    RUNTIME.block_on(preparing)
}
