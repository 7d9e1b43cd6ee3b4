//! Code on a large stack of its own, in the same dhaga.
//!
//! ```text
//!   stack of the dhaga              lent stack
//!   ┌──────────────────┐            ┌──────────────────┐
//!   │ caller           │            │ f                │
//!   │ with_big_stack   │ ──────────▶│ what it calls    │   a wait in here suspends the dhaga with both
//!   └──────────────────┘            └──────────────────┘
//! ```

use std::io;
use std::panic::Location;

use crate::coroutine;
use crate::identity::current;
use crate::overflow;
use crate::scheduler::{Worker, current_task, worker};
use crate::stack::{STACK_BYTES_MAX, STACK_BYTES_MIN, Stack, StackError, StackPool};

/// Address space of the stack that [`with_big_stack`] lends: 8 MiB, guard included, which is what a main thread has on Linux,
/// and what C libraries are written for. Memory comes page by page, as it is used.
pub const BIG_STACK_BYTES: usize = 8 << 20;

/// Runs `f` on a stack of [`BIG_STACK_BYTES`], in the same dhaga: for deep recursion, and for C code with large frames, in
/// dhagas whose own stacks are small. It costs some ten ns when a stack is at hand.
///
/// `f` may borrow, wait and panic as if it were called directly; name, deadline, cancellation and locals are those of the
/// caller. The stack comes from the worker's pool and goes back when `f` returns or unwinds, and its memory to the system some
/// time after that. On a plain thread it is mapped for this call. A call inside another one gets one more.
///
/// # Panics
///
/// When the system has no address space for the stack; [`with_stack_size`] returns the error instead.
///
/// # Examples
///
/// ```
/// fn depth(levels: u32) -> u32 {
///     let frame = std::hint::black_box([levels; 256]);
///     if levels == 0 { 0 } else { 1 + depth(frame[0] - 1) }
/// }
///
/// let deep = dhaga::spawn(|| dhaga::with_big_stack(|| depth(2_000))); // 2 MiB of frames, on a dhaga of 256 KiB
/// assert_eq!(deep.join()?, 2_000);
/// # Ok::<(), dhaga::JoinError<u32>>(())
/// ```
#[track_caller]
pub fn with_big_stack<R>(f: impl FnOnce() -> R) -> R {
    match Loan::new(BIG_STACK_BYTES, Location::caller()) {
        Ok(loan) => loan.run(f),
        Err(error) => panic!("no stack for `with_big_stack`: {error}"),
    }
}

/// As [`with_big_stack`], with so many bytes of stack, guard included, rounded up to a power of two.
///
/// # Errors
///
/// `InvalidInput` below 64 KiB and above 1 GiB. `OutOfMemory` when the system has no address space for it. Then `f` is
/// dropped.
///
/// # Examples
///
/// ```
/// let work = || std::hint::black_box([1_u8; 8 << 20]).iter().map(|&n| u64::from(n)).sum::<u64>();
/// assert_eq!(dhaga::with_stack_size(64 << 20, work)?, 8 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[track_caller]
pub fn with_stack_size<R>(bytes: usize, f: impl FnOnce() -> R) -> io::Result<R> {
    if !(STACK_BYTES_MIN..=STACK_BYTES_MAX).contains(&bytes) {
        let reason = format!("a stack takes {STACK_BYTES_MIN} to {STACK_BYTES_MAX} bytes, not {bytes}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let loan = Loan::new(bytes, Location::caller());
    loan.map(|loan| loan.run(f)).map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))
}

/// Lends stacks for code that a dhaga runs again and again between its waits, so that what it keeps of its own stack while
/// it waits is one page: each stretch runs on the stack that the worker used last, which is still in the processor's cache.
///
/// Measured on HTTP/1 with a thousand connections, whose polls reach some KiB deep: a third more requests than with each
/// poll on the stack of its dhaga.
pub(crate) struct Lender {
    worker: &'static Worker,
    /// As many as the caller has.
    stack_bytes: usize,
    site: &'static Location<'static>,
}

impl Lender {
    /// For the dhaga that runs the caller on its own stack. One that runs on a lent stack already gets no other: endless
    /// recursion would take one a level and never overflow. And a plain thread has its stack to itself.
    pub(crate) fn here(site: &'static Location<'static>) -> Option<Self> {
        let stack_bytes = coroutine::stack_bytes_with(current_task()?.address())?;
        Some(Self { worker: worker()?, stack_bytes, site })
    }

    /// Runs `f` on a lent stack, or on the caller's, which is as large, when there is none.
    pub(crate) fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let Ok(stack) = self.worker.lend_stack_again(self.stack_bytes) else { return f() };
        stack.set_label_of_dhaga(current().name(), self.site);
        let mut stretch = Stretch { worker: self.worker, stack: Some(stack) };
        coroutine::on_stack(stretch.stack.as_mut().expect("it is there until the drop"), f)
    }
}

/// A stack of a [`Lender`], until it goes back.
struct Stretch {
    worker: &'static Worker,
    /// Until the drop.
    stack: Option<Stack>,
}

impl Drop for Stretch {
    /// On the stack of the caller: a panic of the closure goes on there.
    fn drop(&mut self) {
        if let Some(stack) = self.stack.take() {
            self.worker.take_back_stack_again(stack);
        }
    }
}

/// A stack, until it goes back to where it came from.
struct Loan {
    /// Until the drop.
    stack: Option<Stack>,
    /// Of a plain thread. A worker has one pool, and a dhaga stays on its worker.
    pool: Option<StackPool>,
}

impl Loan {
    fn new(bytes: usize, site: &'static Location<'static>) -> Result<Self, StackError> {
        match worker() {
            Some(worker) => {
                let stack = worker.lend_stack(bytes)?;
                stack.set_label_of_dhaga(current().name(), site);
                Ok(Self { stack: Some(stack), pool: None })
            }
            None => {
                overflow::install();
                overflow::ensure_alternate_stack();
                let mut pool = StackPool::default();
                let stack = pool.take(bytes)?;
                stack.set_label_of_thread(current().name(), site);
                Ok(Self { stack: Some(stack), pool: Some(pool) })
            }
        }
    }

    fn run<R>(mut self, f: impl FnOnce() -> R) -> R {
        coroutine::on_stack(self.stack.as_mut().expect("it is there until the drop"), f)
    }
}

impl Drop for Loan {
    /// On the stack of the caller: a panic of the closure goes on there.
    fn drop(&mut self) {
        let Some(stack) = self.stack.take() else { return };
        match (&mut self.pool, worker()) {
            (Some(pool), _) => pool.give_back(stack),
            (None, Some(worker)) => worker.take_back_stack(stack),
            (None, None) => unreachable!("a dhaga stays on its worker"),
        }
    }
}
