//! Locks and channels that park the dhaga, not its worker.
//!
//! The names, the poisoning and the disconnecting are those of [`std::sync`], so that a program
//! moves over by its `use` lines. Everything here works in a dhaga, which it parks, and on a plain
//! thread, which it blocks, and between the two.
//!
//! What a wait does when its scope is cancelled or out of time depends on whether it can fail:
//! receiving, sending, acquiring and all forms with a timeout end with an [`Interrupt`];
//! [`Mutex::lock`] and [`Condvar::wait`] go on. Operations that do not wait, such as `try_recv`,
//! never look.
//!
//! From below to above:
//! - `short_lock`: around the inside of each primitive; `wait_queue`: who waits, in order, and what each was given;
//! - `raw_lock`: one enters at a time; [`Mutex`] puts a value behind it, [`Condvar`] waits outside it;
//! - [`Semaphore`]: up to n enter at a time;
//! - [`oneshot`]: one message; [`channel`]: many, bounded, unbounded or handed over;
//! - `select`: the first of several events, behind [`select!`](crate::select!).

pub mod channel;
mod condvar;
mod error;
mod mutex;
pub mod oneshot;
mod raw_lock;
pub(crate) mod select;
mod semaphore;
mod short_lock;
mod wait_queue;

pub use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

pub use self::condvar::{Condvar, WaitTimeoutResult};
pub use self::mutex::{LockTimeoutError, Mutex, MutexGuard};
pub use self::semaphore::{
    AcquireError, AcquireTimeoutError, OwnedSemaphorePermit, Semaphore, SemaphorePermit, TryAcquireError,
};
pub use crate::park::Interrupt;
