//! One request of the peer, from its frame until its handler has ended.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use dhaga::park;
use dhaga::turn::Region;

use super::Peer;
use crate::connection::Connection;
use crate::error::Refusal;
use crate::meta::{Meta, Metadata};
use crate::service::Handler;
use crate::spare::{KEPT_BYTES_MAX, Spares};

const HAS_HANDLER: &str = "a request has a handler until nobody holds it";

/// A request or notification that was admitted. Its handler runs in it.
pub(super) type Request = Arc<Region<Asked>>;

thread_local! {
    /// A burst of requests takes as many, and gives them back one by one.
    static SPARES: Spares<Request> = const { Spares::new(256) };
}

/// What is known of a request. Of the connection it keeps no more than its place: it may live on in what the handler has
/// spawned.
#[derive(Default)]
pub(crate) struct Asked {
    connection: Weak<Connection<Peer>>,
    /// `None`: a spare one, which waits for a request.
    handler: Option<Arc<Handler>>,
    /// `None`: a notification.
    id: Option<u32>,
    /// The number of its method.
    number: u32,
    /// What it is charged.
    cost: u32,
    params: Params,
    meta: Option<Box<Meta>>,
}

/// Encoded arguments.
#[derive(Default)]
struct Params {
    /// Many are short, and need no allocation if the request has served before.
    short: Vec<u8>,
    /// Taken out when the handler begins, so that they go with it. Boxed, to be one word.
    long: Option<Box<Mutex<Box<[u8]>>>>,
}

impl Params {
    #[inline]
    fn set(&mut self, params: &[u8]) {
        match params.len() <= KEPT_BYTES_MAX {
            true => self.short.extend_from_slice(params),
            false => self.long = Some(Box::new(Mutex::new(params.into()))),
        }
    }

    fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        let Some(long) = &self.long else { return f(&self.short) };
        let params = std::mem::take(&mut *long.lock().unwrap_or_else(PoisonError::into_inner));
        f(&params)
    }

    fn clear(&mut self) {
        self.short.clear();
        self.long = None;
    }
}

impl Asked {
    /// A request with these arguments. It may lie where another has lain.
    #[inline]
    pub(super) fn request(
        connection: &Arc<Connection<Peer>>,
        handler: &Arc<Handler>,
        number: u32,
        id: Option<u32>,
        params: &[u8],
        cost: usize,
        meta: Option<Box<Meta>>,
    ) -> Request {
        let mut request = match SPARES.try_with(Spares::take) {
            Ok(Some(spare)) => spare,
            _ => Region::new(Self::default()),
        };
        let asked = request.renew().expect("nobody else holds a spare or a new one");
        asked.connection = Arc::downgrade(connection);
        asked.handler = Some(handler.clone());
        (asked.id, asked.number, asked.meta) = (id, number, meta);
        asked.cost = u32::try_from(cost).unwrap_or(u32::MAX);
        asked.params.set(params);
        request
    }

    /// Keeps the memory of a request that is over, if nobody holds it any more: it may have left things behind that do.
    #[inline]
    pub(super) fn keep(mut request: Request) {
        let Some(asked) = request.renew() else { return };
        asked.connection = Weak::new();
        (asked.handler, asked.meta) = (None, None);
        asked.params.clear();
        // While the locals of a thread are destroyed nothing more is kept.
        let _ = SPARES.try_with(|spares| spares.keep(request));
    }

    pub(super) fn id(&self) -> Option<u32> {
        self.id
    }

    /// The number of its method.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether its handler promises never to wait.
    pub(super) fn is_inline(&self) -> bool {
        self.handler.as_ref().is_some_and(|handler| handler.is_inline())
    }

    pub(super) fn cost(&self) -> usize {
        self.cost as usize
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.meta.as_ref().and_then(|meta| meta.deadline)
    }

    /// Hands the arguments to the handler, once.
    pub(super) fn with_params<R>(&self, f: impl FnOnce(&Handler, &[u8]) -> R) -> R {
        let handler = self.handler.as_ref().expect(HAS_HANDLER);
        self.params.with(|params| f(handler, params))
    }

    /// `None`: it has gone.
    pub(crate) fn connection(&self) -> Option<Arc<Connection<Peer>>> {
        self.connection.upgrade()
    }

    pub(crate) fn method(&self) -> &str {
        self.handler.as_ref().expect(HAS_HANDLER).name()
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

/// Why a request is not run although it was admitted: whoever sent it waits no longer.
pub(super) fn moot(request: &Request) -> Option<Refusal> {
    if request.is_cancelled() {
        return Some(Refusal::Cancelled);
    }
    request.deadline().filter(|deadline| *deadline <= park::now()).map(|_| Refusal::TooLate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_any_length_are_handed_over_as_they_came() {
        let mut params = Params::default();
        for len in [0, 1, KEPT_BYTES_MAX, KEPT_BYTES_MAX + 1, 10_000, 7] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut seen = None;
            params.set(&bytes);
            params.with(|params| seen = Some(params.to_vec()));
            params.clear();
            assert_eq!(seen, Some(bytes));
        }
    }
}
