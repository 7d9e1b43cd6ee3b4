//! Rows in which servers are held against the bare loop: ours, the blocking and the dozing limit, rivals.

use crate::contender::Contender;
use crate::pairs::Comparison;
use crate::plot::{Bar, Panel, Scale};
use crate::rows::Goal;
use crate::text_table::TextTable;
use crate::window::Report;
use crate::{server_lines, table};

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct LimitRow<'a> {
    /// What the load is.
    pub title: &'a str,
    /// Who took part: ours, the blocking and the dozing limit, rivals.
    pub contenders: &'a [Contender],
    /// Their runs, in the same order.
    pub comparison: &'a Comparison,
    /// What is wanted of ours.
    pub goal: &'a Goal,
}

impl LimitRow<'_> {
    fn limit(&self) -> usize {
        table::limit_that_counts(self.comparison, self.goal.against)
    }

    /// Our rate divided by that of the limit which counts.
    pub fn ratio(&self) -> f64 {
        self.comparison.ratio(self.limit(), |report| report.rate).median
    }

    /// Its title, whether the goal is met, and how far ours is from itself.
    pub fn caption(&self) -> String {
        let spread = self.comparison.self_ratio(|report| report.rate);
        let verdict = table::verdict(self.comparison, self.limit(), self.goal);
        format!("**{}.** Goal: {verdict}. dhaga against itself: {:.2}–{:.2}.", self.title, spread.min, spread.max)
    }

    /// A line for each server.
    pub fn table(&self) -> TextTable {
        let mut table = server_lines::table("rate / limit");
        for (index, runs) in self.comparison.contestants.iter().enumerate() {
            let ratio = self.comparison.ratio_between(index, self.limit(), |report| report.rate);
            table.push(server_lines::line(runs, server_lines::written(ratio)));
        }
        table
    }

    /// A bar for each server, but only for that of the two limits which counts; `goal` is a line at so many times that limit.
    pub fn panel(&self, scale: Scale, value: impl Fn(&Report) -> f64, goal: Option<f64>) -> Panel {
        let limit = self.limit();
        let is_shown = |index: usize| index == limit || !matches!(index, 1 | 2);
        let bar = |index: usize| {
            let (contender, runs) = (self.contenders[index], &self.comparison.contestants[index]);
            let shown = if index == limit { Contender::Bare } else { contender };
            Bar::new(shown.name(), shown.colour(), runs.median(&value))
        };
        let of_limit = |times: f64| times * self.comparison.contestants[limit].median(&value);
        Panel {
            title: self.title.to_owned(),
            bars: (0..self.contenders.len()).filter(|&index| is_shown(index)).map(bar).collect(),
            goal: goal.map(|times| (of_limit(times), format!("goal {times} × limit"))),
            scale,
            reach: Vec::new(),
        }
    }
}
