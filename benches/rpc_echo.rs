//! The service of the RPC table, once for each library: 32 bytes, decoded to an owned value and encoded again.
//!
//! tonic's is in `tonic_echo`, since it is made by a generator of its own; Go's in `go/rpc`.

use serde_bytes::ByteBuf;

/// What each call sends and gets back.
pub const PAYLOAD: [u8; 32] = *b"abcdefghijklmnopqrstuvwxyz012345";

/// Ours. On the wire it is the method `echo` of one binary, so that the bare load can call it too.
#[dhaga_rpc::service]
pub trait Echo {
    /// Returns what it is given; a relay has reason to fail.
    fn echo(&self, payload: Vec<u8>) -> Result<Vec<u8>, String>;
}

/// The same, with the promise that it never waits.
#[dhaga_rpc::service]
pub trait InlineEcho {
    /// Returns what it is given.
    #[rpc(inline)]
    fn echo(&self, payload: Vec<u8>) -> Result<Vec<u8>, String>;
}

/// The handler of ours.
pub struct EchoHandler;

impl InlineEcho for EchoHandler {
    fn echo(&self, payload: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(payload)
    }
}

impl Echo for EchoHandler {
    fn echo(&self, payload: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(payload)
    }
}

/// A handler that asks the next server for the answer.
pub struct Relay(pub EchoClient);

impl Echo for Relay {
    fn echo(&self, payload: Vec<u8>) -> Result<Vec<u8>, String> {
        self.0.echo(payload).map_err(|error| error.to_string())
    }
}

/// tarpc's. A `ByteBuf` travels as bytes, where a `Vec<u8>` would travel as so many numbers.
#[tarpc::service]
pub trait TarpcEcho {
    /// Returns what it is given.
    async fn echo(payload: ByteBuf) -> ByteBuf;
}
