//! How fast does a TLS echo server answer, and how late? A closed loop: one message in flight on each connection.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga_benches::dial::wrong_answer;
use dhaga_benches::doze::Doze;
use dhaga_benches::tls_dial::{self, TlsStream};
use dhaga_benches::window::{Load, Window, latency_histogram};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::ClientConnection;

/// Loads a TLS echo server from one thread and reports its rate and latency.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// How many connections to open.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Of one message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    message_bytes: u32,
}

/// What one read of plaintext brings at most.
const BUFFER_BYTES: usize = 16 << 10;

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.window.prepare()?;
    let mut load = TlsLoad::new(&options)?;
    load.start()?;
    options.window.run(&mut load)
}

struct Connection {
    tls: ClientConnection,
    stream: TcpStream,
    sent_at: Instant,
    /// How much of the message is back.
    received_bytes: usize,
}

struct TlsLoad {
    poll: Poll,
    events: Events,
    doze: Doze,
    message: Vec<u8>,
    buffer: Vec<u8>,
    connections: Vec<Connection>,
    latencies: Histogram<u64>,
}

impl TlsLoad {
    fn new(options: &Options) -> io::Result<TlsLoad> {
        let poll = Poll::new()?;
        let message: Vec<u8> = (0..options.message_bytes).map(|index| (index % 251) as u8).collect();
        let mut connections = Vec::with_capacity(options.connections);
        for TlsStream { conn: tls, sock, .. } in tls_dial::dial(options.window.addr, options.connections, &message)? {
            sock.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(sock);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(connections.len()), interest)?;
            connections.push(Connection { tls, stream, sent_at: Instant::now(), received_bytes: 0 });
        }
        Ok(TlsLoad {
            poll,
            events: Events::with_capacity(1024),
            doze: options.window.doze(),
            message,
            buffer: vec![0; BUFFER_BYTES],
            connections,
            latencies: latency_histogram(),
        })
    }

    fn start(&mut self) -> io::Result<()> {
        self.connections.iter_mut().try_for_each(|connection| connection.send(&self.message, Instant::now()))
    }
}

impl Load for TlsLoad {
    fn turn(&mut self, block_max: Duration) -> io::Result<()> {
        self.doze.wait(&mut self.poll, &mut self.events, Some(block_max))?;
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            if event.is_writable() {
                connection.flush()?;
            }
            if event.is_readable() && connection.receive(&self.message, &mut self.buffer)? {
                let now = Instant::now();
                self.latencies.saturating_record((now - connection.sent_at).as_nanos() as u64);
                connection.send(&self.message, now)?;
            }
        }
        Ok(())
    }

    fn latencies(&mut self) -> &mut Histogram<u64> {
        &mut self.latencies
    }
}

impl Connection {
    fn send(&mut self, message: &[u8], now: Instant) -> io::Result<()> {
        self.sent_at = now;
        self.tls.writer().write_all(message)?;
        self.flush()
    }

    /// Sends what the socket takes; its next event goes on.
    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if is_blocked(self.tls.write_tls(&mut self.stream))? {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is there; returns whether the message is back whole. Nothing follows it then, so the socket is empty.
    fn receive(&mut self, message: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
        while !is_blocked(self.tls.read_tls(&mut self.stream))? {
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 && self.take(message, buffer)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take(&mut self, message: &[u8], buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            let count = match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                read => read?,
            };
            if count == 0 || !message[self.received_bytes..].starts_with(&buffer[..count]) {
                return Err(wrong_answer("other bytes came back than were sent"));
            }
            self.received_bytes = (self.received_bytes + count) % message.len();
            if self.received_bytes == 0 {
                return Ok(true);
            }
        }
    }
}

/// Whether the socket had to be waited for. Its end is an error: no server of ours closes first.
fn is_blocked(moved: io::Result<usize>) -> io::Result<bool> {
    match moved {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
