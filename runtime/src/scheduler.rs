//! One worker: the loop, the dhaga that runs now, suspend and wake.
//!
//! [`Worker::run`] is the loop, and with it the whole runtime: everything else here is one of its steps, or is called by
//! the dhaga that one of its steps resumed.
//!
//! Nobody signals a worker that is awake: it looks at its injector once a turn. It sleeps in the poll only after it said
//! so (see `inbox`), so whoever pushes knows whether to ring.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::audit::Audit;
use crate::context::Node;
use crate::coroutine::{self, Outcome, Wake};
use crate::fork;
use crate::job::{Execution, Job};
use crate::reactor::{OnReady, Reactor, Readiness, Report};
use crate::ready_queue::ReadyQueue;
use crate::run_queue::{Address, Doorbell, Injector, Message};
use crate::stack::{Stack, StackError, StackPool};
use crate::task::{State, Task, TaskId, TaskRef, TaskTable, WaitReason};
use crate::thieves::{Thieves, shrink_if_emptied};
use crate::timer::Timers;

/// How long ready dhagas run before timers and sockets are looked at again: long against a switch (nanoseconds) and a
/// poll (about a microsecond), short against what a network client notices.
const BATCH_MAX: Duration = Duration::from_micros(100);
/// How long a worker with work goes without a look at its sockets. A look costs as much as a small request, and those who
/// are ready already came first.
const POLL_PERIOD: Duration = Duration::from_micros(500);
/// Resumes between two looks at the clock at most. A look costs as much as a few switches; every 32nd is 1 ns for each.
const RESUMES_PER_LOOK_MAX: u32 = 32;
/// Time between two looks that a batch aims at: a quarter of what it may last.
const LOOK_NANOS: u64 = BATCH_MAX.as_nanos() as u64 / 4;
/// Dhagas in a row that go first because the one before has woken them; as many as in tokio, for the same reason.
const HAND_OFFS_MAX: u32 = 3;
/// How long a worker that had work polls without blocking before it sleeps. Waking a sleeping thread costs the other
/// side several microseconds, more than a loopback round trip.
const DOZE_MAX: Duration = Duration::from_micros(50);
/// A worker with fewer live dhagas never sends new ones away: the mean of small numbers says nothing.
const PLACEMENT_LIVE_MIN: usize = 8;
/// So many that a dhaga spawned without giving way are shared at once: a few times what it costs to wake a worker.
const SHARED_LOT: usize = 512;
/// Unstarted dhagas that a worker takes back at once from those that it has shared: a few microseconds of work at least.
const TAKEN_BACK_MAX: usize = 16;
/// What a worker may have above the mean before it sends new ones away: a few, or this part of the mean.
const PLACEMENT_TOLERANCE_MIN: usize = 4;
const PLACEMENT_TOLERANCE: usize = 32;
/// Starts between two looks at the load of the others.
const STARTS_PER_PLACEMENT: u32 = 16;
/// Address space of the touched stacks that a worker keeps for the next burst: 64 of the default size, which hold 256 KiB
/// if each uses a page.
const WARM_BYTES_MAX: usize = 16 << 20;
/// Operations that do not wait between two times that a dhaga gives way: a hundred microseconds of socket calls.
const BUDGET_MAX: u32 = 64;
/// How often a worker gives an eighth of the stacks that it did not need meanwhile back to the system, so that half of
/// them are gone after half a second.
const TRIM_PERIOD: Duration = Duration::from_millis(100);
/// How long a worker trims at most before it sleeps, and looks at the clock each so many stacks: 20 000 stacks a second.
const TRIM_TIME_MAX: Duration = Duration::from_millis(1);
const TRIMMED_PER_LOOK: usize = 128;
/// When to try again if the system takes nothing back, as with locked memory.
const TRIM_REFUSED_PAUSE: Duration = Duration::from_secs(3600);
/// Spawn credit is drawn from and returned to the runtime in lots of this size, so that a spawn touches no shared line.
const CREDIT_LOT_MAX: usize = 256;

/// What the workers of one runtime share.
pub(crate) struct Shared {
    /// The doors of all workers, in their order; filled once all have started.
    pub(crate) injectors: std::sync::OnceLock<Box<[&'static Injector]>>,
    thieves: Thieves,
    /// Workers whose loop has ended.
    ended: AtomicUsize,
    /// Dhagas that may still be spawned; negative when some were started beyond the limit.
    credit: AtomicIsize,
    pub(crate) workers: usize,
    pub(crate) tasks_max: usize,
    pub(crate) stack_bytes: usize,
    /// Polls without blocking before it sleeps; off when workers outnumber cores.
    pub(crate) dozes: bool,
}

impl Shared {
    pub(crate) fn new(workers: usize, tasks_max: usize, stack_bytes: usize, dozes: bool) -> Self {
        Self {
            injectors: std::sync::OnceLock::new(),
            thieves: Thieves::new(),
            ended: AtomicUsize::new(0),
            credit: AtomicIsize::new(isize::try_from(tasks_max).unwrap_or(isize::MAX)),
            workers,
            tasks_max,
            stack_bytes,
            dozes,
        }
    }

    pub(crate) fn injectors(&self) -> &[&'static Injector] {
        self.injectors.get().map_or(&[], |list| list)
    }

    /// Reserves room for `wanted` dhagas or fewer. Returns for how many there was room.
    pub(crate) fn draw_credit(&self, wanted: usize) -> usize {
        let mut drawn = 0;
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            drawn = wanted.min(usize::try_from(left).unwrap_or(0));
            Some(left - drawn as isize)
        });
        drawn
    }

    /// Reserves room for a dhaga that must not be refused.
    fn overdraw_credit(&self) {
        self.credit.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn credit(&self) -> usize {
        usize::try_from(self.credit.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn return_credit(&self, count: usize) {
        self.credit.fetch_add(count as isize, Ordering::Relaxed);
    }

    /// The worker with the fewest live dhagas.
    pub(crate) fn least_loaded(&self) -> Option<&'static Injector> {
        self.injectors().iter().copied().min_by_key(|injector| injector.load() + injector.unstarted_len())
    }

    /// The last worker that ends gives the injectors back, all at once: while one lives it may look at the others', and
    /// must not find a stranger there.
    fn end_worker(&self) {
        if self.ended.fetch_add(1, Ordering::SeqCst) + 1 == self.workers {
            self.injectors().iter().for_each(|injector| injector.retire());
        }
    }

    fn has_unstarted(&self) -> bool {
        self.injectors().iter().any(|injector| injector.unstarted_len() > 0)
    }

    fn wake_thief(&self) {
        self.thieves.wake_one(self.injectors().iter().copied());
    }
}

/// Work for the end of a turn. Belongs to our crates, runs on the worker's own context, and may only push or do I/O that
/// cannot block.
pub trait AtEnd: Send + Sync {
    /// Called once, at the end of the turn in which it was asked for.
    fn at_end(self: Arc<Self>);
}

/// An OS thread with a scheduler. Everything in it belongs to that thread; other threads reach its injector only.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) injector: &'static Injector,
    tasks: RefCell<TaskTable>,
    current: Cell<Option<TaskRef>>,
    ready: ReadyQueue,
    /// The dhaga that the last one woke, and how many went first in a row for that reason.
    handed: Cell<Option<TaskRef>>,
    hand_offs: Cell<u32>,
    /// Of the round that runs: ready ones that were there when it began and have not run,
    ready_left: Cell<usize>,
    /// and unstarted ones.
    unstarted_left: Cell<usize>,
    /// How many these were when late ones last went before them.
    unstarted_at_late: Cell<usize>,
    /// Unstarted dhagas that no other worker sees before the end of the batch.
    fresh: RefCell<VecDeque<Job>>,
    /// A great burst was shared, and a thief woken for it, before the end of this batch.
    has_shared_lot: Cell<bool>,
    /// Of `fresh`, how many at its front others have seen before.
    taken_back: Cell<usize>,
    /// Unstarted dhagas that must start here.
    local: RefCell<VecDeque<Job>>,
    timers: RefCell<Timers<TaskId>>,
    reactor: RefCell<Reactor>,
    stacks: RefCell<StackPool>,
    /// Dhagas that got no stack.
    refused: Cell<u64>,
    /// A stack for dropping what gets none.
    reserve: RefCell<Option<Stack>>,
    /// What waits for that stack, which is in use by a `Drop` that waits.
    stackless: RefCell<VecDeque<Job>>,
    /// The reserve is out, or somebody waits for it.
    is_short: Cell<bool>,
    /// When to trim stacks; `None` while there are none to trim.
    trim_due: Cell<Option<Instant>>,
    /// The fewest stacks that lay unused at the end of a batch since the last trim.
    spare_stacks: Cell<usize>,
    at_end: RefCell<Vec<Arc<dyn AtEnd>>>,
    /// Swapped with the inbox at each drain; kept for its capacity.
    inbox: RefCell<Vec<Message>>,
    /// Room for dhagas that is reserved already.
    credit: Cell<usize>,
    credit_lot: usize,
    /// Where the next starts belong if not here, and how many these are.
    placed_on: Cell<Option<&'static Injector>>,
    placed_left: Cell<u32>,
    /// Of `fresh`, how many another worker or thread sent: they count as load before they have started.
    arrived: Cell<usize>,
    /// Callbacks whose sources became readable in the poll that runs now.
    callbacks: RefCell<Vec<Arc<dyn OnReady>>>,
    /// Resumes between two looks at the clock, as the last batch found it.
    pace: Cell<u32>,
    /// Operations that the running dhaga may still do before it gives way.
    budget: Cell<u32>,
    /// When the sockets are looked at again although there is work.
    poll_due: Cell<Instant>,
    /// Something ran since the worker last slept.
    was_useful: Cell<bool>,
    is_stopping: Cell<bool>,
    pub(crate) extensions: crate::extensions::Extensions,
}

thread_local! {
    /// The worker of this OS thread, while `run_worker` runs.
    static WORKER: Cell<Option<&'static Worker>> = const { Cell::new(None) };
}

/// The worker of this OS thread; `None` on a plain thread. Not to be kept by anything that outlives the caller's frame.
#[inline(always)]
pub(crate) fn worker() -> Option<&'static Worker> {
    WORKER.get()
}

/// The dhaga that runs the caller; `None` on a plain thread, and on a worker's own context.
#[inline(always)]
pub(crate) fn current_task() -> Option<TaskRef> {
    WORKER.get()?.current.get()
}

/// In the child of a fork: the dhaga that forked goes no further than its next wait (see `fork`).
pub(crate) extern "C" fn in_forked_child() {
    if let Some(task) = current_task() {
        task.is_unwinding.set(true);
    }
}

/// Makes this OS thread a worker and runs its loop until the runtime has stopped and every dhaga has ended.
pub(crate) fn run_worker(worker: Worker) {
    // SAFETY: only the lifetime changes. The floors above use the reference while their own frames last, on this thread,
    // and those end before `Worker::run` does: their dhagas have ended, or the process aborts. `WORKER` is cleared below.
    let long_lived = unsafe { std::mem::transmute::<&Worker, &'static Worker>(&worker) };
    assert!(WORKER.replace(Some(long_lived)).is_none(), "an OS thread becomes a worker only once");
    let abort_on_unwind = AbortOnUnwind;
    worker.run();
    std::mem::forget(abort_on_unwind);
    WORKER.set(None);
    worker.injector.hang_up();
    worker.shared.end_worker();
}

/// A worker that unwinds would leave its dhagas behind, who never run again, and everybody who waits for them.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("\na panic reached a dhaga worker's own context, where no user code may run: aborting");
        std::process::abort();
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, reactor: Reactor, doorbell: Doorbell, stacks: StackPool) -> Self {
        let credit_lot = (shared.tasks_max / (16 * shared.workers)).clamp(1, CREDIT_LOT_MAX);
        Self {
            shared,
            injector: Injector::lease(doorbell),
            tasks: RefCell::default(),
            current: Cell::default(),
            ready: ReadyQueue::default(),
            handed: Cell::new(None),
            hand_offs: Cell::new(0),
            ready_left: Cell::default(),
            unstarted_left: Cell::default(),
            unstarted_at_late: Cell::default(),
            fresh: RefCell::default(),
            has_shared_lot: Cell::new(false),
            taken_back: Cell::new(0),
            local: RefCell::default(),
            timers: RefCell::new(Timers::new(now())),
            reactor: RefCell::new(reactor),
            stacks: RefCell::new(stacks),
            refused: Cell::new(0),
            reserve: RefCell::default(),
            stackless: RefCell::default(),
            is_short: Cell::new(true),
            trim_due: Cell::new(None),
            spare_stacks: Cell::new(usize::MAX),
            at_end: RefCell::default(),
            inbox: RefCell::default(),
            credit: Cell::new(0),
            credit_lot,
            placed_on: Cell::new(None),
            placed_left: Cell::new(0),
            arrived: Cell::new(0),
            callbacks: RefCell::default(),
            pace: Cell::new(1),
            budget: Cell::new(BUDGET_MAX),
            poll_due: Cell::new(now()),
            was_useful: Cell::new(false),
            is_stopping: Cell::new(false),
            extensions: crate::extensions::Extensions::default(),
        }
    }

    /// THE LOOP. Each line is one step of a turn; see the steps below in the same order.
    fn run(&self) {
        self.keep_reserve();
        while !self.is_finished() {
            self.drain_injector();
            self.expire_timers();
            self.run_batch();
            self.share_unstarted();
            self.end_turn();
            self.poll();
        }
        self.close();
    }

    /// Step 1: what other threads want of this worker.
    fn drain_injector(&self) {
        let mut batch = self.inbox.take();
        self.injector.inbox.drain(&mut batch);
        for message in batch.drain(..) {
            match message {
                Message::Wake(task) => self.unpark(task),
                Message::Start(job) => self.receive(job),
                Message::StartHere(job) => self.push_local(job),
                Message::Forget(source) => self.forget(source),
                Message::Stop => self.stop(),
                // Whoever asked may have lost patience.
                Message::Audit(answer) => drop(answer.send((self.audit(), self.credit.get()))),
            }
        }
        self.inbox.replace(batch);
    }

    fn receive(&self, job: Job) {
        self.push_fresh(job);
        self.set_arrived(self.arrived.get() + 1);
        self.injector.note_arrival();
    }

    fn set_arrived(&self, count: usize) {
        self.arrived.set(count);
        self.publish_live();
    }

    /// Step 2: dhagas whose deadline has passed go first, but keep nobody out: who compute and sleep may always be late. So
    /// those of this round that are ready go before them, and between two late ones that go before the unstarted one starts.
    fn expire_timers(&self) {
        let mut timers = self.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        let (now, tasks) = (now(), self.tasks.borrow());
        let mut late = Vec::new();
        while let Some(id) = timers.pop_expired(now) {
            let Some(task) = tasks.get(id) else { continue };
            task.timer.set(None);
            if let State::Parked(_) = task.state.get() {
                task.state.set(State::Ready);
                task.verdict.set(Wake::TimedOut);
                late.push(task);
            }
        }
        self.queue_late(late);
    }

    fn queue_late(&self, late: Vec<TaskRef>) {
        if self.ready_left.get() > 0 {
            return late.into_iter().for_each(|task| self.ready.push_back(task));
        }
        let (count, unstarted_left) = (late.len(), self.unstarted_left.get());
        late.into_iter().rev().for_each(|task| self.ready.push_front(task));
        if count > 0 && self.unstarted_at_late.replace(unstarted_left) != unstarted_left {
            self.ready_left.set(count);
        }
    }

    /// Step 3: ready and unstarted dhagas, until none is left or the batch's time is over.
    fn run_batch(&self) {
        let mut batch = Batch::new(self.pace.get());
        let mut has_run = false;
        while self.run_one() {
            has_run = true;
            if batch.is_over() {
                break;
            }
        }
        if has_run {
            self.was_useful.set(true);
            self.pace.set(batch.pace);
            if self.trim_due.get().is_some() {
                self.spare_stacks.set(self.spare_stacks.get().min(self.count_spare_stacks()));
            }
        }
    }

    /// Runs one dhaga until it waits or ends. Returns whether there was one.
    ///
    /// In rounds: first those that were ready when the round began, then those that were unstarted. So neither keeps the
    /// other out, and one that waits for a whole batch of new ones is not resumed for each of them.
    ///
    /// But whoever was woken by the dhaga that ran last goes first, while its data is near: the answer to a request meets
    /// who waits for it. Not for ever, so that two who wake each other keep nobody out.
    #[inline(always)]
    fn run_one(&self) -> bool {
        if let Some(task) = self.handed.take() {
            let hand_offs = self.hand_offs.get();
            if hand_offs < HAND_OFFS_MAX {
                self.hand_offs.set(hand_offs + 1);
                self.resume(task);
                return true;
            }
            self.ready.push_back(task);
        }
        self.hand_offs.set(0);
        if self.ready_left.get() == 0 {
            if self.has_unstarted() {
                return self.run_one_of_round();
            }
            self.ready_left.set(self.ready.len());
        }
        self.ready_left.set(self.ready_left.get().wrapping_sub(1));
        self.resume_next()
    }

    /// The ready ones of this round have run, and there are unstarted ones.
    #[inline(never)]
    fn run_one_of_round(&self) -> bool {
        if self.unstarted_left.get() == 0 {
            self.unstarted_left.set(self.count_unstarted());
            self.ready_left.set(self.ready.len());
        }
        if self.ready_left.get() > 0 {
            self.ready_left.set(self.ready_left.get() - 1);
            return self.resume_next();
        }
        self.unstarted_left.set(self.unstarted_left.get() - 1);
        if self.start_next() {
            return true;
        }
        // Others have taken them.
        self.unstarted_left.set(0);
        self.resume_next()
    }

    fn count_unstarted(&self) -> usize {
        self.local.borrow().len() + self.fresh.borrow().len() + self.injector.unstarted_len()
    }

    #[inline(always)]
    fn has_unstarted(&self) -> bool {
        !self.local.borrow().is_empty() || !self.fresh.borrow().is_empty() || self.injector.unstarted_len() > 0
    }

    #[inline(always)]
    fn resume_next(&self) -> bool {
        let Some(task) = self.ready.pop_front() else {
            self.ready_left.set(0);
            return false;
        };
        // While this one runs, the next ones come near: among thousands each touch would be a miss.
        let [first, second] = self.ready.hints();
        if let Some(second) = second {
            second.prefetch();
        }
        if let Some(first) = first {
            first.prefetch_stack();
        }
        self.resume(task);
        true
    }

    /// Step 4: what this batch did not start, idle workers may take; and others learn how many wait here.
    fn share_unstarted(&self) {
        self.publish_live();
        if self.shared.workers < 2 {
            return;
        }
        self.publish_fresh();
        self.has_shared_lot.set(false);
        if self.injector.unstarted_len() > 0 {
            self.shared.wake_thief();
        }
    }

    fn publish_fresh(&self) {
        let mut fresh = self.fresh.borrow_mut();
        if !fresh.is_empty() {
            self.injector.publish(fresh.drain(..));
            shrink_if_emptied(&mut fresh);
            self.taken_back.set(0);
            self.set_arrived(0);
        }
    }

    /// Step 5: what was asked for the end of the turn: each dirty connection is flushed once.
    fn end_turn(&self) {
        let mut list = self.at_end.take();
        for work in list.drain(..) {
            work.at_end();
        }
        let mut current = self.at_end.borrow_mut();
        if current.is_empty() {
            *current = list;
        }
    }

    /// Step 6: the sockets. Blocks if there is nothing else to do, and asks only now and then if there is.
    fn poll(&self) {
        if self.has_work() || self.is_empty_and_stopping() || self.steal() {
            if now() >= self.poll_due.get() {
                self.turn_reactor(Some(Duration::ZERO));
            }
        } else if !self.doze() {
            self.sleep();
        }
    }

    /// Polls without blocking for a little while after useful work. Returns whether it found some.
    fn doze(&self) -> bool {
        if !self.shared.dozes || !self.was_useful.get() {
            return false;
        }
        let until = now() + DOZE_MAX;
        loop {
            if self.turn_reactor(Some(Duration::ZERO)) > 0
                || self.has_work()
                || self.injector.inbox.has_messages()
                || self.steal()
            {
                return true;
            }
            let now = now();
            if now >= until || self.timers.borrow().next_deadline().is_some_and(|deadline| deadline <= now) {
                return false;
            }
        }
    }

    /// Blocks in the poll until an event, a message, or the earliest deadline.
    fn sleep(&self) {
        self.trim_stacks();
        self.was_useful.set(false);
        // Who stops steals nothing, so what others have to share need not keep it up.
        let doors = if self.is_stopping.get() { &[] } else { self.shared.injectors() };
        let may_block = self.shared.thieves.fall_asleep(&self.injector.inbox, doors.iter().copied());
        self.turn_reactor(if may_block { self.until_next_deadline() } else { Some(Duration::ZERO) });
        self.shared.thieves.get_up(&self.injector.inbox);
        self.steal();
    }

    fn until_next_deadline(&self) -> Option<Duration> {
        let deadline = self.timers.borrow().next_deadline();
        let earliest = deadline.into_iter().chain(self.trim_due.get()).min()?;
        Some(earliest.saturating_duration_since(now()))
    }

    fn count_spare_stacks(&self) -> usize {
        self.stacks.borrow().spare(WARM_BYTES_MAX)
    }

    /// Gives memory of stacks back that nobody needed for a while. Armed only while there is some, so that an idle
    /// process sleeps for good.
    fn trim_stacks(&self) {
        let spare = self.count_spare_stacks();
        if spare == 0 {
            return self.trim_due.set(None);
        }
        let now = now();
        match self.trim_due.get() {
            Some(due) if due > now => return,
            Some(_) => {
                let share = self.spare_stacks.get().min(spare).div_ceil(8);
                let is_refused = share > 0 && self.trim(share, now) == 0;
                self.trim_due.set(Some(now + if is_refused { TRIM_REFUSED_PAUSE } else { TRIM_PERIOD }));
            }
            None => self.trim_due.set(Some(now + TRIM_PERIOD)),
        }
        self.spare_stacks.set(spare);
    }

    /// Trims so many stacks, or as many as there is time for, and returns how many.
    fn trim(&self, count: usize, began: Instant) -> usize {
        let (mut stacks, mut left) = (self.stacks.borrow_mut(), count);
        loop {
            let step = left.min(TRIMMED_PER_LOOK);
            let trimmed = stacks.trim(WARM_BYTES_MAX, step);
            left -= trimmed;
            if trimmed < step || left == 0 || now() - began > TRIM_TIME_MAX {
                return count - left;
            }
        }
    }

    fn turn_reactor(&self, timeout: Option<Duration>) -> usize {
        self.poll_due.set(now() + POLL_PERIOD);
        let count = self.reactor.borrow_mut().turn(timeout, |report| self.take_report(report));
        self.call_back();
        count
    }

    fn take_report(&self, report: Report) {
        match report {
            Report::Waiter(address) => self.unpark_anywhere(address),
            Report::Callback(callback) => self.callbacks.borrow_mut().push(callback),
        }
    }

    /// Only now that the reactor is free again: a callback may be the last owner of a source, which is closed with it.
    fn call_back(&self) {
        if self.callbacks.borrow().is_empty() {
            return;
        }
        let mut list = self.callbacks.take();
        list.drain(..).for_each(|callback| callback.on_ready());
        self.callbacks.replace(list);
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || self.handed.get().is_some()
            || self.has_unstarted()
            || !self.at_end.borrow().is_empty()
    }

    /// Takes half of what another worker has not started. Returns whether it got some.
    fn steal(&self) -> bool {
        if self.is_stopping.get() {
            return false;
        }
        let others = self.shared.injectors().iter().filter(|other| !std::ptr::eq(**other, self.injector));
        for victim in others {
            let taken = victim.take_unstarted(|len| len.div_ceil(2), &mut self.fresh.borrow_mut());
            if taken > 0 {
                if self.shared.has_unstarted() {
                    self.shared.wake_thief();
                }
                return true;
            }
        }
        false
    }
}

impl Worker {
    fn audit(&self) -> Audit {
        let reserve = usize::from(self.reserve.borrow().is_some());
        Audit {
            tasks: self.tasks.borrow().len(),
            unstarted: self.count_unstarted() + self.stackless.borrow().len(),
            stacks: self.stacks.borrow().stats().in_use - reserve,
            timers: self.timers.borrow().len(),
            sources: self.reactor.borrow().len(),
            at_end: self.at_end.borrow().len(),
            reserved: 0,
        }
    }
}

/// Starting and resuming dhagas.
impl Worker {
    /// Starts the next unstarted dhaga. Returns whether there was one.
    #[inline(never)]
    fn start_next(&self) -> bool {
        let Some(job) = self.next_unstarted() else {
            return false;
        };
        if self.is_stopping.get() {
            self.start(job, Job::discard);
        } else {
            self.start(job, Job::execute);
        }
        true
    }

    fn next_unstarted(&self) -> Option<Job> {
        if let Some(job) = self.local.borrow_mut().pop_front() {
            return Some(job);
        }
        loop {
            let job = self.next_shareable()?;
            match self.placement() {
                Some(other) => match other.push_start(job) {
                    // Its reservation goes with it: credit is returned where a dhaga ends, and the lots even out.
                    Ok(()) => {}
                    Err(job) => return Some(job),
                },
                None => return Some(job),
            }
        }
    }

    /// The oldest first: what was published before what is fresh.
    fn next_shareable(&self) -> Option<Job> {
        let mut fresh = self.fresh.borrow_mut();
        if self.taken_back.get() == 0 && self.injector.unstarted_len() > 0 {
            // Some at a time, for the sake of the lock, and never all, for the sake of the thieves.
            let spawned_since = fresh.len();
            let taken = self.injector.take_unstarted(|len| len.div_ceil(2).min(TAKEN_BACK_MAX), &mut fresh);
            fresh.rotate_left(spawned_since);
            self.taken_back.set(taken);
        }
        let job = fresh.pop_front()?;
        self.taken_back.set(self.taken_back.get().saturating_sub(1));
        shrink_if_emptied(&mut fresh);
        self.arrived.set(self.arrived.get().saturating_sub(1));
        Some(job)
    }

    /// Where a new dhaga belongs, if not here. Asked again after so many starts only, because the answer lies in lines that
    /// other workers write.
    #[inline(always)]
    fn placement(&self) -> Option<&'static Injector> {
        if self.shared.workers < 2 {
            return None;
        }
        if self.placed_left.get() == 0 {
            self.place_next();
        }
        self.placed_left.set(self.placed_left.get() - 1);
        self.placed_on.get()
    }

    /// Decides for the next starts: a worker with more than its share of live dhagas sends the surplus to the least loaded.
    ///
    /// What counts are dhagas that wait, since those that start and end within a turn are not there when it is over. So
    /// the tolerance can be small, and is there for the lateness of the counts.
    #[inline(never)]
    fn place_next(&self) {
        self.placed_on.set(None);
        self.placed_left.set(STARTS_PER_PLACEMENT);
        self.publish_live();
        let (workers, live) = (self.shared.workers, self.injector.load());
        if live < PLACEMENT_LIVE_MIN || self.is_stopping.get() {
            return;
        }
        let total: usize = self.shared.injectors().iter().map(|injector| injector.load()).sum();
        let mean = total / workers;
        if live <= mean + PLACEMENT_TOLERANCE_MIN.max(mean / PLACEMENT_TOLERANCE) {
            return;
        }
        let surplus = u32::try_from(live - mean).unwrap_or(u32::MAX);
        self.placed_on.set(self.shared.least_loaded().filter(|other| !std::ptr::eq(*other, self.injector)));
        self.placed_left.set(surplus.clamp(1, STARTS_PER_PLACEMENT));
    }

    #[inline(always)]
    fn start(&self, job: Job, end_of: impl FnOnce(Job) -> Execution + 'static) {
        let stack_bytes = match job.stack_bytes() {
            0 => self.shared.stack_bytes,
            asked => asked,
        };
        let stack = self.stacks.borrow_mut().take(stack_bytes);
        match stack {
            Ok(stack) => self.start_on(stack, job, end_of),
            Err(error) => self.refuse(job, &error),
        }
    }

    #[inline(always)]
    fn start_on(&self, stack: Stack, job: Job, end_of: impl FnOnce(Job) -> Execution + 'static) {
        stack.set_label(job.label().name(), job.label().site);
        let task = self.tasks.borrow_mut().insert(stack, move |task| {
            // SAFETY: the job's half of the pair keeps the head alive up to `complete`, and `run_job` forgets it before.
            unsafe { task.set_head(job.pointer()) };
            run_job(task, job, end_of);
        });
        let id = task.id();
        self.resume(task);
        if self.is_stopping.get() {
            // What waits while it is dropped must not hold up the shutdown.
            self.unwind(id);
        }
    }

    /// There is no memory for a stack. The closure is lost, which whoever joins it learns; nobody else may know. To drop
    /// it is user code too, so it gets the stack that was kept for this.
    #[cold]
    fn refuse(&self, job: Job, error: &StackError) {
        let reserve = self.reserve.take();
        self.is_short.set(true);
        if reserve.is_none() && self.tasks.borrow().len() > 0 {
            // Somebody's end will bring a stack.
            return self.stackless.borrow_mut().push_back(job);
        }
        let refused = self.refused.get() + 1;
        self.refused.set(refused);
        // A burst of them is a burst of one kind: the 1st, 2nd, 4th, 8th ... tells of all.
        if refused.is_power_of_two() {
            let label = job.label();
            log::error!(
                "dhaga {:?} spawned at {} never ran, as {refused} of this worker by now: {error}",
                label.display_name(),
                label.site
            );
        }
        match reserve {
            Some(stack) => self.start_on(stack, job, Job::discard),
            None => {
                // There is no stack at all, and nobody who could give one back. A wait in this `Drop` panics, and is logged.
                drop(job);
                self.keep_reserve();
                self.return_one_credit();
            }
        }
    }

    /// Keeps a stack for the case that there is no other, and lets one try again who waits for it.
    #[cold]
    fn keep_reserve(&self) {
        let (mut reserve, mut stackless) = (self.reserve.borrow_mut(), self.stackless.borrow_mut());
        if reserve.is_none() {
            *reserve = self.stacks.borrow_mut().take(self.shared.stack_bytes).ok();
        }
        if reserve.is_some() || self.tasks.borrow().len() == 0 {
            self.local.borrow_mut().extend(stackless.pop_front());
        }
        self.is_short.set(reserve.is_none() || !stackless.is_empty());
    }

    fn publish_live(&self) {
        self.injector.set_live(self.tasks.borrow().len() + self.arrived.get());
    }

    /// The one place where a dhaga is resumed.
    #[inline(always)]
    fn resume(&self, task: TaskRef) {
        self.budget.set(BUDGET_MAX);
        self.current.set(Some(task));
        let outcome = task.resume();
        self.current.set(None);
        if let Outcome::Finished = outcome {
            self.end(task);
        }
    }

    #[inline(always)]
    fn end(&self, task: TaskRef) {
        fork::abort_if_forked();
        let stack = self.tasks.borrow_mut().remove(task);
        self.stacks.borrow_mut().give_back(stack);
        if self.is_short.get() {
            self.keep_reserve();
        }
        self.return_one_credit();
    }

    /// Reserves room for one dhaga.
    #[inline(always)]
    pub(crate) fn take_credit(&self) -> bool {
        if self.credit.get() == 0 {
            self.credit.set(self.shared.draw_credit(self.credit_lot));
            if self.credit.get() == 0 {
                return false;
            }
        }
        self.credit.set(self.credit.get() - 1);
        true
    }

    #[inline(always)]
    pub(crate) fn return_one_credit(&self) {
        let (credit, kept) = (self.credit.get() + 1, self.credit_lot - 1);
        if credit <= 2 * kept {
            self.credit.set(credit);
        } else {
            self.shared.return_credit(credit - kept);
            self.credit.set(kept);
        }
    }

    /// Queues an unstarted dhaga. Signals nobody: the end of the batch does, or the end of a lot of a great burst, so that
    /// others need not wait until the spawner has spawned them all.
    #[inline(always)]
    pub(crate) fn push_fresh(&self, job: Job) {
        let mut fresh = self.fresh.borrow_mut();
        fresh.push_back(job);
        if fresh.len() >= SHARED_LOT && self.shared.workers > 1 {
            drop(fresh);
            self.share_lot();
        }
    }

    #[cold]
    fn share_lot(&self) {
        self.publish_fresh();
        if !self.has_shared_lot.replace(true) {
            self.shared.wake_thief();
        }
    }

    /// Queues a dhaga that must start on this worker.
    pub(crate) fn push_local(&self, job: Job) {
        self.local.borrow_mut().push_back(job);
    }

    /// As [`Worker::push_local`], whether there is room for it or not.
    pub(crate) fn push_at_any_rate(&self, job: Job) {
        if !self.take_credit() {
            self.shared.overdraw_credit();
        }
        self.push_local(job);
    }

    pub(crate) fn push_at_end(&self, work: Arc<dyn AtEnd>) {
        self.at_end.borrow_mut().push(work);
    }
}

/// Waiting and waking.
impl Worker {
    #[inline(always)]
    pub(crate) fn current(&self) -> Option<TaskRef> {
        self.current.get()
    }

    pub(crate) fn address(&self, task: &Task) -> Address {
        Address { injector: self.injector, task: task.id() }
    }

    /// Suspends the running dhaga until it is unparked or the deadline passes. The one way to wait.
    #[inline(always)]
    pub(crate) fn suspend(&self, task: TaskRef, reason: WaitReason, deadline: Option<Instant>) -> Wake {
        if task.permit.replace(false) || !task.is_settled.get() && self.settle(task) {
            return Wake::Ready;
        }
        if let Some(deadline) = deadline {
            self.arm(task, deadline);
        }
        task.state.set(State::Parked(reason));
        let wake = coroutine::suspend();
        if deadline.is_some() {
            self.disarm(task);
        }
        wake
    }

    /// Before its first wait a dhaga says where it lives, for those who may cancel it. Returns whether one already has.
    #[inline(never)]
    fn settle(&self, task: TaskRef) -> bool {
        task.is_settled.set(true);
        task.head().is_some_and(|head| {
            head.settle(self.address(&task).home());
            head.scope().is_cancelled_by_now()
        })
    }

    #[inline(never)]
    fn arm(&self, task: TaskRef, deadline: Instant) {
        task.timer.set(Some(self.timers.borrow_mut().arm(deadline, task.id())));
    }

    #[inline(never)]
    fn disarm(&self, task: TaskRef) {
        if let Some(key) = task.timer.take() {
            self.timers.borrow_mut().cancel(key);
        }
    }

    /// Counts an operation of the running dhaga. Returns whether it shall give way.
    #[inline(always)]
    pub(crate) fn spend(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        left == 0
    }

    /// Sends the running dhaga to the tail of the queue.
    #[inline(always)]
    pub(crate) fn yield_now(&self, task: TaskRef) -> Wake {
        self.ready.push_back(task);
        coroutine::suspend()
    }

    /// Makes a dhaga of this worker ready, or saves it the wake if it is not parked. The last one that the running dhaga
    /// wakes is next.
    #[inline(always)]
    pub(crate) fn unpark(&self, id: TaskId) {
        if let Some(woken) = self.wake(id) {
            let queued = if self.current.get().is_some() { self.handed.replace(Some(woken)) } else { Some(woken) };
            if let Some(queued) = queued {
                self.ready.push_back(queued);
            }
        }
    }

    /// As [`Worker::unpark`], behind all who are ready.
    pub(crate) fn unpark_in_turn(&self, id: TaskId) {
        if let Some(woken) = self.wake(id) {
            self.ready.push_back(woken);
        }
    }

    /// A dhaga that was parked and is to be queued.
    #[inline(always)]
    fn wake(&self, id: TaskId) -> Option<TaskRef> {
        let task = self.tasks.borrow().get(id)?;
        if task.state.get() == State::Ready {
            task.permit.set(true);
            return None;
        }
        task.state.set(State::Ready);
        Some(task)
    }

    /// Makes a dhaga of any worker ready.
    #[inline(always)]
    pub(crate) fn unpark_anywhere(&self, address: Address) {
        if std::ptr::eq(address.injector, self.injector) {
            self.unpark(address.task);
        } else {
            // A worker that has ended has no dhaga left to wake.
            let _ = address.injector.push(Message::Wake(address.task));
        }
    }

    pub(crate) fn register(
        &self,
        descriptor: std::os::fd::RawFd,
        readiness: &Arc<Readiness>,
    ) -> std::io::Result<usize> {
        self.reactor.borrow_mut().register(descriptor, readiness)
    }

    pub(crate) fn forget(&self, source: usize) {
        self.reactor.borrow_mut().forget(source);
    }

    pub(crate) fn describe_slot(&self, slot: u32) -> Option<String> {
        self.tasks.borrow().live().find(|task| task.slot == slot).map(|task| describe(&task))
    }
}

/// What a dhaga does, from its first instruction to its last, on its own stack.
#[inline(always)]
fn run_job(task: TaskRef, job: Job, end_of: impl FnOnce(Job) -> Execution) {
    let head = job.pointer();
    let mut execution = end_of(job);
    loop {
        execution.drop_unwanted();
        task.forget_head();
        match execution.complete() {
            Ok(()) => return,
            // The handle went away at this very moment, and the result is to be dropped as by a dhaga.
            Err(again) => {
                // SAFETY: the job's half is still ours, and keeps the head alive.
                unsafe { task.set_head(head) };
                execution = again;
            }
        }
    }
}

fn describe(task: &Task) -> String {
    let Some(head) = task.head() else {
        return "a dhaga that has ended".to_owned();
    };
    let state = match task.state.get() {
        State::Parked(reason) => format!("waits ({reason:?})"),
        State::Ready => "runs or is ready to".to_owned(),
    };
    format!("dhaga {:?} (spawned at {}): {state}", head.label().display_name(), head.label().site)
}

/// Stopping.
impl Worker {
    /// Unwinds every dhaga; what is unstarted will be discarded instead of run.
    fn stop(&self) {
        self.is_stopping.set(true);
        let live: Vec<_> = self.tasks.borrow().live().map(|task| task.id()).collect();
        live.into_iter().for_each(|id| self.unwind(id));
    }

    /// Throws in a dhaga at its next wait, or in the one in which it is parked. Where panics abort, so would a throw: there
    /// the dhaga goes on.
    pub(crate) fn unwind(&self, id: TaskId) {
        if cfg!(panic = "abort") {
            return;
        }
        let Some(task) = self.tasks.borrow().get(id) else { return };
        task.is_unwinding.set(true);
        if let State::Parked(_) = task.state.get() {
            task.state.set(State::Ready);
            task.verdict.set(Wake::Unwind);
            self.ready.push_back(task);
        }
    }

    fn is_finished(&self) -> bool {
        self.is_empty_and_stopping() && !self.has_work() && self.injector.inbox.close_if_empty()
    }

    fn is_empty_and_stopping(&self) -> bool {
        self.is_stopping.get() && self.tasks.borrow().len() == 0
    }

    /// The worker's last act: no dhaga of its own is left, and its injector is closed.
    fn close(&self) {
        self.reactor.borrow_mut().close(|report| self.take_report(report));
        self.callbacks.take();
        self.end_turn();
        self.extensions.clear();
        if let Some(stack) = self.reserve.take() {
            self.stacks.borrow_mut().give_back(stack);
        }
        self.shared.return_credit(self.credit.take());
    }
}

/// How long a batch has run. Looks at the clock often where a single dhaga may use up the whole time, and rarely where
/// a look would cost more than the resume before it.
struct Batch {
    started: Instant,
    looked: Instant,
    /// Resumes between two looks.
    pace: u32,
    until_look: u32,
}

impl Batch {
    fn new(pace: u32) -> Self {
        let started = now();
        Self { started, looked: started, pace, until_look: pace }
    }

    /// Counts one resume, and says whether the time is over.
    #[inline(always)]
    fn is_over(&mut self) -> bool {
        self.until_look -= 1;
        self.until_look == 0 && self.look(now())
    }

    fn look(&mut self, now: Instant) -> bool {
        let elapsed = (now - self.looked).as_nanos() as u64;
        let pace = u64::from(self.pace) * LOOK_NANOS / elapsed.max(1);
        self.pace = pace.clamp(1, u64::from(RESUMES_PER_LOOK_MAX)) as u32;
        (self.looked, self.until_look) = (now, self.pace);
        now - self.started > BATCH_MAX
    }
}

/// The one door to the clock.
#[inline(always)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many resumes of equal length fit into a batch that begins with a pace.
    fn check_batch(pace: u32, resume: Duration, expected: std::ops::RangeInclusive<u32>) {
        let mut batch = Batch::new(pace);
        let (mut now, mut count) = (batch.started, 0);
        loop {
            now += resume;
            count += 1;
            batch.until_look -= 1;
            if batch.until_look == 0 && batch.look(now) {
                break;
            }
        }
        assert!(expected.contains(&count), "{count} resumes of {resume:?}");
    }

    #[test]
    fn a_batch_ends_by_time() {
        check_batch(1, Duration::from_nanos(100), 1000..=1033);
        check_batch(1, Duration::from_micros(10), 10..=12);
        check_batch(1, Duration::from_millis(1), 1..=1);
        // What the last batch has learned costs one pace at most.
        check_batch(RESUMES_PER_LOOK_MAX, Duration::from_millis(1), RESUMES_PER_LOOK_MAX..=RESUMES_PER_LOOK_MAX);
    }

    #[test]
    fn a_batch_looks_at_the_clock_rarely_when_dhagas_are_quick() {
        let mut batch = Batch::new(1);
        let mut now = batch.started;
        for _ in 0..8 {
            now += Duration::from_nanos(100) * batch.pace;
            batch.look(now);
        }
        assert_eq!(batch.pace, RESUMES_PER_LOOK_MAX);
    }
}
