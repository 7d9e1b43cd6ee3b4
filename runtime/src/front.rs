//! The front of a worker: what comes to it from the sockets and what goes out to them. The one part of a worker at which
//! another may serve.
//!
//! A started dhaga never changes its worker, so one that computes for long delays whoever shares its worker. But a source
//! with a callback waits for no dhaga: its next one is yet to be started, and may start anywhere. And what was asked for the
//! end of the turn any worker can do. So while the owner is *late*, an idle worker polls here, calls those who became
//! readable, and ends the turn.
//!
//! ```text
//!                    ┌────────────── front ──────────────┐
//!   sockets ──poll──▶│ reactor ──▶ called ──one by one───┼──▶ on_ready: a dhaga starts on the worker that called
//!           ◀────────│ at_end ◀──────────────────────────┼─── answers of the dhagas that have run
//!                    └───────────────────────────────────┘
//!                        the owner, or an idle worker while the owner is late
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::reactor::{OnReady, Reactor, Report, prefetch_shared};

/// Work for the end of a turn. Belongs to our crates, runs on a worker's own context, and may only push or do I/O that
/// cannot block.
pub trait AtEnd: Send + Sync {
    /// Called once: at the end of the turn in which it was asked for or of the next, or before by another worker, if that turn
    /// lasts.
    fn at_end(self: Arc<Self>);

    /// As [`OnReady::bring_near`], before [`at_end`](Self::at_end).
    fn bring_near(&self) {}
}

/// On a line of its own: the owner writes it each turn, others read it while they are idle.
#[repr(align(64))]
#[derive(Default)]
struct Turns(AtomicU32);

/// What of a worker is open to others. All locks are held for a moment, but for the reactor's.
pub(crate) struct Front {
    turns: Turns,
    /// The owner holds it while it polls, asleep or not. Others only try.
    reactor: Mutex<Reactor>,
    /// Callbacks of sources that became readable, in their order.
    called: Mutex<VecDeque<Arc<dyn OnReady>>>,
    /// Length of `called`, to be looked at without its lock. No more than a hint to all but the one who holds that.
    called_len: AtomicUsize,
    /// What was asked for the end of the turn.
    at_end: Mutex<Vec<Arc<dyn AtEnd>>>,
    /// Length of `at_end`, as above.
    at_end_len: AtomicUsize,
    /// The owner looks after others, or will when it has nothing else to do.
    is_watchful: AtomicBool,
}

impl Front {
    pub(crate) fn new(reactor: Reactor) -> Self {
        Self {
            turns: Turns::default(),
            reactor: Mutex::new(reactor),
            called: Mutex::default(),
            called_len: AtomicUsize::new(0),
            at_end: Mutex::default(),
            at_end_len: AtomicUsize::new(0),
            is_watchful: AtomicBool::new(true),
        }
    }

    /// Owner: another turn is over.
    #[inline(always)]
    pub(crate) fn note_turn(&self) {
        // It alone writes it.
        self.turns.0.store(self.turns.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// A number that changes with each turn.
    pub(crate) fn turn(&self) -> u32 {
        self.turns.0.load(Ordering::Relaxed)
    }

    /// Owner: whether it will look after others. It fences what must be ordered with it.
    pub(crate) fn set_watchful(&self, is_watchful: bool) {
        self.is_watchful.store(is_watchful, Ordering::Release);
    }

    pub(crate) fn is_watchful(&self) -> bool {
        self.is_watchful.load(Ordering::Acquire)
    }

    /// Owner: its reactor.
    pub(crate) fn reactor(&self) -> MutexGuard<'_, Reactor> {
        self.reactor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(&self) -> MutexGuard<'_, VecDeque<Arc<dyn OnReady>>> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push_called(&self, callbacks: impl Iterator<Item = Arc<dyn OnReady>>) {
        let mut called = self.called();
        called.extend(callbacks);
        self.called_len.store(called.len(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn called_len(&self) -> usize {
        self.called_len.load(Ordering::Relaxed)
    }

    /// Owner: whoever is to be called next.
    pub(crate) fn pop_called(&self) -> Option<Arc<dyn OnReady>> {
        if self.called_len() == 0 {
            return None;
        }
        let mut called = self.called();
        let next = pop_called(&mut called);
        self.called_len.store(called.len(), Ordering::Relaxed);
        next
    }

    fn take_called(&self) -> VecDeque<Arc<dyn OnReady>> {
        let mut called = self.called();
        self.called_len.store(0, Ordering::Relaxed);
        std::mem::take(&mut *called)
    }

    /// Another worker, because the owner is late: reports what has come for it.
    pub(crate) fn serve(&self, mut report: impl FnMut(Report)) {
        if self.called_len() > 0 {
            self.take_called().into_iter().for_each(|callback| report(Report::Callback(callback)));
        }
        // Taken: it is not late any more.
        if let Ok(mut reactor) = self.reactor.try_lock() {
            reactor.turn(Some(Duration::ZERO), report);
        }
    }

    fn at_end(&self) -> MutexGuard<'_, Vec<Arc<dyn AtEnd>>> {
        self.at_end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Owner: asks for something at the end of the turn.
    pub(crate) fn push_at_end(&self, work: Arc<dyn AtEnd>) {
        let mut at_end = self.at_end();
        at_end.push(work);
        self.at_end_len.store(at_end.len(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn at_end_len(&self) -> usize {
        self.at_end_len.load(Ordering::Relaxed)
    }

    /// Whoever takes it calls each of it.
    pub(crate) fn take_at_end(&self) -> Vec<Arc<dyn AtEnd>> {
        if self.at_end_len() == 0 {
            return Vec::new();
        }
        let mut at_end = self.at_end();
        self.at_end_len.store(0, Ordering::Relaxed);
        std::mem::take(&mut *at_end)
    }

    /// Owner: gives the list back, for its capacity. What is left in it comes before what has been asked for meanwhile.
    pub(crate) fn keep_at_end(&self, mut list: Vec<Arc<dyn AtEnd>>) {
        let mut at_end = self.at_end();
        list.append(&mut at_end);
        self.at_end_len.store(list.len(), Ordering::Relaxed);
        *at_end = list;
    }

    /// Owner: ends for good; what was asked for the end of the turn is still to be done.
    pub(crate) fn close(&self, report: impl FnMut(Report)) {
        let callbacks = self.reactor().close(report);
        // Only now that the reactor is free again: one may own other sources that were registered here.
        callbacks.into_iter().for_each(OnReady::on_abandoned);
        drop(self.take_called());
    }
}

/// So many are still in the cache from the last turn, or are in one as near: to ask for them would take longer than to wait for them.
pub(crate) const FEW: usize = 32;

/// Takes the next one, and brings near those behind it: among thousands each has left the cache since its last turn.
#[inline]
pub(crate) fn pop_called(called: &mut VecDeque<Arc<dyn OnReady>>) -> Option<Arc<dyn OnReady>> {
    let next = called.pop_front();
    if called.len() >= FEW {
        prefetch_shared(&called[1]);
        called[0].bring_near();
    }
    next
}

/// Does what was asked for the end of a turn; near is brought what is behind it, as in [`pop_called`].
pub(crate) fn end_all(list: &mut Vec<Arc<dyn AtEnd>>) {
    let mut list = list.drain(..);
    while let Some(work) = list.next() {
        let behind = list.as_slice();
        if behind.len() >= FEW {
            prefetch_shared(&behind[1]);
            behind[0].bring_near();
        }
        work.at_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl OnReady for Counter {
        fn on_ready(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl AtEnd for Counter {
        fn at_end(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn front() -> Front {
        Front::new(Reactor::new().expect("a test can make an epoll").0)
    }

    fn serve(front: &Front) -> usize {
        let mut called = 0;
        front.serve(|report| called += usize::from(matches!(report, Report::Callback(_))));
        called
    }

    #[test]
    fn each_callback_goes_to_the_owner_or_to_who_serves_for_it() {
        let (front, counter) = (front(), Arc::new(Counter::default()));
        front.push_called((0..3).map(|_| counter.clone() as Arc<dyn OnReady>));
        assert!(front.pop_called().is_some());
        assert_eq!(serve(&front), 2);
        assert!(front.pop_called().is_none() && front.called_len() == 0);
    }

    #[test]
    fn nobody_serves_while_the_owner_polls() {
        let front = front();
        let polling = front.reactor();
        assert_eq!(serve(&front), 0);
        drop(polling);
    }

    #[test]
    fn the_end_of_a_turn_is_taken_once() {
        let (front, counter) = (front(), Arc::new(Counter::default()));
        front.push_at_end(counter.clone());
        assert_eq!(front.take_at_end().len(), 1);
        assert!(front.take_at_end().is_empty() && front.at_end_len() == 0);
    }

    #[test]
    fn what_is_put_off_comes_before_what_was_asked_for_meanwhile() {
        let (front, [put_off, new]) = (front(), [(); 2].map(|()| Arc::new(Counter::default())));
        front.push_at_end(put_off.clone());
        let list = front.take_at_end();
        front.push_at_end(new.clone());
        front.keep_at_end(list);
        assert_eq!(front.at_end_len(), 2);
        front.take_at_end().swap_remove(0).at_end();
        assert_eq!([&put_off, &new].map(|counter| counter.0.load(Ordering::Relaxed)), [1, 0]);
    }
}
