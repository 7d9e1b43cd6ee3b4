//! How do the runtimes compare as TLS echo servers, all with the same rustls?
//!
//! Run: cargo build --release -p dhaga-benches --features rivals --bins && target/release/tls_table

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::facts::Facts;
use dhaga_benches::pairs::{Comparison, Contestant, Course};
use dhaga_benches::programs::{beside, exit_code};
use dhaga_benches::progress;
use dhaga_benches::rival_rows::RivalRow;
use dhaga_benches::section::Output;
use dhaga_benches::server_use::Counter;
use dhaga_benches::text_table::count;
use dhaga_benches::tls_results::{TlsMemory, TlsResults};
use indicatif::ProgressBar;

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
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The measured time of a run.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// The time before it.
    #[arg(long, default_value_t = 0.3)]
    warm_up_seconds: f64,
    /// Runs in which memory is measured; 0 for none.
    #[arg(long, default_value_t = 3)]
    memory_rounds: u16,
    /// Idle connections of such a run.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    memory_connections: u32,
    /// The servers' processor.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// The load's processor.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
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
    let facts = Facts::now("tls_table", options.rounds.into());
    let bar = progress::bar(options.runs());
    let mut rows = Vec::new();
    for &message_bytes in &options.message_bytes {
        for &connections in &options.connections {
            rows.push(options.row(message_bytes, connections, &bar)?);
        }
    }
    let memory = options.memory(&bar)?;
    bar.finish_and_clear();
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

    fn contestant(contender: Contender, message_bytes: u32) -> io::Result<Contestant> {
        let (program, buffer_bytes) = (beside("tls_server")?, message_bytes.max(BUFFER_BYTES_MIN));
        let command =
            format!("{program} --contender {} --addr {{addr}} --buffer-bytes {buffer_bytes}", contender.option());
        Ok(Contestant::new(contender.name(), &command))
    }

    fn course(&self) -> Course {
        Course {
            rounds: self.rounds.into(),
            seconds: self.seconds,
            warm_up_seconds: self.warm_up_seconds,
            server_cpu: Some(self.server_cpu),
            load_cpu: Some(self.load_cpu),
            syscalls: Counter::find().is_some(),
        }
    }

    fn runs(&self) -> usize {
        let of_rows = self.connections.iter().map(|&count| self.course().runs(self.contenders(count).len()));
        let of_memory = usize::from(self.memory_rounds) * self.contenders(self.memory_connections).len();
        of_rows.sum::<usize>() * self.message_bytes.len() + of_memory
    }

    fn row(&self, message_bytes: u32, connections: u32, bar: &ProgressBar) -> io::Result<RivalRow> {
        let contenders = self.contenders(connections);
        let contestants = contenders.iter().map(|&contender| Options::contestant(contender, message_bytes));
        let contestants = contestants.collect::<io::Result<Vec<_>>>()?;
        let program = beside("load_tls")?;
        let load = format!("{program} --addr {{addr}} --connections {connections} --message-bytes {message_bytes}");
        let plural = if connections == 1 { "" } else { "s" };
        let title =
            format!("{} bytes, {} connection{plural}", count(message_bytes as usize), count(connections as usize));
        let told = format!("{title},");
        let comparison = Comparison::run(&load, &contestants, &self.course(), |name| progress::step(bar, &told, name))?;
        Ok(RivalRow { title, connections: connections as usize, contenders, comparison })
    }

    fn memory(&self, bar: &ProgressBar) -> io::Result<Vec<TlsMemory>> {
        let mut memory = Vec::new();
        let connections = self.memory_connections;
        let load = format!("{} --addr {{addr}} --pid {{pid}} --brief --connections {connections}", beside("idle_tls")?);
        for contender in self.contenders(connections) {
            let contestant = Options::contestant(contender, BUFFER_BYTES_MIN)?;
            let mut bytes_each = Vec::new();
            for _ in 0..self.memory_rounds {
                progress::step(bar, "memory,", &contestant.name);
                let answer = self.course().answer_of(&load, &contestant)?;
                bytes_each.push(answer.trim().parse().map_err(io::Error::other)?);
            }
            memory.push(TlsMemory { contender, connections: connections as usize, bytes_each });
        }
        // With no round nothing was measured, which is not a memory of nothing.
        memory.retain(|runs| !runs.bytes_each.is_empty());
        Ok(memory)
    }
}
