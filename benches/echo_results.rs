//! What `echo_table` measures, as tables and plots.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::pairs::Comparison;
use crate::plot::{Bar, Panel, Plot, Scale};
use crate::rows::{ECHO, Goal};
use crate::section::Section;
use crate::spread::Spread;
use crate::table;
use crate::text_table::{NONE, TextTable, count, figure};
use crate::window::Report;

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoResults {
    /// On what they were measured.
    pub facts: Facts,
    /// From few connections to many.
    pub rows: Vec<EchoRow>,
    /// What a connection takes of each server's memory.
    pub memory: Vec<EchoMemory>,
    /// Who could not be run, and why.
    pub missing: Vec<(Contender, String)>,
}

/// One number of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoRow {
    /// How many.
    pub connections: usize,
    /// Who took part: ours, the blocking and the dozing limit, the rivals.
    pub contenders: Vec<Contender>,
    /// Their runs, in the same order.
    pub comparison: Comparison,
}

/// The memory of one server's connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoMemory {
    /// Whose.
    pub contender: Contender,
    /// How many connections were open.
    pub connections: usize,
    /// Bytes for each, one value a run.
    pub bytes_each: Vec<f64>,
}

/// What we mean a connection to take, buffer included.
pub const MEMORY_GOAL: f64 = 5_800.0;

impl EchoRow {
    fn limit(&self) -> usize {
        table::limit_that_counts(&self.comparison, self.goal().against)
    }

    fn goal(&self) -> &'static Goal {
        let row = ECHO.iter().find(|row| row.connections == self.connections);
        &row.expect("only rows of the table are measured").goal
    }

    fn caption(&self) -> String {
        let rate = |report: &Report| report.rate;
        let spread = self.comparison.self_ratio(rate);
        format!(
            "**{} connection{}.** Goal: {}. dhaga against itself: {:.2}–{:.2}.",
            count(self.connections),
            if self.connections == 1 { "" } else { "s" },
            table::verdict(&self.comparison, self.limit(), self.goal()),
            spread.min,
            spread.max
        )
    }

    fn table(&self) -> TextTable {
        let mut table = TextTable::new([
            "server",
            "requests/s",
            "rate / limit",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "CPU µs/request",
            "system calls/request",
            "disturbed",
        ]);
        (0..self.contenders.len()).for_each(|index| table.push(self.line(index)));
        table
    }

    fn line(&self, index: usize) -> Vec<String> {
        let runs = &self.comparison.contestants[index];
        let ratio = self.comparison.ratio_between(index, self.limit(), |report| report.rate);
        let millis = |value: fn(&Report) -> f64| figure(runs.median(value) / 1e3);
        vec![
            runs.name.clone(),
            figure(runs.median(|report| report.rate)),
            format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max),
            millis(|report| report.p50_us),
            millis(|report| report.p99_us),
            millis(|report| report.p999_us),
            figure(runs.median(|report| report.server_cpu_us.unwrap_or(f64::NAN))),
            runs.syscalls.map_or(NONE.to_owned(), |calls| format!("{calls:.2}")),
            disturbance(runs.median(|report| report.disturbed)),
        ]
    }

    /// Only that of the two limits which counts.
    fn panel(&self, scale: Scale, value: impl Fn(&Report) -> f64, goal: Option<f64>) -> Panel {
        let limit = self.limit();
        let is_shown = |index: usize| index == limit || !matches!(index, 1 | 2);
        let bar = |index: usize| {
            let (contender, runs) = (self.contenders[index], &self.comparison.contestants[index]);
            let shown = if index == limit { Contender::Bare } else { contender };
            Bar::new(shown.name(), shown.colour(), runs.median(&value))
        };
        let of_limit = |times: f64| times * self.comparison.contestants[limit].median(&value);
        Panel {
            title: format!("{} connections", count(self.connections)),
            bars: (0..self.contenders.len()).filter(|&index| is_shown(index)).map(bar).collect(),
            goal: goal.map(|times| (of_limit(times), format!("goal {times} × limit"))),
            scale,
            reach: Vec::new(),
        }
    }
}

/// Threads that wait for each other cannot be told from threads that wait for other processes.
fn disturbance(share: f64) -> String {
    if share > 1.0 { NONE.to_owned() } else { format!("{:.0} %", share * 100.0) }
}

impl EchoResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let mut tables: Vec<_> = self.rows.iter().map(|row| (row.caption(), row.table())).collect();
        if !self.memory.is_empty() {
            tables.push(self.memory_table());
        }
        let missing = self.missing.iter().map(|(contender, why)| format!("\n\n{}: {why}.", contender.name()));
        Section {
            title: "TCP echo",
            introduction: INTRODUCTION.to_owned() + &missing.collect::<String>(),
            tables,
            plots: self.plots(),
            facts: self.facts.clone(),
        }
    }

    fn memory_table(&self) -> (String, TextTable) {
        let mut table = TextTable::new(["server", "bytes/connection", "connections"]);
        for runs in &self.memory {
            let bytes = Spread::of(runs.bytes_each.iter().copied()).median;
            table.push([runs.contender.name().to_owned(), figure(bytes), count(runs.connections)]);
        }
        let caption =
            "**Memory of a connection**: growth of the server's resident memory and page tables. Goal: ≤ 5.8 KB.";
        (caption.to_owned(), table)
    }

    fn plots(&self) -> Vec<Plot> {
        let panels = |scale, value: fn(&Report) -> f64, goal: fn(&Goal) -> Option<f64>| -> Vec<Panel> {
            self.rows.iter().map(|row| row.panel(scale, value, goal(row.goal()))).collect()
        };
        let mut latency = panels(Scale::Logarithmic, |report| report.p99_us / 1e3, |goal| goal.p99_max);
        if !self.memory.is_empty() {
            latency.push(self.memory_panel());
        }
        vec![
            Plot {
                name: "echo_rate",
                title: "TCP echo, requests/s".to_owned(),
                subtitle: "One worker on one core, the load on another. Longer is better.".to_owned(),
                panels: panels(Scale::Linear, |report| report.rate, |goal| Some(goal.rate_min)),
            },
            Plot {
                name: "echo_p99",
                title: "TCP echo, 99th percentile in ms, and memory".to_owned(),
                subtitle: "In a closed loop at full load. Shorter is better; the scale is logarithmic.".to_owned(),
                panels: latency,
            },
        ]
    }

    fn memory_panel(&self) -> Panel {
        let bar = |runs: &EchoMemory| {
            let bytes = Spread::of(runs.bytes_each.iter().copied()).median;
            Bar::new(runs.contender.name(), runs.contender.colour(), bytes)
        };
        Panel {
            title: "Memory of a connection, bytes".to_owned(),
            bars: self.memory.iter().map(bar).collect(),
            goal: Some((MEMORY_GOAL, format!("goal {}", figure(MEMORY_GOAL)))),
            scale: Scale::Linear,
            reach: Vec::new(),
        }
    }
}

const INTRODUCTION: &str = "\
A task for each connection, 64 bytes there and back, one message in flight on each, buffers of 1 KiB, `TCP_NODELAY`; the server \
has one worker (`GOMAXPROCS=1`) on one core, the load runs on another. The limit is an event loop without tasks, the faster of \
one that blocks at once and one that polls for 50 µs first; the rate's ratio to it is the median over the rounds, with least and \
most. tokio runs its scheduler for one thread; threads stop at 1 000 connections. Latencies of a closed loop at full load say who \
is unfair, not how late a server answers at ease. System calls are counted by the kernel's tracepoint in a run of its own. \
*Disturbed* is the share of the time in which other processes had the processor of the load or of the server.";
