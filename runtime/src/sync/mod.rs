//! Locks and channels that park the dhaga, not its worker.
//!
//! The names, the poisoning and the disconnecting are those of [`std::sync`], so that a program
//! moves over by its `use` lines. Everything here works in a dhaga, which it parks, and on a plain
//! thread, which it blocks, and between the two.
//!
//! What a wait does when its scope is cancelled or out of time depends on whether it can fail:
//! receiving, sending, acquiring and all forms with a timeout end with an [`Interrupt`] (in [`mpsc`],
//! whose errors are std's, as if the other side were gone); [`Mutex::lock`], [`RwLock::read`] and
//! [`RwLock::write`], [`Condvar::wait`], [`Barrier::wait`], [`WaitGroup::wait`] and the wait for an
//! initialisation go on. Operations that do not wait, such as `try_recv`, never look.
//!
//! While its thread unwinds from a panic, a wait that can fail does so at once. One that cannot
//! blocks the OS thread, for ten seconds at most, and then ends the process with words; at once if
//! what it waits for is known to be held on that very thread.
//!
//! From below to above:
//! - `short_lock`: around the inside of each primitive; `wait_queue`: who waits, in order, and what each was given;
//! - `raw_lock`: one enters at a time; [`Mutex`] puts a value behind it, [`Condvar`] waits outside it;
//! - `raw_rwlock`: one writer or many readers enter at a time; [`RwLock`] puts a value behind it;
//! - [`Semaphore`]: up to n enter at a time;
//! - `crowd`: all wait for the same event; [`Barrier`]: that all have come; [`WaitGroup`]: that all are done; [`Once`]: that
//!   something was done, and behind it the values of [`OnceLock`] and [`LazyLock`];
//! - [`oneshot`]: one message; [`channel`]: many, bounded, unbounded or handed over; [`mpsc`]: the same by std's names;
//! - [`broadcast`]: each message to every receiver; [`watch`]: the latest value, and who wants to know of changes;
//! - `select`: the first of several events, behind [`select!`](crate::select!).

mod barrier;
pub mod broadcast;
pub mod channel;
mod condvar;
pub(crate) mod crowd;
mod error;
mod lazy_lock;
pub mod mpsc;
mod mutex;
mod once;
mod once_lock;
pub mod oneshot;
mod raw_lock;
mod raw_rwlock;
mod rwlock;
pub(crate) mod select;
mod semaphore;
pub(crate) mod short_lock;
mod wait_group;
pub(crate) mod wait_queue;
pub mod watch;

pub use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

pub use self::barrier::{Barrier, BarrierWaitResult};
pub use self::condvar::{Condvar, WaitTimeoutResult};
pub use self::lazy_lock::LazyLock;
pub use self::mutex::{LockTimeoutError, Mutex, MutexGuard};
pub use self::once::{Once, OnceState};
pub use self::once_lock::OnceLock;
pub use self::rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use self::semaphore::{
    AcquireError, AcquireTimeoutError, OwnedSemaphorePermit, Semaphore, SemaphorePermit, TryAcquireError,
};
pub use self::wait_group::{OwnedWaitGroupGuard, WaitGroup, WaitGroupGuard, WaitTimeoutError};
pub use crate::park::Interrupt;
