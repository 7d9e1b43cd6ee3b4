//! The client of tonic as a load.

use std::io;
use std::net::SocketAddr;

use tonic::transport::{Channel, Endpoint};

use crate::tokio_calls::TokioClient;
use crate::tonic_echo::Payload;
use crate::tonic_echo::echo_client::EchoClient;

/// Of all calls of a connection together: the most that HTTP/2 allows a side to say first.
pub const HTTP2_WINDOW_BYTES: u32 = 1 << 20;

impl TokioClient for EchoClient<Channel> {
    type Answer = Vec<u8>;

    async fn echo(&mut self, payload: Vec<u8>) -> io::Result<Vec<u8>> {
        let answer = EchoClient::echo(self, Payload { bytes: payload }).await.map_err(io::Error::other)?;
        Ok(answer.into_inner().bytes)
    }
}

/// One connection without TLS, without delay by default.
///
/// # Errors
///
/// The socket's.
pub async fn dial(address: SocketAddr) -> io::Result<EchoClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(io::Error::other)?;
    let endpoint = endpoint.initial_connection_window_size(HTTP2_WINDOW_BYTES);
    Ok(EchoClient::new(endpoint.connect().await.map_err(io::Error::other)?))
}
