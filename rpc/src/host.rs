//! What a server or client answers with: its methods, and what they hold at the moment over all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dhaga::turn;

use crate::error::{ErrorProfile, Refusal};
use crate::layer::Layer;
use crate::limits::Limits;
use crate::metrics::{Metrics, Side, Table};
use crate::service::{ERROR_KINDS, Handler, HandlerError, Methods, kind_of};

/// The methods of a server, or of a client that is called by its server, and what all connections together are charged.
pub(crate) struct Host {
    pub(crate) methods: Methods,
    /// Their handlers, by number.
    pub(crate) handlers: Arc<[Arc<Handler>]>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) manner: Manner,
    /// A row for each method, by its number.
    pub(crate) metrics: Option<Table>,
    /// Handlers that run or wait, and requests that wait for one.
    pub(crate) in_flight: AtomicUsize,
    /// Bytes of frames that have not ended.
    pub(crate) unfinished_bytes: AtomicUsize,
    /// Notifications for methods that are not there, or for which there was no room, and answers nobody asked for.
    pub(crate) ignored: AtomicU64,
    pub(crate) closed_for_fault: AtomicU64,
    /// New requests are refused.
    pub(crate) is_draining: AtomicBool,
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
            methods,
            limits,
            manner,
            metrics,
            in_flight: AtomicUsize::new(0),
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

    /// Counts a handler, if there are not `limit` already. Returns whether it did.
    #[inline]
    pub(crate) fn reserve(&self, limit: usize) -> bool {
        let has_room = self.in_flight.fetch_add(1, Ordering::SeqCst) < limit;
        if !has_room {
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        has_room
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
