//! What a fork leaves behind: a copy of the runtime without its threads, whose polls are still the parent's.
//!
//! Only the thread that forks lives on in the child. Nobody runs what is spawned there, the locks of the other threads stay
//! as they were, and each change to a poll would be one to the parent's. After a fork only an exec is safe, as POSIX says of
//! every program with threads; so the child may exec or exit, and whatever else it asks of a runtime is refused in words.
//!
//! The kernel tells a handler in the child of the fork, and nothing that is used often asks. If the thread that forks is a
//! worker, the handler tells the dhaga that runs there to unwind; its next wait sees that, without a look of its own, and
//! comes here instead. So no other dhaga ever runs in the child.
//!
//! A fork before the first runtime is built is none of our business. `vfork`, `posix_spawn` and with them nearly every
//! `std::process::Command` run no handler, and need none.

use std::io;
use std::os::fd::AsFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// This process is a fork of one that had a runtime.
static IS_FORKED: AtomicBool = AtomicBool::new(false);
/// The process that built the first runtime.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Watches for forks from now on. `in_child` is called in the child of each, on the thread that forked, where it may only
/// store to atomics and to cells of that thread.
///
/// # Errors
///
/// In a child: it can have no runtime.
pub(crate) fn watch(in_child: extern "C" fn()) -> io::Result<()> {
    static ONCE: Once = Once::new();
    check().map_err(|owner| io::Error::new(io::ErrorKind::Unsupported, words(owner)))?;
    let mut failed = 0;
    ONCE.call_once(|| {
        OWNER.store(std::process::id(), Ordering::Relaxed);
        for handler in [mark as extern "C" fn(), in_child] {
            // SAFETY: the handler is a function of that type, which lives as long as the program. What it does is allowed
            // after a fork: it stores to an atomic, or to what our caller promises.
            failed |= unsafe { libc::pthread_atfork(None, None, Some(handler)) };
        }
    });
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

extern "C" fn mark() {
    IS_FORKED.store(true, Ordering::Relaxed);
}

/// Whether this process may use a runtime.
///
/// # Errors
///
/// It was forked from the process with this id.
#[inline(always)]
pub(crate) fn check() -> Result<(), u32> {
    if IS_FORKED.load(Ordering::Relaxed) { Err(OWNER.load(Ordering::Relaxed)) } else { Ok(()) }
}

/// What is said to a child.
pub(crate) fn words(owner: u32) -> String {
    format!(
        "this process was forked from process {owner}, and the dhaga runtimes in it have no threads here: after a fork only an exec \
         is safe. Start programs with std::process::Command, or fork before the first runtime is built"
    )
}

/// For a plain thread that is about to wait for what cannot come.
///
/// # Panics
///
/// In a child.
pub(crate) fn assert_not_forked() {
    if let Err(owner) = check() {
        panic!("{}", words(owner));
    }
}

/// For a copied worker, which must not run another dhaga and must not touch its poll: ends a child.
#[inline(always)]
pub(crate) fn abort_if_forked() {
    if let Err(owner) = check() {
        abort(owner);
    }
}

#[cold]
fn abort(owner: u32) -> ! {
    // Not by `eprintln`: another thread of the parent may have held the lock of stderr as it forked.
    let text = format!("\na dhaga waits or ends in a forked process: {}\n", words(owner));
    let _ = rustix::io::write(io::stderr().as_fd(), text.as_bytes());
    std::process::abort();
}
