//! How late are the others, when one request in a hundred waits or computes for 5 ms?
//!
//! Run: cargo build --release -p dhaga-benches --features rivals && target/release/long_tail

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::facts::Facts;
use dhaga_benches::pairs::{Comparison, Contestant, Course};
use dhaga_benches::programs::{GO_NOT_FOUND, beside, build_go, exit_code};
use dhaga_benches::section::Output;
use dhaga_benches::tail_results::{TailCase, TailResults};
use dhaga_benches::tail_work::Kind;
use dhaga_benches::{progress, realtime};

/// Compares the latency of servers of dhaga, Go and tokio with two workers, at a fixed rate, beside slow requests.
///
/// The load shares the processors with the server and runs at real-time priority where it may (chrt). Go is left out, and
/// the table says so, when no toolchain is found.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Requests a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// Connections.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// What the slow requests do; plain is the case without them, against which the others are held.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    cases: Vec<Kind>,
    /// The measured time of a run.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The time before it.
    #[arg(long, default_value_t = 0.5)]
    warm_up_seconds: f64,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("long_tail", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let (contenders, contestants): (Vec<_>, Vec<_>) = entrants()?.into_iter().unzip();
    let missing =
        if contenders.contains(&Contender::Go) { Vec::new() } else { vec![(Contender::Go, GO_NOT_FOUND.into())] };
    let facts = Facts::now("long_tail", options.rounds.into());
    let (course, realtime) = (options.course(), realtime::is_allowed());
    let bar = progress::bar(options.cases.len() * usize::from(options.rounds) * course.runs(contestants.len()));
    let mut cases: Vec<TailCase> = Vec::new();
    // The cases take turns as well, since they are held against each other.
    for _ in 0..options.rounds {
        for (index, &slow) in options.cases.iter().enumerate() {
            let load = options.load(slow, realtime)?;
            let round =
                Comparison::run(&load, &contestants, &course, |name| progress::step(&bar, &slow.option(), name))?;
            match cases.get_mut(index) {
                Some(case) => case.comparison.append(round),
                None => cases.push(TailCase { slow, contenders: contenders.clone(), comparison: round }),
            }
        }
    }
    bar.finish_and_clear();
    let results = TailResults { facts, rate: options.rate, connections: options.connections, realtime, cases, missing };
    options.output.publish(&results, &results.section())?;
    Ok(())
}

/// Two workers each.
fn entrants() -> io::Result<Vec<(Contender, Contestant)>> {
    let rust = |contender: Contender| -> io::Result<_> {
        let command = format!("{} --contender {} --addr {{addr}}", beside("tail_server")?, contender.option());
        Ok((contender, Contestant::new(contender.name(), &command)))
    };
    let (with_rpc, server) = rust(Contender::DhagaRpc)?;
    let rpc = (with_rpc, Contestant { load_options: "--protocol rpc", ..server });
    let mut entrants = vec![rust(Contender::Dhaga)?, rpc, rust(Contender::TokioMulti)?];
    if let Some(go) = build_go("tail")? {
        let command = format!("env GOMAXPROCS=2 {go} {{addr}}");
        entrants.push((Contender::Go, Contestant::new(Contender::Go.name(), &command)));
    }
    Ok(entrants)
}

impl Options {
    fn load(&self, slow: Kind, realtime: bool) -> io::Result<String> {
        let program = beside("load_open")?;
        let load = format!(
            "{program} --addr {{addr}} --connections {} --rate {} --slow {}",
            self.connections,
            self.rate,
            slow.option()
        );
        Ok(realtime::command(load, realtime))
    }

    /// One round.
    fn course(&self) -> Course {
        Course {
            rounds: 1,
            seconds: self.seconds,
            warm_up_seconds: self.warm_up_seconds,
            server_cpu: None,
            load_cpu: None,
            syscalls: false,
        }
    }
}
