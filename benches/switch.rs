//! How long does it take to wait and be woken, on one worker and between OS threads?
//!
//! Run: cargo run --release -p dhaga-benches --bin switch

use clap::Parser;
use dhaga_benches::dhaga_work::{channel_round_trip, in_one_worker, yield_three_calls_deep, yields};
use dhaga_benches::sample::{print_heading, print_line};
use dhaga_benches::thread_work;

/// Times a yield and a channel round trip: in dhagas of one worker, and between plain threads.
#[derive(Parser)]
struct Options {
    /// Dhagas that yield to each other.
    #[arg(long, default_value_t = 100)]
    dhagas: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dhagas = Options::parse().dhagas;
    print_heading("one operation");
    let in_turn = in_one_worker(move || yields(dhagas, dhaga::yield_now))?;
    print_line(&format!("yield, {dhagas} dhagas in turn"), in_turn);
    let deep = in_one_worker(move || yields(dhagas, yield_three_calls_deep))?;
    print_line("yield, three calls deep, not inlined", deep);
    print_line("channel round trip, two dhagas of one worker", in_one_worker(channel_round_trip)?);
    let threads = thread_work::channel_round_trip();
    print_line("channel round trip, two OS threads (std::sync::mpsc)", threads);
    Ok(())
}
