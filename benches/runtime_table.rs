//! How do the runtimes compare inside a process: spawn, yield, channel, timer, memory?
//!
//! Run: cargo build --release -p dhaga-benches --features rivals && target/release/runtime_table

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dhaga_benches::child::{Hidden, Running};
use dhaga_benches::contender::Contender;
use dhaga_benches::facts::Facts;
use dhaga_benches::programs::{GO_NOT_FOUND, beside, build_go, exit_code};
use dhaga_benches::progress;
use dhaga_benches::runtime_results::{RuntimeResults, RuntimeRow, RuntimeRuns};
use dhaga_benches::runtime_work::Work;
use dhaga_benches::section::Output;
use dhaga_benches::text_table::NONE;

/// Compares dhaga with Go, tokio, may and threads inside a process, by alternating runs on one core.
///
/// Each figure comes from a process of its own, which dies with this program. Go is left out, and the table says so, when
/// no toolchain is found in $GO, where benches/install_go.sh puts it, or on the PATH.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these rows.
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Work>,
    /// Only these, beside dhaga.
    #[arg(long, value_enum, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// The processor on which all of them run.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    #[command(flatten)]
    output: Output,
}

/// Ours comes first.
const CONTENDERS: [Contender; 7] = [
    Contender::Dhaga,
    Contender::Go,
    Contender::Tokio,
    Contender::TokioMulti,
    Contender::May,
    Contender::Threads,
    Contender::Bare,
];

/// The slowest row, with very many parked threads, takes seconds.
const RUN_MAX: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("runtime_table", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let commands = Commands { rust: beside("runtime_row")?, go: build_go("runtime_row")?, cpu: options.cpu };
    let facts = Facts::now("runtime_table", options.rounds.into());
    let (works, contenders) = (options.works(), options.contenders());
    let bar = progress::bar(works.len() * usize::from(options.rounds) * (contenders.len() + 1));
    let mut rows = Vec::new();
    for work in works {
        rows.push(commands.row(work, &contenders, options.rounds, |name| progress::step(&bar, work.title(), name))?);
    }
    bar.finish_and_clear();
    let results = RuntimeResults { facts, rows };
    options.output.publish(&results, &results.section())?;
    Ok(())
}

impl Options {
    fn works(&self) -> Vec<Work> {
        if self.rows.is_empty() { Work::ALL.to_vec() } else { self.rows.clone() }
    }

    fn contenders(&self) -> Vec<Contender> {
        let wanted = |contender: &Contender| {
            *contender == Contender::Dhaga || self.contenders.is_empty() || self.contenders.contains(contender)
        };
        CONTENDERS.into_iter().filter(wanted).collect()
    }
}

/// The programs that measure.
struct Commands {
    rust: String,
    go: Option<String>,
    cpu: usize,
}

impl Commands {
    /// All rounds: each contender once, in order, and then ours again.
    fn row(
        &self,
        work: Work,
        contenders: &[Contender],
        rounds: u16,
        progress: impl Fn(&str),
    ) -> io::Result<RuntimeRow> {
        let runs = contenders.iter().map(|&contender| RuntimeRuns { contender, values: Vec::new(), missing: None });
        let mut row = RuntimeRow { work, runs: runs.collect(), again: Vec::new() };
        for _ in 0..rounds {
            for runs in &mut row.runs {
                progress(runs.contender.name());
                match self.measure(work, runs.contender)? {
                    Measured::Value(value) => runs.values.push(value),
                    Measured::Nothing(why) => runs.missing = Some(why.to_owned()),
                }
            }
            progress(contenders[0].name());
            if let Measured::Value(value) = self.measure(work, contenders[0])? {
                row.again.push(value);
            }
        }
        Ok(row)
    }

    fn measure(&self, work: Work, contender: Contender) -> io::Result<Measured> {
        let Some(command) = self.command(work, contender) else {
            return Ok(Measured::Nothing(GO_NOT_FOUND));
        };
        let answer = Running::start_load(&command, Some(self.cpu))?.answer(RUN_MAX);
        let answer = answer.map_err(|error| naming(work, contender, &error))?;
        let value: f64 = answer.trim().parse().map_err(io::Error::other)?;
        Ok(if value.is_nan() { Measured::Nothing(NONE) } else { Measured::Value(value) })
    }

    fn command(&self, work: Work, contender: Contender) -> Option<Vec<String>> {
        let words = match contender {
            Contender::Go => vec!["env".to_owned(), "GOMAXPROCS=1".to_owned(), self.go.clone()?, work.option()],
            _ => {
                vec![self.rust.clone(), "--contender".to_owned(), contender.option(), "--row".to_owned(), work.option()]
            }
        };
        Some(words)
    }
}

enum Measured {
    Value(f64),
    /// Why there is no value.
    Nothing(&'static str),
}

fn naming(work: Work, contender: Contender, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}, {}: {error}", contender.name(), work.title()))
}
