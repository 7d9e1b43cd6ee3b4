//! What does an idle TLS connection cost the server in memory? As `idle_connections`, with a handshake and one call on each.

use std::io;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use dhaga_benches::{machine, server_use, tls_dial};

/// Measures the memory that a TLS echo server keeps for each idle connection.
#[derive(Parser)]
struct Options {
    /// Where the server listens.
    #[arg(long)]
    addr: SocketAddr,
    /// The server's process.
    #[arg(long)]
    pid: u32,
    /// How many connections to open.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Print nothing but the bytes of one connection.
    #[arg(long)]
    brief: bool,
}

/// How long the server has to give back what it holds only while it works.
const SETTLE: Duration = Duration::from_secs(1);

const MESSAGE: [u8; 64] = [b'.'; 64];

fn main() -> io::Result<()> {
    let options = Options::parse();
    machine::raise_open_files()?;
    // The first connection pays for what all of them share, and stays open.
    let _first = tls_dial::dial(options.addr, 1, &MESSAGE)?;
    sleep(SETTLE);
    let before = server_use::memory_bytes(options.pid)?;
    let idle = tls_dial::dial(options.addr, options.connections, &MESSAGE)?;
    sleep(SETTLE);
    let after = server_use::memory_bytes(options.pid)?;
    let each = after.saturating_sub(before) / idle.len() as u64;
    if options.brief {
        println!("{each}");
    } else {
        println!("{before} -> {after} bytes: {each} bytes for each of {} idle connections", idle.len());
    }
    Ok(())
}
