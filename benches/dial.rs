//! Opens very many connections without overrunning the server's queue of those not yet accepted.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::wire::{self, EchoRequest, PayloadKind, Stop};

/// A server that takes longer than this for one call at rest does not work.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens `count` connections, blocking, with `TCP_NODELAY`. `call` is made on each before the next is opened: its answer shows
/// that the server has accepted it, and none stays silent for so long that a server gives it up.
///
/// Closing them resets them, so that ten thousand closed connections do not hold ten thousand ports
/// for a minute.
///
/// # Errors
///
/// The socket's, and those of `call`.
pub fn dial(
    address: SocketAddr,
    count: usize,
    mut call: impl FnMut(&mut TcpStream) -> io::Result<()>,
) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = dial_one(address)?;
        call(&mut stream)?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Opens one connection as [`dial`] does.
///
/// # Errors
///
/// The socket's.
pub fn dial_one(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(stream)
}

/// Makes each socket of this process reset its connection when it is closed, for the reason that [`dial`] does so: a library's
/// client does not show its sockets.
///
/// # Errors
///
/// The kernel's.
pub fn reset_when_closed() -> io::Result<()> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(descriptor) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // What is no socket, and the directory's own descriptor, which is gone by then, are left alone.
        if let Ok(same) = pidfd_getfd(&this, descriptor, PidfdGetfdFlags::empty()) {
            let _ = set_socket_linger(&same, Some(Duration::ZERO));
        }
    }
    Ok(())
}

/// Sends `message` and waits until as many bytes are back.
///
/// # Errors
///
/// The socket's; `InvalidData` when other bytes come back.
pub fn echo_call(stream: &mut (impl Read + Write), message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    if answer == message { Ok(()) } else { Err(wrong_answer("other bytes came back than were sent")) }
}

/// Calls `echo` with a binary of 32 bytes over MessagePack-RPC and waits for the answer.
///
/// # Errors
///
/// The socket's; `InvalidData` when the answer is not the expected one.
pub fn rpc_call(stream: &mut TcpStream, kind: PayloadKind) -> io::Result<()> {
    const ID: u32 = 1;
    const PAYLOAD_BYTES: u8 = 32;
    let mut request = Vec::new();
    EchoRequest::new(kind, PAYLOAD_BYTES).push(&mut request, ID);
    stream.write_all(&request)?;
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 256];
        let count = stream.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..count]);
        match wire::cut_answer(&bytes) {
            Ok(answer) if answer.id == ID && answer.payload_bytes == usize::from(PAYLOAD_BYTES) => {
                return Ok(());
            }
            Err(Stop::Incomplete) if count > 0 => {}
            _ => return Err(wrong_answer("the answer to echo is not the expected one")),
        }
    }
}

/// The server's fault, in words.
pub fn wrong_answer(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_that_nobody_shows_resets_its_connection_too() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (mut server, _) = listener.accept().expect("a client is there");
        server.set_read_timeout(Some(CALL_TIMEOUT)).expect("a timeout can be set");
        reset_when_closed().expect("the descriptors can be listed");
        drop(client);
        let error = server.read(&mut [0]).expect_err("a reset is an error");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
