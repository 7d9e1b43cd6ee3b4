//! How late does a server answer at a fixed rate? An open loop: requests are due at fixed times, whatever has become of the
//! ones before, and a latency counts from the time at which its request was due. So a stall is seen by all that it delays.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga_benches::dial::dial;
use dhaga_benches::tail_protocol::Protocol;
use dhaga_benches::tail_work::Kind;
use dhaga_benches::window::{Load, Window, latency_histogram};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Asks at a fixed rate and reports how late the plain requests are answered, beside slow ones that are not reported.
///
/// It never polls in vain, whatever --doze-us says: it shares its processors with the server.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    window: Window,
    /// How many connections to open, each with one request in flight at most. A request that finds all of them busy waits
    /// for one, and its latency counts from when it was due.
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// What the server speaks.
    #[arg(long, value_enum, default_value = "raw")]
    protocol: Protocol,
    /// Requests a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// What the slow requests ask for.
    #[arg(long, value_enum, default_value = "plain")]
    slow: Kind,
    /// One request of so many is slow.
    #[arg(long, default_value_t = 100)]
    slow_every: u32,
}

const TIMER: Token = Token(usize::MAX);

fn main() -> io::Result<()> {
    let options = Options::parse();
    options.window.prepare()?;
    let mut load = OpenLoad::new(&options)?;
    options.window.run(&mut load)
}

/// What is to be sent, and since when.
#[derive(Clone, Copy)]
struct Request {
    kind: Kind,
    due_at: Instant,
}

struct Connection {
    stream: TcpStream,
    protocol: Protocol,
    asked: Request,
    last_id: u32,
    received: Vec<u8>,
}

/// A whole answer, and room to see that nothing follows.
const BUFFER_BYTES: usize = 256;

struct OpenLoad {
    poll: Poll,
    events: Events,
    timer: OwnedFd,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    /// Due, and no connection free.
    waiting: VecDeque<Request>,
    schedule: Schedule,
    latencies: Histogram<u64>,
    lateness: Histogram<u64>,
}

impl OpenLoad {
    fn new(options: &Options) -> io::Result<OpenLoad> {
        let poll = Poll::new()?;
        let schedule = Schedule::new(options);
        let mut connections = Vec::with_capacity(options.connections);
        let protocol = options.protocol;
        for stream in dial(options.window.addr, options.connections, |stream| protocol.call(stream))? {
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(connections.len()), Interest::READABLE)?;
            let asked = Request { kind: Kind::Plain, due_at: schedule.next_at };
            connections.push(Connection { stream, protocol, asked, last_id: 0, received: Vec::new() });
        }
        let timer = periodic_timer(schedule.interval)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(OpenLoad {
            poll,
            events: Events::with_capacity(1024),
            timer,
            idle: (0..connections.len()).collect(),
            connections,
            waiting: VecDeque::new(),
            schedule,
            latencies: latency_histogram(),
            lateness: latency_histogram(),
        })
    }

    fn send_what_is_due(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(request) = self.schedule.next_due(now) {
            match self.idle.pop_front() {
                Some(index) => {
                    let late = Instant::now().saturating_duration_since(request.due_at);
                    self.lateness.saturating_record(late.as_nanos() as u64);
                    self.connections[index].send(request)?;
                }
                None => self.waiting.push_back(request),
            }
        }
        Ok(())
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if !connection.receive()? {
            return Ok(());
        }
        let Request { kind, due_at } = connection.asked;
        if kind == Kind::Plain {
            self.latencies.saturating_record(due_at.elapsed().as_nanos() as u64);
        }
        match self.waiting.pop_front() {
            Some(request) => connection.send(request),
            None => {
                self.idle.push_back(index);
                Ok(())
            }
        }
    }
}

impl Load for OpenLoad {
    fn turn(&mut self, block_max: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(block_max)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        // Copied out, since to serve them takes all of this value.
        let ready: Vec<Token> = self.events.iter().map(|event| event.token()).collect();
        for token in ready {
            match token {
                TIMER => drain(&self.timer),
                Token(index) => self.receive(index)?,
            }
        }
        self.send_what_is_due()
    }

    fn latencies(&mut self) -> &mut Histogram<u64> {
        &mut self.latencies
    }

    fn lateness(&mut self) -> Option<&mut Histogram<u64>> {
        Some(&mut self.lateness)
    }
}

impl Connection {
    fn send(&mut self, request: Request) -> io::Result<()> {
        self.asked = request;
        self.last_id += 1;
        let message = self.protocol.request(request.kind, self.last_id);
        // The socket is empty, since the last message is back.
        if self.stream.write(&message)? == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads once; returns whether the answer is whole.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; BUFFER_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        let whole = self.protocol.is_whole(&self.received)?;
        if whole {
            self.received.clear();
        }
        Ok(whole)
    }
}

/// When requests are due, and which of them are slow.
struct Schedule {
    next_at: Instant,
    interval: Duration,
    slow: Kind,
    slow_every: u32,
    random: u64,
}

impl Schedule {
    fn new(options: &Options) -> Schedule {
        Schedule {
            next_at: Instant::now(),
            interval: Duration::from_secs(1) / options.rate.max(1),
            slow: options.slow,
            slow_every: options.slow_every.max(1),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn next_due(&mut self, now: Instant) -> Option<Request> {
        if self.next_at > now {
            return None;
        }
        let request = Request { kind: self.next_kind(), due_at: self.next_at };
        self.next_at += self.interval;
        Some(request)
    }

    /// By chance, so that slow ones also come two at a time; the same ones in each run.
    fn next_kind(&mut self) -> Kind {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if (self.random >> 32).is_multiple_of(u64::from(self.slow_every)) { self.slow } else { Kind::Plain }
    }
}

/// Wakes the loop at each due time; `epoll_wait` alone knows only milliseconds.
fn periodic_timer(interval: Duration) -> io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let interval = Timespec::try_from(interval).map_err(io::Error::other)?;
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: interval, it_value: interval })?;
    Ok(timer)
}

/// It tells how often it has fired, which the clock tells as well.
fn drain(timer: &OwnedFd) {
    let _ = rustix::io::read(timer, &mut [0; 8]);
}
