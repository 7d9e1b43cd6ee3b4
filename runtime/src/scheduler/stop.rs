//! The end of a worker: everything is unwound or dropped unrun.

use super::Worker;
use crate::coroutine::Wake;
use crate::task::{Attention, State, TaskId};

impl Worker {
    /// Unwinds every dhaga; what is unstarted will be discarded instead of run.
    pub(super) fn stop(&self) {
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
        task.attention.add(Attention::UNWINDING);
        if let State::Parked(_) = task.state.get() {
            task.state.set(State::Ready);
            task.verdict.set(Wake::Unwind);
            self.ready.push_back(task);
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_empty_and_stopping() && !self.has_work() && self.injector.inbox.close_if_empty()
    }

    pub(super) fn is_empty_and_stopping(&self) -> bool {
        self.is_stopping.get() && self.tasks.borrow().len() == 0
    }

    /// The worker's last act: no dhaga of its own is left, and its injector is closed.
    pub(super) fn close(&self) {
        self.front.close(|report| self.take_report(report));
        self.callbacks.take();
        self.end_turn();
        self.extensions.clear();
        if let Some(stack) = self.reserve.take() {
            self.stacks.borrow_mut().give_back(stack);
        }
        self.shared.return_credit(self.credit.take());
    }
}
