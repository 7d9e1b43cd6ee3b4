//! MessagePack-RPC on Dhaga's green threads.
#![forbid(unsafe_code)]

pub mod encode;
pub mod error;
pub mod frame;
pub mod in_flight;
pub mod limits;
pub mod message;
pub mod service;
mod incoming;
mod outbox;
mod connection;
mod server;
mod client;

pub use client::{Client, ClientBuilder};
pub use error::{CallError, RemoteError};
pub use limits::Limits;
pub use rmpv::Value;
pub use server::{Server, ServerBuilder, ServerStats};
pub use service::{HandlerError, Methods};
