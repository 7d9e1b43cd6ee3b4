//! What does a dhaga take that is parked in `recv`, with its stack, its guard and its share of page tables? Can a million
//! of them wait at once, each guarded, and what becomes of their memory when they have ended?
//!
//! Run: cargo run --release -p dhaga-benches --bin memory -- --dhagas 1000000

use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::sync::channel::{self, Receiver, Sender};
use dhaga::{Builder, JoinHandle, Runtime, SpawnError};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

/// Parks many dhagas in `recv` at once on one worker: what each takes, in memory and in time; whether each is guarded;
/// what one above the limit is told; and how fast their memory is given back when they have ended.
#[derive(Parser)]
struct Options {
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    dhagas: usize,
    /// What the check of the guards starts: the last one overflows its stack.
    #[arg(long, hide = true)]
    overflow: bool,
}

/// Bytes that each dhaga captures.
const CAPTURED: usize = 64;
/// Guards that are looked at, spread over all stacks.
const SAMPLES: usize = 1000;
/// A guard is looked for this far below a stack's top.
const STACK_BYTES: usize = dhaga::STACK_BYTES_DEFAULT;
/// What a guard has at least, or a page where pages are larger.
const GUARD_BYTES: usize = 16 << 10;
/// When to stop waiting for memory to come back.
const TRIM_MAX: Duration = Duration::from_secs(120);

/// Those that have begun to wait, for the progress. Not in what each captures.
static STARTED: AtomicUsize = AtomicUsize::new(0);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let options = Options::parse();
    if options.overflow {
        return overflow_the_last(options.dhagas);
    }
    let count = options.dhagas;
    check_room(count)?;
    measure(count)?;
    check_overflow(count)
}

/// Says so in words where memory does not suffice, as the runtime's own limit sees it.
fn check_room(count: usize) -> Outcome<()> {
    let limit = Runtime::builder().workers(1).build()?.tasks_max();
    if count < limit {
        return Ok(());
    }
    Err(format!("memory does not suffice: the runtime has room for {limit} dhagas here, and {count} were asked for")
        .into())
}

fn measure(count: usize) -> Outcome<()> {
    // Room for these, for the one that spawns them, and for no other.
    let runtime = Runtime::builder().workers(1).tasks_max(count + 1).build()?;
    runtime.spawn(|| ()).join()?;
    let before = resident_and_tables()?;
    let parked = Parked::new(&runtime, count)?;
    let grown = resident_and_tables()? - before;
    println!("{count} dhagas parked in recv, {} kernel mappings", mappings()?);
    println!("  {} bytes each (resident + page tables)", grown / count as u64);
    println!(
        "  {:.2} us each to spawn, {:.2} us to start and park",
        per(parked.spawning, count),
        per(parked.starting, count)
    );
    match parked.surplus {
        Err(SpawnError::TooMany { limit }) => println!("  one more is refused: the limit is {limit}"),
        other => return Err(format!("one more than the limit was not refused: {other:?}").into()),
    }
    println!("  {} of {} guards looked at are whole", count_guards(&parked.addresses)?, parked.addresses.len());

    let began = Instant::now();
    drop(parked.release);
    let ended = parked.handles.into_iter().map(JoinHandle::join).filter(|end| matches!(end, Ok(true))).count();
    println!("{ended} woken and ended, {:.2} us each", per(began.elapsed(), count));
    watch_trimming(before, before + grown)
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}

/// Dhagas that wait in `recv`, and what it took to get them there.
struct Parked {
    handles: Vec<JoinHandle<bool>>,
    /// Dropped to let all of them go.
    release: Sender<()>,
    /// An address on the stack of each one that was sampled.
    addresses: Arc<[AtomicUsize]>,
    spawning: Duration,
    starting: Duration,
    /// What became of one more.
    surplus: Result<(), SpawnError>,
}

impl Parked {
    fn new(runtime: &Runtime, count: usize) -> Outcome<Parked> {
        let root = runtime.spawn(move || park_all(count));
        let style = ProgressStyle::with_template("{pos} of {len} parked {bar:40}")?;
        let progress = ProgressBar::new(count as u64).with_style(style);
        while !root.is_finished() {
            progress.set_position(STARTED.load(Ordering::Relaxed) as u64);
            thread::sleep(Duration::from_millis(20));
        }
        progress.finish_and_clear();
        Ok(root.join()??)
    }
}

/// Runs on the only worker, so that it goes on when the last one has parked and not before.
fn park_all(count: usize) -> Result<Parked, &'static str> {
    let (release, released) = channel::bounded::<()>(1);
    let (last_started, all_started) = channel::bounded::<()>(1);
    let step = count.div_ceil(SAMPLES);
    let addresses: Arc<[AtomicUsize]> = (0..count.div_ceil(step)).map(|_| AtomicUsize::new(0)).collect();
    let began = Instant::now();
    let park_one = |index: usize| {
        let (released, captured) = (released.clone(), [7_u8; CAPTURED]);
        if !index.is_multiple_of(step) && index != count - 1 {
            return dhaga::spawn(move || wait(&released, &captured));
        }
        let sample = index.is_multiple_of(step).then(|| addresses.clone());
        let last = (index == count - 1).then(|| last_started.clone());
        dhaga::spawn(move || {
            if let Some(sample) = sample {
                sample[index / step].store(std::ptr::from_ref(&captured).addr(), Ordering::Relaxed);
            }
            if let Some(last) = last {
                last.send(()).expect("the one that spawned this waits");
            }
            wait(&released, &captured)
        })
    };
    let handles = (0..count).map(park_one).collect();
    let spawning = began.elapsed();
    let surplus = Builder::new().spawn(|| ()).map(JoinHandle::detach);
    drop(last_started);
    // An error if it never ran, and was dropped.
    let last = all_started.recv();
    last.map_err(|_| "address space or mappings do not suffice: the last one got no stack and never ran")
        .map(|()| Parked { handles, release, addresses, spawning, starting: began.elapsed() - spawning, surplus })
}

/// Whether the channel was closed, which is how all of them are let go.
fn wait(released: &Receiver<()>, captured: &[u8]) -> bool {
    STARTED.fetch_add(1, Ordering::Relaxed);
    let end = released.recv();
    black_box(captured);
    end.is_err()
}

/// How many of the stacks around these addresses have a guard below them that cannot be read.
fn count_guards(addresses: &[AtomicUsize]) -> std::io::Result<usize> {
    let memory = File::open("/proc/self/mem")?;
    let page_bytes = rustix::param::page_size();
    // The kernel reads for us, and refuses with an error where a read would be a fault.
    let is_readable = |address: usize| memory.read_exact_at(&mut [0], address as u64).is_ok();
    let is_guarded = |address: usize| {
        let page = address & !(page_bytes - 1);
        let mut below = (1..STACK_BYTES / page_bytes).map(|pages| page - pages * page_bytes);
        let guard = below.find(|page| !is_readable(*page));
        guard.is_some_and(|top| (1..GUARD_BYTES / page_bytes).all(|pages| !is_readable(top - pages * page_bytes)))
    };
    Ok(addresses.iter().filter(|address| is_guarded(address.load(Ordering::Relaxed))).count())
}

/// Says how long it takes until nearly all of what was taken is given back, and what is kept.
fn watch_trimming(before: u64, full: u64) -> Outcome<()> {
    let began = Instant::now();
    let is_back = |memory: u64| memory < before + (full - before) / 4;
    let mut lowest = (resident_and_tables()?, began.elapsed());
    // The last stacks go slowly: half a second without a change is the end.
    while began.elapsed() < TRIM_MAX && (!is_back(lowest.0) || began.elapsed() < lowest.1 + Duration::from_millis(500))
    {
        thread::sleep(Duration::from_millis(20));
        let memory = resident_and_tables()?;
        if memory < lowest.0 {
            lowest = (memory, began.elapsed());
        }
    }
    println!(
        "{:.1} s later {} of {} MiB are given back; {} MiB stay, of which page tables are {}",
        lowest.1.as_secs_f64(),
        (full - lowest.0) >> 20,
        (full - before) >> 20,
        lowest.0.saturating_sub(before) >> 20,
        field("VmPTE:")? >> 20,
    );
    Ok(())
}

/// Starts this program once more, as far as to the last one, which overflows its stack there.
fn check_overflow(count: usize) -> Outcome<()> {
    let child = Command::new(std::env::current_exe()?).args(["--overflow", "--dhagas", &count.to_string()]).output()?;
    let text = String::from_utf8_lossy(&child.stderr);
    let is_named = text.contains("dhaga 'the last one'") && text.contains("has overflowed its stack of 256 KiB");
    if child.status.signal() != Some(Signal::ABORT.as_raw()) || !is_named {
        return Err(
            format!("the last of {count} overflowed in a child and was not caught: {} {text}", child.status).into()
        );
    }
    println!("one more than {count} overflowed its stack in a child: {}", text.trim());
    Ok(())
}

fn overflow_the_last(count: usize) -> Outcome<()> {
    // Nobody wants gigabytes of stacks in a file.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let runtime = Runtime::builder().workers(1).tasks_max(2 * count + 1024).build()?;
    let _parked = runtime.spawn(move || park_all(count)).join()??;
    let deep = Builder::new().name("the last one").spawn_on(&runtime, || recurse(black_box(u64::MAX)))?;
    Err(format!("a stack without an end: {:?}", deep.join().is_ok()).into())
}

fn recurse(levels: u64) -> u64 {
    let frame = black_box([levels; 64]);
    if levels == 0 { 0 } else { recurse(levels - 1) + frame[7] }
}

fn resident_and_tables() -> Outcome<u64> {
    Ok(field("VmRSS:")? + field("VmPTE:")?)
}

/// Bytes, as the kernel counts them for this process.
fn field(name: &str) -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kib = |line: &str| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
    Ok(status.lines().find_map(kib).ok_or_else(|| format!("no {name} in /proc/self/status"))? << 10)
}

fn mappings() -> std::io::Result<usize> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().count())
}
