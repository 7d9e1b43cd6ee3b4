//! What we ask of the peer: sends a request, and completes it on the caller's worker.
//!
//! ```text
//!   call ──▶ id and slot ──▶ encode into the outgoing buffer ──▶ park with the deadline
//!                                                                  ▲
//!   reader: frame ──▶ slot, whole id compared ──▶ bytes to the caller, made ready
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhaga::Interrupt;
use dhaga::park::{self, Parked, Unparker, WaitReason};
use dhaga::turn::{self, Region, ShortGuard, ShortLock};

use super::{Answer, Asked, Breach, Peer};
use crate::connection::Connection;
use crate::encode;
use crate::error::CallError;
use crate::error_form;
use crate::extension::{CANCEL, Caps, OF_SENDER};
use crate::in_flight::{Full, InFlight};
use crate::limits::Limits;
use crate::meta::{self, OUTGOING, Outgoing};
use crate::outbox::NoRoom;
use crate::spare::Spares;
use crate::waiters::Waiters;

fn overloaded(connection: &Connection<Peer>) -> impl Fn(NoRoom) -> CallError {
    let limit = connection.limits.unsent_bytes_max;
    move |why| match why {
        NoRoom::Late | NoRoom::Interrupted(Interrupt::DeadlineExceeded { .. }) => CallError::Overloaded { limit },
        NoRoom::Interrupted(other) => other.into(),
    }
}

/// Until when a call waits.
#[derive(Clone, Copy)]
pub(crate) struct Until {
    pub(crate) at: Option<Instant>,
    /// The peer shall know it, since the caller has said so itself. Of a mere default it learns by the cancel.
    pub(crate) is_told: bool,
}

impl Until {
    pub(crate) fn untold(at: Option<Instant>) -> Self {
        Self { at, is_told: false }
    }
}

/// Sends one request and waits for its answer.
#[inline]
pub(crate) fn call<E>(connection: &Arc<Connection<Peer>>, until: Until, encode: E) -> Result<Answer, CallError>
where
    E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
{
    if connection.was_tight() {
        connection.wait_for_room(until.at).map_err(overloaded(connection))?;
    }
    let mut pending = Pending::enter(connection, until.at)?;
    let said = match connection.side.caps().has(Caps::META) {
        true => Said::beside_a_call(until),
        false => None,
    };
    let mut encoded = Ok(());
    let write = |out: &mut Vec<u8>| {
        encoded = match &said {
            None => encode(out, pending.id),
            Some(said) => said.before(out, &connection.limits, pending.id, &encode),
        };
    };
    if !connection.send(write) {
        return Err(connection.why_ended());
    }
    encoded?;
    pending.is_sent = true;
    pending.wait(until.at)
}

/// What is said beside a call, in a message just before it.
struct Said {
    until: Option<Instant>,
    outgoing: Outgoing,
}

impl Said {
    /// `None`: there is nothing to say.
    fn beside_a_call(until: Until) -> Option<Self> {
        if !until.is_told && turn::is_bare() {
            return None;
        }
        let own = OUTGOING.get();
        let served = || Region::<Asked>::current()?.meta()?.trace.map(|trace| trace.child());
        let trace = own.as_ref().and_then(|own| own.trace).or_else(served);
        let deadline = until.at.filter(|_| until.is_told);
        if own.is_none() && trace.is_none() && deadline.is_none() {
            return None;
        }
        let metadata = own.map(|own| own.metadata.clone()).unwrap_or_default();
        Some(Self { until: deadline, outgoing: Outgoing { metadata, trace } })
    }

    /// Both messages or none: the buffer is shared.
    #[inline(never)]
    fn before<E>(&self, out: &mut Vec<u8>, limits: &Limits, id: u32, encode: E) -> Result<(), encode::EncodeError>
    where
        E: Fn(&mut Vec<u8>, u32) -> Result<(), encode::EncodeError>,
    {
        let mut whole = Whole { start: out.len(), out, is_whole: false };
        let left = self.until.map(|until| until.saturating_duration_since(park::now()));
        meta::encode_meta(whole.out, limits, id, left, &self.outgoing)?;
        encode(whole.out, id)?;
        whole.is_whole = true;
        Ok(())
    }
}

/// Messages that belong together. Dropped before they are whole they are taken out again, also when `Serialize` panics.
struct Whole<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    is_whole: bool,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.out.truncate(self.start);
        }
    }
}

/// Sends a whole notification.
pub(crate) fn notify(
    connection: &Arc<Connection<Peer>>,
    deadline: Option<Instant>,
    message: &[u8],
) -> Result<(), CallError> {
    connection.wait_for_room(deadline).map_err(overloaded(connection))?;
    if connection.is_closed()
        && let Some(ended) = connection.ended()
    {
        return Err(ended);
    }
    match connection.send(|out| out.extend_from_slice(message)) {
        true => Ok(()),
        false => Err(connection.why_ended()),
    }
}

/// A call that is entered among those in flight. Dropped before its answer came, it gives its id up.
struct Pending<'a> {
    connection: &'a Arc<Connection<Peer>>,
    calling: &'a Calling,
    id: u32,
    /// How many calls were answered when this one looked for its answer last.
    answers_seen: u64,
    is_sent: bool,
    is_over: bool,
}

impl<'a> Pending<'a> {
    /// Enters a call, and waits while as many as allowed are in flight.
    #[inline]
    fn enter(connection: &'a Arc<Connection<Peer>>, deadline: Option<Instant>) -> Result<Self, CallError> {
        let calling = connection.side.calling();
        let peers_room = connection.side.peers_room();
        let mut calls = calling.calls();
        let entered = if calls.ended.is_none() { calls.enter(peers_room).ok() } else { None };
        let answers_seen = calling.answers();
        drop(calls);
        let (id, answers_seen) = match entered {
            Some(id) => (id, answers_seen),
            None => calling.enter_later(peers_room, deadline)?,
        };
        if let Some(serving) = connection.side.serving.get() {
            serving.resume_for_answers(connection);
        }
        Ok(Self { connection, calling, id, answers_seen, is_sent: false, is_over: false })
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer, CallError> {
        let mut is_late = false;
        loop {
            if let Some(answer) = self.take() {
                return answer.map_err(|error| error.unless_late(deadline));
            }
            if is_late {
                return Err(CallError::DeadlineExceeded);
            }
            park::check()?;
            is_late = park::park_until(WaitReason::Call, deadline) == Parked::TimedOut;
        }
    }

    /// The answer, if it has come. Looks for it only if any has: mostly it is the first look, and none has.
    #[inline]
    fn take(&mut self) -> Option<Result<Answer, CallError>> {
        let answers = self.calling.answers();
        if answers == self.answers_seen {
            return None;
        }
        self.answers_seen = answers;
        let answer = self.calling.calls().take(self.id);
        self.is_over = answer.is_some();
        answer
    }
}

impl Drop for Pending<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.is_over {
            self.give_up();
        }
    }
}

impl Pending<'_> {
    #[cold]
    fn give_up(&self) {
        let mut calls = self.calling.calls();
        // The answer may have come just now.
        if calls.take(self.id).is_none() && calls.in_flight.cancel(self.id).is_some() {
            calls.given_up += u64::from(self.is_sent);
            calls.waiting.wake_one();
            drop(calls);
            self.say_cancelled();
        }
    }

    /// The peer need not go on for an answer that nobody waits for.
    #[cold]
    fn say_cancelled(&self) {
        if self.is_sent && self.connection.side.caps().has(Caps::CANCEL) {
            let limits = &self.connection.limits;
            let params = (OF_SENDER, self.id);
            // It is a few bytes, and above no limit.
            self.connection.send(|out| drop(encode::encode_notification(out, limits, CANCEL, &params)));
        }
        self.connection.close_if_left();
    }
}

/// A place in the queue for room in the table. Who was woken and gave up meanwhile passes the wake on.
struct Place<'a> {
    calling: &'a Calling,
    number: Option<u64>,
}

impl Place<'_> {
    fn take(&mut self, calls: &mut Calls) {
        self.leave(calls);
        self.number = Some(calls.waiting.join());
    }

    /// Returns whether the place was taken out already, by a wake.
    fn leave(&mut self, calls: &mut Calls) -> bool {
        self.number.take().is_some_and(|number| !calls.waiting.leave(number))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.number.is_some() {
            let mut calls = self.calling.calls();
            if self.leave(&mut calls) {
                calls.waiting.wake_one();
            }
        }
    }
}

/// The calling part of one connection.
pub(super) struct Calling {
    calls: ShortLock<Calls>,
    /// How many calls were answered: who waits looks at it before it takes the lock.
    answers: AtomicU64,
}

struct Calls {
    /// Those that wait for their answer, and those whose caller has yet to take it.
    in_flight: InFlight<Call>,
    /// How many of them are answered.
    answered: usize,
    /// How many may wait at a time.
    calls_max: usize,
    /// Callers for whom there was no room.
    waiting: Waiters,
    /// Calls whose callers did not wait for the answer, which may yet come.
    given_up: u64,
    /// Why the connection ended.
    ended: Option<CallError>,
    unknown: Unknown,
}

/// One call in flight.
///
/// No two ends of a call meet: its answer is laid down, its failure told and its place given up under the table's lock. The
/// answer lies there before the wake; the caller looks for it before each park and once more when its time is over. So what
/// remains is that no wake is lost, and that is the runtime's: a wake that comes before its park is saved, as the models of its
/// `inbox` show. The tests in `once.rs` bring the ends together by the hundred thousand.
enum Call {
    /// The caller waits.
    Waiting(Unparker),
    /// Laid here for the caller.
    Answered(Result<Answer, CallError>),
}

impl Call {
    /// Lays an answer down for its caller, who is returned to be woken. `None`: another one lies here.
    #[inline]
    fn lay(&mut self, answer: Result<Answer, CallError>) -> Option<Unparker> {
        match std::mem::replace(self, Self::Answered(answer)) {
            Self::Waiting(caller) => Some(caller),
            earlier @ Self::Answered(_) => {
                *self = earlier;
                None
            }
        }
    }
}

impl Calls {
    fn new(limits: &Limits) -> Self {
        Self {
            in_flight: InFlight::new(usize::MAX),
            answered: 0,
            calls_max: limits.calls_per_connection_max,
            waiting: Waiters::default(),
            given_up: 0,
            ended: None,
            unknown: Unknown { since: park::now(), count: 0 },
        }
    }

    /// How many wait for their answer.
    fn unanswered(&self) -> usize {
        self.in_flight.len() - self.answered
    }

    /// Enters a call of the caller, if there is room for it here and at the peer. There a call that was given up takes its place
    /// until it is answered all the same.
    #[inline]
    fn enter(&mut self, peers_room: usize) -> Result<u32, Full> {
        let unanswered = self.unanswered();
        if unanswered as u64 + self.given_up >= peers_room as u64 {
            return Err(Full { limit: peers_room });
        }
        if unanswered >= self.calls_max {
            return Err(Full { limit: self.calls_max });
        }
        self.in_flight.insert(Call::Waiting(park::unparker()))
    }

    /// Lays the answer of a call down for its caller, who is returned to be woken. `None`: nobody waits for it.
    #[inline]
    fn lay(&mut self, id: u32, answer: Result<Answer, CallError>) -> Option<Unparker> {
        let caller = self.in_flight.waiting(id)?.lay(answer)?;
        self.answered += 1;
        Some(caller)
    }

    /// Ends a call that is answered.
    #[inline]
    fn take(&mut self, id: u32) -> Option<Result<Answer, CallError>> {
        let is_answered = |call: &Call| matches!(call, Call::Answered(_));
        let Call::Answered(answer) = self.in_flight.complete_if(id, is_answered)? else { return None };
        self.answered -= 1;
        Some(answer)
    }

    /// Counts an answer that nobody waits for. Returns whether it is tolerable.
    fn count_unknown(&mut self, per_second: u32) -> bool {
        if self.given_up > 0 {
            self.given_up -= 1;
            self.waiting.wake_one();
            return true;
        }
        self.unknown.count(per_second)
    }
}

impl Calling {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { calls: ShortLock::new(Calls::new(limits)), answers: AtomicU64::new(0) }
    }

    /// Enters a call as soon as there is room. Returns its id, and how many were answered by then.
    #[cold]
    fn enter_later(&self, peers_room: usize, deadline: Option<Instant>) -> Result<(u32, u64), CallError> {
        let mut place = Place { calling: self, number: None };
        loop {
            let mut calls = self.calls();
            if let Some(error) = &calls.ended {
                return Err(error.clone().before_sending());
            }
            match calls.enter(peers_room) {
                Ok(id) => {
                    place.leave(&mut calls);
                    return Ok((id, self.answers()));
                }
                Err(Full { limit }) => {
                    place.take(&mut calls);
                    drop(calls);
                    if park::park_until(WaitReason::Call, deadline) == Parked::TimedOut {
                        park::check()?;
                        return Err(CallError::TooManyInFlight { limit });
                    }
                    park::check()?;
                }
            }
        }
    }

    #[inline]
    fn calls(&self) -> ShortGuard<'_, Calls> {
        self.calls.lock()
    }

    #[inline]
    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    /// Counts answers that were laid down, under the lock and before who waits is woken.
    #[inline]
    fn count_answers(&self, _laid: &mut Calls) {
        self.answers.store(self.answers.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// Whether calls wait for answers.
    pub(super) fn is_busy(&self) -> bool {
        self.calls().unanswered() > 0
    }

    /// Takes no more calls, if none waits for its answer. Returns whether it is so.
    #[cold]
    pub(super) fn end_if_idle(&self) -> bool {
        let mut calls = self.calls();
        let is_idle = calls.unanswered() == 0;
        if is_idle {
            calls.ended.get_or_insert(CallError::Disconnected { maybe_executed: true, source: None });
        }
        is_idle
    }

    /// The connection has ended for whoever calls. Nothing happens if it had ended before.
    pub(super) fn fail(&self, error: &CallError) {
        let mut calls = self.calls();
        calls.ended.get_or_insert_with(|| error.clone());
        let failed: Vec<_> = calls.in_flight.all_waiting().filter_map(|call| call.lay(Err(error.clone()))).collect();
        calls.answered += failed.len();
        self.count_answers(&mut calls);
        calls.waiting.wake_all();
        drop(calls);
        failed.iter().for_each(Unparker::unpark);
    }

    /// Takes an answer, and notes whom to wake. Returns whether it is tolerable, if nobody waits for it.
    #[inline]
    fn complete(&self, id: u32, outcome: Result<&[u8], &[u8]>, limits: &Limits, answered: &mut Answered) -> bool {
        let answer = match outcome {
            Ok(result) => Ok(Answer::new(result)),
            Err(error) => Err(error_form::read(error, limits)),
        };
        let mut calls = self.calls();
        let Some(caller) = calls.lay(id, answer) else {
            return calls.count_unknown(limits.unknown_answers_per_second_max);
        };
        self.count_answers(&mut calls);
        calls.waiting.wake_one();
        drop(calls);
        answered.push(caller);
        true
    }
}

thread_local! {
    /// Each read fills one and empties it.
    static SPARES: Spares<Vec<Unparker>> = const { Spares::new(4) };
}

/// Capacity of a list that is kept for the next read: what one brings.
const KEPT_CALLERS_MAX: usize = 4096;

/// The callers whose answers came with one read.
#[derive(Default)]
pub(super) struct Answered {
    first: Option<Unparker>,
    others: Vec<Unparker>,
}

impl Answered {
    #[inline]
    fn push(&mut self, caller: Unparker) {
        match self.first {
            None => self.first = Some(caller),
            Some(_) => {
                if self.others.capacity() == 0 {
                    self.others = SPARES.try_with(Spares::take).ok().flatten().unwrap_or_default();
                }
                self.others.push(caller);
            }
        }
    }

    /// A single one is next, while its answer is near. But if one of many ran before the others, its next call would leave
    /// alone, in a write of its own.
    #[inline]
    pub(super) fn wake(mut self) {
        match self.first {
            None => return,
            Some(caller) if self.others.is_empty() => return caller.unpark(),
            first => turn::unpark_all(first.into_iter().chain(self.others.drain(..))),
        }
        if (1..=KEPT_CALLERS_MAX).contains(&self.others.capacity()) {
            // While the locals of a thread are destroyed nothing more is kept.
            let _ = SPARES.try_with(|spares| spares.keep(self.others));
        }
    }
}

impl Connection<Peer> {
    /// What a call that comes too late is told.
    fn why_ended(&self) -> CallError {
        self.ended().unwrap_or(CallError::Disconnected { maybe_executed: false, source: None })
    }

    fn ended(&self) -> Option<CallError> {
        self.side.calling().calls().ended.clone().map(CallError::before_sending)
    }

    #[inline]
    pub(super) fn take_answer(self: &Arc<Self>, id: u32, outcome: Result<&[u8], &[u8]>, answered: &mut Answered) {
        let Some(calling) = self.side.calling.get() else { return self.side.host.count_ignored() };
        if !calling.complete(id, outcome, &self.limits, answered) {
            let limit = self.limits.unknown_answers_per_second_max;
            self.close_for_breach(Breach::TooManyUnknown { limit });
        }
    }
}

/// Answers to calls that are not in flight and were not given up: a few may be a mistake, a flood is not.
struct Unknown {
    since: Instant,
    count: u32,
}

impl Unknown {
    /// Counts one. Returns whether it is still within `per_second`.
    fn count(&mut self, per_second: u32) -> bool {
        let now = park::now();
        if now - self.since >= Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count <= per_second
    }
}

impl CallError {
    /// Out of time: the peer knows our deadline, and what it says after that is most often that it has met it.
    fn unless_late(self, deadline: Option<Instant>) -> Self {
        match self {
            Self::Remote(_) | Self::Refused { .. } if deadline.is_some_and(|deadline| deadline <= park::now()) => {
                Self::DeadlineExceeded
            }
            error => error,
        }
    }

    /// As the error of a call of which nothing was sent.
    fn before_sending(self) -> Self {
        match self {
            Self::Disconnected { source, .. } => Self::Disconnected { maybe_executed: false, source },
            other => other,
        }
    }

    /// The connection had ended before the call began, so that another one may serve it.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Disconnected { maybe_executed: false, .. })
    }
}

impl From<Interrupt> for CallError {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => Self::Cancelled,
            Interrupt::Panicking => Self::Panicking,
            _ => Self::DeadlineExceeded,
        }
    }
}
