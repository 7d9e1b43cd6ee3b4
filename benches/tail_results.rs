//! What `long_tail` measures, as tables and a plot.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::pairs::Comparison;
use crate::plot::{Bar, Panel, Plot, Scale};
use crate::section::Section;
use crate::spread::Spread;
use crate::tail_work::Kind;
use crate::text_table::{NONE, TextTable, count, figure};
use crate::window::Report;

/// All three cases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TailResults {
    /// On what they were measured.
    pub facts: Facts,
    /// Requests a second.
    pub rate: u32,
    /// Connections.
    pub connections: usize,
    /// Whether the load ran before all other processes.
    pub realtime: bool,
    /// Plain, waiting, computing.
    pub cases: Vec<TailCase>,
    /// Who could not be run, and why.
    pub missing: Vec<(Contender, String)>,
}

/// What 1 % of the requests do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TailCase {
    /// Which.
    pub slow: Kind,
    /// Who took part, ours first.
    pub contenders: Vec<Contender>,
    /// Their runs, in the same order.
    pub comparison: Comparison,
}

/// How much later than without them the others may be, when 1 % of the requests wait.
const WAIT_GOAL: f64 = 1.10;

/// How much later than with the better rival the others may be, when 1 % of the requests compute.
const COMPUTE_GOAL: f64 = 1.25;

const RIVALS: [Contender; 2] = [Contender::TokioMulti, Contender::Go];

impl TailCase {
    fn title(&self) -> &'static str {
        match self.slow {
            Kind::Plain => "all requests alike",
            Kind::Wait => "1 % wait 5 ms",
            Kind::Compute => "1 % compute 5 ms",
        }
    }

    fn p99(&self, contender: Contender) -> f64 {
        let index = self.contenders.iter().position(|&known| known == contender);
        index.map_or(f64::NAN, |index| self.comparison.contestants[index].median(|report| report.p99_us))
    }

    fn runs(&self, contender: Contender) -> impl Iterator<Item = f64> {
        let index = self.contenders.iter().position(|&known| known == contender);
        let reports = index.into_iter().flat_map(|index| &self.comparison.contestants[index].reports);
        reports.map(|report| report.p99_us)
    }

    fn best_rival(&self) -> f64 {
        let rivals = self.contenders.iter().filter(|contender| RIVALS.contains(contender));
        rivals.map(|&rival| self.p99(rival)).fold(f64::NAN, f64::min)
    }
}

impl TailResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let missing = self.missing.iter().map(|(contender, why)| format!("\n\n{}: {why}.", contender.name()));
        Section {
            title: "Long tail",
            introduction: self.introduction() + &missing.collect::<String>(),
            tables: self.cases.iter().map(|case| (self.caption(case), self.table(case))).collect(),
            plots: vec![self.plot()],
            facts: self.facts.clone(),
        }
    }

    fn introduction(&self) -> String {
        let priority = if self.realtime {
            "The load runs at real-time priority, so that a server that computes delays its own answers and not the questions."
        } else {
            "The load could not be given real-time priority, so part of what is measured is its own lateness."
        };
        format!(
            "Two workers (`GOMAXPROCS=2`), {} connections, {} requests a second in an open loop: each is due at a fixed time, \
             and its latency counts from then. With 1 % that compute 5 ms this is 30 % of what two workers can do. Percentiles \
             are those of the *other* requests, medians over the rounds. The slow ones wait or compute in place, where their \
             task runs; no runtime was told. dhaga-rpc answers the same as calls over MessagePack-RPC. The machine has two cores, which the load shares with the server; \
             *disturbed* is the time in which a worker could have run but another process, the load included, had its \
             processor. {priority}",
            count(self.connections),
            count(self.rate as usize)
        )
    }

    /// The p99 that dhaga is held against, and how often it may be as much.
    fn goal(&self, case: &TailCase) -> Option<(f64, f64)> {
        match case.slow {
            Kind::Plain => None,
            Kind::Wait => Some((self.plain_p99(Contender::Dhaga), WAIT_GOAL)),
            Kind::Compute => Some((case.best_rival(), COMPUTE_GOAL)),
        }
    }

    /// A contender's p99 divided by that of the same round without slow requests.
    fn growth(&self, case: &TailCase, contender: Contender) -> f64 {
        let plain = self.cases.iter().find(|case| case.slow == Kind::Plain);
        plain.map_or(f64::NAN, |plain| Spread::of_ratios(case.runs(contender), plain.runs(contender)).median)
    }

    fn plain_p99(&self, contender: Contender) -> f64 {
        let plain = self.cases.iter().find(|case| case.slow == Kind::Plain);
        plain.map_or(f64::NAN, |case| case.p99(contender))
    }

    fn caption(&self, case: &TailCase) -> String {
        let spread = case.comparison.self_ratio(|report| report.p99_us);
        let itself = format!("dhaga's p99 against itself: {:.2}–{:.2}.", spread.min, spread.max);
        let Some((base, times)) = self.goal(case) else {
            return format!("**{}.** {itself}", capitalized(case.title()));
        };
        let of = if case.slow == Kind::Wait { "the one without them" } else { "the better rival's" };
        let verdict = self.verdict(case, Contender::Dhaga, base, times);
        let with_calls = case.contenders.contains(&Contender::DhagaRpc);
        let with_calls = with_calls.then(|| self.verdict(case, Contender::DhagaRpc, base, times));
        let with_calls = with_calls.map_or_else(String::new, |verdict| format!(" dhaga-rpc's: {verdict}."));
        format!(
            "**{}.** Goal: dhaga's p99 ≤ {times} × {of}: {verdict}.{with_calls} {itself}",
            capitalized(case.title())
        )
    }

    /// How many times what it is held against, and whether that is no more than `times`.
    fn verdict(&self, case: &TailCase, contender: Contender, base: f64, times: f64) -> String {
        let ratio = match case.slow {
            Kind::Wait => self.growth(case, contender),
            _ => case.p99(contender) / base,
        };
        format!("{ratio:.2}, {}", if ratio <= times { "met" } else { "MISSED" })
    }

    fn table(&self, case: &TailCase) -> TextTable {
        let mut table = TextTable::new([
            "server",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "p99 / without slow ones",
            "dhaga's p99 / this",
            "answers/s",
            "sent late, p99 µs",
            "disturbed",
        ]);
        (0..case.contenders.len()).for_each(|index| table.push(self.line(case, index)));
        table
    }

    fn line(&self, case: &TailCase, index: usize) -> Vec<String> {
        let (contender, runs) = (case.contenders[index], &case.comparison.contestants[index]);
        let ratio = case.comparison.ratio(index, |report| report.p99_us);
        let ratio = format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max);
        let median = |value: fn(&Report) -> f64| figure(runs.median(value));
        vec![
            contender.name().to_owned(),
            median(|report| report.p50_us),
            median(|report| report.p99_us),
            median(|report| report.p999_us),
            format!("{:.2}", self.growth(case, contender)),
            if index == 0 { NONE.to_owned() } else { ratio },
            median(|report| report.rate),
            median(|report| report.sent_late_p99_us.unwrap_or(f64::NAN)),
            format!("{:.0} %", runs.median(|report| report.disturbed) * 100.0),
        ]
    }

    fn plot(&self) -> Plot {
        let mut panels: Vec<Panel> =
            self.cases.iter().flat_map(|case| [self.p99_panel(case), p999_panel(case)]).collect();
        // One axis, since the cases are held against each other.
        let all: Vec<f64> = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.value).collect();
        panels.iter_mut().for_each(|panel| panel.reach.clone_from(&all));
        Plot {
            name: "long_tail",
            title: "How late the others are, in µs".to_owned(),
            subtitle: format!(
                "{} requests/s, two workers. Left p99, right p99.9. Shorter is better; the scale is logarithmic.",
                count(self.rate as usize)
            ),
            panels,
        }
    }

    fn p99_panel(&self, case: &TailCase) -> Panel {
        Panel {
            goal: self.goal(case).map(|(base, times)| (base * times, format!("goal {}", figure(base * times)))),
            ..panel(case, "p99", |report| report.p99_us)
        }
    }
}

fn p999_panel(case: &TailCase) -> Panel {
    panel(case, "p99.9", |report| report.p999_us)
}

fn panel(case: &TailCase, percentile: &str, value: fn(&Report) -> f64) -> Panel {
    let bars = case.contenders.iter().zip(&case.comparison.contestants);
    Panel {
        title: format!("{percentile}, {}", case.title()),
        bars: bars
            .map(|(contender, runs)| Bar::new(contender.name(), contender.colour(), runs.median(value)))
            .collect(),
        goal: None,
        scale: Scale::Logarithmic,
        reach: Vec::new(),
    }
}

fn capitalized(text: &str) -> String {
    let (first, rest) = text.split_at(1);
    first.to_uppercase() + rest
}
