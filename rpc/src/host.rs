//! What a server or client answers with: its methods, and what they hold at the moment over all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use dhaga::turn;

use crate::error::ErrorProfile;
use crate::limits::Limits;
use crate::service::Methods;

/// The methods of a server, or of a client that is called by its server, and what all connections together are charged.
pub(crate) struct Host {
    pub(crate) methods: Methods,
    pub(crate) limits: Arc<Limits>,
    /// In which form errors travel to plain peers.
    pub(crate) errors: ErrorProfile,
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

impl Host {
    pub(crate) fn new(methods: Methods, limits: Arc<Limits>, errors: ErrorProfile) -> Arc<Self> {
        Arc::new(Self {
            methods,
            limits,
            errors,
            in_flight: AtomicUsize::new(0),
            unfinished_bytes: AtomicUsize::new(0),
            ignored: AtomicU64::new(0),
            closed_for_fault: AtomicU64::new(0),
            is_draining: AtomicBool::new(false),
        })
    }

    pub(crate) fn count_ignored(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Host {
    /// With the last connection may go the user's handlers, and what they have captured.
    fn drop(&mut self) {
        if !self.methods.is_empty() {
            turn::drop_in_dhaga(std::mem::take(&mut self.methods));
        }
    }
}
