//! The rows of the runtime table for may's coroutines.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use may::coroutine::{JoinHandle, sleep, yield_now};
use may::go;
use may::sync::mpmc;
use may::sync::mpsc::{Receiver, channel};

use crate::parked::{Arrivals, Parked};
use crate::runtime_work::{CAPTURED_BYTES, ROUND_TRIPS, SPAWN_BATCH, Work, YIELDERS, YIELDS};
use crate::sample::Sample;

/// It fails near 32 000, since each stack is two kernel mappings.
const PARKED: usize = 20_000;

/// Stacks that may keeps for reuse: enough for a whole batch of spawns, and its own default.
const POOLED_STACKS: usize = 1_000;

/// May's runtime is one for the process, and starts with what is set before its first coroutine.
/// Processors are chosen from outside, for all contenders alike.
pub fn configure(workers: usize) {
    may::config().set_workers(workers).set_pool_capacity(POOLED_STACKS).set_worker_pin(false);
}

/// Measures one row, in its unit.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn measure(work: Work) -> io::Result<f64> {
    match work {
        Work::Memory => Ok(park()?.bytes_each),
        Work::Park => Ok(park()?.nanos_each),
        _ => Ok(joined(go!(move || nanos_of(work))).median),
    }
}

fn nanos_of(work: Work) -> Sample {
    match work {
        Work::SpawnJoin => Sample::take(SPAWN_BATCH, spawn_join),
        Work::Yield => yields(yield_now),
        Work::YieldDeep => yields(yield_three_calls_deep),
        Work::Channel => Sample::take(ROUND_TRIPS, || round_trips(|receiver| receiver.recv().ok())),
        Work::ChannelDeep => Sample::take(ROUND_TRIPS, || round_trips(recv_three_calls_deep)),
        Work::Timer => deadline_on_a_wait(),
        Work::Memory | Work::Park => unreachable!("these are no samples of time"),
    }
}

fn joined<T>(handle: JoinHandle<T>) -> T {
    handle.join().expect("a measurement does not panic")
}

fn spawn_join() {
    let handles: Vec<_> = (0..SPAWN_BATCH).map(|value| go!(move || black_box(value))).collect();
    for handle in handles {
        joined(handle);
    }
}

fn yields(give_way: impl Fn() + Copy + Send + 'static) -> Sample {
    Sample::take(YIELDERS * YIELDS, || {
        let handles: Vec<_> = (0..YIELDERS).map(|_| go!(move || (0..YIELDS).for_each(|_| give_way()))).collect();
        handles.into_iter().for_each(joined);
    })
}

#[inline(never)]
fn yield_three_calls_deep() {
    #[inline(never)]
    fn two() {
        one();
        black_box(());
    }
    #[inline(never)]
    fn one() {
        yield_now();
        black_box(());
    }
    two();
    black_box(());
}

/// Unlike `dhaga`, may takes only a duration for a wait.
fn deadline_on_a_wait() -> Sample {
    const FAR: Duration = Duration::from_secs(3600);
    Sample::take_difference(
        2 * ROUND_TRIPS,
        || round_trips(|receiver| receiver.recv().ok()),
        || round_trips(|receiver| receiver.recv_timeout(FAR).ok()),
    )
}

/// May has no bounded channel; one with never more than one value in it does the same work.
fn round_trips(receive: impl Fn(&Receiver<usize>) -> Option<usize> + Copy + Send + 'static) {
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    let echo = go!(move || {
        while let Some(value) = receive(&asked) {
            answer.send(value).expect("the asker waits for it");
        }
    });
    for value in 0..ROUND_TRIPS {
        ask.send(value).expect("the echo lives until we drop the sender");
        receive(&answered).expect("and answers each time");
    }
    drop(ask);
    joined(echo);
}

#[inline(never)]
fn recv_three_calls_deep(receiver: &Receiver<usize>) -> Option<usize> {
    #[inline(never)]
    fn two(receiver: &Receiver<usize>) -> Option<usize> {
        black_box(one(receiver))
    }
    #[inline(never)]
    fn one(receiver: &Receiver<usize>) -> Option<usize> {
        black_box(receiver.recv().ok())
    }
    black_box(two(receiver))
}

fn park() -> io::Result<Parked> {
    let (release, released) = mpmc::channel::<()>();
    let (parked, handles) = Parked::measure(PARKED, || joined(go!(move || spawn_parked(&released))))?;
    drop(release);
    handles.into_iter().for_each(joined);
    Ok(parked)
}

fn spawn_parked(released: &mpmc::Receiver<()>) -> Vec<JoinHandle<()>> {
    let arrivals = Arc::new(Arrivals::default());
    let spawn = |_| {
        let (released, arrivals, captured) = (released.clone(), arrivals.clone(), [7_u8; CAPTURED_BYTES]);
        go!(move || {
            arrivals.add_one();
            // Nobody sends: the wait ends when the sender is dropped.
            let _ = released.recv();
            black_box(&captured);
        })
    };
    let handles = (0..PARKED).map(spawn).collect();
    // It sleeps: as long as one coroutine yields, may starts no new one.
    while !arrivals.reached(PARKED) {
        sleep(Duration::from_millis(1));
    }
    handles
}
