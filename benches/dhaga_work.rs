//! The rows of the runtime table for dhagas of one worker.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhaga::sync::channel::{self, Receiver};

use crate::parked::{Arrivals, Parked};
use crate::runtime_work::{CAPTURED_BYTES, PARKED, ROUND_TRIPS, SPAWN_BATCH, Work, YIELDERS, YIELDS};
use crate::sample::Sample;

/// Measures one row, in its unit.
///
/// # Errors
///
/// When the runtime cannot be built or `/proc` not be read.
pub fn measure(work: Work) -> io::Result<f64> {
    match work {
        Work::Memory => Ok(park(PARKED)?.bytes_each),
        Work::Park => Ok(park(PARKED)?.nanos_each),
        _ => Ok(in_one_worker(move || nanos_of(work))?.median),
    }
}

/// Runs `measure` in a dhaga of a runtime with one worker.
///
/// # Errors
///
/// When the runtime cannot be built.
pub fn in_one_worker<T: Send + 'static>(measure: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let runtime = dhaga::Runtime::builder().workers(1).build()?;
    Ok(runtime.spawn(measure).join().expect("a measurement does not panic"))
}

fn nanos_of(work: Work) -> Sample {
    match work {
        Work::SpawnJoin => spawn_join(SPAWN_BATCH),
        Work::Yield => yields(YIELDERS, dhaga::yield_now),
        Work::YieldDeep => yields(YIELDERS, yield_three_calls_deep),
        Work::Channel => channel_round_trip(),
        Work::ChannelDeep => Sample::take(ROUND_TRIPS, || round_trips(ROUND_TRIPS, recv_three_calls_deep)),
        Work::Timer => deadline_on_a_wait(),
        Work::Memory | Work::Park => unreachable!("these are no samples of time"),
    }
}

/// Spawn + join, in batches.
pub fn spawn_join(batch: usize) -> Sample {
    Sample::take(batch, || spawn_and_join(batch))
}

/// Spawns so many small closures, and then joins them.
///
/// # Panics
///
/// Never: they do not panic.
pub fn spawn_and_join(count: usize) {
    let handles: Vec<_> = (0..count).map(|value| dhaga::spawn(move || black_box(value))).collect();
    for handle in handles {
        handle.join().expect("a small closure cannot panic");
    }
}

/// A yield, by so many dhagas in turn.
pub fn yields(yielders: usize, give_way: impl Fn() + Copy + Send + 'static) -> Sample {
    Sample::take(yielders * YIELDS, || yield_in_turn(yielders, YIELDS, give_way))
}

/// Starts `yielders` that give way `yields` times each.
///
/// # Panics
///
/// Never: to give way cannot fail.
pub fn yield_in_turn(yielders: usize, yields: usize, give_way: impl Fn() + Copy + Send + 'static) {
    let give_way_often = move || (0..yields).for_each(|_| give_way());
    let handles: Vec<_> = (0..yielders).map(|_| dhaga::spawn(give_way_often)).collect();
    handles.into_iter().for_each(|handle| handle.join().expect("a yield cannot fail"));
}

/// A yield as deep as real code would have it.
#[inline(never)]
pub fn yield_three_calls_deep() {
    #[inline(never)]
    fn two() {
        one();
        black_box(());
    }
    #[inline(never)]
    fn one() {
        dhaga::yield_now();
        black_box(());
    }
    two();
    black_box(());
}

/// There and back, two dhagas of one worker.
pub fn channel_round_trip() -> Sample {
    Sample::take(ROUND_TRIPS, || round_trips(ROUND_TRIPS, recv()))
}

/// A round trip holds two waits, so a wait's share of the difference is half.
fn deadline_on_a_wait() -> Sample {
    let timed = recv_before(far_off());
    Sample::take_difference(2 * ROUND_TRIPS, || round_trips(ROUND_TRIPS, recv()), || round_trips(ROUND_TRIPS, timed))
}

/// To wait without a deadline. A closure, as below: the name of a function, passed on, is called through one more that the
/// optimiser may leave standing, and then this row would be of a wait one call deep.
#[inline(always)]
pub fn recv() -> impl Fn(&Receiver<usize>) -> Option<usize> + Copy + Send + 'static {
    #[inline(always)]
    |receiver| receiver.recv().ok()
}

/// To wait with a deadline.
#[inline(always)]
pub fn recv_before(deadline: Instant) -> impl Fn(&Receiver<usize>) -> Option<usize> + Copy + Send + 'static {
    #[inline(always)]
    move |receiver| receiver.recv_deadline(deadline).ok()
}

/// A deadline that is not reached.
pub fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// There and back, `count` times, with one value under way.
///
/// # Panics
///
/// When `receive` gives up.
pub fn round_trips(count: usize, receive: impl Fn(&Receiver<usize>) -> Option<usize> + Copy + Send + 'static) {
    let (ask, asked) = channel::bounded(1);
    let (answer, answered) = channel::bounded(1);
    let echo = dhaga::spawn(move || {
        while let Some(value) = receive(&asked) {
            answer.send(value).expect("the asker waits for it");
        }
    });
    for value in 0..count {
        ask.send(value).expect("the echo lives until we drop the sender");
        receive(&answered).expect("and answers each time");
    }
    drop(ask);
    echo.join().expect("the echo cannot panic");
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

/// Parks `count` dhagas in `recv`, and ends them afterwards.
///
/// # Errors
///
/// When the runtime cannot be built or `/proc` not be read.
pub fn park(count: usize) -> io::Result<Parked> {
    let runtime = dhaga::Runtime::builder().workers(1).tasks_max(2 * count).build()?;
    let (release, released) = channel::bounded::<()>(1);
    let spawner = move || spawn_parked(count, &released);
    let (parked, handles) = Parked::measure(count, || runtime.spawn(spawner).join().expect("spawning cannot panic"))?;
    drop(release);
    handles.into_iter().for_each(|handle| handle.join().expect("a parked dhaga is woken and ends"));
    Ok(parked)
}

fn spawn_parked(count: usize, released: &Receiver<()>) -> Vec<dhaga::JoinHandle<()>> {
    let arrivals = Arc::new(Arrivals::default());
    let spawn = |_| {
        let (released, arrivals, captured) = (released.clone(), arrivals.clone(), [7_u8; CAPTURED_BYTES]);
        dhaga::spawn(move || {
            arrivals.add_one();
            // Nobody sends: the wait ends when the sender is dropped.
            let _ = released.recv();
            black_box(&captured);
        })
    };
    let handles = (0..count).map(spawn).collect();
    while !arrivals.reached(count) {
        dhaga::yield_now();
    }
    handles
}
