//! Whatever dhagas do, and however they end, nothing is left behind.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dhaga::net::{TcpListener, TcpStream};
use dhaga::sync::{Mutex, Semaphore, channel, oneshot};
use dhaga::{Audit, JoinError, JoinHandle, Runtime};

use crate::child;
use crate::common::DEADLINE;
use crate::seeded::{self, Dice};

/// Rounds, each with a runtime of its own, and dhagas that a round starts, their children apart: 10 000 in all.
const ROUNDS: u64 = 100;
const DHAGAS: u64 = 100;
/// How deep dhagas start dhagas.
const DEPTH_MAX: u32 = 3;

/// What the dhagas of one round share.
struct World {
    sender: channel::Sender<Counted>,
    receiver: channel::Receiver<Counted>,
    semaphore: Semaphore,
    mutex: Mutex<u64>,
    listener: TcpListener,
    address: SocketAddr,
    /// Messages that live.
    messages: Arc<AtomicUsize>,
}

/// A message that is counted while it lives.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl World {
    fn new(dice: &mut Dice) -> Arc<Self> {
        let (sender, receiver) = channel::bounded(dice.below(4) as usize + 1);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let semaphore = Semaphore::new(dice.below(3) as usize);
        Arc::new(Self {
            sender,
            receiver,
            semaphore,
            mutex: Mutex::new(0),
            listener,
            address,
            messages: Arc::default(),
        })
    }
}

/// One dhaga's life: a few steps of any kind.
fn live(world: &Arc<World>, mut dice: Dice, depth: u32) {
    for _ in 0..dice.below(4) + 1 {
        step(world, &mut dice, depth);
    }
}

fn step(world: &Arc<World>, dice: &mut Dice, depth: u32) {
    let short = Duration::from_nanos(dice.below(300_000));
    match dice.below(if depth < DEPTH_MAX { 16 } else { 11 }) {
        0 => dhaga::sleep(short),
        1 => (0..dice.below(20)).for_each(|_| dhaga::yield_now()),
        2 => drop(world.receiver.recv_timeout(short)),
        3 => drop(world.sender.send_timeout(Counted::new(&world.messages), short)),
        4 => match world.semaphore.acquire_timeout(short) {
            Ok(_permit) => dhaga::yield_now(),
            Err(_) => world.semaphore.add_permits(1),
        },
        5 => {
            let guard = world.mutex.lock_timeout(short);
            dhaga::sleep(short / 4);
            drop(guard);
        }
        6 => panic!("as the dice fell"),
        7 => talk(world, short),
        8 => drop(world.listener.accept().map(|(_, _)| ())),
        9 => drop(dhaga::blocking(move || thread::sleep(short / 8))),
        10 => await_nobody(dice.below(2) == 0, short),
        kind => start(world, dice, depth, kind, short),
    }
}

/// Connects and waits for a byte that never comes.
fn talk(world: &World, short: Duration) {
    if let Ok(mut stream) = TcpStream::connect_timeout(&world.address, short.max(Duration::from_micros(1))) {
        stream.set_read_timeout(Some(short.max(Duration::from_micros(1)))).expect("no timeout of zero");
        let _ = stream.read(&mut [0]);
    }
}

/// Waits for a message that nobody sends: the sender goes, which leaves a timer to disarm, or the time is soon over.
fn await_nobody(goes: bool, short: Duration) {
    let (sender, mut receiver) = oneshot::channel::<()>();
    if goes {
        let goes = dhaga::spawn(move || drop(sender));
        receiver.recv_timeout(2 * DEADLINE).expect_err("nobody sends");
        drop(goes);
    } else {
        receiver.recv_timeout(short).expect_err("nobody sends");
        drop(sender);
    }
}

/// The steps that start further dhagas.
fn start(world: &Arc<World>, dice: &mut Dice, depth: u32, kind: u64, short: Duration) {
    let child = |dice: &mut Dice| {
        let (world, dice) = (world.clone(), dice.split());
        move || live(&world, dice, depth + 1)
    };
    match kind {
        11 => drop(dhaga::spawn(child(dice)).join_timeout(short)),
        12 => {
            let (handle, sleeper) = (dhaga::spawn(child(dice)), dhaga::spawn(|| dhaga::sleep(2 * DEADLINE)));
            for handle in [handle, sleeper] {
                handle.cancel();
                let _ = handle.join();
            }
        }
        13 => dhaga::scope(|s| {
            let first = s.spawn(child(dice));
            drop(s.spawn(child(dice)));
            first.cancel();
        }),
        14 => drop(dhaga::spawn_local(child(dice)).join()),
        _ => dhaga::spawn(child(dice)).detach(),
    }
}

/// What a join may say of a dhaga of which nobody knows how it ends.
fn check_end(handle: JoinHandle<()>) {
    match handle.join() {
        Ok(()) | Err(JoinError::NeverRan | JoinError::Unwound) => {}
        Err(JoinError::Panicked(panic)) => {
            let known = ["as the dice fell", "a scoped dhaga panicked"];
            assert!(known.iter().any(|text| panic.message().contains(text)), "{panic:?}");
        }
        Err(error) => panic!("the join of a plain thread was stopped: {error}"),
    }
}

/// Waits until all that the runtime held is back; the deadline makes a leak a failure.
fn settles(runtime: &Runtime) {
    let started = Instant::now();
    loop {
        let audit = runtime.audit(DEADLINE).expect("every worker answers");
        if audit == Audit::default() {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "left behind: {audit:?}");
        thread::yield_now();
    }
}

fn round(mut dice: Dice) {
    let workers = dice.below(3) as usize + 1;
    let runtime = Runtime::builder().workers(workers).build().expect("a test can start a runtime");
    let world = World::new(&mut dice);
    let messages = world.messages.clone();
    let mut handles = Vec::new();
    for _ in 0..DHAGAS {
        let (world, child) = (world.clone(), dice.split());
        let handle = runtime.spawn(move || live(&world, child, 0));
        match dice.below(4) {
            0 => handle.detach(),
            1 => {
                handle.cancel();
                handles.push(handle);
            }
            _ => handles.push(handle),
        }
    }
    if dice.below(2) == 0 {
        // Whoever accepts ends when a client comes: so many come that all do.
        let is_over = Arc::new(AtomicUsize::new(0));
        let knocks = knock(world.address, is_over.clone());
        handles.into_iter().for_each(check_end);
        drop(world);
        settles(&runtime);
        is_over.store(1, Ordering::SeqCst);
        knocks.join().expect("it ends");
        runtime.shutdown(DEADLINE).expect("nothing is left to unwind");
    } else {
        drop(world);
        runtime.shutdown(DEADLINE).expect("all unwind");
        handles.into_iter().for_each(check_end);
    }
    assert_eq!(messages.load(Ordering::SeqCst), 0, "messages live on");
}

/// A plain thread that connects again and again.
fn knock(address: SocketAddr, is_over: Arc<AtomicUsize>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while is_over.load(Ordering::SeqCst) == 0 {
            // Refused once the listener is gone.
            let _ = std::net::TcpStream::connect(address);
            thread::sleep(Duration::from_micros(100));
        }
    })
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("the kernel tells").count()
}

/// Threads, those of the blocking pool apart, which stay for a while.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the kernel tells").flatten();
    let names = tasks.map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| !name.starts_with("dhaga-block")).count()
}

fn falls_to(count: fn() -> usize, before: usize) {
    let started = Instant::now();
    while count() > before {
        assert!(started.elapsed() < DEADLINE, "{} are left and {before} were there before", count());
        thread::yield_now();
    }
}

#[test]
fn ten_thousand_lives_leave_nothing_behind() {
    child::succeeds_in(child::name_of!(ten_thousand_lives_leave_nothing_behind), 3 * DEADLINE, || {
        std::panic::set_hook(Box::new(|info| {
            if !info.to_string().contains("as the dice fell") && !info.to_string().contains("scoped dhaga panicked") {
                eprintln!("{info}");
            }
        }));
        let (before_descriptors, before_threads) = (descriptors(), threads());
        seeded::rounds(ROUNDS, round);
        falls_to(descriptors, before_descriptors);
        falls_to(threads, before_threads);
    });
}
