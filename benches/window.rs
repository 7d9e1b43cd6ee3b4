//! The measured time of a load: connect, warm up, measure, report.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::doze::Doze;
use crate::machine;
use crate::server_use::{SchedulerTimes, SyscallCount};

/// The options that each load has.
#[derive(Args, Clone, Debug)]
pub struct Window {
    /// Where the server listens.
    #[arg(long)]
    pub addr: SocketAddr,
    /// How long to measure.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How long to run before that.
    #[arg(long, default_value_t = 0.3)]
    warm_up_seconds: f64,
    /// The processor to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Poll for so many microseconds after useful work before blocking; 0 blocks at once. The
    /// default keeps the load awake, so that it is the server that is measured.
    #[arg(long, default_value_t = 200)]
    doze_us: u64,
    /// The server's process: adds its processor time in the measured time to the report.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Count the server's system calls, by perf, or else by strace, with which the rate means nothing.
    #[arg(long, requires = "server_pid")]
    syscalls: bool,
    /// Print the report as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What a load found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Answers in the measured time.
    pub requests: u64,
    /// The measured time.
    pub seconds: f64,
    /// Answers a second.
    pub rate: f64,
    /// Half of the answers took no longer.
    pub p50_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
    /// 99.9 % took no longer.
    pub p999_us: f64,
    /// Processor time of the server per answer, where its process was named.
    pub server_cpu_us: Option<f64>,
    /// The share of the time in which the load, or the server where its process was named, could
    /// have run but another process had its processor. Much of it, and the rate means little.
    pub disturbed: f64,
    /// System calls of the server per answer, where they were counted.
    pub server_syscalls: Option<f64>,
    /// Of an open loop: 99 % of the requests that found a free connection were sent no later than this after they were due.
    /// More than a little, and it is the load that was late.
    pub sent_late_p99_us: Option<f64>,
}

/// What a foreign load program says by itself.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Answers in the measured time.
    pub requests: u64,
    /// The measured time.
    pub seconds: f64,
    /// Half of the answers took no longer.
    pub p50_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
    /// 99.9 % took no longer.
    pub p999_us: f64,
}

/// A closed loop: whatever is answered is asked anew.
pub trait Load {
    /// Waits at most `block_max` for answers, and asks anew for each.
    ///
    /// # Errors
    ///
    /// The sockets', and `InvalidData` for a wrong answer.
    fn turn(&mut self, block_max: Duration) -> io::Result<()>;

    /// Nanoseconds from request to answer, one entry an answer.
    fn latencies(&mut self) -> &mut Histogram<u64>;

    /// Nanoseconds from when a request was due until it was sent, of a load that has such times. Those that had to wait for
    /// an answer first are not the load's own lateness and not in it.
    fn lateness(&mut self) -> Option<&mut Histogram<u64>> {
        None
    }
}

/// A server that answers nothing for so long has lost a request.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How often the end of the measured time is looked for while nothing comes.
const BLOCK_MAX: Duration = Duration::from_millis(100);

/// An empty histogram for latencies from 100 ns to a minute, to three digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("the bounds are in order")
}

impl Window {
    /// Prepares this process: its processor, its open files.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn prepare(&self) -> io::Result<()> {
        self.cpu.map(machine::pin_to).transpose()?;
        machine::raise_open_files()
    }

    /// How the load waits.
    pub fn doze(&self) -> Doze {
        Doze::new(Duration::from_micros(self.doze_us))
    }

    /// Warms up, measures, prints the report.
    ///
    /// # Errors
    ///
    /// The load's; `TimedOut` when the server falls silent; those of reading what the server used.
    pub fn run(&self, load: &mut impl Load) -> io::Result<()> {
        run_for(load, self.warm_up_seconds)?;
        let (elapsed, used) = self.watch_server(|| {
            load.latencies().reset();
            load.lateness().map(Histogram::reset);
            run_for(load, self.seconds)
        })?;
        let found = Found::of(load.latencies(), elapsed);
        let lateness = load.lateness().map(|lateness| lateness.value_at_quantile(0.99) as f64 / 1e3);
        self.print(&Report { sent_late_p99_us: lateness, ..report(found, used) });
        Ok(())
    }

    /// As [`run`](Window::run), for a load that is a program of its own: `load` runs it for so many seconds.
    ///
    /// # Errors
    ///
    /// The load's; those of reading what the server used.
    pub fn run_foreign(&self, mut load: impl FnMut(f64) -> io::Result<Found>) -> io::Result<()> {
        load(self.warm_up_seconds)?;
        let (found, used) = self.watch_server(|| load(self.seconds))?;
        self.print(&report(found, used));
        Ok(())
    }

    fn print(&self, report: &Report) {
        if self.json {
            println!("{}", serde_json::to_string(report).expect("a report is numbers"));
        } else {
            print_plainly(report);
        }
    }

    fn watch_server<T>(&self, load: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Used)> {
        let syscall_count = self.server_pid.filter(|_| self.syscalls).map(SyscallCount::start).transpose()?;
        let before = self.scheduler_times()?;
        let found = load()?;
        let times = self.scheduler_times()?.since(before);
        let syscalls = syscall_count.map(SyscallCount::finish).transpose()?;
        Ok((found, Used { times, syscalls }))
    }

    fn scheduler_times(&self) -> io::Result<BothTimes> {
        Ok(BothTimes {
            load: SchedulerTimes::of(std::process::id())?,
            server: self.server_pid.map(SchedulerTimes::of).transpose()?,
        })
    }
}

/// What a measured time took.
struct Used {
    times: BothTimes,
    syscalls: Option<u64>,
}

struct BothTimes {
    load: SchedulerTimes,
    server: Option<SchedulerTimes>,
}

impl BothTimes {
    fn since(self, earlier: BothTimes) -> BothTimes {
        let servers = self.server.zip(earlier.server);
        BothTimes { load: self.load.since(earlier.load), server: servers.map(|(now, earlier)| now.since(earlier)) }
    }

    /// The longer wait of the two.
    fn waited(&self) -> Duration {
        let server = self.server.map_or(Duration::ZERO, |server| server.waited);
        self.load.waited.max(server)
    }
}

/// Returns how long it really took.
fn run_for(load: &mut impl Load, seconds: f64) -> io::Result<Duration> {
    let start = Instant::now();
    let length = Duration::from_secs_f64(seconds);
    let mut answered = load.latencies().len();
    let mut answered_at = start;
    loop {
        load.turn(BLOCK_MAX)?;
        let now = Instant::now();
        if load.latencies().len() != answered {
            answered = load.latencies().len();
            answered_at = now;
        }
        if now - start >= length {
            return Ok(now - start);
        }
        if now - answered_at >= SILENCE_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server has stopped answering"));
        }
    }
}

impl Found {
    /// What a histogram of nanoseconds says, of so long.
    pub fn of(latencies: &Histogram<u64>, elapsed: Duration) -> Found {
        let quantile_us = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        Found {
            requests: latencies.len(),
            seconds: elapsed.as_secs_f64(),
            p50_us: quantile_us(0.5),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
        }
    }
}

fn report(found: Found, used: Used) -> Report {
    let each = |amount: f64| amount / found.requests as f64;
    Report {
        requests: found.requests,
        seconds: found.seconds,
        rate: found.requests as f64 / found.seconds,
        p50_us: found.p50_us,
        p99_us: found.p99_us,
        p999_us: found.p999_us,
        server_cpu_us: used.times.server.map(|server| each(server.ran.as_secs_f64() * 1e6)),
        disturbed: used.times.waited().as_secs_f64() / found.seconds,
        server_syscalls: used.syscalls.map(|syscalls| each(syscalls as f64)),
        sent_late_p99_us: None,
    }
}

fn print_plainly(report: &Report) {
    println!("{:.0} requests/s", report.rate);
    println!("p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us", report.p50_us, report.p99_us, report.p999_us);
    println!("disturbed by others {:.0} % of the time", report.disturbed * 100.0);
    if let Some(cpu_us) = report.server_cpu_us {
        println!("server: {cpu_us:.3} us of processor time per request");
    }
    if let Some(late_us) = report.sent_late_p99_us {
        println!("99 % were sent within {late_us:.1} us of when they were due");
    }
    if let Some(syscalls) = report.server_syscalls {
        println!("server: {syscalls:.3} system calls per request");
    }
}
