//! What a handler can learn of the call that it serves, and what it can leave for the calls that it makes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dhaga::park;
use dhaga::turn::Region;

use crate::client::Client;
use crate::meta::{Metadata, MetadataError, OUTGOING, Outgoing};
use crate::peer::Asked;
use crate::trace::TraceContext;

/// The call that the running code serves: in a handler, in all that it calls, and in the dhagas that it spawns. `None`
/// elsewhere.
///
/// # Examples
///
/// ```
/// use dhaga_rpc::{Client, HandlerError, Server};
///
/// fn greet() -> Result<String, HandlerError> {
///     let call = dhaga_rpc::current().ok_or_else(|| HandlerError::new("nobody calls"))?;
///     let name: String = call.peer().call("name", ())?; // back to the caller
///     Ok(format!("hello {name}"))
/// }
///
/// let server = Server::builder().method("greet", greet).bind("127.0.0.1:0")?;
/// let client = Client::builder().method("name", || Ok("Asha")).connect(server.local_addr())?;
/// assert_eq!(client.call::<_, String>("greet", ())?, "hello Asha");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn current() -> Option<CurrentCall> {
    Region::current().map(CurrentCall)
}

/// A call that is being served; see [`current`]. Cheap to clone, and may be kept: then it tells of a call that is over.
#[derive(Clone)]
pub struct CurrentCall(Arc<Region<Asked>>);

impl CurrentCall {
    /// Calls whoever has called, on the same connection. Good for as long as that is open, on any thread; it is never
    /// connected anew.
    pub fn peer(&self) -> Client {
        self.0.connection().map_or_else(Client::of_nobody, |connection| Client::of_connection(&connection))
    }

    /// Where the call came from, as a text for logs; `None` when the connection has ended, or where there are no names.
    pub fn peer_name(&self) -> Option<String> {
        self.0.connection()?.peer_name()
    }

    /// Where the call came from by TCP; `None` by other ways, and when the connection has ended.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_name()?.parse().ok()
    }

    /// The method that was called.
    pub fn method(&self) -> &str {
        self.0.method()
    }

    /// What the caller has left for it by [`with_metadata`]. It does not travel on by itself.
    pub fn metadata(&self) -> &Metadata {
        self.0.metadata()
    }

    /// The trace that the call belongs to, under the span of the caller. Calls that the handler makes belong to it too, each
    /// under a span of its own, unless [`with_trace`] says otherwise.
    pub fn trace(&self) -> Option<TraceContext> {
        self.0.meta().and_then(|meta| meta.trace)
    }

    /// How long the caller will wait, if it has said so.
    pub fn time_left(&self) -> Option<Duration> {
        let deadline = self.0.meta().and_then(|meta| meta.deadline)?;
        Some(deadline.saturating_duration_since(park::now()))
    }

    /// Whether the caller has given up: nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl fmt::Debug for CurrentCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CurrentCall").field("method", &self.method()).finish_non_exhaustive()
    }
}

/// Runs `f`, in and below which each call carries these pairs, beside those that are in force already; of two with one name
/// the inner wins. A plain peer gets none of them, and a notification carries none.
///
/// # Errors
///
/// More than [`METADATA_PAIRS_MAX`](crate::limits::METADATA_PAIRS_MAX) pairs or
/// [`METADATA_BYTES_MAX`](crate::limits::METADATA_BYTES_MAX) bytes, with those around. `f` was not run.
///
/// # Examples
///
/// ```
/// let tenant = || {
///     let call = dhaga_rpc::current().ok_or_else(|| dhaga_rpc::HandlerError::new("nobody calls"))?;
///     Ok(call.metadata().get("tenant").map(str::to_owned))
/// };
/// let server = dhaga_rpc::Server::builder().method("tenant", tenant).bind("127.0.0.1:0")?;
/// let client = dhaga_rpc::Client::connect(server.local_addr())?;
/// let seen: Option<String> = dhaga_rpc::with_metadata([("tenant", "blue")], || client.call("tenant", ()))??;
/// assert_eq!(seen.as_deref(), Some("blue"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_metadata<K, V, R>(
    pairs: impl IntoIterator<Item = (K, V)>,
    f: impl FnOnce() -> R,
) -> Result<R, MetadataError>
where
    K: Into<String>,
    V: Into<String>,
{
    let outer = OUTGOING.get();
    let outer = outer.as_deref().cloned().unwrap_or_default();
    let metadata = Arc::new(outer.metadata.with(pairs)?);
    Ok(OUTGOING.with(Outgoing { metadata, ..outer }, f))
}

/// Runs `f`, in and below which each call belongs to this trace: `trace` is what its peer sees as its caller's span.
pub fn with_trace<R>(trace: TraceContext, f: impl FnOnce() -> R) -> R {
    let outer = OUTGOING.get();
    let outer = outer.as_deref().cloned().unwrap_or_default();
    OUTGOING.with(Outgoing { trace: Some(trace), ..outer }, f)
}
