//! What does an idle TLS connection cost the server in memory? As `idle_connections`, with a handshake and one call on each.

use std::io;

use clap::Parser;
use dhaga_benches::idle::Idle;
use dhaga_benches::tls_dial;

/// Measures the memory that a TLS echo server keeps for each idle connection.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    idle: Idle,
}

const MESSAGE: [u8; 64] = [b'.'; 64];

fn main() -> io::Result<()> {
    let idle = Options::parse().idle;
    idle.measure(|connections| tls_dial::dial(idle.addr, connections, &MESSAGE))
}
