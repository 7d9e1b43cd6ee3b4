//! Whose client a load of calls is.

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use crate::calls::Calls;
use crate::contender::Contender;
use crate::dhaga_calls::DhagaCalls;
use crate::go_calls::GoCalls;
use crate::tokio_calls::TokioCalls;
use crate::{tarpc_calls, tonic_calls};

/// Clients of `contender` for the server at `address`.
///
/// # Errors
///
/// When its runtime cannot be built or its program is not; `InvalidInput` for one that has no client.
pub fn clients_of(contender: Contender, address: SocketAddr) -> Result<Box<dyn Calls>, Box<dyn Error>> {
    Ok(match contender {
        Contender::DhagaRpc => Box::new(DhagaCalls::new(address)?),
        Contender::Tarpc => Box::new(TokioCalls::new(move || tarpc_calls::dial(address))?),
        Contender::Tonic => Box::new(TokioCalls::new(move || tonic_calls::dial(address))?),
        Contender::Go => Box::new(GoCalls::new(address)?),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no such client").into()),
    })
}
