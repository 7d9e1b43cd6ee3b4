//! A dhaga as its worker knows it: identity, state, why it waits, and what is needed to resume it.
//!
//! States of a task, all changed by its own worker only:
//!
//! ```text
//!            start             resume              closure ends
//!   (free) ───────▶ Ready ───────────────▶ Running ───────────▶ (free, generation + 1)
//!                     ▲                     │   │
//!                     │ unpark, timeout     │   │ yield
//!                     │                     ▼   │
//!                     ├───────────────── Parked │
//!                     └─────────────────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use crate::context::Node;
use crate::coroutine::{Coroutine, Wake, prefetch_lines};
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
    /// For a closure on the blocking pool.
    Blocking,
    /// For the answer of a remote call.
    Call,
}

/// What a spawn said about its dhaga.
#[derive(Debug)]
pub(crate) struct Label {
    pub(crate) name: Option<Box<str>>,
    pub(crate) site: &'static Location<'static>,
    /// Bytes of stack asked for; 0: the runtime's default.
    pub(crate) stack_bytes: usize,
}

impl Label {
    /// The name, or a stand-in for a dhaga that was given none.
    pub(crate) fn display_name(&self) -> &str {
        self.name.as_deref().unwrap_or("<unnamed>")
    }
}

/// An unstarted dhaga: a boxed closure and all that goes with it. It may go to any worker, and needs no stack yet.
pub(crate) trait Job: Node {
    /// What its spawn said about it.
    fn label(&self) -> &Label;
    /// Runs the closure to its end and delivers its result. On a pooled stack; never unwinds.
    fn run(&self);
    /// Drops the closure unrun and tells whoever joins. On a pooled stack as well: the closure's `Drop` is user code.
    fn discard(&self);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Ready,
    Running,
    Parked(WaitReason),
}

/// A started dhaga. All of it belongs to its worker; nothing here is shared between threads.
///
/// What each switch touches comes first, within two cache lines: with thousands of dhagas every line is a miss.
#[repr(C)]
pub(crate) struct Task {
    pub(crate) slot: u32,
    pub(crate) generation: Cell<u32>,
    pub(crate) state: Cell<State>,
    /// An `unpark` that came while the dhaga was not parked.
    pub(crate) permit: Cell<bool>,
    /// What the next resume tells it.
    pub(crate) verdict: Cell<Wake>,
    /// Depth of `uncancellable` sections.
    pub(crate) shields: Cell<u32>,
    /// The runtime shuts down and this dhaga was told to unwind: every further wait throws again.
    pub(crate) is_unwinding: Cell<bool>,
    /// Borrowed while the dhaga runs.
    pub(crate) coroutine: RefCell<Option<Coroutine>>,
    pub(crate) timer: Cell<Option<TimerKey>>,
    pub(crate) job: RefCell<Option<Arc<dyn Job>>>,
    /// The innermost scope that `within` and its like opened; `None`: the job's own.
    pub(crate) scope: RefCell<Option<Arc<dyn Node>>>,
}

/// Cache lines of a task that a switch touches.
const TASK_LINES: usize = 2;

impl Task {
    fn new(slot: u32) -> Self {
        Self {
            slot,
            generation: Cell::new(0),
            state: Cell::new(State::Free),
            permit: Cell::new(false),
            verdict: Cell::new(Wake::Ready),
            shields: Cell::new(0),
            is_unwinding: Cell::new(false),
            timer: Cell::new(None),
            coroutine: RefCell::new(None),
            job: RefCell::new(None),
            scope: RefCell::new(None),
        }
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> TaskId {
        TaskId { slot: self.slot, generation: self.generation.get() }
    }

    /// Asks the processor for the lines of the task itself. Touches none of them.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        prefetch_lines(std::ptr::from_ref(self).addr(), TASK_LINES);
    }

    /// Asks the processor for what a resume will touch of the stack.
    #[inline(always)]
    pub(crate) fn prefetch_stack(&self) {
        if let Ok(coroutine) = self.coroutine.try_borrow()
            && let Some(coroutine) = &*coroutine
        {
            coroutine.prefetch();
        }
    }

    /// Whether it has started and not ended.
    pub(crate) fn is_live(&self) -> bool {
        self.state.get() != State::Free
    }
}

/// The started dhagas of one worker, by slot.
#[derive(Default)]
pub(crate) struct TaskTable {
    tasks: Vec<Rc<Task>>,
    free: Vec<u32>,
}

impl TaskTable {
    /// Takes a free slot for a dhaga that is about to start.
    pub(crate) fn insert(&mut self, job: Arc<dyn Job>, coroutine: impl FnOnce(TaskId) -> Coroutine) -> Rc<Task> {
        let task = match self.free.pop() {
            Some(slot) => self.tasks[slot as usize].clone(),
            None => {
                let slot = u32::try_from(self.tasks.len()).expect("the spawn limit is far below 2^32");
                self.tasks.push(Rc::new(Task::new(slot)));
                self.tasks[slot as usize].clone()
            }
        };
        task.state.set(State::Ready);
        task.verdict.set(Wake::Ready);
        *task.job.borrow_mut() = Some(job);
        *task.coroutine.borrow_mut() = Some(coroutine(task.id()));
        task
    }

    /// Frees the slot of a dhaga that has ended, and hands back what it ran on.
    pub(crate) fn remove(&mut self, task: &Task) -> (Option<Coroutine>, Option<Arc<dyn Job>>) {
        task.generation.set(task.generation.get().wrapping_add(1));
        task.state.set(State::Free);
        task.permit.set(false);
        task.is_unwinding.set(false);
        task.shields.set(0);
        self.free.push(task.slot);
        (task.coroutine.take(), task.job.take())
    }

    #[inline(always)]
    pub(crate) fn get(&self, id: TaskId) -> Option<&Rc<Task>> {
        self.tasks.get(id.slot as usize).filter(|task| task.generation.get() == id.generation && task.is_live())
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Rc<Task>> {
        self.tasks.iter().filter(|task| task.is_live())
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len() - self.free.len()
    }
}
