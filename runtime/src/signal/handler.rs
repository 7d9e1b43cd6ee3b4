//! What runs when a signal comes: it counts the signal, and rings the bells of those who wait for it.
//!
//! ```text
//!   kernel ──▶ on_signal ──▶ COUNTS[signal] += 1 ──▶ each bell that wants it: write(eventfd) ──▶ who was there before us
//! ```
//!
//! The counts are the truth, and a bell only says that it is worth a look. So a ring too many does no harm: from a forked
//! process, which shares the descriptors and not the counts, or by a handler that is slow to see that a bell changed hands.
//! That is also why bells are never closed. They are used again, so there are as many as receivers ever lived at once.
//!
//! The handler adds to an atomic, reads others, and calls `write`: it neither locks nor allocates.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// The highest number of a signal: the last of the real-time signals.
const NUMBER_MAX: usize = 64;

/// What a handler must not swallow: the first two cannot be caught, and after the others the program cannot go on, because
/// the instruction that failed would be repeated. [`overflow`](crate::overflow) listens to SIGSEGV and SIGBUS.
const FORBIDDEN: [libc::c_int; 6] =
    [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

/// How often each signal has come since we listen to it.
static COUNTS: [AtomicU64; NUMBER_MAX + 1] = [const { AtomicU64::new(0) }; NUMBER_MAX + 1];
/// What was installed before us.
static PREVIOUS: [OnceLock<libc::sigaction>; NUMBER_MAX + 1] = [const { OnceLock::new() }; NUMBER_MAX + 1];
/// Which signals we listen to. Held while a handler is installed.
static INSTALLED: Mutex<u64> = Mutex::new(0);
/// The list of all bells, which only grows.
static BELLS: OnceLock<&'static Bell> = OnceLock::new();

/// How often a signal has come since somebody listens to it.
pub(super) fn count(signal: libc::c_int) -> u64 {
    COUNTS[index(signal)].load(Ordering::SeqCst)
}

/// Listens to a signal from now on, which is for ever: who ends it would have to know what others have installed since.
pub(super) fn install(signal: libc::c_int) -> io::Result<()> {
    if FORBIDDEN.contains(&signal) || !(1..=NUMBER_MAX as libc::c_int).contains(&signal) {
        let text = format!("signal {signal} cannot be waited for");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed & bit(signal) == 0 {
        let previous = action(signal)?;
        // The handler reads it, so it must be there first.
        let _ = PREVIOUS[index(signal)].set(previous);
        set_action(signal, &our_action(&previous))?;
        *installed |= bit(signal);
    }
    Ok(())
}

fn index(signal: libc::c_int) -> usize {
    usize::try_from(signal).expect("a signal that was installed has a number above 0")
}

/// The signal's place in a set of them.
fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// An eventfd, which rings for one receiver at a time.
struct Bell {
    eventfd: OwnedFd,
    /// The signals that its receiver waits for; none while it has no receiver.
    wanted: AtomicU64,
    is_taken: AtomicBool,
    next: OnceLock<&'static Bell>,
}

fn bells() -> impl Iterator<Item = &'static Bell> {
    std::iter::successors(BELLS.get(), |bell| bell.next.get()).copied()
}

/// A receiver's hold on its bell.
pub(super) struct Ringer(&'static Bell);

impl Ringer {
    /// A bell that rings for these signals from now on.
    pub(super) fn new(signals: impl Iterator<Item = libc::c_int>) -> io::Result<Self> {
        let ringer = match bells().find(|bell| !bell.is_taken.swap(true, Ordering::SeqCst)) {
            Some(bell) => Self(bell),
            None => Self(add()?),
        };
        ringer.silence();
        ringer.0.wanted.store(signals.fold(0, |set, signal| set | bit(signal)), Ordering::SeqCst);
        Ok(ringer)
    }

    pub(super) fn ring(&self) {
        ring(self.0);
    }

    pub(super) fn silence(&self) {
        // Refused if it has not rung, and then it is silent.
        let _ = rustix::io::read(&self.0.eventfd, &mut [0; 8]);
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.0.wanted.store(0, Ordering::SeqCst);
        self.0.is_taken.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.eventfd.as_fd()
    }
}

/// Adds a bell to the list, for whoever asked.
fn add() -> io::Result<&'static Bell> {
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let (wanted, is_taken, next) = (AtomicU64::new(0), AtomicBool::new(true), OnceLock::new());
    let bell: &'static Bell = Box::leak(Box::new(Bell { eventfd, wanted, is_taken, next }));
    let mut place = &BELLS;
    while place.set(bell).is_err() {
        place = &place.get().expect("whoever was faster has set it").next;
    }
    Ok(bell)
}

fn ring(bell: &Bell) {
    // Refused if it has rung 2^64 times, and then it still rings.
    let _ = rustix::io::write(&bell.eventfd, &1_u64.to_ne_bytes());
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
type PlainHandler = extern "C" fn(libc::c_int);

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: it has no conditions, and returns the place of this thread's errno, which lives as long as the thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: see above; nobody else reads or writes it, as it is the thread's own.
    let errno = unsafe { place.read() };
    note(signal);
    forward(signal, info, context);
    // SAFETY: as for the read. What we interrupted may be about to look at it.
    unsafe { place.write(errno) };
}

fn note(signal: libc::c_int) {
    let count = usize::try_from(signal).ok().and_then(|index| COUNTS.get(index));
    let Some(count) = count else { return };
    // Before the bells: who hears one finds it counted.
    count.fetch_add(1, Ordering::SeqCst);
    bells().filter(|bell| bell.wanted.load(Ordering::SeqCst) & bit(signal) != 0).for_each(ring);
}

/// Calls the handler that was there before, if there was one.
fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = usize::try_from(signal).ok().and_then(|index| PREVIOUS.get(index)?.get());
    let Some(previous) = previous else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed the number with this flag promised that it is a function of this type.
            let handler = unsafe { mem::transmute::<usize, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag it is a function of this type.
            let handler = unsafe { mem::transmute::<usize, PlainHandler>(handler) };
            handler(signal);
        }
    }
}

/// On the alternate stack, since a dhaga's own may be nearly used up, and restarting what it interrupts.
fn our_action(previous: &libc::sigaction) -> libc::sigaction {
    let handler: Handler = on_signal;
    libc::sigaction {
        sa_sigaction: handler as usize,
        sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART,
        // What the handler before us, which we call, did not want to be interrupted by.
        ..*previous
    }
}

fn action(signal: libc::c_int) -> io::Result<libc::sigaction> {
    // SAFETY: a plain C struct of integers and an optional function, for which zeros are valid.
    let mut current: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null new action only asks for the current one, which is written to a valid place.
    check(unsafe { libc::sigaction(signal, ptr::null(), &mut current) })?;
    Ok(current)
}

fn set_action(signal: libc::c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: the action is `our_action`, whose handler calls only what a signal handler may call, and then what the program
    // had installed as one.
    check(unsafe { libc::sigaction(signal, action, ptr::null_mut()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
