//! What does an idle connection of a library's own client cost the server in memory? As `idle_connections`, with one call on
//! each.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use dhaga_benches::contender::Contender;
use dhaga_benches::dial::reset_when_closed;
use dhaga_benches::idle::Idle;
use dhaga_benches::machine;
use dhaga_benches::programs::exit_code;
use dhaga_benches::rpc_clients::clients_of;

/// Measures the memory that an RPC server keeps for each idle connection of its own library's client.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    idle: Idle,
    /// Whose client: dhaga-rpc, tarpc, tonic or go.
    #[arg(long)]
    contender: Contender,
}

fn main() -> ExitCode {
    exit_code("idle_calls", run(&Options::parse()))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    machine::raise_open_files()?;
    let mut clients = clients_of(options.contender, options.idle.addr)?;
    options.idle.measure(|connections| {
        clients.open(connections)?;
        reset_when_closed()
    })?;
    // Dropped, ours would shut its connections down first, and then a reset is no more to be had.
    std::mem::forget(clients);
    Ok(())
}
