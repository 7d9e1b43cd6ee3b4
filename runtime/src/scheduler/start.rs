//! Starting, resuming and ending dhagas.

use std::ptr::NonNull;
use std::time::Duration;

use super::{Worker, current_task, now, worker};
use crate::context;
use crate::coroutine::Outcome;
use crate::fork;
use crate::job::{Execution, Head, Job};
use crate::phase::Phase;
use crate::stack::{Stack, StackError};
use crate::task::{Attention, State, TaskRef, WaitReason};

/// Operations that do not wait between two times that a dhaga gives way: a hundred microseconds of socket calls.
pub(super) const BUDGET_MAX: u32 = 64;

/// Before a future that found no memory for a stack asks for one again: others give theirs back in less.
const STACK_PAUSE: Duration = Duration::from_millis(1);

impl Worker {
    /// Starts the next unstarted dhaga. Returns whether there was one.
    #[inline(never)]
    pub(super) fn start_next(&self) -> bool {
        let Some(job) = self.next_unstarted() else {
            return false;
        };
        if self.phase.get() >= Phase::Cancelling {
            self.start_late(job);
        } else if job.is_stepped() {
            self.start_stepped(job, false);
        } else {
            self.start(job, Job::execute);
        }
        true
    }

    /// The first stack of a future. One that gets none is lost as other dhagas are: it may be too large for this machine.
    #[inline(never)]
    fn start_stepped(&self, job: Job, is_leaving: bool) {
        match self.lend_for_step(job.head()) {
            Ok(stack) => {
                let task = self.tasks.borrow_mut().insert_stepped(job);
                if is_leaving {
                    task.attention.add(Attention::LEAVING);
                }
                task.take_up(stack, run_step);
                self.run_on(task);
            }
            Err(error) => self.refuse(job, &error),
        }
    }

    /// The shutdown has gone too far for it to run undisturbed.
    #[cold]
    fn start_late(&self, job: Job) {
        if self.is_stopping() {
            return self.start(job, Job::discard);
        }
        context::cancel(job.head());
        if job.is_stepped() {
            return self.start_stepped(job, true);
        }
        self.start(job, |job| {
            let task = current_task().expect("a closure is run by its dhaga");
            task.attention.add(Attention::LEAVING);
            job.execute()
        });
    }

    #[inline(always)]
    pub(super) fn start(&self, job: Job, end_of: impl FnOnce(Job) -> Execution + 'static) {
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
        if self.is_stopping() {
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
                self.shared.note_end(&job);
                drop(job);
                self.keep_reserve();
                self.return_one_credit();
            }
        }
    }

    /// Takes the first stack, which is kept for the case that there is no other. Before the worker runs, and so before any
    /// other can take all the memory that there is: a worker that never had one could run nothing.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub(crate) fn take_first_stack(&self) -> Result<(), StackError> {
        let stack = self.stacks.borrow_mut().take(self.shared.stack_bytes)?;
        self.reserve.replace(Some(stack));
        self.is_short.set(false);
        Ok(())
    }

    /// Lends a stack for a stretch of code on this thread.
    pub(crate) fn lend_stack(&self, bytes: usize) -> Result<Stack, StackError> {
        self.stacks.borrow_mut().take(bytes)
    }

    /// Takes back what [`Worker::lend_stack`] has lent.
    pub(crate) fn take_back_stack(&self, stack: Stack) {
        self.stacks.borrow_mut().give_back(stack);
    }

    /// As [`Worker::lend_stack`], for a stretch of code that comes again and again, and ends soon each time.
    pub(crate) fn lend_stack_again(&self, bytes: usize) -> Result<Stack, StackError> {
        self.stacks.borrow_mut().lend(bytes)
    }

    /// Takes back what [`Worker::lend_stack_again`] has lent.
    pub(crate) fn take_back_stack_again(&self, stack: Stack) {
        self.stacks.borrow_mut().take_back_lent(stack);
    }

    /// Gives that stack back.
    pub(crate) fn return_first_stack(&self) {
        if let Some(stack) = self.reserve.take() {
            self.stacks.borrow_mut().give_back(stack);
        }
    }

    /// Keeps a stack for the case that there is no other, and lets one try again who waits for it.
    #[cold]
    pub(super) fn keep_reserve(&self) {
        let (mut reserve, mut stackless) = (self.reserve.borrow_mut(), self.stackless.borrow_mut());
        if reserve.is_none() {
            let (mut stacks, stack_bytes) = (self.stacks.borrow_mut(), self.shared.stack_bytes);
            // The one for polls, if there is no other: a poll can have the reserve, and a dhaga that is refused cannot have that.
            *reserve = stacks.take(stack_bytes).or_else(|_| stacks.lend(stack_bytes)).ok();
        }
        if reserve.is_some() || self.tasks.borrow().len() == 0 {
            self.local.borrow_mut().extend(stackless.pop_front());
        }
        self.is_short.set(reserve.is_none() || !stackless.is_empty());
    }

    /// Runs a dhaga until it waits or ends.
    #[inline(always)]
    pub(super) fn resume(&self, task: TaskRef) {
        if task.is_idle() {
            return self.resume_stepped(task);
        }
        self.run_on(task);
    }

    #[inline(never)]
    fn resume_stepped(&self, task: TaskRef) {
        if self.take_up(task) {
            self.run_on(task);
        }
    }

    /// The one place where a dhaga is resumed, which has a stack.
    #[inline(always)]
    fn run_on(&self, task: TaskRef) {
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
        if task.is_stepped() {
            return self.end_step(task);
        }
        self.disarm(task);
        let stack = self.tasks.borrow_mut().remove(task);
        self.stacks.borrow_mut().give_back(stack);
        self.note_end();
    }

    #[inline(never)]
    fn end_step(&self, task: TaskRef) {
        if task.is_idle() {
            return self.put_down(task);
        }
        self.disarm(task);
        let stack = self.tasks.borrow_mut().remove_stepped(task);
        self.take_back_stack_again(stack);
        self.note_end();
    }

    #[inline(always)]
    fn note_end(&self) {
        if self.is_short.get() {
            self.keep_reserve();
        }
        self.return_one_credit();
    }

    /// Gives a stack to a future that is to be polled again. Returns false if there is none: it waits for one then, since others
    /// give theirs back.
    fn take_up(&self, task: TaskRef) -> bool {
        self.disarm(task);
        let head = task.head().expect("a task that has not ended knows what it runs");
        let Ok(stack) = self.lend_for_step(head) else {
            task.state.set(State::Parked(WaitReason::Future));
            self.time_wait(task, Some(now() + STACK_PAUSE));
            return false;
        };
        task.take_up(stack, run_step);
        true
    }

    /// A stack for a poll: the one of the last poll, which no other dhaga gets, see
    /// [`StackPool::lend`](crate::stack::StackPool::lend).
    fn lend_for_step(&self, head: &Head) -> Result<Stack, StackError> {
        let stack_bytes = match head.stack_bytes() {
            0 => self.shared.stack_bytes,
            asked => asked,
        };
        self.lend_stack_again(stack_bytes).or_else(|error| self.take_reserve(stack_bytes).ok_or(error))
    }

    /// The stack that was kept for the case that there is no other, unless it is too small.
    #[cold]
    fn take_reserve(&self, stack_bytes: usize) -> Option<Stack> {
        self.is_short.set(true);
        self.reserve.borrow_mut().take_if(|stack| stack.size_bytes() >= stack_bytes)
    }

    /// Parks a future that is pending, as `suspend` does, with no stack.
    fn put_down(&self, task: TaskRef) {
        self.take_back_stack_again(task.put_down());
        if self.is_short.get() {
            self.keep_reserve();
        }
        let was_woken = task.attention.is_needed() && self.attend(task, WaitReason::Future).is_some();
        if was_woken {
            return self.ready.push_back(task);
        }
        // If that of a wait within the poll rings first, the poll that follows finds nothing new.
        self.time_wait(task, task.head().and_then(Head::deadline).map(|deadline| deadline.at));
        task.state.set(State::Parked(WaitReason::Future));
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
}

/// What a dhaga does, from its first instruction to its last, on its own stack.
#[inline(always)]
fn run_job(task: TaskRef, job: Job, end_of: impl FnOnce(Job) -> Execution) {
    let head = job.pointer();
    end_job(task, head, end_of(job));
}

/// What it does on the stack that it has for one step.
fn run_step(task: TaskRef, job: Job) {
    let head = job.pointer();
    match job.step() {
        Ok(execution) => end_job(task, head, execution),
        Err(job) => {
            task.expect_no_frame();
            task.set_idle(job);
        }
    }
}

#[inline(always)]
fn end_job(task: TaskRef, head: NonNull<Head>, mut execution: Execution) {
    loop {
        execution.drop_unwanted();
        task.drop_own();
        task.expect_no_frame();
        task.forget_head();
        let is_background = execution.head().is_background();
        match execution.complete() {
            Ok(()) if is_background => return worker().map_or((), |worker| worker.shared.end_background()),
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
