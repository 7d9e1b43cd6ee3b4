//! What goes beyond plain MessagePack-RPC, and how two sides agree on it.
//!
//! Every name begins with `$/`. The side that dialled asks by one ordinary request, which a plain peer refuses as it refuses
//! any unknown method; nothing else of this is sent before both know of it.
//!
//! ```text
//!   dialling side                                               accepting side
//!   [0, 1, "$/hello", [{v: 1, caps: ["meta", …], limits: {…}}]] ──▶
//!                          ◀── [1, 1, nil, {v: 1, caps: ["meta", …], limits: {…}}]
//! ```

use rmpv::Value;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::message;

/// Names that begin with this belong to the protocol and never reach a handler.
pub(crate) const PREFIX: &str = "$/";
/// The request that asks for extensions.
pub(crate) const HELLO: &str = "$/hello";
/// A notification just before a request, with what goes with that.
pub(crate) const META: &str = "$/meta";
/// A notification: nobody waits any more for the answer to a request.
pub(crate) const CANCEL: &str = "$/cancelRequest";

/// A notification: the sender ends, and takes no new requests.
pub(crate) const GOAWAY: &str = "$/goaway";

/// The first element where an id could be of either direction: a call of the sender's.
pub(crate) const OF_SENDER: u8 = 0;

/// The version that we speak.
const VERSION: u32 = 1;

/// 4 KiB of what a peer says of itself: ours are a hundred bytes.
const HELLO_BYTES_MAX: usize = 4 << 10;

/// Extensions, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caps(u8);

impl Caps {
    /// None: a plain peer.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const META: Self = Self(1);
    pub(crate) const CANCEL: Self = Self(1 << 1);
    pub(crate) const GOAWAY: Self = Self(1 << 2);

    /// Those that we know, by name.
    const NAMES: [(&str, Self); 4] =
        [("meta", Self::META), ("cancel", Self::CANCEL), ("goaway", Self::GOAWAY), ("errors", Self::ERRORS)];

    /// Errors travel as maps.
    pub(crate) const ERRORS: Self = Self(1 << 6);

    /// We have asked, and do not know the answer yet: what the peer says behind it is understood all the same.
    pub(crate) const ASKED: Self = Self(1 << 5);

    /// The set is known to both sides, even if it is empty.
    const AGREED: Self = Self(1 << 7);

    pub(crate) fn of_bits(bits: u8) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u8 {
        self.0
    }

    /// Whether the peer has answered `$/hello`, or asked it.
    pub(crate) fn is_extended(self) -> bool {
        self.has(Self::AGREED)
    }

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn named(names: &[String]) -> Self {
        let known = Self::NAMES.iter().filter(|(name, _)| names.iter().any(|other| other == name));
        Self(known.fold(Self::AGREED.0, |bits, (_, cap)| bits | cap.0))
    }
}

/// What each side says of itself.
#[derive(Serialize)]
pub(crate) struct Hello {
    v: u32,
    caps: Vec<&'static str>,
    limits: AnnouncedLimits,
}

#[derive(Serialize)]
struct AnnouncedLimits {
    /// For information.
    frame_bytes: usize,
    /// Handlers that run at a time for the other side, which sends no more requests than that. A request that had to wait would
    /// keep the cancels behind it from being read, perhaps those for which the handlers wait.
    in_flight: usize,
}

/// What we read of a hello. Unknown keys are ignored.
#[derive(Deserialize)]
struct Heard {
    v: u32,
    #[serde(default)]
    caps: Vec<String>,
    /// Of any form: the hello is one without it, too.
    #[serde(default = "nil")]
    limits: Value,
}

fn nil() -> Value {
    Value::Nil
}

/// What both sides know of after a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) caps: Caps,
    /// Requests that the peer takes at a time, if it has said so.
    pub(crate) in_flight: Option<u32>,
}

impl Agreed {
    /// With a plain peer.
    pub(crate) const NOTHING: Self = Self { caps: Caps::NONE, in_flight: None };
}

impl Hello {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            v: VERSION,
            caps: Caps::NAMES.iter().map(|(name, _)| *name).collect(),
            limits: AnnouncedLimits { frame_bytes: limits.frame_bytes_in_max, in_flight: limits.in_flight_alone_max() },
        }
    }
}

/// Reads the params of a `$/cancelRequest`: the id of a request that its sender has sent. `None`: it is about no such.
pub(crate) fn read_cancel(params: &[u8], limits: &Limits) -> Option<u32> {
    let (side, id): (u8, u32) = message::decode(params, limits).ok()?;
    (side == OF_SENDER).then_some(id)
}

/// Reads a hello: the extensions that its sender and we know. `None`: it is none.
pub(crate) fn read_hello(raw: &[u8], limits: &Limits) -> Option<Agreed> {
    let heard: Heard = message::decode(raw.get(..raw.len().min(HELLO_BYTES_MAX))?, limits).ok()?;
    let announced =
        heard.limits.as_map().and_then(|limits| limits.iter().find(|(key, _)| key.as_str() == Some("in_flight")));
    let in_flight =
        announced.and_then(|(_, count)| count.as_u64()).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    (heard.v >= VERSION).then(|| Agreed { caps: Caps::named(&heard.caps), in_flight })
}

/// As [`read_hello`], out of the params of a request.
pub(crate) fn read_hello_params(params: &[u8], limits: &Limits) -> Option<Agreed> {
    let (elements, header_bytes) = message::array_header(params)?;
    (elements == 1).then(|| read_hello(&params[header_bytes..], limits)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(value: &Value) -> Option<Agreed> {
        read_hello(&rmp_serde::to_vec(value).expect("a value encodes"), &Limits::default())
    }

    fn read(value: &Value) -> Option<Caps> {
        read_all(value).map(|agreed| agreed.caps)
    }

    fn map(entries: Vec<(&str, Value)>) -> Value {
        Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    #[test]
    fn our_own_hello_is_understood() {
        let limits = Limits::default();
        let raw = rmp_serde::to_vec_named(&(Hello::new(&limits),)).expect("it encodes");
        let Agreed { caps, in_flight } = read_hello_params(&raw, &limits).expect("it is a hello");
        assert_eq!(in_flight, Some(limits.in_flight_per_connection_max as u32));
        assert!(Caps::NAMES.iter().all(|(_, cap)| caps.has(*cap)) && caps.is_extended());
        assert!(!Caps::NONE.is_extended());
    }

    #[test]
    fn newer_peers_and_unknown_names_are_understood() {
        let caps = read(&map(vec![("v", 9.into()), ("caps", Value::Array(vec!["fly".into()])), ("more", Value::Nil)]));
        assert_eq!(caps, Some(Caps::AGREED));
        assert_eq!(read(&map(vec![("v", 1.into())])), Some(Caps::AGREED));
    }

    #[test]
    fn limits_of_any_form_are_a_hello_and_a_number_is_believed() {
        let announced = |limits: Value| {
            let agreed = read_all(&map(vec![("v", 1.into()), ("limits", limits)])).expect("it is a hello");
            agreed.in_flight
        };
        assert_eq!(announced(map(vec![("frame_bytes", 1.into()), ("in_flight", 7.into())])), Some(7));
        assert_eq!(announced(map(vec![("in_flight", u64::MAX.into())])), Some(u32::MAX));
        for strange in [Value::Nil, 3.into(), map(vec![]), map(vec![("in_flight", (-1).into())]), "x".into()] {
            assert_eq!(announced(strange), None);
        }
    }

    #[test]
    fn what_is_no_hello_is_none() {
        let names = Value::Array(vec!["x".repeat(HELLO_BYTES_MAX).into()]);
        for value in [
            Value::Nil,
            true.into(),
            "hello".into(),
            Value::Array(vec![]),
            map(vec![]),
            map(vec![("v", 0.into())]),
            map(vec![("v", "1".into())]),
            map(vec![("v", 1.into()), ("caps", 7.into())]),
            map(vec![("v", 1.into()), ("caps", names)]),
        ] {
            assert_eq!(read(&value), None, "{value}");
        }
        assert_eq!(read_hello_params(&[0x90], &Limits::default()), None);
        assert_eq!(read_hello_params(&[0xc0], &Limits::default()), None);
    }
}
