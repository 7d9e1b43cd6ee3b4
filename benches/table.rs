//! Comparisons as text.

use std::fmt::Write;

use crate::pairs::{Comparison, Runs};
use crate::rows::{Goal, Limit};
use crate::spread::Spread;
use crate::window::Report;

/// The line above all comparisons.
pub fn heading() -> String {
    format!(
        "{:<12} {:<14} {:>12} {:>10} {:>10} {:>9} {:>9} {:>9}  {:<24} {:<7} goal\n",
        "load",
        "server",
        "requests/s",
        "p50 us",
        "p99 us",
        "CPU us",
        "disturbed",
        "syscalls",
        "first / this (min-max)",
        "CPU"
    )
}

/// One line a contestant, of medians. "Disturbed" is the share of the time in which other processes
/// had the processor of the load or the server. The line of the first shows it against itself; each
/// other one, the first against it. With a goal, the line of the limit that counts says whether it
/// is met; the limits are the contestants 1, which blocks, and 2, which dozes.
pub fn lines(name: &str, comparison: &Comparison, goal: Option<&Goal>) -> String {
    let mut text = String::new();
    let judge = goal.map(|goal| (limit_that_counts(comparison, goal.against), goal));
    for (index, runs) in comparison.contestants.iter().enumerate() {
        let verdict = match judge {
            Some((limit, goal)) if limit == index => verdict(comparison, limit, goal),
            _ => String::new(),
        };
        let (rate, cpu) = if index == 0 {
            (format!("self {}", written(comparison.self_ratio(rate))), comparison.self_ratio(cpu_us))
        } else {
            (written(comparison.ratio(index, rate)), comparison.ratio(index, cpu_us))
        };
        let load = if index == 0 { name } else { "" };
        writeln!(text, "{load:<12} {}  {rate:<24} {:<7.2} {verdict}", medians(runs), cpu.median)
            .expect("a string takes all that is written to it");
    }
    text
}

fn medians(runs: &Runs) -> String {
    let syscalls = runs.syscalls.map_or_else(|| "-".to_owned(), |syscalls| format!("{syscalls:.3}"));
    format!(
        "{:<14} {:>12.0} {:>10.1} {:>10.1} {:>9.3} {:>7.0} % {syscalls:>9}",
        runs.name,
        runs.median(rate),
        runs.median(|report| report.p50_us),
        runs.median(p99_us),
        runs.median(cpu_us),
        runs.median(|report| report.disturbed * 100.0),
    )
}

/// Which contestant is the limit that a goal is held against.
pub fn limit_that_counts(comparison: &Comparison, against: Limit) -> usize {
    const BLOCKING: usize = 1;
    const DOZING: usize = 2;
    let rate_of = |index: usize| comparison.contestants[index].median(rate);
    match against {
        Limit::Faster if rate_of(BLOCKING) > rate_of(DOZING) => BLOCKING,
        Limit::Faster | Limit::Dozing => DOZING,
    }
}

/// Whether the first contestant meets the goal.
pub fn verdict(comparison: &Comparison, limit: usize, goal: &Goal) -> String {
    let mut text = doubt(comparison, limit).to_owned();
    text += &judged("rate >=", goal.rate_min, comparison.ratio(limit, rate).median >= goal.rate_min);
    if let Some(cpu_max) = goal.cpu_max {
        text += &judged(", CPU <=", cpu_max, comparison.ratio(limit, cpu_us).median <= cpu_max);
    }
    if let Some(p99_max) = goal.p99_max {
        text += &judged(", p99 <=", p99_max, comparison.ratio(limit, p99_us).median <= p99_max);
    }
    if let Some(syscalls_max) = goal.syscalls_max {
        text += &match comparison.contestants[0].syscalls {
            Some(syscalls) => judged(", system calls <=", syscalls_max, syscalls <= syscalls_max),
            None => format!(", system calls <= {syscalls_max} not counted"),
        };
    }
    text
}

/// A larger share of time taken by others, and a ratio says more of them than of the servers.
const DISTURBED_MAX: f64 = 0.05;

fn doubt(comparison: &Comparison, limit: usize) -> &'static str {
    let disturbed = |index: usize| comparison.contestants[index].median(|report| report.disturbed) > DISTURBED_MAX;
    if disturbed(0) || disturbed(limit) { "doubtful, disturbed: " } else { "" }
}

fn judged(what: &str, bound: f64, met: bool) -> String {
    format!("{what} {bound} {}", if met { "met" } else { "MISSED" })
}

fn written(spread: Spread) -> String {
    format!("{:.2} ({:.2}-{:.2})", spread.median, spread.min, spread.max)
}

fn rate(report: &Report) -> f64 {
    report.rate
}

fn p99_us(report: &Report) -> f64 {
    report.p99_us
}

/// NaN where it was not measured, which no bound is met by.
fn cpu_us(report: &Report) -> f64 {
    report.server_cpu_us.unwrap_or(f64::NAN)
}
