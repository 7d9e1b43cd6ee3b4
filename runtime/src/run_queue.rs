//! The queues between a spawn and a first run: what is shared between workers, and how it is handed over.
//!
//! ```text
//!   this worker's code ──▶ fresh (no lock, in the scheduler) ──end of batch──▶ unstarted (locked, stealable)
//!   another thread     ──▶ inbox (one lock a push, one swap a drain) ──▶ fresh or a wake
//! ```

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fork;
use crate::inbox::Inbox;
use crate::job::{Home, Job};
use crate::task::TaskId;
use crate::thieves::{Door, Unstarted};

/// What one thread asks of another's worker.
pub(crate) enum Message {
    /// Make this dhaga ready.
    Wake(TaskId),
    /// Start this one, or let it be stolen.
    Start(Job),
    /// Start this one here.
    StartHere(Job),
    /// The source with this token was closed by another thread.
    Forget(usize),
    /// This future's timer has no owner any more.
    Disarm(TaskId),
    /// The shutdown of the runtime has come to another phase.
    Shutdown,
    /// Say which dhagas have not ended; this is your number.
    Report(usize, std::sync::mpsc::Sender<crate::stuck::WorkerReport>),
    /// Say what you hold, and how much room you keep for spawns.
    Audit(std::sync::mpsc::Sender<(crate::audit::Audit, usize)>),
}

/// The one door by which other threads reach a worker. Leaked once and reused by later workers, so that a handle to a
/// dhaga is two words to copy and never dangles; a wake for a worker that has gone is at worst a spurious one, and other messages
/// name what no later worker has.
pub(crate) struct Injector {
    /// Tells injectors apart; never 0.
    pub(crate) number: u16,
    pub(crate) inbox: Inbox<Message>,
    unstarted: Unstarted<Job>,
    doorbell: Mutex<Option<Doorbell>>,
    /// Dhagas that run or wait on this worker. Written by it alone.
    live: AtomicUsize,
    /// Dhagas sent to this worker that it has not seen yet.
    inbound: AtomicUsize,
    /// Alarms that this worker, and those before it, have set. Written by it alone.
    alarms: AtomicU32,
}

/// What rouses a worker from its poll, and takes its sources out of the kernel's interest list.
pub(crate) struct Doorbell {
    pub(crate) waker: mio::Waker,
    pub(crate) registry: mio::Registry,
}

/// Where a started dhaga lives: its worker's door, and its id there.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub(crate) injector: &'static Injector,
    pub(crate) task: TaskId,
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.injector, other.injector) && self.task == other.task
    }
}

impl Address {
    /// In words for the floor below.
    pub(crate) fn home(self) -> Home {
        let id = u64::from(self.task.slot) << 32 | u64::from(self.task.generation);
        Home { door: NonNull::from(self.injector).cast(), id }
    }

    /// Out of those words.
    ///
    /// # Safety
    ///
    /// `home` comes from [`Address::home`].
    pub(crate) unsafe fn at_home(home: Home) -> Self {
        // SAFETY: it was made from a `&'static Injector`.
        let injector = unsafe { home.door.cast().as_ref() };
        Self { injector, task: TaskId { slot: (home.id >> 32) as u32, generation: home.id as u32 } }
    }
}

/// Injectors whose worker has ended.
static RETIRED: Mutex<Vec<&'static Injector>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Injector {
    /// A retired injector, or a new one. It takes messages from now on.
    pub(crate) fn lease(doorbell: Doorbell) -> &'static Self {
        let retired = lock(&RETIRED).pop();
        let injector = retired.unwrap_or_else(|| Box::leak(Box::new(Self::new())));
        *lock(&injector.doorbell) = Some(doorbell);
        injector.inbox.open();
        injector
    }

    fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let number = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1));
        Self {
            number: number.expect("fewer than 65 536 workers live at once"),
            inbox: Inbox::new(),
            unstarted: Unstarted::new(),
            doorbell: Mutex::new(None),
            live: AtomicUsize::new(0),
            inbound: AtomicUsize::new(0),
            alarms: AtomicU32::new(0),
        }
    }

    /// The worker has ended: nothing rouses it any more.
    pub(crate) fn hang_up(&self) {
        *lock(&self.doorbell) = None;
        self.live.store(0, Ordering::Relaxed);
    }

    /// Gives the injector to whichever worker comes next.
    pub(crate) fn retire(&'static self) {
        lock(&RETIRED).push(self);
    }

    /// Delivers a message, and wakes the worker if it sleeps.
    ///
    /// # Errors
    ///
    /// The message comes back when the worker has ended.
    #[inline(always)]
    pub(crate) fn push(&self, message: Message) -> Result<(), Message> {
        self.inbox.push(message, || self.ring())
    }

    #[cold]
    fn ring(&self) {
        if fork::check().is_err() {
            // The eventfd is the parent's, and nobody sleeps here.
            return;
        }
        if let Some(doorbell) = &*lock(&self.doorbell) {
            doorbell.waker.wake().expect("an eventfd takes a write at any time");
        }
    }

    /// Takes a file descriptor out of this worker's interest list, from any thread.
    pub(crate) fn deregister(&self, descriptor: std::os::fd::RawFd) {
        if fork::check().is_err() {
            // The interest list is the parent's, whose own copy of the descriptor is still in use.
            return;
        }
        if let Some(doorbell) = &*lock(&self.doorbell) {
            // An error means that the kernel dropped it already: nothing is left to do.
            let _ = doorbell.registry.deregister(&mut mio::unix::SourceFd(&descriptor));
        }
    }

    /// Lets other workers steal these.
    pub(crate) fn publish(&self, jobs: impl Iterator<Item = Job>) {
        self.unstarted.publish(jobs);
    }

    #[inline(always)]
    pub(crate) fn unstarted_len(&self) -> usize {
        self.unstarted.len()
    }

    /// Takes the oldest unstarted dhagas: `share` of them at most, one at least if there is one.
    pub(crate) fn take_unstarted(&self, share: impl FnOnce(usize) -> usize, into: &mut VecDeque<Job>) -> usize {
        self.unstarted.take(share, into)
    }

    /// Sends a dhaga to start, which counts as load of this worker from now on.
    ///
    /// # Errors
    ///
    /// It comes back when the worker has ended.
    pub(crate) fn push_start(&self, job: Job) -> Result<(), Job> {
        self.inbound.fetch_add(1, Ordering::Relaxed);
        self.push(Message::Start(job)).map_err(|message| {
            self.note_arrival();
            match message {
                Message::Start(job) => job,
                _ => unreachable!("the injector hands back what it was given"),
            }
        })
    }

    /// One of those that were sent is here, and counts as live.
    pub(crate) fn note_arrival(&self) {
        self.inbound.fetch_sub(1, Ordering::Relaxed);
    }

    /// Dhagas that run or wait on this worker, or are on their way to it.
    pub(crate) fn load(&self) -> usize {
        self.live.load(Ordering::Relaxed) + self.inbound.load(Ordering::Relaxed)
    }

    pub(crate) fn set_live(&self, count: usize) {
        self.live.store(count, Ordering::Relaxed);
    }

    /// Counts an alarm. The number goes on where the worker before this one has stopped: one of its alarms, which may outlive
    /// it, must not be taken for one of this worker.
    pub(crate) fn number_alarm(&self) -> u32 {
        let number = self.alarms.load(Ordering::Relaxed).wrapping_add(1);
        self.alarms.store(number, Ordering::Relaxed);
        number
    }
}

impl Door for Injector {
    fn unstarted_len(&self) -> usize {
        self.unstarted.len()
    }

    fn is_asleep(&self) -> bool {
        self.inbox.is_asleep()
    }

    fn rouse(&self) -> bool {
        let roused = self.inbox.rouse();
        if roused {
            self.ring();
        }
        roused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn injector() -> (mio::Poll, &'static Injector) {
        let poll = mio::Poll::new().expect("a test can make an epoll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("and an eventfd");
        let registry = poll.registry().try_clone().expect("and duplicate it");
        (poll, Injector::lease(Doorbell { waker, registry }))
    }

    fn wake(slot: u32) -> Message {
        Message::Wake(TaskId { slot, generation: 0 })
    }

    fn rings(poll: &mut mio::Poll) -> usize {
        let mut events = mio::Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).expect("a poll of nothing succeeds");
        events.iter().count()
    }

    #[test]
    fn only_the_first_push_to_a_sleeper_rings() {
        let (mut poll, injector) = injector();
        assert!(injector.push(wake(1)).is_ok());
        assert_eq!(rings(&mut poll), 0, "an awake worker needs no ring");
        injector.inbox.fall_asleep();
        assert!(injector.push(wake(2)).is_ok());
        assert_eq!(rings(&mut poll), 1);
        assert!(injector.push(wake(3)).is_ok());
        assert_eq!(rings(&mut poll), 0, "it was roused already");
    }

    #[test]
    fn messages_are_drained_in_their_order() {
        let (_poll, injector) = injector();
        for slot in 0..3 {
            assert!(injector.push(wake(slot)).is_ok());
        }
        let mut drained = Vec::new();
        injector.inbox.drain(&mut drained);
        let slots: Vec<_> =
            drained.iter().map(|message| if let Message::Wake(id) = message { id.slot } else { 9 }).collect();
        assert_eq!(slots, [0, 1, 2]);
        assert!(!injector.inbox.has_messages());
    }

    #[test]
    fn a_closed_injector_hands_messages_back() {
        let (_poll, injector) = injector();
        assert!(injector.push(wake(1)).is_ok());
        assert!(!injector.inbox.close_if_empty(), "a message is left");
        injector.inbox.drain(&mut Vec::new());
        assert!(injector.inbox.close_if_empty());
        assert!(injector.push(wake(2)).is_err());
    }

    #[test]
    fn no_message_to_a_worker_that_falls_asleep_is_lost() {
        let (mut poll, injector) = injector();
        const MESSAGES: usize = 20_000;
        std::thread::scope(|threads| {
            threads.spawn(|| (0..MESSAGES).for_each(|_| assert!(injector.push(wake(0)).is_ok())));
            let (mut seen, mut batch) = (0, Vec::new());
            let mut events = mio::Events::with_capacity(8);
            while seen < MESSAGES {
                injector.inbox.drain(&mut batch);
                seen += batch.drain(..).count();
                injector.inbox.fall_asleep();
                if !injector.inbox.has_messages() && seen < MESSAGES {
                    poll.poll(&mut events, Some(Duration::from_secs(10))).expect("the poll lives");
                    assert!(!events.is_empty(), "a message came without a ring");
                }
                injector.inbox.get_up();
            }
        });
    }
}
