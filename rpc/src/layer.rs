//! Code around each call, on either side: who may call, what is logged, what is done once more.
//!
//! A layer is a function. It gets the [`Call`] and the [`Next`], which is the rest: further layers, and at last the handler
//! or the network. It runs in the dhaga of the call, so it may wait, and what is ambient around it holds inside.
//!
//! ```
//! use dhaga_rpc::{HandlerError, Server};
//!
//! let server = Server::builder()
//!     .method("admin.reset", || Ok(()))
//!     .layer(dhaga_rpc::layer::log_calls)
//!     .layer(|call, next| match call.method().starts_with("admin.") {
//!         true => Err(HandlerError::denied("not from here")),
//!         false => next.run(),
//!     })
//!     .bind("127.0.0.1:0")?;
//! let client = dhaga_rpc::Client::connect(server.local_addr())?;
//! let refused = client.call::<_, ()>("admin.reset", ()).expect_err("it is denied");
//! assert!(refused.to_string().contains("not from here"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The first layer that was added is the outermost. A builder without layers makes calls that know nothing of them.

use std::fmt;
use std::sync::Arc;

use dhaga::park;

use crate::meta::Metadata;

/// What a layer may know of a call.
pub struct Call<'a> {
    method: &'a str,
    is_notification: bool,
    metadata: &'a Metadata,
    peer: &'a dyn Fn() -> String,
}

/// The rest of a call, from a layer's point of view. `E` is [`HandlerError`](crate::HandlerError) at a server and
/// [`CallError`](crate::CallError) at a client.
pub struct Next<'a, E> {
    layers: &'a [Arc<Layer<E>>],
    call: &'a Call<'a>,
    last: &'a mut (dyn FnMut() -> Result<Answered, E> + 'a),
}

/// That the call succeeded, as only [`Next::run`] can say.
#[derive(Debug)]
pub struct Answered {
    bytes: usize,
}

/// A layer.
pub(crate) type Layer<E> = dyn Fn(&Call<'_>, &mut Next<'_, E>) -> Result<Answered, E> + Send + Sync;

/// Runs `last` inside of all `layers`.
pub(crate) fn run<'a, E>(
    layers: &'a [Arc<Layer<E>>],
    call: &'a Call<'a>,
    last: &'a mut (dyn FnMut() -> Result<Answered, E> + 'a),
) -> Result<Answered, E> {
    Next { layers, call, last }.run()
}

impl<'a> Call<'a> {
    pub(crate) fn new(
        method: &'a str,
        is_notification: bool,
        metadata: &'a Metadata,
        peer: &'a dyn Fn() -> String,
    ) -> Self {
        Self { method, is_notification, metadata, peer }
    }

    /// The method's name.
    pub fn method(&self) -> &str {
        self.method
    }

    /// Whether nobody waits for an answer.
    pub fn is_notification(&self) -> bool {
        self.is_notification
    }

    /// What goes with it: at a server what the caller has left for it, at a client what is in force around the call. A
    /// client's layer adds to it by [`with_metadata`](crate::with_metadata) around [`Next::run`].
    pub fn metadata(&self) -> &Metadata {
        self.metadata
    }

    /// The other side: at a server who calls, at a client whom it was told to call.
    pub fn peer(&self) -> String {
        (self.peer)()
    }
}

impl<E> Next<'_, E> {
    /// Runs the rest. A client's layer may do so more than once, which calls again; a server's may, too, which runs the
    /// handler again.
    ///
    /// # Errors
    ///
    /// What the rest says: return it, or something else in its place.
    pub fn run(&mut self) -> Result<Answered, E> {
        match self.layers.split_first() {
            None => (self.last)(),
            Some((layer, layers)) => layer(self.call, &mut Next { layers, call: self.call, last: &mut *self.last }),
        }
    }
}

impl Answered {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes }
    }

    /// How large the answer is: at a server its frame, at a client the encoded value; nothing for a notification.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A layer that logs each call when it ends, at level `debug` and with the target `dhaga_rpc::call`: method, peer, outcome
/// and duration, in words and as fields.
///
/// # Errors
///
/// Those of the call.
pub fn log_calls<E: fmt::Display>(call: &Call<'_>, next: &mut Next<'_, E>) -> Result<Answered, E> {
    const TARGET: &str = "dhaga_rpc::call";
    if !log::log_enabled!(target: TARGET, log::Level::Debug) {
        return next.run();
    }
    let began = park::now();
    let answer = next.run();
    let duration = park::now().saturating_duration_since(began);
    let outcome = match &answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    let (method, peer, duration_us) = (call.method(), call.peer(), duration.as_micros() as u64);
    log::debug!(
        target: TARGET,
        method = method, peer = peer.as_str(), outcome = outcome.as_str(), duration_us = duration_us;
        "{method:?} of {peer} took {duration:?}: {outcome}"
    );
    answer
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.method).field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl<E> fmt::Debug for Next<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn layer(
        f: impl Fn(&Call<'_>, &mut Next<'_, String>) -> Result<Answered, String> + Send + Sync + 'static,
    ) -> Arc<Layer<String>> {
        Arc::new(f)
    }

    #[test]
    fn the_first_is_the_outermost_and_each_may_refuse_repeat_or_change() {
        let name = |sign: &'static str| layer(move |_, next| next.run().map_err(|error| format!("{sign}{error}")));
        let twice = layer(|_, next| next.run().or_else(|_| next.run()));
        let refuse = layer(|call, _| Err(call.method().to_owned()));
        let peer = || "peer".to_owned();
        let metadata = Metadata::new();
        let call = Call::new("m", false, &metadata, &peer);
        let runs = Cell::new(0);
        let mut last = || {
            runs.set(runs.get() + 1);
            Err::<Answered, _>("end".to_owned())
        };
        let said = |result: Result<Answered, String>| result.expect_err("it always fails");
        assert_eq!(said(run(&[name("a"), name("b")], &call, &mut last)), "abend");
        assert_eq!(said(run(&[name("a"), twice, name("b")], &call, &mut last)), "abend");
        assert_eq!(runs.get(), 3);
        assert_eq!(said(run(&[name("a"), refuse, name("b")], &call, &mut last)), "am");
        assert_eq!(runs.get(), 3);
        assert_eq!(run(&[], &call, &mut || Ok::<_, String>(Answered::new(5))).map(|answered| answered.bytes()), Ok(5));
    }
}
