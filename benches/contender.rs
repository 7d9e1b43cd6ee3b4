//! Who is compared, under which name, and in which colour of the plots.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A runtime, or the limit that none can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
pub enum Contender {
    /// Ours.
    Dhaga,
    /// Ours, with the RPC library on top.
    DhagaRpc,
    /// The same with a handler that promises not to wait, and needs no dhaga of its own.
    DhagaRpcInline,
    /// tokio's scheduler for one thread.
    Tokio,
    /// tokio's work-stealing scheduler.
    TokioMulti,
    /// may: coroutines with stacks, work-stealing.
    May,
    /// OS threads and std.
    Threads,
    /// Goroutines; with calls, `net/rpc`.
    Go,
    /// The RPC library on tokio with bincode.
    Tarpc,
    /// gRPC on tokio.
    Tonic,
    /// No runtime: a bare coroutine, a bare event loop that blocks at once.
    Bare,
    /// A bare event loop that polls for 50 µs before it blocks, as our workers do.
    BareDozing,
}

impl Contender {
    /// The option that names it.
    pub fn option(self) -> String {
        self.to_possible_value().expect("no contender is hidden").get_name().to_owned()
    }

    /// As the tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Dhaga => "dhaga",
            Contender::DhagaRpc => "dhaga-rpc",
            Contender::DhagaRpcInline => "dhaga-rpc, inline",
            Contender::Tokio => "tokio",
            Contender::TokioMulti => "tokio (multi)",
            Contender::May => "may",
            Contender::Threads => "threads",
            Contender::Go => "Go",
            Contender::Tarpc => "tarpc",
            Contender::Tonic => "tonic",
            Contender::Bare => "limit",
            Contender::BareDozing => "limit (dozing)",
        }
    }

    /// The same in every plot.
    pub fn colour(self) -> &'static str {
        match self {
            Contender::Dhaga => "#d9480f",
            Contender::DhagaRpc => "#ff922b",
            Contender::DhagaRpcInline => "#ffc078",
            Contender::Tokio => "#1971c2",
            Contender::TokioMulti => "#74c0fc",
            Contender::May => "#2f9e44",
            Contender::Threads => "#9c7a3c",
            Contender::Go => "#0c9ab3",
            Contender::Tarpc => "#7048e8",
            Contender::Tonic => "#c2255c",
            Contender::Bare => "#868e96",
            Contender::BareDozing => "#ced4da",
        }
    }
}
