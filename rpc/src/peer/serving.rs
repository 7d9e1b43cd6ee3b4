//! What the peer asks of us: admitted, run, answered.
//!
//! ```text
//!   reader: frame ──▶ admit (limits, duplicate id, method) ──▶ a dhaga: decode, run, encode, append ──▶ release
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::asked::{self, Desk, Here};
use super::calling::Answered;
use super::ids::{Ids, Place};
use super::queue::{Queue, Request};
use super::runner::Work;
use super::running::Running;
use super::{Breach, Peer};
use crate::connection::Connection;
use crate::directory::Number;
use crate::error::{Cause, Refusal};
use crate::extension::PREFIX;
use crate::host::{Host, WaitsForRoom};
use crate::incoming::Flow;
use crate::limits::QUEUED_FRAME_OVERHEAD_BYTES;
use crate::message::{self, Message, MessageError};
use crate::meta::{Announced, Meta};
use crate::service::respond_refusal;
use dhaga::turn::{Region, ShortGuard, ShortLock};

/// Capacity that an idle connection may keep in each of its collections.
const KEPT_MAX: usize = 8;

/// A batch has so many times as many requests counted at a time as the time before: a single one costs no more than itself,
const LOT_GROWTH: usize = 8;
/// and one lot is no more than this part of what is free, so that nobody is refused for what another has not used.
const LOTS_MIN: usize = 64;

/// The serving part of one connection.
///
/// Requests that were read wait in `pending`. A *runner* is a dhaga that takes one after the other from there; before it
/// runs a handler it makes sure that, if any are left, a *successor* is queued, which starts when the runner parks or when
/// an idle worker steals it. So each request that waits has a dhaga of its own, and those that do not wait share one.
///
/// While the connection is congested no handler begins, and the successor waits for all that is pending. Answers for which there
/// is no room wait in `unsent`: a peer that does not read costs one stack and its answers, however much it has asked for.
#[derive(Default)]
pub(super) struct Serving {
    state: ShortLock<State>,
    /// A frame waits for room: whoever makes room resumes the reader.
    is_waiting: AtomicBool,
    /// The host will tell when half of the server is free.
    will_be_told: AtomicBool,
    /// Something is in flight or announced. Written under the lock. Only a reader sets it, so that a reader, of which there is one
    /// at a time, believes it without the lock when it is not set.
    is_occupied: AtomicBool,
    /// Under which handlers find the connection.
    number: OnceLock<Number>,
    /// One more than the number of the last method that was looked up, which is mostly the next one's, too; 0: there was none. By one
    /// reader at a time.
    last_method: AtomicU32,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pending: Queue,
    /// Answers for which there was no room, in the order in which they came.
    pub(super) unsent: VecDeque<Unsent>,
    /// A dhaga is queued or waits that will go on with both.
    pub(super) has_successor: bool,
    /// Where requests run, by the place of their runner.
    pub(super) running: Running,
    /// Requests that are pending or run, notifications included, or whose answers wait.
    in_flight: usize,
    /// Bytes of their frames and of what goes with them, at true cost.
    queued_bytes: usize,
    /// The requests among them, by id.
    ids: Ids,
    /// A `$/meta` whose request has not come.
    announced: Option<Box<Announced>>,
    /// Size of the frame that waits, if one does, and of its `$/meta`.
    waiting_bytes: usize,
}

/// An answer that waits for room, and what its request is charged.
pub(super) struct Unsent {
    id: u32,
    cost: usize,
    pub(super) answer: Box<[u8]>,
}

/// What one read brought, before it is entered.
#[derive(Default)]
pub(crate) struct Batch {
    /// Callers whose answers came with them.
    pub(super) answered: Answered,
    /// The first one, with the desk where its arguments lie, while it is the only one: then it needs no queue.
    lone: Option<Lone>,
    requests: Queue,
    /// How many there are, and their bytes.
    len: usize,
    bytes: usize,
    /// What the host has counted beyond them, and how many it has counted last: the next lot is larger, up to `lot_max`.
    reserved: usize,
    lot: usize,
    lot_max: usize,
    /// As [`Serving::last_method`].
    last_number: Option<u32>,
    /// New requests are refused.
    is_ending: bool,
    /// `None`: no request came yet.
    room: Option<Room>,
    /// A `$/meta` whose request has not come.
    announced: Option<Box<Announced>>,
}

/// A request that came alone so far, and where it may run.
struct Lone {
    request: Request,
    here: Here,
    desk: Desk,
}

/// Room when the first request of a batch came. Only other connections can make it smaller meanwhile: there is one reader.
struct Room {
    requests: usize,
    bytes: usize,
    /// Requests of the connection that were in flight. With none a frame of any size is taken if it is alone.
    in_flight: usize,
}

/// What is found wrong with a frame before any handler is asked.
enum Reject {
    /// The stream cannot be trusted any more.
    Close(Cause),
    /// An error answer.
    Refuse(u32, Refusal),
    /// A notification for nobody.
    Ignore,
}

impl Connection<Peer> {
    /// Takes a request of the usual form for a method that is there, if there is room for it. Returns whether it did: whatever
    /// is unusual goes the long way.
    #[inline]
    pub(super) fn take_plain_request(self: &Arc<Self>, frame: &[u8], batch: &mut Batch) -> bool {
        let Some((id, name, params)) = message::plain_request(frame, &self.limits) else { return false };
        let host = &*self.side.host;
        if !batch.has_room(self, frame.len()) {
            return false;
        }
        let Some(number) = batch.number(self, name) else { return false };
        if batch.announced.is_some() || batch.is_ending {
            return false;
        }
        let is_admitted = batch.reserve(host);
        if is_admitted {
            batch.push(Some(id), number, frame.len() + QUEUED_FRAME_OVERHEAD_BYTES, params, None);
        }
        is_admitted
    }

    /// New requests are refused.
    #[inline]
    fn is_ending(&self) -> bool {
        self.side.host.is_draining.load(Ordering::Relaxed) || dhaga::is_shutting_down()
    }

    /// Takes what is no answer, or makes it wait for room.
    pub(super) fn take_request(
        self: &Arc<Self>,
        frame: &[u8],
        message: Result<Message<'_>, MessageError>,
        batch: &mut Batch,
    ) -> Flow {
        if !batch.has_room(self, frame.len())
            && let Some(flow) = self.make_wait(frame, &message, batch)
        {
            return flow;
        }
        let mut meta_bytes = 0;
        let meta = match (batch.announced.take(), request_id(&message)) {
            (None, _) => None,
            (Some(announced), Some(id)) if announced.id == id => match announced.meta {
                Ok(meta) => {
                    meta_bytes = announced.bytes;
                    Some(Box::new(meta))
                }
                Err(reason) => {
                    let refusal = Refusal::BadRequest { reason };
                    self.count_refused(frame, &message, &refusal);
                    self.refuse(id, refusal);
                    return Flow::Taken;
                }
            },
            // A notification is in nobody's way.
            (announced @ Some(_), None) => {
                batch.announced = announced;
                None
            }
            (Some(_), Some(_)) => {
                self.close_for_breach(Breach::StrayMeta);
                return Flow::Taken;
            }
        };
        if let Ok(Message::Request { id, method, params }) = message
            && method.starts_with(PREFIX)
            && self.take_reserved_request(id, method, params)
        {
            return Flow::Taken;
        }
        match self.admit(frame, message, meta, meta_bytes, batch) {
            Ok(()) => {}
            Err(Reject::Refuse(id, refusal)) => self.refuse(id, refusal),
            Err(Reject::Close(cause)) => self.close_for_fault(cause),
            Err(Reject::Ignore) => self.side.host.count_ignored(),
        }
        Flow::Taken
    }

    pub(super) fn refuse(self: &Arc<Self>, id: u32, refusal: Refusal) {
        let mut answer = Vec::new();
        respond_refusal(&self.limits, self.side.errors(), id, refusal, &mut answer);
        self.note(self.append_answers(&answer));
    }

    /// Counts a request that is refused before it is looked at.
    fn count_refused(&self, frame: &[u8], message: &Result<Message<'_>, MessageError>, refusal: &Refusal) {
        let host = &self.side.host;
        let number = match message {
            Ok(Message::Request { method, .. }) => {
                host.methods.lookup_numbered(method.as_bytes()).map(|(_, number)| number)
            }
            _ => None,
        };
        host.count_refused(number, frame.len(), refusal);
    }

    fn room(&self, state: &State) -> Room {
        let requests = match self.may_read_requests() {
            true => self.requests_to_go(state),
            false => 0,
        };
        let bytes = self.limits.queued_bytes_max.saturating_sub(state.queued_bytes);
        Room { requests, bytes, in_flight: state.in_flight }
    }

    /// As [`room`](Self::room), with nothing in flight.
    #[inline]
    fn whole_room(&self) -> Room {
        let requests = if self.may_read_requests() { self.in_flight_max() } else { 0 };
        Room { requests, bytes: self.limits.queued_bytes_max, in_flight: 0 }
    }

    /// What the connection may have in flight at the moment.
    #[inline]
    fn in_flight_max(&self) -> usize {
        let host = &*self.side.host;
        host.in_flight_of_one_max(host.in_flight())
    }

    fn requests_to_go(&self, state: &State) -> usize {
        self.in_flight_max().saturating_sub(state.in_flight)
    }

    /// Whether there is room for the frame that waits. If not, something will have this looked at again when there may be.
    ///
    /// Where less than half of the server is full, that is the end of a request of the connection's own, whatever others do. Else
    /// others may make the room, while its own requests do not end, for they wait for what is yet unread: the host tells of that.
    fn has_room_or_will_be_told(self: &Arc<Self>, state: &State) -> bool {
        let (host, serving) = (&self.side.host, self.side.serving());
        let bytes = state.queued_bytes + state.waiting_bytes + QUEUED_FRAME_OVERHEAD_BYTES;
        loop {
            // One look for both questions: between two looks others might take what was free, or make it free.
            let in_flight = host.in_flight();
            let has_place = state.in_flight < host.in_flight_of_one_max(in_flight);
            if state.in_flight == 0 || (has_place && bytes <= self.limits.queued_bytes_max) {
                return true;
            }
            let is_half_free = in_flight <= host.limits.in_flight_per_server_max / 2;
            if is_half_free || serving.will_be_told.swap(true, Ordering::SeqCst) {
                return false;
            }
            // The room that has come until now is not told of.
            host.tell_of_room(Arc::downgrade(&(self.clone() as Arc<dyn WaitsForRoom>)));
        }
    }

    /// A peer that does not read what it is sent is not read from. But if calls of ours wait, it may hold back for the same
    /// reason, and one of us has to read on.
    fn may_read_requests(&self) -> bool {
        !self.is_congested() || self.must_read_on()
    }

    /// Whether calls of ours wait for answers, which may lie behind whatever waits.
    fn must_read_on(&self) -> bool {
        self.side.has_calls() && !self.is_flooded()
    }

    /// There was no room for a request. The reader waits until there is, unless calls of ours wait for answers, which come
    /// behind it: the handlers that hold the room may be those who called. `None`: there is room after all, which has come
    /// since the batch began.
    #[cold]
    fn make_wait(
        self: &Arc<Self>,
        frame: &[u8],
        message: &Result<Message<'_>, MessageError>,
        batch: &mut Batch,
    ) -> Option<Flow> {
        if !self.must_read_on() {
            return Some(Flow::Wait);
        }
        if batch.has_room_by_now(self, frame.len()) {
            return None;
        }
        match message {
            Ok(Message::Request { id, .. }) | Err(MessageError { request_id: Some(id), .. }) => {
                batch.announced = None;
                let refusal = Refusal::TooManyInFlight { limit: self.in_flight_max() };
                self.count_refused(frame, message, &refusal);
                self.refuse(*id, refusal);
            }
            Ok(_) => self.side.host.count_ignored(),
            Err(error) => self.close_for_fault(Arc::new(*error)),
        }
        Some(Flow::Taken)
    }

    /// Enters a batch. Returns whether there is room after all for the frame that has to wait, if one does.
    pub(super) fn enter_requests(
        self: &Arc<Self>,
        batch: &mut Batch,
        waits_for: Option<usize>,
        work: Option<&mut Option<Work>>,
    ) -> bool {
        if batch.room.is_none() && waits_for.is_none() {
            return true;
        }
        let serving = self.side.serving();
        if batch.reserved > 0 {
            self.side.host.release(batch.reserved);
        }
        let lone = match &work {
            Some(_) => batch.lone.take_if(|lone| lone.request.meta.is_none()),
            None => None,
        };
        if let (Some(mut lone), Some(work)) = (lone, work) {
            asked::prepare(&mut lone.here, self, serving.number_of(self));
            match self.begin_lone(lone, batch) {
                Ok(begun) => {
                    *work = begun;
                    return true;
                }
                Err(lone) => batch.lone = Some(lone),
            }
        }
        batch.queue_lone();
        let mut state = serving.state();
        let entered = state.enter(batch);
        serving.note_occupied(&state);
        let mut has_room = true;
        if let Some(bytes) = waits_for {
            let bytes = bytes + bytes_of(&state.announced);
            state.waiting_bytes = bytes;
            // Under the lock: who makes room looks at it after the room is made.
            serving.is_waiting.store(true, Ordering::SeqCst);
            has_room = self.has_room_or_will_be_told(&state) && !self.is_congested();
            // Who calls looks at it after the call is entered.
            has_room |= self.must_read_on();
            has_room = has_room && serving.is_waiting.swap(false, Ordering::SeqCst);
        }
        drop(state);
        if self.is_closed() {
            self.forget_what_came_late();
        }
        if let Err(duplicate) = entered {
            self.close_for_breach(duplicate);
        }
        has_room
    }

    /// Enters a request that came alone, and begins it if no others wait. Returns nothing if it is to run no more.
    #[inline]
    fn begin_lone(self: &Arc<Self>, lone: Lone, batch: &mut Batch) -> Result<Option<Work>, Lone> {
        if self.was_tight() {
            return Err(lone);
        }
        let serving = self.side.serving();
        let mut state = serving.state();
        let Some(place) = state.begin(&lone) else { return Err(lone) };
        state.announced = batch.announced.take();
        serving.note_occupied(&state);
        drop(state);
        let Lone { request, here, desk } = lone;
        let work = Work { request, here, desk, place };
        match self.is_closed() && work.request.id.is_some() {
            true => self.forget_begun(work),
            false => Ok(Some(work)),
        }
    }

    /// As [`forget_what_came_late`](Self::forget_what_came_late), of one that has begun.
    #[cold]
    fn forget_begun(&self, work: Work) -> Result<Option<Work>, Lone> {
        let serving = self.side.serving();
        let mut state = serving.state();
        state.release(work.request.id, work.request.cost as usize);
        let left = state.running.remove(work.place);
        serving.note_occupied(&state);
        drop((state, left));
        self.side.host.release(1);
        Ok(None)
    }

    /// The connection was closed by another thread while a batch was read: nobody waits for the answers.
    #[cold]
    fn forget_what_came_late(&self) {
        let forgotten = self.side.serving().forget(true);
        self.side.host.release(forgotten);
        // Another runner may have begun some.
        self.side.cancel_for_who_has_gone();
    }

    /// Checks a frame against all that needs no user code, and copies what its handler will need.
    fn admit(
        self: &Arc<Self>,
        frame: &[u8],
        message: Result<Message<'_>, MessageError>,
        meta: Option<Box<Meta>>,
        meta_bytes: usize,
        batch: &mut Batch,
    ) -> Result<(), Reject> {
        let host = &*self.side.host;
        let (id, method, params) = match message {
            Ok(Message::Request { id, method, params }) => (Some(id), method, params),
            Ok(Message::Notification { method, params }) => (None, method, params),
            Ok(Message::Response { .. }) => return Err(Reject::Ignore),
            Err(MessageError { request_id: Some(id), flaw }) => {
                let refusal = Refusal::BadRequest { reason: flaw.to_string() };
                host.count_refused(None, frame.len(), &refusal);
                return Err(Reject::Refuse(id, refusal));
            }
            Err(error) => return Err(Reject::Close(Arc::new(error))),
        };
        let refuse = |number, refusal| {
            host.count_refused(number, frame.len(), &refusal);
            Err(id.map_or(Reject::Ignore, |id| Reject::Refuse(id, refusal)))
        };
        let Some(number) = batch.number(self, method.as_bytes()) else {
            return refuse(None, Refusal::UnknownMethod { method: method.to_owned() });
        };
        // Who watches a server over wants to see it end.
        if batch.is_ending && !method.starts_with(PREFIX) {
            return refuse(Some(number), Refusal::ShuttingDown);
        }
        if !batch.reserve(host) {
            let limit = host.limits.in_flight_per_server_max;
            return refuse(Some(number), Refusal::TooManyInFlight { limit });
        }
        batch.push(id, number, frame.len() + meta_bytes + QUEUED_FRAME_OVERHEAD_BYTES, params, meta);
        Ok(())
    }
}

impl WaitsForRoom for Connection<Peer> {
    fn room_has_come(self: Arc<Self>) {
        let serving = self.side.serving();
        serving.will_be_told.store(false, Ordering::SeqCst);
        serving.resume_if_waiting(&self);
    }
}

fn request_id(message: &Result<Message<'_>, MessageError>) -> Option<u32> {
    match message {
        Ok(Message::Request { id, .. }) => Some(*id),
        Ok(_) => None,
        Err(error) => error.request_id,
    }
}

/// What a request is charged for the `$/meta` before it.
fn bytes_of(announced: &Option<Box<Announced>>) -> usize {
    announced.as_ref().map_or(0, |announced| announced.bytes)
}

impl Batch {
    /// A frame above the limit of queued bytes is taken when it is alone.
    #[inline]
    fn has_room(&mut self, connection: &Connection<Peer>, frame_bytes: usize) -> bool {
        if self.room.is_none() {
            self.begin(connection);
        }
        let Some(room) = &self.room else { return false };
        let is_alone = room.in_flight == 0 && self.len == 0;
        let bytes = self.bytes + frame_bytes + bytes_of(&self.announced) + QUEUED_FRAME_OVERHEAD_BYTES;
        self.len < room.requests && (is_alone || bytes <= room.bytes)
    }

    /// As [`has_room`](Self::has_room), looked at anew, for who reads on however much is unsent.
    #[cold]
    fn has_room_by_now(&mut self, connection: &Connection<Peer>, frame_bytes: usize) -> bool {
        let state = connection.side.serving().state();
        self.room = Some(Room { requests: connection.requests_to_go(&state), ..connection.room(&state) });
        drop(state);
        self.has_room(connection, frame_bytes)
    }

    #[inline]
    fn push(&mut self, id: Option<u32>, number: u32, cost: usize, params: &[u8], meta: Option<Box<Meta>>) {
        self.bytes += cost;
        self.len += 1;
        match self.len {
            1 => return self.push_lone(id, number, cost, params, meta),
            2 => self.queue_lone(),
            _ => {}
        }
        self.requests.push(id, number, cost, params, meta);
    }

    #[inline(never)]
    fn push_lone(&mut self, id: Option<u32>, number: u32, cost: usize, params: &[u8], meta: Option<Box<Meta>>) {
        let (here, mut desk) = asked::take();
        desk.params.clear();
        let request = Request::new(id, number, cost, params, &mut desk.params, meta);
        self.lone = Some(Lone { request, here, desk });
    }

    /// Puts the lone one, if there is one, into the queue.
    #[inline(never)]
    fn queue_lone(&mut self) {
        if let Some(Lone { request, here, desk }) = self.lone.take() {
            self.requests = Queue::spare();
            self.requests.push_request(request, &desk.params);
            asked::keep(here, desk);
        }
    }

    /// The number of a method, if there is one of this name.
    #[inline]
    fn number(&mut self, connection: &Connection<Peer>, name: &[u8]) -> Option<u32> {
        let host = &*connection.side.host;
        let is_last = |number: &u32| host.handlers[*number as usize].name().as_bytes() == name;
        if let Some(number) = self.last_number.filter(is_last) {
            return Some(number);
        }
        let (_, number) = host.methods.lookup_numbered(name)?;
        connection.side.serving().last_method.store(number + 1, Ordering::Relaxed);
        self.last_number = Some(number);
        self.last_number
    }

    /// Has the host count a request. Returns whether there is room for it.
    #[inline]
    fn reserve(&mut self, host: &Host) -> bool {
        if self.reserved == 0 {
            self.reserve_lot(host);
        }
        let has_room = self.reserved > 0;
        self.reserved -= usize::from(has_room);
        has_room
    }

    #[inline]
    fn reserve_lot(&mut self, host: &Host) {
        if self.lot > 0 {
            self.look_at_others(host);
        }
        // No more than the connection may have, which is what is told of it.
        let room = self.room.as_ref().map_or(0, |room| room.requests.saturating_sub(self.len));
        self.reserved = host.reserve(self.lot.min(room).max(1));
        self.lot = (self.lot * LOT_GROWTH).clamp(1, self.lot_max.max(1));
    }

    /// What other workers take meanwhile is not free any more.
    fn look_at_others(&mut self, host: &Host) {
        if let Some(room) = &mut self.room {
            let left = host.in_flight_of_one_max(host.in_flight()).saturating_sub(room.in_flight);
            room.requests = room.requests.min(left);
        }
    }

    /// Before the first that is no answer.
    fn begin(&mut self, connection: &Connection<Peer>) {
        let host = &*connection.side.host;
        let serving = connection.side.serving();
        self.room = Some(match serving.is_occupied.load(Ordering::Relaxed) {
            false => connection.whole_room(),
            true => {
                let mut state = serving.state();
                self.announced = state.announced.take();
                connection.room(&state)
            }
        });
        self.last_number = serving.last_method.load(Ordering::Relaxed).checked_sub(1);
        self.is_ending = connection.is_ending();
        self.lot_max = host.limits.in_flight_per_server_max.saturating_sub(host.in_flight()) / LOTS_MIN;
    }

    /// Cancels the request with this id. Returns whether it is in this batch.
    pub(super) fn cancel(&mut self, id: u32) -> bool {
        let lone = self.lone.as_mut().map(|lone| &mut lone.request);
        let request = self.requests.iter_mut().rev().chain(lone).find(|request| request.id == Some(id));
        request.map(|request| request.is_cancelled = true).is_some()
    }

    /// Keeps a `$/meta` for the next request. Returns the one before it, for which none has come.
    pub(super) fn announce(
        &mut self,
        connection: &Connection<Peer>,
        announced: Option<Box<Announced>>,
    ) -> Option<Box<Announced>> {
        if self.room.is_none() {
            self.begin(connection);
        }
        std::mem::replace(&mut self.announced, announced)
    }
}

impl State {
    /// Enters a request and begins it, in a region of its runner. Returns its place; `None`, and has done nothing, if others wait, or
    /// one with its id is in flight.
    #[inline]
    fn begin(&mut self, Lone { request, here, .. }: &Lone) -> Option<usize> {
        if self.has_work() {
            return None;
        }
        let place = self.running.insert(here.clone());
        if request.id.is_some_and(|id| !self.ids.insert(id, Place::Running(place as u32))) {
            drop(self.running.remove(place));
            return None;
        }
        self.in_flight += 1;
        self.queued_bytes += request.cost as usize;
        here.begin(request.number);
        Some(place)
    }

    /// Enters a batch.
    ///
    /// # Errors
    ///
    /// An id is in flight already.
    fn enter(&mut self, batch: &mut Batch) -> Result<(), Breach> {
        self.in_flight += batch.requests.len();
        self.queued_bytes += batch.bytes;
        self.announced = batch.announced.take();
        self.ids.reserve(batch.requests.len());
        let mut result = Ok(());
        for (request, number) in batch.requests.iter().zip(self.pending.numbers_to_come()) {
            let Some(id) = request.id else { continue };
            if !self.ids.insert(id, Place::Pending(number)) {
                result = Err(Breach::DuplicateId(id));
            }
        }
        self.pending.append(&mut batch.requests);
        std::mem::take(&mut batch.requests).keep();
        result
    }

    /// Takes the next request, for the runner at `place`, which leaves short arguments in `params`.
    #[inline]
    pub(super) fn next(&mut self, params: &mut Vec<u8>) -> Option<Request> {
        let next = self.pending.pop(params)?;
        if self.pending.is_empty() {
            std::mem::take(&mut self.pending).keep();
        }
        Some(next)
    }

    /// Notes that a request runs, and where.
    #[inline]
    pub(super) fn note_running(&mut self, id: Option<u32>, place: usize) {
        if let Some(id) = id {
            self.ids.set(id, Place::Running(place as u32));
        }
    }

    /// Lets a request go.
    #[inline]
    pub(super) fn release(&mut self, id: Option<u32>, cost: usize) {
        if let Some(id) = id {
            self.ids.remove(id);
        }
        self.in_flight -= 1;
        self.queued_bytes -= cost;
        if self.in_flight == 0 {
            self.ids.let_go(KEPT_MAX);
        }
    }

    /// Whether there is anything to run or to send.
    pub(super) fn has_work(&self) -> bool {
        !(self.pending.is_empty() && self.unsent.is_empty())
    }

    /// Makes the caller the successor, if there is none and something for it to do.
    pub(super) fn succeed(&mut self) -> bool {
        let succeeds = !self.has_successor && self.has_work();
        self.has_successor |= succeeds;
        succeeds
    }

    /// Keeps an answer until there is room.
    pub(super) fn hold(&mut self, id: u32, cost: usize, answer: Vec<u8>) {
        self.ids.set(id, Place::Answered);
        self.unsent.push_back(Unsent { id, cost, answer: answer.into() });
    }

    /// Lets the first request go whose answer has waited.
    pub(super) fn release_unsent(&mut self) {
        let Some(Unsent { id, cost, .. }) = self.unsent.pop_front() else { return };
        self.release(Some(id), cost);
        if self.unsent.is_empty() {
            self.unsent = VecDeque::new();
        }
    }
}

impl Serving {
    /// Whether requests of the peer are in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.state().in_flight > 0
    }

    pub(super) fn state(&self) -> ShortGuard<'_, State> {
        self.state.lock()
    }

    /// After each change of what is in flight or announced.
    #[inline]
    pub(super) fn note_occupied(&self, state: &State) {
        self.is_occupied.store(state.in_flight > 0 || state.announced.is_some(), Ordering::Relaxed);
    }

    fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::SeqCst)
    }

    /// Whether nothing is pending or runs.
    pub(super) fn is_idle(&self) -> bool {
        self.state().in_flight == 0
    }

    /// The connection's number in its host's directory, if it has one.
    pub(super) fn number(&self) -> Option<Number> {
        self.number.get().copied()
    }

    /// As [`number`](Self::number), made at the first request.
    #[inline]
    pub(super) fn number_of(&self, connection: &Arc<Connection<Peer>>) -> Number {
        *self.number.get_or_init(|| connection.side.host.served.open.add(Arc::downgrade(connection)))
    }

    /// Drops answers that wait and what is pending, but for notifications if they are to be run all the same. Returns how many
    /// requests there were.
    pub(super) fn forget(&self, keeps_notifications: bool) -> usize {
        let mut state = self.state();
        let forgotten = state.pending.forget(keeps_notifications);
        let unsent = std::mem::take(&mut state.unsent);
        forgotten.iter().for_each(|request| state.release(request.id, request.cost as usize));
        unsent.iter().for_each(|unsent| state.release(Some(unsent.id), unsent.cost));
        self.note_occupied(&state);
        drop(state);
        forgotten.len() + unsent.len()
    }

    /// Cancels the request with this id. Returns whether it is in flight.
    pub(super) fn cancel(&self, id: u32) -> bool {
        let mut state = self.state();
        let region = match state.ids.get(id) {
            None => return false,
            Some(Place::Pending(number)) => {
                state.pending.cancel(number);
                return true;
            }
            Some(Place::Running(place)) => state.running.get(place as usize).cloned(),
            Some(Place::Answered) => None,
        };
        drop(state);
        // The runner sees that it is held, and leaves it to what it has run there.
        region.inspect(Region::cancel);
        true
    }

    /// Cancels all requests, and no notifications.
    pub(super) fn cancel_all(&self) {
        let mut state = self.state();
        let State { pending, running, ids, .. } = &mut *state;
        let mut regions = Vec::new();
        for place in ids.places() {
            match place {
                Place::Pending(number) => pending.cancel(number),
                Place::Running(place) => regions.extend(running.get(place as usize).cloned()),
                Place::Answered => {}
            }
        }
        drop(state);
        regions.iter().for_each(Region::cancel);
    }

    pub(super) fn resume_if_waiting(&self, connection: &Arc<Connection<Peer>>) {
        if !self.is_waiting() {
            return;
        }
        let state = self.state();
        let has_room = connection.has_room_or_will_be_told(&state);
        drop(state);
        // Or what was flooded is not any more, and answers to us lie behind the frame that waits.
        if has_room && !connection.is_congested() || connection.must_read_on() {
            self.resume(connection);
        }
    }

    /// A call of ours was entered: its answer is behind the frame that waits.
    pub(super) fn resume_for_answers(&self, connection: &Arc<Connection<Peer>>) {
        if self.is_waiting() && !connection.is_flooded() {
            self.resume(connection);
        }
    }

    fn resume(&self, connection: &Arc<Connection<Peer>>) {
        if self.is_waiting.swap(false, Ordering::SeqCst) {
            connection.resume();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Side;
    use crate::encode;
    use crate::host::Manner;
    use crate::incoming::Incoming;
    use crate::limits::Limits;
    use crate::peer::{Until, call};
    use crate::service::Methods;
    use crate::transport::Transport;

    /// A connection that serves `add`, on which a call of ours waits for its answer.
    fn busy_connection(transport: Transport) -> Arc<Connection<Peer>> {
        let limits = Arc::new(Limits::default());
        let methods = Methods::new().method("add", |a: i64, b: i64| Ok(a + b));
        let peer = Peer::new(Host::new(methods, limits.clone(), Manner::default()), None);
        let connection = Connection::open(transport, peer, limits).expect("a socket can be waited for");
        let calling = connection.clone();
        let never_answered = move || {
            let encode = |out: &mut Vec<u8>, id| encode::encode_request(out, &calling.limits, id, "never", &());
            drop(call(&calling, Until::untold(None), encode));
        };
        dhaga::Builder::new().spawn(never_answered).expect("there is room").detach();
        while !connection.side.has_calls() {
            dhaga::yield_now();
        }
        connection
    }

    const FRAME: [u8; 10] = [0x94, 0, 1, 0xa3, b'a', b'd', b'd', 0x92, 1, 2];

    /// What is begun of these frames, which come in one read, and how many are in flight then.
    fn check_begun(frames: &[&[u8]], is_closed: bool, expected: (Option<Option<u32>>, usize)) {
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let frames = frames.concat();
        let entering = dhaga::spawn(move || {
            let connection = busy_connection(near);
            let mut batch = Batch::default();
            let mut feed = Incoming::default();
            let fed = feed.feed(&frames, &connection.limits, |frame| Peer::take(&connection, frame, &mut batch));
            assert_eq!(fed, Ok(Flow::Taken));
            if is_closed {
                connection.close(None);
            }
            let mut work = None;
            connection.enter_requests(&mut batch, None, Some(&mut work));
            let in_flight = connection.side.serving().state().in_flight;
            assert_eq!(connection.side.host.in_flight(), in_flight);
            connection.close(None);
            (work.map(|work| work.request.id), in_flight)
        });
        assert_eq!(entering.join().expect("nobody panics"), expected);
    }

    #[test]
    fn who_comes_alone_is_begun_at_once_but_for_a_request_of_who_was_closed_meanwhile() {
        const NOTIFICATION: [u8; 9] = [0x93, 2, 0xa3, b'a', b'd', b'd', 0x92, 1, 2];
        check_begun(&[&FRAME], false, (Some(Some(1)), 1));
        check_begun(&[&NOTIFICATION], false, (Some(None), 1));
        check_begun(&[&FRAME, &NOTIFICATION], false, (None, 2));
        check_begun(&[&FRAME], true, (None, 0));
        check_begun(&[&NOTIFICATION], true, (Some(None), 1));
    }

    #[test]
    fn room_that_has_come_since_the_batch_began_is_used() {
        let (near, _far) = Transport::pair().expect("there are descriptors");
        let taking = dhaga::spawn(move || {
            let connection = busy_connection(near);
            let room = Room { requests: 0, bytes: 0, in_flight: 1 };
            let mut batch = Batch { room: Some(room), ..Batch::default() };
            let flow = connection.take_request(&FRAME, Message::parse(&FRAME, &connection.limits), &mut batch);
            connection.close(None);
            (flow, batch.len)
        });
        assert_eq!(taking.join().expect("nobody panics"), (Flow::Taken, 1));
    }
}
