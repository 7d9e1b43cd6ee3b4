//! The rows of the runtime table: what each contender does in them, and the goal.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One kind of work inside a process, on one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Work {
    /// Spawn and join a small closure, in batches of 1000.
    SpawnJoin,
    /// One yield, with 100 tasks in turn.
    Yield,
    /// There and back through two channels of capacity 1.
    Channel,
    /// A yield that lies three calls deep, none of them inlined.
    YieldDeep,
    /// A channel round trip whose waits lie three calls deep.
    ChannelDeep,
    /// What a given deadline adds to a wait that ends before it.
    Timer,
    /// Bytes of a task parked in `recv`, 64 bytes captured: resident memory and page tables.
    Memory,
    /// Spawn a task that never ran before and wait until it is parked.
    Park,
}

/// Tasks that take turns.
pub const YIELDERS: usize = 100;

/// Yields of each in a timed batch. Timed batches take a millisecond or little more: most of them then pass without another
/// process taking the processor, and the median is of an undisturbed one.
pub const YIELDS: usize = 500;

/// Spawned before the first is joined; a timed batch.
pub const SPAWN_BATCH: usize = 1_000;

/// Round trips in a timed batch.
pub const ROUND_TRIPS: usize = 2_000;

/// Tasks parked at once, where the contender can have so many.
pub const PARKED: usize = 100_000;

/// Bytes that each of them captures.
pub const CAPTURED_BYTES: usize = 64;

impl Work {
    /// All, in the order of the table.
    pub const ALL: [Work; 8] = [
        Work::SpawnJoin,
        Work::Yield,
        Work::Channel,
        Work::YieldDeep,
        Work::ChannelDeep,
        Work::Timer,
        Work::Memory,
        Work::Park,
    ];

    /// The option that names it.
    pub fn option(self) -> String {
        self.to_possible_value().expect("no kind of work is hidden").get_name().to_owned()
    }

    /// As the table names it.
    pub fn title(self) -> &'static str {
        match self {
            Work::SpawnJoin => "spawn + join, batches of 1000",
            Work::Yield => "yield, 100 tasks in turn",
            Work::Channel => "channel round trip, same worker",
            Work::YieldDeep => "yield, three calls deep",
            Work::ChannelDeep => "channel round trip, three calls deep",
            Work::Timer => "deadline on a wait: arm + cancel",
            Work::Memory => "memory of a parked task",
            Work::Park => "spawn and park a fresh task",
        }
    }

    /// What the figures are in.
    pub fn unit(self) -> &'static str {
        if self == Work::Memory { "bytes" } else { "ns" }
    }

    /// What we mean to stay below, where there is a goal.
    pub fn goal(self) -> Option<f64> {
        match self {
            Work::SpawnJoin => Some(100.0),
            Work::Yield => Some(10.0),
            Work::Channel => Some(90.0),
            Work::Timer => Some(25.0),
            Work::Memory => Some(4_900.0),
            Work::YieldDeep | Work::ChannelDeep | Work::Park => None,
        }
    }
}
