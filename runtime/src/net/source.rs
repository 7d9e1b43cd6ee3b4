//! A socket and its readiness: try, and wait where the attempt would block. Every socket call of the runtime passes here.

mod polls;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::around;
use crate::coroutine::prefetch_lines;
use crate::future::word;
use crate::interrupt::{Interrupt, ShuttingDown};
use crate::park::{self, Parked, WaitReason};
use crate::reactor::{Direction, Left, OnReady, Readiness, Seen};
use crate::run_queue::{Address, Injector, Message};
use crate::scheduler::{Worker, now, running, worker};
use crate::task::TaskRef;

pub(crate) use self::polls::Place;

/// Between attempts of which no event tells that they would succeed: the shortest pause, doubled up to the longest. So an
/// idle wait costs a hundred attempts a second, and a short one is late by as much again at most.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// First and longest pause of accepts in a row that find no descriptor left: short enough for a passing shortage, long enough
/// to cost nothing in a lasting one.
const SHORTAGE_PAUSE_MIN: Duration = Duration::from_millis(5);
const SHORTAGE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A non-blocking descriptor that dhagas of any worker, and plain threads, can wait for. It is registered once, with the
/// worker of the first dhaga that waits for it, and stays there.
///
/// What each attempt and wait touches comes first, so that most sources have it in one cache line.
#[repr(C)]
pub(crate) struct Source<S: AsFd> {
    /// Above the socket, so that it is dropped first: out of the interest list before the descriptor is closed. epoll would
    /// keep a stale token if the descriptor had a duplicate.
    registration: Registration,
    read_timeout: Timeout,
    write_timeout: Timeout,
    /// The user asked for `WouldBlock` instead of a wait.
    is_nonblocking: AtomicBool,
    /// Accepts in a row that found no descriptor left.
    shortages: AtomicU8,
    socket: S,
}

/// How long one wait may take. Nanoseconds; 0: for ever.
#[derive(Default)]
struct Timeout(AtomicU64);

impl Timeout {
    fn set(&self, timeout: Option<Duration>) {
        // A time beyond what can be counted is for ever, and told as such, as the kernel's is.
        let nanos = timeout.and_then(|timeout| u64::try_from(timeout.as_nanos()).ok()).unwrap_or(0);
        self.0.store(nanos, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

/// Who tells of a source's events, if anybody does.
#[derive(Default)]
struct Registration {
    readiness: Arc<Readiness>,
    /// Boxed, since only the last owner reads it.
    home: Mutex<Option<Box<Home>>>,
}

/// Where a source is registered.
#[derive(Clone, Copy)]
struct Home {
    injector: &'static Injector,
    token: usize,
    descriptor: RawFd,
}

/// How an operation waits.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) direction: Direction,
    pub(crate) reason: WaitReason,
    pub(crate) timeout: Option<Duration>,
}

impl<S: AsFd> Source<S> {
    /// Takes a socket that is in non-blocking mode already.
    pub(crate) fn new(socket: S) -> Self {
        Self {
            registration: Registration::default(),
            socket,
            is_nonblocking: AtomicBool::new(false),
            shortages: AtomicU8::new(0),
            read_timeout: Timeout::default(),
            write_timeout: Timeout::default(),
        }
    }

    /// Asks the processor for what an attempt will touch besides the source itself.
    #[inline]
    pub(crate) fn bring_near(&self) {
        prefetch_lines(Arc::as_ptr(&self.registration.readiness).addr(), 1);
    }

    pub(crate) fn socket(&self) -> &S {
        &self.socket
    }

    /// Gives the socket back, which nobody watches any more.
    pub(crate) fn into_socket(self) -> S {
        let Self { registration, socket, .. } = self;
        drop(registration);
        socket
    }

    pub(crate) fn set_timeout(&self, direction: Direction, timeout: Option<Duration>) {
        self.timeout_of(direction).set(timeout);
    }

    #[inline]
    pub(crate) fn timeout(&self, direction: Direction) -> Option<Duration> {
        self.timeout_of(direction).get()
    }

    #[inline]
    fn timeout_of(&self, direction: Direction) -> &Timeout {
        match direction {
            Direction::Read => &self.read_timeout,
            Direction::Write => &self.write_timeout,
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.is_nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.is_nonblocking.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn reading(&self) -> Manner {
        Manner { direction: Direction::Read, reason: WaitReason::Read, timeout: self.timeout(Direction::Read) }
    }

    #[inline]
    pub(crate) fn writing(&self) -> Manner {
        Manner { direction: Direction::Write, reason: WaitReason::Write, timeout: self.timeout(Direction::Write) }
    }

    /// Attempts until the result is other than `WouldBlock`, and waits in between. `is_drained` says of a success whether
    /// another attempt would block.
    #[inline]
    pub(crate) fn io<T>(
        &self,
        manner: Manner,
        mut attempt: impl FnMut(&S) -> io::Result<T>,
        is_drained: impl Fn(&T) -> bool,
    ) -> io::Result<T> {
        let mut turn = Turn { readiness: &self.registration.readiness, direction: manner.direction, owes_turn: false };
        let mut deadline = None;
        loop {
            if manner.reason == WaitReason::Accept && around::is_shutting_down() {
                park::spend();
                return Err(io::Error::other(ShuttingDown));
            }
            let seen = self.registration.readiness.look();
            // A wait asks for itself what stands against it.
            if !would_surely_block(seen, manner.direction) {
                park::spend();
                park::check_attempt()?;
                if let Some(done) = self.attempt_after(seen, manner.direction, &mut attempt, &is_drained) {
                    return done;
                }
            }
            if self.is_nonblocking() {
                return Err(self.refuse_to_wait());
            }
            let own = *deadline.get_or_insert_with(|| manner.timeout.and_then(around::after));
            if self.wait(manner, own, &mut turn)? == Parked::TimedOut {
                park::check()?;
                if own.is_some_and(|own| own <= now()) {
                    // As std on Unix: a socket's own timeout is `WouldBlock`, a scope's deadline is `TimedOut`.
                    return self.last_attempt(manner.direction, attempt, is_drained);
                }
            }
        }
    }

    /// As [`Source::io`], to accept. Where no descriptor is left, the first accept says so at once, and the next ones in a row
    /// try again after a pause before they do, so that a loop which goes on after an error does not spin. The direction stays
    /// ready meanwhile: the connection is still there, and no event will tell of it again.
    pub(crate) fn accept<T>(&self, mut attempt: impl FnMut(&S) -> io::Result<T>) -> io::Result<T> {
        let manner = Manner { direction: Direction::Read, reason: WaitReason::Accept, timeout: None };
        let mut accepted = self.io(manner, &mut attempt, |_| false);
        if accepted.as_ref().is_err_and(is_shortage) && self.pause_in_shortage()? {
            accepted = self.io(manner, &mut attempt, |_| false);
        }
        self.forget_shortages(&accepted);
        accepted
    }

    /// Counts a shortage. Returns whether it has paused, and another attempt is due.
    #[cold]
    fn pause_in_shortage(&self) -> Result<bool, Interrupt> {
        let Some(pause) = self.count_shortage().filter(|_| !self.is_nonblocking()) else {
            return Ok(false);
        };
        park::check()?;
        park::park_until(WaitReason::Accept, park::earliest(around::after(pause)));
        Ok(true)
    }

    /// Counts a shortage. Returns the pause before another attempt, unless it is the first in a row.
    fn count_shortage(&self) -> Option<Duration> {
        let before = self.shortages.load(Ordering::Relaxed);
        self.shortages.store(before.saturating_add(1), Ordering::Relaxed);
        let doublings = before.checked_sub(1)?.min(16);
        Some(SHORTAGE_PAUSE_MIN.saturating_mul(1 << doublings).min(SHORTAGE_PAUSE_MAX))
    }

    fn forget_shortages<T>(&self, accepted: &io::Result<T>) {
        if accepted.is_ok() && self.shortages.load(Ordering::Relaxed) > 0 {
            self.shortages.store(0, Ordering::Relaxed);
        }
    }

    /// As [`Source::io`] for what the kernel answers at once, whether the socket is ready or not: to write nothing, or to read
    /// into nothing.
    #[cold]
    pub(crate) fn io_at_once<T>(&self, mut attempt: impl FnMut(&S) -> io::Result<T>) -> io::Result<T> {
        park::spend();
        park::check_attempt()?;
        loop {
            match attempt(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// One attempt without a wait. `None`: it would block; if the readiness bit says so, no system call is made.
    #[inline]
    pub(crate) fn attempt<T>(
        &self,
        direction: Direction,
        attempt: &mut impl FnMut(&S) -> io::Result<T>,
        is_drained: &impl Fn(&T) -> bool,
    ) -> Option<io::Result<T>> {
        let seen = self.registration.readiness.look();
        if would_surely_block(seen, direction) {
            return None;
        }
        self.attempt_after(seen, direction, attempt, is_drained)
    }

    /// As [`Source::attempt`], for who has looked.
    #[inline]
    fn attempt_after<T>(
        &self,
        seen: Seen,
        direction: Direction,
        attempt: &mut impl FnMut(&S) -> io::Result<T>,
        is_drained: &impl Fn(&T) -> bool,
    ) -> Option<io::Result<T>> {
        loop {
            match attempt(&self.socket) {
                Ok(value) => {
                    if is_drained(&value) {
                        self.registration.readiness.clear(seen, direction);
                    }
                    return Some(Ok(value));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.registration.readiness.clear_blocked(seen, direction);
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// What becomes of an operation that may not wait: it counts as an attempt.
    #[cold]
    fn refuse_to_wait(&self) -> io::Error {
        park::spend();
        park::check_attempt().map_or_else(io::Error::from, |()| would_block())
    }

    /// A wake may have come together with the timeout: what is there is taken.
    #[cold]
    fn last_attempt<T>(
        &self,
        direction: Direction,
        mut attempt: impl FnMut(&S) -> io::Result<T>,
        is_drained: impl Fn(&T) -> bool,
    ) -> io::Result<T> {
        self.attempt(direction, &mut attempt, &is_drained).unwrap_or_else(|| Err(would_block()))
    }

    /// Waits until the direction may be ready. May return early.
    pub(crate) fn wait(&self, manner: Manner, own: Option<Instant>, turn: &mut Turn<'_>) -> io::Result<Parked> {
        let me = running();
        let deadline = match me {
            Some((_, task)) if around::is_undisturbed(&task) => own,
            _ => disturbed_wait(own)?,
        };
        // Nobody unwinds here, as was seen: a dhaga parks.
        match me {
            Some(me) => self.wait_in_dhaga(manner, deadline, me, turn),
            None => self.wait_on_thread(manner.direction, deadline),
        }
    }

    /// As [`Source::wait`], once, for who attempts by itself.
    pub(crate) fn wait_once(&self, manner: Manner) -> io::Result<()> {
        let mut turn = Turn { readiness: &self.registration.readiness, direction: manner.direction, owes_turn: false };
        self.wait(manner, manner.timeout.and_then(around::after), &mut turn)?;
        Ok(park::check()?)
    }

    #[inline(always)]
    fn wait_in_dhaga(
        &self,
        manner: Manner,
        deadline: Option<Instant>,
        (worker, task): (&Worker, TaskRef),
        turn: &mut Turn<'_>,
    ) -> io::Result<Parked> {
        let readiness = &self.registration.readiness;
        if !readiness.look().is_registered() {
            self.register(worker)?;
        }
        let me = worker.address(&task);
        if !readiness.enqueue(manner.direction, me) {
            return Ok(Parked::Woken);
        }
        task.expect_event(ptr::from_ref(self).cast(), Arc::as_ptr(readiness).cast());
        let queued = Queued { readiness, direction: manner.direction, me, turn };
        let parked = park::park_dhaga(worker, task, manner.reason, deadline);
        drop(queued);
        Ok(parked)
    }

    #[cold]
    fn wait_on_thread(&self, direction: Direction, deadline: Option<Instant>) -> io::Result<Parked> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
        // A time beyond what the kernel can count is for ever.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut descriptors = [PollFd::new(&self.socket, flags_of(direction))];
        match poll(&mut descriptors, left.as_ref()) {
            Ok(0) => Ok(Parked::TimedOut),
            Ok(_) | Err(Errno::INTR) => Ok(Parked::Woken),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an attempt would succeed, as the kernel says. A bit that says so may be out of date.
    pub(crate) fn is_ready_by_now(&self, direction: Direction) -> bool {
        let seen = self.registration.readiness.look();
        if would_surely_block(seen, direction) {
            return false;
        }
        let is_ready = is_ready_in_kernel(&self.socket, flags_of(direction));
        if !is_ready {
            self.registration.readiness.clear_blocked(seen, direction);
        }
        is_ready
    }

    /// Waits until an attempt would succeed, as the kernel says.
    pub(crate) fn become_ready(&self, manner: Manner) -> io::Result<()> {
        let flags = flags_of(manner.direction);
        let look = |socket: &S| {
            is_ready_in_kernel(socket, flags).then_some(()).ok_or_else(|| io::ErrorKind::WouldBlock.into())
        };
        self.io(manner, look, |()| false)
    }

    /// As [`Source::io`] where no event tells that an attempt would succeed: it is repeated after pauses.
    pub(crate) fn io_by_pauses<T>(
        &self,
        manner: Manner,
        mut attempt: impl FnMut(&S) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut pause = PAUSE_MIN;
        let mut deadline = None;
        loop {
            park::spend();
            park::check_attempt()?;
            match attempt(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.is_nonblocking() => {}
                done => return done,
            }
            let own = *deadline.get_or_insert_with(|| manner.timeout.and_then(around::after));
            if own.is_some_and(|own| own <= now()) {
                return Err(would_block());
            }
            park::check()?;
            park::park_until(manner.reason, park::earliest(own.into_iter().chain(around::after(pause)).min()));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// For what was done to the socket that the kernel tells nobody of: who waits tries again.
    pub(crate) fn rouse(&self, direction: Direction) {
        if let Some(first) = self.registration.readiness.set_ready(direction) {
            park::unpark_dhaga(first);
        }
        self.registration.readiness.take_futures(direction).into_iter().for_each(word::wake);
    }

    /// Queues a dhaga of this worker, or of another, for the next event. Returns false if one may have come already.
    pub(crate) fn enlist(&self, direction: Direction, me: Address) -> io::Result<bool> {
        self.ensure_registered()?;
        Ok(self.registration.readiness.enqueue(direction, me))
    }

    /// Leaves that queue. One event may stand for many connections to accept: if others wait, the next one's turn comes.
    pub(crate) fn withdraw(&self, direction: Direction, me: Address) {
        let owes_turn = self.registration.readiness.dequeue(direction, me) == Left::WokenBeforeOthers;
        drop(Turn { readiness: &self.registration.readiness, direction, owes_turn });
    }

    /// What `poll(2)` watches in one direction.
    pub(crate) fn polled(&self, direction: Direction) -> (BorrowedFd<'_>, PollFlags) {
        (self.socket.as_fd(), flags_of(direction))
    }

    fn ensure_registered(&self) -> io::Result<()> {
        if self.registration.readiness.look().is_registered() {
            return Ok(());
        }
        worker().map_or(Ok(()), |worker| self.register(worker))
    }

    #[cold]
    fn register(&self, worker: &Worker) -> io::Result<()> {
        let registered = self.try_to_register(worker);
        if registered.is_err() {
            // Whoever has looked meanwhile took it for registered, and may wait for an event of it.
            self.rouse(Direction::Read);
            self.rouse(Direction::Write);
        }
        registered
    }

    fn try_to_register(&self, worker: &Worker) -> io::Result<()> {
        // The user's code, if it is a type of theirs, and so before the lock.
        let descriptor = self.socket.as_fd().as_raw_fd();
        let Registration { readiness, home } = &self.registration;
        let mut home = home.lock().unwrap_or_else(PoisonError::into_inner);
        if !readiness.look().is_registered() {
            let token = worker.register(descriptor, readiness)?;
            *home = Some(Box::new(Home { injector: worker.injector, token, descriptor }));
        }
        Ok(())
    }

    /// Calls `callback` for each event that makes the socket readable, from now on, on the caller's worker, or on another of
    /// its runtime while that one is late. What is there already counts as an event.
    pub(crate) fn on_ready(&self, callback: Arc<dyn OnReady>) -> io::Result<()> {
        self.registration.readiness.set_callback(Some(callback.clone()));
        if let Some(worker) = worker() {
            worker.shared.expect_callbacks();
        }
        if self.registration.readiness.look().is_registered() {
            if self.registration.readiness.look().is_ready(Direction::Read) {
                callback.on_ready();
            }
            return Ok(());
        }
        let registered = worker().map(|worker| self.register(worker));
        registered
            .unwrap_or_else(|| Err(io::Error::other("on_ready was called on a plain thread, which has no reactor")))
    }

    /// Whether an attempt may succeed, as far as is known.
    pub(crate) fn is_ready(&self, direction: Direction) -> bool {
        self.registration.readiness.look().is_ready(direction)
    }

    /// Drops the callback, which may own this source.
    pub(crate) fn stop_callbacks(&self) {
        self.registration.readiness.set_callback(None);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let home = self.home.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(home) = home.filter(|_| self.readiness.look().is_registered()) else {
            return;
        };
        let Home { injector, token, descriptor } = *home;
        injector.deregister(descriptor);
        let is_here = worker().filter(|worker| ptr::eq(worker.injector, injector)).map(|worker| worker.forget(token));
        if is_here.is_none() {
            // A reactor that has gone has forgotten already.
            let _ = injector.push(Message::Forget(token));
        }
    }
}

/// Whether a socket was refused because the process or the machine has no descriptors or memory left: it has nothing to do
/// with the peer, and is over some time.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.map(Errno::raw_os_error).contains(&code))
}

/// The deadline of a wait against which something may stand, if nothing does.
///
/// Cold, so that the compiler takes the other way for the usual one: it is a row of comparisons with zero, each of which it
/// holds for the less likely case, and would no longer bring the switch in line behind them.
#[cold]
fn disturbed_wait(own: Option<Instant>) -> io::Result<Option<Instant>> {
    park::check()?;
    Ok(park::earliest(own))
}

/// As the kernel says it, with its number.
fn would_block() -> io::Error {
    Errno::AGAIN.into()
}

fn flags_of(direction: Direction) -> PollFlags {
    match direction {
        Direction::Read => PollFlags::IN,
        Direction::Write => PollFlags::OUT,
    }
}

fn is_ready_in_kernel(socket: &impl AsFd, flags: PollFlags) -> bool {
    // What the kernel does not tell, an attempt will.
    poll(&mut [PollFd::new(socket, flags)], Some(&Timespec::default())) != Ok(0)
}

/// Whether no attempt needs to be made. A plain thread does not rely on the bits: nobody would tell it of a change.
#[inline(always)]
fn would_surely_block(seen: Seen, direction: Direction) -> bool {
    !seen.is_ready(direction) && seen.is_registered() && worker().is_some()
}

/// Who was woken for a source before others passes the turn on if something is left, and also if it leaves without an
/// attempt: one event may stand for many connections to accept.
pub(crate) struct Turn<'a> {
    readiness: &'a Readiness,
    direction: Direction,
    owes_turn: bool,
}

impl Drop for Turn<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.owes_turn {
            self.pass_on();
        }
    }
}

impl Turn<'_> {
    #[cold]
    fn pass_on(&self) {
        if let Some(next) = self.readiness.next_waiter(self.direction) {
            park::unpark_dhaga(next);
        }
    }
}

/// A place in a source's queue, left when the wait ends, however it ends.
struct Queued<'a, 'b> {
    readiness: &'a Readiness,
    direction: Direction,
    me: Address,
    turn: &'a mut Turn<'b>,
}

impl Drop for Queued<'_, '_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.readiness.dequeue(self.direction, self.me) == Left::WokenBeforeOthers {
            self.turn.owes_turn = true;
        }
    }
}
