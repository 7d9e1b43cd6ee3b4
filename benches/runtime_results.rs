//! What `runtime_table` measures, as a table and a plot.

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::facts::Facts;
use crate::plot::{Bar, Panel, Plot, Scale};
use crate::runtime_work::Work;
use crate::section::Section;
use crate::spread::Spread;
use crate::text_table::{NONE, TextTable, figure};

/// All rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeResults {
    /// On what they were measured.
    pub facts: Facts,
    /// In the order of the table.
    pub rows: Vec<RuntimeRow>,
}

/// One kind of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeRow {
    /// Which.
    pub work: Work,
    /// Each contender's runs; the first is ours.
    pub runs: Vec<RuntimeRuns>,
    /// The second run of ours in each round.
    pub again: Vec<f64>,
}

/// The runs of one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeRuns {
    /// Whose.
    pub contender: Contender,
    /// One a round; none when the contender has no such work or cannot be run.
    pub values: Vec<f64>,
    /// Why there are none.
    pub missing: Option<String>,
}

/// The columns; the better of tokio's two schedulers is tokio's figure.
const COLUMNS: [Contender; 6] =
    [Contender::Dhaga, Contender::Go, Contender::Tokio, Contender::May, Contender::Threads, Contender::Bare];

impl RuntimeRow {
    /// A contender's median; NaN where there is none.
    fn median(&self, contender: Contender) -> f64 {
        let of = |wanted: Contender| {
            let runs = self.runs.iter().find(|runs| runs.contender == wanted);
            Spread::of(runs.into_iter().flat_map(|runs| runs.values.iter().copied())).median
        };
        // `min` passes over a NaN.
        if contender == Contender::Tokio { of(contender).min(of(Contender::TokioMulti)) } else { of(contender) }
    }

    /// The figure, or why there is none.
    fn written(&self, contender: Contender) -> String {
        let missing = self.runs.iter().find(|runs| runs.contender == contender).and_then(|runs| runs.missing.clone());
        missing.unwrap_or_else(|| figure(self.median(contender)))
    }

    /// The best rival's median divided by ours: how many times better ours is.
    fn lead(&self) -> f64 {
        let rivals = [Contender::Go, Contender::Tokio, Contender::May, Contender::Threads];
        let best = rivals.iter().map(|&rival| self.median(rival)).fold(f64::NAN, f64::min);
        best / self.median(Contender::Dhaga)
    }

    fn self_spread(&self) -> Spread {
        Spread::of_ratios(self.runs[0].values.iter().copied(), self.again.iter().copied())
    }

    /// To park a fresh one shall take no longer than Go does, whatever that is here.
    fn goal_value(&self) -> Option<f64> {
        let gos = (self.work == Work::Park).then(|| self.median(Contender::Go));
        self.work.goal().or(gos).filter(|goal| goal.is_finite())
    }

    fn goal(&self) -> String {
        let Some(goal) = self.goal_value() else {
            return NONE.to_owned();
        };
        let met = self.median(Contender::Dhaga) <= goal;
        format!("≤ {} {}", figure(goal), if met { "met" } else { "missed" })
    }

    fn line(&self) -> Vec<String> {
        let spread = self.self_spread();
        let mut line = vec![format!("{}, {}", self.work.title(), self.work.unit())];
        line.extend(COLUMNS.iter().map(|&contender| self.written(contender)));
        line.push(self.goal());
        line.push(format!("{:.2}", self.lead()));
        line.push(format!("{:.2}–{:.2}", spread.min, spread.max));
        line
    }

    fn panel(&self) -> Panel {
        let bar = |&contender: &Contender| Bar {
            note: self.written(contender),
            ..Bar::new(contender.name(), contender.colour(), self.median(contender))
        };
        Panel {
            title: format!("{}, {}", self.work.title(), self.work.unit()),
            bars: COLUMNS.iter().map(bar).filter(|bar| bar.value.is_finite() || bar.note != NONE).collect(),
            goal: self.goal_value().map(|goal| (goal, format!("goal {}", goal.round()))),
            scale: Scale::Logarithmic,
            reach: Vec::new(),
        }
    }
}

impl RuntimeResults {
    /// For the terminal and for the page.
    pub fn section(&self) -> Section {
        let heading = ["work"].into_iter().chain(COLUMNS.map(Contender::name));
        let mut table = TextTable::new(heading.chain(["goal", "× the best rival", "dhaga against itself"]));
        self.rows.iter().for_each(|row| table.push(row.line()));
        let plot = Plot {
            name: "runtime",
            title: "Inside a process".to_owned(),
            subtitle: "One worker on one core. Shorter is better; the scale is logarithmic, medians.".to_owned(),
            panels: self.rows.iter().map(RuntimeRow::panel).collect(),
        };
        Section {
            title: "Runtime",
            introduction: INTRODUCTION.to_owned(),
            tables: vec![("Medians; less is better.".to_owned(), table)],
            plots: vec![plot],
            facts: self.facts.clone(),
        }
    }
}

const INTRODUCTION: &str = "\
What it takes to start, wait and be woken, with one worker (`GOMAXPROCS=1`) on one core. Every figure comes from a process of \
its own, the contenders take turns, and the median over the rounds counts; \"against itself\" is what the machine makes of no \
difference at all. tokio's figure is the better of its two schedulers; its tasks have no stack, so a wait inside an ordinary \
function is not possible there. May runs without its default features, with a pool for a whole batch; it has no bounded channel, \
so its round trip goes through an unbounded one that never holds more than one value. Go joins by a `WaitGroup`. The limit is a \
coroutine of corosensei without a scheduler: create and run on a reused stack, resume and suspend, two such switches.

*Deadline on a wait* is half of what a deadline adds to the two waits of a round trip: arming a timer, and cancelling it when \
the value comes first. *Memory* is the growth of resident memory and page tables with many tasks parked (100 000; may 20 000, \
since it fails near 32 000; 5 000 threads), each of which captures 64 bytes; what the kernel keeps for a thread is not in it.";
