//! The messages of the protocol itself: those whose names begin with `$/`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Answer, Peer, call};
use crate::connection::Connection;
use crate::encode;
use crate::error::{CallError, Refusal};
use crate::extension::{self, Caps, Hello};
use crate::service::respond_refusal;

impl Peer {
    fn agree_on(&self, caps: Caps) {
        self.caps.store(caps.bits(), Ordering::Relaxed);
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
        let answer: Answer =
            call(self, deadline, |out, id| encode::encode_request(out, &self.limits, id, extension::HELLO, &hello))?;
        let caps = extension::read_hello(&answer, &self.limits).unwrap_or(Caps::NONE);
        self.side.agree_on(caps);
        Ok(caps)
    }

    /// Takes a request with a reserved name. Returns false for one that we do not know.
    pub(super) fn take_reserved_request(self: &Arc<Self>, id: u32, method: &str, params: &[u8]) -> bool {
        if method != extension::HELLO {
            return false;
        }
        match extension::read_hello_params(params, &self.limits) {
            Some(caps) => {
                self.side.agree_on(caps);
                self.send(|out| self.answer_hello(id, out));
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
            self.side.agree_on(Caps::NONE);
            respond_refusal(
                &self.limits,
                self.side.errors(),
                id,
                Refusal::BadResult { reason: error.to_string() },
                out,
            );
        }
    }

    /// Takes a notification with a reserved name. One that we do not know is ignored.
    pub(super) fn take_reserved_notification(self: &Arc<Self>, _method: &str, _params: &[u8]) {
        self.side.host.count_ignored();
    }
}
