//! How do the runtimes compare as TCP echo servers, beside a bare event loop?
//!
//! Run: cargo build --release -p dhaga-benches -p dhaga-examples --features dhaga-benches/rivals --bins --examples
//!      target/release/echo_table

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::contest::{Contest, CourseOptions, Entrant, MemoryRuns};
use dhaga_benches::echo_results::{EchoResults, EchoRow};
use dhaga_benches::facts::Facts;
use dhaga_benches::pairs::{Contestant, Course};
use dhaga_benches::programs::{GO_NOT_FOUND, beside, build_go, exit_code};
use dhaga_benches::section::Output;
use dhaga_benches::server_memory::ServerMemory;

/// Compares echo servers of dhaga, Go, tokio, may and threads with a bare event loop, by alternating runs.
///
/// Each run starts its own server on one processor and the load on another; all children die with this program. Go is left
/// out, and the table says so, when no toolchain is found.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Our server, with {addr} where the address goes [default: examples/echo with one worker]
    #[arg(long, value_name = "COMMAND")]
    server: Option<String>,
    /// Connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000, 10_000], value_parser = parse_connections)]
    connections: Vec<usize>,
    /// Only these rivals.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = RIVALS)]
    contenders: Vec<Contender>,
    #[command(flatten)]
    course: CourseOptions,
    /// Runs in which memory is measured, each with as many connections as the last row; 0 for none.
    #[arg(long, default_value_t = 3)]
    memory_rounds: u16,
    #[command(flatten)]
    output: Output,
}

const RIVALS: [Contender; 4] = [Contender::Go, Contender::Tokio, Contender::May, Contender::Threads];

/// A thread for each of more connections is more than the usual limit of processes, and more than one core can schedule.
const THREADS_MAX: usize = 1_000;

/// As long as our workers doze.
const DOZE_US: u32 = 50;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("echo_table", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let go = build_go("echo")?;
    let mut missing = Vec::new();
    if go.is_none() && options.contenders.contains(&Contender::Go) {
        missing.push((Contender::Go, GO_NOT_FOUND.to_owned()));
    }
    let facts = Facts::now("echo_table", options.course.rounds.into());
    let entrants = options.entrants(go.as_deref())?;
    let course = options.course.course();
    let contest = Contest::new(course, options.runs(&course, &entrants));
    let mut rows = Vec::new();
    for &connections in &options.connections {
        rows.push(options.row(connections, &entrants, &contest)?);
    }
    let memory = options.memory(&entrants, &contest)?;
    contest.end();
    let results = EchoResults { facts, rows, memory, missing };
    options.output.publish(&results, &results.section())?;
    Ok(())
}

impl Options {
    /// Ours, the two limits, the rivals.
    fn entrants(&self, go: Option<&str>) -> io::Result<Vec<Entrant>> {
        let bare = format!("{} --addr {{addr}}", beside("bare_echo")?);
        let mut entrants = vec![
            entrant(Contender::Dhaga, &self.our_server()?),
            entrant(Contender::Bare, &bare),
            entrant(Contender::BareDozing, &format!("{bare} --doze-us {DOZE_US}")),
        ];
        for &rival in &self.contenders {
            match (rival, go) {
                (Contender::Go, None) => {}
                (Contender::Go, Some(go)) => {
                    entrants.push(entrant(rival, &format!("env GOMAXPROCS=1 {go} {{addr}}")));
                }
                _ => {
                    let server = format!("{} --contender {} --addr {{addr}}", beside("rival_echo")?, rival.option());
                    entrants.push(entrant(rival, &server));
                }
            }
        }
        Ok(entrants)
    }

    fn our_server(&self) -> io::Result<String> {
        match &self.server {
            Some(server) => Ok(server.clone()),
            None => Ok(format!("{} --addr {{addr}} --workers 1", beside("examples/echo")?)),
        }
    }

    fn runs(&self, course: &Course, entrants: &[Entrant]) -> usize {
        let of_rows = self.connections.iter().map(|&count| course.runs(allowed(entrants, count).len()));
        of_rows.sum::<usize>() + usize::from(self.memory_rounds) * self.measured_for_memory(entrants).len()
    }

    fn row(&self, connections: usize, entrants: &[Entrant], contest: &Contest) -> io::Result<EchoRow> {
        let load = format!("{} --addr {{addr}} --connections {connections}", beside("load_echo")?);
        let title = format!("{connections} connections");
        let (contenders, comparison) = contest.row(&title, &load, &allowed(entrants, connections))?;
        Ok(EchoRow { connections, contenders, comparison })
    }

    fn memory(&self, entrants: &[Entrant], contest: &Contest) -> io::Result<Vec<ServerMemory>> {
        let load = format!("{} --call echo", beside("idle_connections")?);
        let measure = |entrant: &Entrant| {
            let connections = self.memory_connections(entrant.0);
            contest.memory(entrant, MemoryRuns { load: &load, connections, rounds: self.memory_rounds })
        };
        self.measured_for_memory(entrants).iter().map(measure).collect()
    }

    fn memory_connections(&self, contender: Contender) -> usize {
        let most = self.connections.iter().copied().max().unwrap_or(THREADS_MAX);
        if contender == Contender::Threads { most.min(THREADS_MAX) } else { most }
    }

    /// Both limits hold the same for a connection.
    fn measured_for_memory(&self, entrants: &[Entrant]) -> Vec<Entrant> {
        let is_measured = |(contender, _): &&Entrant| self.memory_rounds > 0 && *contender != Contender::BareDozing;
        entrants.iter().filter(is_measured).cloned().collect()
    }
}

fn entrant(contender: Contender, command: &str) -> Entrant {
    (contender, Contestant::new(contender.name(), command))
}

fn allowed(entrants: &[Entrant], connections: usize) -> Vec<Entrant> {
    let is_allowed = |(contender, _): &&Entrant| *contender != Contender::Threads || connections <= THREADS_MAX;
    entrants.iter().filter(is_allowed).cloned().collect()
}

/// Only those that have a goal.
fn parse_connections(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "not a number".to_owned())?;
    let has_row = dhaga_benches::rows::ECHO.iter().any(|row| row.connections == count);
    if has_row { Ok(count) } else { Err("the table has the rows 1, 100, 1000 and 10000".to_owned()) }
}
