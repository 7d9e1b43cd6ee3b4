//! The operations whose instructions are counted.

use clap::ValueEnum;

/// One kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InstructionWork {
    /// Spawn and join a small closure.
    SpawnJoin,
    /// One yield, with 100 dhagas in turn.
    Yield,
    /// There and back through two channels of capacity 1.
    Channel,
    /// The same with a deadline on each of its two waits.
    ChannelTimed,
    /// A call of a method that adds two numbers, with 64 in flight, client and server on one worker.
    RpcCall,
}

impl InstructionWork {
    /// The option that names it.
    pub fn option(self) -> String {
        self.to_possible_value().expect("no operation is hidden").get_name().to_owned()
    }
}
