//! The waits themselves.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use dhaga::net::unix::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use dhaga::net::{TcpListener, TcpStream, UdpSocket, Watched, lookup_host_by};
use dhaga::park::{Unparker, WaitReason, park as park_here, unparker};
use dhaga::process::{Child, ChildStdin, ChildStdout, Command};
use dhaga::sync::{
    Barrier, Condvar, Mutex, Once, OnceLock, RwLock, Semaphore, WaitGroup, broadcast, channel, oneshot, watch,
};
use dhaga::{Builder, JoinHandle};
use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::table::rows;
use super::{Ended, Manner, Wait};

/// Much longer than a test may take.
const LONG: Duration = Duration::from_secs(3600);

rows! {
    park: Park, "`park::park`";
    sleep: Sleep, "`sleep`, `sleep_until`";
    yield_now: Yield, "`yield_now`";
    join: Join, "`JoinHandle::join`";
    scope: Scope, "the end of a `scope`";
    mutex: MutexLock, "`Mutex::lock`";
    mutex_timeout: MutexTimeout, "`Mutex::lock_timeout`";
    rwlock_read: RwLockRead, "`RwLock::read`";
    rwlock_write: RwLockWrite, "`RwLock::write`";
    rwlock_read_timeout: RwLockReadTimeout, "`RwLock::read_timeout`";
    rwlock_write_timeout: RwLockWriteTimeout, "`RwLock::write_timeout`";
    condvar: CondvarWait, "`Condvar::wait`";
    condvar_timeout: CondvarTimeout, "`Condvar::wait_timeout`";
    barrier: BarrierWait, "`Barrier::wait`";
    once: OnceWait, "`Once::call_once`, `OnceLock::get_or_init`, `LazyLock`";
    once_lock: OnceLockWait, "`OnceLock::wait`";
    wait_group: WaitGroupWait, "`WaitGroup::wait`";
    wait_group_timeout: WaitGroupTimeout, "`WaitGroup::wait_timeout`";
    semaphore: SemaphoreAcquire, "`Semaphore::acquire`";
    semaphore_timeout: SemaphoreTimeout, "`Semaphore::acquire_timeout`";
    send: Send, "`channel`: `send` on a full one";
    send_timeout: SendTimeout, "`channel`: `send_timeout`";
    rendezvous: Rendezvous, "`channel`: `send` on a `rendezvous`";
    recv: Recv, "`channel`: `recv`";
    recv_timeout: RecvTimeout, "`channel`: `recv_timeout`, `recv_deadline`";
    oneshot_recv: OneshotRecv, "`oneshot`: `recv`, `recv_timeout`";
    broadcast_recv: BroadcastRecv, "`broadcast`: `recv`, `recv_timeout`";
    watch_changed: WatchChanged, "`watch`: `changed`, `wait_for`";
    select: SelectRecv, "`select!` and `Select`";
    thread_park: ThreadPark, "`thread::park`";
    interval: Tick, "`Interval::tick`";
    accept: Accept, "`TcpListener::accept`";
    connect: Connect, "`TcpStream::connect`";
    connect_several: ConnectSeveral, "`TcpStream::connect` to several addresses";
    lookup: Lookup, "`lookup_host`, and every address that is a host name";
    read: ReadSocket, "`TcpStream`: `read`, `peek`";
    write: WriteSocket, "`TcpStream`: `write`";
    udp_recv: UdpRecv, "`UdpSocket`: `recv`, `recv_from`, `peek`, `peek_from`";
    unix_accept: UnixAccept, "`UnixListener::accept`";
    unix_connect: UnixConnect, "`UnixStream::connect` to a full backlog";
    unix_read: UnixRead, "`UnixStream`: `read`";
    unix_write: UnixWrite, "`UnixStream`: `write`";
    datagram_recv: DatagramRecv, "`UnixDatagram`: `recv`, `recv_from`";
    datagram_send: DatagramSend, "`UnixDatagram`: `send`";
    datagram_send_to: DatagramSendTo, "`UnixDatagram`: `send_to`";
    watched_readable: WatchedReadable, "`Watched`: `readable`, `read_with`";
    watched_writable: WatchedWritable, "`Watched`: `writable`, `write_with`";
    child_wait: ChildWait, "`process::Child`: `wait`, `wait_with_output`";
    pipe_read: PipeRead, "`ChildStdout`, `ChildStderr`: `read`";
    pipe_write: PipeWrite, "`ChildStdin`: `write`";
    signal_recv: SignalRecv, "`Signal::recv`, `Signals::recv`, `ctrl_c`";
    blocking: Blocking, "`blocking`";
    block_on: BlockOn, "`block_on`";
    try_block_on: TryBlockOn, "`try_block_on`";
}

struct Park(StdMutex<Option<Unparker>>, AtomicBool);

impl Wait for Park {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(StdMutex::default(), AtomicBool::new(false))
    }

    fn wait(&self) -> Ended {
        *self.0.lock().expect("nobody panicked") = Some(unparker());
        while !self.1.load(Ordering::SeqCst) {
            park_here(WaitReason::Park);
        }
        Ended::Done
    }

    fn wake(&self) {
        self.1.store(true, Ordering::SeqCst);
        if let Some(unparker) = &*self.0.lock().expect("nobody panicked") {
            unparker.unpark();
        }
    }
}

/// Time cannot be brought about: so short a sleep is woken by the clock, and so long a one only by its scope.
struct Sleep(AtomicBool);

impl Wait for Sleep {
    const MANNER: Manner = Manner::Returns;
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn wait(&self) -> Ended {
        let is_short = self.0.load(Ordering::SeqCst) || dhaga::deadline().is_none() && !dhaga::current().is_dhaga();
        dhaga::sleep(if is_short { Duration::from_millis(1) } else { Duration::from_millis(50) });
        Ended::Done
    }

    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Yield;

impl Wait for Yield {
    const MANNER: Manner = Manner::Returns;
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        Self
    }

    fn wait(&self) -> Ended {
        dhaga::yield_now();
        Ended::Done
    }

    fn wake(&self) {}
}

/// A gate that a dhaga or a thread waits behind until the test opens it.
struct Gate(StdMutex<Option<oneshot::Sender<()>>>);

impl Gate {
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(sender).into()), receiver)
    }

    fn open(&self) {
        if let Some(sender) = self.0.lock().expect("nobody panicked").take() {
            // Whoever waited may have been unwound.
            let _ = sender.send(());
        }
    }
}

struct Join {
    gate: Gate,
    handle: StdMutex<Option<JoinHandle<()>>>,
}

impl Wait for Join {
    fn new() -> Self {
        let (gate, opened) = Gate::new();
        let child = Builder::new().detached().spawn(move || opened.recv().expect("the gate opens"));
        Self { gate, handle: Some(child.expect("there is room")).into() }
    }

    fn wait(&self) -> Ended {
        let handle = self.handle.lock().expect("nobody panicked").take().expect("one joins at a time");
        match handle.join() {
            Err(dhaga::JoinError::Stopped(why, handle)) => {
                *self.handle.lock().expect("nobody panicked") = Some(handle);
                why.into()
            }
            joined => joined.into(),
        }
    }

    fn wake(&self) {
        self.gate.open();
        let has_ended = || self.handle.lock().expect("nobody panicked").as_ref().is_none_or(JoinHandle::is_finished);
        while !has_ended() {
            thread::yield_now();
        }
    }
}

/// Its dhaga waits for what cannot fail.
struct Scope {
    gate: WaitGroup,
}

impl Wait for Scope {
    const MANNER: Manner = Manner::GoesOn;
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        let gate = WaitGroup::new();
        gate.add(1);
        Self { gate }
    }

    fn wait(&self) -> Ended {
        dhaga::scope(|s| drop(s.spawn(|| self.gate.wait())));
        Ended::Done
    }

    fn wake(&self) {
        self.gate.done();
    }
}

/// Holds something on a plain thread until the test says so.
struct Holder {
    gate: mpsc::Sender<()>,
    thread: StdMutex<Option<thread::JoinHandle<()>>>,
}

impl Holder {
    fn new<G>(hold: impl FnOnce() -> G + std::marker::Send + 'static) -> Self {
        let (gate, opened) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let held = hold();
            tell.send(()).expect("the test listens");
            // Also when the test has failed.
            let _ = opened.recv();
            drop(held);
        });
        told.recv().expect("it holds");
        Self { gate, thread: Some(thread).into() }
    }

    fn release(&self) {
        if let Some(thread) = self.thread.lock().expect("nobody panicked").take() {
            self.gate.send(()).expect("it holds");
            thread.join().expect("it lets go");
        }
    }
}

/// A lock that is held, and how to wait for it.
macro_rules! held_lock {
    ($($name:ident: $lock:ty, $manner:ident, |$held:ident| $hold:expr, |$wanted:ident| $wait:expr;)+) => {
        $(
            struct $name($lock, Holder);

            impl Wait for $name {
                const MANNER: Manner = Manner::$manner;

                fn new() -> Self {
                    let lock = <$lock>::default();
                    let held = lock.clone();
                    let holder = Holder::new(move || {
                        let $held: &'static _ = Box::leak(Box::new(held));
                        $hold.expect("nobody panicked")
                    });
                    Self(lock, holder)
                }

                fn wait(&self) -> Ended {
                    let $wanted = &self.0;
                    match $wait {
                        Ok(_guard) => Ended::Done,
                        Err(error) => error.into(),
                    }
                }

                fn wake(&self) {
                    self.1.release();
                }
            }
        )+
    };
}

impl<T> From<std::sync::PoisonError<T>> for Ended {
    fn from(_: std::sync::PoisonError<T>) -> Self {
        Self::Otherwise("poisoned")
    }
}

held_lock! {
    MutexLock: Arc<Mutex<()>>, GoesOn, |lock| lock.lock(), |lock| lock.lock();
    MutexTimeout: Arc<Mutex<()>>, Fails, |lock| lock.lock(), |lock| lock.lock_timeout(LONG);
    RwLockRead: Arc<RwLock<()>>, GoesOn, |lock| lock.write(), |lock| lock.read();
    RwLockWrite: Arc<RwLock<()>>, GoesOn, |lock| lock.read(), |lock| lock.write();
    RwLockReadTimeout: Arc<RwLock<()>>, Fails, |lock| lock.write(), |lock| lock.read_timeout(LONG);
    RwLockWriteTimeout: Arc<RwLock<()>>, Fails, |lock| lock.read(), |lock| lock.write_timeout(LONG);
}

struct Flag(Mutex<bool>, Condvar);

impl Flag {
    fn new() -> Self {
        Self(Mutex::new(false), Condvar::new())
    }

    fn raise(&self) {
        *self.0.lock().expect("nobody panicked") = true;
        self.1.notify_all();
    }
}

struct CondvarWait(Flag);

impl Wait for CondvarWait {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(Flag::new())
    }

    fn wait(&self) -> Ended {
        let Flag(flag, changed) = &self.0;
        let mut is_raised = flag.lock().expect("nobody panicked");
        while !*is_raised {
            is_raised = changed.wait(is_raised).expect("nobody panicked");
        }
        Ended::Done
    }

    fn wake(&self) {
        self.0.raise();
    }
}

struct CondvarTimeout(Flag);

impl Wait for CondvarTimeout {
    fn new() -> Self {
        Self(Flag::new())
    }

    fn wait(&self) -> Ended {
        let Flag(flag, changed) = &self.0;
        let mut is_raised = flag.lock().expect("nobody panicked");
        while !*is_raised {
            let waited = changed.wait_timeout(is_raised, LONG).expect("nobody panicked");
            is_raised = waited.0;
            if let Some(why) = waited.1.interrupt() {
                return why.into();
            }
        }
        Ended::Done
    }

    fn wake(&self) {
        self.0.raise();
    }
}

/// Of two, the other comes on a plain thread.
struct BarrierWait(Arc<Barrier>);

impl Wait for BarrierWait {
    const MANNER: Manner = Manner::GoesOn;
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        Self(Arc::new(Barrier::new(2)))
    }

    fn wait(&self) -> Ended {
        self.0.wait();
        Ended::Done
    }

    fn wake(&self) {
        let barrier = self.0.clone();
        thread::spawn(move || barrier.wait());
    }

    /// Whoever had come counts.
    fn wake_again(&self) {}
}

/// Somebody else initialises.
struct OnceWait(Arc<Once>, Holder);

impl Wait for OnceWait {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        let once = Arc::new(Once::new());
        let (tell, told) = mpsc::channel();
        let (gate, opened) = mpsc::channel();
        let initialised = once.clone();
        let thread = thread::spawn(move || {
            initialised.call_once(|| {
                tell.send(()).expect("the test listens");
                let _ = opened.recv();
            });
        });
        told.recv().expect("it has begun");
        Self(once, Holder { gate, thread: Some(thread).into() })
    }

    fn wait(&self) -> Ended {
        self.0.call_once(|| panic!("it is initialised once"));
        Ended::Done
    }

    fn wake(&self) {
        self.1.release();
    }
}

struct OnceLockWait(OnceLock<()>);

impl Wait for OnceLockWait {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(OnceLock::new())
    }

    fn wait(&self) -> Ended {
        self.0.wait();
        Ended::Done
    }

    fn wake(&self) {
        self.0.set(()).expect("it is set once");
    }
}

fn group_of_one() -> WaitGroup {
    let group = WaitGroup::new();
    group.add(1);
    group
}

struct WaitGroupWait(WaitGroup);

impl Wait for WaitGroupWait {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(group_of_one())
    }

    fn wait(&self) -> Ended {
        self.0.wait();
        Ended::Done
    }

    fn wake(&self) {
        self.0.done();
    }
}

struct WaitGroupTimeout(WaitGroup);

impl Wait for WaitGroupTimeout {
    fn new() -> Self {
        Self(group_of_one())
    }

    fn wait(&self) -> Ended {
        self.0.wait_timeout(LONG).into()
    }

    fn wake(&self) {
        self.0.done();
    }
}

struct SemaphoreAcquire(Semaphore);

impl Wait for SemaphoreAcquire {
    fn new() -> Self {
        Self(Semaphore::new(0))
    }

    fn wait(&self) -> Ended {
        self.0.acquire().map(drop).into()
    }

    fn wake(&self) {
        self.0.add_permits(1);
    }
}

struct SemaphoreTimeout(Semaphore);

impl Wait for SemaphoreTimeout {
    fn new() -> Self {
        Self(Semaphore::new(0))
    }

    fn wait(&self) -> Ended {
        self.0.acquire_timeout(LONG).map(drop).into()
    }

    fn wake(&self) {
        self.0.add_permits(1);
    }
}

type Channel = (channel::Sender<()>, channel::Receiver<()>);

fn full() -> Channel {
    let channel = channel::bounded(1);
    channel.0.send(()).expect("there is room");
    channel
}

struct Send(Channel);

impl Wait for Send {
    fn new() -> Self {
        Self(full())
    }

    fn wait(&self) -> Ended {
        self.0.0.send(()).into()
    }

    fn wake(&self) {
        self.0.1.try_recv().expect("it was full");
    }
}

struct SendTimeout(Channel);

impl Wait for SendTimeout {
    fn new() -> Self {
        Self(full())
    }

    fn wait(&self) -> Ended {
        self.0.0.send_timeout((), LONG).into()
    }

    fn wake(&self) {
        self.0.1.try_recv().expect("it was full");
    }
}

/// A receiver comes on a plain thread.
struct Rendezvous(Channel);

impl Wait for Rendezvous {
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        Self(channel::rendezvous())
    }

    fn wait(&self) -> Ended {
        self.0.0.send(()).into()
    }

    fn wake(&self) {
        let receiver = self.0.1.clone();
        thread::spawn(move || receiver.recv());
    }
}

struct Recv(Channel);

impl Wait for Recv {
    fn new() -> Self {
        Self(channel::bounded(1))
    }

    fn wait(&self) -> Ended {
        self.0.1.recv().into()
    }

    fn wake(&self) {
        self.0.0.try_send(()).expect("there is room");
    }
}

struct RecvTimeout(Channel);

impl Wait for RecvTimeout {
    fn new() -> Self {
        Self(channel::bounded(1))
    }

    fn wait(&self) -> Ended {
        self.0.1.recv_timeout(LONG).into()
    }

    fn wake(&self) {
        self.0.0.try_send(()).expect("there is room");
    }
}

struct OneshotRecv(Gate, StdMutex<Option<oneshot::Receiver<()>>>);

impl Wait for OneshotRecv {
    fn new() -> Self {
        let (gate, receiver) = Gate::new();
        Self(gate, Some(receiver).into())
    }

    fn wait(&self) -> Ended {
        /// Puts the receiver back for the next wait, also when this one is unwound.
        struct Lent<'a>(&'a OneshotRecv, Option<oneshot::Receiver<()>>);
        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                *self.0.1.lock().expect("nobody panicked") = self.1.take();
            }
        }
        let receiver = self.1.lock().expect("nobody panicked").take();
        let mut lent = Lent(self, receiver);
        lent.1.as_mut().expect("one waits at a time").recv_timeout(LONG).into()
    }

    fn wake(&self) {
        self.0.open();
    }
}

struct BroadcastRecv(broadcast::Sender<()>, Mutex<broadcast::Receiver<()>>);

impl Wait for BroadcastRecv {
    fn new() -> Self {
        let (sender, receiver) = broadcast::channel(4);
        Self(sender, Mutex::new(receiver))
    }

    fn wait(&self) -> Ended {
        match self.1.lock().expect("nobody panicked").recv() {
            Ok(()) => Ended::Done,
            Err(broadcast::RecvError::Interrupted(why)) => why.into(),
            Err(_) => Ended::Otherwise("broadcast::RecvError"),
        }
    }

    fn wake(&self) {
        self.0.send(()).expect("the receiver is there");
    }
}

struct WatchChanged(watch::Sender<u32>, Mutex<watch::Receiver<u32>>);

impl Wait for WatchChanged {
    fn new() -> Self {
        let (sender, receiver) = watch::channel(0);
        Self(sender, Mutex::new(receiver))
    }

    fn wait(&self) -> Ended {
        self.1.lock().expect("nobody panicked").changed().into()
    }

    fn wake(&self) {
        self.0.send(1).expect("the receiver is there");
    }
}

struct SelectRecv(Channel, Channel);

impl Wait for SelectRecv {
    fn new() -> Self {
        Self(channel::bounded(1), channel::bounded(1))
    }

    fn wait(&self) -> Ended {
        let (first, second) = (&self.0.1, &self.1.1);
        dhaga::select! {
            recv(first) -> message => message.into(),
            recv(second) -> message => message.into(),
            after(LONG) => Ended::Otherwise("hours have passed"),
            interrupted(why) => why.into(),
        }
    }

    fn wake(&self) {
        self.1.0.try_send(()).expect("there is room");
    }
}

/// With a flag beside the token: a park may end early.
struct ThreadPark(StdMutex<Option<dhaga::thread::Thread>>, AtomicBool);

impl Wait for ThreadPark {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(StdMutex::default(), AtomicBool::new(false))
    }

    fn wait(&self) -> Ended {
        *self.0.lock().expect("nobody panicked") = Some(dhaga::thread::current());
        while !self.1.load(Ordering::SeqCst) {
            dhaga::thread::park();
        }
        Ended::Done
    }

    fn wake(&self) {
        self.1.store(true, Ordering::SeqCst);
        if let Some(waiter) = &*self.0.lock().expect("nobody panicked") {
            waiter.unpark();
        }
    }
}

/// Beats until it is told that this was the last one.
struct Tick(AtomicBool);

impl Wait for Tick {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn wait(&self) -> Ended {
        loop {
            let is_last = self.0.load(Ordering::SeqCst);
            let pause = if is_last { Duration::ZERO } else { Duration::from_millis(20) };
            if let Err(why) = dhaga::interval_at(std::time::Instant::now() + pause, LONG).tick() {
                return why.into();
            }
            if is_last {
                return Ended::Done;
            }
        }
    }

    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Accept(TcpListener, StdMutex<Vec<std::net::TcpStream>>);

impl Wait for Accept {
    const AT_SHUTDOWN: Ended = Ended::ShuttingDown;

    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        Self(listener, StdMutex::default())
    }

    fn wait(&self) -> Ended {
        self.0.accept().map(drop).into()
    }

    fn wake(&self) {
        let address = self.0.local_addr().expect("it is bound");
        let stream = std::net::TcpStream::connect(address).expect("the backlog has room");
        self.1.lock().expect("nobody panicked").push(stream);
    }
}

/// A listener whose backlog is full: the kernel drops what more comes, and the client sends it again a second later.
struct Connect {
    listener: OwnedFd,
    address: std::net::SocketAddr,
    in_the_way: StdMutex<Vec<OwnedFd>>,
}

impl Wait for Connect {
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        let any = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&listener, &any).expect("a port is free");
        listen(&listener, 0).expect("it can listen");
        let address = rustix::net::getsockname(&listener).expect("it is bound");
        let address = std::net::SocketAddr::try_from(address).expect("it is an address of IPv4");
        let in_the_way = (0..2).map(|_| {
            let client = rustix::net::socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                rustix::net::SocketFlags::NONBLOCK,
                None,
            );
            let client = client.expect("a socket");
            // It is under way, or done.
            let _ = connect(&client, &address);
            client
        });
        let in_the_way = StdMutex::new(in_the_way.collect());
        Self { listener, address, in_the_way }
    }

    fn wait(&self) -> Ended {
        TcpStream::connect(self.address).map(drop).into()
    }

    fn wake(&self) {
        for _ in 0..self.in_the_way.lock().expect("nobody panicked").drain(..).len() {
            rustix::net::accept(self.listener.as_fd()).expect("they wait");
        }
    }
}

/// Nobody answers at either address, until one does at the second.
struct ConnectSeveral(Connect, Connect);

impl Wait for ConnectSeveral {
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        Self(Connect::new(), Connect::new())
    }

    fn wait(&self) -> Ended {
        TcpStream::connect(&[self.0.address, self.1.address][..]).map(drop).into()
    }

    fn wake(&self) {
        self.1.wake();
    }
}

/// A resolver that answers when the test says so.
struct Lookup {
    host: String,
    gate: StdMutex<Option<mpsc::Sender<()>>>,
    opened: Arc<StdMutex<mpsc::Receiver<()>>>,
}

impl Wait for Lookup {
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (gate, opened) = mpsc::channel();
        // Who asks for the same name shares the answer.
        let host = format!("wait-{}", NEXT.fetch_add(1, Ordering::SeqCst));
        Self { host, gate: Some(gate).into(), opened: Arc::new(opened.into()) }
    }

    fn wait(&self) -> Ended {
        let opened = self.opened.clone();
        // Once the gate has opened it stays so.
        let resolve = move |_: &str| {
            let opened = opened.lock().expect("nobody panicked");
            assert!(opened.recv().is_err(), "nothing is sent");
            Ok(Vec::new())
        };
        lookup_host_by(&self.host, 80, resolve).map(drop).into()
    }

    fn wake(&self) {
        drop(self.gate.lock().expect("nobody panicked").take());
    }
}

fn connected() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    (stream, listener.accept().expect("it has connected").0)
}

struct ReadSocket(TcpStream, std::net::TcpStream);

impl Wait for ReadSocket {
    fn new() -> Self {
        let (stream, peer) = connected();
        Self(stream, peer)
    }

    fn wait(&self) -> Ended {
        (&self.0).read_exact(&mut [0]).into()
    }

    fn wake(&self) {
        (&self.1).write_all(&[1]).expect("there is room");
    }
}

/// Its buffers are full.
struct WriteSocket(TcpStream, std::net::TcpStream);

impl Wait for WriteSocket {
    fn new() -> Self {
        let (stream, peer) = connected();
        stream.set_nonblocking(true).expect("it can be set");
        while (&stream).write(&[0; 1 << 16]).is_ok() {}
        while (&stream).write(&[0]).is_ok() {}
        stream.set_nonblocking(false).expect("it can be set");
        Self(stream, peer)
    }

    fn wait(&self) -> Ended {
        (&self.0).write_all(&[0]).into()
    }

    fn wake(&self) {
        let _ = self.1.set_read_timeout(Some(Duration::from_millis(100)));
        while (&self.1).read(&mut [0; 1 << 16]).is_ok_and(|count| count > 0) {}
    }
}

struct UdpRecv(UdpSocket, std::net::UdpSocket);

impl Wait for UdpRecv {
    fn new() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let peer = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        peer.connect(socket.local_addr().expect("it is bound")).expect("it is there");
        Self(socket, peer)
    }

    fn wait(&self) -> Ended {
        self.0.recv_from(&mut [0]).map(drop).into()
    }

    fn wake(&self) {
        self.1.send(&[1]).expect("there is room");
    }
}

/// An abstract address that the kernel chooses.
fn any_name() -> SocketAddr {
    SocketAddr::from_pathname("").expect("it is an address")
}

struct UnixAccept(UnixListener, StdMutex<Vec<StdUnixStream>>);

impl Wait for UnixAccept {
    const AT_SHUTDOWN: Ended = Ended::ShuttingDown;

    fn new() -> Self {
        Self(UnixListener::bind_addr(&any_name()).expect("a name is free"), StdMutex::default())
    }

    fn wait(&self) -> Ended {
        self.0.accept().map(drop).into()
    }

    fn wake(&self) {
        let address = self.0.local_addr().expect("it is bound");
        let stream = StdUnixStream::connect_addr(&address).expect("the backlog has room");
        self.1.lock().expect("nobody panicked").push(stream);
    }
}

/// The backlog has room for one, who is there.
struct UnixConnect {
    listener: StdUnixListener,
    address: SocketAddr,
    _in_the_way: StdUnixStream,
}

impl Wait for UnixConnect {
    fn new() -> Self {
        let listener = StdUnixListener::bind_addr(&any_name()).expect("a name is free");
        listen(&listener, 0).expect("it can listen");
        let address = listener.local_addr().expect("it is bound");
        let in_the_way = StdUnixStream::connect_addr(&address).expect("there is room for one");
        Self { listener, address, _in_the_way: in_the_way }
    }

    fn wait(&self) -> Ended {
        UnixStream::connect_addr(&self.address).map(drop).into()
    }

    fn wake(&self) {
        self.listener.accept().expect("one waits");
    }
}

struct UnixRead(UnixStream, UnixStream);

impl Wait for UnixRead {
    fn new() -> Self {
        let (stream, peer) = UnixStream::pair().expect("sockets can be had");
        Self(stream, peer)
    }

    fn wait(&self) -> Ended {
        (&self.0).read_exact(&mut [0]).into()
    }

    fn wake(&self) {
        (&self.1).write_all(&[1]).expect("there is room");
    }
}

/// Takes all that is there.
fn drain<T>(mut attempt: impl FnMut() -> std::io::Result<T>) {
    while attempt().is_ok() {}
}

struct UnixWrite(UnixStream, UnixStream);

impl Wait for UnixWrite {
    fn new() -> Self {
        let (stream, peer) = UnixStream::pair().expect("sockets can be had");
        stream.set_nonblocking(true).expect("it can be set");
        peer.set_nonblocking(true).expect("it can be set");
        drain(|| (&stream).write(&[0; 1 << 16]));
        stream.set_nonblocking(false).expect("it can be set");
        Self(stream, peer)
    }

    fn wait(&self) -> Ended {
        (&self.0).write_all(&[0]).into()
    }

    fn wake(&self) {
        drain(|| (&self.1).read(&mut [0; 1 << 16]));
    }
}

struct DatagramRecv(UnixDatagram, UnixDatagram);

impl Wait for DatagramRecv {
    fn new() -> Self {
        let (socket, peer) = UnixDatagram::pair().expect("sockets can be had");
        Self(socket, peer)
    }

    fn wait(&self) -> Ended {
        self.0.recv_from(&mut [0]).map(drop).into()
    }

    fn wake(&self) {
        self.1.send(&[1]).expect("there is room");
    }
}

struct DatagramSend(UnixDatagram, UnixDatagram);

/// A receiver, and a sender that is connected with it: its queue is full.
fn full_queue() -> (UnixDatagram, UnixDatagram) {
    let receiver = UnixDatagram::bind_addr(&any_name()).expect("a name is free");
    let sender = UnixDatagram::unbound().expect("a socket can be had");
    sender.connect_addr(&receiver.local_addr().expect("it is bound")).expect("it is there");
    sender.set_nonblocking(true).expect("it can be set");
    receiver.set_nonblocking(true).expect("it can be set");
    drain(|| sender.send(&[0; 100]));
    sender.set_nonblocking(false).expect("it can be set");
    (sender, receiver)
}

impl Wait for DatagramSend {
    fn new() -> Self {
        let (sender, receiver) = full_queue();
        Self(sender, receiver)
    }

    fn wait(&self) -> Ended {
        self.0.send(&[0]).map(drop).into()
    }

    fn wake(&self) {
        drain(|| self.1.recv(&mut [0]));
    }
}

struct DatagramSendTo(UnixDatagram, UnixDatagram);

impl Wait for DatagramSendTo {
    fn new() -> Self {
        let (_, receiver) = full_queue();
        Self(UnixDatagram::unbound().expect("a socket can be had"), receiver)
    }

    fn wait(&self) -> Ended {
        self.0.send_to_addr(&[0], &self.1.local_addr().expect("it is bound")).map(drop).into()
    }

    fn wake(&self) {
        drain(|| self.1.recv(&mut [0]));
    }
}

struct WatchedReadable(Watched<PipeReader>, PipeWriter);

impl Wait for WatchedReadable {
    fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe can be had");
        Self(Watched::new(reader).expect("pipes have the mode"), writer)
    }

    fn wait(&self) -> Ended {
        self.0.readable().into()
    }

    fn wake(&self) {
        (&self.1).write_all(&[1]).expect("there is room");
    }
}

/// It is full.
struct WatchedWritable(Watched<PipeWriter>, Watched<PipeReader>);

impl Wait for WatchedWritable {
    fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe can be had");
        let writer = Watched::new(writer).expect("pipes have the mode");
        drain(|| writer.get_ref().write(&[0; 1 << 12]));
        Self(writer, Watched::new(reader).expect("pipes have the mode"))
    }

    fn wait(&self) -> Ended {
        self.0.write_with(|mut pipe| pipe.write(&[0])).map(drop).into()
    }

    fn wake(&self) {
        drain(|| self.1.get_ref().read(&mut [0; 1 << 16]));
    }
}

struct ChildWait(Mutex<Child>, Pid);

impl Wait for ChildWait {
    fn new() -> Self {
        let child = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("it can sleep");
        let id = Pid::from_raw(child.id().cast_signed()).expect("an id is not 0");
        Self(Mutex::new(child), id)
    }

    fn wait(&self) -> Ended {
        self.0.lock().expect("nobody panicked").wait().map(drop).into()
    }

    fn wake(&self) {
        kill_process(self.1, Signal::KILL).expect("nobody has waited to its end");
        // It takes a moment to die. Whoever waits may be faster than we.
        let _ = waitid(WaitId::Pid(self.1), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    }
}

struct PipeRead(ChildStdout, PipeWriter);

impl Wait for PipeRead {
    fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe can be had");
        Self(OwnedFd::from(reader).into(), writer)
    }

    fn wait(&self) -> Ended {
        (&self.0).read_exact(&mut [0]).into()
    }

    fn wake(&self) {
        (&self.1).write_all(&[1]).expect("there is room");
    }
}

/// It is full.
struct PipeWrite(ChildStdin, Watched<PipeReader>);

impl Wait for PipeWrite {
    fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe can be had");
        let writer = Watched::new(writer).expect("pipes have the mode");
        drain(|| writer.get_ref().write(&[0; 1 << 12]));
        Self(OwnedFd::from(writer.into_inner()).into(), Watched::new(reader).expect("pipes have the mode"))
    }

    fn wait(&self) -> Ended {
        (&self.0).write_all(&[0]).into()
    }

    fn wake(&self) {
        drain(|| self.1.get_ref().read(&mut [0; 1 << 16]));
    }
}

/// A real-time signal that no other test of this process uses.
struct SignalRecv(Mutex<dhaga::signal::Signals>, libc::c_int);

impl Wait for SignalRecv {
    fn new() -> Self {
        static USED: AtomicI32 = AtomicI32::new(0);
        let number = libc::SIGRTMIN() + USED.fetch_add(1, Ordering::Relaxed);
        assert!(number <= libc::SIGRTMAX(), "there are no more of them");
        let kind = dhaga::signal::SignalKind::from_raw(number);
        Self(Mutex::new(dhaga::signal::Signals::new([kind]).expect("it can be waited for")), number)
    }

    fn wait(&self) -> Ended {
        self.0.lock().expect("nobody panicked").recv().map(drop).into()
    }

    fn wake(&self) {
        // SAFETY: the signal exists, and its handler is ours since `new`. It has run when this returns.
        assert_eq!(unsafe { libc::raise(self.1) }, 0);
    }
}

/// The closure waits on its pool thread.
struct Blocking {
    gate: StdMutex<Option<mpsc::Sender<()>>>,
    opened: Arc<StdMutex<mpsc::Receiver<()>>>,
}

impl Wait for Blocking {
    const ALWAYS_SUSPENDS: bool = true;

    fn new() -> Self {
        let (gate, opened) = mpsc::channel();
        Self { gate: Some(gate).into(), opened: Arc::new(opened.into()) }
    }

    fn wait(&self) -> Ended {
        let opened = self.opened.clone();
        // Once the gate has opened it stays so.
        let closure = move || {
            let opened = opened.lock().expect("nobody panicked");
            assert!(opened.recv().is_err(), "nothing is sent");
        };
        dhaga::blocking(closure).into()
    }

    fn wake(&self) {
        drop(self.gate.lock().expect("nobody panicked").take());
    }
}

/// A future that is ready when the test says so.
#[derive(Default)]
struct Promise(StdMutex<(bool, Vec<Waker>)>);

impl Promise {
    fn fulfil(&self) {
        let wakers = {
            let mut promise = self.0.lock().expect("nobody panicked");
            promise.0 = true;
            std::mem::take(&mut promise.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Future for &Promise {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut promise = self.0.lock().expect("nobody panicked");
        if promise.0 {
            return Poll::Ready(());
        }
        promise.1.push(context.waker().clone());
        Poll::Pending
    }
}

struct BlockOn(Promise);

impl Wait for BlockOn {
    const MANNER: Manner = Manner::GoesOn;

    fn new() -> Self {
        Self(Promise::default())
    }

    fn wait(&self) -> Ended {
        dhaga::block_on(&self.0);
        Ended::Done
    }

    fn wake(&self) {
        self.0.fulfil();
    }
}

struct TryBlockOn(Promise);

impl Wait for TryBlockOn {
    fn new() -> Self {
        Self(Promise::default())
    }

    fn wait(&self) -> Ended {
        dhaga::try_block_on(&self.0).into()
    }

    fn wake(&self) {
        self.0.fulfil();
    }
}
