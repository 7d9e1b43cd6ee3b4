//! A TCP proxy: each connection that comes is carried on to another address, both ways at once, by two dhagas.
//!
//! Run:  cargo run --release -p dhaga-examples --example tcp_proxy -- --to example.org:80
//! Then: connect to the address that it prints. At the end of each connection it prints how much went there and back.
//!
//! Who has said all, and shuts its half, is still answered: the end of one direction is passed on, and the other one goes on.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::{Semaphore, mpsc};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Bytes that are read at once, on the stack of who reads.
const BUFFER_BYTES: usize = 16 << 10;

/// Ends of connections that may wait to be printed. Then they wait to be told, and keep their places.
const REPORTS_MAX: usize = 64;

/// How long to wait when a connection could not be accepted: descriptors are used up until another one goes.
const PAUSE: Duration = Duration::from_millis(10);

/// Carries TCP connections on to another address.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, default_value = "127.0.0.1:0")]
    addr: String,
    /// Where to carry the connections to: HOST:PORT
    #[arg(long)]
    to: String,
    /// How long the other side may take to accept a connection, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    connect_ms: u64,
    /// Connections at once; more of them wait
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    connections: usize,
}

/// What was carried in each direction, in bytes.
#[derive(Default)]
struct Counters {
    there: AtomicU64,
    back: AtomicU64,
}

/// A connection that has ended.
struct Ended {
    client: SocketAddr,
    counters: Counters,
    result: io::Result<()>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    // A connection takes two descriptors, and the usual soft limit is 1024 of them.
    let mut open_files = getrlimit(Resource::Nofile);
    open_files.current = open_files.maximum;
    setrlimit(Resource::Nofile, open_files)?;

    let listener = TcpListener::bind(&options.addr)
        .map_err(|error| format!("cannot listen on {}: {error}; choose another with --addr", options.addr))?;
    println!("listening on {}", listener.local_addr()?);
    let (tell, ended) = mpsc::sync_channel(REPORTS_MAX);
    let proxy = dhaga::spawn(move || accept_all(&listener, &options, &tell));

    // Printing may block, so it is left to this plain thread.
    let (total, mut connections) = (Counters::default(), 0);
    for Ended { client, counters, result } in ended {
        connections += 1;
        total.add(&counters);
        let result = result.map_or_else(|error| error.to_string(), |()| "well".to_owned());
        println!("{client}: {counters}, ended {result}; in total {connections} connections, {total}");
    }
    proxy.join()?;
    Ok(())
}

fn accept_all(listener: &TcpListener, options: &Options, tell: &mpsc::SyncSender<Ended>) {
    let places = Arc::new(Semaphore::new(options.connections));
    while let Ok(place) = places.acquire_owned() {
        let Ok((stream, client)) = listener.accept() else {
            dhaga::sleep(PAUSE);
            continue;
        };
        let (to, timeout, tell) = (options.to.clone(), Duration::from_millis(options.connect_ms), tell.clone());
        let carry = move || {
            let counters = Counters::default();
            let result = serve(&stream, &to, timeout, &counters);
            drop(stream);
            // Nobody hears it when the program ends.
            let _ = tell.send(Ended { client, counters, result });
            drop(place);
        };
        dhaga::spawn(carry).detach();
    }
}

fn serve(client: &TcpStream, to: &str, timeout: Duration, counters: &Counters) -> io::Result<()> {
    // The deadline holds for all that is called here: the look-up of the name, and the attempt at each of its addresses.
    let server = dhaga::within(timeout, || TcpStream::connect(to))
        .map_err(|error| io::Error::new(error.kind(), format!("without a connection to {to}: {error}")))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    dhaga::scope(|scope| {
        let there = scope.spawn(|| carry(client, &server, &counters.there));
        let back = carry(&server, client, &counters.back);
        there.join().expect("nothing panics there").and(back)
    })
}

/// Carries one direction to its end, and passes the end on.
fn carry(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let carried = copy(from, to, count).and_then(|()| match to.shutdown(Shutdown::Write) {
        // It has gone, and nothing was left to tell it.
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
        done => done,
    });
    if carried.is_err() {
        // The other direction must not wait for who has gone. These fail only where there is nothing left to end.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
    carried
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64) -> io::Result<()> {
    let mut buffer = [0; BUFFER_BYTES];
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..len])?;
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}

impl Counters {
    fn add(&self, other: &Self) {
        for (sum, more) in [(&self.there, &other.there), (&self.back, &other.back)] {
            sum.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [there, back] = [&self.there, &self.back].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{there} bytes there, {back} back")
    }
}
