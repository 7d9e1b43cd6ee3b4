//! What does it cost to start something small and wait for its result?
//!
//! Run: cargo run --release -p dhaga-benches --bin spawn

use clap::Parser;
use dhaga_benches::dhaga_work::{in_one_worker, spawn_join};
use dhaga_benches::sample::{print_heading, print_line};
use dhaga_benches::thread_work;

/// Times spawn + join of a small closure, in batches, each on its own stack: dhagas of one worker, and OS threads.
#[derive(Parser)]
struct Options {
    /// Spawned before the first is joined.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batch = Options::parse().batch;
    print_heading("spawn + join");
    print_line(&format!("dhaga, batches of {batch}"), in_one_worker(move || spawn_join(batch))?);
    print_line("OS thread, batches of 50", thread_work::spawn_join());
    Ok(())
}
