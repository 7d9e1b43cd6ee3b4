//! What is known to be different, and why. Each entry must be seen in every run, but for the races.

use crate::matrix::Role::{self, Client, Server};
use crate::serving::{ENDED, HANGS};

/// A deviation.
pub struct Known {
    pub peers: &'static [&'static str],
    pub roles: &'static [Role],
    /// Names of cases; one that ends with a star stands for all that begin so.
    pub cases: &'static [&'static str],
    /// What the failure says. Empty: the library has no way to do it.
    pub says: &'static str,
    pub why: &'static str,
}

impl Known {
    /// Whether people are told the same of both.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.peers, self.why) == (other.peers, other.why)
    }
}

/// What our client says of an answer that does not come.
pub const LATE: &str = "the deadline passed";
/// What our client says of a connection that ended.
pub const CUT: &str = "the connection ended";

const BOTH: &[Role] = &[Server, Client];
const NEOVIMS: &[&str] = &["neovim-0.7", "neovim-0.11"];
const NODES: &[&str] = &["npm-neovim", "msgpack5rpc"];
const ALL_EXTS: &[&str] = &["ext of*"];
const BEYOND_DOUBLES: &[&str] = &["uint 64 within 63 bits", "uint 64 within 64 bits", "int 64 within 64 bits"];
const NOTIFICATIONS: &[&str] = &["a notification*"];

/// Deviations that are not seen in every run: the peer answers in order and hangs up with bytes of ours unread, and the kernel
/// drops the answer unless we were faster.
pub static RACES: &[(&str, Role, &str)] =
    &[("go-ugorji", Server, "error: too few arguments"), ("go-ugorji", Server, "error: arguments of a wrong type")];

pub static KNOWN: &[Known] = &[
    Known {
        peers: &["aio-msgpack-rpc", "msgpack-rpc-python", "go-ugorji"],
        roles: BOTH,
        cases: &["calls nested 10 deep"],
        says: "",
        why: "a connection has one caller",
    },
    // Neovim.
    Known {
        peers: NEOVIMS,
        roles: BOTH,
        cases: &["bin of*"],
        says: "\"",
        why: "Vim script has one type for both: bin comes back as str",
    },
    Known {
        peers: &["neovim-0.7"],
        roles: BOTH,
        cases: &["str: a zero byte", "bin: every byte"],
        says: "\"",
        why: "a text of Vim script ends at its first zero byte",
    },
    Known {
        peers: NEOVIMS,
        roles: BOTH,
        cases: ALL_EXTS,
        says: "nil",
        why: "ext types other than its own, 0 to 2, become nil",
    },
    Known {
        peers: &["neovim-0.11"],
        roles: BOTH,
        cases: &["uint 64 within 64 bits"],
        says: "-9223372036854775808, -2, -1",
        why: "integers above 2⁶³−1 become negative",
    },
    Known {
        peers: &["neovim-0.7"],
        roles: &[Client],
        cases: &["uint 64 within 64 bits"],
        says: "nil, nil, nil",
        why: "integers above 2⁶³−1 become nil",
    },
    Known {
        peers: &["neovim-0.7"],
        roles: &[Server],
        cases: &["uint 64 within 64 bits", "map with integers as keys"],
        says: "Invalid method arguments",
        why: "integers above 2⁶³−1, and keys that are no texts, are refused with an error",
    },
    Known {
        peers: &["neovim-0.11"],
        roles: &[Server],
        cases: &["map with integers as keys"],
        says: CUT,
        why: "the process crashes on a map whose keys are no texts: do not send such maps",
    },
    Known {
        peers: NEOVIMS,
        roles: &[Client],
        cases: &["map with integers as keys"],
        says: ENDED,
        why: "a result with a map whose keys are no texts is an error of the caller",
    },
    Known {
        peers: NEOVIMS,
        roles: &[Server],
        cases: &["error: [*", "error: map", "error: number", "error: 0", "error: false"],
        says: "",
        why: "its errors are always `[type, text]`",
    },
    Known {
        peers: NEOVIMS,
        roles: &[Client],
        cases: &["error: [text]", "error: map", "error: number"],
        says: "unknown error",
        why: "an error that is neither a text nor `[code, text]` is shown as `unknown error`: send texts",
    },
    Known {
        peers: NEOVIMS,
        roles: &[Client],
        cases: &["1000 calls at once", "answers out of order"],
        says: "",
        why: "`rpcrequest` blocks, so one call is in flight, or several in each other",
    },
    // Python.
    Known {
        peers: &["aio-msgpack-rpc"],
        roles: &[Client],
        cases: &["error: empty text", "error: 0", "error: false"],
        says: "ok: nil",
        why: "an error that Python takes for false is a success with nil",
    },
    Known {
        peers: &["pynvim"],
        roles: &[Client],
        cases: &["error: 0", "error: false"],
        says: "ok: nil",
        why: "an error that Python takes for false is a success with nil",
    },
    Known {
        peers: &["msgpack-rpc-python"],
        roles: BOTH,
        cases: &["bin of*"],
        says: "\"",
        why: "it is older than bin, and sends str for it",
    },
    Known {
        peers: &["msgpack-rpc-python"],
        roles: &[Server],
        cases: &["ext of -1, a timestamp"],
        says: CUT,
        why: "a negative ext type closes the connection",
    },
    Known {
        peers: &["msgpack-rpc-python"],
        roles: &[Client],
        cases: &["ext of -1, a timestamp"],
        says: HANGS,
        why: "a negative ext type in an answer leaves the call waiting",
    },
    Known {
        peers: &["pynvim"],
        roles: &[Client],
        cases: &["map with integers as keys"],
        says: ENDED,
        why: "a map whose keys are no texts raises in the reader, and ends it",
    },
    Known {
        peers: &["pynvim"],
        roles: &[Server],
        cases: &["map with integers as keys"],
        says: CUT,
        why: "a map whose keys are no texts raises in the reader, and ends it",
    },
    // JavaScript.
    Known {
        peers: NODES,
        roles: BOTH,
        cases: BEYOND_DOUBLES,
        says: "9223372036854776000",
        why: "all numbers are doubles: integers beyond 53 bits are rounded",
    },
    Known {
        peers: NODES,
        roles: BOTH,
        cases: &["float: a whole number"],
        says: " 2",
        why: "all numbers are doubles: whole ones come back as integers",
    },
    Known {
        peers: NODES,
        roles: BOTH,
        cases: &["float: both zeros"],
        says: "[0, 0]",
        why: "all numbers are doubles: both zeros come back as the integer 0",
    },
    Known {
        peers: NODES,
        roles: BOTH,
        cases: &["map with integers as keys"],
        says: "\"-7\": \"seven\"",
        why: "keys of objects are texts",
    },
    Known {
        peers: &["npm-neovim"],
        roles: &[Client],
        cases: &["error: 0", "error: false"],
        says: "ok: nil",
        why: "an error that JavaScript takes for false is a success with nil",
    },
    Known {
        peers: &["npm-neovim"],
        roles: &[Client],
        cases: &["error: [text]", "error: map", "error: number"],
        says: "fail: undefined",
        why: "of an error the second element is shown, of a text the second letter: serve it with `ErrorProfile::CodeText`",
    },
    Known {
        peers: &["msgpack5rpc"],
        roles: BOTH,
        cases: &["float 64"],
        says: "0.1",
        why: "some floats are sent as float 32, and lose digits",
    },
    Known {
        peers: &["msgpack5rpc"],
        roles: &[Server],
        cases: &["ext of*", "map of 65536"],
        says: CUT,
        why: "ext types that were not registered, and maps of more than 65 535 entries, end the process",
    },
    Known {
        peers: &["msgpack5rpc"],
        roles: &[Client],
        cases: &["ext of*", "map of 65536"],
        says: ENDED,
        why: "ext types that were not registered, and maps of more than 65 535 entries, end the process",
    },
    // Ruby.
    Known {
        peers: &["ruby-neovim"],
        roles: &[Server],
        cases: ALL_EXTS,
        says: LATE,
        why: "ext types other than Neovim's are skipped, and the call with them is never answered",
    },
    Known {
        peers: &["ruby-neovim"],
        roles: &[Client],
        cases: ALL_EXTS,
        says: HANGS,
        why: "an answer with ext types other than Neovim's is skipped, and the call waits for ever",
    },
    Known {
        peers: &["ruby-neovim"],
        roles: &[Client],
        cases: &["error: [text]", "error: map", "error: number", "error: 0", "error: false"],
        says: "ok: nil",
        why: "every error that is not `[code, text]`, a text too, is a success with nil: serve it with `ErrorProfile::CodeText`",
    },
    Known {
        peers: &["ruby-neovim"],
        roles: &[Client],
        cases: &["1000 calls at once", "answers out of order"],
        says: "",
        why: "its calls block, so one is in flight",
    },
    Known {
        peers: &["ruby-neovim"],
        roles: &[Server],
        cases: &["answers out of order"],
        says: "in the order of the calls",
        why: "a handler that sleeps holds up all others",
    },
    // Go.
    Known {
        peers: &["go-ugorji"],
        roles: BOTH,
        cases: &["bin of*"],
        says: "\"",
        why: "bin becomes a text wherever the type is left open",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Server],
        cases: NOTIFICATIONS,
        says: CUT,
        why: "a message of other than four elements ends the connection: never notify",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Client],
        cases: NOTIFICATIONS,
        says: "",
        why: "net/rpc knows no notifications",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Server],
        cases: &["error: too few arguments", "error: arguments of a wrong type"],
        says: CUT,
        why: "arguments that do not decode end the connection",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Server],
        cases: &["error: empty text"],
        says: "it succeeded",
        why: "an empty text as error is a success",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Client],
        cases: &["error: empty text"],
        says: "ok: nil",
        why: "an empty text as error is a success",
    },
    Known {
        peers: &["go-ugorji"],
        roles: &[Client],
        cases: &["error: [*", "error: map", "error: number", "error: 0", "error: false"],
        says: ENDED,
        why: "an error that is no text ends the connection: send texts",
    },
];
