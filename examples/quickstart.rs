//! Ten thousand callers and a server whose method waits 20 ms, as a backend would: by dhagas, then by OS threads.
//!
//! Run: cargo run --release -p dhaga-examples --example quickstart
//!
//! You will see a progress bar for each half, then one table for both. Client and server run in the same process, one
//! process for each half. Both send the same bytes over as many connections as Dhaga has workers. Nothing to install.

use std::error::Error;
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{env, thread};

use clap::{Parser, ValueEnum, value_parser};
use dhaga_examples::meter::{Meter, Outcome};
use dhaga_examples::{report, threads};
use dhaga_rpc::limits::IN_FLIGHT_PER_SERVER_MAX;
use dhaga_rpc::{Client, Limits, Methods, Server};

/// The half that you came for. The calls look blocking, and each parks only its dhaga.
fn with_dhagas(options: &Options, meter: &Arc<Meter>) -> Result<(), Box<dyn Error>> {
    let server =
        Server::builder().methods(methods(options, meter, dhaga::sleep)).limits(limits(options)).bind("127.0.0.1:0")?;
    let client = Client::builder().limits(limits(options)).connect(server.local_addr())?;
    dhaga::scope(|s| {
        for number in 0..options.dhagas {
            let call = |number| client.call("wait", (number,));
            s.spawn(move || meter.call_in_a_loop(number, call));
        }
    });
    Ok(())
}

/// The same with a thread for each caller and for each request.
fn with_threads(options: &Options, meter: &Arc<Meter>) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    // Callers and handlers share what threads the machine has; a quarter for handlers is more than they need.
    let threads_max = threads::threads_max();
    let callers_max = options.dhagas.min(threads_max as u64 / 4 * 3);
    let methods = methods(options, meter, thread::sleep);
    threads::serve(listener, methods, limits(options), threads_max)?;
    let clients: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| threads::Client::connect(addr, limits(options)))
        .collect::<Result<_, _>>()?;
    let start = OnceLock::new();
    thread::scope(|s| {
        let spawn = |number: &u64| {
            let client = &clients[*number as usize % clients.len()];
            let (start, number) = (&start, *number);
            let run = move || {
                start.wait();
                meter.call_in_a_loop(number, |number| client.call("wait", (number,)));
            };
            thread::Builder::new().stack_size(threads::STACK_BYTES).spawn_scoped(s, run).is_ok()
        };
        let callers = (0..callers_max).take_while(spawn).count();
        meter.set_callers(callers);
        start.get_or_init(|| ());
    });
    Ok(())
}

/// What both halves serve: `wait` gives back its number when the backend has answered.
fn methods(options: &Options, meter: &Arc<Meter>, sleep: fn(Duration)) -> Methods {
    let (meter, backend) = (meter.clone(), Duration::from_millis(options.backend_ms));
    Methods::new().method("wait", move |number: u64| {
        let _handling = meter.handling(sleep);
        sleep(backend);
        Ok(number)
    })
}

/// All calls share a few connections. So that a stranger cannot take a whole server, a connection has at most 1024
/// handlers at a time by default, and 1 MiB of requests; here we are among ourselves. The timeout is for the threads.
fn limits(options: &Options) -> Limits {
    let callers = options.dhagas as usize;
    Limits {
        in_flight_per_connection_max: callers,
        calls_per_connection_max: callers,
        queued_bytes_max: callers << 10,
        in_flight_per_server_max: callers.max(IN_FLIGHT_PER_SERVER_MAX),
        call_timeout: Duration::from_secs(60),
        ..Limits::default()
    }
}

/// Ten thousand callers of an RPC server whose method waits as for a backend: by dhagas, then by OS threads, in one table.
#[derive(Parser)]
#[command(after_help = "Takes half a minute. Build it with --release: a debug build measures the compiler.")]
struct Options {
    /// How many callers, each with one call in flight.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=1_000_000))]
    dhagas: u64,
    /// How long each half is measured.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u64).range(1..))]
    seconds: u64,
    /// How long the backend behind the server takes for each call, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 20)]
    backend_ms: u64,
    /// For the program's own children: the half to run. Its outcome is printed as JSON.
    #[arg(long, hide = true)]
    child: Option<Half>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Half {
    Dhagas,
    Threads,
}

impl Half {
    fn name(self) -> &'static str {
        match self {
            Self::Dhagas => "dhagas",
            Self::Threads => "threads",
        }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse();
    if let Some(half) = options.child {
        let outcome = run(half, &options)?;
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    let callers = report::grouped(options.dhagas);
    let (backend_ms, cores) = (options.backend_ms, thread::available_parallelism()?);
    println!("{callers} callers of a server that waits {backend_ms} ms for a backend, on {cores} cores");
    let dhagas = run_in_child(Half::Dhagas)?;
    let threads = run_in_child(Half::Threads)?;
    println!("\n{}", report::table(&dhagas, &threads));
    print!("{}", report::notes(options.dhagas, &dhagas, &threads));
    let is_fine = dhagas.errors + threads.errors == 0;
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(half: Half, options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let meter = Arc::new(Meter::new(options.dhagas as usize));
    meter.watch(half.name(), Duration::from_secs(options.seconds), || match half {
        Half::Dhagas => with_dhagas(options, &meter),
        Half::Threads => with_threads(options, &meter),
    })
}

/// Each half has a process of its own, so that neither leaves its memory to the other.
fn run_in_child(half: Half) -> Result<Outcome, Box<dyn Error>> {
    let child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .args(["--child", half.name()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        return Err(format!("the half with {} ended with {}", half.name(), child.status).into());
    }
    Ok(serde_json::from_slice(&child.stdout)?)
}
