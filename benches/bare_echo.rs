//! How fast can TCP echo be on one thread, with nothing but an event loop?
//!
//! The limit that a runtime is held against: edge-triggered events, one read and one write a
//! message, no read that is known to fail.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use dhaga_benches::doze::Doze;
use dhaga_benches::event_loop::{Connection, Next, serve_forever};
use dhaga_benches::machine;

/// The bare loop for TCP echo: one thread, no tasks. Runs until it is killed.
#[derive(Parser)]
struct Options {
    /// Where to listen, for example 127.0.0.1:7000.
    #[arg(long)]
    addr: SocketAddr,
    /// The processor to stay on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Poll for so many microseconds after useful work before blocking; 0 blocks at once.
    #[arg(long, default_value_t = 0)]
    doze_us: u64,
}

/// As large as the buffers of the servers that are held against this one.
const BUFFER_BYTES: usize = 1024;

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.cpu.map(machine::pin_to).transpose()?;
    machine::raise_open_files()?;
    let mut buffer = [0; BUFFER_BYTES];
    serve_forever(options.addr, Doze::new(Duration::from_micros(options.doze_us)), |connection| {
        echo_once(connection, &mut buffer)
    })
}

/// One read, and what it brought written back.
fn echo_once(connection: &mut Connection<()>, buffer: &mut [u8]) -> io::Result<Next> {
    let count = match connection.stream.read(buffer) {
        Ok(0) => return Ok(Next::Close),
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    if count < buffer.len() {
        connection.readiness.note_short_read();
    }
    connection.outgoing.send(&mut connection.stream, &buffer[..count])?;
    Ok(if connection.readiness.readable { Next::ServeAgain } else { Next::AwaitEvent })
}
