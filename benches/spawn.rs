//! What does it cost to start something small and wait for its result?
//!
//! Run: cargo run --release -p dhaga-benches --bin spawn

use clap::Parser;
use dhaga_benches::sample::{Sample, print_heading, print_line};

/// Times spawn + join of a small closure, in batches, each on its own stack: dhagas of one worker, and OS threads.
#[derive(Parser)]
struct Options {
    /// Spawned before the first is joined.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
}

const BATCHES: usize = 20;
const THREADS: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batch = Options::parse().batch;
    let runtime = dhaga::Runtime::builder().workers(1).build()?;
    print_heading("spawn + join");
    let spawns = move || Sample::take(batch * BATCHES, || (0..BATCHES).for_each(|_| dhagas(batch)));
    print_line(&format!("dhaga, batches of {batch}"), runtime.spawn(spawns).join()?);
    print_line("OS thread, batches of 100", Sample::take(THREADS, || threads(THREADS)));
    Ok(())
}

fn dhagas(count: usize) {
    let handles: Vec<_> = (0..count).map(|value| dhaga::spawn(move || std::hint::black_box(value))).collect();
    for handle in handles {
        handle.join().expect("a small closure cannot panic");
    }
}

fn threads(count: usize) {
    let handles: Vec<_> = (0..count).map(|value| std::thread::spawn(move || std::hint::black_box(value))).collect();
    for handle in handles {
        handle.join().expect("a small closure cannot panic");
    }
}
