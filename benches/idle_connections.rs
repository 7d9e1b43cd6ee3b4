//! What does an idle connection cost the server in memory?

use std::io;
use std::net::TcpStream;

use clap::{Parser, ValueEnum};
use dhaga_benches::dial::{dial, echo_call, rpc_call};
use dhaga_benches::idle::Idle;
use dhaga_benches::wire::PayloadKind;

/// Measures the memory that a server keeps for each idle connection.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    idle: Idle,
    /// What the one call on each connection is.
    #[arg(long, value_enum, default_value = "rpc")]
    call: Call,
    /// How the payload of an RPC travels.
    #[arg(long, value_enum, default_value = "binary")]
    payload: PayloadKind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Call {
    /// 64 bytes of TCP echo.
    Echo,
    /// `echo` of 32 bytes over MessagePack-RPC.
    Rpc,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.idle.measure(|connections| open(&options, connections))
}

fn open(options: &Options, count: usize) -> io::Result<Vec<TcpStream>> {
    dial(options.idle.addr, count, |stream| match options.call {
        Call::Echo => echo_call(stream, &[b'.'; 64]),
        Call::Rpc => rpc_call(stream, options.payload),
    })
}
