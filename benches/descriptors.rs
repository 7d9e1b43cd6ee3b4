//! What does it cost that the kernel's table of descriptors grows while a server runs, and what does making room for them
//! beforehand save?
//!
//! Run: cargo run --release -p dhaga-benches --bin descriptors

use std::error::Error;
use std::fs::File;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga_benches::machine;

/// Opens many descriptors in a process with a runtime, and tells how long the slowest calls take.
#[derive(Parser)]
struct Options {
    /// How many; the limit of open files ends it earlier.
    #[arg(long, default_value_t = 19_000)]
    descriptors: usize,
    /// One of the two processes that are compared: with room for so many.
    #[arg(long, hide = true)]
    room: Option<usize>,
}

/// Calls that take longer count as stalls.
const STALL_MIN: Duration = Duration::from_micros(500);

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if let Some(room) = options.room {
        return open(options.descriptors, room);
    }
    for room in [0, options.descriptors + 100] {
        let mut command = Command::new(std::env::current_exe()?);
        let count = options.descriptors.to_string();
        command.args(["--descriptors", &count, "--room", &room.to_string()]).status()?;
    }
    Ok(())
}

fn open(count: usize, room: usize) -> Result<(), Box<dyn Error>> {
    machine::raise_open_files()?;
    let began = Instant::now();
    let _runtime = dhaga::Runtime::builder().workers(2).expected_descriptors(room).build()?;
    let starting = began.elapsed();
    let file = File::open("/dev/null")?;
    let (mut open, mut times) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let began = Instant::now();
        let Ok(next) = file.try_clone() else { break };
        times.push(began.elapsed());
        open.push(next);
    }
    let stalls: Vec<_> = times.iter().filter(|time| **time > STALL_MIN).collect();
    println!(
        "room for {room:>6} at the start ({starting:.0?}): {} opened, the slowest in {:.2?}; {} calls above {STALL_MIN:?}, {:.1?} together",
        open.len(),
        times.iter().max().ok_or("none was opened")?,
        stalls.len(),
        stalls.iter().copied().sum::<Duration>(),
    );
    Ok(())
}
