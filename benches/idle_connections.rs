//! What does an idle connection cost the server in memory?
//!
//! Opens many connections, makes one call on each, and divides the growth of the server's resident
//! memory and page tables by their number. What the kernel keeps for a socket is not in it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use dhaga_benches::dial::{dial, echo_call, rpc_call};
use dhaga_benches::wire::PayloadKind;
use dhaga_benches::{machine, server_use};

/// Measures the memory that a server keeps for each idle connection.
#[derive(Parser)]
struct Options {
    /// Where the server listens.
    #[arg(long)]
    addr: SocketAddr,
    /// The server's process.
    #[arg(long)]
    pid: u32,
    /// How many connections to open.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// What the one call on each connection is.
    #[arg(long, value_enum, default_value = "rpc")]
    call: Call,
    /// How the payload of an RPC travels.
    #[arg(long, value_enum, default_value = "binary")]
    payload: PayloadKind,
    /// Print nothing but the bytes of one connection.
    #[arg(long)]
    brief: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Call {
    /// 64 bytes of TCP echo.
    Echo,
    /// `echo` of 32 bytes over MessagePack-RPC.
    Rpc,
}

/// How long the server has to give back what it holds only while it works.
const SETTLE: Duration = Duration::from_secs(1);

fn main() -> io::Result<()> {
    let options = Options::parse();
    machine::raise_open_files()?;
    // The first connection pays for what all of them share, and stays open.
    let _first = open(&options, 1)?;
    sleep(SETTLE);
    let before = server_use::memory_bytes(options.pid)?;
    let idle = open(&options, options.connections)?;
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

fn open(options: &Options, count: usize) -> io::Result<Vec<TcpStream>> {
    let call = |stream: &mut TcpStream| match options.call {
        Call::Echo => echo_call(stream, &[b'.'; 64]),
        Call::Rpc => rpc_call(stream, options.payload),
    };
    let mut idle = dial(options.addr, count, call)?;
    idle.iter_mut().try_for_each(call)?;
    Ok(idle)
}
