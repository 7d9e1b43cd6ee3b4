//! A stack and a closure: `resume` switches to it, `suspend` switches back.
//!
//! A switch costs 4 to 6 ns when both ends are inlined into the functions around them and several times that when one
//! is not, because corosensei switches by call and return and lets the compiler save only the registers in use. Hence
//! the `#[inline(always)]` here, and on every function between a public wait and [`suspend`].
//!
//! A coroutine that has started ends in one way only: its closure returns. It is never dropped half-way, since a frame
//! of its stack may be borrowed by other coroutines, and an unwind from here would free that frame under them.

use std::arch::asm;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::process::abort;
use std::ptr;

use corosensei::{CoroutineResult, Yielder};

use crate::stack::{Stack, stack_around, stack_bytes_around};

/// Closures larger than this move to the heap before they move to the stack; corosensei takes 1 KiB at most.
const CLOSURE_BYTES_MAX: usize = 512;

/// Closures of more alignment than a cache line move to the heap as well, since rounding the stack pointer down to it
/// could take it past the end of the stack.
const CLOSURE_ALIGN_MAX: usize = 64;

/// Why a suspended coroutine goes on: the answer of [`suspend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// What it waited for has come.
    Ready,
    /// Its deadline came first.
    TimedOut,
    /// It shall unwind its stack and end.
    Unwind,
    /// It shall report where it stands, and suspend again.
    #[allow(dead_code, reason = "the dump of parked dhagas will resume with it")]
    Report,
}

/// What a coroutine did with the time it was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a finished coroutine must not be resumed"]
pub enum Outcome {
    /// It waits to be resumed.
    Suspended,
    /// Its closure has returned; its stack can be taken out.
    Finished,
}

type Inner = corosensei::Coroutine<Wake, (), (), Stack>;

/// A closure that runs on a stack of its own, as far as its next [`suspend`] each time it is resumed. It never leaves
/// the OS thread that made it.
///
/// To drop one that never started drops its closure; to drop one that has started and not finished *leaks* it: its
/// stack stays in use, nothing on it is dropped, and nothing unwinds. Either way its stack is lost to the pool, unlike
/// with [`into_stack`](Self::into_stack).
pub struct Coroutine {
    inner: ManuallyDrop<Inner>,
}

thread_local! {
    /// The stack pointer of the last [`suspend`] on this thread.
    static SUSPENDED_AT: Cell<usize> = const { Cell::new(0) };
    /// The innermost coroutine that runs on this thread; null outside of all.
    static RUNNING: Cell<*const Yielder<Wake, ()>> = const { Cell::new(ptr::null()) };
}

impl Coroutine {
    /// Puts `f` on the stack, which touches its top page. Nothing runs before the first [`resume`](Self::resume).
    ///
    /// `f` must not unwind: the process aborts if it does, because there is nobody below it to be told. Catch panics
    /// inside.
    #[inline]
    pub fn new(stack: Stack, f: impl FnOnce() + 'static) -> Coroutine {
        if fits_on_stack(&f) { Coroutine::with_small(stack, f) } else { Coroutine::with_small(stack, Box::new(f)) }
    }

    #[inline(always)]
    fn with_small(stack: Stack, f: impl FnOnce() + 'static) -> Coroutine {
        let inner = Inner::with_stack(stack, move |yielder, _first_wake| {
            set_running(yielder);
            let abort_on_unwind = AbortOnUnwind;
            f();
            std::mem::forget(abort_on_unwind);
        });
        Coroutine { inner: ManuallyDrop::new(inner) }
    }

    /// Runs the coroutine until it suspends or ends.
    ///
    /// `wake` is what its [`suspend`] returns. At the first resume there is no such call, and the closure simply runs,
    /// whatever `wake` says; who wants it not to run drops the coroutine instead.
    ///
    /// # Panics
    ///
    /// When it has finished before.
    #[inline(always)]
    pub fn resume(&mut self, wake: Wake) -> Outcome {
        let outer = RUNNING.get();
        let result = self.inner.resume(wake);
        set_running(outer);
        match result {
            CoroutineResult::Yield(()) => Outcome::Suspended,
            CoroutineResult::Return(()) => Outcome::Finished,
        }
    }

    /// Takes the stack out of a coroutine that has finished, or that never started; then its closure is dropped here.
    ///
    /// # Panics
    ///
    /// When it is suspended half-way: its stack is in use, and it leaks.
    #[inline]
    pub fn into_stack(self) -> Stack {
        assert!(!self.is_suspended(), "the stack of a suspended coroutine is still in use");
        // Should the closure's destructor panic, nothing of it may be dropped a second time.
        let mut this = ManuallyDrop::new(self);
        this.inner.force_unwind();
        // SAFETY: `inner` is initialised and nobody uses it again: `this` is never dropped.
        let inner = unsafe { ManuallyDrop::take(&mut this.inner) };
        inner.into_stack()
    }

    /// Whether it has started and not finished, so that frames of it lie on its stack.
    #[inline]
    pub fn is_suspended(&self) -> bool {
        self.inner.started() && !self.inner.done()
    }

    /// Whether its closure has returned.
    #[inline]
    pub fn is_finished(&self) -> bool {
        self.inner.done()
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        if !self.is_suspended() {
            // Drops the closure if it never ran. What is left owns nothing: a `Stack` has no destructor.
            self.inner.force_unwind();
        }
    }
}

impl std::fmt::Debug for Coroutine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coroutine")
            .field("suspended", &self.is_suspended())
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Suspends the coroutine that runs on this thread, the innermost one if they are nested, until it is resumed. Returns
/// what it is resumed with.
///
/// # Panics
///
/// Outside of a coroutine.
#[inline(always)]
pub fn suspend() -> Wake {
    let running = RUNNING.get();
    if running.is_null() {
        nothing_to_suspend();
    }
    SUSPENDED_AT.with(|suspended_at| suspended_at.set(stack_pointer()));
    // SAFETY: the yielder lies on the stack of the innermost running coroutine and lives as long as its closure runs,
    // and we run in that closure. `RUNNING` holds no other: the closure of a coroutine sets it at its start, this function
    // sets it again whenever a suspended coroutine goes on, and `resume` puts the outer one back whenever one suspends or
    // ends (it cannot unwind, see `AbortOnUnwind`). A coroutine is `!Send`, so each does so on one thread all its life.
    let wake = unsafe { (*running).suspend(()) };
    set_running(running);
    wake
}

/// By `with`: the `set` of a thread-local calls a function for its place, at times out of line, and a switch has two of them.
#[inline(always)]
fn set_running(yielder: *const Yielder<Wake, ()>) {
    RUNNING.with(|running| running.set(yielder));
}

/// About where the stack pointer of the coroutine was that suspended last on this thread. Only a hint for
/// [`prefetch_frames`].
#[inline(always)]
pub fn suspended_at() -> usize {
    SUSPENDED_AT.get()
}

/// Asks the processor for the part of the stack that a resume touches first. Among thousands of coroutines it is in no near
/// cache: a resume without it waits some 300 ns.
#[inline(always)]
pub fn prefetch_frames(suspended_at: usize) {
    prefetch_lines(suspended_at.wrapping_sub(SAVED_BYTES_MAX), PREFETCHED_LINES);
}

/// As [`prefetch_frames`], for what lies above that.
#[inline(always)]
pub fn prefetch_callers(suspended_at: usize) {
    const OFFSET: usize = PREFETCHED_LINES * CACHE_LINE_BYTES - SAVED_BYTES_MAX;
    prefetch_lines(suspended_at.wrapping_add(OFFSET), PREFETCHED_LINES_OF_CALLERS);
}

/// Runs `f` on another stack and comes back with its result. A panic passes through.
///
/// `f` may call [`suspend`]: that saves its registers where the stack pointer is and switches to whoever resumed the
/// coroutine, whichever stack it runs on; a resume comes back to the same place. The coroutine is then suspended with both
/// stacks, the frame of this function on the one, those of `f` on the other.
pub fn on_stack<R>(stack: &mut Stack, f: impl FnOnce() -> R) -> R {
    corosensei::on_stack(stack, f)
}

/// What the processor fetches at a time.
pub const CACHE_LINE_BYTES: usize = 64;
/// Registers that a switch saves lie so far at most below the stack pointer of [`suspend`].
const SAVED_BYTES_MAX: usize = 32;
/// The saved registers and the frames of the wait and of its caller.
const PREFETCHED_LINES: usize = 4;
/// Where a read waits: the rest of its caller's locals, and the first bytes of a buffer among them.
const PREFETCHED_LINES_OF_CALLERS: usize = 4;

#[inline(always)]
fn stack_pointer() -> usize {
    let address: usize;
    // SAFETY: copies a register; touches neither memory nor flags.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov {}, rsp", out(reg) address, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("mov {}, sp", out(reg) address, options(nomem, nostack, preserves_flags));
    }
    address
}

/// Asks the processor for some cache lines. Any address will do.
#[inline(always)]
pub fn prefetch_lines(address: usize, lines: usize) {
    for line in 0..lines {
        prefetch(address.wrapping_add(line * CACHE_LINE_BYTES));
    }
}

#[inline(always)]
fn prefetch(address: usize) {
    // SAFETY: a prefetch is a hint: it reads nothing that the program sees, and does not fault at any address.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("prefetcht0 [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
        #[cfg(target_arch = "aarch64")]
        asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}

/// Whether the caller runs in a coroutine, so that [`suspend`] has something to suspend.
#[cfg(test)]
fn is_inside() -> bool {
    !RUNNING.get().is_null()
}

/// Bytes between the caller's frame and the guard of the stack that it runs on; `None` on an OS thread's own stack.
///
/// For diagnosis: it walks the list of slabs, which takes tens of ns.
#[allow(dead_code, reason = "for the adviser on stack sizes")]
pub fn remaining_stack() -> Option<usize> {
    let here = 0u8;
    let address = ptr::from_ref(&here).addr();
    stack_around(address).map(|usable| address.saturating_sub(usable.start))
}

/// Address space of the stack that the caller runs on, guard included, if `address` lies on it, too. As slow as
/// [`remaining_stack`].
pub fn stack_bytes_with(address: usize) -> Option<usize> {
    stack_bytes_around(stack_pointer(), address)
}

#[cold]
#[inline(never)]
fn nothing_to_suspend() -> ! {
    panic!("no coroutine runs on this thread that could be suspended");
}

const fn fits_on_stack<F>(_: &F) -> bool {
    size_of::<F>() <= CLOSURE_BYTES_MAX && align_of::<F>() <= CLOSURE_ALIGN_MAX
}

/// Stands below the closure. To unwind further would throw a stranger's panic at whoever resumed it.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    #[cold]
    fn drop(&mut self) {
        eprintln!("a panic has reached the root of a coroutine, where nobody can catch it");
        abort();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::hint::black_box;
    use std::os::unix::process::ExitStatusExt;
    use std::rc::Rc;

    use super::*;
    use crate::stack::tests::{is_child, run_in_child, test_path};
    use crate::stack::{STACK_BYTES_DEFAULT, StackPool};

    fn stack_of(pool: &mut StackPool) -> Stack {
        pool.take(STACK_BYTES_DEFAULT).expect("address space for the test")
    }

    /// Resumes to the end and gives the stack back.
    fn finish(pool: &mut StackPool, mut coroutine: Coroutine) {
        while coroutine.resume(Wake::Ready) == Outcome::Suspended {}
        pool.give_back(coroutine.into_stack());
    }

    /// Sets its cell when it is dropped.
    struct Drops(Rc<Cell<bool>>);

    impl Drop for Drops {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    /// Compiles only while none of them is `Send`: for one that is, both impls fit and `_` is ambiguous.
    #[test]
    fn nothing_here_leaves_its_thread() {
        trait Witness<T> {
            fn exists() {}
        }
        impl<T: ?Sized> Witness<()> for T {}
        impl<T: ?Sized + Send> Witness<u8> for T {}
        <Coroutine as Witness<_>>::exists();
        <Stack as Witness<_>>::exists();
        <StackPool as Witness<_>>::exists();
    }

    #[test]
    fn each_resume_is_the_answer_of_one_suspend() {
        let mut pool = StackPool::default();
        let heard = Rc::new(RefCell::new(Vec::new()));
        let mut coroutine = Coroutine::new(stack_of(&mut pool), {
            let heard = heard.clone();
            move || {
                assert!(is_inside());
                for _ in 0..4 {
                    let wake = suspend();
                    heard.borrow_mut().push(wake);
                }
            }
        });
        assert!(!coroutine.is_suspended());
        let wakes = [Wake::Ready, Wake::TimedOut, Wake::Unwind, Wake::Report];
        assert_eq!(coroutine.resume(Wake::Unwind), Outcome::Suspended);
        assert!(coroutine.is_suspended() && !is_inside());
        let outcomes = wakes.map(|wake| coroutine.resume(wake));
        assert_eq!(outcomes[2..], [Outcome::Suspended, Outcome::Finished]);
        assert!(coroutine.is_finished());
        assert_eq!(*heard.borrow(), wakes);
        pool.give_back(coroutine.into_stack());
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn nested_coroutines_suspend_the_innermost() {
        let mut pool = StackPool::default();
        let steps = Rc::new(RefCell::new(Vec::new()));
        let left_over = Rc::new(RefCell::new(None));
        let (inner_stack, outer_stack) = (stack_of(&mut pool), stack_of(&mut pool));
        let mut outer = Coroutine::new(outer_stack, {
            let (steps, left_over) = (steps.clone(), left_over.clone());
            move || {
                let inner_steps = steps.clone();
                let mut inner = Coroutine::new(inner_stack, move || {
                    for step in ["inner 1", "inner 2", "inner 3"] {
                        inner_steps.borrow_mut().push(step);
                        suspend();
                    }
                });
                for step in ["outer 1", "outer 2"] {
                    assert_eq!(inner.resume(Wake::Ready), Outcome::Suspended);
                    steps.borrow_mut().push(step);
                    suspend();
                }
                *left_over.borrow_mut() = Some(inner);
            }
        });
        while outer.resume(Wake::Ready) == Outcome::Suspended {
            assert!(!is_inside());
        }
        assert_eq!(*steps.borrow(), ["inner 1", "outer 1", "inner 2", "outer 2"]);

        let inner = left_over.take().expect("the outer coroutine left it");
        finish(&mut pool, inner);
        pool.give_back(outer.into_stack());
        assert_eq!(steps.borrow().last(), Some(&"inner 3"));
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn a_started_coroutine_is_leaked_and_does_not_unwind() {
        let mut pool = StackPool::default();
        let dropped = Rc::new(Cell::new(false));
        let witness = Drops(dropped.clone());
        let mut coroutine = Coroutine::new(stack_of(&mut pool), move || {
            let _witness = witness;
            suspend();
        });
        assert_eq!(coroutine.resume(Wake::Ready), Outcome::Suspended);
        drop(coroutine);
        assert!(!dropped.get());
        assert_eq!(pool.stats().in_use, 1);
        drop(pool);
        assert!(!dropped.get());
    }

    #[test]
    fn a_coroutine_that_never_started_drops_its_closure() {
        let mut pool = StackPool::default();
        let dropped = Rc::new(Cell::new(false));
        let witness = Drops(dropped.clone());
        let coroutine = Coroutine::new(stack_of(&mut pool), move || drop(witness));
        pool.give_back(coroutine.into_stack());
        assert!(dropped.get());

        let again = Rc::new(Cell::new(false));
        let witness = Drops(again.clone());
        drop(Coroutine::new(stack_of(&mut pool), move || drop(witness)));
        assert!(again.get());
    }

    #[test]
    fn a_closure_whose_drop_panics_is_dropped_once() {
        struct Bomb(Rc<Cell<u32>>);
        impl Drop for Bomb {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
                panic!("on purpose");
            }
        }
        let mut pool = StackPool::default();
        let drops = Rc::new(Cell::new(0));
        let mut unstarted = || {
            let bomb = Bomb(drops.clone());
            Coroutine::new(stack_of(&mut pool), move || drop(bomb))
        };
        let (first, second) = (unstarted(), unstarted());
        for end in [Box::new(move || drop(first.into_stack())) as Box<dyn FnOnce()>, Box::new(move || drop(second))] {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(end)).is_err());
        }
        assert_eq!(drops.get(), 2);
    }

    #[test]
    fn large_and_aligned_closures_go_through_the_heap() {
        #[derive(Clone, Copy)]
        #[repr(align(65536))]
        struct Aligned(u8);

        let mut pool = StackPool::default();
        let sum = Rc::new(Cell::new(0));
        let (large, of_large) = ([2u8; 50_000], sum.clone());
        let coroutine = Coroutine::new(stack_of(&mut pool), move || {
            of_large.set(of_large.get() + black_box(&large).len() as u64);
        });
        finish(&mut pool, coroutine);
        let roomy = pool.take(1 << 20).expect("address space for the test");
        let (aligned, of_aligned) = (Aligned(5), sum.clone());
        let coroutine = Coroutine::new(roomy, move || {
            let aligned = black_box(&aligned);
            assert_eq!(ptr::from_ref(aligned).addr() % 65536, 0);
            of_aligned.set(of_aligned.get() + u64::from(aligned.0));
        });
        finish(&mut pool, coroutine);
        assert_eq!(sum.get(), 50_005);
    }

    #[test]
    fn vectors_live_across_a_switch() {
        fn churn(seed: f32) -> f32 {
            let mut lanes: [f32; 32] = std::array::from_fn(|lane| seed + lane as f32);
            let mut wide = black_box(seed as u128) << 70;
            for round in 0..100 {
                for lane in &mut lanes {
                    *lane = *lane * 1.25 + round as f32;
                }
                suspend();
                for lane in &mut lanes {
                    *lane = (*lane - round as f32) / 1.25;
                }
                wide = wide.rotate_left(1);
            }
            lanes.iter().sum::<f32>() + (wide.rotate_right(100) >> 70) as f32
        }
        let mut pool = StackPool::default();
        let sums = Rc::new(RefCell::new(Vec::new()));
        let mut coroutines: Vec<_> = (0..8)
            .map(|index| {
                let sums = sums.clone();
                Coroutine::new(stack_of(&mut pool), move || {
                    let sum = churn(index as f32);
                    sums.borrow_mut().push(sum);
                })
            })
            .collect();
        for _ in 0..100 {
            for coroutine in &mut coroutines {
                let _ = coroutine.resume(Wake::Ready);
            }
        }
        coroutines.into_iter().for_each(|coroutine| finish(&mut pool, coroutine));
        for (index, sum) in sums.borrow().iter().enumerate() {
            let expected = (0..32).map(|lane| (index + lane) as f32).sum::<f32>() + index as f32;
            assert!((sum - expected).abs() < 0.1, "{index}: {sum} instead of {expected}");
        }
    }

    #[test]
    fn the_rest_of_the_stack_is_known_inside() {
        #[inline(never)]
        fn deeper() -> Option<usize> {
            let frame = black_box([0u8; 8192]);
            let rest = remaining_stack();
            black_box(frame);
            rest
        }
        let mut pool = StackPool::default();
        let stack = stack_of(&mut pool);
        let coroutine = Coroutine::new(stack, || {
            let rest = remaining_stack().expect("this is a stack of ours");
            assert!((230 << 10..240 << 10).contains(&rest), "{rest}");
            assert!(deeper().expect("this is a stack of ours") + 8192 <= rest);
        });
        assert_eq!(remaining_stack(), None);
        finish(&mut pool, coroutine);
    }

    #[test]
    #[should_panic(expected = "no coroutine runs on this thread")]
    fn suspend_outside_panics() {
        suspend();
    }

    #[test]
    fn into_stack_of_a_suspended_coroutine_panics_and_leaks() {
        let mut pool = StackPool::default();
        let mut coroutine = Coroutine::new(stack_of(&mut pool), || {
            suspend();
        });
        let _ = coroutine.resume(Wake::Ready);
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(coroutine.into_stack())));
        assert!(panic.is_err());
        assert_eq!(pool.stats().in_use, 1);
    }

    #[test]
    fn a_panic_at_the_root_aborts() {
        if is_child() {
            let mut pool = StackPool::default();
            let mut coroutine = Coroutine::new(stack_of(&mut pool), || panic!("on purpose"));
            let _ = coroutine.resume(Wake::Ready);
            return;
        }
        let output = run_in_child(test_path!(a_panic_at_the_root_aborts));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains("the root of a coroutine"), "{text}");
    }
}
