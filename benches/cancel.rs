//! How long does it take to cancel a tree of dhagas that wait for everything there is to wait for, until the last of them has
//! ended and nothing is held any more?
//!
//! Run: cargo run --release -p dhaga-benches --bin cancel

use std::error::Error;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::Parser;
use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::{Condvar, Mutex, Semaphore, channel, oneshot};
use dhaga::{Audit, Runtime, is_cancelled, scope};
use dhaga_benches::machine;

/// Cancels a tree of dhagas in all kinds of waits, again and again, and tells how long it takes until they have ended.
#[derive(Parser)]
struct Options {
    /// Dhagas that wait.
    #[arg(long, default_value_t = 10_000)]
    leaves: usize,
    /// Scopes within scopes above them, ten in each.
    #[arg(long, default_value_t = 2)]
    depth: u32,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Only the wait of this number, counted from 0.
    #[arg(long)]
    only: Option<usize>,
}

/// Much longer than a round.
const LONG: Duration = Duration::from_secs(3600);
const BRANCHES: usize = 10;
/// One leaf in so many has a connection of its own.
const CONNECTIONS_MAX: usize = 2_000;

/// What is waited for, in vain.
struct Things {
    empty: (channel::Sender<()>, channel::Receiver<()>),
    full: (channel::Sender<()>, channel::Receiver<()>),
    none_left: Semaphore,
    locked: Mutex<()>,
    unlocked: Mutex<()>,
    never: Condvar,
    listener: TcpListener,
    connections: Mutex<Vec<(TcpStream, std::net::TcpStream)>>,
    waiting: AtomicUsize,
    only: Option<usize>,
}

type Wait = fn(&Things);

const WAITS: [(&str, Wait); 11] = [
    ("sleep", |_| dhaga::sleep(LONG)),
    ("recv", |things| assert!(things.empty.1.recv().is_err())),
    ("send", |things| assert!(things.full.0.send(()).is_err())),
    ("recv with a timeout", |things| assert!(things.empty.1.recv_timeout(LONG).is_err())),
    ("semaphore", |things| assert!(things.none_left.acquire().is_err())),
    ("oneshot", |_| {
        let (_sender, receiver) = oneshot::channel::<()>();
        assert!(receiver.recv().is_err());
    }),
    ("lock with a timeout", |things| assert!(things.locked.lock_timeout(LONG).is_err())),
    ("condvar with a timeout", |things| {
        let guard = things.unlocked.lock().expect("nobody panicked");
        let waited = things.never.wait_timeout(guard, LONG).expect("nobody panicked");
        assert!(waited.1.timed_out());
    }),
    ("accept", |things| assert!(things.listener.accept().is_err())),
    ("read", |things| {
        let connection = things.connections.lock().expect("nobody panicked").pop();
        match connection {
            Some((mut stream, _peer)) => assert!(stream.read(&mut [0]).is_err()),
            None => dhaga::sleep(LONG),
        }
    }),
    ("scope", |_| scope(|s| drop(s.spawn(|| dhaga::sleep(LONG))))),
];

impl Things {
    fn new(connections: usize, only: Option<usize>) -> Result<Self, Box<dyn Error>> {
        let things = Self {
            empty: channel::bounded(1),
            full: channel::bounded(1),
            none_left: Semaphore::new(0),
            locked: Mutex::new(()),
            unlocked: Mutex::new(()),
            never: Condvar::new(),
            listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            connections: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            only,
        };
        things.full.0.send(())?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        for _ in 0..connections {
            let stream = TcpStream::connect(listener.local_addr()?)?;
            things.connections.lock().expect("nobody panicked").push((stream, listener.accept()?.0));
        }
        Ok(things)
    }

    /// Waits until it is cancelled, in the way that is this leaf's.
    fn wait(&self, leaf: usize) {
        let (name, wait) = WAITS[self.only.unwrap_or(leaf) % WAITS.len()];
        self.waiting.fetch_add(1, Ordering::SeqCst);
        wait(self);
        assert!(is_cancelled(), "a wait ended by itself: {name}");
    }

    /// The leaves from `first` on, below so many scopes.
    fn grow(&self, depth: u32, first: usize, leaves: usize) {
        scope(|s| {
            let parts = if depth == 0 { leaves } else { BRANCHES.min(leaves) };
            for part in 0..parts {
                let (from, to) = (leaves * part / parts, leaves * (part + 1) / parts);
                s.spawn(move || match depth {
                    0 => self.wait(first + from),
                    _ => self.grow(depth - 1, first + from, to - from),
                });
            }
        });
    }
}

/// From the cancel to the end of the last, and until nothing is held any more.
fn round(runtime: &Runtime, options: &Options) -> Result<(Duration, Duration), Box<dyn Error>> {
    let things = Arc::new(Things::new((options.leaves / WAITS.len()).min(CONNECTIONS_MAX), options.only)?);
    let (holds, is_held) = mpsc::channel();
    let (release, released) = oneshot::channel::<()>();
    let held = things.clone();
    let holder = runtime.spawn(move || {
        let _guard = held.locked.lock();
        holds.send(()).expect("the round waits");
        released.recv()
    });
    is_held.recv()?;
    let (roots, leaves, depth) = (things.clone(), options.leaves, options.depth);
    let tree = runtime.spawn(move || roots.grow(depth, 0, leaves));
    while things.waiting.load(Ordering::SeqCst) < options.leaves {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The last of them have said that they are about to wait.
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    tree.cancel();
    tree.join()?;
    let ended = began.elapsed();
    release.send(()).map_err(|()| "the holder of the lock has gone")?;
    holder.join()??;
    drop(things);
    while runtime.audit(LONG).ok_or("a worker does not answer")? != Audit::default() {
        std::thread::yield_now();
    }
    Ok((ended, began.elapsed()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    machine::raise_open_files()?;
    let runtime = Runtime::builder().workers(options.workers).build()?;
    println!(
        "{} dhagas wait in {} ways below {} levels of scopes, on {} workers",
        options.leaves,
        WAITS.len(),
        options.depth + 1,
        options.workers
    );
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        let (ended, released) = round(&runtime, &options)?;
        println!("all have ended {ended:.1?} after the cancel; nothing is held after {released:.1?}");
        times.push(ended);
    }
    times.sort();
    println!("median {:.1?}, slowest {:.1?}", times[times.len() / 2], times[times.len() - 1]);
    Ok(())
}
