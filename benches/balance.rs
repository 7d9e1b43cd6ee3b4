//! Does a program that is written as for threads use all workers alike?
//!
//! Run: cargo run --release -p dhaga-benches --bin balance

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};

/// One accept loop that spawns a dhaga a connection, and one dhaga that spawns a burst: who does the work?
#[derive(Parser)]
struct Options {
    /// Worker threads of the server.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Connections, which all echo all the time.
    #[arg(long, default_value_t = 400)]
    connections: usize,
    /// Seconds of echoing.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Dhagas of the burst.
    #[arg(long, default_value_t = 10_000)]
    burst: usize,
}

/// What each OS thread has done.
type Shares = Arc<Mutex<HashMap<ThreadId, u64>>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let server = dhaga::Runtime::builder().workers(options.workers).name("server").build()?;
    let (connections, requests) = accept_loop(&server, &options)?;
    print("connections of one accept loop", &connections);
    print("requests on them", &requests);
    print("small dhagas of one burst", &burst(&server, options.burst, Duration::ZERO)?);
    print("dhagas of one burst, 20 us of work each", &burst(&server, options.burst, Duration::from_micros(20))?);
    Ok(())
}

/// Serves an echo as on threads. Returns connections and requests by OS thread.
fn accept_loop(server: &dhaga::Runtime, options: &Options) -> Result<(Vec<u64>, Vec<u64>), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (connections, requests) = (Shares::default(), Shares::default());
    let (accepted, answered) = (connections.clone(), requests.clone());
    let accepting = server.spawn(move || {
        // Until it is cancelled.
        while let Ok((stream, _)) = listener.accept() {
            let (accepted, answered) = (accepted.clone(), answered.clone());
            dhaga::spawn(move || serve(stream, &accepted, &answered)).detach();
        }
    });
    load(address, options)?;
    accepting.cancel();
    accepting.join()?;
    Ok((sorted(&connections), sorted(&requests)))
}

fn serve(mut stream: TcpStream, accepted: &Shares, answered: &Shares) -> std::io::Result<()> {
    count(accepted, 1);
    let (mut buffer, mut requests) = ([0; 64], 0);
    let result = loop {
        match stream.read_exact(&mut buffer) {
            Ok(()) => requests += 1,
            Err(error) => break Err(error),
        }
        stream.write_all(&buffer)?;
    };
    count(answered, requests);
    result
}

/// Echoes on all connections until the time is over, from one worker of its own.
fn load(address: std::net::SocketAddr, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let clients = dhaga::Runtime::builder().workers(1).name("load").build()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let failed = Arc::new(AtomicU64::new(0));
    let connections = options.connections;
    let (over, failures) = (is_over.clone(), failed.clone());
    let clients = clients.spawn(move || {
        let client = move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let mut buffer = [7; 64];
            while !over.load(Ordering::Relaxed) {
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
            }
            Ok(())
        };
        let clients: Vec<_> = (0..connections).map(|_| dhaga::spawn(client.clone())).collect();
        for client in clients {
            if !matches!(client.join(), Ok(Ok(()))) {
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    thread::sleep(Duration::from_secs_f64(options.seconds));
    is_over.store(true, Ordering::Relaxed);
    clients.join()?;
    match failed.load(Ordering::Relaxed) {
        0 => Ok(()),
        failed => Err(format!("{failed} of {connections} clients failed").into()),
    }
}

/// Spawns many from one dhaga. Returns how many ran on each OS thread.
fn burst(server: &dhaga::Runtime, count_of: usize, work: Duration) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let shares = Shares::default();
    let counted = shares.clone();
    server
        .spawn(move || {
            let one = move || {
                let began = Instant::now();
                while began.elapsed() < work {}
                count(&counted, 1);
            };
            let burst: Vec<_> = (0..count_of).map(|_| dhaga::spawn(one.clone())).collect();
            burst.into_iter().for_each(|one| one.join().expect("to count cannot panic"));
        })
        .join()?;
    Ok(sorted(&shares))
}

fn count(shares: &Shares, by: u64) {
    *shares.lock().expect("nobody panics with it").entry(thread::current().id()).or_default() += by;
}

fn sorted(shares: &Shares) -> Vec<u64> {
    let mut counts: Vec<_> = shares.lock().expect("nobody panics with it").values().copied().collect();
    counts.sort_unstable();
    counts
}

fn print(what: &str, counts: &[u64]) {
    let (least, most) = (counts.first().copied().unwrap_or(0), counts.last().copied().unwrap_or(0));
    println!("{what:<42} by worker: {counts:?}, least / most {:.2}", least as f64 / most as f64);
}
