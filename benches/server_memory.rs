//! What a connection takes of a server's memory, as lines and bars.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::plot::{Bar, Panel, Scale};
use crate::spread::Spread;
use crate::text_table::{TextTable, count, figure};

/// The memory of one server's connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerMemory {
    /// Whose.
    pub contender: Contender,
    /// How many connections were open.
    pub connections: usize,
    /// Bytes for each, one value a run.
    pub bytes_each: Vec<f64>,
}

impl ServerMemory {
    /// The median over the runs.
    pub fn median(&self) -> f64 {
        Spread::of(self.bytes_each.iter().copied()).median
    }
}

/// A line for each server.
pub fn table(memory: &[ServerMemory]) -> TextTable {
    let mut table = TextTable::new(["server", "bytes/connection", "connections"]);
    for runs in memory {
        table.push([runs.contender.name().to_owned(), figure(runs.median()), count(runs.connections)]);
    }
    table
}

/// A bar for each server, and a line at our goal.
pub fn panel(title: &str, memory: &[ServerMemory], goal: Option<f64>) -> Panel {
    let bar = |runs: &ServerMemory| Bar::new(runs.contender.name(), runs.contender.colour(), runs.median());
    Panel {
        title: title.to_owned(),
        bars: memory.iter().map(bar).collect(),
        goal: goal.map(|bytes| (bytes, format!("goal {}", figure(bytes)))),
        scale: Scale::Linear,
        reach: Vec::new(),
    }
}
