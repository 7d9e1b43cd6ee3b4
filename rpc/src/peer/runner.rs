//! Runs the requests that were admitted, each in a dhaga of its own if it waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dhaga::turn::{Region, ShortGuard};
use dhaga::{park, turn};

use super::Peer;
use super::asked::{self, Asked, Desk, Here};
use super::queue::{Params, Request};
use super::serving::{Serving, State};
use crate::connection::Connection;
use crate::error::Refusal;
use crate::layer::{self, Answered};
use crate::limits::QUEUED_FRAME_OVERHEAD_BYTES;
use crate::meta::Meta;
use crate::metrics::Begun;
use crate::outbox::Appended;
use crate::service::{Handler, HandlerError, kind_of, respond_refusal};

/// How long a runner goes on before it lets others of its worker run: as long as those who step back have in a turn.
const RUN_MAX: Duration = Duration::from_micros(50);
/// Requests between two looks at the clock,
const REQUESTS_PER_CLOCK_READ: usize = 8;
/// of which one counts as many more as it has so many bytes, its answer's included.
const BYTES_PER_REQUEST: usize = 1 << 10;

/// Runs pending requests one after the other. Whatever becomes of a handler, dropping the runner answers its request and
/// makes room.
pub(super) struct Runner<'a> {
    connection: &'a Arc<Connection<Peer>>,
    serving: &'a Serving,
    /// Where a cancel finds it. `None`: it has yet to take its first request, or is done.
    place: Option<usize>,
    /// The request whose handler runs.
    current: Option<Current<'a>>,
}

struct Current<'a> {
    /// `None`: a notification.
    id: Option<u32>,
    cost: usize,
    /// It was counted when it began, and not yet when it ended.
    begun: Option<Begun<'a>>,
}

impl Current<'_> {
    #[inline]
    fn of(request: &Request) -> Self {
        Self { id: request.id, cost: request.cost as usize, begun: None }
    }
}

/// A request that has begun, under the lock under which it was entered: one that came alone waits for nobody.
pub(crate) struct Work {
    pub(super) request: Request,
    pub(super) here: Here,
    /// With its arguments, if they are short.
    pub(super) desk: Desk,
    pub(super) place: usize,
}

/// How it goes on behind a request.
enum Then {
    /// With this one, in the region at hand.
    Here(Request),
    /// With this one, in another, in which nothing has run.
    Elsewhere(Request, Here),
    /// When its turn comes and there is room for answers, as its own successor.
    Later,
    /// With nothing; a flush may have yet to be asked for.
    Over(Appended),
}

/// Whether a runner goes on with what is pending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    On,
    /// Others have their turn first.
    Pause,
}

/// From where a runner takes the next request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// The region of the one before, which it may follow there.
    Region,
    No,
}

/// Who holds a region while a runner takes the next request in it: `Runner::run` and `State::running`.
const HOLDERS: usize = 2;

impl<'a> Runner<'a> {
    pub(super) fn new(connection: &'a Arc<Connection<Peer>>, serving: &'a Serving) -> Self {
        Self { connection, serving, place: None, current: None }
    }

    /// In a dhaga; suspends where the handlers do.
    ///
    /// Each request has a region of its own as far as anybody can see. To make one as new takes longer than to look whether it
    /// is, so those that left nothing behind share it.
    ///
    /// Returns what became of the last answer, for the caller to note: the connection goes with it to the end of the turn.
    #[must_use = "nobody else asks for the flush"]
    pub(super) fn run(mut self) -> Appended {
        loop {
            let (mut here, mut desk) = asked::take();
            asked::prepare(&mut here, self.connection, self.serving.number_of(self.connection));
            let then = self.next(&here, &mut desk, Inside::No, Pace::On);
            match self.go_on(then, here, desk) {
                Some(appended) => return appended,
                None => self.wait_for_turn(),
            }
        }
    }

    /// As [`run`](Self::run), first what has begun.
    #[must_use = "nobody else asks for the flush"]
    pub(super) fn run_begun(mut self, work: Work) -> Appended {
        let Work { request, here, desk, place } = work;
        self.current = Some(Current::of(&request));
        self.place = Some(place);
        match self.go_on(Then::Here(request), here, desk) {
            Some(appended) => appended,
            None => {
                self.wait_for_turn();
                self.run()
            }
        }
    }

    /// Runs requests until none is left for now. `None`: it is its own successor. Who waits as that holds nothing but its stack.
    fn go_on(&mut self, mut then: Then, mut here: Here, mut desk: Desk) -> Option<Appended> {
        let mut slice = Slice::default();
        let over = loop {
            let request = match then {
                Then::Here(request) => request,
                Then::Elsewhere(request, elsewhere) => {
                    here = elsewhere;
                    request
                }
                Then::Later => break None,
                Then::Over(appended) => break Some(appended),
            };
            then = here.run(here.deadline(), || self.run_here(request, &here, &mut desk, &mut slice));
        };
        asked::keep(here, desk);
        over
    }

    /// As the successor, of which there is one: it waits for all that the connection has to run or to send.
    fn wait_for_turn(&self) {
        // If the connection ends, there is room.
        let answers_wait = !self.serving.state().unsent.is_empty();
        self.connection.wait_while_congested(answers_wait);
        self.connection.step_back_if_greedy();
        self.serving.state().has_successor = false;
    }

    /// Runs a request, and those behind it that may run in the same region.
    fn run_here(&mut self, mut request: Request, here: &Here, desk: &mut Desk, slice: &mut Slice) -> Then {
        loop {
            self.count_begin(&request);
            let error = self.serve(&request, here, desk);
            self.count_end(desk.answer.len(), error);
            let bytes = request.cost as usize + desk.answer.len();
            drop(request);
            let pace = match slice.is_over(bytes) {
                true => {
                    self.connection.be_greedy();
                    Pace::Pause
                }
                // The handler has waited, and was woken among those who take little.
                false if !turn::is_patient() && self.connection.is_greedy() => Pace::Pause,
                false => Pace::On,
            };
            match self.next(here, desk, Inside::Region, pace) {
                Then::Here(next) => request = next,
                then => return then,
            }
        }
    }

    /// Runs one request and leaves its answer on the desk. Returns the kind of its error, if there is one.
    fn serve(&self, request: &Request, region: &Here, desk: &mut Desk) -> Option<u8> {
        let Desk { params, answer } = desk;
        let handler = &*self.connection.side.host.handlers[request.number as usize];
        let params = match &request.params {
            Params::Short(_) => &params[..],
            Params::Long(params) => params,
        };
        let outcome = match moot(request, region) {
            Some(refusal) => Err(HandlerError::refusal(refusal)),
            None if self.connection.side.host.manner.layers.is_empty() => self.handle(request, handler, params, answer),
            None => self.handle_in_layers(request, region, handler, params, answer),
        };
        let error = outcome.err().or_else(|| late(region))?;
        answer.clear();
        match request.id {
            Some(id) => error.respond(&self.connection.limits, self.connection.side.errors(), id, answer),
            None => log::debug!("a notification of {} failed: {error}", self.connection.describe_peer()),
        }
        Some(error.kind())
    }

    fn handle(
        &self,
        request: &Request,
        handler: &Handler,
        params: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<(), HandlerError> {
        match request.id {
            Some(id) => handler.answer(&self.connection.limits, id, params, answer),
            None => handler.notify(&self.connection.limits, params),
        }
    }

    #[cold]
    fn handle_in_layers(
        &self,
        request: &Request,
        region: &Asked,
        handler: &Handler,
        params: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<(), HandlerError> {
        let peer = || self.connection.describe_peer();
        let call = layer::Call::new(handler.name(), request.id.is_none(), region.metadata(), &peer);
        let mut last = || {
            answer.clear();
            self.handle(request, handler, params, answer).map(|()| Answered::new(answer.len()))
        };
        layer::run(&self.connection.side.host.manner.layers, &call, &mut last)?;
        match request.id.is_some() && answer.is_empty() {
            true => {
                let reason = "a layer said so without a handler".to_owned();
                Err(HandlerError::refusal(Refusal::BadResult { reason }))
            }
            false => Ok(()),
        }
    }

    fn count_begin(&mut self, request: &Request) {
        if let (Some(table), Some(current)) = (&self.connection.side.host.metrics, &mut self.current) {
            current.begun = Some(table.row(request.number).begin());
        }
    }

    fn count_end(&mut self, bytes_out: usize, error: Option<u8>) {
        let Some(current) = &mut self.current else { return };
        if let Some(begun) = current.begun.take() {
            begun.end(current.cost - QUEUED_FRAME_OVERHEAD_BYTES, bytes_out, error);
        }
    }

    /// Sends the answer of the request at hand, lets it go, and takes the next.
    fn next(&mut self, here: &Here, desk: &mut Desk, inside: Inside, pace: Pace) -> Then {
        let mut state = self.serving.state();
        let mut settled = self.settle(&mut state, &mut desk.answer);
        // A peer that does not read gets no more handlers run: each would hold its answer.
        let goes_on = pace == Pace::On && state.unsent.is_empty() && !self.connection.is_congested();
        let next = if goes_on { state.next(&mut desk.params) } else { None };
        // What never waits is soon over: the runner itself goes on with what is behind it. A layer may wait.
        let host = &self.connection.side.host;
        let is_inline = |next: &Request| host.handlers[next.number as usize].is_inline();
        let needs_no_successor = next.as_ref().is_some_and(is_inline) && host.manner.layers.is_empty();
        let (then, left) = match next {
            Some(next) => self.begin(&mut state, next, here, inside),
            None => {
                // Whoever is queued already goes on; with two of them, each turn would begin one more.
                let then = if state.succeed() { Then::Later } else { Then::Over(settled.take_last()) };
                (then, self.place.take().and_then(|place| state.running.remove(place)))
            }
        };
        self.let_go(state, settled, needs_no_successor);
        drop(left);
        then
    }

    /// Begins a request, under the lock, where a cancel finds it from now on. Returns a region that was left for it, too, to be
    /// dropped when the lock is free.
    #[inline]
    fn begin(&mut self, state: &mut State, next: Request, here: &Here, inside: Inside) -> (Then, Option<Here>) {
        self.current = Some(Current::of(&next));
        match self.place {
            Some(place) if inside == Inside::Region && next.meta.is_none() && asked::may_be_shared(here, HOLDERS) => {
                here.begin(next.number);
                state.note_running(next.id, place);
                (Then::Here(next), None)
            }
            _ => self.begin_anew(state, next, here),
        }
    }

    /// As [`begin`](Self::begin), of one that follows no other where that has run.
    #[inline(never)]
    fn begin_anew(&mut self, state: &mut State, mut next: Request, here: &Here) -> (Then, Option<Here>) {
        let is_first = self.place.is_none() && next.meta.is_none();
        let elsewhere = (!is_first).then(|| self.renew(next.meta.take()));
        let region = elsewhere.as_ref().unwrap_or(here);
        region.begin(next.number);
        let (place, left) = match self.place {
            Some(place) => (place, state.running.replace(place, region.clone())),
            None => (state.running.insert(region.clone()), None),
        };
        self.place = Some(place);
        state.note_running(next.id, place);
        let then = match elsewhere {
            None => Then::Here(next),
            Some(elsewhere) => Then::Elsewhere(next, elsewhere),
        };
        (then, left)
    }

    /// A region in which nothing has run, for a request with `meta`.
    #[cold]
    #[inline(never)]
    fn renew(&self, meta: Option<Box<Meta>>) -> Here {
        Asked::region(self.connection, self.serving.number_of(self.connection), meta)
    }

    /// All under the lock: whoever sees nothing in flight may close the connection, so an answer is with the unsent bytes
    /// by then; and its id is free before the answer can leave, for then the peer may use it again. An answer for which there
    /// is no room stays in flight, behind those that wait already, and its runner waits no longer.
    #[inline]
    fn settle(&mut self, state: &mut State, answer: &mut Vec<u8>) -> Settled {
        let mut settled = if state.unsent.is_empty() { Settled::default() } else { self.send_unsent(state) };
        let Some(current) = self.current.take() else { return settled };
        let appended = match current.id {
            Some(id) if !answer.is_empty() && !self.connection.is_deserted() => {
                let has_turn = state.unsent.is_empty();
                let Some(appended) = has_turn.then(|| self.connection.try_append(answer)).flatten() else {
                    state.hold(id, current.cost, std::mem::take(answer));
                    return settled;
                };
                appended
            }
            _ => Appended::Queued,
        };
        answer.clear();
        state.release(current.id, current.cost);
        self.serving.note_occupied(state);
        settled.count(appended);
        settled
    }

    /// Sends answers that have waited, as far as there is room.
    #[cold]
    fn send_unsent(&self, state: &mut State) -> Settled {
        let (mut settled, is_deserted) = (Settled::default(), self.connection.is_deserted());
        while let Some(unsent) = state.unsent.front() {
            let appended = match is_deserted {
                true => Appended::Queued,
                false => match self.connection.try_append(&unsent.answer) {
                    Some(appended) => appended,
                    None => break,
                },
            };
            settled.count(appended);
            state.release_unsent();
        }
        self.serving.note_occupied(state);
        settled
    }

    #[inline]
    fn let_go(&self, state: ShortGuard<'_, State>, settled: Settled, needs_no_successor: bool) {
        match needs_no_successor {
            true => drop(state),
            false => self.serving.ensure_successor(self.connection, state),
        }
        if settled.requests > 0 {
            let peer = &self.connection.side;
            peer.host.release(settled.requests);
            self.connection.note(settled.appended);
            self.serving.resume_if_waiting(self.connection);
            if peer.is_ended.load(Ordering::SeqCst) {
                self.connection.close_if_done();
            }
            self.connection.close_if_left();
        }
    }
}

/// Why a request is not run although it was admitted: whoever sent it waits no longer.
#[inline]
fn moot(request: &Request, region: &Region<Asked>) -> Option<Refusal> {
    if request.is_cancelled || region.is_cancelled() {
        return Some(Refusal::Cancelled);
    }
    region.deadline().filter(|deadline| *deadline <= park::now()).map(|_| Refusal::TooLate)
}

/// What a handler returned after its caller was out of time: it may have been cut short, and not have noticed.
fn late(region: &Asked) -> Option<HandlerError> {
    let is_late = region.deadline().is_some_and(|deadline| deadline <= park::now());
    is_late.then(|| HandlerError::new("the deadline of the call passed while the method ran"))
}

impl Serving {
    /// Has a runner queued if anything is pending.
    pub(super) fn ensure_successor(&self, connection: &Arc<Connection<Peer>>, mut state: ShortGuard<'_, State>) {
        if state.has_successor || state.pending.is_empty() {
            return;
        }
        state.has_successor = true;
        drop(state);
        let successor = Successor::of(connection);
        if let Err(error) = turn::spawn(move || successor.run()) {
            // The runner at hand goes on, and tries again before its next request.
            log::debug!("requests of {} run one after the other: {error}", connection.describe_peer());
        }
    }
}

/// A runner that is queued behind another.
struct Successor {
    connection: Arc<Connection<Peer>>,
    has_begun: bool,
}

impl Successor {
    fn of(connection: &Arc<Connection<Peer>>) -> Self {
        Self { connection: connection.clone(), has_begun: false }
    }

    fn run(mut self) {
        self.has_begun = true;
        let runner = Runner::new(&self.connection, self.connection.side.serving());
        runner.wait_for_turn();
        let appended = runner.run();
        self.connection.note(appended);
    }
}

impl Drop for Successor {
    /// It may never begin: the runtime has no room or memory for a dhaga. Whoever runs next queues another; if nobody does, and
    /// nothing more is read for want of room, the connection has come to its end.
    fn drop(&mut self) {
        if self.has_begun {
            return;
        }
        let mut state = self.connection.side.serving().state();
        state.has_successor = false;
        let reads_no_more = !state.unsent.is_empty() || self.connection.is_congested();
        let is_stranded = state.running.is_empty() && state.has_work() && reads_no_more;
        drop(state);
        if is_stranded {
            self.connection.close_for_want_of_a_dhaga();
        }
    }
}

/// Requests that were let go under the lock.
struct Settled {
    requests: usize,
    /// What became of their answers.
    appended: Appended,
}

impl Default for Settled {
    fn default() -> Self {
        Self { requests: 0, appended: Appended::Queued }
    }
}

impl Settled {
    #[inline]
    fn count(&mut self, appended: Appended) {
        self.requests += 1;
        // One of them at most is the first, and what is flushed at once needs no end of the turn.
        if appended != Appended::Queued && self.appended != Appended::Full {
            self.appended = appended;
        }
    }

    /// Leaves it to the caller to ask for a flush at the end of the turn.
    #[inline]
    fn take_last(&mut self) -> Appended {
        match self.appended {
            Appended::First => std::mem::replace(&mut self.appended, Appended::Queued),
            _ => Appended::Queued,
        }
    }
}

impl Drop for Runner<'_> {
    /// A handler panicked, or the runtime's shutdown unwinds it. Others go on with what is pending.
    fn drop(&mut self) {
        let Some(id) = self.current.as_ref().map(|current| current.id) else { return };
        let mut answer = Vec::new();
        if let Some(id) = id.filter(|_| !self.connection.is_deserted()) {
            let (limits, errors) = (&self.connection.limits, self.connection.side.errors());
            respond_refusal(limits, errors, id, Refusal::HandlerPanicked, &mut answer);
        }
        self.count_end(answer.len(), Some(kind_of(&Refusal::HandlerPanicked)));
        let Some(current) = self.current.take() else { return };
        let mut state = self.serving.state();
        // Without regard to the limit: nothing may wait here.
        let appended = self.connection.append_answers(&answer);
        state.release(current.id, current.cost);
        self.serving.note_occupied(&state);
        let _left = self.place.take().and_then(|place| state.running.remove(place));
        self.let_go(state, Settled { requests: 1, appended }, false);
    }
}

/// A runner's share of its worker's time.
#[derive(Default)]
struct Slice {
    requests: usize,
    /// When it was looked at the clock, and in which turn of the worker: who waits meanwhile takes no time.
    began: Option<(u32, Instant)>,
}

impl Slice {
    /// Counts a request of so many bytes. Returns whether others should run now.
    fn is_over(&mut self, bytes: usize) -> bool {
        self.requests += 1 + bytes / BYTES_PER_REQUEST;
        if self.requests < REQUESTS_PER_CLOCK_READ {
            return false;
        }
        self.requests = 0;
        let (turn, now) = (turn::number(), park::now());
        match self.began {
            Some((begun_in, began)) if begun_in == turn => {
                let is_over = now - began > RUN_MAX;
                if is_over {
                    self.began = None;
                }
                is_over
            }
            _ => {
                self.began = Some((turn, now));
                false
            }
        }
    }
}
