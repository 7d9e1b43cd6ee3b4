//! Every bound of the protocol, with its unit, its default and the reason for it.
//!
//! A bound is charged at true cost and is on by default. Over it the sender waits where waiting helps, then gets a typed
//! error that names the bound.

use std::time::Duration;

/// 8 MiB a frame: tarpc's bound and twice gRPC's. Larger things are sent in pieces, so that they do not hold up what shares
/// their connection.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// 32 levels: Neovim's own bound. Decoders recurse once a level, on a stack of a few pages.
pub const DEPTH_MAX: usize = 32;

/// What [`Limits::depth_max`] can be raised to: the cutter keeps one counter a level in a fixed table.
pub const DEPTH_MAX_CEILING: usize = 63;

/// 1 Mi values a frame. A nil takes one byte on the wire and a whole `T` in memory, so bytes alone do not bound a decoded
/// value.
pub const ELEMENTS_MAX: u32 = 1 << 20;

/// 100 bytes: Neovim refuses longer method names.
pub const METHOD_NAME_BYTES_MAX: usize = 100;

/// 1024 handlers at a time for one connection; counted by running handlers, since a cancelled call may leave one behind.
pub const IN_FLIGHT_PER_CONNECTION_MAX: usize = 1024;

/// 65 536 handlers at a time for one server: at 8 KiB of stack each that is half a GiB.
pub const IN_FLIGHT_PER_SERVER_MAX: usize = 65_536;

/// 16 handlers that a connection may have in flight, however little is free in the server: below that it would be slow alone.
pub const IN_FLIGHT_GUARANTEED: usize = 16;

/// 65 536 calls waiting on one client connection: an id table of a few MiB.
pub const CALLS_PER_CONNECTION_MAX: usize = 65_536;

/// 1 MiB of unsent bytes, from where on callers wait: far above what one write takes, so it costs no throughput. With an eighth
/// of it in answers, and a socket that takes no more, no request of the peer is read or begun.
pub const UNSENT_BYTES_MAX: usize = 1 << 20;

/// 1 MiB of requests that were read and not yet answered. Over it reading stops, and TCP holds the peer back.
pub const QUEUED_BYTES_MAX: usize = 1 << 20;

/// 256 MiB of frames that have begun and not ended, over all connections of a server: 32 of the largest at once. Without it
/// 65 536 peers could each begin a frame of 8 MiB and go on byte by byte.
pub const UNFINISHED_BYTES_PER_SERVER_MAX: usize = 256 << 20;

/// 256 B charged for each queued frame on top of its bytes: a four-byte notification must not buy a task for nothing.
pub const QUEUED_FRAME_OVERHEAD_BYTES: usize = 256;

/// 65 536 connections: tens of thousands are the purpose. Each takes a descriptor, so the process needs as many.
pub const CONNECTIONS_MAX: usize = 65_536;

/// 10 s until the first byte, so that a silent stranger does not hold a descriptor.
pub const FIRST_FRAME_WITHIN: Duration = Duration::from_secs(10);

/// 10 s without one byte more of an unfinished frame end the connection.
pub const FRAME_MUST_GROW_WITHIN: Duration = Duration::from_secs(10);

/// 10 s for a call that names no deadline: tarpc's choice; "for ever" is what users of gRPC complain of.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// 100 answers a second that belong to no call. Late answers after our own timeouts are normal, a flood is not.
pub const UNKNOWN_ANSWERS_PER_SECOND_MAX: u32 = 100;

/// 1 s for the answer to the question for extensions, once for each connection that is dialled. Who has not answered by then
/// is a plain peer: some hand the question to user code, which may never answer.
pub const HELLO_WITHIN: Duration = Duration::from_secs(1);

/// 32 pairs of metadata with a call: more belong into its arguments.
pub const METADATA_PAIRS_MAX: usize = 32;

/// 4 KiB of names and values with a call: they are copied and kept for as long as it runs.
pub const METADATA_BYTES_MAX: usize = 4 << 10;

/// The bounds of one server or client.
///
/// ```
/// # use dhaga_rpc::Limits;
/// let limits = Limits { frame_bytes_in_max: 64 << 10, ..Limits::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one incoming frame; see [`FRAME_BYTES_MAX`].
    pub frame_bytes_in_max: usize,
    /// Bytes of one outgoing frame, checked before it is sent; see [`FRAME_BYTES_MAX`].
    pub frame_bytes_out_max: usize,
    /// Arrays and maps inside one another, the message's own array included; at most [`DEPTH_MAX_CEILING`].
    pub depth_max: usize,
    /// Values in one frame, each of any size; see [`ELEMENTS_MAX`].
    pub elements_max: u32,
    /// Bytes of a method name; see [`METHOD_NAME_BYTES_MAX`].
    pub method_name_bytes_max: usize,
    /// Handlers that run at a time for one connection; see [`IN_FLIGHT_PER_CONNECTION_MAX`]. Fewer while the server has room for
    /// fewer, but no less than [`IN_FLIGHT_GUARANTEED`].
    pub in_flight_per_connection_max: usize,
    /// Handlers that run at a time in one server; see [`IN_FLIGHT_PER_SERVER_MAX`]. A connection that has as many in flight as
    /// are free is read again when some of them are answered, or when half of the server is free; who finds none free is refused.
    pub in_flight_per_server_max: usize,
    /// Calls that wait for an answer on one client connection; see [`CALLS_PER_CONNECTION_MAX`].
    pub calls_per_connection_max: usize,
    /// Unsent bytes of a connection from where on senders wait; requests of its peer wait from an eighth in answers on. See
    /// [`UNSENT_BYTES_MAX`].
    pub unsent_bytes_max: usize,
    /// Bytes of requests in flight on a connection, [`QUEUED_FRAME_OVERHEAD_BYTES`] included for each.
    pub queued_bytes_max: usize,
    /// Bytes of unfinished frames of all connections; over it the connection that grows is closed. See
    /// [`UNFINISHED_BYTES_PER_SERVER_MAX`].
    pub unfinished_bytes_per_server_max: usize,
    /// Connections of one server; see [`CONNECTIONS_MAX`].
    pub connections_max: usize,
    /// Time until the first byte of an accepted connection; then `frame_must_grow_within` counts. See [`FIRST_FRAME_WITHIN`].
    pub first_frame_within: Duration,
    /// Time in which an unfinished frame must grow; see [`FRAME_MUST_GROW_WITHIN`].
    pub frame_must_grow_within: Duration,
    /// Time for a call that has no deadline of its own; see [`CALL_TIMEOUT`].
    pub call_timeout: Duration,
    /// Answers to unknown ids in a second; see [`UNKNOWN_ANSWERS_PER_SECOND_MAX`].
    pub unknown_answers_per_second_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_in_max: FRAME_BYTES_MAX,
            frame_bytes_out_max: FRAME_BYTES_MAX,
            depth_max: DEPTH_MAX,
            elements_max: ELEMENTS_MAX,
            method_name_bytes_max: METHOD_NAME_BYTES_MAX,
            in_flight_per_connection_max: IN_FLIGHT_PER_CONNECTION_MAX,
            in_flight_per_server_max: IN_FLIGHT_PER_SERVER_MAX,
            calls_per_connection_max: CALLS_PER_CONNECTION_MAX,
            unsent_bytes_max: UNSENT_BYTES_MAX,
            queued_bytes_max: QUEUED_BYTES_MAX,
            unfinished_bytes_per_server_max: UNFINISHED_BYTES_PER_SERVER_MAX,
            connections_max: CONNECTIONS_MAX,
            first_frame_within: FIRST_FRAME_WITHIN,
            frame_must_grow_within: FRAME_MUST_GROW_WITHIN,
            call_timeout: CALL_TIMEOUT,
            unknown_answers_per_second_max: UNKNOWN_ANSWERS_PER_SECOND_MAX,
        }
    }
}

impl Limits {
    /// Handlers that a connection may have in flight while no other has any: half of the server's at the most, since as many are
    /// kept free for others.
    pub(crate) fn in_flight_alone_max(&self) -> usize {
        let half = self.in_flight_per_server_max.div_ceil(2);
        half.max(IN_FLIGHT_GUARANTEED).min(self.in_flight_per_connection_max)
    }

    /// What is wrong with the limits, if anything: one of zero lets nothing happen at all.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let counts = [
            (self.frame_bytes_in_max, "Limits::frame_bytes_in_max is zero, so no message could come"),
            (self.frame_bytes_out_max, "Limits::frame_bytes_out_max is zero, so no message could be sent"),
            (self.depth_max, "Limits::depth_max is zero, and a message is one level deep"),
            (
                self.in_flight_per_connection_max,
                "Limits::in_flight_per_connection_max is zero, so no handler could run",
            ),
            (self.in_flight_per_server_max, "Limits::in_flight_per_server_max is zero, so no handler could run"),
            (self.calls_per_connection_max, "Limits::calls_per_connection_max is zero, so nothing could be called"),
            (self.unsent_bytes_max, "Limits::unsent_bytes_max is zero, so nothing could be sent"),
            (self.connections_max, "Limits::connections_max is zero, so nobody could connect"),
        ];
        counts.iter().find(|(limit, _)| *limit == 0).map_or(Ok(()), |(_, reason)| Err(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_do_not_contradict_each_other() {
        let limits = Limits::default();
        assert!(limits.depth_max <= DEPTH_MAX_CEILING);
        assert!(limits.in_flight_per_connection_max <= limits.in_flight_per_server_max);
        assert!(limits.elements_max as usize <= limits.frame_bytes_in_max);
    }
}
