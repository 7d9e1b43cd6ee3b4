//! What `echo` takes and returns.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A string or a binary, owned, which travels back as what it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// MessagePack `bin`.
    Binary(Vec<u8>),
    /// MessagePack `str`.
    Text(String),
}

impl<'de> Deserialize<'de> for Payload {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Payload, D::Error> {
        deserializer.deserialize_any(PayloadVisitor)
    }
}

impl Serialize for Payload {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Payload::Binary(bytes) => serializer.serialize_bytes(bytes),
            Payload::Text(text) => serializer.serialize_str(text),
        }
    }
}

struct PayloadVisitor;

impl Visitor<'_> for PayloadVisitor {
    type Value = Payload;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or a binary")
    }

    #[inline]
    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Payload, E> {
        Ok(Payload::Binary(bytes.to_vec()))
    }

    #[inline]
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Payload, E> {
        Ok(Payload::Text(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_travels_back_as_what_it_came() {
        for payload in [Payload::Binary(vec![7; 32]), Payload::Text("dhaga".into())] {
            let bytes = rmp_serde::to_vec(&payload).expect("a payload can be encoded");
            let back: Payload = rmp_serde::from_slice(&bytes).expect("what was encoded can be decoded");
            assert_eq!(back, payload);
        }
    }
}
