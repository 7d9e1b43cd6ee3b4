//! Thousands of clients for the chat servers, in rooms, and every line is checked: what the move from std to Dhaga brings.
//!
//! Run: cargo build --release -p dhaga-examples --examples
//!      target/release/examples/chat_load --server chat
//!      target/release/examples/chat_load --server chat_dhaga
//!
//! It starts the server in a process of its own. In each round each client says a line, and goes on when it has heard all of
//! its room; so no outbox of the server's fills up. You will see lines a second, and the server's memory, threads and CPU time.

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::net::TcpStream;
use dhaga_examples::report::grouped;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Clients that connect at a time, so that the queue of the listener is not what is measured.
const CONNECTING: usize = 64;

/// How long a client may take to get in, and to hear its room in one round.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the server is left alone before its memory at rest is read.
const REST: Duration = Duration::from_millis(500);

/// Thousands of clients for a chat server.
#[derive(Parser)]
struct Options {
    /// The example to start: chat or chat_dhaga.
    #[arg(long, default_value = "chat_dhaga")]
    server: String,
    /// How many clients.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    clients: u64,
    /// Clients of a room; up to 100, which is less than half of an outbox.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100))]
    room: u64,
    /// Lines that each client says.
    #[arg(long, value_name = "N", default_value_t = 20)]
    rounds: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = open_files.maximum;
    setrlimit(Resource::Nofile, open_files)?;

    let (clients, room) = (options.clients as usize, options.room as usize);
    println!("{}: {} clients in rooms of {room}", options.server, grouped(options.clients));
    let server = Server::start(&options.server)?;
    let began = Instant::now();
    let members = enter(&server.addr, clients, room)?;
    println!("all are in after {:.1} s", began.elapsed().as_secs_f64());
    thread::sleep(REST);
    println!("server at rest: {}", server.status()?);

    let (began, cpu_before) = (Instant::now(), server.cpu()?);
    let members = talk(members, options.rounds)?;
    let (took, cpu) = (began.elapsed(), server.cpu()? - cpu_before);
    let lines = members.iter().flat_map(|member| &member.heard).sum::<usize>() as u64;
    println!("{} lines arrived, each once and in order, in {:.1} s", grouped(lines), took.as_secs_f64());
    println!("lines a second: {}", grouped((lines as f64 / took.as_secs_f64()) as u64));
    println!("server after that: {}", server.status()?);
    drop(members);
    println!("CPU time of the server for a line: {:.2} µs", cpu.as_secs_f64() * 1e6 / lines as f64);
    println!("{}", server.stop()?);
    Ok(())
}

/// Connects all clients and lets them join their rooms.
fn enter(addr: &str, clients: usize, room: usize) -> Result<Vec<Member>, Box<dyn Error>> {
    let next = AtomicUsize::new(0);
    let enter_some = || -> Result<Vec<Member>, String> {
        let mut members = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= clients {
                return Ok(members);
            }
            // The last room may be smaller.
            let seats = room.min(clients - number / room * room);
            let member = dhaga::within(PATIENCE, || Member::enter(addr, number / room, number % room, seats));
            members.push(member.map_err(|error| format!("client {number} does not get in: {error}"))?);
        }
    };
    let members: Vec<_> = dhaga::scope(|s| {
        let entering: Vec<_> = (0..CONNECTING).map(|_| s.spawn(enter_some)).collect();
        entering.into_iter().map(|handle| handle.join().expect("no client panics")).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(members.into_iter().flatten().collect())
}

/// Lets all clients talk, each in a dhaga of its own.
fn talk(members: Vec<Member>, rounds: usize) -> io::Result<Vec<Member>> {
    let talk = |mut member: Member| -> io::Result<Member> {
        for round in 0..rounds {
            dhaga::within(PATIENCE, || member.talk(round))?;
        }
        Ok(member)
    };
    dhaga::scope(|s| {
        let talking: Vec<_> = members.into_iter().map(|member| s.spawn(move || talk(member))).collect();
        talking.into_iter().map(|handle| handle.join().expect("no client panics")).collect()
    })
}

/// A client, in its room.
struct Member {
    stream: BufReader<TcpStream>,
    line: String,
    room: usize,
    /// How many lines of each member of the room were heard.
    heard: Vec<usize>,
}

impl Member {
    fn enter(addr: &str, room: usize, seat: usize, seats: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        let stream = BufReader::with_capacity(2048, stream);
        let mut member = Self { stream, line: String::new(), room, heard: vec![0; seats] };
        let name = name(room, seat);
        member.say(&format!("/name {name}\n/join room{room}\n"))?;
        let is_in = format!("* {name} is in room{room}");
        while member.hear()? != is_in {}
        Ok(member)
    }

    /// Says the line of a round, and hears that of each member.
    fn talk(&mut self, round: usize) -> io::Result<()> {
        self.say(&format!("{round}\n"))?;
        while self.heard.contains(&round) {
            let room = self.room;
            let line = self.hear()?;
            if line.starts_with("* ") {
                // Somebody came in.
                continue;
            }
            let (seat, number) = parse(line, room).ok_or_else(|| wrong(line))?;
            match self.heard.get_mut(seat) {
                Some(heard) if *heard == number => *heard += 1,
                _ => return Err(wrong(&self.line)),
            }
        }
        Ok(())
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(line.as_bytes())
    }

    fn hear(&mut self) -> io::Result<&str> {
        self.line.clear();
        match self.stream.read_line(&mut self.line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(self.line.trim_end()),
        }
    }
}

fn name(room: usize, seat: usize) -> String {
    format!("r{room}s{seat}")
}

/// The seat and the number of a line as `r7s3: 12`, if it is from this room.
fn parse(line: &str, room: usize) -> Option<(usize, usize)> {
    let (name, number) = line.split_once(": ")?;
    let (from, seat) = name.strip_prefix('r')?.split_once('s')?;
    (from.parse() == Ok(room)).then_some(())?;
    Some((seat.parse().ok()?, number.parse().ok()?))
}

fn wrong(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("a line too many, too few, or out of order: {line:?}"))
}

/// The server in its process.
struct Server {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    addr: String,
}

impl Server {
    /// Starts the example that lies beside this one.
    fn start(example: &str) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(std::env::current_exe()?.with_file_name(example))
            .args(["--addr", "127.0.0.1:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut server = Self { child, stdout, addr: String::new() };
        let line = server.line()?;
        server.addr = line.strip_prefix("listening on ").ok_or("the server does not listen")?.to_owned();
        Ok(server)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Its memory and its threads, as the kernel has them.
    fn status(&self) -> Result<String, Box<dyn Error>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_end_matches("kB").trim().parse().ok()
        };
        let [rss, peak, threads] = ["VmRSS:", "VmHWM:", "Threads:"].map(number);
        let missing = "the kernel does not tell";
        let (rss, peak) = (rss.ok_or(missing)? >> 10, peak.ok_or(missing)? >> 10);
        Ok(format!("{rss} MiB (at most {peak}), {} OS threads", grouped(threads.ok_or(missing)?)))
    }

    /// The CPU time that it has taken.
    fn cpu(&self) -> Result<Duration, Box<dyn Error>> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name of the program, in brackets, may hold anything.
        let (_, fields) = stat.rsplit_once(')').ok_or("a line of /proc without a name")?;
        let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = times.sum::<Result<_, _>>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64))
    }

    /// Ends it in order. Returns what it says last.
    fn stop(mut self) -> io::Result<String> {
        self.child.stdin.take().expect("it was asked for").write_all(b"stop\n")?;
        let last = self.line()?;
        self.child.wait()?;
        Ok(last)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
