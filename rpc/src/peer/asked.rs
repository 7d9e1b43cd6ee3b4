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

/// A request or notification that was admitted. Its handler runs in it.
pub(super) type Request = Arc<Region<Asked>>;

/// What is known of a request. Of the connection it keeps no more than its place: it may live on in what the handler has
/// spawned.
pub(crate) struct Asked {
    connection: Weak<Connection<Peer>>,
    handler: Arc<Handler>,
    /// `None`: a notification.
    id: Option<u32>,
    /// The number of its method.
    number: u32,
    /// What it is charged.
    cost: u32,
    params: Params,
    meta: Option<Box<Meta>>,
}

/// Encoded arguments. Many are short, and need no allocation of their own.
pub(super) enum Params {
    Short {
        len: u8,
        bytes: [u8; SHORT_MAX],
    },
    /// Taken out when the handler begins, so that it goes with it. Boxed, to be one word.
    Long(Box<Mutex<Box<[u8]>>>),
}

/// What fits beside the length and the tag into three words: the whole is 120 bytes then, the most that glibc's quick lists
/// take.
const SHORT_MAX: usize = 22;

impl Params {
    pub(super) fn new(params: &[u8]) -> Self {
        if params.len() > SHORT_MAX {
            return Self::Long(Box::new(Mutex::new(params.into())));
        }
        let mut bytes = [0; SHORT_MAX];
        bytes[..params.len()].copy_from_slice(params);
        Self::Short { len: params.len() as u8, bytes }
    }

    fn with<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Short { len, bytes } => f(&bytes[..usize::from(*len)]),
            Self::Long(params) => {
                let params = std::mem::take(&mut *params.lock().unwrap_or_else(PoisonError::into_inner));
                f(&params)
            }
        }
    }
}

impl Asked {
    pub(super) fn new(
        connection: &Arc<Connection<Peer>>,
        handler: Arc<Handler>,
        number: u32,
        id: Option<u32>,
        params: Params,
        cost: usize,
        meta: Option<Box<Meta>>,
    ) -> Self {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        Self { connection: Arc::downgrade(connection), handler, number, id, params, cost, meta }
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
        self.handler.is_inline()
    }

    pub(super) fn cost(&self) -> usize {
        self.cost as usize
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.meta.as_ref().and_then(|meta| meta.deadline)
    }

    /// Hands the arguments to the handler, once.
    pub(super) fn with_params<R>(&self, f: impl FnOnce(&Handler, &[u8]) -> R) -> R {
        self.params.with(|params| f(&self.handler, params))
    }

    /// `None`: it has gone.
    pub(crate) fn connection(&self) -> Option<Arc<Connection<Peer>>> {
        self.connection.upgrade()
    }

    pub(crate) fn method(&self) -> &str {
        self.handler.name()
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
    fn a_request_fits_into_what_the_allocator_does_fast() {
        // 128 bytes, less what the allocator and the counts of the `Arc` take.
        assert!(size_of::<Region<Asked>>() <= 104, "{}", size_of::<Region<Asked>>());
    }

    #[test]
    fn arguments_of_any_length_are_handed_over_as_they_came() {
        for len in [0, 1, SHORT_MAX - 1, SHORT_MAX, SHORT_MAX + 1, 1000] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut seen = None;
            Params::new(&bytes).with(|params| seen = Some(params.to_vec()));
            assert_eq!(seen, Some(bytes));
        }
    }
}
