//! How fast are a library's server and its own client together? A closed loop: so many calls of `echo` in flight on each
//! connection, each in a task of its own.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::dial::reset_when_closed;
use dhaga_benches::programs::exit_code;
use dhaga_benches::rpc_clients::clients_of;
use dhaga_benches::window::Window;

/// Loads an RPC server by its own library's client, on one worker, and reports rate and latency.
///
/// How it waits for answers is the library's affair, whatever --doze-us says.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// Whose client: dhaga-rpc, tarpc, tonic or go.
    #[arg(long)]
    contender: Contender,
    /// How many connections to open.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How many calls to keep in flight on each connection.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
}

fn main() -> ExitCode {
    exit_code("load_calls", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    options.window.prepare()?;
    let mut clients = clients_of(options.contender, options.window.addr)?;
    clients.open(options.connections)?;
    reset_when_closed()?;
    options.window.run_foreign(|seconds| clients.run(options.in_flight, Duration::from_secs_f64(seconds)))?;
    // Dropped, ours would shut its connections down first, and then a reset is no more to be had.
    std::mem::forget(clients);
    Ok(())
}
