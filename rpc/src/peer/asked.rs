//! Where the requests of the peer run: what their handlers can learn of them, and where a cancel finds them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use dhaga::turn::Region;

use super::Peer;
use crate::connection::Connection;
use crate::meta::{Meta, Metadata};
use crate::service::Handler;
use crate::spare::Spares;

thread_local! {
    static SPARES: Spares<Desk> = const { Spares::new(64) };
}

/// Capacity of an answer's buffer that is kept: more was for a large one.
const KEPT_ANSWER_BYTES_MAX: usize = 4 << 10;

/// What is known of the request that runs. Requests of which nothing special is known follow each other in one of these, as
/// long as nobody keeps it. Of the connection it keeps no more than its place: it may live on in what a handler has spawned.
#[derive(Default)]
pub(crate) struct Asked {
    connection: Weak<Connection<Peer>>,
    /// Those of the host. `None`: a spare one.
    handlers: Option<Arc<[Arc<Handler>]>>,
    /// The number of the method that runs.
    number: AtomicU32,
    meta: Option<Box<Meta>>,
}

/// A region that a runner has left. It may hold the last of something of the users'.
pub(super) type Left = Arc<Region<Asked>>;

/// What a runner works with.
pub(super) struct Desk {
    /// Where the request at hand runs.
    pub(super) region: Arc<Region<Asked>>,
    /// Its arguments, if they are short.
    pub(super) params: Vec<u8>,
    pub(super) answer: Vec<u8>,
}

impl Desk {
    /// One for requests of this connection.
    #[inline]
    pub(super) fn of(connection: &Arc<Connection<Peer>>) -> Self {
        let mut desk = match SPARES.try_with(Spares::take) {
            Ok(Some(spare)) => spare,
            _ => Self { region: Region::new(Asked::default()), params: Vec::new(), answer: Vec::new() },
        };
        let asked = desk.region.renew().expect("nobody else holds a spare or a new one");
        asked.connection = Arc::downgrade(connection);
        asked.handlers = Some(connection.side.host.handlers.clone());
        desk
    }

    /// Goes on in a region in which nothing has run, for a request with `meta`. Returns the one before.
    #[inline(never)]
    pub(super) fn renew(&mut self, connection: &Arc<Connection<Peer>>, meta: Option<Box<Meta>>) -> Option<Left> {
        Some(std::mem::replace(&mut self.region, Asked::region(connection, meta)))
    }

    /// Whether a request with which nothing came may follow in the region: whose meta that has, and who but `holders` holds it,
    /// must not meet with it.
    #[inline]
    pub(super) fn may_be_shared(&self, holders: usize) -> bool {
        self.region.meta.is_none() && self.region.is_unused(holders)
    }

    /// Keeps it for the next runner, if nobody holds the region any more: a handler may have left things behind that do.
    #[inline]
    pub(super) fn keep(mut self) {
        let Some(asked) = self.region.renew() else { return };
        asked.connection = Weak::new();
        (asked.handlers, asked.meta) = (None, None);
        if self.answer.capacity() > KEPT_ANSWER_BYTES_MAX {
            self.answer = Vec::new();
        }
        // While the locals of a thread are destroyed nothing more is kept.
        let _ = SPARES.try_with(|spares| spares.keep(self));
    }
}

impl Asked {
    /// A new region for a request of this connection.
    #[cold]
    pub(super) fn region(connection: &Arc<Connection<Peer>>, meta: Option<Box<Meta>>) -> Arc<Region<Self>> {
        Region::new(Self {
            connection: Arc::downgrade(connection),
            handlers: Some(connection.side.host.handlers.clone()),
            number: AtomicU32::default(),
            meta,
        })
    }

    /// Notes which method begins.
    #[inline]
    pub(super) fn begin(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.meta.as_ref().and_then(|meta| meta.deadline)
    }

    /// `None`: it has gone.
    pub(crate) fn connection(&self) -> Option<Arc<Connection<Peer>>> {
        self.connection.upgrade()
    }

    pub(crate) fn method(&self) -> &str {
        let number = self.number.load(Ordering::Relaxed);
        self.handlers.as_ref().map_or("", |handlers| handlers[number as usize].name())
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
