//! What `echo_table` measures, as tables and plots.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::limit_rows::LimitRow;
use crate::pairs::Comparison;
use crate::plot::{Panel, Plot, Scale};
use crate::rows::{ECHO, Goal};
use crate::section::Section;
use crate::server_memory::{self, ServerMemory};
use crate::text_table::{TextTable, count};
use crate::window::Report;

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EchoResults {
    /// On what they were measured.
    pub facts: Facts,
    /// From few connections to many.
    pub rows: Vec<EchoRow>,
    /// What a connection takes of each server's memory.
    pub memory: Vec<ServerMemory>,
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

/// What we mean a connection to take, buffer included.
pub const MEMORY_GOAL: f64 = 5_800.0;

impl EchoRow {
    fn goal(&self) -> &'static Goal {
        let row = ECHO.iter().find(|row| row.connections == self.connections);
        &row.expect("only rows of the table are measured").goal
    }

    fn title(&self) -> String {
        format!("{} connection{}", count(self.connections), if self.connections == 1 { "" } else { "s" })
    }

    fn with<T>(&self, f: impl FnOnce(LimitRow<'_>) -> T) -> T {
        f(LimitRow {
            title: &self.title(),
            contenders: &self.contenders,
            comparison: &self.comparison,
            goal: self.goal(),
        })
    }
}

impl EchoResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let mut tables: Vec<_> = self.rows.iter().map(|row| row.with(|row| (row.caption(), row.table()))).collect();
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
        let caption =
            "**Memory of a connection**: growth of the server's resident memory and page tables. Goal: ≤ 5.8 KB.";
        (caption.to_owned(), server_memory::table(&self.memory))
    }

    fn plots(&self) -> Vec<Plot> {
        let panels = |scale, value: fn(&Report) -> f64, goal: fn(&Goal) -> Option<f64>| -> Vec<Panel> {
            self.rows.iter().map(|row| row.with(|shown| shown.panel(scale, value, goal(row.goal())))).collect()
        };
        let mut latency = panels(Scale::Logarithmic, |report| report.p99_us / 1e3, |goal| goal.p99_max);
        if !self.memory.is_empty() {
            latency.push(server_memory::panel("Memory of a connection, bytes", &self.memory, Some(MEMORY_GOAL)));
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
}

const INTRODUCTION: &str = "\
A task for each connection, 64 bytes there and back, one message in flight on each, buffers of 1 KiB, `TCP_NODELAY`; the server \
has one worker (`GOMAXPROCS=1`) on one core, the load runs on another. The limit is an event loop without tasks, the faster of \
one that blocks at once and one that polls for 50 µs first; the rate's ratio to it is the median over the rounds, with least and \
most. tokio runs its scheduler for one thread; threads stop at 1 000 connections. Latencies of a closed loop at full load say who \
is unfair, not how late a server answers at ease. System calls are counted by the kernel's tracepoint in a run of its own. \
*Disturbed* is the share of the time in which other processes had the processor of the load or of the server.";
