//! Which of two servers is faster, on a machine where the same server twice gives two results?
//!
//! By the rule of at least ten alternating runs: the median ratio counts, and what the machine
//! makes of the same server twice is printed beside it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use dhaga_benches::child::Hidden;
use dhaga_benches::pairs::{Comparison, Contestant, Course};
use dhaga_benches::rows::{ECHO, RPC, Row};
use dhaga_benches::server_use::Counter;
use dhaga_benches::{programs, progress, table};

/// Compares servers by alternating runs: server on one processor, load on another.
///
/// In every command {addr} stands for the address; commands are split at white space, without
/// quoting. Each run starts its own server, and all children end with this program, however it
/// ends.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Two servers under one load.
    Pair(Pair),
    /// The rows of the RPC table: a MessagePack-RPC server with the method `echo` against bare_rpc.
    Rpc(Table),
    /// The rows of the echo table: a TCP echo server against bare_echo.
    Echo(Table),
    #[command(flatten)]
    Hidden(Hidden),
}

#[derive(Args)]
struct Pair {
    /// The first server.
    #[arg(short, long)]
    a: String,
    /// The second server.
    #[arg(short, long)]
    b: String,
    /// The load: load_echo or load_rpc with its options. Times and the server's process are added.
    #[arg(long)]
    load: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Table {
    /// The server that is held against the bare loop.
    #[arg(long)]
    server: String,
    /// Only these rows, for example `1x64,100x1`.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// More options for the load, for example `--payload text`.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    load_options: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Rounds. With fewer than ten the result is no more than a glance.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The measured time of a run.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// The time before it.
    #[arg(long, default_value_t = 0.3)]
    warm_up_seconds: f64,
    /// The servers' processor.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    /// The load's processor.
    #[arg(long, default_value_t = 1)]
    load_cpu: usize,
    /// Count the servers' system calls per request too, by perf or else strace, in a run of its own.
    #[arg(long)]
    syscalls: bool,
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    programs::exit_code("compare", run(Options::parse().what))
}

fn run(what: What) -> Result<(), Box<dyn Error>> {
    match what {
        What::Pair(pair) => compare_pair(&pair),
        What::Rpc(options) => compare_rows(&options, &RPC, "bare_rpc", rpc_load),
        What::Echo(options) => compare_rows(&options, &ECHO, "bare_echo", echo_load),
        What::Hidden(hidden) => Err(hidden.exec().into()),
    }
}

fn compare_pair(pair: &Pair) -> Result<(), Box<dyn Error>> {
    let contestants = [Contestant::new("A", &pair.a), Contestant::new("B", &pair.b)];
    let load = if pair.load.contains("{addr}") { pair.load.clone() } else { format!("{} --addr {{addr}}", pair.load) };
    let course = pair.common.course();
    let bar = progress::bar(course.runs(contestants.len()));
    let comparison = Comparison::run(&load, &contestants, &course, |name| progress::step(&bar, "", name))?;
    bar.finish_and_clear();
    print!("{}{}", table::heading(), table::lines("", &comparison, None));
    pair.common.write_json(&[comparison])
}

/// How long a bare loop dozes, as long as ours does.
const DOZE_US: u32 = 50;

fn compare_rows(
    options: &Table,
    rows: &[Row],
    bare: &str,
    load_of: fn(&Path, &Row) -> String,
) -> Result<(), Box<dyn Error>> {
    let rows = chosen(rows, &options.rows)?;
    let programs = programs::directory()?;
    let bare = format!("{} --addr {{addr}}", programs.join(bare).display());
    let contestants = [
        Contestant::new("server", &options.server),
        Contestant::new("bare, blocking", &bare),
        Contestant::new("bare, dozing", &format!("{bare} --doze-us {DOZE_US}")),
    ];
    let course = options.common.course();
    let bar = progress::bar(rows.len() * course.runs(contestants.len()));
    let mut comparisons = Vec::new();
    bar.suspend(|| print!("{}", table::heading()));
    for row in rows {
        let load = format!("{} {}", load_of(&programs, row), options.load_options);
        let comparison = Comparison::run(&load, &contestants, &course, |name| progress::step(&bar, &row.name(), name))?;
        bar.suspend(|| print!("{}", table::lines(&row.name(), &comparison, Some(&row.goal))));
        comparisons.push(comparison);
    }
    bar.finish_and_clear();
    options.common.write_json(&comparisons)
}

fn rpc_load(programs: &Path, row: &Row) -> String {
    let program = programs.join("load_rpc");
    format!("{} --addr {{addr}} --connections {} --in-flight {}", program.display(), row.connections, row.in_flight)
}

fn echo_load(programs: &Path, row: &Row) -> String {
    format!("{} --addr {{addr}} --connections {}", programs.join("load_echo").display(), row.connections)
}

/// The rows with the wanted names, or all when none is named. A name needs no spaces.
fn chosen<'a>(rows: &'a [Row], names: &[String]) -> Result<Vec<&'a Row>, Box<dyn Error>> {
    if names.is_empty() {
        return Ok(rows.iter().collect());
    }
    let find = |name: &String| rows.iter().find(|row| row.name().replace(' ', "") == name.replace(' ', ""));
    names.iter().map(|name| find(name).ok_or_else(|| format!("the table has no row {name}").into())).collect()
}

impl Common {
    fn course(&self) -> Course {
        if self.rounds < 10 {
            eprintln!("fewer than ten rounds: take the result for a glance");
        }
        let syscalls = self.syscalls && Counter::find().is_some();
        if self.syscalls && !syscalls {
            eprintln!("neither perf nor strace works here: system calls are not counted");
        }
        Course {
            rounds: usize::from(self.rounds),
            seconds: self.seconds,
            warm_up_seconds: self.warm_up_seconds,
            server_cpu: Some(self.server_cpu),
            load_cpu: Some(self.load_cpu),
            syscalls,
        }
    }

    fn write_json(&self, comparisons: &[Comparison]) -> Result<(), Box<dyn Error>> {
        if let Some(file) = &self.json {
            fs::write(file, serde_json::to_string_pretty(comparisons)?)?;
        }
        Ok(())
    }
}
