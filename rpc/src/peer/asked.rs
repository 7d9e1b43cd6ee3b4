//! Where the requests of the peer run: what their handlers can learn of them, and where a cancel finds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use dhaga::turn::Region;

use super::Peer;
use crate::connection::Connection;
use crate::directory::Number;
use crate::host::Served;
use crate::meta::{Meta, Metadata};
use crate::spare::Spares;

thread_local! {
    static SPARES: Spares<(Here, Desk)> = const { Spares::new(64) };
}

/// Capacity of an answer's buffer that is kept: more was for a large one.
const KEPT_ANSWER_BYTES_MAX: usize = 4 << 10;

/// What is known of the request that runs. Requests of which nothing special is known follow each other in one of these, as
/// long as nobody keeps it. Of the connection it knows the number: it may live on in what a handler has spawned.
#[derive(Default)]
pub(crate) struct Asked {
    /// `None`: nothing has run here.
    served: Option<Arc<Served>>,
    connection: Number,
    /// The number of the method that runs.
    method: AtomicU32,
    meta: Option<Box<Meta>>,
}

/// Where requests run, one after the other.
pub(super) type Here = Arc<Region<Asked>>;

/// What a runner works with besides.
#[derive(Default)]
pub(super) struct Desk {
    /// The arguments of the request at hand, if they are short.
    pub(super) params: Vec<u8>,
    pub(super) answer: Vec<u8>,
}

/// A region and a desk. Nothing runs there before it is [prepared](prepare).
#[inline]
pub(super) fn take() -> (Here, Desk) {
    match SPARES.try_with(Spares::take) {
        Ok(Some(spare)) => spare,
        _ => (Region::new(Asked::default()), Desk::default()),
    }
}

/// Makes a region that was [taken](take) one for the caller to run requests of this connection in.
#[inline]
pub(super) fn prepare(here: &mut Here, connection: &Connection<Peer>, number: Number) {
    let asked = here.renew().expect("nobody else holds a spare or a new one");
    let served = &connection.side.host.served;
    if asked.served.as_ref().is_none_or(|before| !Arc::ptr_eq(before, served)) {
        asked.served = Some(served.clone());
    }
    asked.connection = number;
}

/// Keeps them for the next runner, if nobody else holds the region: a handler may have left things behind that do.
#[inline]
pub(super) fn keep(here: Here, mut desk: Desk) {
    if Arc::strong_count(&here) > 1 || here.meta.is_some() {
        return;
    }
    if desk.answer.capacity() > KEPT_ANSWER_BYTES_MAX {
        desk.answer = Vec::new();
    }
    // While the locals of a thread are destroyed nothing more is kept.
    let _ = SPARES.try_with(|spares| spares.keep((here, desk)));
}

/// Whether a request with which nothing came may follow in the region: whose meta that has, and who but `holders` holds it,
/// must not meet with it.
#[inline]
pub(super) fn may_be_shared(here: &Here, holders: usize) -> bool {
    here.meta.is_none() && here.is_unused(holders)
}

impl Asked {
    /// A new region for the caller to run a request of this connection in.
    #[cold]
    pub(super) fn region(connection: &Connection<Peer>, number: Number, meta: Option<Box<Meta>>) -> Here {
        let served = Some(connection.side.host.served.clone());
        Region::for_caller(Self { served, connection: number, method: AtomicU32::default(), meta })
    }

    /// Notes which method begins.
    #[inline]
    pub(super) fn begin(&self, method: u32) {
        self.method.store(method, Ordering::Relaxed);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.meta.as_ref().and_then(|meta| meta.deadline)
    }

    /// `None`: it has gone.
    pub(crate) fn connection(&self) -> Option<Arc<Connection<Peer>>> {
        self.served.as_ref()?.open.get(self.connection).upgrade()
    }

    pub(crate) fn method(&self) -> &str {
        let method = self.method.load(Ordering::Relaxed);
        self.served.as_ref().map_or("", |served| &served.names[method as usize])
    }

    /// Pairs that came with it.
    pub(crate) fn metadata(&self) -> &Metadata {
        static NONE: Metadata = Metadata::new();
        self.meta().map_or(&NONE, |meta| &meta.metadata)
    }

    pub(crate) fn meta(&self) -> Option<&Meta> {
        self.meta.as_deref()
    }
}
