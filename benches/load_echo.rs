//! How fast does a TCP echo server answer, and how late? A closed loop: one message of 64 bytes in
//! flight on each connection.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga_benches::dial::{dial, echo_call, wrong_answer};
use dhaga_benches::doze::Doze;
use dhaga_benches::window::{Load, Window, latency_histogram};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Loads a TCP echo server from one thread and reports its rate and latency.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// How many connections to open.
    #[arg(long, default_value_t = 100)]
    connections: usize,
}

const MESSAGE: &[u8; 64] = b"The quick brown fox jumps over the lazy dog and then comes back.";

/// One read brings a whole message and shows that nothing follows.
const BUFFER_BYTES: usize = 1024;

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.window.prepare()?;
    let mut load = EchoLoad::new(&options)?;
    load.start()?;
    options.window.run(&mut load)
}

struct Connection {
    stream: TcpStream,
    sent_at: Instant,
    /// How much of the message is back.
    received_bytes: usize,
}

struct EchoLoad {
    poll: Poll,
    events: Events,
    doze: Doze,
    connections: Vec<Connection>,
    latencies: Histogram<u64>,
}

impl EchoLoad {
    fn new(options: &Options) -> io::Result<EchoLoad> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for stream in dial(options.window.addr, options.connections, |stream| echo_call(stream, MESSAGE))? {
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(connections.len()), Interest::READABLE)?;
            connections.push(Connection { stream, sent_at: Instant::now(), received_bytes: 0 });
        }
        Ok(EchoLoad {
            poll,
            events: Events::with_capacity(1024),
            doze: options.window.doze(),
            connections,
            latencies: latency_histogram(),
        })
    }

    fn start(&mut self) -> io::Result<()> {
        self.connections.iter_mut().try_for_each(|connection| connection.send(Instant::now()))
    }
}

impl Load for EchoLoad {
    fn turn(&mut self, block_max: Duration) -> io::Result<()> {
        self.doze.wait(&mut self.poll, &mut self.events, Some(block_max))?;
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            if connection.receive()? {
                let now = Instant::now();
                self.latencies.saturating_record((now - connection.sent_at).as_nanos() as u64);
                connection.send(now)?;
            }
        }
        Ok(())
    }

    fn latencies(&mut self) -> &mut Histogram<u64> {
        &mut self.latencies
    }
}

impl Connection {
    fn send(&mut self, now: Instant) -> io::Result<()> {
        self.sent_at = now;
        // The socket is empty, since the last message is back.
        if self.stream.write(MESSAGE)? == MESSAGE.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads once; returns whether the message is back whole.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; BUFFER_BYTES];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let awaited = &MESSAGE[self.received_bytes..];
        if !awaited.starts_with(&buffer[..count]) {
            return Err(wrong_answer("other bytes came back than were sent"));
        }
        self.received_bytes = (self.received_bytes + count) % MESSAGE.len();
        Ok(self.received_bytes == 0)
    }
}
