//! Unstarted work that idle workers may take, and how one of them hears of it.
//!
//! Spawning signals nobody. At the end of a batch that left unstarted work behind, one sleeping worker is woken, unless one
//! is on its way already; a thief that leaves work behind wakes the next. What must hold, and the models at the foot show:
//! *no unstarted work lies there while a worker sleeps and none is on its way.*
//!
//! ```text
//!   publisher                            thief
//!   publish                              asleep += 1, inbox asleep
//!   ── fence ──                          ── fence ──
//!   anybody asleep?                      anything unstarted?  then do not block
//!   is_searching = true, was it false?   block
//!   rouse one                            inbox awake, asleep -= 1
//!                                        is_searching = false
//!                                        steal
//! ```
//!
//! Of the two fences of a publisher and a thief one comes first, so one of the two sees what the other did before. Who finds
//! `is_searching` set leaves its work to whoever clears it: the woken worker, which steals, or a publisher that found nobody to
//! wake, which looks again. Both clear it by a read-modify-write, so they have seen what was published before.

use std::collections::VecDeque;

use crate::atomic::{AtomicBool, AtomicUsize, Mutex, Ordering, fence, lock};
use crate::inbox::Inbox;

/// Unstarted work of one worker, open to all.
pub(crate) struct Unstarted<J> {
    list: Mutex<VecDeque<J>>,
    /// Length of `list`, to be looked at without its lock.
    len: AtomicUsize,
}

/// What a publisher and a thief must know of each worker.
pub(crate) trait Door {
    fn unstarted_len(&self) -> usize;
    fn is_asleep(&self) -> bool;
    /// Wakes the worker if it sleeps. Returns whether it did.
    fn rouse(&self) -> bool;
}

/// Who sleeps, and whether one is on its way to steal. One for all workers of a runtime.
pub(crate) struct Thieves {
    /// Workers in, or on their way into, a blocking poll: spares a look at each of them.
    asleep: AtomicUsize,
    /// A worker was woken to steal and has not looked yet.
    is_searching: AtomicBool,
}

/// Room that an empty queue keeps: what a busy turn needs. A burst's goes back to the allocator.
const KEPT_PLACES: usize = 1024;

/// Gives the room of a burst back once the queue is empty.
pub(crate) fn shrink_if_emptied<J>(queue: &mut VecDeque<J>) {
    if queue.is_empty() && queue.capacity() > KEPT_PLACES {
        *queue = VecDeque::new();
    }
}

impl<J> Unstarted<J> {
    pub(crate) fn new() -> Self {
        Self { list: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0) }
    }

    /// Lets others take these. Call [`Thieves::wake_one`] afterwards.
    pub(crate) fn publish(&self, jobs: impl Iterator<Item = J>) {
        let mut list = lock(&self.list);
        list.extend(jobs);
        self.len.store(list.len(), Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Takes the oldest: `share` of them at most, one at least if there is one. Returns how many.
    pub(crate) fn take(&self, share: impl FnOnce(usize) -> usize, into: &mut VecDeque<J>) -> usize {
        if self.len() == 0 {
            return 0;
        }
        let mut list = lock(&self.list);
        let count = share(list.len()).max(1).min(list.len());
        into.extend(list.drain(..count));
        shrink_if_emptied(&mut list);
        self.len.store(list.len(), Ordering::Release);
        count
    }
}

impl Thieves {
    pub(crate) fn new() -> Self {
        Self { asleep: AtomicUsize::new(0), is_searching: AtomicBool::new(false) }
    }

    /// First half of going to sleep. Returns whether the worker may block: now that all others know, it has looked at its
    /// messages and at what it could steal once more.
    #[must_use = "a worker that must not block may not"]
    pub(crate) fn fall_asleep<'a, M, D: Door + 'a>(
        &self,
        inbox: &Inbox<M>,
        mut doors: impl Iterator<Item = &'a D>,
    ) -> bool {
        inbox.fall_asleep();
        self.asleep.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        !inbox.has_messages() && doors.all(|door| door.unstarted_len() == 0)
    }

    /// Second half, whatever ended the sleep. The worker must look at what it could steal: it may have been woken for that.
    pub(crate) fn get_up<M>(&self, inbox: &Inbox<M>) {
        inbox.get_up();
        self.asleep.fetch_sub(1, Ordering::AcqRel);
        // A swap sees what was published by all who found it set. What the worker misses all the same, it finds when it
        // looks once more before its next sleep.
        self.is_searching.swap(false, Ordering::AcqRel);
    }

    /// Wakes a sleeping worker to steal, unless one is on its way already. Who steals and leaves work behind calls this
    /// again, so that a burst wakes the workers in a chain.
    pub(crate) fn wake_one<'a, D: Door + 'a>(&self, doors: impl Iterator<Item = &'a D> + Clone) {
        loop {
            fence(Ordering::SeqCst);
            if self.asleep.load(Ordering::Acquire) == 0 || self.is_searching.swap(true, Ordering::AcqRel) {
                return;
            }
            if doors.clone().any(D::rouse) {
                return;
            }
            self.is_searching.swap(false, Ordering::AcqRel);
            // Others may have trusted in this search since it passed a worker that was awake then and sleeps now. They saw
            // that worker counted as asleep, and the swap has seen all that they saw.
            if !doors.clone().any(D::is_asleep) {
                return;
            }
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::model;
    use loom::sync::{Arc, Notify};
    use loom::thread;

    /// A worker as the protocol knows it, with the bell that stands for its eventfd.
    struct Worker {
        inbox: Inbox<()>,
        unstarted: Unstarted<u32>,
        bell: Notify,
    }

    impl Door for Worker {
        fn unstarted_len(&self) -> usize {
            self.unstarted.len()
        }

        fn is_asleep(&self) -> bool {
            self.inbox.is_asleep()
        }

        fn rouse(&self) -> bool {
            let roused = self.inbox.rouse();
            if roused {
                self.bell.notify();
            }
            roused
        }
    }

    struct Runtime {
        workers: Vec<Worker>,
        thieves: Thieves,
    }

    impl Runtime {
        fn new(workers: usize) -> Arc<Self> {
            let worker = |_| {
                let worker = Worker { inbox: Inbox::new(), unstarted: Unstarted::new(), bell: Notify::new() };
                worker.inbox.open();
                worker
            };
            Arc::new(Self { workers: (0..workers).map(worker).collect(), thieves: Thieves::new() })
        }

        /// The end of a batch of a worker that goes on with something long.
        fn share(&self, worker: usize, jobs: impl IntoIterator<Item = u32>) {
            self.workers[worker].unstarted.publish(jobs.into_iter());
            self.thieves.wake_one(self.workers.iter());
        }

        /// As `Worker::steal`.
        fn steal(&self) -> VecDeque<u32> {
            let mut taken = VecDeque::new();
            let found = self.workers.iter().any(|victim| victim.unstarted.take(|len| len.div_ceil(2), &mut taken) > 0);
            if found && self.workers.iter().any(|worker| worker.unstarted_len() > 0) {
                self.thieves.wake_one(self.workers.iter());
            }
            taken
        }

        /// As `Worker::sleep`, with a poll that only a bell ends.
        fn sleep(&self, worker: usize) {
            let me = &self.workers[worker];
            if self.thieves.fall_asleep(&me.inbox, self.workers.iter()) {
                me.bell.wait();
            }
            self.thieves.get_up(&me.inbox);
        }

        /// What an idle worker does until it has so much to do. A wake that is lost is a deadlock, which loom reports.
        fn idle(&self, worker: usize, wanted: usize) -> Vec<u32> {
            let mut taken = Vec::new();
            loop {
                taken.extend(self.steal());
                if taken.len() >= wanted {
                    return taken;
                }
                self.sleep(worker);
            }
        }
    }

    #[test]
    fn loom_a_worker_that_falls_asleep_takes_what_is_published() {
        model(3, || {
            let runtime = Runtime::new(2);
            let publisher = runtime.clone();
            let publisher = thread::spawn(move || publisher.share(0, [1]));
            assert_eq!(runtime.idle(1, 1), [1]);
            publisher.join().expect("it ends");
        });
    }

    /// Each thief is busy for ever with the first that it takes: only the chain brings the other one in.
    #[test]
    fn loom_a_thief_that_leaves_work_behind_wakes_the_next() {
        model(3, || {
            let runtime = Runtime::new(3);
            let thief = runtime.clone();
            let thief = thread::spawn(move || thief.idle(2, 1));
            let publisher = runtime.clone();
            let publisher = thread::spawn(move || publisher.share(0, [1, 2]));
            let mut taken = runtime.idle(1, 1);
            taken.extend(thief.join().expect("it ends"));
            taken.sort_unstable();
            assert_eq!(taken, [1, 2]);
            publisher.join().expect("it ends");
        });
    }

    /// The second publisher finds that the first one searches, and leaves its work to it.
    #[test]
    fn loom_work_published_while_another_searches_is_not_left() {
        model(3, || {
            let runtime = Runtime::new(3);
            let publishers = [0, 1].map(|worker| {
                let runtime = runtime.clone();
                thread::spawn(move || runtime.share(worker, [worker as u32]))
            });
            let mut taken = runtime.idle(2, 2);
            taken.sort_unstable();
            assert_eq!(taken, [0, 1]);
            publishers.into_iter().for_each(|publisher| publisher.join().expect("it ends"));
        });
    }

    /// A worker that a message wakes counts as asleep for a moment, while somebody publishes.
    #[test]
    fn loom_a_worker_woken_by_a_message_takes_what_is_published_meanwhile() {
        model(3, || {
            let runtime = Runtime::new(2);
            let (publisher, pusher) = (runtime.clone(), runtime.clone());
            let publisher = thread::spawn(move || publisher.share(0, [1]));
            let pusher = thread::spawn(move || {
                let door = &pusher.workers[1];
                door.inbox.push((), || door.bell.notify()).expect("it is open");
            });
            let (mut taken, mut messages) = (0, Vec::new());
            while taken + messages.len() < 2 {
                let mut batch = Vec::new();
                runtime.workers[1].inbox.drain(&mut batch);
                messages.append(&mut batch);
                taken += runtime.steal().len();
                if taken + messages.len() < 2 {
                    runtime.sleep(1);
                }
            }
            publisher.join().expect("it ends");
            pusher.join().expect("it ends");
        });
    }
}
