//! What `http_table` measures, as tables and plots.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::plot::{Panel, Plot, Scale};
use crate::rival_rows::{Measure, RivalGoal, RivalRow};
use crate::section::Section;
use crate::window::Report;

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HttpResults {
    /// On what they were measured.
    pub facts: Facts,
    /// HTTP/1.1 and then HTTP/2, from few connections to many.
    pub rows: Vec<RivalRow>,
}

const FASTER_THAN_TOKIO: RivalGoal = RivalGoal { against: Contender::Tokio, measure: Measure::Rate, ratio: 1.0 };
const AS_FAIR_AS_MAY: RivalGoal = RivalGoal { against: Contender::May, measure: Measure::P99, ratio: 1.0 };

/// From so many connections on, latency says who is fair.
const CONNECTIONS_FOR_FAIRNESS: usize = 1_000;

fn goals(row: &RivalRow) -> &'static [RivalGoal] {
    const BOTH: [RivalGoal; 2] = [FASTER_THAN_TOKIO, AS_FAIR_AS_MAY];
    if row.connections == CONNECTIONS_FOR_FAIRNESS { &BOTH } else { &BOTH[..1] }
}

impl HttpResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        Section {
            title: "HTTP",
            introduction: INTRODUCTION.to_owned(),
            tables: self.rows.iter().map(|row| (row.caption(goals(row)), row.table())).collect(),
            plots: self.plots(),
            facts: self.facts.clone(),
        }
    }

    fn plots(&self) -> Vec<Plot> {
        let panels = |scale, value: fn(&Report) -> f64| -> Vec<Panel> {
            self.rows.iter().map(|row| row.panel(scale, value)).collect()
        };
        vec![
            Plot {
                name: "http_rate",
                title: "HTTP hello, requests/s".to_owned(),
                subtitle: "One worker on one core, the load on another. Longer is better.".to_owned(),
                panels: panels(Scale::Linear, |report| report.rate),
            },
            Plot {
                name: "http_p99",
                title: "HTTP hello, 99th percentile in ms".to_owned(),
                subtitle: "In a closed loop at full load. Shorter is better; the scale is logarithmic.".to_owned(),
                panels: panels(Scale::Logarithmic, |report| report.p99_us / 1e3),
            },
        ]
    }
}

const INTRODUCTION: &str = "\
\"Hello, world!\" with the same headers, so that all answers have as many bytes; the server has one worker on one core, the load runs on \
another. dhaga and tokio (its scheduler for one thread) run the same hyper with the same `async` service, dhaga through `dhaga::hyper`; may \
runs may_minihttp, which speaks HTTP/1.1 only. HTTP/1.1 is asked by `wrk`, one request at a time on each connection, and HTTP/2 by `h2load`, \
ten at a time, without TLS. Both connect within the measured time. Latencies of a closed loop at full load say who is unfair, not how late a \
server answers at ease. System calls are counted in a run of its own, those for connecting included. *Disturbed* is the share of the time in \
which other processes had the processor of the server.";
