//! MessagePack-RPC on green threads: calls that look blocking and scale like callbacks.
//!
//! A [`Server`] runs each request in a dhaga, so a handler is an ordinary function that may wait as it likes. A [`Client`] is
//! shared by all threads and dhagas; every call of a worker's turn leaves in one write. The wire is plain MessagePack-RPC,
//! so that peers in other languages can talk to it.
//!
//! ```
//! use dhaga_rpc::{Client, Server};
//!
//! let server = Server::builder().method("add", |a: i64, b: i64| Ok(a + b)).bind("127.0.0.1:0")?;
//! let client = Client::connect(server.local_addr())?;
//! let sum: i64 = client.call("add", (20, 22))?;
//! assert_eq!(sum, 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Most programs have a trait instead of names in strings: see [`service`](macro@service).
//!
//! What a peer can do is bounded by [`Limits`]; what can become of a call is a [`CallError`], by the guilty party. The modules
//! [`frame`], [`message`], [`encode`], [`in_flight`] and [`service`](mod@service) know nothing of sockets and threads, and serve other
//! transports as well.
//!
//! | floor | modules |
//! |---|---|
//! | 0 | [`error`], [`limits`]; `description`: what is to be known of a service |
//! | 1 | [`frame`]: whole values out of bytes |
//! | 2 | [`message`], [`encode`]: requests, answers and notifications from and to bytes; `error_form`: how errors travel; `extension`, `meta`, `trace`: what goes beyond plain messages |
//! | 3 | [`in_flight`], `id_hash`: ids; [`service`](mod@service): methods; `transport`: sockets and pipes; [`layer`]: code around calls; [`metrics`]; `introspection`: what a server tells of itself; `incoming`, `waiters`, `outbox`: what is unfinished; `share`: how much of its worker's time a connection takes; `spare`: memory that serves again |
//! | 4 | `connection`: one transport; `host`: what all connections together hold; `peer`: our side of a connection, which calls and serves |
//! | 5 | `probe`: asks for extensions; `child`: a peer that is a child of ours; `client`: connections that we dial; `server`: those that we accept |
//! | 6 | `current`: the call that the running code serves |
//! | 7 | `typed`: what the code of [`service`](macro@service) uses |
#![forbid(unsafe_code)]

mod description;
pub mod error;
pub mod limits;

pub mod frame;

pub mod encode;
mod error_form;
mod extension;
pub mod message;
mod meta;
mod trace;

mod directory;
mod id_hash;
pub mod in_flight;
mod incoming;
pub mod service;
mod spare;
mod transport;
mod waiters;

pub mod layer;
pub mod metrics;

mod introspection;

mod outbox;
mod share;

mod connection;

mod host;
mod peer;

mod child;
mod probe;

mod client;
mod server;

mod current;

mod typed;

pub use child::{CHILD_GRACE, ChildEnded};
pub use client::{Client, ClientBuilder, Extensions};
pub use current::{CurrentCall, current, with_metadata, with_trace};
pub use description::{DescribedMethod, DescribedService, Description, MethodDescription, ServiceDescription};
pub use error::{CallError, ErrorProfile, RefusedReason, RemoteError};
pub use introspection::{Health, HealthStatus};
pub use layer::{Answered, Next};
pub use limits::Limits;
pub use meta::{Metadata, MetadataError};
pub use metrics::{MethodMetrics, Metrics};
pub use rmpv::Value;
pub use server::{Listener, OneConnection, Server, ServerBuilder, ServerStats};
pub use service::{HandlerError, Methods};
pub use trace::{TraceContext, TraceContextError};
pub use transport::Transport;
pub use typed::service;

#[doc(hidden)]
pub use typed::__private;

/// Compiles and runs the programs in the README and in the guide.
#[cfg(doctest)]
mod programs_of_the_pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/guide/rpc-services.md")]
    struct RpcServices;
    #[doc = include_str!("../../docs/guide/rpc-calls.md")]
    struct RpcCalls;
    #[doc = include_str!("../../docs/guide/rpc-transports.md")]
    struct RpcTransports;
}
