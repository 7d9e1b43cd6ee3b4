//! What does a dhaga take that is parked in `recv`, with its stack, its guard and its share of page tables?
//!
//! Run: cargo run --release -p dhaga-benches --bin memory -- --dhagas 100000

use std::fs;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::sync::channel;
use indicatif::{ProgressBar, ProgressStyle};

/// Parks many dhagas in `recv` at once and reports the memory each one takes: resident and page tables.
#[derive(Parser)]
struct Options {
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    dhagas: usize,
}

/// Bytes that each dhaga captures.
const CAPTURED: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = Options::parse().dhagas;
    let runtime = dhaga::Runtime::builder().workers(1).tasks_max(2 * count).build()?;
    let before = resident_and_tables()?;
    let began = Instant::now();
    let progress =
        ProgressBar::new(count as u64).with_style(ProgressStyle::with_template("{pos} of {len} parked {bar:40}")?);
    let (release, released) = channel::bounded::<()>(1);
    let (parked, all_parked) = channel::unbounded::<()>();
    let handles = runtime
        .spawn(move || {
            let spawn = |_| {
                let (released, parked, captured) = (released.clone(), parked.clone(), [7_u8; CAPTURED]);
                dhaga::spawn(move || {
                    parked.send(()).expect("somebody counts");
                    let end = released.recv();
                    std::hint::black_box(&captured);
                    end.is_err()
                })
            };
            (0..count).map(spawn).collect::<Vec<_>>()
        })
        .join()?;
    for _ in 0..count {
        all_parked.recv()?;
        progress.inc(1);
    }
    progress.finish_and_clear();
    // The last one says that it lives and parks right after.
    std::thread::sleep(Duration::from_millis(200));
    let took = began.elapsed();
    let grown = resident_and_tables()? - before;
    println!("{count} dhagas parked in recv: {} bytes each (resident + page tables)", grown / count as u64);
    println!(
        "{:.2} us each to spawn, start and park; {} kernel mappings",
        took.as_secs_f64() * 1e6 / count as f64,
        mappings()?
    );
    drop(release);
    let ended = handles.into_iter().map(dhaga::JoinHandle::join).filter(|end| matches!(end, Ok(true))).count();
    println!("{ended} woken and ended");
    Ok(())
}

fn resident_and_tables() -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
    };
    let (resident, tables) = (field("VmRSS:").ok_or("no VmRSS")?, field("VmPTE:").ok_or("no VmPTE")?);
    Ok((resident + tables) << 10)
}

fn mappings() -> std::io::Result<usize> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().count())
}
