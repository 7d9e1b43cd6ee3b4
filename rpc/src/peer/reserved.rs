//! The messages of the protocol itself: those whose names begin with `$/`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dhaga::park;

use super::serving::Batch;
use super::{Answer, Breach, Peer, Until, call};
use crate::connection::Connection;
use crate::encode;
use crate::error::{CallError, Refusal};
use crate::extension::{self, Agreed, Caps, Hello};
use crate::meta;
use crate::service::respond_refusal;

impl Peer {
    /// The extensions that both sides know of.
    #[inline]
    pub(crate) fn caps(&self) -> Caps {
        Caps::of_bits(self.caps.load(Ordering::Relaxed))
    }

    fn agree_on(&self, agreed: Agreed) {
        // Before the rest: who sees the extensions keeps to it. At none at all nothing could be called.
        self.peers_room.store(agreed.in_flight.unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
        self.caps.store(agreed.caps.bits(), Ordering::Release);
    }

    /// Requests of ours that the peer may have at a time. More while we serve it: with calls of its own in flight it goes on
    /// reading, and refuses what it has no room for, so that calls which wait for each other do not wait for good.
    pub(super) fn peers_room(&self) -> usize {
        match self.serving.get().is_some_and(|serving| serving.is_busy()) {
            true => usize::MAX,
            false => self.peers_room.load(Ordering::Relaxed) as usize,
        }
    }

    /// Notes whether the peer is asked, beside what was agreed on before.
    fn set_asked(&self, is_asked: bool) {
        match is_asked {
            true => self.caps.fetch_or(Caps::ASKED.bits(), Ordering::Relaxed),
            false => self.caps.fetch_and(!Caps::ASKED.bits(), Ordering::Relaxed),
        };
    }
}

impl Connection<Peer> {
    /// Asks the peer for extensions, and notes those that it has.
    ///
    /// # Errors
    ///
    /// As for any call. An answer in another form than ours counts as one of a plain peer.
    pub(crate) fn say_hello(self: &Arc<Self>, deadline: Option<Instant>) -> Result<Caps, CallError> {
        let hello = (Hello::new(&self.limits),);
        self.side.set_asked(true);
        let answer = call(self, Until::untold(deadline), |out, id| {
            encode::encode_request(out, &self.limits, id, extension::HELLO, &hello)
        });
        if matches!(answer, Err(CallError::Remote(_) | CallError::Refused { .. })) {
            self.side.set_asked(false);
        }
        let answer: Answer = answer?;
        let agreed = extension::read_hello(&answer, &self.limits).unwrap_or(Agreed::NOTHING);
        self.side.agree_on(agreed);
        Ok(agreed.caps)
    }

    /// Takes a request with a reserved name. Returns false for one that we do not know.
    pub(super) fn take_reserved_request(self: &Arc<Self>, id: u32, method: &str, params: &[u8]) -> bool {
        if method != extension::HELLO {
            return false;
        }
        match extension::read_hello_params(params, &self.limits) {
            Some(agreed) => {
                self.side.agree_on(agreed);
                let mut answer = Vec::new();
                self.answer_hello(id, &mut answer);
                self.note(self.append_answers(&answer));
            }
            None => {
                let reason = "$/hello takes one map with v, an integer from 1".to_owned();
                self.refuse(id, Refusal::BadRequest { reason });
            }
        }
        true
    }

    fn answer_hello(&self, id: u32, out: &mut Vec<u8>) {
        if let Err(error) = encode::encode_response_ok(out, &self.limits, id, &Hello::new(&self.limits)) {
            self.side.agree_on(Agreed::NOTHING);
            respond_refusal(
                &self.limits,
                self.side.errors(),
                id,
                Refusal::BadResult { reason: error.to_string() },
                out,
            );
        }
    }

    /// Takes a notification with a reserved name. One that we do not know, or have not agreed on, is ignored.
    pub(super) fn take_reserved_notification(self: &Arc<Self>, method: &str, params: &[u8], batch: &mut Batch) {
        let caps = self.side.caps();
        // Who has answered our question may go on at once, before the dhaga that asked has read the answer, or when it reads
        // none any more.
        let is_understood = |cap| caps.has(cap) || caps.has(Caps::ASKED);
        match method {
            extension::META if is_understood(Caps::META) => self.take_meta(params, batch),
            extension::CANCEL if is_understood(Caps::CANCEL) => self.take_cancel(params, batch),
            extension::GOAWAY if is_understood(Caps::GOAWAY) => {
                log::debug!("{} ends", self.describe_peer());
                // What came before it is entered first; then the connection is left.
                self.side.is_leaving.store(true, Ordering::SeqCst);
            }
            _ => self.side.host.count_ignored(),
        }
    }

    /// Tells the peer that we end, if it would understand.
    pub(crate) fn say_goaway(self: &Arc<Self>, grace: Duration) {
        if self.side.caps().has(Caps::GOAWAY) {
            let params = ("shutdown", u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
            // It is a few bytes, and above no limit.
            self.send(|out| drop(encode::encode_notification(out, &self.limits, extension::GOAWAY, &params)));
        }
    }

    /// Keeps it for the next request: there is one at most.
    fn take_meta(self: &Arc<Self>, params: &[u8], batch: &mut Batch) {
        let announced = meta::read_meta(params, &self.limits, park::now()).map(Box::new);
        if announced.is_none() || batch.announce(self, announced).is_some() {
            self.close_for_breach(Breach::StrayMeta);
        }
    }

    /// A request that is not there, or not any more, was answered already.
    fn take_cancel(&self, params: &[u8], batch: &mut Batch) {
        let id = extension::read_cancel(params, &self.limits);
        let entered = |id| self.side.serving.get().is_some_and(|serving| serving.cancel(id));
        if !id.is_some_and(|id| batch.cancel(id) || entered(id)) {
            self.side.host.count_ignored();
        }
    }
}
