//! Connections over TLS, opened one after the other, each with its handshake and one call.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::dial::{dial_one, echo_call};
use crate::tls_setup;

/// A connection of a load.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Opens `count` connections to an echo server, blocking, each with one call of `message`: nothing is left to read then.
///
/// # Errors
///
/// The socket's, those of TLS, `InvalidData` when other bytes come back.
pub fn dial(address: SocketAddr, count: usize, message: &[u8]) -> io::Result<Vec<TlsStream>> {
    let config = tls_setup::client_config().map_err(io::Error::other)?;
    (0..count).map(|_| dial_tls(address, config.clone(), message)).collect()
}

fn dial_tls(address: SocketAddr, config: Arc<ClientConfig>, message: &[u8]) -> io::Result<TlsStream> {
    let name = tls_setup::SERVER.try_into().expect("it is a name");
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, dial_one(address)?);
    echo_call(&mut stream, message)?;
    Ok(stream)
}
