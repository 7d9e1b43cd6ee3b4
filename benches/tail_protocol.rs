//! How a request of the long-tail benchmark travels: as 64 bare bytes, or as a call of `echo` over MessagePack-RPC.

use std::io;
use std::net::TcpStream;

use clap::ValueEnum;

use crate::dial::{echo_call, rpc_call, wrong_answer};
use crate::tail_work::{Kind, MESSAGE_BYTES};
use crate::wire::{self, EchoRequest, PayloadKind, Stop};

/// The two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// 64 bytes, of which the first is the kind.
    Raw,
    /// A call whose binary holds them.
    Rpc,
}

impl Protocol {
    /// A whole request.
    pub fn request(self, kind: Kind, id: u32) -> Vec<u8> {
        let mut bytes = match self {
            Protocol::Raw => vec![b'.'; MESSAGE_BYTES],
            Protocol::Rpc => {
                let mut bytes = Vec::new();
                EchoRequest::new(PayloadKind::Binary, MESSAGE_BYTES as u8).push(&mut bytes, id);
                bytes
            }
        };
        // The payload ends the message.
        let first = bytes.len() - MESSAGE_BYTES;
        bytes[first] = kind.byte();
        bytes
    }

    /// Whether the answer is whole.
    ///
    /// # Errors
    ///
    /// `InvalidData` when it is no answer.
    pub fn is_whole(self, received: &[u8]) -> io::Result<bool> {
        let whole_bytes = match self {
            Protocol::Raw => MESSAGE_BYTES,
            Protocol::Rpc => match wire::cut_answer(received) {
                Ok(answer) => answer.message_bytes,
                Err(Stop::Incomplete) => return Ok(false),
                Err(_) => return Err(wrong_answer("what came back is no answer to echo")),
            },
        };
        if received.len() > whole_bytes {
            return Err(wrong_answer("more bytes came back than one answer has"));
        }
        Ok(received.len() == whole_bytes)
    }

    /// One call at rest, which shows that the server is there.
    ///
    /// # Errors
    ///
    /// The socket's; `InvalidData` for a wrong answer.
    pub fn call(self, stream: &mut TcpStream) -> io::Result<()> {
        match self {
            Protocol::Raw => echo_call(stream, &[0; MESSAGE_BYTES]),
            Protocol::Rpc => rpc_call(stream, PayloadKind::Binary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_its_kind_before_the_rest_of_the_payload() {
        for protocol in [Protocol::Raw, Protocol::Rpc] {
            for kind in Kind::ALL {
                let request = protocol.request(kind, 7);
                assert_eq!(Kind::of_byte(request[request.len() - MESSAGE_BYTES]), kind);
            }
        }
    }

    #[test]
    fn a_raw_answer_is_whole_with_its_last_byte() {
        let check = |count, expected| {
            assert_eq!(Protocol::Raw.is_whole(&vec![0; count]).expect("not too long"), expected);
        };
        check(MESSAGE_BYTES - 1, false);
        check(MESSAGE_BYTES, true);
        assert!(Protocol::Raw.is_whole(&[0; MESSAGE_BYTES + 1]).is_err());
    }
}
