//! Starting, resuming and ending dhagas.

use super::{Worker, current_task, worker};
use crate::context;
use crate::coroutine::Outcome;
use crate::fork;
use crate::job::{Execution, Job};
use crate::phase::Phase;
use crate::stack::{Stack, StackError};
use crate::task::{Attention, TaskRef};

/// Operations that do not wait between two times that a dhaga gives way: a hundred microseconds of socket calls.
pub(super) const BUDGET_MAX: u32 = 64;

impl Worker {
    /// Starts the next unstarted dhaga. Returns whether there was one.
    #[inline(never)]
    pub(super) fn start_next(&self) -> bool {
        let Some(job) = self.next_unstarted() else {
            return false;
        };
        if self.phase.get() >= Phase::Cancelling {
            self.start_late(job);
        } else {
            self.start(job, Job::execute);
        }
        true
    }

    /// The shutdown has gone too far for it to run undisturbed.
    #[cold]
    fn start_late(&self, job: Job) {
        if self.is_stopping() {
            return self.start(job, Job::discard);
        }
        context::cancel(job.head());
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
            *reserve = self.stacks.borrow_mut().take(self.shared.stack_bytes).ok();
        }
        if reserve.is_some() || self.tasks.borrow().len() == 0 {
            self.local.borrow_mut().extend(stackless.pop_front());
        }
        self.is_short.set(reserve.is_none() || !stackless.is_empty());
    }

    /// The one place where a dhaga is resumed.
    #[inline(always)]
    pub(super) fn resume(&self, task: TaskRef) {
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
        self.disarm(task);
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
}

/// What a dhaga does, from its first instruction to its last, on its own stack.
#[inline(always)]
fn run_job(task: TaskRef, job: Job, end_of: impl FnOnce(Job) -> Execution) {
    let head = job.pointer();
    let mut execution = end_of(job);
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
