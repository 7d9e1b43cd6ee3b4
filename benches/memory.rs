//! What does a dhaga take that is parked in `recv`, with its stack, its guard and its share of page tables?
//!
//! Run: cargo run --release -p dhaga-benches --bin memory -- --dhagas 100000

use clap::Parser;
use dhaga_benches::dhaga_work::park;

/// Parks many dhagas in `recv` at once and reports the memory each one takes: resident and page tables.
#[derive(Parser)]
struct Options {
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    dhagas: usize,
}

fn main() -> std::io::Result<()> {
    let count = Options::parse().dhagas;
    let parked = park(count)?;
    println!("{count} dhagas parked in recv: {:.0} bytes each (resident + page tables)", parked.bytes_each);
    println!("{:.2} us each to spawn, start and park; all were woken and ended", parked.nanos_each / 1e3);
    Ok(())
}
