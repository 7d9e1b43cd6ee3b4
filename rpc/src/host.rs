//! What a server or client answers with: its methods, and what they hold at the moment over all connections.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dhaga::turn;

use crate::connection::Connection;
use crate::directory::Directory;
use crate::error::{ErrorProfile, Refusal};
use crate::layer::Layer;
use crate::limits::{IN_FLIGHT_GUARANTEED, Limits};
use crate::metrics::{Metrics, Side, Table};
use crate::peer::Peer;
use crate::service::{ERROR_KINDS, Handler, HandlerError, Methods, kind_of};

/// The methods of a server, or of a client that is called by its server, and what all connections together are charged.
pub(crate) struct Host {
    pub(crate) methods: Methods,
    /// Their handlers, by number.
    pub(crate) handlers: Box<[Arc<Handler>]>,
    pub(crate) served: Arc<Served>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) manner: Manner,
    /// A row for each method, by its number.
    pub(crate) metrics: Option<Table>,
    /// Handlers that run or wait, and requests that wait for one.
    in_flight: AtomicUsize,
    /// Below this many those who wait for the server's room are told; 0 while nobody does.
    tells_below: AtomicUsize,
    waiting: Mutex<Vec<Weak<dyn WaitsForRoom>>>,
    /// Bytes of frames that have not ended.
    pub(crate) unfinished_bytes: AtomicUsize,
    /// Notifications for methods that are not there, or for which there was no room, and answers nobody asked for.
    pub(crate) ignored: AtomicU64,
    pub(crate) closed_for_fault: AtomicU64,
    /// New requests are refused.
    pub(crate) is_draining: AtomicBool,
}

/// What a call can be told of for whom it is served, for as long as anybody asks. It holds nothing of the users'.
pub(crate) struct Served {
    /// Of the methods, by number.
    pub(crate) names: Box<[Box<str>]>,
    /// The connections on which calls are served.
    pub(crate) open: Directory<Connection<Peer>>,
}

impl Served {
    fn of(methods: &Methods) -> Self {
        Self { names: methods.names_numbered().into_iter().map(Box::from).collect(), open: Directory::default() }
    }
}

/// Who has in flight what one connection may have by what is free in the server.
pub(crate) trait WaitsForRoom: Send + Sync {
    /// Half of the server is free.
    fn room_has_come(self: Arc<Self>);
}

/// How a host answers.
#[derive(Clone, Default)]
pub(crate) struct Manner {
    /// In which form errors travel to plain peers.
    pub(crate) errors: ErrorProfile,
    /// Around each handler, the outermost first.
    pub(crate) layers: Vec<Arc<Layer<HandlerError>>>,
    pub(crate) has_metrics: bool,
}

impl Host {
    pub(crate) fn new(methods: Methods, limits: Arc<Limits>, manner: Manner) -> Arc<Self> {
        let metrics = manner.has_metrics.then(|| Table::new(ERROR_KINDS, methods.names_numbered().into_iter(), 0));
        Arc::new(Self {
            handlers: methods.handlers_numbered(),
            served: Arc::new(Served::of(&methods)),
            methods,
            limits,
            manner,
            metrics,
            in_flight: AtomicUsize::new(0),
            tells_below: AtomicUsize::new(0),
            waiting: Mutex::default(),
            unfinished_bytes: AtomicUsize::new(0),
            ignored: AtomicU64::new(0),
            closed_for_fault: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
        })
    }

    /// What was counted of each method.
    pub(crate) fn served_metrics(&self) -> Metrics {
        let table = self.metrics.as_ref();
        table.map_or_else(|| Metrics::none(Side::Server), |table| table.snapshot(Side::Server))
    }

    /// Handlers that run or wait, and requests that wait for one.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Counts a lot of handlers, or a single one if there is no room for all. Returns how many it has counted.
    ///
    /// Never more than there is room for, not even for a moment: another would be refused for what nobody has.
    #[inline]
    pub(crate) fn reserve(&self, lot: usize) -> usize {
        let before = self.in_flight.load(Ordering::Relaxed);
        let has_room = before + lot <= self.limits.in_flight_per_server_max;
        match has_room && self.count(before, lot).is_ok() {
            true => lot,
            false => self.reserve_again(lot),
        }
    }

    #[cold]
    #[inline(never)]
    fn reserve_again(&self, lot: usize) -> usize {
        let mut before = self.in_flight.load(Ordering::SeqCst);
        loop {
            let free = self.limits.in_flight_per_server_max.saturating_sub(before);
            let count = if lot <= free { lot } else { free.min(1) };
            match self.count(before, count) {
                Ok(_) => return count,
                Err(now) => before = now,
            }
        }
    }

    /// Counts so many beside those that there were `before`, unless there are others now.
    #[inline]
    fn count(&self, before: usize, count: usize) -> Result<usize, usize> {
        self.in_flight.compare_exchange(before, before + count, Ordering::SeqCst, Ordering::SeqCst)
    }

    /// So many handlers are not in flight any more.
    #[inline]
    pub(crate) fn release(&self, count: usize) {
        let left = self.in_flight.fetch_sub(count, Ordering::SeqCst) - count;
        if left < self.tells_below.load(Ordering::SeqCst) {
            self.tell_who_waits();
        }
    }

    /// Handlers that one connection may have in flight, of so many in all: no more than as many as others could have beside them. So one finds room
    /// even if many take all that they can, as in a switch whose queues share a buffer (Choudhury and Hahne, 1998).
    #[inline]
    pub(crate) fn in_flight_of_one_max(&self, in_flight: usize) -> usize {
        let free = self.limits.in_flight_per_server_max.saturating_sub(in_flight);
        free.max(IN_FLIGHT_GUARANTEED).min(self.limits.in_flight_per_connection_max)
    }

    /// Has `who` told when half of the server is free. What it may have in flight is more then than it has.
    #[cold]
    pub(crate) fn tell_of_room(&self, who: Weak<dyn WaitsForRoom>) {
        let mut waiting = self.waiting();
        if waiting.len() == waiting.capacity() {
            waiting.retain(|other| other.strong_count() > 0);
        }
        waiting.push(who);
        self.tells_below.store(self.limits.in_flight_per_server_max / 2 + 1, Ordering::SeqCst);
    }

    #[cold]
    #[inline(never)]
    fn tell_who_waits(&self) {
        let mut waiting = self.waiting();
        self.tells_below.store(0, Ordering::SeqCst);
        let told = std::mem::take(&mut *waiting);
        drop(waiting);
        told.iter().filter_map(Weak::upgrade).for_each(WaitsForRoom::room_has_come);
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Weak<dyn WaitsForRoom>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_ignored(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that was refused: of a method, by its number, or of one that is not there.
    pub(crate) fn count_refused(&self, method: Option<u32>, bytes: usize, refusal: &Refusal) {
        if let Some(table) = &self.metrics {
            let row = method.map_or_else(|| table.rest(), |number| table.row(number));
            row.refuse(bytes, kind_of(refusal));
        }
    }
}

impl Drop for Host {
    /// With the last connection may go the user's handlers and layers, and what they have captured.
    fn drop(&mut self) {
        if !self.methods.is_empty() || !self.manner.layers.is_empty() {
            let handlers = std::mem::take(&mut self.handlers);
            turn::drop_in_dhaga((std::mem::take(&mut self.methods), handlers, std::mem::take(&mut self.manner)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn host(in_flight_per_server_max: usize) -> Arc<Host> {
        let limits = Limits { in_flight_per_server_max, ..Limits::default() };
        Host::new(Methods::new(), Arc::new(limits), Manner::default())
    }

    #[test]
    fn who_asks_for_more_than_there_is_takes_no_room_from_another_meanwhile() {
        let (host, barrier) = (host(8), Barrier::new(2));
        assert_eq!(host.reserve(6), 6);
        let take_and_release = |lot| {
            barrier.wait();
            (0..2_000_000).for_each(|_| {
                assert_eq!(host.reserve(lot), 1);
                host.release(1);
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| take_and_release(4));
            take_and_release(1);
        });
        assert_eq!(host.in_flight(), 6);
    }
}
