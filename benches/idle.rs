//! What an idle connection costs the server in memory: many are opened, one call is made on each, and the growth of the
//! server's resident memory and page tables is divided by their number. What the kernel keeps for a socket is not in it.

use std::io;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use crate::{machine, server_use};

/// The options of each program that measures it.
#[derive(Args, Clone, Debug)]
pub struct Idle {
    /// Where the server listens.
    #[arg(long)]
    pub addr: SocketAddr,
    /// The server's process.
    #[arg(long)]
    pid: u32,
    /// How many connections to open.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Print nothing but the bytes of one connection.
    #[arg(long)]
    brief: bool,
}

/// How long the server has to give back what it holds only while it works.
const SETTLE: Duration = Duration::from_secs(1);

impl Idle {
    /// Measures and prints. `open` opens so many connections and makes a call on each; what it returns keeps them open.
    ///
    /// # Errors
    ///
    /// Those of `open`, and of reading what the server uses.
    pub fn measure<T>(&self, mut open: impl FnMut(usize) -> io::Result<T>) -> io::Result<()> {
        machine::raise_open_files()?;
        // The first connection pays for what all of them share, and stays open.
        let _first = open(1)?;
        sleep(SETTLE);
        let before = server_use::memory_bytes(self.pid)?;
        let _idle = open(self.connections as usize)?;
        sleep(SETTLE);
        let after = server_use::memory_bytes(self.pid)?;
        let each = after.saturating_sub(before) / u64::from(self.connections);
        if self.brief {
            println!("{each}");
        } else {
            println!("{before} -> {after} bytes: {each} bytes for each of {} idle connections", self.connections);
        }
        Ok(())
    }
}
