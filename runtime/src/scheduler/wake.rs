//! Waiting and waking.

use std::task::Waker;
use std::time::Instant;

use super::Worker;
use crate::coroutine::{self, Wake, prefetch_lines};
use crate::run_queue::{Address, Message};
use crate::stuck::StuckDhaga;
use crate::task::{Attention, State, Task, TaskId, TaskRef, WaitReason, refuse_in_no_suspend};

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
        if task.attention.is_needed()
            && let Some(wake) = self.attend(task, reason)
        {
            return wake;
        }
        let has_own_timer = self.time_wait(task, deadline);
        task.state.set(State::Parked(reason));
        let wake = coroutine::suspend();
        if wake == Wake::TimedOut && !has_own_timer {
            return self.suspend_on(task, reason, deadline);
        }
        wake
    }

    /// The timer of an earlier wait has rung: this one arms its own.
    #[cold]
    fn suspend_on(&self, task: TaskRef, reason: WaitReason, deadline: Option<Instant>) -> Wake {
        self.suspend(task, reason, deadline)
    }

    /// As `suspend`, for a wait that nothing may refuse: neither an order to unwind nor a `no_suspend` section.
    pub(crate) fn suspend_to_the_end(&self, task: TaskRef, reason: WaitReason) -> Wake {
        const REFUSALS: [u8; 2] = [Attention::UNWINDING, Attention::NO_SUSPEND];
        let refusals = REFUSALS.map(|bit| if task.attention.take(bit) { bit } else { 0 });
        let wake = self.suspend(task, reason, None);
        refusals.into_iter().for_each(|bit| task.attention.add(bit));
        wake
    }

    /// Something stands against this wait: the answer, unless it may go on.
    #[inline(never)]
    pub(super) fn attend(&self, task: TaskRef, reason: WaitReason) -> Option<Wake> {
        let attention = &task.attention;
        if attention.has(Attention::UNWINDING) {
            return Some(Wake::Unwind);
        }
        if attention.has(Attention::NO_SUSPEND) {
            refuse_in_no_suspend(reason);
        }
        let is_ready = attention.take(Attention::PERMIT);
        let was_woken = attention.take(Attention::UNSETTLED) && self.settle(task);
        (is_ready || was_woken).then_some(Wake::Ready)
    }

    /// Before its first wait a dhaga says where it lives, for those who may cancel it or leave it a token. Returns whether
    /// one already has.
    fn settle(&self, task: TaskRef) -> bool {
        task.head().is_some_and(|head| {
            head.settle(self.address(&task).home());
            head.was_woken_unsettled()
        })
    }

    /// As [`Worker::ensure_timer`]; most waits have no deadline, and follow one that had none.
    #[inline(always)]
    pub(super) fn time_wait(&self, task: TaskRef, deadline: Option<Instant>) -> bool {
        match (deadline, task.timer.get()) {
            (None, None) => false,
            (deadline, _) => self.ensure_timer(task, deadline),
        }
    }

    /// Sees to it that a timer ends a wait that begins now by its deadline. Returns whether it is the wait's own: that of an
    /// earlier wait, which rings by then, will do. So who waits again and again with the same timeout arms one for each timeout,
    /// not for each wait. But a wait without a deadline is left alone.
    #[inline(never)]
    fn ensure_timer(&self, task: TaskRef, deadline: Option<Instant>) -> bool {
        let mut timers = self.timers.borrow_mut();
        let nanos = deadline.map(|deadline| timers.nanos(deadline));
        if let Some(left) = task.timer.get() {
            let left_nanos = task.timer_nanos.get();
            if nanos.is_some_and(|nanos| left_nanos <= nanos) {
                return nanos == Some(left_nanos);
            }
            timers.cancel(left);
        }
        task.timer.set(nanos.map(|nanos| timers.arm_nanos(nanos, task.id())));
        task.timer_nanos.set(nanos.unwrap_or_default());
        nanos.is_some()
    }

    /// Takes away what the last wait of a dhaga has left.
    #[inline]
    pub(super) fn disarm(&self, task: TaskRef) {
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

    /// Sends the running dhaga behind all others (see `run_patient`).
    pub(crate) fn step_back(&self, task: TaskRef) -> Wake {
        self.patient.push_back(task);
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
    #[inline]
    pub(crate) fn unpark_in_turn(&self, id: TaskId) {
        if let Some(woken) = self.wake(id) {
            self.ready.push_back(woken);
        }
    }

    /// As [`Worker::unpark_in_turn`], for many, of any worker; at the latest when the list ends. The list may be foreign code, in
    /// which dhagas run and end, so nothing but their ids is kept meanwhile.
    #[inline]
    pub(crate) fn unpark_all_in_turn(&self, sleepers: impl Iterator<Item = Address>) {
        let mut named = Named { worker: self, ids: Found::default() };
        for address in sleepers {
            match std::ptr::eq(address.injector, self.injector) {
                true => named.push(address.task),
                false => self.unpark_anywhere(address),
            }
        }
    }

    /// Takes note of a dhaga that an event wakes, and wakes all that were found when they are a group. No dhaga runs between.
    #[inline(always)]
    pub(super) fn find_to_wake(&self, id: TaskId, found: &mut Found<TaskRef>) {
        let Some(task) = self.tasks.borrow().get(id) else { return };
        if found.push(task) {
            self.wake_found(found);
        }
    }

    /// Wakes those that were found since the last time.
    #[inline(always)]
    pub(super) fn wake_found(&self, found: &mut Found<TaskRef>) {
        found.iter().for_each(|task| task.prefetch_state());
        found.drain().for_each(|task| self.wake_one_found(task));
    }

    #[inline(always)]
    fn wake_one_found(&self, task: TaskRef) {
        if let Some(woken) = make_ready(task) {
            self.ready.push_back(woken);
        }
    }

    /// A dhaga that was parked and is to be queued.
    #[inline(always)]
    fn wake(&self, id: TaskId) -> Option<TaskRef> {
        make_ready(self.tasks.borrow().get(id)?)
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

    pub(crate) fn describe_slot(&self, slot: u32) -> Option<String> {
        let task = self.tasks.borrow().live().find(|task| task.slot == slot)?;
        let described = StuckDhaga::of(&task, 0).map(|dhaga| dhaga.to_string());
        Some(described.unwrap_or_else(|| "a dhaga that has ended".to_owned()))
    }
}

/// Returns the dhaga if it was parked and is to be queued; otherwise saves it the wake.
#[inline(always)]
fn make_ready(task: TaskRef) -> Option<TaskRef> {
    if task.state.get() == State::Ready {
        task.attention.add(Attention::PERMIT);
        return None;
    }
    task.state.set(State::Ready);
    Some(task)
}

/// Takes note of a future's waker that an event uses, and uses all that were found when they are a group.
#[inline(always)]
pub(super) fn find_to_use(waker: Waker, found: &mut Found<Waker>) {
    if found.push(waker) {
        use_found(found);
    }
}

/// Uses the wakers that were found since the last time.
#[inline(always)]
pub(super) fn use_found(found: &mut Found<Waker>) {
    found.iter().for_each(|waker| prefetch_lines(waker.data().addr(), 1));
    found.drain().for_each(Waker::wake);
}

/// Dhagas that somebody wakes, as a list names them; woken as well when that panics.
struct Named<'a> {
    worker: &'a Worker,
    ids: Found<TaskId>,
}

impl Named<'_> {
    #[inline(always)]
    fn push(&mut self, id: TaskId) {
        if self.ids.push(id) {
            self.wake();
        }
    }

    fn wake(&mut self) {
        let mut found = Found::default();
        self.ids.drain().for_each(|id| self.worker.find_to_wake(id, &mut found));
        self.worker.wake_found(&mut found);
    }
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        self.wake();
    }
}

/// Those whom events wake, in their order, held back until there is a group of them: so what their wakes touch, each on a page
/// of its own, comes near at the same time.
pub(super) struct Found<T> {
    group: [Option<T>; FOUND_MAX],
    len: usize,
}

const FOUND_MAX: usize = 8;

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { group: Default::default(), len: 0 }
    }
}

impl<T> Found<T> {
    /// Adds one. Returns whether there is no room for another.
    #[inline(always)]
    fn push(&mut self, one: T) -> bool {
        self.group[self.len] = Some(one);
        self.len += 1;
        self.len == FOUND_MAX
    }

    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.group[..self.len].iter().flatten()
    }

    #[inline(always)]
    fn drain(&mut self) -> impl Iterator<Item = T> {
        let len = std::mem::take(&mut self.len);
        self.group[..len].iter_mut().filter_map(Option::take)
    }
}
