//! The rows of the runtime table for OS threads and what std gives them.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use crate::parked::{Arrivals, Parked};
use crate::runtime_work::{CAPTURED_BYTES, Work, YIELDERS};
use crate::sample::Sample;

/// Threads are so much slower that fewer of everything give as good a median.
const SPAWNS: usize = 50;
const YIELDS: usize = 50;
const ROUND_TRIPS: usize = 200;

/// Far below the usual limit of processes.
const PARKED: usize = 5_000;

/// Measures one row, in its unit.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn measure(work: Work) -> io::Result<f64> {
    let sample = match work {
        Work::SpawnJoin => spawn_join(),
        Work::Yield => yields(),
        Work::Channel => channel_round_trip(),
        Work::Timer => deadline_on_a_wait(),
        Work::Memory => return Ok(park()?.bytes_each),
        Work::Park => return Ok(park()?.nanos_each),
        // The depth of the caller's stack is nothing to the kernel.
        Work::YieldDeep | Work::ChannelDeep => return Ok(f64::NAN),
    };
    Ok(sample.median)
}

/// Spawn + join, in batches.
pub fn spawn_join() -> Sample {
    Sample::take(SPAWNS, || {
        let handles: Vec<_> = (0..SPAWNS).map(|value| thread::spawn(move || black_box(value))).collect();
        for handle in handles {
            handle.join().expect("a small closure cannot panic");
        }
    })
}

/// Without what it takes to start and join so many threads, which is more than their yields.
fn yields() -> Sample {
    Sample::take_difference(YIELDERS * YIELDS, || yield_in_turn(0), || yield_in_turn(YIELDS))
}

fn yield_in_turn(yields: usize) {
    let spawn = |_| thread::spawn(move || (0..yields).for_each(|_| thread::yield_now()));
    let handles: Vec<_> = (0..YIELDERS).map(spawn).collect();
    handles.into_iter().for_each(|handle| handle.join().expect("a yield cannot fail"));
}

/// There and back, two threads.
pub fn channel_round_trip() -> Sample {
    Sample::take(ROUND_TRIPS, || round_trips(|receiver| receiver.recv().ok()))
}

fn deadline_on_a_wait() -> Sample {
    const FAR: Duration = Duration::from_secs(3600);
    Sample::take_difference(
        2 * ROUND_TRIPS,
        || round_trips(|receiver| receiver.recv().ok()),
        || round_trips(|receiver| receiver.recv_timeout(FAR).ok()),
    )
}

fn round_trips(receive: fn(&Receiver<usize>) -> Option<usize>) {
    let (ask, asked) = sync_channel(1);
    let (answer, answered) = sync_channel(1);
    let echo = thread::spawn(move || {
        while let Some(value) = receive(&asked) {
            answer.send(value).expect("the asker waits for it");
        }
    });
    for value in 0..ROUND_TRIPS {
        ask.send(value).expect("the echo lives until we drop the sender");
        receive(&answered).expect("and answers each time");
    }
    drop(ask);
    echo.join().expect("the echo cannot panic");
}

fn park() -> io::Result<Parked> {
    let (parked, (senders, handles)) = Parked::measure(PARKED, spawn_parked)?;
    drop(senders);
    handles.into_iter().for_each(|handle| handle.join().expect("a parked thread is woken and ends"));
    Ok(parked)
}

fn spawn_parked() -> (Vec<std::sync::mpsc::SyncSender<()>>, Vec<thread::JoinHandle<()>>) {
    let arrivals = Arc::new(Arrivals::default());
    let spawn = |_| {
        let arrivals = arrivals.clone();
        // A channel each, since std's receivers cannot be shared.
        let (sender, receiver) = sync_channel::<()>(1);
        let captured = [7_u8; CAPTURED_BYTES];
        let handle = thread::spawn(move || {
            arrivals.add_one();
            // Nobody sends: the wait ends when the sender is dropped.
            let _ = receiver.recv();
            black_box(&captured);
        });
        (sender, handle)
    };
    let parked = (0..PARKED).map(spawn).unzip();
    while !arrivals.reached(PARKED) {
        thread::sleep(Duration::from_millis(1));
    }
    parked
}
