//! How late is a dhaga that ticks each millisecond, while a thousand others read files, look up names and start processes?
//!
//! Run: cargo run --release -p dhaga-benches --bin ticker

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use dhaga::net::lookup_host;
use dhaga::process::{Command, ExitStatus};
use dhaga::sync::WaitGroup;
use dhaga::{JoinHandle, Runtime};
use dhaga_benches::programs::{GO_NOT_FOUND, build_go, exit_code};
use dhaga_benches::text_table::{TextTable, count, figure};
use dhaga_benches::window::latency_histogram;
use dhaga_benches::{machine, progress};
use hdrhistogram::Histogram;
use serde::Deserialize;

/// Measures how late a dhaga ticks beside busy neighbours of its runtime: idle, and for each kind of them.
#[derive(Parser)]
struct Options {
    /// Kinds of neighbours.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Neighbours::EACH)]
    neighbours: Vec<Neighbours>,
    /// How many of them are busy at once.
    #[arg(long, default_value_t = 1_000)]
    crowd: usize,
    /// Workers of the runtime [default: one, and then one a core]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    workers: Vec<u16>,
    /// The time between two ticks.
    #[arg(long, value_name = "US", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    period_us: u64,
    /// The measured time of each row.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Also measure goroutines, for which a toolchain must be there.
    #[arg(long)]
    go: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Neighbours {
    /// Nobody else.
    None,
    /// Each reads a file of 64 KiB again and again.
    Files,
    /// Each looks up `localhost` again and again.
    Names,
    /// Each starts /bin/true and waits for its end, again and again.
    Children,
    /// A third of each.
    All,
}

impl Neighbours {
    const EACH: [Neighbours; 5] =
        [Neighbours::None, Neighbours::Files, Neighbours::Names, Neighbours::Children, Neighbours::All];

    fn title(self) -> &'static str {
        match self {
            Neighbours::None => "nobody",
            Neighbours::Files => "file reads",
            Neighbours::Names => "look-ups",
            Neighbours::Children => "child processes",
            Neighbours::All => "all three",
        }
    }

    /// As `go/ticker` is told.
    fn word(self) -> &'static str {
        match self {
            Neighbours::None => "none",
            Neighbours::Files => "files",
            Neighbours::Names => "names",
            Neighbours::Children => "children",
            Neighbours::All => "all",
        }
    }

    fn of_number(self, number: usize) -> Neighbours {
        const KINDS: [Neighbours; 3] = [Neighbours::Files, Neighbours::Names, Neighbours::Children];
        if self == Neighbours::All { KINDS[number % KINDS.len()] } else { self }
    }
}

/// What 99 % of the ticks are to keep.
const P99_MAX: Duration = Duration::from_millis(2);

const FILE_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    exit_code("ticker", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    machine::raise_open_files()?;
    let file = ScratchFile::new()?;
    let workers = options.workers();
    let go = options.build_go()?;
    let bar = progress::bar(workers.len() * options.neighbours.len() * if options.go { 2 } else { 1 });
    let mut table =
        TextTable::new(["neighbours", "workers", "runtime", "p50 µs", "p99 µs", "max µs", "p99 goal", "their work/s"]);
    for count in workers {
        for &neighbours in &options.neighbours {
            progress::step(&bar, &format!("{count} workers,"), neighbours.title());
            let row = options.measure(count, neighbours, &file.path)?;
            table.push(row.cells(count, neighbours, "dhaga"));
            if let Some(program) = &go {
                progress::step(&bar, &format!("Go, {count} processors,"), neighbours.title());
                let row = options.measure_go(program, count, neighbours, &file.path)?;
                table.push(row.cells(count, neighbours, "Go"));
            }
        }
    }
    bar.finish_and_clear();
    println!("Lateness of a tick each {} µs, beside {} neighbours:\n", options.period_us, count(options.crowd));
    print!("{}", table.plain());
    Ok(())
}

#[derive(Deserialize)]
struct Row {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// Of all neighbours together.
    work_per_second: f64,
}

impl Options {
    fn workers(&self) -> Vec<usize> {
        if self.workers.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            return if cores == 1 { vec![1] } else { vec![1, cores] };
        }
        self.workers.iter().map(|&count| count.into()).collect()
    }

    fn measure(&self, workers: usize, neighbours: Neighbours, file: &Path) -> Result<Row, Box<dyn Error>> {
        let runtime = Runtime::builder().workers(workers).build()?;
        let crowd = Crowd::start(&runtime, self.crowd, neighbours, file);
        let (period, length) = (Duration::from_micros(self.period_us), Duration::from_secs_f64(self.seconds));
        let (before, began) = (crowd.done.load(Ordering::Relaxed), Instant::now());
        let lateness = runtime.spawn(move || tick(period, length)).join()?;
        let done = crowd.done.load(Ordering::Relaxed) - before;
        let work_per_second = done as f64 / began.elapsed().as_secs_f64();
        crowd.stop()?;
        let at = |quantile| lateness.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Row { p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0), work_per_second })
    }

    fn build_go(&self) -> Result<Option<String>, Box<dyn Error>> {
        if !self.go {
            return Ok(None);
        }
        build_go("ticker")?.ok_or_else(|| format!("Go: {GO_NOT_FOUND}").into()).map(Some)
    }

    fn measure_go(
        &self,
        program: &str,
        processors: usize,
        neighbours: Neighbours,
        file: &Path,
    ) -> Result<Row, Box<dyn Error>> {
        let crowd = if neighbours == Neighbours::None { 0 } else { self.crowd };
        let output = process::Command::new(program)
            .args([neighbours.word(), &file.display().to_string()])
            .args([crowd.to_string(), self.period_us.to_string(), self.seconds.to_string()])
            .env("GOMAXPROCS", processors.to_string())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{program}: {}", output.status).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Row {
    fn cells(&self, workers: usize, neighbours: Neighbours, runtime: &str) -> [String; 8] {
        let goal_us = P99_MAX.as_secs_f64() * 1e6;
        [
            neighbours.title().to_owned(),
            workers.to_string(),
            runtime.to_owned(),
            figure(self.p50_us),
            figure(self.p99_us),
            figure(self.max_us),
            format!("{} {}", figure(goal_us), if self.p99_us <= goal_us { "met" } else { "MISSED" }),
            figure(self.work_per_second),
        ]
    }
}

/// Ticks that are missed because one is late are left out, as by a clock, but they count: as late as they would have been.
fn tick(period: Duration, length: Duration) -> Histogram<u64> {
    let mut lateness = latency_histogram();
    let began = Instant::now();
    let mut due = began + period;
    while due - began <= length {
        dhaga::sleep_until(due);
        let late = due.elapsed();
        let bounded = (late.as_nanos() as u64).min(lateness.high());
        lateness.record_correct(bounded, period.as_nanos() as u64).expect("it is within the bounds");
        let missed = late.as_nanos() / period.as_nanos();
        due += period * u32::try_from(missed + 1).unwrap_or(u32::MAX);
    }
    lateness
}

/// Neighbours at work.
struct Crowd {
    dhagas: Vec<JoinHandle<io::Result<()>>>,
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Crowd {
    /// Returns when all of them have begun.
    fn start(runtime: &Runtime, count: usize, neighbours: Neighbours, file: &Path) -> Crowd {
        let (is_over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let not_begun = Arc::new(WaitGroup::new());
        let count = if neighbours == Neighbours::None { 0 } else { count };
        let dhagas = (0..count).map(|number| {
            let (is_over, done, begun) = (is_over.clone(), done.clone(), not_begun.enter_owned());
            let (kind, file) = (neighbours.of_number(number), file.to_owned());
            runtime.spawn(move || {
                drop(begun);
                while !is_over.load(Ordering::Relaxed) {
                    work(kind, &file)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let dhagas = dhagas.collect();
        not_begun.wait();
        Crowd { dhagas, is_over, done }
    }

    fn stop(self) -> Result<(), Box<dyn Error>> {
        self.is_over.store(true, Ordering::Relaxed);
        self.dhagas.into_iter().try_for_each(|dhaga| Ok(dhaga.join()??))
    }
}

fn work(kind: Neighbours, file: &Path) -> io::Result<()> {
    match kind {
        Neighbours::Files => all_there(read(file)?),
        Neighbours::Names => look_up(),
        Neighbours::Children => ended_well(run_true()?),
        Neighbours::None | Neighbours::All => unreachable!("each neighbour has a kind of work"),
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    dhaga::fs::read(file)
}

fn look_up() -> io::Result<()> {
    lookup_host(("localhost", 0)).map(drop)
}

fn run_true() -> io::Result<ExitStatus> {
    Command::new("/bin/true").status()
}

fn all_there(bytes: Vec<u8>) -> io::Result<()> {
    if bytes.len() == FILE_BYTES { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn ended_well(status: ExitStatus) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("/bin/true: {status}"))) }
}

/// A file that is gone when this is dropped.
struct ScratchFile {
    path: PathBuf,
}

impl ScratchFile {
    fn new() -> io::Result<ScratchFile> {
        let path = std::env::temp_dir().join(format!("dhaga-ticker-{}", process::id()));
        std::fs::write(&path, vec![7; FILE_BYTES])?;
        Ok(ScratchFile { path })
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        // It lies among temporary files, where the system clears what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}
