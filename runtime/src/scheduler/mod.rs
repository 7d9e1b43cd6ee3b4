//! One worker: the loop, the dhaga that runs now, suspend and wake.
//!
//! [`Worker::run`] is the loop, and with it the whole runtime: everything else here is one of its steps, or is called by
//! the dhaga that one of its steps resumed.
//!
//! Nobody signals a worker that is awake: it looks at its injector once a turn. It sleeps in the poll only after it said
//! so (see `inbox`), so whoever pushes knows whether to ring.

mod batch;
mod doze;
mod share;
mod shared;
mod sleepers;
mod start;
mod stop;
mod trim;
mod wake;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::audit::Audit;
use crate::blocks::Blocks;
use crate::coroutine::Wake;
use crate::fork;
use crate::front::{AtEnd, FEW, Front, end_all, pop_called};
use crate::job::Job;
use crate::phase::Phase;
use crate::reactor::{FutureWaker, OnReady, Reactor, Readiness, Report};
use crate::ready_queue::ReadyQueue;
use crate::run_queue::{Doorbell, Injector, Message};
use crate::stack::{Stack, StackPool};
use crate::task::{Attention, State, TaskId, TaskRef, TaskTable};
use crate::timer::Timers;

use self::batch::{Batch, Ended};
use self::doze::{Doze, Learned};
pub(crate) use self::shared::Shared;
pub(crate) use self::sleepers::Alarm;
use self::sleepers::Sleepers;
use self::start::BUDGET_MAX;
use self::wake::{Found, find_to_use, use_found};
use self::watch::{LOOK_PERIOD, LOOKS, Seen};

/// How long a worker with work goes without a look at its sockets. A look costs as much as a small request, and those who
/// are ready already came first.
const POLL_PERIOD: Duration = Duration::from_micros(500);
/// How long those who stepped back run in a turn: half of what the others may have, so that these wait no longer for them than
/// for one another, and they still get a third of a worker that has no time for both.
const PATIENT_MAX: Duration = Duration::from_micros(50);
/// Dhagas in a row that go first because the one before has woken them; as many as in tokio, for the same reason.
const HAND_OFFS_MAX: u32 = 3;
/// Dhagas that come near together: as many pages as a processor looks for at a time, and no more lines than stay in its near
/// caches while that many requests are served.
const NEAR_GROUP: usize = 8;
/// A worker later than this at its timers was kept from everything: a dhaga computed, or the machine stood still.
const LATE_MIN: Duration = Duration::from_millis(20);
/// How much processor time a late worker then spends on its sockets first, at most. Should others take the core meanwhile, or the
/// machine stand still once more, what came in time is none the worse for it.
const SOCKETS_FIRST_MAX: Duration = Duration::from_millis(5);
/// Spawn credit is drawn from and returned to the runtime in lots of this size, so that a spawn touches no shared line.
const CREDIT_LOT_MAX: usize = 256;

/// An OS thread with a scheduler. Everything in it belongs to that thread; other threads reach its injector only.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) injector: &'static Injector,
    tasks: RefCell<TaskTable>,
    current: Cell<Option<TaskRef>>,
    ready: ReadyQueue,
    /// Those who stepped back behind all others.
    patient: ReadyQueue,
    /// It is the turn of those.
    pub(crate) is_patient_turn: Cell<bool>,
    /// The dhaga that the last one woke, and how many went first in a row for that reason.
    handed: Cell<Option<TaskRef>>,
    hand_offs: Cell<u32>,
    /// Of the round that runs: ready ones that were there when it began and have not run,
    ready_left: Cell<usize>,
    /// and unstarted ones;
    unstarted_left: Cell<usize>,
    /// how many of these come behind those of this worker, and behind its callbacks.
    behind_local: Cell<usize>,
    behind_called: Cell<usize>,
    /// The head of `ready` and `unstarted_left` when late ones last went before the others.
    late_mark: Cell<(usize, usize)>,
    /// Unstarted dhagas that no other worker sees before the end of the batch.
    fresh: RefCell<VecDeque<Job>>,
    /// A great burst was shared, and a thief woken for it, before the end of this batch.
    has_shared_lot: Cell<bool>,
    /// Of `fresh`, how many at its front others have seen before.
    taken_back: Cell<usize>,
    /// Unstarted dhagas that must start here.
    local: RefCell<VecDeque<Job>>,
    timers: RefCell<Timers<TaskId>>,
    /// When the timers were last looked at, and until which [`busy_time`] the sockets go before them.
    timers_seen: Cell<Instant>,
    sockets_first: Cell<Option<Duration>>,
    /// Futures that wait for time to pass.
    sleepers: RefCell<Sleepers>,
    pub(crate) front: Arc<Front>,
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
    /// Callbacks that are yet to be called, where this worker is the only one: nobody else could do it, see `Front`.
    called: RefCell<VecDeque<Arc<dyn OnReady>>>,
    /// What was asked for the end of the turn, where this worker is the only one.
    at_end: RefCell<Vec<Arc<dyn AtEnd>>>,
    /// What was last seen of all workers, in their order.
    seen: RefCell<Box<[Seen]>>,
    /// How often this worker still wakes to look after the others, if nothing happens to itself.
    looks_left: Cell<u32>,
    /// Resumes between two looks at the clock, as the last batch found it.
    pace: Cell<u32>,
    /// Operations that the running dhaga may still do before it gives way.
    budget: Cell<u32>,
    /// When the sockets are looked at again although there is work.
    poll_due: Cell<Instant>,
    /// Something ran since the worker last slept.
    was_useful: Cell<bool>,
    /// What its dozes have taught it.
    dozes: Learned,
    /// How far the shutdown has come here.
    phase: Cell<Phase>,
    pub(crate) extensions: crate::extensions::Extensions,
    /// For who reads next on demand.
    pub(crate) read_buffer: Cell<Option<Box<[u8]>>>,
    /// Memory for the next spawns.
    pub(crate) blocks: Blocks,
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

/// As [`current_task`], with its worker.
#[inline(always)]
pub(crate) fn running() -> Option<(&'static Worker, TaskRef)> {
    let worker = WORKER.get()?;
    Some((worker, worker.current.get()?))
}

/// In the child of a fork: the dhaga that forked goes no further than its next wait (see `fork`).
pub(crate) extern "C" fn in_forked_child() {
    if let Some(task) = current_task() {
        task.attention.add(Attention::UNWINDING);
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
    pub(crate) fn new(shared: Arc<Shared>, front: Arc<Front>, doorbell: Doorbell, stacks: StackPool) -> Self {
        let credit_lot = (shared.tasks_max / (16 * shared.workers)).clamp(1, CREDIT_LOT_MAX);
        Self {
            shared,
            injector: Injector::lease(doorbell),
            tasks: RefCell::default(),
            current: Cell::default(),
            ready: ReadyQueue::default(),
            patient: ReadyQueue::default(),
            is_patient_turn: Cell::new(false),
            handed: Cell::new(None),
            hand_offs: Cell::new(0),
            ready_left: Cell::default(),
            unstarted_left: Cell::default(),
            behind_local: Cell::default(),
            behind_called: Cell::default(),
            late_mark: Cell::default(),
            fresh: RefCell::default(),
            has_shared_lot: Cell::new(false),
            taken_back: Cell::new(0),
            local: RefCell::default(),
            timers: RefCell::new(Timers::new(now())),
            timers_seen: Cell::new(now()),
            sockets_first: Cell::new(None),
            sleepers: RefCell::default(),
            front,
            seen: RefCell::default(),
            looks_left: Cell::new(0),
            stacks: RefCell::new(stacks),
            refused: Cell::new(0),
            reserve: RefCell::default(),
            stackless: RefCell::default(),
            is_short: Cell::new(true),
            trim_due: Cell::new(None),
            spare_stacks: Cell::new(usize::MAX),
            inbox: RefCell::default(),
            credit: Cell::new(0),
            credit_lot,
            placed_on: Cell::new(None),
            placed_left: Cell::new(0),
            arrived: Cell::new(0),
            callbacks: RefCell::default(),
            called: RefCell::default(),
            at_end: RefCell::default(),
            pace: Cell::new(1),
            budget: Cell::new(BUDGET_MAX),
            poll_due: Cell::new(now()),
            was_useful: Cell::new(false),
            dozes: Learned::default(),
            phase: Cell::new(Phase::Running),
            extensions: crate::extensions::Extensions::default(),
            read_buffer: Cell::default(),
            blocks: Blocks::new(),
        }
    }

    /// THE LOOP. Each line is one step of a turn; see the steps below in the same order.
    fn run(&self) {
        while !self.is_finished() {
            self.drain_injector();
            let now = now();
            self.expire_timers(now);
            let ended = self.run_batch(now);
            self.share_unstarted();
            self.end_turn(ended);
            self.run_patient();
            self.poll();
            self.front.note_turn();
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
                Message::Disarm(sleeper) => self.disarm_from_afar(sleeper),
                Message::Shutdown => self.follow_shutdown(),
                // Whoever asked may have lost patience.
                Message::Audit(answer) => drop(answer.send((self.audit(), self.credit.get()))),
                Message::Report(number, answer) => {
                    drop(answer.send(self.report(number)));
                    self.shared.notify();
                }
            }
        }
        self.inbox.replace(batch);
    }

    /// Step 2: dhagas whose deadline has passed go before those that are merely ready, but keep nobody out: who compute and
    /// sleep may always be late.
    fn expire_timers(&self, now: Instant) {
        let mut timers = self.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        if self.sockets_go_first(now, &timers) {
            return;
        }
        let tasks = self.tasks.borrow();
        let mut late = Vec::new();
        while let Some(id) = timers.pop_expired(now) {
            let Some(task) = tasks.get(id) else {
                self.rouse_sleeper(id);
                continue;
            };
            task.timer.set(None);
            if let State::Parked(_) = task.state.get() {
                task.state.set(State::Ready);
                task.verdict.set(Wake::TimedOut);
                late.push(task);
            }
        }
        drop((timers, tasks));
        self.queue_late(late);
        self.call_back();
    }

    /// What came in time is found in time, even by a worker that looks late: without this, a pause of the machine would end
    /// all waits that had a deadline, while the answers lie in the sockets.
    #[inline(always)]
    fn sockets_go_first(&self, now: Instant, timers: &Timers<TaskId>) -> bool {
        let was_away = now.saturating_duration_since(self.timers_seen.replace(now)) >= LATE_MIN;
        (was_away || self.sockets_first.get().is_some()) && self.look_at_sockets_first(now, timers)
    }

    #[inline(never)]
    fn look_at_sockets_first(&self, now: Instant, timers: &Timers<TaskId>) -> bool {
        let goes_on = match self.sockets_first.get() {
            Some(end) => busy_time() < end && self.has_work(),
            // Else it only slept until somebody wanted it.
            None => timers.next_deadline().is_some_and(|deadline| now.saturating_duration_since(deadline) >= LATE_MIN),
        };
        if !goes_on {
            self.sockets_first.set(None);
        } else if self.sockets_first.get().is_none() {
            self.sockets_first.set(Some(busy_time() + SOCKETS_FIRST_MAX));
            self.poll_due.set(now);
        }
        goes_on
    }

    /// Those of the last time may have had the whole batch: they go first again only if another has run since.
    fn queue_late(&self, late: Vec<TaskRef>) {
        if late.is_empty() {
            return;
        }
        let mark = (self.ready.head(), self.unstarted_left.get());
        let (head, unstarted_left) = self.late_mark.replace(mark);
        let has_another_run = mark.0.wrapping_sub(head) as isize > 0 || mark.1 != unstarted_left;
        if !has_another_run && self.has_work() {
            return late.into_iter().for_each(|task| self.ready.push_back(task));
        }
        if self.ready_left.get() + self.unstarted_left.get() > 0 {
            self.ready_left.set(self.ready_left.get() + late.len());
        }
        late.into_iter().rev().for_each(|task| self.ready.push_front(task));
    }

    /// Step 3: ready and unstarted dhagas, until none is left or the batch's time is over.
    fn run_batch(&self, now: Instant) -> Ended {
        let mut batch = Batch::new(self.pace.get(), now);
        let (mut has_run, mut ended) = (false, Ended::AllRan);
        while self.run_one() {
            has_run = true;
            if batch.is_over() {
                // Before those who stepped back run, everything leaves.
                let goes_on = !self.ready.is_empty() && self.patient.is_empty();
                ended = if goes_on { batch.cut_short() } else { Ended::AllRan };
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
        ended
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
        if let Some(task) = self.handed.get() {
            self.handed.set(None);
            let hand_offs = self.hand_offs.get();
            if hand_offs < HAND_OFFS_MAX {
                self.hand_offs.set(hand_offs + 1);
                self.resume(task);
                return true;
            }
            self.ready.push_back(task);
        }
        self.hand_offs.set(0);
        match self.ready_left.get() {
            0 if self.has_unstarted() => return self.run_one_of_round(),
            0 => self.ready_left.set(self.ready.len().saturating_sub(1)),
            left => self.ready_left.set(left - 1),
        }
        self.resume_next()
    }

    /// The ready ones of this round have run, and there are unstarted ones.
    #[inline(never)]
    fn run_one_of_round(&self) -> bool {
        if self.unstarted_left.get() == 0 {
            self.begin_round_of_unstarted();
            self.ready_left.set(self.ready.len());
        }
        if self.ready_left.get() > 0 {
            self.ready_left.set(self.ready_left.get() - 1);
            return self.resume_next();
        }
        // Saturating: others may have taken the only one since it was seen.
        self.unstarted_left.set(self.unstarted_left.get().saturating_sub(1));
        if self.start_next() {
            return true;
        }
        // Others have taken them.
        self.unstarted_left.set(0);
        self.resume_next()
    }

    #[inline(always)]
    fn resume_next(&self) -> bool {
        let Some(task) = self.ready.pop_front() else {
            self.ready_left.set(0);
            return false;
        };
        self.bring_near();
        self.resume(task);
        true
    }

    /// While one runs, the next ones come near: among thousands each touch would be a miss.
    ///
    /// Each lies on a page of its own, and to find a page takes the processor as long as all the rest of a wake, but several
    /// at a time as long as one. So the pages of a group are asked for together.
    #[inline(always)]
    fn bring_near(&self) {
        if self.ready.head().is_multiple_of(NEAR_GROUP) {
            self.ready.each_of_first(NEAR_GROUP, TaskRef::prefetch);
        }
        if let Some(first) = self.ready.first() {
            first.prefetch_work();
        }
    }

    /// Step 5: what was asked for the end of the turn: each dirty connection is flushed once. During a shutdown, who waits
    /// for it is told when nothing is left.
    fn end_turn(&self, ended: Ended) {
        match ended {
            Ended::AllRan => self.flush(),
            Ended::Amid => self.flush_all_but_last(),
        }
        if self.phase.get() != Phase::Running {
            self.note_what_is_left();
        }
    }

    fn flush(&self) {
        self.do_at_end(self.take_at_end(), None);
    }

    /// The clock came between the dhagas of one connection, it seems: what the others of them have to send leaves with what the
    /// first have sent. That connection is the first of the next turn, so it is put off once, and one that is alone never.
    fn flush_all_but_last(&self) {
        let mut list = self.take_at_end();
        let last = if list.len() > 1 { list.pop() } else { None };
        self.do_at_end(list, last);
    }

    /// A worker that is the only one keeps the list to itself.
    fn take_at_end(&self) -> Vec<Arc<dyn AtEnd>> {
        match self.shared.workers {
            1 => self.at_end.take(),
            _ => self.front.take_at_end(),
        }
    }

    #[inline]
    fn do_at_end(&self, mut list: Vec<Arc<dyn AtEnd>>, put_off: Option<Arc<dyn AtEnd>>) {
        if list.is_empty() {
            return;
        }
        end_all(&mut list);
        list.extend(put_off);
        match self.shared.workers {
            1 => {
                // What these have asked for is in another list by now.
                list.append(&mut self.at_end.borrow_mut());
                drop(self.at_end.replace(list));
            }
            _ => self.front.keep_at_end(list),
        }
    }

    fn at_end_len(&self) -> usize {
        self.at_end.borrow().len() + self.front.at_end_len()
    }

    /// Step 6: those who stepped back, for a short while, when what the others have to send has left. Never left out: however
    /// much the others have to do, they get their share.
    #[inline]
    fn run_patient(&self) {
        if !self.patient.is_empty() {
            self.run_patient_for_a_while();
        }
    }

    #[inline(never)]
    fn run_patient_for_a_while(&self) {
        let began = now();
        self.is_patient_turn.set(true);
        while let Some(task) = self.patient.pop_front() {
            self.resume(task);
            if now() - began >= PATIENT_MAX {
                break;
            }
        }
        self.is_patient_turn.set(false);
        self.was_useful.set(true);
        // As behind the others: this turn may be the last for long.
        self.publish_live();
        self.end_turn(Ended::AllRan);
        // They take long, so whoever comes meanwhile is looked for at once.
        self.poll_due.set(began);
    }

    /// Step 7: the sockets. Blocks if there is nothing else to do, and asks only now and then if there is.
    fn poll(&self) {
        if self.has_work() || self.is_empty_and_stopping() || self.steal() {
            if now() >= self.poll_due.get() {
                self.turn_reactor(Some(Duration::ZERO));
            }
        } else if !self.doze() {
            self.sleep();
        }
    }

    /// Polls without blocking for a little while after useful work (see `doze`). Returns whether it found some.
    fn doze(&self) -> bool {
        if !self.shared.dozes || !self.was_useful.get() {
            return false;
        }
        let mut doze = Doze::new(&self.dozes, now());
        loop {
            self.front.note_turn();
            if self.turn_reactor(Some(Duration::ZERO)) > 0
                || self.has_work()
                || self.injector.inbox.has_messages()
                || self.steal()
            {
                doze.note_found();
                return true;
            }
            let now = now();
            if doze.is_over(now) || self.timers.borrow().next_deadline().is_some_and(|deadline| deadline <= now) {
                return false;
            }
            doze.offer(now);
            doze.pause();
        }
    }

    /// Blocks in the poll until an event, a message, or the earliest deadline; shortly, while others may need help.
    fn sleep(&self) {
        self.trim_stacks();
        if self.was_useful.replace(false) {
            self.looks_left.set(LOOKS);
        }
        if self.relieve_late() {
            return;
        }
        // Before it says that it sleeps: else who serves at this front might take the ring that is to rouse it.
        let mut reactor = self.front.reactor();
        // Who stops steals nothing, so what others have to share need not keep it up.
        let doors = if self.is_stopping() { &[] } else { self.shared.injectors() };
        let may_block = self.shared.thieves.fall_asleep(&self.injector.inbox, doors.iter().copied());
        self.poll_due.set(now() + POLL_PERIOD);
        let look = (may_block && self.shared.watches() && self.is_watchful()).then_some(LOOK_PERIOD);
        let timeout =
            if may_block { self.until_next_deadline().into_iter().chain(look).min() } else { Some(Duration::ZERO) };
        self.take_reports(&mut reactor, timeout);
        drop(reactor);
        self.call_back();
        self.shared.thieves.get_up(&self.injector.inbox);
        if self.shared.watches() {
            self.end_unwatchful_sleep();
        }
        self.steal();
    }

    fn until_next_deadline(&self) -> Option<Duration> {
        let deadline = self.timers.borrow().next_deadline();
        let earliest = deadline.into_iter().chain(self.trim_due.get()).min()?;
        Some(earliest.saturating_duration_since(now()))
    }

    fn turn_reactor(&self, timeout: Option<Duration>) -> usize {
        self.poll_due.set(now() + POLL_PERIOD);
        let count = self.take_reports(&mut self.front.reactor(), timeout);
        self.call_back();
        count
    }

    fn take_reports(&self, reactor: &mut Reactor, timeout: Option<Duration>) -> usize {
        let (mut found, mut wakers) = (Found::default(), Found::default());
        let count = reactor.turn(timeout, |report| match report {
            Report::Waiter(address) if std::ptr::eq(address.injector, self.injector) => {
                self.find_to_wake(address.task, &mut found);
            }
            Report::Future(FutureWaker::Own(waker)) => find_to_use(waker, &mut wakers),
            other => self.take_report(other),
        });
        self.wake_found(&mut found);
        use_found(&mut wakers);
        count
    }

    fn take_report(&self, report: Report) {
        match report {
            Report::Waiter(address) => self.unpark_anywhere(address),
            Report::Future(waker) => self.wake_future(waker),
            Report::Callback(callback) => self.callbacks.borrow_mut().push(callback),
        }
    }

    fn wake_future(&self, waker: FutureWaker) {
        match waker {
            FutureWaker::Own(waker) => waker.wake(),
            // No dhaga of this worker runs any more, and it finds another place for what it has to do.
            FutureWaker::Foreign(waker) if self.is_stopping() => waker.on_ready(),
            FutureWaker::Foreign(waker) => self.callbacks.borrow_mut().push(waker),
        }
    }

    /// Only now that the reactor is free again: a callback may be the last owner of a source, which is closed with it.
    ///
    /// They are called one at a time, as dhagas are started, so that what each touches is in the cache when its dhaga starts; and
    /// so that an idle worker can take over those that are left when the dhaga of the one before computes for long.
    fn call_back(&self) {
        if self.callbacks.borrow().is_empty() {
            return;
        }
        let mut callbacks = self.callbacks.take();
        match self.shared.workers {
            1 if callbacks.len() < FEW => callbacks.drain(..).for_each(|callback| callback.on_ready()),
            1 => self.called.borrow_mut().extend(callbacks.drain(..)),
            _ => self.front.push_called(callbacks.drain(..)),
        }
        self.callbacks.replace(callbacks);
    }

    /// Whoever is to be called next.
    fn pop_called(&self) -> Option<Arc<dyn OnReady>> {
        match self.shared.workers {
            1 => pop_called(&mut self.called.borrow_mut()),
            _ => self.front.pop_called(),
        }
    }

    fn called_len(&self) -> usize {
        self.called.borrow().len() + self.front.called_len()
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || !self.patient.is_empty()
            || self.handed.get().is_some()
            || self.has_unstarted()
            || self.at_end_len() > 0
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
            sources: self.front.reactor().len(),
            at_end: self.at_end_len(),
            reserved: 0,
        }
    }
}

/// Starting and resuming dhagas.
impl Worker {
    pub(crate) fn push_at_end(&self, work: Arc<dyn AtEnd>) {
        match self.shared.workers {
            1 => self.at_end.borrow_mut().push(work),
            _ => self.front.push_at_end(work),
        }
    }
}

/// Waiting and waking.
impl Worker {
    pub(crate) fn register(
        &self,
        descriptor: std::os::fd::RawFd,
        readiness: &Arc<Readiness>,
    ) -> std::io::Result<usize> {
        self.front.reactor().register(descriptor, readiness)
    }

    pub(crate) fn forget(&self, source: usize) {
        if fork::check().is_err() {
            // A copy of the parent's: whoever served at this front at that moment holds its reactor for ever.
            return;
        }
        let forgotten = self.front.reactor().forget(source);
        // Only now that the reactor is free again: it may own what is closed with it.
        drop(forgotten);
    }
}

/// The one door to the clock.
#[inline(always)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Processor time that the caller's OS thread has had, and the one door to that. A system call.
fn busy_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
