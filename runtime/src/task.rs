//! A dhaga as its worker knows it: identity, state, why it waits, and what is needed to resume it.
//!
//! A task lies at the top of its own stack: what a switch touches of both is side by side, and a parked dhaga takes its
//! page of stack and little else.
//!
//! ```text
//!   low ◀── stack grows ── ... | frames | closure | Task, 128 bytes | end of the stack
//! ```
//!
//! The task of a future lies on the heap: it has a stack during a poll only.
//!
//! States of a task, all changed by its own worker only:
//!
//! ```text
//!            start                closure ends
//!   (free) ───────▶ Ready ──────────────────────▶ (free, generation + 1)
//!                   │   ▲     in the queue, or running: the worker knows which
//!              park │   │ unpark, timeout
//!                   ▼   │
//!                  Parked
//! ```

use std::cell::{Cell, UnsafeCell};
use std::mem::{MaybeUninit, offset_of};
use std::ops::Deref;
use std::ptr::{self, NonNull};

use crate::context::{Node, Scope};
use crate::coroutine::{self, Coroutine, Outcome, Wake, prefetch_lines};
use crate::frame::{self, Frame, Innermost};
use crate::job::{Head, Job, JobRef, quietly};
use crate::local_slots::LocalSlots;
use crate::stack::{HEAD_BYTES, Stack};
use crate::timer::TimerKey;

/// Which dhaga, on its worker: a slot, and how often the slot was used before. A late wake for an ended dhaga finds
/// another generation and does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Why a dhaga waits. Shown wherever the runtime talks about a parked dhaga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WaitReason {
    /// It called `park` itself.
    Park,
    /// It gave way in `yield_now`.
    Yield,
    /// For a dhaga that it joins.
    Join,
    /// For the dhagas of a `scope` to end.
    Scope,
    /// For time to pass.
    Sleep,
    /// For a lock.
    Lock,
    /// For a condition variable.
    Condvar,
    /// For a permit of a semaphore.
    Semaphore,
    /// For room in a channel.
    Send,
    /// For a value in a channel.
    Recv,
    /// For the value of a oneshot.
    Oneshot,
    /// For a connection to accept.
    Accept,
    /// For a connection to be established.
    Connect,
    /// For a socket to become readable.
    Read,
    /// For a socket to become writable.
    Write,
    /// For all others to reach a barrier.
    Barrier,
    /// For somebody else to initialise a value.
    Once,
    /// For a group of tasks to be done.
    WaitGroup,
    /// For a value to change.
    Watch,
    /// For the first of several events.
    Select,
    /// For a future to become ready.
    Future,
    /// For a closure on the blocking pool.
    Blocking,
    /// For a child process to end.
    Child,
    /// For a signal.
    Signal,
    /// For the answer of a remote call.
    Call,
    /// For the addresses of a host name.
    Lookup,
}

/// A wait in a section that was promised not to have any.
#[cold]
pub(crate) fn refuse_in_no_suspend(reason: WaitReason) -> ! {
    panic!("a wait ({reason:?}) was called where `no_suspend` forbids it");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs, or waits for its turn.
    Ready,
    Parked(WaitReason),
}

/// A started dhaga. All of it belongs to its worker; nothing here is shared between threads.
///
/// What each switch touches comes first, within one cache line: with thousands of dhagas every line is a miss.
#[repr(C, align(64))]
pub(crate) struct Task {
    /// Not there while it is between two steps.
    coroutine: UnsafeCell<MaybeUninit<Coroutine>>,
    /// Where a resume begins, for [`TaskRef::prefetch_work`]: a hint.
    resumes_at: Cell<usize>,
    pub(crate) slot: u32,
    generation: u32,
    pub(crate) state: Cell<State>,
    /// What the next resume tells it.
    pub(crate) verdict: Cell<Wake>,
    pub(crate) attention: Attention,
    steps: Cell<Steps>,
    /// What it runs; null once its result was handed over.
    head: Cell<*const Head>,
    /// Armed by a wait with a deadline, and left there by whoever woke it: the next such wait most often needs one that is no
    /// earlier.
    pub(crate) timer: Cell<Option<TimerKey>>,
    /// When it expires, as [`Timers::nanos`](crate::timer::Timers::nanos).
    pub(crate) timer_nanos: Cell<u64>,
    /// The innermost `within`, `scope` or the like that its code is in.
    pub(crate) frames: Innermost,
    /// What `local!` keeps for it.
    pub(crate) locals: LocalSlots,
    /// The source that it last waited for, and its readiness: hints, which nobody reads through.
    near: Cell<[*const (); 2]>,
    /// How deep it is in `no_suspend` sections.
    pub(crate) no_suspend: Cell<u32>,
    /// Sleeps in a row that were cut short by the end of a scope.
    pub(crate) early_sleeps: Cell<u32>,
}

/// How it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Steps {
    /// At one go, on the stack that it lies on.
    None,
    /// In steps, in one of which it is. It lies on the heap.
    Within,
    /// In steps, between two of which it is: it owns the job whose head it knows, and needs no stack.
    Between,
}

/// What stands against a wait, in one byte: in the usual case, nothing, a wait looks at it once.
#[derive(Debug)]
pub(crate) struct Attention(Cell<u8>);

impl Attention {
    /// An `unpark` came while the dhaga was not parked.
    pub(crate) const PERMIT: u8 = 1;
    /// The runtime shuts down and this dhaga was told to unwind: every further wait throws again.
    pub(crate) const UNWINDING: u8 = 2;
    /// Others do not know yet where it lives, so a cancel could not wake it.
    pub(crate) const UNSETTLED: u8 = 4;
    /// It is in a `no_suspend` section.
    pub(crate) const NO_SUSPEND: u8 = 8;
    /// The runtime shuts down and has cancelled this dhaga: waits that cannot say so throw.
    pub(crate) const LEAVING: u8 = 16;

    #[inline(always)]
    pub(crate) fn has(&self, bits: u8) -> bool {
        self.0.get() & bits != 0
    }

    #[inline(always)]
    pub(crate) fn is_needed(&self) -> bool {
        self.0.get() != 0
    }

    #[inline(always)]
    pub(crate) fn add(&self, bit: u8) {
        self.0.set(self.0.get() | bit);
    }

    /// Returns whether it was there.
    #[inline(always)]
    pub(crate) fn take(&self, bit: u8) -> bool {
        let was_there = self.has(bit);
        self.0.set(self.0.get() & !bit);
        was_there
    }
}

const CACHE_LINE_BYTES: usize = 64;
/// Cache lines of what it runs that each wait looks at.
const HEAD_LINES: usize = 2;
/// Cache lines of a task that a wait touches.
const TASK_LINES: usize = size_of::<Task>() / CACHE_LINE_BYTES;

const _: () = assert!(size_of::<Task>() <= HEAD_BYTES, "a task fits above the base of its stack");
// A sanitizer has its own books in the coroutine.
const SWITCH_IS_NEAR: bool = cfg!(feature = "sanitizer") || offset_of!(Task, attention) < CACHE_LINE_BYTES;
const _: () = assert!(SWITCH_IS_NEAR, "a switch touches one line of a task");

impl Task {
    #[inline(always)]
    fn new(id: TaskId, coroutine: MaybeUninit<Coroutine>, steps: Steps) -> Self {
        Self {
            coroutine: UnsafeCell::new(coroutine),
            resumes_at: Cell::new(0),
            slot: id.slot,
            generation: id.generation,
            state: Cell::new(State::Ready),
            verdict: Cell::new(Wake::Ready),
            attention: Attention(Cell::new(Attention::UNSETTLED)),
            steps: Cell::new(steps),
            head: Cell::new(ptr::null()),
            timer: Cell::new(None),
            timer_nanos: Cell::new(0),
            frames: Cell::new(ptr::null()),
            locals: LocalSlots::default(),
            near: Cell::new([ptr::null(); 2]),
            no_suspend: Cell::new(0),
            early_sleeps: Cell::new(0),
        }
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> TaskId {
        TaskId { slot: self.slot, generation: self.generation }
    }

    /// What it runs; `None` once its result was handed over.
    #[inline(always)]
    pub(crate) fn head(&self) -> Option<&Head> {
        // SAFETY: it is null, or was set by `set_head`, whose caller keeps the head alive.
        unsafe { self.head.get().as_ref() }
    }

    /// A reference to what it runs, which outlives it.
    pub(crate) fn reference(&self) -> Option<JobRef> {
        let head = NonNull::new(self.head.get().cast_mut())?;
        // SAFETY: as in `head`.
        Some(unsafe { Head::reference(head) })
    }

    /// The scope of all its code; `None` once that has ended.
    #[inline(always)]
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.head().map(Node::scope)
    }

    /// The innermost frame. Only for code of the dhaga itself.
    #[inline(always)]
    pub(crate) fn frame(&self) -> Option<&Frame> {
        // SAFETY: only `frame::inside` and its like change it, and the caller runs on the stack that the frame is on.
        unsafe { frame::innermost(&self.frames) }
    }

    /// Whether it runs in steps, and lies on the heap.
    #[inline(always)]
    pub(crate) fn is_stepped(&self) -> bool {
        self.steps.get() != Steps::None
    }

    /// Whether it is between two steps, and needs no stack.
    #[inline(always)]
    pub(crate) fn is_idle(&self) -> bool {
        self.steps.get() == Steps::Between
    }

    /// Keeps what it runs until the next step.
    pub(crate) fn set_idle(&self, job: Job) {
        debug_assert!(ptr::eq(job.pointer().as_ptr(), self.head.get()), "it is the job of this task");
        std::mem::forget(job);
        self.steps.set(Steps::Between);
    }

    fn take_idle(&self) -> Job {
        assert!(self.steps.replace(Steps::Within) == Steps::Between, "a task without a stack is between two steps");
        let head = NonNull::new(self.head.get().cast_mut()).expect("a task that has not ended knows what it runs");
        // SAFETY: `set_idle` or `insert_stepped` was given the job of this head, and kept it for this call alone.
        unsafe { Job::new(head) }
    }

    /// Whether its code is in no frame and has inherited nothing: the usual case, seen at a glance.
    #[inline(always)]
    pub(crate) fn is_unbound(&self) -> bool {
        self.frames.get().is_null() && self.head().is_none_or(Head::inherits_nothing)
    }

    #[inline(always)]
    pub(crate) fn is_unwinding(&self) -> bool {
        self.attention.has(Attention::UNWINDING)
    }

    /// Drops what it keeps for itself, on its own stack: what `local!` made, then what it inherited.
    #[inline(always)]
    pub(crate) fn drop_own(&self) {
        self.drop_locals();
        if let Some(head) = self.head()
            && let Some(ambient) = head.take_ambient()
        {
            quietly(head.label(), || drop(ambient));
            // What that has made.
            self.drop_locals();
        }
    }

    /// Aborts if a frame is left at the end of the dhaga: a coroutine of another library keeps it, and would come back to it.
    #[inline(always)]
    pub(crate) fn expect_no_frame(&self) {
        if !self.frames.get().is_null() {
            frame::abort_out_of_order();
        }
    }

    fn drop_locals(&self) {
        while let Some(value) = self.locals.take_last() {
            match self.head() {
                Some(head) => quietly(head.label(), || drop(value)),
                None => drop(value),
            }
        }
    }

    /// Says what it runs.
    ///
    /// # Safety
    ///
    /// The head lives until `forget_head`.
    pub(crate) unsafe fn set_head(&self, head: NonNull<Head>) {
        self.head.set(head.as_ptr());
    }

    pub(crate) fn forget_head(&self) {
        self.head.set(ptr::null());
    }
}

/// A started dhaga that has not ended, on its worker's thread.
///
/// Held by the table, the ready queue, a poll that runs, the worker's note of who runs, and frames on the task's own stack. The
/// table is told of the end last, when the task is in none of the others; so whoever has one may look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskRef(NonNull<Task>);

impl Deref for TaskRef {
    type Target = Task;

    #[inline(always)]
    fn deref(&self) -> &Task {
        // SAFETY: the task lies on its stack, which is out of the pool until `TaskTable::remove` gives it up, or on the heap until
        // `TaskTable::remove_stepped` frees it; see above.
        unsafe { self.0.as_ref() }
    }
}

impl TaskRef {
    /// Runs it until it waits or ends.
    #[inline(always)]
    pub(crate) fn resume(self) -> Outcome {
        let verdict = self.verdict.replace(Wake::Ready);
        // SAFETY: only the worker's loop resumes, one task at a time, and nobody else makes a reference to the coroutine
        // of a task that runs (`put_down` and `remove` read those that have ended). It is there: the loop has called `take_up`
        // for a task that is between two steps.
        let outcome = unsafe { (*self.coroutine.get()).assume_init_mut() }.resume(verdict);
        self.resumes_at.set(coroutine::suspended_at());
        outcome
    }

    /// Begins a step on `stack`: what `step` does when it is resumed.
    pub(crate) fn take_up(self, stack: Stack, step: fn(Self, Job)) {
        let job = self.take_idle();
        stack.set_label(job.label().name(), job.label().site);
        let coroutine = Coroutine::new(stack, move || step(self, job));
        // SAFETY: as in `resume`: it does not run, and this is the worker's loop. There is none that would be lost.
        unsafe { (*self.coroutine.get()).write(coroutine) };
    }

    /// Ends a step, after which it is idle: gives the stack back.
    pub(crate) fn put_down(self) -> Stack {
        self.resumes_at.set(self.head.get().addr());
        // SAFETY: as in `resume`: it does not run, and this is the worker's loop. The coroutine is there, since `take_up` has
        // written it for this step, and is read once, since the step ends once.
        unsafe { (*self.coroutine.get()).assume_init_read() }.into_stack()
    }

    /// Where it lies: on its own stack, unless it runs in steps.
    pub(crate) fn address(self) -> usize {
        self.0.as_ptr().addr()
    }

    /// Asks the processor for the lines of the task itself. Touches none of them.
    #[inline(always)]
    pub(crate) fn prefetch(self) {
        prefetch_lines(self.address(), TASK_LINES);
    }

    /// Asks the processor for what a wake touches.
    #[inline(always)]
    pub(crate) fn prefetch_state(self) {
        prefetch_lines(self.address(), 1);
    }

    /// Asks the processor for what it will touch first when it is resumed. Only of one in the ready queue, whose task is near.
    #[inline(always)]
    pub(crate) fn prefetch_work(self) {
        coroutine::prefetch_frames(self.resumes_at.get());
        let [source, readiness] = self.near.get();
        if !source.is_null() {
            coroutine::prefetch_callers(self.resumes_at.get());
            prefetch_lines(source.addr(), 2);
            prefetch_lines(readiness.addr(), 1);
            prefetch_lines(self.head.get().addr(), HEAD_LINES);
        }
    }

    /// Says of which source and readiness an event will end the wait that it is about to begin.
    #[inline(always)]
    pub(crate) fn expect_event(self, source: *const (), readiness: *const ()) {
        self.near.set([source, readiness]);
    }
}

/// The started dhagas of one worker, by slot.
pub(crate) struct TaskTable {
    slots: Vec<Slot>,
    /// The slot that was freed last, or `NO_SLOT`.
    free: u32,
    len: usize,
}

struct Slot {
    task: Option<TaskRef>,
    generation: u32,
    /// Of a free slot: the one that was freed before, or `NO_SLOT`.
    next_free: u32,
}

const NO_SLOT: u32 = u32::MAX;

impl Default for TaskTable {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NO_SLOT, len: 0 }
    }
}

impl TaskTable {
    /// Starts the books of a dhaga that will run `body` on `stack`. `body` is told which one it is.
    #[inline(always)]
    pub(crate) fn insert(&mut self, stack: Stack, body: impl FnOnce(TaskRef) + 'static) -> TaskRef {
        let task = TaskRef(stack.head().cast());
        let id = self.enter(task);
        let value = Task::new(id, MaybeUninit::new(Coroutine::new(stack, move || body(task))), Steps::None);
        // SAFETY: the head of the stack has room and alignment for a task (asserted above), and nobody else uses it while
        // the stack is out.
        unsafe { task.0.write(value) };
        task
    }

    /// Starts the books of a dhaga that runs in steps, and has no stack between them.
    pub(crate) fn insert_stepped(&mut self, job: Job) -> TaskRef {
        let head = job.pointer();
        let place = Box::into_raw(Box::<Task>::new_uninit());
        let task = TaskRef(NonNull::new(place.cast()).expect("a box is somewhere"));
        let id = self.enter(task);
        let value = Task::new(id, MaybeUninit::uninit(), Steps::Between);
        // SAFETY: the memory was just allocated for a task.
        unsafe { task.0.write(value) };
        // SAFETY: the job keeps the head alive up to `complete`, and whoever runs its last step forgets it before.
        unsafe { task.set_head(head) };
        task.set_idle(job);
        task
    }

    /// Gives a slot to a task that is about to be written.
    #[inline(always)]
    fn enter(&mut self, task: TaskRef) -> TaskId {
        let slot = if self.free == NO_SLOT { self.add_slot() } else { self.free };
        let place = &mut self.slots[slot as usize];
        self.free = place.next_free;
        self.len += 1;
        place.task = Some(task);
        TaskId { slot, generation: place.generation }
    }

    #[cold]
    fn add_slot(&mut self) -> u32 {
        let slot = u32::try_from(self.slots.len()).ok().filter(|&slot| slot != NO_SLOT);
        let slot = slot.expect("the spawn limit is far below 2^32");
        self.slots.push(Slot { task: None, generation: 0, next_free: NO_SLOT });
        slot
    }

    /// Closes the books of a dhaga that has ended, and hands its stack back. Nobody may look at the task after this.
    #[inline(always)]
    pub(crate) fn remove(&mut self, task: TaskRef) -> Stack {
        let slot = task.slot;
        // SAFETY: the task was written by `insert`, and is read once: its slot is cleared below, and it is in no queue,
        // since it has ended.
        let task = unsafe { task.0.read() };
        self.leave(slot);
        // SAFETY: `insert` has put a coroutine there, and it stays for one that does not run in steps.
        unsafe { task.coroutine.into_inner().assume_init() }.into_stack()
    }

    /// As [`TaskTable::remove`], of one that ran in steps.
    #[inline(never)]
    pub(crate) fn remove_stepped(&mut self, task: TaskRef) -> Stack {
        debug_assert!(task.is_stepped() && !task.is_idle(), "it has ended in a step");
        self.leave(task.slot);
        let stack = task.put_down();
        // SAFETY: `insert_stepped` got it from a box of a task, and it is in no queue, since it has ended. What is dropped with
        // it is everything but the coroutine.
        drop(unsafe { Box::from_raw(task.0.as_ptr()) });
        stack
    }

    /// Takes its slot back from a task that has ended.
    #[inline(always)]
    fn leave(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        place.task = None;
        place.generation = place.generation.wrapping_add(1);
        place.next_free = self.free;
        self.free = slot;
        self.len -= 1;
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: TaskId) -> Option<TaskRef> {
        self.slots.get(id.slot as usize).filter(|slot| slot.generation == id.generation)?.task
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = TaskRef> {
        self.slots.iter().filter_map(|slot| slot.task)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
