//! The client of tarpc as a load.

use std::io;
use std::net::SocketAddr;

use serde_bytes::ByteBuf;
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tarpc::{client, context, serde_transport};
use tokio::net::TcpStream;

use crate::rpc_echo::TarpcEchoClient;
use crate::tokio_calls::TokioClient;

/// More than any row has in flight, so that tarpc never makes a caller wait.
pub const TARPC_BUFFER: usize = 4096;

impl TokioClient for TarpcEchoClient {
    type Answer = ByteBuf;

    async fn echo(&mut self, payload: Vec<u8>) -> io::Result<ByteBuf> {
        TarpcEchoClient::echo(self, context::current(), ByteBuf::from(payload)).await.map_err(io::Error::other)
    }
}

/// Over TCP as in tarpc's own examples, which leave the delay of small packets on: here it is off.
///
/// # Errors
///
/// The socket's.
pub async fn dial(address: SocketAddr) -> io::Result<TarpcEchoClient> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let transport = serde_transport::new(LengthDelimitedCodec::builder().new_framed(stream), Bincode::default());
    let mut config = client::Config::default();
    (config.max_in_flight_requests, config.pending_request_buffer) = (TARPC_BUFFER, TARPC_BUFFER);
    Ok(TarpcEchoClient::new(config, transport).spawn())
}
