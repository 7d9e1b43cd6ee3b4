//! What `tls_table` measures, as tables and plots.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::plot::{Panel, Plot, Scale};
use crate::rival_rows::{Measure, RivalGoal, RivalRow};
use crate::section::Section;
use crate::server_memory::{self, ServerMemory};
use crate::text_table::TextTable;

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TlsResults {
    /// On what they were measured.
    pub facts: Facts,
    /// From small messages to large ones, from few connections to many.
    pub rows: Vec<RivalRow>,
    /// What an idle connection takes of each server's memory.
    pub memory: Vec<ServerMemory>,
}

const GOALS: [RivalGoal; 1] = [RivalGoal { against: Contender::Tokio, measure: Measure::Rate, ratio: 1.0 }];

impl TlsResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let mut tables: Vec<_> = self.rows.iter().map(|row| (row.caption(&GOALS), row.table())).collect();
        if !self.memory.is_empty() {
            tables.push(self.memory_table());
        }
        Section {
            title: "TLS echo",
            introduction: INTRODUCTION.to_owned(),
            tables,
            plots: vec![self.plot()],
            facts: self.facts.clone(),
        }
    }

    fn memory_table(&self) -> (String, TextTable) {
        let caption = "**Memory of an idle connection** after its handshake and one call: growth of the server's resident memory \
                       and page tables.";
        (caption.to_owned(), server_memory::table(&self.memory))
    }

    fn plot(&self) -> Plot {
        let mut panels: Vec<Panel> =
            self.rows.iter().map(|row| row.panel(Scale::Linear, |report| report.rate)).collect();
        if !self.memory.is_empty() {
            panels.push(server_memory::panel("Memory of an idle connection, bytes", &self.memory, None));
        }
        Plot {
            name: "tls",
            title: "TLS echo, requests/s, and memory".to_owned(),
            subtitle: "One worker on one core, the load on another. Longer is better, but for memory.".to_owned(),
            panels,
        }
    }
}

const INTRODUCTION: &str = "\
A task for each connection, one message in flight on each, `TCP_NODELAY`; the server has one worker on one core, the load runs on \
another. All use the same rustls on ring: TLS 1.3, AES-128-GCM, no resumption; tokio through tokio-rustls, the others by `StreamOwned` around \
their own sockets; dhaga shakes hands on stacks of another size, as its guide advises. Buffers are 1 KiB for messages of 64 bytes and 16 KiB for those of 16 KiB. The load encrypts and decrypts as much as the \
server, so at full load either may be the bottleneck: look at the processor time of a request as well. Threads stop at 1 000 connections. \
System calls are counted in a run of its own. *Disturbed* is the share of the time in which other processes had the processor of the load or \
of the server.";
