//! How fast does a MessagePack-RPC server answer, and how late? A closed loop: so many calls of
//! `echo` in flight on each connection.
//!
//! The client does as little as an honest one can, so that the server is what is measured: its
//! requests are copies of one template, all that it asks in a turn leaves in one write, and of an
//! answer it checks the id, that it is no error, and the length of what came back.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga_benches::dial::{dial, rpc_call, wrong_answer};
use dhaga_benches::doze::Doze;
use dhaga_benches::outgoing::Outgoing;
use dhaga_benches::readiness::Readiness;
use dhaga_benches::window::{Load, Window, latency_histogram};
use dhaga_benches::wire::{self, Answer, EchoRequest, PayloadKind, Stop};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Loads a MessagePack-RPC server with pipelined calls of `echo` from one thread and reports its
/// rate and latency.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// How many connections to open.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// How many calls to keep in flight on each connection.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    in_flight: u32,
    /// How the 32 bytes of payload travel.
    #[arg(long, value_enum, default_value = "binary")]
    payload: PayloadKind,
    /// How many bytes of answers one read may take.
    #[arg(long, default_value_t = 64 << 10)]
    read_bytes: usize,
}

/// With more, an id would come back within two rounds.
const IN_FLIGHT_MAX: i64 = 1 << 20;

const PAYLOAD_BYTES: u8 = 32;

/// Ids are of 31 bits, as some peers read them into a signed number.
const ID_MASK: u32 = (1 << 31) - 1;

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.window.prepare()?;
    let mut load = RpcLoad::new(&options)?;
    load.start(options.in_flight)?;
    options.window.run(&mut load)
}

struct RpcLoad {
    poll: Poll,
    events: Events,
    doze: Doze,
    connections: Vec<Connection>,
    caller: Caller,
}

impl RpcLoad {
    fn new(options: &Options) -> io::Result<RpcLoad> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(options.connections);
        for stream in dial(options.window.addr, options.connections, |stream| rpc_call(stream, options.payload))? {
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(connections.len()), Interest::READABLE | Interest::WRITABLE)?;
            connections.push(Connection::new(stream));
        }
        Ok(RpcLoad {
            poll,
            events: Events::with_capacity(1024),
            doze: options.window.doze(),
            connections,
            caller: Caller::new(options),
        })
    }

    fn start(&mut self, in_flight: u32) -> io::Result<()> {
        self.connections.iter_mut().try_for_each(|connection| self.caller.start(connection, in_flight))
    }
}

impl Load for RpcLoad {
    fn turn(&mut self, block_max: Duration) -> io::Result<()> {
        self.doze.wait(&mut self.poll, &mut self.events, Some(block_max))?;
        for event in &self.events {
            let connection = &mut self.connections[event.token().0];
            connection.readiness.note(event);
            if connection.outgoing.is_stuck() && event.is_writable() {
                connection.outgoing.resend(&mut connection.stream)?;
            }
            while connection.readiness.readable && !connection.outgoing.is_stuck() {
                self.caller.receive(connection)?;
            }
        }
        Ok(())
    }

    fn latencies(&mut self) -> &mut Histogram<u64> {
        &mut self.caller.latencies
    }
}

struct Connection {
    stream: TcpStream,
    readiness: Readiness,
    outgoing: Outgoing,
    /// The beginning of an answer that has not come whole.
    unread: Vec<u8>,
    calls: Calls,
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        Connection {
            stream,
            readiness: Readiness::default(),
            outgoing: Outgoing::default(),
            unread: Vec::new(),
            calls: Calls::default(),
        }
    }
}

/// The calls in flight on one connection, each in the slot that the low bits of its id name.
#[derive(Default)]
struct Calls {
    slots: Vec<Call>,
    /// What the next id in a slot is larger by: the number of slots, rounded up to a power of two.
    stride: u32,
}

#[derive(Clone, Copy)]
struct Call {
    id: u32,
    /// Nanoseconds since the load began.
    sent_at: u64,
}

impl Calls {
    fn new(in_flight: u32, now: u64) -> Calls {
        let stride = in_flight.next_power_of_two();
        // From the second round on: some peers use id 0 for themselves.
        Calls { slots: (0..in_flight).map(|slot| Call { id: stride + slot, sent_at: now }).collect(), stride }
    }

    /// Takes the answered call out and puts the next one in its place. Returns its id, and when the
    /// answered one was sent.
    #[inline]
    fn replace(&mut self, answered: u32, now: u64) -> Option<(u32, u64)> {
        let next = self.following(answered);
        let call = self.slots.get_mut((answered & (self.stride - 1)) as usize)?;
        if call.id != answered {
            return None;
        }
        let sent_at = call.sent_at;
        *call = Call { id: next, sent_at: now };
        Some((next, sent_at))
    }

    /// The next id in the same slot, never one of the first round.
    #[inline]
    fn following(&self, id: u32) -> u32 {
        let next = (id + self.stride) & ID_MASK;
        if next < self.stride { next + self.stride } else { next }
    }
}

/// What all connections use in turn.
struct Caller {
    request: EchoRequest,
    input: Vec<u8>,
    output: Vec<u8>,
    began_at: Instant,
    latencies: Histogram<u64>,
}

impl Caller {
    fn new(options: &Options) -> Caller {
        Caller {
            request: EchoRequest::new(options.payload, PAYLOAD_BYTES),
            input: vec![0; options.read_bytes],
            output: Vec::with_capacity(options.read_bytes * 2),
            began_at: Instant::now(),
            latencies: latency_histogram(),
        }
    }

    fn now(&self) -> u64 {
        self.began_at.elapsed().as_nanos() as u64
    }

    fn start(&mut self, connection: &mut Connection, in_flight: u32) -> io::Result<()> {
        connection.calls = Calls::new(in_flight, self.now());
        for call in &connection.calls.slots {
            self.request.push(&mut self.output, call.id);
        }
        self.flush(connection)
    }

    /// One read, a new request for each answer, one write.
    fn receive(&mut self, connection: &mut Connection) -> io::Result<()> {
        let kept = connection.unread.len();
        self.input[..kept].copy_from_slice(&connection.unread);
        let room = &mut self.input[kept..];
        let count = match connection.stream.read(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if count < room.len() {
            connection.readiness.note_short_read();
        }
        let end = kept + count;
        let done = self.ask_anew(&mut connection.calls, end)?;
        connection.unread.clear();
        connection.unread.extend_from_slice(&self.input[done..end]);
        self.flush(connection)
    }

    /// Asks anew for each whole answer in the first `end` bytes of input; returns where the rest
    /// begins.
    fn ask_anew(&mut self, calls: &mut Calls, end: usize) -> io::Result<usize> {
        let now = self.now();
        let mut same = SameLatency { sent_at: now, count: 0 };
        let mut at = 0;
        while at < end {
            let answer = match wire::cut_answer(&self.input[at..end]) {
                Ok(answer) => answer,
                Err(Stop::Incomplete) => break,
                Err(Stop::Malformed) => {
                    return Err(wrong_answer("what came is not the answer of a call that succeeded"));
                }
            };
            let (id, sent_at) = checked(calls, &answer, now)?;
            self.request.push(&mut self.output, id);
            same.count(sent_at, now, &mut self.latencies);
            at += answer.message_bytes;
        }
        same.record(now, &mut self.latencies);
        Ok(at)
    }

    fn flush(&mut self, connection: &mut Connection) -> io::Result<()> {
        if !self.output.is_empty() {
            connection.outgoing.send(&mut connection.stream, &self.output)?;
            self.output.clear();
        }
        Ok(())
    }
}

#[inline]
fn checked(calls: &mut Calls, answer: &Answer, now: u64) -> io::Result<(u32, u64)> {
    if answer.payload_bytes != usize::from(PAYLOAD_BYTES) {
        return Err(wrong_answer("an answer's payload has another length than was sent"));
    }
    calls.replace(answer.id, now).ok_or_else(|| wrong_answer("an answer's id is not in flight"))
}

/// Answers in a row that were asked for in one write and came in one read. The histogram takes them
/// at once: at millions a second, entering each one would show.
struct SameLatency {
    sent_at: u64,
    count: u64,
}

impl SameLatency {
    #[inline]
    fn count(&mut self, sent_at: u64, now: u64, latencies: &mut Histogram<u64>) {
        if sent_at != self.sent_at {
            self.record(now, latencies);
            self.sent_at = sent_at;
        }
        self.count += 1;
    }

    fn record(&mut self, now: u64, latencies: &mut Histogram<u64>) {
        if self.count > 0 {
            latencies.saturating_record_n(now - self.sent_at, self.count);
            self.count = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once_and_only_with_its_whole_id() {
        let mut calls = Calls::new(3, 0);
        assert_eq!(calls.replace(5, 10), Some((9, 0)));
        assert_eq!(calls.replace(5, 20), None, "a duplicate");
        assert_eq!(calls.replace(7, 20), None, "slot 3 does not exist");
        assert_eq!(calls.replace(9, 20), Some((13, 10)));
    }

    #[test]
    fn ids_start_over_without_their_first_round() {
        let calls = Calls::new(4, 0);
        assert_eq!(calls.following(ID_MASK), 7);
        assert_eq!(calls.following(ID_MASK - 3), 4);
    }
}
