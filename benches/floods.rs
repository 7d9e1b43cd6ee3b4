//! What do peers that mean no good cost an RPC server, and others who call it?
//!
//! Run: cargo build --release -p dhaga-benches --bin floods && target/release/floods
//!
//! Each run has a server of its own on one processor. Clients that behave call it from the other one, first alone and then
//! while a flood comes from there too, from a process that yields to them. What is told is how much later the answers of
//! those who behave are, and how much memory the flood costs the server for each connection.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use dhaga::Runtime;
use dhaga_benches::child::{Hidden, Running};
use dhaga_benches::dial::dial_one;
use dhaga_benches::facts::Facts;
use dhaga_benches::flood_peers::{Flood, Harm};
use dhaga_benches::pairs::{free_address, wait_until_listening};
use dhaga_benches::programs::{beside, exit_code};
use dhaga_benches::spread::{Spread, quantile};
use dhaga_benches::text_table::{TextTable, count, figure};
use dhaga_benches::{machine, progress, realtime, server_use};
use dhaga_rpc::encode::encode_request;
use dhaga_rpc::{HandlerError, Limits, Server, Value};
use serde::{Deserialize, Serialize};

/// Floods an RPC server in every way, and measures what it costs.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// Only these floods.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Flood::value_variants().to_vec())]
    floods: Vec<Flood>,
    /// How often each is measured; the middle one counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each half of a run.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Connections of a flood, instead of as many as its question names.
    #[arg(long)]
    connections: Option<usize>,
    /// Clients that behave.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// The server's processor, and that of all others.
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0, 1])]
    cpus: Vec<usize>,
    /// Write every single run to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Role {
    /// The server, until it is killed.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        addr: SocketAddr,
    },
    /// A flood; prints what it has done.
    #[command(hide = true)]
    Attack(Attack),
    #[command(flatten)]
    Hidden(Hidden),
}

#[derive(Args)]
struct Attack {
    #[arg(long)]
    addr: SocketAddr,
    #[arg(long, value_enum)]
    flood: Flood,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    seconds: u64,
}

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
struct Run {
    flood: Flood,
    connections: usize,
    /// Answers to those who behave, alone and during the flood.
    calls: [usize; 2],
    /// Calls of theirs that were refused during the flood.
    refused: usize,
    /// Microseconds until half of them, and all but one of a hundred, were there.
    p50_us: [f64; 2],
    p99_us: [f64; 2],
    /// Of the server, before the flood, at the most, and a second after it.
    memory_bytes: [u64; 3],
    harm: Harm,
}

impl Run {
    fn growth_each(&self) -> f64 {
        self.memory_bytes[1].saturating_sub(self.memory_bytes[0]) as f64 / self.connections as f64
    }

    fn lateness(&self) -> f64 {
        self.p99_us[1] / self.p99_us[0]
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.role {
        None => measure(&options),
        Some(Role::Serve { addr }) => serve(*addr).map_err(Into::into),
        Some(Role::Attack(attack)) => attack.run().map_err(Into::into),
        Some(Role::Hidden(hidden)) => Err(hidden.exec().into()),
    };
    exit_code("floods", result)
}

/// 136 bytes for each nil.
#[derive(Deserialize)]
struct Fat {
    #[allow(dead_code)]
    numbers: [u64; 16],
}

fn serve(address: SocketAddr) -> io::Result<()> {
    machine::raise_open_files()?;
    let runtime = Runtime::builder().workers(1).build()?;
    let _server = Server::builder()
        .method("echo", |value: Value| Ok(value))
        .method("blob", |len: usize| Ok(Value::Binary(vec![7; len])))
        .method("fat", |values: Vec<Option<Fat>>| Ok(values.len()))
        .method("hold", || {
            dhaga::sleep(Duration::from_secs(1));
            Ok::<_, HandlerError>(())
        })
        .bind_on(&runtime, address)?;
    loop {
        thread::park();
    }
}

impl Attack {
    fn run(&self) -> io::Result<()> {
        machine::raise_open_files()?;
        let harm = self.flood.run(self.addr, self.connections, Duration::from_secs(self.seconds))?;
        println!("{}", serde_json::to_string(&harm)?);
        Ok(())
    }
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    machine::pin_to(options.cpus[1])?;
    let facts = Facts::now("floods", options.rounds.into());
    let bar = progress::bar(options.floods.len() * usize::from(options.rounds));
    let mut runs = Vec::new();
    for _ in 0..options.rounds {
        for flood in &options.floods {
            progress::step(&bar, "flood", &flood.to_string());
            runs.push(run(options, *flood)?);
        }
    }
    bar.finish_and_clear();
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string(&runs)?)?;
    }
    println!("{INTRODUCTION}\n\n{}\n{}", table(&options.floods, &runs).plain(), facts.text());
    Ok(())
}

const INTRODUCTION: &str = "Peers that mean no good flood an RPC server with one worker, while others call it. The bounds: \
memory grows by no more than 1 MiB for each connection, and 99 of 100 answers to others take no more than twice as long as without \
the flood; where the server has real work with what comes, marked by a star, they are told and not bounded.";

fn table(floods: &[Flood], runs: &[Run]) -> TextTable {
    let mut table = TextTable::new([
        "flood",
        "connections",
        "KiB each",
        "p99 alone, µs",
        "p99, µs",
        "ratio",
        "refused",
        "MiB sent",
        "closed",
        "MiB left after",
    ]);
    for flood in floods {
        let runs: Vec<_> = runs.iter().filter(|run| run.flood == *flood).collect();
        let middle = |value: fn(&Run) -> f64| figure(Spread::of(runs.iter().map(|run| value(run))).median);
        table.push([
            format!("{flood}{}", if flood.is_work() { " *" } else { "" }),
            count(runs.first().map_or(0, |run| run.connections)),
            middle(|run| run.growth_each() / 1024.0),
            middle(|run| run.p99_us[0]),
            middle(|run| run.p99_us[1]),
            middle(Run::lateness),
            middle(|run| run.refused as f64),
            middle(|run| run.harm.sent_bytes as f64 / f64::from(1 << 20)),
            middle(|run| run.harm.closed as f64),
            middle(|run| run.memory_bytes[2].saturating_sub(run.memory_bytes[0]) as f64 / f64::from(1 << 20)),
        ]);
    }
    table
}

/// A server of its own: alone with those who behave, then with the flood.
fn run(options: &Options, flood: Flood) -> io::Result<Run> {
    let (this, address) = (beside("floods")?, free_address()?);
    let command = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut server = Running::start_server(&command(&format!("{this} serve --addr {address}")), Some(options.cpus[0]))?;
    wait_until_listening(&mut server, address)?;
    let time = Duration::from_secs(options.seconds.into());
    let connections = options.connections.unwrap_or(flood.connections());
    let alone = behave(address, options.clients, time, || Ok(()))?;
    let before = server_use::memory_bytes(server.pid())?;
    let words = format!(
        "{this} attack --addr {address} --flood {flood} --connections {connections} --seconds {}",
        // Until those who behave have ended.
        options.seconds + 1
    );
    // Those who behave go first on the processor that both share.
    let attack = Running::start_load(&command(&realtime::when_idle(words)), Some(options.cpus[1]))?;
    let mut most = before;
    let flooded = behave(address, options.clients, time, || {
        most = most.max(server_use::memory_bytes(server.pid())?);
        Ok(())
    })?;
    let harm = serde_json::from_str(&attack.answer(time + PATIENCE)?)?;
    sleep(SETTLE);
    let after = server_use::memory_bytes(server.pid())?;
    let of = |share: f64| [&alone, &flooded].map(|seen| quantile(&seen.took, share).unwrap_or(0) as f64 / 1000.0);
    Ok(Run {
        flood,
        connections,
        calls: [alone.took.len(), flooded.took.len()],
        refused: flooded.refused,
        p50_us: of(0.5),
        p99_us: of(0.99),
        memory_bytes: [before, most, after],
        harm,
    })
}

/// What a flood may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server has to let go of what it holds.
const SETTLE: Duration = Duration::from_secs(1);
/// Between an answer and the next call.
const THINKING: Duration = Duration::from_micros(500);
/// How often the server's memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What those who behave have seen.
#[derive(Default)]
struct Seen {
    /// The nanoseconds that each answer took, in order of size.
    took: Vec<u64>,
    /// Calls that the server has refused, since it had too much to do.
    refused: usize,
}

/// Calls from several connections, one after the other on each, while this thread looks at something.
fn behave(
    address: SocketAddr,
    clients: usize,
    time: Duration,
    mut look: impl FnMut() -> io::Result<()>,
) -> io::Result<Seen> {
    let end = Instant::now() + time;
    let callers: Vec<_> = (0..clients).map(|_| thread::spawn(move || call_until(address, end))).collect();
    while Instant::now() < end {
        look()?;
        sleep(LOOK_INTERVAL);
    }
    let mut all = Seen::default();
    for caller in callers {
        let seen = caller.join().expect("a caller does not panic")?;
        all.took.extend(seen.took);
        all.refused += seen.refused;
    }
    all.took.sort_unstable();
    Ok(all)
}

fn call_until(address: SocketAddr, end: Instant) -> io::Result<Seen> {
    let (mut stream, mut seen) = (dial_one(address)?, Seen::default());
    let mut request = Vec::new();
    let payload = Value::Binary(vec![7; 32]);
    encode_request(&mut request, &Limits::default(), 1, "echo", &(&payload,)).map_err(io::Error::other)?;
    while Instant::now() < end {
        let begun = Instant::now();
        stream.write_all(&request)?;
        match read_answer(&mut stream)? {
            true => seen.took.push(begun.elapsed().as_nanos() as u64),
            false => seen.refused += 1,
        }
        sleep(THINKING);
    }
    Ok(seen)
}

/// Returns whether it is the payload; else the server is overloaded.
fn read_answer(stream: &mut TcpStream) -> io::Result<bool> {
    // Type, id and error; behind them the payload with its head, or the length of a text that is the error.
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [0x94, 1, 1, error, length] = head else { return Err(io::Error::other("this is no answer")) };
    let (is_payload, rest) = match error {
        0xc0 => (true, 1 + 32),
        // The text, and nil.
        0xd9 => (false, usize::from(length) + 1),
        _ => return Err(io::Error::other("an answer has another form")),
    };
    stream.read_exact(&mut [0; 256 + 1][..rest])?;
    Ok(is_payload)
}
