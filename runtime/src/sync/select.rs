//! The first of several events: the wait behind `select!`.
//!
//! ```text
//!        ┌────────────────────────────── again ◀──────────────────────────────┐
//!        ▼                                                                    │
//!   attempt each ──none──> enlist with each ──all wait──> park ──> leave all ─┤
//!        │                        └────one may be ready now────────────┘      │
//!        ▼                                                                    ▼
//!    one happened                                                  one was granted to us
//! ```
//!
//! Two kinds of events take part. A channel *grants*: whoever comes there second does the work of both, and so must know
//! that we still want it. This is what the [`Claim`] is for, which all our places share and only one can take. All others
//! merely *wake* us, and we look for ourselves, after we have taken the claim back.
//!
//! Who enlists looks first, under the same lock, whether a counterpart is there already. So of two who come together in one
//! channel, the second sees the first, and nothing has to be looked at again once we stand everywhere. It must not deal with
//! that counterpart at once, since it may be granted something elsewhere at that moment: it takes its own claim, leaves, and
//! starts over. Two who do so to each other in step miss each other, and try again after a random while.

mod dice;
mod once;
mod recv;
mod send;
mod timer;

use std::hint::spin_loop;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::PollFlags;

pub use self::once::Once;
pub use self::recv::Recv;
pub use self::send::Send;
pub use self::timer::Timer;
pub(crate) use super::wait_queue::Claim;
use super::wait_queue::{check_scope, check_unwinding};
use crate::park::{self, Interrupt, Unparker, WaitReason};

/// Something that may happen, and happens at most once in a select.
pub(crate) trait Event {
    /// Called before the first attempt of a wait.
    fn begin(&mut self) {}

    /// Lets it happen if that is possible now. What comes of it stays inside.
    fn attempt(&mut self) -> bool;

    /// Takes a place among those who wait for it. Returns false if there is none to take, because it may be possible now.
    ///
    /// # Safety
    ///
    /// Neither the event nor the claim moves or goes before [`Event::withdraw`].
    unsafe fn enlist(&mut self, claim: &Claim, unparker: Unparker) -> bool;

    /// Leaves that place, if it has one. Returns whether the event has happened to us meanwhile, which takes the claim.
    fn withdraw(&mut self) -> bool;

    /// Passes on what nobody will come for, because an unwinding has ended the wait.
    fn give_back(&mut self) {}

    /// When it becomes possible by itself.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// What a plain thread watches by `poll(2)`, since nobody wakes it for that.
    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        None
    }
}

/// An event, and what comes of it.
#[expect(private_bounds, reason = "the places that an event takes are known here only")]
pub trait Arm: Event {
    /// What comes of it.
    type Outcome;

    /// Takes what came of it, if it has happened.
    fn outcome(&mut self) -> Option<Self::Outcome>;
}

/// An event that may be switched off.
impl<A: Arm> Arm for Option<A> {
    type Outcome = A::Outcome;

    fn outcome(&mut self) -> Option<A::Outcome> {
        self.as_mut().and_then(Arm::outcome)
    }
}

impl<E: Event> Event for Option<E> {
    fn begin(&mut self) {
        if let Some(event) = self {
            event.begin();
        }
    }

    fn attempt(&mut self) -> bool {
        self.as_mut().is_some_and(Event::attempt)
    }

    unsafe fn enlist(&mut self, claim: &Claim, unparker: Unparker) -> bool {
        // SAFETY: by the caller's promise.
        self.as_mut().is_none_or(|event| unsafe { event.enlist(claim, unparker) })
    }

    fn withdraw(&mut self) -> bool {
        self.as_mut().is_some_and(Event::withdraw)
    }

    fn give_back(&mut self) {
        if let Some(event) = self {
            event.give_back();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.as_ref().and_then(Event::deadline)
    }

    fn descriptor(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.as_ref().and_then(Event::descriptor)
    }
}

/// Which of several events that are possible comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any, by chance: none is left out for ever.
    Fair,
    /// The one that is named first.
    Biased,
}

impl Order {
    fn arrange(self, events: &mut [&mut dyn Event]) {
        if self == Self::Fair {
            for last in (1..events.len()).rev() {
                events.swap(last, dice::below(last + 1));
            }
        }
    }
}

/// Waits until one of the events has happened. If it returns an error, none has.
pub(crate) fn wait(events: &mut [&mut dyn Event], order: Order) -> Result<(), Interrupt> {
    wait_as(WaitReason::Select, events, order)
}

/// As [`wait`], for another reason than that the user selects.
pub(crate) fn wait_as(reason: WaitReason, events: &mut [&mut dyn Event], order: Order) -> Result<(), Interrupt> {
    events.iter_mut().for_each(|event| event.begin());
    let claim = Claim::new();
    let mut misses = 0;
    loop {
        check_scope()?;
        if attempt_each(events, order) {
            return Ok(());
        }
        check_unwinding()?;
        match wait_in_all(reason, events, &claim) {
            Waited::Granted => return Ok(()),
            Waited::Woken => misses = 0,
            Waited::Missed => step_aside(&mut misses),
        }
    }
}

/// Lets one of the events happen that are possible now, if there is one.
pub(crate) fn attempt(events: &mut [&mut dyn Event], order: Order) -> bool {
    events.iter_mut().for_each(|event| event.begin());
    attempt_each(events, order)
}

fn attempt_each(events: &mut [&mut dyn Event], order: Order) -> bool {
    order.arrange(events);
    events.iter_mut().any(|event| event.attempt())
}

/// What ended a wait in all queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// One of the events has happened.
    Granted,
    /// None has, but we have slept.
    Woken,
    /// None has, and a counterpart was there.
    Missed,
}

fn wait_in_all(reason: WaitReason, events: &mut [&mut dyn Event], claim: &Claim) -> Waited {
    claim.release();
    let mut places = Places { events, claim };
    let has_slept = places.take_all();
    if has_slept {
        places.park(reason);
    }
    match (places.leave_all(), has_slept) {
        (true, _) => Waited::Granted,
        (false, true) => Waited::Woken,
        (false, false) => Waited::Missed,
    }
}

/// Where we stand. However a wait ends, we leave all of them.
struct Places<'a, 'b> {
    events: &'a mut [&'b mut dyn Event],
    claim: &'a Claim,
}

impl Places<'_, '_> {
    /// Returns false, with some of the places untaken, if an event may be possible now.
    fn take_all(&mut self) -> bool {
        let unparker = park::unparker();
        // SAFETY: the events stay where they are while we borrow them, and we leave all places before we give them back,
        // also when we unwind.
        self.events.iter_mut().all(|event| unsafe { event.enlist(self.claim, unparker.clone()) })
    }

    fn park(&self, reason: WaitReason) {
        let deadline = park::earliest(self.events.iter().filter_map(|event| event.deadline()).min());
        if park::is_in_dhaga() || self.events.iter().all(|event| event.descriptor().is_none()) {
            park::park_until(reason, deadline);
        } else {
            let descriptors = self.events.iter().filter_map(|event| event.descriptor());
            park::park_polling(reason, descriptors, deadline);
        }
    }

    /// Returns whether one of the events has happened.
    fn leave_all(mut self) -> bool {
        let has_happened = self.withdraw_all().is_some();
        std::mem::forget(self);
        has_happened
    }

    fn withdraw_all(&mut self) -> Option<usize> {
        // From here on nobody grants us anything. Who had the claim before us holds the lock of its queue until it is done.
        let is_ours = self.claim.take();
        let mut happened = None;
        for (index, event) in self.events.iter_mut().enumerate() {
            if event.withdraw() {
                happened = Some(index);
            }
        }
        debug_assert_eq!(happened.is_none(), is_ours, "who takes the claim lets one event happen");
        happened
    }
}

impl Drop for Places<'_, '_> {
    fn drop(&mut self) {
        if let Some(happened) = self.withdraw_all() {
            self.events[happened].give_back();
        }
    }
}

/// Rounds of a loop that are about half a microsecond: longer than it takes to leave a few queues.
const ASIDE_MAX: usize = 1 << 9;

/// Lets a counterpart that stepped back as we did go first, or not, by chance.
fn step_aside(misses: &mut u32) {
    let limit = ASIDE_MAX.min(1 << (*misses).min(usize::BITS - 1));
    (0..dice::below(limit)).for_each(|_| spin_loop());
    *misses += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::channel::{self, RecvError, SendError, TryRecvError};

    /// Calls `meanwhile` while the events stand in their queues, and then leaves as one who is unwound.
    fn torn_down(events: &mut [&mut dyn Event], meanwhile: impl FnOnce()) {
        let claim = Claim::new();
        claim.release();
        let mut places = Places { events, claim: &claim };
        assert!(places.take_all(), "nothing is possible yet");
        meanwhile();
        drop(places);
    }

    /// As `torn_down`, but comes for what has happened.
    fn granted(events: &mut [&mut dyn Event], meanwhile: impl FnOnce()) -> bool {
        let claim = Claim::new();
        claim.release();
        let mut places = Places { events, claim: &claim };
        assert!(places.take_all(), "nothing is possible yet");
        meanwhile();
        places.leave_all()
    }

    #[test]
    fn one_of_two_messages_is_granted_and_the_other_is_refused() {
        let ((first, firsts), (second, seconds)) = (channel::rendezvous(), channel::rendezvous());
        let (mut one, mut two) = (Recv::new(&firsts), Recv::new(&seconds));
        let has_happened = granted(&mut [&mut one, &mut two], || {
            assert_eq!(second.try_send(2), Ok(()));
            assert!(first.try_send(1).is_err_and(|error| error.is_full()));
            assert!(second.try_send(3).is_err_and(|error| error.is_full()));
        });
        assert!(has_happened);
        assert_eq!((one.outcome(), two.outcome()), (None, Some(Ok(2))));
    }

    #[test]
    fn a_message_that_finds_no_claim_goes_to_the_buffer() {
        let ((first, firsts), (second, seconds)) = (channel::bounded(1), channel::bounded(1));
        let (mut one, mut two) = (Recv::new(&firsts), Recv::new(&seconds));
        assert!(granted(&mut [&mut one, &mut two], || {
            assert_eq!((first.try_send(1), second.try_send(2)), (Ok(()), Ok(())));
        }));
        assert_eq!((one.outcome(), two.outcome(), seconds.try_recv()), (Some(Ok(1)), None, Ok(2)));
    }

    #[test]
    fn room_that_finds_no_claim_is_left() {
        let ((first, firsts), (second, seconds)) = (channel::bounded(1), channel::bounded(1));
        assert_eq!((first.try_send(1), second.try_send(2)), (Ok(()), Ok(())));
        let mut messages = [Some(3), Some(4)];
        let [three, four] = &mut messages;
        let (mut one, mut two) = (Send::new(&first, three), Send::new(&second, four));
        assert!(granted(&mut [&mut one, &mut two], || {
            assert_eq!((seconds.try_recv(), firsts.try_recv()), (Ok(2), Ok(1)));
            assert_eq!(firsts.try_recv(), Err(TryRecvError::Empty));
        }));
        assert_eq!((one.outcome(), two.outcome()), (None, Some(Ok(()))));
        assert_eq!((messages, seconds.try_recv()), ([Some(3), None], Ok(4)));
    }

    #[test]
    fn the_message_of_a_select_that_is_torn_down_goes_back() {
        let ((sender, receiver), (_silent, nothing)) = (channel::rendezvous(), channel::rendezvous::<u8>());
        let (mut one, mut two) = (Recv::new(&nothing), Recv::new(&receiver));
        torn_down(&mut [&mut one, &mut two], || assert_eq!(sender.try_send(1), Ok(())));
        assert_eq!(receiver.try_recv(), Ok(1));
    }

    #[test]
    fn a_select_that_is_torn_down_keeps_what_nobody_took() {
        let ((sender, receiver), (silent, nothing)) = (channel::rendezvous(), channel::rendezvous::<u8>());
        let mut message = Some(1);
        let (mut one, mut two) = (Recv::new(&nothing), Send::new(&sender, &mut message));
        torn_down(&mut [&mut one, &mut two], || ());
        assert_eq!((message, receiver.try_recv()), (Some(1), Err(TryRecvError::Empty)));
        assert!(silent.try_send(1).is_err());
    }

    #[test]
    fn the_last_of_the_other_side_that_goes_is_an_event() {
        let ((sender, receiver), (full, stuck)) = (channel::rendezvous::<u8>(), channel::rendezvous());
        let mut message = Some(1);
        let (mut one, mut two) = (Recv::new(&receiver), Send::new(&full, &mut message));
        assert!(granted(&mut [&mut one, &mut two], || drop(sender)));
        assert_eq!((one.outcome(), two.outcome()), (Some(Err(RecvError::Disconnected)), None));
        let (sender, receiver) = channel::rendezvous::<u8>();
        let (mut one, mut two) = (Recv::new(&receiver), Send::new(&full, &mut message));
        assert!(granted(&mut [&mut one, &mut two], || drop(stuck)));
        assert_eq!((one.outcome(), two.outcome()), (None, Some(Err(SendError::Disconnected(1)))));
        drop(sender);
    }

    /// Whether these events find that they need not wait.
    fn see_somebody(events: &mut [&mut dyn Event]) -> bool {
        let claim = Claim::new();
        claim.release();
        let mut places = Places { events, claim: &claim };
        let all_wait = places.take_all();
        assert!(!places.leave_all());
        !all_wait
    }

    #[test]
    fn a_counterpart_that_is_there_is_seen_and_ones_own_other_end_is_not() {
        let (sender, receiver) = channel::rendezvous();
        let (mut message, mut another) = (Some(1), Some(2));
        let (mut one, mut two) = (Send::new(&sender, &mut message), Recv::new(&receiver));
        let (mut sends, mut receives) = (Send::new(&sender, &mut another), Recv::new(&receiver));
        torn_down(&mut [&mut one, &mut two], || {
            assert!(see_somebody(&mut [&mut sends]));
            assert!(see_somebody(&mut [&mut receives]));
            assert!(receives.attempt());
            assert!(!see_somebody(&mut [&mut sends]), "who was there has taken something else");
        });
        assert_eq!((receives.outcome(), message, another), (Some(Ok(1)), None, Some(2)));
    }
}
