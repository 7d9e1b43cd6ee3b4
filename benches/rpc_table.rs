//! How does `dhaga-rpc` compare with the bare loop, and with other libraries for calls?
//!
//! Run: cargo build --release -p dhaga-benches --features rivals --bins && target/release/rpc_table

use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::{Parser, ValueEnum};
use dhaga_benches::child::Hidden;
use dhaga_benches::contender::Contender;
use dhaga_benches::contest::{Contest, CourseOptions, Entrant, MemoryRuns, Processors};
use dhaga_benches::facts::Facts;
use dhaga_benches::pairs::{Comparison, Contestant, Course};
use dhaga_benches::programs::{GO_NOT_FOUND, beside, build_go, exit_code};
use dhaga_benches::realtime;
use dhaga_benches::rival_rows::RivalRow;
use dhaga_benches::rows::{RPC, Row};
use dhaga_benches::rpc_results::{
    PairRow, RPC_RIVALS, RelayRow, RpcResults, ServerRow, WAITING_LOAD, WaitingRow, title,
};
use dhaga_benches::section::Output;
use dhaga_benches::server_memory::ServerMemory;
use dhaga_benches::spread::Spread;

/// Compares our RPC server with a bare loop, and our client and server with those of tarpc, tonic and Go, by alternating runs.
///
/// Each run starts its own server on one processor and the load on another; all children die with this program. Go is left
/// out, and the table says so, when no toolchain is found.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    hidden: Option<Hidden>,
    /// Only these parts of the table.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = PARTS)]
    parts: Vec<Part>,
    /// Only these rows, for example `1x64,100x1`.
    #[arg(long, value_delimiter = ',', value_parser = parse_row)]
    rows: Vec<Load>,
    /// Only these rivals.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = RPC_RIVALS)]
    contenders: Vec<Contender>,
    #[command(flatten)]
    course: CourseOptions,
    /// Calls in flight of the relays' rows.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64], value_parser = clap::value_parser!(u32).range(1..))]
    relay_in_flight: Vec<u32>,
    /// The processor of the server behind the relay [default: one that neither relay nor load have, or else the load's]
    #[arg(long, value_name = "CPU")]
    relay_next_cpu: Option<usize>,
    /// Connections beside handlers that wait.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    waiting_connections: u32,
    /// Runs in which memory is measured; 0 for none.
    #[arg(long, default_value_t = 3)]
    memory_rounds: u16,
    /// Idle connections of such a run.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    memory_connections: u32,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Our server beside the bare loop.
    Servers,
    /// Our client and server beside the rivals'.
    Pairs,
    /// Two hops beside one.
    Relays,
    /// Handlers that wait beside handlers that do not.
    Waiting,
    /// What an idle connection takes.
    Memory,
}

const PARTS: [Part; 5] = [Part::Servers, Part::Pairs, Part::Relays, Part::Waiting, Part::Memory];

/// A row of the table, by its connections and the calls in flight on each.
#[derive(Clone, Copy, Debug)]
struct Load(&'static Row);

/// As long as our workers doze.
const DOZE_US: u32 = 50;

/// Runs from which the capacity of the server with waiting handlers is taken: it need not be exact.
const CAPACITY_ROUNDS: usize = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.hidden {
        Some(hidden) => Err(hidden.exec().into()),
        None => run(&options),
    };
    exit_code("rpc_table", result)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let entrants = options.entrants()?;
    let facts = Facts::now("rpc_table", options.course.rounds.into());
    let course = options.course.course();
    let contest = Contest::new(course, options.runs(&course, &entrants));
    let results = RpcResults {
        facts,
        servers: options.servers(&contest)?,
        pairs: options.pairs(&entrants, &contest)?,
        relays: options.relays(&contest)?,
        waiting: options.waiting(&course, &contest)?,
        memory: options.memory(&entrants, &contest)?,
        missing: options.missing(&entrants),
    };
    contest.end();
    options.output.publish(&results, &results.section())?;
    Ok(())
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn loads(&self) -> Vec<Load> {
        if self.rows.is_empty() { RPC.iter().map(Load).collect() } else { self.rows.clone() }
    }

    /// Ours, then the rivals that can be run.
    fn entrants(&self) -> io::Result<Vec<Entrant>> {
        let mut entrants = vec![library(Contender::DhagaRpc)?];
        for &rival in &self.contenders {
            if rival != Contender::Go {
                entrants.push(library(rival)?);
            } else if let (Some(server), Some(_)) = (build_go("rpc")?, build_go("rpc_load")?) {
                entrants.push(entrant(rival, &format!("env GOMAXPROCS=1 {server} {{addr}}"), load_options(rival)));
            }
        }
        Ok(entrants)
    }

    fn missing(&self, entrants: &[Entrant]) -> Vec<(Contender, String)> {
        let is_there = |rival: &Contender| entrants.iter().any(|(contender, _)| contender == rival);
        let missing = self.contenders.iter().copied().filter(|rival| !is_there(rival));
        missing.map(|rival| (rival, GO_NOT_FOUND.to_owned())).collect()
    }

    fn runs(&self, course: &Course, entrants: &[Entrant]) -> usize {
        let rows = self.loads().len();
        let of_part = |&part: &Part| match part {
            Part::Servers => rows * course.runs(SERVERS),
            Part::Pairs => rows * course.runs(entrants.len()),
            Part::Relays => self.relay_in_flight.len() * course.runs(2),
            Part::Waiting => capacity_course(course).runs(1) + waiting_course(course).runs(2),
            Part::Memory => usize::from(self.memory_rounds) * (entrants.len() + 1),
        };
        self.parts.iter().map(of_part).sum()
    }

    fn servers(&self, contest: &Contest) -> io::Result<Vec<ServerRow>> {
        let loads = if self.has(Part::Servers) { self.loads() } else { Vec::new() };
        loads.into_iter().map(|load| server_row(load, contest)).collect()
    }

    fn pairs(&self, entrants: &[Entrant], contest: &Contest) -> io::Result<Vec<PairRow>> {
        let loads = if self.has(Part::Pairs) { self.loads() } else { Vec::new() };
        loads.into_iter().map(|load| pair_row(load, entrants, contest)).collect()
    }

    fn relays(&self, contest: &Contest) -> io::Result<Vec<RelayRow>> {
        let in_flight = if self.has(Part::Relays) { self.relay_in_flight.as_slice() } else { &[] };
        let next_cpu = self.next_cpu();
        in_flight.iter().map(|&in_flight| relay_row(in_flight, next_cpu, contest)).collect()
    }

    /// With two processors the second server runs beside the load, so that each has one server and one client.
    fn next_cpu(&self) -> usize {
        let Processors { server_cpu, load_cpu } = self.course.processors;
        let free =
            (0..available_parallelism().map_or(0, usize::from)).find(|&cpu| cpu != server_cpu && cpu != load_cpu);
        self.relay_next_cpu.or(free).unwrap_or(load_cpu)
    }

    fn waiting(&self, course: &Course, contest: &Contest) -> io::Result<Option<WaitingRow>> {
        if !self.has(Part::Waiting) {
            return Ok(None);
        }
        let (connections, title) = (self.waiting_connections, "waiting handlers");
        let server = format!("{} --contender {} --addr {{addr}}", beside("tail_server")?, Contender::DhagaRpc.option());
        let contestant = |name: &str, load_options| Contestant { load_options, ..Contestant::new(name, &server) };
        let load = format!("{} --addr {{addr}} --connections {connections} --in-flight 1", beside("load_rpc")?);
        let closed = contest.on(capacity_course(course)).compare(title, &load, &[contestant("closed loop", "")])?;
        let capacity = all_runs(&closed).median;
        let (rate, realtime) = ((capacity * WAITING_LOAD) as u32, realtime::is_allowed());
        let load = beside("load_open")?;
        let load = format!("{load} --addr {{addr}} --protocol rpc --connections {connections} --rate {rate}");
        let contestants = [contestant("all alike", "--slow plain"), contestant("1 % wait 5 ms", "--slow wait")];
        let comparison =
            contest.on(waiting_course(course)).compare(title, &realtime::command(load, realtime), &contestants)?;
        let connections = connections as usize;
        Ok(Some(WaitingRow { connections, capacity, rate, realtime, comparison }))
    }

    fn memory(&self, entrants: &[Entrant], contest: &Contest) -> io::Result<Vec<ServerMemory>> {
        // With no round nothing is measured, which is not a memory of nothing.
        if !self.has(Part::Memory) || self.memory_rounds == 0 {
            return Ok(Vec::new());
        }
        let (bare, own) = (format!("{} --call rpc", beside("idle_connections")?), beside("idle_calls")?);
        let runs =
            |load| MemoryRuns { load, connections: self.memory_connections as usize, rounds: self.memory_rounds };
        let mut memory = Vec::new();
        for entrant in bare_entrants()?.iter().take(2) {
            memory.push(contest.memory(entrant, runs(&bare))?);
        }
        for entrant in entrants.iter().filter(|(contender, _)| *contender != Contender::DhagaRpc) {
            memory.push(contest.memory(entrant, runs(&own))?);
        }
        Ok(memory)
    }
}

fn entrant(contender: Contender, command: &str, load_options: &'static str) -> Entrant {
    (contender, Contestant { load_options, ..Contestant::new(contender.name(), command) })
}

fn library(contender: Contender) -> io::Result<Entrant> {
    Ok(entrant(contender, &library_server(contender)?, load_options(contender)))
}

fn library_server(contender: Contender) -> io::Result<String> {
    Ok(format!("{} serve --contender {} --addr {{addr}}", beside("rpc_server")?, contender.option()))
}

/// What tells the load whose client to be.
fn load_options(contender: Contender) -> &'static str {
    match contender {
        Contender::Tarpc => "--contender tarpc",
        Contender::Tonic => "--contender tonic",
        Contender::Go => "--contender go",
        _ => "--contender dhaga-rpc",
    }
}

/// How many servers the bare load is put to.
const SERVERS: usize = 4;

/// Ours, the two limits, and ours with an inline handler.
fn bare_entrants() -> io::Result<[Entrant; SERVERS]> {
    let bare = format!("{} --addr {{addr}}", beside("bare_rpc")?);
    Ok([
        entrant(Contender::DhagaRpc, &library_server(Contender::DhagaRpc)?, ""),
        entrant(Contender::Bare, &bare, ""),
        entrant(Contender::BareDozing, &format!("{bare} --doze-us {DOZE_US}"), ""),
        entrant(Contender::DhagaRpcInline, &library_server(Contender::DhagaRpcInline)?, ""),
    ])
}

fn server_row(Load(row): Load, contest: &Contest) -> io::Result<ServerRow> {
    let Row { connections, in_flight, .. } = *row;
    let program = beside("load_rpc")?;
    let load = format!("{program} --addr {{addr}} --connections {connections} --in-flight {in_flight}");
    let title = format!("server, {}", row.name());
    let (contenders, comparison) = contest.row(&title, &load, &bare_entrants()?)?;
    Ok(ServerRow { connections, in_flight, contenders, comparison })
}

fn pair_row(Load(row): Load, entrants: &[Entrant], contest: &Contest) -> io::Result<PairRow> {
    let Row { connections, in_flight, .. } = *row;
    let program = beside("load_calls")?;
    let load = format!("{program} --addr {{addr}} --connections {connections} --in-flight {in_flight}");
    let (contenders, comparison) = contest.row(&format!("pair, {}", row.name()), &load, entrants)?;
    let title = format!("Client and server, {}", title(connections, in_flight));
    Ok(PairRow { in_flight, row: RivalRow { title, connections, contenders, comparison } })
}

fn relay_row(in_flight: u32, next_cpu: usize, contest: &Contest) -> io::Result<RelayRow> {
    let options = load_options(Contender::DhagaRpc);
    let load = format!("{} --addr {{addr}} --connections 1 --in-flight {in_flight} {options}", beside("load_calls")?);
    let relay = format!("{} relay --addr {{addr}} --next-cpu {next_cpu}", beside("rpc_server")?);
    let contestants =
        [Contestant::new("one hop", &library_server(Contender::DhagaRpc)?), Contestant::new("two hops", &relay)];
    let in_flight = in_flight as usize;
    let comparison = contest.compare(&format!("relay, 1 x {in_flight}"), &load, &contestants)?;
    Ok(RelayRow { in_flight, comparison })
}

/// Both workers and the load take what processor they find.
fn waiting_course(course: &Course) -> Course {
    Course { server_cpu: None, load_cpu: None, syscalls: false, ..*course }
}

fn capacity_course(course: &Course) -> Course {
    Course { rounds: CAPACITY_ROUNDS.min(course.rounds), ..waiting_course(course) }
}

/// The rates of the only contestant, its second run of each round included.
fn all_runs(comparison: &Comparison) -> Spread {
    let reports = comparison.contestants[0].reports.iter().chain(&comparison.again);
    Spread::of(reports.map(|report| report.rate))
}

/// Only those that have a goal.
fn parse_row(text: &str) -> Result<Load, String> {
    let has_name = |row: &&Row| row.name().replace(' ', "") == text.replace(' ', "");
    let row = RPC.iter().find(has_name);
    row.map(Load).ok_or_else(|| {
        let names: Vec<_> = RPC.iter().map(|row| row.name().replace(' ', "")).collect();
        format!("the table has the rows {}", names.join(", "))
    })
}
