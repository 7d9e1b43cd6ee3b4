//! Counts what one half of the quickstart does: calls, latencies, memory, processor time.
//!
//! ```text
//!   callers start ──▶ all in flight ──▶ each has an answer ──▶ warm-up ──▶ measured ──▶ over: callers end after their call
//! ```

use std::fmt::Display;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Between the first answer of the last caller and the time that is measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the callers have to get their first answers.
const START_MAX: Duration = Duration::from_secs(20);
/// How long the first handlers wait until all callers have a call in one.
const FILL_MAX: Duration = Duration::from_secs(2);
/// How often they look. Seldom, since thousands of threads look too.
const FILL_LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often memory and threads are looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// What the kernel keeps for each thread as its own stack, on x86-64 and aarch64.
const KERNEL_STACK_BYTES: u64 = 16 << 10;
/// Histograms that the callers share, so that they seldom meet at one.
const SHARDS: usize = 16;

const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// Shared by all callers and handlers of a half.
pub struct Meter {
    phase: AtomicU8,
    callers: AtomicUsize,
    with_answer: AtomicUsize,
    answers: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    latencies: [Mutex<Histogram<u64>>; SHARDS],
    in_flight: AtomicUsize,
    in_flight_peak: AtomicUsize,
    first_handler: OnceLock<Instant>,
}

/// What a half has come to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Callers that ran.
    pub callers: usize,
    /// Answers in the measured time.
    pub calls: u64,
    /// The measured time.
    pub seconds: f64,
    /// Half of the calls took no longer.
    pub p50_ms: f64,
    /// 99 % took no longer.
    pub p99_ms: f64,
    /// Processor time in the measured time, of client and server.
    pub cpu_seconds: f64,
    /// Resident memory, page tables and kernel stacks, at their peak.
    pub memory_bytes: u64,
    /// OS threads at their peak.
    pub threads: u64,
    /// Handlers that ran at once, at their peak.
    pub in_flight_peak: usize,
    /// Calls that failed or had a wrong answer, from the start to the end.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
}

/// A handler at work. Dropped when it has its answer.
pub struct Handling<'a>(&'a Meter);

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// A meter for `callers`.
    pub fn new(callers: usize) -> Self {
        let histogram = || Histogram::new_with_bounds(1_000, 60_000_000_000, 2);
        Self {
            phase: AtomicU8::new(0),
            callers: AtomicUsize::new(callers),
            with_answer: AtomicUsize::new(0),
            answers: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: Mutex::new(None),
            latencies: std::array::from_fn(|_| Mutex::new(histogram().expect("the bounds are in order"))),
            in_flight: AtomicUsize::new(0),
            in_flight_peak: AtomicUsize::new(0),
            first_handler: OnceLock::new(),
        }
    }

    /// Fewer callers started than were asked for.
    pub fn set_callers(&self, callers: usize) {
        self.callers.store(callers, Ordering::Relaxed);
    }

    /// To be called at the begin of a handler, and kept until its end.
    ///
    /// The first handlers wait here, by `sleep`, until all callers have a call in one, so that all are in flight at once at
    /// least once, or until it is clear that this cannot be.
    pub fn handling(&self, sleep: fn(Duration)) -> Handling<'_> {
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_peak.fetch_max(in_flight, Ordering::Relaxed);
        while !self.were_all_in_flight() && self.first_handler.get_or_init(Instant::now).elapsed() < FILL_MAX {
            sleep(FILL_LOOK_EVERY);
        }
        Handling(self)
    }

    fn were_all_in_flight(&self) -> bool {
        self.in_flight_peak.load(Ordering::Relaxed) >= self.callers.load(Ordering::Relaxed)
    }

    /// The life of a caller: calls again and again until the time is over. `call` must answer with the caller's number, so
    /// that an answer for somebody else is noticed.
    pub fn call_in_a_loop<E: Display>(&self, number: u64, call: impl Fn(u64) -> Result<u64, E>) {
        let mut is_first = true;
        while self.phase.load(Ordering::Relaxed) != OVER {
            let began = Instant::now();
            match call(number) {
                Ok(answer) if answer == number => self.note_answer(number, began.elapsed()),
                Ok(answer) => self.note_error(format!("caller {number} got {answer}'s answer")),
                Err(error) => self.note_error(error.to_string()),
            }
            if is_first {
                self.with_answer.fetch_add(1, Ordering::Relaxed);
                is_first = false;
            }
        }
    }

    fn note_answer(&self, number: u64, latency: Duration) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if self.phase.load(Ordering::Relaxed) == MEASURED {
            let shard = &self.latencies[number as usize % SHARDS];
            let mut histogram = shard.lock().unwrap_or_else(PoisonError::into_inner);
            histogram.saturating_record(latency.as_nanos() as u64);
        }
    }

    fn note_error(&self, error: String) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }

    /// Runs the half called `name`, which returns when its callers have ended, and measures it for `measured` meanwhile.
    ///
    /// # Errors
    ///
    /// Its own, and those of reading `/proc/self/status`.
    pub fn watch<E: From<io::Error>>(
        &self,
        name: &'static str,
        measured: Duration,
        half: impl FnOnce() -> Result<(), E>,
    ) -> Result<Outcome, E> {
        thread::scope(|scope| {
            let watch = scope.spawn(|| self.conduct(name, measured));
            let ran = half();
            // What could not even start must not be waited for.
            self.phase.store(OVER, Ordering::Relaxed);
            let watched = watch.join().expect("the watch does not panic");
            ran?;
            let mut outcome = watched?;
            self.add_counts(&mut outcome);
            Ok(outcome)
        })
    }

    /// Leads through the phases.
    fn conduct(&self, name: &'static str, measured: Duration) -> io::Result<Outcome> {
        let bar = Bar::new(name, measured);
        let mut peak = Outcome::default();
        let result = self.conduct_with(&bar, &mut peak, measured);
        self.phase.store(OVER, Ordering::Relaxed);
        bar.0.finish_and_clear();
        result.map(|()| peak)
    }

    fn conduct_with(&self, bar: &Bar, peak: &mut Outcome, measured: Duration) -> io::Result<()> {
        self.sample_for(START_MAX, peak, |_| {
            bar.0.set_message("starting the callers");
            self.with_answer.load(Ordering::Relaxed) < self.callers.load(Ordering::Relaxed)
        })?;
        self.sample_for(WARM_UP, peak, |_| true)?;
        let (began, cpu_before) = (Instant::now(), cpu_seconds());
        let _ = self.phase.compare_exchange(0, MEASURED, Ordering::Relaxed, Ordering::Relaxed);
        self.sample_for(measured, peak, |elapsed| {
            bar.show(elapsed, self.answers.load(Ordering::Relaxed));
            true
        })?;
        self.phase.store(OVER, Ordering::Relaxed);
        peak.seconds = began.elapsed().as_secs_f64();
        peak.cpu_seconds = cpu_seconds() - cpu_before;
        Ok(())
    }

    /// Looks at memory and threads for `time_max`, or as long as the phase and `goes_on` allow.
    fn sample_for(&self, time_max: Duration, peak: &mut Outcome, goes_on: impl Fn(Duration) -> bool) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < time_max && self.phase.load(Ordering::Relaxed) != OVER && goes_on(began.elapsed()) {
            let (memory_bytes, threads) = memory_and_threads()?;
            peak.memory_bytes = peak.memory_bytes.max(memory_bytes);
            peak.threads = peak.threads.max(threads);
            thread::sleep(SAMPLE_EVERY.min(time_max.saturating_sub(began.elapsed())));
        }
        Ok(())
    }

    fn add_counts(&self, outcome: &mut Outcome) {
        let mut all = self.latencies[0].lock().unwrap_or_else(PoisonError::into_inner).clone();
        for shard in &self.latencies[1..] {
            all += &*shard.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let milliseconds = |quantile| all.value_at_quantile(quantile) as f64 / 1e6;
        outcome.callers = self.callers.load(Ordering::Relaxed);
        outcome.calls = all.len();
        outcome.p50_ms = milliseconds(0.5);
        outcome.p99_ms = milliseconds(0.99);
        outcome.in_flight_peak = self.in_flight_peak.load(Ordering::Relaxed);
        outcome.errors = self.errors.load(Ordering::Relaxed);
        outcome.first_error = self.first_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The progress of the measured time, on stderr if that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(name: &'static str, measured: Duration) -> Self {
        let style = ProgressStyle::with_template("  {prefix:<8}{bar:40} {msg}");
        let bar = ProgressBar::new(measured.as_millis() as u64);
        Self(bar.with_style(style.expect("the template is well formed")).with_prefix(name))
    }

    fn show(&self, elapsed: Duration, answers: u64) {
        self.0.set_position(elapsed.as_millis() as u64);
        self.0.set_message(format!("{answers} calls answered"));
    }
}

/// Resident memory, page tables and kernel stacks of this process, and its threads, all at one moment.
fn memory_and_threads() -> io::Result<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let number = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let read = || {
        let threads = number("Threads:")?;
        let user_bytes = (number("VmRSS:")? + number("VmPTE:")?) << 10;
        Some((user_bytes + threads * KERNEL_STACK_BYTES, threads))
    };
    read().ok_or_else(|| io::Error::other("/proc/self/status has not the lines that it should"))
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
