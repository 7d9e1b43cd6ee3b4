//! How do the runtimes compare as TLS echo servers, all with the same rustls?
//!
//! Run: cargo build --release -p dhaga-benches --features rivals --bins && target/release/tls_table

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::contest::{Contest, CourseOptions, Entrant, MemoryRuns};
use dhaga_benches::facts::Facts;
use dhaga_benches::pairs::{Contestant, Course};
use dhaga_benches::programs::{beside, exit_code};
use dhaga_benches::rival_rows::RivalRow;
use dhaga_benches::section::Output;
use dhaga_benches::server_memory::ServerMemory;
use dhaga_benches::text_table::count;
use dhaga_benches::tls_results::TlsResults;

/// Compares TLS echo servers on dhaga, tokio, may and threads, by alternating runs.
///
/// Each run starts its own server on one processor and the load on another; all children die with this program.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Bytes of a message.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 16 << 10], value_parser = clap::value_parser!(u32).range(1..))]
    message_bytes: Vec<u32>,
    /// Connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000], value_parser = clap::value_parser!(u32).range(1..))]
    connections: Vec<u32>,
    /// Only these rivals.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = RIVALS)]
    contenders: Vec<Contender>,
    #[command(flatten)]
    course: CourseOptions,
    /// Runs in which memory is measured; 0 for none.
    #[arg(long, default_value_t = 3)]
    memory_rounds: u16,
    /// Idle connections of such a run.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    memory_connections: u32,
    #[command(flatten)]
    output: Output,
}

const RIVALS: [Contender; 3] = [Contender::Tokio, Contender::May, Contender::Threads];

/// A thread for each of more connections is more than the usual limit of processes.
const THREADS_MAX: u32 = 1_000;

/// A server reads so much at once at least, as the plain echo servers do.
const BUFFER_BYTES_MIN: u32 = 1024;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("tls_table", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let facts = Facts::now("tls_table", options.course.rounds.into());
    let course = options.course.course();
    let contest = Contest::new(course, options.runs(&course));
    let mut rows = Vec::new();
    for &message_bytes in &options.message_bytes {
        for &connections in &options.connections {
            rows.push(options.row(message_bytes, connections, &contest)?);
        }
    }
    let memory = options.memory(&contest)?;
    contest.end();
    let results = TlsResults { facts, rows, memory };
    options.output.publish(&results, &results.section())?;
    Ok(())
}

impl Options {
    /// Ours first.
    fn contenders(&self, connections: u32) -> Vec<Contender> {
        let takes_part = |contender: &Contender| *contender != Contender::Threads || connections <= THREADS_MAX;
        std::iter::once(Contender::Dhaga).chain(self.contenders.iter().copied()).filter(takes_part).collect()
    }

    fn entrants(&self, connections: u32, message_bytes: u32) -> io::Result<Vec<Entrant>> {
        let contenders = self.contenders(connections);
        contenders.into_iter().map(|contender| entrant(contender, message_bytes)).collect()
    }

    fn runs(&self, course: &Course) -> usize {
        let of_rows = self.connections.iter().map(|&count| course.runs(self.contenders(count).len()));
        let of_memory = usize::from(self.memory_rounds) * self.contenders(self.memory_connections).len();
        of_rows.sum::<usize>() * self.message_bytes.len() + of_memory
    }

    fn row(&self, message_bytes: u32, connections: u32, contest: &Contest) -> io::Result<RivalRow> {
        let program = beside("load_tls")?;
        let load = format!("{program} --addr {{addr}} --connections {connections} --message-bytes {message_bytes}");
        let plural = if connections == 1 { "" } else { "s" };
        let title =
            format!("{} bytes, {} connection{plural}", count(message_bytes as usize), count(connections as usize));
        let (contenders, comparison) = contest.row(&title, &load, &self.entrants(connections, message_bytes)?)?;
        Ok(RivalRow { title, connections: connections as usize, contenders, comparison })
    }

    fn memory(&self, contest: &Contest) -> io::Result<Vec<ServerMemory>> {
        // With no round nothing is measured, which is not a memory of nothing.
        if self.memory_rounds == 0 {
            return Ok(Vec::new());
        }
        let (load, connections) = (beside("idle_tls")?, self.memory_connections as usize);
        let runs = MemoryRuns { load: &load, connections, rounds: self.memory_rounds };
        let entrants = self.entrants(self.memory_connections, BUFFER_BYTES_MIN)?;
        entrants.iter().map(|entrant| contest.memory(entrant, runs)).collect()
    }
}

fn entrant(contender: Contender, message_bytes: u32) -> io::Result<Entrant> {
    let (program, buffer_bytes) = (beside("tls_server")?, message_bytes.max(BUFFER_BYTES_MIN));
    let command = format!("{program} --contender {} --addr {{addr}} --buffer-bytes {buffer_bytes}", contender.option());
    Ok((contender, Contestant::new(contender.name(), &command)))
}
