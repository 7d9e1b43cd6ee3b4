//! How other threads leave a message for a worker, and know whether they must ring.
//!
//! **The sleeping protocol.** A worker that is about to block in its poll says that it is asleep and then looks at its
//! messages once more; a pusher adds its message and then looks whether the worker sleeps. Both go through the lock of the
//! messages, one of them first:
//!
//! ```text
//!   worker first:   asleep = true │ lock, look, unlock │                             │ blocks
//!   pusher                        │                    │ lock, add, unlock, asleep? │ rings
//!
//!   pusher first:                 │ lock, add, unlock  │
//!   worker:         asleep = true │                    │ lock, look: does not block
//! ```
//!
//! so at least one of them sees the other. Only the pusher that turns *asleep* back rings: one eventfd write a sleep.
//! Without a fence, since the lock orders both; who looks at anything else than the messages needs one (see `thieves`).

use crate::atomic::{AtomicBool, Mutex, Ordering, lock};

/// Messages for one worker, and whether it sleeps.
pub(crate) struct Inbox<M> {
    messages: Mutex<Messages<M>>,
    /// Changed by read-modify-writes only, so that each change has seen the one before.
    is_asleep: AtomicBool,
}

struct Messages<M> {
    list: Vec<M>,
    is_open: bool,
}

impl<M> Inbox<M> {
    /// Takes no message before `open`.
    pub(crate) fn new() -> Self {
        Self { messages: Mutex::new(Messages { list: Vec::new(), is_open: false }), is_asleep: AtomicBool::new(false) }
    }

    /// Takes messages from now on, for a worker that is awake.
    pub(crate) fn open(&self) {
        self.get_up();
        lock(&self.messages).is_open = true;
    }

    /// Takes no more messages, if none is left. Returns whether it closed.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut messages = lock(&self.messages);
        messages.is_open = !messages.list.is_empty();
        !messages.is_open
    }

    /// Leaves a message, and calls `ring` if the worker sleeps.
    ///
    /// # Errors
    ///
    /// The message comes back when the worker has ended.
    #[inline(always)]
    pub(crate) fn push(&self, message: M, ring: impl FnOnce()) -> Result<(), M> {
        let mut messages = lock(&self.messages);
        if !messages.is_open {
            return Err(message);
        }
        messages.list.push(message);
        drop(messages);
        if self.rouse() {
            ring();
        }
        Ok(())
    }

    /// Whether the worker sleeps, and nobody has rung for it yet: the caller must, and is the only one who does.
    #[inline(always)]
    pub(crate) fn rouse(&self) -> bool {
        self.is_asleep() && self.is_asleep.swap(false, Ordering::AcqRel)
    }

    #[inline(always)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.is_asleep.load(Ordering::Acquire)
    }

    /// First half of going to sleep: from now on pushers ring. The worker must look at its messages once more before it
    /// blocks.
    pub(crate) fn fall_asleep(&self) {
        self.is_asleep.swap(true, Ordering::AcqRel);
    }

    pub(crate) fn get_up(&self) {
        self.is_asleep.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn has_messages(&self) -> bool {
        !lock(&self.messages).list.is_empty()
    }

    /// Swaps all messages for the empty `into`.
    pub(crate) fn drain(&self, into: &mut Vec<M>) {
        debug_assert!(into.is_empty(), "the last drain was used up");
        std::mem::swap(&mut lock(&self.messages).list, into);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::atomic::{AtomicUsize, model};
    use loom::sync::{Arc, Notify};
    use loom::thread;

    /// An inbox with the bell that stands for a worker's eventfd.
    struct Door {
        inbox: Inbox<u32>,
        bell: Notify,
        rings: AtomicUsize,
    }

    impl Door {
        fn new() -> Arc<Self> {
            let door = Self { inbox: Inbox::new(), bell: Notify::new(), rings: AtomicUsize::new(0) };
            door.inbox.open();
            Arc::new(door)
        }

        fn push(&self, message: u32) -> Result<(), u32> {
            self.inbox.push(message, || {
                self.rings.fetch_add(1, Ordering::Relaxed);
                self.bell.notify();
            })
        }

        /// The worker's side, with a poll that only a ring ends.
        fn sleep(&self) {
            self.inbox.fall_asleep();
            if !self.inbox.has_messages() {
                self.bell.wait();
            }
            self.inbox.get_up();
        }

        fn drain(&self) -> Vec<u32> {
            let mut batch = Vec::new();
            self.inbox.drain(&mut batch);
            batch
        }
    }

    /// A worker that misses a message blocks for ever, which loom reports as a deadlock.
    #[test]
    fn loom_every_message_reaches_a_worker_that_falls_asleep() {
        model(3, || {
            let door = Door::new();
            let pushers = [1, 2].map(|message| {
                let door = door.clone();
                thread::spawn(move || door.push(message).expect("it is open"))
            });
            let (mut seen, mut sleeps) = (Vec::new(), 0);
            while seen.len() < 2 {
                seen.extend(door.drain());
                if seen.len() < 2 {
                    sleeps += 1;
                    door.sleep();
                }
            }
            pushers.into_iter().for_each(|pusher| pusher.join().expect("it ends"));
            seen.sort_unstable();
            assert_eq!(seen, [1, 2]);
            assert!(door.rings.load(Ordering::Relaxed) <= sleeps, "one ring a sleep at most");
        });
    }

    #[test]
    fn loom_a_message_is_drained_or_handed_back() {
        model(3, || {
            let door = Door::new();
            let pushers = [1, 2].map(|message| {
                let door = door.clone();
                thread::spawn(move || door.push(message).err())
            });
            let mut seen = door.drain();
            while !door.inbox.close_if_empty() {
                seen.extend(door.drain());
            }
            seen.extend(pushers.into_iter().filter_map(|pusher| pusher.join().expect("it ends")));
            seen.sort_unstable();
            assert_eq!(seen, [1, 2]);
            assert!(door.drain().is_empty(), "nothing comes after the close");
        });
    }
}
