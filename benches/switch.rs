//! How long does it take to wait and be woken, on one worker and between OS threads?
//!
//! Run: cargo run --release -p dhaga-benches --bin switch

use clap::Parser;
use dhaga::sync::channel;
use dhaga_benches::sample::{Sample, print_heading, print_line};

/// Times a yield and a channel round trip: in dhagas of one worker, and between plain threads.
#[derive(Parser)]
struct Options {
    /// Dhagas that yield to each other.
    #[arg(long, default_value_t = 100)]
    dhagas: usize,
}

const YIELDS: usize = 2_000;
const ROUND_TRIPS: usize = 20_000;
const THREAD_ROUND_TRIPS: usize = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let runtime = dhaga::Runtime::builder().workers(1).build()?;
    print_heading("one operation");
    let dhagas = options.dhagas;
    let yields =
        runtime.spawn(move || Sample::take(dhagas * YIELDS, || yield_in_turn(dhagas, dhaga::yield_now))).join()?;
    print_line(&format!("yield, {dhagas} dhagas in turn"), yields);
    let deep =
        runtime.spawn(move || Sample::take(dhagas * YIELDS, || yield_in_turn(dhagas, three_calls_deep))).join()?;
    print_line("yield, three calls deep, not inlined", deep);
    let round_trip = runtime.spawn(|| Sample::take(ROUND_TRIPS, || channel_round_trips(ROUND_TRIPS))).join()?;
    print_line("channel round trip, two dhagas of one worker", round_trip);
    let threads = Sample::take(THREAD_ROUND_TRIPS, || thread_round_trips(THREAD_ROUND_TRIPS));
    print_line("channel round trip, two OS threads (std::sync::mpsc)", threads);
    Ok(())
}

fn yield_in_turn(dhagas: usize, give_way: fn()) {
    let yielders: Vec<_> = (0..dhagas)
        .map(|_| {
            dhaga::spawn(move || {
                for _ in 0..YIELDS {
                    give_way();
                }
            })
        })
        .collect();
    yielders.into_iter().for_each(|yielder| yielder.join().expect("a yield cannot fail"));
}

#[inline(never)]
fn three_calls_deep() {
    two_calls_deep();
    std::hint::black_box(());
}

#[inline(never)]
fn two_calls_deep() {
    one_call_deep();
    std::hint::black_box(());
}

#[inline(never)]
fn one_call_deep() {
    dhaga::yield_now();
    std::hint::black_box(());
}

fn channel_round_trips(count: usize) {
    let (ask, asked) = channel::bounded::<usize>(1);
    let (answer, answered) = channel::bounded(1);
    let echo = dhaga::spawn(move || asked.iter().try_for_each(|value| answer.send(value)));
    for value in 0..count {
        ask.send(value).expect("the echo lives until we drop the sender");
        answered.recv().expect("and answers each time");
    }
    drop(ask);
    echo.join().expect("the echo cannot panic").expect("nor lose us");
}

fn thread_round_trips(count: usize) {
    let (ask, asked) = std::sync::mpsc::sync_channel::<usize>(1);
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    let echo = std::thread::spawn(move || asked.iter().try_for_each(|value| answer.send(value)));
    for value in 0..count {
        ask.send(value).expect("the echo lives until we drop the sender");
        answered.recv().expect("and answers each time");
    }
    drop(ask);
    echo.join().expect("the echo cannot panic").expect("nor lose us");
}
