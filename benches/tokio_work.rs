//! The rows of the runtime table for tokio's tasks.

use std::future::Future;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::timeout_at;

use crate::parked::{Arrivals, Parked};
use crate::runtime_work::{CAPTURED_BYTES, PARKED, ROUND_TRIPS, SPAWN_BATCH, Work, YIELDERS, YIELDS};
use crate::sample::Sample;

/// tokio's scheduler for one thread, which needs no atomics between workers.
///
/// # Errors
///
/// When the runtime cannot be built.
pub fn current_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// tokio's work-stealing scheduler. Its next-task slot makes some rows faster than the other one.
///
/// # Errors
///
/// When the runtime cannot be built.
pub fn multi_thread(workers: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// Measures one row, in its unit.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn measure(runtime: &Runtime, work: Work) -> io::Result<f64> {
    let sample = match work {
        Work::SpawnJoin => sample(runtime, SPAWN_BATCH, spawn_join),
        Work::Yield => sample(runtime, YIELDERS * YIELDS, || yields(yield_now)),
        Work::YieldDeep => sample(runtime, YIELDERS * YIELDS, || yields(yield_three_calls_deep)),
        Work::Channel => sample(runtime, ROUND_TRIPS, round_trips::<Plain>),
        Work::ChannelDeep => sample(runtime, ROUND_TRIPS, round_trips::<Deep>),
        Work::Timer => deadline_on_a_wait(runtime),
        Work::Memory => return Ok(park(runtime)?.bytes_each),
        Work::Park => return Ok(park(runtime)?.nanos_each),
    };
    Ok(sample.median)
}

fn sample<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    operations: usize,
    mut batch: impl FnMut() -> F,
) -> Sample {
    Sample::take(operations, || run(runtime, batch()))
}

/// In a task: what `block_on` itself runs is no task, and under the work-stealing scheduler lives on
/// a thread of its own.
fn run<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(future)).expect("a measurement does not panic")
}

async fn spawn_join() {
    let handles: Vec<_> = (0..SPAWN_BATCH).map(|value| tokio::spawn(async move { black_box(value) })).collect();
    for handle in handles {
        handle.await.expect("a small task cannot panic");
    }
}

async fn yields<F: Future<Output = ()> + Send + 'static>(give_way: fn() -> F) {
    let spawn = |_| {
        tokio::spawn(async move {
            for _ in 0..YIELDS {
                give_way().await;
            }
        })
    };
    for handle in (0..YIELDERS).map(spawn).collect::<Vec<_>>() {
        handle.await.expect("a yield cannot fail");
    }
}

/// Every poll passes through all of them; the compiler decides what of it is a call.
async fn yield_three_calls_deep() {
    async fn two() {
        one().await;
        black_box(());
    }
    async fn one() {
        yield_now().await;
        black_box(());
    }
    two().await;
    black_box(());
}

fn deadline_on_a_wait(runtime: &Runtime) -> Sample {
    let plain = || run(runtime, round_trips::<Plain>());
    let timed = || run(runtime, round_trips::<Timed>());
    Sample::take_difference(2 * ROUND_TRIPS, plain, timed)
}

/// A way to receive. A type, so that each has a task of its own size.
trait Receive: Send + 'static {
    fn new() -> Self;

    fn receive(&self, receiver: &mut Receiver<usize>) -> impl Future<Output = Option<usize>> + Send;
}

struct Plain;

impl Receive for Plain {
    fn new() -> Self {
        Plain
    }

    async fn receive(&self, receiver: &mut Receiver<usize>) -> Option<usize> {
        receiver.recv().await
    }
}

struct Deep;

impl Receive for Deep {
    fn new() -> Self {
        Deep
    }

    async fn receive(&self, receiver: &mut Receiver<usize>) -> Option<usize> {
        async fn two(receiver: &mut Receiver<usize>) -> Option<usize> {
            black_box(one(receiver).await)
        }
        async fn one(receiver: &mut Receiver<usize>) -> Option<usize> {
            black_box(receiver.recv().await)
        }
        black_box(two(receiver).await)
    }
}

struct Timed(tokio::time::Instant);

impl Receive for Timed {
    fn new() -> Self {
        Timed((Instant::now() + Duration::from_secs(3600)).into())
    }

    async fn receive(&self, receiver: &mut Receiver<usize>) -> Option<usize> {
        timeout_at(self.0, receiver.recv()).await.ok().flatten()
    }
}

async fn round_trips<R: Receive>() {
    let (ask, mut asked) = mpsc::channel(1);
    let (answer, mut answered) = mpsc::channel(1);
    let echo = tokio::spawn(async move {
        let way = R::new();
        while let Some(value) = way.receive(&mut asked).await {
            answer.send(value).await.expect("the asker waits for it");
        }
    });
    let way = R::new();
    for value in 0..ROUND_TRIPS {
        ask.send(value).await.expect("the echo lives until we drop the sender");
        way.receive(&mut answered).await.expect("and answers each time");
    }
    drop(ask);
    echo.await.expect("the echo cannot panic");
}

/// They park in the smallest wait there is for very many on one event, a `watch`.
fn park(runtime: &Runtime) -> io::Result<Parked> {
    let (release, released) = watch::channel(());
    let (parked, handles) = Parked::measure(PARKED, || run(runtime, spawn_parked(released)))?;
    drop(release);
    run(runtime, async move {
        for handle in handles {
            handle.await.expect("a parked task is woken and ends");
        }
    });
    Ok(parked)
}

async fn spawn_parked(released: watch::Receiver<()>) -> Vec<tokio::task::JoinHandle<()>> {
    let arrivals = Arc::new(Arrivals::default());
    let spawn = |_| {
        let (mut released, arrivals, captured) = (released.clone(), arrivals.clone(), [7_u8; CAPTURED_BYTES]);
        tokio::spawn(async move {
            arrivals.add_one();
            // Nobody sends: the wait ends when the sender is dropped.
            let _ = released.changed().await;
            black_box(&captured);
        })
    };
    let handles = (0..PARKED).map(spawn).collect();
    while !arrivals.reached(PARKED) {
        yield_now().await;
    }
    handles
}
