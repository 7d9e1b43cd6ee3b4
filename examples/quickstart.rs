//! Ten thousand callers and a server whose method waits 20 ms, as a backend would: by dhagas, then by OS threads.
//!
//! Run: cargo run --release -p dhaga-examples --example quickstart
//!
//! You will see a progress bar for each half, then one table for both. Client and server run in the same process, one
//! process for each half. Both send the same bytes over as many connections as Dhaga has workers. Nothing to install.

use std::error::Error;
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{env, thread};

use clap::{Parser, ValueEnum, value_parser};
use dhaga_examples::meter::{Meter, Outcome};
use dhaga_examples::{report, threads};
use dhaga_rpc::{Client, Limits, Methods, Server};

/// The half that you came for. The calls look blocking, and each parks only its dhaga.
fn with_dhagas(options: &Options, meter: &Arc<Meter>) -> Result<(), Box<dyn Error>> {
    let server = Server::builder()
        .methods(methods(options, meter, dhaga::sleep))
        .limits(limits(options))
        .bind("127.0.0.1:0")?;
    let client = Client::builder()
        .limits(limits(options))
        .connect(server.local_addr())?;
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
    // Callers and handlers share what threads the machine has; two callers for one handler is more than handlers need.
    let threads_max = threads::threads_max();
    let callers_max = (options.dhagas as usize).min(threads_max / 3 * 2);
    let methods = methods(options, meter, thread::sleep);
    threads::serve(listener, methods, limits(options), threads_max - callers_max)?;
    let clients: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| threads::Client::connect(addr, limits(options)))
        .collect::<Result<_, _>>()?;
    thread::scope(|s| {
        for number in 0..callers_max {
            let client = &clients[number % clients.len()];
            let call = |number| client.call("wait", (number,));
            let caller = thread::Builder::new().stack_size(threads::STACK_BYTES);
            let run = move || meter.call_in_a_loop(number as u64, call);
            if caller.spawn_scoped(s, run).is_err() {
                return meter.set_callers(number);
            }
        }
        meter.set_callers(callers_max);
    });
    Ok(())
}

/// What both halves serve: `wait` gives back its number when the backend has answered.
fn methods(options: &Options, meter: &Arc<Meter>, sleep: fn(Duration)) -> Methods {
    let (meter, backend) = (meter.clone(), Duration::from_millis(options.backend_ms));
    Methods::new().method("wait", move |number: u64| {
        let _handling = meter.handling();
        sleep(backend);
        Ok(number)
    })
}

/// All calls share a few connections. By default one has at most 1024 handlers at a time, so that a stranger cannot take a
/// whole server; here it is ourselves.
fn limits(options: &Options) -> Limits {
    Limits {
        in_flight_per_connection_max: options.dhagas as usize,
        calls_per_connection_max: options.dhagas as usize,
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

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse();
    if let Some(half) = options.child {
        let outcome = run(half, &options)?;
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    let callers = report::grouped(options.dhagas);
    println!("{callers} callers of a server that waits {} ms for a backend", options.backend_ms);
    let dhagas = run_in_child(Half::Dhagas)?;
    let threads = run_in_child(Half::Threads)?;
    print!("{}", report::table(&dhagas, &threads));
    print!("{}", report::notes(options.dhagas, &dhagas, &threads));
    let is_fine = dhagas.errors + threads.errors == 0;
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(half: Half, options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let meter = Arc::new(Meter::new(options.dhagas as usize));
    meter.watch(Duration::from_secs(options.seconds), || match half {
        Half::Dhagas => with_dhagas(options, &meter),
        Half::Threads => with_threads(options, &meter),
    })
}

/// Each half has a process of its own, so that neither leaves its memory to the other.
fn run_in_child(half: Half) -> Result<Outcome, Box<dyn Error>> {
    let name = match half {
        Half::Dhagas => "dhagas",
        Half::Threads => "threads",
    };
    let child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .args(["--child", name])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        return Err(format!("the half with {name} ended with {}", child.status).into());
    }
    Ok(serde_json::from_slice(&child.stdout)?)
}
