//! Rows in which servers are held against rivals and not against a limit: a table and bars for each.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::pairs::Comparison;
use crate::plot::{Bar, Panel, Scale};
use crate::server_lines;
use crate::text_table::{NONE, TextTable};
use crate::window::Report;

/// One load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RivalRow {
    /// What the load is.
    pub title: String,
    /// Connections.
    pub connections: usize,
    /// Who took part, ours first.
    pub contenders: Vec<Contender>,
    /// Their runs, in the same order.
    pub comparison: Comparison,
}

/// What ours means to reach beside a rival.
#[derive(Clone, Copy, Debug)]
pub struct RivalGoal {
    /// The rival.
    pub against: Contender,
    /// Of what.
    pub measure: Measure,
    /// Ours divided by the rival's: at least this for a rate, at most this for a latency.
    pub ratio: f64,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests a second.
    Rate,
    /// The 99th percentile of the latency.
    P99,
}

impl Measure {
    fn of(self, report: &Report) -> f64 {
        match self {
            Measure::Rate => report.rate,
            Measure::P99 => report.p99_us,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Measure::Rate => "rate ≥",
            Measure::P99 => "p99 ≤",
        }
    }

    fn is_met(self, ratio: f64, bound: f64) -> bool {
        match self {
            Measure::Rate => ratio >= bound,
            Measure::P99 => ratio <= bound,
        }
    }
}

/// A larger share of time taken by others, and a ratio says more of them than of the servers.
const DISTURBED_MAX: f64 = 0.05;

impl RivalRow {
    /// Its title, the goals, and how far ours is from itself.
    pub fn caption(&self, goals: &[RivalGoal]) -> String {
        let itself = self.comparison.self_ratio(|report| report.rate);
        let verdicts: String = goals.iter().filter_map(|goal| self.verdict(goal)).collect();
        format!("**{}.** {verdicts}dhaga's rate against itself: {:.2}–{:.2}.", self.title, itself.min, itself.max)
    }

    fn position(&self, contender: Contender) -> Option<usize> {
        self.contenders.iter().position(|&known| known == contender)
    }

    /// Ours divided by a rival's; NaN where the rival did not take part.
    pub fn ratio(&self, rival: Contender, measure: Measure) -> f64 {
        let ratio = |rival| self.comparison.ratio(rival, |report| measure.of(report)).median;
        self.position(rival).map_or(f64::NAN, ratio)
    }

    /// `None` where the rival did not take part.
    fn verdict(&self, goal: &RivalGoal) -> Option<String> {
        let rival = self.position(goal.against)?;
        let ratio = self.ratio(goal.against, goal.measure);
        let doubt = if self.is_disturbed(0) || self.is_disturbed(rival) { "doubtful, disturbed: " } else { "" };
        let met = if goal.measure.is_met(ratio, goal.ratio) { "met" } else { "MISSED" };
        let (what, name) = (goal.measure.name(), goal.against.name());
        Some(format!("Goal: {what} {} × {name}'s: {doubt}{ratio:.2}, {met}. ", goal.ratio))
    }

    fn is_disturbed(&self, index: usize) -> bool {
        self.comparison.contestants[index].median(|report| report.disturbed) > DISTURBED_MAX
    }

    /// A line for each server.
    pub fn table(&self) -> TextTable {
        let mut table = server_lines::table("dhaga's rate / this");
        for (index, runs) in self.comparison.contestants.iter().enumerate() {
            let ratio = self.comparison.ratio(index, |report| report.rate);
            let ratio = if index == 0 { NONE.to_owned() } else { server_lines::written(ratio) };
            table.push(server_lines::line(runs, ratio));
        }
        table
    }

    /// A bar for each server.
    pub fn panel(&self, scale: Scale, value: impl Fn(&Report) -> f64) -> Panel {
        let bars = self.contenders.iter().zip(&self.comparison.contestants);
        Panel {
            title: self.title.clone(),
            bars: bars
                .map(|(contender, runs)| Bar::new(contender.name(), contender.colour(), runs.median(&value)))
                .collect(),
            goal: None,
            scale,
            reach: Vec::new(),
        }
    }
}
